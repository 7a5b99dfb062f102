//! DDPM: Ho et al. 2020 (arXiv:2006.11239), algorithm 2 over the steps of a schedule, with the variance of equation 7.
//! One model call per step; one draw per step except at timestep 0.

use super::math::{Vp, axpby};
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Denoising diffusion probabilistic models.
pub static DDPM: Method = Method {
    name: "DDPM",
    aliases: &["ddpm"],
    class: Some("DDPMScheduler"),
    space: Space::Vp,
    knobs: &[],
    calls: one_call,
    solve: ddpm,
};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
fn ddpm(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let now = Vp::new(step.from.sigma);
        let next = Vp::new(step.to.sigma);
        let denoised = model.denoise(&(&x * (1.0 / now.signal) as f32), step.from)?;
        let alpha = (now.signal / next.signal).powi(2);
        let share = |noise: f64| noise * noise / (now.noise * now.noise);
        let beta = (1.0 - alpha).max(0.0);
        axpby(
            &mut x,
            alpha.sqrt() * share(next.noise),
            &denoised,
            next.signal * beta / (now.noise * now.noise),
        );
        if step.from.t > 0.0 {
            run.noise(&mut noise);
            x.scaled_add((share(next.noise) * beta).sqrt() as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
