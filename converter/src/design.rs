//! What a model becomes: its family, graphs and configuration files, from the shapes of its weights and what its files say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use sd_models::arch::{
    ClipTextConfig, ControlNetConfig, TaesdConfig, UNetConfig, VaeConfig, clip_text_encoder,
    controlled_unet, controlnet, taesd_decoder, taesd_encoder, unet, vae_decoder, vae_encoder,
};
use sd_models::diffusers::{self, Pipeline};
use sd_models::family::{ModelFamily, Purpose};
use sd_models::graph::{Graph, GraphError, Param, lower};
use sd_models::keys::Component;
use sd_models::manifest::{Latent, PredictionType};
use sd_models::presets::Trunk;
use sd_models::structure::{self, StructureError};
use sd_models::tokenizer;
use sd_models::tokenizer::folder::{Files, Parts};
use serde_json::Value;

use crate::build::{BuildOptions, Precision, Ranges};
use crate::calibrated::Calibrated;
use crate::config::Config;
use crate::model::{Model, Name};
use crate::passes::{Part, Report, Split, integer, multiplied, native, quantizable, ranged, split};
use crate::prediction::Prediction;
use crate::{ConvertError, Remedy};

/// One network to be written.
pub(crate) struct Network {
    pub(crate) folder: &'static str,
    pub(crate) component: Component,
    /// The parameters of all graphs, as they are stored.
    pub(crate) params: Vec<Param>,
    pub(crate) graphs: Vec<GraphFile>,
    /// What the native dialect took together, by graph file.
    pub(crate) reports: BTreeMap<&'static str, Report>,
    /// Names of parameters that become whole numbers.
    pub(crate) quantized: BTreeSet<String>,
    /// Those of them that portable graphs may multiply as such.
    pub(crate) multiplied: BTreeSet<String>,
}

/// A graph as a file of its network's folder.
pub(crate) struct GraphFile {
    pub(crate) name: &'static str,
    pub(crate) graph: Graph,
    /// Files whose outputs are inputs of this one.
    pub(crate) needs: Vec<&'static str>,
    /// What it multiplies, if it is not single precision.
    pub(crate) multiplies: Option<&'static str>,
    /// Where the ranges of activations that it multiplies come from, as [`sd_models::manifest::Variant::ranges`] says.
    pub(crate) ranges: Option<&'static str>,
}

/// The graph of ONNX operators.
const PORTABLE: &str = "model.onnx";

/// What is computed once per prompt and once per noise level, and the files for that.
pub(crate) const PARTS: [(&str, Part); 2] = [
    (
        "native.prompt.onnx",
        Part {
            name: "prompt",
            inputs: &["encoder_hidden_states"],
            batch: "prompts",
        },
    ),
    (
        "native.time.onnx",
        Part {
            name: "time",
            inputs: &["timestep", "timestep_cond", "text_embeds", "time_ids"],
            batch: "times",
        },
    ),
];

/// A network's graph and the files of its two dialects.
struct Dialects {
    portable: &'static str,
    native: &'static str,
    graph: Graph,
}

impl Network {
    fn new(
        folder: &'static str,
        component: Component,
        graph: Graph,
        storage: &Storage<'_>,
    ) -> Result<Self, GraphError> {
        let dialects = Dialects {
            portable: PORTABLE,
            native: "native.onnx",
            graph,
        };
        Self::of(folder, component, &[dialects], storage)
    }

