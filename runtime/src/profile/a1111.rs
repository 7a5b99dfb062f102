//! AUTOMATIC1111's web UI: the rules under which most published settings were made. Solvers that it lacks follow them, too.

use super::{Prompts, Rules, Trained};
use crate::denoise::{Level, NoiseTable, Precision, TIMESTEPS};
use crate::sampler::{
    Bh, DDIM, DDIM_CFGPP, DDPM, DEIS, DPM_ADAPTIVE, DPM_FAST, DPM_MULTISTEP, DPM2, DPM2_ANCESTRAL,
    DPMPP_2M, DPMPP_2M_CFGPP, DPMPP_2M_SDE, DPMPP_2M_SDE_HEUN, DPMPP_2S_ANCESTRAL,
    DPMPP_2S_ANCESTRAL_CFGPP, DPMPP_3M_SDE, DPMPP_SDE, EULER_ANCESTRAL_CFGPP, EULER_CFGPP, HEUN,
    LCM, Options, PLMS, RESTART, Sampler, Schedule, Setup, Space, TCD, UNIPC, UNIPC_BH2,
};
use crate::sigmas::{
    SD1_ROUNDED, SDXL_ROUNDED, Spread, Table, align_your_steps, beta, ddim_uniform, exponential,
    exponential_between, karras, kl_optimal, kl_optimal_between, linspace, polyexponential,
    sgm_uniform, simple, turbo, uniform,
};
use crate::text::Emphasis;

/// The rules.
pub static A1111: Rules = Rules {
    name: "a1111",
    sampler: |_| Ok(&DPMPP_2M),
    solver: |sampler| match sampler {
        s if NOT_THERE.contains(&s) => None,
        s if s == &DPM_MULTISTEP => Some(&DPMPP_2M),
        s => Some(s),
    },
    options: |sampler, options| Options {
        // Every solver that k-diffusion gives an eta gets the one of ancestral steps.
        eta: options
            .eta
            .or(takes_the_models_ends(sampler).then_some(1.0)),
        idle_draws: true,
        ..options
    },
    step_seed: None,
    batch_is_one_draw: false,
    spreads: |sampler| match sampler {
        s if has_timesteps(s) || is_unipc(s) || takes_the_models_ends(s) => &[],
        s if s == &LCM => &SPREADS[..11],
        _ => &SPREADS,
    },
    automatic: |sampler, _| Ok(automatic(sampler)),
    schedule: |sampler, spread, count, trained| Ok(schedule(sampler, spread, count, trained)),
    notes: |_, _| Vec::new(),
    guidance_scale: |asked| asked,
    refiner_is_apart: false,
    has_comments: true,
    prompts: Prompts::Attention,
    edited_over: |sampler, steps| match IS_SECOND_ORDER.contains(&sampler) {
        true => 2 * steps,
        false => steps,
    },
    emphasis: Emphasis::Original,
    zero_negative: |negative, _| negative.is_none_or(str::is_empty),
    clip_skip_xl: |_| 2,
    clip_skip_negative: true,
    // The web UI leaves OpenCLIP as it was trained.
    clip_skip_open_clip: false,
    pixel: |value| value as u8,
};

/// What it does not have.
static NOT_THERE: [Sampler; 7] = [
    &DDPM,
    &DEIS,
    &TCD,
    &EULER_CFGPP,
    &EULER_ANCESTRAL_CFGPP,
    &DPMPP_2S_ANCESTRAL_CFGPP,
    &DPMPP_2M_CFGPP,
];

/// Those that it says are of second order: it counts two calls of the model for each of their steps.
static IS_SECOND_ORDER: [Sampler; 6] = [
    &HEUN,
    &DPM2,
    &DPM2_ANCESTRAL,
    &DPMPP_2S_ANCESTRAL,
    &DPMPP_SDE,
    &RESTART,
];

