//! PLMS, the pseudo linear multistep method of PNDM: Liu et al. 2022 (arXiv:2202.09778), without Runge-Kutta steps.
//!
//! DDIM steps on an Adams-Bashforth combination of the last four noise estimates. The first step is made twice: to where
//! it ends, and again with the mean of the estimates at both ends. No noise.

use std::collections::VecDeque;

use super::math::Vp;
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
    let mut history: VecDeque<Latents> = VecDeque::new(); // noise estimates, the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        let eps = estimate(model, &x, step.from)?;
        history.push_front(eps);
        history.truncate(4);
        let start = x;
        x = transfer(&start, &adams_bashforth(&history), *step);
        if let (0, Some(second)) = (i, schedule.steps.get(1)) {
            let mean = (&history[0] + &estimate(model, &x, second.from)?) * 0.5;
            x = transfer(&start, &mean, *step);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// The noise in `x` by the model's estimate.
fn estimate(model: &mut dyn Denoiser, x: &Latents, level: Level) -> Result<Latents, DenoiseError> {
    let at = Vp::new(level.sigma);
    let denoised = model.denoise(&(x * (1.0 / at.signal) as f32), level)?;
    Ok((x - &(&denoised * at.signal as f32)) * (1.0 / at.noise) as f32)
}

/// The extrapolated noise of the next step: order 1 to 4, as far as there is history.
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

/// DDIM's step from a state to the level after `step`, with noise `eps`.
fn transfer(x: &Latents, eps: &Latents, step: Step) -> Latents {
    let (now, next) = (Vp::new(step.from.sigma), Vp::new(step.to.sigma));
    let ratio = next.signal / now.signal;
    let mut result = x * ratio as f32;
    result.scaled_add((next.noise - now.noise * ratio) as f32, eps);
    result
}
