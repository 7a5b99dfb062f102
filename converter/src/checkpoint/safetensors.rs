//! Safetensors files, mapped into memory: what is not read costs nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::header::{Header, TensorInfo};
use super::mapped::Mapped;
use super::{CheckpointError, TensorSource};
use crate::Remedy;

/// A safetensors file whose header has been checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    header: Header,
    bytes: Mapped,
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// It cannot be read, is of another format, or breaks a rule of this one.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::new(path.to_owned(), Mapped::open(path)?)
    }

    /// Reads a file that is part of the program; `label` stands for its path in messages.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn from_static(label: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        Self::new(PathBuf::from(label), Mapped::Static(bytes))
    }

    pub(super) fn new(path: PathBuf, bytes: Mapped) -> Result<Self, CheckpointError> {
        let content = bytes.get();
        if let Some((kind, remedy)) = other_format(content) {
            return Err(CheckpointError::Format { path, kind, remedy });
        }
        let header = match Header::parse(content) {
            Ok(header) => header,
            Err(problem) => return Err(CheckpointError::Header { path, problem }),
        };
        Ok(Self {
            path,
            header,
            bytes,
        })
    }
}

impl TensorSource for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.header.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let no_tensor = || CheckpointError::NoTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        let start = *self.header.offsets.get(name).ok_or_else(no_tensor)?;
        let length = self.header.tensors[name].byte_len();
        Ok(Cow::Borrowed(&self.bytes.get()[start..start + length]))
    }

    fn file_bytes(&self) -> &[u8] {
        self.bytes.get()
    }
}

/// What people give instead of checkpoints, by how it begins, and what they should do.
fn other_format(bytes: &[u8]) -> Option<(&'static str, Remedy)> {
    const DOWNLOAD: &str = "the download went wrong (a login page?); fetch the file again";
    const MESSAGE: &str =
        "the download went wrong (an error message?); look into it, and fetch the file again";
    let starts: [(&[u8], &str, &str); 5] = [
        (b"<!DOCTYPE", "a web page", DOWNLOAD),
        (b"<!doctype", "a web page", DOWNLOAD),
        (b"<html", "a web page", DOWNLOAD),
        (
            b"version https://git-lfs",
            "a Git LFS pointer",
            "fetch the file itself with `git lfs pull`, or download it from the model's page",
        ),
        (
            b"GGUF",
            "a GGUF file",
            "quantized files cannot be converted; get the model's .safetensors file",
        ),
    ];
    if bytes.is_empty() {
        return Some((
            "an empty file",
            Remedy::words("the download went wrong; fetch the file again"),
        ));
    }
    let known = starts
        .into_iter()
        .find(|(start, ..)| bytes.starts_with(start))
        .map(|(_, kind, hint)| (kind, Remedy::words(hint)));
    known
        .or_else(|| is_onnx(bytes).then_some(("an ONNX graph", Remedy::RunIt)))
        .or_else(|| is_text(bytes).then_some(("a text file", Remedy::words(MESSAGE))))
}

/// Whether a file begins with text. A safetensors file has a zero there: four of the eight bytes that can tell its header's
/// length are never needed.
fn is_text(bytes: &[u8]) -> bool {
    const LOOKED_AT: usize = 64;
    let control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    !bytes.iter().take(LOOKED_AT).any(control)
}

/// Whether a file begins as ONNX models do: with the format's version, then a text of at least one letter (who made it), or
/// the graph.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x08, 1..=30, 0x12 | 0x1A | 0x22 | 0x3A, 1..=255, ..]
    ) && bytes.get(8) != Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_read_from_a_file() {
        let data: Vec<u8> = (0..12).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![3, 4], &data)
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        safetensors::serialize_to_file([("t", view)], None, &path).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.tensors()["t"].shape, [3, 4]);
        assert_eq!(*file.bytes("t").unwrap(), *data);
        assert!(matches!(
            file.bytes("u"),
            Err(CheckpointError::NoTensor { .. })
        ));
        assert_eq!(file.size_bytes(), std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn other_formats_are_named() {
        for (start, expected) in [
            (&b"<!DOCTYPE html>"[..], "web page"),
            (b"version https://git-lfs.github.com/spec/v1", "LFS"),
            (b"GGUF\x03\x00\x00\x00", "GGUF"),
            (b"\x08\x0a\x12\x07pytorch\x1a", "an ONNX graph"),
        ] {
            let bytes: &'static [u8] = start;
            let error = SafetensorsFile::from_static("x.safetensors", bytes).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(expected) && error.hint().is_some(), "{said}");
        }
    }

    #[test]
    fn files_that_are_not_there_or_empty_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            SafetensorsFile::open(&dir.path().join("no")),
            Err(CheckpointError::Io { .. })
        ));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        let error = SafetensorsFile::open(&empty).unwrap_err();
        assert!(
            matches!(
                error,
                CheckpointError::Format {
                    kind: "an empty file",
                    ..
                }
            ),
            "{error}"
        );
    }
}
