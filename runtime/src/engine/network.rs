//! One loaded graph.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};
use sd_models::manifest::{self, Variant};
use sha2::{Digest, Sha256};

use super::bands::{Planned, in_bands};
use super::chain::Chain;
use super::graph::data_files;
use super::parts::Part;
use super::placement::Placement;
use super::profile::{self, Profile};
use super::{Cancel, Engine, EngineError, Ep, InBands, Key, Verified, ops, splice};
use crate::regular;

/// What goes into a graph; numbers take the element type that the graph declares.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A tensor of numbers.
    F32(ArrayViewD<'a, f32>),
    /// Token ids.
    Ids(ArrayViewD<'a, i64>),
}

impl Input<'_> {
    /// Length of the first dimension.
    fn batch(&self) -> Option<usize> {
        match self {
            Self::F32(x) => x.shape().first().copied(),
            Self::Ids(x) => x.shape().first().copied(),
        }
    }
}

/// What a graph says of one of its inputs.
struct Declared {
    element: TensorElementType,
    /// Lengths that are fixed, and `None` for those that are not.
    shape: Vec<Option<usize>>,
}

impl Declared {
    fn batch(&self) -> Option<usize> {
        self.shape.first().copied().flatten()
    }

    /// The tensor in the declared shape: a number may be declared as a list (`timestep`), and one sample fills a fixed batch.
    ///
    /// # Errors
    /// The shape that does not fit.
    fn fit<T: Clone>(&self, x: &ArrayViewD<'_, T>) -> Result<ArrayD<T>, Vec<usize>> {
        let mut x = x.view();
        if x.ndim() == 0 && self.shape.len() == 1 {
            x = x.insert_axis(Axis(0));
        }
        let mut shape = x.shape().to_vec();
        if let (Some(size), Some(length @ 1)) = (self.batch(), shape.first_mut()) {
            *length = size;
        }
        let fits =
            |(&declared, &found): (&Option<usize>, &usize)| declared.is_none_or(|n| n == found);
        if shape.len() != self.shape.len() || !self.shape.iter().zip(&shape).all(fits) {
            return Err(x.shape().to_vec());
        }
        Ok(x.broadcast(shape)
            .expect("only a length of 1 grew")
            .to_owned())
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self.shape.iter();
        let lengths = lengths.map(|n| n.map_or("any".to_owned(), |n| n.to_string()));
        write!(f, "[{}]", lengths.collect::<Vec<_>>().join(", "))
    }
}

/// A loaded network: a graph, and those whose outputs it needs.
#[derive(Debug)]
pub struct Network {
    graph: Graph,
    parts: Vec<Part>,
    /// Whether its operators are our own.
    native: bool,
}

impl Network {
    /// Loads `folder`'s graph of this name and those that it needs; `variant` is what the manifest says of it.
    pub(super) fn load(
        engine: &Engine,
        key: &Key,
        variant: Option<&Variant>,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let ours = variant.is_some();
        let load = |file: &str, changed| Graph::load(engine, key, file, ours, changed, cancel);
        let needs = variant.map_or(&[][..], |variant| &variant.needs);
        let parts = needs.iter().map(|file| Ok(Part::new(load(file, None)?)));
        Ok(Self {
            parts: parts.collect::<Result<_, EngineError>>()?,
            graph: load(&key.variant, Changed::of(key)?.as_ref())?,
            native: variant.is_some_and(|variant| !variant.custom_domains.is_empty()),
        })
    }

