//! Recipes: merges of merges, as TOML. The README documents the format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sd_models::keys::Component;
use serde::Deserialize;

use super::{BlockWeights, Merged, Method, Missing, Plan, Policy, beside, storage_named};
use crate::ConvertError;
use crate::checkpoint::Dtype;
use crate::lora::{LoraSpec, Options, WithLoras};
use crate::model::Model;
use crate::replace::Replaced;
use crate::weights::Weights;

/// Largest recipe that is read.
const MAX_BYTES: usize = 1 << 20;

/// The method of a step that adds a LoRA.
const LORA: &str = "lora";

/// Most steps of a recipe.
const MAX_STEPS: usize = 64;

/// Most files behind a step. Every use of a step's result computes it again.
const MAX_FILES: usize = 64;

/// A recipe that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// It is no TOML of the right form.
    #[error("{0}")]
    Syntax(String),
    /// A step names a method that there is none of.
    #[error("step {step}: no method is called `{name}`; there are {known}")]
    Method {
        /// Number of the step, from 1.
        step: usize,
        /// The name.
        name: String,
        /// Every name.
        known: String,
    },
    /// A step names a model that the recipe does not have before it.
    #[error("step {step}: no model or earlier step is called `{name}`")]
    Input {
        /// Number of the step, from 1.
        step: usize,
        /// The name.
        name: String,
    },
    /// Two models or steps have the same name.
    #[error("the name `{0}` is given twice")]
    Duplicate(String),
    /// There is no step, or too many.
    #[error("it has {0} steps; between 1 and {MAX_STEPS} are possible")]
    Steps(usize),
    /// Steps that use each other's results so often that more files would be read than anyone has.
    #[error(
        "step {step} reads {files} files, counted as often as they are used; at most {MAX_FILES} are possible"
    )]
    Files {
        /// Number of the step, from 1.
        step: usize,
        /// How many.
        files: usize,
    },
    /// A LoRA step without its file, or with something that it does not take.
    #[error(
        "step {step}: a LoRA step takes one input, `lora`, and numbers for alpha (UNet) and beta (text encoders)"
    )]
    Lora {
        /// Number of the step, from 1.
        step: usize,
    },
    /// A value that makes no sense.
    #[error("step {step}: {field} = {value}; expected {expected}")]
    Value {
        /// Number of the step, from 1.
        step: usize,
        /// Name of the field.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// The file's form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    models: BTreeMap<String, String>,
    #[serde(rename = "step")]
    steps: Vec<StepTable>,
    #[serde(default)]
    storage: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    #[serde(default)]
    name: Option<String>,
    method: String,
    inputs: Vec<String>,
    #[serde(default)]
    alpha: Option<Values>,
    #[serde(default)]
    beta: Option<Values>,
    #[serde(default)]
    density: Option<f64>,
    #[serde(default)]
    weights: Vec<f64>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    vae: Option<String>,
    #[serde(default)]
    text_encoders: Option<String>,
    #[serde(default)]
    missing: Option<String>,
    #[serde(default)]
    lora: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    Number(f64),
    Text(String),
    List(Vec<f64>),
    Table(BTreeMap<String, f64>),
}

