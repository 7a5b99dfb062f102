//! `sdbench run` on every kind of model that `sdrun` runs, and `sdbench ops` on native graphs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;
use sdrt_tests::{demo_model, engine, synthetic};
use serde_json::Value;

fn sdbench(command: &str, args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .args([command, "--size", "64"])
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `sdbench` says of a command line that is wrong, which it answers with 2.
fn refused(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    said
}

#[test]
fn wrong_usage_is_answered_with_2() {
    let model = demo_model().to_str().unwrap();
    for (args, said) in [
        (["run", "-m", model, "--runs", "0"], "--runs"),
        (["run", "-m", model, "--size", "100"], "104"),
        (["run", "-m", model, "--ep", "abacus"], "abacus"),
        (["run", "-m", model, "--ep", "cpu,abacus"], "openvino"),
        (["run", "-m", model, "--ep-option", "a=b"], "cpu"),
        (["run", "-m", model, "--sampler", "Eler"], "nearest: Euler"),
        (["run", "-m", model, "--parts", "all"], "pictures"),
        (["run", "--size", "64", "--synth", "sd16"], "sd15"),
        (["run", "--size", "64", "--rounds", "1"], "--synth FAMILY"),
        (["ops", "-m", model, "--component", "vae"], "vae_decoder"),
    ] {
        let text = refused(&args);
        assert!(text.contains(said), "{args:?}: {text}");
    }
}

#[test]
fn networks_of_every_family_are_timed() {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (family, refiner, networks) in [
        ("sd15", None, &["text_encoder"][..]),
        ("sd21", None, &["text_encoder"]),
        ("sd15-lcm", None, &["text_encoder"]),
        (
            "sdxl",
            Some("sdxl-refiner"),
            &[
                "text_encoder",
                "text_encoder_2",
                "text_encoder_2_refiner",
                "unet_refiner",
            ],
        ),
    ] {
        let (dir, model) = synthetic(family);
        let refiner = refiner.map(synthetic);
        let dump = dir.path().join("dump.safetensors");
        let (model, dump) = (text(&model), text(&dump));
        let mut args = vec!["--runs", "1", "--rounds", "1", "--steps", "2"];
        args.extend(["-m", &model, "--dump", &dump]);
        let refiner = refiner.as_ref().map(|(_dir, refiner)| text(refiner));
        if let Some(refiner) = &refiner {
            args.extend(["--refiner", refiner]);
        }
        let report = sdbench("run", &args);
        let measured = &report["configurations"][0]["measured"];
        let per_hour = measured["picture"]["pictures_per_hour"].as_f64();
        assert!(per_hour.unwrap() > 0.0, "{family}: {report}");
        for network in networks.iter().chain(&["unet", "vae_decoder"]) {
            let figures = &measured["networks"][network];
            let seconds = &figures["pass_s"]["median"];
            assert!(seconds.as_f64().is_some(), "{family} {network}: {report}");
            assert_eq!(figures["compute"], "f32");
            assert!(
                figures["flop"].as_f64().unwrap() > 0.0,
                "{family} {network}"
            );
        }
        let bytes = std::fs::read(&dump).unwrap();
        let dump = SafeTensors::deserialize(&bytes).unwrap();
        let inputs = ["sample", "timestep", "encoder_hidden_states"].map(|x| format!("unet.{x}"));
        let others = ["unet.out_sample", "vae_decoder.latent_sample"].map(str::to_owned);
        for name in inputs.iter().chain(&others) {
            assert!(dump.tensor(name).is_ok(), "{family} {name}");
        }
        assert_eq!(dump.tensor("unet.text_embeds").is_ok(), family == "sdxl");
        assert_eq!(
            dump.tensor("unet.timestep_cond").is_ok(),
            family == "sd15-lcm"
        );
    }
}

/// A provider that the library lacks fails alone, and combinations that make no sense are left out.
#[test]
fn all_combinations_are_measured_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, html) = (dir.path().join("models"), dir.path().join("a.html"));
    let report = sdbench(
        "run",
        &[
            "--synth",
            "sd15:tiny",
            "--models-dir",
            folder.to_str().unwrap(),
            "--ep",
            "cpu,rocm",
            "--graph",
            "native,portable",
            "--compute",
            "f32,i16",
            "--threads",
            "1",
            "--sampler",
            "Euler,DPM++ 2M",
            "--steps",
            "2",
            "--batch",
            "2",
            "--runs",
            "2",
            "--rounds",
            "2",
            "--warm-up",
            "0",
            "--html",
            html.to_str().unwrap(),
        ],
    );
    let configurations = report["configurations"].as_array().unwrap();
    let (failed, measured): (Vec<_>, Vec<_>) = configurations
        .iter()
        .partition(|configuration| configuration["measured"].is_null());
    assert!(!measured.is_empty() && failed.len() == measured.len());
    for configuration in failed {
        assert_eq!(configuration["case"]["ep"], "rocm");
        let problem = configuration["failed"].as_str().unwrap();
        assert!(problem.contains("rocm"), "{problem}");
    }
    for configuration in measured {
        let case = &configuration["case"];
        assert_eq!((&case["ep"], &case["threads"]), (&"cpu".into(), &1.into()));
        assert_eq!(case["model"], "synth-sd15-tiny");
        assert!(case["graph"] == "native" || case["compute"] == "f32");
        let figures = &configuration["measured"];
        let (unet, picture) = (&figures["networks"]["unet"], &figures["picture"]);
        assert_eq!(unet["graph"], case["graph"]);
        let passes = unet["passes_s"].as_array().unwrap();
        assert!(
            passes
                .iter()
                .all(|round| round.as_array().unwrap().len() == 2)
        );
        let all = |spread: &Value| spread["all"].as_array().unwrap().len();
        assert_eq!([all(&unet["pass_s"]), all(&picture["total_s"])], [2, 2]);
        assert_eq!(picture["calls"], 2);
        let number = |value: &Value| value.as_f64().unwrap();
        let (total, step) = (
            number(&picture["total_s"]["min"]),
            number(&picture["step_s"]["min"]),
        );
        // Two pictures of two steps.
        assert!(4.0 * step < total, "{picture}");
        assert!(number(&unet["peak_percent"]) > 0.0);
        if cfg!(target_os = "linux") {
            let peak = &figures["peak"];
            let kinds = ["anonymous_bytes", "file_bytes"].map(|kind| number(&peak[kind]));
            assert!(kinds.iter().all(|&bytes| bytes > 1e6), "{peak}");
        }
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("Most memory") && page.contains("rocm"));
}

