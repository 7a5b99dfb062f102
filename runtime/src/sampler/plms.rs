//! PLMS, the pseudo linear multistep method of PNDM: Liu et al. 2022 (arXiv:2202.09778), without Runge-Kutta steps.
//!
//! DDIM steps on an Adams-Bashforth combination of the last four noise estimates. The first step is made twice: to where
//! it ends, and again with the mean of the estimates at both ends. No noise. For models that predict velocity, diffusers
//! combines estimates of that.

use std::collections::VecDeque;

use sd_models::manifest::PredictionType;

use super::math::{Vp, axpby};
use super::{Method, Options, Run, Schedule, Space, Step};
use crate::denoise::{DenoiseError, Denoiser, Latents, Level};

/// Pseudo linear multistep: the default of SD 1's reference pipeline.
pub static PLMS: Method = Method {
    name: "PLMS",
    aliases: &["plms", "pndm"],
    class: Some("PNDMScheduler"),
    space: Space::Vp,
    knobs: &[],
    calls: |schedule| match schedule.steps.len() {
        1 => Some(1),
        steps => Some(steps + 1),
    },
    solve: plms,
};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
fn plms(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let velocity = schedule.setup.extrapolated == Some(PredictionType::VPrediction);
    let mut estimate = |x: &Latents, level: Level| -> Result<Latents, DenoiseError> {
        let at = Vp::new(level.sigma);
        let denoised = model.denoise(&(x * (1.0 / at.signal) as f32), level)?;
        let of_x = if velocity { at.signal } else { 1.0 };
        let of_denoised = if velocity { 1.0 } else { at.signal };
        let mut estimate = denoised;
        axpby(&mut estimate, -of_denoised / at.noise, x, of_x / at.noise);
        Ok(estimate)
    };
    // DDIM's step from a state, with an estimate of what is in it.
    let transfer = |x: &Latents, estimate: &Latents, step: Step| {
        let (now, next) = (Vp::new(step.from.sigma), Vp::new(step.to.sigma));
        let ratio = next.signal / now.signal;
        let of_noise = next.noise - now.noise * ratio;
        // The noise in x is signal v + noise x.
        let (of_x, of_estimate) = match velocity {
            true => (ratio + of_noise * now.noise, of_noise * now.signal),
            false => (ratio, of_noise),
        };
        let mut result = x.clone();
        axpby(&mut result, of_x, estimate, of_estimate);
        result
    };
    let mut history: VecDeque<Latents> = VecDeque::new(); // estimates, the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        history.push_front(estimate(&x, step.from)?);
        history.truncate(4);
        let start = x;
        x = transfer(&start, &adams_bashforth(&history), *step);
        if let (0, Some(second)) = (i, schedule.steps.get(1)) {
            let mean = (&history[0] + &estimate(&x, second.from)?) * 0.5;
            // Of the same length, to where the next step starts.
            let length = step.from.t - step.to.t;
            let again = Step {
                from: schedule.table.at(second.from.t + length),
                to: second.from,
            };
            x = transfer(&start, &mean, again);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// The extrapolated estimate of the next step: order 1 to 4, as far as there is history.
fn adams_bashforth(history: &VecDeque<Latents>) -> Latents {
    const WEIGHTS: [&[f64]; 4] = [
        &[1.0],
        &[3.0 / 2.0, -1.0 / 2.0],
        &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    ];
    let mut sum = Latents::zeros(history[0].raw_dim());
    for (eps, &weight) in history.iter().zip(WEIGHTS[history.len() - 1]) {
        sum.scaled_add(weight as f32, eps);
    }
    sum
}
