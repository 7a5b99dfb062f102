//! DPM-Solver-2 by Karras et al. 2022 (k-diffusion's `sample_dpm_2`): the slope at the geometric middle of a step. Two model
//! calls per step, one where the step ends at 0. Noise only with churn, one draw before each step.

use super::math::{churn, euler_step, midpoint_step};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver, second order, single step.
pub static DPM2: Method = Method {
    name: "DPM2",
    aliases: &["dpm2", "dpm_2", "k_dpm_2"],
    class: Some("KDPM2DiscreteScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Churn, Knob::Noise],
    calls: two_calls,
    solve: dpm2,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpm2(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    for (i, step) in schedule.steps.iter().enumerate() {
        let from = churn(&mut x, step.from, schedule, options, run);
        let denoised = model.denoise(&x, from)?;
        let (from, to) = (from.sigma, step.to.sigma);
        if to == 0.0 {
            euler_step(&mut x, &denoised, from, to);
        } else {
            midpoint_step(model, &mut x, &denoised, from, to, &schedule.table)?;
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
