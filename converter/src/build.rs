//! Checkpoint to model directory: detection, graphs, weights, configuration files, manifest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sd_models::arch::{
    ClipTextConfig, UNetConfig, VaeConfig, clip_text_encoder, unet, vae_decoder, vae_encoder,
};
use sd_models::diffusers;
use sd_models::family::{self, ModelFamily, StructureError};
use sd_models::graph::{Graph, GraphError, OPSET};
use sd_models::keys::Component;
use sd_models::manifest::{self, DATA_FILE, Latent, Manifest, PredictionType, Source, Variant};
use sd_models::tokenizer::{self, Pad};
use sha2::{Digest, Sha256};

use crate::ConvertError;
use crate::checkpoint::TensorSource;
use crate::error::some_of;
use crate::onnx::{WriteError, Written, write_model};
use crate::output::StagedDir;
use crate::progress::Progress;
use crate::weights::{Residue, Weights};

/// Version of [`BuildReport::to_json`].
const REPORT_SCHEMA: u32 = 1;

/// What the user allows and asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildOptions {
    /// Convert although some tensors belong to nothing.
    pub allow_partial: bool,
    /// Replace an existing model directory.
    pub force: bool,
    /// Take the running averages of the UNet.
    pub ema: bool,
    /// NaN and infinity in weights are an error.
    pub strict: bool,
}

/// A conversion that is known to be possible: everything is checked but the values.
#[derive(Debug)]
pub struct BuildPlan {
    weights: Weights,
    options: BuildOptions,
    unet: UNetConfig,
    vae: VaeConfig,
    text: ClipTextConfig,
    networks: Vec<Network>,
    resolution: usize,
    warnings: Vec<String>,
}

/// One graph to be written.
#[derive(Debug)]
struct Network {
    folder: &'static str,
    component: Component,
    graph: Graph,
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
    /// Bytes written.
    pub written: u64,
}

impl BuildReport {
    /// The report's JSON form: the manifest, and what became of every other tensor.
    #[must_use]
    pub fn to_json(&self, output: &Path) -> serde_json::Value {
        serde_json::json!({
            "schema": REPORT_SCHEMA,
            "output": output,
            "written_bytes": self.written,
            "manifest": self.manifest,
            "warnings": self.warnings,
            "not_converted": {
                "without_influence": self.residue.ignorable,
                "ema": self.residue.ema,
                "replaced": self.residue.replaced,
                "unknown": self.residue.unknown,
            },
        })
    }
}

impl BuildPlan {
    /// Examines a checkpoint, with its autoencoder replaced if `vae` is given.
    ///
    /// # Errors
    /// A file that is no SD 1.x checkpoint, or one that lacks something or has tensors nobody knows.
    pub fn new(
        checkpoint: Box<dyn TensorSource>,
        vae: Option<Box<dyn TensorSource>>,
        options: BuildOptions,
    ) -> Result<Self, ConvertError> {
        let mut weights = Weights::from_checkpoint(checkpoint)?;
        let mut warnings = Vec::new();
        if options.ema {
            weights.use_ema()?;
        } else if weights.has_ema() {
            warnings.push(
                "the file also holds running averages (EMA) of its UNet; `--ema` takes those"
                    .to_owned(),
            );
        }
        if let Some(vae) = vae {
            weights.replace_vae(vae)?;
        }
        let (unet, vae, text) = configurations(&weights)?;
        let networks = networks(&unet, &vae, &text).map_err(|source| ConvertError::Graph {
            path: weights.path().to_owned(),
            source,
        })?;
        for (component, name) in [
            (Component::TextEncoder, "text encoder"),
            (Component::UNet, "UNet"),
            (Component::Vae, "VAE"),
        ] {
            let of_component = networks
                .iter()
                .filter(|n| n.component == component)
                .map(|n| &n.graph);
            weights.match_graphs(component, name, &of_component.collect::<Vec<_>>())?;
        }
        let unknown = &weights.residue().unknown;
        if !unknown.is_empty() {
            let (count, names) = (unknown.len(), some_of(unknown));
            if !options.allow_partial {
                let path = weights.path().to_owned();
                return Err(ConvertError::Leftover { path, count, names });
            }
            warnings.push(format!(
                "{count} tensors belong to nothing that is converted: {names}"
            ));
        }
        warnings.extend(schedule_warning(&weights)?);
        let resolution = resolution(&weights);
        Ok(Self {
            weights,
            options,
            unet,
            vae,
            text,
            networks,
            resolution,
            warnings,
        })
    }

    /// What the tensors were recognised as, and from what.
    #[must_use]
    pub fn evidence(&self) -> String {
        let widths: Vec<String> = self
            .unet
            .levels
            .iter()
            .map(|l| l.channels.to_string())
            .collect();
        let text = &self.text;
        format!(
            "{}: UNet widths {}, text width {} in {} layers, transformer projections by convolution, VAE widths {:?}",
            self.weights.family(),
            widths.join("/"),
            text.hidden_size,
            text.layers,
            self.vae.channels,
        )
    }

    /// Family of the checkpoint.
    #[must_use]
    pub fn family(&self) -> ModelFamily {
        self.weights.family()
    }

