//! Jobs in a scheduler: whatever is cancelled, fails or panics, every job ends once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::Write;
use std::num::NonZero;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sd_runtime::engine::{Cancel, Ep};
use sd_runtime::jobs::{Handle, Job, JobError, News, Options, Pins, Scheduler, SubmitError};
use sd_runtime::pipeline::{Event, ModelDir, Models, Plans, Request, run};
use sdrt_tests::{demo_model, engine};

const MEMORY: u64 = 2_000_000_000;

fn models() -> Arc<Models> {
    Arc::new(Models::one(ModelDir::open(demo_model()).unwrap()))
}

fn scheduler(models: &Arc<Models>, workers: usize, capacity: usize) -> Scheduler {
    let options = Options {
        workers: NonZero::new(workers).unwrap(),
        memory: MEMORY,
        capacity,
        ceiling: None,
        pins: None,
    };
    Scheduler::start(engine(), models, options)
}

fn job(models: &Models, request: &Request, client: &str) -> Job {
    Job {
        plans: Plans::resolve(request, models, MEMORY).unwrap(),
        client: client.to_owned(),
        priority: 0,
    }
}

fn small(seed: u64) -> Request {
    Request {
        prompt: "a red circle".to_owned(),
        width: Some(64),
        height: Some(64),
        steps: Some(1),
        seed,
        ..Request::default()
    }
}

#[test]
fn pictures_are_those_of_a_run_by_itself() {
    let models = models();
    let plans = Plans::resolve(&small(3), &models, MEMORY).unwrap();
    let alone = run(&plans, &models, engine(), &Cancel::new(), &mut |_| (), None).unwrap();
    for workers in [1, 2, 4] {
        let scheduler = scheduler(&models, workers, 10);
        let (tell, told) = channel();
        for _ in 0..6 {
            let tell = tell.clone();
            let follow = Box::new(move |news: News<'_>| {
                if let News::Ended(result) = news {
                    tell.send(result.unwrap().outcome.pictures).unwrap();
                }
            });
            scheduler
                .submit(job(&models, &small(3), ""), follow)
                .unwrap();
        }
        scheduler.finish();
        drop(tell);
        let all: Vec<_> = told.iter().collect();
        assert_eq!(all.len(), 6);
        assert!(
            all.iter().all(|pictures| *pictures == alone.pictures),
            "{workers} workers"
        );
    }
}

/// Two hundred jobs, of which some fail, some are cancelled while they wait or run, and some have a follower that panics.
#[test]
fn every_job_ends_once() {
    const JOBS: u64 = 200;
    let mut broken = tempfile::NamedTempFile::new().unwrap();
    broken.write_all(b"no tensors").unwrap();
    let models = models();
    let scheduler = scheduler(&models, 2, 20);
    let ended = Arc::new(Mutex::new(vec![Vec::new(); JOBS as usize]));
    let mut handles: Vec<Handle> = Vec::new();
    let mut random = 1_u64;
    for i in 0..JOBS {
        let mut request = small(i);
        if i % 11 == 3 {
            request.initial_noise = Some(broken.path().to_owned());
        }
        let to = Arc::clone(&ended);
        let follow = Box::new(move |news: News<'_>| match news {
            News::Began { .. } => assert!(i % 29 != 5, "a follower's mistake"),
            News::Waits | News::GoesOn | News::Run(_) => {}
            News::Ended(result) => {
                let kind = match result {
                    Ok(made) => {
                        assert_eq!(made.outcome.pictures.len(), 1);
                        "done".to_owned()
                    }
                    Err(JobError::Cancelled) => "cancelled".to_owned(),
                    Err(error) => format!("failed: {error}"),
                };
                to.lock().unwrap()[i as usize].push(kind);
            }
        });
        let client = ["a", "b", "c"][(i % 3) as usize];
        handles.push(
            scheduler
                .submit_wait(job(&models, &request, client), follow)
                .unwrap(),
        );
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if random >> 61 == 0 {
            handles[(random >> 33) as usize % handles.len()].cancel();
        }
        if random >> 61 == 1 {
            handles.last().unwrap().cancel();
        }
    }
    scheduler.finish();
    let ended = ended.lock().unwrap();
    for (i, kinds) in ended.iter().enumerate() {
        // Who panicked does not hear more.
        let expected = usize::from(i % 29 != 5 || !kinds.is_empty());
        assert_eq!(kinds.len(), expected, "{i}: {kinds:?}");
        let failed = kinds.iter().any(|kind| kind.starts_with("failed"));
        assert!(i % 11 == 3 || !failed, "{i}: {kinds:?}");
    }
    let all = || ended.iter().flatten();
    let count = |kind: &str| all().filter(|it| it.starts_with(kind)).count();
    let counts = ["done", "failed", "cancelled"].map(count);
    assert!(
        counts[0] > 100 && counts[1] > 5 && counts[2] > 5,
        "{counts:?}"
    );
}

