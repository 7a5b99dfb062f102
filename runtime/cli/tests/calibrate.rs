//! `sdrun calibrate`: ranges are those of what went into layers, graphs that have them are closer to the model, and models whose weights
//! are no whole numbers are refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{folder, run, runtime_library, sdrun};
use ndarray::{ArrayD, Axis};
use sd_converter::build::{BuildOptions, BuildPlan, Precision, Ranges};
use sd_converter::calibrated::Calibrated;
use sd_converter::checkpoint::{SafetensorsFile, TensorSource, to_f32};
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use sd_models::calibration::{Calibration, Range};
use sd_models::demo;
use sd_runtime::engine::{Cancel, Engine, EngineOptions, Input, Key};
use sd_runtime::pipeline::ModelDir;

/// The demo model in a folder.
fn converted(
    dir: &Path,
    name: &str,
    precision: Precision,
    calibrated: Option<Calibrated>,
) -> PathBuf {
    let source = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let options = BuildOptions {
        precision,
        calibrated,
        ..BuildOptions::default()
    };
    let weights = Weights::from_source(Box::new(source)).unwrap();
    let plan = BuildPlan::new(Box::new(weights), options).unwrap();
    let path = dir.join(name);
    plan.write(&path, &Unwatched).unwrap();
    path
}

const PROMPTS: [&str; 2] = [
    "a large red circle on a blue background",
    "a small yellow star",
];

fn calibrated(dir: &Path) -> Calibration {
    let (code, said, errors) = run(sdrun(dir)
        .args(["calibrate", "-m", "int8", "-p", PROMPTS[0]])
        .args([
            "--prompts",
            "prompts.txt",
            "--steps",
            "4",
            "-o",
            "ranges.json",
        ]));
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.contains("in 2 pictures of 4 steps"), "{said}");
    Calibration::parse(&fs::read_to_string(dir.join("ranges.json")).unwrap()).unwrap()
}

fn tensor(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    to_f32(file.tensors()[name].dtype, &file.bytes(name).unwrap()).unwrap()
}

