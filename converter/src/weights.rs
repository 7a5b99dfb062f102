//! The tensors of one or several files under their canonical names: what LoRAs, merges and graphs speak of.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use sd_models::family::{self, ModelFamily, Shapes};
use sd_models::graph::{Graph, Param};
use sd_models::keys::ldm::Layout;
use sd_models::keys::{Component, Key};

use crate::ConvertError;
use crate::checkpoint::{
    CheckpointError, Dtype, TensorInfo, TensorSource, count_non_finite, to_f32,
};
use crate::error::some_of;
use crate::onnx::{Stored, WeightReader};
use crate::progress::Progress;

/// Below this many running averages a file has none worth the name.
const MIN_EMA_TENSORS: usize = 100;

/// Where a canonical tensor is found.
#[derive(Clone, Debug)]
struct Origin {
    source: usize,
    key: String,
}

/// What happened to tensors that are not weights of the model.
#[derive(Clone, Debug, Default)]
pub struct Residue {
    /// Without influence on the network: schedule buffers, positions, training state.
    pub ignorable: Vec<String>,
    /// Running averages that were not asked for.
    pub ema: Vec<String>,
    /// Replaced by a tensor of another file.
    pub replaced: Vec<String>,
    /// Nothing knows them.
    pub unknown: Vec<String>,
}

impl Residue {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts = [
            (
                &self.ignorable,
                "have no influence (schedule buffers, positions)",
            ),
            (&self.ema, "are running averages, not asked for"),
            (&self.replaced, "were replaced"),
            (&self.unknown, "belong to nothing"),
        ];
        let told: Vec<String> = parts
            .iter()
            .filter(|(list, _)| !list.is_empty())
            .map(|(list, what)| format!("{} {what}", list.len()))
            .collect();
        if told.is_empty() {
            "every tensor is in the output".to_owned()
        } else {
            format!("of the other tensors, {}", told.join(", "))
        }
    }
}

/// The weights of a model, by component and canonical name.
pub struct Weights {
    sources: Vec<Box<dyn TensorSource>>,
    origins: BTreeMap<(Component, String), Origin>,
    residue: Residue,
    has_ema: bool,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("tensors", &self.origins.len())
            .field("residue", &self.residue)
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Names the tensors of a single-file checkpoint.
    ///
    /// # Errors
    /// A file of another kind, or one that names a weight twice.
    pub fn from_checkpoint(source: Box<dyn TensorSource>) -> Result<Self, ConvertError> {
        let path = source.path().to_owned();
        let names = || source.tensors().keys().map(String::as_str);
        if let Some((kind, evidence)) = family::foreign(names()) {
            let (kind, evidence) = (kind.to_owned(), evidence.to_owned());
            return Err(ConvertError::UnsupportedFamily {
                path,
                kind,
                evidence,
            });
        }
        let mut origins: BTreeMap<(Component, String), Origin> = BTreeMap::new();
        let mut residue = Residue::default();
        for key in names() {
            match Layout::SD.classify(key) {
                Key::Weight(component, name) => {
                    let origin = Origin {
                        source: 0,
                        key: key.to_owned(),
                    };
                    if let Some(first) = origins.insert((component, name.clone()), origin) {
                        let (second, canonical) = (key.to_owned(), name);
                        return Err(ConvertError::DuplicateCanonicalKey {
                            path,
                            first: first.key,
                            second,
                            canonical,
                        });
                    }
                }
                Key::Ema => residue.ema.push(key.to_owned()),
                Key::Ignorable => residue.ignorable.push(key.to_owned()),
                Key::Unknown => residue.unknown.push(key.to_owned()),
            }
        }
        let mut weights = Self {
            has_ema: residue.ema.len() > MIN_EMA_TENSORS,
            origins,
            residue,
            sources: vec![source],
        };
        if !weights.has(Component::UNet) {
            return Err(weights.not_a_checkpoint());
        }
        weights.claim_ema_names();
        Ok(weights)
    }

