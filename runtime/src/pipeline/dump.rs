//! The inside of a run as a safetensors file: how pictures of two programs are compared step by step.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ndarray::{Array2, ArrayD, ArrayView, Dimension, arr1};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sd_models::tokenizer::POSITIONS;

use super::{Destination, PipelineError};
use crate::engine::Cancel;
use crate::regular;
use crate::text::{Chunk, Condition, Guides, Timeline};

/// Longest header that is read, in bytes: a dump has some hundred for each step.
const LONGEST_HEADER: u64 = 16 << 20;

/// What tells a dump from other safetensors files, in its metadata.
const WRITER: (&str, &str) = ("Version", concat!("sdrt-", env!("CARGO_PKG_VERSION")));

/// What a run leaves for comparison.
#[derive(Debug, Default)]
pub struct Dump {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Dump {
    /// Adds a tensor of numbers, behind those that the name has already, along the first dimension.
    pub fn append<D: Dimension>(&mut self, name: &str, tensor: &ArrayView<'_, f32, D>) {
        let bytes = tensor.iter().flat_map(|x| x.to_le_bytes());
        match self.tensors.iter_mut().find(|(known, ..)| known == name) {
            Some((_, _, shape, data)) => {
                shape[0] += tensor.shape()[0];
                data.extend(bytes);
            }
            None => {
                let shape = tensor.shape().to_vec();
                self.tensors
                    .push((name.to_owned(), Dtype::F32, shape, bytes.collect()));
            }
        }
    }

    /// Adds token ids.
    pub fn add_ids<D: Dimension>(
        &mut self,
        name: impl Into<String>,
        tensor: &ArrayView<'_, i64, D>,
    ) {
        let bytes = tensor.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors
            .push((name.into(), Dtype::I64, tensor.shape().to_vec(), bytes));
    }

    /// Adds what a UNet is told in a run of so many calls. `suffix` is for a refiner's.
    pub(super) fn add_text(
        &mut self,
        calls: Option<usize>,
        conditions: &Guides<Condition>,
        suffix: &str,
    ) {
        for place in places(conditions, calls) {
            let Place { value, of, at, .. } = &place;
            let name = |what: &str| format!("{what}{of}{suffix}{at}");
            self.append(&name("text_embeddings"), &value.context.view());
            if let Some(pooled) = &value.pooled {
                self.append(&name("pooled"), &pooled.view());
            }
            if let Some(weight) = place.weight
                && suffix.is_empty()
            {
                self.append(&format!("weight{at}"), &arr1(&[weight as f32]).view());
            }
        }
        let mut conditions = conditions.values();
        if let Some(time_ids) = conditions.next().and_then(|(c, _)| c.time_ids.as_ref()) {
            self.append(&format!("time_ids{suffix}"), &time_ids.view());
        }
    }

    /// Adds token ids and weights, [chunks, 77]. `number` is for a second encoder's.
    pub(super) fn add_tokens(
        &mut self,
        calls: Option<usize>,
        tokens: &Guides<Vec<Chunk>>,
        number: &str,
    ) {
        for Place { value, of, at, .. } in places(tokens, calls) {
            let name = |what: &str| format!("{what}{of}{number}{at}");
            let shape = (value.len(), POSITIONS);
            let ids = |(chunk, i): (usize, usize)| i64::from(value[chunk].ids[i]);
            self.add_ids(name("token_ids"), &Array2::from_shape_fn(shape, ids).view());
            let weight = |(chunk, i): (usize, usize)| value[chunk].weights[i];
            let weights = Array2::from_shape_fn(shape, weight);
            self.append(&name("token_weights"), &weights.view());
        }
    }

    /// Notes a setting of the run.
    pub fn set(&mut self, key: &str, value: &str) {
        self.metadata.insert(key.to_owned(), value.to_owned());
    }

    /// A place for a dump: a new file, an older dump, or what is no file.
    ///
    /// # Errors
    /// It cannot be written, or holds something else, which would be lost.
    pub fn place(path: &Path) -> Result<Destination, PipelineError> {
        let to = Destination::find(path)?;
        if to.is_file() && !may_be_lost(path) {
            return Err(PipelineError::Foreign {
                path: path.to_owned(),
            });
        }
        Ok(to)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: &Destination, cancel: &Cancel) -> Result<(), PipelineError> {
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (
                name.as_str(),
                view.expect("bytes and shape are of one tensor"),
            )
        });
        let mut metadata = self.metadata.clone();
        metadata.insert(WRITER.0.to_owned(), WRITER.1.to_owned());
        let bytes = safetensors::serialize(views, Some(metadata))
            .expect("names are unique and views are whole");
        to.write(&bytes, cancel)
    }
}

/// What holds from a model call on.
struct Place<'a, T> {
    value: &'a T,
    /// `_uncond` for a negative prompt's.
    of: &'static str,
    /// The end of its name: none if it holds throughout, `.NNN` from call NNN on, `.NNN.K` for a part of a composition.
    at: String,
    /// A part's weight.
    weight: Option<f64>,
}

