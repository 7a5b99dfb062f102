//! ONNX Runtime: finding its library, starting it, loading and running graphs. The only module that names `ort`.

mod bands;
mod cancel;
mod chain;
mod dialect;
mod ep;
mod error;
mod graph;
pub mod library;
pub mod measured;
pub mod memory;
mod network;
mod observed;
mod openvino;
mod ops;
mod parts;
mod placement;
mod plugin;
mod pool;
mod profile;
mod protobuf;
pub mod setup;
mod splice;
mod verified;
pub mod wheels;

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;
use sd_models::manifest::Manifest;
use tempfile::TempDir;

pub use cancel::Cancel;
pub use dialect::{Chosen, Compute, Dialect, UnknownName, choose};
pub use ep::{Ep, EpOptions, UnknownEp};
pub use error::{EngineError, InBands};
pub(crate) use network::sha256;
pub use network::{Input, Network};
pub use observed::Observed;
pub use openvino::{EpOption, EpOptionError, OpenVino};
use plugin::Plugin;
pub use plugin::plugin_title;
pub use pool::{Key, Lease, Pool, Usage};
pub use profile::{NodeRun, Profile};
pub use splice::{VECTOR_PLACES, VECTORS};
use verified::Verified;

/// How the engine is started.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// The library to load, instead of looking for one.
    pub library: Option<PathBuf>,
    /// Who computes.
    pub ep: Ep,
    /// The library of [`Ep::Plugin`].
    pub plugin: Option<PathBuf>,
    /// Options of that provider, which [`Ep::check`] reads. A plugin's option `device` is the number of one of its devices.
    pub ep_options: EpOptions,
    /// Whether it is an error if the provider leaves nodes of a graph to ONNX Runtime's own kernels.
    pub strict: bool,
    /// Threads of the pool that all graphs share; as many as the process may use if absent, and never more.
    pub threads: Option<NonZero<usize>>,
}

/// ONNX Runtime's own log. What concerns the user comes as an error of ours.
fn log(_: LogLevel, category: &str, _: &str, place: &str, message: &str) {
    tracing::debug!(target: "onnxruntime", category, place, "{message}");
}

/// What ONNX Runtime complains of, without the places in its source: what the system's loader says, where that is in it.
fn cause(complaint: &str) -> &str {
    let (_, said) = complaint
        .split_once("with error: ")
        .unwrap_or(("", complaint));
    said.trim_end()
}

/// A running ONNX Runtime, and the networks that it has loaded. Threads share it.
#[derive(Debug)]
pub struct Engine {
    environment: Environment,
    library: library::Found,
    plugin: Option<Plugin>,
    ep: Ep,
    ep_options: EpOptions,
    strict: bool,
    threads: usize,
    /// Whether sessions have threads of their own, instead of those of the pool that all graphs share.
    apart: bool,
    /// Where the profiles of networks grow, if they are wanted.
    profiles: Option<TempDir>,
    /// Who looks on networks of a component.
    observed: Option<(String, Arc<Observed>)>,
    verified: Arc<Verified>,
    pool: Pool,
    /// The latest error in ONNX Runtime's log, which tells more than what it returns.
    complaint: Arc<Mutex<String>>,
}

