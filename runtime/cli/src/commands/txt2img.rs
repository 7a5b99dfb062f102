//! `sdrun txt2img`: pictures from text.

use std::num::NonZero;
use std::path::PathBuf;

use sd_runtime::engine::{Compute, Dialect, Engine, Ep, memory};
use sd_runtime::noise::texture::Texture;
use sd_runtime::pipeline::infotext::{NotCarried, Settings, within_reach};
use sd_runtime::pipeline::{
    Destination, Dump, Event, ModelDir, Models, Outcome, Plans, Request, VaeApprox, run as make,
};
use sd_runtime::profile;
use sd_runtime::sampler::{self, Sampler};
use sd_runtime::sensors::Ceiling;
use sd_runtime::sigmas::Spread;
use sd_runtime::text::Emphasis;
use sd_runtime::text::styles::Styles;
use sd_ui::{Ui, UsageError};
use serde_json::json;

use super::{CeilingArgs, EngineArgs, cancel_with, left_out};
use crate::auto::{self, Choice};
use crate::carried;
use crate::demo_model;
use crate::embeddings;
use crate::estimate::Estimate;
use crate::output::{Output, free_name};
use crate::previews::Previews;
use crate::progress::Terminal;

const EXAMPLES: &str = "Examples:
  sdrun txt2img -m my-model -p \"a lighthouse at dusk\" -n blurry --seed 42 -o lighthouse.png
  sdrun txt2img -m my-model -p \"a [cat:dog:0.5], (detailed:1.2)\" --sampler \"DPM++ 2M SDE Karras\" --steps 25 --batch 4
  sdrun txt2img -m my-model --from-png shared.jpg --seed -1 -o mine.jpg
  sdrun txt2img -m my-model -p \"a fox\" --compute auto --json";

