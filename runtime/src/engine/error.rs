//! What can go wrong between this program and ONNX Runtime.

use std::io;
use std::path::PathBuf;

use super::library::Origin;
use super::{Ep, setup};
use crate::Remedy;

/// A library that cannot be had, or a graph that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No library anywhere.
    #[error("ONNX Runtime was not found; looked at {looked}")]
    NoLibrary {
        /// The places.
        looked: String,
    },
    /// The named library does not exist.
    #[error("ONNX Runtime's library {} is not there ({origin})", path.display())]
    LibraryMissing {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
    },
    /// The file is no library that can be loaded.
    #[error("{} cannot be loaded: {problem}", path.display())]
    LibraryBroken {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The library is older than this program needs.
    #[error("{} is ONNX Runtime {found}, but at least 1.{} is needed", path.display(), ort::MINOR_VERSION)]
    LibraryOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// ONNX Runtime does not start.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
    /// The provider is not in the library.
    #[error("{} has no {ep} provider", path.display())]
    NoProvider {
        /// The library.
        path: PathBuf,
        /// The provider.
        ep: Ep,
    },
    /// A model file is not as the manifest says.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// ONNX Runtime refuses a graph.
    #[error("{}: ONNX Runtime cannot load it: {problem}", path.display())]
    Load {
        /// The graph.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A graph has other inputs or outputs than expected.
    #[error("{}: {problem}", path.display())]
    Interface {
        /// The graph.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A graph fails while it runs.
    #[error("{}: ONNX Runtime failed: {problem}", path.display())]
    Run {
        /// The graph.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The native graph cannot be run.
    #[error("the native graph cannot be run: {reason}")]
    NoNativeGraph {
        /// Why.
        reason: &'static str,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// No library is known that could be fetched for this machine.
    #[error(
        "there is no ONNX Runtime {} to fetch for {os} on {arch}",
        setup::VERSION
    )]
    NoWheel {
        /// The system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
    },
    /// The library could not be fetched.
    #[error("{0}")]
    NotFetched(String),
    /// The library could not be unpacked.
    #[error("{0}")]
    Setup(String),
}

/// Whether ONNX Runtime or a kernel of ours got no memory.
fn lacks_memory(problem: &str) -> bool {
    problem.contains("bad_alloc") || problem.contains("out of memory")
}

impl EngineError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::NoLibrary { .. } | Self::LibraryBroken { .. } | Self::LibraryOld { .. } => {
                Some(Remedy::Setup)
            }
            Self::NoProvider { ep, .. } => Some(ep.remedy()),
            Self::NoWheel { .. } => Some(Remedy::OwnLibrary),
            Self::NotFetched(_) => Some(Remedy::SetupByHand),
            Self::Load { problem, .. } | Self::Run { problem, .. } if lacks_memory(problem) => {
                Some(Remedy::words(
                    "memory ran out; a smaller picture needs less",
                ))
            }
            Self::NoNativeGraph { .. } => Some(Remedy::words(
                "convert the checkpoint again if the directory is at fault, or compute in f32 with any graph",
            )),
            Self::Damaged { .. } => Some(Remedy::words(
                "the model directory is damaged; copy it again, or convert the checkpoint again",
            )),
            _ => None,
        }
    }

    pub(super) fn start(error: impl std::fmt::Display) -> Self {
        Self::Start(error.to_string())
    }
}
