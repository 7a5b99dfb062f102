//! Even in log sigma (k-diffusion's `get_sigmas_exponential`), and powers of that.

use super::linspace;
use crate::denoise::NoiseTable;

/// Even in log sigma between two levels.
#[must_use]
pub fn exponential_between(most: f64, least: f64, count: usize) -> Vec<f64> {
    linspace(most.ln(), least.ln(), count)
        .map(f64::exp)
        .collect()
}

/// Even in log sigma over the whole table.
#[must_use]
pub fn exponential(table: &NoiseTable, count: usize) -> Vec<f64> {
    polyexponential(table, count, 1.0)
}

/// Even in the `rho`-th root of where log sigma lies between its ends (k-diffusion's `get_sigmas_polyexponential`).
#[must_use]
pub fn polyexponential(table: &NoiseTable, count: usize, rho: f64) -> Vec<f64> {
    let (most, least) = (table.sigma_max().ln(), table.sigma_min().ln());
    linspace(1.0, 0.0, count)
        .map(|u| (least + u.powf(rho) * (most - least)).exp())
        .collect()
}