#[test]
fn ranges_are_those_of_what_layers_are_given_and_bring_graphs_closer() {
    let dir = folder();
    let path = dir.path();
    let int8 = converted(path, "int8", Precision::Int8, None);
    fs::write(
        path.join("prompts.txt"),
        format!("# a remark\n\n{}\n", PROMPTS[1]),
    )
    .unwrap();
    let found = calibrated(path);

    // What cross-attention is given are the embeddings of prompts and of no negative prompt.
    let mut given: Option<Range> = None;
    for (seed, prompt) in PROMPTS.iter().enumerate() {
        let dump = format!("{seed}.safetensors");
        let (code, _, errors) = run(sdrun(path)
            .args([
                "txt2img", "-m", "int8", "--steps", "1", "-p", prompt, "--dump", &dump,
            ])
            .args(["-o", "picture.png"]));
        assert_eq!(code, Some(0), "{errors}");
        let dump = SafetensorsFile::open(&path.join(dump)).unwrap();
        for name in ["text_embeddings", "text_embeddings_uncond"] {
            let range = Range::of(&tensor(&dump, name)).unwrap();
            given = Some(given.map_or(range, |given| given.and(range)));
        }
    }
    let of = |layer: &str| found.layers[layer];
    let block = "mid_block.attentions.0.transformer_blocks.0";
    assert_eq!(Some(of(&format!("{block}.attn2.to_v"))), given);
    assert_eq!(
        of(&format!("{block}.attn1.to_q")),
        of(&format!("{block}.attn1.to_k"))
    );
    // Sines and cosines, and what SiLU makes.
    let times = of("time_embedding.linear_1");
    assert!(
        times.least >= -1.0 && times.largest <= 1.0 && times.largest > 0.99,
        "{times:?}"
    );
    assert!(of("mid_block.resnets.0.conv1").least >= -0.278_464_6);
    assert!(found.layers.contains_key("up_blocks.0.upsamplers.0.conv"));
    assert!(found.layers.contains_key("down_blocks.0.resnets.0.conv1"));
    let recorded = ModelDir::open(&int8).unwrap();
    let data = &recorded.recorded("unet").unwrap().files["model.onnx_data"];
    assert_eq!(found.weights, data.sha256);

    let file = Calibrated::read(
        &fs::read_to_string(path.join("ranges.json")).unwrap(),
        Path::new("ranges.json"),
    )
    .unwrap();
    let precision = Precision::Int8Portable(Ranges::Static);
    let norms = converted(path, "norms", precision, None);
    let ranges = converted(path, "ranges", precision, Some(file));
    let options = EngineOptions {
        library: Some(runtime_library().to_owned()),
        ..EngineOptions::default()
    };
    let engine = Engine::start(&options).unwrap();
    let dump = SafetensorsFile::open(&path.join("1.safetensors")).unwrap();
    let array = |name: &str| {
        let shape = dump.tensors()[name].shape.clone();
        ArrayD::from_shape_vec(shape, tensor(&dump, name)).unwrap()
    };
    let (noise, context) = (array("initial_noise"), array("text_embeddings"));
    assert_eq!(context.len_of(Axis(0)), 1);
    let call = |model: &Path, graph: &str, t: f32| {
        let timestep = ndarray::arr0(t).into_dyn();
        let inputs = [
            ("sample", Input::F32(noise.view())),
            ("timestep", Input::F32(timestep.view())),
            ("encoder_hidden_states", Input::F32(context.view())),
        ];
        let opened = ModelDir::open(model).unwrap();
        let key = Key::new(model, "unet", &[]).variant(graph);
        let lease = engine.lease(&key, opened.manifest.as_ref(), &Cancel::new());
        let outputs = lease.unwrap().run(&inputs, &["out_sample"], &Cancel::new());
        outputs.unwrap().remove(0)
    };
    let error = |model: &Path| {
        let squares = [999.0, 500.0].map(|t| {
            let (exact, found) = (call(&int8, "native.onnx", t), call(model, "model.onnx", t));
            let norm = |x: &ArrayD<f32>| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            norm(&(&found - &exact)) / norm(&exact)
        });
        (squares.iter().sum::<f64>() / 2.0).sqrt()
    };
    let (by_norms, by_ranges) = (error(&norms), error(&ranges));
    assert!((1e-4..1e-2).contains(&by_norms), "{by_norms:.2e}");
    // More layers are rounded, and those behind norms in finer steps.
    assert!(
        by_ranges < 1.1 * by_norms,
        "{by_ranges:.2e}, {by_norms:.2e}"
    );
    let rounded = |model: &Path| {
        let graph = fs::read(model.join("unet/model.onnx")).unwrap();
        let word = b"QuantizeLinear";
        graph
            .windows(word.len())
            .filter(|found| found == word)
            .count()
    };
    assert!(rounded(&ranges) > rounded(&norms));
}

#[test]
fn models_and_prompts_that_have_no_ranges_are_refused() {
    let dir = folder();
    converted(dir.path(), "float", Precision::Published, None);
    let calibrate = |more: &[&str]| {
        run(sdrun(dir.path())
            .args(["calibrate", "-m", "float", "-o", "ranges.json"])
            .args(more))
    };
    let (code, _, errors) = calibrate(&["-p", "a circle"]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("--precision int8"), "{errors}");
    // What the hint says is an option of this command, and a full disk is no matter of conversions.
    if cfg!(target_os = "linux") {
        converted(dir.path(), "int8", Precision::Int8, None);
        let calibrate = |more: &[&str]| {
            let small = ["-W", "64", "-H", "64", "--steps", "1", "-o", "/dev/full"];
            let prompt = ["calibrate", "-m", "int8", "-p", "a circle <lora:foo:1>"];
            run(sdrun(dir.path()).args(prompt).args(small).args(more))
        };
        let (code, _, errors) = calibrate(&[]);
        assert!(
            code == Some(1) && errors.contains("--ignore-lora-tags"),
            "{errors}"
        );
        let (code, _, errors) = calibrate(&["--ignore-lora-tags"]);
        let says = |word| errors.contains(word);
        assert!(
            code == Some(1) && says("make room") && !says("conversion"),
            "{errors}"
        );
    }
    fs::write(dir.path().join("prompts.txt"), "# nothing\n").unwrap();
    let (code, _, errors) = calibrate(&["--prompts", "prompts.txt"]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("no prompts"), "{errors}");
    assert_eq!(calibrate(&[]).0, Some(2));
    assert!(!dir.path().join("ranges.json").exists());
}
