//! LoRA files as kohya's sd-scripts write them: two factors and an alpha per module, and `LyCORIS`' differences of norms.

use std::borrow::Cow;
use std::collections::HashMap;

use half::f16;
use safetensors::tensor::{Dtype, View};

use crate::ConvertError;
use crate::output::StagedFile;
use crate::progress::Progress;

/// A module on a matrix or convolution.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) name: String,
    pub(crate) rank: usize,
    /// [out, rank]
    pub(crate) up: Vec<f32>,
    /// [rank, in * kernel]
    pub(crate) down: Vec<f32>,
    /// Shape of the weight that it is for.
    pub(crate) shape: Vec<usize>,
}

impl Factors {
    fn up_shape(&self) -> Vec<usize> {
        let ones = if self.shape.len() == 4 {
            &[1, 1][..]
        } else {
            &[]
        };
        [&[self.shape[0], self.rank], ones].concat()
    }

    fn down_shape(&self) -> Vec<usize> {
        [&[self.rank], &self.shape[1..]].concat()
    }
}

/// A module on a norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) name: String,
    /// Differences, by the ends of their keys.
    pub(crate) parts: Vec<(&'static str, Vec<f32>)>,
}

/// Writes a LoRA in half or single precision. The scale of every module, alpha over rank, is 1. `version` is what sd-scripts
/// call the base model's version.
///
/// # Errors
/// The file cannot be written, or the user interrupts.
pub(crate) fn write(
    modules: &[Factors],
    norms: &[Norm],
    version: &str,
    single: bool,
    file: StagedFile,
    progress: &dyn Progress,
) -> Result<(), ConvertError> {
    let mut tensors = Vec::new();
    let stored = |shape, values: &[f32]| Stored {
        dtype: if single { Dtype::F32 } else { Dtype::F16 },
        shape,
        bytes: match single {
            true => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            false => values
                .iter()
                .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                .collect(),
        },
    };
    for norm in norms {
        for (part, values) in &norm.parts {
            let tensor = stored(vec![values.len()], values);
            tensors.push((format!("{}.{part}", norm.name), tensor));
        }
    }
    for module in modules {
        for (part, shape, values) in [
            (
                "lora_up.weight",
                module.up_shape(),
                Cow::Borrowed(&module.up[..]),
            ),
            (
                "lora_down.weight",
                module.down_shape(),
                Cow::Borrowed(&module.down[..]),
            ),
            ("alpha", Vec::new(), Cow::Owned(vec![module.rank as f32])),
        ] {
            tensors.push((format!("{}.{part}", module.name), stored(shape, &values)));
        }
    }
    // One entry only: the order of several would vary between runs, and so would the file's hash.
    let version = ("ss_base_model_version".to_owned(), version.to_owned());
    let target = file.target().to_owned();
    file.write(progress, |path| {
        let views = tensors.iter().map(|(name, tensor)| (name, tensor));
        let metadata = Some(HashMap::from([version]));
        safetensors::serialize_to_file(views, metadata, path).map_err(|e| ConvertError::Write {
            path: target,
            source: match e {
                safetensors::SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other),
            },
        })
    })
}

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
