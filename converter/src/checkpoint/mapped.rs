//! A file's bytes, mapped into memory: what is not read costs nothing.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

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
    /// Maps a file; an empty one has no bytes.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self::Static(&[]));
        }
        #[expect(
            unsafe_code,
            reason = "a map is how gigabytes are read without copying them"
        )]
        // SAFETY: the map is read-only, and only ever read as bytes, for which every value is valid. Another program
        // that truncates the file meanwhile ends this one with SIGBUS, as it does every program that maps files.
        let map = unsafe { Mmap::map(&file) }?;
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
