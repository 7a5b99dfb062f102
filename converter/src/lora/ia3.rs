//! (IA)^3 (Liu et al. 2022, arXiv:2205.05638): rows or columns of a weight are stretched.
//! `LyCORIS` stores offsets from 1 (`W[o, ..] += v[o] W[o, ..]`, or `v[i]` over inputs with `on_input`) and leaves the bias alone;
//! PEFT stores factors, and stretches the bias with the outputs.

use super::group::Parts;
use super::vector;
use super::{Axis, Change, Format, Loaded, LoraError, Target, Transform, product};

pub(super) const FORMAT: Format = Format {
    name: "(IA)^3",
    parts: &[
        (".weight", "weight"),
        (".on_input", "on_input"),
        (".ia3_l", "ia3_l"),
    ],
    load,
};

fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    let peft = parts.shape("ia3_l");
    let (shape, axis, offsets) = match peft {
        Some(shape) => {
            let factors = parts.values("ia3_l")?;
            let feedforward = parts.group.config.is_some_and(|config| config.feedforward);
            let axis = axis_of(shape, target, feedforward).ok_or_else(|| parts.misfit(target))?;
            (shape, axis, factors.iter().map(|l| l - 1.0).collect())
        }
        None => {
            let axis = match parts.number("on_input")? {
                Some(0.0) => Axis::Output,
                Some(_) => Axis::Input,
                None => return Err(parts.need("on_input").expect_err("it is not there")),
            };
            (parts.need("weight")?, axis, parts.values("weight")?)
        }
    };
    let expected = match axis {
        Axis::Output => target.rows(),
        Axis::Input => target.inputs(),
    };
    if product(shape) != expected {
        return Err(parts.misfit(target));
    }
    let stretched = |offsets: Vec<f64>| Change::Computed(Box::new(Stretch { offsets, axis }));
    let bias = (peft.is_some() && axis == Axis::Output && target.has_bias)
        .then(|| stretched(offsets.clone()));
    Ok(Loaded {
        weight: Some(stretched(offsets)),
        bias,
        rank: None,
    })
}

/// PEFT's vectors are [1, in] in feed-forward modules and [out, 1] elsewhere, but on convolutions always [1, n, 1, 1].
fn axis_of(shape: &[usize], target: &Target<'_>, feedforward: bool) -> Option<Axis> {
    match *shape {
        [1, n, ..] if shape.len() == 4 && target.rows() == target.inputs() => {
            let fits = n == target.rows();
            fits.then_some(if feedforward {
                Axis::Input
            } else {
                Axis::Output
            })
        }
        [1, n, ..] if shape.len() == 4 && n == target.rows() => Some(Axis::Output),
        [1, _, ..] => Some(Axis::Input),
        [_, ref rest @ ..] if product(rest) == 1 => Some(Axis::Output),
        _ => None,
    }
}

struct Stretch {
    offsets: Vec<f64>,
    axis: Axis,
}

impl Transform for Stretch {
    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64 {
        let (kernel, columns) = (target.kernel(), target.columns());
        let rows = tile.chunks_mut(columns).zip(start / columns..);
        match self.axis {
            Axis::Output => rows
                .map(|(row, o)| vector::stretch(row, strength * self.offsets[o]))
                .sum(),
            Axis::Input => {
                let of_input = |v: &f64| std::iter::repeat_n((strength * v) as f32, kernel);
                let offsets: Vec<f32> = self.offsets.iter().flat_map(of_input).collect();
                rows.map(|(row, _)| vector::stretch_each(row, &offsets))
                    .sum()
            }
        }
    }

    fn is_identity(&self) -> bool {
        self.offsets.iter().all(|v| *v == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked, baked_bias};

    fn example(on_input: f64) -> Example {
        Example::new(&[2, 2], &[1.0, 2.0, 3.0, 4.0])
            .bias(&[1.0, 1.0])
            .part("x.weight", &[2], &[0.1, -0.5])
            .part("x.on_input", &[], &[on_input])
    }

    #[test]
    fn outputs_or_inputs_are_stretched() {
        assert_eq!(baked(&example(0.0), 1.0), [1.1, 2.2, 1.5, 2.0]);
        assert_eq!(baked(&example(1.0), 1.0), [1.1, 1.0, 3.3, 2.0]);
        assert_eq!(baked_bias(&example(0.0), 1.0), [1.0, 1.0]);
    }

    #[test]
    fn peft_stores_factors_and_stretches_the_bias() {
        let example = |shape: &[usize]| {
            Example::new(&[2, 2], &[1.0, 2.0, 3.0, 4.0])
                .bias(&[1.0, 2.0])
                .part("x.ia3_l", shape, &[1.5, 0.5])
        };
        assert_eq!(baked(&example(&[2, 1]), 1.0), [1.5, 3.0, 1.5, 2.0]);
        assert_eq!(baked_bias(&example(&[2, 1]), 0.5), [1.25, 1.5]);
        assert_eq!(baked(&example(&[1, 2]), 1.0), [1.5, 1.0, 4.5, 2.0]);
        assert_eq!(baked_bias(&example(&[1, 2]), 1.0), [1.0, 2.0]);
    }
}
