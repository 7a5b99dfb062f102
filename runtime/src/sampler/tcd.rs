//! Trajectory consistency distillation: Zheng et al. 2024 (arXiv:2402.19159), strategic stochastic sampling. Every step goes
//! to timestep `(1 - eta) t` and is raised to `t` by fresh noise. One model call per step; one draw per step except where
//! it has nothing to raise.

use super::math::euler_step;
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Trajectory consistency sampling, for models distilled for it.
pub static TCD: Method = Method {
    name: "TCD",
    aliases: &["tcd"],
    class: Some("TCDScheduler"),
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: tcd,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn tcd(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(0.3);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let below = schedule.table.at(((1.0 - eta) * step.to.t).floor()).sigma;
        let down = below.min(step.to.sigma);
        euler_step(&mut x, &denoised, step.from.sigma, down);
        if eta > 0.0 && i + 1 < schedule.steps.len() {
            run.noise(&mut noise);
            let up = (step.to.sigma * step.to.sigma - down * down).sqrt();
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
