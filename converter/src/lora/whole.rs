//! Differences and replacements stored whole: `LyCORIS`' Full (`diff`, `diff_b`) and Norm (`w_norm`, `b_norm`) modules, and
//! `ComfyUI`'s `set_weight`. `W += diff`, `b += diff_b`; there is no alpha.

use super::group::Parts;
use super::vector;
use super::{Change, Delta, Format, Loaded, LoraError, Target, Transform};
use crate::model::without_trailing_ones;

pub(super) const FULL: Format = Format {
    name: "full difference",
    parts: &[(".diff", "diff"), (".diff_b", "diff_b")],
    load: |parts, target| load(parts, target, "diff", "diff_b"),
};

pub(super) const NORM: Format = Format {
    name: "norm difference",
    parts: &[(".w_norm", "w_norm"), (".b_norm", "b_norm")],
    load: |parts, target| load(parts, target, "w_norm", "b_norm"),
};

pub(super) const REPLACEMENT: Format = Format {
    name: "replacement",
    parts: &[(".set_weight", "set_weight")],
    load: |parts, target| {
        let shape = parts.need("set_weight")?;
        if shape != target.shape {
            return Err(parts.misfit(target));
        }
        let whole = Whole::new(parts.singles("set_weight")?, 1.0);
        Ok(Loaded {
            weight: Some(Change::Computed(Box::new(Replacement(whole)))),
            bias: None,
            rank: None,
        })
    },
};

fn load<'a>(
    parts: &Parts<'a>,
    target: &Target<'_>,
    weight: &'static str,
    bias: &'static str,
) -> Result<Loaded<'a>, LoraError> {
    let part = |role, expected: &[usize]| match parts.shape(role) {
        None => Ok(None),
        Some(shape) if without_trailing_ones(shape) != without_trailing_ones(expected) => {
            Err(parts.misfit(target))
        }
        Some(_) => {
            let whole = Whole::new(parts.singles(role)?, 1.0);
            Ok(Some(Change::Added(Box::new(whole) as Box<dyn Delta>)))
        }
    };
    let loaded = Loaded {
        weight: part(weight, target.shape)?,
        bias: part(bias, &[target.rows()])?,
        rank: None,
    };
    Ok(loaded)
}

/// A change of every element.
pub(super) struct Whole {
    pub(super) values: Vec<f32>,
    pub(super) scale: f64,
}

impl Whole {
    pub(super) fn new(values: Vec<f32>, scale: f64) -> Self {
        Self { values, scale }
    }
}

impl Delta for Whole {
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64 {
        let values = &self.values[start..start + tile.len()];
        vector::add_scaled(tile, scale * self.scale, values)
    }

    fn is_zero(&self) -> bool {
        self.scale == 0.0 || self.values.iter().all(|x| *x == 0.0)
    }
}

/// A weight in place of the model's.
struct Replacement(Whole);

impl Transform for Replacement {
    fn apply(&self, start: usize, tile: &mut [f32], _: &Target<'_>, strength: f64) -> f64 {
        vector::interpolate(tile, strength, 1.0, &self.0.values[start..])
    }

    fn is_identity(&self) -> bool {
        false
    }

    fn takes_strength(&self, strength: f64) -> bool {
        strength == 1.0
    }
}

#[cfg(test)]
mod tests {
    use crate::lora::examples::{Example, baked, baked_bias};

    #[test]
    fn differences_are_added() {
        let example = Example::new(&[2], &[1.0, 2.0]).part("x.diff", &[2], &[0.5, -1.0]);
        assert_eq!(baked(&example, 0.5), [1.25, 1.5]);
    }

    #[test]
    fn norms_change_in_both_parameters() {
        let example = Example::new(&[2], &[1.0, 1.0])
            .bias(&[0.0, 2.0])
            .part("x.w_norm", &[2], &[0.1, -0.2])
            .part("x.b_norm", &[2], &[0.5, 0.0]);
        assert_eq!(baked(&example, 0.5), [1.05, 0.9]);
        assert_eq!(baked_bias(&example, 0.5), [0.25, 2.0]);
    }

    #[test]
    fn a_replacement_is_the_weight() {
        let example = Example::new(&[2], &[1.0, 2.0]).part("x.set_weight", &[2], &[7.0, 8.0]);
        assert_eq!(baked(&example, 1.0), [7.0, 8.0]);
    }
}
