//! Model to model directory: detection, graphs, weights, configuration files, manifest.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sd_models::calibration;
use sd_models::defaults::Defaults;
use sd_models::graph::{Graph, OPSET, Param, custom};
use sd_models::keys::Component;
use sd_models::manifest::{self, DATA_FILE, Manifest, Source, Variant};
use sha2::{Digest, Sha256};

use crate::ConvertError;
use crate::calibrated::Calibrated;
use crate::checkpoint::{CheckpointError, Dtype, TensorSource, count_non_finite, narrow, to_f32};
use crate::design::{Design, GraphFile, Network};
use crate::error::some_of;
use crate::lora::{self, LoraError};
use crate::model::{Entry, Model, Name, Residue, without_trailing_ones};
use crate::onnx::{Stored, Weight, WeightReader, WriteError, Written, transpose, write_model};
use crate::output::StagedDir;
pub use crate::passes::Rounded;
use crate::passes::{Roundings, quantize};
use crate::prediction::Prediction;
use crate::progress::Progress;

/// Version of [`BuildReport::to_json`].
const REPORT_SCHEMA: u32 = 2;

/// What weights are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The types that they were published in.
    #[default]
    Published,
    /// Single precision.
    Fp32,
    /// Half precision.
    Fp16,
    /// Those of linear layers and convolutions as whole numbers of 8 bits with a scale for each output, others in 16 bits.
    Int8,
    /// As [`Self::Int8`], and portable graphs of networks that run at every step multiply these numbers.
    Int8Portable(Ranges),
}

/// Where portable graphs take the ranges of activations from that they round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// The activations themselves, when the graph runs.
    Dynamic,
    /// The norms before them, and runs of the model if there are any, when the graph is written.
    Static,
}

impl Precision {
    /// The type of weights that do not become whole numbers.
    fn floats(self, published: Dtype) -> Dtype {
        match (self, published) {
            (Self::Published | Self::Int8 | Self::Int8Portable(_), Dtype::F16 | Dtype::Bf16) => {
                published
            }
            (Self::Published | Self::Fp32, _) => Dtype::F32,
            (Self::Fp16 | Self::Int8 | Self::Int8Portable(_), _) => Dtype::F16,
        }
    }
}

/// What the user allows and asks for.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Convert although some tensors belong to nothing.
    pub allow_partial: bool,
    /// Replace an existing model directory.
    pub force: bool,
    /// NaN and infinity in weights are an error.
    pub strict: bool,
    /// What the UNet predicts, if the user knows better than the file.
    pub prediction: Option<manifest::PredictionType>,
    /// What weights are stored in.
    pub precision: Precision,
    /// Ranges of activations that runs of the model had, for [`Ranges::Static`].
    pub calibrated: Option<Calibrated>,
    /// Components to convert; all of them if there are none.
    pub only: Vec<Component>,
}

impl BuildOptions {
    /// Whether a component is to be converted.
    pub(crate) fn wants(&self, component: Component) -> bool {
        self.only.is_empty() || self.only.contains(&component)
    }
}

/// A conversion that is known to be possible: everything is checked but the values.
pub struct BuildPlan {
    model: Box<dyn Model>,
    options: BuildOptions,
    design: Design,
    residue: Residue,
    warnings: Vec<String>,
}

/// What a conversion did.
#[derive(Debug)]
pub struct BuildReport {
    /// The directory's manifest.
    pub manifest: Manifest,
    /// Tensors that are not in the output, and why.
    pub residue: Residue,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// What became of every module of the LoRAs, in JSON.
    pub loras: Vec<serde_json::Value>,
    /// What the native dialect took together and what it left, by graph file, in JSON.
    pub native: serde_json::Value,
    /// What rounding to whole numbers did, by component and kind of layer; empty where nothing was rounded.
    pub rounding: BTreeMap<String, BTreeMap<&'static str, Rounded>>,
    /// Bytes written.
    pub written: u64,
    /// What the model was recognised as.
    pub kind: String,
}