    /// Graphs over the same parameters, whose parts that depend on prompt or time only are the same.
    fn of(
        folder: &'static str,
        component: Component,
        graphs: &[Dialects],
        storage: &Storage<'_>,
    ) -> Result<Self, GraphError> {
        let quantized = match storage.precision {
            Precision::Int8 | Precision::Int8Portable(_) => {
                quantizable(&graphs[0].graph, component)
            }
            Precision::Published | Precision::Fp32 | Precision::Fp16 => BTreeSet::new(),
        };
        let multiplied = multiplied(&quantized, component);
        let mut files = Vec::new();
        for dialects in graphs {
            let (graph, ranges) = match storage.precision {
                Precision::Int8Portable(Ranges::Dynamic) => {
                    let graph = integer(&dialects.graph, &quantized, &multiplied)?;
                    (graph, Some("dynamic"))
                }
                Precision::Int8Portable(Ranges::Static) => {
                    let vector = |name: &str| storage.vector(component, name);
                    // Runs had no ControlNet.
                    let ran = storage.calibrated.filter(|_| dialects.portable == PORTABLE);
                    let seen = |name: &str| ran?.range(name);
                    let graph = lower(&ranged(&dialects.graph, &multiplied, vector, seen)?)?;
                    (graph, Some(if ran.is_some() { "runs" } else { "norms" }))
                }
                _ => (lower(&dialects.graph)?, None),
            };
            let ranges = ranges.filter(|_| !multiplied.is_empty());
            files.push(GraphFile {
                name: dialects.portable,
                graph,
                needs: Vec::new(),
                multiplies: ranges.map(|_| "int8"),
                ranges,
            });
        }
        let mut reports = BTreeMap::new();
        for dialects in graphs {
            let (graph, report) = native(&dialects.graph, &quantized)?;
            reports.insert(dialects.native, report);
            let Split { parts, rest } = split(&graph, &PARTS.map(|(_, part)| part))?;
            let mut needs = Vec::new();
            for ((name, _), part) in PARTS.iter().zip(parts) {
                let Some(graph) = part else { continue };
                needs.push(*name);
                if !files.iter().any(|file: &GraphFile| file.name == *name) {
                    files.push(GraphFile {
                        name,
                        graph,
                        needs: Vec::new(),
                        multiplies: None,
                        ranges: None,
                    });
                }
            }
            files.push(GraphFile {
                name: dialects.native,
                graph: rest,
                needs,
                multiplies: None,
                ranges: None,
            });
        }
        Ok(Self {
            folder,
            component,
            params: graphs[0].graph.params.clone(),
            graphs: files,
            reports,
            quantized,
            multiplied,
        })
    }
}

/// How weights are stored, and what has to be known of them for that.
struct Storage<'a> {
    precision: Precision,
    /// Ranges that the UNet's runs had.
    calibrated: Option<&'a Calibrated>,
    /// Weights and biases of the UNet's and ControlNet's norms, where ranges follow from them.
    vectors: HashMap<Name, Vec<f32>>,
}

impl<'a> Storage<'a> {
    fn of(model: &dyn Model, options: &'a BuildOptions) -> Result<Self, ConvertError> {
        let precision = options.precision;
        let mut vectors = HashMap::new();
        if precision == Precision::Int8Portable(Ranges::Static) {
            let entries = model.entries().iter();
            let networks = [Component::UNet, Component::ControlNet];
            for (name, _) in entries.filter(|((component, _), entry)| {
                networks.contains(component) && entry.shape.len() == 1
            }) {
                vectors.insert(name.clone(), model.read_f32(name)?);
            }
        }
        Ok(Self {
            precision,
            calibrated: options.calibrated.as_ref(),
            vectors,
        })
    }

    fn vector(&self, component: Component, name: &str) -> Option<&[f32]> {
        Some(self.vectors.get(&(component, name.to_owned()))?)
    }
}

