//! `scheduler_config.json`: which of diffusers' schedulers a model comes with, and how that is set up.
//!
//! [`CLASSES`] lists what each class reads, and what of that is followed. As in diffusers, a class takes what the file says,
//! its own default where the file is silent, and ignores what only other classes read. Anything else is an error.

use std::collections::BTreeMap;

use serde_json::Value;

use super::diffusers::{self, Spacing};
use crate::denoise::{NoiseTable, Precision, Threshold};
use crate::sampler::Schedule;
use crate::sigmas::Spread;

/// A scheduler configuration that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}; supported is {supported}")]
pub struct ConfigError {
    pub(super) field: String,
    pub(super) found: String,
    pub(super) supported: String,
}

/// One of diffusers' classes.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) name: &'static str,
    /// What it reads.
    fields: &'static [&'static [Field]],
    /// Steps of a configuration: how the class spreads them.
    pub(super) schedule: fn(&SchedulerConfig, Spread, usize) -> Result<Schedule, ConfigError>,
}

/// A field and what may stand in it.
type Field = (&'static str, Rule);

/// What may stand in a field.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// True or false, by default this.
    Flag(bool),
    /// A number, by default this.
    Number(f64),
    /// The first word by default. The second of each pair is what the class makes of the first.
    Word(&'static [[&'static str; 2]]),
    /// By default the first, but only the second is supported.
    Only(&'static str, &'static str),
    /// Anything: what would read it is not supported, or does not depend on it.
    Any,
}

use Rule::{Any, Flag, Number, Only, Word};

/// Betas from `start` to `end`.
const fn betas(start: f64, end: f64, schedules: &'static [[&'static str; 2]]) -> [Field; 5] {
    [
        ("num_train_timesteps", Only("1000", "1000")),
        ("beta_start", Number(start)),
        ("beta_end", Number(end)),
        ("beta_schedule", Word(schedules)),
        ("trained_betas", Only("null", "null")),
    ]
}

const LINEAR: [&str; 2] = ["linear", "linear"];
const SCALED: [&str; 2] = ["scaled_linear", "scaled_linear"];
const COSINE: [&str; 2] = ["squaredcos_cap_v2", "squaredcos_cap_v2"];
const BETAS: &[Field] = &betas(0.0001, 0.02, &[LINEAR, SCALED, COSINE]);
const SD_BETAS: &[Field] = &betas(0.00085, 0.012, &[LINEAR, SCALED, COSINE]);
const SCALED_BETAS: &[Field] = &betas(0.00085, 0.012, &[SCALED, LINEAR, COSINE]);

const EPSILON: [&str; 2] = ["epsilon", "epsilon"];
const VELOCITY: [&str; 2] = ["v_prediction", "v_prediction"];
const SAMPLE: [&str; 2] = ["sample", "sample"];
const PREDICTION: Field = ("prediction_type", Word(&[EPSILON, VELOCITY, SAMPLE]));
const NO_SAMPLE: Field = ("prediction_type", Word(&[EPSILON, VELOCITY]));

const LEADING: [&str; 2] = ["leading", "leading"];
const LINSPACE: [&str; 2] = ["linspace", "linspace"];
const TRAILING: [&str; 2] = ["trailing", "trailing"];
const BY_LEADING: &[Field] = &[
    ("timestep_spacing", Word(&[LEADING, LINSPACE, TRAILING])),
    ("steps_offset", Number(0.0)),
];
const BY_LINSPACE: &[Field] = &[
    ("timestep_spacing", Word(&[LINSPACE, LEADING, TRAILING])),
    ("steps_offset", Number(0.0)),
];

