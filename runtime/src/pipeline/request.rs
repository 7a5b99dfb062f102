//! What is asked for. Nothing is opened here.

use std::iter;
use std::path::PathBuf;

use sd_kernels::Isa;
use sd_models::family::ModelFamily;
use serde::{Deserialize, Serialize};

use super::{RequestError, json};
use crate::engine::{Compute, Dialect};
use crate::noise::Rng;
use crate::noise::texture::Texture;
use crate::profile::{A1111, PROFILES, Profile, Prompts};
use crate::sampler::{Knob, Options, Sampler};
use crate::sigmas::Spread;
use crate::text::Emphasis;

/// A wish for pictures. In JSON it is an object with the fields' names; see [`Request::from_json`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// What should be seen.
    pub prompt: String,
    /// What should not be seen. Programs differ in whether none is the same as an empty one.
    pub negative_prompt: Option<String>,
    /// Width in pixels; the model's default if absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's default if absent.
    pub height: Option<usize>,
    /// Steps of the sampler, 1 to 1000; what the model is made for if absent, or 20.
    pub steps: Option<usize>,
    /// How strongly the prompt is followed; 1 is without guidance, below 1 it depends on the profile. What the model is made
    /// for if absent, or 7.
    pub guidance_scale: Option<f64>,
    /// How much of the prompt's spread guidance gives back, 0 to 1.
    pub guidance_rescale: f64,
    /// How weights in prompts act; the profile's rule if absent.
    pub emphasis: Option<Emphasis>,
    /// What an SDXL is told of the picture.
    pub micro: Micro,
    /// Where a refiner takes over, if there is one: the share of the noise that the base model removes, 0 to 1.
    pub refiner_start: f64,
    /// Aesthetic scores that an SDXL refiner is told, of prompt and negative prompt.
    pub aesthetic: [f64; 2],
    /// Seed of the first picture; the next ones count on, unless they are variations or the profile draws for all at once.
    pub seed: u64,
    /// Seed of the first picture's variation; the next ones count on.
    pub subseed: Option<u64>,
    /// How far noise goes from the seed's towards the variation's: 0 is not at all, 1 all the way.
    pub subseed_strength: f64,
    /// Width and height of a picture whose noise, and so its composition, is put into the middle.
    pub seed_resize: Option<[usize; 2]>,
    /// What is added to the seed for noise that solvers draw; A1111's "eta noise seed delta".
    pub ensd: i64,
    /// What the first noise looks like.
    #[serde(with = "json::noise")]
    pub noise: Texture<PathBuf>,
    /// How many pictures.
    pub batch: usize,
    /// The solver; what the model is made for if absent, or the profile's default.
    #[serde(with = "json::sampler")]
    pub sampler: Option<Sampler>,
    /// The solver's options.
    pub options: Options,
    /// How noise levels are spread; the profile's choice if absent.
    #[serde(with = "json::spread")]
    pub spread: Option<Spread>,
    /// Whose rules are followed.
    #[serde(with = "json::profile")]
    pub profile: Profile,
    /// Where noise comes from.
    #[serde(with = "json::rng")]
    pub rng: Rng,
    /// Which layer of the text encoder is used, counted from the end: 1 is the last. Profiles differ in what it acts on.
    pub clip_skip: usize,
    /// A file with the first noise, instead of drawing it.
    pub initial_noise: Option<PathBuf>,
    /// Whether prompts may ask for LoRAs that the model does not hold, which then have no effect.
    pub ignore_lora_tags: bool,
    /// Which of a network's graphs is run.
    pub graph: Dialect,
    /// What products are computed in.
    pub compute: Compute,
    /// Whether pictures are decoded in bands of rows, which takes less memory. Only native graphs do that.
    pub tile: bool,
}

/// Longest prompt in bytes. It is some hundred times what text encoders see at once.
const LONGEST_PROMPT: usize = 100_000;

/// What SDXL and its refiner are told of a picture, beside the prompt (Podell et al. 2023, arXiv:2307.01952, section 2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Micro {
    /// Width and height of the picture before cropping; the picture's own if absent.
    pub original_size: Option<[usize; 2]>,
    /// Width and height that are aimed at; the picture's own if absent.
    pub target_size: Option<[usize; 2]>,
    /// Left and top edge of the crop in pixels.
    pub crop: [usize; 2],
}

/// Largest side and edge that an SDXL is told, in pixels: `ComfyUI`'s limit.
const LARGEST_TOLD: f64 = 16_384.0;

