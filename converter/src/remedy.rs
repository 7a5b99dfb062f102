//! What can be done about an error.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use sd_models::family::ModelFamily;

use crate::ConvertError;
use crate::checkpoint::CheckpointError;
use crate::lora::LoraError;

/// What can be done about an error, in words that fit every program. Those that name an option are variants, so that a program
/// can say what the option is called there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Remedy {
    /// These words.
    Words(Cow<'static, str>),
    /// Give the file as a LoRA for a model.
    AsLora,
    /// Give a ControlNet's changes beside the model that they are for.
    BesideItsModel,
    /// Merge whole models, or make a LoRA of their difference.
    MergeOrExtract,
    /// Run a model that is converted already.
    RunIt,
    /// Give a VAE beside the model.
    GiveVae {
        /// Why, or which.
        why: &'static str,
    },
    /// Give the file as the VAE beside a checkpoint, or convert nothing else.
    AsVae,
    /// Take the text encoders of a whole model in a merge.
    TextEncodersOfOther {
        /// What needs them.
        family: ModelFamily,
        /// The model that has none.
        path: PathBuf,
        /// Whether it has no VAE, either.
        vae: bool,
    },
    /// Allow a partial use.
    AllowPartial {
        /// What that does.
        effect: &'static str,
    },
    /// Use the normal weights instead of running averages.
    NormalWeights,
    /// Leave the variant open.
    NoVariant,
    /// Keep a merge's weights that only the first model has.
    KeepFirst,
    /// Give the model that a file's changes are for.
    GiveBase,
    /// Extract text encoders however little they differ.
    SmallestDifference {
        /// How much they differ.
        largest: f32,
    },
    /// Make the best factors of a rank.
    ChooseRank,
    /// Store weights in another type.
    OtherStorage,
    /// Look for the ranges of layers' inputs in the same model with the same weights.
    Calibrate,
    /// Have the output replaced.
    Replace,
    /// Write to another folder.
    OtherFolder,
    /// Write to a disk with more room.
    MakeRoom,
}

impl Remedy {
    /// What can be done about an error of this library, if that is known. Errors of others have none.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<ConvertError>() {
            error.hint()
        } else if let Some(error) = error.downcast_ref::<CheckpointError>() {
            error.hint()
        } else {
            error.downcast_ref::<LoraError>()?.hint()
        }
    }

    pub(crate) const fn words(words: &'static str) -> Self {
        Self::Words(Cow::Borrowed(words))
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Words(words) => words,
            Self::AsLora => "it is added to a model as a LoRA",
            Self::BesideItsModel => {
                "it is a ControlNet, and converted beside the model that it is for"
            }
            Self::MergeOrExtract => {
                "it is a whole model; such are merged, and a LoRA can be made of their difference"
            }
            Self::RunIt => {
                "it is converted already, and makes pictures with the folder of such a model; to convert again, give the checkpoint that it was made from"
            }
            Self::GiveVae { why } => return write!(f, "{why}; give one beside the model"),
            Self::AsVae => {
                "this looks like a VAE; give it as that, beside a checkpoint, or ask for nothing else"
            },
            Self::TextEncodersOfOther { family, .. } => {
                return write!(
                    f,
                    "{family} needs one; a merge can take it from a whole model"
                );
            }
            Self::AllowPartial { effect } => return write!(f, "allowing a partial use {effect}"),
            Self::NormalWeights => "use the normal weights",
            Self::NoVariant => "it has no variants; ask for none",
            Self::KeepFirst => "a merge can keep the first model's weight",
            Self::GiveBase => "give the model that they are for",
            Self::SmallestDifference { largest } => {
                return write!(
                    f,
                    "their text encoders differ by up to {largest:.1e}; a least difference of 0 takes those"
                );
            }
            Self::ChooseRank => "choose a rank; the best factors of that rank are made then",
            Self::OtherStorage => "the types bf16 and f32 can hold it",
            Self::Calibrate => {
                "convert the model to whole numbers with the same LoRAs, and look for ranges in that"
            }
            Self::Replace => "ask for it to be replaced, or choose another place",
            Self::OtherFolder => "choose another folder",
            Self::MakeRoom => "make room on that disk, or choose another",
        })
    }
}