/// Make pictures from text
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true, args_override_self = true, after_help = EXAMPLES)]
pub(crate) struct Txt2ImgArgs {
    /// Model directory, as `sdconvert build` writes it; the demo model if left out
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the picture should show; `(word:1.3)` stresses, `[from:to:5]` edits after step 5, `[a|b]` alternates, `AND` composes, `BREAK` starts a new chunk
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present_any = ["from_png", "preset"]
    )]
    prompt: Option<String>,
    /// Take every setting from this PNG, JPEG or WebP picture of this program, A1111, Forge, SD.Next or stable-diffusion.cpp; options that
    /// are given count instead of it. What does not carry over is told
    #[arg(long, value_name = "FILE")]
    from_png: Option<PathBuf>,
    /// Take the options of this name in a file of presets; options that are given count instead
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// File of presets, a TOML table of options for each; presets.toml in the user's data folder if left out
    #[arg(long, value_name = "TOML", requires = "preset")]
    pub(crate) presets: Option<PathBuf>,
    /// What it should not show
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    negative: Option<String>,
    /// Width in pixels, a multiple of 8 from 64 to 4096; the model's own if left out
    #[arg(short = 'W', long, value_name = "N")]
    width: Option<usize>,
    /// Height in pixels, a multiple of 8 from 64 to 4096; the model's own if left out
    #[arg(short = 'H', long, value_name = "N")]
    height: Option<usize>,
    /// Steps of the sampler; 20, or what the model is made for, if left out
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How strongly the prompt is followed; 1 is without guidance (diffusers: up to 1), 0 follows the negative prompt only; 7, or what the model is made for, if left out
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// Seed of the noise; a random one if left out or -1
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = parse_seed)]
    seed: Option<Seed>,
    /// Seed of a variation, see --subseed-strength; a random one if left out or -1
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        value_parser = parse_seed,
        requires = "subseed_strength",
        help_heading = "Noise"
    )]
    subseed: Option<Seed>,
    /// How far the noise goes towards the variation: 0 is not at all, 1 all the way
    #[arg(long, value_name = "F", help_heading = "Noise")]
    subseed_strength: Option<f64>,
    /// Keep the composition that the seed has at this size
    #[arg(long, value_name = "WxH", value_parser = parse_size, help_heading = "Noise")]
    seed_resize: Option<[usize; 2]>,
    /// Added to the seed for noise drawn at steps (A1111's "eta noise seed delta")
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Noise"
    )]
    ensd: Option<i64>,
    /// First noise: white, or, as experiments of this program, perlin, pink or image:FILE, the brightness and colours of a PNG
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "init_noise",
        help_heading = "Noise"
    )]
    noise: Option<Texture<PathBuf>>,
    /// Solver, "DPM++ 2M" or Euler for example; the profile's own if left out. A wrong name lists them all
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Spread of the noise levels: automatic (if left out), karras, normal, exponential, ..; a wrong name lists them all
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    /// How much of the prompt's spread guidance gives back, 0 (if left out) to 1
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    guidance_rescale: Option<f64>,
    /// How weights in prompts act: original, no-norm, ignore, none, comfyui or compel; the profile's own if left out
    #[arg(long, value_name = "NAME", help_heading = "Prompt")]
    emphasis: Option<Emphasis>,
    /// Folder with textual inversions (.pt, .bin, .safetensors), which prompts call by the names of their files; repeat for several
    #[arg(long, value_name = "DIR", help_heading = "Prompt")]
    embeddings: Vec<PathBuf>,
    /// Table of styles, as A1111's styles.csv; repeat for several
    #[arg(long, value_name = "CSV", help_heading = "Prompt")]
    styles: Vec<PathBuf>,
    /// Style of a table, put around the prompt or behind it; repeat for several
    #[arg(
        long = "style",
        value_name = "NAME",
        requires = "styles",
        help_heading = "Prompt"
    )]
    style_names: Vec<String>,
    /// Size before cropping that an SDXL is told; the picture's own if left out
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = parse_size, help_heading = "SDXL")]
    original_size: Option<[usize; 2]>,
    /// Size aimed at that an SDXL is told; the picture's own if left out
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = parse_size, help_heading = "SDXL")]
    target_size: Option<[usize; 2]>,
    /// Left and top edge of the crop that an SDXL is told
    #[arg(long, value_name = "X,Y", allow_hyphen_values = true, value_parser = parse_crop, help_heading = "SDXL")]
    crop: Option<[usize; 2]>,
    /// Model directory that ends every picture: SDXL's refiner, or another model of the same family
    #[arg(long, value_name = "DIR", help_heading = "Refiner")]
    refiner: Option<PathBuf>,
    /// Directory that `sdconvert build` made of a TAESD file: decodes the picture, less exactly than the model's own VAE
    /// and with an 18th of its arithmetic, and previews at full size
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    vae_approx: Option<PathBuf>,
    /// Share of the noise that the base model removes before the refiner takes over; 0.8 if left out
    #[arg(long, value_name = "F", requires = "refiner", help_heading = "Refiner")]
    refiner_start: Option<f64>,
    /// Aesthetic scores of prompt and negative prompt that SDXL's refiner is told; 6,2.5 if left out
    #[arg(long, value_name = "F[,F]", value_parser = parse_aesthetic, help_heading = "Refiner")]
    aesthetic: Option<[f64; 2]>,
    /// How much of each step's noise is drawn anew; 0 for DDIM and 1 for ancestral samplers if left out
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    eta: Option<f64>,
    /// What noise drawn at steps is multiplied by
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    s_noise: Option<f64>,
    /// Noise added before steps, over all of them together
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    s_churn: Option<f64>,
    /// Least noise level at which it is added
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    s_tmin: Option<f64>,
    /// Greatest noise level at which it is added
    #[arg(long, value_name = "F", help_heading = "Sampler options")]
    s_tmax: Option<f64>,
    /// Whose rules to follow: a1111 (if left out), comfyui or diffusers
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where noise comes from: torch-cpu (if left out), or philox as on NVIDIA cards
    #[arg(long, value_name = "NAME", help_heading = "Noise")]
    rng: Option<String>,
    /// Layer of the text encoder to use, counted from the end: 1 is the last, and taken if left out
    #[arg(long, value_name = "N", help_heading = "Prompt")]
    clip_skip: Option<usize>,
    /// How many pictures; the seed counts up under a1111's rules; 1 if left out
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Picture to write: .png, .jpg or .webp (without loss); several get numbers; - is standard output and a PNG
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Quality of a JPEG, 1 to 100; 80 if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100), requires = "output", help_heading = "Output")]
    quality: Option<u8>,
    /// Write what the picture looks like after every N steps, beside it: out.step-005.png and so on, an eighth as wide and high
    /// unless there is --vae-approx
    #[arg(long, value_name = "N", help_heading = "Output")]
    preview: Option<NonZero<usize>>,
    /// Write what happens inside to this safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    dump: Option<PathBuf>,
    /// Take the first noise from the tensor `initial_noise` of this safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Noise")]
    init_noise: Option<PathBuf>,
    /// Go on without the LoRAs that the prompt asks for (`<lora:..>`) and the model does not hold
    #[arg(long, help_heading = "Prompt")]
    ignore_lora_tags: bool,
    /// Which graphs to run: native ones are made for this machine's processor, portable ones for every provider; auto if left out
    #[arg(long, value_name = "portable|native|auto", help_heading = "Engine")]
    graph: Option<Dialect>,
    /// What products are computed in: f32 exactly (if left out); i16, bf16 or i8 faster, at an error of about 0.1, 1 or 3 % a step; auto the fastest below 2 %
    #[arg(long, value_name = "f32|bf16|i16|i8|auto", help_heading = "Engine")]
    compute: Option<Compute>,
    /// Decode in bands of rows: a fifth of the memory for large pictures, a sixth more time, and colours at most one level of 255 off
    #[arg(long, help_heading = "Engine")]
    tile: bool,
    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    ceiling: CeilingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What `--seed` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seed {
    /// This one.
    Fixed(u64),
    /// Any, which A1111 writes as -1.
    Random,
}

