//! DPM-Solver-2 with ancestral noise (k-diffusion's `sample_dpm_2_ancestral`): every step goes below its target level and is
//! raised to it by fresh noise. Two model calls and one draw per step; one call and no draw where the step ends at 0.

use super::math::{ancestral, euler_step, midpoint_step};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver, second order, with fresh noise at every step.
pub static DPM2_ANCESTRAL: Method = Method {
    name: "DPM2 a",
    aliases: &["dpm2_a", "dpm_2_ancestral", "k_dpm_2_a"],
    class: Some("KDPM2AncestralDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: two_calls,
    solve: dpm2_ancestral,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpm2_ancestral(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let from = step.from.sigma;
        let (down, up) = ancestral(from, step.to.sigma, eta);
        if step.to.sigma == 0.0 {
            euler_step(&mut x, &denoised, from, 0.0);
        } else {
            midpoint_step(model, &mut x, &denoised, from, down, &schedule.table)?;
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
