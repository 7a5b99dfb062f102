//! Merging models: a model whose weights are computed from those of others when they are asked for.
//!
//! `methods.rs` has the arithmetic, `block_weights.rs` the values by block, `recipe.rs` the text that describes merges of
//! merges. What is written is rounded once; nothing between the inputs and the result is.

mod block_weights;
mod methods;
mod recipe;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::bf16;
use rayon::prelude::*;
use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::keys::blocks::Blocks;
use sd_models::keys::layout::Layout;

use crate::checkpoint::{Dtype, TensorSource, count_non_finite, narrow, to_f32};
use crate::lora::{self, Adapter};
use crate::model::{Entry, Hints, Model, Name, Residue, Tensor, without_trailing_ones};
use crate::{ConvertError, Remedy};

pub use block_weights::{BlockWeights, BlockWeightsError, PRESETS};
pub use methods::Method;
pub use recipe::{Recipe, RecipeError};

use block_weights::Resolved;
use methods::{Pieces, Settings};

/// From where the VAE or the text encoders of the result come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// From the first model, untouched.
    A,
    /// From the second model, untouched.
    B,
    /// Merged, with the value of `BASE`.
    Merge,
}

impl Policy {
    /// The policy that command lines and recipes call `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            "merge" => Some(Self::Merge),
            _ => None,
        }
    }
}

/// What happens to a weight that some of the models lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It is an error.
    #[default]
    Refuse,
    /// The first model's weight is kept.
    KeepA,
}

impl Missing {
    /// The choice that command lines and recipes call `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "refuse" => Some(Self::Refuse),
            "keep-a" => Some(Self::KeepA),
            _ => None,
        }
    }
}

/// The type of a result that command lines and recipes call `name`.
#[must_use]
pub fn storage_named(name: &str) -> Option<Dtype> {
    match name {
        "f32" => Some(Dtype::F32),
        "f16" => Some(Dtype::F16),
        "bf16" => Some(Dtype::Bf16),
        _ => None,
    }
}

/// How models are merged.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The arithmetic.
    pub method: Method,
    /// How far from the first model, by block.
    pub alpha: BlockWeights,
    /// The value of `BASE` where `alpha` has none.
    pub base: f64,
    /// The third model's part, in methods that have one.
    pub beta: BlockWeights,
    /// Part of each difference that TIES and DARE keep, above 0 and at most 1.
    pub density: f64,
    /// Weights of an average, one per model.
    pub weights: Vec<f64>,
    /// Decides what DARE drops.
    pub seed: u64,
    /// Source of the VAE.
    pub vae: Policy,
    /// Source of the text encoders.
    pub text_encoders: Policy,
    /// What happens to weights that are not in every model.
    pub missing: Missing,
    /// Type of the result; that of the first model if not given.
    pub storage: Option<Dtype>,
}

impl Plan {
    /// A merge with the default choices: the first model's VAE, text encoders merged.
    #[must_use]
    pub fn new(method: Method, alpha: BlockWeights) -> Self {
        Self {
            method,
            alpha,
            base: 0.0,
            beta: BlockWeights::Uniform(0.0),
            density: 0.2,
            weights: Vec::new(),
            seed: 0,
            vae: Policy::A,
            text_encoders: Policy::Merge,
            missing: Missing::Refuse,
            storage: None,
        }
    }

    fn policy(&self, component: Component) -> Policy {
        match component {
            Component::Vae => self.vae,
            Component::TextEncoder | Component::TextEncoder2 => self.text_encoders,
            _ => Policy::Merge,
        }
    }
}

/// A merge of models.
pub struct Merged {
    inputs: Vec<Box<dyn Model>>,
    plan: Plan,
    alpha: Resolved,
    beta: Resolved,
    entries: BTreeMap<Name, Entry>,
    hints: Hints,
    residue: Residue,
}

