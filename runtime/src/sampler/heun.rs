//! Heun's method on the probability-flow ODE: Karras et al. 2022 (arXiv:2206.00364), algorithm 2. Two model calls per step,
//! one where the step ends at 0. Noise only with churn, one draw before each step.

use super::math::{churn, euler_step, slope};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents, Level};

/// Heun's method.
pub static HEUN: Method = Method {
    name: "Heun",
    aliases: &["heun", "k_heun"],
    class: Some("HeunDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Churn, Knob::Noise],
    calls: two_calls,
    solve: heun,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn heun(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in schedule.steps.iter().enumerate() {
        let from = churn(&mut x, step.from, schedule, options, run);
        heun_step(model, &mut x, from, step.to)?;
        run.step(i, &x)?;
    }
    Ok(x)
}

/// A step with the mean of the slopes at both ends; Euler's where it ends at 0.
pub(super) fn heun_step(
    model: &mut dyn Denoiser,
    x: &mut Latents,
    from: Level,
    to: Level,
) -> Result<(), DenoiseError> {
    let denoised = model.denoise(x, from)?;
    if to.sigma == 0.0 {
        euler_step(x, &denoised, from.sigma, to.sigma);
        return Ok(());
    }
    let first = slope(x, &denoised, from.sigma);
    let mut end = x.clone();
    euler_step(&mut end, &denoised, from.sigma, to.sigma);
    let second = slope(&end, &model.denoise(&end, to)?, to.sigma);
    x.scaled_add((0.5 * (to.sigma - from.sigma)) as f32, &(first + second));
    Ok(())
}