/// Its "schedule types", and Forge's for few steps, which LCM's levels have no place in.
static SPREADS: [Spread; 12] = [
    Spread::Uniform,
    Spread::Karras,
    Spread::Exponential,
    Spread::Polyexponential,
    Spread::SgmUniform,
    Spread::KlOptimal,
    Spread::AlignYourSteps,
    Spread::Simple,
    Spread::Normal,
    Spread::Ddim,
    Spread::Beta,
    Spread::Turbo,
];

/// `UniPC` with either of its options "variant".
fn is_unipc(sampler: Sampler) -> bool {
    [&UNIPC, &UNIPC_BH2].contains(&sampler)
}

/// Solvers with timesteps of their own.
fn has_timesteps(sampler: Sampler) -> bool {
    [&DDIM, &DDIM_CFGPP, &PLMS].contains(&sampler)
}

/// Solvers that are not given levels, but the model's most and least noise.
fn takes_the_models_ends(sampler: Sampler) -> bool {
    [&DPM_FAST, &DPM_ADAPTIVE].contains(&sampler)
}

/// "Automatic" in its menus.
fn automatic(sampler: Sampler) -> Spread {
    let karras = [
        &DPMPP_2M,
        &DPMPP_SDE,
        &DPMPP_2S_ANCESTRAL,
        &DPM2,
        &DPM2_ANCESTRAL,
        &RESTART,
    ];
    let exponential = [&DPMPP_2M_SDE, &DPMPP_2M_SDE_HEUN, &DPMPP_3M_SDE];
    match sampler {
        s if karras.contains(&s) => Spread::Karras,
        s if exponential.contains(&s) => Spread::Exponential,
        _ => Spread::Uniform,
    }
}

fn schedule(
    sampler: Sampler,
    spread: Option<Spread>,
    count: usize,
    trained: &Trained<'_>,
) -> Schedule {
    let mut table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Products);
    if trained.config["rescale_betas_zero_snr"] == true {
        table = table.zero_terminal_snr(ZERO_SNR);
    }
    let sigmas = match spread {
        None if is_unipc(sampler) => {
            let bh = if sampler == &UNIPC { Bh::One } else { Bh::Two };
            return unipc_clock(table, count, bh);
        }
        None if has_timesteps(sampler) => return timesteps(table, count),
        None => exponential(&table, count + 1),
        Some(spread) if sampler == &LCM => {
            let levels = lcm_levels(&table, spread, count, trained.xl);
            return Schedule::chain(&levels, levels[0].sigma, table);
        }
        Some(spread) => sigmas(sampler, spread, count, &table, trained.xl),
    };
    let level = |sigma: f64| match sigma {
        0.0 => Level::CLEAN,
        _ => table.of_sigma(sigma),
    };
    let levels: Vec<Level> = sigmas.into_iter().map(level).collect();
    let initial_scale = match sampler.space {
        Space::Ve => levels[0].sigma,
        Space::Vp => 1.0,
    };
    Schedule::chain(&levels, initial_scale, table)
}

/// Noise levels with their end.
fn sigmas(
    sampler: Sampler,
    spread: Spread,
    count: usize,
    table: &NoiseTable,
    xl: bool,
) -> Vec<f64> {
    // "Discard next-to-last sigma".
    let discards = [&DPM2, &DPM2_ANCESTRAL, &DPMPP_3M_SDE].contains(&sampler);
    let count = count + usize::from(discards);
    let mut sigmas = match spread {
        Spread::Uniform | Spread::Normal => uniform(table, count),
        Spread::Karras => karras(table, count),
        Spread::Exponential => exponential(table, count),
        Spread::Polyexponential => polyexponential(table, count, 1.0),
        Spread::SgmUniform => sgm_uniform(table, count),
        // Its last level is the model's least noise.
        Spread::KlOptimal => kl_optimal(table, count + 1),
        Spread::AlignYourSteps => align_your_steps(table_of_family(xl), count),
        Spread::Simple => simple(table, count),
        Spread::Ddim => ddim_uniform(table, count),
        Spread::Beta => beta(table, count),
        Spread::Turbo | Spread::LinearQuadratic => turbo(table, count),
    };
    if spread != Spread::KlOptimal {
        sigmas.push(0.0);
    }
    if discards {
        sigmas.remove(sigmas.len() - 2);
    }
    sigmas
}

