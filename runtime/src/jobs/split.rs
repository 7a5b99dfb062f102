//! How many workers share the processors: the number with which most pictures come out, by measurement.
//!
//! One wide worker loses threads where a layer has too little work for all of them, and waits for the slowest one after every layer.
//! Several narrow ones share caches and the bandwidth of memory. Which is worse depends on machine, model and size.

use std::num::NonZero;
use std::thread;

use super::scheduler::{JobError, caught};
use crate::engine::measured::{Case, Measured, Record, Seconds};
use crate::engine::memory::Needs;
use crate::engine::{Cancel, Engine};
use crate::pipeline::{Models, Plans, Request, run};
use crate::sampler;

/// Steps of a measured picture.
const STEPS: usize = 3;

/// How often every number is measured, in turns.
const ROUNDS: usize = 2;

/// Numbers of workers that share so many threads evenly and have memory for a picture each.
#[must_use]
pub fn candidates(threads: usize, needs: Needs, memory: u64) -> Vec<NonZero<usize>> {
    let even = (1..=threads).filter(|workers| threads.is_multiple_of(*workers));
    let fits = |workers: &usize| needs.own * *workers as u64 + needs.mapped <= memory;
    even.filter(|workers| *workers == 1 || fits(workers))
        .filter_map(NonZero::new)
        .collect()
}

/// Pictures of so many calls in a second.
#[must_use]
pub fn rate(workers: NonZero<usize>, seconds: &Seconds, calls: usize) -> f64 {
    workers.get() as f64 / seconds.picture(calls)
}

/// What a record knows of numbers of workers, each with `case` but for their number; none unless it knows all of them.
#[must_use]
pub fn known(
    record: &Record,
    case: &Case,
    candidates: &[NonZero<usize>],
) -> Option<Vec<(NonZero<usize>, Seconds)>> {
    let known = candidates.iter().map(|&workers| {
        let case = Case {
            workers: workers.get(),
            ..case.clone()
        };
        match record.find(&case)? {
            Measured::Took(seconds) => Some((workers, seconds)),
            Measured::Failed(_) => None,
        }
    });
    known.collect()
}

/// The number with the highest rate.
#[must_use]
pub fn best(measured: &[(NonZero<usize>, Seconds)], calls: usize) -> Option<NonZero<usize>> {
    let rate = |(workers, seconds): &(NonZero<usize>, Seconds)| rate(*workers, seconds, calls);
    let best = measured.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
    best.map(|(workers, _)| *workers)
}

/// Measures numbers of workers with pictures of a few steps that have the request's size and numbers, and adds what they took to a record.
///
/// # Errors
/// As [`run`]'s, and [`JobError::Panicked`].
pub fn measure(
    engine: &Engine,
    models: &Models,
    request: &Request,
    candidates: &[NonZero<usize>],
    (record, case): (&Record, &Case),
    cancel: &Cancel,
) -> Result<Vec<(NonZero<usize>, Seconds)>, JobError> {
    let plans = |steps| {
        let request = Request {
            prompt: "a lighthouse at dusk".to_owned(),
            width: request.width,
            height: request.height,
            // The record does not tell samplers apart, and every model takes this one.
            sampler: sampler::parse("Euler").ok().map(|(sampler, _)| sampler),
            steps: Some(steps),
            guidance_scale: request.guidance_scale,
            profile: request.profile,
            graph: request.graph,
            compute: request.compute,
            tile: request.tile,
            ..Request::default()
        };
        Plans::resolve(&request, models, u64::MAX)
    };
    let (first, timed) = (plans(1)?, plans(STEPS)?);
    let splits = candidates
        .iter()
        .map(|&workers| (workers, engine.split(workers)));
    let splits: Vec<_> = splits.collect();
    let mut best: Vec<Option<Seconds>> = vec![None; splits.len()];
    for _ in 0..ROUNDS {
        for ((_, engines), best) in splits.iter().zip(&mut best) {
            // Loaded networks stay for the timed pictures, and go before others have their turn.
            engines
                .iter()
                .for_each(|engine| engine.pool().set_budget(u64::MAX));
            at_once(engines, models, &first, cancel)?;
            let seconds = at_once(engines, models, &timed, cancel)?;
            engines
                .iter()
                .for_each(|engine| engine.pool().set_budget(0));
            let is_faster = |known: Seconds| seconds.picture(STEPS) < known.picture(STEPS);
            if best.is_none_or(is_faster) {
                *best = Some(seconds);
            }
        }
    }
    let mut measured = Vec::new();
    for ((workers, _), best) in splits.iter().zip(best) {
        let seconds = best.expect("there is a round");
        let case = Case {
            workers: workers.get(),
            ..case.clone()
        };
        if let Err(error) = record.add(&case, &Measured::Took(seconds)) {
            tracing::warn!("{}: not remembered: {error}", record.path().display());
        }
        measured.push((*workers, seconds));
    }
    Ok(measured)
}

/// A picture by every engine at the same time: what its parts took on the slowest one.
fn at_once(
    engines: &[Engine],
    models: &Models,
    plans: &Plans,
    cancel: &Cancel,
) -> Result<Seconds, JobError> {
    let make = |engine| run(plans, models, engine, cancel, &mut |_| (), None);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let started = engines
            .iter()
            .map(|engine| scope.spawn(move || caught(|| make(engine))));
        let started: Vec<_> = started.collect();
        let ended = started.into_iter().map(thread::ScopedJoinHandle::join);
        ended.collect()
    });
    let mut slowest = Seconds {
        encode: 0.0,
        load: 0.0,
        per_step: 0.0,
        decode: 0.0,
    };
    for outcome in outcomes {
        let outcome = outcome.unwrap_or_else(|_| Err(String::new()));
        let outcome = outcome.map_err(JobError::Panicked)??;
        let (timing, calls) = (outcome.timing, outcome.calls.iter().sum::<usize>().max(1));
        slowest = Seconds {
            encode: slowest.encode.max(timing.encode.as_secs_f64()),
            load: slowest.load.max(timing.load.as_secs_f64()),
            per_step: slowest
                .per_step
                .max(timing.denoise.as_secs_f64() / calls as f64),
            decode: slowest.decode.max(timing.decode.as_secs_f64()),
        };
    }
    Ok(slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(candidates: &[NonZero<usize>]) -> Vec<usize> {
        candidates.iter().map(|workers| workers.get()).collect()
    }

    #[test]
    fn threads_are_shared_evenly_where_there_is_memory() {
        let needs = Needs {
            total: 30,
            own: 10,
            mapped: 20,
        };
        let of = |threads, memory| numbers(&candidates(threads, needs, memory));
        assert_eq!(of(1, 1000), [1]);
        assert_eq!(of(2, 1000), [1, 2]);
        assert_eq!(of(12, 1000), [1, 2, 3, 4, 6, 12]);
        assert_eq!(of(12, 60), [1, 2, 3, 4]);
        assert_eq!(of(12, 5), [1]);
    }

    #[test]
    fn most_pictures_in_a_second_are_best() {
        let took = |per_step, decode| Seconds {
            encode: 0.0,
            load: 0.0,
            per_step,
            decode,
        };
        let number = |workers| NonZero::new(workers).unwrap();
        // Two narrow workers are slower for one picture, and faster for two.
        let measured = [(number(1), took(1.0, 1.0)), (number(2), took(1.9, 3.0))];
        let chosen = |calls| best(&measured, calls).map(NonZero::get);
        assert_eq!((chosen(20), chosen(1)), (Some(2), Some(1)));
        assert_eq!(best(&[], 20), None);
    }
}
