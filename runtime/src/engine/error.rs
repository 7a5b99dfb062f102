//! What can go wrong between this program and ONNX Runtime.

use std::io;
use std::path::PathBuf;

/// A library that cannot be had, or a graph that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No library anywhere.
    #[error("ONNX Runtime was not found; looked at {looked}\nhint: `sdrun setup` fetches it")]
    NoLibrary {
        /// The places.
        looked: String,
    },
    /// The named library does not exist.
    #[error("{origin} names {}, which is not there", path.display())]
    LibraryMissing {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: &'static str,
    },
    /// The file is no library that can be loaded.
    #[error("{} cannot be loaded: {problem}\nhint: `sdrun setup` fetches ONNX Runtime {}", path.display(), super::setup::VERSION)]
    LibraryBroken {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The library is older than this program needs.
    #[error("{} is ONNX Runtime {found}, but at least 1.{} is needed\nhint: `sdrun setup` fetches {}", path.display(), ort::MINOR_VERSION, super::setup::VERSION)]
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
    #[error("{} has no {provider} provider\nhint: {hint}", path.display())]
    NoProvider {
        /// The library.
        path: PathBuf,
        /// The provider.
        provider: &'static str,
        /// Where to get one.
        hint: &'static str,
    },
    /// A model file is not as the manifest says.
    #[error("{}: {problem}\nhint: the model directory is damaged; convert the checkpoint again", path.display())]
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
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// The library could not be fetched or unpacked.
    #[error("{0}")]
    Setup(String),
}

impl EngineError {
    pub(super) fn start(error: impl std::fmt::Display) -> Self {
        Self::Start(error.to_string())
    }
}
