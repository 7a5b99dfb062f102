//! PLMS, the pseudo linear multistep method of PNDM: Liu et al. 2022 (arXiv:2202.09778), without Runge-Kutta steps.
//!
//! DDIM steps on an Adams-Bashforth combination of the last four noise estimates. The first step is made twice: to where
//! it ends, and again with the mean of the estimates at both ends. Its second half is a step of its own in the list.
//! No noise.

use std::collections::VecDeque;

use super::ddim::Vp;
use super::{Run, Step};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// `x`: variance-preserving latents [N, C, h, w] at the first step's noise level.
pub(super) fn plms(
    model: &mut dyn Denoiser,
    mut x: Latents,
    steps: &[Step],
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut history: VecDeque<Latents> = VecDeque::new(); // noise estimates, the newest first
    let mut first: Option<(Latents, Step)> = None; // the first step's state, until it is made again
    for (i, step) in steps.iter().enumerate() {
        let at = Vp::new(step.level.sigma);
        let denoised = model.denoise(&(&x * (1.0 / at.signal) as f32), step.level)?;
        let eps = (&x - &(&denoised * at.signal as f32)) * (1.0 / at.noise) as f32;
        if let Some((start, made)) = first.take() {
            let mean = (&history[0] + &eps) * 0.5;
            x = transfer(&start, &mean, made);
        } else {
            history.push_front(eps);
            history.truncate(4);
            if i == 0 && steps.len() > 1 {
                first = Some((x.clone(), *step));
            }
            x = transfer(&x, &adams_bashforth(&history), *step);
        }
        run.observe(i, &x, &denoised)?;
    }
    Ok(x)
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
    let (now, next) = (Vp::new(step.level.sigma), Vp::new(step.sigma_next));
    let ratio = next.signal / now.signal;
    let mut result = x * ratio as f32;
    result.scaled_add((next.noise - now.noise * ratio) as f32, eps);
    result
}