    /// What the user should know before anything is written.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tensors that will not be in the output, and why.
    #[must_use]
    pub fn residue(&self) -> &Residue {
        self.weights.residue()
    }

    /// Bytes that [`Self::write`] will report to its progress: every file is hashed, every weight is written.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let weights = self
            .networks
            .iter()
            .map(|n| self.weights.stored_bytes(n.component, &n.graph));
        weights.sum::<u64>()
            + self
                .weights
                .sources()
                .iter()
                .map(|s| s.size_bytes())
                .sum::<u64>()
    }

    /// Writes the model directory `target`.
    ///
    /// # Errors
    /// The checkpoint cannot be read, the directory cannot be written, or the user interrupted; nothing is left then.
    pub fn write(
        mut self,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<BuildReport, ConvertError> {
        let staged = StagedDir::create(target, self.options.force)?;
        let (sources, components) = std::thread::scope(|scope| {
            let sources = scope.spawn(|| self.hash_sources(progress));
            let components = self.write_networks(&staged, progress);
            let sources = sources.join().expect("hashing does not panic");
            Ok::<_, ConvertError>((sources?, components?))
        })?;
        let (components, non_finite) = components;
        for (name, count) in non_finite {
            let note = "it will spoil every picture";
            self.warnings.push(format!(
                "{count} values of tensor `{name}` are NaN or infinite; {note}"
            ));
        }
        let manifest = self.manifest(sources, components);
        self.write_configs(&staged, &manifest)?;
        let written = folder_size(staged.path()).map_err(ConvertError::read(staged.path()))?;
        staged.commit()?;
        Ok(BuildReport {
            manifest,
            residue: self.weights.residue().clone(),
            warnings: self.warnings,
            written,
        })
    }

    fn hash_sources(&self, progress: &dyn Progress) -> Result<Vec<Source>, ConvertError> {
        let roles = ["checkpoint", "vae"];
        self.weights
            .sources()
            .iter()
            .zip(roles)
            .map(|(source, role)| hash_source(&**source, role, progress))
            .collect()
    }

    #[expect(
        clippy::type_complexity,
        reason = "the components by folder, and tensors with NaN: used once, just above"
    )]
    fn write_networks(
        &self,
        staged: &StagedDir,
        progress: &dyn Progress,
    ) -> Result<(BTreeMap<String, manifest::Component>, Vec<(String, usize)>), ConvertError> {
        let mut components = BTreeMap::new();
        let non_finite = Mutex::new(Vec::new());
        for network in &self.networks {
            let folder = staged.path().join(network.folder);
            fs::create_dir(&folder).map_err(ConvertError::write(&folder))?;
            let reader = self
                .weights
                .reader(network.component, self.options.strict, progress);
            let written = write_model(&network.graph, &reader, &folder).map_err(|e| match e {
                WriteError::Io(source) => ConvertError::Write {
                    path: folder,
                    source,
                },
                WriteError::Weight(error) => error,
            })?;
            non_finite
                .lock()
                .expect("no panic while it is held")
                .extend(reader.into_non_finite());
            components.insert(network.folder.to_owned(), component(&written));
        }
        Ok((
            components,
            non_finite.into_inner().expect("no panic while it is held"),
        ))
    }

    fn manifest(
        &self,
        sources: Vec<Source>,
        components: BTreeMap<String, manifest::Component>,
    ) -> Manifest {
        let metadata = self.weights.sources()[0].metadata();
        let stem = self
            .weights
            .path()
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned());
        let family = self.weights.family();
        Manifest {
            schema: manifest::SCHEMA,
            converter: format!("sdconvert {}", env!("CARGO_PKG_VERSION")),
            family,
            prediction_type: PredictionType::Epsilon,
            latent: Latent {
                channels: self.vae.latent_channels,
                downscale: 1 << (self.vae.channels.len() - 1),
                scaling_factor: family.scaling_factor(),
            },
            default_size: [self.resolution; 2],
            components,
            sources,
            loras: Vec::new(),
            license: metadata.get("modelspec.license").cloned(),
            title: metadata
                .get("modelspec.title")
                .cloned()
                .or(stem)
                .unwrap_or_default(),
        }
    }

    fn write_configs(&self, staged: &StagedDir, manifest: &Manifest) -> Result<(), ConvertError> {
        let factor = manifest.latent.scaling_factor;
        let vae = diffusers::vae(&self.vae, factor, self.resolution);
        let configs = [
            ("model_index.json", diffusers::model_index()),
            (
                "scheduler/scheduler_config.json",
                diffusers::scheduler(manifest.family),
            ),
            (
                "text_encoder/config.json",
                diffusers::text_encoder(&self.text),
            ),
            (
                "unet/config.json",
                diffusers::unet(&self.unet, self.resolution / manifest.latent.downscale),
            ),
            ("vae_encoder/config.json", vae.clone()),
            ("vae_decoder/config.json", vae),
            (
                manifest::FILE_NAME,
                serde_json::to_value(manifest).expect("a manifest is plain data"),
            ),
        ];
        for (name, value) in configs {
            staged.write(name, &format!("{value:#}\n"))?;
        }
        for (name, content) in tokenizer::files(Pad::EndOfText) {
            staged.write(&format!("tokenizer/{name}"), &content)?;
        }
        Ok(())
    }
}

