//! Writes a model as one checkpoint file that other programs read: the layout of its family's published files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Mutex;

use safetensors::tensor::View;
use sd_models::family::ModelFamily;
use sd_models::keys::layout::Layout;
use sd_models::keys::{Component, Part};
use sd_models::manifest::PredictionType;

use crate::ConvertError;
use crate::checkpoint::{Dtype, count_non_finite};
use crate::merge::convert;
use crate::model::{Entry, Model, Name, Tensor};
use crate::onnx::transpose;
use crate::output::write_file;
use crate::prediction::Prediction;
use crate::progress::Progress;

/// Positions of a text encoder, which some programs expect to find.
const POSITIONS: i64 = 77;

/// Bytes that [`save`] will report to its progress.
#[must_use]
pub fn work_bytes(model: &dyn Model) -> u64 {
    model.entries().values().map(|e| e.byte_len() as u64).sum()
}

/// Writes `model` to `path`; an existing file is replaced only with `force`. Returns the tensors that hold NaN or
/// infinity, and how many values.
///
/// # Errors
/// The model cannot be read or computed, the file cannot be written, or the user interrupts.
pub fn save(
    model: &dyn Model,
    path: &Path,
    recipe: Option<String>,
    force: bool,
    progress: &dyn Progress,
) -> Result<Vec<(String, usize)>, ConvertError> {
    let (failure, non_finite) = (Mutex::new(None), Mutex::default());
    let tensors = tensors(model, &failure, &non_finite, progress)?;
    // One entry only: the order of several would vary between runs, and so would the file's hash.
    let metadata = recipe.map(|text| HashMap::from([("sd_merge_recipe".to_owned(), text)]));
    write_file(path, force, progress, |file| {
        let named = tensors.iter().map(|t| (t.key.as_str(), t));
        let written = safetensors::serialize_to_file(named, metadata, file);
        if let Some(error) = failure.lock().expect("no panic while it is held").take() {
            return Err(error);
        }
        written.map_err(|e| ConvertError::Write {
            path: path.to_owned(),
            source: match e {
                safetensors::SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other),
            },
        })
    })?;
    drop(tensors);
    Ok(non_finite.into_inner().expect("no panic while it is held"))
}

/// A tensor of the file to be.
struct Out<'a> {
    key: String,
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
    model: &'a dyn Model,
    /// The first error: writing goes on with zeros, and the file is discarded.
    failure: &'a Mutex<Option<ConvertError>>,
    non_finite: &'a Mutex<Vec<(String, usize)>>,
    progress: &'a dyn Progress,
}

enum Content {
    /// Weights, one after the other.
    Weights(Vec<(Name, Part)>),
    /// Numbers 0, 1, 2, ..
    Positions,
    /// A tensor of the model's file that is none of its weights.
    Copy,
    /// None: that there is such a tensor says something.
    Nothing,
}

fn tensors<'a>(
    model: &'a dyn Model,
    failure: &'a Mutex<Option<ConvertError>>,
    non_finite: &'a Mutex<Vec<(String, usize)>>,
    progress: &'a dyn Progress,
) -> Result<Vec<Out<'a>>, ConvertError> {
    let own = model.layout().filter(|layout| layout.is_single_file());
    // The first file's names, and the family's for what that file lacks.
    let standard = standard_layout(model)?;
    let out = |key, dtype, shape, content| Out {
        key,
        dtype,
        shape,
        content,
        model,
        failure,
        non_finite,
        progress,
    };
    let mut held: BTreeMap<String, Vec<(Name, Part)>> = BTreeMap::new();
    for name in model.entries().keys() {
        let own_key = own.and_then(|layout| layout.key(name.0, &name.1));
        let key = own_key.or_else(|| standard.key(name.0, &name.1));
        let (key, part) = key.unwrap_or_else(|| (name.1.clone(), Part::Whole));
        held.entry(key).or_default().push((name.clone(), part));
    }
    let mut tensors = Vec::new();
    for (key, mut names) in held {
        names.sort_by_key(|(_, part)| *part);
        let entries: Vec<&Entry> = names.iter().map(|(n, _)| &model.entries()[n]).collect();
        let (shape, dtype) = (shape(&key, &names, &entries), common_dtype(&entries));
        tensors.push(out(key, dtype, shape, Content::Weights(names)));
    }
    // What other programs may miss: positions, and what the file has and the network does not use.
    if own.is_some() {
        let (_, source) = model.sources()[0];
        let unused: BTreeSet<&String> = model.residue().ignorable.iter().collect();
        for key in unused {
            let Some(info) = source.tensors().get(key) else {
                continue; // of another file
            };
            tensors.push(if key.ends_with("position_ids") {
                let shape = vec![1, POSITIONS as usize];
                out(key.clone(), Dtype::I64, shape, Content::Positions)
            } else {
                out(key.clone(), info.dtype, info.shape.clone(), Content::Copy)
            });
        }
    }
    for marker in markers(model)? {
        if tensors.iter().all(|tensor| tensor.key != marker) {
            let (key, shape) = (marker.to_owned(), vec![0]);
            tensors.push(out(key, Dtype::F32, shape, Content::Nothing));
        }
    }
    Ok(tensors)
}

