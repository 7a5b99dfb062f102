//! `sdbench quality`: what a way of storing or computing a model does to its pictures.
//!
//! All pictures of one way are made before the next one's networks are loaded.

mod compare;
#[cfg(test)]
pub(crate) mod golden;
mod page;
pub(crate) mod prompts;
mod shapes;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use sd_kernels::Isa;
use sd_runtime::engine::{Cancel, Compute, Dialect, Engine, EngineOptions, Ep, memory};
use sd_runtime::pipeline::{
    Destination, Event, Format, ModelDir, Models, Picture, Plan, Plans, Request, run as make,
};
use sd_ui::{Bar, Ui, UsageError};

pub(crate) use compare::{Difference, amplified};
use shapes::{Scene, Verdict};

use crate::page::markdown_table;
use crate::report::{Figures, Hits, Pair, Quality, Report, Spread, Variant, Way};

/// How much stronger differences are shown.
const AMPLIFIED: u8 = 8;

/// Compare pictures of other precisions and ways of computing with those of a model
///
/// Variants are `--model` in every kind of `--compute` but f32, and every `--against` in every kind. The reference is `--model`
/// in f32.
#[derive(Debug, clap::Args)]
pub(crate) struct QualityArgs {
    /// Model directory whose pictures, computed in f32, are the reference
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Model directory to compare with it, of other precision for example; repeat for several
    #[arg(long, value_name = "DIR")]
    against: Vec<PathBuf>,
    /// What products are computed in, one or several of f32, i16, bf16, i8 and auto with commas between them
    #[arg(
        long,
        value_name = "KIND,..",
        default_value = "f32",
        value_delimiter = ','
    )]
    compute: Vec<Compute>,
    /// Text file with a prompt a line; a list that comes with the program if left out. Lines that begin with # are remarks
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Pictures of each prompt, with seeds that count from 0
    #[arg(long, value_name = "N", default_value = "1")]
    seeds: NonZero<u16>,
    /// Steps of the sampler; 20, or what the model is made for, if left out
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How strongly prompts are followed; 7, or what the model is made for, if left out
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// Side of the pictures in pixels; the model's own if left out
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs: scalar, avx2, avx2-vnni, avx512, avx512-vnni or
    /// avx512-bf16
    #[arg(long, value_name = "LEVEL")]
    instructions: Option<Isa>,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
    /// New or empty folder for pictures, report.json and report.html, a page that shows them side by side
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write the figures as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A way of making the pictures, and its plans: one `Plans` for each prompt.
struct Job {
    models: Models,
    compute: Compute,
    plans: Vec<Plans>,
}

/// The pictures of a way.
struct Made {
    way: Way,
    /// By prompts, and by seeds within them.
    pictures: Vec<Picture>,
}

/// What all ways have in common.
struct Session<'a> {
    engine: Engine,
    cancel: Cancel,
    ui: &'a Ui,
    /// What the demo model's rules read in each prompt.
    scenes: Vec<Option<Scene>>,
    seeds: usize,
    output: Option<PathBuf>,
    /// Notes and warnings that the user has seen.
    said: BTreeSet<String>,
}

