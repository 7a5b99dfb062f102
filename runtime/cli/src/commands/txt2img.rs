//! `sdrun txt2img`: pictures from text.

use std::path::{Path, PathBuf};

use sd_runtime::engine::{Compute, Dialect, Engine, Ep, memory};
use sd_runtime::noise::texture::Texture;
use sd_runtime::pipeline::{
    Destination, Dump, Micro, ModelDir, Models, Outcome, Plans, Request, run as make,
};
use sd_runtime::profile;
use sd_runtime::sampler::{self, Options};
use sd_runtime::sigmas::Spread;
use sd_runtime::text::Emphasis;
use sd_runtime::text::styles::Styles;
use sd_ui::{Ui, UsageError};
use serde_json::json;

use super::{EngineArgs, cancel_with};
use crate::auto::{self, Choice};
use crate::demo_model;
use crate::embeddings;
use crate::progress::Terminal;

/// Make pictures from text
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Txt2ImgArgs {
    /// Model directory, as `sdconvert build` writes it; the demo model if left out
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the picture should show; `(word:1.3)` stresses, `[from:to:5]` edits after step 5, `[a|b]` alternates, `AND` composes, `BREAK` starts a new chunk
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
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
        default_value_t = 0,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Noise"
    )]
    ensd: i64,
    /// First noise: white, or, as experiments of this program, perlin, pink or image:FILE, the brightness and colours of a PNG
    #[arg(
        long,
        default_value = "white",
        value_name = "NAME",
        conflicts_with = "init_noise",
        help_heading = "Noise"
    )]
    noise: Texture<PathBuf>,
    /// Solver, "DPM++ 2M" or Euler for example; the profile's own if left out. A wrong name lists them all
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Spread of the noise levels: automatic, karras, normal, exponential, ..; a wrong name lists them all
    #[arg(long, default_value = "automatic", value_name = "NAME")]
    schedule: String,
    /// How much of the prompt's spread guidance gives back, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "F")]
    guidance_rescale: f64,
    /// How weights in prompts act: original, no-norm, ignore, none, comfyui or compel; the profile's own if left out
    #[arg(long, value_name = "NAME")]
    emphasis: Option<Emphasis>,
    /// Folder with textual inversions (.pt, .bin, .safetensors), which prompts call by the names of their files; repeat for several
    #[arg(long, value_name = "DIR")]
    embeddings: Vec<PathBuf>,
    /// Table of styles, as A1111's styles.csv; repeat for several
    #[arg(long, value_name = "CSV")]
    styles: Vec<PathBuf>,
    /// Style of a table, put around the prompt or behind it; repeat for several
    #[arg(long = "style", value_name = "NAME", requires = "styles")]
    style_names: Vec<String>,
    /// Size before cropping that an SDXL is told; the picture's own if left out
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = parse_size, help_heading = "SDXL")]
    original_size: Option<[usize; 2]>,
    /// Size aimed at that an SDXL is told; the picture's own if left out
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = parse_size, help_heading = "SDXL")]
    target_size: Option<[usize; 2]>,
    /// Left and top edge of the crop that an SDXL is told
    #[arg(long, value_name = "X,Y", allow_hyphen_values = true, value_parser = parse_crop, default_value = "0,0", hide_default_value = true, help_heading = "SDXL")]
    crop: [usize; 2],
    /// Model directory that ends every picture: SDXL's refiner, or another model of the same family
    #[arg(long, value_name = "DIR", help_heading = "Refiner")]
    refiner: Option<PathBuf>,
    /// Share of the noise that the base model removes before the refiner takes over
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.8,
        requires = "refiner",
        help_heading = "Refiner"
    )]
    refiner_start: f64,
    /// Aesthetic scores of prompt and negative prompt that SDXL's refiner is told
    #[arg(long, value_name = "F[,F]", value_parser = parse_aesthetic, default_value = "6,2.5", help_heading = "Refiner")]
    aesthetic: [f64; 2],
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
    /// Whose rules to follow: a1111, comfyui or diffusers
    #[arg(long, default_value = "a1111", value_name = "NAME")]
    profile: String,
    /// Where noise comes from: torch-cpu, or philox as on NVIDIA cards
    #[arg(long, default_value = "torch-cpu", value_name = "NAME")]
    rng: String,
    /// Layer of the text encoder to use, counted from the end: 1 is the last
    #[arg(long, default_value_t = 1, value_name = "N")]
    clip_skip: usize,
    /// How many pictures; the seed counts up under a1111's rules
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Picture to write; several get numbers; - is standard output
    #[arg(short, long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// Write what happens inside to this safetensors file
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Take the first noise from the tensor `initial_noise` of this safetensors file
    #[arg(long, value_name = "FILE")]
    init_noise: Option<PathBuf>,
    /// Go on without the LoRAs that the prompt asks for (`<lora:..>`) and the model does not hold
    #[arg(long)]
    ignore_lora_tags: bool,
    /// Which graphs to run: native ones are made for this machine's processor, portable ones for every provider
    #[arg(
        long,
        value_name = "portable|native|auto",
        default_value = "auto",
        help_heading = "Engine"
    )]
    graph: Dialect,
    /// What products are computed in: f32 exactly; i16, bf16 or i8 faster, at an error of about 0.1, 1 or 3 % a step; auto the fastest below 2 %
    #[arg(
        long,
        value_name = "f32|bf16|i16|i8|auto",
        default_value = "f32",
        help_heading = "Engine"
    )]
    compute: Compute,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
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

