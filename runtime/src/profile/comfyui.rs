//! `ComfyUI`: its sampling nodes' rules, and those of its prompts.

use super::{Prompts, Rules, Trained};
use crate::denoise::{Level, NoiseTable, Precision};
use crate::sampler::{
    Bh, DDIM, DDIM_CFGPP, DDPM, DEIS, DPM_MULTISTEP, DPM2, DPM2_ANCESTRAL, DPMPP_2M, EULER,
    EULER_ANCESTRAL, Knots, LCM, PLMS, RESTART, Sampler, Schedule, Setup, Space, TCD, UNIPC,
    UNIPC_BH2,
};
use crate::sigmas::{
    SD1, SDXL, Spread, align_your_steps, beta_timesteps, ddim_uniform, exponential, karras,
    kl_optimal, linear_quadratic, polyexponential, sgm_uniform, simple, turbo_ladder, uniform,
};
use crate::text::Emphasis;

/// The rules.
pub static COMFYUI: Rules = Rules {
    name: "comfyui",
    sampler: |_| Ok(&EULER),
    solver,
    options: |_, options| options,
    step_seed: Some(1),
    batch_is_one_draw: true,
    spreads: |_| &Spread::ALL,
    automatic: |_, _| Ok(Spread::Normal),
    schedule: |sampler, spread, count, trained| {
        let spread = spread.unwrap_or(Spread::Normal);
        Ok(schedule(sampler, spread, count, trained))
    },
    notes: |_, _| Vec::new(),
    guidance_scale: |asked| asked,
    has_comments: false,
    prompts: Prompts::Comfyui,
    edited_over: |_, steps| steps,
    emphasis: Emphasis::Comfyui,
    zero_negative: |_, _| false,
    refiner_is_apart: false,
    // "Stop at CLIP layer" counts layers; without it, it is the last but one.
    clip_skip_xl: |skip| skip.max(2),
    clip_skip_negative: true,
    // It takes the last layer but one of OpenCLIP anyway.
    clip_skip_open_clip: false,
    pixel: |value| value as u8,
};

/// What it does not have.
static NOT_THERE: [Sampler; 4] = [&PLMS, &RESTART, &TCD, &DDIM_CFGPP];

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

/// Where its `UniPC` ends instead of 0.
const UNIPC_END: Level = Level {
    sigma: 0.001,
    t: 0.0,
};

fn schedule(sampler: Sampler, spread: Spread, count: usize, trained: &Trained<'_>) -> Schedule {
    let table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Double).with_whole_timesteps();
    let unipc = [&UNIPC, &UNIPC_BH2].contains(&sampler);
    // "Discard penultimate sigma".
    let discards = unipc || [&DPM2, &DPM2_ANCESTRAL].contains(&sampler);
    let mut sigmas = sigmas(spread, count + usize::from(discards), &table, trained.xl);
    if discards {
        sigmas.pop();
    }
    let mut levels: Vec<Level> = sigmas.into_iter().map(|s| table.of_sigma(s)).collect();
    levels.push(if unipc { UNIPC_END } else { Level::CLEAN });
    let most = levels[0].sigma;
    let initial_scale = match sampler.space {
        Space::Vp => 1.0,
        // What begins at the model's most noise is thought to have been scaled to unit variance.
        Space::Ve if most > table.sigma_max() * (1.0 - 1e-5) => (1.0 + most * most).sqrt(),
        Space::Ve => most,
    };
    Schedule {
        setup: setup(sampler, levels.len() - 1),
        ..Schedule::chain(&levels, initial_scale, table)
    }
}

/// The forms that it has of solvers.
fn setup(sampler: Sampler, count: usize) -> Setup {
    let own = Setup::default();
    match sampler {
        // The model's estimate is taken as it is.
        s if s == &LCM => Setup {
            timestep_scaling: None,
            ..own
        },
        s if s == &DEIS => Setup {
            orders: vec![3; count],
            knots: Knots::Time,
            ..own
        },
        s if [&UNIPC, &UNIPC_BH2].contains(&s) => {
            let order = (count - 1).clamp(1, 3);
            Setup {
                orders: (0..count).map(|i| (count - i).min(order)).collect(),
                bh: if s == &UNIPC { Bh::One } else { Bh::Two },
                ..own
            }
        }
        _ => own,
    }
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
        Spread::LinearQuadratic => linear_quadratic(table, count),
    }
}