const ZERO_SNR: Field = ("rescale_betas_zero_snr", Flag(false));
const ALPHA_TO_ONE: Field = ("set_alpha_to_one", Flag(true));
const FINAL: Field = (
    "final_sigmas_type",
    Word(&[["zero", "zero"], ["sigma_min", "sigma_min"]]),
);
const LOWER_ORDER: Field = ("lower_order_final", Flag(true));
const THRESHOLDING: &[Field] = &[
    ("thresholding", Flag(false)),
    ("dynamic_thresholding_ratio", Number(0.995)),
    ("sample_max_value", Number(1.0)),
];
/// DDIM keeps the noise that the model estimated beside clean latents that no longer fit it.
const NO_THRESHOLDING: &[Field] = &[
    ("thresholding", Only("false", "false")),
    ("dynamic_thresholding_ratio", Any),
    ("sample_max_value", Any),
];
/// TCD reads it and does nothing.
const IDLE_THRESHOLDING: &[Field] = &[
    ("thresholding", Any),
    ("dynamic_thresholding_ratio", Any),
    ("sample_max_value", Any),
];
/// Clipping is for pixels; some classes do it unless they are told not to.
const CLIPPING: &[Field] = &[
    ("clip_sample", Only("true", "false")),
    ("clip_sample_range", Any),
];
const NO_CLIPPING: &[Field] = &[
    ("clip_sample", Only("false", "false")),
    ("clip_sample_range", Any),
];
const SPREADS: &[Field] = &[
    ("use_karras_sigmas", Flag(false)),
    ("use_exponential_sigmas", Flag(false)),
    ("use_beta_sigmas", Flag(false)),
];
/// Of models that are trained on flows.
const NO_FLOW: &[Field] = &[
    ("use_flow_sigmas", Only("false", "false")),
    ("flow_shift", Any),
    ("use_dynamic_shifting", Only("false", "false")),
    ("time_shift_type", Any),
];
const DISTILLED: &[Field] = &[
    ("original_inference_steps", Number(50.0)),
    ("timestep_spacing", Any),
    ("steps_offset", Any),
    // Both end at a level of training.
    ("set_alpha_to_one", Any),
];