/// A step, understood.
#[derive(Clone, Debug)]
struct Step {
    name: String,
    inputs: Vec<String>,
    action: Action,
    /// File whose VAE replaces the result's.
    vae: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Action {
    Merge(Plan),
    Lora(LoraSpec, Option<Dtype>),
}

/// A recipe, understood but not yet opened.
#[derive(Clone, Debug)]
pub struct Recipe {
    models: BTreeMap<String, PathBuf>,
    steps: Vec<Step>,
}

impl Recipe {
    /// Reads the text of a recipe file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// It cannot be followed.
    pub fn of_file(text: &str, path: &Path) -> Result<Self, ConvertError> {
        Self::parse(text, path).map_err(|source| ConvertError::Recipe {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a recipe's text; `path` is where it lies.
    ///
    /// # Errors
    /// It cannot be followed.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        if text.len() > MAX_BYTES {
            let size = text.len();
            let problem = format!("it has {size} bytes; a recipe has at most {MAX_BYTES}");
            return Err(RecipeError::Syntax(problem));
        }
        let file: File = toml::from_str(text).map_err(|e| RecipeError::Syntax(e.to_string()))?;
        if file.schema != 1 {
            let problem = format!("schema = {}; this program reads 1", file.schema);
            return Err(RecipeError::Syntax(problem));
        }
        if !(1..=MAX_STEPS).contains(&file.steps.len()) {
            return Err(RecipeError::Steps(file.steps.len()));
        }
        let storage = match &file.storage {
            None => None,
            Some(name) => Some(storage_named(name).ok_or_else(|| RecipeError::Value {
                step: 0,
                field: "storage",
                value: name.clone(),
                expected: "f32, f16 or bf16",
            })?),
        };
        // How many files are behind each name.
        let mut known: BTreeMap<String, usize> =
            file.models.keys().map(|name| (name.clone(), 1)).collect();
        let last = file.steps.len();
        let mut steps = Vec::new();
        for (i, table) in file.steps.into_iter().enumerate() {
            let number = i + 1;
            let mut step = table.understand(number, path)?;
            if let Some(input) = step.inputs.iter().find(|input| !known.contains_key(*input)) {
                return Err(RecipeError::Input {
                    step: number,
                    name: input.clone(),
                });
            }
            let files = step.inputs.iter().map(|input| known[input]).sum();
            if files > MAX_FILES {
                return Err(RecipeError::Files {
                    step: number,
                    files,
                });
            }
            if known.insert(step.name.clone(), files).is_some() {
                return Err(RecipeError::Duplicate(step.name));
            }
            // Between steps nothing is rounded.
            let storage = if number == last {
                storage
            } else {
                Some(Dtype::F32)
            };
            match &mut step.action {
                Action::Merge(plan) => plan.storage = storage,
                Action::Lora(_, of_result) => *of_result = storage,
            }
            steps.push(step);
        }
        let models = file.models.into_iter();
        Ok(Self {
            models: models
                .map(|(name, file)| (name, beside(path, &file)))
                .collect(),
            steps,
        })
    }

    /// Opens the recipe's models and puts them together.
    ///
    /// # Errors
    /// A file cannot be read, or models do not fit each other.
    pub fn model(&self) -> Result<Box<dyn Model>, ConvertError> {
        let last = self.steps.last().expect("a recipe has a step");
        self.result_of(&last.name)
    }

    fn result_of(&self, name: &str) -> Result<Box<dyn Model>, ConvertError> {
        let Some(step) = self.steps.iter().find(|step| step.name == name) else {
            return Ok(Box::new(Weights::open(&self.models[name], None)?));
        };
        let inputs = step.inputs.iter().map(|input| self.result_of(input));
        let inputs: Vec<Box<dyn Model>> = inputs.collect::<Result<_, _>>()?;
        let mut inputs = inputs;
        let mut model: Box<dyn Model> = match &step.action {
            Action::Merge(plan) => Box::new(Merged::new(inputs, plan.clone())?),
            Action::Lora(spec, storage) => {
                let base = inputs.pop().expect("a LoRA step has an input");
                let options = Options {
                    allow_partial: false,
                    storage: *storage,
                };
                Box::new(WithLoras::new(base, std::slice::from_ref(spec), options)?)
            }
        };
        if let Some(vae) = &step.vae {
            let donor = Box::new(Weights::open(vae, None)?);
            model = Box::new(Replaced::new(model, donor, &[Component::Vae])?);
        }
        Ok(model)
    }
}

impl StepTable {
    fn understand(mut self, step: usize, path: &Path) -> Result<Step, RecipeError> {
        let vae = self.vae.take();
        let name = self.name.take().unwrap_or_else(|| format!("step {step}"));
        let inputs = self.inputs.clone();
        let from = vae.as_deref().and_then(Policy::named);
        let file = vae.filter(|_| from.is_none());
        let action = if self.method == LORA {
            Action::Lora(self.lora_spec(step, path)?, None)
        } else {
            let mut plan = self.plan(step)?;
            plan.vae = from.unwrap_or(plan.vae);
            Action::Merge(plan)
        };
        Ok(Step {
            name,
            inputs,
            action,
            vae: file.map(|word| beside(path, &word)),
        })
    }

    fn lora_spec(self, step: usize, path: &Path) -> Result<LoraSpec, RecipeError> {
        let number = |values: Option<Values>| match values {
            None => Some(None),
            Some(Values::Number(x)) if x.is_finite() => Some(Some(x)),
            Some(_) => None,
        };
        let (alpha, beta) = (number(self.alpha), number(self.beta));
        match (self.lora, alpha, beta, &self.inputs[..]) {
            (Some(file), Some(alpha), Some(beta), [_]) => {
                let unet = alpha.unwrap_or(1.0);
                Ok(LoraSpec {
                    text_encoders: beta.unwrap_or(unet),
                    ..LoraSpec::new(beside(path, &file), unet)
                })
            }
            _ => Err(RecipeError::Lora { step }),
        }
    }

