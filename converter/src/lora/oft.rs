//! OFT (Qiu et al. 2023, arXiv:2306.07280) and BOFT (Liu et al. 2023, arXiv:2311.06243): blocks of outputs are rotated.
//! Each block X of `oft_blocks` gives `Q = X - X^T` and, by Cayley's transform, `R = (I + Q) (I - Q)^-1`. `alpha * out` is a bound
//! on the Frobenius norm of all Q together. `rescale` stretches the outputs afterwards. `oft_diag` of old `LyCORIS` files are
//! blocks R already.
//!
//! OFT, blocks [K, n, n]: rows of W are K groups of n, each becomes `R^T group`. BOFT, blocks [M, K, n, n]: M stages; in stage i
//! rows (c, 2, h) with `h = 2^i n / 2` are put in the order (c, h, 2), groups become `R group`, and the order is restored.
//! The transpose is that of the trainers: OFT contracts over the first index of R, BOFT over the second.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef};
use rayon::prelude::*;

use super::group::Parts;
use super::matrix::{Matrix, Panels, add_product, product};
use super::product as length;
use super::vector::{self, scratch};
use super::{Change, Format, Loaded, LoraError, Target, Transform};

/// Elements that a thread rotates at once: a quarter of a megabyte.
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
    let blocks = values.chunks_exact(size * size);
    let blocks = blocks.map(|block| MatRef::from_row_major_slice(block, size, size));
    let turns = match diagonal {
        true => Turns::Rotations(blocks.map(|block| block.to_owned()).collect()),
        false => Turns::skew(blocks, constraint(parts)?.map(|alpha| alpha * rows as f64)),
    };
    let rescale = match parts.shape("rescale") {
        None => vec![1.0; rows],
        Some(shape) if length(shape) == rows => parts.values("rescale")?,
        Some(_) => return Err(parts.misfit(target)),
    };
    let change: Box<dyn Transform> = match butterfly {
        true => Box::new(Butterfly {
            turns,
            stages,
            rescale,
            size,
        }),
        false => Box::new(Rotation {
            turns,
            rescale,
            size,
        }),
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

/// What is in a file for rotations.
enum Turns {
    /// Themselves.
    Rotations(Vec<Mat<f64>>),
    /// Skew-symmetric parts, and what they are multiplied by.
    Skew(Vec<Mat<f64>>, f64),
}

impl Turns {
    /// Of blocks X, whose skew-symmetric parts have a norm, all together, of at most `bound`.
    fn skew<'a>(blocks: impl Iterator<Item = MatRef<'a, f64>>, bound: Option<f64>) -> Self {
        let skew: Vec<Mat<f64>> = blocks.map(|x| x - x.transpose()).collect();
        let norm = skew.iter().map(Mat::squared_norm_l2).sum::<f64>().sqrt();
        let exceeded = bound.filter(|bound| norm > *bound);
        Self::Skew(skew, exceeded.map_or(1.0, |bound| bound / norm))
    }

    fn is_identity(&self) -> bool {
        let (blocks, diagonal) = match self {
            Self::Rotations(rotations) => (rotations, 1.0),
            Self::Skew(skew, _) => (skew, 0.0),
        };
        let value = |i: usize, j: usize| if i == j { diagonal } else { 0.0 };
        blocks.iter().all(|x| {
            let mut columns = x.col_iter().enumerate();
            columns.all(|(j, column)| {
                let mut column = column.iter().enumerate();
                column.all(|(i, x)| *x == value(i, j))
            })
        })
    }

    /// The rotation of a block, by Cayley's transform.
    fn rotation(&self, n: usize) -> Mat<f64> {
        match self {
            Self::Rotations(rotations) => rotations[n].clone(),
            Self::Skew(skew, factor) => {
                let q = faer::Scale(*factor) * &skew[n];
                let mut minus = -&q;
                minus.diagonal_mut().fill(1.0);
                let mut plus = q;
                plus.diagonal_mut().fill(1.0);
                // (I + Q) and (I - Q)^-1 commute.
                minus.partial_piv_lu().solve(plus)
            }
        }
    }
}

/// Groups of rows, each turned by its block.
struct Rotation {
    turns: Turns,
    rescale: Vec<f64>,
    /// Side of a block.
    size: usize,
}

impl Rotation {
    /// What is added to a group is this times the group: `D R^T - I`, with `rescale` on the diagonal of D.
    fn change(&self, n: usize) -> Matrix {
        let (r, size) = (self.turns.rotation(n), self.size);
        let rescale = &self.rescale[n * size..];
        Matrix::from_fn(size, size, |i, j| {
            (rescale[i] * r[(j, i)] - f64::from(u8::from(i == j))) as f32
        })
    }
}

impl Transform for Rotation {
    fn rows_together(&self, _: &Target<'_>) -> usize {
        self.size
    }

    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let columns = target.columns();
        let group = self.size * columns;
        let groups = tile.chunks_mut(group).zip(start / group..);
        groups
            .map(|(rows, n)| {
                let (change, before) = (self.change(n), Panels::of(rows, columns));
                add_product(rows, strength, &[&[(change.rows_from(0), &before)]])
            })
            .sum()
    }

    fn is_identity(&self) -> bool {
        self.turns.is_identity() && self.rescale.iter().all(|x| *x == 1.0)
    }
}

/// Stages of rotations of rows that are ever farther apart.
struct Butterfly {
    turns: Turns,
    stages: usize,
    rescale: Vec<f64>,
    /// Side of a block.
    size: usize,
}

impl Butterfly {
    /// R of a block.
    fn block(&self, n: usize) -> Matrix {
        let r = self.turns.rotation(n);
        Matrix::from_fn(self.size, self.size, |i, j| r[(i, j)] as f32)
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
            product(out, 1.0, (block.rows_from(0), &before));
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
        let count = rows / self.size;
        let stages = (0..self.stages).into_par_iter().map(|stage| {
            let blocks = stage * count..(stage + 1) * count;
            let blocks: Vec<Matrix> = blocks.map(|n| self.block(n)).collect();
            (blocks, self.order(stage, rows))
        });
        let stages: Vec<(Vec<Matrix>, Vec<usize>)> = stages.collect();
        let starts: Vec<usize> = (0..columns).step_by(width).collect();
        let shared: &[f32] = weight;
        let parts = starts.par_iter().map(|&start| {
            let width = width.min(columns - start);
            let row = |at: usize| at * width..(at + 1) * width;
            let part = |at: usize| &shared[at * columns + start..][..width];
            let mut original: Vec<f32> = Vec::with_capacity(rows * width);
            (0..rows).for_each(|at| original.extend_from_slice(part(at)));
            let mut part = original.clone();
            for (blocks, order) in &stages {
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
        self.turns.is_identity() && self.rescale.iter().all(|x| *x == 1.0)
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
        let x = MatRef::from_row_major_slice(&X, 2, 2);
        let turned = Turns::skew([x].into_iter(), Some(0.2)).rotation(0);
        let expected = [0.960_784, 0.277_297, -0.277_297, 0.960_784];
        let found = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|at| turned[at] as f32);
        assert_close(&found, &expected);
        let turned = &turned * turned.transpose();
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
            turns: Turns::Rotations(Vec::new()),
            stages,
            rescale: Vec::new(),
            size,
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
