//! LoRAs that are damaged, of other kinds, or for other models.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::lora::{KOHYA, Place, QUERY, SINGLE, Tensors, for_sdxl, kohya, low_rank, query, ramp};
use common::{sdconvert, text};
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::Model;

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
    place.refused(&alpha(f32::INFINITY), &["alpha is inf"]);
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
    let sdxl = for_sdxl();
    place.refused(&sdxl, &["made for SDXL, this is Stable Diffusion 1.x"]);
    // There is nothing that a part of it could add.
    let Err(said) = place.bake(&sdxl, 1.0) else {
        panic!("it was accepted")
    };
    assert!(
        said.contains("none of its 1 modules") && !said.contains("hint"),
        "{said}"
    );
    // Several families may have its layers, this one among them.
    let mut words = Tensors::new();
    low_rank(
        &mut words,
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        3072,
        &[768],
    );
    let Err(said) = place.bake(&words, 1.0) else {
        panic!("it was accepted")
    };
    assert!(!said.contains("made for"), "{said}");
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

#[test]
fn every_kind_that_cannot_be_added_is_named() {
    let place = Place::new("sd15");
    for (keys, said) in [
        (
            ["control_model.lora_controlnet", "a.up"],
            "beside the model",
        ),
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
            "allowing a partial use",
        ],
    );
    let report = place.dir.path().join("report.json");
    let lora = place.write(&tensors);
    let build = |more: &[&str]| {
        let report = ["--report", report.to_str().unwrap()];
        place.build(lora.to_str().unwrap(), &[&report, more].concat())
    };
    let output = build(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!place.output().exists() && !report.exists());
    let output = build(&["--allow-partial"]);
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
