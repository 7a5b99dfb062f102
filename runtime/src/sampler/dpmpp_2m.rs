//! DPM-Solver++(2M): Lu et al. 2022 (arXiv:2211.01095), algorithm 2, with lambda = -ln(sigma).
//! One model call per step, no noise. First order at the start (no history) and at sigma 0 (infinite step).

use super::math::axpby;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++, second order, multistep.
pub static DPMPP_2M: Method = Method {
    name: "DPM++ 2M",
    aliases: &["dpmpp_2m", "dpm++2m", "dpm++_2m", "k_dpmpp_2m"],
    class: None,
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: dpmpp_2m,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpmpp_2m(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let lambda = |sigma: f64| -sigma.ln();
    let mut last: Option<(Latents, f64)> = None; // denoised and step size of the step before
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        let h = lambda(step.to.sigma) - lambda(step.from.sigma);
        let (a, b) = (step.to.sigma / step.from.sigma, -(-h).exp_m1());
        match &last {
            Some((previous, h_last)) if step.to.sigma > 0.0 => {
                let w = h / (2.0 * h_last);
                axpby(&mut x, a, &denoised, b * (1.0 + w));
                axpby(&mut x, 1.0, previous, -b * w);
            }
            _ => axpby(&mut x, a, &denoised, b),
        }
        run.step(i, &x)?;
        last = Some((denoised, h));
    }
    Ok(x)
}
