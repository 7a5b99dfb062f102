//! DPM-Solver-fast: Lu et al. 2022 (arXiv:2206.00927), section 3.4: as many model calls as there are steps, in intervals of
//! order 3 that are even in lambda = -ln(sigma), then lower orders for the rest. It ends at the least noise, not at 0. One draw
//! per interval if eta is above 0.

use super::dpm_solver::{Noise, ends, target};
use super::{Knob, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};
use crate::sigmas::linspace;

/// DPM-Solver with a given number of calls.
pub static DPM_FAST: Method = Method {
    name: "DPM fast",
    aliases: &["dpm_fast", "k_dpm_fast"],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Eta, Knob::Noise],
    calls: one_call,
    solve: dpm_fast,
};

/// `x`: latents [N, C, h, w] at the first step's noise level. Only number and ends of the steps matter.
fn dpm_fast(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let eta = options.eta.unwrap_or(0.0);
    let (start, end) = ends(schedule);
    let orders = orders(schedule.steps.len());
    let lambdas: Vec<f64> = linspace(start, end, orders.len() + 1).collect();
    let mut model = Noise::new(model, &schedule.table);
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, order) in orders.into_iter().enumerate() {
        let (from, to) = (lambdas[i], lambdas[i + 1]);
        let (target, up) = target(from, to, end, eta);
        x = model.step(order, &x, from, target - from)?;
        if eta > 0.0 || options.idle_draws {
            run.noise(&mut noise);
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// Orders of the intervals, which add up to the number of calls.
fn orders(calls: usize) -> Vec<usize> {
    let mut orders = vec![3; calls / 3];
    match calls % 3 {
        0 => {
            orders.pop();
            orders.extend([2, 1]);
        }
        rest => orders.push(rest),
    }
    orders
}
