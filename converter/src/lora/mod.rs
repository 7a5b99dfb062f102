//! LoRAs and their relatives: changes to many weights, added to a model before graphs exist.
//!
//! `file.rs` finds the file of an adapter that is a folder, `group.rs` splits a file's keys into modules; each kind of module
//! is one file here and one line of `FORMATS`.
//! `names.rs` finds the layer that a module is for, `fit.rs` fits a file to a model as a whole, `bake.rs` computes weights,
//! `report.rs` says what was done. `merge.rs` puts files together. A file must fit in every module: what matches nothing, fits
//! nowhere or changes nothing is an error.

mod bake;
mod block_weights;
mod bundled;
mod dora;
mod error;
#[cfg(test)]
mod examples;
pub(crate) mod factors;
mod file;
mod fit;
mod glora;
mod group;
mod ia3;
mod locon;
mod loha;
mod lokr;
mod made_for;
mod matrix;
pub mod merge;
mod names;
mod oft;
mod peft;
mod report;
mod spec;
mod tiles;
mod training;
mod vector;
mod whole;

pub use bake::{Options, WithLoras};
pub use block_weights::LoraBlockWeights;
pub use error::{LoraError, Misfit};
pub use file::{file, open};
pub use fit::Adapter;
pub use report::{Description, ModuleReport, adapter_key, describe, summary};
pub use spec::LoraSpec;

use group::Parts;
use matrix::LowRank;

/// What an adapter's file is to a model.
pub(crate) const ROLE: &str = "lora";

/// A kind of module.
#[derive(Debug)]
struct Format {
    /// What people call it.
    name: &'static str,
    /// Ends of keys, and what they are to their module.
    parts: &'static [(&'static str, &'static str)],
    /// Checks a module's parts and reads them.
    load: for<'a> fn(&Parts<'a>, &Target<'_>) -> Result<Loaded<'a>, LoraError>,
}

/// Every kind.
static FORMATS: [&Format; 9] = [
    &locon::FORMAT,
    &loha::FORMAT,
    &lokr::FORMAT,
    &ia3::FORMAT,
    &whole::FULL,
    &whole::NORM,
    &whole::REPLACEMENT,
    &glora::FORMAT,
    &oft::FORMAT,
];

/// Parts that modules of several kinds have.
const SHARED: &[(&str, &str)] = &[
    (".alpha", "alpha"),
    (".dora_scale", "dora_scale"),
    (".lora_magnitude_vector", "magnitude"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".reshape_weight", "shape"),
];

/// What a module changes, at strength 1.
struct Loaded<'a> {
    weight: Option<Change<'a>>,
    bias: Option<Change<'a>>,
    /// Rank of its factors, if it has a rank.
    rank: Option<usize>,
}

/// A change of one weight. Weights are worked on in tiles: some whole rows of the weight as a matrix [out, in * kernel], in
/// single precision.
enum Change<'a> {
    /// That does not depend on the weight.
    Added(Box<dyn Delta + 'a>),
    /// That does.
    Computed(Box<dyn Transform + 'a>),
}

impl Change<'_> {
    fn is_nothing(&self) -> bool {
        match self {
            Self::Added(delta) => delta.is_zero(),
            Self::Computed(transform) => transform.is_identity(),
        }
    }
}

/// Something to be added to a weight.
trait Delta: Send + Sync {
    /// Adds `scale` times the change to a tile, which begins at element `start` of the weight; returns the sum of squares of
    /// what is added.
    fn add(&self, start: usize, scale: f64, tile: &mut [f32]) -> f64;

    /// Whether it is certain to change nothing.
    fn is_zero(&self) -> bool;

    /// Its factors, if it is a product of low rank.
    fn low_rank(&self) -> Option<&LowRank> {
        None
    }
}

/// A weight as a function of the weight.
trait Transform: Send + Sync {
    /// Rows that must lie in one tile: tiles begin at multiples of it.
    fn rows_together(&self, _target: &Target<'_>) -> usize {
        1
    }

    /// Makes `W + strength (F(W) - W)` of a tile that begins at element `start`; returns the change's sum of squares.
    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>, strength: f64) -> f64;

    /// Whether it is certain to change nothing.
    fn is_identity(&self) -> bool;

    /// Whether this strength makes sense.
    fn takes_strength(&self, _strength: f64) -> bool {
        true
    }
}

/// The layer that a module is for.
#[derive(Clone, Copy, Debug)]
struct Target<'a> {
    /// Shape of its weight: [out], [out, in] or [out, in, kh, kw].
    shape: &'a [usize],
    has_bias: bool,
}

impl Target<'_> {
    fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Input channels; 1 of a vector.
    fn inputs(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// Places of the kernel; 1 of a matrix.
    fn kernel(&self) -> usize {
        self.shape.get(2..).map_or(1, product)
    }

    fn columns(&self) -> usize {
        product(&self.shape[1..])
    }
}

/// Which index of a weight the numbers of a vector belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Output,
    Input,
}

fn product(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Rows of a tile: 128 KB, which stays in a core's cache beside its change, but enough rows for products
/// to be efficient.
fn tile_rows(columns: usize) -> usize {
    const ELEMENTS: usize = 1 << 15;
    (ELEMENTS / columns.max(1)).max(8)
}

/// Checks a module's parts against a layer and reads them.
fn load<'a>(parts: &Parts<'a>, target: &Target<'_>) -> Result<Loaded<'a>, LoraError> {
    // ComfyUI's hint for layers that the adapter would enlarge.
    if parts.has("shape") {
        let told = parts.values("shape")?;
        if !told.into_iter().eq(target.shape.iter().map(|n| *n as f64)) {
            return Err(parts.misfit(target));
        }
    }
    let is_plain = parts.group.format.name == locon::FORMAT.name && !parts.has("mid");
    if parts.group.rank.is_some() && !is_plain {
        return Err(parts.problem("`dyn` takes the first components of plain LoRAs only"));
    }
    let mut loaded = (parts.group.format.load)(parts, target)?;
    if dora::has_magnitude(parts) {
        loaded.weight = match loaded.weight {
            Some(change) => Some(dora::with_magnitude(parts, target, change)?),
            None => None,
        };
    }
    Ok(loaded)
}
