//! `sdrun batch`: many pictures from a file or a stream of jobs.
//!
//! A thread reads lines and puts jobs into the scheduler's queue (`feed.rs`). Whoever makes a job's pictures writes them, too.
//! Everything else happens in one loop (`follow.rs`).

mod check;
mod feed;
mod follow;
mod line;
mod once;
mod progress;
mod results;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, anyhow, bail};
use sd_kernels::Isa;
use sd_runtime::engine::measured::Case;
use sd_runtime::engine::memory;
use sd_runtime::jobs::{Options, Pins, Scheduler};
use sd_runtime::noise::texture::Texture;
use sd_runtime::pipeline::{ModelDir, Models, Request, VaeApprox};
use sd_runtime::sensors::{Sensors, Shares};
use sd_ui::{Interrupted, Ui};

use self::check::{Checker, Earlier, Item, NumberedLine, read_all, refuse_broken};
use self::feed::{Feeder, LastWord, Message};
use self::follow::{Batch, Computing};
use self::line::SCHEMA;
use self::progress::Progress;
use self::results::Results;
use self::workers::{Workers, workers};
use super::{CeilingArgs, EngineArgs};
use crate::{auto, demo_model, embeddings};

/// Jobs that wait in memory. More of a file or a stream are read when there is room.
const WAITING: usize = 256;

/// Names of standard input.
const STDIN: [&str; 4] = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

const EXAMPLES: &str = r#"Examples:
  sdrun batch jobs.jsonl -m my-model -o pictures
      jobs.jsonl has lines such as
      {"prompt": "a lighthouse at dusk", "seed": 1, "steps": 20}
      {"id": "cat", "prompt": "a cat", "sampler": "DPM++ 2M", "spread": "karras", "batch": 4}
  generate-prompts | sdrun batch - -m my-model -o pictures --keep-going
      a job begins as soon as its line is there; a result is one line of JSON on standard output
  sdrun batch --schema
      every field of a line, with its range, in JSON Schema

Called again, the command makes what is missing. Exit codes: 0 done, 1 a job failed, 2 wrong usage, 130 interrupted."#;

/// Make many pictures, from a file or a stream with one job per line
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BatchArgs {
    /// Jobs: a JSON object per line, whose fields `--schema` prints; - is standard input, whose jobs begin as they come
    #[arg(value_name = "JOBS", required_unless_present = "schema")]
    jobs: Option<PathBuf>,
    /// Folder for the pictures, and for `results.jsonl`, by which a batch that was ended goes on
    #[arg(short, long, value_name = "DIR", required_unless_present = "schema")]
    output: Option<PathBuf>,
    /// Model directory, as `sdconvert build` writes it; the demo model if left out
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Model directory that ends every picture: SDXL's refiner, or another model of the same family
    #[arg(long, value_name = "DIR")]
    refiner: Option<PathBuf>,
    /// Directory that `sdconvert build` made of a TAESD file: decodes the pictures, less exactly than the model's own
    /// VAE and with an 18th of its arithmetic
    #[arg(long, value_name = "DIR")]
    vae_approx: Option<PathBuf>,
    /// Folder with textual inversions (.pt, .bin, .safetensors), which prompts call by the names of their files; repeat for several
    #[arg(long, value_name = "DIR")]
    embeddings: Vec<PathBuf>,
    /// How many pictures are computed at the same time, each with its part of the threads; auto measures once for a model and size
    /// which number is fastest, if there are enough jobs
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    workers: Workers,
    /// Memory that all jobs may take together, such as 8GB or 500MiB; all that there is if left out
    #[arg(long, value_name = "SIZE")]
    max_ram: Option<Size>,
    /// Give each worker processors of its own, cores before hyperthreads
    #[arg(long)]
    pin: bool,
    /// Go on after lines that are wrong and jobs that fail
    #[arg(long)]
    keep_going: bool,
    /// Print the JSON Schema of a line, and do nothing else
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    ceiling: CeilingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, f64); 8] = [
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("TiB", 1_099_511_627_776.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
        ];
        let number = |(unit, factor): (&str, f64)| {
            let (number, end) = text.split_at_checked(text.len().checked_sub(unit.len())?)?;
            let number: f64 = number.trim().parse().ok()?;
            let bytes = number * factor;
            (end.eq_ignore_ascii_case(unit) && bytes.is_finite() && bytes > 0.0)
                .then_some(Self(bytes as u64))
        };
        let size = UNITS.into_iter().find_map(number);
        size.ok_or_else(|| "expected a size with its unit, such as 8GB or 500MiB".to_owned())
    }
}

