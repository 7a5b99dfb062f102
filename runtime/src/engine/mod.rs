//! ONNX Runtime: finding its library, starting it, loading and running graphs. The only module that names `ort`.

mod cancel;
mod ep;
mod error;
pub mod library;
pub mod memory;
mod network;
mod ops;
pub mod setup;
mod verified;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use sd_models::manifest::Manifest;

pub use cancel::Cancel;
pub use ep::Ep;
pub use error::EngineError;
pub use network::{Input, Network};
use verified::Verified;

/// How the engine is started.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// The library to load, instead of looking for one.
    pub library: Option<PathBuf>,
    /// Who computes.
    pub ep: Ep,
    /// Threads of the pool that all graphs share; as many as the process may use if absent, and never more.
    pub threads: Option<NonZero<usize>>,
}

/// ONNX Runtime's own log. What concerns the user comes as an error of ours.
fn log(_: LogLevel, category: &str, _: &str, place: &str, message: &str) {
    tracing::debug!(target: "onnxruntime", category, place, "{message}");
}

/// A running ONNX Runtime.
#[derive(Debug)]
pub struct Engine {
    environment: Environment,
    library: library::Found,
    ep: Ep,
    threads: usize,
}

impl Engine {
    /// Finds the library, loads it and starts its thread pool. A process has one library: the first that is loaded.
    ///
    /// # Errors
    /// No library, a wrong or too old one, or one without the provider.
    pub fn start(options: &EngineOptions) -> Result<Self, EngineError> {
        let library = library::find(options.library.as_deref())?;
        let builder = library::load(&library)?;
        let available = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = options
            .threads
            .map_or(available, NonZero::get)
            .min(available);
        let pool = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)
            .and_then(|pool| pool.with_inter_threads(1))
            .map_err(EngineError::start)?;
        let environment = builder
            .with_name("sdrt")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .with_global_thread_pool(pool)
            .build()
            .map_err(EngineError::start)?;
        options.ep.require(&library)?;
        Ok(Self {
            environment,
            library,
            ep: options.ep,
            threads,
        })
    }

    /// The library that was loaded.
    #[must_use]
    pub fn library(&self) -> &library::Found {
        &self.library
    }

    /// Threads of the pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Who computes.
    #[must_use]
    pub fn ep(&self) -> Ep {
        self.ep
    }

    /// What the library says of its build.
    #[must_use]
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// Loads `component`'s graph from a model directory; sizes in `dims` are fixed, by the name of the symbol.
    ///
    /// # Errors
    /// A file is missing or differs from the manifest, or ONNX Runtime refuses the graph.
    pub fn load(
        &self,
        dir: &Path,
        component: &str,
        manifest: Option<&Manifest>,
        dims: &[(&str, usize)],
        cancel: &Cancel,
    ) -> Result<Network, EngineError> {
        self.load_variant(dir, component, "model.onnx", manifest, dims, cancel)
    }

    /// [`Self::load`] of another graph over the same weights, by its file name.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn load_variant(
        &self,
        dir: &Path,
        component: &str,
        graph: &str,
        manifest: Option<&Manifest>,
        dims: &[(&str, usize)],
        cancel: &Cancel,
    ) -> Result<Network, EngineError> {
        let folder = dir.join(component);
        let files = manifest
            .and_then(|m| m.components.get(component))
            .map(|c| &c.files);
        network::check_files(&folder, files, &Verified::new(), cancel)?;
        Network::load(self, &folder.join(graph), dims, cancel)
    }
}