impl BuildReport {
    /// The report's JSON form: the manifest, and what became of every other tensor.
    #[must_use]
    pub fn to_json(&self, output: &Path) -> serde_json::Value {
        serde_json::json!({
            "schema": REPORT_SCHEMA,
            "output": output.to_string_lossy(),
            "written_bytes": self.written,
            "manifest": self.manifest,
            "warnings": self.warnings,
            "loras": self.loras,
            "native": self.native,
            "rounding": self.rounding,
            "not_converted": {
                "without_influence": self.residue.ignorable,
                "ema": self.residue.ema,
                "replaced": self.residue.replaced,
                "not_asked_for": self.residue.other,
                "unknown": self.residue.unknown,
            },
        })
    }

    /// For each component, by how much rounding changed its weights: norms of the errors over norms of the weights.
    #[must_use]
    pub fn rounding_lines(&self) -> Vec<String> {
        let line = |(folder, groups): (&String, &BTreeMap<&str, Rounded>)| {
            let part = |(name, rounded): (&&str, &Rounded)| {
                format!("{name} {:.2} %", 100.0 * rounded.relative_error)
            };
            let parts: Vec<String> = groups.iter().map(part).collect();
            format!("{folder}: int8 changes weights by {}", parts.join(", "))
        };
        self.rounding.iter().map(line).collect()
    }
}

impl BuildPlan {
    /// Examines a model.
    ///
    /// # Errors
    /// One that is of no supported family, lacks something or has tensors nobody knows.
    pub fn new(model: Box<dyn Model>, options: BuildOptions) -> Result<Self, ConvertError> {
        let prediction = Prediction::choose(options.prediction, &*model)?;
        let design = Design::of(&*model, &prediction, &options)?;
        let mut quantized = design.networks.iter().flat_map(|n| &n.quantized);
        let whole = matches!(
            options.precision,
            Precision::Int8 | Precision::Int8Portable(_)
        );
        if whole && quantized.next().is_none() {
            return Err(ConvertError::NothingToQuantize {
                path: model.path().to_owned(),
                kind: design.kind,
            });
        }
        if let Some(calibrated) = &options.calibrated {
            let unets = design.networks.iter();
            let mut unets = unets.filter(|network| network.folder == calibration::COMPONENT);
            unets.try_for_each(|unet| calibrated.has_all(&unet.multiplied))?;
        }
        let mut warnings = model.hints().notes.clone();
        for adapter in model.adapters() {
            let mut changed = adapter.weights().map(|(component, _)| component).peekable();
            if changed.peek().is_some() && !changed.any(|component| options.wants(component)) {
                return Err(ConvertError::Lora {
                    path: adapter.source().path().to_owned(),
                    source: LoraError::NoEffect("it changes no network that is converted"),
                });
            }
            let notes = adapter.notes().iter();
            warnings.extend(notes.map(|note| format!("{}: {note}", adapter.name())));
        }
        let mut residue = model.residue().clone();
        for (component, key) in match_graphs(&*model, &design)? {
            match options.wants(component) {
                true => residue.unknown.push(key),
                false => residue.other.push(key),
            }
        }
        if let Some(error) = ConvertError::leftover(model.path(), &residue.unknown) {
            if !options.allow_partial {
                return Err(error);
            }
            warnings.push(residue.unknown_summary());
        }
        warnings.extend(schedule_warning(&*model));
        warnings.extend(design.warnings.iter().cloned());
        Ok(Self {
            model,
            options,
            design,
            residue,
            warnings,
        })
    }

    /// What the tensors were recognised as, and from what.
    #[must_use]
    pub fn evidence(&self) -> String {
        format!("{}: {}", self.kind(), self.basis())
    }

