//! DoRA (Liu et al. 2024, arXiv:2402.09353): a low-rank change whose result gets a magnitude of its own along one axis.
//! `V = W + dW`, `F(W) = g V / |V|`, with the norm over all other axes, and `W + m (F(W) - W)` at strength m.
//!
//! PEFT's magnitudes belong to outputs. `LyCORIS`' belonged to inputs until version 3.1, and belong to outputs since 3.2; the
//! shape tells, and where it does not, outputs are taken. The norm is that of W + dW, as in training.

use rayon::prelude::*;

use super::group::Parts;
use super::vector;
use super::{Axis, Change, Delta, LoraError, Target, Transform, product, tile_rows};

/// What `LyCORIS` adds to norms.
const EPSILON: f64 = f32::EPSILON as f64;

/// Names of the magnitudes: `LyCORIS`' and PEFT's.
const MAGNITUDES: [&str; 2] = ["dora_scale", "magnitude"];

/// Whether a module has magnitudes.
pub(super) fn has_magnitude(parts: &Parts<'_>) -> bool {
    MAGNITUDES.iter().any(|role| parts.has(role))
}

/// Gives a change its magnitudes.
pub(super) fn with_magnitude<'a>(
    parts: &Parts<'a>,
    target: &Target<'_>,
    change: Change<'a>,
) -> Result<Change<'a>, LoraError> {
    let Change::Added(delta) = change else {
        return Err(parts.problem("magnitudes (DoRA) on this kind are not supported"));
    };
    let (role, axis) = match MAGNITUDES.map(|role| parts.shape(role)) {
        [_, Some(shape)] if product(shape) == target.rows() => ("magnitude", Axis::Output),
        [Some(shape), None] => {
            let axis = lycoris_axis(shape, target).ok_or_else(|| parts.misfit(target))?;
            ("dora_scale", axis)
        }
        _ => return Err(parts.misfit(target)),
    };
    Ok(Change::Computed(Box::new(Dora {
        delta,
        magnitudes: parts.values(role)?,
        axis,
    })))
}

fn lycoris_axis(shape: &[usize], target: &Target<'_>) -> Option<Axis> {
    let (rows, inputs) = (target.rows(), target.inputs());
    match shape {
        [n] if *n == rows => Some(Axis::Output),
        [n] if *n == inputs => Some(Axis::Input),
        [n, rest @ ..] if *n == rows && product(rest) == 1 => Some(Axis::Output),
        [1, n, rest @ ..] if *n == inputs && product(rest) == 1 => Some(Axis::Input),
        _ => None,
    }
}

/// Whether the axis of a module's magnitudes is a guess: one number per output, or per input, of as many.
pub(super) fn axis_is_assumed(parts: &Parts<'_>, target: &Target<'_>) -> bool {
    let square = target.rows() == target.inputs();
    square
        && parts
            .shape("dora_scale")
            .is_some_and(|shape| shape.len() == 1)
}

struct Dora<'a> {
    delta: Box<dyn Delta + 'a>,
    magnitudes: Vec<f64>,
    axis: Axis,
}

impl Dora<'_> {
    /// What V is multiplied by, for its norm.
    fn factor(&self, at: usize, squares: f64) -> f64 {
        self.magnitudes[at] / (squares.sqrt() + EPSILON)
    }

    /// Calls `use_it` with `V = W + dW` of a tile.
    fn with_v<T>(
        &self,
        start: usize,
        tile: &mut [f32],
        use_it: impl FnOnce(&mut [f32], &[f32]) -> T,
    ) -> T {
        vector::scratch(tile.len(), |v| {
            v.copy_from_slice(tile);
            self.delta.add(start, 1.0, v);
            use_it(tile, v)
        })
    }

    /// With magnitudes of inputs, which need the norms of whole columns: in tiles of tiles, added up in an order that does
    /// not depend on threads.
    fn apply_to_columns(&self, weight: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let (kernel, columns) = (target.kernel(), target.columns());
        let tile = tile_rows(columns) * columns;
        let tiles = weight.par_chunks_mut(tile).enumerate();
        let sums = tiles.map(|(n, weight)| {
            let mut sums = vec![0.0; target.inputs()];
            self.with_v(n * tile, weight, |_, v| {
                for row in v.chunks(columns) {
                    let taps = row.chunks(kernel).map(vector::squares);
                    sums.iter_mut()
                        .zip(taps)
                        .for_each(|(sum, taps)| *sum += taps);
                }
            });
            sums
        });
        let mut total = vec![0.0; target.inputs()];
        for sums in sums.collect::<Vec<_>>() {
            total
                .iter_mut()
                .zip(sums)
                .for_each(|(total, sum)| *total += sum);
        }
        let of_input = |(i, squares): (usize, &f64)| {
            std::iter::repeat_n(self.factor(i, *squares) as f32, kernel)
        };
        let factors: Vec<f32> = total.iter().enumerate().flat_map(of_input).collect();
        let tiles = weight.par_chunks_mut(tile).enumerate();
        let energies = tiles.map(|(n, weight)| {
            self.with_v(n * tile, weight, |weight, v| {
                let rows = weight.chunks_mut(columns).zip(v.chunks(columns));
                rows.map(|(row, v)| vector::interpolate_each(row, strength, &factors, v))
                    .sum::<f64>()
            })
        });
        energies.collect::<Vec<f64>>().iter().sum()
    }
}