impl Merged {
    /// Checks that models can be merged.
    ///
    /// # Errors
    /// Models of different families or structures, weights that only some have, or block weights that do not fit.
    pub fn new(inputs: Vec<Box<dyn Model>>, plan: Plan) -> Result<Self, ConvertError> {
        plan.method.check_inputs(inputs.len())?;
        let first = &inputs[0];
        let families = inputs.iter().map(|input| family(&**input));
        let families: Vec<_> = families.collect::<Result<_, _>>()?;
        for (other, (found, _)) in inputs.iter().zip(&families) {
            if *found != families[0].0 {
                return Err(ConvertError::FamilyMismatch {
                    a: first.path().to_owned(),
                    family_a: families[0].0.to_string(),
                    b: other.path().to_owned(),
                    family_b: found.to_string(),
                });
            }
        }
        let blocks = families[0].1;
        let unfit = |source| ConvertError::BlockWeights { source };
        let alpha = plan.alpha.resolve(blocks, plan.base).map_err(unfit)?;
        let beta = plan.beta.resolve(blocks, 0.0).map_err(unfit)?;
        let mut merged = Self {
            entries: first.entries().clone(),
            residue: residue(&inputs),
            hints: hints(&inputs, plan.text_encoders),
            inputs,
            plan,
            alpha,
            beta,
        };
        merged.check_weights()?;
        Ok(merged)
    }

    /// Every weight must be in every model that takes part in it, with the same shape; then its type is known.
    fn check_weights(&mut self) -> Result<(), ConvertError> {
        let mut entries = BTreeMap::new();
        let of_b = self.inputs[1].entries().iter();
        for (name, entry) in of_b.filter(|(name, _)| self.plan.policy(name.0) == Policy::B) {
            let dtype = storage(self.plan.storage, entry.published);
            let entry = Entry {
                dtype,
                ..entry.clone()
            };
            entries.insert(name.clone(), entry);
        }
        let of_a = self.inputs[0].entries().iter();
        for (name, entry) in of_a.filter(|(name, _)| self.plan.policy(name.0) != Policy::B) {
            let mut entry = entry.clone();
            for other in self.taking_part(name) {
                let Some(found) = other.entries().get(name) else {
                    if self.plan.missing == Missing::KeepA {
                        break;
                    }
                    return Err(ConvertError::MergeKeyMissing {
                        key: entry.key.clone(),
                        has: entry.file.to_path_buf(),
                        lacks: other.path().to_owned(),
                    });
                };
                check_shapes(name, &entry, found)?;
            }
            entry.dtype = storage(self.plan.storage, entry.published);
            entries.insert(name.clone(), entry);
        }
        for other in &self.inputs[1..] {
            let extra = other.entries().iter().find(|(name, _)| {
                !entries.contains_key(*name) && self.plan.policy(name.0) == Policy::Merge
            });
            if let Some((_, entry)) = extra
                && self.plan.missing == Missing::Refuse
            {
                return Err(ConvertError::MergeKeyMissing {
                    key: entry.key.clone(),
                    has: entry.file.to_path_buf(),
                    lacks: self.inputs[0].path().to_owned(),
                });
            }
        }
        self.entries = entries;
        Ok(())
    }

    /// The models beside the first whose weight of this name matters.
    fn taking_part(&self, name: &Name) -> &[Box<dyn Model>] {
        match self.plan.policy(name.0) {
            Policy::Merge => &self.inputs[1..],
            Policy::A | Policy::B => &[],
        }
    }

    /// The model whose weight is taken as it is, if one is: endpoints are exact to the bit.
    fn taken_whole(&self, name: &Name) -> Option<&dyn Model> {
        let [a, b] = [&*self.inputs[0], &*self.inputs[1]];
        match self.plan.policy(name.0) {
            Policy::A => return Some(a),
            Policy::B => return Some(b),
            Policy::Merge => {}
        }
        if self
            .taking_part(name)
            .iter()
            .any(|m| !m.entries().contains_key(name))
        {
            return Some(a);
        }
        let (alpha, beta) = (
            self.alpha.value(name.0, &name.1),
            self.beta.value(name.0, &name.1),
        );
        let narrow = self.inputs[0].entries()[name].shape == b.entries()[name].shape;
        match self.plan.method {
            Method::WeightedSum | Method::Slerp if alpha == 1.0 && narrow => Some(b),
            Method::CosineA | Method::CosineB | Method::Average => None,
            _ if alpha == 0.0 && (!self.plan.method.has_beta() || beta == 0.0) => Some(a),
            _ => None,
        }
    }
}