/// Reads every network's widths and depths from the tensors, and checks that they fit each other.
fn configurations(
    weights: &Weights,
) -> Result<(UNetConfig, VaeConfig, ClipTextConfig), ConvertError> {
    let path = || weights.path().to_owned();
    let no = |component, hint| ConvertError::NoComponent {
        path: path(),
        component,
        hint,
    };
    if !weights.has(Component::TextEncoder) {
        return Err(no("text encoder", ""));
    }
    if !weights.has(Component::Vae) {
        return Err(no(
            "VAE",
            "\nhint: give one with `--vae FILE`; SD 1.x models share `vae-ft-mse-840000`",
        ));
    }
    let structure = |source: StructureError| ConvertError::Structure {
        path: path(),
        source,
    };
    let unet = family::unet_config(&weights.shapes(Component::UNet)).map_err(structure)?;
    let vae = family::vae_config(&weights.shapes(Component::Vae)).map_err(structure)?;
    let shapes = weights.shapes(Component::TextEncoder);
    let text = family::clip_text_config(&shapes).map_err(structure)?;
    if unet.in_channels != vae.latent_channels {
        let kind = family::purpose_of_input_channels(unet.in_channels).to_owned();
        let evidence = format!("a UNet with {} input channels", unet.in_channels);
        return Err(ConvertError::UnsupportedFamily {
            path: path(),
            kind,
            evidence,
        });
    }
    if unet.cross_attention_dim != text.hidden_size {
        let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight".to_owned();
        let expected = format!(
            "a width of {}, that of the file's text encoder",
            text.hidden_size
        );
        let found = vec![unet.cross_attention_dim];
        return Err(structure(StructureError::Shape {
            component: "UNet",
            name,
            found,
            expected,
        }));
    }
    Ok((unet, vae, text))
}

/// The graphs of a pipeline, in the order they run.
fn networks(
    unet_cfg: &UNetConfig,
    vae: &VaeConfig,
    text: &ClipTextConfig,
) -> Result<Vec<Network>, GraphError> {
    let network = |folder, component, graph| Network {
        folder,
        component,
        graph,
    };
    Ok(vec![
        network(
            "text_encoder",
            Component::TextEncoder,
            clip_text_encoder(text)?,
        ),
        network("unet", Component::UNet, unet(unet_cfg)?),
        network("vae_encoder", Component::Vae, vae_encoder(vae)?),
        network("vae_decoder", Component::Vae, vae_decoder(vae)?),
    ])
}

fn component(written: &Written) -> manifest::Component {
    let file = |(sha256, size): &(String, u64)| manifest::File {
        size: *size,
        sha256: sha256.clone(),
    };
    manifest::Component {
        precision: "fp32".to_owned(),
        storage: written
            .storage
            .iter()
            .map(|s| s.name().to_owned())
            .collect(),
        variants: BTreeMap::from([(
            "model.onnx".to_owned(),
            Variant {
                opset: OPSET,
                custom_domains: Vec::new(),
            },
        )]),
        files: BTreeMap::from([
            ("model.onnx".to_owned(), file(&written.model)),
            (DATA_FILE.to_owned(), file(&written.data)),
        ]),
    }
}

fn hash_source(
    source: &dyn TensorSource,
    role: &str,
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
    let name = source
        .path()
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let sha256 = manifest::hex(&hash.finalize());
    Ok(Source {
        role: role.to_owned(),
        name,
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

/// Side in pixels that the file declares, or its family's.
fn resolution(weights: &Weights) -> usize {
    let declared = weights.sources()[0].metadata().get("modelspec.resolution");
    let side = declared.and_then(|text| text.split('x').next()?.trim().parse::<usize>().ok());
    side.filter(|n| n % 8 == 0 && (64..=4096).contains(n))
        .unwrap_or(weights.family().resolution())
}

/// A file whose noise schedule is not the family's would be sampled wrongly; no SD 1.x release has one.
fn schedule_warning(weights: &Weights) -> Result<Option<String>, ConvertError> {
    const NAME: &str = "alphas_cumprod";
    let source = &weights.sources()[0];
    let Some(info) = source
        .tensors()
        .get(NAME)
        .filter(|info| info.shape == [1000] && info.dtype.is_float())
    else {
        return Ok(None);
    };
    let mut stored = Vec::new();
    if crate::checkpoint::to_f32(info.dtype, &source.bytes(NAME)?, &mut stored).is_err() {
        return Ok(None);
    }
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let mut product = 1.0;
    let differs = stored.iter().enumerate().any(|(i, &found)| {
        product *= 1.0 - (first + i as f64 / 999.0 * (last - first)).powi(2);
        // Half-precision copies are off by up to 5e-4.
        (f64::from(found) - product).abs() > 1e-3 * product + 1e-6
    });
    let text =
        "the file's own noise schedule (`alphas_cumprod`) is not the usual one, and is not used";
    Ok(differs.then(|| text.to_owned()))
}
