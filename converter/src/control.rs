//! ControlNets that are stored as changes to the UNet of a base model: Control-LoRAs (Stability AI), whose changes are of low
//! rank, and "difference" ControlNets, whose trunk is to be added to the base.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use sd_models::keys::layout::Layout;
use sd_models::keys::{Component, Key};

use crate::checkpoint::{CheckpointError, TensorSource, to_f32};
use crate::merge::{storage, store_f32};
use crate::model::{Entry, Hints, Model, Name, Residue, Tensor};
use crate::{ConvertError, Remedy};

/// Tensors that mark the two kinds.
const LOW_RANK: &str = "lora_controlnet";
const DIFFERENCE: &str = "difference";

/// Parts of a UNet that a ControlNet has a copy of.
const TRUNK: [&str; 5] = [
    "conv_in.",
    "time_embedding.",
    "add_embedding.",
    "down_blocks.",
    "mid_block.",
];

/// How a weight is stored.
#[derive(Clone, Debug)]
enum Stored {
    /// As it is.
    Whole(String),
    /// To be added to the base.
    Added(String),
    /// Factors of what is to be added to the base: [out, rank, ..] and [rank, in, ..].
    Factors { up: String, down: String },
    /// Not at all: it is that of the base.
    Base,
}

/// Such a ControlNet on its base.
pub struct ControlOnBase {
    source: Box<dyn TensorSource>,
    base: Box<dyn Model>,
    stored: BTreeMap<Name, Stored>,
    entries: BTreeMap<Name, Entry>,
    residue: Residue,
    hints: Hints,
}

/// Whether a file holds changes to a base model, rather than a whole ControlNet.
#[must_use]
pub fn needs_base(source: &dyn TensorSource) -> bool {
    let has = |marker: &str| {
        let prefixed = format!("control_model.{marker}");
        source.tensors().contains_key(marker) || source.tensors().contains_key(&prefixed)
    };
    has(LOW_RANK) || has(DIFFERENCE)
}

impl ControlOnBase {
    /// Puts a file's changes on a model.
    ///
    /// # Errors
    /// The base has no UNet, or not one that the changes are for.
    pub fn new(source: Box<dyn TensorSource>, base: Box<dyn Model>) -> Result<Self, ConvertError> {
        if !base.has(Component::UNet) {
            return Err(ConvertError::NoComponent {
                path: base.path().to_owned(),
                component: "UNet",
                remedy: Some(Remedy::words("a Control-LoRA is a change to a UNet")),
            });
        }
        let mut model = Self {
            stored: BTreeMap::new(),
            entries: BTreeMap::new(),
            residue: Residue::default(),
            hints: Hints {
                metadata: source.metadata().clone(),
                ..Hints::default()
            },
            source,
            base,
        };
        model.read_names();
        model.take_from_base();
        model.check()?;
        Ok(model)
    }

    /// Finds out how each weight of the file is stored.
    fn read_names(&mut self) {
        // Factors lie where their layer's weight would: as a layout, the file is that of a whole ControlNet.
        let weight = |key: &str| match key.strip_suffix(".up") {
            Some(module) => format!("{module}.weight"),
            None => key.to_owned(),
        };
        let keys = self.source.tensors().keys();
        let names: Vec<(String, &String)> = keys.map(|key| (weight(key), key)).collect();
        let set: BTreeSet<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        let layout = Layout::detect(&set);
        let low_rank = self.source.tensors().keys().any(|k| k.ends_with(LOW_RANK));
        for (name, key) in names {
            let is_marker = key.ends_with(LOW_RANK) || key.ends_with(DIFFERENCE);
            let down_of_pair = |key: &str| {
                let module = key.strip_suffix(".down")?;
                let up = format!("{module}.up");
                self.source.tensors().contains_key(&up).then_some(())
            };
            if is_marker || down_of_pair(key).is_some() {
                continue;
            }
            let canonical = match layout.classify(&name) {
                Key::Weight(Component::ControlNet, mut parts) => parts.remove(0).0,
                Key::Ignorable => {
                    self.residue.ignorable.push(key.clone());
                    continue;
                }
                _ => {
                    self.residue.unknown.push(key.clone());
                    continue;
                }
            };
            let in_base = (Component::UNet, canonical.clone());
            let is_trunk = self.base.entries().contains_key(&in_base);
            let stored = match key.strip_suffix(".up") {
                Some(module) => Stored::Factors {
                    up: key.clone(),
                    down: format!("{module}.down"),
                },
                None if is_trunk && !low_rank => Stored::Added(key.clone()),
                None => Stored::Whole(key.clone()),
            };
            self.stored
                .insert((Component::ControlNet, canonical), stored);
        }
    }

    /// What the file lacks of the trunk is the base's.
    fn take_from_base(&mut self) {
        for (component, name) in self.base.entries().keys() {
            let is_trunk = TRUNK.iter().any(|prefix| name.starts_with(prefix));
            if *component == Component::UNet && is_trunk {
                let name = (Component::ControlNet, name.clone());
                self.stored.entry(name).or_insert(Stored::Base);
            }
        }
    }

