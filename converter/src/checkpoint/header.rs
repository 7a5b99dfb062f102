//! The header of a safetensors file: 8 bytes of length, JSON, then tensor data without holes.
//!
//! Checked more strictly than the format's own crate does, whose map lets the last of two tensors of one name win: every
//! key is seen as it is read, every range is compared with its neighbours, every size is bounded before it is used.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::Dtype;
use crate::Remedy;

/// Longest header that is read.
const MAX_HEADER: u64 = 100_000_000;
const MAX_TENSORS: usize = 1_000_000;
const MAX_NAME: usize = 4096;
const MAX_RANK: usize = 8;

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of its data: the header's checks make sure that this does not overflow.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// What a valid header says.
#[derive(Debug, Default)]
pub struct Header {
    /// Type and shape of every tensor.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where in the file each tensor begins.
    pub offsets: BTreeMap<String, usize>,
    /// Free-form text.
    pub metadata: BTreeMap<String, String>,
}

/// A rule of the format that is broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the messages say it; the fields are what they show"
)]
pub enum HeaderError {
    #[error("the file has {0} bytes, too few for a safetensors file")]
    HeaderTooSmall(u64),
    #[error(
        "its header would be {0} bytes long, and at most 100000000 are allowed: not a safetensors file, or a damaged one"
    )]
    HeaderTooLarge(u64),
    #[error("its header would be {length} bytes long, but {available} follow")]
    InvalidHeaderLength { length: u64, available: u64 },
    #[error("its header is not UTF-8 text")]
    HeaderNotUtf8,
    #[error("its header starts with byte {0:#04x} instead of `{{`")]
    HeaderBadStart(u8),
    #[error("its header is not valid JSON: {0}")]
    HeaderBadJson(String),
    #[error("its header names `{0}` twice")]
    DuplicateKey(String),
    #[error("its `__metadata__` is not a map from text to text: {0}")]
    BadMetadata(String),
    #[error("tensor `{name}`: {problem}")]
    BadTensorInfo { name: String, problem: String },
    #[error("tensor `{name}` lies at {begin}..{end}, but the data has {length} bytes")]
    OffsetOutOfBounds {
        name: String,
        begin: u64,
        end: u64,
        length: u64,
    },
    #[error("tensor `{name}`: its size of {shape:?} elements overflows")]
    SizeOverflow { name: String, shape: Vec<u64> },
    #[error(
        "tensor `{name}`: shape {shape:?} of {dtype} takes {expected} bytes, but {found} are given"
    )]
    SizeMismatch {
        name: String,
        shape: Vec<u64>,
        dtype: Dtype,
        expected: u64,
        found: u64,
    },
    #[error("tensor `{name}` begins at {begin}, but the one before it ends at {expected}")]
    OverlapOrHole {
        name: String,
        begin: u64,
        expected: u64,
    },
    #[error("{0} bytes follow the last tensor")]
    TrailingBytes(u64),
    #[error("unreasonable header: {0}")]
    Unreasonable(String),
}

impl HeaderError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::HeaderTooSmall(_) | Self::InvalidHeaderLength { .. } => {
                Some(Remedy::words("the file is truncated; fetch it again"))
            }
            Self::OffsetOutOfBounds { .. } => {
                Some(Remedy::words("the file may be truncated; fetch it again"))
            }
            _ => None,
        }
    }
}

impl Header {
    /// Reads and checks the header of a whole file.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        let size = file.len() as u64;
        let Some((length, rest)) = file.split_first_chunk() else {
            return Err(HeaderError::HeaderTooSmall(size));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER {
            return Err(HeaderError::HeaderTooLarge(length));
        }
        let available = rest.len() as u64;
        if length == 0 || length > available {
            return Err(HeaderError::InvalidHeaderLength { length, available });
        }
        let (json, data) = rest.split_at(length as usize);
        let text = std::str::from_utf8(json).map_err(|_| HeaderError::HeaderNotUtf8)?;
        if json[0] != b'{' {
            return Err(HeaderError::HeaderBadStart(json[0]));
        }
        let entries = read_entries(text)?;
        let mut header = Self {
            metadata: entries.metadata,
            ..Self::default()
        };
        header.place(entries.tensors, data.len() as u64, file.len() - data.len())?;
        Ok(header)
    }

