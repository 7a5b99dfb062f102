//! DDIM: Song et al. 2020 (arXiv:2010.02502), equation 12. One model call per step; one draw per step if eta is above 0.
//!
//! The state is variance preserving: a step may end at a level that the next one does not start from (diffusers'
//! `linspace` spacing does that), and the state is then taken as it is.

use super::math::{Vp, axpby};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Denoising diffusion implicit models.
pub static DDIM: Method = Method {
    name: "DDIM",
    aliases: &["ddim"],
    class: Some("DDIMScheduler"),
    space: Space::Vp,
    knobs: &[Knob::Eta],
    calls: one_call,
    solve: ddim,
};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
fn ddim(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(0.0);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let now = Vp::new(step.from.sigma);
        let next = Vp::new(step.to.sigma);
        let denoised = model.denoise(&(&x * (1.0 / now.signal) as f32), step.from)?;
        // Variance of the fresh noise: equation 16.
        let kept = (now.signal / next.signal).powi(2);
        let fresh = eta * next.noise / now.noise * (1.0 - kept).max(0.0).sqrt();
        // eps = (x - signal x0) / noise;  x <- signal' x0 + sqrt(noise'^2 - fresh^2) eps + fresh N
        let ratio = (next.noise * next.noise - fresh * fresh).max(0.0).sqrt() / now.noise;
        axpby(&mut x, ratio, &denoised, next.signal - now.signal * ratio);
        if eta > 0.0 || options.idle_draws {
            run.noise(&mut noise);
            x.scaled_add(fresh as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