impl Transform for Dora<'_> {
    fn rows_together(&self, target: &Target<'_>) -> usize {
        match self.axis {
            Axis::Output => 1,
            Axis::Input => target.rows(),
        }
    }

    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        if self.axis == Axis::Input {
            return self.apply_to_columns(tile, target, strength);
        }
        let columns = target.columns();
        self.with_v(start, tile, |tile, v| {
            let rows = tile.chunks_mut(columns).zip(v.chunks(columns));
            rows.zip(start / columns..)
                .map(|((row, v), o)| {
                    let factor = self.factor(o, vector::squares(v));
                    vector::interpolate(row, strength, factor, v)
                })
                .sum()
        })
    }

    fn is_identity(&self) -> bool {
        false
    }
}

#[cfg(test)]
#[expect(
    clippy::approx_constant,
    clippy::excessive_precision,
    reason = "results that happen to be near one"
)]
mod tests {
    use crate::lora::examples::{Example, assert_close, baked};

    fn example(shape: &[usize], magnitudes: &[f64]) -> Example {
        Example::new(&[2, 2], &[3.0, 4.0, 0.0, 1.0])
            .part("x.lora_up.weight", &[2, 1], &[0.5, 1.0])
            .part("x.lora_down.weight", &[1, 2], &[1.0, 0.0])
            .part("x.dora_scale", shape, magnitudes)
    }

    #[test]
    fn outputs_get_their_magnitudes() {
        let example = example(&[2, 1], &[10.0, 2.0]);
        let whole = [6.585_046, 7.525_767, 1.414_214, 1.414_214];
        assert_close(&baked(&example, 1.0), &whole);
        let half = [4.792_523, 5.762_883, 0.707_107, 1.207_107];
        assert_close(&baked(&example, 0.5), &half);
        assert_eq!(baked(&example, 0.0), [3.0, 4.0, 0.0, 1.0]);
    }

    #[test]
    fn inputs_get_their_magnitudes() {
        let found = baked(&example(&[1, 2], &[3.0, 4.0]), 1.0);
        assert_close(&found, &[2.884_572, 3.880_570, 0.824_163, 0.970_143]);
    }

    #[test]
    fn the_norm_is_that_of_the_changed_weight() {
        // With the norms of V as magnitudes it is a plain LoRA; with the norm of W it would not be.
        let norms = [(3.5f64 * 3.5 + 16.0).sqrt(), 2f64.sqrt()];
        let found = baked(&example(&[2, 1], &norms), 1.0);
        assert_close(&found, &[3.5, 4.0, 1.0, 1.0]);
    }

    #[test]
    fn pefts_magnitudes_of_convolutions_belong_to_outputs() {
        let example = Example::new(&[2, 2, 1, 1], &[3.0, 4.0, 0.0, 1.0])
            .part("x.lora_B.weight", &[2, 1, 1, 1], &[0.5, 1.0])
            .part("x.lora_A.weight", &[1, 2, 1, 1], &[1.0, 0.0])
            .part("x.lora_magnitude_vector", &[1, 2, 1, 1], &[10.0, 2.0]);
        let whole = [6.585_046, 7.525_767, 1.414_214, 1.414_214];
        assert_close(&baked(&example, 1.0), &whole);
    }
}
