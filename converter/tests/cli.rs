//! The program `sdconvert`, as people call it and as they get it wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{sdconvert, synthetic, text};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

/// A folder with the tiny synthetic checkpoint in it.
fn workplace() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("tiny.safetensors");
    let made = sdconvert(&[
        "synth",
        "--family",
        "sd15",
        "--tiny",
        "-o",
        checkpoint.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    (dir, checkpoint)
}

/// A tensor of a checkpoint to be altered.
#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn read(path: &Path) -> HashMap<String, Tensor> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    file.iter()
        .map(|(name, view)| (name.to_owned(), tensor(view)))
        .collect()
}

fn write(path: &Path, tensors: &HashMap<String, Tensor>) {
    let views = tensors.iter().map(|(name, t)| {
        (
            name,
            TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn build(checkpoint: &Path, more: &[&str]) -> (Output, PathBuf) {
    let target = checkpoint.with_extension("model");
    let mut args = vec![
        "build",
        checkpoint.to_str().unwrap(),
        "-o",
        target.to_str().unwrap(),
    ];
    args.extend(more);
    (sdconvert(&args), target)
}

/// Converts an altered checkpoint, which must fail with all of `said` and leave nothing.
fn assert_refused(checkpoint: &Path, more: &[&str], said: &[&str]) {
    let (output, target) = build(checkpoint, more);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for part in said {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(!target.exists());
    let names = fs::read_dir(checkpoint.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert!(
        names
            .map(|n| n.to_string_lossy().into_owned())
            .all(|n| !n.contains("partial"))
    );
}

const FIRST_CONV: &str = "model.diffusion_model.input_blocks.0.0.weight";

#[test]
fn a_checkpoint_is_converted_verified_inspected_and_not_overwritten() {
    let (_dir, checkpoint) = workplace();
    let (output, target) = build(&checkpoint, &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["manifest"]["family"], "sd15");
    assert_eq!(
        report["not_converted"]["unknown"].as_array().unwrap().len(),
        0
    );
    let path = target.to_str().unwrap();
    let verified = sdconvert(&["verify", path]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    assert!(text(&sdconvert(&["inspect", path]).stdout).contains("Stable Diffusion 1.x"));
    let inspected = sdconvert(&["inspect", checkpoint.to_str().unwrap(), "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(
        (
            report["parts"]["unet"]["tensors"].as_u64(),
            report["refused"].is_null()
        ),
        (Some(686), true)
    );
    let again = build(&checkpoint, &[]).0;
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("--force"));
    assert!(build(&checkpoint, &["--force"]).0.status.success());

    let data = target.join("unet/model.onnx_data");
    let mut bytes = fs::read(&data).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&data, bytes).unwrap();
    let damaged = sdconvert(&["verify", path]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(
        text(&damaged.stderr).contains("model.onnx_data"),
        "{}",
        text(&damaged.stderr)
    );
}

#[test]
fn the_same_numbers_in_other_types_and_shapes_make_the_same_graph() {
    let (_dir, checkpoint) = workplace();
    let (_, half) = build(&checkpoint, &[]);
    let mut tensors = read(&checkpoint);
    tensors.remove("cond_stage_model.transformer.text_model.embeddings.position_ids");
    for (name, tensor) in &mut tensors {
        if tensor.dtype == Dtype::F16 {
            let values = tensor
                .data
                .as_chunks()
                .0
                .iter()
                .map(|b| half::f16::from_le_bytes(*b).to_f32());
            tensor.data = values.flat_map(f32::to_le_bytes).collect();
            tensor.dtype = Dtype::F32;
        }
        // Newer tools save the VAE's attention as matrices.
        if name.contains(".attn_1.") && tensor.shape.len() == 4 {
            tensor.shape.truncate(2);
        }
    }
    let single = checkpoint.with_file_name("single.safetensors");
    write(&single, &tensors);
    let (output, full) = build(&single, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let size = |dir: &Path| {
        fs::metadata(dir.join("unet/model.onnx_data"))
            .unwrap()
            .len()
    };
    // Weights stay in the type they were published in; pages are padded.
    let ratio = size(&full) as f64 / size(&half) as f64;
    assert!((1.8..=2.0).contains(&ratio), "{ratio}");
}

#[test]
fn running_averages_are_used_only_when_asked_for() {
    let (_dir, checkpoint) = workplace();
    let mut tensors = read(&checkpoint);
    let unet: Vec<String> = tensors
        .keys()
        .filter(|k| k.starts_with("model.diffusion_model."))
        .cloned()
        .collect();
    for key in &unet {
        let flat = key.strip_prefix("model.").unwrap().replace('.', "");
        let mut average = tensors[key].clone();
        average.data.fill(0);
        tensors.insert(format!("model_ema.{flat}"), average);
    }
    let ema = checkpoint.with_file_name("ema.safetensors");
    write(&ema, &tensors);
    let (output, target) = build(&ema, &[]);
    assert!(
        output.status.success() && text(&output.stderr).contains("--ema"),
        "{}",
        text(&output.stderr)
    );
    let plain = fs::read(target.join("unet/model.onnx_data")).unwrap();
    let (output, target) = build(&ema, &["--ema", "--force"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let averaged = fs::read(target.join("unet/model.onnx_data")).unwrap();
    assert!(plain.iter().any(|&b| b != 0) && averaged.iter().all(|&b| b == 0));
    tensors
        .remove("model_ema.diffusion_modelout2weight")
        .unwrap();
    let missing = checkpoint.with_file_name("missing.safetensors");
    write(&missing, &tensors);
    assert_refused(&missing, &["--ema"], &["EMA"]);
}

#[test]
fn a_file_with_only_running_averages_converts_with_them() {
    let (_dir, checkpoint) = workplace();
    let (_, whole) = build(&checkpoint, &[]);
    let flat = |(key, tensor): (String, Tensor)| match key.strip_prefix("model.") {
        Some(rest) => (format!("model_ema.{}", rest.replace('.', "")), tensor),
        None => (key, tensor),
    };
    let averages = checkpoint.with_file_name("averages.safetensors");
    write(
        &averages,
        &read(&checkpoint).into_iter().map(flat).collect(),
    );
    for more in [&["--ema"][..], &["--force"]] {
        let (output, target) = build(&averages, more);
        let stderr = text(&output.stderr);
        assert!(
            output.status.success() && stderr.contains("only running averages"),
            "{stderr}"
        );
        let unet = |dir: &Path| fs::read(dir.join("unet/model.onnx_data")).unwrap();
        assert!(unet(&target) == unet(&whole));
    }
}

#[test]
fn a_unet_alone_is_completed_as_the_error_says() {
    let (_dir, checkpoint) = workplace();
    let (_, whole) = build(&checkpoint, &[]);
    let mut tensors = read(&checkpoint);
    tensors.retain(|key, _| key.starts_with("model.diffusion_model."));
    let alone = checkpoint.with_file_name("alone.safetensors");
    write(&alone, &tensors);
    let advice = format!(
        "sdconvert merge {} MODEL --alpha 0 --te-from b --vae-from b -o whole.safetensors",
        alone.display()
    );
    assert_refused(&alone, &[], &["no text encoder", &advice]);
    let result = checkpoint.with_file_name("whole.safetensors");
    let advice = advice.replace("MODEL", checkpoint.to_str().unwrap());
    let advice = advice.replace("whole.safetensors", result.to_str().unwrap());
    let merged = sdconvert(&advice.split(' ').skip(1).collect::<Vec<_>>());
    assert!(merged.status.success(), "{}", text(&merged.stderr));
    let (output, completed) = build(&result, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for network in ["text_encoder", "unet", "vae_decoder"] {
        let data = |dir: &Path| fs::read(dir.join(network).join("model.onnx_data")).unwrap();
        assert!(data(&completed) == data(&whole), "{network}");
    }
}

#[test]
fn a_merge_drops_no_unknown_tensor_unsaid_and_inspect_tells_of_the_refusal() {
    let (_dir, checkpoint) = workplace();
    let mut tensors = read(&checkpoint);
    tensors.insert(
        "mystery.block.weight".to_owned(),
        tensors[FIRST_CONV].clone(),
    );
    let strange = checkpoint.with_file_name("strange.safetensors");
    write(&strange, &tensors);
    let result = checkpoint.with_file_name("merged.safetensors");
    let [known, strange, result] = [&checkpoint, &strange, &result].map(|p| p.to_str().unwrap());
    for inputs in [[known, strange], [strange, known]] {
        let merge = |more: &[&str]| {
            sdconvert(&[&["merge", inputs[0], inputs[1], "-o", result], more].concat())
        };
        let refused = merge(&[]);
        let stderr = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("mystery.block.weight") && stderr.contains("--allow-partial"),
            "{stderr}"
        );
        assert!(!Path::new(result).exists());
        let allowed = merge(&["--allow-partial", "--force"]);
        let stderr = text(&allowed.stderr);
        assert!(
            allowed.status.success() && stderr.contains("mystery.block.weight"),
            "{stderr}"
        );
        fs::remove_file(result).unwrap();
    }
    let inspected = text(&sdconvert(&["inspect", strange]).stdout);
    for said in [
        "Stable Diffusion 1.x",
        "cannot be converted",
        "mystery.block.weight",
        "--allow-partial",
    ] {
        assert!(inspected.contains(said), "{inspected}");
    }
}

#[test]
fn a_merge_whose_result_has_no_vae_says_so() {
    let (_dir, checkpoint) = workplace();
    let mut tensors = read(&checkpoint);
    tensors.retain(|key, _| !key.starts_with("first_stage_model."));
    let without = checkpoint.with_file_name("without.safetensors");
    write(&without, &tensors);
    let result = checkpoint.with_file_name("merged.safetensors");
    let [a, b, result] = [&without, &checkpoint, &result].map(|p| p.to_str().unwrap());
    for (more, said) in [
        (&[][..], true),
        (&["--vae-from", "b"], false),
        (&["--vae", b], false),
    ] {
        let merged = sdconvert(&[&["merge", a, b, "-o", result, "--force"], more].concat());
        let stderr = text(&merged.stderr);
        assert!(merged.status.success(), "{stderr}");
        assert_eq!(
            stderr.contains("no VAE") && stderr.contains("--vae-from b"),
            said,
            "{stderr}"
        );
    }
}

#[test]
fn results_are_not_written_under_the_names_of_other_formats() {
    for command in [
        &["merge", "absent", "absent"][..],
        &["extract", "--base", "absent", "--tuned", "absent"],
        &["lora-merge", "absent"],
        &["synth", "--family", "sd15"],
    ] {
        let output = sdconvert(&[command, &["-o", "x.ckpt"]].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("x.safetensors"), "{stderr}");
    }
}

#[test]
#[cfg(unix)]
fn names_that_are_not_utf8_are_as_good_as_others() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let (dir, checkpoint) = workplace();
    let named = |bytes: &[u8]| dir.path().join(OsStr::from_bytes(bytes));
    let (file, target, report) = (
        named(b"\xff.safetensors"),
        named(b"\xfe"),
        named(b"\xfd.json"),
    );
    fs::copy(&checkpoint, &file).unwrap();
    let [file, target, report] = [&file, &target, &report].map(|path| path.as_os_str());
    let [build, output, json, inspect, verify, options] =
        ["build", "-o", "--json", "inspect", "verify", "--report"].map(OsStr::new);
    for args in [
        &[build, file, output, target, json, options, report][..],
        &[inspect, file, json],
        &[inspect, target, json],
        &[verify, file],
        &[verify, target],
    ] {
        let program = env!("CARGO_BIN_EXE_sdconvert");
        let done = Command::new(program).args(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    }
}

#[test]
fn converted_models_are_named_when_they_are_given_as_checkpoints() {
    let (_dir, checkpoint) = workplace();
    let (_, target) = build(&checkpoint, &[]);
    let unet = target.join("unet");
    for input in [unet.join("model.onnx"), unet, target.clone()] {
        let output = target.with_file_name("again");
        let [path, output] = [&input, &output].map(|path| path.to_str().unwrap());
        let refused = sdconvert(&["build", path, "-o", output]);
        let stderr = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("ONNX") && stderr.contains("sdrun txt2img -m"),
            "{stderr}"
        );
        assert!(stderr.contains(&format!("error: {path}:")), "{stderr}");
    }
}

#[test]
fn a_missing_vae_is_taken_from_another_file() {
    let (_dir, checkpoint) = workplace();
    let mut tensors = read(&checkpoint);
    let (vae, rest): (HashMap<_, _>, HashMap<_, _>) = tensors
        .drain()
        .partition(|(name, _)| name.starts_with("first_stage_model."));
    let without = checkpoint.with_file_name("without.safetensors");
    write(&without, &rest);
    assert_refused(&without, &[], &["VAE", "hint", "--vae"]);
    let bare = vae.into_iter().map(|(name, t)| {
        (
            name.strip_prefix("first_stage_model.").unwrap().to_owned(),
            t,
        )
    });
    let vae_file = checkpoint.with_file_name("vae.safetensors");
    write(&vae_file, &bare.collect());
    let (output, with) = build(&without, &["--vae", vae_file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (_, whole) = build(&checkpoint, &[]);
    let decoder = |dir: &Path| fs::read(dir.join("vae_decoder/model.onnx_data")).unwrap();
    assert!(decoder(&with) == decoder(&whole));

    // What the other file has beside the VAE is reported.
    let mut tensors = read(&checkpoint);
    tensors.insert("mystery".to_owned(), tensors[FIRST_CONV].clone());
    write(&vae_file, &tensors);
    let vae = vae_file.to_str().unwrap();
    let (output, _) = build(&without, &["--vae", vae, "--force", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let left = report["not_converted"]["not_asked_for"].as_array().unwrap();
    for key in ["mystery", FIRST_CONV] {
        assert!(left.iter().any(|name| name == key), "{key}");
    }
}

#[test]
fn only_the_networks_that_are_asked_for_are_converted() {
    let (_dir, checkpoint) = workplace();
    let (_, whole) = build(&checkpoint, &[]);
    let target = checkpoint.with_file_name("part");
    let part = |input: &Path, only: &[&str]| {
        let mut args = vec!["build", input.to_str().unwrap(), "--force", "-o"];
        args.push(target.to_str().unwrap());
        args.extend(only.iter().flat_map(|name| ["--only", name]));
        let output = sdconvert(&args);
        (output.status.code(), text(&output.stderr))
    };
    let entries = || {
        let entries = fs::read_dir(&target).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let check = |networks: &[&str]| {
        for network in networks {
            let data = |dir: &Path| fs::read(dir.join(network).join("model.onnx_data")).unwrap();
            assert!(data(&target) == data(&whole), "{network}");
        }
        let path = target.to_str().unwrap();
        let verified = sdconvert(&["verify", path]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        let inspected = text(&sdconvert(&["inspect", path]).stdout);
        for network in ["text_encoder", "unet", "vae_decoder", "vae_encoder"] {
            let is_there = inspected.contains(&format!("  {network}: "));
            assert_eq!(is_there, networks.contains(&network), "{inspected}");
        }
    };
    let index = || -> serde_json::Value {
        let json = fs::read_to_string(target.join("model_index.json")).unwrap();
        serde_json::from_str(&json).unwrap()
    };
    let nothing = serde_json::json!([null, null]);

    let (code, said) = part(&checkpoint, &["unet"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("are of networks that were not asked for"),
        "{said}"
    );
    assert!(!said.contains("next: sdrun"), "{said}");
    let files = ["model_index.json", "scheduler", "sdrt.json", "unet"];
    assert_eq!(entries(), files);
    check(&["unet"]);
    for gone in ["vae", "text_encoder", "tokenizer"] {
        assert_eq!(index()[gone], nothing, "{gone}");
    }
    assert_eq!(index()["unet"][1], "UNet2DConditionModel");

    assert_eq!(part(&checkpoint, &["te", "vae"]).0, Some(0));
    check(&["text_encoder", "vae_decoder", "vae_encoder"]);
    assert!(target.join("tokenizer").exists());
    assert_eq!([&index()["unet"], &index()["scheduler"]], [&nothing; 2]);

    // What is not converted may be missing or broken.
    let mut tensors = read(&checkpoint);
    tensors.retain(|key, _| key.starts_with("model.diffusion_model."));
    let alone = checkpoint.with_file_name("alone.safetensors");
    write(&alone, &tensors);
    assert_eq!(part(&alone, &["unet"]).0, Some(0));
    check(&["unet"]);
    let (code, said) = part(&alone, &["unet", "vae"]);
    assert!(code == Some(1) && said.contains("it has no VAE"), "{said}");

    let mut tensors = read(&checkpoint);
    tensors.retain(|key, _| key.starts_with("first_stage_model."));
    let vae = checkpoint.with_file_name("vae.safetensors");
    write(&vae, &tensors);
    assert_refused(&vae, &[], &["no UNet", "--only vae"]);
    let (code, said) = part(&vae, &["vae"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("what its latents are scaled by cannot be told"),
        "{said}"
    );
    check(&["vae_decoder", "vae_encoder"]);
    assert_eq!(entries(), ["sdrt.json", "vae_decoder", "vae_encoder"]);
    assert_eq!(part(&vae, &["te"]).0, Some(1));
    assert_eq!(part(&vae, &["vea"]).0, Some(2));

    // Options about what is left out.
    let (checkpoint, target) = (checkpoint.to_str().unwrap(), target.to_str().unwrap());
    for (only, more) in [
        ("te", &["--precision", "int8", "--portable"][..]),
        ("unet", &["--vae", vae.to_str().unwrap()]),
    ] {
        let args = ["build", checkpoint, "--force", "-o", target, "--only", only];
        let output = sdconvert(&[&args[..], more].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--only leaves out"));
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (_dir, checkpoint) = workplace();
    let tensors = read(&checkpoint);
    let altered = checkpoint.with_file_name("altered.safetensors");
    let refuse = |change: &dyn Fn(&mut HashMap<String, Tensor>), more: &[&str], said: &[&str]| {
        let mut copy = tensors.clone();
        change(&mut copy);
        write(&altered, &copy);
        assert_refused(&altered, more, said);
    };
    let norm = "model.diffusion_model.out.0.weight";
    refuse(
        &|t| {
            t.remove(norm);
        },
        &[],
        &["missing", norm],
    );
    let wrong = |t: &mut HashMap<String, Tensor>| {
        let tensor = t.get_mut(norm).unwrap();
        tensor.shape[0] /= 2;
        tensor.data.truncate(2 * tensor.shape[0]);
    };
    refuse(&wrong, &[], &[norm, "[16]", "[32]"]);
    let strange = |t: &mut HashMap<String, Tensor>| {
        t.insert(
            "model.diffusion_model.surprise.weight".to_owned(),
            t[norm].clone(),
        );
    };
    refuse(&strange, &[], &["surprise", "--allow-partial"]);
    refuse(
        &|t| t.get_mut(norm).unwrap().dtype = Dtype::I16,
        &[],
        &[norm, "I16"],
    );
    let nan = |t: &mut HashMap<String, Tensor>| {
        t.get_mut(FIRST_CONV).unwrap().data[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    };
    refuse(&nan, &["--strict"], &[FIRST_CONV, "NaN"]);
    let (output, _) = build(&altered, &[]);
    let stderr = text(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("warning") && stderr.contains(FIRST_CONV),
        "{stderr}"
    );
    let depth = |t: &mut HashMap<String, Tensor>| {
        let tensor = t.get_mut(FIRST_CONV).unwrap();
        tensor.data.resize(tensor.data.len() / 4 * 5, 0);
        tensor.shape[1] = 5;
    };
    fs::remove_dir_all(altered.with_extension("model")).unwrap();
    refuse(&depth, &[], &["depth", "not supported"]);
}

#[test]
fn files_that_are_no_checkpoint_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.safetensors");
    let one = Tensor {
        dtype: Dtype::F16,
        shape: vec![1],
        data: vec![0, 0],
    };
    for (key, said) in [
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "Stable Diffusion 3",
        ),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        (
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
            "LoRA",
        ),
        ("some.tensor", "no part of a model"),
    ] {
        write(&file, &HashMap::from([(key.to_owned(), one.clone())]));
        assert_refused(&file, &[], &[said]);
        let inspected = sdconvert(&["inspect", file.to_str().unwrap()]);
        assert!(inspected.status.success());
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let (_dir, checkpoint) = workplace();
    let bytes = fs::read(&checkpoint).unwrap();
    let damaged = checkpoint.with_file_name("damaged.safetensors");
    for (content, said) in [
        (&bytes[..5], "too few"),
        (&bytes[..1000], "truncated"),
        (&bytes[..bytes.len() - 1], "truncated"),
        (b"PK\x03\x04 and more", "zip"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"<!DOCTYPE html>..", "web page"),
    ] {
        fs::write(&damaged, content).unwrap();
        assert_refused(&damaged, &[], &[said]);
    }
    let mut longer = bytes.clone();
    longer.extend([0; 9]);
    fs::write(&damaged, &longer).unwrap();
    assert_refused(&damaged, &[], &["9 bytes follow"]);
    assert_refused(
        &checkpoint.with_file_name("absent.safetensors"),
        &[],
        &["cannot read"],
    );
    assert_refused(checkpoint.parent().unwrap(), &[], &["no component"]);
}

#[test]
fn outputs_that_cannot_be_written_are_errors() {
    let (dir, checkpoint) = workplace();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let target = file.join("model");
    let output = sdconvert(&[
        "build",
        checkpoint.to_str().unwrap(),
        "-o",
        target.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot write"),
        "{}",
        text(&output.stderr)
    );
    let thesis = dir.path().join("thesis");
    fs::create_dir(&thesis).unwrap();
    fs::write(thesis.join("chapter1"), "years").unwrap();
    let output = sdconvert(&[
        "build",
        checkpoint.to_str().unwrap(),
        "-o",
        thesis.to_str().unwrap(),
        "--force",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        fs::read_to_string(thesis.join("chapter1")).unwrap(),
        "years"
    );
    assert_eq!(sdconvert(&["build"]).status.code(), Some(2));
    assert_eq!(
        sdconvert(&["synth", "--family", "sd99", "-o", "x"])
            .status
            .code(),
        Some(2)
    );
}

/// A killed conversion leaves no directory of the name, and the next one cleans up.
#[test]
#[cfg(unix)]
fn a_conversion_killed_half_way_leaves_no_half_directory() {
    let (dir, checkpoint) = workplace();
    let target = checkpoint.with_extension("model");
    let partial = |dir: &Path| {
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        // Until it is locked, a directory may be another program's that is about to lock it.
        let locked =
            |name: &String| name.contains("partial") && dir.join(name).join(".lock").exists();
        names.filter(locked).count()
    };
    let mut killed = false;
    for _ in 0..200 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sdconvert"))
            .args([
                "-q",
                "build",
                checkpoint.to_str().unwrap(),
                "-o",
                target.to_str().unwrap(),
            ])
            .spawn()
            .unwrap();
        while partial(dir.path()) == 0 && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();
        if partial(dir.path()) > 0 {
            killed = true;
            break;
        }
        let _ = fs::remove_dir_all(&target);
    }
    assert!(killed && !target.exists());
    let (output, _) = build(&checkpoint, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(partial(dir.path()), 0);
}

/// A file size limit fails writes half way, as a full disk does, and needs no rights.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_no_file_and_leaves_nothing() {
    let (dir, checkpoint) = workplace();
    let target = checkpoint.with_extension("model");
    let script = format!(
        "ulimit -f 1000; trap '' XFSZ; exec {} build {} -o {}",
        env!("CARGO_BIN_EXE_sdconvert"),
        checkpoint.display(),
        target.display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write"), "{stderr}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
#[cfg(unix)]
fn a_file_may_go_to_standard_output() {
    let (_dir, checkpoint) = workplace();
    for name in ["-", "/dev/stdout"] {
        let output = sdconvert(&["synth", "--family", "sd15", "--tiny", "-o", name]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("random weights"));
        assert!(output.stdout == fs::read(&checkpoint).unwrap());
    }
    let model = checkpoint.to_str().unwrap();
    let output = sdconvert(&["build", model, "-o", "-"]);
    assert_eq!(output.status.code(), Some(2));
    let (output, _) = build(&checkpoint, &["--report", "/dev/stdout"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["manifest"]["family"], "sd15");
}

/// As containers mount them: a directory on a file system of its own, and a file over a file.
#[test]
#[cfg(target_os = "linux")]
fn what_is_mounted_is_written_without_renaming_it() {
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-ec", script]).output()
    };
    if !unshared("mount -t tmpfs tmpfs /mnt").is_ok_and(|output| output.status.success()) {
        return; // Mounting is not for everybody.
    }
    let (dir, checkpoint) = workplace();
    let (program, model) = (env!("CARGO_BIN_EXE_sdconvert"), checkpoint.display());
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(dir.path().join("file"), "old").unwrap();
    let script = format!(
        "cd {}; mount -t tmpfs tmpfs out; {program} build {model} -o out; {program} build {model} -o out --force
         {program} verify out; test $(ls -A out | wc -l) = 8
         touch over; mount --bind file over; {program} synth --family taesd --tiny -o over --force
         mount -o remount,bind,ro over; ! {program} synth --family taesd --tiny -o over --force",
        dir.path().display()
    );
    let output = unshared(&script).unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("cannot write over: "), "{said}");
    let made = fs::read(dir.path().join("file")).unwrap();
    assert!(SafeTensors::deserialize(&made).is_ok());
}

#[test]
fn what_makes_no_picture_from_text_is_not_said_to() {
    let dir = tempfile::tempdir().unwrap();
    for (family, next) in [
        ("sd15", true),
        ("sd15-inpaint", false),
        ("sdxl-refiner", false),
    ] {
        let checkpoint = synthetic(dir.path(), family, 0);
        let target = dir.path().join(family);
        let [checkpoint, target] = [&checkpoint, &target].map(|path| path.to_str().unwrap());
        let args = ["build", checkpoint, "-o", target];
        let said = text(&sdconvert(&args).stderr);
        assert_eq!(said.contains("next: sdrun txt2img"), next, "{said}");
    }
}
