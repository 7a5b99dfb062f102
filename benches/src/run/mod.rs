//! `sdbench run`: how long loading, passes and pictures take, in every configuration that is asked for.
//!
//! Every measurement has a process of its own (`child.rs`). In a round all configurations take their turns, forwards and
//! backwards by turns, so that what changes slowly on a machine acts on all alike.

mod case;
mod child;
mod measure;
mod models;
mod report;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use sd_kernels::Isa;
use sd_runtime::engine::measured;
use sd_runtime::engine::{Compute, Dialect, Ep, EpOption, memory};
use sd_runtime::pipeline::{Destination, Dump, ModelDir, Models, Plans, RequestError};
use sd_runtime::sampler;
use sd_runtime::sensors::{Energy, Sensors};
use sd_ui::child::Failed;
use sd_ui::{Ui, UsageError};

pub(crate) use case::{AXES, Case, Wish, common, names};
pub(crate) use measure::{MeasureArgs, run as measure};
pub(crate) use report::{
    COMMAND, Configuration, Figure, MOST_ROUNDS, Measured, RunReport, Settings, Unit,
};

use child::Words;
use measure::wanted;
use models::ModelsArgs;
use report::{Operations, Round};

use crate::machine::{Machine, Ticks};
use crate::networks::request;
use crate::peak;
use crate::providers;
use crate::report::SCHEMA;
use crate::show;

/// Time loading and passes of the networks, and whole pictures, in any set of configurations
///
/// Where an option takes several values, with commas between them, all combinations are measured. Every round measures each
/// configuration once, in a process of its own, in turns. Standard output gets the report as JSON, which `sdbench compare` and `sdbench report` read.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    models: ModelsArgs,
    /// Model directory of a refiner, whose networks are timed, too, with `_refiner` behind their names
    #[arg(long, value_name = "DIR")]
    refiner: Option<PathBuf>,
    /// Side of the picture in pixels, one or several; the model's own if left out
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    size: Vec<usize>,
    /// Who computes, one or several providers
    #[arg(
        long,
        default_value = "cpu",
        value_name = "NAME,..",
        value_delimiter = ','
    )]
    ep: Vec<Ep>,
    /// Option of the provider; repeat for several. Providers without options go without. A wrong one lists them all
    #[arg(long = "ep-option", value_name = "KEY=VALUE")]
    ep_options: Vec<EpOption>,
    /// Fail if a provider leaves operators to ONNX Runtime's own kernels
    #[arg(long)]
    strict_ep: bool,
    /// Which graphs to run, one or several of portable, native and auto
    #[arg(
        long,
        value_name = "KIND,..",
        default_value = "auto",
        value_delimiter = ','
    )]
    graph: Vec<Dialect>,
    /// What products are computed in, one or several of f32, bf16, i16, i8 and auto
    #[arg(
        long,
        value_name = "KIND,..",
        default_value = "f32",
        value_delimiter = ','
    )]
    compute: Vec<Compute>,
    /// Threads, one or several numbers; as many as there are processors if left out
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    threads: Vec<NonZero<usize>>,
    /// Use no better vector instructions than these in native graphs, one or several of scalar, avx2, avx2-vnni, avx512,
    /// avx512-vnni and avx512-bf16
    #[arg(long, value_name = "LEVEL,..", value_delimiter = ',')]
    instructions: Vec<Isa>,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
    /// What is timed: networks one by one, whole pictures, or both
    #[arg(
        long,
        value_name = "PART,..",
        default_value = "networks,pictures",
        value_delimiter = ','
    )]
    parts: Vec<Part>,
    /// Solver of the pictures, one or several; what the model is made for if left out
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = parse_sampler)]
    sampler: Vec<String>,
    /// Steps of the pictures, one or several numbers; 20, or what the model is made for, if left out
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    steps: Vec<usize>,
    /// Pictures that are made one after the other with the same networks, one or several numbers
    #[arg(long, value_name = "N,..", default_value = "1", value_delimiter = ',')]
    batch: Vec<NonZero<u16>>,
    /// Other build of sdbench to measure with, too, in turns with this one: another version of the same, for example; repeat for several
    #[arg(long, value_name = "FILE")]
    program: Vec<PathBuf>,
    /// Passes of a network that are timed in each round, after one that is not
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Rounds that count. Comparing needs at least 4, and finds smaller differences with more
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_ROUNDS)))]
    rounds: u32,
    /// Rounds before those, with one pass a network and one step a picture
    #[arg(long, default_value_t = 1, value_name = "N")]
    warm_up: u32,
    /// Write inputs and outputs of every network's first pass to this safetensors file, to give them to other programs
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// What to call this measurement in reports
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Write the report here instead of to standard output, which then gets a table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a table in Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also write a page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Networks,
    Pictures,
}

