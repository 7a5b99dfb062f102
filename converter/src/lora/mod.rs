//! LoRAs: small changes to many weights, added to a model before graphs exist.
//!
//! `names.rs` finds the weight that a key speaks of, in the spellings of every trainer; `locon.rs` holds a format. A file
//! must fit its model as a whole: what matches nothing, fits nowhere or changes nothing is an error.

mod locon;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sd_models::keys::Component;
use sd_models::keys::layout::Layout;

use crate::ConvertError;
use crate::checkpoint::{Dtype, TensorInfo, TensorSource, open, to_f32};
use crate::error::some_of;
use crate::merge::{convert, storage, store_f32};
use crate::model::{Entry, Hints, LoraUse, Model, Name, Residue, Tensor};

use locon::LoCon;
use names::Names;

/// A LoRA that does not fit its model, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Parts of a kind that is not supported.
    #[error("it is a {kind} (it holds `{evidence}`), which is not supported yet")]
    Unsupported {
        /// Which kind.
        kind: &'static str,
        /// A key that gives it away.
        evidence: String,
    },
    /// No LoRA at all.
    #[error("no LoRA: none of its {0} tensors is a part of one")]
    NotALora(usize),
    /// Modules that the model has not.
    #[error(
        "it does not fit this model: {unmatched} of {modules} modules have no target, the first are {first}{guess}"
    )]
    Unmatched {
        /// How many.
        unmatched: usize,
        /// Of how many.
        modules: usize,
        /// Some of them.
        first: String,
        /// What it seems to be made for, starting with punctuation, or nothing.
        guess: String,
    },
    /// A part without its partner.
    #[error("module `{module}` has no {part}")]
    Incomplete {
        /// The module.
        module: String,
        /// What is missing.
        part: &'static str,
    },
    /// The factors of a module do not fit each other or their target.
    #[error("module `{module}`: {found}, but the model's weight is {target:?}{guess}")]
    Shape {
        /// The module.
        module: String,
        /// Shapes of its parts.
        found: String,
        /// Shape of the weight it is for.
        target: Vec<usize>,
        /// What it seems to be made for, starting with punctuation, or nothing.
        guess: String,
    },
    /// A scale that is no positive number.
    #[error("module `{module}`: its alpha is {alpha}; a positive number expected")]
    BadAlpha {
        /// The module.
        module: String,
        /// What it is.
        alpha: f32,
    },
    /// Values that are no numbers.
    #[error("tensor `{0}` has values that are NaN or infinite")]
    NonFinite(String),
    /// Two names of one module.
    #[error("modules `{first}` and `{second}` are for the same weight")]
    Duplicate {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A LoRA that would change nothing.
    #[error("it changes nothing: every module is zero\nhint: strength 0 turns a LoRA off")]
    NoEffect,
}

/// A LoRA file and how strongly it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// The file.
    pub path: PathBuf,
    /// Strength in the UNet.
    pub unet: f64,
    /// Strength in the text encoders.
    pub text_encoders: f64,
    /// Type of the changed weights; that in which they were published if not given.
    pub storage: Option<Dtype>,
}

impl LoraSpec {
    /// Reads `FILE`, `FILE:SCALE` or `FILE:unet=U,te=T`.
    ///
    /// # Errors
    /// A strength that is no number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let spec = |path: &str, unet, text_encoders| Self {
            path: PathBuf::from(path),
            unet,
            text_encoders,
            storage: None,
        };
        let Some((path, strength)) = text.rsplit_once(':').filter(|(path, _)| !path.is_empty())
        else {
            return Ok(spec(text, 1.0, 1.0));
        };
        let number = |word: &str| match word.trim().parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(x),
            _ => Err(format!("strength `{word}` is no number")),
        };
        if let Ok(both) = number(strength) {
            return Ok(spec(path, both, both));
        }
        if !strength.contains('=') {
            // The colon is part of the file's name.
            return Ok(spec(text, 1.0, 1.0));
        }
        let mut parsed = spec(path, 1.0, 1.0);
        for part in strength.split(',') {
            match part.split_once('=') {
                Some(("unet", value)) => parsed.unet = number(value)?,
                Some(("te", value)) => parsed.text_encoders = number(value)?,
                _ => return Err(format!("`{part}`: unet=NUMBER or te=NUMBER expected")),
            }
        }
        Ok(parsed)
    }

    fn strength(&self, component: Component) -> f64 {
        match component {
            Component::UNet => self.unet,
            _ => self.text_encoders,
        }
    }
}