/// All that holds in a run of so many calls.
fn places<T>(guides: &Guides<T>, calls: Option<usize>) -> Vec<Place<'_, T>> {
    let mut places = Vec::new();
    let of_all: Vec<_> = guides.cond.iter().map(|(line, _)| line).collect();
    for call in changes(&of_all, calls) {
        for (k, (line, weight)) in guides.cond.iter().enumerate() {
            let at = match guides.is_single() {
                true if line.is_constant() => String::new(),
                true => format!(".{call:03}"),
                false => format!(".{call:03}.{k}"),
            };
            places.push(Place {
                value: line.at(call),
                of: "",
                at,
                weight: (!guides.is_single()).then_some(*weight),
            });
        }
    }
    for call in changes(&[&guides.uncond], calls) {
        places.push(Place {
            value: guides.uncond.at(call),
            of: "_uncond",
            at: match guides.uncond.is_constant() {
                true => String::new(),
                false => format!(".{call:03}"),
            },
            weight: None,
        });
    }
    places
}

/// Calls at which something else begins to hold; the first is number 0.
fn changes<T>(lines: &[&Timeline<T>], calls: Option<usize>) -> Vec<usize> {
    let round = lines.iter().map(|line| line.round()).max().unwrap_or(1);
    let count = calls.unwrap_or(round).clamp(1, round);
    let changes = |call: usize| {
        let differ = |line: &&Timeline<T>| !std::ptr::eq(line.at(call), line.at(call - 1));
        call == 0 || lines.iter().any(differ)
    };
    (0..count).filter(|&call| changes(call)).collect()
}

/// Whether nothing is lost with a file: there is none, it is empty, or a dump of any version.
fn may_be_lost(path: &Path) -> bool {
    let version = || -> Option<String> {
        let mut file = File::open(path).ok()?;
        let (mut length, mut header) = ([0; 8], Vec::new());
        file.read_exact(&mut length).ok()?;
        let length = u64::from_le_bytes(length).min(LONGEST_HEADER);
        file.take(length).read_to_end(&mut header).ok()?;
        let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
        Some(header["__metadata__"][WRITER.0].as_str()?.to_owned())
    };
    let is_empty = path.metadata().map_or(true, |file| file.len() == 0);
    is_empty || version().is_some_and(|version| version.starts_with("sdrt-"))
}

/// Reads the first noise of a run, [N, C, h, w], from a dump or any safetensors file with a tensor `initial_noise`.
///
/// # Errors
/// The file cannot be read or has no such tensor of single precision.
pub fn read_initial_noise(path: &Path) -> Result<ArrayD<f32>, PipelineError> {
    const NAME: &str = "initial_noise";
    let wrong = |problem: String| PipelineError::InitNoise {
        path: path.to_owned(),
        problem,
    };
    let mut bytes = Vec::new();
    let read = regular::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_err(|e| wrong(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let tensor = file
        .tensor(NAME)
        .map_err(|_| wrong(format!("it has no tensor `{NAME}`")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(wrong(format!(
            "`{NAME}` is {:?}; expected F32",
            tensor.dtype()
        )));
    }
    let values = tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    ArrayD::from_shape_vec(tensor.shape(), values).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_replaces_dumps_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.safetensors");
        let write = || -> Result<(), PipelineError> {
            let mut dump = Dump::default();
            dump.append("x", &arr1(&[1.0f32]).view());
            dump.write(&Dump::place(&path)?, &Cancel::new())
        };
        let refused = || {
            let before = std::fs::read(&path).unwrap();
            let error = write().unwrap_err();
            assert!(matches!(error, PipelineError::Foreign { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        };
        write().unwrap();
        write().unwrap();
        std::fs::write(&path, "").unwrap();
        write().unwrap();
        for text in ["a", "a text that is longer than a header's length"] {
            std::fs::write(&path, text).unwrap();
            refused();
        }
        for metadata in [None, Some(("Version", "other-1"))] {
            let metadata = metadata.map(|(k, v)| [(k.to_owned(), v.to_owned())].into());
            let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            let model = safetensors::serialize([("w", view)], metadata).unwrap();
            std::fs::write(&path, model).unwrap();
            refused();
        }
    }

    #[test]
    fn noise_is_read_back_from_a_dump() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.safetensors");
        let mut dump = Dump::default();
        dump.append("initial_noise", &arr1(&[1.5f32, -2.0]).view());
        dump.add_ids("token_ids", &arr1(&[49406i64]).view());
        dump.set("seed", "7");
        let to = Destination::find(&path).unwrap();
        dump.write(&to, &Cancel::new()).unwrap();
        assert_eq!(
            read_initial_noise(&path)
                .unwrap()
                .into_raw_vec_and_offset()
                .0,
            [1.5, -2.0]
        );
        std::fs::write(&path, "nothing").unwrap();
        assert!(
            read_initial_noise(&path)
                .unwrap_err()
                .to_string()
                .contains("not a safetensors")
        );
    }
}
