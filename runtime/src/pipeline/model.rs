//! An opened model directory: ours, or any folder in diffusers' ONNX layout.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sd_models::defaults::Defaults;
use sd_models::diffusers::{self, Pipeline, prediction_name, prediction_type};
use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::manifest::{self, Latent, Manifest, PredictionType};
use serde_json::Value;

use super::folder::Folder;
use super::vae_approx::{self, VaeApprox};
use super::{PipelineError, Request};
use crate::Remedy;
use crate::engine::memory::Needs;
use crate::engine::{Chosen, Compute, Dialect, EngineError, Ep, Key, choose};
use crate::profile::{ConfigError, Trained};
use crate::regular;
use crate::text::{ClipTokenizer, Embeddings};

/// A text encoder and its tokenizer.
#[derive(Debug)]
pub struct Text {
    /// Its folder.
    pub component: &'static str,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
    /// How many numbers there are for a token, if its `config.json` says so.
    pub width: Option<usize>,
}

impl Text {
    fn open(path: &Path, component: Component) -> Result<Self, PipelineError> {
        let (component, tokenizer) = match component {
            Component::TextEncoder2 => ("text_encoder_2", "tokenizer_2"),
            _ => ("text_encoder", "tokenizer"),
        };
        let tokenizer = ClipTokenizer::from_dir(&path.join(tokenizer))?;
        let config = path.join(component).join("config.json");
        let config = match config.is_file() {
            true => read_json(&config)?,
            false => Value::Null,
        };
        check_tokens(path, component, &tokenizer, &config)?;
        let width = config["hidden_size"].as_u64();
        Ok(Self {
            component,
            tokenizer,
            width: width.and_then(|width| usize::try_from(width).ok()),
        })
    }
}

/// The models of a run.
#[derive(Debug)]
pub struct Models {
    /// What begins every picture.
    pub base: ModelDir,
    /// What ends it, if something else does.
    pub refiner: Option<ModelDir>,
    /// What decodes pictures and previews instead of the base model's VAE.
    pub vae_approx: Option<VaeApprox>,
    /// Textual inversions that prompts may name.
    pub embeddings: Embeddings,
}

impl Models {
    /// A model alone.
    #[must_use]
    pub fn one(base: ModelDir) -> Self {
        Self {
            base,
            refiner: None,
            vae_approx: None,
            embeddings: Embeddings::none(),
        }
    }

    /// In the order in which they run.
    pub fn all(&self) -> impl Iterator<Item = &ModelDir> {
        std::iter::once(&self.base).chain(&self.refiner)
    }

    /// Where the decoder is, and what latents are divided by for it.
    pub(super) fn decoder(&self) -> (Folder<'_>, f64) {
        match &self.vae_approx {
            Some(approx) => (approx.folder(), approx.latent().scaling_factor),
            None => (self.base.folder(), self.base.latent.scaling_factor),
        }
    }

    /// Whether pictures are decoded in bands of rows: a tiny decoder is no chain of convolutions that could be.
    pub(super) fn tiles(&self, request: &Request) -> bool {
        request.tile && self.vae_approx.is_none()
    }

    /// How A1111 names the decoder.
    #[must_use]
    pub fn decoder_name(&self) -> &'static str {
        match &self.vae_approx {
            Some(_) => vae_approx::NAME,
            None => vae_approx::FULL,
        }
    }

    /// Bytes of memory that pictures of `pixels` latent pixels take at most: one network at a time, but for the decoder of
    /// `previews`, which runs beside the UNet. Networks are those that a provider runs, and the decoder may work in bands of rows (`tile`).
    #[must_use]
    pub fn memory(
        &self,
        pixels: usize,
        (dialect, tile): (Dialect, bool),
        ep: Ep,
        previews: bool,
    ) -> Needs {
        let unet = self.unet_memory(pixels, dialect, ep);
        match &self.vae_approx {
            None => unet.max(self.base.decoder_memory(pixels, (dialect, tile), ep)),
            Some(approx) => {
                let decoder = approx.memory(pixels, dialect, ep);
                match previews {
                    true => unet.plus(decoder),
                    false => unet.max(decoder),
                }
            }
        }
    }

    /// [`Self::memory`] before latents are decoded, without previews.
    pub(super) fn unet_memory(&self, pixels: usize, dialect: Dialect, ep: Ep) -> Needs {
        let unets = self.all().map(|it| it.unet_memory(pixels, dialect, ep));
        unets.fold(Needs::default(), Needs::max)
    }

    /// [`Self::memory`] of a picture of this width and height by processors.
    ///
    /// # Errors
    /// It is more than `limit`.
    pub(super) fn memory_within(
        &self,
        [width, height]: [usize; 2],
        (dialect, tile): (Dialect, bool),
        limit: u64,
    ) -> Result<Needs, PipelineError> {
        let area = self.base.latent.downscale.pow(2);
        let tiled =
            |pixels: usize, tile| self.memory(pixels / area, (dialect, tile), Ep::Cpu, false);
        let of = |pixels: usize| tiled(pixels, tile);
        let needs = of(width * height);
        if needs.total <= limit {
            return Ok(needs);
        }
        let mut sides = (64..=4096).rev().step_by(64);
        Err(PipelineError::Memory {
            width,
            height,
            needed: needs.total,
            limit,
            side_that_fits: sides.find(|side| of(side * side).total <= limit),
            fits_in_bands: tiled(width * height, true).total <= limit,
        })
    }
}

