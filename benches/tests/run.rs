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
        let mut args = vec!["--runs", "1", "-m", &model, "--dump", &dump];
        let refiner = refiner.as_ref().map(|(_dir, refiner)| text(refiner));
        if let Some(refiner) = &refiner {
            args.extend(["--refiner", refiner]);
        }
        let report = sdbench("run", &args);
        for network in networks.iter().chain(&["unet", "vae_decoder"]) {
            let seconds = &report[network]["pass_s"]["median"];
            assert!(seconds.as_f64().is_some(), "{family} {network}: {report}");
            assert_eq!(report[network]["compute"], "f32");
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
