//! Euler's method with ancestral noise (k-diffusion): every step goes below its target level and is raised to it by fresh
//! noise. One model call per step; one draw per step except where the target is 0.

use super::math::{ancestral, euler_step};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Euler's method with fresh noise at every step.
pub static EULER_ANCESTRAL: Method = Method {
    name: "Euler a",
    aliases: &["euler_a", "euler-a", "euler_ancestral", "k_euler_a"],
    class: Some("EulerAncestralDiscreteScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: euler_ancestral,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn euler_ancestral(
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
        let (down, up) = ancestral(step.from.sigma, step.to.sigma, eta);
        euler_step(&mut x, &denoised, step.from.sigma, down);
        if step.to.sigma > 0.0 {
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