/// What a model directory says of itself.
#[derive(Debug)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// Its manifest; folders of other programs have none.
    pub manifest: Option<Manifest>,
    /// The latent space.
    pub latent: Latent,
    /// What the UNet predicts.
    pub prediction: PredictionType,
    /// Width and height that the model makes by default.
    pub default_size: [usize; 2],
    /// What it is run with, if that is not the usual.
    pub defaults: Option<Defaults>,
    /// Its `scheduler_config.json`.
    pub scheduler: Value,
    /// Its text encoders, in the order in which their embeddings lie side by side.
    pub texts: Vec<Text>,
    /// Whether an SDXL gets zeros where there is no negative prompt, as its `model_index.json` says.
    pub force_zeros: bool,
    /// Text encoders and conditioning.
    pub family: ModelFamily,
    /// What was missing or contradicts itself in its files, and how that is understood.
    pub notes: Vec<String>,
}

impl ModelDir {
    /// What its manifest, if it has one, says of a component.
    #[must_use]
    pub fn recorded(&self, component: &str) -> Option<&manifest::Component> {
        self.folder().recorded(component)
    }

    /// Components whose portable graph is run although nobody asked for it, by the reason.
    ///
    /// # Errors
    /// As of [`ModelDir::key`].
    pub fn portable(
        &self,
        ep: Ep,
        wish: (Dialect, Compute),
    ) -> Result<BTreeMap<&'static str, Vec<&str>>, EngineError> {
        let mut reasons = BTreeMap::<_, Vec<_>>::new();
        for component in self.manifest.iter().flat_map(|m| m.components.keys()) {
            // What a picture of a prompt does not take.
            if component == "vae_encoder" {
                continue;
            }
            if let Some(reason) = self.key(component, &[], ep, wish)?.1.reason {
                reasons.entry(reason).or_default().push(component.as_str());
            }
        }
        Ok(reasons)
    }

    /// The network of a component that is run for such a wish, with sizes fixed in `dims`, and which graph that is. A native
    /// graph takes prompt and negative prompt at once, so its batch stays open. The length of a sequence stays open but for
    /// providers that compile graphs for sizes.
    ///
    /// # Errors
    /// The native graph was asked for, or numbers that only it can compute in, and it cannot be run.
    pub fn key(
        &self,
        component: &str,
        dims: &[(&str, usize)],
        ep: Ep,
        wish: (Dialect, Compute),
    ) -> Result<(Key, Chosen), EngineError> {
        self.folder().key(component, dims, ep, wish)
    }

    pub(super) fn folder(&self) -> Folder<'_> {
        Folder {
            path: &self.path,
            manifest: self.manifest.as_ref(),
        }
    }

    /// Opens a directory; weights are not read yet.
    ///
    /// # Errors
    /// It is no model directory, or one of a newer schema.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use sd_runtime::pipeline::ModelDir;
    ///
    /// let model = ModelDir::open(Path::new("model"))?;
    /// let [width, height] = model.default_size;
    /// println!("{}: {width}x{height}", model.family);
    /// # Ok::<_, sd_runtime::pipeline::PipelineError>(())
    /// ```
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let manifest = read_manifest(path)?;
        let index_path = path.join("model_index.json");
        let index = match index_path.is_file() {
            true => read_json(&index_path)?,
            false => Value::Null,
        };
        check_pipeline(path, manifest.as_ref(), &index)?;
        let mut configs = Configs {
            path,
            notes: Vec::new(),
        };
        let family = match manifest.as_ref().and_then(|manifest| manifest.family) {
            Some(family) => family,
            None => configs.family(&index)?,
        };
        let mut scheduler = configs.read("scheduler/scheduler_config.json", family)?;
        let configured = configs.prediction(&scheduler)?;
        let (latent, prediction, default_size) = match &manifest {
            Some(manifest) => (
                manifest.latent,
                manifest.prediction_type,
                manifest.default_size,
            ),
            None => configs.described(family, configured.unwrap_or(PredictionType::Epsilon))?,
        };
        let prediction = match configured {
            // Correcting this by hand is what people tell each other to do.
            Some(configured) if configured != prediction => {
                configs.notes.push(format!(
                    "scheduler_config.json says {}, {} says {}: the former is followed",
                    prediction_name(configured),
                    manifest::FILE_NAME,
                    prediction_name(prediction)
                ));
                configured
            }
            _ => prediction,
        };
        if scheduler.is_null() {
            scheduler = diffusers::scheduler(Pipeline {
                family,
                prediction,
                ..Pipeline::SD1
            });
        }
        let defaults = match &manifest {
            Some(manifest) => manifest.defaults.clone(),
            None if pipeline_class(&index).starts_with("LatentConsistency") => {
                Some(Defaults::embedded_guidance())
            }
            None => path
                .file_name()
                .and_then(|name| Defaults::by_name(&name.to_string_lossy())),
        };
        let encoders = family.text_encoders(false).into_iter();
        let texts = encoders.map(|(component, _)| Text::open(path, component));
        let texts = texts.collect::<Result<_, _>>()?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
            latent,
            prediction,
            default_size,
            defaults,
            scheduler,
            texts,
            // True unless the file says otherwise, as for SDXL's pipelines.
            force_zeros: index["force_zeros_for_empty_prompt"] != false,
            family,
            notes: configs.notes,
        })
    }

    /// A directory that the converter made before, if it is there with all the graphs that are written now.
    #[must_use]
    pub fn kept(path: &Path) -> Option<Self> {
        let model = Self::open(path).ok()?;
        let unet = model.recorded("unet")?;
        unet.variants.contains_key("native.onnx").then_some(model)
    }

    /// What it says of the noise it was trained on.
    #[must_use]
    pub fn trained(&self) -> Trained<'_> {
        Trained {
            config: &self.scheduler,
            xl: matches!(self.family, ModelFamily::Sdxl | ModelFamily::SdxlRefiner),
        }
    }

    /// An error in its `scheduler_config.json`.
    pub(super) fn scheduler_error(&self, source: ConfigError) -> PipelineError {
        PipelineError::Scheduler {
            path: self.path.join("scheduler/scheduler_config.json"),
            source,
        }
    }

    /// Name for people and infotexts.
    #[must_use]
    pub fn title(&self) -> String {
        let source = self.manifest.as_ref().and_then(|m| m.sources.first());
        // Files of a folder are called the same in every model.
        let file = source
            .map(|source| Path::new(&source.name))
            .filter(|name| name.components().count() == 1);
        let folder = || {
            self.path
                .canonicalize()
                .unwrap_or_else(|_| self.path.clone())
        };
        let name = match file {
            Some(file) => file.file_stem().map(ToOwned::to_owned),
            // A folder's name has no extension, dots or not.
            None => folder().file_name().map(ToOwned::to_owned),
        };
        name.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Bytes of memory that the UNet takes for pictures of `pixels` latent pixels: its weights, its activations, and the scores of
    /// self-attention, which grow with the square. The network is the one that a provider runs.
    fn unet_memory(&self, pixels: usize, dialect: Dialect, ep: Ep) -> Needs {
        // Measured on Stable Diffusion 1.5: bytes per latent pixel beside weights and scores.
        const UNET: u64 = 110_000;
        let pixels = pixels as u64;
        // SDXL's finest level does not attend.
        let tokens = match self.family.time_ids() {
            Some(_) => pixels / 4,
            None => pixels,
        };
        // Portable graphs of ours take the heads one by one.
        let heads = if self.manifest.is_some() { 1 } else { 8 };
        let takes = [heads * tokens * tokens, UNET * pixels];
        self.folder().needs("unet", dialect, ep, takes)
    }

    /// The same of the decoder, which may work in bands of rows (`tile`).
    fn decoder_memory(&self, pixels: usize, (dialect, tile): (Dialect, bool), ep: Ep) -> Needs {
        const DECODER: u64 = 340_000;
        // Activations at full size in 17 bits, and bands in single precision.
        const TILED: u64 = 42_000;
        const BANDS: u64 = 200 << 20;
        let pixels = pixels as u64;
        let chosen = choose(ep, self.recorded("vae_decoder"), dialect, Compute::F32);
        let activations = match tile && chosen.is_ok_and(|chosen| chosen.is_native()) {
            true => TILED * pixels + BANDS,
            false => DECODER * pixels,
        };
        let takes = [pixels * pixels, activations];
        self.folder().needs("vae_decoder", dialect, ep, takes)
    }

    /// The VAE that took the place of the checkpoint's own.
    #[must_use]
    pub fn vae(&self) -> Option<&manifest::Source> {
        let mut sources = self.manifest.iter().flat_map(|manifest| &manifest.sources);
        sources.find(|source| source.role == "vae")
    }

    /// What the UNet's portable graph multiplies, of directories that come in several such forms: those whose weights are whole numbers.
    /// `f32`, or `int8` with the origin of its ranges (`dynamic`, `norms`, or `runs` and the first digits of the graph's SHA-256).
    #[must_use]
    pub fn portable_form(&self) -> Option<String> {
        self.folder().portable_form()
    }

    /// The first digits of a SHA-256 of all its weights, merged, quantized and with LoRAs as they are; graphs do not count.
    #[must_use]
    pub fn weights_hash(&self) -> Option<String> {
        self.folder().weights_hash()
    }

    /// The first digits of the checkpoint's SHA-256, by which A1111 knows models.
    #[must_use]
    pub fn hash(&self) -> Option<&str> {
        self.manifest.as_ref()?.sources.first()?.sha256.get(..10)
    }
}

