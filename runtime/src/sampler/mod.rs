//! Solvers: from noise to a clean latent, by a list of noise levels and a denoiser.
//!
//! One method per file, each a function over a [`Denoiser`] and a row of [`METHODS`]. How noise levels are spread is in
//! [`crate::sigmas`]; which of all that a program uses, in [`crate::profile`].

mod cold;
mod ddim;
mod ddim_cfgpp;
mod ddpm;
mod deis;
mod dpm2;
mod dpm2_ancestral;
mod dpm_adaptive;
mod dpm_fast;
mod dpm_multistep;
mod dpm_solver;
mod dpmpp_2m;
mod dpmpp_2m_cfgpp;
mod dpmpp_2m_sde;
mod dpmpp_2s_ancestral;
mod dpmpp_2s_ancestral_cfgpp;
mod dpmpp_3m_sde;
mod dpmpp_sde;
mod effect;
mod euler;
mod euler_ancestral;
mod euler_cfgpp;
mod heun;
mod lcm;
mod lms;
pub mod math;
mod plms;
mod restart;
mod setup;
mod tcd;
mod unipc;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Remedy;
use crate::denoise::{DenoiseError, Denoiser, Latents, Level, NoiseTable};
use crate::sigmas::Spread;

pub use cold::COLD;
pub use ddim::DDIM;
pub use ddim_cfgpp::DDIM_CFGPP;
pub use ddpm::DDPM;
pub use deis::DEIS;
pub use dpm_adaptive::DPM_ADAPTIVE;
pub use dpm_fast::DPM_FAST;
pub use dpm_multistep::DPM_MULTISTEP;
pub use dpm2::DPM2;
pub use dpm2_ancestral::DPM2_ANCESTRAL;
pub use dpmpp_2m::DPMPP_2M;
pub use dpmpp_2m_cfgpp::DPMPP_2M_CFGPP;
pub use dpmpp_2m_sde::{DPMPP_2M_SDE, DPMPP_2M_SDE_HEUN};
pub use dpmpp_2s_ancestral::DPMPP_2S_ANCESTRAL;
pub use dpmpp_2s_ancestral_cfgpp::DPMPP_2S_ANCESTRAL_CFGPP;
pub use dpmpp_3m_sde::DPMPP_3M_SDE;
pub use dpmpp_sde::DPMPP_SDE;
pub use euler::EULER;
pub use euler_ancestral::EULER_ANCESTRAL;
pub use euler_cfgpp::{EULER_ANCESTRAL_CFGPP, EULER_CFGPP};
pub use heun::HEUN;
pub use lcm::LCM;
pub use lms::LMS;
pub use plms::PLMS;
pub use restart::RESTART;
pub use setup::{Bh, Knots, SecondOrder, Setup};
pub use tcd::TCD;
pub use unipc::{UNIPC, UNIPC_BH2};

/// Every solver.
pub static METHODS: [&Method; 30] = [
    &EULER,
    &EULER_ANCESTRAL,
    &HEUN,
    &LMS,
    &DPM2,
    &DPM2_ANCESTRAL,
    &DPMPP_2S_ANCESTRAL,
    &DPMPP_SDE,
    &DPMPP_2M,
    &DPMPP_2M_SDE,
    &DPMPP_2M_SDE_HEUN,
    &DPMPP_3M_SDE,
    &DPM_FAST,
    &DPM_ADAPTIVE,
    &RESTART,
    &DDIM,
    &PLMS,
    &DDIM_CFGPP,
    &EULER_CFGPP,
    &EULER_ANCESTRAL_CFGPP,
    &DPMPP_2S_ANCESTRAL_CFGPP,
    &DPMPP_2M_CFGPP,
    &DDPM,
    &UNIPC,
    &UNIPC_BH2,
    &DEIS,
    &LCM,
    &TCD,
    &DPM_MULTISTEP,
    &COLD,
];

/// A solver.
pub type Sampler = &'static Method;

/// What there is to know of a solver.
#[derive(Debug)]
pub struct Method {
    /// The name that A1111 shows, or the usual one of those that it lacks.
    pub name: &'static str,
    /// Other names: of command lines, k-diffusion and `ComfyUI`.
    pub aliases: &'static [&'static str],
    /// diffusers' class; where several solvers are one class there, the first of them is the class as it is set up.
    pub class: Option<&'static str>,
    /// What lies between steps.
    pub space: Space,
    /// Options that act on it.
    pub knobs: &'static [Knob],
    /// How many calls of the model a schedule takes; none where the picture decides.
    pub calls: fn(&Schedule) -> Option<usize>,
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

/// Methods that take the unconditional estimate as well.
static CFGPP: [&Method; 5] = [
    &DDIM_CFGPP,
    &EULER_CFGPP,
    &EULER_ANCESTRAL_CFGPP,
    &DPMPP_2S_ANCESTRAL_CFGPP,
    &DPMPP_2M_CFGPP,
];

