//! Layers with a few numbers, on which formulas are checked by hand.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

use super::group::{Parts, group};
use super::{Change, Target, load};
use crate::checkpoint::{TensorSource, from_bytes};

/// A weight, its bias, and the parts of a module called `x`.
pub(super) struct Example {
    shape: Vec<usize>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    parts: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Example {
    pub(super) fn new(shape: &[usize], weight: &[f32]) -> Self {
        Self {
            shape: shape.to_vec(),
            weight: weight.to_vec(),
            bias: None,
            parts: BTreeMap::new(),
        }
    }

    pub(super) fn bias(mut self, bias: &[f32]) -> Self {
        self.bias = Some(bias.to_vec());
        self
    }

    pub(super) fn part(mut self, key: &str, shape: &[usize], values: &[f64]) -> Self {
        let values = values.iter().map(|x| *x as f32).collect();
        self.parts.insert(key.to_owned(), (shape.to_vec(), values));
        self
    }

    fn source(&self) -> Box<dyn TensorSource> {
        let bytes: BTreeMap<&String, Vec<u8>> = self
            .parts
            .iter()
            .map(|(key, (_, values))| (key, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = self.parts.iter().map(|(key, (shape, _))| {
            (
                key,
                TensorView::new(Dtype::F32, shape.clone(), &bytes[key]).unwrap(),
            )
        });
        let file = safetensors::serialize(views, None).unwrap();
        from_bytes("example.safetensors".as_ref(), file).unwrap()
    }

    fn bake(&self, strength: f64, of_bias: bool) -> Result<Vec<f32>, String> {
        let source = self.source();
        let (groups, _) = group(source.tensors().keys()).map_err(|e| e.to_string())?;
        let parts = Parts {
            group: &groups[0],
            source: &*source,
        };
        let target = Target {
            shape: &self.shape,
            has_bias: self.bias.is_some(),
        };
        let loaded = load(&parts, &target).map_err(|e| e.to_string())?;
        let (change, mut weight, shape) = match of_bias {
            false => (loaded.weight, self.weight.clone(), &self.shape[..]),
            true => (loaded.bias, self.bias.clone().unwrap(), &self.shape[..1]),
        };
        let target = Target { shape, ..target };
        match change {
            None => {}
            Some(Change::Added(delta)) => {
                delta.add(0, strength, &mut weight);
            }
            Some(Change::Computed(transform)) => {
                transform.apply(0, &mut weight, &target, strength);
            }
        }
        Ok(weight)
    }
}

/// Why a module cannot be read.
pub(super) fn refused(example: &Example) -> String {
    example.bake(1.0, false).expect_err("it was accepted")
}

/// The weight after the change.
pub(super) fn baked(example: &Example, strength: f64) -> Vec<f32> {
    example.bake(strength, false).unwrap()
}

/// The bias after the change.
pub(super) fn baked_bias(example: &Example, strength: f64) -> Vec<f32> {
    example.bake(strength, true).unwrap()
}

/// To a unit of the sixth decimal place.
pub(super) fn assert_close(found: &[f32], expected: &[f32]) {
    let close = found
        .iter()
        .zip(expected)
        .all(|(a, b)| (a - b).abs() <= 1.1e-6);
    assert!(
        close && found.len() == expected.len(),
        "{found:?}, expected {expected:?}"
    );
}
