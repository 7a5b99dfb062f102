//! DDIM's timesteps: whole strides from timestep 1 on. There are more of them than asked for where 1000 is no multiple.

use crate::denoise::NoiseTable;

/// Levels 1, 1 + k, 1 + 2k, .. with `k = 1000 / count`, from the last one.
#[must_use]
pub fn ddim_uniform(table: &NoiseTable, count: usize) -> Vec<f64> {
    let sigmas = table.sigmas();
    let stride = (sigmas.len() / count).max(1);
    let mut levels: Vec<f64> = sigmas.iter().skip(1).step_by(stride).copied().collect();
    levels.reverse();
    levels
}
