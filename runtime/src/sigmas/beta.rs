//! Beta sampling: Lee et al. 2024 (arXiv:2407.12173): places by the quantiles of a Beta(0.6, 0.6) distribution, which are dense
//! at both ends. Programs differ in what is placed: noise levels or timesteps.

use super::linspace;
use crate::denoise::NoiseTable;

/// Both of the distribution's parameters.
const SHAPE: f64 = 0.6;

/// Noise levels at the quantiles (A1111).
#[must_use]
pub fn beta(table: &NoiseTable, count: usize) -> Vec<f64> {
    beta_between(table.sigma_max(), table.sigma_min(), count)
}

/// The same between two levels.
#[must_use]
pub fn beta_between(most: f64, least: f64, count: usize) -> Vec<f64> {
    linspace(1.0, 0.0, count)
        .map(|p| least + quantile(p) * (most - least))
        .collect()
}

/// Timesteps at the quantiles, each once, so there may be less than asked for (`ComfyUI`).
#[must_use]
pub fn beta_timesteps(table: &NoiseTable, count: usize) -> Vec<f64> {
    let sigmas = table.sigmas();
    let last = (sigmas.len() - 1) as f64;
    let time = |i| (quantile(1.0 - i as f64 / count as f64) * last).round_ties_even() as usize;
    let mut times: Vec<usize> = (0..count).map(time).collect();
    times.dedup();
    times.into_iter().map(|t| sigmas[t]).collect()
}

/// The inverse of the distribution function, which is symmetric; by bisection.
fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p);
    }
    let target = 2.0 * p * mass(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return high;
        }
        // The upper end of what rounds to the same: 1/2 is its own quantile.
        if mass(middle) <= target {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The integral of `(u (1 - u))^(SHAPE - 1)` from 0 to `x`, up to 1/2: the hypergeometric series, whose terms halve at least.
fn mass(x: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 0.0);
    for n in 0..60 {
        sum += term / (SHAPE + f64::from(n));
        let next = f64::from(n + 1);
        term *= (next - SHAPE) / next * x;
    }
    x.powf(SHAPE) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipys() {
        // Printed by tests/golden/samplers.py.
        for (p, expected) in [
            (0.0, 0.0),
            (1e-6, 1.855_882_462_405_304_3e-10),
            (0.001, 1.855_873_851_745_199e-5),
            (0.1, 0.039_584_405_588_780_8),
            (0.25, 0.175_680_378_652_694_98),
            (0.5, 0.5),
            (0.6, 0.637_299_009_246_786),
            (0.9, 0.960_415_594_411_219),
            (0.999, 0.999_981_441_261_483),
            (1.0, 1.0),
        ] {
            let found = quantile(p);
            assert!((found - expected).abs() < 1e-12, "{p}: {found} {expected}");
        }
    }
}