    /// Makes the entries, and checks that changes fit what they change.
    fn check(&mut self) -> Result<(), ConvertError> {
        let file = std::sync::Arc::new(self.source.path().to_owned());
        for (name, stored) in &self.stored {
            let whole = |key: &String| {
                let shape = self.source.tensors()[key].shape.clone();
                Entry::of(&*self.source, &file, key, shape)
            };
            let based = |key: &String| {
                let in_base = (Component::UNet, name.1.clone());
                let base = self.base.entries().get(&in_base);
                let mut entry = base.cloned().ok_or_else(|| ConvertError::MergeKeyMissing {
                    key: key.clone(),
                    has: file.to_path_buf(),
                    lacks: self.base.path().to_owned(),
                })?;
                entry.dtype = storage(None, entry.published);
                Ok::<_, ConvertError>(entry)
            };
            let misfit =
                |key: &String, found: Vec<usize>, entry: &Entry| ConvertError::MergeShape {
                    key: key.clone(),
                    a: file.to_path_buf(),
                    shape_a: found,
                    b: self.base.path().to_owned(),
                    shape_b: entry.shape.clone(),
                };
            let entry = match stored {
                Stored::Whole(key) => whole(key)?,
                Stored::Base => based(&name.1)?,
                Stored::Added(key) => {
                    let (change, entry) = (whole(key)?, based(key)?);
                    if change.shape != entry.shape {
                        return Err(misfit(key, change.shape, &entry));
                    }
                    entry
                }
                Stored::Factors { up, down } => {
                    if !self.source.tensors().contains_key(down) {
                        return Err(CheckpointError::NoTensor {
                            path: file.to_path_buf(),
                            name: down.clone(),
                        }
                        .into());
                    }
                    let entry = based(up)?;
                    let (up_shape, down_shape) = (whole(up)?.shape, whole(down)?.shape);
                    let product = product_shape(&up_shape, &down_shape);
                    let rows = entry.shape[0];
                    let columns = entry.shape[1..].iter().product();
                    if product != Some((rows, columns)) {
                        return Err(misfit(up, [up_shape, down_shape].concat(), &entry));
                    }
                    entry
                }
            };
            self.entries.insert(name.clone(), entry);
        }
        Ok(())
    }

    fn values(&self, key: &str) -> Result<Vec<f32>, ConvertError> {
        let dtype = self.source.tensors()[key].dtype;
        let values = to_f32(dtype, &self.source.bytes(key)?);
        let values = values.map_err(|problem| CheckpointError::Convert {
            path: self.source.path().to_owned(),
            name: key.to_owned(),
            problem,
        })?;
        Ok(values)
    }

    /// The base's weight with `change` added.
    fn changed(
        &self,
        name: &Name,
        in_base: &Name,
        change: &[f32],
    ) -> Result<Tensor<'_>, ConvertError> {
        let mut values = self.base.read_f32(in_base)?;
        for (value, change) in values.iter_mut().zip(change) {
            *value += change;
        }
        store_f32(&values, &self.entries[name])
    }
}

/// Rows and columns of `up` [out, rank, ..] times `down` [rank, in, ..].
fn product_shape(up: &[usize], down: &[usize]) -> Option<(usize, usize)> {
    let (&rows, up) = up.split_first()?;
    let (&rank, down) = down.split_first()?;
    let inner: usize = up.iter().product();
    (inner == rank).then(|| (rows, down.iter().product()))
}

impl Model for ControlOnBase {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let in_base = (Component::UNet, name.1.clone());
        match &self.stored[name] {
            Stored::Whole(key) => {
                let (dtype, bytes) = (self.source.tensors()[key].dtype, self.source.bytes(key)?);
                Ok(Tensor::new(dtype, bytes))
            }
            Stored::Base => self.base.read(&in_base),
            Stored::Added(key) => self.changed(name, &in_base, &self.values(key)?),
            Stored::Factors { up, down } => {
                let rank = self.source.tensors()[down].shape[0];
                let (up, down) = (self.values(up)?, self.values(down)?);
                let columns = down.len() / rank;
                let row = |row: &[f32]| {
                    let mut sums = vec![0f32; columns];
                    for (factor, down) in row.iter().zip(down.chunks(columns)) {
                        for (sum, value) in sums.iter_mut().zip(down) {
                            *sum += factor * value;
                        }
                    }
                    sums
                };
                let change: Vec<f32> = up.par_chunks(rank).flat_map_iter(row).collect();
                self.changed(name, &in_base, &change)
            }
        }
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let base = self.base.sources().into_iter();
        let base = base.map(|(_, source)| ("base", source));
        [("checkpoint", &*self.source)]
            .into_iter()
            .chain(base)
            .collect()
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn residue(&self) -> &Residue {
        &self.residue
    }

    fn layout(&self) -> Option<&Layout> {
        None
    }
}
