//! Hugging Face diffusers, by the model directory's `scheduler_config.json`: of the class that a solver stands for, built
//! from that configuration.

use sd_models::manifest::PredictionType;
use serde_json::{Value, json};

use super::scheduler_config::{Class, ConfigError, SchedulerConfig, class, plain, same};
use super::{Prompts, Rules, Trained};
use crate::denoise::{Level, NoiseTable, TIMESTEPS};
use crate::sampler::{
    Bh, DPM_MULTISTEP, METHODS, Method, Sampler, Schedule, SecondOrder, Setup, Step,
};
use crate::sigmas::{Spread, linspace};
use crate::text::Emphasis;

/// The rules.
pub static DIFFUSERS: Rules = Rules {
    name: "diffusers",
    sampler,
    solver: |sampler| match set_up(sampler).0 {
        Some(DPM_SOLVER) => DPM_SOLVERS.iter().find(|method| *method == sampler),
        Some(name) => class(name).map(|_| sampler),
        None => None,
    },
    options: |_, options| options,
    step_seed: None,
    // Pipelines are given one generator for all.
    batch_is_one_draw: true,
    spreads: |sampler| match class_of(sampler).is_ok_and(Class::spreads) {
        true => &[
            Spread::Uniform,
            Spread::Normal,
            Spread::Karras,
            Spread::Exponential,
            Spread::Beta,
        ],
        false => &[],
    },
    automatic: |sampler, trained| Ok(config(sampler, trained)?.spread()),
    schedule: |sampler, spread, count, trained| {
        let config = config(sampler, trained)?;
        let spread = spread.filter(|spread| *spread != Spread::Normal); // the same here
        (class_of(sampler)?.schedule)(&config, spread.unwrap_or(Spread::Uniform), count)
    },
    notes,
    // Pipelines guide above 1 only.
    guidance_scale: |asked| asked.max(1.0),
    // The refiner is a pipeline of its own, with a scheduler of its own.
    refiner_is_apart: true,
    has_comments: false,
    prompts: Prompts::Plain,
    edited_over: |_, steps| steps,
    emphasis: Emphasis::Ignore,
    zero_negative: |negative, forced| negative.is_none() && forced,
    clip_skip_xl: |skip| skip + 1,
    // Pipelines hand the number to the prompt's encoding only.
    clip_skip_negative: false,
    clip_skip_open_clip: true,
    pixel: |value| value.round_ties_even() as u8,
};

const DPM_SOLVER: &str = "DPMSolverMultistepScheduler";

/// That class by all of its names, each of which sets it up in its own way.
static DPM_SOLVERS: [Method; 5] = [
    Method {
        name: "DPM++ 2M",
        ..DPM_MULTISTEP
    },
    Method {
        name: "DPM++ 2M SDE",
        ..DPM_MULTISTEP
    },
    Method {
        name: "DPM++ 2M SDE Heun",
        ..DPM_MULTISTEP
    },
    Method {
        name: "DPM++ 3M SDE",
        ..DPM_MULTISTEP
    },
    Method {
        name: "DPM-Solver++",
        ..DPM_MULTISTEP
    },
];

/// The class that a solver is, and the fields that its name sets.
fn set_up(sampler: Sampler) -> (Option<&'static str>, Vec<(&'static str, Value)>) {
    let dpm_solver = |algorithm: &str, order: u32| {
        vec![
            ("algorithm_type", json!(algorithm)),
            ("solver_order", json!(order)),
        ]
    };
    let sde = |solver: &str| {
        let mut set = dpm_solver("sde-dpmsolver++", 2);
        set.push(("solver_type", json!(solver)));
        set
    };
    let set = match sampler.name {
        "DPM++ 2M" => dpm_solver("dpmsolver++", 2),
        "DPM++ 2M SDE" => sde("midpoint"),
        "DPM++ 2M SDE Heun" => sde("heun"),
        "DPM++ 3M SDE" => dpm_solver("sde-dpmsolver++", 3),
        "UniPC bh2" => return (sampler.class, vec![("solver_type", json!("bh2"))]),
        _ => return (sampler.class, Vec::new()),
    };
    (Some(DPM_SOLVER), set)
}

