//! Euler's method with CFG++ (Chung et al. 2024, arXiv:2406.08070), plain and ancestral, as `ComfyUI` has them: the guided
//! estimate, and the unconditional noise of the level below. Two model calls per step; ancestral, one draw per step except
//! where the target is 0.

use super::math::{ancestral, axpby};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Euler's method with CFG++.
pub static EULER_CFGPP: Method = Method {
    name: "Euler CFG++",
    aliases: &["euler_cfg_pp"],
    class: None,
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: |model, x, schedule, options, run| {
        let none = Options {
            eta: Some(0.0),
            ..*options
        };
        euler_cfgpp(model, x, schedule, &none, run)
    },
};

/// Euler's method with CFG++ and fresh noise at every step.
pub static EULER_ANCESTRAL_CFGPP: Method = Method {
    name: "Euler a CFG++",
    aliases: &["euler_ancestral_cfg_pp"],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: euler_cfgpp,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn euler_cfgpp(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let [guided, uncond] = model.denoise_both(&x, step.from)?;
        let (down, up) = ancestral(step.from.sigma, step.to.sigma, eta);
        // x <- g + down (x - u) / sigma
        let ratio = down / step.from.sigma;
        axpby(&mut x, ratio, &guided, 1.0);
        x.scaled_add(-ratio as f32, &uncond);
        if step.to.sigma > 0.0 && eta > 0.0 {
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
