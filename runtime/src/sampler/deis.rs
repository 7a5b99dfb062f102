//! DEIS: Zhang and Chen 2022 (arXiv:2204.13902), "log rho", order 1 to 3: exact integrals over sigma of the polynomial in
//! ln(sigma) through the last noise estimates. One model call per step, no noise.

use std::collections::VecDeque;

use super::math::axpby;
use super::{Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Diffusion exponential integrator sampler.
pub static DEIS: Method = Method {
    name: "DEIS",
    aliases: &["deis"],
    class: Some("DEISMultistepScheduler"),
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: deis,
};

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn deis(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut history: VecDeque<(Latents, f64)> = VecDeque::new(); // noise estimates and ln(sigma), the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut eps = model.denoise(&x, step.from)?;
        axpby(&mut eps, -1.0 / from, &x, 1.0 / from);
        history.push_front((eps, from.ln()));
        history.truncate(3);
        let order = match to {
            0.0 => 1, // ln(0)
            _ => schedule.setup.order(i, 2).min(history.len()),
        };
        let knots: Vec<f64> = history.iter().take(order).map(|past| past.1).collect();
        for (j, (eps, _)) in history.iter().take(order).enumerate() {
            x.scaled_add(integral(&knots, j, from, to) as f32, eps);
        }
        run.step(i, &x)?;
    }
    Ok(x)
}

/// The integral over sigma, `from` to `to`, of the Lagrange polynomial in ln(sigma) that is 1 at knot `j` and 0 at the others.
fn integral(knots: &[f64], j: usize, from: f64, to: f64) -> f64 {
    let others = || (0..knots.len()).filter(|&k| k != j).map(|k| knots[k]);
    let scale: f64 = others().map(|other| knots[j] - other).product();
    let (sum, product): (f64, f64) = (others().sum(), others().product());
    // Of the polynomials 1, l - c and (l - c)(l - d) = l^2 - (c + d) l + c d with l = ln(sigma).
    let primitive = |sigma: f64| {
        let l = sigma.ln();
        sigma
            * match knots.len() {
                1 => 1.0,
                2 => l - 1.0 - sum,
                _ => l * l - 2.0 * l + 2.0 - sum * (l - 1.0) + product,
            }
    };
    match knots.len() {
        1 => to - from,
        _ => (primitive(to) - primitive(from)) / scale,
    }
}