/// What is going to be written.
pub(crate) struct Design {
    /// What the model is, for people.
    pub(crate) kind: String,
    /// What shows it.
    pub(crate) evidence: String,
    pub(crate) family: Option<ModelFamily>,
    pub(crate) architecture: Option<&'static str>,
    pub(crate) purpose: Purpose,
    pub(crate) prediction: PredictionType,
    pub(crate) latent: Latent,
    /// Side in pixels that the model was trained at.
    pub(crate) resolution: usize,
    /// Whether guidance is an input of the UNet.
    pub(crate) embeds_guidance: bool,
    pub(crate) networks: Vec<Network>,
    /// Configuration files by path.
    pub(crate) configs: Vec<(String, Value)>,
    /// Files of tokenizers by folder.
    pub(crate) tokenizers: Vec<(&'static str, Files)>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

impl Design {
    /// Reads it from a model.
    ///
    /// # Errors
    /// A structure that is not supported, or components that do not fit each other.
    pub(crate) fn of(
        model: &dyn Model,
        prediction: &Prediction,
        options: &BuildOptions,
    ) -> Result<Self, ConvertError> {
        let storage = &Storage::of(model, options)?;
        let has = |component| model.has(component) && options.wants(component);
        if model.has(Component::UNet) {
            pipeline(model, prediction, storage, options)
        } else if has(Component::ControlNet) {
            control(model, storage)
        } else if has(Component::Taesd) {
            tiny_autoencoder(model, storage)
        } else if has(Component::Vae) && !options.wants(Component::UNet) {
            autoencoder(model, storage)
        } else {
            let mut components = model.entries().keys().map(|(component, _)| *component);
            let remedy = if components.all(|component| component == Component::Vae) {
                Remedy::AsVae
            } else {
                Remedy::words("a whole checkpoint or pipeline folder is needed")
            };
            Err(ConvertError::NoComponent {
                path: model.path().to_owned(),
                component: "UNet",
                remedy: Some(remedy),
            })
        }
    }
}

/// The parts of a `model_index.json` that come with a component.
const INDEXED: [(Component, &[&str]); 4] = [
    (Component::UNet, &["unet", "scheduler"]),
    (Component::Vae, &["vae"]),
    (Component::TextEncoder, &["text_encoder", "tokenizer"]),
    (Component::TextEncoder2, &["text_encoder_2", "tokenizer_2"]),
];

/// The family, latent space and scheduler are those of the model's UNet, whether that is converted or not.
fn pipeline(
    model: &dyn Model,
    prediction: &Prediction,
    storage: &Storage<'_>,
    options: &BuildOptions,
) -> Result<Design, ConvertError> {
    let config = Config::of(model, Component::UNet)?;
    let unet_cfg = unet_config(model, &config)?;
    let family = ModelFamily::of(&unet_cfg);
    let encoders = match options.wants(Component::TextEncoder) {
        true => text_encoders(model, family)?,
        false => Vec::new(),
    };
    let vae_cfg = match options.wants(Component::Vae) {
        true => Some(vae(model, family)?),
        false => None,
    };
    // Without a VAE, that of the family.
    let (latent_channels, levels) = match &vae_cfg {
        Some(cfg) => (cfg.latent_channels, cfg.channels.len()),
        None => (unet_cfg.out_channels, 4),
    };
    let purpose = Purpose::of(unet_cfg.in_channels, latent_channels).ok_or_else(|| {
        ConvertError::UnsupportedFamily {
            path: model.path().to_owned(),
            kind: structure::purpose_of_input_channels(unet_cfg.in_channels).to_owned(),
            evidence: format!("a UNet with {} input channels", unet_cfg.in_channels),
        }
    })?;
    if !encoders.is_empty() {
        check_text_width(model, &unet_cfg, &encoders)?;
    }

    let hints = model.hints();
    let described = Pipeline {
        family,
        purpose,
        prediction: prediction.kind,
        consistency: unet_cfg.guidance_width.is_some(),
        zero_snr: hints.zero_snr,
    };
    let latent = Latent {
        channels: latent_channels,
        downscale: 1 << (levels - 1),
        scaling_factor: Config::of(model, Component::Vae)?
            .scaling_factor()?
            .unwrap_or(family.scaling_factor()),
    };
    let velocity = prediction.kind == PredictionType::VPrediction;
    let trained = config.sample_size().map(|side| side * latent.downscale);
    let resolution = resolution(model, trained, family.resolution(velocity));
    let trunk = Trunk::of(&unet_cfg, family);
    let (evidence, kind) = describe(&unet_cfg, trunk, purpose, family);

    let unet = Some(&unet_cfg).filter(|_| options.wants(Component::UNet));
    let mut networks =
        networks(&encoders, unet, vae_cfg.as_ref(), storage).map_err(unfit(model))?;
    let mut configs = Vec::new();
    if let Some(cfg) = &vae_cfg {
        let config = diffusers::vae(cfg, latent.scaling_factor, resolution);
        configs.push(("vae_encoder/config.json".to_owned(), config.clone()));
        configs.push(("vae_decoder/config.json".to_owned(), config));
    }
    let (mut tokenizers, mut warnings) = (Vec::new(), Vec::new());
    for (component, cfg) in &encoders {
        let (folder, tokenizer) = text_folders(*component);
        let (files, parts) = tokenizer_of(model, family, *component, cfg)?;
        let config = diffusers::text_encoder(cfg, parts.start, parts.pad);
        configs.push((format!("{folder}/config.json"), config));
        tokenizers.push((tokenizer, files));
        warnings.extend(out_of_reach(*component, cfg, &parts));
    }
    let mut evidence = format!("{evidence}; {}", prediction.evidence);
    if model.has(Component::ControlNet) && options.wants(Component::ControlNet) {
        let control = control(model, storage)?;
        networks.extend(control.networks);
        configs.extend(control.configs);
        evidence = format!("{evidence}; with a ControlNet");
    }
    let kind = described_part(kind, &networks, options);
    let scheduler = hints
        .scheduler
        .clone()
        .unwrap_or_else(|| diffusers::scheduler(described));
    let class = scheduler["_class_name"].as_str().unwrap_or_default();
    let index = model_index(model, described, class, options);
    configs.push(("model_index.json".to_owned(), index));
    if let Some(cfg) = unet {
        configs.push(("scheduler/scheduler_config.json".to_owned(), scheduler));
        configs.push((
            "unet/config.json".to_owned(),
            diffusers::unet(cfg, resolution / latent.downscale),
        ));
    }
    Ok(Design {
        kind,
        evidence,
        family: Some(family),
        architecture: trunk.map(|trunk| trunk.name),
        purpose,
        prediction: prediction.kind,
        latent,
        resolution,
        embeds_guidance: unet_cfg.guidance_width.is_some(),
        networks,
        configs,
        tokenizers,
        warnings,
    })
}

/// Which class runs each folder that is written, and the flags of the model's own `model_index.json`.
fn model_index(
    model: &dyn Model,
    described: Pipeline,
    scheduler: &str,
    options: &BuildOptions,
) -> Value {
    let mut index = diffusers::model_index(described, scheduler);
    let given = model.hints().index.as_ref();
    for flag in ["force_zeros_for_empty_prompt", "requires_aesthetics_score"] {
        if let Some(value) = given.and_then(|index| index[flag].as_bool()) {
            index[flag] = value.into();
        }
    }
    let gone = INDEXED.iter().filter(|(it, _)| !options.wants(*it));
    for part in gone.flat_map(|(_, parts)| *parts) {
        if let Some(part) = index.get_mut(part) {
            *part = serde_json::json!([null, null]);
        }
    }
    index
}

/// The UNet that the shapes show, with what only its configuration says.
fn unet_config(model: &dyn Model, config: &Config<'_>) -> Result<UNetConfig, ConvertError> {
    let shapes = model.shapes(Component::UNet);
    let mut cfg = structure::unet_config(&shapes).map_err(in_file(model))?;
    config.apply_heads(&mut cfg)?;
    config.agrees("in_channels", cfg.in_channels)?;
    config.agrees("out_channels", cfg.out_channels)?;
    config.agrees("cross_attention_dim", cfg.cross_attention_dim)?;
    config.agrees_by_level("block_out_channels", &widths(&cfg))?;
    Ok(cfg)
}

/// Folders of a text encoder and its tokenizer.
fn text_folders(component: Component) -> (&'static str, &'static str) {
    match component {
        Component::TextEncoder2 => ("text_encoder_2", "tokenizer_2"),
        _ => ("text_encoder", "tokenizer"),
    }
}

/// The graphs of a pipeline. The VAE, which no LoRA changes, comes first: it is written while other cores still hash the
/// checkpoint.
fn networks(
    encoders: &[(Component, ClipTextConfig)],
    unet_cfg: Option<&UNetConfig>,
    vae_cfg: Option<&VaeConfig>,
    storage: &Storage<'_>,
) -> Result<Vec<Network>, GraphError> {
    let mut networks = Vec::new();
    if let Some(cfg) = vae_cfg {
        let (encoder, decoder) = (vae_encoder(cfg)?, vae_decoder(cfg)?);
        networks.push(Network::new(
            "vae_encoder",
            Component::Vae,
            encoder,
            storage,
        )?);
        networks.push(Network::new(
            "vae_decoder",
            Component::Vae,
            decoder,
            storage,
        )?);
    }
    for (component, cfg) in encoders {
        let (folder, _) = text_folders(*component);
        let graph = clip_text_encoder(cfg)?;
        networks.push(Network::new(folder, *component, graph, storage)?);
    }
    if let Some(cfg) = unet_cfg {
        let graphs = [
            Dialects {
                portable: PORTABLE,
                native: "native.onnx",
                graph: unet(cfg)?,
            },
            Dialects {
                portable: "controlnet.onnx",
                native: "native.controlnet.onnx",
                graph: controlled_unet(cfg)?,
            },
        ];
        networks.push(Network::of("unet", Component::UNet, &graphs, storage)?);
    }
    Ok(networks)
}

/// What a UNet is for people, and by which of its properties.
fn describe(
    cfg: &UNetConfig,
    trunk: Option<&Trunk>,
    purpose: Purpose,
    family: ModelFamily,
) -> (String, String) {
    let per_level = |of: &dyn Fn(&sd_models::arch::Level) -> String| {
        cfg.levels.iter().map(of).collect::<Vec<_>>().join("/")
    };
    let widths = per_level(&|level| level.channels.to_string());
    let depths = per_level(&|level| level.down[0].to_string());
    let kind_of = match cfg.projection {
        sd_models::arch::Projection::Convolution => "convolution",
        sd_models::arch::Projection::Linear => "matrix",
    };
    let mut evidence = format!(
        "UNet widths {widths}, transformer depths {depths} by {kind_of}, text width {}, {} input channels",
        cfg.cross_attention_dim, cfg.in_channels
    );
    if let Some(added) = cfg.added {
        let _ = write!(evidence, ", added conditioning {}", added.width());
    }
    let mut kind = trunk.map_or_else(
        || format!("{family} of a structure without a name"),
        |trunk| trunk.title.to_owned(),
    );
    if cfg.guidance_width.is_some() {
        kind += ", latent consistency model (LCM)";
        evidence += ", embedded guidance scale";
    }
    if purpose != Purpose::TextToImage {
        kind = format!("{kind}, for {purpose}");
    }
    (evidence, kind)
}

/// What a model is for people, and which networks of it are converted if not all are.
fn described_part(kind: String, networks: &[Network], options: &BuildOptions) -> String {
    if options.only.is_empty() {
        return kind;
    }
    let folders: Vec<&str> = networks.iter().map(|network| network.folder).collect();
    format!("{kind}, only {}", folders.join(" and "))
}

fn control(model: &dyn Model, storage: &Storage<'_>) -> Result<Design, ConvertError> {
    let mut cfg = structure::controlnet_config(&model.shapes(Component::ControlNet))
        .map_err(in_file(model))?;
    let config = Config::of(model, Component::ControlNet)?;
    config.apply_heads(&mut cfg.trunk)?;
    config.agrees("in_channels", cfg.trunk.in_channels)?;
    config.agrees("conditioning_channels", cfg.hint_channels)?;
    config.agrees("cross_attention_dim", cfg.trunk.cross_attention_dim)?;
    config.agrees_by_level("block_out_channels", &widths(&cfg.trunk))?;
    config.agrees_by_level("conditioning_embedding_out_channels", &cfg.hint_widths)?;
    let family = ModelFamily::of(&cfg.trunk);
    let network = controlnet(&cfg)
        .and_then(|graph| Network::new("controlnet", Component::ControlNet, graph, storage))
        .map_err(unfit(model))?;
    Ok(Design {
        kind: format!("ControlNet for {family}"),
        evidence: control_evidence(&cfg),
        family: Some(family),
        architecture: None,
        purpose: Purpose::TextToImage,
        prediction: PredictionType::Epsilon,
        latent: Latent {
            channels: cfg.trunk.in_channels,
            downscale: 8,
            scaling_factor: family.scaling_factor(),
        },
        resolution: family.resolution(false),
        embeds_guidance: false,
        networks: vec![network],
        configs: vec![(
            "controlnet/config.json".to_owned(),
            diffusers::controlnet(&cfg),
        )],
        tokenizers: Vec::new(),
        warnings: Vec::new(),
    })
}

fn control_evidence(cfg: &ControlNetConfig) -> String {
    let widths: Vec<String> = cfg
        .trunk
        .levels
        .iter()
        .map(|level| level.channels.to_string())
        .collect();
    format!(
        "hint convolutions {:?}, widths {}, text width {}",
        cfg.hint_widths,
        widths.join("/"),
        cfg.trunk.cross_attention_dim
    )
}

fn tiny_autoencoder(model: &dyn Model, storage: &Storage<'_>) -> Result<Design, ConvertError> {
    let shapes = model.shapes(Component::Taesd);
    let cfg: TaesdConfig = structure::taesd_config(&shapes).map_err(in_file(model))?;
    Config::of(model, Component::Taesd)?;
    let latent = Latent {
        channels: cfg.latent_channels,
        downscale: 8,
        scaling_factor: 1.0,
    };
    let graphs = [taesd_encoder(cfg), taesd_decoder(cfg)];
    let config = diffusers::taesd(cfg);
    Ok(Design {
        kind: "TAESD, a tiny autoencoder".to_owned(),
        evidence: format!(
            "{} channels, {} latent channels; whether it is for SD 1/2 or SDXL cannot be told",
            cfg.channels, cfg.latent_channels
        ),
        ..halves(model, Component::Taesd, graphs, &config, latent, storage)?
    })
}

/// A VAE without the model that it is for.
fn autoencoder(model: &dyn Model, storage: &Storage<'_>) -> Result<Design, ConvertError> {
    const RESOLUTION: usize = 512;
    let cfg = vae_config(model)?;
    let told = Config::of(model, Component::Vae)?.scaling_factor()?;
    let latent = Latent {
        channels: cfg.latent_channels,
        downscale: 1 << (cfg.channels.len() - 1),
        scaling_factor: told.unwrap_or(ModelFamily::Sd15.scaling_factor()),
    };
    let graphs = [vae_encoder(&cfg), vae_decoder(&cfg)];
    let config = diffusers::vae(&cfg, latent.scaling_factor, RESOLUTION);
    let unknown = || {
        format!(
            "what its latents are scaled by cannot be told: {}, that of Stable Diffusion 1 and 2, is written",
            latent.scaling_factor
        )
    };
    Ok(Design {
        kind: "VAE".to_owned(),
        evidence: format!(
            "{} levels, {} latent channels",
            cfg.channels.len(),
            cfg.latent_channels
        ),
        warnings: told.is_none().then(unknown).into_iter().collect(),
        ..halves(model, Component::Vae, graphs, &config, latent, storage)?
    })
}

/// Those halves of an autoencoder that a model has; `graphs` are the encoder's and the decoder's.
fn halves(
    model: &dyn Model,
    component: Component,
    graphs: [Result<Graph, GraphError>; 2],
    config: &Value,
    latent: Latent,
    storage: &Storage<'_>,
) -> Result<Design, ConvertError> {
    let shapes = model.shapes(component);
    let mut networks = Vec::new();
    let mut configs = Vec::new();
    let names = [("encoder.", "vae_encoder"), ("decoder.", "vae_decoder")];
    for ((half, folder), graph) in names.into_iter().zip(graphs) {
        if shapes.keys().any(|name| name.starts_with(half)) {
            let network = graph.and_then(|g| Network::new(folder, component, g, storage));
            networks.push(network.map_err(unfit(model))?);
            configs.push((format!("{folder}/config.json"), config.clone()));
        }
    }
    Ok(Design {
        kind: String::new(),
        evidence: String::new(),
        family: None,
        architecture: None,
        purpose: Purpose::TextToImage,
        prediction: PredictionType::Epsilon,
        latent,
        resolution: 512,
        embeds_guidance: false,
        networks,
        configs,
        tokenizers: Vec::new(),
        warnings: Vec::new(),
    })
}

/// The family's text encoders as the model has them.
fn text_encoders(
    model: &dyn Model,
    family: ModelFamily,
) -> Result<Vec<(Component, ClipTextConfig)>, ConvertError> {
    let mut encoders = Vec::new();
    for (component, published) in family.text_encoders(false) {
        if !model.has(component) {
            return Err(ConvertError::NoComponent {
                path: model.path().to_owned(),
                component: match component {
                    Component::TextEncoder2 => "second text encoder",
                    _ => "text encoder",
                },
                remedy: Some(Remedy::TextEncodersOfOther {
                    family,
                    path: model.path().to_owned(),
                    vae: !model.has(Component::Vae),
                }),
            });
        }
        let config = Config::of(model, component)?;
        let activation = config.activation().unwrap_or(published.activation);
        let mut cfg = structure::clip_text_config(&model.shapes(component), activation)
            .map_err(in_file(model))?;
        config.agrees("hidden_size", cfg.hidden_size)?;
        config.agrees("intermediate_size", cfg.intermediate_size)?;
        config.agrees("num_hidden_layers", cfg.layers)?;
        config.agrees("max_position_embeddings", cfg.positions)?;
        config.agrees("vocab_size", cfg.vocab_size)?;
        if let Some(width) = cfg.projection {
            config.agrees("projection_dim", width)?;
        }
        config.apply_text(&mut cfg)?;
        // A projection that should be there and is not will be missed by name.
        cfg.projection = cfg
            .projection
            .or(published.projection.map(|_| cfg.hidden_size));
        encoders.push((component, cfg));
    }
    Ok(encoders)
}

fn vae(model: &dyn Model, family: ModelFamily) -> Result<VaeConfig, ConvertError> {
    if !model.has(Component::Vae) {
        return Err(ConvertError::NoComponent {
            path: model.path().to_owned(),
            component: "VAE",
            remedy: Some(Remedy::GiveVae {
                why: match family {
                    ModelFamily::Sd15 | ModelFamily::Sd21 => {
                        "SD 1.x and 2.x models share `vae-ft-mse-840000`"
                    }
                    _ => "SDXL models share `sdxl_vae`",
                },
            }),
        });
    }
    let shapes = model.shapes(Component::Vae);
    if !shapes.keys().any(|name| name.starts_with("encoder.")) {
        return Err(ConvertError::NoComponent {
            path: model.path().to_owned(),
            component: "VAE encoder",
            remedy: Some(Remedy::GiveVae {
                why: "its VAE has only a decoder",
            }),
        });
    }
    vae_config(model)
}

/// The VAE that the shapes show.
fn vae_config(model: &dyn Model) -> Result<VaeConfig, ConvertError> {
    let cfg = structure::vae_config(&model.shapes(Component::Vae)).map_err(in_file(model))?;
    let config = Config::of(model, Component::Vae)?;
    config.agrees("latent_channels", cfg.latent_channels)?;
    config.agrees("layers_per_block", cfg.layers_per_block)?;
    config.agrees_by_level("block_out_channels", &cfg.channels)?;
    Ok(cfg)
}

/// The files of a text encoder's tokenizer, and what they say: its folder's, or CLIP's.
fn tokenizer_of(
    model: &dyn Model,
    family: ModelFamily,
    component: Component,
    cfg: &ClipTextConfig,
) -> Result<(Files, Parts), ConvertError> {
    let Some(folder) = model.hints().tokenizers.get(&component) else {
        let files = tokenizer::files(family.pad(component));
        let parts = Parts::read(&files).expect("CLIP's own files are whole");
        return Ok((files, parts));
    };
    let (parts, files) = folder.read()?;
    let (token, id) = parts.last();
    if id as usize >= cfg.vocab_size {
        return Err(ConvertError::TokenOutOfRange {
            path: folder.path.clone(),
            token: token.to_owned(),
            id,
            component,
            rows: cfg.vocab_size,
        });
    }
    Ok((files, parts))
}

/// Tokens of a text encoder that its tokenizer does not have.
fn out_of_reach(component: Component, cfg: &ClipTextConfig, parts: &Parts) -> Option<String> {
    let known = (parts.last().1 as usize + 1).min(cfg.vocab_size);
    let count = cfg.vocab_size - known;
    let text = format!(
        "{count} tokens of the {component} are not in its tokenizer, so that no prompt reaches them"
    );
    (count > 0).then_some(text)
}

/// Channels of each level.
fn widths(cfg: &UNetConfig) -> Vec<usize> {
    cfg.levels.iter().map(|level| level.channels).collect()
}

/// The text encoders' embeddings, side by side, are the UNet's context, and the last one's pooled output is added.
fn check_text_width(
    model: &dyn Model,
    unet: &UNetConfig,
    encoders: &[(Component, ClipTextConfig)],
) -> Result<(), ConvertError> {
    let width: usize = encoders.iter().map(|(_, cfg)| cfg.hidden_size).sum();
    let wrong = |name: &str, found: usize, expected: String| {
        in_file(model)(StructureError::Shape {
            component: "UNet",
            name: name.to_owned(),
            found: vec![found],
            expected,
        })
    };
    if unet.cross_attention_dim != width {
        return Err(wrong(
            "attn2.to_k.weight",
            unet.cross_attention_dim,
            format!("a width of {width}, that of the model's text embeddings"),
        ));
    }
    let pooled = encoders.last().and_then(|(_, cfg)| cfg.projection);
    match (unet.added, pooled) {
        (Some(added), Some(pooled)) if added.pooled_width != pooled => Err(wrong(
            "add_embedding.linear_1.weight",
            added.width(),
            format!(
                "{} columns, for pooled text of width {pooled} and {} numbers",
                added.width() - added.pooled_width + pooled,
                added.time_ids
            ),
        )),
        _ => Ok(()),
    }
}

/// Side in pixels that the files declare, or the family's.
fn resolution(model: &dyn Model, configured: Option<usize>, usual: usize) -> usize {
    let declared = model.hints().metadata.get("modelspec.resolution");
    let declared = declared.and_then(|text| text.split('x').next()?.trim().parse::<usize>().ok());
    declared
        .or(configured)
        .filter(|n| n % 8 == 0 && (64..=4096).contains(n))
        .unwrap_or(usual)
}

fn in_file(model: &dyn Model) -> impl Fn(StructureError) -> ConvertError {
    |source| ConvertError::Structure {
        path: model.path().to_owned(),
        source,
    }
}

fn unfit(model: &dyn Model) -> impl FnOnce(GraphError) -> ConvertError {
    |source| ConvertError::Graph {
        path: model.path().to_owned(),
        source,
    }
}