/// Names of tensors that say what a folder's configuration says: a single file has none.
fn markers(model: &dyn Model) -> Result<Vec<&'static str>, ConvertError> {
    let velocity = Prediction::choose(None, model)?.kind == PredictionType::VPrediction;
    let scheduler = model.hints().scheduler.as_ref();
    let rescaled = scheduler.is_some_and(|s| s["rescale_betas_zero_snr"] == true);
    let markers = [
        ("v_pred", velocity),
        ("ztsnr", rescaled || model.hints().zero_snr),
    ];
    let applying = markers.iter().filter(|(_, applies)| *applies);
    Ok(applying.map(|(marker, _)| *marker).collect())
}

/// Shape in the file: queries, keys and values lie one below the other, and the VAE's attention is 1x1 convolutions.
fn shape(key: &str, names: &[(Name, Part)], entries: &[&Entry]) -> Vec<usize> {
    let mut shape = entries[0].shape.clone();
    match names[0].1 {
        Part::Whole => {}
        Part::Third(_) => shape[0] *= names.len(),
        Part::Transposed => shape.reverse(),
    }
    if names[0].0.0 == Component::Vae && key.contains(".attn_1.") && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    shape
}

fn common_dtype(entries: &[&Entry]) -> Dtype {
    let same = entries.iter().all(|e| e.dtype == entries[0].dtype);
    if same { entries[0].dtype } else { Dtype::F32 }
}

fn standard_layout(model: &dyn Model) -> Result<Layout, ConvertError> {
    let cfg = model.unet_config()?;
    let levels = |i: &usize| {
        let name = format!("decoder.up_blocks.{i}.resnets.0.conv1.weight");
        model.entries().contains_key(&(Component::Vae, name))
    };
    let levels = (0..10).take_while(levels).count();
    Ok(Layout::single_file(
        ModelFamily::of(&cfg),
        &cfg,
        levels,
        false,
    ))
}

impl Out<'_> {
    fn read(&self) -> Result<Cow<'_, [u8]>, ConvertError> {
        match &self.content {
            Content::Positions => Ok((0..POSITIONS).flat_map(i64::to_le_bytes).collect()),
            Content::Nothing => Ok(Cow::Borrowed(&[])),
            Content::Copy => {
                let (_, source) = self.model.sources()[0];
                // The source outlives this; its bytes are copied since the list of sources does not.
                Ok(Cow::Owned(source.bytes(&self.key)?.into_owned()))
            }
            Content::Weights(names) => match &names[..] {
                [(name, Part::Whole)] => Ok(self.read_weight(name)?.bytes),
                [(name, Part::Transposed)] => {
                    let tensor = self.read_weight(name)?;
                    let [columns, rows] = self.shape[..] else {
                        unreachable!("only matrices are stored transposed")
                    };
                    let bytes = transpose(&tensor.bytes, rows, columns, tensor.dtype.size());
                    Ok(Cow::Owned(bytes))
                }
                parts => {
                    let mut bytes = Vec::new();
                    for (name, _) in parts {
                        bytes.extend_from_slice(&self.read_weight(name)?.bytes);
                    }
                    Ok(Cow::Owned(bytes))
                }
            },
        }
    }

    fn read_weight(&self, name: &Name) -> Result<Tensor<'_>, ConvertError> {
        let tensor = self.model.read(name)?;
        if tensor.dtype == self.dtype {
            return Ok(tensor);
        }
        let entry = Entry {
            dtype: self.dtype,
            ..self.model.entries()[name].clone()
        };
        convert(&tensor, &entry)
    }

    fn failed(&self) -> bool {
        self.failure
            .lock()
            .expect("no panic while it is held")
            .is_some()
    }
}

impl View for &Out<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::F64 => safetensors::Dtype::F64,
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F8E4M3 => safetensors::Dtype::F8_E4M3,
            Dtype::F8E5M2 => safetensors::Dtype::F8_E5M2,
            Dtype::I64 => safetensors::Dtype::I64,
            Dtype::I32 => safetensors::Dtype::I32,
            Dtype::I16 => safetensors::Dtype::I16,
            Dtype::I8 => safetensors::Dtype::I8,
            Dtype::U64 => safetensors::Dtype::U64,
            Dtype::U32 => safetensors::Dtype::U32,
            Dtype::U16 => safetensors::Dtype::U16,
            Dtype::U8 => safetensors::Dtype::U8,
            Dtype::Bool => safetensors::Dtype::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.progress.advance(self.data_len() as u64);
        if self.progress.cancelled() {
            let mut failure = self.failure.lock().expect("no panic while it is held");
            failure.get_or_insert(ConvertError::Interrupted);
        }
        let read = if self.failed() {
            None
        } else {
            Some(self.read())
        };
        match read {
            Some(Ok(bytes)) => {
                let count = count_non_finite(self.dtype, &bytes);
                if count > 0 {
                    let mut list = self.non_finite.lock().expect("no panic while it is held");
                    list.push((self.key.clone(), count));
                }
                bytes
            }
            Some(Err(error)) => {
                *self.failure.lock().expect("no panic while it is held") = Some(error);
                Cow::Owned(vec![0; self.data_len()])
            }
            None => Cow::Owned(vec![0; self.data_len()]),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}
