//! `sdrun batch`: many pictures from a file or a stream of jobs.
//!
//! A thread reads lines and puts jobs into the scheduler's queue. Whoever makes a job's pictures writes them, too. Everything else
//! happens in one loop (`follow`): results are recorded and printed, progress is shown.

mod line;
mod progress;
mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use sd_runtime::engine::measured::{self, Case};
use sd_runtime::engine::{Cancel, Engine, Ep, memory};
use sd_runtime::jobs::{Follow, Job, JobError, Made, News, Options, Scheduler, Stop, split};
use sd_runtime::noise::texture::Texture;
use sd_runtime::pipeline::infotext::Settings;
use sd_runtime::pipeline::{
    Destination, Event, Format, ModelDir, Models, PictureFile, PipelineError, Plans, Request, Stage,
};
use sd_ui::{Interrupted, Ui, UsageError};

use self::line::{Line, SCHEMA, next_line};
use self::progress::Progress;
use self::results::{Image, Record, Results, Status};
use super::{EngineArgs, cancel_with};
use crate::{auto, demo_model, embeddings, hint};

/// Jobs that wait in memory. More of a file or a stream are read when there is room.
const WAITING: usize = 256;

/// So many jobs are worth finding out how many workers are fastest, which takes as long as a few.
const WORTH_MEASURING: usize = 12;

