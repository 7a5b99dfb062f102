//! An opened model directory: ours, or any folder in diffusers' ONNX layout.

use std::fs;
use std::path::{Path, PathBuf};

use sd_models::diffusers::prediction_type;
use sd_models::manifest::{self, Latent, Manifest, PredictionType};
use serde_json::Value;

use super::PipelineError;
use crate::sampler::schedule::SchedulerConfig;
use crate::text::ClipTokenizer;

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
    /// Its `scheduler_config.json`.
    pub scheduler: SchedulerConfig,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
}

impl ModelDir {
    /// Opens a directory; weights are not read yet.
    ///
    /// # Errors
    /// It is no model directory, or one of a newer schema.
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let not_a_model = |path: &Path, problem: String| PipelineError::NotAModel {
            path: path.to_owned(),
            problem,
        };
        if !path.is_dir() {
            return Err(not_a_model(path, "there is no such folder".to_owned()));
        }
        let manifest_path = path.join(manifest::FILE_NAME);
        let manifest: Option<Manifest> = if manifest_path.is_file() {
            let json = read_json(&manifest_path)?;
            if json["schema"] != manifest::SCHEMA {
                let problem = format!(
                    "its schema is {}, this program reads {}",
                    json["schema"],
                    manifest::SCHEMA
                );
                return Err(not_a_model(&manifest_path, problem));
            }
            Some(
                serde_json::from_value(json)
                    .map_err(|e| not_a_model(&manifest_path, e.to_string()))?,
            )
        } else {
            None
        };
        check_pipeline(path, manifest.as_ref())?;
        let scheduler_path = path.join("scheduler/scheduler_config.json");
        let scheduler = read_json(&scheduler_path)?;
        let (latent, prediction, default_size) = match &manifest {
            Some(manifest) => (
                manifest.latent,
                manifest.prediction_type,
                manifest.default_size,
            ),
            None => described_by_configs(path, &scheduler)?,
        };
        let scheduler =
            SchedulerConfig::read(&scheduler).map_err(|source| PipelineError::Scheduler {
                path: scheduler_path,
                source,
            })?;
        let tokenizer = ClipTokenizer::from_dir(&path.join("tokenizer"))?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
            latent,
            prediction,
            default_size,
            scheduler,
            tokenizer,
        })
    }

    /// Name for people and infotexts.
    #[must_use]
    pub fn title(&self) -> String {
        let source = self.manifest.as_ref().and_then(|m| m.sources.first());
        // Files of a folder are called the same in every model.
        let source = source.map(|source| Path::new(&source.name));
        let source = source.filter(|name| name.components().count() == 1);
        let name = source.unwrap_or(&self.path);
        name.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Bytes of memory that denoising latents of `pixels` pixels takes at most, if the manifest tells the weights' size.
    ///
    /// Weights are single precision in memory. Beside them there are the scores of one attention head, twice, and the
    /// rest of the activations, of which SD 1.5 measured 110 KB per pixel.
    #[must_use]
    pub fn unet_memory(&self, pixels: usize) -> Option<u64> {
        const PER_PIXEL: u64 = 110_000;
        let unet = self.manifest.as_ref()?.components.get("unet")?;
        let stored: u64 = unet.files.values().map(|file| file.size).sum();
        let half = unet.storage.iter().any(|storage| storage != "F32");
        let weights = if half { 2 * stored } else { stored };
        let pixels = pixels as u64;
        Some(weights + 2 * 4 * pixels * pixels + PER_PIXEL * pixels)
    }

    /// The first digits of the checkpoint's SHA-256, by which A1111 knows models.
    #[must_use]
    pub fn hash(&self) -> Option<&str> {
        self.manifest.as_ref()?.sources.first()?.sha256.get(..10)
    }
}

/// Other pipelines have further networks or inputs.
fn check_pipeline(path: &Path, manifest: Option<&Manifest>) -> Result<(), PipelineError> {
    const SUPPORTED: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];
    let unsupported = |kind: String| PipelineError::Unsupported {
        path: path.to_owned(),
        kind,
    };
    if let Some(manifest) = manifest
        && !manifest.components.contains_key("unet")
    {
        let networks: Vec<&str> = manifest.components.keys().map(String::as_str).collect();
        return Err(unsupported(format!("only {}", networks.join(" and "))));
    }
    let index = path.join("model_index.json");
    if !index.is_file() {
        return Ok(());
    }
    let index = read_json(&index)?;
    let class = index["_class_name"].as_str().unwrap_or_default();
    let bare = ["Onnx", "ORT"].iter().find_map(|p| class.strip_prefix(p));
    if SUPPORTED.contains(&bare.unwrap_or(class)) {
        Ok(())
    } else {
        Err(unsupported(format!("a {class}")))
    }
}

/// What folders without a manifest say in their configuration files.
fn described_by_configs(
    path: &Path,
    scheduler: &Value,
) -> Result<(Latent, PredictionType, [usize; 2]), PipelineError> {
    let vae_path = path.join("vae_decoder/config.json");
    let vae = read_json(&vae_path)?;
    let missing = |path: &Path, field: &str| PipelineError::NotAModel {
        path: path.to_owned(),
        problem: format!("it has no `{field}`"),
    };
    let channels = vae["latent_channels"].as_u64().unwrap_or(4) as usize;
    let levels = vae["block_out_channels"].as_array().map(Vec::len);
    let levels = levels
        .filter(|n| (1..=8).contains(n))
        .ok_or_else(|| missing(&vae_path, "block_out_channels"))?;
    let downscale = 1usize << (levels - 1);
    let scaling_factor = vae["scaling_factor"].as_f64().unwrap_or(0.18215);
    let unet_path = path.join("unet/config.json");
    let unet = read_json(&unet_path)?;
    let side = unet["sample_size"]
        .as_u64()
        .ok_or_else(|| missing(&unet_path, "sample_size"))? as usize;
    let name = scheduler["prediction_type"].as_str().unwrap_or("epsilon");
    let prediction = prediction_type(name).ok_or_else(|| PipelineError::NotAModel {
        path: path.join("scheduler/scheduler_config.json"),
        problem: format!("prediction type `{name}` is not known"),
    })?;
    Ok((
        Latent {
            channels,
            downscale,
            scaling_factor,
        },
        prediction,
        [side * downscale; 2],
    ))
}

fn read_json(path: &Path) -> Result<Value, PipelineError> {
    let not_a_model = |problem: String| PipelineError::NotAModel {
        path: path.to_owned(),
        problem,
    };
    let text = fs::read_to_string(path).map_err(|e| not_a_model(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| not_a_model(format!("not JSON: {e}")))
}
