//! What of a plan goes into its text: all that decides the picture, in A1111's words and order where it has them.

use std::path::Path;
use std::sync::Arc;

use sd_models::family::ModelFamily;
use sd_models::manifest::Lora;

use super::wanted::listed_name;
use crate::engine::sha256;
use crate::noise::texture::Texture;
use crate::noise::{Origin, Rng, Variation};
use crate::pipeline::plan::Choice;
use crate::pipeline::prompts::Words;
use crate::pipeline::{ModelDir, Models, PipelineError, Request};
use crate::sampler::Options;
use crate::text::Embedding;

/// What differs between the pictures of a request, and their size.
pub(in crate::pipeline) struct Picture {
    pub(in crate::pipeline) size: [usize; 2],
    pub(in crate::pipeline) seed: u64,
    pub(in crate::pipeline) variation: Option<Variation>,
    pub(in crate::pipeline) origin: Origin,
}

/// The negative prompt as texts have it: an empty one is none where that is the same.
pub(in crate::pipeline) fn negative(request: &Request, model: &ModelDir) -> Option<String> {
    let zeroed = |negative| (request.profile.zero_negative)(negative, model.force_zeros);
    let counts = |negative: &&String| !negative.is_empty() || zeroed(Some("")) != zeroed(None);
    request.negative_prompt.as_ref().filter(counts).cloned()
}

/// A file that is or becomes the first noise.
pub(in crate::pipeline) struct NoiseFile {
    key: &'static str,
    name: String,
    hash: String,
}

