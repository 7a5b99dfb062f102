//! DPM-Solver++(2M) with CFG++ (Chung et al. 2024, arXiv:2406.08070) as `ComfyUI` has it: the guided estimate, the
//! unconditional noise of the level below, and the change since the unconditional estimate before. Two model calls per step,
//! no noise.

use super::math::axpby;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++ with CFG++, second order, multistep.
pub static DPMPP_2M_CFGPP: Method = Method {
    name: "DPM++ 2M CFG++",
    aliases: &["dpmpp_2m_cfg_pp"],
    class: None,
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: dpmpp_2m_cfgpp,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_2m_cfgpp(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut last: Option<(Latents, f64)> = None; // unconditional estimate and step size of the step before
    for (i, step) in schedule.steps.iter().enumerate() {
        let [guided, uncond] = model.denoise_both(&x, step.from)?;
        let (from, to) = (step.from.sigma, step.to.sigma);
        let (ratio, h) = (to / from, (from / to).ln());
        // x <- g + e^-h (x - u)
        axpby(&mut x, ratio, &guided, 1.0);
        x.scaled_add(-ratio as f32, &uncond);
        if let Some((previous, h_last)) = last.filter(|_| to > 0.0) {
            let weight = (1.0 - ratio) * h / (2.0 * h_last);
            x.scaled_add(weight as f32, &(&guided - &previous));
        }
        run.step(i, &x)?;
        last = Some((uncond, h));
    }
    Ok(x)
}