/// Where a run's results go.
pub(crate) struct Output {
    pictures: Vec<Destination>,
    dump: Option<Destination>,
    json: bool,
}

impl Output {
    /// Places for `count` pictures, found before the work. Without a name, pictures get free ones in the working folder once
    /// they are there.
    pub(crate) fn find(
        picture: Option<&Path>,
        count: usize,
        dump: Option<&Path>,
        json: bool,
    ) -> anyhow::Result<Self> {
        let dump = dump.map(Dump::place).transpose()?;
        let mut pictures = Vec::new();
        if let Some(path) = picture {
            refuse_other_formats(path)?;
            let one = Destination::find(path)?;
            for i in 0..count {
                pictures.push(match count > 1 && one.is_file() {
                    true => Destination::find(&numbered(path, i))?,
                    false => one.clone(),
                });
            }
        } else {
            Destination::find(&free_name(0))?;
        }
        if let Some(dump) = &dump
            && let Some(same) = pictures.iter().find(|picture| picture.is_same(dump))
        {
            let text = format!(
                "{}: picture and dump would overwrite each other",
                same.path().display()
            );
            return Err(UsageError(text).into());
        }
        let output = Self {
            pictures,
            dump,
            json,
        };
        if output.pictures.len() > 1 && output.pictures.iter().all(Destination::is_pipe) {
            let text = "several pictures cannot go through one pipe";
            return Err(UsageError(text.to_owned()).into());
        }
        if output.to_stdout() + usize::from(json) > 1 {
            let text = "only one thing can go to standard output: a picture, a dump or the result of --json";
            return Err(UsageError(text.to_owned()).into());
        }
        Ok(output)
    }

    /// How many of the files are standard output.
    fn to_stdout(&self) -> usize {
        let places = self.pictures.iter().chain(&self.dump);
        places.filter(|place| place.is_stdout()).count()
    }
}

pub(crate) fn run(args: &Txt2ImgArgs, ui: &Ui) -> anyhow::Result<()> {
    let mut request = args.request()?;
    args.engine.apply(&mut request)?;
    request.check()?;
    let output = Output::find(
        args.output.as_deref(),
        args.batch,
        args.dump.as_deref(),
        args.json,
    )?;
    let model = match &args.model {
        Some(path) => ModelDir::open(path)?,
        None => demo_model::directory(ui)?,
    };
    let models = Models {
        refiner: args.refiner.as_deref().map(ModelDir::open).transpose()?,
        embeddings: embeddings::of(&args.embeddings, &model)?,
        base: model,
    };
    let (engine, choice) = auto::resolve(&args.engine, &request, &models, ui)?;
    engine.apply(&mut request)?;
    let engine = engine.start(ui)?;
    generate(&request, &engine, &models, &output, choice.as_ref(), ui)
}

impl Txt2ImgArgs {
    fn request(&self) -> anyhow::Result<Request> {
        let sampler = self.sampler.as_deref().map(sampler::parse).transpose();
        let (sampler, named) = sampler?.unzip();
        let spread: Option<Spread> = match self.schedule.to_lowercase().as_str() {
            "automatic" => None,
            name => Some(name.parse()?),
        };
        let named = named.flatten();
        if let (Some(spread), Some(named)) = (spread, named)
            && spread != named
        {
            return Err(UsageError(format!(
                "`--sampler \"{}\"` asks for {}, `--schedule {}` for {}: say one of them",
                self.sampler.as_deref().unwrap_or_default(),
                named.name(),
                self.schedule,
                spread.name()
            ))
            .into());
        }
        let options = Options::default();
        let (prompt, negative_prompt) = self.styled()?;
        Ok(Request {
            prompt,
            negative_prompt,
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance_scale: self.cfg,
            guidance_rescale: self.guidance_rescale,
            emphasis: self.emphasis,
            refiner_start: self.refiner_start,
            aesthetic: self.aesthetic,
            micro: Micro {
                original_size: self.original_size,
                target_size: self.target_size,
                crop: self.crop,
            },
            seed: fixed(self.seed),
            subseed: self.subseed_strength.map(|_| fixed(self.subseed)),
            subseed_strength: self.subseed_strength.unwrap_or(0.0),
            seed_resize: self.seed_resize,
            ensd: self.ensd,
            noise: self.noise.clone(),
            batch: self.batch,
            sampler,
            options: Options {
                eta: self.eta,
                s_noise: self.s_noise.unwrap_or(options.s_noise),
                s_churn: self.s_churn.unwrap_or(options.s_churn),
                s_tmin: self.s_tmin.unwrap_or(options.s_tmin),
                s_tmax: self.s_tmax.unwrap_or(options.s_tmax),
                ..options
            },
            spread: spread.or(named),
            profile: profile::named(&self.profile)?,
            rng: self.rng.parse()?,
            clip_skip: self.clip_skip,
            initial_noise: self.init_noise.clone(),
            ignore_lora_tags: self.ignore_lora_tags,
            graph: self.graph,
            compute: self.compute,
        })
    }
}

