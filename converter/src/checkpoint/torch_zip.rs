//! PyTorch's zip archives (since PyTorch 1.6): one pickle that describes tensors, and one entry per storage.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use zip::{CompressionMethod, ZipArchive};

use super::mapped::Mapped;
use super::pickle::{self, MAX_PICKLE};
use super::torch_tensor::{Contents, TensorRef, ViewError};
use super::{CheckpointError, TensorInfo, TensorSource};
use crate::Remedy;

/// Uncompressed bytes per byte of the file, beyond which an archive is taken for a bomb.
const MAX_EXPANSION: u64 = 4;

/// An archive that is no PyTorch checkpoint, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The zip archive cannot be read.
    #[error("a damaged zip archive: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// An entry that PyTorch does not write.
    #[error("zip entry `{name}`: {problem}")]
    Entry {
        /// Name of the entry.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Data that is not what was written.
    #[error("zip entry `{name}`: its checksum is {found:08x}, but {expected:08x} was written")]
    Checksum {
        /// Name of the entry.
        name: String,
        /// The checksum (CRC-32) of the data.
        found: u32,
        /// The checksum that the archive has of it.
        expected: u32,
    },
    /// A compiled program, not weights.
    #[error("a TorchScript program (it holds `{evidence}`), not a checkpoint")]
    TorchScript {
        /// An entry that gives it away.
        evidence: String,
    },
    /// No pickle, or several.
    #[error("a zip archive with {count} `data.pkl`, so not a PyTorch checkpoint")]
    DataPickles {
        /// How many.
        count: usize,
    },
    /// Made on a machine with the other byte order.
    #[error("its numbers are big-endian, which is not supported")]
    BigEndian,
    /// The archive would unpack to far more than its size.
    #[error("its entries would unpack to {unpacked} bytes from a file of {size}")]
    Bomb {
        /// Length when unpacked.
        unpacked: u64,
        /// Length of the file.
        size: u64,
    },
    /// The oldest format, a tar archive.
    #[error("a tar archive, PyTorch's oldest format, which is not supported")]
    LegacyTar,
    /// A pickle of something else.
    #[error("a pickle, but not a PyTorch checkpoint: {problem}")]
    NotACheckpoint {
        /// What shows it.
        problem: String,
    },
    /// The file ends within its data, or goes on behind it.
    #[error("its storages {problem}")]
    Storages {
        /// What is wrong.
        problem: String,
    },
    /// The file ends within a storage.
    #[error("its storages end early, within `{key}`")]
    StoragesEnd {
        /// The storage.
        key: String,
    },
    /// A storage is absent or too small.
    #[error("tensor `{name}`: its storage `{key}` has {found} bytes, but {expected} are needed")]
    StorageTooSmall {
        /// The tensor.
        name: String,
        /// The storage.
        key: String,
        /// Bytes that it has.
        found: u64,
        /// Bytes that the pickle speaks of.
        expected: u64,
    },
    /// A tensor does not fit its storage.
    #[error("tensor `{name}`: {problem}")]
    View {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: ViewError,
    },
}

impl TorchError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::Zip(_) => Some(Remedy::words("the file may be truncated; fetch it again")),
            Self::Checksum { .. } => Some(Remedy::words("the file is damaged; fetch it again")),
            Self::StoragesEnd { .. } => {
                Some(Remedy::words("the file is truncated; fetch it again"))
            }
            _ => None,
        }
    }
}

/// Bytes of an entry.
#[derive(Debug)]
struct Entry {
    name: String,
    index: usize,
    start: usize,
    size: usize,
    stored: bool,
    /// Checksum of the data; zero where the writer computed none, as PyTorch may be told to.
    checksum: u32,
    /// Whether the data was compared with it.
    checked: AtomicBool,
}

