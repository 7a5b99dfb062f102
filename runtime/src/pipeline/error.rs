//! What can be wrong with a request or its execution.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::Remedy;
use crate::denoise::DenoiseError;
use crate::engine::{EngineError, Ep};
use crate::noise::texture::TextureError;
use crate::profile::ConfigError;
use crate::text::TextError;

/// A request that makes no sense, known before anything is opened. Messages name fields of [`super::Request`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A field was given what it cannot hold.
    #[error("{field}: {problem}")]
    Value {
        /// The field, or where it would be.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A side is no multiple of 8 or out of range.
    #[error("{side} {value}: pictures have sides of 64 to 4096 pixels that are multiples of 8")]
    Size {
        /// The field.
        side: &'static str,
        /// What was asked for.
        value: usize,
        /// What could be asked for.
        nearest: usize,
    },
    /// A number is out of range.
    #[error("{name} {value} is out of range: {least} to {most}")]
    Range {
        /// The field.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// The least that can be asked for.
        least: f64,
        /// The most that can be asked for.
        most: f64,
    },
    /// A variation without a seed.
    #[error("subseed_strength needs a subseed")]
    NoSubseed,
    /// A sampler whose levels cannot be spread was given a sigma schedule.
    #[error(
        "under {profile}'s rules {sampler} has noise levels of its own; the schedule {spread} has no effect on it"
    )]
    Spread {
        /// The sampler.
        sampler: &'static str,
        /// The schedule.
        spread: &'static str,
        /// The profile.
        profile: &'static str,
    },
    /// A sampler was given a sigma schedule that the profile's program does not have for it.
    #[error("under {profile}'s rules {sampler} has no schedule {spread}")]
    UnknownSpread {
        /// The sampler.
        sampler: &'static str,
        /// The schedule.
        spread: &'static str,
        /// The profile.
        profile: &'static str,
        /// The schedules that it has.
        known: Vec<&'static str>,
    },
    /// A sampler that the profile's program does not have.
    #[error("{sampler} cannot be run under {profile}'s rules")]
    Sampler {
        /// The sampler.
        sampler: &'static str,
        /// The profile.
        profile: &'static str,
        /// Profiles that have it.
        others: Vec<&'static str>,
    },
    /// A rule for weights in prompts under a profile whose prompts have none.
    #[error("emphasis has no effect under {profile}'s rules: prompts are plain text there")]
    Emphasis {
        /// Whose rules.
        profile: &'static str,
    },
    /// A sampler was given an option that it does not have.
    #[error("{option} has no effect on {sampler}")]
    Knob {
        /// The sampler.
        sampler: &'static str,
        /// The field.
        option: &'static str,
    },
}

impl RequestError {
    /// The request's error that an error is or stands for.
    #[must_use]
    pub fn of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Self> {
        match error.downcast_ref() {
            Some(PipelineError::Request(error)) => Some(error),
            _ => error.downcast_ref(),
        }
    }

    /// The field with the wrong value, if it is one alone.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Value { field, .. } => Some(field),
            Self::Size { side: name, .. }
            | Self::Range { name, .. }
            | Self::Knob { option: name, .. } => Some(name),
            Self::NoSubseed
            | Self::Spread { .. }
            | Self::UnknownSpread { .. }
            | Self::Sampler { .. }
            | Self::Emphasis { .. } => None,
        }
    }

    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        let words = match self {
            Self::Size { nearest, .. } => format!("{nearest} is the nearest"),
            Self::Spread { .. } => {
                return Some(Remedy::words(
                    "leave the schedule out, or use Euler or DPM++ 2M",
                ));
            }
            Self::UnknownSpread { known, .. } => format!("it has {}", known.join(", ")),
            Self::Sampler { others, .. } => {
                format!("it can under those of {}", others.join(" and "))
            }
            Self::Value { .. }
            | Self::Range { .. }
            | Self::NoSubseed
            | Self::Emphasis { .. }
            | Self::Knob { .. } => {
                return None;
            }
        };
        Some(Remedy::Words(words.into()))
    }
}

