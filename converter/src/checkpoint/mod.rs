//! Checkpoint files, read lazily: names, types and shapes at once, data one tensor at a time.
//!
//! One file here per container format; [`TensorSource`] is what they have in common.

mod dtype;
mod error;
pub mod header;
pub mod safetensors;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

pub use dtype::{Dtype, count_non_finite, to_f32};
pub use error::CheckpointError;
pub use header::TensorInfo;
pub use safetensors::SafetensorsFile;

/// The tensors of one file.
pub trait TensorSource: Send + Sync {
    /// The file.
    fn path(&self) -> &Path;

    /// Type and shape of every tensor.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// Free-form text that its writer left, by key.
    fn metadata(&self) -> &BTreeMap<String, String>;

    /// A tensor's data: little-endian, row-major.
    ///
    /// # Errors
    /// The file has no such tensor.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError>;

    /// The whole file, for hashing.
    fn file_bytes(&self) -> &[u8];

    /// Length of the file.
    fn size_bytes(&self) -> u64 {
        self.file_bytes().len() as u64
    }
}
