//! DPM-Solver++(2S) with ancestral noise and CFG++ (Chung et al. 2024, arXiv:2406.08070) as `ComfyUI` has it: what is kept of
//! the state is taken along by the difference that guidance makes. Four model calls and one draw per step; two calls and no
//! draw where the step ends at 0.

use super::math::{ancestral, axpby};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++ with CFG++, second order, single step, with fresh noise at every step.
pub static DPMPP_2S_ANCESTRAL_CFGPP: Method = Method {
    name: "DPM++ 2S a CFG++",
    aliases: &["dpmpp_2s_ancestral_cfg_pp"],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: two_calls,
    solve: dpmpp_2s_ancestral_cfgpp,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_2s_ancestral_cfgpp(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(1.0);
    let mut noise = Latents::zeros(x.raw_dim());
    // (to/from) (x + g - u) + (1 - to/from) target
    let step_to = |x: &mut Latents, ratio: f64, [guided, uncond, target]: [&Latents; 3]| {
        axpby(x, ratio, target, 1.0 - ratio);
        x.scaled_add(ratio as f32, guided);
        x.scaled_add(-ratio as f32, uncond);
    };
    for (i, step) in schedule.steps.iter().enumerate() {
        let [guided, uncond] = model.denoise_both(&x, step.from)?;
        let from = step.from.sigma;
        let (down, up) = ancestral(from, step.to.sigma, eta);
        if step.to.sigma == 0.0 {
            x = guided;
        } else {
            let middle = schedule.table.of_sigma((from * down).sqrt());
            let mut half_way = x.clone();
            let half = middle.sigma / from;
            step_to(&mut half_way, half, [&guided, &uncond, &guided]);
            // The second step compares the first guided estimate with the second unconditional one.
            let [target, uncond] = model.denoise_both(&half_way, middle)?;
            step_to(&mut x, down / from, [&guided, &uncond, &target]);
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
