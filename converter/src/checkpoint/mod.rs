//! Checkpoint files, read lazily: names, types and shapes at once, data one tensor at a time.
//!
//! One file here per container format; [`TensorSource`] is what they have in common, and [`open`] finds out which it is.
//! [`folder`] finds the files of a pipeline folder.

mod dtype;
mod error;
pub mod folder;
mod half_precision;
pub mod header;
mod mapped;
mod pickle;
pub mod safetensors;
mod scaled;
mod torch_legacy;
mod torch_tensor;
mod torch_zip;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use dtype::read_f32;
pub use dtype::{Dtype, count_non_finite, to_f32};
pub use error::{CheckpointError, IndexError};
pub(crate) use half_precision::narrow;
pub use header::TensorInfo;
pub use pickle::PickleError;
pub use safetensors::SafetensorsFile;
pub use torch_zip::TorchError;

use mapped::Mapped;
use scaled::dequantized;

/// The tensors of one file.
pub trait TensorSource: Send + Sync {
    /// The file.
    fn path(&self) -> &Path;

    /// Type and shape of every tensor.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// Free-form text that its writer left, by key.
    fn metadata(&self) -> &BTreeMap<String, String>;

    /// Type in which the file itself has a tensor; weights with scales are computed, and have another one.
    fn published(&self, name: &str) -> Option<Dtype> {
        self.tensors().get(name).map(|info| info.dtype)
    }

    /// A tensor's data: little-endian, row-major.
    ///
    /// # Errors
    /// The file has no such tensor, or it cannot be unpacked.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError>;

    /// The whole file, for hashing.
    fn file_bytes(&self) -> &[u8];

    /// What the user should know of the file.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Compares the data with the checksums that the file has of it, if it has any.
    ///
    /// # Errors
    /// Some data is not what was written.
    fn check(&self) -> Result<(), CheckpointError> {
        Ok(())
    }

    /// Length of the file.
    fn size_bytes(&self) -> u64 {
        self.file_bytes().len() as u64
    }
}

/// Opens a file of tensors, whatever its name says of its format. Weights with scales are multiplied by them.
///
/// # Errors
/// It cannot be read, is of no known format, breaks a rule of its format, or is quantized in a way that cannot be read.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>, CheckpointError> {
    dequantized(open_stored(path)?)
}

/// [`open`] without a look at scales.
fn open_stored(path: &Path) -> Result<Box<dyn TensorSource>, CheckpointError> {
    read(path, Mapped::open(path)?)
}

/// [`open`] of a file whose bytes are in memory already; `path` stands for it in messages.
///
/// # Errors
/// As for [`open`].
pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Box<dyn TensorSource>, CheckpointError> {
    dequantized(read(path, Mapped::Owned(bytes))?)
}

fn read(path: &Path, bytes: Mapped) -> Result<Box<dyn TensorSource>, CheckpointError> {
    let path = path.to_owned();
    Ok(match bytes.get() {
        // Before others, since the length in front of a safetensors header may begin as they do.
        start if start.get(8) == Some(&b'{') => Box::new(SafetensorsFile::new(path, bytes)?),
        start if start.starts_with(b"PK") => Box::new(torch_zip::TorchZip::new(path, bytes)?),
        start if torch_legacy::is_legacy(start) => {
            Box::new(torch_legacy::TorchLegacy::new(&path, bytes)?)
        }
        start if start.get(257..262) == Some(b"ustar") => {
            let problem = TorchError::LegacyTar;
            return Err(CheckpointError::Torch { path, problem });
        }
        _ => Box::new(SafetensorsFile::new(path, bytes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_whose_length_begins_like_another_format_is_a_header() {
        for length in [u16::from_le_bytes([0x80, 2]), u16::from_le_bytes(*b"PK")] {
            let mut file = u64::from(length).to_le_bytes().to_vec();
            file.extend(b"{}");
            file.resize(8 + usize::from(length), b' ');
            let opened = from_bytes(Path::new("a"), file).unwrap();
            assert!(opened.tensors().is_empty());
        }
    }
}
