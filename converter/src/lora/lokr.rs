//! LoKr: Kronecker product (`LyCORIS`, arXiv:2309.14859).
//! `dW = scale * w1 (x) w2`, with `w1` [a, c] and `w2` [b, d * kh * kw], out = a b, in = c d:
//! `dW[i b + p, j d + q, x, y] = w1[i, j] w2[p, q, x, y]`. Either may be a product of factors `*_a` and `*_b`, `w2` also with a
//! Tucker core `t2` [rank, rank, kh, kw] between `w2_a` [rank, b] and `w2_b` [rank, d].
//!
//! The scale is alpha over the rank of a factored side. Where both are whole there is none: `LyCORIS` writes arbitrary alphas
//! there. Only PEFT, which has its alpha in a configuration, scales those too.

use super::group::Parts;
use super::matrix::{Matrix, tucker};
use super::vector;
use super::{Change, Delta, Format, Loaded, LoraError, Target, product};

pub(super) const FORMAT: Format = Format {
    name: "LoKr",
    parts: &[
        (".lokr_w1", "lokr_w1"),
        (".lokr_w1_a", "lokr_w1_a"),
        (".lokr_w1_b", "lokr_w1_b"),
        (".lokr_w2", "lokr_w2"),
        (".lokr_w2_a", "lokr_w2_a"),
        (".lokr_w2_b", "lokr_w2_b"),
        (".lokr_t2", "lokr_t2"),
    ],
    load,
};

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    let (w1, rank1) = side(parts, target, ["lokr_w1", "lokr_w1_a", "lokr_w1_b"], None)?;
    let core = parts.has("lokr_t2").then_some("lokr_t2");
    let (w2, rank2) = side(parts, target, ["lokr_w2", "lokr_w2_a", "lokr_w2_b"], core)?;
    let fits = w1.rows * w2.rows == target.rows() && w1.columns * w2.columns == target.columns();
    if !fits {
        return Err(parts.misfit(target));
    }
    let rank = rank1.or(rank2);
    let scale = match (rank, &parts.group.config) {
        (Some(rank), _) => parts.scale(rank)?,
        (None, Some(config)) => config.of_configured_rank(),
        // Not even read: half precision makes LyCORIS' largest alphas infinite.
        (None, None) => 1.0,
    };
    Ok(Loaded {
        weight: Some(Change::Added(Box::new(Kronecker { w1, w2, scale }))),
        bias: None,
        rank,
    })
}

/// One side as a matrix, and its rank if it is a product.
fn side(
    parts: &Parts<'_>,
    target: &Target<'_>,
    [whole, a, b]: [&'static str; 3],
    core: Option<&'static str>,
) -> Result<(Matrix, Option<usize>), LoraError> {
    if let Some(shape) = parts.shape(whole) {
        let rows = shape.first().copied().filter(|rows| *rows > 0);
        let rows = rows.ok_or_else(|| parts.misfit(target))?;
        return Ok((Matrix::of_rows(rows, parts.singles(whole)?), None));
    }
    let (&[a_rows, ref a_rest @ ..], &[rank, ref b_rest @ ..]) = (parts.need(a)?, parts.need(b)?)
    else {
        return Err(parts.misfit(target));
    };
    let left = Matrix::of_rows(a_rows, parts.singles(a)?);
    let right = Matrix::of_rows(rank, parts.singles(b)?);
    if a_rows * rank * product(a_rest) * product(b_rest) == 0 {
        return Err(parts.mismatch());
    }
    let Some(core) = core else {
        if left.columns != rank {
            return Err(parts.mismatch());
        }
        return Ok((left.times(&right), Some(rank)));
    };
    let shape = parts.need(core)?;
    if shape.len() != 4 || shape[..2] != [a_rows, rank] {
        return Err(parts.mismatch());
    }
    if target.shape.get(2..) != Some(&shape[2..]) {
        return Err(parts.misfit(target));
    }
    let right = tucker(&parts.singles(core)?, a_rows, &right);
    Ok((left.transposed().times(&right), Some(rank)))
}

struct Kronecker {
    w1: Matrix,
    w2: Matrix,
    scale: f64,
}

impl Delta for Kronecker {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        let Self { w1, w2, .. } = self;
        let columns = w1.columns * w2.columns;
        let scale = (scale * self.scale) as f32;
        let rows = tile.chunks_exact_mut(columns).zip(start / columns..);
        rows.map(|(row, n)| {
            let outer = &w1.rows_from(n / w2.rows)[..w1.columns];
            let inner = &w2.rows_from(n % w2.rows)[..w2.columns];
            vector::add_outer(row, scale, outer, inner)
        })
        .sum()
    }

    fn is_zero(&self) -> bool {
        self.scale == 0.0 || self.w1.is_zero() || self.w2.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked};

    #[test]
    fn the_first_factor_is_the_outer_one() {
        let example = Example::new(&[2, 6], &[0.0; 12])
            .part("x.lokr_w1", &[2, 2], &[1.0, 2.0, 0.0, 1.0])
            .part("x.lokr_w2", &[1, 3], &[1.0, 0.0, 2.0])
            .part("x.alpha", &[], &[1e10]);
        let expected = [1.0, 0.0, 2.0, 2.0, 0.0, 4.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0];
        // Both sides are whole, so that alpha means nothing.
        assert_eq!(baked(&example, 1.0), expected);
    }

    #[test]
    fn a_factored_side_of_rank_one_is_scaled_too() {
        let example = Example::new(&[2, 2], &[0.0; 4])
            .part("x.lokr_w1", &[1, 1], &[1.0])
            .part("x.lokr_w2_a", &[2, 1], &[1.0, 2.0])
            .part("x.lokr_w2_b", &[1, 2], &[1.0, 1.0])
            .part("x.alpha", &[], &[0.5]);
        assert_eq!(baked(&example, 1.0), [0.5, 0.5, 1.0, 1.0]);
    }
}
