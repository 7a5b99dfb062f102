//! Solvers: from noise to a clean latent, by a list of noise levels and a denoiser.
//!
//! One method per file, each a function over a [`Denoiser`] and a row of [`METHODS`]. How noise levels are spread is in
//! [`crate::sigmas`]; which of all that a program uses, in [`crate::profile`].

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
pub mod math;
mod plms;

use std::fmt;

use crate::denoise::{DenoiseError, Denoiser, Latents, Level, NoiseTable};
use crate::sigmas::Spread;

pub use ddim::DDIM;
pub use dpmpp_2m::DPMPP_2M;
pub use euler::EULER;
pub use euler_ancestral::EULER_ANCESTRAL;
pub use plms::PLMS;

/// Every solver.
pub static METHODS: [&Method; 5] = [&EULER, &EULER_ANCESTRAL, &DPMPP_2M, &DDIM, &PLMS];

/// A solver.
pub type Sampler = &'static Method;

/// What there is to know of a solver.
#[derive(Debug)]
pub struct Method {
    /// The name that A1111 shows, or the usual one of those that it lacks.
    pub name: &'static str,
    /// Other names: of command lines, k-diffusion and `ComfyUI`.
    pub aliases: &'static [&'static str],
    /// diffusers' class.
    pub class: Option<&'static str>,
    /// What lies between steps.
    pub space: Space,
    /// Options that act on it.
    pub knobs: &'static [Knob],
    /// How many calls of the model a schedule takes.
    pub calls: fn(&Schedule) -> usize,
    /// The method itself.
    pub solve: Solve,
}

/// From noisy latents at the first step's level, in the method's space, to latents at the last step's end.
pub type Solve = fn(
    &mut dyn Denoiser,
    Latents,
    &Schedule,
    &Options,
    &mut dyn Run,
) -> Result<Latents, DenoiseError>;

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What noisy latents are: `x0 + sigma noise`, or that times `1 / sqrt(1 + sigma^2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Variance exploding.
    Ve,
    /// Variance preserving.
    Vp,
}

impl Space {
    /// The name in dumps.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ve => "ve",
            Self::Vp => "vp",
        }
    }
}

/// An option that acts on some solvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// How much of each step's noise is drawn anew.
    Eta,
    /// What drawn noise is multiplied by.
    Noise,
    /// Noise added before steps (Karras et al. 2022, algorithm 2).
    Churn,
}

/// Options of solvers. Each acts on those that list its [`Knob`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Share of fresh noise, 0 to 1; the method's own if absent.
    pub eta: Option<f64>,
    /// What fresh noise is multiplied by.
    pub s_noise: f64,
    /// Noise added over all steps together.
    pub s_churn: f64,
    /// Least noise level at which it is added.
    pub s_tmin: f64,
    /// Greatest noise level at which it is added.
    pub s_tmax: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            eta: None,
            s_noise: 1.0,
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: f64::INFINITY,
        }
    }
}

/// What a solver runs over.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One entry per step; at least one.
    pub steps: Vec<Step>,
    /// What unit noise is multiplied by to become the state before the first step.
    pub initial_scale: f64,
    /// The model's levels, and the timestep that it is told for a level that a method makes itself.
    pub table: NoiseTable,
}

impl Schedule {
    /// Steps from each level to the next.
    ///
    /// # Panics
    /// There are less than two levels.
    #[must_use]
    pub fn chain(levels: &[Level], initial_scale: f64, table: NoiseTable) -> Self {
        assert!(levels.len() > 1, "a step has two ends");
        let steps = levels.windows(2).map(|pair| Step {
            from: pair[0],
            to: pair[1],
        });
        Self {
            steps: steps.collect(),
            initial_scale,
            table,
        }
    }
}

/// From one noise level to another, lower one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Where the model is called.
    pub from: Level,
    /// Where the step ends; sigma 0 where the sample is clean.
    pub to: Level,
}

/// What a solver gets besides model and steps.
pub trait Run {
    /// Fills `noise` with the next unit normal draw.
    fn noise(&mut self, noise: &mut Latents);

    /// Sees the state after step `i` (from 0).
    ///
    /// # Errors
    /// The user wants to stop.
    fn step(&mut self, i: usize, x: &Latents) -> Result<(), DenoiseError>;
}

/// One call per step.
fn one_call(schedule: &Schedule) -> usize {
    schedule.steps.len()
}

/// Reads a solver's name and, as A1111 up to 1.8 wrote them, the spread after it: `DPM++ 2M Karras`.
///
/// # Errors
/// No solver has the name; the nearest ones are told.
pub fn parse(text: &str) -> Result<(Sampler, Option<Spread>), UnknownSampler> {
    let lower = text.trim().to_lowercase();
    if let Some(method) = find(&lower) {
        return Ok((method, None));
    }
    for spread in Spread::ALL {
        for word in spread.names() {
            let rest = lower.strip_suffix(&word.to_lowercase());
            let rest = rest.map(|name| name.trim_end_matches([' ', '_', '-']));
            if let Some(method) = rest.and_then(find) {
                return Ok((method, Some(spread)));
            }
        }
    }
    let mut ranked = METHODS;
    let closeness = |method: &Method| {
        names(method)
            .map(|known| strsim::jaro_winkler(&known.to_lowercase(), &lower))
            .fold(0.0, f64::max)
    };
    ranked.sort_by(|a, b| closeness(b).total_cmp(&closeness(a)));
    Err(UnknownSampler {
        name: text.to_owned(),
        nearest: format!("{}, {}", ranked[0], ranked[1]),
    })
}

fn find(lower: &str) -> Option<Sampler> {
    let known = |method: &Method| names(method).any(|name| name.to_lowercase() == lower);
    METHODS.into_iter().find(|method| known(method))
}

fn names(method: &Method) -> impl Iterator<Item = &'static str> {
    let others = method.aliases.iter().copied().chain(method.class);
    others.chain([method.name])
}

/// A name that is no sampler's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no sampler is called `{name}`; nearest: {nearest}\nhint: there are {}", METHODS.map(|m| m.name).join(", "))]
pub struct UnknownSampler {
    name: String,
    nearest: String,
}

#[cfg(test)]
mod tests;