    /// What the model is.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.design.kind
    }

    /// What shows it.
    #[must_use]
    pub fn basis(&self) -> &str {
        &self.design.evidence
    }

    /// Tensors that will not be in the output, and why.
    #[must_use]
    pub fn residue(&self) -> &Residue {
        &self.residue
    }

    /// Bytes that [`Self::write`] will report to its progress: every file is hashed, every weight is written.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let entries = self.model.entries();
        let weights = self.design.networks.iter().flat_map(|network| {
            let name = |p: &Param| (network.component, p.name.clone());
            network
                .params
                .iter()
                .filter_map(move |p| entries.get(&name(p)))
        });
        let weights: u64 = weights.map(|entry| entry.byte_len() as u64).sum();
        let sources = self.model.sources();
        weights + sources.iter().map(|(_, s)| s.size_bytes()).sum::<u64>()
    }

    /// Writes the model directory `target`.
    ///
    /// # Errors
    /// The model cannot be read, the directory cannot be written, or the user interrupted; nothing is left then.
    pub fn write(
        mut self,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<BuildReport, ConvertError> {
        let staged = StagedDir::create(target, self.options.force)?;
        let (sources, components) = std::thread::scope(|scope| {
            let sources = scope.spawn(|| hash_sources(&*self.model, progress));
            let components = self.write_networks(&staged, progress);
            let sources = sources.join().expect("hashing does not panic");
            Ok::<_, ConvertError>((sources?, components?))
        })?;
        let Networks {
            components,
            non_finite,
            too_large,
            rounding,
        } = components;
        if let Some(calibrated) = &self.options.calibrated {
            let unet = components.get(calibration::COMPONENT);
            let data = unet.and_then(|unet| unet.files.get(DATA_FILE));
            calibrated.is_of(data.map(|file| &*file.sha256))?;
        }
        let loras = self.finish_loras(&staged)?;
        for (name, count) in non_finite {
            let note = "it will spoil every picture";
            self.warnings.push(format!(
                "{count} values of tensor `{name}` are NaN or infinite; {note}"
            ));
        }
        if !too_large.is_empty() {
            self.warnings.push(format!(
                "too large for half precision, so in single precision: {}",
                some_of(&too_large)
            ));
        }
        let manifest = self.manifest(sources, components);
        self.write_configs(&staged, &manifest)?;
        let written = folder_size(staged.path()).map_err(ConvertError::read(staged.path()))?;
        staged.commit()?;
        Ok(BuildReport {
            manifest,
            residue: self.residue,
            warnings: self.warnings,
            loras,
            native: native_reports(&self.design),
            rounding,
            written,
            kind: self.design.kind,
        })
    }

    fn write_networks(
        &self,
        staged: &StagedDir,
        progress: &dyn Progress,
    ) -> Result<Networks, ConvertError> {
        let mut networks = Networks::default();
        for network in &self.design.networks {
            let folder = staged.path().join(network.folder);
            fs::create_dir(&folder).map_err(ConvertError::write(&folder))?;
            let reader = Reader {
                model: &*self.model,
                network,
                precision: self.options.precision,
                strict: self.options.strict,
                progress,
                non_finite: Mutex::default(),
                too_large: Mutex::default(),
                rounding: Roundings::default(),
            };
            let graphs: Vec<(&str, &Graph)> = network
                .graphs
                .iter()
                .map(|file| (file.name, &file.graph))
                .collect();
            let written =
                write_model(&network.params, &graphs, &reader, &folder).map_err(|e| match e {
                    WriteError::Io(source) => ConvertError::Write {
                        path: folder,
                        source,
                    },
                    WriteError::Weight(error) => error,
                })?;
            let found = reader.non_finite.into_inner();
            let found = found.expect("no panic while the list is held");
            networks.non_finite.extend(found);
            let found = reader.too_large.into_inner();
            let found = found.expect("no panic while the list is held");
            networks.too_large.extend(found);
            let name = || network.folder.to_owned();
            let groups = reader.rounding.finish();
            if !groups.is_empty() {
                networks.rounding.insert(name(), groups);
            }
            let files = component(network, &written);
            networks.components.insert(name(), files);
        }
        Ok(networks)
    }

    fn manifest(
        &self,
        sources: Vec<Source>,
        components: BTreeMap<String, manifest::Component>,
    ) -> Manifest {
        let metadata = &self.model.hints().metadata;
        let stem = self.model.path().file_stem();
        let stem = stem.map(|s| s.to_string_lossy().into_owned());
        let title = metadata.get("modelspec.title").cloned();
        let design = &self.design;
        let adapters = self.model.adapters();
        let names = adapters.iter().rev().map(|adapter| adapter.name());
        let mut names = names.chain(stem.clone()).chain(title.clone());
        let defaults = match design.embeds_guidance {
            true => Some(Defaults::embedded_guidance()),
            false => names.find_map(|name| Defaults::by_name(&name)),
        };
        Manifest {
            schema: manifest::SCHEMA,
            converter: format!("sdconvert {}", env!("CARGO_PKG_VERSION")),
            family: design.family,
            architecture: design.architecture.map(str::to_owned),
            purpose: design.purpose,
            prediction_type: design.prediction,
            latent: design.latent,
            default_size: [design.resolution; 2],
            defaults: defaults.filter(|_| components.contains_key("unet")),
            components,
            loras: self.loras(&sources),
            sources,
            license: metadata.get("modelspec.license").cloned(),
            title: title.or(stem).unwrap_or_default(),
        }
    }

    /// The LoRAs in the weights, with the hashes of their files.
    fn loras(&self, sources: &[Source]) -> Vec<manifest::Lora> {
        let files = sources.iter().filter(|source| source.role == lora::ROLE);
        let used = self.model.adapters().into_iter().zip(files);
        used.map(|(adapter, file)| adapter.manifest(&file.sha256))
            .collect()
    }

    /// The textual inversions that LoRAs brought, and the reports on LoRAs' modules.
    fn finish_loras(&self, staged: &StagedDir) -> Result<Vec<serde_json::Value>, ConvertError> {
        let mut reports = Vec::new();
        for adapter in self.model.adapters() {
            adapter
                .check_effect()
                .map_err(|source| ConvertError::Lora {
                    path: adapter.source().path().to_owned(),
                    source,
                })?;
            adapter.write_embeddings(&staged.path().join(manifest::EMBEDDINGS))?;
            let modules = adapter.module_reports();
            reports.push(serde_json::json!({"name": adapter.name(), "modules": modules}));
        }
        Ok(reports)
    }

    fn write_configs(&self, staged: &StagedDir, manifest: &Manifest) -> Result<(), ConvertError> {
        let manifest = serde_json::to_value(manifest).expect("a manifest is plain data");
        let own = (manifest::FILE_NAME.to_owned(), manifest);
        for (name, value) in self.design.configs.iter().chain([&own]) {
            staged.write(name, &format!("{value:#}\n"))?;
        }
        for (folder, files) in &self.design.tokenizers {
            for (name, content) in files {
                staged.write(&format!("{folder}/{name}"), content)?;
            }
        }
        Ok(())
    }
}

