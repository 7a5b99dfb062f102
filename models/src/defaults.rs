//! What a distilled model is run with, unless the user says otherwise: it was trained for few steps and little guidance, and
//! with the usual 20 steps and guidance 7 it draws mush.
//!
//! Shapes do not show a distillation into the same structure; names do. Files, LoRAs and folders of these models are called
//! after the method, and after the number of steps where there are several.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Settings of a run, where the model asks for other ones than usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// What asks for them: `SDXL-Lightning`, ..
    pub method: String,
    /// The solver, by A1111's name.
    pub sampler: String,
    /// How noise levels are spread, by A1111's name; the solver's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Steps of the solver.
    pub steps: usize,
    /// Guidance; 1 is none.
    pub guidance_scale: f64,
}

/// A way to distil: its name, words in names that tell it, and its settings.
struct Method {
    name: &'static str,
    words: &'static [&'static str],
    sampler: &'static str,
    schedule: Option<&'static str>,
    steps: usize,
    guidance_scale: f64,
}

/// As the authors' pages have them. An earlier row wins.
const METHODS: [Method; 4] = [
    Method {
        name: "Lightning",
        words: &["lightning"],
        sampler: "Euler",
        schedule: Some("SGM Uniform"),
        steps: 4,
        guidance_scale: 1.0,
    },
    Method {
        name: "Hyper-SD",
        words: &["hyper"],
        sampler: "Euler",
        schedule: Some("SGM Uniform"),
        steps: 8,
        guidance_scale: 1.0,
    },
    Method {
        name: "Turbo",
        words: &["turbo"],
        sampler: "Euler a",
        schedule: Some("SGM Uniform"),
        steps: 1,
        guidance_scale: 1.0,
    },
    Method {
        name: "LCM",
        words: &["lcm"],
        sampler: "LCM",
        schedule: None,
        steps: 4,
        guidance_scale: 1.5,
    },
];

impl Defaults {
    /// What a name asks for: words are what lies between signs, digits belong to what stands before them.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
        let is = |word: &str, of: &str| {
            // "SDXLTurbo", "lcmlora": with something else in front or behind, but not inside a longer word like "hyperreal".
            let rest = match word.find(of) {
                Some(at) => (&word[..at], &word[at + of.len()..]),
                None => return false,
            };
            let known = ["", "sd", "sdxl", "xl", "lora", "sd15", "v1", "v2"];
            let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
            (known.contains(&rest.0) || digits(rest.0))
                && (known.contains(&rest.1) || digits(rest.1))
        };
        let method = METHODS.iter().find(|method| {
            method
                .words
                .iter()
                .any(|of| words.iter().any(|w| is(w, of)))
        })?;
        Some(Self {
            method: method.name.to_owned(),
            sampler: method.sampler.to_owned(),
            schedule: method.schedule.map(str::to_owned),
            steps: steps(&words).unwrap_or(method.steps),
            guidance_scale: method.guidance_scale,
        })
    }

    /// What latent consistency models with guidance as an input are run with (Luo et al. 2023, arXiv:2310.04378).
    #[must_use]
    pub fn embedded_guidance() -> Self {
        Self {
            method: "latent consistency".to_owned(),
            sampler: "LCM".to_owned(),
            schedule: None,
            steps: 4,
            guidance_scale: 8.5,
        }
    }
}

impl fmt::Display for Defaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.sampler)?;
        if let Some(schedule) = &self.schedule {
            write!(f, " with {schedule}")?;
        }
        let (steps, guidance) = (self.steps, self.guidance_scale);
        let plural = if steps == 1 { "" } else { "s" };
        write!(
            f,
            ", {steps} step{plural} and guidance {guidance} ({})",
            self.method
        )
    }
}

/// `4step`, `8steps`, or a number before `step`.
fn steps(words: &[&str]) -> Option<usize> {
    let number = |text: &str| text.parse().ok().filter(|n| (1..=16).contains(n));
    words.iter().enumerate().find_map(|(i, word)| {
        let before = word
            .strip_suffix("steps")
            .or_else(|| word.strip_suffix("step"))?;
        match before {
            "" => number(words.get(i.checked_sub(1)?)?),
            digits => number(digits),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_distillations_and_their_steps() {
        let by_name = |name: &str| {
            let found = Defaults::by_name(name)?;
            Some((found.sampler, found.steps, found.guidance_scale))
        };
        let found = |sampler: &str, steps, guidance| Some((sampler.to_owned(), steps, guidance));
        for (name, expected) in [
            (
                "sdxl_lightning_4step_unet.safetensors",
                found("Euler", 4, 1.0),
            ),
            (
                "DreamShaperXL_Lightning.safetensors",
                found("Euler", 4, 1.0),
            ),
            ("Hyper-SDXL-8steps-lora.safetensors", found("Euler", 8, 1.0)),
            ("sd_xl_turbo_1.0_fp16.safetensors", found("Euler a", 1, 1.0)),
            ("sd-turbo", found("Euler a", 1, 1.0)),
            ("dreamshaperXL_v21TurboDPMSDE.safetensors", None),
            ("lcm-lora-sdv1-5.safetensors", found("LCM", 4, 1.5)),
            ("pytorch_lora_weights LCM_LoRA", found("LCM", 4, 1.5)),
            ("hyperrealism_v3.safetensors", None),
            ("turbocharged.safetensors", None),
            ("v1-5-pruned.safetensors", None),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }
}