    /// Runs the network and returns the named outputs, in single precision.
    ///
    /// Graphs of other exporters may have a batch of fixed size: one sample is then repeated to fill it, and the first result
    /// is returned.
    ///
    /// # Errors
    /// Inputs or outputs that the graph does not have, a failure inside, or the user's wish to stop.
    pub fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        cancel: &Cancel,
    ) -> Result<Vec<ArrayD<f32>>, EngineError> {
        let mut filled = None;
        let mut values = Vec::new();
        for (name, input) in inputs {
            if !self.graph.has_input(name) && self.parts.iter().any(|p| p.graph.has_input(name)) {
                continue;
            }
            let size = self.graph.declared(name)?.batch();
            let size = size.filter(|&size| size > 1 && input.batch() == Some(1));
            filled = filled.or(size);
            values.push(((*name).to_owned(), self.graph.value(name, input)?.into()));
        }
        let parts = self.parts.iter_mut();
        let made = parts.map(|part| part.outputs(inputs, cancel));
        let made = made.collect::<Result<Vec<_>, _>>()?;
        for (name, value) in made.iter().flat_map(|outputs| outputs.iter()) {
            if self.graph.has_input(name) {
                values.push((name.clone(), value.into()));
            }
        }
        if let Some(missing) = outputs
            .iter()
            .find(|&&name| self.outputs().all(|known| known != name))
        {
            return Err(self
                .graph
                .interface(format!("it has no output `{missing}`")));
        }
        let results = self.graph.run(values, cancel)?;
        let take = |name: &&str| {
            let found = results.iter().find(|(known, _)| known == name);
            let (_, value) = found.expect("all outputs are returned");
            let mut output = single_precision(value).map_err(|e| self.graph.failed(&e))?;
            if output.shape().first().copied() == filled {
                output.slice_axis_inplace(Axis(0), Slice::from(..1));
            }
            Ok(output)
        };
        outputs.iter().map(take).collect()
    }

    /// Ends the profile that [`Engine::start_profiling`] asked for: its own, then those of the graphs whose outputs it needs.
    ///
    /// # Errors
    /// No profile was asked for, or it cannot be read.
    pub fn end_profiling(&mut self) -> Result<Vec<Profile>, EngineError> {
        let parts = self.parts.iter_mut().map(|part| &mut part.graph);
        let graphs = std::iter::once(&mut self.graph).chain(parts);
        graphs.map(Graph::end_profiling).collect()
    }

    /// Nodes that the provider left to ONNX Runtime's own kernels, as ONNX Runtime describes them.
    #[must_use]
    pub fn left_to_cpu(&self) -> &[String] {
        &self.graph.left
    }

    /// Names of the graph's outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        let outputs = self.graph.session.outputs();
        outputs.iter().map(ort::value::Outlet::name)
    }

    /// Size of the batch that the graph wants at its input `name`, if that is fixed.
    ///
    /// # Errors
    /// It has no such input.
    pub fn batch(&self, name: &str) -> Result<Option<usize>, EngineError> {
        Ok(self.graph.declared(name)?.batch())
    }

    /// Length of the last dimension of its input `name`, if that is fixed.
    ///
    /// # Errors
    /// It has no such input.
    pub fn width(&self, name: &str) -> Result<Option<usize>, EngineError> {
        let declared = self.graph.declared(name)?;
        Ok(declared.shape.last().copied().flatten())
    }

    /// Whether an input with a batch of 1 goes with others that have more, and is repeated where they meet. Our own operators do
    /// that.
    #[must_use]
    pub fn repeats_single_inputs(&self) -> bool {
        self.native
    }

    /// Whether it has an input of this name.
    #[must_use]
    pub fn has_input(&self, name: &str) -> bool {
        let mut parts = self.parts.iter();
        self.graph.has_input(name) || parts.any(|part| part.graph.has_input(name))
    }
}

/// One graph in a session of ONNX Runtime.
#[derive(Debug)]
pub(super) struct Graph {
    session: Session,
    path: PathBuf,
    /// Nodes that the provider left to ONNX Runtime's own kernels.
    left: Vec<String>,
    /// Whether it was told that fractions are rounded.
    rounds: AtomicBool,
    /// Whether it holds nothing but its weights between runs.
    compact: bool,
    /// The wish to stop, for operators that take long.
    stop: Arc<AtomicBool>,
}

/// A graph that is not loaded as its file has it.
struct Changed {
    graph: Vec<u8>,
    /// What is computed in bands.
    steps: Option<Arc<Vec<Planned>>>,
}