fn parse_seed(text: &str) -> Result<Seed, String> {
    if text == "-1" {
        return Ok(Seed::Random);
    }
    let fixed = text.parse().map(Seed::Fixed);
    fixed.map_err(|_| format!("expected 0 to {}, or -1 for a random one", u64::MAX))
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    parse_pair(text, 'x').ok_or_else(|| "expected WIDTHxHEIGHT, such as 512x768".to_owned())
}

fn parse_crop(text: &str) -> Result<[usize; 2], String> {
    parse_pair(text, ',').ok_or_else(|| "expected LEFT,TOP, such as 0,64".to_owned())
}

fn parse_aesthetic(text: &str) -> Result<[f64; 2], String> {
    let number = |text: &str| text.trim().parse().ok();
    let scores = match text.split_once(',') {
        Some((a, b)) => number(a).zip(number(b)),
        None => number(text).zip(Some(2.5)),
    };
    let scores = scores.map(|(a, b)| [a, b]);
    scores.ok_or_else(|| "expected a number, or two with a comma between them".to_owned())
}

fn parse_pair(text: &str, sign: char) -> Option<[usize; 2]> {
    let (x, y) = text.split_once([sign, sign.to_ascii_uppercase()])?;
    Some([x.trim().parse().ok()?, y.trim().parse().ok()?])
}

