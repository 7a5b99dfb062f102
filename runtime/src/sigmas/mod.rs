//! How noise levels are spread between the most and the least noise of a model.
//!
//! One spread per file, each a function from the model's table of levels and a number of levels to these levels, without the
//! final 0. Programs have different rules under the same name; which one a program uses is in [`crate::profile`].

mod karras;
mod uniform;

use std::str::FromStr;

pub use karras::{RHO, karras, karras_between};
pub use uniform::uniform;

/// A spread of noise levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Even in timesteps.
    Uniform,
    /// Even in `sigma^(1/7)`.
    Karras,
}

impl Spread {
    /// Every spread.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Karras];

    /// The name that A1111 shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The name that A1111 shows, then those of command lines and other programs.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Uniform => &["Uniform", "normal"],
            Self::Karras => &["Karras"],
        }
    }
}

/// A name that is no spread's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no sigma schedule is called `{name}`; nearest: {nearest}\nhint: there are automatic, {}", Spread::ALL.map(|s| s.name().to_lowercase()).join(", "))]
pub struct UnknownSpread {
    name: String,
    nearest: &'static str,
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
