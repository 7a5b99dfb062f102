//! DEIS: Zhang and Chen 2022 (arXiv:2204.13902), order 1 to 3: integrals over sigma of the polynomial through the last noise
//! estimates. It is one in ln(sigma) ("log rho"), or in the time of a variance-preserving SDE ("tab"). One model call per step,
//! no noise.

use std::collections::VecDeque;

use super::math::axpby;
use super::{Knots, Method, Options, Run, Schedule, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};
use crate::sigmas::linspace;

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
    let mut history: VecDeque<(Latents, f64)> = VecDeque::new(); // noise estimates and where they are, the newest first
    for (i, step) in schedule.steps.iter().enumerate() {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut eps = model.denoise(&x, step.from)?;
        axpby(&mut eps, -1.0 / from, &x, 1.0 / from);
        let knot = match schedule.setup.knots {
            Knots::LogSigma => from.ln(),
            Knots::Time => time(from),
        };
        history.push_front((eps, knot));
        history.truncate(3);
        let order = match to {
            0.0 => 1, // ln(0)
            _ => schedule.setup.order(i, 2).min(history.len()),
        };
        let knots: Vec<f64> = history.iter().take(order).map(|past| past.1).collect();
        let weights = match schedule.setup.knots {
            _ if order == 1 => vec![to - from],
            Knots::LogSigma => (0..order).map(|j| integral(&knots, j, from, to)).collect(),
            Knots::Time => sums(&knots, from, to),
        };
        for (weight, (eps, _)) in weights.iter().zip(&history) {
            x.scaled_add(*weight as f32, eps);
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
    // Of the polynomials l - c and (l - c)(l - d) = l^2 - (c + d) l + c d with l = ln(sigma).
    let primitive = |sigma: f64| {
        let l = sigma.ln();
        sigma
            * match knots.len() {
                2 => l - 1.0 - sum,
                _ => l * l - 2.0 * l + 2.0 - sum * (l - 1.0) + product,
            }
    };
    (primitive(to) - primitive(from)) / scale
}

/// Shape of the SDE: `ln(1 + sigma^2) = BETA_D / 2 t^2 + BETA_MIN t`, so that sigma is 0.002 at 0.001 and 80 at 1.
const BETA_D: f64 = 17.537_956_987_271_5;
/// The linear part.
const BETA_MIN: f64 = -0.004_768_986_493_722_6;

/// When the SDE has a noise level.
fn time(sigma: f64) -> f64 {
    ((BETA_MIN * BETA_MIN + 2.0 * BETA_D * (sigma * sigma).ln_1p()).sqrt() - BETA_MIN) / BETA_D
}

/// Integrals over sigma of the polynomials in time that are 1 at one knot and 0 at the others, as sums over 10000 points from
/// end to end, each of which stands for as many parts of the step.
fn sums(knots: &[f64], from: f64, to: f64) -> Vec<f64> {
    const POINTS: usize = 10_000;
    let (start, end) = (time(from), time(to));
    let mut totals = vec![0.0; knots.len()];
    for t in linspace(start, end, POINTS) {
        // d sigma / d t
        let exponent = 0.5 * BETA_D * t * t + BETA_MIN * t;
        let rate = (BETA_D * t + BETA_MIN) * exponent.exp() / (2.0 * exponent.exp_m1().sqrt());
        for (j, total) in totals.iter_mut().enumerate() {
            let others = knots.iter().enumerate().filter(|(k, _)| *k != j);
            let basis = others.map(|(_, knot)| (t - knot) / (knots[j] - knot));
            *total += rate * basis.product::<f64>();
        }
    }
    let part = (end - start) / POINTS as f64;
    totals.iter().map(|total| total * part).collect()
}
