//! Euler's method on the probability-flow ODE `dx/dsigma = (x - x0) / sigma`: Karras et al. 2022 (arXiv:2206.00364),
//! algorithm 2 without churn. One model call per step, no noise.

use super::math::euler_step;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Euler's method.
pub static EULER: Method = Method {
    name: "Euler",
    aliases: &["euler", "k_euler"],
    class: Some("EulerDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: euler,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn euler(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        euler_step(&mut x, &denoised, step.from.sigma, step.to.sigma);
        run.step(i, &x)?;
    }
    Ok(x)
}