/// Names of standard input.
const STDIN: [&str; 4] = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// Broken lines that are named.
const NAMED: usize = 10;

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
    /// Go on after lines that are wrong and jobs that fail
    #[arg(long)]
    keep_going: bool,
    /// Print the JSON Schema of a line, and do nothing else
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What `--workers` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workers {
    /// The fastest number.
    Auto,
    /// This one.
    Number(NonZero<usize>),
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            text => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "expected auto, or a number from 1 on".to_owned()),
        }
    }
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
    let is_stream = STDIN.iter().any(|name| jobs == Path::new(name));
    let lines = match is_stream {
        true => Vec::new(),
        false => read_all(jobs)?,
    };
    let models = Arc::new(models(args, ui)?);
    let hashes = models.all().map(|model| Case::model(&model.path));
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
    checker.earlier = Earlier::of(results.done().clone());
    let engine = checker.engine.start(ui)?;
    let options = Options {
        workers: workers(args, &engine, &checker, &first, &items, ui)?,
        memory: checker.limit,
        capacity: WAITING,
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
    for item in &items {
        if let Item::Open { line, work } = item {
            progress.more(line.request.batch, *work);
        }
    }
    let feeder = Feeder {
        scheduler: Arc::clone(&scheduler),
        folder: folder.clone(),
        keep_going: args.keep_going,
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
        progress,
        keep_going: args.keep_going,
        failed: 0,
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
    match batch.failed {
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
    lines: Vec<(usize, Result<String, String>)>,
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
    let items: Vec<Item> = items.into_iter().map(|it| checker.compare(it)).collect();
    if !args.keep_going {
        refuse_broken(&items, jobs)?;
    }
    Ok((items, first))
}

/// How many workers there are.
fn workers(
    args: &BatchArgs,
    engine: &Engine,
    checker: &Checker,
    first: &Request,
    items: &[Item],
    ui: &Ui,
) -> anyhow::Result<NonZero<usize>> {
    let Workers::Number(workers) = args.workers else {
        let open = items.iter().filter_map(Item::request).count();
        let found = fastest(engine, checker, first, open, ui);
        if found.is_err() && ui.interrupted() {
            return Err(Interrupted.into());
        }
        return Ok(found.unwrap_or_else(|e| {
            ui.warn(format!(
                "one at a time: which number of workers is fastest cannot be measured: {e:#}"
            ));
            NonZero::<usize>::MIN
        }));
    };
    Ok(at_most(workers, engine.threads(), ui))
}

fn models(args: &BatchArgs, ui: &Ui) -> anyhow::Result<Models> {
    let model = match &args.model {
        Some(path) => ModelDir::open(path)?,
        None => demo_model::directory(ui)?,
    };
    Ok(Models {
        refiner: args.refiner.as_deref().map(ModelDir::open).transpose()?,
        embeddings: embeddings::of(&args.embeddings, &model)?,
        base: model,
    })
}

/// So many workers, or as many as there are threads.
fn at_most(workers: NonZero<usize>, threads: usize, ui: &Ui) -> NonZero<usize> {
    let most = NonZero::new(threads).map_or(workers, |threads| workers.min(threads));
    if most < workers {
        ui.note(format!(
            "--workers {workers}: there are {threads} threads, so there are {threads} workers"
        ));
    }
    most
}

/// The number of workers that makes pictures like the request's fastest: as it was measured before, or as it is measured now if there
/// are jobs enough.
fn fastest(
    engine: &Engine,
    checker: &Checker,
    request: &Request,
    jobs: usize,
    ui: &Ui,
) -> anyhow::Result<NonZero<usize>> {
    let one = NonZero::<usize>::MIN;
    // Other providers have no use for the processors' threads.
    if engine.threads() == 1 || !matches!(engine.ep(), Ep::Cpu | Ep::OpenVino) {
        return Ok(one);
    }
    let plans = checker.plans(request)?;
    let (Some(plan), Some(hash)) = (plans.plans.first(), checker.hashes.first()) else {
        return Ok(one);
    };
    let candidates = split::candidates(
        engine.threads(),
        plans.memory_with(engine.ep(), &checker.models),
        checker.limit,
    );
    let record = measured::Record::of_workers();
    let library = engine.library();
    let model = (hash.as_str(), plan.size);
    let case = auto::case(&checker.engine, request, model, engine.ep(), library);
    let find = || split::known(&record, &case, &candidates);
    let (cancel, mut known, mut turn) = (cancel_with(ui), find(), None);
    if known.is_none() && jobs < WORTH_MEASURING {
        return Ok(one);
    }
    if known.is_none() {
        turn = auto::wait_for_turn(&record, &cancel, |text| ui.note(text))?;
        known = find();
    }
    let measured = match known {
        Some(known) => known,
        None => {
            let [width, height] = plan.size;
            ui.note(format!(
                "measuring how many workers are fastest, once for this model and {width}x{height} .."
            ));
            let to = (&record, &case);
            split::measure(engine, &checker.models, request, &candidates, to, &cancel)?
        }
    };
    drop(turn);
    let calls = plan.calls.unwrap_or(plan.steps);
    let rates = measured.iter().map(|(workers, seconds)| {
        let rate = 3600.0 * split::rate(*workers, seconds, calls);
        format!("{workers}: {rate:.0} an hour")
    });
    let rates: Vec<String> = rates.collect();
    let workers = split::best(&measured, calls).unwrap_or(one);
    ui.note(format!("{workers} at a time ({})", rates.join(", ")));
    Ok(workers)
}

/// Lines of a file that are not empty, with their numbers.
fn read_all(path: &Path) -> anyhow::Result<Vec<(usize, Result<String, String>)>> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = BufReader::new(File::open(path).with_context(failed)?);
    let mut lines = Vec::new();
    for number in 1.. {
        match next_line(&mut file).with_context(failed)? {
            Some(Ok(text)) if text.is_empty() => {}
            Some(line) => lines.push((number, line)),
            None => break,
        }
    }
    Ok(lines)
}

/// Wrong lines are wrong usage, as long as nothing was made.
fn refuse_broken(items: &[Item], jobs: &Path) -> Result<(), UsageError> {
    let broken = items.iter().filter_map(|item| match item {
        Item::Broken { line, problem } => Some(format!("line {line}: {problem}")),
        _ => None,
    });
    let mut broken: Vec<String> = broken.collect();
    if broken.is_empty() {
        return Ok(());
    }
    if broken.len() > NAMED {
        let more = format!("and {} lines more", broken.len() - NAMED);
        broken.splice(NAMED.., [more]);
    }
    Err(UsageError(format!(
        "{}: {}\nhint: `--keep-going` leaves such lines out",
        jobs.display(),
        broken.join("\n  ")
    )))
}

/// What a line asks for.
enum Item {
    /// Pictures that have to be made.
    Open { line: Box<Line>, work: u64 },
    /// Those that an earlier run made.
    Done(Box<Record>),
    /// Nothing that can be done.
    Broken { line: usize, problem: String },
}

impl Item {
    fn request(&self) -> Option<&Request> {
        match self {
            Self::Open { line, .. } => Some(&line.request),
            _ => None,
        }
    }
}

/// What earlier runs made.
struct Earlier {
    /// By the names of the jobs.
    done: BTreeMap<String, Record>,
    /// Names of jobs by those of their pictures.
    pictures: BTreeMap<String, String>,
}

impl Earlier {
    fn of(done: BTreeMap<String, Record>) -> Self {
        let images = done
            .values()
            .flat_map(|record| record.images.iter().map(|image| (image, &record.job)));
        let pictures = images.map(|(image, job)| (image.file.clone(), job.clone()));
        Self {
            pictures: pictures.collect(),
            done,
        }
    }
}

/// Looks at lines before anything is computed.
struct Checker {
    models: Arc<Models>,
    hashes: Vec<String>,
    /// Bytes of memory.
    limit: u64,
    engine: EngineArgs,
    /// Where pictures go.
    folder: PathBuf,
    earlier: Earlier,
    /// Pictures of all lines so far.
    files: BTreeSet<String>,
}

impl Checker {
    /// A line: what it asks for, whatever earlier runs made.
    fn read(&mut self, number: usize, text: Result<String, String>) -> Item {
        self.try_read(number, text)
            .unwrap_or_else(|problem| Item::Broken {
                line: number,
                problem,
            })
    }

    fn try_read(&mut self, number: usize, text: Result<String, String>) -> Result<Item, String> {
        let mut line = Line::read(&text?, number)?;
        self.engine.apply(&mut line.request).map_err(|e| said(&e))?;
        let work = match self.plans(&line.request) {
            Ok(plans) => plans.work(),
            // The line is right; its job fails, or finds the file when its turn comes.
            Err(e) if is_of_file(&e) => 0,
            Err(e) => return Err(said(&e)),
        };
        for file in line.files() {
            if !self.files.insert(file.clone()) {
                return Err(format!("another line has pictures called {file}, too"));
            }
        }
        let line = Box::new(line);
        Ok(Item::Open { line, work })
    }

    /// What is left of it. The provider is known now, and with it the numbers that are computed with.
    fn compare(&self, item: Item) -> Item {
        let Item::Open { mut line, work } = item else {
            return item;
        };
        match self.made(&mut line) {
            Ok(None) => Item::Open { line, work },
            Ok(Some(record)) => Item::Done(Box::new(record)),
            Err(problem) => Item::Broken {
                line: line.number,
                problem,
            },
        }
    }

    /// What an earlier run made of a line.
    fn made(&self, line: &mut Line) -> Result<Option<Record>, String> {
        self.engine.apply(&mut line.request).map_err(|e| said(&e))?;
        for file in line.files() {
            let owner = self.earlier.pictures.get(&file);
            if let Some(owner) = owner.filter(|owner| **owner != line.name) {
                return Err(format!(
                    "job {owner} of an earlier run has a picture called {file}; give another folder or `id`"
                ));
            }
        }
        let Some(known) = self.earlier.done.get(&line.name) else {
            for file in line.files() {
                let path = self.folder.join(file);
                if !may_replace(&path, &line.request) {
                    return Err(format!(
                        "{} is there, and is not this job's; move it away, or give another folder or `id`",
                        path.display()
                    ));
                }
            }
            return Ok(None);
        };
        if known.request.as_ref() != Some(&line.request) || known.models != self.hashes {
            return Err(format!(
                "job {} was made from another request or model in an earlier run; give another folder or an `id`",
                line.name
            ));
        }
        Ok(Some(Record {
            line: line.number,
            earlier: true,
            ..known.clone()
        }))
    }

    fn plans(&self, request: &Request) -> Result<Plans, PipelineError> {
        Plans::resolve(request, &self.models, self.limit)
    }
}

/// Whether nothing is lost if a picture is written there: nothing is there, an empty file, or a picture of the same prompt, which a run
/// made that was killed before it recorded it.
fn may_replace(path: &Path, request: &Request) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return true;
    };
    let is_of_request = || {
        let picture = PictureFile::open(path).ok()?;
        let settings = Settings::read(&picture.parameters).ok()?;
        Some(settings.request.prompt == request.prompt)
    };
    found.is_file() && (found.len() == 0 || is_of_request() == Some(true))
}

