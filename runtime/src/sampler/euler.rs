//! Euler's method on the probability-flow ODE `dx/dsigma = (x - x0) / sigma`: Karras et al. 2022 (arXiv:2206.00364),
//! algorithm 2 without its second order. One model call per step. Noise only with churn, one draw before each step.

use super::math::{churn, euler_step};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Euler's method.
pub static EULER: Method = Method {
    name: "Euler",
    aliases: &["euler", "k_euler"],
    class: Some("EulerDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Churn, Knob::Noise],
    calls: one_call,
    solve: euler,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn euler(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in schedule.steps.iter().enumerate() {
        let from = churn(&mut x, step.from, schedule, options, run);
        let denoised = model.denoise(&x, from)?;
        euler_step(&mut x, &denoised, from.sigma, step.to.sigma);
        run.step(i, &x)?;
    }
    Ok(x)
}
