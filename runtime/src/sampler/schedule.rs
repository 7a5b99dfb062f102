//! Which noise levels a program gives a sampler.
//!
//! A [`Profile`] stands for a program; its rules differ in the table of noise levels, their spacing, the last step and the
//! scale of the first noise.

use std::str::FromStr;

use serde_json::Value;

use super::{Sampler, Step};
use crate::denoise::{Level, NoiseTable, Precision, TIMESTEPS};

/// The exponent of Karras et al. 2022 (arXiv:2206.00364), equation 5.
const RHO: f64 = 7.0;

/// Whose rules are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// AUTOMATIC1111's web UI: the rules under which most published settings were made.
    A1111,
    /// Hugging Face diffusers, by the model directory's `scheduler_config.json`.
    Diffusers,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 2] = [Self::A1111, Self::Diffusers];

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A1111 => "a1111",
            Self::Diffusers => "diffusers",
        }
    }

    /// Whether the program lets its users choose how this sampler's noise levels are spread.
    #[must_use]
    pub fn spreads(self, sampler: Sampler) -> bool {
        // diffusers' EulerAncestralDiscreteScheduler knows evenly spread timesteps only.
        let only_even = self == Self::Diffusers && sampler == Sampler::EulerAncestral;
        !sampler.is_variance_preserving() && !only_even
    }

    /// The guidance that the program applies: diffusers' pipelines guide above 1 only.
    #[must_use]
    pub fn guidance_scale(self, asked: f64) -> f64 {
        match self {
            Self::A1111 => asked,
            Self::Diffusers => asked.max(1.0),
        }
    }
}

/// A name that is no profile's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no profile is called `{0}`; there are a1111 and diffusers")]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| UnknownProfile(name.to_owned()))
    }
}

/// How noise levels lie between the most and the least noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaSchedule {
    /// Even in timesteps.
    Normal,
    /// Even in `sigma^(1/7)`.
    Karras,
}

impl SigmaSchedule {
    /// Every schedule.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Karras];

    /// The name that A1111 shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "Uniform",
            Self::Karras => "Karras",
        }
    }

    /// A1111's own choice for a sampler.
    #[must_use]
    pub fn automatic(sampler: Sampler) -> Self {
        match sampler {
            Sampler::Dpmpp2m => Self::Karras,
            _ => Self::Normal,
        }
    }
}

/// A name that is no schedule's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no sigma schedule is called `{0}`; there are automatic, normal and karras")]
pub struct UnknownSchedule(String);

/// Reads a schedule's name; `None` is the profile's own choice.
///
/// # Errors
/// A name that is none.
pub fn parse_sigma_schedule(name: &str) -> Result<Option<SigmaSchedule>, UnknownSchedule> {
    match name.to_lowercase().as_str() {
        "automatic" => Ok(None),
        "normal" | "uniform" => Ok(Some(SigmaSchedule::Normal)),
        "karras" => Ok(Some(SigmaSchedule::Karras)),
        _ => Err(UnknownSchedule(name.to_owned())),
    }
}

/// A sampler's work.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One entry per model call.
    pub steps: Vec<Step>,
    /// What unit noise is multiplied by.
    pub initial_scale: f64,
}

impl Schedule {
    /// A1111's rules for `count` steps; samplers other than those of k-diffusion have their own levels.
    #[must_use]
    pub fn a1111(sampler: Sampler, sigmas: SigmaSchedule, count: usize) -> Self {
        let table = NoiseTable::scaled_linear(0.00085, 0.012, Precision::Products);
        match sampler {
            Sampler::Ddim => Self::a1111_ddim(&table, count),
            Sampler::Plms => {
                let ddim = Self::a1111_ddim(&table, count);
                let end = table.of_sigma(ddim.steps[0].sigma_next);
                ddim.with_first_step_twice(Some(end))
            }
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Dpmpp2m => {
                let levels: Vec<Level> = match sigmas {
                    SigmaSchedule::Normal => {
                        linspace(999.0, 0.0, count).map(|t| table.at(t)).collect()
                    }
                    SigmaSchedule::Karras => karras(table.sigma_max(), table.sigma_min(), count)
                        .map(|sigma| table.of_sigma(sigma))
                        .collect(),
                };
                Self {
                    initial_scale: levels[0].sigma,
                    steps: chain(&levels),
                }
            }
        }
    }

