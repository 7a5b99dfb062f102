//! `sdbench determinism` from the command line to the page.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use sd_converter::build::Precision;
use sd_converter::checkpoint::SafetensorsFile;
use sd_models::demo;
use sdrt_tests::{converted_as, demo_model, engine, synthetic};
use serde_json::Value;
use tempfile::TempDir;

fn determinism(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sdbench"))
        .arg("determinism")
        .args(args)
        .env("ORT_DYLIB_PATH", &engine().library().path)
        .output()
        .unwrap()
}

/// The figures of a small picture of the demo model.
fn figures(args: &[&str]) -> Value {
    let model = demo_model().to_str().unwrap();
    let output = determinism(&[&["-m", model], args].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is said of a command line that cannot be, and the exit code.
fn refused(args: &[&str]) -> (i32, String) {
    let output = determinism(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

/// A recording of the demo model: two steps at 64x64, seed 3.
fn recording() -> &'static Path {
    static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.safetensors");
        let file = path.to_str().unwrap();
        let small = ["--size", "64", "--steps", "2", "--seed", "3"];
        let found = figures(&[&small[..], &["--threads", "2", "--record", file]].concat());
        assert_eq!(found["pairs"], Value::Array(Vec::new()));
        (dir, path)
    });
    path
}

/// The recording with its header or numbers changed, in a file.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> (TempDir, String) {
    let mut bytes = fs::read(recording()).unwrap();
    change(&mut bytes);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.safetensors");
    fs::write(&path, bytes).unwrap();
    let name = path.to_str().unwrap().to_owned();
    (dir, name)
}

/// Puts words of the same length into the header.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut places = bytes.windows(from.len());
    let at = places.position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from} in the header"));
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn native_graphs_give_the_same_bits_with_any_threads_and_again() {
    let file = recording().to_str().unwrap();
    let found = figures(&["--against", file, "--threads", "1,2", "--repeats", "2"]);
    assert_eq!(found["schema"], 1);
    assert_eq!(found["command"], "determinism");
    assert_eq!(found["request"]["seed"], 3);
    let pairs = found["pairs"].as_array().unwrap();
    assert!(pairs.len() >= 2);
    for pair in pairs {
        let name = &pair["variant"]["name"];
        assert_eq!(pair["verdict"], "bit_equal", "{name}");
        assert_eq!(
            [&pair["cause"], &pair["origin"]],
            [&Value::Null; 2],
            "{name}"
        );
        for part in ["noise", "text", "unet", "vae"] {
            assert_eq!(pair[part]["equal"], true, "{name}: {part}");
        }
        for part in ["open_loop", "closed_loop", "whole_run"] {
            let distances = pair[part]["distances"].as_array().unwrap();
            assert_eq!(distances.len(), 2, "{name}: {part}");
            assert!(
                distances.iter().all(|d| d["equal"] == true),
                "{name}: {part}"
            );
        }
    }
}

#[test]
fn every_part_is_told_apart_and_the_page_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let (_dir, int8) = converted_as(source, Precision::Int8);
    let page = dir.path().join("a <b>.html");
    let (int8, html) = (int8.to_str().unwrap(), page.to_str().unwrap());
    let ways = [
        "--graph",
        "auto,portable",
        "--rng",
        "torch-cpu,philox",
        "-m",
        int8,
    ];
    let ways = [&ways[..], &["--one-by-one", "--size", "64", "--steps", "3"]].concat();
    let found = figures(&[&ways[..], &["--html", html]].concat());
    let pairs = found["pairs"].as_array().unwrap();
    let pair = |name: &str| {
        let named = |pair: &&Value| pair["variant"]["name"].as_str().unwrap().contains(name);
        pairs
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(pairs.len(), 3);

    let philox = pair("philox");
    assert_eq!(philox["cause"], "noise");
    assert!(philox["shares"][0]["percent"].as_f64().unwrap() > 90.0);
    assert_eq!(philox["noise"]["equal"], false);
    // The same kernels on the same numbers.
    for part in ["text", "unet", "vae"] {
        assert_eq!(philox[part]["equal"], true, "{part}");
    }
    assert_eq!(philox["closed_loop"]["first_past"], Value::Null);
    assert_eq!(philox["whole_run"]["first_past"], 0);

    let portable = pair("portable");
    assert_ne!(portable["verdict"], "different");
    assert_eq!(portable["noise"]["equal"], true);
    assert_eq!(portable["unet"]["equal"], false);
    // Single precision that adds up in another order.
    assert!(portable["unet"]["relative_l2"].as_f64().unwrap() < 1e-4);

    let rounded = pair("i8 weights");
    assert!(rounded["unet"]["relative_l2"].as_f64().unwrap() > 1e-4);
    let percents = rounded["shares"].as_array().unwrap().iter();
    let sum: f64 = percents
        .map(|share| share["percent"].as_f64().unwrap())
        .sum();
    assert!((sum - 100.0).abs() < 1e-6, "{sum}");

    let page = fs::read_to_string(page).unwrap();
    assert!(page.matches("<path fill=\"none\"").count() >= 9);
    assert_eq!(
        page.matches("<section>").count(),
        page.matches("</section>").count()
    );
    assert!(
        !page.contains("<script") && !page.contains("http"),
        "it needs nothing else"
    );
}

