//! `scheduler_config.json`: which of diffusers' schedulers a model comes with, and how that is set up.

use serde_json::Value;

use super::diffusers::Spacing;
use crate::sampler::{METHODS, Sampler};
use crate::sigmas::Spread;

/// What a `scheduler_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    pub(super) class: String,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) steps_offset: u32,
    pub(super) set_alpha_to_one: bool,
    pub(super) use_karras_sigmas: bool,
    pub(super) timestep_spacing: Option<Spacing>,
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
            beta_start: number("beta_start", 0.0001),
            beta_end: number("beta_end", 0.02),
            steps_offset: number("steps_offset", 0.0) as u32,
            set_alpha_to_one: flag("set_alpha_to_one", class != "PNDMScheduler"),
            use_karras_sigmas: flag("use_karras_sigmas", false),
            timestep_spacing: spacing,
            class,
        })
    }

    /// The solver that the class named in the file stands for.
    ///
    /// # Errors
    /// A class that is none of ours.
    pub fn sampler(&self) -> Result<Sampler, ConfigError> {
        let found = METHODS
            .into_iter()
            .find(|method| method.class == Some(&self.class));
        found.ok_or_else(|| ConfigError {
            field: "_class_name",
            found: self.class.clone(),
            supported: "the class of a solver that this program has; another one can be chosen",
        })
    }

    /// How the file spreads noise levels, for classes that follow it there.
    #[must_use]
    pub fn spread(&self) -> Spread {
        match self.use_karras_sigmas {
            true => Spread::Karras,
            false => Spread::Uniform,
        }
    }
}
