//! Even in timesteps, from the last to the first (k-diffusion's `get_sigmas`).

use super::linspace;
use crate::denoise::{NoiseTable, TIMESTEPS};

/// `sigma(t)` for `t` from 999 to 0.
#[must_use]
pub fn uniform(table: &NoiseTable, count: usize) -> Vec<f64> {
    linspace((TIMESTEPS - 1) as f64, 0.0, count)
        .map(|t| table.at(t).sigma)
        .collect()
}