/// Another build takes turns with this one, and what cannot be started is said.
#[test]
fn other_builds_are_measured_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("sdbench");
    std::fs::copy(env!("CARGO_BIN_EXE_sdbench"), &other).unwrap();
    let model = demo_model().to_str().unwrap();
    let other = other.to_str().unwrap();
    let args = [
        "-m",
        model,
        "--runs",
        "1",
        "--rounds",
        "1",
        "--warm-up",
        "0",
        "--parts",
        "networks",
        "--program",
    ];
    let report = sdbench("run", &[&args[..], &[other]].concat());
    let configurations = report["configurations"].as_array().unwrap();
    let programs: Vec<_> = configurations
        .iter()
        .map(|c| &c["case"]["program"])
        .collect();
    assert_eq!(programs, ["this", other]);
    assert!(
        configurations.iter().all(|c| c["measured"].is_object()),
        "{report}"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .arg("run")
        .args(args)
        .arg("nowhere/sdbench")
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("cannot start nowhere/sdbench"),
        "{said}"
    );
}

/// The part that depends on the prompt runs once, the one that depends on the noise level in every pass.
#[test]
fn all_graphs_of_a_native_network_are_profiled() {
    let (_dir, model) = synthetic("sd15");
    let model = model.to_str().unwrap();
    let args = ["--runs", "2", "-m", model, "--graph", "native", "--json"];
    let report = sdbench("ops", &args);
    assert_eq!(report["graph"], "native");
    let graphs = report["graphs"].as_array().unwrap();
    let runs = |file: &str| {
        let graph = graphs.iter().find(|graph| graph["file"] == file).unwrap();
        graph["runs"].as_u64().unwrap()
    };
    assert_eq!(runs("native.onnx"), 2);
    assert_eq!(runs("native.time.onnx"), 2);
    assert_eq!(runs("native.prompt.onnx"), 1);
    let classes = graphs[0]["classes"].as_array().unwrap();
    for class in ["conv3x3 8x8", "linear", "attention", "norm"] {
        let row = classes.iter().find(|row| row["class"] == class);
        let row = row.unwrap_or_else(|| panic!("no `{class}`: {report}"));
        let counts = row["flop"].as_f64().unwrap() > 0.0;
        assert_eq!(counts, class != "norm", "{row}");
    }
}
