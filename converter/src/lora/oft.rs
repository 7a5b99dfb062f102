//! OFT (Qiu et al. 2023, arXiv:2306.07280) and BOFT (Liu et al. 2023, arXiv:2311.06243): blocks of outputs are rotated.
//! Each block X of `oft_blocks` gives `Q = X - X^T` and, by Cayley's transform, `R = (I + Q) (I - Q)^-1`. `alpha * out` is a bound
//! on the Frobenius norm of all Q together. `rescale` stretches the outputs afterwards. `oft_diag` of old `LyCORIS` files are
//! blocks R already.
//!
//! OFT, blocks [K, n, n]: rows of W are K groups of n, each becomes `R^T group`. BOFT, blocks [M, K, n, n]: M stages; in stage i
//! rows (c, 2, h) with `h = 2^i n / 2` are put in the order (c, h, 2), groups become `R group`, and the order is restored.
//! The transpose is that of the trainers: OFT contracts over the first index of R, BOFT over the second.

use faer::Mat;
use faer::linalg::solvers::Solve;
use rayon::prelude::*;

use super::group::Parts;
use super::matrix::{Matrix, Panels, add_product, product};
use super::product as length;
use super::vector::{self, scratch};
use super::{Change, Format, Loaded, LoraError, Target, Transform};

/// Elements that a thread rotates at once: half a megabyte of doubles.
const TILE: usize = 1 << 16;

/// Columns below which products would be slow.
const LEAST_WIDTH: usize = 32;

pub(super) const FORMAT: Format = Format {
    name: "OFT",
    parts: &[
        (".oft_blocks", "oft_blocks"),
        (".oft_diag", "oft_diag"),
        (".rescale", "rescale"),
    ],
    load,
};

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    let diagonal = parts.has("oft_diag");
    let role = if diagonal { "oft_diag" } else { "oft_blocks" };
    let shape = parts.need(role)?;
    let values = parts.values(role)?;
    let (stages, count, size) = match *shape {
        [count, size, width] if size == width => (1, count, size),
        [stages, count, size, width] if size == width && size % 2 == 0 && !diagonal => {
            (stages, count, size)
        }
        _ => return Err(parts.misfit(target)),
    };
    let butterfly = shape.len() == 4;
    let rows = target.rows();
    // In the last stage two groups of 2^(M-1) n/2 rows change places.
    let fits = |stage: usize| {
        1usize
            .checked_shl(stage as u32)
            .and_then(|far| far.checked_mul(size))
            .is_some_and(|span| rows.is_multiple_of(span))
    };
    if size == 0 || count * size != rows || butterfly && !(0..stages).all(fits) {
        return Err(parts.misfit(target));
    }
    let mut blocks: Vec<Mat<f64>> = values
        .chunks_exact(size * size)
        .map(|block| Mat::from_fn(size, size, |i, j| block[i * size + j]))
        .collect();
    if !diagonal {
        cayley(
            &mut blocks,
            constraint(parts)?.map(|alpha| alpha * rows as f64),
        );
    }
    if blocks
        .iter()
        .any(|r| (0..size).any(|j| r.col(j).iter().any(|x| !x.is_finite())))
    {
        return Err(parts.problem("its rotations cannot be computed"));
    }
    let rescale = match parts.shape("rescale") {
        None => vec![1.0; rows],
        Some(shape) if length(shape) == rows => parts.values("rescale")?,
        Some(_) => return Err(parts.misfit(target)),
    };
    let change: Box<dyn Transform> = match butterfly {
        true => Box::new(Butterfly::new(&blocks, stages, rescale)),
        false => Box::new(Rotation::new(&blocks, &rescale)),
    };
    Ok(Loaded {
        weight: Some(Change::Computed(change)),
        bias: None,
        rank: None,
    })
}

/// Bound on the rotation per output, if there is one: zero means none, but sd-scripts, which would freeze there, has no zero.
fn constraint(parts: &Parts<'_>) -> Result<Option<f64>, LoraError> {
    let kohya = parts.group.module.starts_with("oft_unet_");
    if kohya && parts.number("alpha")? == Some(0.0) {
        return Err(LoraError::BadAlpha {
            module: parts.group.module.clone(),
            alpha: 0.0,
        });
    }
    parts.alpha()
}

