//! What can go wrong between this program and ONNX Runtime.

use std::io;
use std::path::PathBuf;

use super::Ep;
use super::library::Origin;
use super::library::setup_dir;
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
        /// The provider that it should have.
        ep: Ep,
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
        /// The provider that it should have.
        ep: Ep,
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
    /// The provider is in the library, but does not load.
    #[error("the {ep} provider of {} cannot be loaded: {problem}", path.display())]
    ProviderBroken {
        /// The library.
        path: PathBuf,
        /// The provider.
        ep: Ep,
        /// Which file or symbol is missing.
        problem: String,
    },
    /// Nodes of a graph are not taken by the provider, although all should be.
    #[error("{}: {}", path.display(), fell_back(*ep, nodes))]
    FellBack {
        /// The graph.
        path: PathBuf,
        /// The provider.
        ep: Ep,
        /// The nodes, as ONNX Runtime describes them; none where it does not tell.
        nodes: Vec<String>,
    },
    /// The processor does not compute in the numbers that were asked of the provider.
    #[error("{0}")]
    NoSuchNumbers(&'static str),
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
    /// A network cannot work in bands of rows.
    #[error("{}: it cannot be computed in bands of rows: {obstacle}", path.display())]
    NotInBands {
        /// Its graph.
        path: PathBuf,
        /// Why.
        obstacle: InBands,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// No library is known that could be fetched for this machine.
    #[error(
        "no ONNX Runtime with the {ep} provider is known that could be fetched for {os} on {arch}"
    )]
    NoWheel {
        /// The provider.
        ep: Ep,
        /// The system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
    },
    /// The library could not be fetched.
    #[error("{problem}")]
    NotFetched {
        /// The provider.
        ep: Ep,
        /// Why.
        problem: String,
    },
    /// The library could not be unpacked.
    #[error("{0}")]
    Setup(String),
}

/// Why a network cannot work in bands of rows, as only native graphs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InBands {
    /// The native graph cannot be run.
    #[error("{0}")]
    NoGraph(&'static str),
    /// The portable graph was asked for.
    #[error("only native graphs do that, and the portable one was asked for")]
    PortableAsked,
    /// A provider runs portable graphs.
    #[error("only native graphs do that, which {0} does not run")]
    Provider(Ep),
}

fn fell_back(ep: Ep, nodes: &[String]) -> String {
    /// More are counted.
    const SHOWN: usize = 8;
    if nodes.is_empty() {
        return format!("ONNX Runtime does not tell whether {ep} takes all of its nodes");
    }
    let shown = nodes.iter().take(SHOWN).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = match nodes.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{} nodes are not taken by {ep}: {shown}{more}", nodes.len())
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
            // What can be fetched is there.
            Self::ProviderBroken { ep, path, .. } if path.starts_with(setup_dir(*ep)) => {
                Some(ep.system().map_or_else(|| ep.remedy(), Remedy::words))
            }
            Self::NoLibrary { ep, .. }
            | Self::LibraryBroken { ep, .. }
            | Self::ProviderBroken { ep, .. }
            | Self::NoProvider { ep, .. } => Some(ep.remedy()),
            Self::LibraryOld { .. } => Some(Remedy::Setup { ep: Ep::Cpu }),
            Self::FellBack { .. } => Some(Remedy::AllowFallback),
            Self::NoWheel { .. } => Some(Remedy::OwnLibrary),
            Self::NotFetched { ep, .. } => Some(Remedy::SetupByHand { ep: *ep }),
            Self::Load { problem, .. } | Self::Run { problem, .. } if lacks_memory(problem) => {
                Some(Remedy::words(
                    "memory ran out; a smaller picture needs less",
                ))
            }
            Self::NoNativeGraph { .. } => Some(Remedy::words(
                "convert the checkpoint again if the directory is at fault, or compute in f32 with any graph",
            )),
            Self::NotInBands { obstacle, .. } => Some(match obstacle {
                InBands::NoGraph(_) => Remedy::DoNotTile,
                InBands::PortableAsked => Remedy::TileNatively,
                InBands::Provider(_) => Remedy::TileOnProcessor,
            }),
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
