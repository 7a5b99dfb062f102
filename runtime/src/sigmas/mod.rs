//! How noise levels are spread between the most and the least noise of a model.
//!
//! One spread per file, each a function from the model's table of levels and a number of levels to these levels, without the
//! final 0. Programs have different rules under the same name; which one a program uses is in [`crate::profile`].

mod align_your_steps;
mod beta;
mod ddim_uniform;
mod exponential;
mod karras;
mod kl_optimal;
mod linear_quadratic;
mod sgm_uniform;
mod simple;
mod turbo;
mod uniform;

use std::str::FromStr;

use crate::Remedy;

pub use align_your_steps::{SD1, SD1_ROUNDED, SDXL, SDXL_ROUNDED, Table, align_your_steps};
pub use beta::{beta, beta_between, beta_timesteps};
pub use ddim_uniform::ddim_uniform;
pub use exponential::{exponential, exponential_between, polyexponential};
pub use karras::{RHO, karras, karras_between};
pub use kl_optimal::{kl_optimal, kl_optimal_between};
pub use linear_quadratic::linear_quadratic;
pub use sgm_uniform::sgm_uniform;
pub use simple::simple;
pub use turbo::{turbo, turbo_ladder};
pub use uniform::uniform;

/// A spread of noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Even in timesteps.
    Uniform,
    /// Even in `sigma^(1/7)`.
    Karras,
    /// Even in log sigma.
    Exponential,
    /// Even in a root of log sigma.
    Polyexponential,
    /// Even in timesteps, the last step going to 0.
    SgmUniform,
    /// Even in `atan(sigma)`.
    KlOptimal,
    /// Optimised for a model family.
    AlignYourSteps,
    /// Every n-th level of the table.
    Simple,
    /// Even in timesteps, by `ComfyUI`'s name and between the model's ends.
    Normal,
    /// Whole strides of timesteps.
    Ddim,
    /// Quantiles of a Beta distribution.
    Beta,
    /// For models of few steps.
    Turbo,
    /// Even, then by a parabola.
    LinearQuadratic,
}

impl Spread {
    /// Every spread.
    pub const ALL: [Self; 13] = [
        Self::Uniform,
        Self::Karras,
        Self::Exponential,
        Self::Polyexponential,
        Self::SgmUniform,
        Self::KlOptimal,
        Self::AlignYourSteps,
        Self::Simple,
        Self::Normal,
        Self::Ddim,
        Self::Beta,
        Self::Turbo,
        Self::LinearQuadratic,
    ];

    /// The name that A1111 shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The name in one word: [`Self::name`] in small letters, with underscores.
    #[must_use]
    pub fn word(self) -> String {
        self.name().to_lowercase().replace(' ', "_")
    }

    /// Levels from one to another; none for a spread that depends on which levels the model knows.
    #[must_use]
    pub fn between(self, most: f64, least: f64, count: usize) -> Option<Vec<f64>> {
        match self {
            Self::Karras => Some(karras_between(most, least, count)),
            Self::Exponential => Some(exponential_between(most, least, count)),
            Self::Beta => Some(beta_between(most, least, count)),
            _ => None,
        }
    }

    /// The name that A1111 shows, then those of command lines and other programs.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Uniform => &["Uniform", "discrete"],
            Self::Karras => &["Karras", "ka"],
            Self::Exponential => &["Exponential", "exp"],
            Self::Polyexponential => &["Polyexponential"],
            Self::SgmUniform => &["SGM Uniform", "sgm_uniform"],
            Self::KlOptimal => &["KL Optimal", "kl_optimal"],
            Self::AlignYourSteps => &["Align Your Steps", "align_your_steps", "ays"],
            Self::Simple => &["Simple"],
            Self::Normal => &["Normal"],
            Self::Ddim => &["DDIM", "ddim_uniform"],
            Self::Beta => &["Beta"],
            Self::Turbo => &["Turbo", "sd_turbo"],
            Self::LinearQuadratic => &["Linear Quadratic", "linear_quadratic"],
        }
    }
}

/// A name that is no spread's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no sigma schedule is called `{name}`; nearest: {nearest}")]
pub struct UnknownSpread {
    name: String,
    nearest: &'static str,
}

impl UnknownSpread {
    /// What there is.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        let known = Spread::ALL.map(Spread::word).join(", ");
        let known = format!("there are automatic, {known}");
        Some(Remedy::Words(known.into()))
    }
}

impl FromStr for Spread {
    type Err = UnknownSpread;

    /// Case, spaces and underscores do not matter.
    fn from_str(name: &str) -> Result<Self, UnknownSpread> {
        let plain = |name: &str| name.to_lowercase().replace([' ', '_', '-'], "");
        let asked = plain(name);
        let known = Self::ALL
            .into_iter()
            .flat_map(|spread| spread.names().iter().map(move |name| (*name, spread)));
        if let Some((_, spread)) = known.clone().find(|(name, _)| plain(name) == asked) {
            return Ok(spread);
        }
        let closeness = |name: &str| strsim::jaro_winkler(&plain(name), &asked);
        let nearest = known.max_by(|a, b| closeness(a.0).total_cmp(&closeness(b.0)));
        Err(UnknownSpread {
            name: name.to_owned(),
            nearest: nearest.map_or("automatic", |(name, _)| name),
        })
    }
}

/// `count` numbers from `first` to `last`; one number is `first`.
pub fn linspace(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let intervals = count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |i| first + i as f64 * (last - first) / intervals)
}

#[cfg(test)]
mod tests;