/// Whether a request cannot be planned because of a file that it names.
fn is_of_file(error: &PipelineError) -> bool {
    matches!(
        error,
        PipelineError::Read { .. } | PipelineError::Texture(_) | PipelineError::InitNoise { .. }
    )
}

/// An error and what can be done about it, in one line.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    match hint::hint(error) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// What happens to a batch.
enum Message {
    /// A line of a stream was read.
    Read { pictures: usize, work: u64 },
    /// An earlier run made it.
    Earlier(Box<Record>),
    /// A line is wrong.
    Broken { line: usize, problem: String },
    /// So much of a job's work is done.
    Called { job: usize, work: u64 },
    /// Good to know.
    Note {
        job: String,
        text: String,
        is_warning: bool,
    },
    /// A job's pictures are there, or it failed.
    Ended { record: Box<Record>, work: u64 },
    /// Nothing can be written any more.
    Unwritable(PipelineError),
    /// A job was ended before it was done.
    Cancelled,
    /// There are no more lines; so many jobs were begun.
    End(anyhow::Result<usize>),
    /// The user wants to stop.
    Interrupted,
}

/// What is said when it is dropped, so that nobody waits for ever for a thread with a mistake.
struct LastWord {
    tell: Sender<Message>,
    word: Option<Message>,
}