fn class_of(sampler: Sampler) -> Result<&'static Class, ConfigError> {
    let found = set_up(sampler).0.and_then(class);
    found.ok_or_else(|| ConfigError {
        field: "the solver".to_owned(),
        found: sampler.name.to_owned(),
        supported: "one that diffusers has".to_owned(),
    })
}

fn config(sampler: Sampler, trained: &Trained<'_>) -> Result<SchedulerConfig, ConfigError> {
    let mut set = set_up(sampler).1;
    set.extend(set_by_pipeline(trained));
    SchedulerConfig::read(class_of(sampler)?, trained.config, &set)
}

/// What `StableDiffusionPipeline` sets in its scheduler's configuration, whatever the file says. SDXL's pipelines and that of
/// latent consistency models do not.
fn set_by_pipeline(trained: &Trained<'_>) -> Vec<(&'static str, Value)> {
    let consistency = trained.config["_class_name"] == "LCMScheduler";
    match trained.xl || consistency {
        true => Vec::new(),
        false => vec![("steps_offset", json!(1)), ("clip_sample", json!(false))],
    }
}

/// Where the pipeline's settings are others than the file's.
fn notes(sampler: Sampler, trained: &Trained<'_>) -> Vec<String> {
    let Ok(class) = class_of(sampler) else {
        return Vec::new();
    };
    let note = |(field, value): (&'static str, Value)| {
        let found = class.value(field, trained.config)?;
        let name = class.name;
        (!same(&found, &value)).then(|| {
            format!(
                "{field} of {name} is {value}, as diffusers' StableDiffusionPipeline sets it, instead of {}",
                plain(&found)
            )
        })
    };
    set_by_pipeline(trained)
        .into_iter()
        .filter_map(note)
        .collect()
}

/// The solver that the class named in the file stands for.
fn sampler(trained: &Trained<'_>) -> Result<Sampler, ConfigError> {
    let name = trained.config["_class_name"].as_str();
    let name = name.unwrap_or("PNDMScheduler");
    let unknown = || ConfigError {
        field: "_class_name".to_owned(),
        found: name.to_owned(),
        supported: "the class of a solver that this program has; another one can be chosen"
            .to_owned(),
    };
    let class = class(name).ok_or_else(unknown)?;
    let config = SchedulerConfig::read(class, trained.config, &set_by_pipeline(trained))?;
    let is_it = |sampler: &Sampler| {
        let (class, set) = set_up(sampler);
        class == Some(name) && set.iter().all(|(field, value)| config.says(field, value))
    };
    METHODS.into_iter().find(is_it).ok_or_else(unknown)
}