pub(crate) fn run(args: &QualityArgs, ui: &Ui) -> anyhow::Result<()> {
    if let (Some(json), Some(prompts)) = (&args.json, &args.prompts)
        && json
            .canonicalize()
            .is_ok_and(|json| prompts.canonicalize().is_ok_and(|p| p == json))
    {
        bail!("--json {}: these are the prompts", json.display());
    }
    let json = args.json.as_deref().map(Destination::find).transpose()?;
    if let Some(instructions) = args.instructions {
        instructions.limit();
    }
    let jobs = args.jobs()?;
    let [reference, variants @ ..] = &*jobs else {
        bail!("there is no reference");
    };
    let options = EngineOptions {
        library: args.lib.clone(),
        threads: args.threads,
        ..EngineOptions::default()
    };
    let engine = Engine::start(&options)?;
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    if let Some(output) = &args.output {
        create(output)?;
    }
    let first = reference.first()?;
    let mut session = Session {
        engine,
        cancel,
        ui,
        scenes: scenes(reference, first),
        seeds: usize::from(args.seeds.get()),
        output: args.output.clone(),
        said: BTreeSet::new(),
    };
    let bar = ui.steps("denoising", (jobs.len() * reference.calls()) as u64);
    let original = session.make(reference, 0, &bar)?;
    let seeds = reference.plans.iter().take(1).flat_map(|p| &p.plans);
    let mut quality = Quality {
        prompts: reference
            .prompts()
            .map(|plan| plan.prompt.clone())
            .collect(),
        seeds: seeds.map(|plan| plan.seed).collect(),
        sampler: first.sampler.name.to_owned(),
        steps: first.steps,
        guidance_scale: first.guidance_scale,
        reference: original.way,
        variants: Vec::new(),
    };
    let report = |session: &Session<'_>, quality: &Quality| {
        let figures = Figures::Quality(quality.clone());
        Report::new(&session.engine, &reference.models, first.size, figures)
    };
    for (number, job) in (1..).zip(variants) {
        let made = session.make(job, number, &bar)?;
        let variant = session.compare(made, &original.pictures, &quality.seeds)?;
        quality.variants.push(variant);
        session.write(&report(&session, &quality), &quality)?;
    }
    drop(bar);
    let report = report(&session, &quality);
    if let Some(to) = &json {
        let text = format!("{}\n", serde_json::to_string(&report)?);
        to.write(text.as_bytes(), &session.cancel)?;
    }
    let text = table(&report, &quality);
    match &args.json {
        Some(to) => ui.written(to, text)?,
        None => ui.result(text)?,
    }
    if let Some(output) = &args.output {
        let page = output.join(page::FILE);
        ui.note(format!("{} shows the pictures", page.display()));
    }
    Ok(())
}

impl QualityArgs {
    /// The reference, then its variants; everything is checked.
    fn jobs(&self) -> anyhow::Result<Vec<Job>> {
        let is_reference = |compute: &Compute| *compute == Compute::F32;
        if self.against.is_empty() && self.compute.iter().all(is_reference) {
            let text = "nothing to compare: `--against DIR` names another model directory, `--compute i16,bf16` other ways of computing";
            return Err(UsageError(text.to_owned()).into());
        }
        if let Some(output) = &self.output {
            check_free(output)?;
        }
        let base = ModelDir::open(&self.model)?;
        let prompts = prompts::read(self.prompts.as_deref(), &base)?;
        let mut request = Request {
            width: self.size,
            height: self.size,
            steps: self.steps,
            guidance_scale: self.cfg,
            batch: usize::from(self.seeds.get()),
            ..Request::default()
        };
        let reference = Job::new(base, Compute::F32, &prompts, &request)?;
        // Defaults are the reference's.
        let plan = reference.first()?;
        request.steps = Some(plan.steps);
        request.guidance_scale = Some(plan.guidance_scale);
        [request.width, request.height] = plan.size.map(Some);
        let of_reference = self.compute.iter().filter(|compute| !is_reference(compute));
        let mut wanted: Vec<_> = of_reference
            .map(|&compute| (&self.model, compute))
            .collect();
        for path in &self.against {
            wanted.extend(self.compute.iter().map(|&compute| (path, compute)));
        }
        let mut jobs = vec![reference];
        for (path, compute) in wanted {
            let job = Job::new(ModelDir::open(path)?, compute, &prompts, &request)?;
            jobs[0].check_like(&job)?;
            jobs.push(job);
        }
        Ok(jobs)
    }
}

impl Job {
    fn new(
        model: ModelDir,
        compute: Compute,
        prompts: &[String],
        request: &Request,
    ) -> anyhow::Result<Self> {
        // Whether the processor and the directory have it.
        model.key("unet", &[], Ep::Cpu, (Dialect::Auto, compute))?;
        let models = Models::one(model);
        let plan = |prompt: &String| {
            let request = Request {
                prompt: prompt.clone(),
                compute,
                ..request.clone()
            };
            Plans::resolve(&request, &models, memory::limit())
        };
        let plans = prompts.iter().map(plan).collect::<Result<_, _>>()?;
        Ok(Self {
            models,
            compute,
            plans,
        })
    }

    /// Model calls of all pictures.
    fn calls(&self) -> usize {
        self.plans.iter().map(|plans| calls(&plans.plans)).sum()
    }

    /// The first plan of every prompt.
    fn prompts(&self) -> impl Iterator<Item = &Plan> {
        self.plans.iter().filter_map(|plans| plans.plans.first())
    }

    fn first(&self) -> anyhow::Result<&Plan> {
        self.prompts().next().context("prompts have pictures")
    }