    fn plan(self, step: usize) -> Result<Plan, RecipeError> {
        let method = Method::named(&self.method).ok_or_else(|| RecipeError::Method {
            step,
            name: self.method.clone(),
            known: format!("{}, {LORA}", Method::NAMES.map(|(name, _)| name).join(", ")),
        })?;
        let wrong = |field, value: String, expected| RecipeError::Value {
            step,
            field,
            value,
            expected,
        };
        let alpha = values(self.alpha, 1.0)
            .map_err(|v| wrong("alpha", v, "a number, a list, a table or a preset"))?;
        let beta = values(self.beta, 0.0)
            .map_err(|v| wrong("beta", v, "a number, a list, a table or a preset"))?;
        let mut plan = Plan::new(method, alpha);
        plan.beta = beta;
        plan.seed = self.seed;
        if let Some(density) = self.density {
            if !(density > 0.0 && density <= 1.0) {
                return Err(wrong("density", density.to_string(), "above 0, at most 1"));
            }
            plan.density = density;
        }
        plan.weights = match (self.weights, method) {
            (weights, Method::Average) if weights.is_empty() => vec![1.0; self.inputs.len()],
            (weights, _) => weights,
        };
        let total: f64 = plan.weights.iter().sum();
        let usable = total != 0.0 && total.is_finite();
        if method == Method::Average && (plan.weights.len() != self.inputs.len() || !usable) {
            let found = format!("{:?}", plan.weights);
            return Err(wrong(
                "weights",
                found,
                "one per input, with a sum that is not 0",
            ));
        }
        if let Some(word) = self.text_encoders {
            plan.text_encoders = Policy::named(&word)
                .ok_or_else(|| wrong("text_encoders", word, "a, b or merge"))?;
        }
        if let Some(word) = self.missing {
            plan.missing =
                Missing::named(&word).ok_or_else(|| wrong("missing", word, "refuse or keep-a"))?;
        }
        Ok(plan)
    }
}

fn values(values: Option<Values>, default: f64) -> Result<BlockWeights, String> {
    let finite = |numbers: &[f64]| match numbers.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(x.to_string()),
        None => Ok(()),
    };
    Ok(match values {
        None => BlockWeights::Uniform(default),
        Some(Values::Number(x)) => {
            finite(&[x])?;
            BlockWeights::Uniform(x)
        }
        Some(Values::Text(text)) => BlockWeights::parse(&text).ok_or(text)?,
        Some(Values::List(list)) => {
            finite(&list)?;
            BlockWeights::List(list)
        }
        Some(Values::Table(table)) => {
            finite(&table.values().copied().collect::<Vec<_>>())?;
            BlockWeights::Table(table)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, String> {
        Recipe::parse(text, Path::new("/r/recipe.toml")).map_err(|e| e.to_string())
    }

    const HEAD: &str = "schema = 1\nmodels = { x = 'x.safetensors', y = 'sub/y.ckpt' }\n";

    #[test]
    fn a_recipe_is_understood() {
        let text = format!(
            "{HEAD}storage = 'bf16'\n\
             [[step]]\nname = 'mix'\nmethod = 'weighted-sum'\ninputs = ['x', 'y']\nalpha = 'GRAD_V'\n\
             [[step]]\nmethod = 'add-difference'\ninputs = ['mix', 'x', 'y']\nalpha = {{ BASE = 0, IN03 = 0.5 }}\nvae = 'v.pt'\n"
        );
        let recipe = parse(&text).unwrap();
        assert_eq!(recipe.models["y"], Path::new("/r/sub/y.ckpt"));
        let plan = |i: usize| match &recipe.steps[i].action {
            Action::Merge(plan) => plan.clone(),
            Action::Lora(..) => panic!("a merge expected"),
        };
        assert_eq!(plan(0).storage, Some(Dtype::F32));
        assert_eq!(plan(1).storage, Some(Dtype::Bf16));
        assert_eq!(recipe.steps[1].vae.as_deref(), Some(Path::new("/r/v.pt")));
        assert!(matches!(plan(1).alpha, BlockWeights::Table(t) if t["IN03"] == 0.5));
    }

    #[test]
    fn mistakes_are_named() {
        let step = |more: &str| parse(&format!("{HEAD}[[step]]\n{more}")).unwrap_err();
        let said = [
            (
                step("method = 'mean'\ninputs = ['x', 'y']"),
                "`mean`; there are weighted-sum",
            ),
            (step("method = 'slerp'\ninputs = ['x', 'z']"), "`z`"),
            (
                step("method = 'slerp'\ninputs = ['x', 'step 1']"),
                "`step 1`",
            ),
            (
                step("name = 'x'\nmethod = 'slerp'\ninputs = ['x', 'y']"),
                "twice",
            ),
            (
                step("method = 'slerp'\ninputs = ['x', 'y']\nalpha = 'GRAD_Q'"),
                "GRAD_Q",
            ),
            (
                step("method = 'slerp'\ninputs = ['x', 'y']\nalpha = nan"),
                "NaN",
            ),
            (
                step("method = 'slerp'\ninputs = ['x', 'y']\nalfa = 1"),
                "alfa",
            ),
            (
                step("method = 'dare'\ninputs = ['x', 'y']\ndensity = 0"),
                "density = 0",
            ),
            (
                step("method = 'average'\ninputs = ['x', 'y']\nweights = [1, -1]"),
                "weights",
            ),
            (
                step("method = 'average'\ninputs = ['x', 'y']\nweights = [1]"),
                "weights",
            ),
            (
                step("method = 'slerp'\ninputs = ['x', 'y']\ntext_encoders = 'c'"),
                "a, b or merge",
            ),
            (parse(&format!("{HEAD}step = []")).unwrap_err(), "0 steps"),
            (
                parse("schema = 2\nmodels = {}\nstep = []").unwrap_err(),
                "schema = 2",
            ),
        ];
        for (error, part) in said {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}