    /// Checks that the tensors fill the data one after the other.
    fn place(
        &mut self,
        mut entries: Vec<(String, Entry)>,
        length: u64,
        data_start: usize,
    ) -> Result<(), HeaderError> {
        entries.sort_by_key(|(_, e)| e.data_offsets);
        let mut position = 0;
        for (name, entry) in entries {
            let Entry {
                dtype: Name(dtype),
                shape: Shape(shape),
                data_offsets: (begin, end),
            } = entry;
            if begin > end || end > length {
                return Err(HeaderError::OffsetOutOfBounds {
                    name,
                    begin,
                    end,
                    length,
                });
            }
            let count = shape
                .iter()
                .try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d));
            let Some(expected) = count else {
                return Err(HeaderError::SizeOverflow { name, shape });
            };
            if end - begin != expected {
                return Err(HeaderError::SizeMismatch {
                    name,
                    shape,
                    dtype,
                    expected,
                    found: end - begin,
                });
            }
            if begin != position {
                return Err(HeaderError::OverlapOrHole {
                    name,
                    begin,
                    expected: position,
                });
            }
            position = end;
            let shape = shape.into_iter().map(|d| d as usize).collect();
            self.offsets
                .insert(name.clone(), data_start + begin as usize);
            self.tensors.insert(name, TensorInfo { dtype, shape });
        }
        if position < length {
            return Err(HeaderError::TrailingBytes(length - position));
        }
        Ok(())
    }
}

/// A tensor's entry, as it is written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Name,
    shape: Shape,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct Entries {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

/// Reads the JSON object key by key.
fn read_entries(text: &str) -> Result<Entries, HeaderError> {
    // JSON errors carry text alone, so a broken rule of ours leaves through this slot.
    let mut broken = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = json.deserialize_map(EntriesVisitor {
        broken: &mut broken,
    });
    let entries = entries.and_then(|entries| json.end().map(|()| entries));
    match (broken, entries) {
        (Some(rule), _) => Err(rule),
        (None, Err(e)) => Err(HeaderError::HeaderBadJson(e.to_string())),
        (None, Ok(_)) if !text.trim_end_matches(' ').ends_with('}') => Err(
            HeaderError::HeaderBadJson("something other than spaces follows it".to_owned()),
        ),
        (None, Ok(entries)) => Ok(entries),
    }
}

struct EntriesVisitor<'a> {
    broken: &'a mut Option<HeaderError>,
}

impl EntriesVisitor<'_> {
    fn refuse<E: serde::de::Error>(self, rule: HeaderError) -> E {
        *self.broken = Some(rule);
        E::custom("refused")
    }
}

impl<'de> Visitor<'de> for EntriesVisitor<'_> {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MAX_NAME {
                let rule = format!(
                    "a name has {} bytes, at most {MAX_NAME} are read",
                    name.len()
                );
                return Err(self.refuse(HeaderError::Unreasonable(rule)));
            }
            if entries.tensors.len() == MAX_TENSORS {
                let rule = format!("more than {MAX_TENSORS} tensors");
                return Err(self.refuse(HeaderError::Unreasonable(rule)));
            }
            if !seen.insert(name.clone()) {
                return Err(self.refuse(HeaderError::DuplicateKey(name)));
            }
            if name == "__metadata__" {
                match map.next_value() {
                    Ok(metadata) => entries.metadata = metadata,
                    Err(e) if is_syntax(&e) => return Err(e),
                    Err(e) => return Err(self.refuse(HeaderError::BadMetadata(e.to_string()))),
                }
                continue;
            }
            match map.next_value() {
                Ok(entry) => entries.tensors.push((name, entry)),
                Err(e) if is_syntax(&e) => return Err(e),
                Err(e) => {
                    return Err(self.refuse(HeaderError::BadTensorInfo {
                        name,
                        problem: e.to_string(),
                    }));
                }
            }
        }
        Ok(entries)
    }
}

