//! `--ep auto`: the provider that makes a picture fastest, by measurement.
//!
//! A process has one ONNX Runtime, and each provider may come with its own. So every provider makes a picture of a few steps in a
//! process of its own, `sdrun txt2img`; what that took is remembered.

use std::fs::{File, TryLockError};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use sd_kernels::Isa;
use sd_runtime::engine::measured::{Case, Measured, Record, Seconds, processor};
use sd_runtime::engine::{Cancel, EngineError, Ep, library, memory};
use sd_runtime::pipeline::{ModelDir, Models, Plans, Request};
use sd_ui::child::output;
use sd_ui::{Ui, UsageError};
use serde::{Deserialize, Serialize};

use crate::commands::{EngineArgs, Provider, cancel_with};

/// Steps of a measured picture. The first call is slower than others.
const STEPS: usize = 3;

/// What was chosen, and why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Choice {
    /// The provider.
    pub(crate) ep: String,
    /// For people.
    pub(crate) why: String,
    /// What each provider takes for the picture in seconds; none where it cannot make it.
    seconds: Vec<(String, Option<f64>)>,
}

/// Replaces `--ep auto` by a provider, and says which if it was chosen.
pub(crate) fn resolve(
    args: &EngineArgs,
    request: &Request,
    models: &Models,
    ui: &Ui,
) -> anyhow::Result<(EngineArgs, Option<Choice>)> {
    if args.ep != Provider::Auto {
        return Ok((args.clone(), None));
    }
    if args.plugin().is_some() {
        let text = "--ep-library names who computes, and --ep auto chooses: give one of them";
        return Err(UsageError(text.to_owned()).into());
    }
    args.limit_instructions();
    let candidates: Vec<(Ep, library::Found)> = [Ep::Cpu, Ep::OpenVino, Ep::Cuda]
        .into_iter()
        .filter_map(|ep| Some((ep, library::find(args.lib.as_deref(), ep).ok()?)))
        .filter(|(ep, found)| found.has(*ep) != Some(false))
        .collect();
    let choice = match &candidates[..] {
        _ if request.tile => Choice {
            ep: Ep::Cpu.to_string(),
            why: "others do not decode in bands of rows".to_owned(),
            seconds: Vec::new(),
        },
        [] | [(Ep::Cpu, _)] => Choice {
            ep: Ep::Cpu.to_string(),
            why: "no library with another provider is there".to_owned(),
            seconds: Vec::new(),
        },
        candidates => fastest(args, request, models, candidates, ui)?,
    };
    tracing::info!(ep = choice.ep, why = choice.why, "provider chosen");
    let ep = choice.ep.parse()?;
    if ep == Ep::Cpu && !args.options().is_empty() {
        ui.note("--ep-option does nothing: cpu was chosen, which has no options");
    }
    Ok((args.with(ep), Some(choice)))
}

fn fastest(
    args: &EngineArgs,
    request: &Request,
    models: &Models,
    candidates: &[(Ep, library::Found)],
    ui: &Ui,
) -> anyhow::Result<Choice> {
    let plans = Plans::resolve(request, models, memory::limit())?;
    let plan = plans.plans.first().context("a request is for a picture")?;
    let (model, cancel) = (&models.base, cancel_with(ui));
    let record = Record::default();
    let hash = Case::model(&model.path)?;
    let (mut results, mut new, mut turn) = (Vec::new(), 0, None);
    for (ep, found) in candidates {
        let of = (hash.as_str(), plan.size);
        let case = case(&args.with(*ep), request, of, *ep, found);
        let mut known = record.find(&case);
        if known.is_none() && turn.is_none() {
            turn = wait_for_turn(&record, &cancel, |text| ui.note(text))?;
            known = record.find(&case);
        }
        let result = match known {
            Some(known) => known,
            None => {
                ui.note(format!(
                    "measuring {ep} with a picture of {STEPS} steps, once for this model and size .."
                ));
                let result = measure(&args.with(*ep), request, model, plan.size, &cancel)?;
                if let Err(error) = record.add(&case, &result) {
                    tracing::warn!("{}: not remembered: {error}", record.path().display());
                }
                new += 1;
                result
            }
        };
        results.push((*ep, result));
    }
    choose(&results, plan.calls.unwrap_or(plan.steps), new)
}

/// What is measured for a request, a model's hash and a size.
pub(crate) fn case(
    args: &EngineArgs,
    request: &Request,
    (model, size): (&str, [usize; 2]),
    ep: Ep,
    found: &library::Found,
) -> Case {
    Case {
        processor: processor(),
        instructions: Isa::detect().name().to_owned(),
        threads: args.processors(),
        workers: 1,
        model: model.to_owned(),
        size,
        compute: request.compute,
        graph: request.graph,
        tile: request.tile,
        ep: ep.to_string(),
        options: args.options(),
        library: Case::library(args.plugin().unwrap_or(&found.path)),
    }
}

