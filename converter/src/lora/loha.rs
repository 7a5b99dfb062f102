//! LoHa: Hadamard product of two low-rank pairs (`FedPara`, arXiv:2108.06098).
//! `dW = alpha / rank * (w1_a w1_b) o (w2_a w2_b)`, with `*_a` [out, rank] and `*_b` [rank, in * kh * kw]. With Tucker cores
//! `t1`, `t2` [rank, rank, kh, kw] between `*_a` [rank, out] and `*_b` [rank, in], each pair is
//! `sum_m sum_n t[m, n, x, y] a[m, o] b[n, i]`.
//!
//! `LyCORIS`' own merge multiplies by the scale a second time; its training, which defines the format, does not.

use super::group::Parts;
use super::matrix::{LowRank, Matrix, add_product, tucker};
use super::{Change, Delta, Format, Loaded, LoraError, Target, product};

pub(super) const FORMAT: Format = Format {
    name: "LoHa",
    parts: &[
        (".hada_w1_a", "hada_w1_a"),
        (".hada_w1_b", "hada_w1_b"),
        (".hada_w2_a", "hada_w2_a"),
        (".hada_w2_b", "hada_w2_b"),
        (".hada_t1", "hada_t1"),
        (".hada_t2", "hada_t2"),
    ],
    load,
};

/// Names of a pair's parts: factors and core.
type Pair = [&'static str; 3];

const FIRST: Pair = ["hada_w1_a", "hada_w1_b", "hada_t1"];
const SECOND: Pair = ["hada_w2_a", "hada_w2_b", "hada_t2"];

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    if parts.has("hada_t1") != parts.has("hada_t2") {
        return Err(parts.mismatch());
    }
    let first = pair(parts, target, FIRST)?;
    let second = pair(parts, target, SECOND)?;
    let rank = parts.need("hada_w1_b")?[0];
    let scale = parts.scale(rank)?;
    Ok(Loaded {
        weight: Some(Change::Added(Box::new(Hadamard {
            first,
            second,
            scale,
        }))),
        bias: None,
        rank: Some(rank),
    })
}

/// The two factors of one side: [out, rank] and [rank, in * kernel].
fn pair(parts: &Parts<'_>, target: &Target<'_>, [a, b, core]: Pair) -> Result<LowRank, LoraError> {
    let (&[a_rows, ref a_rest @ ..], &[rank, ref b_rest @ ..]) = (parts.need(a)?, parts.need(b)?)
    else {
        return Err(parts.misfit(target));
    };
    let (a_columns, b_columns) = (product(a_rest), product(b_rest));
    let fits = match parts.shape(core) {
        None if a_columns != rank || rank == 0 => return Err(parts.mismatch()),
        None => a_rows == target.rows() && b_columns == target.columns(),
        Some(core) if core.len() != 4 || core[..2] != [a_rows, rank] || a_rows * rank == 0 => {
            return Err(parts.mismatch());
        }
        Some(core) => {
            target.shape.get(2..) == Some(&core[2..])
                && [a_columns, b_columns] == [target.rows(), target.inputs()]
        }
    };
    if !fits {
        return Err(parts.misfit(target));
    }
    let (left, right) = (
        Matrix::of_rows(a_rows, parts.singles(a)?),
        Matrix::of_rows(rank, parts.singles(b)?),
    );
    let (up, down) = match parts.has(core) {
        false => (left, right),
        true => (
            left.transposed(),
            tucker(&parts.singles(core)?, a_rows, &right),
        ),
    };
    Ok(LowRank::new(up, &down, 1.0))
}

struct Hadamard {
    first: LowRank,
    second: LowRank,
    scale: f64,
}

impl Delta for Hadamard {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        let factors = [&self.first, &self.second].map(|pair| pair.factors(start));
        add_product(tile, scale * self.scale, &[&factors])
    }

    fn is_zero(&self) -> bool {
        self.scale == 0.0 || self.first.is_zero() || self.second.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked};

    fn example(alpha: f64) -> Example {
        Example::new(&[2, 2], &[0.0; 4])
            .part("x.hada_w1_a", &[2, 1], &[1.0, 2.0])
            .part("x.hada_w1_b", &[1, 2], &[3.0, 1.0])
            .part("x.hada_w2_a", &[2, 1], &[1.0, -1.0])
            .part("x.hada_w2_b", &[1, 2], &[2.0, 5.0])
            .part("x.alpha", &[], &[alpha])
    }

    #[test]
    fn the_products_are_multiplied_element_by_element() {
        assert_eq!(baked(&example(1.0), 1.0), [6.0, 5.0, -12.0, -10.0]);
    }

    #[test]
    fn the_scale_is_applied_once() {
        assert_eq!(baked(&example(0.5), 1.0), [3.0, 2.5, -6.0, -5.0]);
    }
}
