//! DPM-Solver++(2S) with ancestral noise: Lu et al. 2022 (arXiv:2211.01095), algorithm 1 with the intermediate point in the
//! middle of lambda = -ln(sigma); fresh noise as Euler a's. Two model calls and one draw per step; one call and no draw where
//! the step ends at 0.

use super::math::{ancestral, euler_step};
use super::{Knob, Method, Options, Run, Schedule, Space, two_calls};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++, second order, single step, with fresh noise at every step.
pub static DPMPP_2S_ANCESTRAL: Method = Method {
    name: "DPM++ 2S a",
    aliases: &[
        "dpmpp_2s_a",
        "dpm++2s_a",
        "dpm++_2s_a",
        "dpmpp_2s_ancestral",
        "k_dpmpp_2s_a",
    ],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: two_calls,
    solve: dpmpp_2s_ancestral,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_2s_ancestral(
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
            // (sigma'/sigma) x - expm1(-h) x0 is Euler's step towards x0.
            let middle = schedule.table.of_sigma((from * down).sqrt());
            let mut half_way = x.clone();
            euler_step(&mut half_way, &denoised, from, middle.sigma);
            let denoised = model.denoise(&half_way, middle)?;
            euler_step(&mut x, &denoised, from, down);
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}