pub(crate) fn run(args: &BatchArgs, ui: &Ui) -> anyhow::Result<()> {
    let (jobs, folder) = match (&args.jobs, &args.output) {
        (Some(jobs), Some(folder)) if !args.schema => (jobs, folder),
        _ => return Ok(ui.result(SCHEMA)?),
    };
    let ceiling = args.ceiling.ceiling()?.map(Arc::new);
    let pins = args.pin.then(Pins::find).transpose().context("--pin")?;
    let is_stream = STDIN.iter().any(|name| jobs == Path::new(name));
    let lines = match is_stream {
        true => Vec::new(),
        false => read_all(jobs, ui)?,
    };
    let models = Arc::new(models(args, ui)?);
    let folders = models.all().map(|model| &model.path);
    let folders = folders.chain(models.vae_approx.as_ref().map(|approx| &approx.path));
    let hashes = folders.map(|path| Case::model(path));
    let mut checker = Checker {
        hashes: hashes.collect::<Result<_, _>>()?,
        models: Arc::clone(&models),
        limit: args
            .max_ram
            .map_or(u64::MAX, |size| size.0)
            .min(memory::limit()),
        engine: args.engine.clone(),
        folder: folder.clone(),
        earlier: Earlier::of(Results::read(folder)?),
        files: BTreeSet::new(),
    };
    let (items, first) = look(args, &mut checker, lines, jobs, ui)?;

    // From here on, something is written.
    let results = Results::open(folder)?;
    checker.earlier = Earlier::of(results.made().clone());
    let engine = checker.engine.start(ui)?;
    let options = Options {
        workers: workers(args.workers, &engine, &checker, &first, &items, ui)?,
        memory: checker.limit,
        capacity: WAITING,
        ceiling,
        pins,
    };
    let scheduler = Arc::new(Scheduler::start(&engine, &models, options));
    let (tell, told) = channel();
    let on_interrupt = (scheduler.stop(), tell.clone());
    ui.on_interrupt(move || {
        on_interrupt.0.all();
        // Nobody listens when all is done.
        let _ = on_interrupt.1.send(Message::Interrupted);
    });
    let mut progress = Progress::new(ui);
    for (pictures, work) in items.iter().filter_map(Item::open) {
        progress.more(pictures, work);
    }
    let feeder = Feeder {
        scheduler: Arc::clone(&scheduler),
        folder: folder.clone(),
        keep_going: args.keep_going,
        shares: Shares::new(&Sensors::default()),
        tell: tell.clone(),
    };
    let mut end = LastWord {
        tell,
        word: Some(Message::End(Err(anyhow!(
            "a mistake in this program ended the reading of jobs"
        )))),
    };
    // It is not waited for: reading from a stream cannot be ended.
    thread::spawn(move || {
        let submitted = match is_stream {
            false => Ok(feeder.feed(items, &checker)),
            true => feeder.stream(io::stdin().lock(), &mut checker),
        };
        end.be(Message::End(submitted));
    });
    let mut batch = Batch {
        ui,
        results,
        jobs: BTreeMap::new(),
        computing: Computing {
            ep: engine.ep().name(),
            plugin: engine.plugin().map(str::to_owned),
            instructions: Isa::detect().name(),
        },
        progress,
        keep_going: args.keep_going,
        failed: 0,
        has_earlier: false,
        is_read: true,
        noted: BTreeSet::new(),
    };
    let outcome = batch.follow(&told, &scheduler.stop());
    scheduler.finish();
    // What was finished meanwhile is not lost.
    let rest = told.try_iter();
    rest.fold(outcome, |outcome, message| {
        let heard = batch.hear(message);
        outcome.and(heard)
    })?;
    if ui.interrupted() {
        return Err(Interrupted.into());
    }
    ended(&batch, jobs, ui)
}

/// What became of a batch.
fn ended(batch: &Batch<'_>, jobs: &Path, ui: &Ui) -> anyhow::Result<()> {
    match batch.failed {
        0 if batch.is_empty() => {
            ui.warn(format!("{}: there are no jobs in it", jobs.display()));
            Ok(())
        }
        0 => Ok(()),
        1 => bail!("a job failed"),
        failed => bail!("{failed} jobs failed"),
    }
}

/// What the lines of a file ask for, and a request like those that are open, by which is measured. Wrong lines are refused unless they
/// shall be left out.
fn look(
    args: &BatchArgs,
    checker: &mut Checker,
    lines: Vec<NumberedLine>,
    jobs: &Path,
    ui: &Ui,
) -> anyhow::Result<(Vec<Item>, Request)> {
    let mut items = Vec::new();
    for (number, text) in lines {
        items.push(checker.read(number, text));
        if ui.interrupted() {
            return Err(Interrupted.into());
        }
    }
    if !args.keep_going {
        refuse_broken(&items, jobs)?;
    }
    // Files of noise take no time.
    let first = Request {
        initial_noise: None,
        noise: Texture::default(),
        ..items
            .iter()
            .find_map(Item::request)
            .cloned()
            .unwrap_or_default()
    };
    (checker.engine, _) = auto::resolve(&args.engine, &first, &checker.models, ui)?;
    // Which graphs run depends on them.
    checker.engine.limit_instructions();
    let items = items.into_iter().map(|it| match ui.interrupted() {
        true => Err(Interrupted),
        false => Ok(checker.compare(it)),
    });
    let items: Vec<Item> = items.collect::<Result<_, _>>()?;
    if !args.keep_going {
        refuse_broken(&items, jobs)?;
    }
    Ok((items, first))
}

/// The models that all jobs are made with.
fn models(args: &BatchArgs, ui: &Ui) -> anyhow::Result<Models> {
    let model = match &args.model {
        Some(path) => ModelDir::open(path)?,
        None => demo_model::directory(ui)?,
    };
    Ok(Models {
        refiner: args.refiner.as_deref().map(ModelDir::open).transpose()?,
        vae_approx: args
            .vae_approx
            .as_deref()
            .map(VaeApprox::open)
            .transpose()?,
        embeddings: embeddings::of(&args.embeddings, &model)?,
        base: model,
    })
}
