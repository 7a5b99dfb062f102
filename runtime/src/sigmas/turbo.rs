//! Timesteps for models that were distilled to few steps (SD Turbo and relatives).

use crate::denoise::{NoiseTable, TIMESTEPS};

/// Levels at `1000 (count - i) / count - 1`, rounded (Forge).
#[must_use]
pub fn turbo(table: &NoiseTable, count: usize) -> Vec<f64> {
    let stride = TIMESTEPS as f64 / count as f64;
    let time = |i: usize| ((count - i) as f64 * stride - 1.0).round_ties_even() as usize;
    (0..count).map(|i| table.sigmas()[time(i)]).collect()
}

/// The first of the levels at 999, 899, .. 99, which are the ones that SD Turbo was trained at (`ComfyUI`): ten at most.
#[must_use]
pub fn turbo_ladder(table: &NoiseTable, count: usize) -> Vec<f64> {
    let times = (99..TIMESTEPS).step_by(100).rev().take(count);
    times.map(|t| table.sigmas()[t]).collect()
}
