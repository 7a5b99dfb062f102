//! `sdbench determinism`: how a picture depends on who computes it, and which part of the work makes the difference.
//!
//! Every way of computing is recorded by a process of its own (`child.rs`); a variant's process also computes with the numbers that
//! the reference recorded (`record.rs`), so that its parts can be told apart. Comparing needs the recordings only (`measure.rs`), so
//! one machine and two machines are the same.

mod chart;
mod child;
mod identity;
mod matrix;
mod measure;
mod page;
mod phash;
mod record;
mod recording;
mod report;
mod way;

use std::path::{Path, PathBuf};

use anyhow::Context;
use sd_runtime::engine::{Cancel, library};
use sd_runtime::pipeline::{Destination, Dump, ModelDir, Request};
use sd_runtime::sampler;
use sd_runtime::sigmas::Spread;
use sd_ui::{Ui, UsageError};
use serde_json::{Map, Value, json};

pub(crate) use child::{COMMAND, RecordArgs, run as record};
use identity::{Identity, check_request, settled};
use matrix::WaysArgs;
use measure::VISUALLY_EQUAL;
use record::Order;
use recording::Recording;
use report::{Failure, Pair, Report, SCHEMA, Side};
use way::Way;

use crate::quality::prompts;
use crate::show::apart;