/// Workers that are pinned have processors of their own, as the system sees it; all others may run anywhere.
#[test]
#[cfg(target_os = "linux")]
fn pinned_workers_have_processors_of_their_own() {
    use std::collections::BTreeSet;
    use std::path::Path;

    fn processors(task: &Path) -> Option<String> {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let mut lines = status.lines();
        let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(list.trim().to_owned())
    }

    let threads = engine().threads();
    if threads < 2 {
        println!("skipped: this process may use one processor only");
        return;
    }
    let before = processors(Path::new("/proc/thread-self")).unwrap();
    let models = models();
    let options = Options {
        workers: NonZero::new(2).unwrap(),
        memory: MEMORY,
        capacity: 10,
        ceiling: None,
        pins: Some(Pins::find().unwrap()),
    };
    let scheduler = Scheduler::start(engine(), &models, options);
    let (tell, told) = channel();
    for seed in 0..8 {
        let tell = tell.clone();
        let mut number = 0;
        let follow = Box::new(move |news: News<'_>| {
            if let News::Began { worker } = news {
                number = worker;
            }
            let own = processors(Path::new("/proc/thread-self")).unwrap();
            tell.send((number, own)).unwrap();
        });
        scheduler
            .submit(job(&models, &small(seed), ""), follow)
            .unwrap();
    }
    drop(tell);
    let heard: BTreeSet<(usize, String)> = told.iter().collect();
    let lists: BTreeSet<&String> = heard.iter().map(|(_, list)| list).collect();
    assert!(heard.len() == 2 && lists.len() == 2, "{heard:?}");
    // All jobs have ended, and the workers wait for more.
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let tasks: Vec<String> = tasks
        .filter_map(|task| processors(&task.unwrap().path()))
        .collect();
    scheduler.finish();
    for list in lists {
        // Its two jobs' threads.
        let count = tasks.iter().filter(|own| *own == list).count();
        assert!(*list != before && count >= 2, "{list}: {tasks:?}");
    }
    assert_eq!(processors(Path::new("/proc/thread-self")).unwrap(), before);
}

/// Other providers compile portable graphs, weights and all, for every worker.
#[test]
fn a_provider_with_graphs_of_its_own_shares_no_weights() {
    let models = models();
    let plans = Plans::resolve(&small(1), &models, MEMORY).unwrap();
    assert_eq!(plans.memory_with(Ep::Cpu, &models), plans.memory);
    let needs = plans.memory_with(Ep::OpenVino, &models);
    assert!(needs.mapped == 0 && needs.own == needs.total && needs.own > 0);
}

#[test]
fn a_job_is_cancelled_inside_of_a_graph_and_a_full_queue_refuses() {
    let models = models();
    let scheduler = scheduler(&models, 1, 1);
    let (tell, told) = channel();
    let submit = |seconds: usize| {
        let tell = tell.clone();
        let request = Request {
            width: Some(256),
            height: Some(256),
            steps: Some(seconds),
            ..small(1)
        };
        let follow = Box::new(move |news: News<'_>| {
            let _ = match news {
                News::Run(Event::Called { .. }) => tell.send("called"),
                News::Ended(Err(JobError::Cancelled)) => tell.send("cancelled"),
                _ => Ok(()),
            };
        });
        scheduler.submit(job(&models, &request, ""), follow)
    };
    let running = submit(1000).unwrap();
    assert_eq!(told.recv().unwrap(), "called");
    // One more has begun to read its prompt or will, and one waits.
    let mut more = Vec::new();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match submit(1000) {
            Ok(handle) => more.push(handle),
            Err(error) => {
                assert_eq!(error, SubmitError::Full { capacity: 1 });
                if more.len() == 2 {
                    break;
                }
            }
        }
        assert!(Instant::now() < deadline);
    }
    running.cancel();
    while told.recv().unwrap() != "cancelled" {}
    scheduler.stop().all();
    scheduler.finish();
    let ended = told.try_iter().filter(|&text| text == "cancelled").count();
    assert_eq!(ended, 2);
    assert!(matches!(submit(1), Err(SubmitError::Closed)));
}
