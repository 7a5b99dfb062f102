//! `build --precision fp32` and `fp16`: weights in another type than they were published in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Raw, sdconvert, synthetic, text, write_raw};
use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn build(input: &Path, target: &Path, precision: &str) -> (Value, String) {
    let [input, out] = [input, target].map(|path| path.to_str().unwrap());
    let args = [
        "build",
        input,
        "-o",
        out,
        "--json",
        "--precision",
        precision,
    ];
    let output = sdconvert(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json = serde_json::from_slice(&output.stdout).unwrap();
    (json, text(&output.stderr))
}

/// A checkpoint of half-precision numbers in single precision, after a change.
fn widened(path: &Path, change: impl Fn(&str, &mut Vec<f32>)) -> PathBuf {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let raw: Raw = if view.dtype() == Dtype::F16 {
            let halves = view.data().as_chunks().0.iter();
            let mut values: Vec<f32> = halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect();
            change(name, &mut values);
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (Dtype::F32, view.shape().to_vec(), bytes)
        } else {
            (view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        (name.to_owned(), raw)
    });
    let target = path.with_extension("wide.safetensors");
    write_raw(&target, &tensors.collect());
    target
}

const FOLDERS: [&str; 4] = ["text_encoder", "unet", "vae_decoder", "vae_encoder"];

fn storage(json: &Value, folder: &str) -> Vec<String> {
    serde_json::from_value(json["manifest"]["components"][folder]["storage"].clone()).unwrap()
}

#[test]
fn weights_are_what_the_same_model_published_in_that_type_has() {
    let dir = tempfile::tempdir().unwrap();
    let halves = synthetic(dir.path(), "sd15", 0);
    let singles = widened(&halves, |_, _| {});
    let target = |name: &str| dir.path().join(name);
    for (checkpoint, name, precision) in [
        (&halves, "halves", "published"),
        (&singles, "singles", "published"),
        (&singles, "narrowed", "fp16"),
        (&halves, "widened", "fp32"),
    ] {
        build(checkpoint, &target(name), precision);
    }
    for folder in FOLDERS {
        let read = |name: &str, file: &str| fs::read(target(name).join(folder).join(file)).unwrap();
        for file in ["model.onnx_data", "model.onnx", "native.onnx"] {
            let same = |a, b| assert!(read(a, file) == read(b, file), "{folder}/{file}: {a}, {b}");
            same("halves", "narrowed");
            same("singles", "widened");
        }
    }
}

#[test]
fn what_half_precision_cannot_hold_stays_and_is_named() {
    const CONV: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";
    let dir = tempfile::tempdir().unwrap();
    let singles = widened(&synthetic(dir.path(), "sd15", 0), |name, values| {
        if name == CONV {
            values[5] = -7e4;
        }
    });
    let (json, said) = build(&singles, &dir.path().join("model"), "fp16");
    assert!(
        said.contains("too large for half precision") && said.contains(CONV),
        "{said}"
    );
    assert_eq!(storage(&json, "unet"), ["F16", "F32"]);
    assert_eq!(storage(&json, "vae_decoder"), ["F16"]);
}

#[test]
fn beside_whole_numbers_weights_have_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    let singles = widened(&synthetic(dir.path(), "sd15", 0), |_, _| {});
    let (json, _) = build(&singles, &dir.path().join("model"), "int8");
    for folder in FOLDERS {
        assert_eq!(storage(&json, folder), ["F16", "I8"], "{folder}");
    }
}