/// DDIM and PNDM step down by `1000 / count`, not to the next timestep; below 0 to the configured level.
pub(super) fn strided(
    config: &SchedulerConfig,
    _: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = preserving_table(config)?;
    let stride = (TIMESTEPS / count) as f64;
    let clean = match config.flag("set_alpha_to_one") {
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
    let times = config.spacing().times(count, config.number("steps_offset"));
    let step = |&t: &f64| Step {
        from: table.at(t),
        to: next(t),
    };
    let velocity = config.word("prediction_type") == "v_prediction";
    Ok(Schedule {
        steps: times.iter().map(step).collect(),
        initial_scale: 1.0,
        final_scale: 1.0,
        setup: Setup {
            extrapolated: velocity.then_some(PredictionType::VPrediction),
            ..Setup::default()
        },
        table,
    })
}

/// DDPM goes from each timestep to the next, and from the last to a clean sample.
pub(super) fn listed(
    config: &SchedulerConfig,
    _: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = preserving_table(config)?;
    let times = config.spacing().times(count, config.number("steps_offset"));
    let levels = times.iter().map(|&t| table.at(t));
    let levels: Vec<Level> = levels.chain([Level::CLEAN]).collect();
    let mut schedule = Schedule::chain(&levels, 1.0, table);
    schedule.setup.threshold = config.threshold()?;
    Ok(schedule)
}

/// DPM-Solver++ on the SDE, single step. Without a seed of its own it draws one, which is as good as the picture's.
pub(super) fn dpm_sde(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let mut schedule = exploding(config, spread, count)?;
    schedule.setup.brownian_seed = config.whole("noise_sampler_seed");
    Ok(schedule)
}

/// LCM ends with the model's last estimate.
pub(super) fn lcm(
    config: &SchedulerConfig,
    _: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = preserving_table(config)?;
    let mut levels = distilled(config, &table, count)?;
    levels.push(Level::CLEAN);
    let mut schedule = preserving(&levels, table);
    schedule.setup.timestep_scaling = Some(config.number("timestep_scaling"));
    schedule.setup.threshold = config.threshold()?;
    Ok(schedule)
}

/// TCD ends at the least noise of training.
pub(super) fn tcd(
    config: &SchedulerConfig,
    _: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = preserving_table(config)?;
    let mut levels = distilled(config, &table, count)?;
    levels.push(table.at(0.0));
    Ok(preserving(&levels, table))
}

/// Levels out of those that a model was distilled for.
fn distilled(
    config: &SchedulerConfig,
    table: &NoiseTable,
    count: usize,
) -> Result<Vec<Level>, ConfigError> {
    let field = "original_inference_steps";
    let known = config.number(field);
    if !(1.0..=TIMESTEPS as f64).contains(&known) {
        return Err(config.refuse(field, "1 to 1000"));
    }
    if (known as usize) < count {
        let supported = format!("{count} or more for as many steps");
        return Err(config.refuse(field, &supported));
    }
    let stride = (TIMESTEPS / known as usize) as f64;
    let interval = known / count as f64;
    let place = |i: usize| known - (i as f64 * interval).floor();
    Ok((0..count)
        .map(|i| table.at(place(i) * stride - 1.0))
        .collect())
}

/// The Euler family: variance exploding, and fractions of timesteps are kept.
#[expect(clippy::unnecessary_wraps, reason = "an entry of a table")]
pub(super) fn exploding(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = config.table(PATCHED);
    let (spacing, offset) = (config.spacing(), config.number("steps_offset"));
    let times = match spacing {
        Spacing::Linspace => fractional_times(count),
        _ => spacing.times(count, offset),
    };
    let mut levels: Vec<Level> = times.iter().map(|&t| table.at_linear(t)).collect();
    let mut end = match config.word("final_sigmas_type") {
        "sigma_min" => table.at(0.0),
        _ => Level::CLEAN,
    };
    let mut least = levels[levels.len() - 1].sigma;
    if config.word("interpolation_type") == "log_linear" {
        // One level more than there are steps; its own end is never reached.
        let all = Spread::Exponential.between(table.sigma_max(), table.sigma_min(), count + 1);
        let all = all.unwrap_or_default();
        for (level, &sigma) in levels.iter_mut().zip(&all) {
            level.sigma = sigma;
        }
        least = table.sigma_min();
        if spread == Spread::Uniform {
            end = table.at(0.0);
        }
    }
    if let Some(sigmas) = spread.between(levels[0].sigma, least, count) {
        levels = sigmas.into_iter().map(|s| table.of_sigma(s)).collect();
    }
    levels.push(end);
    let most = levels[0].sigma;
    let initial_scale = match spacing {
        Spacing::Leading => (most * most + 1.0).sqrt(),
        _ => most,
    };
    Ok(Schedule::chain(&levels, initial_scale, table))
}

/// Of the Euler family, classes of second order that round the timesteps of Karras' levels.
pub(super) fn exploding_rounded(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let mut schedule = exploding(config, spread, count)?;
    if spread == Spread::Karras {
        for step in &mut schedule.steps {
            step.from.t = step.from.t.round_ties_even();
            step.to.t = step.to.t.round_ties_even();
        }
    }
    Ok(schedule)
}

/// DPM-Solver, multistep.
pub(super) fn dpm_solver(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = config.table(PATCHED);
    let lowest = config.number("lambda_min_clipped");
    let clipped = table.sigmas().iter().filter(|s| -s.ln() < lowest).count();
    let usable = TIMESTEPS - clipped;
    if usable == 0 {
        return Err(config.refuse("lambda_min_clipped", "one that leaves a level"));
    }
    let mut levels = match spread {
        Spread::Uniform if config.flag("use_lu_lambdas") => {
            let sigmas = Spread::Exponential.between(table.sigma_max(), table.sigma_min(), count);
            told(&table, &sigmas.unwrap_or_default(), f64::round_ties_even)
        }
        spread => solver_levels(config, &table, spread, [count, usable]),
    };
    let clean = config.word("final_sigmas_type") == "zero";
    let algorithm = config.word("algorithm_type");
    let of_noise = !algorithm.ends_with("++");
    if of_noise && clean {
        let supported = format!("sigma_min with algorithm_type {algorithm}");
        return Err(config.refuse("final_sigmas_type", &supported));
    }
    let end = solver_end(&levels, &table, clean);
    levels.push(end);
    let count = levels.len() - 1;
    let few = config.flag("lower_order_final") && count < 15;
    let order = config.order()?;
    if algorithm == "sde-dpmsolver" && order == 3 {
        return Err(config.refuse("solver_order", "1 or 2 with algorithm_type sde-dpmsolver"));
    }
    let last_is_first = few || clean || config.flag("euler_at_final");
    let order_of = |i: usize| match count - i {
        1 if last_is_first => 1,
        2 if few => order.min(2),
        _ => order,
    };
    let mut schedule = preserving(&levels, table);
    schedule.setup = Setup {
        orders: (0..count).map(order_of).collect(),
        sde: algorithm.starts_with("sde-"),
        extrapolated: of_noise.then_some(PredictionType::Epsilon),
        threshold: config.threshold()?,
        second_order: match config.word("solver_type") {
            "heun" => SecondOrder::Heun,
            _ => SecondOrder::Midpoint,
        },
        ..Setup::default()
    };
    Ok(schedule)
}

/// `UniPC`, multistep.
pub(super) fn unipc(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = config.table(PATCHED);
    let mut levels = solver_levels(config, &table, spread, [count, TIMESTEPS]);
    let clean = config.word("final_sigmas_type") == "zero";
    levels.push(solver_end(&levels, &table, clean));
    let order = config.order()?;
    let order_of = |i: usize| match config.flag("lower_order_final") {
        true => order.min(count - i),
        false => order,
    };
    let mut schedule = preserving(&levels, table);
    schedule.setup = Setup {
        orders: (0..count).map(order_of).collect(),
        bh: match config.word("solver_type") {
            "bh1" => Bh::One,
            _ => Bh::Two,
        },
        extrapolated: (!config.flag("predict_x0")).then_some(PredictionType::Epsilon),
        // Estimates of noise are not thresholded.
        threshold: config.threshold()?.filter(|_| config.flag("predict_x0")),
        ..Setup::default()
    };
    Ok(schedule)
}

/// DEIS, which ends at the least noise of training.
pub(super) fn deis(
    config: &SchedulerConfig,
    spread: Spread,
    count: usize,
) -> Result<Schedule, ConfigError> {
    let table = config.table(PATCHED);
    let mut levels = solver_levels(config, &table, spread, [count, TIMESTEPS]);
    levels.push(solver_end(&levels, &table, false));
    let order = config.order()?;
    let few = config.flag("lower_order_final") && count < 15;
    let order_of = |i: usize| match count - i {
        left @ (1 | 2) if few => order.min(left),
        _ => order,
    };
    let mut schedule = preserving(&levels, table);
    schedule.setup.orders = (0..count).map(order_of).collect();
    schedule.setup.threshold = config.threshold()?;
    Ok(schedule)
}

/// Levels of the DPM-Solver family, whose timesteps are whole; `usable` timesteps of training are.
fn solver_levels(
    config: &SchedulerConfig,
    table: &NoiseTable,
    spread: Spread,
    [count, usable]: [usize; 2],
) -> Vec<Level> {
    let whole = match spread {
        Spread::Karras => f64::round_ties_even,
        _ => f64::floor,
    };
    if let Some(sigmas) = spread.between(table.sigma_max(), table.sigma_min(), count) {
        return told(table, &sigmas, whole);
    }
    let offset = config.number("steps_offset");
    let times = config.spacing().solver_times([count, usable], offset);
    times.iter().map(|&t| table.at_linear(t)).collect()
}

/// Levels, and whole timesteps for them. diffusers takes logarithms of the table in single precision, which decides where
/// a level of the table itself is rounded down to.
fn told(table: &NoiseTable, sigmas: &[f64], whole: fn(f64) -> f64) -> Vec<Level> {
    let logs: Vec<f64> = table
        .sigmas()
        .iter()
        .map(|s| f64::from((*s as f32).ln()))
        .collect();
    let time = |sigma: f64| {
        let log = sigma.ln();
        let above = logs.partition_point(|&l| l <= log);
        let low = above.saturating_sub(1).min(TIMESTEPS - 2);
        let weight = ((log - logs[low]) / (logs[low + 1] - logs[low])).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    };
    let level = |&sigma: &f64| Level {
        sigma,
        t: whole(time(sigma)),
    };
    sigmas.iter().map(level).collect()
}

/// Where the DPM-Solver family ends.
fn solver_end(levels: &[Level], table: &NoiseTable, clean: bool) -> Level {
    let last = levels[levels.len() - 1].sigma;
    match clean {
        true => Level::CLEAN,
        false => Level {
            sigma: table.sigma_min().min(last),
            t: 0.0,
        },
    }
}

/// Steps of a class whose state is variance preserving, for a method whose state is not.
fn preserving(levels: &[Level], table: NoiseTable) -> Schedule {
    let scale = |level: Level| (level.sigma * level.sigma + 1.0).sqrt();
    let (first, last) = (scale(levels[0]), scale(levels[levels.len() - 1]));
    Schedule {
        final_scale: 1.0 / last,
        ..Schedule::chain(levels, first, table)
    }
}

/// The last product of models that were trained down to a signal of 0, where a class patches it.
const PATCHED: f32 = 1.0 / (1 << 24) as f32;
/// Where it does not: so small that only noise is left in single precision.
const NO_SIGNAL: f32 = 1e-16;

/// The levels of classes that do not patch the last product.
fn preserving_table(config: &SchedulerConfig) -> Result<NoiseTable, ConfigError> {
    let noise_only = config.flag("rescale_betas_zero_snr");
    if noise_only && config.word("prediction_type") == "epsilon" {
        let supported = "v_prediction or sample with zero terminal SNR";
        return Err(config.refuse("prediction_type", supported));
    }
    Ok(config.table(NO_SIGNAL))
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
            // numpy's linspace of one number is the lower end.
            Self::Linspace => descending(linspace(0.0, 999.0, count)),
            Self::Trailing => trailing(count, TIMESTEPS),
        }
    }

    /// Descending timesteps of the DPM-Solver classes, which leave out the lowest of one more, among the lower `usable` ones.
    fn solver_times(self, [count, usable]: [usize; 2], offset: f64) -> Vec<f64> {
        let mut times = match self {
            Self::Leading => {
                let stride = usable / (count + 1);
                (0..=count)
                    .rev()
                    .map(|i| (i * stride) as f64 + offset)
                    .collect()
            }
            Self::Linspace => descending(linspace(0.0, (usable - 1) as f64, count + 1)),
            Self::Trailing => return trailing(count, usable),
        };
        times.truncate(count);
        times
    }
}

/// Rounded, the last first.
fn descending(up: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut times: Vec<f64> = up.map(f64::round_ties_even).collect();
    times.reverse();
    times
}

/// Down from `usable` by the stride of `count` steps over all timesteps.
fn trailing(count: usize, usable: usize) -> Vec<f64> {
    let stride = TIMESTEPS as f64 / count as f64;
    let down = (0..count).map(|i| usable as f64 - i as f64 * stride);
    down.take_while(|t| *t > 0.0)
        .map(|t| t.round_ties_even() - 1.0)
        .collect()
}

#[cfg(test)]
mod tests;