/// Compare a picture's making by other providers, numbers, graphs, threads and machines, part by part
///
/// The first of every list is the reference, unless `--against` names a recording; every other combination is a variant.
#[derive(Debug, clap::Args)]
pub(crate) struct DeterminismArgs {
    #[command(flatten)]
    ways: WaysArgs,
    #[command(flatten)]
    request: RequestArgs,
    /// Keep the reference's recording in this safetensors file, for another machine
    #[arg(long, value_name = "FILE", conflicts_with = "against")]
    record: Option<PathBuf>,
    /// The reference is a recording, which says what the request is
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Relative L2 distance behind which states are another picture's: the first step past it is told
    #[arg(long, value_name = "F", default_value_t = 0.01)]
    threshold: f64,
    /// Write a page with plots and pictures to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What the picture is of. What is left out is the recording's with `--against`, else the model's own.
#[derive(Debug, clap::Args)]
struct RequestArgs {
    /// What the picture should show; the first prompt of `sdbench quality` if left out
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// What it should not show
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    negative: Option<String>,
    /// Seed of the noise; 0 if left out
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Steps of the sampler
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How strongly the prompt is followed
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// Side of the picture in pixels
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Solver, "DPM++ 2M" or Euler for example. A wrong name lists them all
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Spread of the noise levels: karras, normal, exponential, ..; a wrong name lists them all
    #[arg(long, value_name = "NAME")]
    schedule: Option<Spread>,
}

impl RequestArgs {
    /// Fields that were given, as in a request's JSON.
    fn given(&self) -> anyhow::Result<Map<String, Value>> {
        let named = self.sampler.as_deref().map(sampler::parse).transpose()?;
        let (sampler, spread) = named.unzip();
        let spread = self.schedule.or(spread.flatten()).map(Spread::word);
        let fields = [
            ("prompt", json!(self.prompt)),
            ("negative_prompt", json!(self.negative)),
            ("seed", json!(self.seed)),
            ("steps", json!(self.steps)),
            ("guidance_scale", json!(self.cfg)),
            ("width", json!(self.size)),
            ("height", json!(self.size)),
            ("sampler", json!(sampler.map(|sampler| sampler.name))),
            ("spread", json!(spread)),
        ];
        let given = fields.into_iter().filter(|(_, value)| !value.is_null());
        Ok(given
            .map(|(name, value)| (name.to_owned(), value))
            .collect())
    }
}

/// A request of these fields.
fn request(fields: Map<String, Value>) -> anyhow::Result<Request> {
    Ok(Request::from_json(&Value::Object(fields).to_string())?)
}

/// All ways are of the first one's checkpoint.
fn check_models(ways: &[Way], first: &ModelDir) -> anyhow::Result<()> {
    let expected = Identity::of(first)?;
    for way in ways.iter().filter(|way| way.model != first.path) {
        let same = expected.check(&Identity::of(&way.models()?.base)?);
        same.with_context(|| way.model.display().to_string())?;
    }
    Ok(())
}

pub(crate) fn run(args: &DeterminismArgs, ui: &Ui) -> anyhow::Result<()> {
    if args.threshold.is_nan() || args.threshold <= 0.0 {
        let text = format!("--threshold {}: expected a number above 0", args.threshold);
        return Err(UsageError(text).into());
    }
    let record = args.record.as_deref().map(Dump::place).transpose()?;
    let html = args.html.as_deref().map(Destination::find).transpose()?;
    let files = record.iter().chain(&html);
    if files.clone().any(Destination::is_stdout) {
        let text = "standard output is for the figures; give names of files";
        return Err(UsageError(text.to_owned()).into());
    }
    apart(&[("--record", record.as_ref()), ("--html", html.as_ref())])?;
    let given = args.request.given()?;
    let against = args.against.as_deref();
    let reference = against.map(Recording::read).transpose()?;
    let ways = args.ways.ways(ui)?;
    let first = ways.first().context("there is a way")?;
    let models = first.models()?;
    check_models(&ways, &models.base)?;
    let request = match (&reference, against) {
        (Some(reference), Some(path)) => {
            let about = &reference.about;
            let same = about.model.check(&Identity::of(&models.base)?);
            let same = same.and_then(|()| check_request(&about.request, &given));
            same.with_context(|| path.display().to_string())?;
            request(about.request.clone())?
        }
        _ => {
            let mut fields = given;
            if !fields.contains_key("prompt") {
                let prompt = prompts::read(None, &models.base)?.swap_remove(0);
                fields.insert("prompt".to_owned(), json!(prompt));
            }
            // Variants make what the reference would.
            let request = request(fields)?;
            let plan = first.plan(&request, &models, first.rng()?)?;
            self::request(settled(&request, &plan)?)?
        }
    };
    if reference.is_none() {
        library::find(first.library.as_deref(), first.ep()?)?;
    }
    let cancel = Cancel::new();
    let job = cancel.clone();
    ui.on_interrupt(move || job.cancel());
    let session = Session {
        scratch: tempfile::tempdir().context("cannot make a temporary folder")?,
        request,
        cancel,
    };
    let bar = ui.steps("recording", ways.len() as u64);
    let (reference, path, variants) = match (reference, against) {
        (Some(reference), Some(path)) => (reference, path.to_owned(), &ways[..]),
        _ => {
            let path = session.scratch.path().join("reference.safetensors");
            let reference = session.record(first, None, path.clone())?;
            bar.set(1);
            (reference, path, &ways[1..])
        }
    };
    if let Some(to) = &record {
        to.write(&reference.to_bytes()?, &session.cancel)?;
    }
    let made = ways.len() - variants.len();
    let done = |count| bar.set((made + count) as u64);
    let from = (&reference, path.as_path());
    let compared = session.compare(variants, from, args.threshold, ui, done)?;
    drop(bar);
    let report = Report {
        schema: SCHEMA,
        command: "determinism".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        request: reference.about.request.clone(),
        size: reference.about.size,
        reference: Side::of(&reference.about, None),
        threshold: args.threshold,
        visually_equal: VISUALLY_EQUAL,
        pairs: compared.pairs,
        failed: compared.failed,
    };
    if let Some(to) = &html {
        let page = page::html(&report, &reference, &compared.recordings)?;
        to.write(page.as_bytes(), &session.cancel)?;
    }
    for pair in &report.pairs {
        ui.note(pair.summary());
    }
    if let Some(to) = &record {
        ui.note(format!("{} has the reference", to.path().display()));
    }
    ui.result(serde_json::to_string(&report)?)?;
    Ok(())
}

/// What all recordings of a command have in common.
struct Session {
    scratch: tempfile::TempDir,
    request: Request,
    cancel: Cancel,
}

/// What became of variants.
#[derive(Default)]
struct Compared {
    pairs: Vec<Pair>,
    /// Those of the pairs.
    recordings: Vec<Recording>,
    failed: Vec<Failure>,
}

impl Session {
    /// Records variants and compares each with the reference, which is in a file, too; `done` hears how many there are.
    fn compare(
        &self,
        variants: &[Way],
        (reference, path): (&Recording, &Path),
        threshold: f64,
        ui: &Ui,
        done: impl Fn(usize),
    ) -> anyhow::Result<Compared> {
        let mut compared = Compared::default();
        for (i, way) in variants.iter().enumerate() {
            let output = self.scratch.path().join("variant.safetensors");
            match self.record(way, Some(path.to_owned()), output) {
                Ok(variant) => {
                    let pair = Pair::of(&variant, reference, threshold)?;
                    compared.pairs.push(pair);
                    compared.recordings.push(variant);
                }
                Err(error) if self.cancel.is_cancelled() => return Err(error),
                Err(error) => {
                    let problem = format!("{error:#}");
                    ui.note(format!("left out: {problem}"));
                    compared.failed.push(Failure {
                        way: way.clone(),
                        problem,
                    });
                }
            }
            done(i + 1);
        }
        Ok(compared)
    }

    fn record(
        &self,
        way: &Way,
        reference: Option<PathBuf>,
        output: PathBuf,
    ) -> anyhow::Result<Recording> {
        let order = Order {
            way: way.clone(),
            request: self.request.clone(),
            reference,
            output,
        };
        child::record(&order, self.scratch.path(), &self.cancel)
            .with_context(|| format!("{} {}", way.ep, way.compute.name()))
    }
}
