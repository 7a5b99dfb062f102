//! A model's weights under canonical names, made one at a time when they are asked for.
//!
//! What graphs, merges and LoRAs speak of. [`crate::weights`] takes them from files; others are computed from models.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sd_models::arch::UNetConfig;
use sd_models::keys::Component;
use sd_models::keys::layout::Layout;
use sd_models::structure::{self, Shapes};
use serde_json::Value;

use crate::ConvertError;
use crate::checkpoint::folder::{ConfigFile, TokenizerFolder};
use crate::checkpoint::{CheckpointError, Dtype, TensorSource, count_non_finite, to_f32};
use crate::error::some_of;
use crate::lora::Adapter;
use crate::onnx::transpose;

/// Which weight: its component and canonical name.
pub type Name = (Component, String);

/// What is known of a weight before it is read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Type in which the first file has it: what a computed weight is stored in, unless the user wants another.
    pub published: Dtype,
    /// Its canonical shape.
    pub shape: Vec<usize>,
    /// File that it comes from, for messages.
    pub file: Arc<PathBuf>,
    /// Its name there, for messages.
    pub key: String,
}

impl Entry {
    /// The weight that is, or is part of, the tensor `key` of a file.
    ///
    /// # Errors
    /// The tensor's type holds no weights.
    pub(crate) fn of(
        source: &dyn TensorSource,
        file: &Arc<PathBuf>,
        key: &str,
        shape: Vec<usize>,
    ) -> Result<Self, CheckpointError> {
        let dtype = source.tensors()[key].dtype;
        if !dtype.is_float() {
            return Err(CheckpointError::UnsupportedDtype {
                path: file.to_path_buf(),
                name: key.to_owned(),
                dtype: dtype.to_string(),
            });
        }
        Ok(Self {
            dtype,
            published: source.published(key).unwrap_or(dtype),
            shape,
            file: Arc::clone(file),
            key: key.to_owned(),
        })
    }

    /// Bytes of its data.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// A weight's data: little-endian, row-major.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Type of its elements.
    pub dtype: Dtype,
    /// The elements.
    pub bytes: Cow<'a, [u8]>,
    /// Whether they are known to be finite.
    finite: bool,
}

impl<'a> Tensor<'a> {
    /// A tensor that nobody looked at.
    pub(crate) fn new(dtype: Dtype, bytes: Cow<'a, [u8]>) -> Self {
        Self {
            dtype,
            bytes,
            finite: false,
        }
    }

    /// A tensor that is known to hold neither NaN nor infinity.
    pub(crate) fn finite(dtype: Dtype, bytes: Cow<'a, [u8]>) -> Self {
        Self {
            dtype,
            bytes,
            finite: true,
        }
    }

    /// A matrix of shape [out, in] as [in, out].
    pub(crate) fn transposed(self, shape: &[usize]) -> Tensor<'static> {
        let (rows, columns) = (shape[0], shape[1..].iter().product());
        let bytes = transpose(&self.bytes, rows, columns, self.dtype.size());
        Tensor {
            dtype: self.dtype,
            bytes: bytes.into(),
            finite: self.finite,
        }
    }

    /// How many of the elements are NaN or infinite.
    pub(crate) fn count_non_finite(&self) -> usize {
        match self.finite {
            true => 0,
            false => count_non_finite(self.dtype, &self.bytes),
        }
    }
}

/// What files say of a model beyond its weights.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Configuration of each component, in diffusers' form.
    pub configs: BTreeMap<Component, ConfigFile>,
    /// Tokenizer of each text encoder; where there is none, it is CLIP's.
    pub tokenizers: BTreeMap<Component, TokenizerFolder>,
    /// Configuration of the scheduler.
    pub scheduler: Option<Value>,
    /// The `model_index.json` of a pipeline's folder.
    pub index: Option<Value>,
    /// Free-form text in the first file.
    pub metadata: BTreeMap<String, String>,
    /// Whether a tensor or a sibling file says that the UNet predicts velocity, and which.
    pub velocity: Option<String>,
    /// Whether a tensor says that the noise schedule ends in pure noise.
    pub zero_snr: bool,
    /// The file's own noise schedule: products of `1 - beta`.
    pub alphas_cumprod: Option<Vec<f32>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A model's weights.
pub trait Model: Sync {
    /// File or folder that it goes by.
    fn path(&self) -> &Path;

    /// Every weight.
    fn entries(&self) -> &BTreeMap<Name, Entry>;

    /// A weight's data. Asking for one that is not among the entries is an error of the caller.
    ///
    /// # Errors
    /// It cannot be read or computed.
    fn read(&self, name: &Name) -> Result<Tensor<'_>, ConvertError>;

    /// A matrix [out, in] as [in, out].
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_transposed(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        Ok(self.read(name)?.transposed(&self.entries()[name].shape))
    }

    /// The files that weights are taken from, and what each is to the model.
    fn sources(&self) -> Vec<(&'static str, &dyn TensorSource)>;

    /// What files say of it.
    fn hints(&self) -> &Hints;

    /// Tensors of its files that are not among the entries.
    fn residue(&self) -> &Residue;

    /// How the model's files would spell a weight, whether they have it or not.
    fn spelled(&self, name: &Name) -> String {
        name.1.clone()
    }

    /// How its single file names tensors, if it comes from one.
    fn layout(&self) -> Option<&Layout>;

    /// LoRAs in its weights, in the order of application.
    fn adapters(&self) -> Vec<&Adapter> {
        Vec::new()
    }

    /// Whether there is anything of `component`.
    fn has(&self, component: Component) -> bool {
        self.entries().keys().any(|(c, _)| *c == component)
    }

    /// Shapes of a component's weights.
    fn shapes(&self, component: Component) -> Shapes {
        let of_component = self.entries().iter().filter(|((c, _), _)| *c == component);
        of_component
            .map(|((_, name), entry)| (name.clone(), entry.shape.clone()))
            .collect()
    }

    /// The configuration of its UNet.
    ///
    /// # Errors
    /// It has none, or one of a structure that is not supported.
    fn unet_config(&self) -> Result<UNetConfig, ConvertError> {
        structure::unet_config(&self.shapes(Component::UNet)).map_err(|source| {
            ConvertError::Structure {
                path: self.path().to_owned(),
                source,
            }
        })
    }

    /// A weight in single precision.
    ///
    /// # Errors
    /// It cannot be read or computed, or does not survive in single precision.
    fn read_f32(&self, name: &Name) -> Result<Vec<f32>, ConvertError> {
        let tensor = self.read(name)?;
        let values = to_f32(tensor.dtype, &tensor.bytes).map_err(|problem| {
            let entry = &self.entries()[name];
            CheckpointError::Convert {
                path: entry.file.to_path_buf(),
                name: entry.key.clone(),
                problem,
            }
        })?;
        Ok(values)
    }
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
    /// Not asked for: of components that are not converted, or that another file gives.
    pub other: Vec<String>,
    /// Nothing knows them.
    pub unknown: Vec<String>,
}

impl Residue {
    /// What nothing knows, in one line.
    #[must_use]
    pub fn unknown_summary(&self) -> String {
        let (count, names) = (self.unknown.len(), some_of(&self.unknown));
        format!("{count} tensors belong to nothing that is known: {names}")
    }

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
            (&self.other, "are of networks that were not asked for"),
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

/// 1x1 convolutions and matrices hold the same numbers, and files spell them either way.
pub(crate) fn without_trailing_ones(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|&n| n != 1).map_or(0, |i| i + 1);
    &shape[..end]
}