impl Entry {
    fn check(&self, data: &[u8]) -> Result<(), TorchError> {
        if self.checksum == 0 || self.checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (found, expected) = (crc32fast::hash(data), self.checksum);
        if found != expected {
            return Err(TorchError::Checksum {
                name: self.name.clone(),
                found,
                expected,
            });
        }
        self.checked.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// A checked archive.
#[derive(Debug)]
pub(super) struct TorchZip {
    path: PathBuf,
    bytes: Mapped,
    storages: BTreeMap<String, Entry>,
    contents: Contents,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TorchZip {
    pub(super) fn new(path: PathBuf, bytes: Mapped) -> Result<Self, CheckpointError> {
        let torch = |problem| CheckpointError::Torch {
            path: path.clone(),
            problem,
        };
        let (pickle_entry, storages) = entries(bytes.get()).map_err(torch)?;
        let data = unpacked(bytes.get(), &pickle_entry).map_err(torch)?;
        let pickle = pickle::read(&data).map_err(|problem| CheckpointError::Pickle {
            path: path.clone(),
            problem,
        })?;
        if pickle.length != data.len() {
            let problem = "there is something behind its pickle".to_owned();
            return Err(torch(TorchError::NotACheckpoint { problem }));
        }
        let contents = Contents::of(&pickle).ok_or_else(|| {
            let problem = "it holds no dictionary of tensors".to_owned();
            torch(TorchError::NotACheckpoint { problem })
        })?;
        let lengths = |key: &str| storages.get(key).map(|entry| entry.size as u64);
        let tensors = checked(&contents, lengths).map_err(torch)?;
        drop(pickle);
        Ok(Self {
            path,
            bytes,
            storages,
            contents,
            tensors,
        })
    }
}

/// Checks every tensor against the length of its storage.
pub(super) fn checked(
    contents: &Contents,
    length: impl Fn(&str) -> Option<u64>,
) -> Result<BTreeMap<String, TensorInfo>, TorchError> {
    let check = |(name, tensor): (&String, &TensorRef)| {
        tensor.check().map_err(|problem| TorchError::View {
            name: name.clone(),
            problem,
        })?;
        let key = &tensor.storage.key;
        let expected = tensor.storage.byte_len().expect("`check` computed it") as u64;
        let found = length(key).unwrap_or(0);
        if found < expected {
            return Err(TorchError::StorageTooSmall {
                name: name.clone(),
                key: key.clone(),
                found,
                expected,
            });
        }
        Ok((name.clone(), tensor.info()))
    };
    contents.tensors.iter().map(check).collect()
}

/// Finds the pickle and the storages, and checks that the archive has nothing else.
fn entries(file: &[u8]) -> Result<(Entry, BTreeMap<String, Entry>), TorchError> {
    let mut archive = ZipArchive::new(Cursor::new(file))?;
    if archive.len() as u64 != central_records(file, archive.central_directory_start()) {
        return Err(TorchError::Entry {
            name: "?".to_owned(),
            problem: "two entries have the same name",
        });
    }
    let mut pickles = Vec::new();
    let mut storages = BTreeMap::new();
    let mut unpacked_size = 0u64;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let bad = |problem| TorchError::Entry {
            name: name.clone(),
            problem,
        };
        let path = path_in_archive(&name).ok_or_else(|| bad("not a name that PyTorch gives"))?;
        let stored = match entry.compression() {
            _ if entry.encrypted() => return Err(bad("it is encrypted")),
            CompressionMethod::Stored => true,
            CompressionMethod::Deflated => false,
            _ => return Err(bad("its compression is not supported")),
        };
        if stored && entry.size() != entry.compressed_size() {
            return Err(bad("its two sizes differ"));
        }
        let start = entry.data_start().unwrap_or(u64::MAX);
        let end = start.checked_add(entry.compressed_size());
        if end.is_none_or(|end| end > file.len() as u64) {
            return Err(bad("it ends beyond the file"));
        }
        if local_size(file, entry.header_start())
            .is_some_and(|size| size != entry.compressed_size())
        {
            return Err(bad("its size is given twice, and differs"));
        }
        unpacked_size = unpacked_size.saturating_add(entry.size());
        let found = Entry {
            name: name.clone(),
            index,
            start: start as usize,
            size: entry.size() as usize,
            stored,
            checksum: entry.crc32(),
            checked: AtomicBool::new(false),
        };
        match path {
            "data.pkl" => pickles.push(found),
            "byteorder" => {
                let order = unpacked_raw(file, &found, 16)?;
                if order.starts_with(b"big") {
                    return Err(TorchError::BigEndian);
                }
            }
            "version" | ".format_version" | ".storage_alignment" | ".data/serialization_id" => {}
            _ if path.starts_with("code/") || path == "constants.pkl" => {
                return Err(TorchError::TorchScript { evidence: name });
            }
            _ => match path.strip_prefix("data/") {
                Some(key) if !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit()) => {
                    storages.insert(key.to_owned(), found);
                }
                _ => return Err(bad("not a name that PyTorch gives")),
            },
        }
    }
    let size = file.len() as u64;
    if unpacked_size > MAX_EXPANSION.saturating_mul(size) {
        return Err(TorchError::Bomb {
            unpacked: unpacked_size,
            size,
        });
    }
    let count = pickles.len();
    match pickles.pop() {
        Some(pickle) if count == 1 && pickle.size <= MAX_PICKLE => Ok((pickle, storages)),
        Some(_) if count == 1 => Err(TorchError::Entry {
            name: "data.pkl".to_owned(),
            problem: "it is larger than any checkpoint's",
        }),
        _ => Err(TorchError::DataPickles { count }),
    }
}

/// The name below the one folder that holds everything.
fn path_in_archive(name: &str) -> Option<&str> {
    let (folder, path) = name.split_once('/')?;
    let plain = !folder.is_empty() && folder != ".." && !name.contains(['\\', '\0']);
    let upwards = path.split('/').any(|part| part == ".." || part.is_empty());
    (plain && !upwards).then_some(path)
}

/// Records of the central directory, counted one by one: a reader that keeps entries by name would lose a second one.
fn central_records(file: &[u8], start: u64) -> u64 {
    let mut at = start as usize;
    let mut count = 0;
    while let Some(record) = file.get(at..).filter(|r| r.starts_with(b"PK\x01\x02")) {
        let length = |i: usize| {
            record
                .get(i..i + 2)
                .map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
        };
        at += 46 + length(28) + length(30) + length(32);
        count += 1;
    }
    count
}

/// The packed size in an entry's own header, if it is there rather than behind the data or in an extension.
fn local_size(file: &[u8], header: u64) -> Option<u64> {
    let header = file.get(header as usize..)?;
    let flags = u16::from_le_bytes(header.get(6..8)?.try_into().ok()?);
    let size = u32::from_le_bytes(header.get(18..22)?.try_into().ok()?);
    (flags & 8 == 0 && size != u32::MAX).then_some(u64::from(size))
}

/// An entry's data. Its checksum is computed the first time, which costs little beside what is done with the data.
fn unpacked<'a>(file: &'a [u8], entry: &Entry) -> Result<Cow<'a, [u8]>, TorchError> {
    let data = match entry.stored {
        true => Cow::Borrowed(&file[entry.start..entry.start + entry.size]),
        false => Cow::Owned(unpacked_raw(file, entry, entry.size)?),
    };
    // One that is cut off is told by its length.
    if data.len() == entry.size {
        entry.check(&data)?;
    }
    Ok(data)
}

