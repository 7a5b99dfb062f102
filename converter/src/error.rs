//! What can go wrong in a conversion.

use std::io;
use std::path::PathBuf;

use sd_models::graph::GraphError;
use sd_models::keys::Component;
use sd_models::structure::StructureError;

use crate::checkpoint::CheckpointError;

/// A conversion that could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file is of a family that is not supported.
    #[error("{}: this is {kind} (it holds `{evidence}`), which is not supported\nhint: Stable Diffusion 1, 2 and XL, their relatives, ControlNets and TAESD are", path.display())]
    UnsupportedFamily {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: String,
        /// A name that gives it away.
        evidence: String,
    },
    /// The file holds tensors, but no model.
    #[error("{}: no part of a model found among its {count} tensors (the first are {first})", path.display())]
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
    #[error("{}: it has no {component}{hint}", path.display())]
    NoComponent {
        /// The file.
        path: PathBuf,
        /// What is absent.
        component: &'static str,
        /// What to do, starting with a line break, or nothing.
        hint: String,
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
    #[error("{}: {count} tensors of the {component} are missing: {names}\nhint: the file may be truncated, pruned too far, or of another architecture", path.display())]
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
    #[error("{}: {count} tensors belong to nothing that is converted: {names}\nhint: `--allow-partial` converts without them", path.display())]
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
    /// `--ema` was asked for and the file has no complete set of running averages.
    #[error("{}: {missing} of {total} UNet tensors have no EMA partner, the first is `{first}`\nhint: leave out `--ema` to use the normal weights", path.display())]
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
    /// A weight holds NaN or infinity and the user wants that to be an error.
    #[error("{}: {count} values of tensor `{name}` are NaN or infinite", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How many values.
        count: usize,
    },
    /// The output exists.
    #[error("{} exists already\nhint: `--force` replaces it", path.display())]
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
    #[error("cannot write {}: {source}{}", path.display(), write_hint(source))]
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
    #[error("{}: {problem}\nhint: convert the checkpoint again", path.display())]
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
    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }
}

fn write_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: a conversion needs about as much free space as the checkpoint is large"
        }
        io::ErrorKind::PermissionDenied => "\nhint: choose another folder with `-o`",
        _ => "",
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