    fn not_a_checkpoint(&self) -> ConvertError {
        let names: Vec<&String> = self.sources[0].tensors().keys().collect();
        let any = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
        let hint = if any("down_blocks.") || any("unet.down_blocks.") {
            "\nhint: this is diffusers' layout; the single-file layout (`model.diffusion_model.`) is supported"
        } else if self.has(Component::Vae) || any("decoder.") {
            "\nhint: this looks like a VAE; give it with `--vae` beside a checkpoint"
        } else if any("input_blocks.") {
            "\nhint: this is a bare UNet without text encoder and VAE; a whole checkpoint is needed"
        } else {
            ""
        };
        let first = some_of(&names.iter().take(3).collect::<Vec<_>>());
        ConvertError::NotACheckpoint {
            path: self.path().to_owned(),
            count: names.len(),
            first,
            hint,
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

    /// Takes the UNet's running averages (EMA) in place of its weights.
    ///
    /// # Errors
    /// Some tensor has no average.
    pub fn use_ema(&mut self) -> Result<(), ConvertError> {
        let available: BTreeSet<&String> = self.residue.ema.iter().collect();
        let keys: Vec<&str> = self.unet_keys().collect();
        let partner = |key: &str| Layout::ema_key(key).filter(|k| available.contains(k));
        let without: Vec<&&str> = keys.iter().filter(|k| partner(k).is_none()).collect();
        if let Some(first) = without.first() {
            let (missing, total, first) = (without.len(), keys.len(), (**first).to_owned());
            return Err(ConvertError::EmaIncomplete {
                path: self.path().to_owned(),
                missing,
                total,
                first,
            });
        }
        for ((component, _), origin) in &mut self.origins {
            if *component == Component::UNet {
                let ema = Layout::ema_key(&origin.key)
                    .expect("every UNet key was just found to have a partner");
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

    /// Takes the autoencoder of another file: a VAE file or a whole checkpoint.
    ///
    /// # Errors
    /// The file holds no autoencoder.
    pub fn replace_vae(&mut self, source: Box<dyn TensorSource>) -> Result<(), ConvertError> {
        let path = source.path().to_owned();
        let index = self.sources.len();
        let mut vae = BTreeMap::new();
        for key in source.tensors().keys() {
            let bare = key.strip_prefix("vae.").unwrap_or(key);
            let name = match Layout::SD.classify(bare) {
                Key::Weight(Component::Vae, name) => Some(name),
                // Files of the VAE alone leave out the prefix, or are in diffusers' layout already.
                Key::Unknown => match Layout::SD.classify(&format!("first_stage_model.{bare}")) {
                    Key::Weight(Component::Vae, name) => Some(name),
                    _ => Layout::SD
                        .key(Component::Vae, bare)
                        .filter(|_| is_canonical_vae(bare))
                        .map(|_| bare.to_owned()),
                },
                Key::Ignorable => {
                    self.residue.ignorable.push(key.clone());
                    None
                }
                // The rest of a whole checkpoint was not asked for.
                Key::Weight(..) | Key::Ema => None,
            };
            if let Some(name) = name {
                vae.insert(
                    (Component::Vae, name),
                    Origin {
                        source: index,
                        key: key.clone(),
                    },
                );
            }
        }
        if !vae.keys().any(|(_, name)| name.starts_with("decoder.")) {
            return Err(ConvertError::NoComponent {
                path,
                component: "VAE",
                hint: "",
            });
        }
        let old: Vec<_> = self
            .origins
            .extract_if(.., |(component, _), _| *component == Component::Vae)
            .collect();
        self.residue
            .replaced
            .extend(old.into_iter().map(|(_, origin)| origin.key));
        self.origins.append(&mut vae);
        self.sources.push(source);
        Ok(())
    }

    /// The checkpoint's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.sources[0].path()
    }

    /// The files that tensors are taken from, the checkpoint first.
    #[must_use]
    pub fn sources(&self) -> &[Box<dyn TensorSource>] {
        &self.sources
    }

    /// Tensors that are not weights of the model.
    #[must_use]
    pub fn residue(&self) -> &Residue {
        &self.residue
    }

    /// The family the weights belong to: the layout and the structure checks admit one.
    #[must_use]
    pub fn family(&self) -> ModelFamily {
        ModelFamily::Sd15
    }

    /// Whether there is any tensor of `component`.
    #[must_use]
    pub fn has(&self, component: Component) -> bool {
        self.origins.keys().any(|(c, _)| *c == component)
    }

    /// Shapes of a component's tensors by canonical name.
    #[must_use]
    pub fn shapes(&self, component: Component) -> Shapes {
        let of_component = self.origins.iter().filter(|((c, _), _)| *c == component);
        of_component
            .map(|((_, name), origin)| (name.clone(), self.info(origin).shape.clone()))
            .collect()
    }

    fn info(&self, origin: &Origin) -> &TensorInfo {
        &self.sources[origin.source].tensors()[&origin.key]
    }

    /// Checks that every parameter of the component's graphs is there with the right shape, and that no tensor of the
    /// component is left over; leftovers become unknown tensors of the residue.
    ///
    /// # Errors
    /// Missing tensors or shapes that differ.
    pub fn match_graphs(
        &mut self,
        component: Component,
        name: &'static str,
        graphs: &[&Graph],
    ) -> Result<(), ConvertError> {
        let mut missing = Vec::new();
        let mut used = BTreeSet::new();
        for param in graphs.iter().flat_map(|g| &g.params) {
            let Some(origin) = self.origins.get(&(component, param.name.clone())) else {
                missing.push(
                    Layout::SD
                        .key(component, &param.name)
                        .unwrap_or_else(|| param.name.clone()),
                );
                continue;
            };
            used.insert(param.name.as_str());
            let info = self.info(origin);
            let path = self.sources[origin.source].path().to_owned();
            if without_trailing_ones(&info.shape) != without_trailing_ones(&param.shape) {
                return Err(CheckpointError::Shape {
                    path,
                    name: origin.key.clone(),
                    found: info.shape.clone(),
                    expected: param.shape.clone(),
                    needed_by: name,
                }
                .into());
            }
            if !info.dtype.is_float() {
                return Err(CheckpointError::UnsupportedDtype {
                    path,
                    name: origin.key.clone(),
                    dtype: info.dtype.to_string(),
                }
                .into());
            }
        }
        if !missing.is_empty() {
            let (count, names) = (missing.len(), some_of(&missing));
            return Err(ConvertError::Missing {
                path: self.path().to_owned(),
                component: name,
                count,
                names,
            });
        }
        let left = self.origins.extract_if(.., |(c, tensor), _| {
            *c == component && !used.contains(tensor.as_str())
        });
        let left: Vec<String> = left.map(|(_, origin)| origin.key).collect();
        self.residue.unknown.extend(left);
        Ok(())
    }

    /// Bytes of the weights of a component's graph, as they are stored.
    #[must_use]
    pub fn stored_bytes(&self, component: Component, graph: &Graph) -> u64 {
        let origin = |p: &Param| self.origins.get(&(component, p.name.clone()));
        graph
            .params
            .iter()
            .filter_map(origin)
            .map(|o| self.info(o).byte_len() as u64)
            .sum()
    }

    /// Reads parameters of `component`, reporting to `progress` and remembering tensors with NaN or infinity.
    pub fn reader<'a>(
        &'a self,
        component: Component,
        strict: bool,
        progress: &'a dyn Progress,
    ) -> Reader<'a> {
        Reader {
            weights: self,
            component,
            strict,
            progress,
            non_finite: Mutex::default(),
        }
    }
}

/// Names in diffusers' own VAE layout, which the LDM map would pass through as they are.
fn is_canonical_vae(name: &str) -> bool {
    ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."]
        .iter()
        .any(|p| name.starts_with(p))
}

/// 1x1 convolutions and matrices hold the same numbers, and files spell them either way.
fn without_trailing_ones(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|&n| n != 1).map_or(0, |i| i + 1);
    &shape[..end]
}

/// A component's weights for a graph writer.
pub struct Reader<'a> {
    weights: &'a Weights,
    component: Component,
    strict: bool,
    progress: &'a dyn Progress,
    non_finite: Mutex<Vec<(String, usize)>>,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("component", &self.component)
            .finish_non_exhaustive()
    }
}

