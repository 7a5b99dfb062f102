//! DDIM with CFG++: Chung et al. 2024 (arXiv:2406.08070), as A1111 has it: the estimate is guided by 1/12.5 of the guidance
//! scale, and the noise that is added back is the unconditional one. Two model calls per step; one draw per step if eta is
//! above 0.

use super::math::{Vp, axpby};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DDIM with CFG++.
pub static DDIM_CFGPP: Method = Method {
    name: "DDIM CFG++",
    aliases: &["ddim_cfgpp"],
    class: None,
    space: Space::Vp,
    knobs: &[Knob::Eta],
    calls: one_call,
    solve: ddim_cfgpp,
};

/// Guidance scales of 0 to 12.5 are the paper's 0 to 1.
const FULL_GUIDANCE: f64 = 12.5;

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
fn ddim_cfgpp(
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
        let [guided, uncond] = model.denoise_both(&(&x * (1.0 / now.signal) as f32), step.from)?;
        let kept = (now.signal / next.signal).powi(2);
        let fresh = eta * next.noise / now.noise * (1.0 - kept).max(0.0).sqrt();
        let ratio = (next.noise * next.noise - fresh * fresh).max(0.0).sqrt() / now.noise;
        // x <- signal' (u + (g - u) / 12.5) + ratio (x - signal u) + fresh N
        let of_guided = next.signal / FULL_GUIDANCE;
        axpby(&mut x, ratio, &guided, of_guided);
        axpby(
            &mut x,
            1.0,
            &uncond,
            next.signal - of_guided - ratio * now.signal,
        );
        if eta > 0.0 {
            run.noise(&mut noise);
            x.scaled_add(fresh as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
