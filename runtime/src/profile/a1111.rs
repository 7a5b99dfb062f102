//! AUTOMATIC1111's web UI: the rules under which most published settings were made.

use super::{Prompts, Rules};
use crate::denoise::{Level, NoiseTable, Precision, TIMESTEPS};
use crate::sampler::{DDIM, DPMPP_2M, PLMS, Sampler, Schedule};
use crate::sigmas::{Spread, karras, uniform};

/// The rules.
pub static A1111: Rules = Rules {
    name: "a1111",
    sampler: |_| Ok(&DPMPP_2M),
    spreads: |sampler| sampler != &DDIM && sampler != &PLMS,
    automatic: |sampler, _| Ok(automatic(sampler)),
    schedule: |_, spread, count, _| Ok(schedule(spread, count)),
    guidance_scale: |asked| asked,
    refiner_restarts: false,
    prompts: Prompts::Attention,
    zero_negative: |negative, _| negative.is_none_or(str::is_empty),
    clip_skip_xl: false,
    clip_skip_negative: true,
    // The web UI leaves OpenCLIP as it was trained.
    clip_skip_open_clip: false,
    pixel: |value| value as u8,
};

/// "Automatic" in its menus.
fn automatic(sampler: Sampler) -> Spread {
    match sampler {
        s if s == &DPMPP_2M => Spread::Karras,
        _ => Spread::Uniform,
    }
}

fn schedule(spread: Option<Spread>, count: usize) -> Schedule {
    let table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Products);
    let Some(spread) = spread else {
        return timesteps(table, count);
    };
    let sigmas = match spread {
        Spread::Uniform => uniform(&table, count),
        Spread::Karras => karras(&table, count),
    };
    let mut levels: Vec<Level> = sigmas.into_iter().map(|s| table.of_sigma(s)).collect();
    levels.push(Level::CLEAN);
    let most = levels[0].sigma;
    Schedule::chain(&levels, most, table)
}

/// DDIM's and PLMS' own timesteps: 1, 1 + k, .. with `k = 1000 / count`, of which the lowest is only stepped to.
fn timesteps(table: NoiseTable, count: usize) -> Schedule {
    let last = (TIMESTEPS - 1) as f64;
    let times = (0..TIMESTEPS)
        .step_by((TIMESTEPS / count).max(1))
        .map(|t| (t as f64 + 1.0).min(last));
    let mut levels: Vec<Level> = times.rev().map(|t| table.at(t)).collect();
    if levels.len() == 1 {
        // One step: straight from the only level to the least noise.
        levels.push(table.at(0.0));
    }
    Schedule::chain(&levels, 1.0, table)
}
