//! DPM-Solver-23 with an adaptive step (k-diffusion's `sample_dpm_adaptive`; Lu et al. 2022, arXiv:2206.00927, appendix C):
//! steps of second and third order are compared, and their difference decides whether the step is taken and how large the next
//! one is. Three model calls per try, so the number of calls depends on the picture; one draw per accepted step if eta is above
//! 0. It ends at the least noise, not at 0.

use super::dpm_solver::{Noise, ends, target};
use super::{Knob, Method, Options, Run, Schedule, Space};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver with as many steps as the picture needs.
pub static DPM_ADAPTIVE: Method = Method {
    name: "DPM adaptive",
    aliases: &["dpm_adaptive", "k_dpm_adaptive", "k_dpm_ad"],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: |_| None,
    solve: dpm_adaptive,
};

const RELATIVE_TOLERANCE: f64 = 0.05;
const ABSOLUTE_TOLERANCE: f64 = 0.0078;
const FIRST_STEP: f64 = 0.05;
/// Steps whose successor would be smaller than this share of them are tried again.
const ACCEPTED: f64 = 0.81;

/// `x`: latents [N, C, h, w] at the first step's noise level. Only the ends of the steps matter.
fn dpm_adaptive(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(0.0);
    let (mut lambda, end) = ends(schedule);
    let mut model = Noise::new(model, &schedule.table);
    let mut noise = Latents::zeros(x.raw_dim());
    let mut previous = x.clone();
    let (mut h, mut accepted) = (FIRST_STEP, 0);
    while lambda < end - 1e-5 {
        let to = (lambda + h).min(end);
        let (target, up) = target(lambda, to, end, eta);
        let eps = model.at(&x, lambda)?;
        let (low, high) = model.second_and_third(&x, &eps, lambda, target - lambda)?;
        // Noise makes the error one of half the order.
        let order = if eta > 0.0 { 1.5 } else { 3.0 };
        let factor = growth(error(&low, &high, &previous), order);
        h *= factor;
        // What is not a number is taken, too: trying it again would not end.
        if factor < ACCEPTED {
            continue;
        }
        (x, previous, lambda) = (high, low, to);
        if eta > 0.0 || options.idle_draws {
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(accepted, &x)?;
        accepted += 1;
    }
    Ok(x)
}

/// The difference of both steps in units of the tolerance, root mean square.
fn error(low: &Latents, high: &Latents, previous: &Latents) -> f64 {
    let sum: f64 =
        ndarray::Zip::from(low)
            .and(high)
            .and(previous)
            .fold(0.0, |sum, &low, &high, &previous| {
                let (low, high) = (f64::from(low), f64::from(high));
                let size = low.abs().max(f64::from(previous).abs());
                let tolerance = ABSOLUTE_TOLERANCE.max(RELATIVE_TOLERANCE * size);
                sum + ((low - high) / tolerance).powi(2)
            });
    (sum / low.len() as f64).sqrt()
}

/// What the next step is multiplied by.
fn growth(error: f64, order: f64) -> f64 {
    let wanted = (1.0 / (error + 1e-8)).powf(1.0 / order);
    1.0 + (wanted - 1.0).atan()
}
