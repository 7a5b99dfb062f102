//! `sdrun txt2img`: pictures from text.

use std::path::{Path, PathBuf};

use sd_converter::ui::{Ui, UsageError};
use sd_runtime::engine::Engine;
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{Dump, ModelDir, Outcome, PipelineError, Txt2Img};
use sd_runtime::sampler::schedule::parse_sigma_schedule;
use sd_runtime::sampler::{Profile, SamplerName};
use serde_json::json;

use super::EngineArgs;
use crate::demo_model;
use crate::progress::Terminal;

/// Make pictures from text
#[derive(Debug, clap::Args)]
pub(crate) struct Txt2ImgArgs {
    /// Model directory, as `sdconvert build` writes it; the demo model if left out
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What the picture should show; `(word:1.3)` stresses, `BREAK` starts a new chunk
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// What it should not show
    #[arg(short, long, default_value = "", value_name = "TEXT")]
    negative: String,
    /// Width in pixels, a multiple of 8; the model's own if left out
    #[arg(short = 'W', long, value_name = "N")]
    width: Option<usize>,
    /// Height in pixels, a multiple of 8; the model's own if left out
    #[arg(short = 'H', long, value_name = "N")]
    height: Option<usize>,
    /// Steps of the sampler
    #[arg(long, default_value_t = 20, value_name = "N")]
    steps: usize,
    /// How strongly the prompt is followed; 1 is without guidance
    #[arg(long, default_value_t = 7.0, value_name = "F")]
    cfg: f64,
    /// Seed of the noise; a random one if left out
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Solver: Euler, "Euler a", DDIM, "DPM++ 2M" or PLMS; the profile's own if left out
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Spread of the noise levels: automatic, normal or karras
    #[arg(long, default_value = "automatic", value_name = "NAME")]
    schedule: String,
    /// Whose rules to follow: a1111 or diffusers
    #[arg(long, default_value = "a1111", value_name = "NAME")]
    profile: String,
    /// Where noise comes from: torch-cpu, or philox as on NVIDIA cards
    #[arg(long, default_value = "torch-cpu", value_name = "NAME")]
    rng: String,
    /// Layer of the text encoder to use, counted from the end: 1 is the last
    #[arg(long, default_value_t = 1, value_name = "N")]
    clip_skip: usize,
    /// How many pictures; the seed counts up
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Picture to write; several get numbers
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
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Where a run's results go.
pub(crate) struct Output {
    /// The picture; a free name in the working folder if absent.
    pub(crate) path: Option<PathBuf>,
    /// The inside of the run.
    pub(crate) dump: Option<PathBuf>,
    /// Whether to print JSON.
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Txt2ImgArgs, ui: &Ui) -> anyhow::Result<()> {
    let request = args.request()?;
    request.check().map_err(|e| UsageError(e.to_string()))?;
    let model = match &args.model {
        Some(path) => ModelDir::open(path)?,
        None => demo_model::directory(ui)?,
    };
    let engine = args.engine.start(ui)?;
    let output = Output {
        path: args.output.clone(),
        dump: args.dump.clone(),
        json: args.json,
    };
    generate(&request, &engine, &model, &output, ui)
}

impl Txt2ImgArgs {
    fn request(&self) -> Result<Txt2Img, UsageError> {
        let usage = |e: &dyn std::error::Error| UsageError(e.to_string());
        let sampler: Option<SamplerName> = self
            .sampler
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e| usage(&e))?;
        let schedule = parse_sigma_schedule(&self.schedule).map_err(|e| usage(&e))?;
        Ok(Txt2Img {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance_scale: self.cfg,
            seed: self.seed.unwrap_or_else(random_seed),
            batch: self.batch,
            sampler: sampler.map(|name| name.sampler),
            schedule: schedule.or(sampler.and_then(|name| name.schedule)),
            profile: self.profile.parse::<Profile>().map_err(|e| usage(&e))?,
            rng: self.rng.parse::<Rng>().map_err(|e| usage(&e))?,
            clip_skip: self.clip_skip,
            initial_noise: self.init_noise.clone(),
            ignore_lora_tags: self.ignore_lora_tags,
        })
    }
}

/// A seed that A1111 would draw, too: below 2^32 - 2.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed") % 4_294_967_294
}

/// Makes the pictures and writes them.
pub(crate) fn generate(
    request: &Txt2Img,
    engine: &Engine,
    model: &ModelDir,
    output: &Output,
    ui: &Ui,
) -> anyhow::Result<()> {
    // An output that cannot be written is better known before minutes of work.
    for path in output.path.iter().chain(&output.dump) {
        check_writable(path)?;
    }
    let mut dump = output.dump.as_ref().map(|_| Dump::default());
    let mut terminal = Terminal::new(ui, request.batch);
    let outcome = request.run(
        engine,
        model,
        &ui.interrupt_flag(),
        &mut terminal,
        dump.as_mut(),
    )?;
    drop(terminal);
    if let (Some(dump), Some(path)) = (&dump, &output.dump) {
        dump.write(path)?;
    }
    let mut files = Vec::new();
    for (i, (picture, seed, infotext)) in outcome.pictures.iter().enumerate() {
        let path = match &output.path {
            Some(path) if outcome.pictures.len() > 1 => numbered(path, i),
            Some(path) => path.clone(),
            None => free_name(*seed),
        };
        picture.write_png(&path, infotext)?;
        files.push((path, *seed));
    }
    report(request, &outcome, &files, output.json, ui)
}

fn report(
    request: &Txt2Img,
    outcome: &Outcome,
    files: &[(PathBuf, u64)],
    json: bool,
    ui: &Ui,
) -> anyhow::Result<()> {
    let timing = outcome.timing;
    let per_step = timing.denoise.as_secs_f64() / (outcome.calls * request.batch) as f64;
    if json {
        let images: Vec<_> = files
            .iter()
            .map(|(path, seed)| json!({"file": path, "seed": seed}))
            .collect();
        return Ok(ui.result(json!({
            "images": images,
            "sampler": outcome.sampler.name(),
            "steps": request.steps,
            "model_calls": outcome.calls,
            "seconds": {
                "encode": timing.encode.as_secs_f64(),
                "load": timing.load.as_secs_f64(),
                "denoise": timing.denoise.as_secs_f64(),
                "per_step": per_step,
                "decode": timing.decode.as_secs_f64(),
            },
        }))?);
    }
    for (path, seed) in files {
        ui.result(format!("{} (seed {seed})", path.display()))?;
    }
    ui.note(format!(
        "{} with {} calls of the model, {per_step:.2} s each; prompts {:.1} s, loading {:.1} s, decoding {:.1} s",
        outcome.sampler,
        outcome.calls,
        timing.encode.as_secs_f64(),
        timing.load.as_secs_f64(),
        timing.decode.as_secs_f64()
    ));
    Ok(())
}

fn check_writable(path: &Path) -> Result<(), PipelineError> {
    let failed = |source| PipelineError::Write {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(
            std::io::ErrorKind::IsADirectory,
        )));
    }
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    tempfile::tempfile_in(parent).map(drop).map_err(failed)
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
