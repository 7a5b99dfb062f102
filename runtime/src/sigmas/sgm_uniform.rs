//! Even in timesteps as Stability's generative models have it: the step to the first timestep goes to 0 instead.

use super::uniform;
use crate::denoise::NoiseTable;

/// `sigma(t)` for one timestep more than asked for from 999 to 0, without the last.
#[must_use]
pub fn sgm_uniform(table: &NoiseTable, count: usize) -> Vec<f64> {
    let mut sigmas = uniform(table, count + 1);
    sigmas.truncate(count);
    sigmas
}
