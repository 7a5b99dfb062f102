//! Whose rules are followed: everything on which programs differ, one file per program.
//!
//! Programs that run the same solver on the same model draw different pictures, since they differ in the table of noise
//! levels, its spacing, the last step, the scale of the first noise, the reading of prompts and the rounding of pixels.

mod a1111;
mod comfyui;
mod diffusers;
mod scheduler_config;

pub use a1111::A1111;
pub use comfyui::COMFYUI;
pub use diffusers::DIFFUSERS;
pub use scheduler_config::ConfigError;

use serde_json::Value;

use crate::sampler::{Options, Sampler, Schedule};
use crate::sigmas::Spread;
use crate::text::Emphasis;
use crate::text::comments::{comments, strip};

/// Every profile.
pub static PROFILES: [Profile; 3] = [&A1111, &COMFYUI, &DIFFUSERS];

/// A program whose rules are followed.
pub type Profile = &'static Rules;

/// The rules of a program.
#[derive(Debug)]
pub struct Rules {
    /// The name on command lines.
    pub name: &'static str,
    /// The solver of a request that names none.
    pub sampler: fn(&Trained<'_>) -> Result<Sampler, ConfigError>,
    /// The solver that the program runs for the one that is asked for; none if it has nothing of the kind.
    pub solver: fn(Sampler) -> Option<Sampler>,
    /// A solver's options, with the program's own for those left open.
    pub options: fn(Sampler, Options) -> Options,
    /// What is added to a picture's seed for a second generator, which steps draw from; none if the first one goes on.
    pub step_seed: Option<u64>,
    /// Whether the pictures of a batch are parts of one draw from one seed, instead of those of successive seeds.
    pub batch_is_one_draw: bool,
    /// The spreads that users may choose from for this solver's noise levels; none if it has levels of its own.
    pub spreads: fn(Sampler) -> &'static [Spread],
    /// The spread that a solver with a choice gets unless another is asked for.
    pub automatic: fn(Sampler, &Trained<'_>) -> Result<Spread, ConfigError>,
    /// The steps of a solver: `count` of them, spread as asked for if it has no levels of its own.
    pub schedule: fn(Sampler, Option<Spread>, usize, &Trained<'_>) -> Result<Schedule, ConfigError>,
    /// What a user should know of a solver's schedule.
    pub notes: fn(Sampler, &Trained<'_>) -> Vec<String>,
    /// The guidance that is applied for the one that is asked for, unless the network embeds it.
    pub guidance_scale: fn(f64) -> f64,
    /// Whether a refiner is a pipeline of its own: the solver starts anew there, without memory of the steps before, and the
    /// negative prompt is told of no crop.
    pub refiner_is_apart: bool,
    /// Whether prompts may have comments, from a `#` to the end of its line.
    pub has_comments: bool,
    /// How prompts become tokens.
    pub prompts: Prompts,
    /// The steps that edits of a prompt are counted in, for a solver with so many steps.
    pub edited_over: fn(Sampler, usize) -> usize,
    /// How weights in prompts act unless another rule is asked for.
    pub emphasis: Emphasis,
    /// Whether SDXL gets zeros instead of the embedding of this negative prompt; the second value is what the model's
    /// `force_zeros_for_empty_prompt` says.
    pub zero_negative: fn(Option<&str>, bool) -> bool,
    /// The layer of SDXL's text encoders, counted from the end, for a clip skip.
    pub clip_skip_xl: fn(usize) -> usize,
    /// Whether clip skip acts on negative prompts, too.
    pub clip_skip_negative: bool,
    /// Whether clip skip acts on `OpenCLIP`'s text encoder.
    pub clip_skip_open_clip: bool,
    /// A decoded value in 0..=255 to a pixel's.
    pub pixel: fn(f32) -> u8,
}

impl Rules {
    /// Leaves out the comments of a prompt that somebody wrote, if the program has comments, and returns them.
    #[must_use]
    pub fn strip_comments(&self, prompt: &mut String) -> Vec<String> {
        if !self.has_comments {
            return Vec::new();
        }
        let found = comments(prompt).map(str::to_owned).collect();
        *prompt = strip(prompt);
        found
    }
}

/// What a model says of the noise it was trained on.
#[derive(Clone, Copy, Debug)]
pub struct Trained<'a> {
    /// Its `scheduler_config.json`.
    pub config: &'a Value,
    /// Whether it is an SDXL, which has tables of its own.
    pub xl: bool,
}

/// How prompts become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompts {
    /// A1111's attention syntax, and as many chunks as it takes.
    Attention,
    /// `ComfyUI`'s round brackets, and as many chunks as it takes.
    Comfyui,
    /// Plain text, cut after one chunk.
    Plain,
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A name that is no profile's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no profile is called `{name}`; there are {}", PROFILES.map(|p| p.name).join(", "))]
pub struct UnknownProfile {
    name: String,
}

/// The profile of a name.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> Result<Profile, UnknownProfile> {
    let found = PROFILES.into_iter().find(|profile| profile.name == name);
    found.ok_or_else(|| UnknownProfile {
        name: name.to_owned(),
    })
}