impl Micro {
    fn check(self) -> Result<(), RequestError> {
        for (names, sides) in [
            (
                ["micro.original_size[0]", "micro.original_size[1]"],
                self.original_size,
            ),
            (
                ["micro.target_size[0]", "micro.target_size[1]"],
                self.target_size,
            ),
        ] {
            for (name, side) in names.into_iter().zip(sides.into_iter().flatten()) {
                in_range(name, side as f64, 1.0, LARGEST_TOLD)?;
            }
        }
        in_range("micro.crop[0]", self.crop[0] as f64, 0.0, LARGEST_TOLD)?;
        in_range("micro.crop[1]", self.crop[1] as f64, 0.0, LARGEST_TOLD)
    }

    /// The numbers as a family takes them: heights before widths, tops before lefts. A refiner is told an aesthetic score
    /// in place of the size that is aimed at.
    pub(super) fn time_ids(
        self,
        family: ModelFamily,
        size: [usize; 2],
        aesthetic: f64,
    ) -> Option<Vec<f32>> {
        family.time_ids()?;
        let original = self.original_size.unwrap_or(size);
        let target = self.target_size.unwrap_or(size);
        let flat = |pairs: &[[usize; 2]]| -> Vec<f32> {
            let pairs = pairs.iter();
            pairs.flat_map(|&[x, y]| [y as f32, x as f32]).collect()
        };
        Some(match family {
            ModelFamily::SdxlRefiner => {
                let mut ids = flat(&[original, self.crop]);
                ids.push(aesthetic as f32);
                ids
            }
            _ => flat(&[original, self.crop, target]),
        })
    }
}

impl Default for Request {
    /// A1111's settings.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: None,
            width: None,
            height: None,
            steps: None,
            guidance_scale: None,
            guidance_rescale: 0.0,
            emphasis: None,
            micro: Micro::default(),
            refiner_start: 0.8,
            aesthetic: [6.0, 2.5],
            seed: 0,
            subseed: None,
            subseed_strength: 0.0,
            seed_resize: None,
            ensd: 0,
            noise: Texture::White,
            batch: 1,
            sampler: None,
            options: Options::default(),
            spread: None,
            profile: &A1111,
            rng: Rng::TorchCpu,
            clip_skip: 1,
            initial_noise: None,
            ignore_lora_tags: false,
            graph: Dialect::Auto,
            compute: Compute::F32,
            tile: false,
        }
    }
}

