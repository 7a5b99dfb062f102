//! Merging: the arithmetic against double precision (`golden/merge_reference.py`), whole files, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{sdconvert, synthetic, text};
use half::f16;
use safetensors::tensor::SafeTensors;
use sd_converter::checkpoint::Dtype;
use sd_converter::merge::{BlockWeights, Merged, Method, Plan};
use sd_converter::model::{Model, Name};
use sd_converter::progress::Unwatched;
use sd_converter::save::save;
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use tempfile::TempDir;

fn open(path: &Path) -> Box<dyn Model> {
    Box::new(Weights::open(path, None).unwrap())
}

fn weighted(alpha: f64) -> Plan {
    Plan::new(Method::WeightedSum, BlockWeights::Uniform(alpha))
}

/// Model A, and B and C that go some of the way to other models.
fn three(dir: &Path) -> [PathBuf; 3] {
    let [a, b, c] = [0, 1, 2].map(|seed| synthetic(dir, "sd15", seed));
    let near = |other: &Path, part: f64| {
        let merged = Merged::new(vec![open(&a), open(other)], weighted(part)).unwrap();
        let path = other.with_extension("near.safetensors");
        save(&merged, &path, None, false, &Unwatched).unwrap();
        path
    };
    let (b, c) = (near(&b, 0.3), near(&c, 0.2));
    [a, b, c]
}

/// Distance of two half-precision numbers in units in the last place.
fn ulps(a: f16, b: f16) -> u32 {
    let ordered = |x: f16| {
        let bits = i32::from(x.to_bits());
        if bits & 0x8000 == 0 {
            bits
        } else {
            0x8000 - bits
        }
    };
    ordered(a).abs_diff(ordered(b))
}

#[test]
fn methods_are_within_one_unit_of_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let files = three(dir.path());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/merge.safetensors");
    let golden = fs::read(golden).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    for (method, alpha, beta, density) in [
        (Method::WeightedSum, 0.3, 0.0, 1.0),
        (Method::AddDifference, 0.7, 0.0, 1.0),
        (Method::SumTwice, 0.3, 0.4, 1.0),
        (Method::TripleSum, 0.3, 0.4, 1.0),
        (Method::TrainDifference, 1.0, 0.0, 1.0),
        (Method::Slerp, 0.3, 0.0, 1.0),
        (Method::CosineA, 0.6, 0.0, 1.0),
        (Method::CosineB, 0.6, 0.0, 1.0),
        (Method::Ties, 0.8, 0.0, 0.25),
        (Method::Dare, 0.5, 0.0, 0.25),
        (Method::Average, 0.0, 0.0, 1.0),
    ] {
        let mut plan = Plan::new(method, BlockWeights::Uniform(alpha));
        plan.beta = BlockWeights::Uniform(beta);
        plan.density = density;
        plan.weights = vec![1.0, 2.0, 0.5];
        plan.seed = 7;
        let (_, most) = method.inputs();
        let inputs = files.iter().take(most).map(|path| open(path)).collect();
        let merged = Merged::new(inputs, plan).unwrap();
        let mut checked = 0;
        for (key, view) in golden.iter() {
            let Some(name) = key.strip_prefix(&format!("{}:", method.name())) else {
                continue;
            };
            let name: Name = (Component::UNet, name.to_owned());
            let found = merged.read(&name).unwrap();
            assert_eq!(found.dtype, Dtype::F16);
            let halves = |bytes: &[u8]| -> Vec<f16> {
                let pairs = bytes.as_chunks().0.iter();
                pairs.map(|b| f16::from_le_bytes(*b)).collect()
            };
            let (found, expected) = (halves(&found.bytes), halves(view.data()));
            assert_eq!(found.len(), expected.len());
            for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
                // Next to zero the unit of the terms counts, not that of their sum.
                let near_zero = (x.to_f32() - y.to_f32()).abs() < 1e-6;
                assert!(ulps(*x, *y) <= 1 || near_zero, "{key} {i}: {x} for {y}");
            }
            checked += 1;
        }
        assert_eq!(checked, 3, "{}", method.name());
    }
}

