//! What can be done about an error.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use crate::denoise::DenoiseError;
use crate::engine::{EngineError, Ep, setup};
use crate::noise::texture::TextureError;
use crate::pipeline::{PipelineError, RequestError};
use crate::sampler::UnknownSampler;
use crate::sensors::NoSensor;
use crate::sigmas::UnknownSpread;
use crate::text::TextError;
use crate::text::styles::StyleError;

/// What can be done about an error, in words that fit every program. Those that name an option or another program are variants,
/// so that a program can say what that is called there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Remedy {
    /// These words.
    Words(Cow<'static, str>),
    /// Fetch ONNX Runtime's library.
    Setup {
        /// With this provider.
        ep: Ep,
    },
    /// Fetch the library on a machine with a connection.
    SetupByHand {
        /// With this provider.
        ep: Ep,
    },
    /// Let the processor compute what a provider does not take.
    AllowFallback,
    /// Install a library that was got otherwise.
    OwnLibrary,
    /// Load the library of a Python package.
    LibraryOf {
        /// The package, and what to know of it.
        package: &'static str,
    },
    /// Load another plugin, or one for this machine.
    Plugin,
    /// Convert a checkpoint into a model directory.
    Convert {
        /// The checkpoint, if one was given.
        checkpoint: Option<PathBuf>,
    },
    /// Convert a TAESD file into a directory.
    ConvertTaesd,
    /// Convert the model with LoRAs, or go on without those that it does not hold.
    Bake {
        /// Name of the checkpoint that the model was made from, if that is known.
        checkpoint: Option<String>,
        /// LoRAs that the model should hold.
        loras: Vec<WantedLora>,
    },
    /// Convert the model with another VAE.
    OtherVae,
    /// Look for NaN and infinity in the model's weights.
    CheckWeights,
    /// Let the processor compute in single precision.
    ComputeExactly,
    /// Wait for a version that paints into pictures.
    Inpaint,
    /// Wait for a version that edits pictures.
    Edit,
    /// Give a PNG as first noise.
    GivePng,
    /// Decode in bands of rows.
    Tile,
    /// Decode the whole picture at once.
    DoNotTile,
    /// Decode the whole picture at once, or run the native graph.
    TileNatively,
    /// Decode the whole picture at once, or let the processor compute.
    TileOnProcessor,
}

/// A LoRA that a model should hold.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedLora {
    /// Its file's name.
    pub file: String,
    /// Its strength in the UNet.
    pub unet: f64,
    /// Its strength in the text encoders.
    pub text_encoder: f64,
}

impl Remedy {
    /// What can be done about an error of this library, if that is known. Errors of others have none.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        fn is<E: Error + 'static>(
            error: &(dyn Error + 'static),
            hint: impl Fn(&E) -> Option<Remedy>,
        ) -> Option<Remedy> {
            hint(error.downcast_ref()?)
        }
        is(error, PipelineError::hint)
            .or_else(|| is(error, RequestError::hint))
            .or_else(|| is(error, EngineError::hint))
            .or_else(|| is(error, TextError::hint))
            .or_else(|| is(error, StyleError::hint))
            .or_else(|| is(error, DenoiseError::hint))
            .or_else(|| is(error, TextureError::hint))
            .or_else(|| is(error, UnknownSampler::hint))
            .or_else(|| is(error, UnknownSpread::hint))
            .or_else(|| is(error, NoSensor::hint))
    }

    pub(crate) const fn words(words: &'static str) -> Self {
        Self::Words(Cow::Borrowed(words))
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Words(words) => words,
            Self::Setup { ep: Ep::Cpu } => {
                return write!(f, "fetch ONNX Runtime {}", setup::version(Ep::Cpu));
            }
            Self::Setup { ep } => {
                let version = setup::version(*ep);
                return write!(f, "fetch ONNX Runtime {version} with the {ep} provider");
            }
            Self::SetupByHand { ep } => {
                let packages = setup::requirements(*ep).join(", ");
                return write!(
                    f,
                    "fetch the wheels of Python's {packages} on a machine with a connection, and install them here"
                );
            }
            Self::AllowFallback => {
                "the processor computes them unless the provider is to take all of them"
            }
            Self::OwnLibrary => "install a library or a wheel that you have",
            Self::LibraryOf { package } => {
                return write!(f, "give the library of Python's {package}");
            }
            Self::Plugin => {
                "a plugin is a library for this machine's devices with a provider of ONNX Runtime in it, such as that of Python's `onnxruntime-ep-openvino` for Intel's"
            }
            Self::Convert { checkpoint: None } => "give a converted model",
            Self::Convert { .. } => "convert it, then give the folder with the result",
            Self::ConvertTaesd => "give a folder that a TAESD file was converted to",
            Self::Bake { loras, .. } => {
                let wanted = |lora: &WantedLora| {
                    let WantedLora {
                        file,
                        unet,
                        text_encoder,
                    } = lora;
                    if unet == text_encoder {
                        format!("{file} at strength {unet}")
                    } else {
                        format!(
                            "{file} at strength {unet} in the UNet and {text_encoder} in the text encoder"
                        )
                    }
                };
                let loras: Vec<String> = loras.iter().map(wanted).collect();
                let loras = loras.join(" and ");
                return write!(
                    f,
                    "convert the model with {loras}, or allow that such tags are ignored"
                );
            }
            Self::OtherVae => {
                "the VAE's weights may be damaged; the model can be converted with another one"
            }
            Self::CheckWeights => {
                "the model's weights may be damaged, as a strict conversion tells, or too large to be computed in anything but f32"
            }
            Self::ComputeExactly => {
                "the processor computes in single precision, which holds larger numbers; the model's weights may be damaged if that fails, too"
            }
            Self::Inpaint => "it is made for inpainting, which this version does not do yet",
            Self::Edit => "it edits pictures, which this version does not do yet",
            Self::GivePng => "a PNG with several colours is expected",
            Self::Tile => "it fits if it is decoded in bands of rows",
            Self::TileNatively => "run the native graph, or decode the picture as a whole",
            Self::TileOnProcessor => {
                "let the processor compute, or decode the picture as a whole"
            }
            Self::DoNotTile => {
                "convert the checkpoint again if the directory is at fault, or decode the picture as a whole"
            }
        })
    }
}
