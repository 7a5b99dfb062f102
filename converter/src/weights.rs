//! The model in one or several files: which tensor of which file is which weight.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sd_models::demo;
use sd_models::family::{self, ADAPTER};
use sd_models::keys::layout::Layout;
use sd_models::keys::{Component, Key, Part};

use crate::ConvertError;
use crate::checkpoint::folder::open_folder;
use crate::checkpoint::{CheckpointError, SafetensorsFile, TensorInfo, TensorSource, open, to_f32};
use crate::control::needs_base;
use crate::error::some_of;
use crate::lora;
use crate::model::{Entry, Hints, Model, Name, Residue, Tensor};
use crate::onnx::transpose;

/// Below this many running averages a file has none worth the name.
const MIN_EMA_TENSORS: usize = 100;

/// Where a canonical tensor is found.
#[derive(Clone, Debug)]
struct Origin {
    source: usize,
    key: String,
    part: Part,
}

/// The weights of a model in files.
pub struct Weights {
    path: PathBuf,
    sources: Vec<Box<dyn TensorSource>>,
    layouts: Vec<Layout>,
    origins: BTreeMap<Name, Origin>,
    entries: BTreeMap<Name, Entry>,
    residue: Residue,
    hints: Hints,
    has_ema: bool,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.path)
            .field("tensors", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Opens a checkpoint file or a folder; of a folder's variants (`fp16`, ..), takes `variant`.
    ///
    /// # Errors
    /// It cannot be read, is of another kind, or names a weight twice.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, ConvertError> {
        if path.is_dir() {
            return Self::from_folder(path, variant);
        }
        let mut weights = Self::from_source(open(path)?)?;
        if weights.hints.velocity.is_none() {
            weights.hints.velocity = velocity_by_sibling(path);
        }
        Ok(weights)
    }

    /// Those of the model that ships with the programs.
    ///
    /// # Errors
    /// None, unless the programs were built with another file.
    pub fn demo() -> Result<Self, ConvertError> {
        let file = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT)?;
        Self::from_source(Box::new(file))
    }

    /// Names the tensors of a single file.
    ///
    /// # Errors
    /// A file of another kind, or one that names a weight twice.
    pub fn from_source(source: Box<dyn TensorSource>) -> Result<Self, ConvertError> {
        let names: BTreeSet<&str> = source.tensors().keys().map(String::as_str).collect();
        refuse_foreign(source.path(), &names)?;
        if let Some(evidence) = lora::adapter_key(&*source) {
            return Err(ConvertError::UnsupportedFamily {
                path: source.path().to_owned(),
                kind: ADAPTER.to_owned(),
                evidence: evidence.clone(),
            });
        }
        if needs_base(&*source) {
            return Err(ConvertError::NeedsBase {
                path: source.path().to_owned(),
            });
        }
        let layout = Layout::detect(&names);
        let mut weights = Self::empty(source.path());
        weights.hints = hints(&*source)?;
        weights.add(source, layout)?;
        if weights.is_averaged() {
            weights.hints.notes.push(format!(
                "{}: it holds only running averages (EMA) of its UNet, which are taken",
                weights.path.display()
            ));
        }
        weights.finish()
    }

    fn from_folder(path: &Path, variant: Option<&str>) -> Result<Self, ConvertError> {
        let folder = open_folder(path, variant)?;
        let mut weights = Self::empty(path);
        for component in folder.components {
            let names: BTreeSet<String> = component
                .files
                .iter()
                .flat_map(|file| file.tensors().keys().cloned())
                .collect();
            let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            let layout = Layout::of_component(component.component, &names);
            for file in component.files {
                refuse_foreign(file.path(), &names)?;
                if weights.sources.is_empty() {
                    weights.hints = hints(&*file)?;
                }
                weights.add(file, layout.clone())?;
            }
            if let Some(config) = component.config {
                weights.hints.configs.insert(component.component, config);
            }
        }
        weights.hints.tokenizers = folder.tokenizers;
        weights.hints.scheduler = folder.scheduler;
        weights.hints.index = folder.index;
        weights.hints.notes.extend(folder.notes);
        weights.finish()
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            sources: Vec::new(),
            layouts: Vec::new(),
            origins: BTreeMap::new(),
            entries: BTreeMap::new(),
            residue: Residue::default(),
            hints: Hints::default(),
            has_ema: false,
        }
    }

    /// Names the tensors of a further file.
    fn add(&mut self, source: Box<dyn TensorSource>, layout: Layout) -> Result<(), ConvertError> {
        let index = self.sources.len();
        self.hints.notes.extend_from_slice(source.notes());
        let file = Arc::new(source.path().to_owned());
        for (key, info) in source.tensors() {
            match layout.classify(key) {
                Key::Weight(component, parts) => {
                    for (name, part) in parts {
                        let name = (component, name);
                        let shape = part_shape(&info.shape, part).ok_or_else(|| {
                            CheckpointError::Shape {
                                path: file.to_path_buf(),
                                name: key.clone(),
                                found: info.shape.clone(),
                                expected: "queries, keys and values of equal height".into(),
                            }
                        })?;
                        let entry = Entry::of(&*source, &file, key, shape)?;
                        let origin = Origin {
                            source: index,
                            key: key.clone(),
                            part,
                        };
                        self.entries.insert(name.clone(), entry);
                        if let Some(first) = self.origins.insert(name.clone(), origin) {
                            return Err(ConvertError::DuplicateCanonicalKey {
                                path: file.to_path_buf(),
                                first: first.key,
                                second: key.clone(),
                                canonical: name.1,
                            });
                        }
                    }
                }
                Key::Ema => self.residue.ema.push(key.clone()),
                Key::Ignorable => self.residue.ignorable.push(key.clone()),
                Key::Unknown => self.residue.unknown.push(key.clone()),
            }
        }
        self.sources.push(source);
        self.layouts.push(layout);
        Ok(())
    }

    fn finish(mut self) -> Result<Self, ConvertError> {
        if self.entries.is_empty() {
            return Err(self.not_a_checkpoint());
        }
        self.claim_ema_names();
        self.has_ema = self.residue.ema.len() > MIN_EMA_TENSORS;
        // A ControlNet's training save holds the whole model that it was trained beside.
        let single = self.layouts.len() == 1;
        if single && self.has(Component::ControlNet) && self.has(Component::UNet) {
            self.keep_only(&[Component::ControlNet]);
        }
        Ok(self)
    }

    /// Drops the weights of every other component.
    fn keep_only(&mut self, components: &[Component]) {
        let dropped = self
            .origins
            .extract_if(.., |(component, _), _| !components.contains(component));
        let keys: BTreeSet<String> = dropped.map(|(_, origin)| origin.key).collect();
        self.residue.other.extend(keys);
        self.entries
            .retain(|(component, _), _| components.contains(component));
    }

    fn not_a_checkpoint(&self) -> ConvertError {
        let names: Vec<&String> = self
            .sources
            .iter()
            .flat_map(|s| s.tensors().keys())
            .collect();
        ConvertError::NotACheckpoint {
            path: self.path.clone(),
            count: names.len(),
            first: some_of(&names.iter().take(3).collect::<Vec<_>>()),
        }
    }

    /// Running averages of tensors that the file does not have are unknown.
    fn claim_ema_names(&mut self) {
        let partners: BTreeSet<String> = self.unet_keys().filter_map(Layout::ema_key).collect();
        let (known, strange) = std::mem::take(&mut self.residue.ema)
            .into_iter()
            .partition(|k| partners.contains(k));
        self.residue.ema = known;
        self.residue.unknown.extend::<Vec<String>>(strange);
    }

    fn unet_keys(&self) -> impl Iterator<Item = &str> {
        self.origins
            .iter()
            .filter(|((c, _), _)| *c == Component::UNet)
            .map(|(_, o)| o.key.as_str())
    }

    /// Whether the UNet is made of running averages.
    fn is_averaged(&self) -> bool {
        self.has(Component::UNet) && self.unet_keys().all(Layout::is_average)
    }

    /// Takes the UNet's running averages (EMA) in place of its weights, unless it has no others.
    ///
    /// # Errors
    /// Some tensor has no average.
    pub fn use_ema(&mut self) -> Result<(), ConvertError> {
        if self.is_averaged() {
            return Ok(());
        }
        let available: BTreeSet<&String> = self.residue.ema.iter().collect();
        let keys: Vec<&str> = self.unet_keys().collect();
        let partner = |key: &str| Layout::ema_key(key).filter(|k| available.contains(k));
        let without: Vec<&&str> = keys.iter().filter(|k| partner(k).is_none()).collect();
        if let Some(first) = without.first() {
            let (missing, total, first) = (without.len(), keys.len(), (**first).to_owned());
            return Err(ConvertError::EmaIncomplete {
                path: self.path.clone(),
                missing,
                total,
                first,
            });
        }
        for (name, origin) in &mut self.origins {
            if name.0 == Component::UNet {
                let ema = Layout::ema_key(&origin.key)
                    .expect("every UNet key was just found to have a partner");
                let source = &*self.sources[origin.source];
                let shape = source.tensors()[&ema].shape.clone();
                let entry = self.entries.get_mut(name).expect("origins have entries");
                *entry = Entry::of(source, &entry.file.clone(), &ema, shape)?;
                self.residue
                    .replaced
                    .push(std::mem::replace(&mut origin.key, ema));
            }
        }
        self.residue.ema.clear();
        Ok(())
    }

    /// Whether the file holds running averages (EMA) of its UNet.
    #[must_use]
    pub fn has_ema(&self) -> bool {
        self.has_ema
    }
}