/// Waits until no other process measures, since two at once are slower than each alone, and keeps others waiting as long as the
/// file is open; there is none where it cannot be made.
pub(crate) fn wait_for_turn(
    record: &Record,
    cancel: &Cancel,
    tell: impl Fn(&str),
) -> anyhow::Result<Option<File>> {
    let path = record.path().with_file_name("measuring.lock");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).ok();
    }
    let Ok(file) = File::options().create(true).append(true).open(&path) else {
        return Ok(None);
    };
    let mut waits = false;
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if cancel.is_cancelled() {
            return Err(EngineError::Interrupted.into());
        }
        if !waits {
            tell("another process measures; waiting for it ..");
            waits = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(Some(file))
}

/// The fastest of several. `new` is how many were measured now.
fn choose(results: &[(Ep, Measured)], calls: usize, new: usize) -> anyhow::Result<Choice> {
    let estimates: Vec<(Ep, Option<f64>)> = results
        .iter()
        .map(|(ep, result)| (*ep, result.picture(calls)))
        .collect();
    let able = estimates
        .iter()
        .filter_map(|(ep, seconds)| Some((ep, (*seconds)?)));
    let best = able.min_by(|(_, a), (_, b)| a.total_cmp(b));
    let said: Vec<String> = results
        .iter()
        .map(|(ep, result)| match result {
            Measured::Took(seconds) => format!(
                "{ep} takes {:.1} s for a picture of {calls} calls ({:.2} s each)",
                seconds.picture(calls),
                seconds.per_step
            ),
            Measured::Failed(problem) => format!("{ep} fails: {problem}"),
        })
        .collect();
    let when = match new {
        0 => "measured before",
        _ => "measured now",
    };
    let why = format!("{}; {when}", said.join(", "));
    let (ep, _) = best.with_context(|| format!("no provider makes the picture: {why}"))?;
    Ok(Choice {
        ep: ep.to_string(),
        why,
        seconds: estimates
            .iter()
            .map(|(ep, seconds)| (ep.to_string(), *seconds))
            .collect(),
    })
}

/// What a run says of itself with `--json`.
#[derive(Deserialize)]
struct Said {
    seconds: Seconds,
}

/// Makes a picture of a few steps in another process.
fn measure(
    args: &EngineArgs,
    request: &Request,
    model: &ModelDir,
    [width, height]: [usize; 2],
    cancel: &Cancel,
) -> anyhow::Result<Measured> {
    let name = |value: serde_json::Result<serde_json::Value>| {
        let value = value.unwrap_or_default();
        value.as_str().unwrap_or_default().to_owned()
    };
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
    command
        .args([
            "txt2img",
            "-q",
            "--json",
            "--seed",
            "0",
            "--sampler",
            "Euler",
        ])
        .args(["-p", "a lighthouse at dusk", "--steps", &STEPS.to_string()])
        .args(["-W", &width.to_string(), "-H", &height.to_string()])
        .args(["--graph", &name(serde_json::to_value(request.graph))])
        .args(["--compute", &name(serde_json::to_value(request.compute))])
        .arg("-m")
        .arg(&model.path)
        .arg("-o")
        .arg(scratch.path().join("picture.png"))
        .args(args.as_options());
    if let Some(scale) = request.guidance_scale {
        command.args(["--cfg", &scale.to_string()]);
    }
    Ok(match output(&mut command, || cancel.is_cancelled())? {
        Ok(written) => match serde_json::from_str::<Said>(&written) {
            Ok(said) => Measured::Took(said.seconds),
            Err(error) => Measured::Failed(format!("what it wrote: {error}")),
        },
        Err(failed) => Measured::Failed(failed.problem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(load: f64, per_step: f64) -> Measured {
        Measured::Took(Seconds {
            encode: 0.0,
            load,
            per_step,
            decode: 0.0,
        })
    }

    #[test]
    fn what_loads_slowly_is_chosen_where_there_are_steps_enough() {
        let results = [(Ep::Cpu, took(0.0, 2.0)), (Ep::OpenVino, took(10.0, 1.0))];
        let chosen = |calls| choose(&results, calls, 0).unwrap().ep;
        assert_eq!((chosen(4), chosen(20)), ("cpu".into(), "openvino".into()));
        let why = choose(&results, 20, 1).unwrap().why;
        assert!(
            why.contains("40.0 s") && why.contains("30.0 s") && why.contains("measured now"),
            "{why}"
        );
    }

    #[test]
    fn one_process_measures_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(dir.path().join("new/providers.json"));
        let wait = |cancel: &Cancel| wait_for_turn(&record, cancel, |_| cancel.cancel());
        let first = wait(&Cancel::new()).unwrap();
        assert!(first.is_some());
        assert!(wait(&Cancel::new()).is_err(), "it waits, and is cancelled");
        drop(first);
        assert!(wait(&Cancel::new()).unwrap().is_some());
    }

    #[test]
    fn what_fails_is_not_chosen() {
        let failed = || Measured::Failed("no such file".to_owned());
        let results = [(Ep::Cpu, took(0.0, 2.0)), (Ep::OpenVino, failed())];
        let choice = choose(&results, 20, 0).unwrap();
        assert_eq!(choice.ep, "cpu");
        assert!(choice.why.contains("openvino fails: no such file"));
        let none = [(Ep::Cpu, failed()), (Ep::OpenVino, failed())];
        let error = choose(&none, 20, 0).unwrap_err().to_string();
        assert!(error.contains("no provider makes the picture"), "{error}");
    }
}
