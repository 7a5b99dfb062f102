//! GLoRA (Chavan et al. 2023, arXiv:2306.07967): `W' = W + alpha / rank * ((W a1) a2 + b1 b2)`.
//! `a1` [in, rank] and `a2` [rank, in] act on input channels, `b1` [out, rank] and `b2` [rank, in * kh * kw] are a LoRA, with an
//! optional Tucker core `bm`. Before 2024 `LyCORIS` stored both pairs in the other order; the shapes tell.

use super::group::Parts;
use super::matrix::{LowRank, Matrix, Panels, add_product, product, tucker};
use super::product as length;
use super::vector::{self, scratch};
use super::{Change, Delta, Format, Loaded, LoraError, Target, Transform};

pub(super) const FORMAT: Format = Format {
    name: "GLoRA",
    parts: &[
        (".a1.weight", "a1"),
        (".a2.weight", "a2"),
        (".b1.weight", "b1"),
        (".b2.weight", "b2"),
        (".bm.weight", "bm"),
    ],
    load,
};

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    let size = |role| -> Result<(usize, usize), LoraError> {
        match parts.need(role)? {
            [rows, rest @ ..] if *rows > 0 && length(rest) > 0 => Ok((*rows, length(rest))),
            _ => Err(parts.misfit(target)),
        }
    };
    let (a1, a2, b1, b2) = (size("a1")?, size("a2")?, size("b1")?, size("b2")?);
    let (rows, inputs, columns) = (target.rows(), target.inputs(), target.columns());
    let core = parts.shape("bm");
    let b_columns = if core.is_some() { inputs } else { columns };
    // Where a rank is as large as a side, both orders fit: today's is taken.
    let a_is_new = a1.0 == inputs && a2 == (a1.1, inputs);
    let a_is_old = a2.0 == inputs && a1 == (a2.1, inputs);
    let b_is_new = b1.0 == rows && b2 == (b1.1, b_columns);
    let b_is_old = core.is_none() && b2.0 == rows && b1 == (b2.1, columns);
    let ([a_left, a_right], [b_left, b_right]) = match () {
        () if a_is_new && b_is_new => (["a1", "a2"], ["b1", "b2"]),
        () if a_is_old && b_is_old => (["a2", "a1"], ["b2", "b1"]),
        () => return Err(parts.misfit(target)),
    };
    let matrix = |role| -> Result<Matrix, LoraError> {
        Ok(Matrix::of_rows(size(role)?.0, parts.singles(role)?))
    };
    let (a_left, a_right) = (matrix(a_left)?, matrix(a_right)?);
    let (b_left, mut b_right) = (matrix(b_left)?, matrix(b_right)?);
    let rank = a_left.columns;
    if let Some(core) = core {
        let fits = core.len() == 4 && core[..2] == [b_left.columns, b_right.rows];
        if !fits || target.shape.get(2..) != Some(&core[2..]) {
            return Err(parts.misfit(target));
        }
        b_right = tucker(&parts.singles("bm")?, b_left.columns, &b_right);
    }
    let scale = parts.scale(rank)?;
    Ok(Loaded {
        weight: Some(Change::Computed(Box::new(GLoRa {
            a: [a_left.panels(), a_right.panels()],
            b: LowRank::new(b_left, &b_right, 1.0),
            scale,
        }))),
        bias: None,
        rank: Some(rank),
    })
}

struct GLoRa {
    /// [in, rank] and [rank, in]
    a: [Panels; 2],
    /// [out, rank] times [rank, in * kernel]
    b: LowRank,
    scale: f64,
}

impl Transform for GLoRa {
    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let (kernel, scale) = (target.kernel(), strength * self.scale);
        let ([left, right], b) = (&self.a, self.b.factors(start));
        let rows = tile.len() / kernel / left.rows;
        scratch(rows * left.columns, |narrow| {
            if kernel == 1 {
                product(narrow, 1.0, (tile, left));
                return add_product(tile, scale, &[&[(narrow, right)], &[b]]);
            }
            // One product per place of the kernel.
            let mut change = vec![0.0; tile.len()];
            let mut turned = vec![0.0; tile.len() / kernel];
            for place in 0..kernel {
                let taps: Vec<f32> = tile.iter().skip(place).step_by(kernel).copied().collect();
                product(narrow, 1.0, (&taps, left));
                product(&mut turned, scale, (narrow, right));
                let places = change.iter_mut().skip(place).step_by(kernel);
                places.zip(&turned).for_each(|(out, x)| *out = *x);
            }
            add_product(&mut change, scale, &[&[b]]);
            vector::add(tile, &change)
        })
    }

    fn is_identity(&self) -> bool {
        let zero = self.a.iter().any(Panels::is_zero) && self.b.is_zero();
        self.scale == 0.0 || zero
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked};

    #[test]
    fn the_weight_takes_part_in_its_change_in_both_orders_of_storage() {
        let example = |[a1, a2, b1, b2]: [&str; 4]| {
            let part = |name: &str| format!("x.{name}.weight");
            Example::new(&[2, 2], &[1.0, 2.0, 3.0, 4.0])
                .part(&part(a1), &[2, 1], &[1.0, 0.0])
                .part(&part(a2), &[1, 2], &[0.0, 1.0])
                .part(&part(b1), &[2, 1], &[1.0, 1.0])
                .part(&part(b2), &[1, 2], &[2.0, 0.0])
        };
        let expected = [3.0, 3.0, 5.0, 7.0];
        assert_eq!(baked(&example(["a1", "a2", "b1", "b2"]), 1.0), expected);
        assert_eq!(baked(&example(["a2", "a1", "b2", "b1"]), 1.0), expected);
    }
}
