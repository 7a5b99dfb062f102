//! From a request to plans: every check, default, seed, size and call count, before any weight is read.

use std::path::PathBuf;
use std::sync::Arc;

use sd_models::family::ModelFamily;

use super::request::check_side;
use super::{ModelDir, PipelineError, Request, infotext};
use crate::noise::Rng;
use crate::profile::Profile;
use crate::sampler::{self, Options, Sampler, Schedule};
use crate::sigmas::Spread;
use crate::text::Layer;
use crate::text::lora_tags::untag;

/// One picture, with nothing left open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What should be seen, without tags of LoRAs.
    pub prompt: String,
    /// What should not be seen, without tags of LoRAs.
    pub negative_prompt: String,
    /// Whether it has no text, not even an empty one.
    pub zero_negative: bool,
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Its latents: 1, channels, height, width.
    pub latent_shape: [usize; 4],
    /// Seed of its noise.
    pub seed: u64,
    /// Where noise comes from.
    pub rng: Rng,
    /// The file that holds its first noise, and its place in there.
    pub initial_noise: Option<(PathBuf, usize)>,
    /// The solver.
    pub sampler: Sampler,
    /// How its noise levels are spread; none if it has levels of its own.
    pub spread: Option<Spread>,
    /// What it runs over.
    pub schedule: Arc<Schedule>,
    /// Steps as they are counted in settings.
    pub steps: usize,
    /// Its options.
    pub options: Options,
    /// How many calls of the denoiser it takes.
    pub calls: usize,
    /// How strongly the prompt is followed; 1 is without guidance.
    pub guidance_scale: f64,
    /// How much of the prompt's spread guidance gives back.
    pub guidance_rescale: f64,
    /// What the UNet is told beside the prompt, of families that take that.
    pub time_ids: Option<Vec<f32>>,
    /// Which states of the text encoders are used for prompt and negative prompt.
    pub layers: [Layer; 2],
    /// Whose rules are followed.
    pub profile: Profile,
    /// Settings as A1111 writes them.
    pub settings: Vec<(&'static str, String)>,
    /// What goes into the picture's file.
    pub infotext: String,
}

/// The pictures of a request, and what the user should know of them.
#[derive(Clone, Debug)]
pub struct Plans {
    /// One per picture.
    pub plans: Vec<Plan>,
    /// Bytes of memory that they take at most: they are made one after the other.
    pub memory: u64,
    /// Good to know.
    pub notes: Vec<String>,
    /// What may be wrong.
    pub warnings: Vec<String>,
}

impl Plans {
    /// Resolves a request for a model; `limit` is how many bytes of memory there are.
    ///
    /// # Errors
    /// What cannot be, is out of range, does not fit into memory or is not in the model.
    pub fn resolve(request: &Request, model: &ModelDir, limit: u64) -> Result<Self, PipelineError> {
        request.check()?;
        if model.family == ModelFamily::SdxlRefiner {
            return Err(PipelineError::Unsupported {
                path: model.path.clone(),
                kind: "SDXL's refiner".to_owned(),
                hint: "it goes on with what an SDXL base model began",
            });
        }
        let (profile, trained) = (request.profile, model.trained());
        let in_config = |source| model.scheduler_error(source);
        let (mut notes, mut warnings) = (model.notes.clone(), Vec::new());
        let usual = Usual::of(request, model);
        notes.extend(usual.note);
        let sampler = match request.sampler.or(usual.sampler) {
            Some(sampler) => sampler,
            None => (profile.sampler)(&trained).map_err(in_config)?,
        };
        request.check_for(sampler)?;
        let spread = match request.spread.or(usual.spread) {
            _ if !(profile.spreads)(sampler) => None,
            Some(spread) => Some(spread),
            None => Some((profile.automatic)(sampler, &trained).map_err(in_config)?),
        };
        let steps = request.steps.unwrap_or(usual.steps);
        let guidance_scale = request.guidance_scale.unwrap_or(usual.guidance_scale);
        let schedule = (profile.schedule)(sampler, spread, steps, &trained);
        let schedule = Arc::new(schedule.map_err(in_config)?);
        let size = [
            request.width.unwrap_or(model.default_size[0]),
            request.height.unwrap_or(model.default_size[1]),
        ];
        check_side("width", size[0])?;
        check_side("height", size[1])?;
        let memory = model.memory_within(size, limit)?;

        if (profile.guidance_scale)(guidance_scale) == 0.0 {
            notes.push("guidance 0 follows the negative prompt only".to_owned());
        }
        let layers = layers(request, model, &mut notes);
        let ignore = request.ignore_lora_tags;
        let untag = |prompt: &str| untag(prompt, model.manifest.as_ref(), ignore);
        let negative = request.negative_prompt.as_deref();
        let untagged = [
            untag(&request.prompt)?,
            untag(negative.unwrap_or_default())?,
        ];
        let xl = model.family.time_ids().is_some();
        let zero_negative = xl && (profile.zero_negative)(negative, model.force_zeros);
        for untagged in &untagged {
            notes.extend_from_slice(&untagged.notes);
            let ignored = untagged.ignored.iter();
            warnings
                .extend(ignored.map(|tag| format!("`{tag}` is ignored: it is not in the model")));
        }
        let ignored = untagged[0].ignored.join(" ");
        let [prompt, negative_prompt] = untagged.map(|untagged| untagged.text);

        let plan = |i: usize| {
            let seed = request.seed.wrapping_add(i as u64);
            let settings = settings(
                request,
                model,
                seed,
                (sampler, spread, steps, guidance_scale),
                size,
                &ignored,
            );
            let factor = model.latent.downscale;
            Plan {
                prompt: prompt.clone(),
                negative_prompt: negative_prompt.clone(),
                zero_negative,
                size,
                latent_shape: [1, model.latent.channels, size[1] / factor, size[0] / factor],
                seed,
                rng: request.rng,
                initial_noise: request.initial_noise.clone().map(|path| (path, i)),
                sampler,
                spread,
                schedule: Arc::clone(&schedule),
                steps,
                options: request.options,
                calls: (sampler.calls)(&schedule),
                guidance_scale: (profile.guidance_scale)(guidance_scale),
                guidance_rescale: request.guidance_rescale,
                time_ids: xl.then(|| request.micro.time_ids(size)),
                layers,
                profile,
                infotext: infotext::infotext(
                    &request.prompt,
                    negative.unwrap_or_default(),
                    &settings,
                ),
                settings,
            }
        };
        Ok(Self {
            plans: (0..request.batch).map(plan).collect(),
            memory,
            notes,
            warnings,
        })
    }
}

