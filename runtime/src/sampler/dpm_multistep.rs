//! DPM-Solver++ of order 1 to 3, multistep, for the ODE and the SDE: Lu et al. 2022 (arXiv:2211.01095) in diffusers' form,
//! with lambda = -ln(sigma); and DPM-Solver (arXiv:2206.00927), the same in estimates of noise instead of clean latents. One
//! model call per step; for the SDE one draw per step, the last included.

use std::collections::VecDeque;

use sd_models::manifest::PredictionType;

use super::math::axpby;
use super::{Method, Options, Run, Schedule, SecondOrder, Setup, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// DPM-Solver++, multistep, of any order.
pub static DPM_MULTISTEP: Method = Method {
    name: "DPM-Solver++",
    aliases: &["dpmsolver", "dpmsolver++", "dpm_solver"],
    class: Some("DPMSolverMultistepScheduler"),
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: dpm_multistep,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn dpm_multistep(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let setup = &schedule.setup;
    let mut history: VecDeque<(Latents, f64)> = VecDeque::new(); // estimates and lambda, the newest first
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut estimate = model.denoise(&x, step.from)?;
        if of_noise(setup) {
            axpby(&mut estimate, -1.0 / from, &x, 1.0 / from);
        }
        history.push_front((estimate, -from.ln()));
        history.truncate(3);
        let order = match to {
            0.0 => 1, // an infinite step
            _ => setup.order(i, 2).min(history.len()),
        };
        let lambdas: Vec<f64> = history.iter().map(|past| past.1).collect();
        let h = -to.ln() - lambdas[0];
        // Of noise estimates the state is kept as it is, and they act as much as the level has noise.
        let (kept, scale, variance) = match of_noise(setup) {
            true => (1.0, to, (2.0 * h).exp_m1()),
            false if setup.sde => (to / from * (-h).exp(), 1.0, -(-2.0 * h).exp_m1()),
            false => (to / from, 1.0, 0.0),
        };
        x *= kept as f32;
        for (weight, (estimate, _)) in weights(setup, order, h, &lambdas).iter().zip(&history) {
            x.scaled_add((scale * weight) as f32, estimate);
        }
        if setup.sde {
            run.noise(&mut noise);
            x.scaled_add((to * variance.sqrt()) as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

fn of_noise(setup: &Setup) -> bool {
    setup.extrapolated == Some(PredictionType::Epsilon)
}

/// Weights of the last estimates, the newest first, for a step of `h` from the newest of `lambdas`.
fn weights(setup: &Setup, order: usize, h: f64, lambdas: &[f64]) -> [f64; 3] {
    // The exponential's argument over the step. The SDE's drift is the ODE's over twice the step, or twice the ODE's.
    let (q, times) = match (of_noise(setup), setup.sde) {
        (true, sde) => (h, if sde { 2.0 } else { 1.0 }),
        (false, true) => (-2.0 * h, 1.0),
        (false, false) => (-h, 1.0),
    };
    let value = -times * q.exp_m1();
    // q -> 0 where a schedule repeats its last level.
    let slope = match q {
        0.0 => 0.0,
        q => -times * (q.exp_m1() / q - 1.0),
    };
    let difference = |new: f64, old: f64| h / (new - old);
    match order {
        1 => [value, 0.0, 0.0],
        2 => {
            let of_slope = match setup.second_order {
                SecondOrder::Midpoint => 0.5 * value,
                SecondOrder::Heun => slope,
            };
            let w = difference(lambdas[0], lambdas[1]) * of_slope;
            [value + w, -w, 0.0]
        }
        _ => {
            let (near, far) = (
                difference(lambdas[0], lambdas[1]),
                difference(lambdas[1], lambdas[2]),
            );
            let sum = 1.0 / near + 1.0 / far;
            // D1 = near (m0 - m1) + (near (m0 - m1) - far (m1 - m2)) / (near sum);  D2 = (the same difference) / sum
            let share = 1.0 / (near * sum);
            // diffusers adds the half for the SDE.
            let half = if setup.sde { 0.5 } else { -0.5 };
            let curvature = match q {
                0.0 => 0.0,
                q => -times * ((q.exp_m1() - q) / (q * q) + half),
            };
            let of_difference = slope * share + curvature / sum;
            [
                value + near * (slope + of_difference),
                -near * (slope + of_difference) - far * of_difference,
                far * of_difference,
            ]
        }
    }
}