impl LastWord {
    fn be(&mut self, word: Message) {
        self.word = Some(word);
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(word) = self.word.take() {
            // Nobody listens when the batch has been ended.
            let _ = self.tell.send(word);
        }
    }
}

/// Puts jobs into the queue.
struct Feeder {
    scheduler: Arc<Scheduler>,
    folder: PathBuf,
    keep_going: bool,
    tell: Sender<Message>,
}

impl Feeder {
    /// The lines of a stream, as they come: how many jobs were begun.
    fn stream(&self, mut from: impl BufRead, checker: &mut Checker) -> anyhow::Result<usize> {
        let mut submitted = 0;
        for number in 1.. {
            let item = match next_line(&mut from).context("cannot read standard input")? {
                Some(Ok(text)) if text.is_empty() => continue,
                Some(text) => checker.read(number, text),
                None => break,
            };
            let item = checker.compare(item);
            if let Item::Open { line, work } = &item {
                let pictures = line.request.batch;
                self.say(Message::Read {
                    pictures,
                    work: *work,
                });
            }
            match self.put(item, checker) {
                Some(jobs) => submitted += jobs,
                None => break,
            }
        }
        Ok(submitted)
    }

    /// The lines of a file, which were looked at already: how many jobs were begun.
    fn feed(&self, items: Vec<Item>, checker: &Checker) -> usize {
        let items = items.into_iter();
        items.map_while(|item| self.put(item, checker)).sum()
    }

    fn say(&self, message: Message) {
        // Nobody listens when the batch has been ended.
        let _ = self.tell.send(message);
    }

    /// Does what a line asks for: how many jobs that is, or none if no more are wanted.
    fn put(&self, item: Item, checker: &Checker) -> Option<usize> {
        let (line, work) = match item {
            Item::Done(record) => {
                self.say(Message::Earlier(record));
                return Some(0);
            }
            Item::Broken { line, problem } => {
                self.say(Message::Broken { line, problem });
                return self.keep_going.then_some(0);
            }
            Item::Open { line, work } => (line, work),
        };
        let plans = match checker.plans(&line.request) {
            Ok(plans) => plans,
            Err(e) => {
                let record = Box::new(Record {
                    error: Some(said(&e)),
                    ..Record::open(&line, checker.hashes.clone())
                });
                self.say(Message::Ended { record, work });
                return self.keep_going.then_some(1);
            }
        };
        let job = Job {
            plans,
            client: line.client.clone(),
            priority: line.priority,
        };
        let follow = self.follow(*line, work, checker.hashes.clone());
        self.scheduler.submit_wait(job, follow).ok().map(|_| 1)
    }

    /// Writes a job's pictures, and tells what happens to it.
    fn follow(&self, line: Line, work: u64, hashes: Vec<String>) -> Follow {
        let (tell, folder) = (self.tell.clone(), self.folder.clone());
        let mut began = Instant::now();
        let mut record = Record::open(&line, hashes);
        let mut total_calls = None;
        let mut last = LastWord {
            tell: tell.clone(),
            word: None,
        };
        Box::new(move |news| {
            let message = match news {
                News::Began { worker } => {
                    began = Instant::now();
                    record.worker = Some(worker);
                    let error = "a mistake in this program ended the job".to_owned();
                    let record = Box::new(Record {
                        error: Some(error),
                        ..record.clone()
                    });
                    last.be(Message::Ended { record, work });
                    return;
                }
                News::Run(Event::Stage(stage)) => {
                    if let Stage::Denoise { calls, pictures } = stage {
                        total_calls = calls.map(|calls| calls * pictures);
                    }
                    return;
                }
                News::Run(Event::Called { picture, calls }) => {
                    let pictures = line.request.batch;
                    let Some(total) = total_calls.filter(|&total| total > 0) else {
                        return;
                    };
                    let done = picture * (total / pictures) + calls;
                    Message::Called {
                        job: line.number,
                        work: work * done as u64 / total as u64,
                    }
                }
                News::Run(Event::Note(text)) => Message::Note {
                    job: line.name.clone(),
                    text: text.to_owned(),
                    is_warning: false,
                },
                News::Run(Event::Warning(text)) => Message::Note {
                    job: line.name.clone(),
                    text: text.to_owned(),
                    is_warning: true,
                },
                News::Ended(Err(JobError::Cancelled)) => {
                    last.be(Message::Cancelled);
                    return;
                }
                News::Ended(result) => {
                    let written = result.map(|made| write(&made, &folder, &line.files()));
                    record.seconds = Some(began.elapsed().as_secs_f64());
                    match written {
                        Ok(Err(e)) => {
                            last.be(Message::Unwritable(e));
                            return;
                        }
                        Ok(Ok(images)) => {
                            record.status = Status::Done;
                            record.images = images;
                        }
                        Err(e) => record.error = Some(said(&e)),
                    }
                    let record = Box::new(record.clone());
                    last.be(Message::Ended { record, work });
                    return;
                }
            };
            let _ = tell.send(message);
        })
    }
}

