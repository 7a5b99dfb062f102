//! Solvers: from noise to a clean latent, by a list of noise levels and a denoiser.
//!
//! One method per file, each a function over a [`Denoiser`]; [`Sampler`] lists them. Which noise levels a program gives a
//! method is decided in [`schedule`].

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod plms;
pub mod schedule;

use std::fmt;
use std::str::FromStr;

use crate::denoise::{DenoiseError, Denoiser, Latents, Level};
pub use schedule::{Profile, Schedule, SigmaSchedule};

/// A solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// Euler's method.
    Euler,
    /// Euler's method with fresh noise at every step.
    EulerAncestral,
    /// Denoising diffusion implicit models, eta 0.
    Ddim,
    /// DPM-Solver++, second order, multistep.
    Dpmpp2m,
    /// Pseudo linear multistep: the default of SD 1's reference pipeline.
    Plms,
}

/// What a sampler runs over: one step per entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Where the model is called.
    pub level: Level,
    /// Noise level after the step; 0 where the sample is clean.
    pub sigma_next: f64,
}

/// What a sampler gets besides model and steps.
pub trait Run {
    /// Fills `noise` with the next unit normal draw.
    fn noise(&mut self, noise: &mut Latents);

    /// Sees the state after model call `call` (from 0) and its estimate of the clean latents, and may stop the run.
    ///
    /// # Errors
    /// The user wants to stop.
    fn observe(&mut self, call: usize, x: &Latents, denoised: &Latents)
    -> Result<(), DenoiseError>;
}

impl Sampler {
    /// Every sampler.
    pub const ALL: [Self; 5] = [
        Self::Euler,
        Self::EulerAncestral,
        Self::Ddim,
        Self::Dpmpp2m,
        Self::Plms,
    ];

    /// The name that A1111 shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Ddim => "DDIM",
            Self::Dpmpp2m => "DPM++ 2M",
            Self::Plms => "PLMS",
        }
    }

    /// Other names: of command lines, of k-diffusion, of diffusers' classes.
    fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Euler => &["euler", "k_euler", "EulerDiscreteScheduler"],
            Self::EulerAncestral => &[
                "euler_a",
                "euler-a",
                "euler_ancestral",
                "k_euler_a",
                "EulerAncestralDiscreteScheduler",
            ],
            Self::Ddim => &["ddim", "DDIMScheduler"],
            Self::Dpmpp2m => &[
                "dpmpp_2m",
                "dpm++2m",
                "dpm++_2m",
                "k_dpmpp_2m",
                "DPMSolverMultistepScheduler",
            ],
            Self::Plms => &["plms", "pndm", "PNDMScheduler"],
        }
    }

    /// Whether the state is "variance preserving" between steps.
    #[must_use]
    pub fn is_variance_preserving(self) -> bool {
        matches!(self, Self::Ddim | Self::Plms)
    }

    /// Runs the sampler from unit noise (N, C, h, w) to clean latents.
    ///
    /// # Errors
    /// The model fails or the user stops.
    pub fn run(
        self,
        model: &mut dyn Denoiser,
        noise: Latents,
        schedule: &Schedule,
        run: &mut dyn Run,
    ) -> Result<Latents, DenoiseError> {
        let x = noise * schedule.initial_scale as f32;
        let steps = &schedule.steps;
        match self {
            Self::Euler => euler::euler(model, x, steps, run),
            Self::EulerAncestral => euler_ancestral::euler_ancestral(model, x, steps, run),
            Self::Ddim => ddim::ddim(model, x, steps, run),
            Self::Dpmpp2m => dpmpp_2m::dpmpp_2m(model, x, steps, run),
            Self::Plms => plms::plms(model, x, steps, run),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no sampler's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no sampler is called `{name}`; nearest: {nearest}\nhint: there are {}", Sampler::ALL.map(Sampler::name).join(", "))]
pub struct UnknownSampler {
    name: String,
    nearest: String,
}

/// A sampler and, as A1111 up to 1.8 wrote them, the sigma schedule after it: `DPM++ 2M Karras`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerName {
    /// The sampler.
    pub sampler: Sampler,
    /// The schedule, if the name says one.
    pub schedule: Option<SigmaSchedule>,
}

impl FromStr for SamplerName {
    type Err = UnknownSampler;

    fn from_str(text: &str) -> Result<Self, UnknownSampler> {
        let lower = text.trim().to_lowercase();
        let (name, schedule) = match lower.strip_suffix("karras") {
            Some(name) => (
                name.trim_end_matches([' ', '_', '-']),
                Some(SigmaSchedule::Karras),
            ),
            None => (lower.as_str(), None),
        };
        let names = |s: Sampler| {
            s.aliases()
                .iter()
                .copied()
                .chain([s.name()])
                .map(str::to_lowercase)
        };
        if let Some(sampler) = Sampler::ALL
            .into_iter()
            .find(|&s| names(s).any(|known| known == name))
        {
            return Ok(Self { sampler, schedule });
        }
        let closeness = |s: &Sampler| {
            names(*s)
                .map(|known| strsim::jaro_winkler(&known, name))
                .fold(0.0, f64::max)
        };
        let mut ranked = Sampler::ALL;
        ranked.sort_by(|a, b| closeness(b).total_cmp(&closeness(a)));
        Err(UnknownSampler {
            name: text.to_owned(),
            nearest: format!("{}, {}", ranked[0], ranked[1]),
        })
    }
}

/// `x <- a x + b y`.
fn axpby(x: &mut Latents, a: f64, y: &Latents, b: f64) {
    let (a, b) = (a as f32, b as f32);
    x.zip_mut_with(y, |x, &y| *x = a * *x + b * y);
}

#[cfg(test)]
mod tests;