/// Every class, by what its constructor reads.
pub(super) static CLASSES: [Class; 15] = [
    Class {
        name: "DDIMScheduler",
        fields: &[
            BETAS,
            BY_LEADING,
            CLIPPING,
            NO_THRESHOLDING,
            &[PREDICTION, ZERO_SNR, ALPHA_TO_ONE],
        ],
        schedule: diffusers::strided,
    },
    Class {
        name: "DDPMScheduler",
        fields: &[
            BETAS,
            BY_LEADING,
            CLIPPING,
            THRESHOLDING,
            &[PREDICTION, ZERO_SNR],
            &[(
                "variance_type",
                // The logarithm of the variance is taken and undone.
                Word(&[
                    ["fixed_small", "fixed_small"],
                    ["fixed_small_log", "fixed_small"],
                ]),
            )],
        ],
        schedule: diffusers::listed,
    },
    Class {
        name: "PNDMScheduler",
        fields: &[
            BETAS,
            BY_LEADING,
            &[NO_SAMPLE, ("set_alpha_to_one", Flag(false))],
            &[("skip_prk_steps", Only("false", "true"))],
        ],
        schedule: diffusers::strided,
    },
    Class {
        name: "LCMScheduler",
        fields: &[
            SCALED_BETAS,
            DISTILLED,
            NO_CLIPPING,
            THRESHOLDING,
            &[PREDICTION, ZERO_SNR, ("timestep_scaling", Number(10.0))],
        ],
        schedule: diffusers::lcm,
    },
    Class {
        name: "TCDScheduler",
        fields: &[
            SCALED_BETAS,
            DISTILLED,
            NO_CLIPPING,
            IDLE_THRESHOLDING,
            &[PREDICTION, ZERO_SNR, ("timestep_scaling", Any)],
        ],
        schedule: diffusers::tcd,
    },
    Class {
        name: "EulerDiscreteScheduler",
        fields: &[
            BETAS,
            BY_LINSPACE,
            SPREADS,
            &[PREDICTION, ZERO_SNR, FINAL],
            &[
                (
                    "interpolation_type",
                    Word(&[["linear", "linear"], ["log_linear", "log_linear"]]),
                ),
                ("sigma_min", Only("null", "null")),
                ("sigma_max", Only("null", "null")),
                ("timestep_type", Word(&[["discrete", "discrete"]])),
            ],
        ],
        schedule: diffusers::exploding,
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        fields: &[BETAS, BY_LINSPACE, &[NO_SAMPLE, ZERO_SNR]],
        schedule: diffusers::exploding,
    },
    Class {
        name: "HeunDiscreteScheduler",
        fields: &[SD_BETAS, BY_LINSPACE, SPREADS, NO_CLIPPING, &[PREDICTION]],
        schedule: diffusers::exploding,
    },
    Class {
        name: "LMSDiscreteScheduler",
        fields: &[BETAS, BY_LINSPACE, SPREADS, &[PREDICTION]],
        schedule: diffusers::exploding,
    },
    Class {
        name: "KDPM2DiscreteScheduler",
        fields: &[SD_BETAS, BY_LINSPACE, SPREADS, &[NO_SAMPLE]],
        schedule: diffusers::exploding_rounded,
    },
    Class {
        name: "KDPM2AncestralDiscreteScheduler",
        fields: &[SD_BETAS, BY_LINSPACE, SPREADS, &[NO_SAMPLE]],
        schedule: diffusers::exploding_rounded,
    },
    Class {
        name: "DPMSolverSDEScheduler",
        fields: &[
            SD_BETAS,
            BY_LINSPACE,
            SPREADS,
            &[NO_SAMPLE, ("noise_sampler_seed", Any)],
        ],
        schedule: diffusers::dpm_sde,
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        fields: &[
            BETAS,
            BY_LINSPACE,
            SPREADS,
            THRESHOLDING,
            NO_FLOW,
            &[PREDICTION, ZERO_SNR, FINAL, LOWER_ORDER],
            &[
                ("solver_order", Number(2.0)),
                (
                    "algorithm_type",
                    Word(&[
                        ["dpmsolver++", "dpmsolver++"],
                        ["sde-dpmsolver++", "sde-dpmsolver++"],
                        ["dpmsolver", "dpmsolver"],
                        ["sde-dpmsolver", "sde-dpmsolver"],
                        ["deis", "dpmsolver++"],
                    ]),
                ),
                (
                    "solver_type",
                    Word(&[
                        ["midpoint", "midpoint"],
                        ["heun", "heun"],
                        ["logrho", "midpoint"],
                        ["bh1", "midpoint"],
                        ["bh2", "midpoint"],
                    ]),
                ),
                ("euler_at_final", Flag(false)),
                ("use_lu_lambdas", Flag(false)),
                ("lambda_min_clipped", Number(f64::NEG_INFINITY)),
                ("variance_type", Only("null", "null")),
            ],
        ],
        schedule: diffusers::dpm_solver,
    },
    Class {
        name: "UniPCMultistepScheduler",
        fields: &[
            BETAS,
            BY_LINSPACE,
            SPREADS,
            THRESHOLDING,
            NO_FLOW,
            &[PREDICTION, ZERO_SNR, FINAL, LOWER_ORDER],
            &[
                ("solver_order", Number(2.0)),
                ("predict_x0", Flag(true)),
                (
                    "solver_type",
                    Word(&[
                        ["bh2", "bh2"],
                        ["bh1", "bh1"],
                        ["midpoint", "bh2"],
                        ["heun", "bh2"],
                        ["logrho", "bh2"],
                    ]),
                ),
                ("disable_corrector", Only("[]", "[]")),
                ("solver_p", Only("null", "null")),
                ("sigma_min", Only("null", "null")),
                ("sigma_max", Only("null", "null")),
                ("shift_terminal", Only("null", "null")),
            ],
        ],
        schedule: diffusers::unipc,
    },
    Class {
        name: "DEISMultistepScheduler",
        fields: &[
            BETAS,
            BY_LINSPACE,
            SPREADS,
            THRESHOLDING,
            NO_FLOW,
            &[PREDICTION, LOWER_ORDER, ("solver_order", Number(2.0))],
            &[
                (
                    "algorithm_type",
                    Word(&[
                        ["deis", "deis"],
                        ["dpmsolver", "deis"],
                        ["dpmsolver++", "deis"],
                    ]),
                ),
                (
                    "solver_type",
                    Word(&[
                        ["logrho", "logrho"],
                        ["midpoint", "logrho"],
                        ["heun", "logrho"],
                        ["bh1", "logrho"],
                        ["bh2", "logrho"],
                    ]),
                ),
            ],
        ],
        schedule: diffusers::deis,
    },
];