/// What became of the networks.
#[derive(Default)]
struct Networks {
    /// By folder.
    components: BTreeMap<String, manifest::Component>,
    /// Tensors that hold NaN or infinity, and how many values.
    non_finite: Vec<(String, usize)>,
    /// Tensors that half precision was asked for and cannot hold.
    too_large: Vec<String>,
    /// By folder and kind of layer.
    rounding: BTreeMap<String, BTreeMap<&'static str, Rounded>>,
}

/// Checks that every parameter of the networks is there with the right shape; returns the components and keys of
/// weights that no network has.
fn match_graphs(
    model: &dyn Model,
    design: &Design,
) -> Result<Vec<(Component, String)>, ConvertError> {
    let entries = model.entries();
    let mut used = BTreeSet::new();
    let mut missing: BTreeMap<Component, Vec<String>> = BTreeMap::new();
    for network in &design.networks {
        for param in &network.params {
            let name = (network.component, param.name.clone());
            let Some((name, entry)) = entries.get_key_value(&name) else {
                let missing = missing.entry(network.component).or_default();
                missing.push(model.spelled(&name));
                continue;
            };
            used.insert(name);
            if without_trailing_ones(&entry.shape) != without_trailing_ones(&param.shape) {
                return Err(CheckpointError::Shape {
                    path: entry.file.to_path_buf(),
                    name: entry.key.clone(),
                    found: entry.shape.clone(),
                    expected: format!("{:?} for the {}", param.shape, network.component),
                }
                .into());
            }
        }
    }
    if let Some((component, names)) = missing.into_iter().next() {
        return Err(ConvertError::Missing {
            path: model.path().to_owned(),
            component,
            count: names.len(),
            names: some_of(&names),
        });
    }
    let left = entries.iter().filter(|(name, _)| !used.contains(name));
    let key = |((component, _), entry): (&Name, &Entry)| (*component, entry.key.clone());
    Ok(left.map(key).collect())
}

