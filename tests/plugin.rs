//! A provider that is a library of its own. The one here (`plugin/library.rs`) takes no node, which is warned of or refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::Write;
use std::path::PathBuf;

use sd_runtime::engine::{
    Cancel, Dialect, Engine, EngineError, EngineOptions, Ep, EpOption, EpOptions, plugin_title,
};
use sd_runtime::pipeline::{ModelDir, Models, Outcome, PipelineError, Plans, Request, run};
use sdrt_tests::{circle, demo_model, psnr};

/// The library, which Cargo builds with the examples.
fn library() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap().join("examples");
    let name = format!(
        "{}plugin{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let found = Some(folder.join(name)).filter(|path| path.is_file());
    if found.is_none() {
        let text =
            "SKIPPED: the plugin was not built; `cargo build --workspace --example plugin` does\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    found
}

fn picture(engine: &Engine) -> Result<Outcome, PipelineError> {
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = Request {
        graph: Dialect::Portable,
        ..circle()
    };
    let plans = Plans::resolve(&request, &models, u64::MAX)?;
    run(&plans, &models, engine, &Cancel::new(), &mut |_| (), None)
}

#[test]
fn a_plugin_has_devices_options_and_nodes_that_it_leaves() {
    let Some(library) = library() else { return };
    let options = EngineOptions {
        ep: Ep::Plugin,
        plugin: Some(library.clone()),
        ..EngineOptions::default()
    };
    let mut engine = Engine::start(&options).unwrap();
    // ONNX Runtime's own kernels compute what it does not take.
    let by_plugin = picture(&engine).unwrap();
    let title = plugin_title(&library).unwrap();
    let computed = [("EP", "plugin".to_owned()), ("Plugin", title)];
    assert_eq!(by_plugin.computed, computed);

    engine
        .provide(Ep::Plugin, &EpOptions::default(), true)
        .unwrap();
    let strict = picture(&engine).unwrap_err();
    let PipelineError::Engine(error @ EngineError::FellBack { .. }) = &strict else {
        panic!("{strict}");
    };
    assert!(error.to_string().contains("not taken by plugin"), "{error}");

    let mut provide = |option: &str| {
        let options: [EpOption; 1] = [option.parse().unwrap()];
        let options = Ep::Plugin.check(&options).unwrap();
        engine.provide(Ep::Plugin, &options, false)
    };
    provide("device=0").unwrap();
    provide("its_own=option").unwrap();
    for wrong in ["device=7", "device=gpu"] {
        let error = provide(wrong).unwrap_err().to_string();
        let library = library.to_str().unwrap();
        assert!(
            error.contains(library) && error.contains("its devices are 0 (CPU"),
            "{error}"
        );
    }

    engine
        .provide(Ep::Cpu, &EpOptions::default(), false)
        .unwrap();
    let by_cpu = picture(&engine).unwrap();
    let [a, b] = [&by_plugin, &by_cpu].map(|outcome| &outcome.pictures[0].rgb);
    assert!(psnr(a, b) > 50.0, "{}", psnr(a, b));
}