pub(crate) fn run(args: &Txt2ImgArgs, ui: &Ui) -> anyhow::Result<()> {
    if let Some(compute) = args.compute {
        args.engine.check_numbers(compute)?;
    }
    let ceiling = args.ceiling.ceiling()?;
    let carried = args.from_png.as_deref();
    let carried = carried.map(|path| carried::of(path, ui)).transpose()?;
    let carried = carried.map(|(_, settings)| settings);
    let (mut request, mut not_carried) = args.request(carried.as_ref(), ui)?;
    args.engine.apply(&mut request)?;
    request.check()?;
    // A picture of a batch is made alone again.
    let place = carried.as_ref().map_or(0, |settings| settings.place);
    let alone = args.batch.is_none() && request.batch > 1;
    let count = if alone { 1 } else { request.batch };
    let output = Output::find(
        args.output.as_deref(),
        count,
        args.dump.as_deref(),
        args.json,
    )?
    .with_quality(args.quality)?;
    if args.preview.is_some() {
        // Pictures without names get theirs later.
        Previews::beside(&output.pictures, output.dump.as_ref())?;
    }
    let model = match &args.model {
        Some(path) => ModelDir::open(path)?,
        None => demo_model::directory(ui)?,
    };
    let models = Models {
        refiner: args.refiner.as_deref().map(ModelDir::open).transpose()?,
        vae_approx: args
            .vae_approx
            .as_deref()
            .map(VaeApprox::open)
            .transpose()?,
        embeddings: embeddings::of(&args.embeddings, &model)?,
        base: model,
    };
    if let Some(settings) = &carried {
        args.engine.limit_instructions();
        let given = [args.graph.is_some(), args.compute.is_some(), args.tile];
        let ep = args.engine.least();
        not_carried.extend(within_reach(&mut request, &models, ep, given));
        not_carried.extend(settings.wanted.not_carried(&models));
        not_carried.extend(args.engine.not_carried(settings));
    }
    for NotCarried { field, value } in &not_carried {
        ui.note(format!("not carried over: {field}: {value}"));
    }
    let (chosen, choice) = auto::resolve(&args.engine, &request, &models, ui)?;
    chosen.apply(&mut request)?;
    let engine = chosen.start(ui)?;
    let mut plans = Plans::resolve(&request, &models, memory::limit())?;
    if alone {
        plans.plans = plans.plans.into_iter().skip(place).take(1).collect();
    }
    plans.preview = args.preview;
    check_previews(&plans, &models, engine.ep())?;
    let estimate = Estimate::of(&chosen, &request, &plans, &models, &engine);
    let job = Job {
        plans,
        vae_decoder: models.decoder_name(),
        choice,
        not_carried,
        ceiling,
    };
    generate(&job, &engine, &models, output, estimate, ui)
}

/// That previews, which are decoded beside the UNet, fit into memory.
fn check_previews(plans: &Plans, models: &Models, ep: Ep) -> Result<(), UsageError> {
    let (needed, limit) = (plans.memory_with(ep, models).total, memory::limit());
    if plans.preview.is_none() || ep != Ep::Cpu || needed <= limit {
        return Ok(());
    }
    let [needed, limit] = [needed, limit].map(|bytes| bytes as f64 / 1e9);
    Err(UsageError(format!(
        "with previews it needs about {needed:.1} GB of memory, there are {limit:.1} GB\nhint: without `--preview` it fits"
    )))
}

/// The sampler and spread that options name.
type Solver = (Option<Sampler>, Option<Option<Spread>>);