/// Rotations of skew-symmetric parts, whose norm all together is at most `bound`.
fn cayley(blocks: &mut [Mat<f64>], bound: Option<f64>) {
    for x in blocks.iter_mut() {
        *x = &*x - x.transpose();
    }
    let squares = blocks.iter().map(Mat::squared_norm_l2);
    let norm = squares.sum::<f64>().sqrt();
    let shrink = bound
        .filter(|bound| norm > *bound)
        .map_or(1.0, |bound| bound / norm);
    for q in blocks {
        let q_shrunk = faer::Scale(shrink) * &*q;
        let identity = Mat::<f64>::identity(q.nrows(), q.ncols());
        // (I + Q) and (I - Q)^-1 commute.
        let lu = (&identity - &q_shrunk).partial_piv_lu();
        *q = lu.solve(&identity + &q_shrunk);
    }
}

/// Groups of rows, each turned by its block.
struct Rotation {
    /// What is added to a group is a block times the group: `D R^T - I`, with `rescale` on the diagonal of D.
    blocks: Vec<Matrix>,
}

impl Rotation {
    fn new(blocks: &[Mat<f64>], rescale: &[f64]) -> Self {
        let change = |(r, rescale): (&Mat<f64>, &[f64])| {
            let size = rescale.len();
            let at = |n: usize| {
                let (i, j) = (n / size, n % size);
                rescale[i] * r[(j, i)] - f64::from(u8::from(i == j))
            };
            Matrix::of_rows(size, (0..size * size).map(|n| at(n) as f32).collect())
        };
        let size = rescale.len() / blocks.len();
        let blocks = blocks.iter().zip(rescale.chunks(size));
        Self {
            blocks: blocks.map(change).collect(),
        }
    }
}

impl Transform for Rotation {
    fn rows_together(&self, _: &Target<'_>) -> usize {
        self.blocks[0].rows
    }

    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let columns = target.columns();
        let group = self.blocks[0].rows * columns;
        let groups = tile.chunks_mut(group).zip(&self.blocks[start / group..]);
        groups
            .map(|(rows, block)| {
                let before = Panels::of(rows, columns);
                add_product(rows, strength, &[(block.rows_from(0), &before)])
            })
            .sum()
    }

    fn is_identity(&self) -> bool {
        self.blocks.iter().all(Matrix::is_zero)
    }
}

/// Stages of rotations of rows that are ever farther apart.
struct Butterfly {
    /// Side of a block.
    size: usize,
    /// Per stage, one block R per group of rows.
    stages: Vec<Vec<Matrix>>,
    rescale: Vec<f64>,
}

impl Butterfly {
    fn new(blocks: &[Mat<f64>], stages: usize, rescale: Vec<f64>) -> Self {
        let count = blocks.len() / stages;
        let size = rescale.len() / count;
        let single = |r: &Mat<f64>| {
            let at = |n: usize| r[(n / size, n % size)] as f32;
            Matrix::of_rows(size, (0..size * size).map(at).collect())
        };
        let stages = blocks.chunks(count);
        Self {
            size,
            stages: stages.map(|s| s.iter().map(single).collect()).collect(),
            rescale,
        }
    }

    /// New position to old row, in a stage.
    fn order(&self, stage: usize, rows: usize) -> Vec<usize> {
        let half = (1 << stage) * self.size / 2;
        let place = |at: usize| {
            let (c, within) = (at / (2 * half), at % (2 * half));
            let (h, side) = (within / 2, within % 2);
            (2 * c + side) * half + h
        };
        (0..rows).map(place).collect()
    }

    /// Writes groups of rows, `width` columns each, times their blocks.
    fn turn(&self, blocks: &[Matrix], rows: &[f32], width: usize, out: &mut [f32]) {
        let group = self.size * width;
        for ((out, rows), block) in out.chunks_mut(group).zip(rows.chunks(group)).zip(blocks) {
            let before = Panels::of(rows, width);
            product(out, 1.0, &[(block.rows_from(0), &before)]);
        }
    }
}

impl Transform for Butterfly {
    fn rows_together(&self, target: &Target<'_>) -> usize {
        target.rows()
    }

