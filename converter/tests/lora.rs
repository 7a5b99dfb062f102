//! LoRAs: the spellings of every trainer, the formula of Tucker cores, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{sdconvert, synthetic, text};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use tempfile::TempDir;

/// Shape and values by key.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Weights that are not rounded to the checkpoint's half precision.
const SINGLE: Options = Options {
    allow_partial: false,
    storage: Some(sd_converter::checkpoint::Dtype::F32),
};

struct Place {
    dir: TempDir,
    base: PathBuf,
}

impl Place {
    fn new(family: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = synthetic(dir.path(), family, 0);
        Self { dir, base }
    }

    fn write(&self, tensors: &Tensors) -> PathBuf {
        let path = self.dir.path().join("lora.safetensors");
        let halves: BTreeMap<&String, Vec<u8>> = tensors
            .iter()
            .map(|(key, (_, values))| {
                let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
                (key, bytes.collect())
            })
            .collect();
        let views = tensors.iter().map(|(key, (shape, _))| {
            (
                key,
                TensorView::new(Dtype::F16, shape.clone(), &halves[key]).unwrap(),
            )
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    }

    fn bake(&self, tensors: &Tensors, strength: f64) -> Result<WithLoras, String> {
        let spec = LoraSpec::new(self.write(tensors), strength);
        WithLoras::new(self.model(), &[spec], SINGLE).map_err(|e| e.to_string())
    }

    fn model(&self) -> Box<dyn Model> {
        Box::new(Weights::open(&self.base, None).unwrap())
    }

    fn refused(&self, tensors: &Tensors, said: &[&str]) {
        let Err(error) = self.bake(tensors, 1.0) else {
            panic!("it was accepted")
        };
        for part in said {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

/// Numbers that are exact in half precision.
fn ramp(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| ((i % 7) as f32 - 3.0) * step).collect()
}

const QUERY: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight";
const KOHYA: &str = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";

/// A module of rank 2 on a matrix [64, 64] or [128, 128].
fn module(up: &str, down: &str, width: usize) -> Tensors {
    BTreeMap::from([
        (up.to_owned(), (vec![width, 2], ramp(2 * width, 0.25))),
        (down.to_owned(), (vec![2, width], ramp(2 * width, 0.125))),
    ])
}

fn kohya(module_name: &str) -> Tensors {
    let part = |part: &str| format!("{module_name}.lora_{part}.weight");
    module(&part("up"), &part("down"), 64)
}

fn query() -> Name {
    (Component::UNet, QUERY.to_owned())
}

#[test]
fn a_module_is_the_same_in_every_spelling() {
    let place = Place::new("sd15");
    let dotted = QUERY.strip_suffix(".weight").unwrap();
    let ldm = "input_blocks.4.1.transformer_blocks.0.attn1.to_q";
    let expected = place.bake(&kohya(KOHYA), 1.0).unwrap();
    let expected = expected.read_f32(&query()).unwrap();
    let base = place.model().read_f32(&query()).unwrap();
    // By its definition: alpha is absent, so the scale is 1.
    let (up, down) = (ramp(128, 0.25), ramp(128, 0.125));
    for (i, value) in expected.iter().enumerate() {
        let (row, column) = (i / 64, i % 64);
        let delta: f32 = (0..2)
            .map(|k| up[row * 2 + k] * down[k * 64 + column])
            .sum();
        assert_eq!(*value, base[i] + delta);
    }
    let attention = dotted.strip_suffix(".to_q").unwrap();
    let spelled = [
        kohya(&format!("lora_unet_{}", ldm.replace('.', "_"))),
        kohya(&format!("lycoris_{}", dotted.replace('.', "_"))),
        module(
            &format!("{dotted}.lora_B.weight"),
            &format!("{dotted}.lora_A.weight"),
            64,
        ),
        module(
            &format!("unet.{dotted}.lora_B.weight"),
            &format!("unet.{dotted}.lora_A.weight"),
            64,
        ),
        module(
            &format!("base_model.model.{dotted}.lora_B.default.weight"),
            &format!("base_model.model.{dotted}.lora_A.default.weight"),
            64,
        ),
        module(
            &format!("unet.{attention}.processor.to_q_lora.up.weight"),
            &format!("unet.{attention}.processor.to_q_lora.down.weight"),
            64,
        ),
        module(
            &format!("unet.{dotted}.lora.up.weight"),
            &format!("unet.{dotted}.lora.down.weight"),
            64,
        ),
        module(
            &format!("diffusion_model.{ldm}.lora_up.weight"),
            &format!("diffusion_model.{ldm}.lora_down.weight"),
            64,
        ),
    ];
    for tensors in spelled {
        let baked = place.bake(&tensors, 1.0);
        let baked = baked.unwrap_or_else(|e| panic!("{tensors:?}: {e}"));
        assert_eq!(baked.read_f32(&query()).unwrap(), expected);
    }
}

#[test]
fn alpha_and_strength_scale_the_change() {
    let place = Place::new("sd15");
    let base = place.model().read_f32(&query()).unwrap();
    let change = |tensors: &Tensors, strength| {
        let baked = place.bake(tensors, strength).unwrap();
        let values = baked.read_f32(&query()).unwrap();
        values.iter().zip(&base).map(|(a, b)| a - b).sum::<f32>()
    };
    let plain = change(&kohya(KOHYA), 1.0);
    let with_alpha = |alpha: f32| {
        let mut tensors = kohya(KOHYA);
        tensors.insert(format!("{KOHYA}.alpha"), (vec![], vec![alpha]));
        tensors
    };
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-3 * b.abs().max(1.0);
    assert!(close(change(&with_alpha(1.0), 1.0), plain / 2.0));
    assert!(close(change(&with_alpha(0.0), 1.0), plain)); // "not set"
    assert!(close(change(&kohya(KOHYA), -0.5), -plain / 2.0));
    let off = place.bake(&kohya(KOHYA), 0.0).unwrap();
    assert_eq!(off.read_f32(&query()).unwrap(), base);
}

#[test]
fn a_tucker_core_stands_between_the_factors() {
    let place = Place::new("sd15");
    let name: Name = (
        Component::UNet,
        "down_blocks.0.resnets.0.conv1.weight".to_owned(),
    );
    let module = "lora_unet_down_blocks_0_resnets_0_conv1";
    // up[o] = o, mid = 2 at one tap and 3 at another, down[i] = i + 1
    let mut core = vec![0.0; 9];
    (core[1], core[5]) = (2.0, 3.0);
    let tensors = BTreeMap::from([
        (
            format!("{module}.lora_up.weight"),
            (vec![32, 1, 1, 1], (0..32).map(|o| o as f32).collect()),
        ),
        (
            format!("{module}.lora_mid.weight"),
            (vec![1, 1, 3, 3], core.clone()),
        ),
        (
            format!("{module}.lora_down.weight"),
            (vec![1, 32, 1, 1], (1..33).map(|i| i as f32).collect()),
        ),
    ]);
    let found = place.bake(&tensors, 1.0).unwrap().read_f32(&name).unwrap();
    let base = place.model().read_f32(&name).unwrap();
    for (at, (found, base)) in found.iter().zip(&base).enumerate() {
        let (o, i, tap) = (at / 288, at / 9 % 32, at % 9);
        let expected = base + o as f32 * core[tap] * (i + 1) as f32;
        assert_eq!(*found, expected, "{o} {i} {tap}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = Place::new("sd15");
    let up = format!("{KOHYA}.lora_up.weight");
    let down = format!("{KOHYA}.lora_down.weight");
    let altered = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = kohya(KOHYA);
        change(&mut tensors);
        tensors
    };
    place.refused(&altered(&|t| drop(t.remove(&up))), &["has no up"]);
    let two = altered(&|t| {
        t.extend(kohya("lora_unet_mid_block_attentions_0_proj_in"));
        t.remove("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight");
    });
    place.refused(&two, &["proj_in", "no down"]);
    let ranks = altered(&|t| drop(t.insert(down.clone(), (vec![3, 64], ramp(192, 0.5)))));
    place.refused(
        &ranks,
        &["do not fit each other", "up [64, 2]", "down [3, 64]"],
    );
    let alpha =
        |value| altered(&|t| drop(t.insert(format!("{KOHYA}.alpha"), (vec![], vec![value]))));
    place.refused(&alpha(f32::NAN), &["alpha"]);
    place.refused(&alpha(-1.0), &["alpha is -1"]);
    let infinite = altered(&|t| t.get_mut(&up).unwrap().1[3] = f32::INFINITY);
    place.refused(&infinite, &["lora_up.weight`: it has values that are NaN"]);
    let zero = altered(&|t| t.get_mut(&up).unwrap().1.fill(0.0));
    place.refused(&zero, &["changes nothing"]);
    assert!(place.bake(&zero, 0.0).is_ok());
    let strange = altered(&|t| drop(t.insert(format!("{KOHYA}.magic"), (vec![1], vec![1.0]))));
    place.refused(&strange, &["magic"]);
    place.refused(
        &kohya("lora_unet_no_such_module"),
        &["1 of 1 modules", "lora_unet_no_such"],
    );
    let twice = altered(&|t| t.extend(kohya(&format!("unet.{}", &QUERY[..QUERY.len() - 7]))));
    // The same content under two names is used once.
    let once = place.bake(&twice, 1.0).unwrap().read_f32(&query()).unwrap();
    let plain = place.bake(&kohya(KOHYA), 1.0).unwrap();
    assert_eq!(once, plain.read_f32(&query()).unwrap());
    let other = format!("unet.{}.lora_up.weight", &QUERY[..QUERY.len() - 7]);
    let mut differing = twice.clone();
    differing.get_mut(&other).unwrap().1[0] = 9.0;
    place.refused(&differing, &["are for the same weight"]);
    let hada = altered(&|t| drop(t.insert(format!("{KOHYA}.hada_w1_a"), (vec![1], vec![1.0]))));
    place.refused(&hada, &["parts of different kinds"]);
}

#[test]
fn loras_of_other_families_and_other_files_are_refused_before_anything_is_written() {
    let place = Place::new("sd15");
    let cross = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let wide = BTreeMap::from([
        (
            format!("{cross}.lora_up.weight"),
            (vec![64, 2], ramp(128, 0.5)),
        ),
        (
            format!("{cross}.lora_down.weight"),
            (vec![2, 2048], ramp(4096, 0.5)),
        ),
    ]);
    place.refused(&wide, &["2048 (SDXL)", "the model's 64"]);
    let out = place.dir.path().join("model");
    let (base, out_arg) = (place.base.to_str().unwrap(), out.to_str().unwrap());
    let build = |model: &str, lora: &str| {
        let output = sdconvert(&["build", model, "--lora", lora, "-o", out_arg]);
        assert!(!out.exists());
        (output.status.code(), text(&output.stderr))
    };
    let (code, error) = build(base, base);
    assert!(code == Some(1) && error.contains("no LoRA"), "{error}");
    let lora = place.write(&kohya(KOHYA));
    let (code, error) = build(lora.to_str().unwrap(), base);
    assert!(code == Some(1) && error.contains("a LoRA"), "{error}");
    let against = |file: &Path| {
        let output = sdconvert(&["inspect", file.to_str().unwrap(), "--against", base]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert!(against(&lora).contains("1 applied"));
    let output = sdconvert(&[
        "inspect",
        place.write(&wide).to_str().unwrap(),
        "--against",
        base,
    ]);
    let told = text(&output.stderr);
    assert!(told.contains("2048 (SDXL)"), "{told}");
    let lora = place.write(&kohya(KOHYA));
    let (code, error) = build(base, &format!("{}:unet=x", lora.display()));
    assert!(code == Some(2) && error.contains("no number"), "{error}");
    let bytes = fs::read(&lora).unwrap();
    fs::write(&lora, &bytes[..bytes.len() - 5]).unwrap();
    let (code, error) = build(base, lora.to_str().unwrap());
    assert!(code == Some(1) && error.contains("truncated"), "{error}");
}

/// The LoRA of a recipe's step is that of the command line.
#[test]
fn a_recipe_adds_loras() {
    let place = Place::new("sd15");
    let lora = place.write(&kohya(KOHYA));
    let path = |name: &str| place.dir.path().join(name).to_str().unwrap().to_owned();
    let recipe = path("recipe.toml");
    let content = "schema = 1\nmodels = { a = 'sd15-0.safetensors' }\n[[step]]\nmethod = 'lora'\n\
                   inputs = ['a']\nlora = 'lora.safetensors'\nalpha = 0.5\n";
    fs::write(&recipe, content).unwrap();
    let run = |args: &[&str]| {
        let output = sdconvert(args);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    run(&["build", "--recipe", &recipe, "-o", &path("from-recipe")]);
    let strength = format!("{}:0.5", lora.display());
    let base = place.base.to_str().unwrap();
    run(&["build", base, "--lora", &strength, "-o", &path("direct")]);
    let data = |dir: &str| fs::read(Path::new(&path(dir)).join("unet/model.onnx_data")).unwrap();
    assert!(data("from-recipe") == data("direct"));
    let manifest = fs::read_to_string(Path::new(&path("direct")).join("sdrt.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["loras"][0]["unet"], 0.5);
    assert_eq!(manifest["loras"][0]["name"], "lora.safetensors");
    // Extracting gives back what was added.
    run(&[
        "merge",
        "--recipe",
        &recipe,
        "-o",
        &path("with.safetensors"),
    ]);
    let (with, back) = (path("with.safetensors"), path("back.safetensors"));
    run(&[
        "extract", "--base", base, "--tuned", &with, "--energy", "0.999", "-o", &back,
    ]);
}