impl Engine {
    /// Finds the library, loads it and starts its thread pool. A process has one library: the first that is loaded.
    ///
    /// # Errors
    /// No library, a wrong or too old one, or one without the provider.
    ///
    /// ```no_run
    /// use sd_runtime::engine::{Engine, EngineOptions};
    ///
    /// match Engine::start(&EngineOptions::default()) {
    ///     Ok(engine) => println!("{} threads", engine.threads()),
    ///     Err(error) => match error.hint() {
    ///         Some(hint) => println!("{error}; {hint}"),
    ///         None => println!("{error}"),
    ///     },
    /// }
    /// ```
    pub fn start(options: &EngineOptions) -> Result<Self, EngineError> {
        let library = library::find(options.library.as_deref(), options.ep)?;
        let builder = library::load(&library, options.ep)?;
        let available = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = options
            .threads
            .map_or(available, NonZero::get)
            .min(available);
        let pool = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)
            .and_then(|pool| pool.with_inter_threads(1))
            .map_err(EngineError::start)?;
        let complaint = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&complaint);
        let listener = move |level: LogLevel, category: &str, id: &str, place: &str, text: &str| {
            if matches!(level, LogLevel::Error | LogLevel::Fatal) {
                text.clone_into(&mut heard.lock().unwrap_or_else(PoisonError::into_inner));
            }
            log(level, category, id, place, text);
        };
        let environment = builder
            .with_name("sdrt")
            .with_telemetry(false)
            .with_logger(Arc::new(listener))
            .with_global_thread_pool(pool)
            .build()
            .map_err(EngineError::start)?;
        let plugin = options.plugin.as_deref();
        let plugin = plugin.map(|path| Plugin::load(&environment, path));
        let mut engine = Self {
            plugin: plugin.transpose()?,
            environment,
            library,
            ep: Ep::Cpu,
            ep_options: EpOptions::default(),
            strict: false,
            threads,
            apart: false,
            profiles: None,
            observed: None,
            verified: Arc::new(Verified::new()),
            pool: Pool::new(0),
            complaint,
        };
        engine.provide(options.ep, &options.ep_options, options.strict)?;
        Ok(engine)
    }

    /// This many engines that share the library, the provider and the processors, so that several networks run at the same
    /// time. Each has its own pool of networks and computes with its part of the threads, at least one; weights that are mapped from files
    /// are in memory once for all of them. The threads of one engine are those of this one.
    #[must_use]
    pub fn split(&self, workers: NonZero<usize>) -> Vec<Self> {
        let workers = workers.get();
        let part = |i: usize| self.threads / workers + usize::from(i < self.threads % workers);
        let engine = |i| Self {
            environment: self.environment.clone(),
            library: self.library.clone(),
            plugin: self.plugin.clone(),
            ep: self.ep,
            ep_options: self.ep_options.clone(),
            strict: self.strict,
            threads: part(i).max(1),
            apart: self.apart || workers > 1,
            profiles: None,
            observed: None,
            verified: Arc::clone(&self.verified),
            pool: Pool::new(0),
            complaint: Arc::clone(&self.complaint),
        };
        (0..workers).map(engine).collect()
    }

    /// Gives the sessions of networks that are loaded from now on threads of their own, which are made by who loads them.
    pub(crate) fn set_apart(&mut self) {
        self.apart = true;
    }

    /// Lets another provider compute what is loaded from now on, as [`EngineOptions`] describe it. Networks that were kept go.
    ///
    /// # Errors
    /// The library does not have the provider, or that does not load.
    pub fn provide(
        &mut self,
        ep: Ep,
        ep_options: &EpOptions,
        strict: bool,
    ) -> Result<(), EngineError> {
        match (ep, &self.plugin) {
            (Ep::Plugin, Some(_)) => {}
            _ => ep.require(&self.library)?,
        }
        self.library.load_needed(ep)?;
        self.ep = ep;
        self.ep_options = ep_options.clone();
        self.strict = strict;
        self.pool = Pool::new(0);
        if ep == Ep::Cpu {
            return Ok(());
        }
        // Libraries of a provider are files of their own, which a session loads.
        let builder =
            ort::session::Session::builder(&self.environment).map_err(EngineError::start)?;
        let said = || {
            self.complaint
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        said().clear();
        match self.register(builder, sd_kernels::Compute::F32) {
            Ok(_) => Ok(()),
            Err(EngineError::ProviderBroken { path, ep, problem }) => {
                let complaint = said().clone();
                let problem = match complaint.is_empty() || self.ep == Ep::Plugin {
                    true => problem,
                    false => cause(&complaint).to_owned(),
                };
                Err(EngineError::ProviderBroken { path, ep, problem })
            }
            Err(other) => Err(other),
        }
    }

    /// Lets a session compute a network with the provider, products in `compute`.
    fn register(
        &self,
        builder: SessionBuilder,
        compute: sd_kernels::Compute,
    ) -> Result<SessionBuilder, EngineError> {
        if let (Ep::Plugin, Some(plugin)) = (self.ep, &self.plugin) {
            return plugin.register(builder, &self.environment, &self.ep_options);
        }
        let providers = self.ep.dispatch(&self.ep_options, compute, self.threads);
        let registered = builder.with_execution_providers(providers);
        registered.map_err(|error| EngineError::ProviderBroken {
            path: self.library.path.clone(),
            ep: self.ep,
            problem: error.to_string(),
        })
    }

    /// Whether networks are computed by OpenVINO, in whatever library it is.
    fn is_openvino(&self) -> bool {
        let is_plugin = || self.plugin.as_ref().is_some_and(Plugin::is_openvino);
        self.ep == Ep::OpenVino || self.ep == Ep::Plugin && is_plugin()
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

    /// The [`plugin_title`] of the plugin, if it is one that computes.
    #[must_use]
    pub fn plugin(&self) -> Option<&str> {
        let plugin = self.plugin.as_ref().filter(|_| self.ep == Ep::Plugin);
        plugin.map(Plugin::title)
    }

    /// What the library says of its build.
    #[must_use]
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// Networks that are loaded from now on note the time of every node; see [`Network::end_profiling`].
    ///
    /// # Errors
    /// There is no place for their notes.
    pub fn start_profiling(&mut self) -> Result<(), EngineError> {
        let folder = tempfile::tempdir().map_err(|source| EngineError::Read {
            path: std::env::temp_dir(),
            source,
        })?;
        self.profiles = Some(folder);
        Ok(())
    }

    /// Native graphs of a component that are loaded from now on tell what goes into their layers.
    pub fn observe(&mut self, component: &str) -> Arc<Observed> {
        let observed = Arc::new(Observed::default());
        self.observed = Some((component.to_owned(), Arc::clone(&observed)));
        observed
    }

    /// Who looks on networks of a component.
    fn observer(&self, component: &str) -> Option<Arc<Observed>> {
        let (of, observed) = self.observed.as_ref()?;
        (of == component).then(|| Arc::clone(observed))
    }

    /// The networks that are in memory. Until it gets a budget, it keeps none that nobody uses.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A network for the caller alone, until the lease is dropped: one that the pool kept, or a new one. Waits while somebody
    /// else has it. The files of a new one are compared with the manifest first.
    ///
    /// # Errors
    /// A file is missing or differs from the manifest, ONNX Runtime refuses the graph, or somebody wants to stop.
    pub fn lease(
        &self,
        key: &Key,
        manifest: Option<&Manifest>,
        cancel: &Cancel,
    ) -> Result<Lease, EngineError> {
        let folder = key.folder();
        let recorded = manifest.and_then(|m| m.components.get(&key.component));
        let bytes = memory::network(&folder, &key.variant, recorded);
        self.pool.lease(key, bytes, cancel, || {
            let _span = tracing::info_span!("load", component = key.component).entered();
            let graph = folder.join(&key.variant);
            let files = recorded.map(|component| &component.files);
            network::check_files(&graph, files, &self.verified, cancel)?;
            let variant = recorded.and_then(|component| component.variants.get(&key.variant));
            if let Some(files) = files {
                let needs = variant.into_iter().flat_map(|variant| &variant.needs);
                let graphs: Vec<&String> = needs.chain([&key.variant]).collect();
                network::check_listed(&folder, files, graphs.iter().copied())?;
                for graph in graphs {
                    network::check_data_files(&folder.join(graph), files)?;
                }
            }
            Network::load(self, key, variant, cancel)
        })
    }
}
