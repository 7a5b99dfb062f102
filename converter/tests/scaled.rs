//! Weights in eight bits with a scale each: every spelling that is read, and what is wrong with scales.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{
    Raw, converted, error_of, floats, raw, sdconvert, synthetic, text, values, write_raw,
};
use sd_converter::checkpoint::{Dtype, open, to_f32};

#[test]
fn eight_bit_weights_are_multiplied_by_their_scales_however_those_are_spelt() {
    use safetensors::Dtype::{F8_E4M3, U8};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f8.safetensors");
    // 1 and 2 in the first row, 4 and 8 in the second.
    let codes = || raw(F8_E4M3, &[2, 2], &[0x38, 0x40, 0x48, 0x50]);
    let comfy = |format: &str| {
        let json = serde_json::json!({"format": format}).to_string();
        raw(U8, &[json.len()], json.as_bytes())
    };
    let read = |more: Vec<(&str, Raw)>| {
        let mut tensors = BTreeMap::from([("m.weight".to_owned(), codes())]);
        tensors.extend(more.into_iter().map(|(name, raw)| (name.to_owned(), raw)));
        write_raw(&path, &tensors);
        open(&path)
    };
    let plain = read(vec![]).unwrap();
    assert_eq!(values(&*plain, "m.weight"), [1.0, 2.0, 4.0, 8.0]);
    for more in [
        vec![("m.weight_scale", floats(&[0.5]))],
        vec![
            ("m.weight_scale", floats(&[0.5])),
            ("m.input_scale", floats(&[7.0])),
            ("m.comfy_quant", comfy("float8_e4m3fn")),
        ],
        vec![
            ("m.scale_weight", floats(&[0.5])),
            ("m.scale_input", floats(&[7.0])),
            ("scaled_fp8", raw(F8_E4M3, &[0], &[])),
        ],
    ] {
        let file = read(more).unwrap();
        assert_eq!(values(&*file, "m.weight"), [0.5, 1.0, 2.0, 4.0]);
        assert_eq!(file.tensors().keys().collect::<Vec<_>>(), ["m.weight"]);
        assert_eq!(file.published("m.weight"), Some(Dtype::F8E4M3));
    }
    let by_row = read(vec![("m.weight_scale", floats(&[0.5, 2.0]))]).unwrap();
    assert_eq!(values(&*by_row, "m.weight"), [0.5, 1.0, 8.0, 16.0]);
    for (more, said) in [
        (("m.weight_scale", floats(&[1.0; 4])), "each of its 2 rows"),
        (
            ("n.weight_scale", floats(&[1.0])),
            "not the weight `n.weight`",
        ),
        (
            ("m.comfy_quant", comfy("int8_tensorwise")),
            "int8_tensorwise",
        ),
        (("m.comfy_quant", raw(U8, &[1], b"{")), "unknown format"),
        (("m.weight.absmax", floats(&[1.0])), "bitsandbytes"),
        (
            (
                "m.weight.quant_state.bitsandbytes__nf4",
                raw(U8, &[1], b"{"),
            ),
            "bitsandbytes",
        ),
        (("m.SCB", floats(&[1.0])), "bitsandbytes"),
        (("m.weight_scale_2", floats(&[1.0])), "NVFP4"),
        (("m.qweight", floats(&[1.0])), "GPTQ"),
    ] {
        let error = match read(vec![more]) {
            Ok(_) => panic!("{said} was accepted"),
            Err(e) => e.to_string(),
        };
        assert!(error.contains(said) && error.contains('`'), "{error}");
    }
}

#[test]
fn eight_bit_weights_whose_scales_are_missing_are_refused() {
    use safetensors::Dtype::{F8_E4M3, U8};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f8.safetensors");
    let json = br#"{"format":"float8_e4m3fn"}"#;
    let file = BTreeMap::from([
        ("m.weight".to_owned(), raw(F8_E4M3, &[2], &[0x38, 0x40])),
        ("m.comfy_quant".to_owned(), raw(U8, &[json.len()], json)),
    ]);
    write_raw(&path, &file);
    let error = error_of(&path);
    assert!(
        error.contains("scales missing") && error.contains("`m.weight`"),
        "{error}"
    );
    for command in ["build", "merge", "inspect", "verify"] {
        let file = path.to_str().unwrap();
        let out = dir.path().join("out");
        let out = ["-o", out.to_str().unwrap(), "--allow-partial"];
        let output = match command {
            "build" => sdconvert(&[&[command, file][..], &out].concat()),
            "merge" => sdconvert(&[&[command, file, file][..], &out].concat()),
            _ => sdconvert(&[command, file]),
        };
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("scales missing"), "{command}: {said}");
    }
}

