//! DPM-Solver++ of order 1 to 3, multistep, for the ODE and the SDE: Lu et al. 2022 (arXiv:2211.01095) in diffusers' form,
//! with lambda = -ln(sigma). One model call per step; for the SDE one draw per step, the last included.

use std::collections::VecDeque;

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
    let mut history: VecDeque<(Latents, f64)> = VecDeque::new(); // denoised and lambda, the newest first
    let mut noise = Latents::zeros(x.raw_dim());
    for (i, step) in schedule.steps.iter().enumerate() {
        let denoised = model.denoise(&x, step.from)?;
        history.push_front((denoised, -step.from.sigma.ln()));
        history.truncate(3);
        let order = match step.to.sigma {
            0.0 => 1, // an infinite step
            _ => setup.order(i, 2).min(history.len()),
        };
        let lambdas: Vec<f64> = history.iter().map(|past| past.1).collect();
        let h = -step.to.sigma.ln() - lambdas[0];
        let decay = if setup.sde { (-h).exp() } else { 1.0 };
        x *= (step.to.sigma / step.from.sigma * decay) as f32;
        for (weight, (denoised, _)) in weights(setup, order, h, &lambdas).iter().zip(&history) {
            x.scaled_add(*weight as f32, denoised);
        }
        if setup.sde {
            run.noise(&mut noise);
            let fresh = step.to.sigma * (-(-2.0 * h).exp_m1()).sqrt();
            x.scaled_add(fresh as f32, &noise);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// Weights of the last estimates, the newest first, for a step of `h` from the newest of `lambdas`.
fn weights(setup: &Setup, order: usize, h: f64, lambdas: &[f64]) -> [f64; 3] {
    // The SDE's drift is the ODE's over twice the step.
    let k = if setup.sde { 2.0 * h } else { h };
    let b = -(-k).exp_m1();
    // k -> 0 where a schedule repeats its last level.
    let of_first = if k == 0.0 { 0.0 } else { 1.0 - b / k };
    let difference = |new: f64, old: f64| h / (new - old);
    match order {
        1 => [b, 0.0, 0.0],
        2 => {
            let d1 = difference(lambdas[0], lambdas[1]);
            let w = d1
                * match setup.second_order {
                    SecondOrder::Midpoint => 0.5 * b,
                    SecondOrder::Heun => of_first,
                };
            [b + w, -w, 0.0]
        }
        _ => {
            let (near, far) = (
                difference(lambdas[0], lambdas[1]),
                difference(lambdas[1], lambdas[2]),
            );
            let sum = 1.0 / near + 1.0 / far;
            // D1 = near (m0 - m1) + (near (m0 - m1) - far (m1 - m2)) / (near sum);  D2 = (the same difference) / sum
            let share = 1.0 / (near * sum);
            // diffusers subtracts the half for the SDE.
            let half = if setup.sde { -0.5 } else { 0.5 };
            let of_second = if k == 0.0 {
                0.0
            } else {
                (b - k) / (k * k) + half
            };
            let of_difference = of_first * share + of_second / sum;
            [
                b + near * (of_first + of_difference),
                -near * (of_first + of_difference) - far * of_difference,
                far * of_difference,
            ]
        }
    }
}
