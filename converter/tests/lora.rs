//! What LoRAs do to weights: the spellings of every trainer, alphas, blocks, the order of several.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::lora::{KOHYA, Place, QUERY, SINGLE, Tensors, kohya, low_rank, module, query, ramp};
use common::{sdconvert, text};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sd_converter::embedding::Embedding;
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::progress::Unwatched;
use sd_converter::save::save;
use sd_models::keys::Component;

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
        module(
            &format!("unet.{ldm}.lora_up.weight"),
            &format!("unet.{ldm}.lora_down.weight"),
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
    let build = |weights: &str| {
        let lora = format!("{}:0.5,lbw={weights}", lora.display());
        let output = place.build(&lora, &["--force"]);
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
    let output = place.build(place.write(&tensors).to_str().unwrap(), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let embedding =
        Embedding::open(&place.output().join("embeddings/my-word.safetensors")).unwrap();
    assert_eq!(embedding.vectors[0].values, ramp(128, 0.5));
    tensors.insert(
        "bundle_emb.wide.emb_params".to_owned(),
        (vec![1, 768], ramp(768, 0.5)),
    );
    place.refused(&tensors, &["`wide`", "[768]", "[64]"]);
    tensors.remove("bundle_emb.wide.emb_params");
    tensors.insert(
        "bundle_emb.word.clip_l_out".to_owned(),
        (vec![1, 64], ramp(64, 0.5)),
    );
    place.refused(
        &tensors,
        &["`bundle_emb.word.clip_l_out`", "allowing a partial use"],
    );
    tensors.insert(
        "bundle_emb.word.clip_l".to_owned(),
        (vec![1, 64], ramp(64, 0.5)),
    );
    let partial = ["--allow-partial", "--force"];
    let output = place.build(place.write(&tensors).to_str().unwrap(), &partial);
    let said = text(&output.stderr);
    assert!(
        said.contains("not supported: `bundle_emb.word.clip_l_out`"),
        "{said}"
    );
    let embedding = Embedding::open(&place.output().join("embeddings/word.safetensors"));
    assert_eq!(embedding.unwrap().vectors[0].values, ramp(64, 0.5));
    tensors.remove("bundle_emb.word.clip_l_out");
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

/// The first components of a `DyLoRA` are of use without the others; other kinds have no first components.
#[test]
fn only_the_first_components_may_be_used() {
    let place = Place::new("sd15");
    let baked = |tensors: &Tensors, options: &str| {
        let spec = format!("{}:{options}", place.write(tensors).display());
        let spec = LoraSpec::parse(&spec).unwrap();
        let model = WithLoras::new(place.model(), &[spec], SINGLE).map_err(|e| e.to_string())?;
        Ok::<_, String>(model.read_f32(&query()).unwrap())
    };
    let mut first = Tensors::new();
    low_rank(&mut first, KOHYA, 64, &[64]);
    first.get_mut(&format!("{KOHYA}.lora_up.weight")).unwrap().1 =
        ramp(128, 0.25).chunks(2).map(|row| row[0]).collect();
    assert_eq!(baked(&kohya(KOHYA), "1,dyn=1"), baked(&first, "1"));
    let mut loha = Tensors::new();
    for side in ["w1", "w2"] {
        loha.insert(
            format!("{KOHYA}.hada_{side}_a"),
            (vec![64, 2], ramp(128, 0.25)),
        );
        loha.insert(
            format!("{KOHYA}.hada_{side}_b"),
            (vec![2, 64], ramp(128, 0.125)),
        );
    }
    assert!(baked(&loha, "1").is_ok());
    assert!(baked(&loha, "1,dyn=1").unwrap_err().contains("`dyn`"));
}

#[test]
fn text_encoders_go_by_the_names_of_onetrainer_too() {
    let place = Place::new("sdxl");
    let path = "text_model.encoder.layers.0.self_attn.q_proj";
    for (encoder, spelled, width) in [
        (
            Component::TextEncoder,
            ["lora_te1_", "clip_l.", "lora_te1."],
            64,
        ),
        (
            Component::TextEncoder2,
            ["lora_te2_", "clip_g.", "lora_te2."],
            128,
        ),
    ] {
        let name: Name = (encoder, format!("{path}.weight"));
        let before = place.model().read_f32(&name).unwrap();
        let baked = spelled.map(|prefix| {
            let path = match prefix.ends_with('_') {
                true => path.replace('.', "_"),
                false => path.to_owned(),
            };
            let mut tensors = Tensors::new();
            low_rank(&mut tensors, &format!("{prefix}{path}"), width, &[width]);
            let model = place.bake(&tensors, 1.0).unwrap();
            model.read_f32(&name).unwrap()
        });
        assert!(baked[0] != before && baked[1] == baked[0] && baked[2] == baked[0]);
    }
}

#[test]
fn names_with_dots_may_be_those_of_single_files_or_leave_out_the_text_model() {
    let place = Place::new("sdxl");
    let layer = "encoder.layers.0.self_attn.q_proj";
    let unet = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
    for (component, name, spelled) in [
        (
            Component::UNet,
            unet.to_owned(),
            "lora_unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q".to_owned(),
        ),
        (
            Component::TextEncoder,
            format!("text_model.{layer}"),
            format!("clip_l.{layer}"),
        ),
        (
            Component::TextEncoder2,
            format!("text_model.{layer}"),
            format!("clip_g.{layer}"),
        ),
    ] {
        let name: Name = (component, format!("{name}.weight"));
        let width = place.model().entries()[&name].shape[0];
        let mut tensors = Tensors::new();
        low_rank(&mut tensors, &spelled, width, &[width]);
        let model = place.bake(&tensors, 1.0).unwrap();
        let before = place.model().read_f32(&name).unwrap();
        assert!(model.read_f32(&name).unwrap() != before, "{spelled}");
    }
}

#[test]
fn a_folder_of_peft_is_taken_with_its_scales() {
    let place = Place::new("sd15");
    let dotted = QUERY.strip_suffix(".weight").unwrap();
    let adapter = place.dir.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    let spec = LoraSpec::new(&adapter, 1.0);
    let baked = || {
        let model = WithLoras::new(place.model(), std::slice::from_ref(&spec), SINGLE);
        model.map_err(|e| e.to_string())
    };
    fs::write(adapter.join("readme.md"), "").unwrap();
    let Err(said) = baked() else {
        panic!("it was accepted")
    };
    assert!(
        said.contains("adapter_model.safetensors") && said.contains("it holds `readme.md`"),
        "{said}"
    );
    let file = place.write(&module(
        &format!("base_model.model.{dotted}.lora_B.weight"),
        &format!("base_model.model.{dotted}.lora_A.weight"),
        64,
    ));
    fs::rename(file, adapter.join("adapter_model.safetensors")).unwrap();
    let refused = |config: &str, said: &[&str]| {
        fs::write(adapter.join("adapter_config.json"), config).unwrap();
        let Err(error) = baked() else {
            panic!("{config} was accepted")
        };
        for part in ["adapter_config.json", "lora_A.weight`"].iter().chain(said) {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    };
    refused(r#"{"r": 4}"#, &["rank 4", "rank 2"]);
    refused(
        r#"{"r": 2, "use_dora": true}"#,
        &["use_dora", "no magnitude"],
    );
    refused(r#"{"peft_type": "LOHA", "r": 2}"#, &["LOHA", "of a LoRA"]);
    let config = r#"{"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"attn1.to_q": 3}}"#;
    fs::write(adapter.join("adapter_config.json"), config).unwrap();
    let mut expected = kohya(KOHYA);
    expected.insert(format!("{KOHYA}.alpha"), (vec![], vec![3.0]));
    assert_eq!(
        baked().unwrap().read_f32(&query()).unwrap(),
        place
            .bake(&expected, 1.0)
            .unwrap()
            .read_f32(&query())
            .unwrap()
    );
    let folder = adapter.to_str().unwrap();
    let output = sdconvert(&["inspect", folder]);
    assert!(
        text(&output.stdout).contains("LoRA of rank 2"),
        "{}",
        text(&output.stderr)
    );
    let output = place.build(&format!("{folder}:0.5:lbw=OUTALL:te=1"), &[]);
    let said = text(&output.stderr);
    assert!(said.contains("strength is 0"), "{said}");
}