    /// All rows at once: in parallel for groups of columns.
    fn apply(&self, _: usize, weight: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let (rows, columns) = (target.rows(), target.columns());
        let width = (TILE / rows).max(LEAST_WIDTH).min(columns);
        let orders: Vec<Vec<usize>> = (0..self.stages.len())
            .map(|stage| self.order(stage, rows))
            .collect();
        let starts: Vec<usize> = (0..columns).step_by(width).collect();
        let shared: &[f32] = weight;
        let parts = starts.par_iter().map(|&start| {
            let width = width.min(columns - start);
            let row = |at: usize| at * width..(at + 1) * width;
            let part = |at: usize| &shared[at * columns + start..][..width];
            let mut original: Vec<f32> = Vec::with_capacity(rows * width);
            (0..rows).for_each(|at| original.extend_from_slice(part(at)));
            let mut part = original.clone();
            for (blocks, order) in self.stages.iter().zip(&orders) {
                let mut ordered = Vec::with_capacity(part.len());
                order
                    .iter()
                    .for_each(|from| ordered.extend_from_slice(&part[row(*from)]));
                scratch(ordered.len(), |turned| {
                    self.turn(blocks, &ordered, width, turned);
                    for (to, from) in order.iter().enumerate() {
                        part[row(*from)].copy_from_slice(&turned[row(to)]);
                    }
                });
            }
            let turned = original.chunks_mut(width).zip(part.chunks(width));
            let energies = turned.zip(&self.rescale).map(|((row, turned), rescale)| {
                vector::interpolate(row, strength, *rescale, turned)
            });
            let energy: f64 = energies.sum();
            (original, energy)
        });
        let parts: Vec<(Vec<f32>, f64)> = parts.collect();
        for (start, (part, _)) in starts.iter().zip(&parts) {
            let width = width.min(columns - start);
            for (to, from) in weight.chunks_mut(columns).zip(part.chunks(width)) {
                to[*start..start + width].copy_from_slice(from);
            }
        }
        parts.iter().map(|(_, energy)| energy).sum()
    }

    fn is_identity(&self) -> bool {
        let identity = |r: &Matrix| {
            let on_diagonal = |n: usize| n / self.size == n % self.size;
            let mut places = r.values.iter().enumerate();
            places.all(|(n, x)| *x == f32::from(u8::from(on_diagonal(n))))
        };
        self.stages.iter().flatten().all(identity) && self.rescale.iter().all(|x| *x == 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::examples::{Example, assert_close, baked};

    const X: [f64; 4] = [0.0, 0.5, 0.0, 0.0];

    fn example() -> Example {
        Example::new(&[2, 2], &[1.0, 2.0, 3.0, 4.0])
    }

    #[test]
    fn oft_turns_by_the_transpose() {
        let oft = example().part("x.oft_blocks", &[1, 2, 2], &X);
        assert_close(&baked(&oft, 1.0), &[-1.8, -2.0, 2.6, 4.0]);
        assert_close(&baked(&oft, 0.5), &[-0.4, 0.0, 2.8, 4.0]);
    }

    #[test]
    fn boft_does_not() {
        let boft = example().part("x.oft_blocks", &[1, 1, 2, 2], &X);
        assert_close(&baked(&boft, 1.0), &[3.0, 4.4, 1.0, 0.8]);
    }

    #[test]
    fn alpha_bounds_the_angle() {
        let mut blocks = [Mat::from_fn(2, 2, |i, j| X[i * 2 + j])];
        cayley(&mut blocks, Some(0.2));
        let expected = [0.960_784, 0.277_297, -0.277_297, 0.960_784];
        let found = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|at| blocks[0][at] as f32);
        assert_close(&found, &expected);
        let turned = &blocks[0] * blocks[0].transpose();
        assert!((turned - Mat::<f64>::identity(2, 2)).norm_l2() < 1e-12);
    }

    #[test]
    fn a_symmetric_block_turns_nothing() {
        let symmetric = [0.3, 0.5, 0.5, -1.0];
        let oft = example().part("x.oft_blocks", &[1, 2, 2], &symmetric);
        assert_eq!(baked(&oft, 1.0), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn an_old_block_is_the_rotation_itself() {
        let old = example().part("x.oft_diag", &[1, 2, 2], &[0.6, 0.8, -0.8, 0.6]);
        assert_close(&baked(&old, 1.0), &[-1.8, -2.0, 2.6, 4.0]);
    }

    #[test]
    fn rows_are_paired_as_in_a_butterfly() {
        let butterfly = |size: usize, stages: usize| Butterfly {
            size,
            stages: vec![Vec::new(); stages],
            rescale: Vec::new(),
        };
        let two = butterfly(2, 3);
        assert_eq!(two.order(0, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(two.order(1, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(two.order(2, 8), [0, 4, 1, 5, 2, 6, 3, 7]);
        let four = butterfly(4, 2);
        assert_eq!(four.order(0, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(four.order(1, 8), [0, 4, 1, 5, 2, 6, 3, 7]);
    }
}