impl Txt2ImgArgs {
    /// The request of a picture's settings, if there are any, with what the options say instead; and the settings that are left out.
    fn request(
        &self,
        carried: Option<&Settings>,
        ui: &Ui,
    ) -> anyhow::Result<(Request, Vec<NotCarried>)> {
        if self.prompt.is_none() && carried.is_none() {
            let text = "there is no prompt: -p TEXT, --from-png FILE or one in the preset";
            return Err(UsageError(text.to_owned()).into());
        }
        let mut request =
            carried.map_or_else(Request::default, |settings| settings.request.clone());
        let mut not_carried =
            carried.map_or_else(Vec::new, |settings| settings.not_carried.clone());
        not_carried.retain(|it| !self.says(&it.field));
        (request.prompt, request.negative_prompt) = self.styled(&request, ui)?;
        let (sampler, spread) = self.solver()?;
        if let Some(sampler) = sampler {
            request.sampler = Some(sampler);
            not_carried.extend(request.options.retain(sampler).into_iter().map(
                |(field, value)| NotCarried {
                    field: field.to_owned(),
                    value,
                },
            ));
        }
        if let Some(spread) = spread {
            request.spread = spread;
        }
        if self.seed.is_some() || carried.is_none() {
            request.seed = fixed(self.seed);
        }
        if let Some(strength) = self.subseed_strength {
            request.subseed_strength = strength;
            if self.subseed.is_some() || request.subseed.is_none() {
                request.subseed = Some(fixed(self.subseed));
            }
        }
        fill(self.width, &mut request.width);
        fill(self.height, &mut request.height);
        fill(self.steps, &mut request.steps);
        fill(self.cfg, &mut request.guidance_scale);
        give(self.guidance_rescale, &mut request.guidance_rescale);
        fill(self.emphasis, &mut request.emphasis);
        give(self.refiner_start, &mut request.refiner_start);
        give(self.aesthetic, &mut request.aesthetic);
        fill(self.original_size, &mut request.micro.original_size);
        fill(self.target_size, &mut request.micro.target_size);
        give(self.crop, &mut request.micro.crop);
        fill(self.seed_resize, &mut request.seed_resize);
        give(self.ensd, &mut request.ensd);
        give(self.noise.clone(), &mut request.noise);
        give(self.batch, &mut request.batch);
        fill(self.eta, &mut request.options.eta);
        give(self.s_noise, &mut request.options.s_noise);
        give(self.s_churn, &mut request.options.s_churn);
        give(self.s_tmin, &mut request.options.s_tmin);
        give(self.s_tmax, &mut request.options.s_tmax);
        give(self.clip_skip, &mut request.clip_skip);
        fill(self.init_noise.clone(), &mut request.initial_noise);
        give(self.graph, &mut request.graph);
        give(self.compute, &mut request.compute);
        request.ignore_lora_tags |= self.ignore_lora_tags;
        request.tile |= self.tile;
        if let Some(name) = &self.profile {
            request.profile = profile::named(name)?;
        }
        if let Some(name) = &self.rng {
            request.rng = name.parse()?;
        }
        self.strip_comments(&mut request, ui);
        Ok((request, not_carried))
    }

    /// Leaves out comments of prompts that options and styles made. A picture's have none: what looks like one is text.
    fn strip_comments(&self, request: &mut Request, ui: &Ui) {
        let profile = request.profile;
        let is_styled = !self.style_names.is_empty();
        let prompt = (is_styled || self.prompt.is_some()).then_some(&mut request.prompt);
        let negative = request.negative_prompt.as_mut();
        let negative = negative.filter(|_| is_styled || self.negative.is_some());
        let prompts = prompt.into_iter().chain(negative);
        for comment in prompts.flat_map(|prompt| profile.strip_comments(prompt)) {
            ui.note(left_out(&comment));
        }
    }

    /// The sampler, and what the options say of its spread, where they do: a new sampler has its own.
    fn solver(&self) -> anyhow::Result<Solver> {
        let sampler = self.sampler.as_deref().map(sampler::parse).transpose();
        let (sampler, named) = sampler?.unzip();
        let named = named.flatten();
        let spread: Option<Option<Spread>> = match &self.schedule {
            None => sampler.map(|_| named),
            Some(name) => Some(match name.to_lowercase().as_str() {
                "automatic" => named,
                name => Some(name.parse()?),
            }),
        };
        if let (Some(Some(spread)), Some(named)) = (spread, named)
            && spread != named
        {
            return Err(UsageError(format!(
                "`--sampler \"{}\"` asks for {}, `--schedule {}` for {}: say one of them",
                self.sampler.as_deref().unwrap_or_default(),
                named.name(),
                self.schedule.as_deref().unwrap_or_default(),
                spread.name()
            ))
            .into());
        }
        Ok((sampler, spread))
    }