/// A model with a LoRA added to its weights.
pub struct WithLora {
    base: Box<dyn Model>,
    source: Box<dyn TensorSource>,
    spec: LoraSpec,
    modules: BTreeMap<Name, Module>,
    entries: BTreeMap<Name, Entry>,
    hints: Hints,
}

/// The parts of a module, by the keys that hold them.
#[derive(Clone, Debug, Default)]
struct Group {
    parts: BTreeMap<Part, String>,
}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Up,
    Down,
    Mid,
    Alpha,
    Scale,
}

#[derive(Debug)]
struct Module {
    format: LoCon,
}

impl WithLora {
    /// Adds a LoRA to a model.
    ///
    /// # Errors
    /// It cannot be read, or does not fit the model in every module.
    pub fn new(base: Box<dyn Model>, spec: LoraSpec) -> Result<Self, ConvertError> {
        let source = open(&spec.path)?;
        let failed = |source| ConvertError::Lora {
            path: spec.path.clone(),
            source,
        };
        let modules = read_modules(&*source, &*base).map_err(failed)?;
        let mut changes = false;
        for module in modules.values() {
            changes |= module.format.changes_something(&*source).map_err(failed)?;
        }
        if !changes && (spec.unet != 0.0 || spec.text_encoders != 0.0) {
            return Err(failed(LoraError::NoEffect));
        }
        let mut entries = base.entries().clone();
        for (name, entry) in &mut entries {
            let changed = modules.contains_key(name) && spec.strength(name.0) != 0.0;
            if changed || spec.storage.is_some() || entry.dtype != entry.published {
                entry.dtype = storage(spec.storage, entry.published);
            }
        }
        let mut hints = base.hints().clone();
        hints.loras.push(LoraUse {
            path: spec.path.clone(),
            unet: spec.unet,
            text_encoders: spec.text_encoders,
        });
        Ok(Self {
            base,
            source,
            spec,
            modules,
            entries,
            hints,
        })
    }

    /// A weight that the LoRA does not touch, in the result's type.
    fn unchanged(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let (tensor, entry) = (self.base.read(name)?, &self.entries[name]);
        if tensor.dtype == entry.dtype {
            return Ok(tensor);
        }
        convert(&tensor, entry)
    }

    /// How many weights it changes.
    #[must_use]
    pub fn modules(&self) -> usize {
        self.modules.len()
    }
}

/// Groups a file's keys and finds their targets.
fn read_modules(
    source: &dyn TensorSource,
    base: &dyn Model,
) -> Result<BTreeMap<Name, Module>, LoraError> {
    let groups = group(source)?;
    let names = Names::of(base);
    let guess = || guess(source, base);
    let unmatched: Vec<&String> = groups
        .keys()
        .filter(|m| names.target(m).is_none())
        .collect();
    if !unmatched.is_empty() {
        return Err(LoraError::Unmatched {
            unmatched: unmatched.len(),
            modules: groups.len(),
            first: some_of(&unmatched.iter().take(5).collect::<Vec<_>>()),
            guess: guess(),
        });
    }
    let mut modules: BTreeMap<Name, Module> = BTreeMap::new();
    let mut spelled: BTreeMap<Name, String> = BTreeMap::new();
    for (module, group) in groups {
        let target = names
            .target(&module)
            .expect("every module has a target")
            .clone();
        let shape = &base.entries()[&target].shape;
        let format = LoCon::read(source, &module, &group, shape, &guess)?;
        if let Some(first) = spelled.insert(target.clone(), module.clone()) {
            return Err(LoraError::Duplicate {
                first,
                second: module,
            });
        }
        modules.insert(target, Module { format });
    }
    Ok(modules)
}

/// Splits a file's keys into modules and parts.
fn group(source: &dyn TensorSource) -> Result<BTreeMap<String, Group>, LoraError> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for key in source.tensors().keys() {
        if let Some(kind) = names::unsupported(key) {
            return Err(LoraError::Unsupported {
                kind,
                evidence: key.clone(),
            });
        }
        let Some((module, part)) = names::split(key) else {
            return Err(LoraError::Unsupported {
                kind: "file with tensors that are no part of a LoRA",
                evidence: key.clone(),
            });
        };
        let group = groups.entry(module).or_default();
        group.parts.insert(part, key.clone());
    }
    let is_lora = |group: &Group| group.parts.contains_key(&Part::Up);
    if !groups.values().any(is_lora) {
        return Err(LoraError::NotALora(source.tensors().len()));
    }
    Ok(groups)
}