/// A component's weights for the graph writer.
struct Reader<'a> {
    model: &'a dyn Model,
    network: &'a Network,
    precision: Precision,
    strict: bool,
    progress: &'a dyn Progress,
    /// Tensors seen so far that hold NaN or infinity, and how many values.
    non_finite: Mutex<Vec<(String, usize)>>,
    /// Those that half precision cannot hold.
    too_large: Mutex<Vec<String>>,
    rounding: Roundings,
}

impl WeightReader for Reader<'_> {
    type Error = ConvertError;

    fn read(&self, param: &Param) -> Result<Weight<'_>, ConvertError> {
        if self.progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
        let name = (self.network.component, param.name.clone());
        let entry = &self.model.entries()[&name];
        let quantized = self.network.quantized.contains(&param.name);
        // Scales are found row by row.
        let tensor = match param.transposed && !quantized {
            true => self.model.read_transposed(&name)?,
            false => self.model.read(&name)?,
        };
        let count = tensor.count_non_finite();
        if count > 0 {
            let name = entry.key.clone();
            // One such value would be the scale of all of its output's weights.
            if self.strict || quantized {
                return Err(ConvertError::NonFinite {
                    path: entry.file.to_path_buf(),
                    name,
                    count,
                });
            }
            let mut list = self.non_finite.lock();
            let list = list.as_mut().expect("no panic while the list is held");
            list.push((name, count));
        }
        self.progress.advance(tensor.bytes.len() as u64);
        let unfit = |problem| CheckpointError::Convert {
            path: entry.file.to_path_buf(),
            name: entry.key.clone(),
            problem,
        };
        if quantized {
            let outputs = param.shape[0];
            let weight = quantize(tensor.dtype, &tensor.bytes, outputs).map_err(unfit)?;
            self.rounding.add(&param.name, weight.rounding);
            let bytes = match param.transposed {
                true => transpose(&weight.numbers, outputs, param.shape[1], 1),
                false => weight.numbers,
            };
            return Ok(Weight {
                stored: Stored::I8,
                bytes: bytes.into(),
                scales: Some(weight.scales),
            });
        }
        let wanted = self.precision.floats(tensor.dtype);
        let (dtype, bytes) = if tensor.dtype == wanted {
            (wanted, tensor.bytes)
        } else {
            let values = to_f32(tensor.dtype, &tensor.bytes).map_err(unfit)?;
            let halves = (wanted == Dtype::F16).then(|| {
                let mut halves = vec![0; 2 * values.len()];
                narrow(&values, &mut halves);
                halves
            });
            match halves {
                Some(halves) if count_non_finite(Dtype::F16, &halves) == count => {
                    (Dtype::F16, Cow::Owned(halves))
                }
                too_large => {
                    if too_large.is_some() {
                        let list = self.too_large.lock();
                        let mut list = list.expect("no panic while the list is held");
                        list.push(entry.key.clone());
                    }
                    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                    (Dtype::F32, Cow::Owned(bytes))
                }
            }
        };
        let stored = match dtype {
            Dtype::F16 => Stored::F16,
            Dtype::Bf16 => Stored::Bf16,
            _ => Stored::F32,
        };
        Ok(Weight {
            stored,
            bytes,
            scales: None,
        })
    }
}

