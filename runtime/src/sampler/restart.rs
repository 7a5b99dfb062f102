//! Restart sampling: Xu et al. 2023 (arXiv:2306.14878), as A1111 sets it up: Heun steps down to noise level 0.1, then up to 2 by
//! fresh noise and down again, once or twice. From 20 steps on; the number of Heun steps is the one asked for. One draw per
//! restart.

use super::heun::heun_step;
use super::{Knob, Method, Options, Run, Schedule, Space, Step};
use crate::denoise::{DenoiseError, Denoiser, Latents, Level};
use crate::sigmas::karras_between;

/// Heun's method that goes back up.
pub static RESTART: Method = Method {
    name: "Restart",
    aliases: &["restart", "k_restart"],
    class: None,
    space: Space::Ve,
    knobs: &[Knob::Noise],
    calls: |schedule| {
        let calls = |step: &Step| if step.to.sigma > 0.0 { 2 } else { 1 };
        Some(steps(schedule).iter().map(calls).sum())
    },
    solve: restart,
};

/// Where restarts begin and end.
const LOW: f64 = 0.1;
const HIGH: f64 = 2.0;

/// `x`: latents [N, C, h, w] at the first step's noise level.
fn restart(
    model: &mut dyn Denoiser,
    mut x: Latents,
    schedule: &Schedule,
    options: &Options,
    run: &mut dyn Run,
) -> Result<Latents, DenoiseError> {
    let mut noise = Latents::zeros(x.raw_dim());
    let steps = steps(schedule);
    let mut now = steps[0].from.sigma;
    for (i, step) in steps.iter().enumerate() {
        let from = step.from.sigma;
        if now < from {
            run.noise(&mut noise);
            let up = (from * from - now * now).sqrt();
            x.scaled_add((up * options.s_noise) as f32, &noise);
        }
        heun_step(model, &mut x, step.from, step.to)?;
        now = step.to.sigma;
        run.step(i, &x)?;
    }
    Ok(x)
}

/// The way down with its restarts: Karras' spread between the schedule's first level and its last noisy one.
fn steps(schedule: &Schedule) -> Vec<Step> {
    let count = schedule.steps.len();
    let (ladder, times) = match count {
        ..20 => return schedule.steps.clone(),
        20..36 => (9, 1),
        _ => (count / 4, 2),
    };
    let spread = |most: f64, least: f64, count: usize| -> Vec<Level> {
        let sigmas = karras_between(most, least, count).into_iter();
        sigmas.map(|s| schedule.table.of_sigma(s)).collect()
    };
    let (most, least) = (schedule.steps[0].from, schedule.steps[count - 1].from);
    let mut down = spread(most.sigma, least.sigma, count - ladder * times);
    down.push(Level::CLEAN);
    let nearest = |sigma: f64| -> usize {
        let distance = |i: &usize| (down[*i].sigma - sigma).abs();
        let indices = 0..down.len();
        let found = indices.min_by(|a, b| distance(a).total_cmp(&distance(b)));
        found.expect("a schedule has levels")
    };
    let (low, high) = (nearest(LOW), nearest(HIGH));
    let chain = |levels: &[Level]| -> Vec<Step> {
        let pairs = levels.windows(2);
        pairs
            .map(|p| Step {
                from: p[0],
                to: p[1],
            })
            .collect()
    };
    let mut steps = chain(&down[..=low]);
    if high < low {
        let again = chain(&spread(down[high].sigma, down[low].sigma, ladder + 1));
        for _ in 0..times {
            steps.extend_from_slice(&again);
        }
    }
    steps.extend(chain(&down[low..]));
    steps
}
