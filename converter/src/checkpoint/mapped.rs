//! A file's bytes, mapped into memory: what is not read costs nothing.

use std::fs::{self, File};
use std::path::Path;

use memmap2::Mmap;

use super::CheckpointError;
use super::error::FOLDER;

/// The bytes of a file.
#[derive(Debug)]
pub(super) enum Mapped {
    File(Mmap),
    /// Part of the program.
    Static(&'static [u8]),
    /// Read by the caller.
    Owned(Vec<u8>),
}

impl Mapped {
    /// Maps a file; an empty one has no bytes. What is no file is not even opened, since that may wait for a writer forever.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() {
                FOLDER
            } else {
                "a pipe or device"
            };
            return Err(CheckpointError::NotAFile {
                path: path.to_owned(),
                kind,
            });
        }
        let file = File::open(path).map_err(io)?;
        if metadata.len() == 0 {
            return Ok(Self::Static(&[]));
        }
        #[expect(
            unsafe_code,
            reason = "a map is how gigabytes are read without copying them"
        )]
        // SAFETY: the map is read-only, and only ever read as bytes, for which every value is valid. Another program
        // that truncates the file meanwhile ends this one with SIGBUS, as it does every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::File(map))
    }

    pub(super) fn get(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}
