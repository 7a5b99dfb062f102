//! LoRAs: the spellings of every trainer, the formula of Tucker cores, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{sdconvert, synthetic, text};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sd_converter::embedding::Embedding;
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::progress::Unwatched;
use sd_converter::save::save;
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
    let mut sdxl = Tensors::new();
    low_rank(
        &mut sdxl,
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        640,
        &[2048],
    );
    place.refused(&sdxl, &["made for SDXL, this is Stable Diffusion 1.x"]);
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

/// Adds a module's tensors, all of rank 1, for a weight of this shape.
fn low_rank(tensors: &mut Tensors, module: &str, rows: usize, columns: &[usize]) {
    let width: usize = columns.iter().product();
    let down = [&[1], columns].concat();
    tensors.insert(
        format!("{module}.lora_up.weight"),
        (vec![rows, 1], ramp(rows, 0.25)),
    );
    tensors.insert(
        format!("{module}.lora_down.weight"),
        (down, ramp(width, 0.125)),
    );
}

#[test]
fn every_kind_that_cannot_be_added_is_named() {
    let place = Place::new("sd15");
    for (keys, said) in [
        (["control_model.lora_controlnet", "a.up"], "--base MODEL"),
        (
            ["lllite_unet_x.down.0.weight", "lllite_unet_x.up.0.weight"],
            "LLLite",
        ),
        (
            ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter",
        ),
        (["a.motion_modules.0.lora_up.weight", "b"], "AnimateDiff"),
        (
            ["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "b"],
            "Flux",
        ),
        (
            [
                "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
                "b",
            ],
            "Flux",
        ),
        (
            ["lora_unet_joint_blocks_0_x.lora_up.weight", "b"],
            "Stable Diffusion 3",
        ),
        (["lora_te3_encoder.lora_up.weight", "b"], "T5"),
        (
            ["lora_transformer_x.lora_up.weight", "b"],
            "diffusion transformer",
        ),
        (["base_model.model.a.oft_R", "b"], "PEFT's OFT"),
        (
            ["base_model.model.a.boft_R", "base_model.model.a.boft_s"],
            "PEFT's BOFT",
        ),
        (
            ["base_model.model.a.vera_lambda_b", "base_model.vera_A"],
            "VeRA",
        ),
        (
            ["a.lora_embedding_A", "a.lora_embedding_B"],
            "token embeddings",
        ),
        (["a.hra_u", "a.hra_theta"], "HRA"),
        (["a.poly_lora_A", "b"], "Poly"),
        (["a.lokr_t1", "a.lokr_w1"], "core on both sides"),
        (["unet:0:up", "unet:0:down"], "list of lora_diffusion"),
        (["768.linear.0.weight", "768.linear.0.bias"], "hypernetwork"),
    ] {
        let tensors = keys.map(|key| (key.to_owned(), (vec![1], vec![1.0])));
        place.refused(&tensors.into(), &[said]);
    }
}

#[test]
fn adapters_that_fit_in_part_are_added_only_when_that_is_allowed() {
    let place = Place::new("sd15");
    let mut tensors = kohya(KOHYA);
    low_rank(&mut tensors, "lora_unet_no_such_layer", 64, &[64]);
    low_rank(
        &mut tensors,
        "lora_unet_mid_block_attentions_0_proj_in",
        999,
        &[64],
    );
    place.refused(
        &tensors,
        &[
            "1 of 3 modules have no target",
            "1 of 3",
            "other shapes",
            "--allow-partial",
        ],
    );
    let out = place.dir.path().join("model");
    let report = place.dir.path().join("report.json");
    let lora = place.write(&tensors);
    let args = [
        "build",
        place.base.to_str().unwrap(),
        "--lora",
        lora.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--report",
        report.to_str().unwrap(),
    ];
    let output = sdconvert(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(!out.exists() && !report.exists());
    let output = sdconvert(&[&args[..], &["--allow-partial"]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("1 applied, 1 without target, 1 of another shape"),
        "{said}"
    );
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let modules = &report["manifest"]["loras"][0]["report"]["modules"];
    assert_eq!(
        (&modules["applied"], &modules["no_target"][0]),
        (&1.into(), &"lora_unet_no_such_layer".into())
    );
    let listed = report["loras"][0]["modules"].as_array().unwrap();
    let status = |status: &str| listed.iter().filter(|m| m["status"] == status).count();
    assert_eq!(
        [
            status("applied"),
            status("no target"),
            status("other shape")
        ],
        [1, 1, 1]
    );
    assert!(listed[0]["relative_change"].as_f64().unwrap() > 0.0);
    let nothing = BTreeMap::from_iter(kohya("lora_unet_no_such_layer"));
    let spec = LoraSpec::new(place.write(&nothing), 1.0);
    let partial = Options {
        allow_partial: true,
        ..SINGLE
    };
    let Err(error) = WithLoras::new(place.model(), &[spec], partial) else {
        panic!("it was accepted");
    };
    assert!(
        error.to_string().contains("none of its 1 modules"),
        "{error}"
    );
}

/// Files of the given tensors, baked in in this order.
fn bake_all(place: &Place, files: &[(&Tensors, f64)]) -> WithLoras {
    let specs = files.iter().enumerate().map(|(i, (tensors, strength))| {
        let path = place
            .dir
            .path()
            .join(format!("{i}-{}.safetensors", tensors.len()));
        fs::rename(place.write(tensors), &path).unwrap();
        LoraSpec::new(path, *strength)
    });
    let specs: Vec<LoraSpec> = specs.collect();
    WithLoras::new(place.model(), &specs, SINGLE).unwrap()
}

#[test]
fn the_order_matters_only_where_the_algebra_says_so() {
    let place = Place::new("sd15");
    let (one, mut other) = (kohya(KOHYA), kohya(KOHYA));
    other
        .values_mut()
        .for_each(|(_, values)| values.iter_mut().for_each(|x| *x *= 0.3));
    let mut dora = kohya(KOHYA);
    dora.insert(format!("{KOHYA}.dora_scale"), (vec![64, 1], ramp(64, 0.5)));
    let both = |files: [(&Tensors, f64); 2]| {
        [files, [files[1], files[0]]].map(|files| {
            let model = bake_all(&place, &files);
            let notes = model.hints().notes.join("\n");
            (model.read_f32(&query()).unwrap(), notes)
        })
    };
    let [ab, ba] = both([(&one, 0.7), (&other, 0.31)]);
    assert_eq!(ab.0, ba.0);
    assert!(!ab.1.contains("order"), "{}", ab.1);
    let [ab, ba] = both([(&one, 0.7), (&dora, 0.31)]);
    assert_ne!(ab.0, ba.0);
    assert!(
        ab.1.contains("the order of LoRAs matters for 1 weights"),
        "{}",
        ab.1
    );
    assert!(
        ab.1.contains("0-2.safetensors, 1-3.safetensors"),
        "{}",
        ab.1
    );
}

#[test]
fn blocks_have_strengths_of_their_own() {
    let place = Place::new("sd15");
    // IN04, IN03 (no attention: not in a list of 17), and the text encoder.
    let mut tensors = kohya(KOHYA);
    low_rank(
        &mut tensors,
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        32,
        &[32, 3, 3],
    );
    low_rank(
        &mut tensors,
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        64,
        &[64],
    );
    let lora = place.write(&tensors);
    let out = place.dir.path().join("model");
    let build = |weights: &str| {
        let lora = format!("{}:0.5,lbw={weights}", lora.display());
        let (base, out) = (place.base.to_str().unwrap(), out.to_str().unwrap());
        let output = sdconvert(&["build", base, "--lora", &lora, "-o", out, "--force"]);
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = build("1,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1");
    assert!(
        code == Some(0) && said.contains("2 applied, 1 silenced by block weights"),
        "{said}"
    );
    let (_, said) = build("NONE");
    assert!(said.contains("it changes nothing"), "{said}");
    let (code, said) = build("1,1,1,1,1,1,1,1,1,1,1,1");
    assert!(
        code == Some(1) && said.contains("12 block weights given; this model takes 17 or 26"),
        "{said}"
    );
    let half = LoraSpec::parse(&format!("{}:1,lbw=IN04=0.5", lora.display())).unwrap();
    let half = WithLoras::new(place.model(), &[half], SINGLE).unwrap();
    let expected = bake_all(&place, &[(&kohya(KOHYA), 0.5)]);
    assert_eq!(
        half.read_f32(&query()).unwrap(),
        expected.read_f32(&query()).unwrap()
    );
    let output = sdconvert(&[
        "build",
        "x",
        "--lora",
        "a",
        "--lora-block-weights",
        "FOO",
        "-o",
        "y",
    ]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn bundled_embeddings_are_written_beside_the_model() {
    let place = Place::new("sd15");
    let mut tensors = kohya(KOHYA);
    tensors.insert(
        "bundle_emb.my-word.emb_params".to_owned(),
        (vec![2, 64], ramp(128, 0.5)),
    );
    let out = place.dir.path().join("model");
    let lora = place.write(&tensors);
    let args = [
        "build",
        place.base.to_str().unwrap(),
        "--lora",
        lora.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ];
    let output = sdconvert(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let embedding = Embedding::open(&out.join("embeddings/my-word.safetensors")).unwrap();
    assert_eq!(embedding.vectors[0].values, ramp(128, 0.5));
    tensors.insert(
        "bundle_emb.wide.emb_params".to_owned(),
        (vec![1, 768], ramp(768, 0.5)),
    );
    place.refused(&tensors, &["`wide`", "[768]", "[64]"]);
    tensors.remove("bundle_emb.wide.emb_params");
    tensors.insert(
        "bundle_emb./etc/x.emb_params".to_owned(),
        (vec![1, 64], ramp(64, 0.5)),
    );
    place.refused(&tensors, &["name cannot be that of a file"]);
}

#[test]
fn further_input_channels_are_left_alone() {
    let place = Place::new("sd15-inpaint");
    let name: Name = (Component::UNet, "conv_in.weight".to_owned());
    let mut tensors = Tensors::new();
    low_rank(&mut tensors, "lora_unet_conv_in", 32, &[4, 3, 3]);
    let model = place.bake(&tensors, 1.0).unwrap();
    let (found, base) = (
        model.read_f32(&name).unwrap(),
        place.model().read_f32(&name).unwrap(),
    );
    let (up, down) = (ramp(32, 0.25), ramp(36, 0.125));
    for (n, (found, base)) in found.iter().zip(&base).enumerate() {
        let (o, column) = (n / 81, n % 81);
        let change = down.get(column).map_or(0.0, |down| up[o] * down);
        assert_eq!(*found, base + change, "{n}");
    }
}

/// A change of the fused projection is that of its thirds, and thirds that are not changed stay as they are.
#[test]
fn fused_projections_are_three_layers() {
    let place = Place::new("sd21");
    let layer = |name: &str| -> Name {
        let path = format!("text_model.encoder.layers.0.self_attn.{name}.weight");
        (Component::TextEncoder, path)
    };
    let mut fused = Tensors::new();
    low_rank(
        &mut fused,
        "lora_te_transformer_resblocks_0_attn_in_proj",
        192,
        &[64],
    );
    let fused = place.bake(&fused, 1.0).unwrap();
    let mut tensors = Tensors::new();
    for (i, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        let module = format!("lora_te_text_model_encoder_layers_0_self_attn_{name}");
        low_rank(&mut tensors, &module, 64, &[64]);
        let up = ramp(192, 0.25)[64 * i..64 * (i + 1)].to_vec();
        tensors.insert(format!("{module}.lora_up.weight"), (vec![64, 1], up));
    }
    let single = place.bake(&tensors, 1.0).unwrap();
    for name in ["q_proj", "k_proj", "v_proj"] {
        let weight = layer(name);
        assert_eq!(
            fused.read_f32(&weight).unwrap(),
            single.read_f32(&weight).unwrap(),
            "{name}"
        );
        assert_ne!(
            fused.read_f32(&weight).unwrap(),
            place.model().read_f32(&weight).unwrap()
        );
    }
    // Only queries, saved in OpenCLIP's layout: the other two thirds are the same to the bit.
    tensors.retain(|key, _| key.contains("q_proj"));
    // A layer that the network does not run is no misfit.
    low_rank(
        &mut tensors,
        "lora_te_text_model_encoder_layers_2_mlp_fc1",
        256,
        &[64],
    );
    let spec = LoraSpec::new(place.write(&tensors), 1.0);
    let model = WithLoras::new(place.model(), &[spec], Options::default()).unwrap();
    let path = place.dir.path().join("saved.safetensors");
    save(&model, &path, None, false, &Unwatched).unwrap();
    let key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight";
    let bytes = |path: &Path| {
        let file = fs::read(path).unwrap();
        SafeTensors::deserialize(&file)
            .unwrap()
            .tensor(key)
            .unwrap()
            .data()
            .to_vec()
    };
    let (before, after) = (bytes(&place.base), bytes(&path));
    let third = before.len() / 3;
    assert!(before[third..] == after[third..] && before[..third] != after[..third]);
}

#[test]
fn alpha_may_have_any_type_of_number() {
    let place = Place::new("sd15");
    let factors = kohya(KOHYA);
    let half: BTreeMap<&String, Vec<u8>> = factors
        .iter()
        .map(|(key, (_, values))| {
            (
                key,
                values
                    .iter()
                    .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                    .collect(),
            )
        })
        .collect();
    let alpha = format!("{KOHYA}.alpha");
    let baked = |dtype: Dtype, shape: Vec<usize>, bytes: &[u8]| {
        let factors = factors.iter().map(|(key, (shape, _))| {
            (
                key,
                TensorView::new(Dtype::F16, shape.clone(), &half[key]).unwrap(),
            )
        });
        let alpha = (&alpha, TensorView::new(dtype, shape, bytes).unwrap());
        let path = place.dir.path().join("alpha.safetensors");
        safetensors::serialize_to_file(factors.chain([alpha]), None, &path).unwrap();
        let model = WithLoras::new(place.model(), &[LoraSpec::new(path, 1.0)], SINGLE);
        model.unwrap().read_f32(&query()).unwrap()
    };
    let expected = baked(Dtype::F32, vec![], &3f32.to_le_bytes());
    assert_eq!(
        baked(Dtype::F16, vec![1], &f16::from_f32(3.0).to_le_bytes()),
        expected
    );
    assert_eq!(
        baked(Dtype::BF16, vec![], &0x4040u16.to_le_bytes()),
        expected
    );
    assert_eq!(baked(Dtype::I64, vec![], &3i64.to_le_bytes()), expected);
    assert_eq!(baked(Dtype::I32, vec![1], &3i32.to_le_bytes()), expected);
}

/// Up counts in eighths, down in 64ths, alpha is 0.5.
#[test]
fn files_of_pytorch_are_read_too() {
    let place = Place::new("sd15");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora.pt");
    let model = WithLoras::new(place.model(), &[LoraSpec::new(file, 1.0)], SINGLE).unwrap();
    let found = model.read_f32(&query()).unwrap();
    let base = place.model().read_f32(&query()).unwrap();
    for (n, (found, base)) in found.iter().zip(&base).enumerate() {
        let change = 0.5 * ((n / 64) as f32 / 8.0) * ((n % 64) as f32 / 64.0);
        assert_eq!(*found, base + change);
    }
}

/// Files of the demo model, whose layers are narrower than published ones.
fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/demo")
        .join(name)
}

/// Distance over the norm of what is expected, of everything that two models' UNet and text encoders hold.
fn distance(a: &dyn Model, b: &dyn Model, base: &dyn Model) -> f64 {
    let (mut distance, mut change) = (0.0, 0.0);
    for name in base.entries().keys() {
        let [a, b, base] = [a, b, base].map(|model| model.read_f32(name).unwrap());
        for ((a, b), base) in a.iter().zip(&b).zip(&base) {
            distance += f64::from(a - b).powi(2);
            change += f64::from(b - base).powi(2);
        }
    }
    (distance / change).sqrt()
}

#[test]
fn merged_loras_do_what_they_did_together() {
    let dir = tempfile::tempdir().unwrap();
    let (pixel, outline) = (
        demo("pixel-style.safetensors"),
        demo("outline-style.locon.safetensors"),
    );
    let base = || Box::new(Weights::open(&demo("tiny-shapes.safetensors"), None).unwrap());
    let with = |specs: &[LoraSpec]| WithLoras::new(base(), specs, SINGLE).unwrap();
    let strength = |path: &Path, at: f64| format!("{}:{at}", path.display());
    let merge = |args: &[&str], out: &Path| {
        let output = sdconvert(&[&["lora-merge"], args, &["-o", out.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let both = [strength(&pixel, 0.7), strength(&outline, -0.4)];
    let args: Vec<&str> = both.iter().map(String::as_str).collect();
    let exact = dir.path().join("exact.safetensors");
    merge(&args, &exact);
    let specs = [LoraSpec::new(&pixel, 0.7), LoraSpec::new(&outline, -0.4)];
    let together = with(&specs);
    // The factors are rounded to half precision.
    let error = distance(&with(&[LoraSpec::new(&exact, 1.0)]), &together, &*base());
    assert!(error < 1e-3, "{error:.1e}");
    let file = fs::read(&exact).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    assert!(file.names().iter().all(|name| name.starts_with("lora_")));
    // A rank that is large enough keeps everything; a low one keeps what it says.
    let whole = dir.path().join("whole.safetensors");
    assert!(merge(&[&args[..], &["--rank", "16"]].concat(), &whole).contains("kept: 100.0 %"));
    let error = distance(&with(&[LoraSpec::new(&whole, 1.0)]), &together, &*base());
    assert!(error < 1e-3, "{error:.1e}");
    let low = dir.path().join("low.safetensors");
    let said = merge(&[&args[..], &["--rank", "3"]].concat(), &low);
    let kept = said
        .split("kept: ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let kept: f64 = kept.parse::<f64>().unwrap() / 100.0;
    let error = distance(&with(&[LoraSpec::new(&low, 1.0)]), &together, &*base());
    assert!((error - (1.0 - kept).sqrt()).abs() < 0.02, "{error} {kept}");
}

#[test]
fn loras_that_cannot_be_merged_are_refused() {
    let place = Place::new("sd15");
    let merge = |files: &[(&Tensors, &str)], more: &[&str]| {
        let paths = files.iter().map(|(tensors, name)| {
            let path = place.dir.path().join(name);
            fs::rename(place.write(tensors), &path).unwrap();
            path.to_str().unwrap().to_owned()
        });
        let paths: Vec<String> = paths.collect();
        let out = place.dir.path().join("out.safetensors");
        let files: Vec<&str> = paths.iter().map(String::as_str).collect();
        let args = [
            &["lora-merge"],
            &files[..],
            &["-o", out.to_str().unwrap()],
            more,
        ]
        .concat();
        let output = sdconvert(&args);
        assert_eq!(output.status.success(), out.exists());
        text(&output.stderr)
    };
    let mut full = Tensors::new();
    full.insert(
        format!("{KOHYA}.diff"),
        (vec![640, 640], ramp(640 * 640, 0.5)),
    );
    assert!(merge(&[(&full, "a")], &[]).contains("--rank N"));
    let mut dora = kohya(KOHYA);
    dora.insert(format!("{KOHYA}.dora_scale"), (vec![64, 1], ramp(64, 0.5)));
    assert!(merge(&[(&dora, "a")], &[]).contains("depends on the model"));
    let mut sdxl = Tensors::new();
    low_rank(
        &mut sdxl,
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        640,
        &[2048],
    );
    let mut sd15 = Tensors::new();
    low_rank(
        &mut sd15,
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        320,
        &[768],
    );
    let said = merge(&[(&sd15, "a"), (&sdxl, "b")], &[]);
    assert!(
        said.contains("made for SDXL, the first LoRA for Stable Diffusion 1.x"),
        "{said}"
    );
    let mut opposite = kohya(KOHYA);
    opposite
        .get_mut(&format!("{KOHYA}.lora_up.weight"))
        .unwrap()
        .1
        .fill(0.0);
    assert!(merge(&[(&opposite, "a")], &[]).contains("changes nothing"));
    assert!(merge(&[(&kohya(KOHYA), "a"), (&full, "b")], &["--rank", "2"]).contains("[64, 64]"));
}

#[test]
fn inspecting_a_lora_needs_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let mut tensors = Tensors::new();
    low_rank(&mut tensors, module, 640, &[2048]);
    let place = Place {
        base: PathBuf::new(),
        dir,
    };
    let lora = place.write(&tensors);
    let output = sdconvert(&["inspect", lora.to_str().unwrap()]);
    let said = text(&output.stdout);
    assert!(said.contains("LoRA of rank 1, made for SDXL"), "{said}");
    assert!(said.contains("1 in the UNet"), "{said}");
    let output = sdconvert(&["inspect", lora.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(json["lora"]["kinds"]["LoRA"], 1);
}