/// Writes a job's pictures.
fn write(made: &Made, folder: &Path, files: &[String]) -> Result<Vec<Image>, PipelineError> {
    let plans = &made.plans.plans;
    let mut images = Vec::new();
    for ((picture, plan), file) in made.outcome.pictures.iter().zip(plans).zip(files) {
        let to = Destination::find(&folder.join(file))?;
        let infotext = plan.infotext.with(&made.outcome.computed).to_string();
        picture.write(&to, Format::Png, &infotext, &Cancel::new())?;
        images.push(Image {
            file: file.clone(),
            seed: plan.seed,
        });
    }
    Ok(images)
}

/// What there is to know of a batch while it is made.
struct Batch<'a> {
    ui: &'a Ui,
    results: Results,
    progress: Progress<'a>,
    keep_going: bool,
    failed: usize,
    /// Whether somebody reads results as they come.
    is_read: bool,
    /// Notes that were told already.
    noted: BTreeSet<String>,
}

impl Batch<'_> {
    /// Hears messages until all jobs have ended, or no more are wanted. Then those that wait are ended.
    fn follow(&mut self, told: &Receiver<Message>, stop: &Stop) -> anyhow::Result<()> {
        let (mut submitted, mut ended) = (None, 0);
        while submitted != Some(ended) {
            let message = told.recv()?;
            match &message {
                Message::Interrupted => return Ok(()),
                Message::Ended { .. } | Message::Cancelled => ended += 1,
                _ => {}
            }
            if let Message::End(Ok(count)) = message {
                submitted = Some(count);
                continue;
            }
            if let Err(error) = self.hear(message) {
                // What runs would be lost, too.
                stop.all();
                return Err(error);
            }
            if self.failed > 0 && !self.keep_going {
                stop.waiting();
                return Ok(());
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Read { pictures, work } => self.progress.more(pictures, work),
            Message::Earlier(record) => self.print(&record)?,
            Message::Broken { line, problem } => {
                self.failed += 1;
                self.ui.warn(format!("line {line}: {problem}"));
                self.say(
                    serde_json::json!({"line": line, "status": Status::Failed, "error": problem}),
                )?;
            }
            Message::Called { job, work } => self.progress.called(job, work),
            Message::Note {
                job,
                text,
                is_warning,
            } => {
                if is_warning {
                    self.ui.warn(format!("job {job}: {text}"));
                } else if self.noted.insert(text.clone()) {
                    self.ui.note(text);
                }
            }
            Message::Ended { record, work } => {
                self.results.add(&record)?;
                if let Some(error) = &record.error {
                    self.failed += 1;
                    self.ui.warn(format!("job {} failed: {error}", record.job));
                }
                self.progress.ended(record.line, record.images.len(), work);
                self.print(&record)?;
            }
            Message::Unwritable(error) => return Err(error.into()),
            Message::End(Err(error)) => return Err(error),
            Message::Cancelled | Message::End(Ok(_)) | Message::Interrupted => {}
        }
        Ok(())
    }

    /// A result without what the user knows already.
    fn print(&mut self, record: &Record) -> anyhow::Result<()> {
        let line = Record {
            request: None,
            models: Vec::new(),
            ..record.clone()
        };
        self.say(serde_json::to_string(&line)?)
    }

    /// A line of standard output. Whoever stops reading there has the file of results.
    fn say(&mut self, line: impl fmt::Display) -> anyhow::Result<()> {
        if !self.is_read {
            return Ok(());
        }
        match self.ui.result(line) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.is_read = false,
            written => written?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_has_a_last_word() {
        let (tell, told) = channel();
        let mut last = LastWord {
            tell: tell.clone(),
            word: None,
        };
        let panics = thread::spawn(move || {
            last.be(Message::Cancelled);
            panic!("a mistake");
        });
        assert!(panics.join().is_err());
        assert!(matches!(told.try_recv(), Ok(Message::Cancelled)));
    }
}