#[test]
fn endpoints_and_merges_with_itself_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [0, 1].map(|seed| synthetic(dir.path(), "sd15", seed));
    let same = |found: &dyn Model, expected: &dyn Model| {
        for name in expected.entries().keys() {
            let (found, expected) = (found.read(name).unwrap(), expected.read(name).unwrap());
            assert!(found.bytes == expected.bytes, "{name:?}");
        }
    };
    let mut all = weighted(1.0);
    all.vae = sd_converter::merge::Policy::Merge;
    let (model_a, model_b) = (open(&a), open(&b));
    same(
        &Merged::new(vec![open(&a), open(&b)], weighted(0.0)).unwrap(),
        &*model_a,
    );
    same(
        &Merged::new(vec![open(&a), open(&b)], all).unwrap(),
        &*model_b,
    );
    same(
        &Merged::new(vec![open(&a), open(&a)], weighted(0.3)).unwrap(),
        &*model_a,
    );
    let difference = Plan::new(Method::AddDifference, BlockWeights::Uniform(0.7));
    let merged = Merged::new(vec![open(&a), open(&b), open(&b)], difference).unwrap();
    same(&merged, &*model_a);
}

#[test]
fn blocks_take_their_own_values() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [0, 1].map(|seed| synthetic(dir.path(), "sdxl", seed));
    let mut list = vec![0.0; 20];
    list[0] = 1.0; // BASE: B's text encoders
    list[10] = 1.0; // M00
    let plan = Plan::new(Method::WeightedSum, BlockWeights::List(list));
    let merged = Merged::new(vec![open(&a), open(&b)], plan).unwrap();
    let (model_a, model_b) = (open(&a), open(&b));
    for name in model_a.entries().keys() {
        let from_b = match name.0 {
            Component::UNet => name.1.starts_with("mid_block."),
            Component::Vae => false,
            _ => true,
        };
        let expected = if from_b { &model_b } else { &model_a };
        assert!(merged.read(name).unwrap().bytes == expected.read(name).unwrap().bytes);
    }
}

#[test]
fn the_further_channels_of_an_inpainting_model_stay() {
    let dir = tempfile::tempdir().unwrap();
    let inpaint = synthetic(dir.path(), "sd15-inpaint", 0);
    let [b, c] = [1, 2].map(|seed| synthetic(dir.path(), "sd15", seed));
    let plan = || Plan::new(Method::AddDifference, BlockWeights::Uniform(1.0));
    let inputs = vec![open(&inpaint), open(&b), open(&c)];
    let merged = Merged::new(inputs, plan()).unwrap();
    let name: Name = (Component::UNet, "conv_in.weight".to_owned());
    let read = |model: &dyn Model| model.read_f32(&name).unwrap();
    let (found, wide) = (read(&merged), read(&*open(&inpaint)));
    let (b_values, c_values) = (read(&*open(&b)), read(&*open(&c)));
    for (i, &value) in found.iter().enumerate() {
        let (out, rest) = (i / 81, i % 81);
        if rest < 36 {
            let narrow = out * 36 + rest;
            let expected = wide[i] + (b_values[narrow] - c_values[narrow]);
            assert!((value - expected).abs() <= 1e-3 * expected.abs().max(0.1));
        } else {
            assert_eq!(value, wide[i]);
        }
    }
    let wrong = Merged::new(vec![open(&b), open(&inpaint), open(&c)], plan());
    let hint = wrong.err().unwrap().hint().unwrap().to_string();
    assert!(hint.contains("must be the first"), "{hint}");
}