/// The manifest of a directory; folders of other programs have none, but a UNet.
fn read_manifest(path: &Path) -> Result<Option<Manifest>, PipelineError> {
    let what_it_is = || {
        let (problem, remedy) = what_it_is(path);
        PipelineError::NotAModel {
            path: path.to_owned(),
            problem,
            remedy,
        }
    };
    if !path.is_dir() {
        return Err(what_it_is());
    }
    let file = path.join(manifest::FILE_NAME);
    if !file.is_file() {
        return match path.join("unet/model.onnx").is_file() {
            true => Ok(None),
            false => Err(what_it_is()),
        };
    }
    let json = read_json(&file)?;
    let damaged = |problem: String| PipelineError::NotAModel {
        path: file.clone(),
        problem,
        remedy: Remedy::Convert { checkpoint: None },
    };
    if json["schema"] != manifest::SCHEMA {
        return Err(damaged(format!(
            "its schema is {}, this program reads {}",
            json["schema"],
            manifest::SCHEMA
        )));
    }
    let manifest: Manifest = serde_json::from_value(json).map_err(|e| damaged(e.to_string()))?;
    match manifest.stray_name() {
        None => Ok(Some(manifest)),
        Some(name) => Err(damaged(format!(
            "it lists `{name}`, which is no file of the directory"
        ))),
    }
}

