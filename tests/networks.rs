//! Networks that stay in memory between requests to one engine.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sd_runtime::engine::{Cancel, EngineError};
use sd_runtime::pipeline::{self, Event, ModelDir, Models, PipelineError, Plans, Request, Stage};
use sdrt_tests::{circle, copy_dir, demo_model, engine, make, make_with, synthetic};

/// More than the tiny models have.
const ENOUGH: u64 = 1 << 30;

/// Tests of one engine's pool take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    engine().pool().set_budget(0);
    turn
}

/// Networks that were loaded, reused and evicted during some work.
fn counted(work: impl FnOnce()) -> [u64; 3] {
    let counts = || {
        let usage = engine().pool().usage();
        [usage.loaded, usage.reused, usage.evicted]
    };
    let before = counts();
    work();
    let after = counts();
    [0, 1, 2].map(|i| after[i] - before[i])
}

fn short() -> Request {
    Request {
        steps: Some(2),
        ..circle()
    }
}

#[test]
fn requests_to_one_engine_share_networks_within_its_budget() {
    let _alone = alone();
    let picture = || make(demo_model(), &short(), None).unwrap().pictures;
    let mut without = Vec::new();
    assert_eq!(counted(|| without = picture()), [3, 0, 3]);
    assert_eq!(engine().pool().usage().idle, 0);
    engine().pool().set_budget(ENOUGH);
    assert_eq!(counted(|| assert!(picture() == without)), [3, 0, 0]);
    assert_eq!(counted(|| assert!(picture() == without)), [0, 3, 0]);
    // Another size is another UNet and another decoder.
    let wide = || {
        let request = Request {
            width: Some(192),
            ..short()
        };
        make(demo_model(), &request, None).unwrap();
    };
    assert_eq!(counted(wide), [2, 1, 0]);
    assert_eq!(engine().pool().usage().leased, 0);
    engine().pool().set_budget(0);
    assert_eq!(engine().pool().usage().idle, 0);
}

#[test]
fn a_refiner_and_its_base_model_stay_for_the_next_picture() {
    let _alone = alone();
    let (_base, base) = synthetic("sdxl");
    let (_refiner, refiner) = synthetic("sdxl-refiner");
    let models = Models {
        refiner: Some(ModelDir::open(&refiner).unwrap()),
        ..Models::one(ModelDir::open(&base).unwrap())
    };
    let request = Request {
        width: Some(64),
        height: Some(64),
        steps: Some(4),
        refiner_start: 0.5,
        batch: 3,
        ..Request::default()
    };
    let picture = || make_with(&models, &request, None).unwrap().pictures;
    let mut without = Vec::new();
    // Three text encoders, six UNets, a decoder.
    assert_eq!(counted(|| without = picture()), [10, 0, 10]);
    engine().pool().set_budget(ENOUGH);
    assert_eq!(counted(|| assert!(picture() == without)), [6, 4, 0]);
}

#[test]
fn kept_networks_do_not_hide_damage() {
    let _alone = alone();
    engine().pool().set_budget(ENOUGH);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let picture = || make(&path, &short(), None).map(|made| made.pictures);
    let right = picture().unwrap();
    let data = path.join("unet/model.onnx_data");
    let bytes = fs::read(&data).unwrap();
    let mut altered = bytes.clone();
    altered[100_000] ^= 1;
    // In place of the file, since kept networks map it.
    fs::remove_file(&data).unwrap();
    fs::write(&data, &altered).unwrap();
    let error = picture().unwrap_err().to_string();
    assert!(error.contains("unet/model.onnx_data") && error.contains("SHA-256"));
    fs::remove_file(&data).unwrap();
    fs::write(&data, &bytes).unwrap();
    assert!(picture().unwrap() == right);
}

#[test]
fn a_run_that_stops_while_it_loads_leaves_the_engine_usable() {
    let _alone = alone();
    engine().pool().set_budget(ENOUGH);
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let plans = Plans::resolve(&short(), &models, u64::MAX).unwrap();
    let cancel = Cancel::new();
    let mut stop = |event: Event<'_>| {
        if event == Event::Stage(Stage::Load) {
            cancel.cancel();
        }
    };
    let result = pipeline::run(&plans, &models, engine(), &cancel, &mut stop, None);
    let interrupted = matches!(result, Err(PipelineError::Engine(EngineError::Interrupted)));
    assert!(interrupted);
    assert_eq!(engine().pool().usage().leased, 0);
    make(demo_model(), &short(), None).unwrap();
}

#[test]
fn threads_take_turns_at_one_copy() {
    let _alone = alone();
    let picture = || make(demo_model(), &short(), None).unwrap().pictures;
    let one = picture();
    engine().pool().set_budget(ENOUGH);
    let threads = || {
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(picture));
            for thread in both {
                assert!(thread.join().unwrap() == one);
            }
        });
    };
    assert_eq!(counted(threads), [3, 3, 0]);
}