fn succeed(args: &[&str]) -> String {
    let output = sdconvert(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn fail(args: &[&str], code: i32, said: &[&str]) {
    let output = sdconvert(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for part in said {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn synth(&self, family: &str, seed: u64) -> String {
        let path = synthetic(self.dir.path(), family, seed);
        path.to_str().unwrap().to_owned()
    }
}

/// A merged file has the keys of the first and converts like any other; a recipe gives the same, without the file.
#[test]
fn a_merged_file_and_a_recipe_give_the_same_model() {
    for family in ["sd15", "sd21", "sdxl"] {
        let place = Place::new();
        let (a, b) = (place.synth(family, 0), place.synth(family, 1));
        let (merged, target) = (place.path("merged.safetensors"), place.path("from-file"));
        succeed(&["merge", &a, &b, "--alpha", "0.25", "-o", &merged]);
        let keys = |path: &str| {
            let bytes = fs::read(path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mut keys: Vec<_> = file
                .iter()
                .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec()))
                .collect();
            keys.sort_by(|x, y| x.0.cmp(&y.0));
            keys
        };
        assert_eq!(keys(&merged), keys(&a));
        succeed(&["build", &merged, "-o", &target]);

        let recipe = place.path("recipe.toml");
        let names = [&a, &b].map(|p| Path::new(p).file_name().unwrap().to_str().unwrap());
        let content = format!(
            "schema = 1\nmodels = {{ a = '{}', b = '{}' }}\n[[step]]\nmethod = 'weighted-sum'\n\
             inputs = ['a', 'b']\nalpha = 0.25\n",
            names[0], names[1]
        );
        fs::write(&recipe, content).unwrap();
        let direct = place.path("from-recipe");
        succeed(&["build", "--recipe", &recipe, "-o", &direct]);
        for component in ["unet", "text_encoder", "vae_decoder"] {
            let data = |dir: &str| {
                fs::read(Path::new(dir).join(component).join("model.onnx_data")).unwrap()
            };
            assert!(data(&target) == data(&direct), "{family} {component}");
        }
    }
}

#[test]
fn a_baked_vae_replaces_the_first_models() {
    let place = Place::new();
    let (a, b) = (place.synth("sd15", 0), place.synth("sd15", 1));
    let out = |name: &str| place.path(name);
    succeed(&[
        "merge",
        &a,
        &b,
        "--alpha",
        "0",
        "--vae",
        &b,
        "-o",
        &out("baked.safetensors"),
    ]);
    succeed(&[
        "merge",
        &a,
        &b,
        "--alpha",
        "0",
        "--vae-from",
        "b",
        "-o",
        &out("from.safetensors"),
    ]);
    let vae = |path: &str| {
        let model = open(Path::new(path));
        let name: Name = (Component::Vae, "decoder.conv_in.weight".to_owned());
        model.read_f32(&name).unwrap()
    };
    assert_eq!(vae(&out("baked.safetensors")), vae(&b));
    assert_eq!(vae(&out("from.safetensors")), vae(&b));
    // The first model need not have one.
    let bytes = fs::read(&a).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let without = file
        .iter()
        .filter(|(name, _)| !name.starts_with("first_stage_model."));
    let pruned = out("pruned.safetensors");
    safetensors::serialize_to_file(without, None, Path::new(&pruned)).unwrap();
    let completed = out("completed.safetensors");
    succeed(&[
        "merge",
        &pruned,
        &b,
        "--alpha",
        "0",
        "--vae-from",
        "b",
        "-o",
        &completed,
    ]);
    assert_eq!(vae(&completed), vae(&b));
    let bytes = fs::read(&completed).unwrap();
    let names = SafeTensors::deserialize(&bytes).unwrap();
    assert!(
        names
            .tensor("first_stage_model.decoder.conv_in.weight")
            .is_ok()
    );
}

#[test]
fn options_that_would_do_nothing_are_wrong_usage() {
    let place = Place::new();
    let (a, out) = (place.synth("sd15", 0), place.path("out.safetensors"));
    let merge = |more: &[&str], said: &str| {
        let args = [&["merge", &a, &a, "-o", &out][..], more].concat();
        fail(&args, 2, &[said]);
    };
    merge(&["--seed", "1"], "weighted-sum takes no --seed");
    merge(&["--density", "0.5"], "weighted-sum takes no --density");
    merge(&["--beta", "0.5"], "weighted-sum takes no --beta");
    merge(
        &["--method", "average", "--alpha", "0.1"],
        "average takes no --alpha",
    );
    let recipe = ["merge", "--recipe", "x.toml", "--alpha", "1", "-o", &out];
    fail(&recipe, 2, &["--recipe", "--alpha"]);
    let variant = ["build", &a, "--variant", "fp16", "-o", &out];
    fail(&variant, 2, &["--variant", "no folder is given"]);
}

#[test]
#[cfg(unix)]
fn a_merge_into_a_pipe_that_nobody_reads_ends_when_it_shall() {
    let place = Place::new();
    let (a, fifo) = (place.synth("sd15", 0), place.path("fifo"));
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(args).spawn().unwrap()
    };
    assert!(run("mkfifo", &[&fifo]).wait().unwrap().success());
    let mut merge = run(
        env!("CARGO_BIN_EXE_sdconvert"),
        &["merge", &a, &a, "-o", &fifo],
    );
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(merge.try_wait().unwrap().is_none());
    let pid = merge.id().to_string();
    assert!(run("kill", &["-TERM", &pid]).wait().unwrap().success());
    for _ in 0..200 {
        if let Some(status) = merge.try_wait().unwrap() {
            assert_eq!(status.code(), Some(130));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    merge.kill().unwrap();
    panic!("it went on");
}

/// A recipe may come through a pipe, which is read once; nobody waits for its writer for ever.
#[test]
#[cfg(target_os = "linux")]
fn recipes_come_through_pipes() {
    let place = Place::new();
    let (a, pipe, out) = (
        place.synth("sd15", 0),
        place.path("pipe"),
        place.path("out.safetensors"),
    );
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let text = format!(
        "schema = 1\nmodels = {{ a = '{a}' }}\n[[step]]\nmethod = 'weighted-sum'\ninputs = ['a', 'a']\nalpha = 0.5\n"
    );
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::write(pipe, text).unwrap())
    };
    succeed(&["merge", "--recipe", &pipe, "-o", &out]);
    writer.join().unwrap();

    let mut merge = std::process::Command::new(env!("CARGO_BIN_EXE_sdconvert"));
    let mut merge = merge
        .args(["merge", "--recipe", &pipe, "-o", &out, "--force"])
        .spawn()
        .unwrap();
    let pid = merge.id().to_string();
    let catches = || {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        u64::from_str_radix(caught.unwrap().trim(), 16).unwrap() & 2 != 0
    };
    while !catches() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(killed.unwrap().success());
    for _ in 0..400 {
        if let Some(status) = merge.try_wait().unwrap() {
            assert_eq!(status.code(), Some(130));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    merge.kill().unwrap();
    panic!("it waits on");
}

#[test]
#[cfg(target_os = "linux")]
fn a_report_that_cannot_be_written_costs_no_model_and_that_is_told() {
    let place = Place::new();
    let (a, out) = (place.synth("sd15", 0), place.path("model"));
    fail(
        &["build", &a, "-o", &out, "--report", "/dev/full"],
        1,
        &["is complete, only its report failed", "/dev/full"],
    );
    assert!(succeed(&["verify", &out]).contains("whole"));
}

#[test]
fn merges_that_cannot_be_are_refused() {
    let place = Place::new();
    let (a, b) = (place.synth("sd15", 0), place.synth("sd21", 0));
    let (distilled, out) = (place.synth("bk-sdm-base", 0), place.path("out.safetensors"));
    fail(
        &["merge", &a, &b, "-o", &out],
        1,
        &["sd15-0", "sd21-0", "different families"],
    );
    fail(
        &["merge", &a, &distilled, "-o", &out],
        1,
        &["is not in", "bk-sdm-base"],
    );
    fail(&["merge", &a, "-o", &out], 2, &["takes 2 models, 1 given"]);
    fail(
        &["merge", &a, &a, "--method", "mean", "-o", &out],
        2,
        &["weighted-sum"],
    );
    fail(
        &["merge", &a, &a, "--beta", "1", "-o", &out],
        2,
        &["no --beta"],
    );
    fail(
        &["merge", &a, &a, "--block-weights", "1,2", "-o", &out],
        1,
        &["2 block weights"],
    );
    fail(
        &["merge", &a, &a, "--block-weights", "GRAD_Q", "-o", &out],
        2,
        &["no preset", "GRAD_V"],
    );
    let other = place.synth("sd15", 1);
    let huge = ["merge", &a, &other, "--alpha", "1e9", "-o", &out];
    fail(&huge, 1, &["too large for F16", "bf16"]);
    assert!(!Path::new(&out).exists());
    // A model whose tensor has another shape.
    let bytes = fs::read(&a).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let wide = "model.diffusion_model.out.0.weight";
    let views = file.iter().map(|(name, view)| {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data());
        if name == wide {
            shape[0] /= 2;
            data = &data[..data.len() / 2];
        }
        let view = safetensors::tensor::TensorView::new(view.dtype(), shape, data);
        (name, view.unwrap())
    });
    let narrow = place.path("narrow.safetensors");
    safetensors::serialize_to_file(views, None, Path::new(&narrow)).unwrap();
    let shapes = [wide, "[32]", "[16]", "narrow.safetensors"];
    fail(&["merge", &a, &narrow, "-o", &out], 1, &shapes);
    let recipe = place.path("recipe.toml");
    for (content, said) in [
        ("", "schema"),
        (
            "schema = 1\nmodels = {a = 'sd15-0.safetensors'}\n[[step]]\nmethod = 'slerp'\ninputs = ['a', 'a']\nalpha = {IN12 = 1}",
            "`IN12`",
        ),
        (
            "schema = 1\nmodels = {a = 'nowhere'}\n[[step]]\nmethod = 'slerp'\ninputs = ['a', 'a']",
            "nowhere",
        ),
        (
            "schema = 1\nmodels = {a = 'x'}\n[[step]]\nmethod = 'sleep'\ninputs = ['a']",
            "sleep",
        ),
    ] {
        fs::write(&recipe, content).unwrap();
        fail(&["merge", "--recipe", &recipe, "-o", &out], 1, &[said]);
    }
}

#[test]
fn what_a_model_would_change_in_another_is_told() {
    let place = Place::new();
    let (a, b) = (place.synth("sd15", 0), place.synth("sd15", 1));
    let mixed = place.path("mixed.safetensors");
    succeed(&[
        "merge",
        &a,
        &b,
        "--alpha",
        "0",
        "--te-from",
        "b",
        "-o",
        &mixed,
    ]);
    let told = succeed(&["inspect", &mixed, "--against", &a]);
    assert!(told.contains("both are Stable Diffusion 1.x"), "{told}");
    assert!(
        told.contains("unet: 0 tensors differ, 686 are equal"),
        "{told}"
    );
    assert!(
        told.contains("text_encoder: 36 tensors differ, 0 are equal"),
        "{told}"
    );
    let json = succeed(&["inspect", &b, "--against", &a, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["components"]["unet"]["changed"], 686);
    assert_eq!(json["blocks"].as_array().unwrap().len(), 25);
    let other = place.synth("sdxl", 0);
    let told = succeed(&["inspect", &other, "--against", &a]);
    assert!(told.contains("neither merging nor extracting"), "{told}");
}

#[test]
fn values_that_are_not_finite_are_told_when_a_merge_is_converted() {
    let place = Place::new();
    let a = place.synth("sd15", 0);
    let bytes = fs::read(&a).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bad = "model.diffusion_model.out.2.bias";
    let nan = f16::NAN.to_le_bytes().repeat(4);
    let views = file.iter().map(|(name, view)| {
        let data = if name == bad { &nan[..] } else { view.data() };
        let view = safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), data);
        (name, view.unwrap())
    });
    let b = place.path("nan.safetensors");
    safetensors::serialize_to_file(views, None, Path::new(&b)).unwrap();
    let merged = place.path("merged.safetensors");
    let output = sdconvert(&["merge", &a, &b, "-o", &merged]);
    let stderr = text(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("4 values"),
        "{stderr}"
    );
    assert!(stderr.contains(bad), "{stderr}");
    fail(
        &["build", &merged, "--strict", "-o", &place.path("model")],
        1,
        &[bad, "NaN"],
    );
}