fn parse_sampler(name: &str) -> Result<String, String> {
    match sampler::parse(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A configuration to measure, and how.
struct Job {
    case: Case,
    /// Another build that measures it.
    program: Option<PathBuf>,
    /// Options of the process that measures it.
    words: Words,
    /// Those that say how much is measured, in a round that counts and in one that does not.
    amount: [Words; 2],
    /// Those that count its operations.
    count: Words,
    rounds: Vec<Round>,
    failed: Option<Failed>,
}

pub(crate) fn run(args: &RunArgs, ui: &Ui) -> anyhow::Result<()> {
    args.check()?;
    let outputs = Outputs::find(args)?;
    let mut jobs = args.jobs(ui)?;
    if args.dump.is_some() && jobs.len() != 1 {
        let text = format!(
            "--dump: it is of one configuration; there are {}",
            jobs.len()
        );
        return Err(UsageError(text).into());
    }
    let mut machine = Machine::look(Energy::read(&Sensors::default()).is_some());
    let rounds = args.warm_up + args.rounds;
    let bar = ui.steps("measuring", u64::from(rounds) * jobs.len() as u64);
    let operations = count_operations(&jobs, ui)?;
    for threads in jobs.iter().map(|job| job.case.threads) {
        let flops = machine.peak_flops.entry(threads);
        flops.or_insert_with(|| peak::flops(threads));
    }
    let (before, mut start) = (Ticks::now(), Instant::now());
    for round in 0..rounds {
        let counts = round >= args.warm_up;
        if round == args.warm_up {
            start = Instant::now();
        }
        let mut turns: Vec<&mut Job> = jobs.iter_mut().collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for job in turns {
            if job.failed.is_none() {
                job.measure(counts, args.dump.as_deref().filter(|_| round == 0), ui)?;
            }
            bar.advance(1);
        }
        if round == args.warm_up && args.rounds > 1 {
            let seconds = start.elapsed().as_secs_f64();
            let text = format!("the first of {} rounds took {seconds:.0} s", args.rounds);
            ui.note(text);
        }
    }
    drop(bar);
    machine.stolen_percent = before
        .zip(Ticks::now())
        .and_then(|(before, now)| before.stolen_percent(now));
    let report = args.report(machine, jobs, &operations)?;
    outputs.write(&report, ui)
}

/// Operations of each model and size, counted with ONNX Runtime's own kernels, which tell every operator.
fn count_operations(
    jobs: &[Job],
    ui: &Ui,
) -> anyhow::Result<BTreeMap<(PathBuf, [usize; 2]), Operations>> {
    let mut operations = BTreeMap::new();
    for job in jobs {
        let key = (job.case.path.clone(), job.case.size);
        if operations.contains_key(&key) {
            continue;
        }
        let counted = child::measure::<Operations>(None, &[&job.count], ui)?;
        if let Err(failed) = &counted {
            let model = &job.case.model;
            ui.note(format!("{model}: its operations are not counted: {failed}"));
        }
        operations.insert(key, counted.unwrap_or_default());
    }
    Ok(operations)
}

impl Job {
    /// Measures it once more.
    fn measure(&mut self, counts: bool, dump: Option<&Path>, ui: &Ui) -> anyhow::Result<()> {
        let mut more = Words::default();
        if let Some(dump) = dump {
            more.add("--dump", dump);
        }
        let amount = &self.amount[usize::from(!counts)];
        let program = self.program.as_deref();
        match child::measure(program, &[&self.words, amount, &more], ui)? {
            Ok(round) if counts => self.rounds.push(round),
            Ok(_) => {}
            Err(failed) => self.failed = Some(failed),
        }
        Ok(())
    }
}

impl RunArgs {
    fn check(&self) -> anyhow::Result<()> {
        let wrong = |text: &str| Err(UsageError(text.to_owned()).into());
        if self.dump.as_deref() == Some(Path::new("-")) {
            return wrong("--dump: the result goes to standard output; a dump needs a file");
        }
        if !self.times(Part::Networks) && self.dump.is_some() {
            return wrong("--dump: it is of networks, which --parts leaves out");
        }
        let of_pictures = !self.sampler.is_empty() || !self.steps.is_empty();
        if !self.times(Part::Pictures) && (of_pictures || self.batch.len() > 1) {
            return wrong(
                "--sampler, --steps, --batch: they are of pictures, which --parts leaves out",
            );
        }
        Ok(())
    }

    fn times(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Numbers of threads that this process may use.
    fn threads(&self, ui: &Ui) -> Vec<usize> {
        let available = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut threads = Vec::new();
        for asked in self.threads.iter().map(|threads| threads.get()) {
            if asked > available {
                ui.warn(format!(
                    "--threads {asked}: this process may use {available}"
                ));
            }
            threads.push(asked.min(available));
        }
        if threads.is_empty() {
            threads.push(available);
        }
        threads
    }

    /// All configurations; everything that can be known before is checked.
    fn jobs(&self, ui: &Ui) -> anyhow::Result<Vec<Job>> {
        let providers = providers::with_options(&self.ep, &self.ep_options)?;
        let opened = self.models.open(ui)?;
        if opened.is_empty() {
            let text = "there is no model: `--model DIR`, `--synth FAMILY` or `--demo` names one";
            return Err(UsageError(text.to_owned()).into());
        }
        let threads = self.threads(ui);
        let mut jobs: Vec<Job> = Vec::new();
        let mut impossible = None;
        for (name, base) in opened {
            let hash = measured::Case::model(&base.path)?;
            let refiner = self.refiner.as_deref().map(ModelDir::open).transpose()?;
            let models = Models {
                refiner,
                ..Models::one(base)
            };
            let programs: Vec<_> = std::iter::once(None)
                .chain(self.program.iter().map(Some))
                .collect();
            let places = product(&programs, &providers);
            let places = product(&places, &self.graph);
            let places = product(&places, &self.compute);
            let places = product(&places, &optional(&self.instructions));
            let places = product(&places, &optional(&self.size));
            let places = product(&places, &threads);
            let places = product(&places, &optional(&self.sampler));
            let places = product(&places, &optional(&self.steps));
            let places = product(&places, &self.batch);
            for (place, batch) in places {
                let (place, steps) = place;
                let (place, sampler) = place;
                let (place, threads) = place;
                let (place, size) = place;
                let (place, instructions) = place;
                let (((program, (ep, ep_options)), graph), compute) = place;
                let choice = Choice {
                    program: program.map(PathBuf::as_path),
                    ep,
                    ep_options,
                    graph,
                    compute,
                    instructions,
                    size,
                    threads,
                    sampler,
                    steps,
                    batch: usize::from(batch.get()),
                };
                match self.job(&models, &name, &hash, &choice) {
                    Ok(job) if jobs.iter().all(|other| other.case != job.case) => jobs.push(job),
                    Ok(_) => {}
                    // Of all combinations, some make no sense.
                    Err(error) if error.chain().any(|cause| RequestError::of(cause).is_some()) => {
                        impossible.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        match impossible {
            Some(error) if jobs.is_empty() => return Err(error),
            Some(error) => ui.warn(format!("some combinations are left out: {error}")),
            None => {}
        }
        Ok(jobs)
    }

    fn job(
        &self,
        models: &Models,
        name: &str,
        hash: &str,
        choice: &Choice<'_>,
    ) -> anyhow::Result<Job> {
        let options = choice.ep.check(choice.ep_options)?;
        let compute = options.compute(choice.compute)?;
        let request = request(choice.size, choice.graph, compute);
        let (sampler, steps) = (choice.sampler.as_deref(), choice.steps);
        let request = wanted(request, sampler, steps, choice.batch)?;
        let plans = Plans::resolve(&request, models, memory::limit())?;
        let plan = plans.plans.first().context("a request is for a picture")?;
        let dialect = serde_json::to_value(choice.graph)?;
        let dialect = dialect.as_str().unwrap_or_default();
        let spread = plan.spread.map(|spread| format!(" {}", spread.name()));
        let wish = Wish {
            sampler: format!("{}{}", plan.sampler.name, spread.unwrap_or_default()),
            steps: plan.steps,
            batch: choice.batch,
            guidance_scale: plan.guidance_scale,
        };
        let case = Case {
            model: name.to_owned(),
            path: models.base.path.clone(),
            hash: hash.to_owned(),
            refiner: self.refiner.clone(),
            program: choice
                .program
                .map_or("this".to_owned(), |path| path.display().to_string()),
            ep: choice.ep.to_string(),
            ep_options: choice
                .ep_options
                .iter()
                .map(|option| format!("{}={}", option.key, option.value))
                .collect(),
            graph: dialect.to_owned(),
            compute: compute.name().to_owned(),
            instructions: choice.instructions.map(|level| level.name().to_owned()),
            size: plan.size,
            threads: choice.threads,
            picture: self.times(Part::Pictures).then_some(wish),
        };
        let mut common = Words::default();
        common.add("--model", &case.path);
        if let Some(refiner) = &case.refiner {
            common.add("--refiner", refiner);
        }
        if let Some(size) = choice.size {
            common.add("--size", size.to_string());
        }
        if let Some(lib) = &self.lib {
            common.add("--lib", lib);
        }
        let mut words = common.clone();
        words.add("--ep", &case.ep);
        for option in &case.ep_options {
            words.add("--ep-option", option);
        }
        words.add("--graph", &case.graph);
        words.add("--compute", &case.compute);
        words.add("--threads", case.threads.to_string());
        if let Some(level) = &case.instructions {
            words.add("--instructions", level);
        }
        if self.strict_ep {
            words.flag("--strict-ep");
        }
        let amount = |runs: u32, steps: Option<usize>| {
            let mut words = Words::default();
            if self.times(Part::Networks) {
                words.add("--runs", runs.to_string());
            }
            if self.times(Part::Pictures) {
                words.add("--batch", choice.batch.to_string());
                if let Some(sampler) = &choice.sampler {
                    words.add("--sampler", sampler);
                }
                if let Some(steps) = steps {
                    words.add("--steps", steps.to_string());
                }
            }
            words
        };
        let mut count = common;
        count.flag("--operations");
        Ok(Job {
            case,
            program: choice.program.map(Path::to_owned),
            words,
            amount: [amount(self.runs, steps), amount(1, Some(1))],
            count,
            rounds: Vec::new(),
            failed: None,
        })
    }

    /// The report. If nothing could be measured, the first failure is an error.
    fn report(
        &self,
        machine: Machine,
        jobs: Vec<Job>,
        operations: &BTreeMap<(PathBuf, [usize; 2]), Operations>,
    ) -> anyhow::Result<RunReport> {
        if jobs.iter().all(|job| job.rounds.is_empty())
            && let Some(failed) = jobs.iter().find_map(|job| job.failed.clone())
        {
            return Err(failed.into());
        }
        let none = Operations::new();
        let configuration = |job: Job| {
            let key = (job.case.path.clone(), job.case.size);
            let flop = operations.get(&key).unwrap_or(&none);
            let peak = machine.peak_flops.get(&job.case.threads);
            let measured = Measured::of(&job.rounds, flop, peak.copied().unwrap_or(f64::NAN));
            Configuration {
                measured,
                failed: job.failed.map(|failed| failed.problem),
                case: job.case,
            }
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(RunReport {
            schema: SCHEMA,
            command: COMMAND.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            label: self.label.clone(),
            unix_time: time.map_or(0, |time| time.as_secs()),
            settings: Settings {
                warm_up: self.warm_up,
                rounds: self.rounds,
                runs: self.runs,
            },
            configurations: jobs.into_iter().map(configuration).collect(),
            machine,
        })
    }
}

/// One of the combinations that are asked for.
struct Choice<'a> {
    program: Option<&'a Path>,
    ep: Ep,
    ep_options: &'a [EpOption],
    graph: Dialect,
    compute: Compute,
    instructions: Option<Isa>,
    size: Option<usize>,
    threads: usize,
    sampler: Option<String>,
    steps: Option<usize>,
    batch: usize,
}

/// All pairs, those of the first value first.
fn product<A: Clone, B: Clone>(first: &[A], second: &[B]) -> Vec<(A, B)> {
    let pairs = |a: &A| {
        let a = a.clone();
        second.iter().map(move |b| (a.clone(), b.clone()))
    };
    first.iter().flat_map(pairs).collect()
}

/// The values, or the one that stands for the default.
fn optional<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    match values {
        [] => vec![None],
        values => values.iter().cloned().map(Some).collect(),
    }
}

/// Where the report goes.
struct Outputs {
    json: Option<Destination>,
    markdown: Option<Destination>,
    html: Option<Destination>,
}

impl Outputs {
    fn find(args: &RunArgs) -> anyhow::Result<Self> {
        args.dump.as_deref().map(Dump::place).transpose()?;
        let find = |path: &Option<PathBuf>| path.as_deref().map(Destination::find).transpose();
        let found = Self {
            json: find(&args.json)?,
            markdown: find(&args.markdown)?,
            html: find(&args.html)?,
        };
        show::apart(&[
            ("--json", found.json.as_ref()),
            ("--markdown", found.markdown.as_ref()),
            ("--html", found.html.as_ref()),
        ])?;
        Ok(found)
    }

    fn write(&self, report: &RunReport, ui: &Ui) -> anyhow::Result<()> {
        for (name, configuration) in report.names().iter().zip(&report.configurations) {
            if let Some(problem) = &configuration.failed {
                ui.warn(format!("{name}: {problem}"));
            }
        }
        // What others are made of goes first: it may be the last that there is room for.
        let json = format!("{}\n", serde_json::to_string(report)?);
        match &self.json {
            None => ui.result(json)?,
            Some(to) => {
                to.write(json.as_bytes(), &sd_runtime::engine::Cancel::new())?;
                ui.written(to.path(), show::markdown(report))?;
            }
        }
        Ok(show::write(
            report,
            self.markdown.as_ref(),
            self.html.as_ref(),
        )?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::report::{Network, Picture};
    use super::*;
    use crate::memory::Memory;
    use crate::report::Spread;

    pub(crate) use super::case::tests::case;

    /// Figures of a test: `seconds`, give or take 1 %.
    pub(crate) fn measured(seconds: f64) -> Measured {
        let spread = |seconds: f64| {
            let factors = [1.0, 0.99, 1.01, 1.005, 0.995];
            Spread::of(factors.map(|factor| factor * seconds).to_vec())
        };
        let memory = Some(Memory {
            resident_bytes: 3000,
            anonymous_bytes: 1000,
            file_bytes: 2000,
        });
        let network = Network {
            graph: "native".to_owned(),
            compute: "f32".to_owned(),
            load_s: spread(0.1),
            pass_s: spread(seconds / 50.0),
            passes_s: vec![vec![seconds / 50.0; 2]; 5],
            load_memory: memory,
            pass_memory: memory,
            flop: Some(1e9),
            peak_percent: Some(50.0),
        };
        let networks = ["text_encoder", "unet", "vae_decoder"];
        Measured {
            onnxruntime: "a build".to_owned(),
            libraries: vec!["libonnxruntime.so.1.0".to_owned()],
            start_s: spread(0.01),
            networks: networks
                .map(|name| (name.to_owned(), network.clone()))
                .into(),
            picture: Some(Picture {
                calls: 20,
                total_s: spread(seconds),
                encode_s: spread(0.02),
                load_s: spread(0.1),
                step_s: spread(seconds / 25.0),
                decode_s: spread(0.1),
                write_s: spread(0.01),
                pictures_per_hour: 3600.0 / seconds,
                joules: None,
                memory,
            }),
            peak: memory,
        }
    }
}