impl Method {
    /// Whether the method takes the estimate that does not know the prompt, even without guidance.
    #[must_use]
    pub fn needs_uncond(&self) -> bool {
        CFGPP.contains(&self)
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Share of fresh noise, 0 to 1; the method's own if absent.
    pub eta: Option<f64>,
    /// What fresh noise is multiplied by.
    pub s_noise: f64,
    /// Noise added over all steps together.
    pub s_churn: f64,
    /// Least noise level at which it is added.
    pub s_tmin: f64,
    /// Greatest noise level at which it is added; null in JSON is none.
    #[serde(with = "bound")]
    pub s_tmax: f64,
    /// Whether noise is drawn even where none is added, as k-diffusion does: later draws are others then.
    pub idle_draws: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            eta: None,
            s_noise: 1.0,
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: f64::INFINITY,
            idle_draws: false,
        }
    }
}

impl Options {
    /// Takes back what has no effect on a method, and tells it in A1111's words.
    pub fn retain(&mut self, method: Sampler) -> Vec<(&'static str, String)> {
        let default = Self::default();
        let mut taken = Vec::new();
        let lacks = |knob| !method.knobs.contains(&knob);
        if lacks(Knob::Eta)
            && let Some(eta) = self.eta.take()
        {
            taken.push(("Eta", eta.to_string()));
        }
        for (knob, key, value, default) in [
            (
                Knob::Noise,
                "Sigma noise",
                &mut self.s_noise,
                default.s_noise,
            ),
            (
                Knob::Churn,
                "Sigma churn",
                &mut self.s_churn,
                default.s_churn,
            ),
            (Knob::Churn, "Sigma tmin", &mut self.s_tmin, default.s_tmin),
            (Knob::Churn, "Sigma tmax", &mut self.s_tmax, default.s_tmax),
        ] {
            if lacks(knob) && *value != default {
                taken.push((key, value.to_string()));
                *value = default;
            }
        }
        taken
    }
}

/// An upper bound, whose infinity JSON does not have.
mod bound {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
    pub(super) fn serialize<S: Serializer>(bound: &f64, to: S) -> Result<S::Ok, S::Error> {
        (*bound < f64::INFINITY).then_some(*bound).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        let bound = Option::deserialize(from)?;
        Ok(bound.unwrap_or(f64::INFINITY))
    }
}

/// What a solver runs over.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One entry per step; at least one.
    pub steps: Vec<Step>,
    /// What unit noise is multiplied by to become the state before the first step.
    pub initial_scale: f64,
    /// What the state after the last step is multiplied by to become latents: 1 unless a state with noise left in it is
    /// variance preserving in the program that is followed.
    pub final_scale: f64,
    /// The model's levels, and the timestep that it is told for a level that a method makes itself.
    pub table: NoiseTable,
    /// What the program that is followed says of the method.
    pub setup: Setup,
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
            final_scale: 1.0,
            table,
            setup: Setup::default(),
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

    /// Fills `noise` with the increment of a Brownian motion between two noise levels, scaled to unit variance. Increments of
    /// levels that overlap are correlated.
    fn brownian(&mut self, from: f64, to: f64, noise: &mut Latents);

    /// Sees the state after step `i` (from 0).
    ///
    /// # Errors
    /// The user wants to stop.
    fn step(&mut self, i: usize, x: &Latents) -> Result<(), DenoiseError>;
}

/// One call per step.
#[expect(clippy::unnecessary_wraps, reason = "the type of `Method::calls`")]
fn one_call(schedule: &Schedule) -> Option<usize> {
    Some(schedule.steps.len())
}

/// Two calls per step, one where it ends without noise.
#[expect(clippy::unnecessary_wraps, reason = "the type of `Method::calls`")]
fn two_calls(schedule: &Schedule) -> Option<usize> {
    let noisy = schedule.steps.iter().filter(|step| step.to.sigma > 0.0);
    Some(schedule.steps.len() + noisy.count())
}

/// Reads a solver's name and, as A1111 up to 1.8 wrote them, the spread after it: `DPM++ 2M Karras`.
///
/// # Errors
/// No solver has the name; the nearest ones are told.
///
/// ```
/// use sd_runtime::sampler::{DPMPP_2M, parse};
/// use sd_runtime::sigmas::Spread;
///
/// assert_eq!(parse("DPM++ 2M Karras"), Ok((&DPMPP_2M, Some(Spread::Karras))));
/// let error = parse("Eler").unwrap_err();
/// assert!(error.to_string().contains("nearest: Euler"));
/// ```
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
#[error("no sampler is called `{name}`; nearest: {nearest}")]
pub struct UnknownSampler {
    name: String,
    nearest: String,
}

impl UnknownSampler {
    /// What there is.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        let known = METHODS.map(|method| method.name).join(", ");
        Some(Remedy::Words(format!("there are {known}").into()))
    }
}

#[cfg(test)]
pub(crate) mod tests;