/// What a LoRA seems to be made for, by the width of the text that its cross-attention takes.
fn guess(source: &dyn TensorSource, base: &dyn Model) -> String {
    const WIDTHS: [(usize, &str); 4] = [
        (768, "Stable Diffusion 1.x"),
        (1024, "Stable Diffusion 2.x"),
        (2048, "SDXL"),
        (1280, "the SDXL refiner"),
    ];
    let context = |info: &TensorInfo| info.shape.get(1).copied();
    let cross = |(key, info): (&String, &TensorInfo)| {
        let (module, part) = names::split(key)?;
        let is_cross = module.replace('.', "_").contains("attn2_to_k");
        (is_cross && part == Part::Down).then(|| context(info))?
    };
    let made_for = source.tensors().iter().find_map(cross);
    let of_model = base
        .entries()
        .iter()
        .find_map(|((component, name), entry)| {
            let is_cross = *component == Component::UNet && name.ends_with("attn2.to_k.weight");
            is_cross.then(|| entry.shape.get(1).copied())?
        });
    let title = |width: usize| {
        let known = WIDTHS.iter().find(|(w, _)| *w == width);
        known.map_or_else(
            || format!("width {width}"),
            |(_, title)| (*title).to_owned(),
        )
    };
    match (made_for, of_model) {
        (Some(lora), Some(model)) if lora != model => format!(
            "; its cross-attention takes text of width {lora} ({}), the model's {model} ({})",
            title(lora),
            title(model)
        ),
        _ => String::new(),
    }
}

/// A tensor of the file in single precision.
fn values(source: &dyn TensorSource, key: &str) -> Result<Vec<f32>, LoraError> {
    let bad = || LoraError::NonFinite(key.to_owned());
    let mut values = Vec::new();
    let bytes = source.bytes(key).map_err(|_| bad())?;
    match source.tensors()[key].dtype {
        // Some trainers save alpha as a whole number.
        Dtype::I64 => {
            let numbers = bytes.as_chunks().0.iter();
            values.extend(numbers.map(|b| i64::from_le_bytes(*b) as f32));
        }
        Dtype::I32 => {
            let numbers = bytes.as_chunks().0.iter();
            values.extend(numbers.map(|b| i32::from_le_bytes(*b) as f32));
        }
        dtype => to_f32(dtype, &bytes, &mut values).map_err(|_| bad())?,
    }
    if values.iter().all(|x| x.is_finite()) {
        Ok(values)
    } else {
        Err(bad())
    }
}

impl Model for WithLora {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let strength = self.spec.strength(name.0);
        let module = self.modules.get(name).filter(|_| strength != 0.0);
        let Some(module) = module else {
            return self.unchanged(name);
        };
        let delta = module.format.delta(&*self.source);
        let delta = delta.map_err(|source| ConvertError::Lora {
            path: self.spec.path.clone(),
            source,
        })?;
        let mut values = self.base.read_f32(name)?;
        let pairs = values.par_iter_mut().zip(delta).with_min_len(4096);
        pairs.for_each(|(value, delta)| *value = (f64::from(*value) + strength * delta) as f32);
        store_f32(&values, &self.entries[name])
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let mut sources = self.base.sources();
        sources.push(("lora", &*self.source));
        sources
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn residue(&self) -> &Residue {
        self.base.residue()
    }

    fn spelled(&self, name: &Name) -> String {
        self.base.spelled(name)
    }

    fn layout(&self) -> Option<&Layout> {
        self.base.layout()
    }
}

/// Reads the modules of a file against a model, for tests of the reader.
///
/// # Errors
/// It is no LoRA, or one that does not fit.
pub fn check(source: &dyn TensorSource, base: &dyn Model) -> Result<usize, LoraError> {
    read_modules(source, base).map(|modules| modules.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_are_read_off_the_end() {
        let spec = |path: &str, unet, text_encoders| LoraSpec {
            path: PathBuf::from(path),
            unet,
            text_encoders,
            storage: None,
        };
        assert_eq!(
            LoraSpec::parse("a.safetensors"),
            Ok(spec("a.safetensors", 1.0, 1.0))
        );
        assert_eq!(LoraSpec::parse("a:0.8"), Ok(spec("a", 0.8, 0.8)));
        assert_eq!(LoraSpec::parse("a:-1"), Ok(spec("a", -1.0, -1.0)));
        assert_eq!(
            LoraSpec::parse("a:unet=0.6,te=0.3"),
            Ok(spec("a", 0.6, 0.3))
        );
        assert_eq!(LoraSpec::parse("a:te=0"), Ok(spec("a", 1.0, 0.0)));
        assert_eq!(
            LoraSpec::parse("c:/loras/a.pt"),
            Ok(spec("c:/loras/a.pt", 1.0, 1.0))
        );
        assert!(LoraSpec::parse("a:unet=x").is_err());
        assert!(LoraSpec::parse("a:lbw=ALL").is_err());
    }
}