#[test]
fn recordings_of_something_else_are_refused_with_what_differs() {
    let file = recording().to_str().unwrap();
    let demo = demo_model().to_str().unwrap();
    let (_dir, other) = synthetic("sd15");
    let (code, said) = refused(&["-m", other.to_str().unwrap(), "--against", file]);
    assert!(code == 1 && said.contains("another model"), "{said}");
    assert!(
        said.contains("checkpoint") && said.contains("expected"),
        "{said}"
    );
    let (code, said) = refused(&["-m", demo, "--against", file, "--seed", "4", "--steps", "2"]);
    assert!(code == 1 && said.contains("another request"), "{said}");
    assert!(said.contains("seed is 3 there and 4 here"), "{said}");
    assert!(!said.contains("steps"), "{said}");
    // A variant's model is another one, too.
    let small = ["--size", "64", "--steps", "1"];
    let two = ["-m", demo, "-m", other.to_str().unwrap()];
    let (code, said) = refused(&[&two[..], &small].concat());
    assert!(code == 1 && said.contains("another model"), "{said}");
}

#[test]
fn files_that_are_damaged_or_lie_are_refused_with_what_is_wrong() {
    let demo = demo_model().to_str().unwrap();
    let said_of = |file: &str| {
        let (code, said) = refused(&["-m", demo, "--against", file]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(file), "{said}");
        said
    };
    let header = |bytes: &mut Vec<u8>, from: &str, to: &str| replace(bytes, from, to);

    let (_dir, file) = changed(|bytes| header(bytes, r#"\"layout\":1"#, r#"\"layout\":7"#));
    let said = said_of(&file);
    assert!(said.contains("layout 7; this program reads 1"), "{said}");

    for cut in [4, 100, 20_000] {
        let (_dir, file) = changed(|bytes| bytes.truncate(cut));
        let said = said_of(&file);
        assert!(said.contains("damaged or incomplete"), "{cut}: {said}");
    }

    // As many numbers in another shape.
    let (_dir, file) = changed(|bytes| header(bytes, "[3,64,64]", "[64,3,64]"));
    let said = said_of(&file);
    assert!(
        said.contains("`decoded` is F32 of shape [64, 3, 64]; expected F32 of [3, 64, 64]"),
        "{said}"
    );
    // What it says of itself is another picture's.
    let (_dir, file) = changed(|bytes| header(bytes, r#"\"calls\":2"#, r#"\"calls\":3"#));
    let said = said_of(&file);
    assert!(
        said.contains("`levels`") && said.contains("expected"),
        "{said}"
    );
    let (_dir, file) = changed(|bytes| header(bytes, r#"\"prompts\":2"#, r#"\"prompts\":0"#));
    let said = said_of(&file);
    assert!(said.contains("no calls, prompts or latents"), "{said}");

    let (_dir, file) = changed(|bytes| {
        // The first tensors behind the header are in double precision, then come those in single precision.
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let head: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let at = 8 + length + head["clean"]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let said = said_of(&file);
    assert!(said.contains("`clean` holds NaN"), "{said}");

    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("weights.safetensors");
    fs::write(&model, demo::CHECKPOINT).unwrap();
    let said = said_of(model.to_str().unwrap());
    assert!(
        said.contains("no recording of `sdbench determinism`"),
        "{said}"
    );
    let before = fs::read(&model).unwrap();
    let (code, said) = refused(&["-m", demo, "--record", model.to_str().unwrap()]);
    assert!(code == 1 && said.contains("no dump"), "{said}");
    assert!(fs::read(&model).unwrap() == before);
}

/// The others are compared all the same.
#[test]
fn a_variant_that_cannot_be_recorded_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let file = recording().to_str().unwrap();
    let found = figures(&[
        "--against",
        file,
        "--ep",
        "cuda,cpu",
        "--threads",
        "1",
        "--html",
        page.to_str().unwrap(),
    ]);
    assert_eq!(found["pairs"][0]["verdict"], "bit_equal");
    assert_eq!(found["failed"][0]["way"]["ep"], "cuda");
    let problem = found["failed"][0]["problem"].as_str().unwrap();
    assert!(problem.starts_with("cuda f32: "), "{problem}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Left out: cuda f32"));
    let (code, said) = refused(&["-m", demo_model().to_str().unwrap(), "--ep", "cuda"]);
    assert!(code != 0 && said.contains("cuda"), "{said}");
}

#[test]
fn what_cannot_be_is_said_before_anything_is_computed() {
    let demo = demo_model().to_str().unwrap();
    let file = recording().to_str().unwrap();
    for (args, code, words) in [
        (&["--ep", "cpu,tpu"][..], 2, &["tpu", "openvino"][..]),
        (&["--threshold", "0"], 2, &["--threshold"]),
        (&["--record", "a", "--against", file], 2, &["--against"]),
        (&["--steps", "0"], 2, &["steps"]),
        (&["--ep-option", "a=b"], 2, &["cpu"]),
        (&["--html", "-"], 2, &["standard output"]),
        (
            &["--graph", "portable", "--compute", "i16"],
            1,
            &["portable"],
        ),
    ] {
        let (found, said) = refused(&[&["-m", demo], args].concat());
        assert_eq!(found, code, "{args:?}: {said}");
        assert!(
            words.iter().all(|word| said.contains(word)),
            "{args:?}: {said}"
        );
    }
}