    /// Whether an option stands in for a picture's setting.
    fn says(&self, field: &str) -> bool {
        match field {
            "Prompt" => self.prompt.is_some(),
            "Negative prompt" => self.negative.is_some(),
            "Steps" => self.steps.is_some(),
            "Sampler" | "UniPC variant" => self.sampler.is_some(),
            "Schedule type" => self.sampler.is_some() || self.schedule.is_some(),
            "CFG scale" => self.cfg.is_some(),
            "Guidance rescale" | "CFG rescale" => self.guidance_rescale.is_some(),
            "Seed" => self.seed.is_some(),
            "Size" => self.width.is_some() && self.height.is_some(),
            "Variation seed" | "Variation seed strength" => self.subseed_strength.is_some(),
            "Seed resize from" => self.seed_resize.is_some(),
            "Clip skip" => self.clip_skip.is_some(),
            "ENSD" => self.ensd.is_some(),
            "Emphasis" => self.emphasis.is_some(),
            "RNG" => self.rng.is_some(),
            "Eta" | "Eta DDIM" => self.eta.is_some(),
            "Profile" => self.profile.is_some(),
            "Compute" => self.compute.is_some(),
            "Graph" => self.graph.is_some(),
            "VAE Decoder" | "VAE Decoder hash" => self.vae_approx.is_some(),
            "Noise" | "Initial noise" => self.noise.is_some() || self.init_noise.is_some(),
            _ => false,
        }
    }
}

impl Txt2ImgArgs {
    /// Prompt and negative prompt with styles. No negative prompt stays none if no style has one.
    fn styled(&self, carried: &Request, ui: &Ui) -> anyhow::Result<(String, Option<String>)> {
        let mut styles = Styles::default();
        for file in &self.styles {
            styles.add(&ui.read_text(file)?, file)?;
        }
        let asked = self.prompt.as_ref().unwrap_or(&carried.prompt);
        let asked_negative = self.negative.as_ref().or(carried.negative_prompt.as_ref());
        let negative = asked_negative.map(String::as_str).unwrap_or_default();
        let [prompt, negative] = styles.apply(&self.style_names, asked, negative)?;
        let is_none = asked_negative.is_none() && negative.is_empty();
        Ok((prompt, (!is_none).then_some(negative)))
    }
}

/// Lets an option that is given replace a field.
fn give<T>(option: Option<T>, field: &mut T) {
    if let Some(value) = option {
        *field = value;
    }
}

/// [`give`] of a field that may stay open.
fn fill<T>(option: Option<T>, field: &mut Option<T>) {
    if option.is_some() {
        *field = option;
    }
}

fn fixed(seed: Option<Seed>) -> u64 {
    match seed {
        Some(Seed::Fixed(seed)) => seed,
        Some(Seed::Random) | None => random_seed(),
    }
}

/// A seed that A1111 would draw, too: below 2^32 - 2.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed") % 4_294_967_294
}

/// What is to be made, and why so.
pub(crate) struct Job {
    pub(crate) plans: Plans,
    /// What decodes them.
    pub(crate) vae_decoder: &'static str,
    pub(crate) choice: Option<Choice>,
    /// Settings of a picture that are left out.
    pub(crate) not_carried: Vec<NotCarried>,
    /// Power and temperature that are not to be exceeded.
    pub(crate) ceiling: Option<Ceiling>,
}

