//! OpenVINO as a provider: the same pictures as the CPU's, from weights of every kind, with nothing left to other kernels.
//!
//! These tests need a library with the provider: the one that `SDRT_TEST_OPENVINO` names, or that `sdrun setup --ep openvino` put
//! into the user's data folder. Without one they are skipped, and say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use sd_converter::build::Precision;
use sd_converter::checkpoint::SafetensorsFile;
use sd_models::demo;
use sd_runtime::engine::{
    Cancel, Compute, Dialect, Engine, EngineError, EngineOptions, Ep, EpOption, EpOptions, Input,
    Key, library,
};
use sd_runtime::pipeline::{self, ModelDir, Models, Plans, Request};
use sdrt_tests::{circle, converted_as, demo_model, psnr};

const VARIABLE: &str = "SDRT_TEST_OPENVINO";

/// The library with the provider. Tests' own output is not shown when they succeed, so this goes past it.
fn library() -> Option<PathBuf> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let found = named.or_else(|| {
        let folder = library::setup_dir(Ep::OpenVino);
        folder.is_dir().then_some(folder)
    });
    if found.is_none() {
        let text = format!(
            "SKIPPED: no library with OpenVINO; `sdrun setup --ep openvino` fetches one, {VARIABLE} names one\n"
        );
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    found
}

/// The one ONNX Runtime of this process, for one test at a time.
fn engine(library: &Path) -> MutexGuard<'static, Engine> {
    static ENGINE: OnceLock<Mutex<Engine>> = OnceLock::new();
    let options = EngineOptions {
        library: Some(library.to_owned()),
        ..EngineOptions::default()
    };
    let engine = ENGINE.get_or_init(|| Mutex::new(Engine::start(&options).unwrap()));
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// OpenVINO that has to take every node.
fn provide(engine: &mut Engine, options: &[&str]) -> Result<(), EngineError> {
    let options: Vec<EpOption> = options.iter().map(|text| text.parse().unwrap()).collect();
    engine.provide(Ep::OpenVino, &Ep::OpenVino.check(&options).unwrap(), true)
}

/// A picture's bytes, and the dialect of its UNet.
fn picture(engine: &Engine, model: &Path, request: &Request) -> (Vec<u8>, &'static str) {
    let models = Models::one(ModelDir::open(model).unwrap());
    let plans = Plans::resolve(request, &models, u64::MAX).unwrap();
    let cancel = Cancel::new();
    let outcome = pipeline::run(&plans, &models, engine, &cancel, &mut |_| {}, None).unwrap();
    (outcome.pictures[0].rgb.clone(), outcome.graph)
}

#[test]
fn pictures_are_the_same_as_the_cpus() {
    let Some(library) = library() else { return };
    // Long prompts are several chunks, and a negative prompt of one makes sequences of different lengths.
    let long = Request {
        prompt: format!("{} {}", circle().prompt, "circle, ".repeat(80)),
        negative_prompt: Some("yellow".to_owned()),
        width: Some(192),
        height: Some(128),
        ..circle()
    };
    let source = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let (_dir, int8) = converted_as(source, Precision::Int8);
    let cases = [
        (demo_model(), circle()),
        (demo_model(), long),
        (&*int8, circle()),
    ];
    let portable = |request: &Request| Request {
        graph: Dialect::Portable,
        ..request.clone()
    };
    let mut engine = engine(&library);
    engine
        .provide(Ep::Cpu, &EpOptions::default(), true)
        .unwrap();
    let expected = cases
        .each_ref()
        .map(|(model, request)| picture(&engine, model, &portable(request)).0);
    provide(&mut engine, &[]).unwrap();
    for ((model, request), expected) in cases.iter().zip(&expected) {
        let (found, graph) = picture(&engine, model, request);
        assert_eq!(graph, "portable");
        // Single precision that adds up in another order changes a byte by one here and there.
        let db = psnr(&found, expected);
        assert!(
            db > 55.0,
            "{}, {:?}: {db:.1} dB",
            model.display(),
            request.width
        );
    }
}

/// What a provider computes badly is computed by the processor. Native graphs show who that was: no provider has their operators.
#[test]
fn a_network_may_be_the_processors_whatever_the_provider() {
    let Some(library) = library() else { return };
    let mut engine = engine(&library);
    provide(&mut engine, &[]).unwrap();
    let model = ModelDir::open(demo_model()).unwrap();
    let dims = [("batch", 1), ("height", 8), ("width", 8)];
    let wish = (Dialect::Native, Compute::F32);
    let (key, _) = model.key("vae_decoder", &dims, Ep::Cpu, wish).unwrap();
    let latents = ndarray::Array4::from_shape_fn((1, 4, 8, 8), |(_, c, y, x)| {
        (c * 5 + y * 3 + x) as f32 / 40.0 - 0.5
    });
    let decode = |engine: &Engine, key: &Key| {
        let manifest = model.manifest.as_ref();
        let mut decoder = engine.lease(key, manifest, &Cancel::new())?;
        let input = [("latent_sample", Input::F32(latents.view().into_dyn()))];
        let decoded = decoder.run(&input, &["sample"], &Cancel::new())?;
        assert_eq!(decoder.left_to_cpu(), [""; 0]);
        Ok::<_, EngineError>(decoded)
    };
    assert!(
        decode(&engine, &key).is_err(),
        "OpenVINO would have to take it"
    );
    let by_processor = decode(&engine, &key.clone().on_processor()).unwrap();
    engine
        .provide(Ep::Cpu, &EpOptions::default(), true)
        .unwrap();
    assert_eq!(decode(&engine, &key).unwrap(), by_processor);
}

#[test]
fn bf16_is_computed_where_the_processor_can_and_refused_elsewhere() {
    let Some(library) = library() else { return };
    let mut engine = engine(&library);
    provide(&mut engine, &["num_streams=1"]).unwrap();
    let request = Request {
        compute: Compute::Bf16,
        ..circle()
    };
    if sd_kernels::Isa::detect().multiplies_bf16() {
        let (exact, _) = picture(&engine, demo_model(), &circle());
        let (rounded, _) = picture(&engine, demo_model(), &request);
        let db = psnr(&rounded, &exact);
        assert!((20.0..60.0).contains(&db), "{db:.1} dB");
    } else {
        let model = ModelDir::open(demo_model()).unwrap();
        let wish = (Dialect::Auto, Compute::Bf16);
        let error = model.key("unet", &[], Ep::OpenVino, wish).unwrap_err();
        assert!(error.to_string().contains("AVX512-BF16"), "{error}");
    }
}

#[test]
fn a_library_whose_neighbours_are_missing_is_told_with_their_name() {
    let Some(library) = library() else { return };
    let folder = match library.is_dir() {
        true => library,
        false => library.parent().unwrap().to_owned(),
    };
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("libonnxruntime") {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    // A process that has loaded OpenVINO finds it again, so this looks from another one.
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program)
        .args([
            "--exact",
            "child_without_neighbours",
            "--ignored",
            "--nocapture",
        ])
        .env("SDRT_TEST_STRIPPED", dir.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
}

#[test]
#[ignore = "another test starts it in a process of its own"]
fn child_without_neighbours() {
    let folder = PathBuf::from(std::env::var_os("SDRT_TEST_STRIPPED").unwrap());
    let error = provide(&mut engine(&folder), &[]).unwrap_err();
    assert!(error.to_string().contains("libopenvino"), "{error}");
    assert!(error.hint().is_some());
}