/// What a request leaves open, where it does not depend on the profile.
struct Usual {
    sampler: Option<Sampler>,
    spread: Option<Spread>,
    steps: usize,
    guidance_scale: f64,
    note: Option<String>,
}

impl Usual {
    /// Distilled models ask for settings of their own, everything else gets A1111's. Who chooses a solver chooses its
    /// spread, too.
    fn of(request: &Request, model: &ModelDir) -> Self {
        const STEPS: usize = 20;
        const GUIDANCE: f64 = 7.0;
        let Some(defaults) = &model.defaults else {
            return Self {
                sampler: None,
                spread: None,
                steps: STEPS,
                guidance_scale: GUIDANCE,
                note: None,
            };
        };
        let open = request.sampler.is_none()
            || request.steps.is_none()
            || request.guidance_scale.is_none();
        let of_solver = Some(defaults).filter(|_| request.sampler.is_none());
        let spread = of_solver.and_then(|d| d.schedule.as_ref()?.parse().ok());
        Self {
            sampler: of_solver.and_then(|d| Some(sampler::parse(&d.sampler).ok()?.0)),
            spread,
            steps: defaults.steps,
            guidance_scale: defaults.guidance_scale,
            note: open.then(|| format!("this model is made for {defaults}")),
        }
    }
}

/// Which states are used for prompt and negative prompt.
fn layers(request: &Request, model: &ModelDir, notes: &mut Vec<String>) -> [Layer; 2] {
    let (profile, skip) = (request.profile, request.clip_skip);
    let (family, acts) = match model.family {
        ModelFamily::Sd21 => ("Stable Diffusion 2", profile.clip_skip_open_clip),
        ModelFamily::Sdxl | ModelFamily::SdxlRefiner => ("SDXL", profile.clip_skip_xl),
        _ => ("Stable Diffusion 1", true),
    };
    if skip > 1 && !acts {
        let name = profile.name;
        notes.push(format!(
            "clip skip has no effect on {family} under {name}'s rules"
        ));
    }
    let skip = if acts { skip } else { 1 };
    let negative = if profile.clip_skip_negative { skip } else { 1 };
    // SDXL was trained on the state before the last layer.
    let layer = |skip| match model.family.time_ids() {
        Some(_) => Layer::Raw(skip + 1),
        None => Layer::Normed(skip),
    };
    [layer(skip), layer(negative)]
}

/// The settings in A1111's words and order.
fn settings(
    request: &Request,
    model: &ModelDir,
    seed: u64,
    (sampler, spread, steps, guidance_scale): (Sampler, Option<Spread>, usize, f64),
    size: [usize; 2],
    ignored_loras: &str,
) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("Steps", steps.to_string()),
        ("Sampler", sampler.name.to_owned()),
    ];
    if let Some(spread) = spread {
        pairs.push(("Schedule type", spread.name().to_owned()));
    }
    pairs.push(("CFG scale", guidance_scale.to_string()));
    pairs.push(("Seed", seed.to_string()));
    pairs.push(("Size", format!("{}x{}", size[0], size[1])));
    if let Some(hash) = model.hash() {
        pairs.push(("Model hash", hash.to_owned()));
    }
    pairs.push(("Model", model.title()));
    if request.clip_skip > 1 {
        pairs.push(("Clip skip", request.clip_skip.to_string()));
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
    let rng = match request.rng {
        Rng::TorchCpu => "CPU",
        Rng::Philox => "NV",
    };
    pairs.push(("RNG", rng.to_owned()));
    if request.profile != Request::default().profile {
        pairs.push(("Profile", request.profile.name.to_owned()));
    }
    let (options, default) = (request.options, Options::default());
    if let Some(eta) = options.eta {
        pairs.push(("Eta", eta.to_string()));
    }
    for (key, value, default) in [
        ("Sigma churn", options.s_churn, default.s_churn),
        ("Sigma tmin", options.s_tmin, default.s_tmin),
        ("Sigma tmax", options.s_tmax, default.s_tmax),
        ("Sigma noise", options.s_noise, default.s_noise),
    ] {
        if value != default {
            pairs.push((key, value.to_string()));
        }
    }
    if !ignored_loras.is_empty() {
        pairs.push(("Ignored LoRA", ignored_loras.to_owned()));
    }
    pairs.push(("Version", format!("sdrt-{}", env!("CARGO_PKG_VERSION"))));
    pairs
}