/// Makes the pictures and writes them.
pub(crate) fn generate(
    job: &Job,
    engine: &Engine,
    models: &Models,
    mut output: Output,
    mut estimate: Estimate,
    ui: &Ui,
) -> anyhow::Result<()> {
    let plans = &job.plans;
    output.check(plans)?;
    let mut previews = None;
    if plans.preview.is_some() {
        output.name_pictures(plans)?;
        previews = Some(Previews::beside(&output.pictures, output.dump.as_ref())?);
    }
    if models.refiner.is_some() && plans.plans.len() > 1 {
        // The next picture needs both networks again. Other programs need memory, too, so half of what is left is enough.
        let left = memory::limit().saturating_sub(plans.memory.total);
        engine.pool().set_budget(left / 2);
    }
    let memory = plans.memory_with(engine.ep(), models);
    estimate.say(memory.total, ui);
    let mut dump = output.dump.as_ref().map(|_| Dump::default());
    let mut terminal = Terminal::new(ui);
    let cancel = cancel_with(ui);
    let mut follow = |event: Event<'_>| {
        terminal.follow(event);
        if let Some(text) = estimate.hear(&event) {
            ui.note(text);
        }
        if let (
            Event::Preview {
                picture,
                steps,
                image,
            },
            Some(previews),
        ) = (event, &previews)
            && let Err(error) = previews.write(picture, steps, image, &cancel)
        {
            // The picture is what was asked for.
            ui.warn(error);
        }
        if let (Event::Called { .. }, Some(ceiling)) = (event, &job.ceiling) {
            ceiling.keep(&cancel, &mut |text| terminal.follow(Event::Warning(text)));
        }
    };
    let outcome = make(plans, models, engine, &cancel, &mut follow, dump.as_mut())?;
    drop(terminal);
    // Pauses are no part of the work.
    if job.ceiling.is_none() {
        estimate.learn(plans, &outcome);
    }
    if let (Some(dump), Some(to)) = (&dump, &output.dump) {
        dump.write(to, &cancel)?;
    }
    let mut written = Vec::new();
    for (i, (picture, plan)) in outcome.pictures.iter().zip(&plans.plans).enumerate() {
        let to = match output.pictures.get(i) {
            Some(to) => to.clone(),
            None => Destination::find(&free_name(plan.seed, &[]))?,
        };
        let beside = [outcome.settings(i), output.settings()].concat();
        let infotext = plan.infotext.with(&beside).to_string();
        picture.write(&to, output.format, &infotext, &cancel)?;
        written.push((to, plan.seed));
    }
    report(job, &outcome, &written, &output, engine.ep(), ui)
}

fn report(
    job: &Job,
    outcome: &Outcome,
    written: &[(Destination, u64)],
    output: &Output,
    ep: Ep,
    ui: &Ui,
) -> anyhow::Result<()> {
    let Some(plan) = job.plans.plans.first() else {
        return Ok(());
    };
    let (timing, calls) = (&outcome.timing, &outcome.calls);
    let per_step = timing.denoise.as_secs_f64() / calls.iter().sum::<usize>() as f64;
    let most = calls.iter().copied().max().unwrap_or(0);
    if output.json {
        let images: Vec<_> = written
            .iter()
            .zip(&outcome.decoded_again)
            .map(|((to, seed), again)| {
                let mut image = json!({"file": to.path().to_string_lossy(), "seed": seed});
                if *again {
                    image["vae_retry"] = "f32".into();
                }
                image
            })
            .collect();
        return Ok(ui.result(json!({
            "images": images,
            "sampler": plan.sampler.name,
            "schedule": plan.spread.map(Spread::name),
            "steps": plan.steps,
            "model_calls": most,
            "compute": outcome.compute.name(),
            "graph": outcome.graph,
            "vae_decoder": job.vae_decoder,
            "ep": ep.name(),
            "ep_choice": job.choice,
            "not_carried": job.not_carried,
            "seconds": {
                "encode": timing.encode.as_secs_f64(),
                "load": timing.load.as_secs_f64(),
                "denoise": timing.denoise.as_secs_f64(),
                "per_step": per_step,
                "decode": timing.decode.as_secs_f64(),
            },
        }))?);
    }
    for (to, seed) in written {
        let line = format!("{} (seed {seed})", to.path().display());
        if output.to_stdout() > 0 {
            ui.note(line);
        } else {
            ui.result(line)?;
        }
    }
    ui.note(format!(
        "{} with {} calls of the model, {per_step:.2} s each; prompts {:.1} s, loading {:.1} s, decoding {:.1} s",
        plan.sampler,
        most,
        timing.encode.as_secs_f64(),
        timing.load.as_secs_f64(),
        timing.decode.as_secs_f64()
    ));
    Ok(())
}
