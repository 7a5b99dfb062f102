//! What can be wrong with a request or its execution.

use std::io;
use std::path::PathBuf;

use crate::denoise::DenoiseError;
use crate::engine::EngineError;
use crate::noise::texture::TextureError;
use crate::profile::ConfigError;
use crate::text::TextError;

/// A request that makes no sense, known before anything is opened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A side is no multiple of 8 or out of range.
    #[error(
        "{side} {value}: pictures have sides of 64 to 4096 pixels that are multiples of 8\nhint: {nearest} is the nearest"
    )]
    Size {
        /// `width` or `height`.
        side: &'static str,
        /// What was asked for.
        value: usize,
        /// What could be asked for.
        nearest: usize,
    },
    /// A number is out of range.
    #[error("{name} {value} is out of range: {least} to {most}")]
    Range {
        /// The option.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// The least that can be asked for.
        least: f64,
        /// The most that can be asked for.
        most: f64,
    },
    /// A variation without a seed.
    #[error("subseed-strength needs a subseed")]
    NoSubseed,
    /// A sampler whose levels cannot be spread was given a sigma schedule.
    #[error(
        "under {profile}'s rules {sampler} has noise levels of its own; the schedule {spread} has no effect on it\nhint: leave the schedule out, or use Euler or DPM++ 2M"
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
    #[error(
        "under {profile}'s rules {sampler} has no schedule {spread}\nhint: it has {}",
        known.join(", ")
    )]
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
    #[error("{sampler} cannot be run under {profile}'s rules\nhint: it can under those of {}", others.join(" and "))]
    Sampler {
        /// The sampler.
        sampler: &'static str,
        /// The profile.
        profile: &'static str,
        /// Profiles that have it.
        others: Vec<&'static str>,
    },
    /// A sampler was given an option that it does not have.
    #[error("{option} has no effect on {sampler}")]
    Knob {
        /// The sampler.
        sampler: &'static str,
        /// The option.
        option: &'static str,
    },
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
    #[error("{}: {kind}, which makes no pictures from text\nhint: {hint}", path.display())]
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// What it holds.
        kind: String,
        /// What to do.
        hint: &'static str,
    },
    /// The folder is no model directory.
    #[error("{}: {problem}\nhint: `sdconvert build CHECKPOINT -o DIR` makes model directories", path.display())]
    NotAModel {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
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
    /// The decoder returned NaN or infinity.
    #[error(
        "the VAE decoder returned {count} values that are NaN or infinite\nhint: the VAE's weights may be damaged; `sdconvert build --vae FILE` takes another one"
    )]
    NonFinite {
        /// How many.
        count: usize,
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
        "{width}x{height} takes about {:.1} GB of memory; there are {:.1} GB\nhint: {}",
        *needed as f64 / 1e9,
        *limit as f64 / 1e9,
        smaller(*side_that_fits)
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

fn smaller(side: Option<usize>) -> String {
    match side {
        Some(side) => format!("{side}x{side} fits"),
        None => "this model needs a machine with more memory".to_owned(),
    }
}
