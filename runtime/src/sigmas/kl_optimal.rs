//! The spread that keeps the divergence of steps least: Sabour et al. 2024 (arXiv:2404.14507), equation for KL optimal levels.

use super::linspace;
use crate::denoise::NoiseTable;

/// Even in `atan(sigma)` over the whole table.
#[must_use]
pub fn kl_optimal(table: &NoiseTable, count: usize) -> Vec<f64> {
    kl_optimal_between(table.sigma_max(), table.sigma_min(), count)
}

/// The same between two levels.
#[must_use]
pub fn kl_optimal_between(most: f64, least: f64, count: usize) -> Vec<f64> {
    let (most, least) = (most.atan(), least.atan());
    linspace(0.0, 1.0, count)
        .map(|u| (u * least + (1.0 - u) * most).tan())
        .collect()
}
