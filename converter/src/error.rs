//! What can go wrong in a conversion.

use std::io;
use std::path::{Path, PathBuf};

use sd_models::calibration::CalibrationError;
use sd_models::family::ADAPTER;
use sd_models::graph::GraphError;
use sd_models::keys::Component;
use sd_models::structure::StructureError;

use crate::Remedy;
use crate::checkpoint::{CheckpointError, Dtype};
use crate::lora::LoraError;
use crate::merge::{BlockWeightsError, RecipeError};

/// A conversion that could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file is of a family that is not supported.
    #[error("{}: this is {kind} (it holds `{evidence}`), which is not supported here", path.display())]
    UnsupportedFamily {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: String,
        /// A name that gives it away.
        evidence: String,
    },
    /// The file holds tensors, but no model.
    #[error("{}: {}", path.display(), no_part(*count, first))]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// How many tensors it has.
        count: usize,
        /// Some of their names.
        first: String,
    },
    /// A file was given as a textual inversion and is none.
    #[error("{}: no textual inversion: expected `emb_params`, one entry of `string_to_param`, `clip_l` and `clip_g`, or one tensor of a text encoder's width", path.display())]
    NotAnEmbedding {
        /// The file.
        path: PathBuf,
    },
    /// A whole component is absent.
    #[error("{}: it has no {component}", path.display())]
    NoComponent {
        /// The file.
        path: PathBuf,
        /// What is absent.
        component: &'static str,
        /// What can be done.
        remedy: Option<Remedy>,
    },
    /// A configuration file says something else than the weights.
    #[error("{}: the {component}'s config.json says {field} = {config}, but its weights say {weights}", path.display())]
    ConfigContradictsWeights {
        /// The folder.
        path: PathBuf,
        /// Whose configuration.
        component: Component,
        /// Name in the configuration.
        field: &'static str,
        /// What the configuration says.
        config: String,
        /// What the weights say.
        weights: String,
    },
    /// A configuration file says something that our graphs do not compute.
    #[error("{}: {field} is {found}; supported is {supported}", path.display())]
    ConfigUnsupported {
        /// The file.
        path: PathBuf,
        /// Name in the configuration.
        field: &'static str,
        /// What the configuration says.
        found: String,
        /// What it may say.
        supported: String,
    },
    /// A tokenizer has tokens that the text encoder does not know.
    #[error("{}: token `{token}` has id {id}, but the {component} has {rows} tokens", path.display())]
    TokenOutOfRange {
        /// The tokenizer's folder.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Whose tokens.
        component: Component,
        /// Rows of its table.
        rows: usize,
    },
    /// Tensors do not form a known network.
    #[error("{}: {source}", path.display())]
    Structure {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: StructureError,
    },
    /// The configuration read from the tensors is contradictory.
    #[error("{}: its layers do not fit together", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// Where.
        source: GraphError,
    },
    /// The network needs tensors that the file lacks.
    #[error("{}: {count} tensors of the {component} are missing: {names}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Which network.
        component: Component,
        /// How many.
        count: usize,
        /// Their keys, as the file would spell them.
        names: String,
    },
    /// Tensors that nothing uses.
    #[error("{}: {count} tensors belong to nothing that is known: {names}", path.display())]
    Leftover {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names.
        names: String,
    },
    /// Two tensors of a file are the same weight.
    #[error("{}: tensors `{first}` and `{second}` are both `{canonical}`", path.display())]
    DuplicateCanonicalKey {
        /// The file.
        path: PathBuf,
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// Canonical name.
        canonical: String,
    },
    /// Running averages were asked for, and the file has no complete set of them.
    #[error("{}: {missing} of {total} UNet tensors have no EMA partner, the first is `{first}`", path.display())]
    EmaIncomplete {
        /// The file.
        path: PathBuf,
        /// Tensors without partner.
        missing: usize,
        /// Tensors of the UNet.
        total: usize,
        /// The first without partner.
        first: String,
    },
    /// None of the model's weights can be whole numbers.
    #[error("{}: it is {kind}, of which no weight is stored as int8", path.display())]
    NothingToQuantize {
        /// The file.
        path: PathBuf,
        /// What it was recognised as.
        kind: String,
    },
    /// A file of ranges cannot be understood.
    #[error("{}: {source}", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CalibrationError,
    },
    /// A file of ranges does not have those of all layers.
    #[error("{}: ranges of {count} layers are missing, those with the weights {names}", path.display())]
    CalibrationLacks {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Names of their weights.
        names: String,
    },
    /// Ranges of another model, or of one whose weights are stored otherwise.
    #[error("{}: ranges of other weights ({title}): their SHA-256 is {found}, and that of these is {expected}", path.display())]
    CalibrationOfOther {
        /// The file.
        path: PathBuf,
        /// The model that it is of.
        title: String,
        /// Hash of its UNet's weights.
        found: String,
        /// Hash of the UNet's weights that were written.
        expected: String,
    },
    /// A weight holds NaN or infinity, and it is to become whole numbers or the user wants that to be an error.
    #[error("{}: {count} values of tensor `{name}` are NaN or infinite", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How many values.
        count: usize,
    },
    /// A merge of too few or too many models.
    #[error("method {method} takes {want} models, {got} given")]
    MergeInputs {
        /// Name of the method.
        method: &'static str,
        /// How many there are.
        got: usize,
        /// How many it takes.
        want: String,
    },
    /// Models of different families cannot be merged.
    #[error("{} is {family_a}, but {} is {family_b}: models of different families cannot be merged", a.display(), b.display())]
    FamilyMismatch {
        /// The first model.
        a: PathBuf,
        /// Its family.
        family_a: String,
        /// The other model.
        b: PathBuf,
        /// Its family.
        family_b: String,
    },
    /// A weight that only some of the models have.
    #[error("tensor `{key}` of {} is not in {}", has.display(), lacks.display())]
    MergeKeyMissing {
        /// Its name in the file that has it.
        key: String,
        /// The file that has it.
        has: PathBuf,
        /// The model that lacks it.
        lacks: PathBuf,
    },
    /// A weight has different shapes in different models.
    #[error("tensor `{key}` has shape {shape_a:?} in {} and {shape_b:?} in {}", a.display(), b.display())]
    MergeShape {
        /// Its name in the first file.
        key: String,
        /// The first file.
        a: PathBuf,
        /// Its shape there.
        shape_a: Vec<usize>,
        /// The other file.
        b: PathBuf,
        /// Its shape there.
        shape_b: Vec<usize>,
    },
    /// An inpainting or editing model is not the first.
    #[error("{} has {channels_b} input channels, {} has {channels_a}", b.display(), a.display())]
    InpaintMustBeA {
        /// The first model.
        a: PathBuf,
        /// Its input channels.
        channels_a: usize,
        /// The other model.
        b: PathBuf,
        /// Its input channels.
        channels_b: usize,
    },
    /// A ControlNet that is stored as changes to another model.
    #[error("{}: it holds changes to a model's UNet (a Control-LoRA or difference ControlNet)", path.display())]
    NeedsBase {
        /// The file.
        path: PathBuf,
    },
    /// A weight that only one of two models has.
    #[error("tensor `{key}` of {} is not in {}", has.display(), lacks.display())]
    ExtractKeyMissing {
        /// Its name in the file that has it.
        key: String,
        /// The file that has it.
        has: PathBuf,
        /// The model that lacks it.
        lacks: PathBuf,
    },
    /// Two models whose layers are all the same.
    #[error("{} and {} differ in no layer that is to be extracted", base.display(), tuned.display())]
    NothingToExtract {
        /// The base.
        base: PathBuf,
        /// The other.
        tuned: PathBuf,
        /// How much text encoders differ that were left out, since they are nearly the same.
        text_left_out: Option<f32>,
    },
    /// A LoRA does not fit its model.
    #[error("{}: {source}", path.display())]
    Lora {
        /// The LoRA.
        path: PathBuf,
        /// What is wrong.
        source: LoraError,
    },
    /// Block weights that do not fit the model.
    #[error("{source}")]
    BlockWeights {
        /// What is wrong with them.
        source: BlockWeightsError,
    },
    /// A recipe cannot be followed.
    #[error("{}: {source}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// A computed weight is too large for the type it is to be stored in.
    #[error("{}: tensor `{name}`: {value:e} is too large for {dtype}", path.display())]
    OverflowOnStore {
        /// File of the first model.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value.
        value: f32,
        /// The type.
        dtype: Dtype,
    },
    /// The output exists.
    #[error("{} exists already", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output exists and is nothing this program would have written.
    #[error("{} exists and is no model directory, so it is not replaced", path.display())]
    OutputForeign {
        /// The output.
        path: PathBuf,
    },
    /// The output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A model directory does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A folder that is no model directory.
    #[error("{}: no model directory: it has no `sdrt.json`", path.display())]
    NotADirectory {
        /// The folder.
        path: PathBuf,
    },
    /// The user stopped it.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl ConvertError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        Some(match self {
            Self::Checkpoint(error) => return error.hint(),
            Self::Lora { source, .. } => return source.hint(),
            Self::Write { source, .. } => return of_writing(source),
            Self::NoComponent { remedy, .. } => return remedy.clone(),
            Self::NothingToExtract { text_left_out, .. } => {
                let largest = (*text_left_out)?;
                Remedy::SmallestDifference { largest }
            }
            Self::UnsupportedFamily { kind, .. } if kind == ADAPTER => Remedy::AsLora,
            Self::UnsupportedFamily { .. } => Remedy::words(
                "Stable Diffusion 1, 2 and XL, their relatives, ControlNets and TAESD are",
            ),
            Self::TokenOutOfRange { .. } => Remedy::words(
                "save the text encoder again after `resize_token_embeddings`, or take the token out",
            ),
            Self::Missing { .. } => Remedy::words(
                "the file may be truncated, pruned too far, or of another architecture",
            ),
            Self::NothingToQuantize { .. } => {
                Remedy::words("convert it as it was published: it is small and would lose most")
            }
            Self::CalibrationLacks { .. } | Self::CalibrationOfOther { .. } => Remedy::Calibrate,
            Self::Leftover { .. } => Remedy::AllowPartial {
                effect: "goes on without them",
            },
            Self::EmaIncomplete { .. } => Remedy::NormalWeights,
            Self::MergeKeyMissing { .. } => Remedy::KeepFirst,
            Self::InpaintMustBeA { .. } => Remedy::words(
                "the model with more input channels (inpainting, editing) must be the first",
            ),
            Self::NeedsBase { .. } => Remedy::GiveBase,
            Self::ExtractKeyMissing { .. } => Remedy::words(
                "a LoRA can be made of the difference of two whole models of the same structure",
            ),
            Self::OverflowOnStore { .. } => Remedy::OtherStorage,
            Self::OutputExists { .. } => Remedy::Replace,
            Self::Damaged { .. } => Remedy::words("convert the checkpoint again"),
            _ => return None,
        })
    }

    /// The error of tensors that belong to nothing, if a model has some.
    #[must_use]
    pub fn leftover(path: &Path, unknown: &[String]) -> Option<Self> {
        (!unknown.is_empty()).then(|| Self::Leftover {
            path: path.to_owned(),
            count: unknown.len(),
            names: some_of(unknown),
        })
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }
}

fn no_part(count: usize, first: &str) -> String {
    match count {
        0 => "it holds no tensors".to_owned(),
        _ => format!("no part of a model found among its {count} tensors (the first are {first})"),
    }
}

fn of_writing(error: &io::Error) -> Option<Remedy> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Remedy::MakeRoom),
        io::ErrorKind::PermissionDenied => Some(Remedy::OtherFolder),
        _ => None,
    }
}

/// The first of many names, and how many more there are.
pub(crate) fn some_of<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|n| format!("`{}`", n.as_ref()))
        .collect();
    let more = names.len().saturating_sub(SHOWN);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    shown.join(", ") + &rest
}
