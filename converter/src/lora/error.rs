//! What can be wrong with an adapter.

use std::fmt;

use crate::Remedy;

/// An adapter that does not fit its model, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A kind that cannot be added to weights.
    #[error("it is {kind} (it holds `{evidence}`), which is not supported")]
    Unsupported {
        /// Which kind.
        kind: &'static str,
        /// A key that gives it away.
        evidence: String,
        /// What can be done instead.
        remedy: Option<Remedy>,
    },
    /// A key that is no part of any known kind.
    #[error("tensor `{0}` is no part of any known kind of LoRA")]
    UnknownPart(String),
    /// A folder in which no adapter was saved.
    #[error(
        "a folder without `adapter_model.safetensors` (PEFT) or `pytorch_lora_weights.safetensors` (diffusers); it holds {0}"
    )]
    NoFile(String),
    /// No adapter at all.
    #[error("no LoRA: none of its {tensors} tensors is a part of one")]
    NotALora {
        /// How many tensors there are.
        tensors: usize,
        /// Whether it is a model.
        is_model: bool,
    },
    /// Modules that the model has not, or has with other shapes.
    #[error("it does not fit this model: {misfits}{guess}")]
    DoesNotFit {
        /// Why it does not.
        misfits: Box<Misfit>,
        /// What it seems to be made for, starting with punctuation, or nothing.
        guess: String,
    },
    /// Not even one module fits, so that even a partial use would do nothing.
    #[error("none of its {} modules fits this model{guess}; {misfits}", misfits.modules)]
    NothingFits {
        /// Why they do not.
        misfits: Box<Misfit>,
        /// What it seems to be made for, starting with punctuation, or nothing.
        guess: String,
    },
    /// A part without its partner.
    #[error("module `{module}` has no {part}")]
    Incomplete {
        /// The module.
        module: String,
        /// What is missing.
        part: &'static str,
    },
    /// Parts of different kinds in one module.
    #[error("module `{module}` has parts of different kinds: {parts}")]
    MixedParts {
        /// The module.
        module: String,
        /// The keys.
        parts: String,
    },
    /// Factors that cannot be multiplied.
    #[error("module `{module}`: the factors do not fit each other: {found}")]
    Rank {
        /// The module.
        module: String,
        /// Shapes of its parts.
        found: String,
    },
    /// The parts of a module do not fit their target.
    #[error("module `{module}`: {found}, but the model's weight is {target:?}")]
    Shape {
        /// The module.
        module: String,
        /// Shapes of its parts.
        found: String,
        /// Shape of the weight it is for.
        target: Vec<usize>,
    },
    /// A bias that the model has not.
    #[error("module `{module}` changes a bias, which the model's layer has not")]
    NoBias {
        /// The module.
        module: String,
    },
    /// A scale that is no positive number.
    #[error("module `{module}`: its alpha is {alpha}; a positive number expected")]
    BadAlpha {
        /// The module.
        module: String,
        /// What it is.
        alpha: f64,
    },
    /// A tensor that holds something else than it should.
    #[error("tensor `{key}`: {problem}")]
    Tensor {
        /// The tensor.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Something that would make no sense at this strength or on this target.
    #[error("module `{module}`: {problem}")]
    Module {
        /// The module.
        module: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A change that cannot be stored, as it depends on the weights that it is for.
    #[error("module `{module}`: its change depends on the model")]
    DependsOnModel {
        /// The module.
        module: String,
    },
    /// A change that is to be stored as factors and has none.
    #[error("module `{module}`: it is no product of two factors")]
    NoFactors {
        /// The module.
        module: String,
    },
    /// Two modules for one weight, with different content.
    #[error("modules `{first}` and `{second}` are for the same weight, and differ")]
    Duplicate {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// The configuration beside the file, or in it, cannot be used.
    #[error("{place}: {problem}")]
    Config {
        /// Where it stands.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A module is not what the configuration says.
    #[error("{place}: {says}, but {found}")]
    Contradiction {
        /// Where the configuration stands.
        place: String,
        /// What it says.
        says: String,
        /// What the file holds.
        found: String,
    },
    /// A LoRA that is merged with those of another family.
    #[error("it is made for {family}, the LoRAs before it for {others}")]
    OtherFamily {
        /// What it is made for.
        family: String,
        /// What those before it are made for.
        others: String,
    },
    /// Block weights that do not fit the model.
    #[error("{0}")]
    BlockWeights(String),
    /// An embedding in the file that does not fit the model's text encoders.
    #[error(
        "embedding `{name}` has vectors of width {found:?}, but the model's text encoders have width {expected:?}"
    )]
    EmbeddingWidth {
        /// Its name.
        name: String,
        /// Width of its vectors.
        found: Vec<usize>,
        /// Widths of the model.
        expected: Vec<usize>,
    },
    /// A vector that is added to a text encoder's output, as `OneTrainer` can train one.
    #[error("`{0}` is a vector for what a text encoder puts out, which is not supported")]
    OutputVectors(String),
    /// Weights that are no numbers after the change.
    #[error("it makes `{name}` infinite or NaN")]
    NonFiniteResult {
        /// The weight.
        name: String,
    },
    /// An adapter that would change nothing.
    #[error("it changes nothing: {0}")]
    NoEffect(&'static str),
}

impl LoraError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        Some(match self {
            Self::Unsupported { remedy, .. } => return remedy.clone(),
            Self::NoFile(_) => Remedy::words("name the LoRA's file"),
            Self::NotALora { is_model: true, .. } => Remedy::MergeOrExtract,
            Self::DoesNotFit { .. } => Remedy::AllowPartial {
                effect: "adds what fits",
            },
            Self::OutputVectors(_) => Remedy::AllowPartial {
                effect: "leaves it out",
            },
            Self::DependsOnModel { .. } => Remedy::AsLora,
            Self::NoFactors { .. } => Remedy::ChooseRank,
            Self::Contradiction { .. } => Remedy::words("the configuration is of another adapter"),
            Self::NonFiniteResult { .. } => {
                Remedy::words("the strength may be too high, or the file damaged")
            }
            Self::NoEffect(_) => Remedy::words("strength 0 turns a LoRA off"),
            _ => return None,
        })
    }
}

/// How many modules do not fit, and why.
#[derive(Clone, Debug)]
pub struct Misfit {
    /// How many modules there are.
    pub modules: usize,
    /// How many have no target.
    pub unmatched: usize,
    /// The first of them.
    pub first_unmatched: String,
    /// How many have another shape than their target.
    pub mismatched: usize,
    /// The first of them, and the shapes.
    pub first_mismatched: String,
    /// How many are for a layer that the network does not run.
    pub unused: usize,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules = self.modules;
        let mut said = Vec::new();
        if self.unmatched > 0 {
            said.push(format!(
                "{} of {modules} modules have no target, the first are {}",
                self.unmatched, self.first_unmatched
            ));
        }
        if self.mismatched > 0 {
            said.push(format!(
                "{} of {modules} modules have other shapes, the first: {}",
                self.mismatched, self.first_mismatched
            ));
        }
        if said.is_empty() {
            let unused = self.unused;
            said.push(format!("{unused} are for a layer that it does not run"));
        }
        f.write_str(&said.join("; "))
    }
}