/// Whether the text is no JSON at all, which is not the entry's fault.
fn is_syntax(error: &impl fmt::Display) -> bool {
    let text = error.to_string();
    [
        "EOF while",
        "expected `",
        "key must be",
        "expected value",
        "control character",
    ]
    .iter()
    .any(|s| text.starts_with(s))
}

/// A known type's name.
struct Name(Dtype);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let name = String::deserialize(json)?;
        Dtype::from_name(&name)
            .map(Name)
            .ok_or_else(|| D::Error::custom(format!("type `{name}` is not supported")))
    }
}

/// Dimensions, not more than are reasonable.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = list.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        json.deserialize_seq(Dimensions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &vec![0; data],
        ]
        .concat()
    }

    fn refused(header: &str, data: usize) -> HeaderError {
        Header::parse(&file(header, data)).unwrap_err()
    }

    const ONE: &str = r#"{"t":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}"#;

    #[test]
    fn the_published_example_is_read() {
        let bytes = file(&format!("{ONE}   "), 16);
        assert_eq!((bytes.len(), bytes[0]), (84, 0x3C));
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(
            header.tensors["t"],
            TensorInfo {
                dtype: Dtype::I32,
                shape: vec![2, 2]
            }
        );
        assert_eq!(
            (header.tensors["t"].byte_len(), header.offsets["t"]),
            (16, 68)
        );
    }

    #[test]
    fn scalars_empty_tensors_any_order_and_odd_alignment_are_read() {
        let text = r#"{"b":{"dtype":"F16","shape":[],"data_offsets":[3,5]},"e":{"dtype":"F32","shape":[0,9],"data_offsets":[3,3]},
            "a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"__metadata__":{"k":"v"}}"#;
        let header = Header::parse(&file(text, 5)).unwrap();
        assert_eq!(header.tensors.len(), 3);
        assert_eq!(header.metadata["k"], "v");
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        assert_eq!(
            Header::parse(&[1, 0, 0]).unwrap_err(),
            HeaderError::HeaderTooSmall(3)
        );
        let length = |n: u64| Header::parse(&[&n.to_le_bytes()[..], b"{}"].concat()).unwrap_err();
        assert_eq!(
            length(100_000_001),
            HeaderError::HeaderTooLarge(100_000_001)
        );
        assert_eq!(length(u64::MAX), HeaderError::HeaderTooLarge(u64::MAX));
        assert_eq!(
            length(0),
            HeaderError::InvalidHeaderLength {
                length: 0,
                available: 2
            }
        );
        assert_eq!(
            length(3),
            HeaderError::InvalidHeaderLength {
                length: 3,
                available: 2
            }
        );
    }

    #[test]
    fn text_that_is_no_json_object_is_refused() {
        assert_eq!(
            Header::parse(&[&2u64.to_le_bytes()[..], &[b'{', 0xFF]].concat()).unwrap_err(),
            HeaderError::HeaderNotUtf8
        );
        assert_eq!(refused(" {}", 0), HeaderError::HeaderBadStart(b' '));
        assert_eq!(refused("[]", 0), HeaderError::HeaderBadStart(b'['));
        for text in ["{", "{}x", "{}\n", "{\"a\"}", r#"{"t":{"dtype":"#, "{} {}"] {
            assert!(
                matches!(refused(text, 0), HeaderError::HeaderBadJson(_)),
                "{text}: {:?}",
                refused(text, 0)
            );
        }
    }

    #[test]
    fn names_may_not_repeat_even_with_the_same_range() {
        let entry = r#""t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        assert_eq!(
            refused(&format!("{{{entry},{entry}}}"), 4),
            HeaderError::DuplicateKey("t".into())
        );
        let twice = r#"{"__metadata__":{},"__metadata__":{}}"#;
        assert_eq!(
            refused(twice, 0),
            HeaderError::DuplicateKey("__metadata__".into())
        );
    }

    #[test]
    fn metadata_is_text() {
        for text in [
            r#"{"__metadata__":[]}"#,
            r#"{"__metadata__":{"a":1}}"#,
            r#"{"__metadata__":null}"#,
        ] {
            assert!(
                matches!(refused(text, 0), HeaderError::BadMetadata(_)),
                "{text}"
            );
        }
    }

    #[test]
    fn entries_have_their_fields_and_types() {
        for entry in [
            r#"{"shape":[1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1]}"#,
            r#"{"dtype":"F99","shape":[1],"data_offsets":[0,4]}"#,
            r#"{"dtype":7,"shape":[1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":1,"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[-1,4]}"#,
            r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#,
            "[]",
            "3",
        ] {
            let error = refused(&format!(r#"{{"t":{entry}}}"#), 4);
            assert!(
                matches!(&error, HeaderError::BadTensorInfo { name, .. } if name == "t"),
                "{entry}: {error:?}"
            );
        }
    }

    fn placed(tensors: &[(&str, &str, u64, u64)], data: usize) -> Result<Header, HeaderError> {
        let entry = |(name, shape, begin, end): &(&str, &str, u64, u64)| {
            format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        };
        Header::parse(&file(
            &format!(
                "{{{}}}",
                tensors.iter().map(entry).collect::<Vec<_>>().join(",")
            ),
            data,
        ))
    }

    #[test]
    fn ranges_lie_in_the_data_and_have_their_shapes_size() {
        assert!(matches!(
            placed(&[("t", "[1]", 4, 0)], 4),
            Err(HeaderError::OffsetOutOfBounds { .. })
        ));
        assert!(matches!(
            placed(&[("t", "[4]", 0, 16)], 12),
            Err(HeaderError::OffsetOutOfBounds { length: 12, .. })
        ));
        let huge = "[4294967296,4294967296]";
        assert!(matches!(
            placed(&[("t", huge, 0, 4)], 4),
            Err(HeaderError::SizeOverflow { .. })
        ));
        assert!(matches!(
            placed(&[("t", "[2]", 0, 4)], 4),
            Err(HeaderError::SizeMismatch {
                expected: 8,
                found: 4,
                ..
            })
        ));
    }

    #[test]
    fn tensors_fill_the_data_without_overlap_or_hole() {
        assert!(placed(&[("b", "[1]", 4, 8), ("a", "[1]", 0, 4)], 8).is_ok());
        let overlap = placed(&[("a", "[2]", 0, 8), ("b", "[1]", 4, 8)], 8);
        assert!(matches!(
            overlap,
            Err(HeaderError::OverlapOrHole {
                begin: 4,
                expected: 8,
                ..
            })
        ));
        let hole = placed(&[("a", "[1]", 0, 4), ("b", "[1]", 8, 12)], 12);
        assert!(matches!(
            hole,
            Err(HeaderError::OverlapOrHole {
                begin: 8,
                expected: 4,
                ..
            })
        ));
        assert!(matches!(
            placed(&[("a", "[1]", 4, 8)], 8),
            Err(HeaderError::OverlapOrHole {
                begin: 4,
                expected: 0,
                ..
            })
        ));
        assert_eq!(
            placed(&[("a", "[1]", 0, 4)], 7).unwrap_err(),
            HeaderError::TrailingBytes(3)
        );
    }

    #[test]
    fn unreasonable_names_are_refused() {
        let name = "n".repeat(5000);
        let text = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        assert!(matches!(refused(&text, 1), HeaderError::Unreasonable(_)));
    }
}
