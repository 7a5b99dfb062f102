//! What `sdbench determinism` prints, as types.

use serde::{Deserialize, Serialize};

use super::measure::Distance;
use super::recording::{About, Machine};
use super::way::Way;
use crate::quality::Difference;

/// Version of the layout: changes when a name goes or means something else.
pub(crate) const SCHEMA: u32 = 1;

/// Ways of making one picture against a reference.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`SCHEMA`]
    pub(crate) schema: u32,
    /// `determinism`
    pub(crate) command: String,
    /// Version of the program that compared.
    pub(crate) version: String,
    /// The request, with nothing left open that a way does not choose.
    pub(crate) request: serde_json::Map<String, serde_json::Value>,
    /// Width and height of the picture in pixels.
    pub(crate) size: [usize; 2],
    pub(crate) reference: Side,
    /// Relative L2 distance of states behind which a loop is past the threshold.
    pub(crate) threshold: f64,
    /// PSNR in dB and SSIM from which on pictures are visually equal.
    pub(crate) visually_equal: [f64; 2],
    pub(crate) pairs: Vec<Pair>,
    /// Variants that could not be recorded.
    #[serde(default)]
    pub(crate) failed: Vec<Failure>,
}

/// A variant that could not be recorded.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) way: Way,
    /// Who computes in which numbers, and why that cannot be.
    pub(crate) problem: String,
}

/// Who made a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// For people: all that the reference is, and what a variant differs in.
    pub(crate) name: String,
    /// Version of the program that recorded it.
    pub(crate) version: String,
    pub(crate) way: Way,
    /// Dialect of the UNet's graph.
    pub(crate) graph: String,
    /// What its products were computed in.
    pub(crate) compute: String,
    /// What the UNet's weights are stored in.
    pub(crate) storage: Vec<String>,
    pub(crate) machine: Machine,
    /// SHA-256 of the files with weights.
    pub(crate) weights: std::collections::BTreeMap<String, String>,
}

impl Side {
    /// The reference, or a variant of one.
    pub(crate) fn of(about: &About, reference: Option<&About>) -> Self {
        Self {
            name: name(about, reference),
            version: about.version.clone(),
            way: about.way.clone(),
            graph: about.graph.clone(),
            compute: about.compute.clone(),
            storage: about.storage.clone(),
            machine: about.machine.clone(),
            weights: about.model.weights.clone(),
        }
    }
}

/// What a way is called: all that a reference is, and what a variant differs in.
fn name(about: &About, reference: Option<&About>) -> String {
    let parts = |about: &About| {
        let way = &about.way;
        let folder = way.model.file_name().unwrap_or(way.model.as_os_str());
        let threads = match about.machine.threads {
            1 => "1 thread".to_owned(),
            threads => format!("{threads} threads"),
        };
        let storage = match about.storage.as_slice() {
            [] => String::new(),
            storage => format!("{} weights", storage.join("/").to_lowercase()),
        };
        [
            folder.to_string_lossy().into_owned(),
            storage,
            way.ep.clone(),
            about.compute.clone(),
            way.ep_options.join(" "),
            format!("{} graphs", about.graph),
            threads,
            about.machine.instructions.clone(),
            format!("{} noise", way.rng),
            about.machine.processor.clone(),
            format!("version {}", about.version),
        ]
    };
    let mut said: Vec<String> = match reference {
        Some(reference) => {
            let pairs = parts(about).into_iter().zip(parts(reference));
            pairs.filter_map(|(a, b)| (a != b).then_some(a)).collect()
        }
        None => parts(about).into(),
    };
    said.retain(|part| !part.is_empty());
    match said.is_empty() {
        true => "the same again".to_owned(),
        false => said.join(", "),
    }
}

