//! PyTorch's tensors: views of storages, and the tree of dictionaries that a file holds them in.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::pickle::{Id, Pickle, Value};
use super::{Dtype, TensorInfo};

/// Bytes that tensors are views of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StorageRef {
    /// Its name in the file.
    pub(super) key: String,
    /// Type of its elements; untyped ones count bytes.
    pub(super) dtype: Option<Dtype>,
    /// How many elements.
    pub(super) numel: usize,
    /// Where this view of another storage begins, in elements.
    pub(super) view_offset: usize,
}

impl StorageRef {
    /// Bytes that the file must have of it.
    pub(super) fn byte_len(&self) -> Option<usize> {
        self.numel.checked_mul(self.dtype.map_or(1, Dtype::size))
    }
}

/// A tensor as a pickle describes it. Offset and strides count elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    pub(super) storage: StorageRef,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) dtype: Dtype,
}

/// A tensor that does not fit its storage.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// Some of its elements would lie outside.
    #[error("its elements reach beyond its storage, which has {numel} bytes")]
    OutOfStorage {
        /// Length of the storage in bytes.
        numel: usize,
    },
    /// It repeats elements, and would be larger than the file that holds it.
    #[error("it has more elements than its storage")]
    Expanded,
    /// Shape and strides have different lengths, or do not fit into memory.
    #[error("its shape {shape:?} and strides {stride:?} do not belong together")]
    Shape {
        /// The shape.
        shape: Vec<usize>,
        /// The strides.
        stride: Vec<usize>,
    },
}

impl TensorRef {
    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo {
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }

    /// Checks that the tensor lies within its storage, by the pickle's own word on the storage's length.
    pub(super) fn check(&self) -> Result<(), ViewError> {
        let shape_error = || ViewError::Shape {
            shape: self.shape.clone(),
            stride: self.stride.clone(),
        };
        if self.shape.len() != self.stride.len() {
            return Err(shape_error());
        }
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let count = count.ok_or_else(shape_error)?;
        let size = self.dtype.size();
        let available = self.storage.byte_len().ok_or_else(shape_error)?;
        if count == 0 {
            return Ok(());
        }
        if count
            .checked_mul(size)
            .is_none_or(|bytes| bytes > available)
        {
            return Err(ViewError::Expanded);
        }
        let last = self
            .shape
            .iter()
            .zip(&self.stride)
            .try_fold(self.start(), |at, (&n, &stride)| {
                at?.checked_add((n - 1).checked_mul(stride)?).map(Some)
            })
            .flatten();
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(size));
        if end.is_none_or(|end| end > available) {
            return Err(ViewError::OutOfStorage { numel: available });
        }
        Ok(())
    }

    /// First element, if it can be counted.
    fn start(&self) -> Option<usize> {
        self.offset.checked_add(self.storage.view_offset)
    }

    /// The elements in row-major order, from the bytes of the storage.
    pub(super) fn gather<'a>(&self, storage: &'a [u8]) -> Cow<'a, [u8]> {
        let size = self.dtype.size();
        let count: usize = self.shape.iter().product();
        if count == 0 {
            return Cow::Borrowed(&[]);
        }
        let start = self.start().expect("`check` counted it");
        if self.is_contiguous() {
            return Cow::Borrowed(&storage[start * size..(start + count) * size]);
        }
        let mut bytes = Vec::with_capacity(count * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let at: usize = index.iter().zip(&self.stride).map(|(i, s)| i * s).sum();
            bytes.extend_from_slice(&storage[(start + at) * size..][..size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Cow::Owned(bytes)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&n, &stride) in self.shape.iter().zip(&self.stride).rev() {
            if n != 1 && stride != expected {
                return false;
            }
            expected *= n;
        }
        true
    }
}

/// Most entries that are looked at: dictionaries may be shared, and a small file could spell a huge tree.
const MAX_ENTRIES: usize = 1_000_000;

/// What a PyTorch file holds: tensors under the path of their dictionaries' keys, and numbers and texts likewise.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, TensorRef>,
    pub(super) metadata: BTreeMap<String, String>,
    entries: usize,
}

/// Training state that is none of the model.
const IGNORED: &[&str] = &[
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "hyper_parameters",
    "loops",
    "hparams_name",
    "state_dict",
];

