//! Textual inversions (Gal et al. 2022): vectors that stand for a word of a prompt, in the layouts of A1111, diffusers and
//! SDXL trainers.

use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::ConvertError;
use crate::checkpoint::{CheckpointError, TensorSource, open, to_f32};

/// Width of each text encoder's tokens, and the models that have it.
const WIDTHS: [(usize, &str); 3] = [
    (768, "Stable Diffusion 1.x, or SDXL's first text encoder"),
    (1024, "Stable Diffusion 2.x"),
    (1280, "SDXL's second text encoder"),
];

/// Text encoders, as SDXL trainers and `OneTrainer` name their vectors.
const ENCODERS: [&str; 2] = ["clip_l", "clip_g"];

/// Vectors for consecutive tokens of one text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// Width of the text encoder.
    pub width: usize,
    /// `width` numbers per token.
    pub values: Vec<f32>,
}

impl Vectors {
    /// How many tokens they stand for.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.values.len() / self.width
    }

    /// Models with a text encoder of this width.
    #[must_use]
    pub fn made_for(&self) -> &'static str {
        let known = WIDTHS.iter().find(|(width, _)| *width == self.width);
        known.map_or("a model of another width", |(_, model)| model)
    }
}

/// A textual inversion.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The word that its file says it stands for.
    pub name: Option<String>,
    /// One per text encoder, the narrower first.
    pub vectors: Vec<Vectors>,
}

impl Embedding {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no textual inversion for a published text encoder.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        Self::open_with(path, is_published)
    }

    /// Reads a file that is one for whatever text encoder.
    ///
    /// # Errors
    /// It cannot be read, or is no textual inversion.
    pub fn open_any(path: &Path) -> Result<Self, ConvertError> {
        Self::open_with(path, |width| width > 0)
    }

    fn open_with(path: &Path, is_width: fn(usize) -> bool) -> Result<Self, ConvertError> {
        let embedding = Self::of(&*open(path)?, is_width)?;
        embedding.ok_or_else(|| ConvertError::NotAnEmbedding {
            path: path.to_owned(),
        })
    }

    /// Reads the tensors of a file, if they are those of a textual inversion for a published text encoder.
    ///
    /// # Errors
    /// It is one, but a damaged one.
    pub fn read(source: &dyn TensorSource) -> Result<Option<Self>, ConvertError> {
        Self::of(source, is_published)
    }

    /// Reads the tensors of a file; a lone tensor is a textual inversion if it has such a width.
    fn of(
        source: &dyn TensorSource,
        is_width: fn(usize) -> bool,
    ) -> Result<Option<Self>, ConvertError> {
        let keys: Vec<&str> = source.tensors().keys().map(String::as_str).collect();
        let params: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|key| key.starts_with("string_to_param."))
            .collect();
        let chosen = match (&params[..], &keys[..]) {
            ([one], _) => vec![*one],
            ([_, _, ..], _) => {
                return Err(ConvertError::NotAnEmbedding {
                    path: source.path().to_owned(),
                });
            }
            _ if keys.contains(&"emb_params") => vec!["emb_params"],
            _ if keys.contains(&"clip_l") && keys.contains(&"clip_g") => vec!["clip_l", "clip_g"],
            ([], [one]) if ENCODERS.contains(one) || is_rows(source, one, is_width) => {
                vec![*one]
            }
            _ => return Ok(None),
        };
        let word = match chosen[..] {
            [one] if params.is_empty() && one != "emb_params" && !ENCODERS.contains(&one) => {
                Some(one.to_owned())
            }
            _ => source.metadata().get("name").cloned(),
        };
        let vectors = chosen.iter().map(|key| vectors(source, key));
        Ok(Some(Self {
            name: word.filter(|name| name != "tensor"),
            vectors: vectors.collect::<Result<_, _>>()?,
        }))
    }
}

impl Embedding {
    /// Writes it in single precision: `emb_params`, or `clip_l` and `clip_g`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let names: &[&str] = match self.vectors.len() {
            1 => &["emb_params"],
            _ => &["clip_l", "clip_g"],
        };
        let bytes = |v: &Vectors| v.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let bytes: Vec<Vec<u8>> = self.vectors.iter().map(bytes).collect();
        let views = self.vectors.iter().zip(&bytes).map(|(vectors, bytes)| {
            let shape = vec![vectors.tokens(), vectors.width];
            TensorView::new(Dtype::F32, shape, bytes).map_err(io::Error::other)
        });
        let views: Vec<TensorView<'_>> = views.collect::<Result<_, _>>()?;
        safetensors::serialize_to_file(names.iter().zip(views), None, path)
            .map_err(io::Error::other)
    }
}

fn is_published(width: usize) -> bool {
    WIDTHS.iter().any(|(known, _)| *known == width)
}

fn is_rows(source: &dyn TensorSource, key: &str, is_width: fn(usize) -> bool) -> bool {
    let shape = &source.tensors()[key].shape;
    shape.len() <= 2 && is_width(shape.last().copied().unwrap_or(0))
}

/// A matrix with a row per token, or one row.
fn vectors(source: &dyn TensorSource, key: &str) -> Result<Vectors, ConvertError> {
    let info = &source.tensors()[key];
    let width = match info.shape[..] {
        [width] | [_, width] if width > 0 => width,
        _ => {
            return Err(CheckpointError::Shape {
                path: source.path().to_owned(),
                name: key.to_owned(),
                found: info.shape.clone(),
                expected: "[width] or [tokens, width] of a textual inversion".to_owned(),
            }
            .into());
        }
    };
    let values =
        to_f32(info.dtype, &source.bytes(key)?).map_err(|problem| CheckpointError::Convert {
            path: source.path().to_owned(),
            name: key.to_owned(),
            problem,
        })?;
    Ok(Vectors { width, values })
}
