//! Karras et al. 2022 (arXiv:2206.00364), equation 5.

use super::linspace;
use crate::denoise::NoiseTable;

/// The paper's exponent.
pub const RHO: f64 = 7.0;

/// Even in `sigma^(1 / RHO)` over the whole table.
#[must_use]
pub fn karras(table: &NoiseTable, count: usize) -> Vec<f64> {
    karras_between(table.sigma_max(), table.sigma_min(), count)
}

/// Even in `sigma^(1 / RHO)` between two levels.
#[must_use]
pub fn karras_between(most: f64, least: f64, count: usize) -> Vec<f64> {
    let (first, last) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    linspace(0.0, 1.0, count)
        .map(|u| (first + u * (last - first)).powf(RHO))
        .collect()
}