impl Request {
    /// Leaves out the comments of what somebody wrote, if the profile's program has comments, and returns them. The texts of
    /// pictures have none: what looks like one was a part of the prompt.
    pub fn strip_comments(&mut self) -> Vec<String> {
        let prompts = iter::once(&mut self.prompt).chain(&mut self.negative_prompt);
        let stripped = prompts.flat_map(|prompt| self.profile.strip_comments(prompt));
        stripped.collect()
    }

    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// A number out of range, or options that exclude each other.
    pub fn check(&self) -> Result<(), RequestError> {
        for (field, text) in [
            ("prompt", Some(&self.prompt)),
            ("negative_prompt", self.negative_prompt.as_ref()),
        ] {
            if let Some(length) = text
                .map(String::len)
                .filter(|&length| length > LONGEST_PROMPT)
            {
                return Err(RequestError::Value {
                    field: field.to_owned(),
                    problem: format!("{length} bytes of text; at most {LONGEST_PROMPT} are read"),
                });
            }
        }
        for (side, value) in [("width", self.width), ("height", self.height)] {
            if let Some(value) = value {
                check_side(side, value)?;
            }
        }
        if let Some(steps) = self.steps {
            in_range("steps", steps as f64, 1.0, 1000.0)?;
        }
        in_range("batch", self.batch as f64, 1.0, 1000.0)?;
        let last = match self.profile.batch_is_one_draw {
            true => 0,
            false => self.batch as u64 - 1,
        };
        if self.seed.checked_add(last).is_none() {
            return Err(RequestError::Value {
                field: "seed".to_owned(),
                problem: format!(
                    "the seed of the last picture is out of range: 0 to {}",
                    u64::MAX
                ),
            });
        }
        in_range("clip_skip", self.clip_skip as f64, 1.0, 12.0)?;
        if let Some(scale) = self.guidance_scale {
            in_range("guidance_scale", scale, 0.0, 100.0)?;
        }
        in_range("refiner_start", self.refiner_start, 0.0, 1.0)?;
        in_range("aesthetic[0]", self.aesthetic[0], 0.0, 10.0)?;
        in_range("aesthetic[1]", self.aesthetic[1], 0.0, 10.0)?;
        in_range("guidance_rescale", self.guidance_rescale, 0.0, 1.0)?;
        in_range("subseed_strength", self.subseed_strength, 0.0, 1.0)?;
        if self.subseed_strength > 0.0 && self.subseed.is_none() {
            return Err(RequestError::NoSubseed);
        }
        if let Some([width, height]) = self.seed_resize {
            check_side("seed_resize[0]", width)?;
            check_side("seed_resize[1]", height)?;
        }
        self.micro.check()?;
        if self.emphasis.is_some() && self.profile.prompts == Prompts::Plain {
            return Err(RequestError::Emphasis {
                profile: self.profile.name,
            });
        }
        let options = self.options;
        if let Some(eta) = options.eta {
            in_range("options.eta", eta, 0.0, 1.0)?;
        }
        in_range("options.s_noise", options.s_noise, 0.0, 10.0)?;
        in_range("options.s_churn", options.s_churn, 0.0, 1000.0)?;
        in_range("options.s_tmin", options.s_tmin, 0.0, f64::INFINITY)?;
        in_range("options.s_tmax", options.s_tmax, 0.0, f64::INFINITY)?;
        if self.compute.on(Isa::detect()).is_none() {
            return Err(RequestError::Value {
                field: "compute".to_owned(),
                problem: self.compute.needs().to_owned(),
            });
        }
        if self.compute.is_native() && self.graph == Dialect::Portable {
            return Err(RequestError::Value {
                field: "compute".to_owned(),
                problem: "portable graphs compute in f32 only".to_owned(),
            });
        }
        match self.sampler {
            Some(sampler) => self.solver(sampler).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The solver that runs for one that is asked for; checks what depends on it.
    ///
    /// # Errors
    /// The profile's program has none, or no such spread for it, or an option has no effect on it.
    pub(super) fn solver(&self, asked: Sampler) -> Result<Sampler, RequestError> {
        let profile = self.profile;
        let sampler = (profile.solver)(asked).ok_or_else(|| {
            let others = PROFILES
                .iter()
                .filter(|other| (other.solver)(asked).is_some());
            RequestError::Sampler {
                sampler: asked.name,
                profile: profile.name,
                others: others.map(|other| other.name).collect(),
            }
        })?;
        if let Some(spread) = self.spread {
            let known = (profile.spreads)(sampler);
            if known.is_empty() {
                return Err(RequestError::Spread {
                    sampler: sampler.name,
                    spread: spread.name(),
                    profile: profile.name,
                });
            }
            if !known.contains(&spread) {
                return Err(RequestError::UnknownSpread {
                    sampler: sampler.name,
                    spread: spread.name(),
                    profile: profile.name,
                    known: known.iter().map(|known| known.name()).collect(),
                });
            }
        }
        let (options, default) = (self.options, Options::default());
        for (knob, option, changed) in [
            (Knob::Eta, "options.eta", options.eta.is_some()),
            (
                Knob::Noise,
                "options.s_noise",
                options.s_noise != default.s_noise,
            ),
            (
                Knob::Churn,
                "options.s_churn",
                options.s_churn != default.s_churn,
            ),
            (
                Knob::Churn,
                "options.s_tmin",
                options.s_tmin != default.s_tmin,
            ),
            (
                Knob::Churn,
                "options.s_tmax",
                options.s_tmax != default.s_tmax,
            ),
        ] {
            if changed && !sampler.knobs.contains(&knob) {
                return Err(RequestError::Knob {
                    sampler: sampler.name,
                    option,
                });
            }
        }
        Ok(sampler)
    }
}

/// Sides that models can make.
pub(super) fn check_side(side: &'static str, value: usize) -> Result<(), RequestError> {
    if value.is_multiple_of(8) && (64..=4096).contains(&value) {
        return Ok(());
    }
    let nearest = ((value.min(4096) + 4) / 8 * 8).clamp(64, 4096);
    Err(RequestError::Size {
        side,
        value,
        nearest,
    })
}

fn in_range(name: &'static str, value: f64, least: f64, most: f64) -> Result<(), RequestError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(RequestError::Range {
        name,
        value,
        least,
        most,
    })
}