/// The last product of models that were trained down to a signal of 0.
const ZERO_SNR: f32 = 4.897_345e-8;

/// LCM knows the 50 levels of its training, 19, 39, .. 999: between them ln(sigma) is linear, spreads go over them as others
/// go over the table, and the model is told the nearest.
fn lcm_levels(table: &NoiseTable, spread: Spread, count: usize, xl: bool) -> Vec<Level> {
    let known: Vec<Level> = (0..50).map(|i| table.at(f64::from(20 * i + 19))).collect();
    let (most, least) = (known[49].sigma, known[0].sigma);
    let at = |place: f64| {
        let (low, high) = (known[place.floor() as usize], known[place.ceil() as usize]);
        let weight = place.fract();
        ((1.0 - weight) * low.sigma.ln() + weight * high.sigma.ln()).exp()
    };
    let even = |count: usize| linspace(49.0, 0.0, count).map(at);
    let sigmas: Vec<f64> = match spread {
        Spread::SgmUniform => even(count + 1).take(count).collect(),
        Spread::Simple => (0..count)
            .map(|i| known[49 - i * 50 / count].sigma)
            .collect(),
        Spread::Ddim => {
            let strides = known[1..].iter().step_by((50 / count).max(1));
            strides.rev().map(|level| level.sigma).collect()
        }
        Spread::Polyexponential => exponential_between(most, least, count),
        // Its last level is the least noise.
        Spread::KlOptimal => kl_optimal_between(most, least, count + 1),
        Spread::AlignYourSteps => align_your_steps(table_of_family(xl), count),
        other => match other.between(most, least, count) {
            Some(sigmas) => sigmas,
            None => even(count).collect(),
        },
    };
    let nearest = |sigma: f64| {
        let distance = |level: &&Level| (level.sigma.ln() - sigma.ln()).abs();
        let by_distance = |a: &&Level, b: &&Level| distance(a).total_cmp(&distance(b));
        let t = known
            .iter()
            .min_by(by_distance)
            .map_or(0.0, |level| level.t);
        Level { sigma, t }
    };
    let mut levels: Vec<Level> = sigmas.into_iter().map(nearest).collect();
    if spread != Spread::KlOptimal {
        levels.push(Level::CLEAN);
    }
    levels
}

/// Align Your Steps' levels for a model.
fn table_of_family(xl: bool) -> &'static Table {
    if xl { &SDXL_ROUNDED } else { &SD1_ROUNDED }
}

/// `UniPC`'s own clock: even in time from 1 to 1/1000, where time `u` is timestep `1000 u - 1` and the logarithm of `abar`
/// is linear in between. It ends at the least noise of training.
fn unipc_clock(table: NoiseTable, count: usize, bh: Bh) -> Schedule {
    // As many steps as DDIM has timesteps.
    let count = TIMESTEPS.div_ceil((TIMESTEPS / count).max(1));
    let log = |t: f64| -table.at(t).sigma.powi(2).ln_1p();
    let at = |t: f64| {
        let weight = t.fract();
        let log = (1.0 - weight) * log(t.floor()) + weight * log(t.ceil());
        Level {
            sigma: (-log).exp_m1().sqrt(),
            t,
        }
    };
    let last = (TIMESTEPS - 1) as f64;
    let levels: Vec<Level> = linspace(last, 0.0, count + 1).map(at).collect();
    let variance = |level: Level| 1.0 + level.sigma * level.sigma;
    let (most, least) = (variance(levels[0]).sqrt(), variance(levels[count]).sqrt());
    Schedule {
        final_scale: 1.0 / least,
        setup: Setup {
            orders: (0..count).map(|i| (count - i).min(3)).collect(),
            bh,
            ..Setup::default()
        },
        ..Schedule::chain(&levels, most, table)
    }
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