impl NoiseFile {
    /// That of a request, if there is one; its folder is nobody's business.
    pub(in crate::pipeline) fn of(request: &Request) -> Result<Option<Self>, PipelineError> {
        let (key, kind, path) = match (&request.initial_noise, &request.noise) {
            (Some(path), _) => ("Initial noise", "", path),
            (None, Texture::Image(path)) => ("Noise", "image:", path),
            _ => return Ok(None),
        };
        let hash = sha256(path).map_err(|source| PipelineError::Read {
            path: path.clone(),
            source,
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Some(Self {
            key,
            name: format!("{kind}{name}"),
            hash: first(&hash, 12).to_owned(),
        }))
    }
}

/// The first digits of a hash.
fn first(hash: &str, digits: usize) -> &str {
    hash.get(..digits).unwrap_or(hash)
}

type Pairs = Vec<(&'static str, String)>;

/// All pairs of a picture's text.
pub(in crate::pipeline) fn settings(
    request: &Request,
    models: &Models,
    choice: &Choice,
    words: &Words,
    picture: &Picture,
    noise_file: Option<&NoiseFile>,
) -> Vec<(String, String)> {
    let (model, [width, height]) = (&models.base, picture.size);
    let mut pairs = vec![
        ("Steps", choice.steps.to_string()),
        ("Sampler", choice.sampler.name.to_owned()),
    ];
    if let Some(spread) = choice.spread {
        pairs.push(("Schedule type", spread.name().to_owned()));
    }
    pairs.push(("CFG scale", choice.guidance_scale.to_string()));
    pairs.push(("Seed", picture.seed.to_string()));
    pairs.push(("Size", format!("{width}x{height}")));
    if let Some(hash) = model.hash() {
        pairs.push(("Model hash", hash.to_owned()));
    }
    pairs.push(("Model", model.title()));
    if let Some(vae) = model.vae() {
        pairs.push(("VAE hash", first(&vae.sha256, 10).to_owned()));
        pairs.push(("VAE", vae.name.clone()));
    }
    if let Some(approx) = &models.vae_approx {
        pairs.push(("VAE Decoder", models.decoder_name().to_owned()));
        if let Some(hash) = approx.weights_hash() {
            pairs.push(("VAE Decoder hash", hash));
        }
    }
    pairs.extend(drawn(request, picture));
    pairs.extend(conditions(request, choice));
    pairs.extend(rules(request, model));
    pairs.extend(options(request, choice));
    match noise_file {
        Some(file) => {
            pairs.push((file.key, file.name.clone()));
            pairs.push(("Noise hash", file.hash.clone()));
        }
        None if request.noise != Texture::White => pairs.push(("Noise", request.noise.to_string())),
        None => {}
    }
    pairs.extend(files(request, models, words));
    if !words.ignored_loras.is_empty() {
        pairs.push(("Ignored LoRA", words.ignored_loras.clone()));
    }
    if models.tiles(request) {
        pairs.push(("VAE tiling", "True".to_owned()));
    }
    if let Some(hash) = model.weights_hash() {
        pairs.push(("Weights hash", hash));
    }
    pairs.push(("Version", format!("sdrt-{}", env!("CARGO_PKG_VERSION"))));
    let owned = pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    owned.collect()
}

/// Variations, places in a batch and other sizes of the noise.
fn drawn(request: &Request, picture: &Picture) -> Pairs {
    let mut pairs = Vec::new();
    if let Some(variation) = picture.variation {
        pairs.push(("Variation seed", variation.seed.to_string()));
        pairs.push(("Variation seed strength", variation.strength.to_string()));
    }
    let origin = picture.origin;
    if origin.count > 1 {
        pairs.push(("Batch size", origin.count.to_string()));
        pairs.push(("Batch pos", origin.index.to_string()));
    }
    if let Some([width, height]) = request.seed_resize {
        pairs.push(("Seed resize from", format!("{width}x{height}")));
    }
    pairs
}

/// What is made of prompts, and what the network is told beside them.
fn conditions(request: &Request, choice: &Choice) -> Pairs {
    let mut pairs = Vec::new();
    if request.clip_skip > 1 {
        pairs.push(("Clip skip", request.clip_skip.to_string()));
    }
    if let Some(emphasis) = request.emphasis.filter(|e| *e != request.profile.emphasis) {
        pairs.push(("Emphasis", emphasis.label().to_owned()));
    }
    let options = (request.profile.options)(choice.sampler, request.options);
    let hears = || choice.sampler.hears_noise(&choice.schedule, &options);
    if request.ensd != 0 && request.profile.step_seed.is_none() && hears() {
        pairs.push(("ENSD", request.ensd.to_string()));
    }
    if request.guidance_rescale > 0.0 {
        pairs.push(("Guidance rescale", request.guidance_rescale.to_string()));
    }
    let pair = |[x, y]: [usize; 2], sign| format!("{x}{sign}{y}");
    for (key, size) in [
        ("Original size", request.micro.original_size),
        ("Target size", request.micro.target_size),
    ] {
        if let Some(size) = size {
            pairs.push((key, pair(size, 'x')));
        }
    }
    if request.micro.crop != [0, 0] {
        pairs.push(("Crop", pair(request.micro.crop, ',')));
    }
    pairs
}

/// The generator, the rules of a program, and weights that are no published ones.
fn rules(request: &Request, model: &ModelDir) -> Pairs {
    let rng = match request.rng {
        Rng::TorchCpu => "CPU",
        Rng::Philox => "NV",
    };
    let mut pairs = vec![("RNG", rng.to_owned())];
    if request.profile != Request::default().profile {
        pairs.push(("Profile", request.profile.name.to_owned()));
    }
    let storage = model.recorded("unet").map(|unet| &unet.storage[..]);
    if storage.is_some_and(|types| types.iter().any(|name| name == "I8")) {
        pairs.push(("Weights", "int8".to_owned()));
    }
    pairs
}

/// Options of the solver.
fn options(request: &Request, choice: &Choice) -> Pairs {
    let (asked, default) = (request.options, Options::default());
    let mut pairs = Vec::new();
    if let Some(eta) = asked.eta {
        pairs.push(("Eta", eta.to_string()));
    }
    for (key, value, default) in [
        ("Sigma churn", asked.s_churn, default.s_churn),
        ("Sigma tmin", asked.s_tmin, default.s_tmin),
        ("Sigma tmax", asked.s_tmax, default.s_tmax),
        ("Sigma noise", asked.s_noise, default.s_noise),
    ] {
        if value != default {
            pairs.push((key, value.to_string()));
        }
    }
    let of_profile = |options| (request.profile.options)(choice.sampler, options).idle_draws;
    if of_profile(asked) != of_profile(default) {
        pairs.push(("Idle draws", "True".to_owned()));
    }
    pairs
}

/// LoRAs in the weights, embeddings in the prompts, and the refiner.
fn files(request: &Request, models: &Models, words: &Words) -> Pairs {
    let mut pairs = Vec::new();
    let lora = |lora: &Lora| {
        let stem = Path::new(&lora.name).file_stem().unwrap_or_default();
        format!(
            "{}: {}",
            listed_name(&stem.to_string_lossy()),
            first(&lora.sha256, 12)
        )
    };
    let loras = models
        .base
        .manifest
        .iter()
        .flat_map(|manifest| &manifest.loras);
    let loras: Vec<String> = loras.map(lora).collect();
    let embedding =
        |it: &Arc<Embedding>| format!("{}: {}", listed_name(&it.name), first(&it.sha256, 12));
    let embeddings: Vec<String> = words.embeddings.iter().map(embedding).collect();
    for (key, hashes) in [("Lora hashes", loras), ("TI hashes", embeddings)] {
        if !hashes.is_empty() {
            pairs.push((key, hashes.join(", ")));
        }
    }
    if let Some(refiner) = &models.refiner {
        let hash = refiner.hash().map(|hash| format!(" [{hash}]"));
        let name = format!("{}{}", refiner.title(), hash.unwrap_or_default());
        pairs.push(("Refiner", name));
        pairs.push(("Refiner switch at", request.refiner_start.to_string()));
        if let Some(hash) = refiner.weights_hash() {
            pairs.push(("Refiner weights hash", hash));
        }
        if refiner.family == ModelFamily::SdxlRefiner {
            let [high, low] = request.aesthetic;
            pairs.push(("Aesthetic scores", format!("{high},{low}")));
        }
    }
    pairs
}