/// Deepest dictionary that is looked into: `string_to_param` in an embedding is the deepest that matters.
const MAX_DEPTH: usize = 4;

impl Contents {
    /// Reads the tree below the root: the state dictionary itself, or a dictionary that holds it as `state_dict`.
    ///
    /// # Errors
    /// The root is no dictionary.
    pub(super) fn of(pickle: &Pickle<'_>) -> Option<Self> {
        let mut contents = Self::default();
        match pickle.root() {
            Value::Dict(root) => {
                if let Some(Value::Dict(state)) = pickle.entry(root, "state_dict") {
                    contents.add(pickle, state, "", MAX_DEPTH);
                    for name in ["global_step", "epoch"] {
                        if let Some(Value::Int(n)) = pickle.entry(root, name) {
                            contents.metadata.insert(name.to_owned(), n.to_string());
                        }
                    }
                } else {
                    contents.add(pickle, root, "", 0);
                }
            }
            // An embedding may be nothing but its tensor.
            Value::Tensor(tensor) => {
                contents
                    .tensors
                    .insert("tensor".to_owned(), *tensor.clone());
            }
            _ => return None,
        }
        Some(contents)
    }

    fn add(&mut self, pickle: &Pickle<'_>, dict: &[(Id, Id)], path: &str, depth: usize) {
        for (key, value) in dict {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return;
            }
            let Value::Str(key) = pickle.get(*key) else {
                continue;
            };
            let name = match path {
                "" => (*key).to_owned(),
                path => format!("{path}.{key}"),
            };
            match pickle.get(*value) {
                Value::Tensor(tensor) => {
                    self.tensors.insert(name, *tensor.clone());
                }
                Value::Dict(inner) if depth < MAX_DEPTH && !IGNORED.contains(key) => {
                    self.add(pickle, inner, &name, depth + 1);
                }
                Value::Str(text) => {
                    self.metadata.insert(name, (*text).to_owned());
                }
                Value::Int(n) => {
                    self.metadata.insert(name, n.to_string());
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(offset: usize, shape: &[usize], stride: &[usize]) -> TensorRef {
        TensorRef {
            storage: StorageRef {
                key: "0".to_owned(),
                dtype: Some(Dtype::U8),
                numel: 6,
                view_offset: 0,
            },
            offset,
            shape: shape.to_vec(),
            stride: stride.to_vec(),
            dtype: Dtype::U8,
        }
    }

    #[test]
    fn views_are_gathered_in_row_major_order() {
        let storage = [0, 1, 2, 3, 4, 5];
        assert_eq!(*tensor(0, &[2, 3], &[3, 1]).gather(&storage), storage);
        assert_eq!(
            *tensor(0, &[3, 2], &[1, 3]).gather(&storage),
            [0, 3, 1, 4, 2, 5]
        );
        assert_eq!(*tensor(1, &[2], &[2]).gather(&storage), [1, 3]);
        assert_eq!(*tensor(5, &[], &[]).gather(&storage), [5]);
        assert!(tensor(9, &[0, 3], &[3, 1]).gather(&storage).is_empty());
    }

    #[test]
    fn views_must_lie_in_their_storage() {
        assert_eq!(tensor(0, &[2, 3], &[3, 1]).check(), Ok(()));
        assert_eq!(tensor(5, &[], &[]).check(), Ok(()));
        for outside in [
            tensor(1, &[2, 3], &[3, 1]),
            tensor(6, &[], &[]),
            tensor(0, &[2], &[6]),
            tensor(usize::MAX, &[1], &[1]),
            tensor(0, &[2], &[usize::MAX]),
        ] {
            assert!(
                matches!(outside.check(), Err(ViewError::OutOfStorage { .. })),
                "{outside:?}"
            );
        }
        assert_eq!(tensor(0, &[7], &[0]).check(), Err(ViewError::Expanded));
        let huge = tensor(0, &[usize::MAX, 2], &[0, 0]);
        assert!(matches!(huge.check(), Err(ViewError::Shape { .. })));
        let uneven = tensor(0, &[2], &[1, 1]);
        assert!(matches!(uneven.check(), Err(ViewError::Shape { .. })));
    }
}
