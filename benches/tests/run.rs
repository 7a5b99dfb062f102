//! `sdbench run` on every kind of model that `sdrun` runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;
use std::process::Command;

use sdrt_tests::{engine, synthetic};
use serde_json::Value;

fn sdbench(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .args(["run", "--runs", "1", "--size", "64"])
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
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
        let (_dir, model) = synthetic(family);
        let refiner = refiner.map(synthetic);
        let mut args = vec!["-m".to_owned(), text(&model)];
        if let Some((_dir, refiner)) = &refiner {
            args.extend(["--refiner".to_owned(), text(refiner)]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let report = sdbench(&args);
        for network in networks.iter().chain(&["unet", "vae_decoder"]) {
            let seconds = &report[network]["pass_s"]["median"];
            assert!(seconds.as_f64().is_some(), "{family} {network}: {report}");
        }
    }
}