    /// Timesteps 1, 1 + k, .. with `k = 1000 / count`, of which the lowest is only stepped to.
    fn a1111_ddim(table: &NoiseTable, count: usize) -> Self {
        let last = (TIMESTEPS - 1) as f64;
        let times = (0..TIMESTEPS)
            .step_by((TIMESTEPS / count).max(1))
            .map(|t| (t as f64 + 1.0).min(last));
        let levels: Vec<Level> = times.map(|t| table.at(t)).collect();
        let steps = levels.windows(2).rev().map(|pair| Step {
            level: pair[1],
            sigma_next: pair[0].sigma,
        });
        let mut steps: Vec<Step> = steps.collect();
        if steps.is_empty() {
            // One step: straight from the only level to the least noise.
            steps.push(Step {
                level: levels[0],
                sigma_next: table.sigma_min(),
            });
        }
        Self {
            steps,
            initial_scale: 1.0,
        }
    }

    /// PLMS calls the model a second time where its first step ends, and makes that step again.
    fn with_first_step_twice(mut self, end: Option<Level>) -> Self {
        if let Some(level) = end {
            self.steps.insert(
                1,
                Step {
                    level,
                    ..self.steps[0]
                },
            );
        }
        self
    }

    /// diffusers' rules for `count` steps: of the class that `sampler` stands for, built from the directory's configuration.
    #[must_use]
    pub fn diffusers(
        sampler: Sampler,
        sigmas: SigmaSchedule,
        count: usize,
        config: &SchedulerConfig,
    ) -> Self {
        let table =
            NoiseTable::scaled_linear(config.beta_start, config.beta_end, Precision::Single);
        let spacing = config.spacing_for(sampler);
        let offset = config.steps_offset as f64;
        let karras_sigmas = sigmas == SigmaSchedule::Karras;
        match sampler {
            Sampler::Ddim => {
                let times = spacing.times(count, offset);
                Self {
                    steps: steps_down(&table, config, count, &times),
                    initial_scale: 1.0,
                }
            }
            Sampler::Plms => {
                let times = spacing.times(count, offset);
                let steps = steps_down(&table, config, count, &times);
                let second = times.get(1).map(|&t| table.at(t));
                Self {
                    steps,
                    initial_scale: 1.0,
                }
                .with_first_step_twice(second)
            }
            Sampler::Euler | Sampler::EulerAncestral => {
                let times = match spacing {
                    Spacing::Linspace => fractional_times(count),
                    _ => spacing.times(count, offset),
                };
                let mut levels: Vec<Level> = times.iter().map(|&t| table.at_linear(t)).collect();
                if karras_sigmas {
                    let (most, least) = (levels[0].sigma, levels[levels.len() - 1].sigma);
                    levels = karras(most, least, count)
                        .map(|sigma| table.of_sigma(sigma))
                        .collect();
                }
                let most = levels[0].sigma;
                let leading = spacing == Spacing::Leading;
                let initial_scale = if leading {
                    (most * most + 1.0).sqrt()
                } else {
                    most
                };
                Self {
                    steps: chain(&levels),
                    initial_scale,
                }
            }
            Sampler::Dpmpp2m => {
                let levels: Vec<Level> = if karras_sigmas {
                    let sigmas = karras(table.sigma_max(), table.sigma_min(), count);
                    sigmas
                        .map(|s| Level {
                            sigma: s,
                            t: table.of_sigma(s).t.round_ties_even(),
                        })
                        .collect()
                } else {
                    spacing
                        .solver_times(count, offset)
                        .iter()
                        .map(|&t| table.at_linear(t))
                        .collect()
                };
                let most = levels[0].sigma;
                Self {
                    steps: chain(&levels),
                    initial_scale: (most * most + 1.0).sqrt(),
                }
            }
        }
    }
}

/// diffusers' DDIM and PNDM step down by `1000 / count`, not to the next timestep; below 0 to the configured level.
fn steps_down(
    table: &NoiseTable,
    config: &SchedulerConfig,
    count: usize,
    times: &[f64],
) -> Vec<Step> {
    let stride = (TIMESTEPS / count) as f64;
    let clean = if config.set_alpha_to_one {
        0.0
    } else {
        table.sigma_min()
    };
    let next = |t: f64| {
        if t < stride {
            clean
        } else {
            table.at(t - stride).sigma
        }
    };
    times
        .iter()
        .map(|&t| Step {
            level: table.at(t),
            sigma_next: next(t),
        })
        .collect()
}

/// Steps from each level to the next, and from the last to none.
fn chain(levels: &[Level]) -> Vec<Step> {
    let next = levels.iter().skip(1).map(|level| level.sigma).chain([0.0]);
    levels
        .iter()
        .zip(next)
        .map(|(&level, sigma_next)| Step { level, sigma_next })
        .collect()
}

/// Karras et al. 2022 (arXiv:2206.00364), equation 5, without the final 0.
fn karras(most: f64, least: f64, count: usize) -> impl Iterator<Item = f64> {
    let (first, last) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    linspace(0.0, 1.0, count).map(move |u| (first + u * (last - first)).powf(RHO))
}