/// A variant against the reference.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) variant: Side,
    pub(crate) verdict: Verdict,
    /// What changed the picture most; none if nothing did.
    pub(crate) cause: Option<Cause>,
    /// The same without rounding, which makes whole levels of what others changed by less.
    pub(crate) origin: Option<Cause>,
    /// Every cause, in the order of a run.
    pub(crate) shares: Vec<Share>,
    pub(crate) picture: Pictures,
    /// The first noise.
    pub(crate) noise: Distance,
    /// What the text encoders say, all prompts together.
    pub(crate) text: Distance,
    /// One call of the UNet on the same recorded input, without guidance.
    pub(crate) unet: UnetCall,
    /// Estimates of clean latents for the reference's states, call by call.
    pub(crate) open_loop: Loop,
    /// States after steps that began with the reference's noise and prompts.
    pub(crate) closed_loop: Loop,
    /// States after steps of the whole run, with noise and prompts of its own.
    pub(crate) whole_run: Loop,
    /// The decoder's colours for the reference's clean latents.
    pub(crate) vae: Distance,
    pub(crate) rounding: Rounding,
}

impl Pair {
    /// The largest cause for people; none if nothing changed.
    pub(crate) fn cause_words(&self) -> Option<String> {
        let cause = self.cause?;
        let share = self.shares.iter().find(|share| share.cause == cause)?;
        let origin = self.origin.filter(|origin| *origin != cause);
        let of = origin.map(|origin| format!(" what the {} changed", origin.words()));
        let of = of.unwrap_or_default();
        Some(format!("{}{of}, {:.0} %", cause.words(), share.percent))
    }

    /// For people, in a line.
    pub(crate) fn summary(&self) -> String {
        let Pictures { difference, .. } = &self.picture;
        let psnr = difference
            .psnr_db
            .map(|psnr| format!(" ({psnr:.1} dB, SSIM {:.4})", difference.ssim));
        let cause = self.cause_words().map(|words| format!(": {words}"));
        format!(
            "{}: {}{}{}",
            self.variant.name,
            self.verdict.words(),
            psnr.unwrap_or_default(),
            cause.unwrap_or_default()
        )
    }
}

/// How alike two pictures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All bytes of the pictures are the same.
    BitEqual,
    /// Nobody sees a difference.
    VisuallyEqual,
    Different,
}

impl Verdict {
    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::BitEqual => "bit-equal",
            Self::VisuallyEqual => "visually equal",
            Self::Different => "different",
        }
    }
}

/// What can change a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    Noise,
    TextEncoder,
    Unet,
    Vae,
    Rounding,
}

impl Cause {
    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Noise => "first noise",
            Self::TextEncoder => "text encoder",
            Self::Unet => "UNet",
            Self::Vae => "VAE",
            Self::Rounding => "rounding",
        }
    }
}

/// A cause's part in a picture's change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) cause: Cause,
    /// Mean square of the change, in levels of 255, when the variant's part takes the place of the reference's.
    pub(crate) mean_square: f64,
    /// Of the sum over all causes.
    pub(crate) percent: f64,
}

/// Two pictures of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pictures {
    #[serde(flatten)]
    pub(crate) difference: Difference,
    /// Bits of the perceptual hash, of 64, that differ.
    pub(crate) hash_bits: u32,
    /// Bytes that differ.
    pub(crate) bytes: usize,
    /// Most that a byte differs.
    pub(crate) most_levels: u8,
}

/// One call of the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UnetCall {
    /// Its number in the run, from 0.
    pub(crate) call: usize,
    #[serde(flatten)]
    pub(crate) distance: Distance,
}

/// Distances over a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Loop {
    /// By calls or steps.
    pub(crate) distances: Vec<Distance>,
    /// The first of them past the threshold, from 0.
    pub(crate) first_past: Option<usize>,
}

/// What rounding to 8 bits does to small differences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rounding {
    /// The decoded pictures in levels of 255 before rounding.
    pub(crate) before: Distance,
    /// PSNR of them in dB; none if they are equal.
    pub(crate) psnr_db: Option<f64>,
    /// Bytes that are equal although the numbers before rounding are not.
    pub(crate) hidden_bytes: usize,
    /// Bytes that differ.
    pub(crate) shown_bytes: usize,
}
