//! What can be wrong with a checkpoint file.

use std::io;
use std::path::PathBuf;

use super::header::HeaderError;

/// A checkpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder was given.
    #[error("{} is a folder\nhint: give the checkpoint file; folders in diffusers' layout are not supported yet", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// The file is of another format.
    #[error("{}: not a safetensors file but {kind}\nhint: {hint}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do.
        hint: &'static str,
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
    #[error("{}: tensor `{name}` has shape {found:?}, but the {needed_by} needs {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The network's shape.
        expected: Vec<usize>,
        /// Which network.
        needed_by: &'static str,
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
    /// Weights that mean something only together with their scales.
    #[error("{}: its 8-bit weights have scales (`{evidence}`), which is not supported yet\nhint: use the model's fp16 file", path.display())]
    ScaledFp8 {
        /// The file.
        path: PathBuf,
        /// A tensor that gives it away.
        evidence: String,
    },
}