impl Model for Weights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> &BTreeMap<Name, Entry> {
        &self.entries
    }

    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let origin = &self.origins[name];
        let source = &self.sources[origin.source];
        let TensorInfo { dtype, shape } = &source.tensors()[&origin.key];
        let bytes = source.bytes(&origin.key)?;
        let bytes = match origin.part {
            Part::Whole => bytes,
            Part::Third(i) => third(bytes, i),
            Part::Transposed => Cow::Owned(transpose(&bytes, shape[0], shape[1], dtype.size())),
        };
        Ok(Tensor::new(*dtype, bytes))
    }

    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)> {
        let sources = self.sources.iter();
        sources.map(|source| ("checkpoint", &**source)).collect()
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }

    fn residue(&self) -> &Residue {
        &self.residue
    }

    fn layout(&self) -> Option<&Layout> {
        match self.layouts.as_slice() {
            [layout] => Some(layout),
            _ => None,
        }
    }

    fn spelled(&self, name: &Name) -> String {
        let keys = self.layouts.iter().find_map(|l| l.key(name.0, &name.1));
        keys.map_or_else(|| name.1.clone(), |(key, _)| key)
    }
}

fn refuse_foreign(path: &Path, names: &BTreeSet<&str>) -> Result<(), ConvertError> {
    match family::foreign(names.iter().copied()) {
        Some((kind, evidence)) => Err(ConvertError::UnsupportedFamily {
            path: path.to_owned(),
            kind: kind.to_owned(),
            evidence: evidence.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Shape of a part of a tensor, if the tensor has such a part.
fn part_shape(shape: &[usize], part: Part) -> Option<Vec<usize>> {
    match part {
        Part::Whole => Some(shape.to_vec()),
        Part::Third(_) => {
            let (rows, rest) = shape.split_first()?;
            (rows % 3 == 0).then(|| [&[rows / 3], rest].concat())
        }
        Part::Transposed => match shape {
            &[rows, columns] => Some(vec![columns, rows]),
            _ => None,
        },
    }
}

fn third(bytes: Cow<'_, [u8]>, i: usize) -> Cow<'_, [u8]> {
    let length = bytes.len() / 3;
    let range = i * length..(i + 1) * length;
    match bytes {
        Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
        Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
    }
}

/// What a file's marks say.
fn hints(source: &dyn TensorSource) -> Result<Hints, ConvertError> {
    const SCHEDULE: &str = "alphas_cumprod";
    let has = |name: &str| source.tensors().contains_key(name);
    let mut alphas_cumprod = None;
    if let Some(info) = source
        .tensors()
        .get(SCHEDULE)
        .filter(|info| info.shape == [1000] && info.dtype.is_float())
    {
        alphas_cumprod = to_f32(info.dtype, &source.bytes(SCHEDULE)?).ok();
    }
    Ok(Hints {
        metadata: source.metadata().clone(),
        velocity: has("v_pred").then(|| "the file's tensor `v_pred`".to_owned()),
        zero_snr: has("ztsnr"),
        alphas_cumprod,
        ..Hints::default()
    })
}

/// Configuration files of Stability's training code lie beside a checkpoint, with its name.
fn velocity_by_sibling(path: &Path) -> Option<String> {
    const LIMIT: u64 = 1 << 20;
    let sibling = path.with_extension("yaml");
    let small = fs::metadata(&sibling).is_ok_and(|m| m.is_file() && m.len() <= LIMIT);
    let text = small.then(|| fs::read_to_string(&sibling).ok()).flatten()?;
    let says = |line: &str| {
        let value = line.trim().strip_prefix("parameterization:")?;
        Some(value.trim().trim_matches(['"', '\'']) == "v")
    };
    let velocity = text.lines().find_map(says)?;
    velocity.then(|| format!("{}", sibling.display()))
}