impl Model for Merged {
    fn path(&self) -> &Path {
        self.inputs[0].path()
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let entry = &self.entries[name];
        if let Some(model) = self.taken_whole(name) {
            let tensor = model.read(name)?;
            return if tensor.dtype == entry.dtype {
                Ok(tensor)
            } else {
                convert(&tensor, entry)
            };
        }
        let tensors = self.inputs.iter().map(|input| input.read(name));
        let tensors: Vec<Tensor<'_>> = tensors.collect::<Result<_, _>>()?;
        let shapes: Vec<&[usize]> = self
            .inputs
            .iter()
            .map(|input| input.entries()[name].shape.as_slice())
            .collect();
        let operands = Operands {
            tensors: &tensors,
            shapes: &shapes,
        };
        let settings = Settings {
            alpha: self.alpha.value(name.0, &name.1),
            beta: self.beta.value(name.0, &name.1),
            density: self.plan.density,
            weights: &self.plan.weights,
            seed: self.plan.seed,
            name: &name.1,
        };
        // A wider first model (inpainting, editing) keeps its further input channels.
        let narrow = shapes[1..].iter().find(|shape| **shape != shapes[0]);
        if let Some(narrow) = narrow {
            let narrow = narrow.to_vec();
            return widened(self.plan.method, &settings, &operands, &narrow, entry);
        }
        merge(self.plan.method, &settings, &operands, entry)
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let roles = ["a", "b", "c"];
        let sources = self.inputs.iter().enumerate().flat_map(|(i, input)| {
            let role = roles.get(i).copied().unwrap_or("further");
            input
                .sources()
                .into_iter()
                .map(move |(own, source)| (if own == lora::ROLE { own } else { role }, source))
        });
        sources.collect()
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn adapters(&self) -> Vec<&Adapter> {
        self.inputs
            .iter()
            .flat_map(|input| input.adapters())
            .collect()
    }

    fn residue(&self) -> &Residue {
        &self.residue
    }

    fn spelled(&self, name: &Name) -> String {
        self.inputs[0].spelled(name)
    }

    fn layout(&self) -> Option<&Layout> {
        self.inputs[0].layout()
    }
}

/// The inputs of one tensor.
struct Operands<'a> {
    tensors: &'a [Tensor<'a>],
    shapes: &'a [&'a [usize]],
}

impl Pieces for Operands<'_> {
    fn read(&self, i: usize, start: usize, length: usize) -> Vec<f32> {
        let tensor = &self.tensors[i];
        let size = tensor.dtype.size();
        let bytes = &tensor.bytes[start * size..(start + length) * size];
        // Weights have types of numbers; of those, only F64 can fail, and becomes infinite, which storing refuses.
        to_f32(tensor.dtype, bytes).unwrap_or_else(|_| vec![f32::INFINITY; length])
    }

    fn inputs(&self) -> usize {
        self.tensors.len()
    }

    fn len(&self) -> usize {
        self.shapes[0].iter().product()
    }

    fn columns(&self) -> usize {
        match self.shapes[0] {
            [_, rest @ ..] => rest.iter().product::<usize>().max(1),
            [] => 1,
        }
    }
}

fn merge(
    method: Method,
    settings: &Settings<'_>,
    operands: &Operands<'_>,
    entry: &Entry,
) -> Result<Tensor<'static>, ConvertError> {
    let size = entry.dtype.size();
    let mut bytes = vec![0; operands.len() * size];
    let overflow = Mutex::new(None);
    methods::merge(
        method,
        settings,
        operands,
        &mut bytes,
        size,
        |values, output| {
            if let Stored::Overflow(value) = store(entry.dtype, values, output) {
                *overflow.lock().expect("no panic while it is held") = Some(value);
            }
        },
    );
    match overflow.into_inner().expect("no panic while it was held") {
        Some(value) => Err(overflowing(entry, value)),
        None => Ok(Tensor::new(entry.dtype, Cow::Owned(bytes))),
    }
}

