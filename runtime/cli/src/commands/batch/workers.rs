//! How many pictures are computed at the same time.

use std::num::NonZero;
use std::str::FromStr;

use sd_runtime::engine::{Engine, Ep, measured};
use sd_runtime::jobs::split;
use sd_runtime::pipeline::Request;
use sd_ui::{Interrupted, Ui};

use super::check::{Checker, Item};
use crate::auto;
use crate::commands::cancel_with;

/// So many jobs are worth finding out how many workers are fastest, which takes as long as a few.
const WORTH_MEASURING: usize = 12;

/// What `--workers` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workers {
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

/// How many workers there are.
pub(super) fn workers(
    wish: Workers,
    engine: &Engine,
    checker: &Checker,
    first: &Request,
    items: &[Item],
    ui: &Ui,
) -> anyhow::Result<NonZero<usize>> {
    let Workers::Number(workers) = wish else {
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

/// So many workers, or as many as there are threads.
fn at_most(workers: NonZero<usize>, threads: usize, ui: &Ui) -> NonZero<usize> {
    let most = NonZero::new(threads).map_or(workers, |threads| workers.min(threads));
    if most < workers {
        let there = match threads {
            1 => "is one thread, so there is one worker".to_owned(),
            threads => format!("are {threads} threads, so there are {threads} workers"),
        };
        ui.note(format!("--workers {workers}: there {there}"));
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
    let Some(plan) = plans.plans.first() else {
        return Ok(one);
    };
    let hash = checker.hashes.join("+");
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