impl Changed {
    /// The graph of a key, if that asks for a change.
    fn of(key: &Key) -> Result<Option<Self>, EngineError> {
        if !key.takes_vectors && !key.in_bands {
            return Ok(None);
        }
        let path = key.folder().join(&key.variant);
        let graph = std::fs::read(&path).map_err(|source| EngineError::Read {
            path: path.clone(),
            source,
        })?;
        if key.in_bands {
            return match in_bands(&graph) {
                Ok((graph, steps)) => Ok(Some(Self {
                    graph,
                    steps: Some(Arc::new(steps)),
                })),
                Err(problem) => Err(EngineError::NotInBands {
                    path,
                    obstacle: InBands::NoGraph(problem),
                }),
            };
        }
        let graph = splice::with_vectors(&graph);
        let changed = graph.map(|graph| Some(Self { graph, steps: None }));
        changed.map_err(|problem| EngineError::Interface {
            path,
            problem: problem.to_owned(),
        })
    }
}

impl Graph {
    /// `ours` are graphs that `sdconvert` wrote.
    fn load(
        engine: &Engine,
        key: &Key,
        file: &str,
        ours: bool,
        changed: Option<&Changed>,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let path = &key.folder().join(file);
        let failed = |problem: String| EngineError::Load {
            path: path.to_owned(),
            problem,
        };
        let say = |error: &dyn std::fmt::Display| failed(error.to_string());
        let mut builder = Session::builder(&engine.environment).map_err(|e| say(&e))?;
        let elsewhere = engine.ep != Ep::Cpu && !key.on_processor;
        let level = match elsewhere && engine.is_openvino() {
            // It has passes of its own, which know weights of 16 or 8 bits only while nobody has widened them.
            true => GraphOptimizationLevel::Disable,
            false => optimization_level(path),
        };
        builder = builder
            .with_optimization_level(level)
            .map_err(|e| say(&e))?;
        // A plan made in the first run keeps that run's memory beside its own: 0.8 GB for nothing.
        builder = builder.with_memory_pattern(false).map_err(|e| say(&e))?;
        builder = builder
            .with_config_entry("session.use_device_allocator_for_initializers", "1")
            .map_err(|e| say(&e))?;
        builder = builder
            .with_log_level(LogLevel::Warning)
            .map_err(|e| say(&e))?;
        if ours {
            // Their whole numbers are weights. ONNX Runtime would round activations, too, in its kernel for such; now it widens
            // the weights when it loads them.
            builder = builder
                .with_config_entry("session.disable_quant_qdq", "1")
                .map_err(|e| say(&e))?;
            // Products of graphs that multiply whole numbers, on processors whose own would saturate.
            builder = builder
                .with_config_entry("session.x64quantprecision", "1")
                .map_err(|e| say(&e))?;
        }
        if engine.apart {
            builder = builder
                .with_independent_thread_pool()
                .map_err(|e| say(&e))?;
            builder = builder
                .with_intra_threads(engine.threads)
                .map_err(|e| say(&e))?;
        }
        let placement = Placement::default();
        if elsewhere {
            builder = engine.register(builder, key.compute)?;
            builder = placement.listen(builder).map_err(|e| say(&e))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let steps = changed.and_then(|changed| changed.steps.clone());
        let chain = steps.map(|steps| Chain {
            steps,
            stop: Arc::clone(&stop),
        });
        if chain.is_some() {
            // An arena would keep what the nodes before the chain computed with.
            let without_arena = ort::ep::CPU::default().with_arena_allocator(false).build();
            builder = builder
                .with_execution_providers([without_arena])
                .map_err(|e| say(&e))?;
        }
        let observer = engine.observer(&key.component);
        let operators = ops::domain(key.compute, engine.threads, observer, chain);
        let operators = operators.map_err(|e| say(&e))?;
        builder = builder.with_operators(operators).map_err(|e| say(&e))?;
        for (name, size) in &key.dims {
            builder = builder
                .with_dimension_override(name, *size as i64)
                .map_err(|e| say(&e))?;
        }
        if let Some(folder) = &engine.profiles {
            // ONNX Runtime adds the time in whole seconds.
            let name = format!("{}.{file}", key.component);
            builder = builder
                .with_profiling(folder.path().join(name))
                .map_err(|e| say(&e))?;
        }
        if changed.is_some() {
            // Where the weights are of a graph that comes from memory.
            let folder = "session.model_external_initializers_file_folder_path";
            builder = builder
                .with_config_entry(folder, key.folder().to_string_lossy())
                .map_err(|e| say(&e))?;
        }
        let canceler = builder.canceler();
        let give_up = move || drop(canceler.cancel());
        let session = cancel.during(give_up, || match changed {
            Some(changed) => builder.commit_from_memory(&changed.graph),
            None => builder.commit_from_file(path),
        })?;
        let session = session.map_err(|e| lost_link(path).unwrap_or_else(|| say(&e)))?;
        let left = match elsewhere {
            true => placement.left(engine.ep, path, engine.strict)?,
            false => Vec::new(),
        };
        Ok(Self {
            session,
            left,
            path: path.to_owned(),
            rounds: AtomicBool::new(false),
            // Without an arena there is nothing to shrink.
            compact: engine.pool.keeps() && !key.in_bands,
            stop,
        })
    }

    /// Runs the graph and returns all its outputs by name.
    pub(super) fn run(
        &mut self,
        values: Vec<(String, SessionInputValue<'_>)>,
        cancel: &Cancel,
    ) -> Result<Vec<(String, DynValue)>, EngineError> {
        let path = &self.path;
        let failed = |e: ort::Error| EngineError::Run {
            path: path.clone(),
            problem: e.to_string(),
        };
        let mut options = RunOptions::new().map_err(failed)?;
        if self.compact {
            let shrink = options.set("memory.enable_memory_arena_shrinkage", "cpu:0");
            shrink.map_err(failed)?;
        }
        let options = Arc::new(options);
        let running = Arc::clone(&options);
        self.stop.store(false, Ordering::Relaxed);
        let wish = Arc::clone(&self.stop);
        let stop = move || {
            wish.store(true, Ordering::Relaxed);
            drop(running.terminate());
        };
        let run = || self.session.run_with_options(values, &options);
        let results = cancel.during(stop, run)?.map_err(failed)?;
        let named = results
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Ok(named.collect())
    }

    /// Ends its profile.
    fn end_profiling(&mut self) -> Result<Profile, EngineError> {
        let failed = |problem: String| EngineError::Run {
            path: self.path.clone(),
            problem: format!("its profile: {problem}"),
        };
        let file = self.session.end_profiling();
        let file = file.map_err(|e| failed(e.to_string()))?;
        let text = std::fs::read_to_string(&file).map_err(|e| failed(format!("{file}: {e}")))?;
        let graph = self.path.file_name().unwrap_or_default();
        Ok(Profile {
            graph: graph.to_string_lossy().into_owned(),
            runs: profile::parse(&text).map_err(|e| failed(e.to_string()))?,
        })
    }

    fn failed(&self, e: &ort::Error) -> EngineError {
        EngineError::Run {
            path: self.path.clone(),
            problem: e.to_string(),
        }
    }

    /// Whether it has an input of this name.
    pub(super) fn has_input(&self, name: &str) -> bool {
        let mut inputs = self.session.inputs().iter();
        inputs.any(|outlet| outlet.name() == name)
    }

    fn declared(&self, name: &str) -> Result<Declared, EngineError> {
        let mut inputs = self.session.inputs().iter();
        let Some(outlet) = inputs.find(|outlet| outlet.name() == name) else {
            return Err(self.interface(format!("it has no input `{name}`")));
        };
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            return Err(self.interface(format!("its input `{name}` is no tensor")));
        };
        let shape = shape.iter().map(|&n| usize::try_from(n).ok());
        Ok(Declared {
            element: *ty,
            shape: shape.collect(),
        })
    }

    /// A tensor as the graph declares its input `name`.
    pub(super) fn value(&self, name: &str, input: &Input<'_>) -> Result<DynValue, EngineError> {
        let declared = self.declared(name)?;
        let misfit = |found: Vec<usize>| {
            self.interface(format!(
                "its input `{name}` has the fixed shape {declared}; this run needs {found:?}"
            ))
        };
        let made = match (input, declared.element) {
            (Input::F32(x), TensorElementType::Float32) => {
                Tensor::from_array(declared.fit(x).map_err(misfit)?).map(Tensor::into_dyn)
            }
            (Input::F32(x), TensorElementType::Float16) => {
                let x = declared.fit(x).map_err(misfit)?;
                Tensor::from_array(x.mapv(half::f16::from_f32)).map(Tensor::into_dyn)
            }
            (Input::F32(x), TensorElementType::Int64) => {
                let x = declared.fit(x).map_err(misfit)?;
                if let Some(fraction) = x.iter().find(|v| v.fract() != 0.0)
                    && !self.rounds.swap(true, Ordering::Relaxed)
                {
                    let path = self.path.display();
                    tracing::warn!(
                        "{path}: `{name}` takes whole numbers only; {fraction} and others are rounded"
                    );
                }
                Tensor::from_array(x.mapv(|v| v.round() as i64)).map(Tensor::into_dyn)
            }
            (Input::Ids(x), TensorElementType::Int64) => {
                Tensor::from_array(declared.fit(x).map_err(misfit)?).map(Tensor::into_dyn)
            }
            (Input::Ids(x), TensorElementType::Int32) => {
                let x = declared.fit(x).map_err(misfit)?;
                Tensor::from_array(x.mapv(|v| v as i32)).map(Tensor::into_dyn)
            }
            (_, other) => {
                return Err(
                    self.interface(format!("its input `{name}` has elements of type {other}"))
                );
            }
        };
        made.map_err(|e| self.interface(e.to_string()))
    }

    fn interface(&self, problem: String) -> EngineError {
        EngineError::Interface {
            path: self.path.clone(),
            problem,
        }
    }
}

/// The numbers of an output, which is half precision in some graphs.
fn single_precision(output: &DynValue) -> ort::Result<ArrayD<f32>> {
    match output.dtype().tensor_type() {
        Some(TensorElementType::Float16) => {
            let halves = output.try_extract_array::<half::f16>()?;
            Ok(halves.mapv(half::f16::to_f32))
        }
        _ => Ok(output.try_extract_array::<f32>()?.to_owned()),
    }
}

/// Up to this many bytes of weights, convolutions get a blocked layout.
const BLOCKED_LAYOUT_BYTES: u64 = 512 << 20;

/// ONNX Runtime's last level copies the weights of convolutions into a blocked layout while the originals still exist.
///
/// That makes SD's VAE decoder 13 % faster at no cost, and the UNet of SD 1.5 4 % faster; but that takes 5.8 GB instead
/// of 3.6 and 6 seconds longer to load, more than the steps of a picture win back.
fn optimization_level(model: &Path) -> GraphOptimizationLevel {
    let files = model
        .parent()
        .and_then(|folder| folder.read_dir().ok())
        .into_iter()
        .flatten()
        .flatten();
    let bytes: u64 = files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    if bytes > BLOCKED_LAYOUT_BYTES {
        GraphOptimizationLevel::Level2
    } else {
        GraphOptimizationLevel::All
    }
}

/// Graphs that are run must be among the files that the manifest lists: others were compared with nothing.
pub(super) fn check_listed<'a>(
    folder: &Path,
    files: &BTreeMap<String, manifest::File>,
    mut graphs: impl Iterator<Item = &'a String>,
) -> Result<(), EngineError> {
    match graphs.find(|&graph| !files.contains_key(graph)) {
        None => Ok(()),
        Some(graph) => Err(EngineError::Damaged {
            path: folder.join(graph),
            problem: "sdrt.json needs it, but does not list it among the files".to_owned(),
        }),
    }
}

