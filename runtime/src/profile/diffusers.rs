//! Hugging Face diffusers, by the model directory's `scheduler_config.json`: of the class that a solver stands for, built
//! from that configuration.

use super::{ConfigError, Prompts, Rules, SchedulerConfig, Trained};
use crate::denoise::{Level, NoiseTable, Precision, TIMESTEPS};
use crate::sampler::{DDIM, DPMPP_2M, EULER, EULER_ANCESTRAL, PLMS, Sampler, Schedule, Step};
use crate::sigmas::{Spread, karras, karras_between, linspace};

/// The rules.
pub static DIFFUSERS: Rules = Rules {
    name: "diffusers",
    sampler: |trained| SchedulerConfig::read(trained.config)?.sampler(),
    solver: |sampler| {
        let done = [&EULER, &EULER_ANCESTRAL, &DPMPP_2M, &DDIM, &PLMS];
        done.contains(&sampler).then_some(sampler)
    },
    options: |_, options| options,
    step_seed: None,
    // The class of ancestral steps knows evenly spread timesteps only.
    spreads: |sampler| match [&DDIM, &PLMS, &EULER_ANCESTRAL].contains(&sampler) {
        true => &[],
        false => &[Spread::Uniform, Spread::Normal, Spread::Karras],
    },
    automatic: |_, trained| Ok(SchedulerConfig::read(trained.config)?.spread()),
    schedule,
    // Pipelines guide above 1 only.
    guidance_scale: |asked| asked.max(1.0),
    // The refiner is a pipeline of its own, with a scheduler of its own.
    refiner_restarts: true,
    prompts: Prompts::Plain,
    zero_negative: |negative, forced| negative.is_none() && forced,
    clip_skip_xl: |skip| skip + 1,
    // Pipelines hand the number to the prompt's encoding only.
    clip_skip_negative: false,
    clip_skip_open_clip: true,
    pixel: |value| value.round_ties_even() as u8,
};

fn schedule(
    sampler: Sampler,
    spread: Option<Spread>,
    count: usize,
    trained: &Trained<'_>,
) -> Result<Schedule, ConfigError> {
    let config = &SchedulerConfig::read(trained.config)?;
    let table = NoiseTable::scaled_linear(config.beta_start, config.beta_end, Precision::Single);
    let spacing = spacing_for(sampler, config);
    let offset = config.steps_offset as f64;
    let karras_sigmas = spread == Some(Spread::Karras);
    if sampler == &DDIM || sampler == &PLMS {
        let times = spacing.times(count, offset);
        return Ok(Schedule {
            steps: steps_down(&table, config, count, &times),
            initial_scale: 1.0,
            table,
        });
    }
    if sampler == &DPMPP_2M {
        let mut levels: Vec<Level> = if karras_sigmas {
            let rounded = |s| Level {
                sigma: s,
                t: table.of_sigma(s).t.round_ties_even(),
            };
            karras(&table, count).into_iter().map(rounded).collect()
        } else {
            let times = spacing.solver_times(count, offset);
            times.iter().map(|&t| table.at_linear(t)).collect()
        };
        levels.push(Level::CLEAN);
        let most = levels[0].sigma;
        let initial_scale = (most * most + 1.0).sqrt();
        return Ok(Schedule::chain(&levels, initial_scale, table));
    }
    let times = match spacing {
        Spacing::Linspace => fractional_times(count),
        _ => spacing.times(count, offset),
    };
    let mut levels: Vec<Level> = times.iter().map(|&t| table.at_linear(t)).collect();
    if karras_sigmas {
        let (most, least) = (levels[0].sigma, levels[levels.len() - 1].sigma);
        let sigmas = karras_between(most, least, count);
        levels = sigmas.into_iter().map(|s| table.of_sigma(s)).collect();
    }
    levels.push(Level::CLEAN);
    let most = levels[0].sigma;
    let initial_scale = match spacing {
        Spacing::Leading => (most * most + 1.0).sqrt(),
        _ => most,
    };
    Ok(Schedule::chain(&levels, initial_scale, table))
}

/// DDIM and PNDM step down by `1000 / count`, not to the next timestep; below 0 to the configured level.
fn steps_down(
    table: &NoiseTable,
    config: &SchedulerConfig,
    count: usize,
    times: &[f64],
) -> Vec<Step> {
    let stride = (TIMESTEPS / count) as f64;
    let clean = match config.set_alpha_to_one {
        true => Level::CLEAN,
        false => table.at(0.0),
    };
    let next = |t: f64| {
        if t < stride {
            clean
        } else {
            table.at(t - stride)
        }
    };
    let step = |&t| Step {
        from: table.at(t),
        to: next(t),
    };
    times.iter().map(step).collect()
}

/// A spacing that the file does not name is the default of the class that runs.
fn spacing_for(sampler: Sampler, config: &SchedulerConfig) -> Spacing {
    let by_class = match sampler {
        s if s == &DDIM || s == &PLMS => Spacing::Leading,
        _ => Spacing::Linspace,
    };
    config.timestep_spacing.unwrap_or(by_class)
}

/// Euler classes keep the fractions of evenly spread timesteps.
fn fractional_times(count: usize) -> Vec<f64> {
    let mut times: Vec<f64> = linspace(0.0, 999.0, count)
        .map(|t| f64::from(t as f32))
        .collect();
    times.reverse();
    times
}

/// How diffusers spreads timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    /// Multiples of a whole stride.
    Leading,
    /// From 0 to 999, both included.
    Linspace,
    /// From 999 down by even, rounded strides.
    Trailing,
}

impl Spacing {
    /// Descending timesteps.
    fn times(self, count: usize, offset: f64) -> Vec<f64> {
        let stride = TIMESTEPS / count;
        match self {
            Self::Leading => (0..count)
                .rev()
                .map(|i| (i * stride) as f64 + offset)
                .collect(),
            Self::Linspace => {
                // numpy's linspace of one number is the lower end.
                let up: Vec<f64> = linspace(0.0, 999.0, count)
                    .map(f64::round_ties_even)
                    .collect();
                up.into_iter().rev().collect()
            }
            Self::Trailing => {
                let step = TIMESTEPS as f64 / count as f64;
                (0..count)
                    .map(|i| (TIMESTEPS as f64 - i as f64 * step).round_ties_even() - 1.0)
                    .collect()
            }
        }
    }

    /// Descending timesteps of the DPM-Solver classes, which leave out the lowest of one more.
    fn solver_times(self, count: usize, offset: f64) -> Vec<f64> {
        let mut times = match self {
            Self::Leading => {
                let stride = TIMESTEPS / (count + 1);
                (0..=count)
                    .rev()
                    .map(|i| (i * stride) as f64 + offset)
                    .collect()
            }
            Self::Linspace => Self::Linspace.times(count + 1, offset),
            Self::Trailing => return Self::Trailing.times(count, offset),
        };
        times.truncate(count);
        times
    }
}