impl Reader<'_> {
    /// Tensors seen so far that hold NaN or infinity, and how many values.
    ///
    /// # Panics
    /// Never: reading does not panic while it holds the list.
    #[must_use]
    pub fn into_non_finite(self) -> Vec<(String, usize)> {
        self.non_finite
            .into_inner()
            .expect("no panic while the list is held")
    }
}

impl WeightReader for Reader<'_> {
    type Error = ConvertError;

    fn read(&self, param: &Param) -> Result<(Stored, Cow<'_, [u8]>), ConvertError> {
        if self.progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
        let origin = self
            .weights
            .origins
            .get(&(self.component, param.name.clone()));
        let origin = origin.expect("match_graphs found every parameter");
        let source = &self.weights.sources[origin.source];
        let dtype = self.weights.info(origin).dtype;
        let bytes = source.bytes(&origin.key)?;
        let count = count_non_finite(dtype, &bytes);
        if count > 0 {
            let name = origin.key.clone();
            if self.strict {
                return Err(ConvertError::NonFinite {
                    path: source.path().to_owned(),
                    name,
                    count,
                });
            }
            self.non_finite
                .lock()
                .expect("no panic while the list is held")
                .push((name, count));
        }
        self.progress.advance(bytes.len() as u64);
        Ok(match dtype {
            Dtype::F16 => (Stored::F16, bytes),
            Dtype::Bf16 => (Stored::Bf16, bytes),
            Dtype::F32 => (Stored::F32, bytes),
            _ => {
                let mut values = Vec::new();
                to_f32(dtype, &bytes, &mut values).map_err(|problem| CheckpointError::Convert {
                    path: source.path().to_owned(),
                    name: origin.key.clone(),
                    problem,
                })?;
                (
                    Stored::F32,
                    Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
                )
            }
        })
    }
}