/// The weights of graphs that are run must lie in files that the manifest lists, for the same reason.
pub(super) fn check_data_files(
    graph: &Path,
    files: &BTreeMap<String, manifest::File>,
) -> Result<(), EngineError> {
    let damaged = |problem: String| EngineError::Damaged {
        path: graph.to_owned(),
        problem,
    };
    let bytes = std::fs::read(graph).map_err(|source| EngineError::Read {
        path: graph.to_owned(),
        source,
    })?;
    let names = data_files(&bytes).map_err(|problem| damaged(problem.to_owned()))?;
    let mut names = names.into_iter().map(String::from_utf8_lossy);
    match names.find(|name| !files.contains_key(&**name)) {
        None => Ok(()),
        Some(name) => Err(damaged(format!(
            "its weights lie in `{name}`, which sdrt.json does not list among the files"
        ))),
    }
}

/// Compares the files beside a graph with the manifest: length first, then content, unless that is known from before.
pub(super) fn check_files(
    graph: &Path,
    files: Option<&BTreeMap<String, manifest::File>>,
    verified: &Verified,
    cancel: &Cancel,
) -> Result<(), EngineError> {
    if !graph.is_file() {
        return Err(missing(graph));
    }
    for (name, expected) in files.into_iter().flatten() {
        let path = graph.with_file_name(name);
        let damaged = |problem| EngineError::Damaged {
            path: path.clone(),
            problem,
        };
        let size = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing(&path)),
            Err(source) => return Err(EngineError::Read { path, source }),
        };
        if size != expected.size {
            return Err(damaged(format!(
                "it has {size} bytes, but the manifest says {}",
                expected.size
            )));
        }
        if verified.knows(&path, &expected.sha256) {
            continue;
        }
        let read = |source| EngineError::Read {
            path: path.clone(),
            source,
        };
        let before = path.metadata().map_err(read)?;
        let sha256 = hash(&path, &|| cancel.is_cancelled()).map_err(read)?;
        let sha256 = sha256.ok_or(EngineError::Interrupted)?;
        if sha256 != expected.sha256 {
            return Err(damaged(format!(
                "its SHA-256 is {sha256}, but the manifest says {}",
                expected.sha256
            )));
        }
        verified.remember(&path, &before, &sha256);
    }
    Ok(())
}