#[test]
fn a_weight_that_the_marker_gives_no_scale_has_the_scale_one_and_that_is_told() {
    use safetensors::Dtype::F8_E4M3;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f8.safetensors");
    let codes = || raw(F8_E4M3, &[2], &[0x38, 0x40]);
    let mut file = BTreeMap::from([
        ("m.weight".to_owned(), codes()),
        ("n.weight".to_owned(), codes()),
        ("n.scale_weight".to_owned(), floats(&[2.0])),
        ("scaled_fp8".to_owned(), raw(F8_E4M3, &[0], &[])),
    ]);
    write_raw(&path, &file);
    let opened = open(&path).unwrap();
    assert_eq!(values(&*opened, "m.weight"), [1.0, 2.0]);
    assert_eq!(values(&*opened, "n.weight"), [2.0, 4.0]);
    let [note] = opened.notes() else {
        panic!("{:?}", opened.notes())
    };
    assert!(note.contains("taking 1: `m.weight`"), "{note}");
    file.remove("m.weight");
    write_raw(&path, &file);
    assert!(open(&path).unwrap().notes().is_empty());
}

#[test]
fn weights_in_half_precision_with_a_scale_are_multiplied_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wide.safetensors");
    let file = BTreeMap::from([
        ("m.weight".to_owned(), floats(&[1.0, 2.0])),
        ("m.weight_scale".to_owned(), floats(&[2.0])),
    ]);
    write_raw(&path, &file);
    let opened = open(&path).unwrap();
    assert_eq!(values(&*opened, "m.weight"), [2.0, 4.0]);
    let note = opened.notes().join("");
    assert!(
        note.contains("not in 8 bits") && note.contains("`m.weight`"),
        "{note}"
    );
}

#[test]
fn scales_that_are_no_positive_numbers_are_refused_by_name() {
    use safetensors::Dtype::F8_E4M3;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f8.safetensors");
    let write = |codes: &[u8], scales: &[f32]| {
        let file = BTreeMap::from([
            ("m.weight".to_owned(), raw(F8_E4M3, &[2, 1], codes)),
            ("m.weight_scale".to_owned(), floats(scales)),
        ]);
        write_raw(&path, &file);
    };
    for scales in [
        [f32::NAN, 1.0],
        [1.0, f32::INFINITY],
        [-0.5, 1.0],
        [1.0, 0.0],
    ] {
        write(&[0x38, 0x40], &scales);
        let error = error_of(&path);
        assert!(error.contains("the scale `m.weight_scale`"), "{error}");
    }
    // Nothing but zeros has the scale zero.
    write(&[0x38, 0], &[1.0, 0.0]);
    assert!(open(&path).is_ok());
}

/// A model whose attention is in 8 bits with scales, and the same model with the products.
fn scaled_and_plain(dir: &Path) -> [PathBuf; 2] {
    use safetensors::Dtype::{F8_E4M3, F16, F32, I64};
    let single = synthetic(dir, "sd15", 0);
    let file = open(&single).unwrap();
    let (mut scaled, mut plain) = (BTreeMap::new(), BTreeMap::new());
    for (name, info) in file.tensors() {
        let data = file.bytes(name).unwrap().into_owned();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if module.ends_with("to_q") {
            // Codes of numbers between -16 and 16, every one below infinity and NaN.
            let codes: Vec<u8> = data.iter().map(|byte| byte & 0xBF | 0x08).collect();
            let scale = 0.01f32;
            let products = to_f32(Dtype::F8E4M3, &codes).unwrap().into_iter();
            let products: Vec<u8> = products.flat_map(|x| (x * scale).to_le_bytes()).collect();
            let codes = &codes[..data.len() / 2];
            let products = &products[..2 * data.len()];
            scaled.insert(name.clone(), raw(F8_E4M3, &info.shape, codes));
            scaled.insert(format!("{module}.weight_scale"), floats(&[scale]));
            plain.insert(name.clone(), raw(F32, &info.shape, products));
            continue;
        }
        let dtype = match info.dtype {
            Dtype::F16 => F16,
            Dtype::F32 => F32,
            _ => I64,
        };
        scaled.insert(name.clone(), raw(dtype, &info.shape, &data));
        plain.insert(name.clone(), raw(dtype, &info.shape, &data));
    }
    [("scaled", scaled), ("plain", plain)].map(|(name, tensors)| {
        let path = dir.join(format!("{name}.safetensors"));
        write_raw(&path, &tensors);
        path
    })
}

#[test]
fn a_model_with_scaled_weights_is_the_model_of_the_products() {
    let dir = tempfile::tempdir().unwrap();
    let [scaled, plain] = scaled_and_plain(dir.path());
    let found = converted(&scaled, &dir.path().join("a"));
    assert!(found == converted(&plain, &dir.path().join("b")));

    let [scaled, plain] = [&scaled, &plain].map(|path| path.to_str().unwrap());
    let inspected = text(&sdconvert(&["inspect", scaled]).stdout);
    assert!(inspected.contains("F8_E4M3 with scales"), "{inspected}");
    let merged = dir.path().join("merged.safetensors");
    let output = merged.to_str().unwrap();
    let made = sdconvert(&["merge", scaled, plain, "--storage", "f32", "-o", output]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let weight = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight";
    let [found, expected] =
        [&merged, Path::new(plain)].map(|path| values(&*open(path).unwrap(), weight));
    assert_eq!(found, expected);
    let lora = dir.path().join("lora.safetensors");
    let extracted = sdconvert(&[
        "extract",
        "--base",
        plain,
        "--tuned",
        scaled,
        "-o",
        lora.to_str().unwrap(),
    ]);
    assert!(
        text(&extracted.stderr).contains("differ in no layer"),
        "{}",
        text(&extracted.stderr)
    );
}