/// At most `limit` bytes of an entry.
fn unpacked_raw(file: &[u8], entry: &Entry, limit: usize) -> Result<Vec<u8>, TorchError> {
    let mut archive = ZipArchive::new(Cursor::new(file))?;
    let reader = archive.by_index(entry.index)?;
    let mut bytes = Vec::new();
    let read = reader.take(limit as u64).read_to_end(&mut bytes);
    read.map_err(zip::result::ZipError::from)?;
    Ok(bytes)
}

impl TensorSource for TorchZip {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let tensor = self.contents.tensors.get(name);
        let tensor = tensor.ok_or_else(|| CheckpointError::NoTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })?;
        let Some(entry) = self.storages.get(&tensor.storage.key) else {
            return Ok(Cow::Borrowed(&[])); // `checked` lets only empty tensors go without
        };
        let storage =
            unpacked(self.bytes.get(), entry).map_err(|problem| CheckpointError::Torch {
                path: self.path.clone(),
                problem,
            })?;
        if storage.len() < entry.size {
            return Err(CheckpointError::Torch {
                path: self.path.clone(),
                problem: TorchError::StorageTooSmall {
                    name: name.to_owned(),
                    key: tensor.storage.key.clone(),
                    found: storage.len() as u64,
                    expected: entry.size as u64,
                },
            });
        }
        Ok(match storage {
            Cow::Borrowed(bytes) => tensor.gather(bytes),
            Cow::Owned(bytes) => Cow::Owned(tensor.gather(&bytes).into_owned()),
        })
    }

    fn file_bytes(&self) -> &[u8] {
        self.bytes.get()
    }

    fn check(&self) -> Result<(), CheckpointError> {
        let check = |entry| unpacked(self.bytes.get(), entry).map(drop);
        let checked = self.storages.values().try_for_each(check);
        checked.map_err(|problem| CheckpointError::Torch {
            path: self.path.clone(),
            problem,
        })
    }
}
