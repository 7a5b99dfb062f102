//! `ComfyUI`: its sampling nodes' rules. Its emphasis of words is not done yet: A1111's is used instead.

use super::{Prompts, Rules, Trained};
use crate::denoise::{Level, NoiseTable, Precision};
use crate::sampler::{
    DDIM, DDIM_CFGPP, DDPM, DEIS, DPM_MULTISTEP, DPM2, DPM2_ANCESTRAL, DPMPP_2M, EULER,
    EULER_ANCESTRAL, LCM, PLMS, RESTART, Sampler, Schedule, Space, TCD, UNIPC,
};
use crate::sigmas::{
    SD1, SDXL, Spread, align_your_steps, beta_timesteps, ddim_uniform, exponential, karras,
    kl_optimal, polyexponential, sgm_uniform, simple, turbo_ladder, uniform,
};

/// The rules.
pub static COMFYUI: Rules = Rules {
    name: "comfyui",
    sampler: |_| Ok(&EULER),
    solver,
    options: |_, options| options,
    step_seed: Some(1),
    spreads: |_| &Spread::ALL,
    automatic: |_, _| Ok(Spread::Normal),
    schedule: |sampler, spread, count, trained| {
        let spread = spread.unwrap_or(Spread::Normal);
        Ok(schedule(sampler, spread, count, trained))
    },
    guidance_scale: |asked| asked,
    prompts: Prompts::AttentionInstead,
    zero_negative: |_, _| false,
    refiner_is_apart: false,
    // "Stop at CLIP layer" counts layers; without it, it is the last but one.
    clip_skip_xl: |skip| skip.max(2),
    clip_skip_negative: true,
    // It takes the last layer but one of OpenCLIP anyway.
    clip_skip_open_clip: false,
    pixel: |value| value as u8,
};

/// What it does not have, or has in another form that is not done yet.
static NOT_THERE: [Sampler; 6] = [&PLMS, &RESTART, &UNIPC, &DEIS, &TCD, &DDIM_CFGPP];

/// Its "ddim" is Euler's method, and its "ddpm" in noise levels is that with ancestral noise.
fn solver(sampler: Sampler) -> Option<Sampler> {
    match sampler {
        s if s == &DDIM => Some(&EULER),
        s if s == &DDPM => Some(&EULER_ANCESTRAL),
        s if s == &DPM_MULTISTEP => Some(&DPMPP_2M),
        s if NOT_THERE.contains(&s) => None,
        s => Some(s),
    }
}

fn schedule(sampler: Sampler, spread: Spread, count: usize, trained: &Trained<'_>) -> Schedule {
    let table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Double).with_whole_timesteps();
    // "Discard penultimate sigma".
    let discards = [&DPM2, &DPM2_ANCESTRAL].contains(&sampler);
    let mut sigmas = sigmas(spread, count + usize::from(discards), &table, trained.xl);
    if discards {
        sigmas.pop();
    }
    let mut levels: Vec<Level> = sigmas.into_iter().map(|s| table.of_sigma(s)).collect();
    levels.push(Level::CLEAN);
    let most = levels[0].sigma;
    let initial_scale = match sampler.space {
        Space::Vp => 1.0,
        // What begins at the model's most noise is thought to have been scaled to unit variance.
        Space::Ve if most > table.sigma_max() * (1.0 - 1e-5) => (1.0 + most * most).sqrt(),
        Space::Ve => most,
    };
    let mut schedule = Schedule::chain(&levels, initial_scale, table);
    if sampler == &LCM {
        // Its "lcm" takes the model's estimate as it is.
        schedule.setup.timestep_scaling = None;
    }
    schedule
}

/// Noise levels without the final 0.
fn sigmas(spread: Spread, count: usize, table: &NoiseTable, xl: bool) -> Vec<f64> {
    match spread {
        Spread::Uniform | Spread::Normal => uniform(table, count),
        Spread::Karras => karras(table, count),
        Spread::Exponential => exponential(table, count),
        Spread::Polyexponential => polyexponential(table, count, 1.0),
        Spread::SgmUniform => sgm_uniform(table, count),
        Spread::KlOptimal => kl_optimal(table, count),
        Spread::AlignYourSteps => {
            // The last of one level more becomes 0.
            let family = if xl { &SDXL } else { &SD1 };
            let mut sigmas = align_your_steps(family, count + 1);
            sigmas.pop();
            sigmas
        }
        Spread::Simple => simple(table, count),
        Spread::Ddim => ddim_uniform(table, count),
        Spread::Beta => beta_timesteps(table, count),
        Spread::Turbo => turbo_ladder(table, count),
    }
}