/// A file that is not there. Links of a download cache lead nowhere once that is cleared.
fn missing(path: &Path) -> EngineError {
    let problem = match path.read_link() {
        Ok(target) => format!("it is a link to {}, which is missing", target.display()),
        Err(_) => "it is missing".to_owned(),
    };
    EngineError::Damaged {
        path: path.to_owned(),
        problem,
    }
}

/// The first link beside a graph that leads nowhere. Where there is no manifest, nothing else tells which files a graph reads.
fn lost_link(graph: &Path) -> Option<EngineError> {
    let beside = graph.parent()?.read_dir().ok()?;
    let mut paths = beside.flatten().map(|entry| entry.path());
    let lost = paths.find(|path| path.is_symlink() && !path.exists())?;
    Some(missing(&lost))
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    Ok(hash(path, &|| false)?.unwrap_or_default())
}

/// SHA-256 of a file, in hexadecimal, unless somebody wants to stop meanwhile.
fn hash(path: &Path, stop: &dyn Fn() -> bool) -> io::Result<Option<String>> {
    let (mut file, mut hash, mut buffer) = (regular::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    while !stop() {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(manifest::hex(&hash.finalize()))),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn missing_truncated_and_altered_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        let verified = Verified::at(dir.path().join("verified.json"));
        let problem = |files: &BTreeMap<String, manifest::File>| {
            check_files(&path, Some(files), &verified, &Cancel::new())
                .unwrap_err()
                .to_string()
        };
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let mut files =
            BTreeMap::from([("model.onnx".to_owned(), manifest::File { size: 3, sha256 })]);
        assert!(problem(&files).contains("missing"));
        fs::write(&path, "ab").unwrap();
        assert!(problem(&files).contains("2 bytes"));
        fs::write(&path, "abd").unwrap();
        assert!(problem(&files).contains("SHA-256"));
        fs::write(&path, "abc").unwrap();
        check_files(&path, Some(&files), &verified, &Cancel::new()).unwrap();
        let data = files["model.onnx"].clone();
        files.insert("model.onnx_data".to_owned(), data);
        assert!(problem(&files).contains("model.onnx_data: it is missing"));
    }
}