/// A token behind the text encoder's last one would be looked up outside of its table.
fn check_tokens(
    path: &Path,
    component: &str,
    tokenizer: &ClipTokenizer,
    config: &Value,
) -> Result<(), PipelineError> {
    let rows = config["vocab_size"].as_u64();
    let (token, id) = tokenizer.last();
    match rows {
        Some(rows) if u64::from(id) >= rows => Err(PipelineError::NotAModel {
            path: path.join(component.replace("text_encoder", "tokenizer")),
            problem: format!("token `{token}` has id {id}, but the text encoder has {rows} tokens"),
            remedy: Remedy::Convert { checkpoint: None },
        }),
        _ => Ok(()),
    }
}

/// diffusers' pipelines that make pictures from text, without the prefixes of ONNX ones.
const TEXT_TO_IMAGE: [&str; 6] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
];

/// Other pipelines have further networks or inputs.
fn check_pipeline(
    path: &Path,
    manifest: Option<&Manifest>,
    index: &Value,
) -> Result<(), PipelineError> {
    let unsupported = |kind: String, remedy: Remedy| PipelineError::Unsupported {
        path: path.to_owned(),
        kind,
        remedy,
    };
    if let Some(manifest) = manifest
        && !manifest.components.contains_key("unet")
    {
        return Err(unsupported(
            only(manifest),
            Remedy::words("a model with a UNet makes pictures; this goes beside one"),
        ));
    }
    let needed = manifest.and_then(|manifest| manifest.family).into_iter();
    let needed = needed.flat_map(|family| family.text_encoders(false));
    lacks_none(
        path,
        manifest,
        needed.map(|(component, _)| component.name()),
    )?;
    let class = pipeline_class(index);
    if class.is_empty() || TEXT_TO_IMAGE.contains(&class) {
        return Ok(());
    }
    let remedy = if class.contains("Inpaint") {
        Remedy::Inpaint
    } else if class.contains("Pix2Pix") {
        Remedy::Edit
    } else {
        Remedy::words("Stable Diffusion 1, 2 and XL models for text to image can be run")
    };
    Err(unsupported(format!("a {class}"), remedy))
}