/// By folder and file: what the native dialect took together, and what it left.
fn native_reports(design: &Design) -> serde_json::Value {
    let networks = design.networks.iter();
    let report = |network: &Network| {
        (
            network.folder.to_owned(),
            serde_json::json!(network.reports),
        )
    };
    networks
        .map(report)
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn component(network: &Network, written: &Written) -> manifest::Component {
    let file = |(sha256, size): &(String, u64)| manifest::File {
        size: *size,
        sha256: sha256.clone(),
    };
    let variant = |file: &GraphFile| {
        let own = file.graph.custom_version().map(custom::requirement);
        let variant = Variant {
            opset: OPSET,
            custom_domains: own.into_iter().collect(),
            needs: file.needs.iter().map(|&name| name.to_owned()).collect(),
            multiplies: file.multiplies.map(str::to_owned),
            ranges: file.ranges.map(str::to_owned),
        };
        (file.name.to_owned(), variant)
    };
    let graphs = written
        .graphs
        .iter()
        .map(|(name, f)| (name.clone(), file(f)));
    manifest::Component {
        precision: "fp32".to_owned(),
        storage: written
            .storage
            .iter()
            .map(|s| s.name().to_owned())
            .collect(),
        variants: network.graphs.iter().map(variant).collect(),
        files: graphs
            .chain([(DATA_FILE.to_owned(), file(&written.data))])
            .collect(),
    }
}

fn hash_sources(model: &dyn Model, progress: &dyn Progress) -> Result<Vec<Source>, ConvertError> {
    let sources = model.sources();
    let hashed = sources
        .iter()
        .map(|(role, source)| hash_source(*source, role, model.path(), progress));
    hashed.collect()
}

/// Files are named without their folder, but for folders inside the model.
fn hash_source(
    source: &dyn TensorSource,
    role: &str,
    model: &Path,
    progress: &dyn Progress,
) -> Result<Source, ConvertError> {
    let mut hash = Sha256::new();
    for chunk in source.file_bytes().chunks(1 << 22) {
        if progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
        hash.update(chunk);
        progress.advance(chunk.len() as u64);
    }
    let path = source.path();
    let inside = path.strip_prefix(model).ok();
    let inside = inside.filter(|p| !p.as_os_str().is_empty());
    let name = inside.or_else(|| path.file_name().map(Path::new));
    let name = name.map(|n| n.to_string_lossy().into_owned());
    let sha256 = manifest::hex(&hash.finalize());
    Ok(Source {
        role: role.to_owned(),
        name: name.unwrap_or_default(),
        size: source.size_bytes(),
        sha256,
    })
}

/// SHA-256 of a file, in hexadecimal, and its length.
///
/// # Errors
/// It cannot be read, or the user interrupts.
pub(crate) fn hash_file(
    path: &Path,
    progress: &dyn Progress,
) -> Result<(String, u64), ConvertError> {
    let mut file = File::open(path).map_err(ConvertError::read(path))?;
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((manifest::hex(&hash.finalize()), length)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                length += n as u64;
                progress.advance(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(ConvertError::Read {
                    path: path.to_owned(),
                    source: e,
                });
            }
        }
        if progress.cancelled() {
            return Err(ConvertError::Interrupted);
        }
    }
}

fn folder_size(path: &Path) -> io::Result<u64> {
    let mut pending: Vec<PathBuf> = vec![path.to_owned()];
    let mut size = 0;
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                size += metadata.len();
            }
        }
    }
    Ok(size)
}

/// A file whose noise schedule is not the usual one would be sampled wrongly.
fn schedule_warning(model: &dyn Model) -> Option<String> {
    let stored = model.hints().alphas_cumprod.as_ref()?;
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let mut product = 1.0;
    let differs = stored.iter().enumerate().any(|(i, &found)| {
        product *= 1.0 - (first + i as f64 / 999.0 * (last - first)).powi(2);
        // Half-precision copies are off by up to 5e-4.
        (f64::from(found) - product).abs() > 1e-3 * product + 1e-6
    });
    let text =
        "the file's own noise schedule (`alphas_cumprod`) is not the usual one, and is not used";
    differs.then(|| text.to_owned())
}