/// A request that could not be fulfilled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The request makes no sense.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// ONNX Runtime or a model file.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A prompt.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The UNet.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// The scheduler's configuration.
    #[error("{}: {source}", path.display())]
    Scheduler {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The directory holds a pipeline that is not run yet.
    #[error("{}: {kind}, which makes no pictures from text", path.display())]
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// What it holds.
        kind: String,
        /// What can be done.
        remedy: Remedy,
    },
    /// A refiner does not fit the model whose pictures it should end.
    #[error(
        "{}: it cannot end the pictures of {}: its {what} is {found}; expected {expected}",
        path.display(),
        base.display()
    )]
    Refiner {
        /// The refiner's directory.
        path: PathBuf,
        /// The base model's.
        base: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the refiner has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// A tiny autoencoder does not decode the model's latents.
    #[error(
        "{}: the latents that it decodes {found}; those of {} {expected}",
        path.display(),
        base.display()
    )]
    OtherLatents {
        /// Its directory.
        path: PathBuf,
        /// The model's.
        base: PathBuf,
        /// What its latents are.
        found: String,
        /// What the model's are.
        expected: String,
    },
    /// The folder is no model directory.
    #[error("{}: {problem}", path.display())]
    NotAModel {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What can be done.
        remedy: Remedy,
    },
    /// A picture that the first noise should look like.
    #[error(transparent)]
    Texture(#[from] TextureError),
    /// A file with the first noise does not fit.
    #[error("{}: {problem}", path.display())]
    InitNoise {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nobody knows the colours of such latents.
    #[error("{}: there are no previews of latents with {channels} channels", path.display())]
    NoPreview {
        /// The model's directory.
        path: PathBuf,
        /// What it has.
        channels: usize,
    },
    /// Latents are no numbers any more.
    #[error("step {step}: {source} ({sampler}, computed in {} by {ep})", compute.name())]
    Denoising {
        /// What happened.
        source: DenoiseError,
        /// The step, from 1.
        step: usize,
        /// The solver.
        sampler: &'static str,
        /// Numbers that the UNet was computed in.
        compute: sd_kernels::Compute,
        /// Who computed it.
        ep: Ep,
    },
    /// The decoder returned NaN or infinity.
    #[error("the VAE decoder returned {count} values that are NaN or infinite")]
    NonFinite {
        /// How many.
        count: usize,
        /// Whether its graph is one of this program's, which computes in single precision unless asked for other numbers.
        is_ours: bool,
    },
    /// The decoder returned something that is no picture.
    #[error("the VAE decoder returned {found:?}; expected {expected:?}")]
    Shape {
        /// What came.
        found: Vec<usize>,
        /// What should have come.
        expected: Vec<usize>,
    },
    /// The machine has not enough memory, or the process's control group.
    #[error(
        "{width}x{height} takes about {} of memory; there are {}",
        size(*needed),
        size(*limit)
    )]
    Memory {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        limit: u64,
        /// Side of the largest square that fits, if one does.
        side_that_fits: Option<usize>,
        /// Whether it would fit if it were decoded in bands of rows.
        fits_in_bands: bool,
    },
    /// A dump would take the place of a file that this program did not write.
    #[error("{}: it exists and is no dump", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e6 => format!("{:.0} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    }
}

impl PipelineError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::Request(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::Denoise(error) => error.hint(),
            Self::Texture(error) => error.hint(),
            Self::Unsupported { remedy, .. } | Self::NotAModel { remedy, .. } => {
                Some(remedy.clone())
            }
            Self::Refiner { .. } => Some(Remedy::words(
                "a refiner has the family, latent space and prediction type of its base model; SDXL's refiner goes with SDXL",
            )),
            Self::OtherLatents { .. } => Some(Remedy::words(
                "TAESD decodes Stable Diffusion 1 and 2, TAESDXL decodes SDXL",
            )),
            Self::Foreign { .. } => Some(Remedy::words("remove it, or give another name")),
            Self::Denoising {
                source: DenoiseError::NonFinite { .. },
                compute,
                ep,
                ..
            } if (*compute, *ep) != (sd_kernels::Compute::F32, Ep::Cpu) => {
                Some(Remedy::ComputeExactly)
            }
            Self::Denoising { source, .. } => source.hint(),
            Self::Memory {
                fits_in_bands: true,
                ..
            } => Some(Remedy::Tile),
            Self::NonFinite { is_ours: true, .. } => Some(Remedy::OtherVae),
            Self::NonFinite { is_ours: false, .. } => Some(Remedy::words(
                "graphs of other programs may compute in half precision, which the VAEs of some models exceed (SDXL's own is one): convert the checkpoint with this project's converter, or give a VAE that is made for half precision",
            )),
            Self::Memory { side_that_fits, .. } => Some(match side_that_fits {
                Some(side) => Remedy::Words(format!("{side}x{side} fits").into()),
                None => Remedy::words("this model needs a machine with more memory"),
            }),
            _ => None,
        }
    }
}