impl Class {
    fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().copied().flatten()
    }

    /// What a field is in a configuration, by the file or by default; none if it does not matter to the class.
    pub(super) fn value(&self, field: &str, json: &Value) -> Option<Value> {
        let (name, rule) = self.fields().find(|known| known.0 == field)?;
        let default = rule.default()?;
        match &json[*name] {
            Value::Null => Some(default),
            found => Some(found.clone()),
        }
    }

    /// Whether a configuration may say how noise levels are spread.
    pub(super) fn spreads(&self) -> bool {
        self.fields().any(|field| field.0 == "use_karras_sigmas")
    }
}

/// The class of a name.
pub(super) fn class(name: &str) -> Option<&'static Class> {
    CLASSES.iter().find(|class| class.name == name)
}

/// What a `scheduler_config.json` says to a class.
#[derive(Clone, Debug)]
pub(super) struct SchedulerConfig {
    values: BTreeMap<&'static str, Value>,
}

impl SchedulerConfig {
    /// What `json` says to `class`; some fields are set by the solver's name, whatever the file says.
    ///
    /// # Errors
    /// A value that the class would follow and this program does not, or a field that nobody knows.
    pub(super) fn read(
        class: &Class,
        json: &Value,
        set: &[(&'static str, Value)],
    ) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for (name, rule) in class.fields() {
            let set = set.iter().find(|(field, _)| field == name);
            let found = set.map_or(&json[*name], |(_, value)| value);
            values.insert(*name, rule.read(name, found)?);
        }
        let known = || CLASSES.iter().flat_map(Class::fields).map(|field| field.0);
        for (name, value) in json.as_object().into_iter().flatten() {
            let off = value.is_null() || *value == false;
            if !name.starts_with('_') && !off && known().all(|known| known != name) {
                return Err(ConfigError {
                    field: name.clone(),
                    found: value.to_string(),
                    supported: "a configuration without this field, which is not known".to_owned(),
                });
            }
        }
        let config = Self { values };
        let spreads = SPREADS.iter().filter(|field| config.flag(field.0));
        let both: Vec<_> = spreads.map(|field| field.0).collect();
        if let [_, second, ..] = both[..] {
            return Err(config.refuse(second, &format!("one of {} only", both.join(", "))));
        }
        Ok(config)
    }

    /// Whether a field says what is given.
    pub(super) fn says(&self, field: &str, value: &Value) -> bool {
        let found = self.values.get(field);
        found.is_some_and(|found| same(found, value))
    }

    /// Whether a switch is on; off in classes that do not have it.
    pub(super) fn flag(&self, field: &str) -> bool {
        self.values.get(field) == Some(&Value::Bool(true))
    }

    /// A number; infinitely low in classes that do not have it.
    pub(super) fn number(&self, field: &str) -> f64 {
        let value = self.values.get(field).and_then(Value::as_f64);
        value.unwrap_or(f64::NEG_INFINITY)
    }

    /// A whole number; none if there is no such value.
    pub(super) fn whole(&self, field: &str) -> Option<u64> {
        self.values.get(field).and_then(Value::as_u64)
    }

    /// A word; empty in classes that do not have it.
    pub(super) fn word(&self, field: &str) -> &str {
        self.values
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The error for a value that is not supported together with others.
    pub(super) fn refuse(&self, field: &str, supported: &str) -> ConfigError {
        let found = self.values.get(field).unwrap_or(&Value::Null);
        ConfigError {
            field: field.to_owned(),
            found: plain(found),
            supported: supported.to_owned(),
        }
    }

    /// The threshold of clean latents, of classes that have one.
    pub(super) fn threshold(&self) -> Result<Option<Threshold>, ConfigError> {
        if !self.flag("thresholding") {
            return Ok(None);
        }
        let field = "dynamic_thresholding_ratio";
        let (ratio, most) = (self.number(field), self.number("sample_max_value"));
        if !(0.0..=1.0).contains(&ratio) {
            return Err(self.refuse(field, "0 to 1"));
        }
        Ok(Some(Threshold { ratio, most }))
    }

    /// The order of a solver that has several.
    pub(super) fn order(&self) -> Result<usize, ConfigError> {
        match self.number("solver_order") {
            1.0 => Ok(1),
            2.0 => Ok(2),
            3.0 => Ok(3),
            _ => Err(self.refuse("solver_order", "1, 2 or 3")),
        }
    }

    /// How timesteps are spread.
    pub(super) fn spacing(&self) -> Spacing {
        match self.word("timestep_spacing") {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            _ => Spacing::Linspace,
        }
    }

    /// How the file spreads noise levels.
    pub(super) fn spread(&self) -> Spread {
        match () {
            () if self.flag("use_karras_sigmas") => Spread::Karras,
            () if self.flag("use_exponential_sigmas") => Spread::Exponential,
            () if self.flag("use_beta_sigmas") => Spread::Beta,
            () => Spread::Uniform,
        }
    }

    /// The levels of training; `last` is the last product where it would be 0.
    pub(super) fn table(&self, last: f32) -> NoiseTable {
        let (start, end) = (self.number("beta_start"), self.number("beta_end"));
        let table = match self.word("beta_schedule") {
            "linear" => NoiseTable::linear(start, end),
            "squaredcos_cap_v2" => NoiseTable::squared_cosine(),
            _ => NoiseTable::scaled_linear(start, end, Precision::Single),
        };
        match self.flag("rescale_betas_zero_snr") {
            true => table.zero_terminal_snr(last),
            false => table,
        }
    }
}

impl Rule {
    /// What a class takes where the file is silent; none where it does not matter.
    fn default(self) -> Option<Value> {
        match self {
            Flag(default) => Some(default.into()),
            Number(default) => Some(default.into()),
            Word(words) => Some(words[0][0].into()),
            Only(default, _) => Some(parsed(default)),
            Any => None,
        }
    }

    /// The value of a field, or its default.
    fn read(self, field: &str, found: &Value) -> Result<Value, ConfigError> {
        let value = match found {
            Value::Null => self.default().unwrap_or_default(),
            found => found.clone(),
        };
        let (supported, kept) = match self {
            Flag(_) => ("true or false".to_owned(), value.as_bool().map(Value::from)),
            Number(_) => {
                let kept = value.is_number() || value.is_null(); // infinity has no JSON
                ("a number".to_owned(), kept.then(|| value.clone()))
            }
            Word(words) => {
                let known = words.iter().find(|[word, _]| value == *word);
                let names: Vec<&str> = words.iter().map(|[word, _]| *word).collect();
                (names.join(", "), known.map(|[_, meant]| (*meant).into()))
            }
            Only(_, only) => {
                let kept = same(&value, &parsed(only)).then(|| value.clone());
                (only.to_owned(), kept)
            }
            Any => return Ok(value),
        };
        kept.ok_or_else(|| ConfigError {
            field: field.to_owned(),
            found: plain(&value),
            supported,
        })
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Whether two values are one: 2 is 2.0.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

/// A value without quotes.
pub(super) fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