/// The merge of the first input channels, with the further ones of the first model. `narrow` [out, in, ..]
fn widened(
    method: Method,
    settings: &Settings<'_>,
    operands: &Operands<'_>,
    narrow: &[usize],
    entry: &Entry,
) -> Result<Tensor<'static>, ConvertError> {
    let wide = convert(&operands.tensors[0], entry)?;
    let kernel: usize = narrow[2..].iter().product();
    let (row_wide, row) = (entry.shape[1] * kernel, narrow[1] * kernel);
    let cut = |tensor: &Tensor<'_>, shape: &[usize]| {
        let size = tensor.dtype.size();
        let rows = tensor.bytes.chunks(shape[1] * kernel * size);
        let bytes: Vec<u8> = rows.flat_map(|r| r[..row * size].to_vec()).collect();
        Tensor::new(tensor.dtype, Cow::Owned(bytes))
    };
    let tensors: Vec<Tensor<'_>> = operands
        .tensors
        .iter()
        .zip(operands.shapes)
        .map(|(tensor, shape)| cut(tensor, shape))
        .collect();
    let shapes = vec![narrow; tensors.len()];
    let operands = Operands {
        tensors: &tensors,
        shapes: &shapes,
    };
    let merged = merge(method, settings, &operands, entry)?;
    let size = entry.dtype.size();
    let mut bytes = wide.bytes.into_owned();
    let rows = bytes.chunks_mut(row_wide * size);
    for (to, from) in rows.zip(merged.bytes.chunks(row * size)) {
        to[..row * size].copy_from_slice(from);
    }
    Ok(Tensor::new(entry.dtype, Cow::Owned(bytes)))
}

/// A tensor in the type of `entry`.
pub(crate) fn convert(tensor: &Tensor<'_>, entry: &Entry) -> Result<Tensor<'static>, ConvertError> {
    let values = to_f32(tensor.dtype, &tensor.bytes);
    let values = values.map_err(|_| overflowing(entry, f32::INFINITY))?;
    store_f32(&values, entry)
}

/// Values in the type of `entry`.
pub(crate) fn store_f32(values: &[f32], entry: &Entry) -> Result<Tensor<'static>, ConvertError> {
    const PIECE: usize = 1 << 14;
    let size = entry.dtype.size();
    let mut bytes = vec![0; values.len() * size];
    let pieces = bytes
        .par_chunks_mut(PIECE * size)
        .zip(values.par_chunks(PIECE));
    let stored = pieces.map(|(output, values)| store(entry.dtype, values, output));
    let overflow = stored.find_map_first(|stored| match stored {
        Stored::Overflow(value) => Some(value),
        Stored::Finite | Stored::NonFinite => None,
    });
    match overflow {
        Some(value) => Err(overflowing(entry, value)),
        None => Ok(Tensor::new(entry.dtype, Cow::Owned(bytes))),
    }
}

pub(crate) fn overflowing(entry: &Entry, value: f32) -> ConvertError {
    ConvertError::OverflowOnStore {
        path: entry.file.to_path_buf(),
        name: entry.key.clone(),
        value,
        dtype: entry.dtype,
    }
}

/// How numbers survive being stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stored {
    /// As numbers.
    Finite,
    /// One was too large for the type.
    Overflow(f32),
    /// Some were none before.
    NonFinite,
}

/// Rounds to nearest even.
pub(crate) fn store(dtype: Dtype, values: &[f32], output: &mut [u8]) -> Stored {
    match dtype {
        Dtype::F16 => narrow(values, output),
        Dtype::Bf16 => {
            let bytes = output.as_chunks_mut().0.iter_mut();
            bytes
                .zip(values)
                .for_each(|(bytes, value)| *bytes = bf16::from_f32(*value).to_le_bytes());
        }
        _ => {
            let bytes = output.as_chunks_mut().0.iter_mut();
            bytes
                .zip(values)
                .for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        }
    }
    if count_non_finite(dtype, output) == 0 {
        return Stored::Finite;
    }
    let mut stored = values.iter().zip(output.chunks(dtype.size()));
    let overflow =
        stored.find(|(value, bytes)| value.is_finite() && count_non_finite(dtype, bytes) > 0);
    overflow.map_or(Stored::NonFinite, |(value, _)| Stored::Overflow(*value))
}

