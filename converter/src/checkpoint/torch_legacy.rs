//! PyTorch's files before 1.6: five pickles (magic number, version, byte order, tensors, keys of storages), then the
//! storages in the order of the keys, each behind its number of elements.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::mapped::Mapped;
use super::pickle::{self, MAX_PICKLE, Pickle, Value};
use super::torch_tensor::Contents;
use super::torch_zip::{TorchError, checked};
use super::{CheckpointError, TensorInfo, TensorSource};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const VERSION: i128 = 1001;

/// Whether a file begins like a pickle of protocol 2 or later.
pub(super) fn is_legacy(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..])
}

/// A checked file.
#[derive(Debug)]
pub(super) struct TorchLegacy {
    path: PathBuf,
    bytes: Mapped,
    /// First byte and length by key.
    storages: BTreeMap<String, (usize, usize)>,
    contents: Contents,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TorchLegacy {
    pub(super) fn new(path: &Path, bytes: Mapped) -> Result<Self, CheckpointError> {
        let torch = |problem| CheckpointError::Torch {
            path: path.to_owned(),
            problem,
        };
        let file = bytes.get();
        let mut at = 0;
        let mut next = || {
            let rest = &file[at..];
            let pickle = pickle::read(&rest[..rest.len().min(MAX_PICKLE)]);
            let pickle = pickle.map_err(|problem| CheckpointError::Pickle {
                path: path.to_owned(),
                problem,
            })?;
            at += pickle.length;
            Ok(pickle)
        };
        let no = |problem: &str| {
            torch(TorchError::NotACheckpoint {
                problem: problem.to_owned(),
            })
        };
        let (magic, version) = (next()?, next()?);
        if !matches!(magic.root(), Value::Int(MAGIC)) {
            return Err(no("it does not begin with PyTorch's magic number"));
        }
        if !matches!(version.root(), Value::Int(VERSION)) {
            return Err(no("its version is not 1001"));
        }
        let system = next()?;
        let little = match system.root() {
            Value::Dict(dict) => system.entry(dict, "little_endian"),
            _ => None,
        };
        match little {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err(torch(TorchError::BigEndian)),
            _ => return Err(no("it does not give its byte order")),
        }
        let (root, keys) = (next()?, next()?);
        let contents =
            Contents::of(&root).ok_or_else(|| no("it holds no dictionary of tensors"))?;
        let storages = storages(file, at, &contents, &keys).map_err(torch)?;
        let lengths = |key: &str| storages.get(key).map(|(_, length)| *length as u64);
        let tensors = checked(&contents, lengths).map_err(torch)?;
        Ok(Self {
            storages,
            contents,
            tensors,
            path: path.to_owned(),
            bytes,
        })
    }
}

/// Where each storage lies. The element's size is known from the tensors that use it.
fn storages(
    file: &[u8],
    mut at: usize,
    contents: &Contents,
    keys: &Pickle<'_>,
) -> Result<BTreeMap<String, (usize, usize)>, TorchError> {
    let wrong = |problem: String| TorchError::Storages { problem };
    let Value::List(list) = keys.root() else {
        return Err(wrong("are not listed".to_owned()));
    };
    let known: BTreeMap<&str, _> = contents
        .tensors
        .values()
        .map(|tensor| (tensor.storage.key.as_str(), &tensor.storage))
        .collect();
    let mut storages = BTreeMap::new();
    for id in list {
        let Value::Str(key) = keys.get(*id) else {
            return Err(wrong("are listed by something that is no text".to_owned()));
        };
        let Some(storage) = known.get(key) else {
            return Err(wrong(format!(
                "include `{key}`, of which no tensor is known"
            )));
        };
        let early = || TorchError::StoragesEnd {
            key: (*key).to_owned(),
        };
        let count = file.get(at..).and_then(|rest| rest.first_chunk());
        let count = count.map(|bytes| u64::from_le_bytes(*bytes));
        let count = count.ok_or_else(early)?;
        if count != storage.numel as u64 {
            return Err(wrong(format!(
                "disagree: `{key}` should have {} elements, the file says {count}",
                storage.numel
            )));
        }
        at += 8;
        let length = storage.byte_len();
        let end = length.and_then(|length| at.checked_add(length));
        let (Some(length), Some(end)) = (length, end.filter(|&end| end <= file.len())) else {
            return Err(early());
        };
        if storages.insert((*key).to_owned(), (at, length)).is_some() {
            return Err(wrong(format!("list `{key}` twice")));
        }
        at = end;
    }
    if at != file.len() {
        return Err(wrong(format!(
            "end {} bytes before the file does",
            file.len() - at
        )));
    }
    Ok(storages)
}

impl TensorSource for TorchLegacy {
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
        Ok(match self.storages.get(&tensor.storage.key) {
            Some(&(start, length)) => tensor.gather(&self.bytes.get()[start..start + length]),
            None => Cow::Borrowed(&[]), // `checked` lets only empty tensors go without
        })
    }

    fn file_bytes(&self) -> &[u8] {
        self.bytes.get()
    }
}