/// `count` numbers from `first` to `last`; one number is `first`.
fn linspace(first: f64, last: f64, count: usize) -> impl Iterator<Item = f64> {
    let intervals = count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |i| first + i as f64 * (last - first) / intervals)
}

/// diffusers' Euler classes keep the fractions of evenly spread timesteps.
fn fractional_times(count: usize) -> Vec<f64> {
    let mut times: Vec<f64> = linspace(0.0, 999.0, count)
        .map(|t| f64::from(t as f32))
        .collect();
    times.reverse();
    times
}

/// How diffusers spreads timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spacing {
    Leading,
    Linspace,
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

/// What a `scheduler_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    sampler: Option<Sampler>,
    class: String,
    beta_start: f64,
    beta_end: f64,
    steps_offset: u32,
    set_alpha_to_one: bool,
    use_karras_sigmas: bool,
    timestep_spacing: Option<Spacing>,
}

/// A scheduler configuration that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}; supported is {supported}")]
pub struct ConfigError {
    field: &'static str,
    found: String,
    supported: &'static str,
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// A noise schedule or option other than Stable Diffusion's.
    pub fn read(json: &Value) -> Result<Self, ConfigError> {
        let text =
            |field: &'static str, default: &str| json[field].as_str().unwrap_or(default).to_owned();
        let number = |field: &str, default: f64| json[field].as_f64().unwrap_or(default);
        let flag = |field: &str, default: bool| json[field].as_bool().unwrap_or(default);
        let refuse = |field, found: String, supported| {
            Err(ConfigError {
                field,
                found,
                supported,
            })
        };
        let class = text("_class_name", "PNDMScheduler");
        if text("beta_schedule", "linear") != "scaled_linear" {
            return refuse(
                "beta_schedule",
                text("beta_schedule", "linear"),
                "scaled_linear",
            );
        }
        if number("num_train_timesteps", 1000.0) != 1000.0 {
            return refuse(
                "num_train_timesteps",
                json["num_train_timesteps"].to_string(),
                "1000",
            );
        }
        // DDIM clips unless it is told not to; the other classes do not clip.
        if flag("clip_sample", class == "DDIMScheduler") {
            return refuse("clip_sample", "true".to_owned(), "false");
        }
        for field in [
            "thresholding",
            "rescale_betas_zero_snr",
            "use_exponential_sigmas",
            "use_beta_sigmas",
        ] {
            if flag(field, false) {
                return refuse(field, "true".to_owned(), "false");
            }
        }
        if class == "PNDMScheduler" && !flag("skip_prk_steps", false) {
            return refuse("skip_prk_steps", "false".to_owned(), "true");
        }
        let spacing = match json["timestep_spacing"].as_str() {
            None => None,
            Some("leading") => Some(Spacing::Leading),
            Some("linspace") => Some(Spacing::Linspace),
            Some("trailing") => Some(Spacing::Trailing),
            Some(other) => {
                return refuse(
                    "timestep_spacing",
                    other.to_owned(),
                    "leading, linspace or trailing",
                );
            }
        };
        Ok(Self {
            sampler: class
                .parse::<super::SamplerName>()
                .ok()
                .map(|name| name.sampler),
            beta_start: number("beta_start", 0.0001),
            beta_end: number("beta_end", 0.02),
            steps_offset: number("steps_offset", 0.0) as u32,
            set_alpha_to_one: flag("set_alpha_to_one", class != "PNDMScheduler"),
            use_karras_sigmas: flag("use_karras_sigmas", false),
            timestep_spacing: spacing,
            class,
        })
    }

    /// The sampler that the class named in the file stands for.
    ///
    /// # Errors
    /// A class that is none of ours.
    pub fn sampler(&self) -> Result<Sampler, ConfigError> {
        self.sampler.ok_or_else(|| ConfigError {
            field: "_class_name",
            found: self.class.clone(),
            supported: "a class of Euler, Euler a, DDIM, DPM++ 2M or PNDM; `--sampler` chooses one",
        })
    }

    /// How the file spreads noise levels, for classes that follow it there.
    #[must_use]
    pub fn spread(&self) -> SigmaSchedule {
        match self.use_karras_sigmas {
            true => SigmaSchedule::Karras,
            false => SigmaSchedule::Normal,
        }
    }

    /// A spacing that the file does not name is the default of the class that runs.
    fn spacing_for(&self, sampler: Sampler) -> Spacing {
        self.timestep_spacing.unwrap_or(match sampler {
            Sampler::Ddim | Sampler::Plms => Spacing::Leading,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Dpmpp2m => Spacing::Linspace,
        })
    }
}