/// Type of a computed weight: results are never stored in 8 bits, nor in double precision.
pub(crate) fn storage(wanted: Option<Dtype>, of_a: Dtype) -> Dtype {
    wanted.unwrap_or(match of_a {
        Dtype::F8E4M3 | Dtype::F8E5M2 => Dtype::F16,
        Dtype::F64 => Dtype::F32,
        other => other,
    })
}

/// The first model's, and what the user should know of the others. Tokenizers belong to their text encoders.
fn hints(inputs: &[Box<dyn Model>], text_encoders: Policy) -> Hints {
    let mut hints = inputs[0].hints().clone();
    let others = inputs[1..].iter();
    hints
        .notes
        .extend(others.flat_map(|other| other.hints().notes.clone()));
    match text_encoders {
        Policy::A => {}
        Policy::B => hints.tokenizers = inputs[1].hints().tokenizers.clone(),
        Policy::Merge => hints.notes.extend(other_tokenizers(inputs)),
    }
    hints
}

/// Names the models whose tokenizers are not the first one's: their tokens have rows that mean something else in its text
/// encoder.
fn other_tokenizers(inputs: &[Box<dyn Model>]) -> Vec<String> {
    let read = |model: &dyn Model, component| {
        let folder = model.hints().tokenizers.get(&component)?;
        // What cannot be read is an error of its own where it is used.
        let (parts, _) = folder.read().ok()?;
        (!parts.is_clip()).then_some(parts)
    };
    let mut notes = Vec::new();
    for component in [Component::TextEncoder, Component::TextEncoder2] {
        let first = read(&*inputs[0], component);
        let others = inputs[1..].iter();
        let differ = others.filter(|other| read(&***other, component) != first);
        notes.extend(differ.map(|other| {
            let (a, other) = (inputs[0].path().display(), other.path().display());
            format!("{other}: the tokenizer of its {component} differs from that of {a}, which the result takes")
        }));
    }
    notes
}

/// The first model's, and what nothing knows in the others.
fn residue(inputs: &[Box<dyn Model>]) -> Residue {
    let mut residue = inputs[0].residue().clone();
    for other in &inputs[1..] {
        let file = other.path().display();
        let unknown = other.residue().unknown.iter();
        let unknown = unknown.map(|key| format!("{key} of {file}"));
        residue.unknown.extend(unknown);
    }
    residue
}

/// A model's family and blocks.
fn family(model: &dyn Model) -> Result<(ModelFamily, Blocks), ConvertError> {
    if !model.has(Component::UNet) {
        return Err(ConvertError::NoComponent {
            path: model.path().to_owned(),
            component: "UNet",
            remedy: Some(Remedy::words("whole models are merged")),
        });
    }
    let cfg = model.unet_config()?;
    Ok((ModelFamily::of(&cfg), Blocks::of(&cfg)))
}

fn check_shapes(name: &Name, a: &Entry, b: &Entry) -> Result<(), ConvertError> {
    let mismatch = || ConvertError::MergeShape {
        key: a.key.clone(),
        a: a.file.to_path_buf(),
        shape_a: a.shape.clone(),
        b: b.file.to_path_buf(),
        shape_b: b.shape.clone(),
    };
    if without_trailing_ones(&a.shape) == without_trailing_ones(&b.shape) {
        return Ok(());
    }
    let is_input = name.1 == "conv_in.weight" && a.shape.len() == 4 && b.shape.len() == 4;
    let same_but_channels = || a.shape[0] == b.shape[0] && a.shape[2..] == b.shape[2..];
    if !is_input || !same_but_channels() {
        return Err(mismatch());
    }
    if a.shape[1] < b.shape[1] {
        return Err(ConvertError::InpaintMustBeA {
            a: a.file.to_path_buf(),
            channels_a: a.shape[1],
            b: b.file.to_path_buf(),
            channels_b: b.shape[1],
        });
    }
    Ok(())
}

/// Where paths in a recipe are relative to.
fn beside(recipe: &Path, file: &str) -> PathBuf {
    recipe.parent().unwrap_or(Path::new("")).join(file)
}