impl Txt2ImgArgs {
    /// Prompt and negative prompt with styles. No negative prompt stays none if no style has one.
    fn styled(&self) -> anyhow::Result<(String, Option<String>)> {
        let mut styles = Styles::default();
        for file in &self.styles {
            styles.read(file)?;
        }
        let negative = self.negative.as_deref().unwrap_or_default();
        let [prompt, negative] = styles.apply(&self.style_names, &self.prompt, negative)?;
        let is_none = self.negative.is_none() && negative.is_empty();
        Ok((prompt, (!is_none).then_some(negative)))
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

/// Less memory than this every machine has.
const WORTH_TELLING: u64 = 1_000_000_000;

/// Makes the pictures and writes them.
pub(crate) fn generate(
    request: &Request,
    engine: &Engine,
    models: &Models,
    output: &Output,
    choice: Option<&Choice>,
    ui: &Ui,
) -> anyhow::Result<()> {
    let limit = memory::limit();
    let plans = Plans::resolve(request, models, limit)?;
    if models.refiner.is_some() && plans.plans.len() > 1 {
        // The next picture needs both networks again. Other programs need memory, too, so half of what is left is enough.
        let left = limit.saturating_sub(plans.memory);
        engine.pool().set_budget(left / 2);
    }
    if plans.memory > WORTH_TELLING {
        let gigabytes = plans.memory as f64 / 1e9;
        ui.note(format!("this takes about {gigabytes:.1} GB of memory"));
    }
    let mut dump = output.dump.as_ref().map(|_| Dump::default());
    let mut terminal = Terminal::new(ui);
    let cancel = cancel_with(ui);
    let outcome = make(
        &plans,
        models,
        engine,
        &cancel,
        &mut |event| terminal.follow(event),
        dump.as_mut(),
    )?;
    drop(terminal);
    if let (Some(dump), Some(to)) = (&dump, &output.dump) {
        dump.write(to, &cancel)?;
    }
    let mut written = Vec::new();
    for (i, (picture, plan)) in outcome.pictures.iter().zip(&plans.plans).enumerate() {
        let to = match output.pictures.get(i) {
            Some(to) => to.clone(),
            None => Destination::find(&free_name(plan.seed))?,
        };
        picture.write_png(&to, &plan.infotext, &cancel)?;
        written.push((to, plan.seed));
    }
    report(
        &plans,
        &outcome,
        &written,
        output,
        (engine.ep(), choice),
        ui,
    )
}

fn report(
    plans: &Plans,
    outcome: &Outcome,
    written: &[(Destination, u64)],
    output: &Output,
    (ep, choice): (Ep, Option<&Choice>),
    ui: &Ui,
) -> anyhow::Result<()> {
    let Some(plan) = plans.plans.first() else {
        return Ok(());
    };
    let (timing, calls) = (&outcome.timing, &outcome.calls);
    let per_step = timing.denoise.as_secs_f64() / calls.iter().sum::<usize>() as f64;
    let most = calls.iter().copied().max().unwrap_or(0);
    if output.json {
        let images: Vec<_> = written
            .iter()
            .map(|(to, seed)| json!({"file": to.path().to_string_lossy(), "seed": seed}))
            .collect();
        return Ok(ui.result(json!({
            "images": images,
            "sampler": plan.sampler.name,
            "schedule": plan.spread.map(Spread::name),
            "steps": plan.steps,
            "model_calls": most,
            "compute": outcome.compute.name(),
            "graph": outcome.graph,
            "ep": ep.name(),
            "ep_choice": choice,
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

/// A picture under another format's name would be taken for that.
fn refuse_other_formats(path: &Path) -> Result<(), UsageError> {
    const OTHERS: [&str; 13] = [
        "onnx",
        "safetensors",
        "ckpt",
        "json",
        "jpg",
        "jpeg",
        "webp",
        "avif",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "jxl",
    ];
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if OTHERS.contains(&extension.to_lowercase().as_str()) {
        let png = path.with_extension("png");
        let text = format!(
            "{}: pictures are written as PNG\nhint: -o {}",
            path.display(),
            png.display()
        );
        return Err(UsageError(text));
    }
    Ok(())
}

/// `out.png` becomes `out-000.png`, `out-001.png`, ..
fn numbered(path: &Path, i: usize) -> PathBuf {
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let extension = path
        .extension()
        .map_or("png".into(), |e| e.to_string_lossy().into_owned());
    path.with_file_name(format!("{stem}-{i:03}.{extension}"))
}

/// A name in the working folder that nobody has yet.
fn free_name(seed: u64) -> PathBuf {
    let names = std::iter::once(format!("sdrun-{seed}.png"))
        .chain((1..).map(|i| format!("sdrun-{seed}-{i}.png")));
    names
        .map(PathBuf::from)
        .find(|path| !path.exists())
        .expect("the names never end")
}
