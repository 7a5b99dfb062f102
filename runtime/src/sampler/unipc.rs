//! `UniPC`: Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8, multistep, with lambda = -ln(sigma).
//!
//! Every step predicts the next state from the last estimates; the model's estimate there, which the next step needs anyway,
//! then corrects the state. The last state stays uncorrected. One model call per step, no noise.

use std::collections::VecDeque;

use sd_models::manifest::PredictionType;

use super::math::{axpby, euler_step, solve};
use super::{Bh, Method, Options, Run, Schedule, Setup, Space, one_call};
use crate::denoise::{DenoiseError, Denoiser, Latents};

/// Unified predictor-corrector.
pub static UNIPC: Method = Method {
    name: "UniPC",
    aliases: &["unipc", "uni_pc"],
    class: Some("UniPCMultistepScheduler"),
    space: Space::Ve,
    knobs: &[],
    calls: one_call,
    solve: unipc,
};

/// The same with the paper's second function of the step size, where programs have both by name.
pub static UNIPC_BH2: Method = Method {
    name: "UniPC bh2",
    aliases: &["uni_pc_bh2", "unipc_bh2"],
    ..UNIPC
};

/// What the model estimated at a level: clean latents, or noise.
struct Estimate {
    value: Latents,
    sigma: f64,
}

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn unipc(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    _: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let setup = &schedule.setup;
    let mut history: VecDeque<Estimate> = VecDeque::new(); // the newest first
    let mut last: Option<(Latents, usize)> = None; // state and order at the start of the step before
    for (i, step) in schedule.steps.iter().enumerate() {
        let sigma = step.from.sigma;
        let mut value = model.denoise(&x, step.from)?;
        if of_noise(setup) {
            axpby(&mut value, -1.0 / sigma, &x, 1.0 / sigma);
        }
        let new = Estimate { value, sigma };
        if let Some((start, order)) = last {
            x = update(setup, start, &history, sigma, order, Some(&new.value));
        }
        history.push_front(new);
        history.truncate(3);
        // First order where the step is infinite or none.
        let order = match step.to.sigma {
            0.0 => 1,
            to if to == sigma => 1,
            _ => setup.order(i, 2).min(history.len()),
        };
        let start = x;
        x = update(setup, start.clone(), &history, step.to.sigma, order, None);
        last = Some((start, order));
        run.step(i, &x)?;
    }
    Ok(x)
}

fn of_noise(setup: &Setup) -> bool {
    setup.extrapolated == Some(PredictionType::Epsilon)
}

/// From state `x` at the level of the newest estimate to level `to`; corrected by the estimate there if it is known.
fn update(
    setup: &Setup,
    mut x: Latents,
    history: &VecDeque<Estimate>,
    to: f64,
    order: usize,
    there: Option<&Latents>,
) -> Latents {
    let Estimate { value: now, sigma } = &history[0];
    let step = (sigma / to).ln();
    // The estimates that differences are taken of, and where they are, in steps from the newest.
    let older = history.iter().skip(1).take(order - 1);
    let mut others: Vec<(&Latents, f64)> = older
        .map(|old| (&old.value, (sigma / old.sigma).ln() / step))
        .collect();
    others.extend(there.map(|there| (there, 1.0)));
    let (h, scale) = if of_noise(setup) {
        axpby(&mut x, 1.0, now, to - sigma);
        (step, to)
    } else {
        euler_step(&mut x, now, *sigma, to);
        (-step, 1.0)
    };
    let places: Vec<f64> = others.iter().map(|other| other.1).collect();
    for ((other, place), weight) in others.iter().zip(weights(setup.bh, h, &places)) {
        let weight = scale * weight / place;
        x.scaled_add(-weight as f32, other);
        x.scaled_add(weight as f32, now);
    }
    x
}

/// Weights of differences at `places`, times B(h).
fn weights(bh: Bh, h: f64, places: &[f64]) -> Vec<f64> {
    let b = match bh {
        Bh::One => h,
        Bh::Two => h.exp_m1(),
    };
    if let [_] = places {
        return vec![0.5 * b]; // the paper's, for one difference
    }
    let (mut phi, mut factorial) = (h.exp_m1() / h - 1.0, 1.0);
    let (mut rows, mut sides) = (Vec::new(), Vec::new());
    for k in 0..places.len() {
        rows.push(places.iter().map(|place| place.powi(k as i32)).collect());
        sides.push(phi * factorial);
        factorial *= (k + 2) as f64;
        phi = phi / h - 1.0 / factorial;
    }
    solve(rows, sides)
}
