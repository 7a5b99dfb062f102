//! What can be wrong with a checkpoint file.

use std::io;
use std::path::PathBuf;

use super::header::HeaderError;
use super::pickle::PickleError;
use super::torch_zip::TorchError;
use crate::Remedy;

/// What [`CheckpointError::NotAFile`] calls a folder.
pub(super) const FOLDER: &str = "a folder";

/// A checkpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A pipe, a device, or a folder where a file is expected.
    #[error("{}: {kind}, not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file cannot be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A PyTorch file that asks for more than data, or a damaged one.
    #[error("{}: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with its pickle.
        problem: PickleError,
    },
    /// Not a checkpoint of PyTorch, or a damaged one.
    #[error("{}: {problem}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: TorchError,
    },
    /// A folder without weights.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A variant of weights that no part of a folder has.
    #[error("{}: no weights of the variant `{wanted}`", path.display())]
    NoVariant {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The variants that it has.
        variants: Vec<String>,
    },
    /// The list of a model's parts is wrong.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        problem: IndexError,
    },
    /// A configuration file cannot be understood.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file is of another format.
    #[error("{}: not a checkpoint but {kind}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What can be done.
        remedy: Remedy,
    },
    /// The header breaks a rule of the safetensors format.
    #[error("{}: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Which rule.
        problem: HeaderError,
    },
    /// A tensor is asked for that the file does not have.
    #[error("{}: it has no tensor `{name}`", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor does not fit the network.
    #[error("{}: tensor `{name}` has shape {found:?}; expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be, and for what.
        expected: String,
    },
    /// A weight is stored in a type that holds no weights.
    #[error("{}: tensor `{name}` is a weight, but its type is {dtype}; expected F64, F32, F16, BF16, F8_E4M3 or F8_E5M2", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A value does not survive conversion to single precision.
    #[error("{}: tensor `{name}`: {problem}", path.display())]
    Convert {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What happened.
        problem: String,
    },
    /// Weights that are no numbers of their own.
    #[error("{}: its weights are quantized ({scheme}; it holds `{evidence}`), which cannot be read", path.display())]
    Quantized {
        /// The file.
        path: PathBuf,
        /// How, or by which program.
        scheme: String,
        /// A tensor that gives it away.
        evidence: String,
    },
    /// A weight that is nothing without its scale.
    #[error("{}: scales missing: by `{evidence}`, the weight `{weight}` has one, but it is not in the file", path.display())]
    ScaleMissing {
        /// The file.
        path: PathBuf,
        /// The weight.
        weight: String,
        /// A tensor that speaks of the scale.
        evidence: String,
    },
    /// A scale by which nothing sensible can be multiplied.
    #[error("{}: the scale `{scale}` of the weight `{weight}` is {value}; a positive number expected", path.display())]
    BadScale {
        /// The file.
        path: PathBuf,
        /// The scale.
        scale: String,
        /// What it is for.
        weight: String,
        /// What it is.
        value: f32,
    },
    /// A weight's scale without the weight.
    #[error("{}: it holds the scale `{scale}`, but not the weight `{weight}`", path.display())]
    ScaleAlone {
        /// The file.
        path: PathBuf,
        /// The scale.
        scale: String,
        /// What it would be for.
        weight: String,
    },
}

impl CheckpointError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        const OTHER_FILE: &str = "use the model's fp16 file";
        Some(match self {
            Self::NotAFile { kind, .. } if *kind == FOLDER => return None,
            Self::NotAFile { .. } => Remedy::words(
                "save it as a file first: models are read in pieces, and a pipe or device cannot be",
            ),
            Self::Pickle { problem, .. } => return problem.hint(),
            Self::Torch { problem, .. } => return problem.hint(),
            Self::Header { problem, .. } => return problem.hint(),
            Self::Folder { .. } => Remedy::words(
                "expected a pipeline folder (`unet/`, `vae/`, `text_encoder/`, ..), or one component's, with `config.json` and weights",
            ),
            Self::NoVariant { variants, .. } if variants.is_empty() => Remedy::NoVariant,
            Self::NoVariant { variants, .. } => {
                Remedy::Words(format!("it has {}", variants.join(", ")).into())
            }
            Self::Format { remedy, .. } => remedy.clone(),
            Self::Quantized { .. } | Self::ScaleAlone { .. } => Remedy::words(OTHER_FILE),
            Self::ScaleMissing { .. } => Remedy::Words(
                format!("the file may be incomplete; fetch it again, or {OTHER_FILE}").into(),
            ),
            Self::BadScale { .. } => Remedy::Words(
                format!("the file is damaged; fetch it again, or {OTHER_FILE}").into(),
            ),
            _ => return None,
        })
    }
}

/// What is wrong with the list of a model's parts ("shards").
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is no list of parts.
    #[error("not an index: {0}")]
    Format(String),
    /// A part would lie outside the folder.
    #[error("part `{0}` is not a plain file name")]
    PathUnsafe(String),
    /// A part is not there.
    #[error("part `{0}` is missing")]
    Missing(String),
    /// A tensor is not where the index says.
    #[error("tensor `{tensor}` is not in `{part}`, where the index has it")]
    Absent {
        /// The tensor.
        tensor: String,
        /// The part.
        part: String,
    },
    /// A part has a tensor that the index does not know, or has elsewhere.
    #[error("part `{part}` holds tensor `{tensor}`, which the index does not have there")]
    Unlisted {
        /// The tensor.
        tensor: String,
        /// The part.
        part: String,
    },
}