/// What a directory without the networks of a whole model holds.
fn only(manifest: &Manifest) -> String {
    let networks: Vec<&str> = manifest.components.keys().map(String::as_str).collect();
    format!("only {}", networks.join(" and "))
}

/// Checks that a directory whose networks are listed has some of them.
pub(super) fn lacks_none(
    path: &Path,
    manifest: Option<&Manifest>,
    needed: impl Iterator<Item = &'static str>,
) -> Result<(), PipelineError> {
    let Some(manifest) = manifest else {
        return Ok(());
    };
    let missing: Vec<&str> = needed
        .filter(|name| !manifest.components.contains_key(*name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(PipelineError::Unsupported {
        path: path.to_owned(),
        kind: format!("{} without {missing}", only(manifest)),
        remedy: Remedy::words("convert the whole model"),
    })
}

/// The class that a `model_index.json` names, without the prefixes of ONNX pipelines.
fn pipeline_class(index: &Value) -> &str {
    let class = index["_class_name"].as_str().unwrap_or_default();
    let bare = ["Onnx", "ORT"].iter().find_map(|p| class.strip_prefix(p));
    bare.unwrap_or(class)
}

/// The configuration files of a folder. Those of other programs may lack some.
struct Configs<'a> {
    path: &'a Path,
    notes: Vec<String>,
}

impl Configs<'_> {
    /// A file's content; nothing, and a note, if there is no such file, so that `family` tells what would be in it.
    fn read(&mut self, name: &str, family: ModelFamily) -> Result<Value, PipelineError> {
        let path = self.path.join(name);
        if path.is_file() {
            return read_json(&path);
        }
        self.notes
            .push(format!("no {name}: values of {family} are taken"));
        Ok(Value::Null)
    }

    /// The family: SDXL's pipelines are called so, and OpenCLIP's activation tells Stable Diffusion 2 from 1.
    fn family(&mut self, index: &Value) -> Result<ModelFamily, PipelineError> {
        let has = |component: &str| self.path.join(component).is_dir();
        match (has("text_encoder"), has("text_encoder_2")) {
            (true, true) => return Ok(ModelFamily::Sdxl),
            (false, true) => return Ok(ModelFamily::SdxlRefiner),
            _ if pipeline_class(index).contains("XL") => return Ok(ModelFamily::Sdxl),
            _ => {}
        }
        let text = self.read("text_encoder/config.json", ModelFamily::Sd15)?;
        Ok(match text["hidden_act"] == "gelu" {
            true => ModelFamily::Sd21,
            false => ModelFamily::Sd15,
        })
    }

    /// What the UNet predicts, if the scheduler's configuration says so.
    fn prediction(&self, scheduler: &Value) -> Result<Option<PredictionType>, PipelineError> {
        let name = &scheduler["prediction_type"];
        if name.is_null() {
            return Ok(None);
        }
        let known = name.as_str().and_then(prediction_type);
        let known = known.ok_or_else(|| PipelineError::NotAModel {
            path: self.path.join("scheduler/scheduler_config.json"),
            problem: format!("prediction type {name} is not known"),
            remedy: Remedy::Convert { checkpoint: None },
        });
        known.map(Some)
    }

    /// What folders without a manifest say of themselves.
    fn described(
        &mut self,
        family: ModelFamily,
        prediction: PredictionType,
    ) -> Result<(Latent, PredictionType, [usize; 2]), PipelineError> {
        const LEVELS: usize = 4;
        let vae = self.read("vae_decoder/config.json", family)?;
        let unet = self.read("unet/config.json", family)?;
        let levels = match vae["block_out_channels"].as_array() {
            Some(levels) if (1..=8).contains(&levels.len()) => levels.len(),
            Some(levels) => {
                let problem = format!(
                    "`block_out_channels` has {} entries; expected 1 to 8",
                    levels.len()
                );
                return Err(PipelineError::NotAModel {
                    path: self.path.join("vae_decoder/config.json"),
                    problem,
                    remedy: Remedy::Convert { checkpoint: None },
                });
            }
            None => LEVELS,
        };
        let latent = Latent {
            channels: vae["latent_channels"].as_u64().unwrap_or(4) as usize,
            downscale: 1 << (levels - 1),
            scaling_factor: vae["scaling_factor"]
                .as_f64()
                .unwrap_or_else(|| family.scaling_factor()),
        };
        let side = match unet["sample_size"].as_u64() {
            Some(side) => side as usize * latent.downscale,
            None => family.resolution(prediction == PredictionType::VPrediction),
        };
        Ok((latent, prediction, [side; 2]))
    }
}

