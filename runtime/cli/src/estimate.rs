//! How long a run will take and how much memory: by what runs of its kind took on this machine, or else by its first step.

use std::time::Instant;

use sd_runtime::engine::Engine;
use sd_runtime::engine::measured::{Case, Measured, Record, Seconds};
use sd_runtime::pipeline::{Event, Models, Outcome, Plan, Plans, Request, Stage};
use sd_ui::Ui;

use crate::auto;
use crate::commands::EngineArgs;

/// What takes longer is told, in seconds.
const LONG: f64 = 10.0;

/// Less memory than this every machine has.
const MUCH: u64 = 1_000_000_000;

/// What there is to know of a run's length.
pub(crate) struct Estimate {
    record: Record,
    /// What makes runs alike; none where the model cannot be read.
    case: Option<Case>,
    /// Seconds that all pictures take, if that is known before.
    known: Option<f64>,
    /// When the first step began.
    began: Option<Instant>,
    /// Calls of all pictures, if they are known.
    calls: Option<usize>,
}

impl Estimate {
    /// Looks for runs like this one.
    pub(crate) fn of(
        args: &EngineArgs,
        request: &Request,
        plans: &Plans,
        models: &Models,
        engine: &Engine,
    ) -> Self {
        let record = Record::of_runs();
        let case = case(args, request, plans, models, engine);
        let known = case.as_ref().and_then(|case| match record.find(case)? {
            Measured::Took(seconds) => total(&seconds, plans),
            Measured::Failed(_) => None,
        });
        Self {
            record,
            case,
            known,
            began: None,
            calls: None,
        }
    }

    /// Says before a run what is known of it, if that is much.
    pub(crate) fn say(&self, memory: u64, ui: &Ui) {
        let time = self.known.filter(|&seconds| seconds > LONG).map(words);
        let memory = (memory > MUCH).then(|| format!("{:.1} GB of memory", memory as f64 / 1e9));
        let parts: Vec<String> = time.into_iter().chain(memory).collect();
        if !parts.is_empty() {
            ui.note(format!("this takes about {}", parts.join(" and ")));
        }
    }

    /// Tells after the first call how long all will take, if that is long and nothing was known before.
    pub(crate) fn hear(&mut self, event: &Event<'_>) -> Option<String> {
        match *event {
            Event::Stage(Stage::Denoise { calls, pictures }) => {
                self.began = Some(Instant::now());
                self.calls = calls.map(|calls| calls * pictures);
                None
            }
            Event::Called {
                picture: 0,
                calls: 1,
            } if self.known.is_none() => {
                let first = self.began?.elapsed().as_secs_f64();
                let all = first * self.calls? as f64;
                (all > LONG)
                    .then(|| format!("all steps take about {}, by the first one", words(all)))
            }
            _ => None,
        }
    }

    /// Remembers what a run took. Previews take time of their own.
    pub(crate) fn learn(&self, plans: &Plans, outcome: &Outcome) {
        let (Some(case), Some(plan), None) = (&self.case, plans.plans.first(), plans.preview)
        else {
            return;
        };
        let timing = &outcome.timing;
        let evaluations = outcome.calls.iter().sum::<usize>() * plan.evaluations();
        let took = Measured::Took(Seconds {
            encode: timing.encode.as_secs_f64(),
            load: timing.load.as_secs_f64(),
            per_step: timing.denoise.as_secs_f64() / evaluations.max(1) as f64,
            decode: timing.decode.as_secs_f64() / plans.plans.len() as f64,
        });
        if let Err(error) = self.record.add(case, &took) {
            // It may well be that nothing can be written there.
            tracing::info!("{}: not remembered: {error}", self.record.path().display());
        }
    }
}

/// Seconds that all pictures take; a step is one evaluation of the network here, of which prompt and negative prompt take one each.
fn total(seconds: &Seconds, plans: &Plans) -> Option<f64> {
    let picture = |plan: &Plan| {
        let evaluations = plan.calls? * plan.evaluations();
        Some(seconds.per_step * evaluations as f64 + seconds.decode)
    };
    let pictures: Option<f64> = plans.plans.iter().map(picture).sum();
    Some(seconds.encode + seconds.load + pictures?)
}

/// What makes runs alike: their models, size, numbers, graph, provider and threads.
fn case(
    args: &EngineArgs,
    request: &Request,
    plans: &Plans,
    models: &Models,
    engine: &Engine,
) -> Option<Case> {
    let folders = models.all().map(|model| &model.path);
    let folders = folders.chain(models.vae_approx.as_ref().map(|approx| &approx.path));
    let hashes = folders.map(|path| Case::model(path).ok());
    let model = hashes.collect::<Option<Vec<_>>>()?.join("+");
    let size = plans.plans.first()?.size;
    let library = engine.library();
    Some(auto::case(
        args,
        request,
        (&model, size),
        engine.ep(),
        library,
    ))
}

/// `40 s`, `1 min 20 s`, `2 h 5 min`.
fn words(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes} min {rest} s"),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_call_tells_where_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let told = |known, calls, ago| {
            let mut estimate = Estimate {
                record: Record::at(dir.path().join("runs.json")),
                case: None,
                known,
                began: None,
                calls: None,
            };
            let stage = Stage::Denoise { calls, pictures: 2 };
            assert_eq!(estimate.hear(&Event::Stage(stage)), None);
            estimate.began = Instant::now().checked_sub(Duration::from_secs(ago));
            let called = |calls| Event::Called { picture: 0, calls };
            let text = estimate.hear(&called(1));
            assert_eq!(estimate.hear(&called(2)), None);
            text
        };
        let text = told(None, Some(20), 30).unwrap();
        assert!(text.contains("about 20 min "), "{text}");
        assert_eq!(told(Some(100.0), Some(20), 30), None);
        assert_eq!(told(None, None, 30), None);
        assert_eq!(told(None, Some(20), 0), None);
    }

    #[test]
    fn times_are_told_in_two_units_at_most() {
        for (seconds, said) in [
            (40.4, "40 s"),
            (59.6, "1 min 0 s"),
            (80.0, "1 min 20 s"),
            (7_530.0, "2 h 5 min"),
        ] {
            assert_eq!(words(seconds), said);
        }
    }
}