    /// Refuses another model, whose pictures would be others anyway.
    fn check_like(&self, other: &Self) -> anyhow::Result<()> {
        let [expected, found] = [self, other].map(|job| &job.models.base);
        let family = |model: &ModelDir| model.family.to_string();
        let latent = |model: &ModelDir| {
            let (channels, downscale) = (model.latent.channels, model.latent.downscale);
            format!("{channels} channels of 1/{downscale} of the size")
        };
        let solver = |job: &Self| Ok::<_, anyhow::Error>(job.first()?.sampler.name.to_owned());
        for (what, expected, found) in [
            ("family", family(expected), family(found)),
            ("latent space", latent(expected), latent(found)),
            ("sampler", solver(self)?, solver(other)?),
        ] {
            if expected != found {
                let [base, path] = [self, other].map(|job| job.models.base.path.display());
                bail!(
                    "{path}: it is no variant of {base}: its {what} is {found}; expected {expected}"
                );
            }
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Makes the pictures of job `number`, and writes them if they are wanted.
    fn make(&mut self, job: &Job, number: usize, bar: &Bar) -> anyhow::Result<Made> {
        let folder = format!("{}/{number}-{}", page::PICTURES, job.compute.name());
        if let Some(output) = &self.output {
            create(&output.join(&folder))?;
        }
        // Networks stay from prompt to prompt, in half of the memory that is left; those of the job before go.
        let pool = self.engine.pool();
        pool.set_budget(0);
        let needed = job.plans.iter().map(|plans| plans.memory.total).max();
        pool.set_budget(memory::limit().saturating_sub(needed.unwrap_or(0)) / 2);
        let (mut pictures, mut seconds) = (Vec::new(), Vec::new());
        let (mut graph, mut compute) = ("none", job.compute.name());
        let mut done = number * job.calls();
        for (prompt, plans) in job.plans.iter().enumerate() {
            let each = calls(&plans.plans) / plans.plans.len().max(1);
            let (said, ui) = (&mut self.said, self.ui);
            let mut follow = |event: Event<'_>| match event {
                Event::Called { picture, calls } => bar.set((done + picture * each + calls) as u64),
                Event::Note(text) if said.insert(text.to_owned()) => ui.note(text),
                Event::Warning(text) if said.insert(text.to_owned()) => ui.warn(text),
                Event::Stage(_) | Event::Preview { .. } | Event::Note(_) | Event::Warning(_) => {}
            };
            let start = Instant::now();
            let (models, engine) = (&job.models, &self.engine);
            let outcome = make(plans, models, engine, &self.cancel, &mut follow, None)?;
            seconds.push(start.elapsed().as_secs_f64() / plans.plans.len().max(1) as f64);
            done += calls(&plans.plans);
            (graph, compute) = (outcome.graph, outcome.compute.name());
            for (i, (picture, plan)) in outcome.pictures.iter().zip(&plans.plans).enumerate() {
                let name = page::file(&folder, prompt, plan.seed);
                let infotext = plan.infotext.with(&outcome.settings(i)).to_string();
                self.keep(picture, &name, &infotext)?;
            }
            pictures.extend(outcome.pictures);
        }
        let way = Way {
            model: job.models.base.path.clone(),
            compute: compute.to_owned(),
            graph: graph.to_owned(),
            seconds_per_picture: Spread::of(seconds).median.unwrap_or_default(),
            hits: self.hits(&pictures),
            folder: self.output.is_some().then_some(folder),
        };
        Ok(Made { way, pictures })
    }

    /// Writes a picture into the folder, if there is one.
    fn keep(&self, picture: &Picture, name: &str, infotext: &str) -> anyhow::Result<()> {
        if let Some(output) = &self.output {
            let to = Destination::find(&output.join(name))?;
            picture.write(&to, Format::Png, infotext, &self.cancel)?;
        }
        Ok(())
    }

    /// How many pictures show what their prompts ask for, in the eyes of the demo model's rules.
    fn hits(&self, pictures: &[Picture]) -> Option<Hits> {
        let of_prompts = self.scenes.iter().zip(pictures.chunks(self.seeds));
        let judge = |(scene, pictures): (&Option<Scene>, &[Picture])| -> Vec<Verdict> {
            let all = scene
                .iter()
                .flat_map(|scene| pictures.iter().map(|p| scene.judge(p)));
            all.collect()
        };
        let verdicts: Vec<Verdict> = of_prompts.flat_map(judge).collect();
        let share = |is_hit: fn(&Verdict) -> bool| {
            let hits = verdicts.iter().filter(|verdict| is_hit(verdict));
            100.0 * hits.count() as f64 / verdicts.len() as f64
        };
        (!verdicts.is_empty()).then(|| Hits {
            judged: verdicts.len(),
            background_percent: share(|verdict| verdict.background),
            colour_percent: share(|verdict| verdict.colour),
            shape_percent: share(|verdict| verdict.shape),
            position_percent: share(|verdict| verdict.position),
            size_percent: share(|verdict| verdict.size),
        })
    }

    /// Compares pictures with the reference's.
    fn compare(&self, made: Made, original: &[Picture], seeds: &[u64]) -> anyhow::Result<Variant> {
        let Made { way, pictures } = made;
        let mut pairs = Vec::new();
        for (i, (picture, original)) in pictures.iter().zip(original).enumerate() {
            let (prompt, seed) = (i / seeds.len(), seeds[i % seeds.len()]);
            if let Some(folder) = &way.folder {
                let difference = compare::amplified(original, picture, AMPLIFIED);
                self.keep(&difference, &page::difference(folder, prompt, seed), "")?;
            }
            let difference = Difference::of(original, picture);
            pairs.push(Pair {
                prompt,
                seed,
                difference,
            });
        }
        let psnrs = || pairs.iter().filter_map(|pair| pair.difference.psnr_db);
        let ssims = || pairs.iter().map(|pair| pair.difference.ssim);
        let offs = pairs.iter().map(|pair| pair.difference.off_percent);
        let (count, unequal) = (pairs.len() as f64, psnrs().count());
        Ok(Variant {
            way,
            equal: pairs.len() - unequal,
            psnr_mean_db: (unequal > 0).then(|| psnrs().sum::<f64>() / unequal as f64),
            psnr_worst_db: psnrs().reduce(f64::min),
            ssim_mean: ssims().sum::<f64>() / count,
            ssim_worst: ssims().fold(1.0, f64::min),
            off_percent: offs.sum::<f64>() / count,
            pictures: pairs,
        })
    }

    /// Writes the report as far as it goes into the folder, if there is one. Its pictures are there.
    fn write(&self, report: &Report, quality: &Quality) -> anyhow::Result<()> {
        let Some(output) = &self.output else {
            return Ok(());
        };
        let page = page::html(report, quality, output)?;
        let json = format!("{}\n", serde_json::to_string(report)?);
        for (name, text) in [(page::FILE, page), ("report.json", json)] {
            Destination::find(&output.join(name))?.write(text.as_bytes(), &self.cancel)?;
        }
        Ok(())
    }
}

/// Model calls of plans; those that decide by themselves count as one.
fn calls(plans: &[Plan]) -> usize {
    plans.iter().map(|plan| plan.calls.unwrap_or(1)).sum()
}

/// What the demo model's rules read in prompts; nothing of other models and sizes.
fn scenes(job: &Job, first: &Plan) -> Vec<Option<Scene>> {
    let can_judge = prompts::is_demo(&job.models.base) && first.size == [shapes::SIZE; 2];
    let read = |plan: &Plan| Scene::read(&plan.prompt).filter(|_| can_judge);
    job.prompts().map(read).collect()
}

/// Refuses a folder that holds something.
fn check_free(folder: &Path) -> anyhow::Result<()> {
    let mut content = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        content => content.with_context(|| format!("cannot write to {}", folder.display()))?,
    };
    if content.next().is_some() {
        bail!(
            "{}: it exists and is not empty; give the name of a new folder",
            folder.display()
        );
    }
    Ok(())
}

fn create(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// The figures as a table in Markdown.
fn table(report: &Report, quality: &Quality) -> String {
    let (prompts, seeds) = (quality.prompts.len(), quality.seeds.len());
    let mut text = format!(
        "{prompts} prompts x {seeds} seeds, {}x{} pixels, {} with {} steps\n{}, {}, {} threads\n\n",
        report.size[0],
        report.size[1],
        quality.sampler,
        quality.steps,
        report.processor,
        report.instructions,
        report.threads,
    );
    text.push_str(&markdown_table(&page::rows(quality)));
    text
}