/// What people give instead of a model directory, and what to do with it.
fn what_it_is(path: &Path) -> (String, Remedy) {
    let convert = || Remedy::Convert {
        checkpoint: Some(path.to_owned()),
    };
    let any = || Remedy::Convert { checkpoint: None };
    if let Ok(target) = path.join("unet/model.onnx").read_link() {
        let target = target.display();
        let problem = format!("its unet/model.onnx is a link to {target}, which is missing");
        return (problem, Remedy::words("copy the folder again"));
    }
    let (what, remedy) = if path.is_dir() {
        let holds = |names: &[&str]| names.iter().any(|name| path.join(name).exists());
        if holds(&["unet", "text_encoder"]) && !holds(&["unet/model.onnx"]) {
            ("it is a folder with PyTorch weights", convert())
        } else if holds(&["model.onnx"]) {
            let around = Remedy::words("give the folder around it");
            ("it is one network of a model", around)
        } else {
            ("it has no unet/model.onnx", any())
        }
    } else if let Ok(mut file) = regular::open(path) {
        let mut start = [0; 24];
        let length = file.read(&mut start).unwrap_or(0);
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if start[..length].starts_with(b"version https://git-lfs") {
            let pull = Remedy::words("fetch that with `git lfs pull`");
            ("it is a pointer of Git LFS, not the file itself", pull)
        } else if extension.eq_ignore_ascii_case("onnx") {
            let folder = Remedy::words("give the folder that holds unet/model.onnx");
            ("it is one graph", folder)
        } else if ["safetensors", "ckpt", "pt", "bin"].contains(&&*extension.to_lowercase()) {
            ("it is a checkpoint", convert())
        } else {
            ("it is a file, not a folder", any())
        }
    } else if path.exists() {
        ("it is no folder", any())
    } else {
        ("there is no such folder", any())
    };
    (what.to_owned(), remedy)
}

pub(super) fn read_json(path: &Path) -> Result<Value, PipelineError> {
    let not_a_model = |problem: String| PipelineError::NotAModel {
        path: path.to_owned(),
        problem,
        remedy: Remedy::Convert { checkpoint: None },
    };
    let text = fs::read_to_string(path).map_err(|e| not_a_model(e.to_string()))?;
    parse_json(&text).map_err(|e| not_a_model(format!("not JSON: {e}")))
}

/// Python writes infinite numbers in words that JSON does not have; null, for "no bound", stands for them here.
fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let words = ["-Infinity", "Infinity", "NaN"];
        let without = |text: String, word| text.replace(&format!(": {word}"), ": null");
        let finite = words.into_iter().fold(text.to_owned(), without);
        serde_json::from_str(&finite).map_err(|_| error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinite_numbers_of_python_are_no_bounds() {
        let json = parse_json(r#"{"lambda_min_clipped": -Infinity, "name": "a: Infinity\\"}"#);
        let json = json.unwrap();
        assert!(json["lambda_min_clipped"].is_null());
        assert!(parse_json("{\"a\": Infinite}").is_err());
        assert_eq!(parse_json(r#""a: NaN""#).unwrap(), "a: NaN");
    }
}
