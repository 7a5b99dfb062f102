//! `build --precision int8`: what becomes whole numbers, how it is stored and told, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::{Raw, sdconvert, synthetic, text, write_raw};
use prost::Message;
use safetensors::SafeTensors;
use sd_converter::onnx::proto::{EXTERNAL, ModelProto, TensorProto, data_type};
use serde_json::Value;

fn build(input: &Path, target: &Path, more: &[&str]) -> (Option<i32>, Value, String) {
    let [input, out] = [input, target].map(|path| path.to_str().unwrap());
    let args = ["build", input, "-o", out, "--json"];
    let output = sdconvert(&[&args[..], more].concat());
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), json, text(&output.stderr))
}

fn int8(input: &Path, target: &Path) -> (Option<i32>, Value, String) {
    build(input, target, &["--precision", "int8"])
}

fn built(dir: &Path, family: &str) -> (PathBuf, Value) {
    let target = dir.join("model");
    let (code, json, said) = int8(&synthetic(dir, family, 0), &target);
    assert_eq!(code, Some(0), "{said}");
    (target, json)
}

fn graph(path: &Path) -> ModelProto {
    ModelProto::decode(&*fs::read(path).unwrap()).unwrap()
}

/// Tensors of a graph by name.
fn tensors(model: &ModelProto) -> BTreeMap<String, TensorProto> {
    let graph = model.graph.as_ref().unwrap();
    let named = |t: &TensorProto| (t.name.clone(), t.clone());
    graph.initializer.iter().map(named).collect()
}

#[test]
fn weights_of_layers_are_whole_numbers_and_all_else_is_as_published() {
    let dir = tempfile::tempdir().unwrap();
    let (target, _) = built(dir.path(), "sdxl");
    for (folder, stay, become_whole) in [
        (
            "unet",
            &[
                "conv_in.weight",
                "conv_out.weight",
                "time_embedding.linear_1.weight",
                "add_embedding.linear_1.weight",
                "down_blocks.1.resnets.0.conv_shortcut.weight",
                "down_blocks.0.resnets.0.norm1.weight",
                "down_blocks.0.resnets.0.conv1.bias",
            ][..],
            &[
                "down_blocks.0.resnets.0.conv1.weight",
                "down_blocks.0.resnets.0.time_emb_proj.weight",
                "down_blocks.0.downsamplers.0.conv.weight",
                "mid_block.attentions.0.proj_in.weight",
                "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            ][..],
        ),
        (
            "text_encoder_2",
            &[
                "text_model.embeddings.token_embedding.weight",
                "text_model.embeddings.position_embedding.weight",
            ],
            &[
                "text_model.encoder.layers.0.mlp.fc1.weight",
                "text_projection.weight",
            ],
        ),
        (
            "vae_decoder",
            &[
                "post_quant_conv.weight",
                "decoder.conv_in.weight",
                "decoder.up_blocks.0.upsamplers.0.conv.weight",
            ],
            &["decoder.mid_block.attentions.0.to_q.weight"],
        ),
    ] {
        let found = tensors(&graph(&target.join(folder).join("model.onnx")));
        for name in stay {
            assert_ne!(found[*name].data_type, data_type::INT8, "{name}");
            assert!(!found.contains_key(&format!("{name}_scale")), "{name}");
        }
        for name in become_whole {
            assert_eq!(found[*name].data_type, data_type::INT8, "{name}");
            let scales = &found[&format!("{name}_scale")];
            assert_eq!(scales.data_type, data_type::FLOAT);
            assert_eq!(scales.dims.len(), 1, "{name}");
        }
    }
}

#[test]
fn portable_graphs_widen_by_onnx_operators_and_native_ones_read_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (target, json) = built(dir.path(), "sd15");
    let unet = target.join("unet");
    let portable = graph(&unet.join("model.onnx"));
    let declared = tensors(&portable);
    let nodes = &portable.graph.as_ref().unwrap().node;
    let widened: Vec<_> = nodes
        .iter()
        .filter(|node| node.op_type == "DequantizeLinear")
        .collect();
    assert!(widened.len() > 20);
    for node in &widened {
        let (weight, scales) = (&declared[&node.input[0]], &declared[&node.input[1]]);
        let axis = node.attribute[0].i.unwrap() as usize;
        assert_eq!(weight.dims[axis], scales.dims[0], "{}", node.name);
    }
    assert_eq!(portable.opset_import.len(), 1);

    let mut scaled = 0;
    for name in ["native.onnx", "native.prompt.onnx", "native.time.onnx"] {
        let native = graph(&unet.join(name));
        assert_eq!(native.opset_import[1].version, 2, "{name}");
        for (name, tensor) in tensors(&native) {
            if !name.starts_with("constant.") {
                assert_eq!(tensor, declared[&name]);
            }
        }
        let nodes = native.graph.unwrap().node;
        assert!(nodes.iter().all(|node| node.op_type != "DequantizeLinear"));
        let nodes = nodes.iter().flat_map(|node| &node.attribute);
        scaled += nodes.filter(|a| a.name == "scales").count();
    }
    assert_eq!(scaled, widened.len());

    let components = &json["manifest"]["components"];
    assert_eq!(
        components["unet"]["storage"],
        serde_json::json!(["F16", "I8"])
    );
    let variants = &components["unet"]["variants"];
    assert_eq!(variants["native.onnx"]["custom_domains"][0], "sdrt:2");
    let listed = text(&sdconvert(&["inspect", target.to_str().unwrap()]).stdout);
    assert!(
        listed.contains("unet: fp32 over F16 and I8 weights"),
        "{listed}"
    );
}

#[test]
fn the_report_tells_what_rounding_did() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let (_, json, _) = int8(&checkpoint, &dir.path().join("a"));
    let rounding = json["rounding"].as_object().unwrap();
    let folders: Vec<&String> = rounding.keys().collect();
    assert_eq!(
        folders,
        ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    );
    for group in [
        "convolution",
        "cross-attention",
        "feed-forward",
        "projection",
    ] {
        let rounded = &rounding["unet"][group];
        let error = rounded["relative_error"].as_f64().unwrap();
        assert!((1e-3..1e-2).contains(&error), "{group}: {error}");
        assert!(rounded["weights"].as_u64().unwrap() > 100);
    }
    let args = [
        "build",
        checkpoint.to_str().unwrap(),
        "--precision",
        "int8",
        "-o",
    ];
    let target = dir.path().join("b");
    let said = text(&sdconvert(&[&args[..], &[target.to_str().unwrap()]].concat()).stderr);
    assert!(
        said.contains("unet: int8 changes weights by convolution 0."),
        "{said}"
    );
    let (_, json, _) = build(&checkpoint, &dir.path().join("c"), &[]);
    assert_eq!(json["rounding"], serde_json::json!({}));
}

/// A checkpoint some of whose tensors were changed.
fn changed(path: &Path, change: impl Fn(&str, &mut [u8])) -> PathBuf {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let mut data = view.data().to_vec();
        change(name, &mut data);
        let raw: Raw = (view.dtype(), view.shape().to_vec(), data);
        (name.to_owned(), raw)
    });
    let target = path.with_extension("changed.safetensors");
    write_raw(&target, &tensors.collect());
    target
}

const CONV: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    // Half precision's infinity and NaN.
    for bits in [0x7C00u16, 0x7E00] {
        let bad = changed(&checkpoint, |name, data| {
            if name == CONV {
                data[10..12].copy_from_slice(&bits.to_le_bytes());
            }
        });
        let target = dir.path().join("model");
        let (code, _, said) = int8(&bad, &target);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(CONV) && said.contains("NaN or infinite"),
            "{said}"
        );
        assert!(!target.exists());
    }
}

#[test]
fn layers_of_zeros_and_outliers_have_scales_that_are_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let odd = changed(&checkpoint, |name, data| {
        if name == CONV {
            data.fill(0);
            // 1e4 in the first output.
            data[..2].copy_from_slice(&0x70E2u16.to_le_bytes());
        }
    });
    let target = dir.path().join("model");
    assert_eq!(int8(&odd, &target).0, Some(0));
    let found = tensors(&graph(&target.join("unet/model.onnx")));
    let scales = &found["down_blocks.0.resnets.0.conv1.weight_scale"];
    let scales = scales.raw_data.as_ref().unwrap().as_chunks().0;
    let scales: Vec<f32> = scales.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!((scales[0] - 1e4 / 127.0).abs() < 0.1, "{}", scales[0]);
    assert!(scales.iter().all(|&s| s.is_finite() && s > 0.0));
}

#[test]
fn what_has_no_weights_to_round_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "taesd", 0);
    let (code, _, said) = int8(&checkpoint, &dir.path().join("model"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("int8") && said.contains("hint:"), "{said}");
    let (code, _, said) = build(
        &checkpoint,
        &dir.path().join("model"),
        &["--precision", "int4"],
    );
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn loras_and_recipes_change_weights_before_they_are_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let demo = |name: &str| {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        demo.join(name).to_str().unwrap().to_owned()
    };
    let (base, lora) = (
        demo("tiny-shapes.safetensors"),
        demo("pixel-style.safetensors"),
    );
    let recipe = path("recipe.toml");
    let content = format!(
        "schema = 1\nmodels = {{ a = '{base}' }}\n[[step]]\nmethod = 'lora'\n\
         inputs = ['a']\nlora = '{lora}'\nalpha = 1.0\n"
    );
    fs::write(&recipe, content).unwrap();
    let recipe = recipe.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = sdconvert(args);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let [given, recipes, merged, from] = ["given", "recipes", "merged.safetensors", "from"]
        .map(|name| path(name).to_str().unwrap().to_owned());
    let int8 = ["--precision", "int8"];
    run(&[&["build", &base, "--lora", &lora, "-o", &given], &int8[..]].concat());
    run(&[&["build", "--recipe", recipe, "-o", &recipes], &int8[..]].concat());
    run(&["merge", "--recipe", recipe, "-o", &merged]);
    run(&[&["build", &merged, "-o", &from], &int8[..]].concat());
    for folder in ["unet", "text_encoder"] {
        let data =
            |dir: &str| fs::read(Path::new(dir).join(folder).join("model.onnx_data")).unwrap();
        assert!(data(&given) == data(&recipes), "{folder}");
        assert!(data(&given) == data(&from), "{folder}");
    }
}

const PORTABLE: [&str; 3] = ["--precision", "int8", "--portable"];

#[test]
fn portable_graphs_multiply_whole_numbers_over_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let [plain, target] = ["plain", "portable"].map(|name| dir.path().join(name));
    assert_eq!(int8(&checkpoint, &plain).0, Some(0));
    let (code, json, said) = build(&checkpoint, &target, &PORTABLE);
    assert_eq!(code, Some(0), "{said}");
    for folder in ["unet", "vae_decoder", "text_encoder"] {
        let read = |dir: &Path, file: &str| fs::read(dir.join(folder).join(file)).unwrap();
        for file in ["model.onnx_data", "native.onnx"] {
            assert!(read(&plain, file) == read(&target, file), "{folder} {file}");
        }
        // The same tensors, so no weight is there twice.
        let declared = |dir: &Path| {
            let mut tensors = tensors(&graph(&dir.join(folder).join("model.onnx")));
            tensors.retain(|name, _| !name.starts_with("constant."));
            tensors
        };
        assert_eq!(declared(&plain), declared(&target), "{folder}");
    }
    for file in ["model.onnx", "controlnet.onnx"] {
        let model = graph(&target.join("unet").join(file));
        assert_eq!(
            (model.opset_import.len(), model.opset_import[0].version),
            (1, 17)
        );
        let declared = tensors(&model);
        let nodes = model.graph.unwrap().node;
        let count = |op: &str| nodes.iter().filter(|node| node.op_type == op).count();
        // Other forms are slow, or round results as well.
        for op in [
            "ConvInteger",
            "QLinearConv",
            "QuantizeLinear",
            "DequantizeLinear",
        ] {
            assert_eq!(count(op), 0, "{op}");
        }
        let whole: Vec<&String> = (declared.iter())
            .filter(|(_, tensor)| tensor.data_type == data_type::INT8)
            .map(|(name, _)| name)
            .collect();
        let floats = [
            "attn2.to_k.",
            "attn2.to_v.",
            "ff.net.2.",
            "proj_in.",
            "proj_out.",
            "time_emb_proj.",
        ];
        let stays = |name: &&&String| floats.iter().any(|part| name.contains(part));
        let staying: Vec<_> = whole.iter().filter(stays).collect();
        assert_eq!(count("MatMulInteger"), whole.len() - staying.len());
        assert!(count("MatMulInteger") > 20);
        // Queries, keys and values of self-attention share the whole numbers of their tokens.
        assert!(count("DynamicQuantizeLinear") < count("MatMulInteger"));
        for node in nodes.iter().filter(|node| node.op_type == "Cast") {
            let weight = declared.get(&node.input[0]);
            if weight.is_some_and(|tensor| tensor.data_type == data_type::INT8) {
                assert!(
                    staying.iter().any(|name| ***name == node.input[0]),
                    "{}",
                    node.name
                );
            }
        }
    }
    let components = &json["manifest"]["components"];
    assert_eq!(
        components["unet"]["variants"]["model.onnx"]["multiplies"],
        "int8"
    );
    for (folder, file) in [("unet", "native.onnx"), ("vae_decoder", "model.onnx")] {
        assert!(components[folder]["variants"][file]["multiplies"].is_null());
    }
    let listed = text(&sdconvert(&["inspect", target.to_str().unwrap()]).stdout);
    assert!(listed.contains("model.onnx, multiplies int8"), "{listed}");
    let verified = sdconvert(&["verify", target.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

#[test]
fn static_ranges_round_what_norms_make() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let [plain, target] = ["plain", "static"].map(|name| dir.path().join(name));
    assert_eq!(int8(&checkpoint, &plain).0, Some(0));
    let options = ["--precision", "int8", "--portable=static"];
    let (code, json, said) = build(&checkpoint, &target, &options);
    assert_eq!(code, Some(0), "{said}");
    for file in ["model.onnx_data", "native.onnx"] {
        let read = |dir: &Path| fs::read(dir.join("unet").join(file)).unwrap();
        assert!(read(&plain) == read(&target), "{file}");
    }
    for file in ["model.onnx", "controlnet.onnx"] {
        let model = graph(&target.join("unet").join(file));
        assert_eq!(model.opset_import[0].version, 17);
        let constants = tensors(&model);
        let nodes = model.graph.unwrap().node;
        let of = |op: &'static str| nodes.iter().filter(move |node| node.op_type == op);
        let mut rounded = HashSet::new();
        for node in of("QuantizeLinear") {
            let zero = &constants[&node.input[2]];
            assert_eq!(zero.data_type, data_type::UINT8);
            let back = of("DequantizeLinear").find(|back| back.input[0] == node.output[0]);
            let back = back.expect("what is rounded is widened");
            assert_eq!(back.input[1..], node.input[1..]);
            rounded.insert(back.output[0].clone());
        }
        let layers = of("Conv").chain(of("MatMul"));
        let layers = layers.filter(|node| rounded.contains(&node.input[0]));
        let names: Vec<&str> = layers.map(|node| &*node.name).collect();
        for part in [
            "resnets.0.conv1",
            "resnets.0.conv2",
            "attn1.to_q",
            "attn1.to_v",
            "attn2.to_q",
            "ff.net.0",
        ] {
            assert!(names.iter().any(|name| name.contains(part)), "{part}");
        }
        for part in [
            "to_out",
            "attn2.to_k",
            "ff.net.2",
            "proj_in",
            "proj_out",
            "samplers",
        ] {
            assert!(!names.iter().any(|name| name.contains(part)), "{part}");
        }
        // Queries, keys and values of self-attention share the whole numbers of their tokens.
        assert!(rounded.len() < names.len());
    }
    let variants = &json["manifest"]["components"]["unet"]["variants"];
    assert_eq!(variants["model.onnx"]["multiplies"], "int8");
    assert!(
        said.contains("no faster than the published weights"),
        "{said}"
    );
    let verified = sdconvert(&["verify", target.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

/// A file of ranges of a directory's UNet: from -1.5 to 2 for every layer of whole numbers.
fn ranges(model: &Path) -> Value {
    let text = fs::read_to_string(model.join("sdrt.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let declared = tensors(&graph(&model.join("unet/model.onnx")));
    let whole = declared
        .iter()
        .filter(|(_, tensor)| tensor.data_type == data_type::INT8);
    let layer = |name: &str| name.strip_suffix(".weight").unwrap().to_owned();
    let range = serde_json::json!({"least": -1.5, "largest": 2.0});
    let layers: serde_json::Map<_, _> = whole
        .map(|(name, _)| (layer(name), range.clone()))
        .collect();
    serde_json::json!({
        "schema": 1,
        "program": "sdrun 0.1.0",
        "title": "tiny",
        "weights": manifest["components"]["unet"]["files"]["model.onnx_data"]["sha256"],
        "pictures": 1,
        "steps": 8,
        "layers": layers,
    })
}

const STATIC: [&str; 4] = ["--precision", "int8", "--portable=static", "--ranges"];

#[test]
fn ranges_that_runs_had_round_what_no_norm_makes() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, _) = built(dir.path(), "sd15");
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let [norms, target, file] =
        ["norms", "ranges", "ranges.json"].map(|name| dir.path().join(name));
    assert_eq!(build(&checkpoint, &norms, &STATIC[..3]).0, Some(0));
    fs::write(&file, ranges(&plain).to_string()).unwrap();
    let options = [&STATIC[..], &[file.to_str().unwrap()]].concat();
    let (code, _, said) = build(&checkpoint, &target, &options);
    assert_eq!(code, Some(0), "{said}");
    // Directories say which form they have.
    let origin = |dir: &Path, file: &str| {
        let text = fs::read_to_string(dir.join("sdrt.json")).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        manifest["components"]["unet"]["variants"][file]["ranges"].clone()
    };
    assert_eq!(origin(&norms, "model.onnx"), "norms");
    assert_eq!(origin(&target, "model.onnx"), "runs");
    assert_eq!(origin(&target, "controlnet.onnx"), "norms");
    assert!(origin(&plain, "model.onnx").is_null());
    let read = |dir: &Path, file: &str| fs::read(dir.join("unet").join(file)).unwrap();
    // No ControlNet ran.
    for file in ["model.onnx_data", "native.onnx", "controlnet.onnx"] {
        assert!(read(&norms, file) == read(&target, file), "{file}");
    }
    let model = graph(&target.join("unet/model.onnx"));
    let constants = tensors(&model);
    let nodes = model.graph.unwrap().node;
    let scale_of = |layer: &str| {
        let product = nodes
            .iter()
            .find(|node| ["Conv", "MatMul"].contains(&&*node.op_type) && node.name.contains(layer));
        let input = &product.unwrap().input[0];
        let back = nodes.iter().find(|node| &node.output[0] == input)?;
        let scale = constants.get(back.input.get(1)?)?.raw_data.as_ref()?;
        let scale = f32::from_le_bytes(*scale.first_chunk()?);
        (back.op_type == "DequantizeLinear").then_some(scale)
    };
    for layer in [
        "attn1.to_out.0",
        "attn2.to_out.0",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
    ] {
        assert_eq!(scale_of(layer), Some(3.5 / 255.0), "{layer}");
    }
    for layer in [
        "attn2.to_k",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "time_emb_proj",
        "conv_in",
    ] {
        assert_eq!(scale_of(layer), None, "{layer}");
    }
    let verified = sdconvert(&["verify", target.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

#[test]
fn ranges_that_are_not_those_of_the_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, _) = built(dir.path(), "sd15");
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let whole = ranges(&plain);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = whole.clone();
        change(&mut changed);
        changed.to_string()
    };
    const LAYER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";
    let text = whole.to_string();
    let (file, target) = (dir.path().join("ranges.json"), dir.path().join("static"));
    let options = [&STATIC[..], &[file.to_str().unwrap()]].concat();
    for (content, says) in [
        (
            with(&|file| file["weights"] = "0123".into()),
            "ranges of other weights (tiny)",
        ),
        (
            with(&|file| drop(file["layers"].as_object_mut().unwrap().remove(LAYER))),
            LAYER,
        ),
        (
            with(&|file| file["layers"][LAYER]["largest"] = (-2.0).into()),
            "a range from -1.5 to -2",
        ),
        (text.replacen("-1.5", "NaN", 1), "expected"),
        (text.replacen("-1.5", "-1e39", 1), "a range from -inf"),
        (text[..text.len() / 2].to_owned(), "EOF"),
        (with(&|file| file["schema"] = 2.into()), "its schema is 2"),
        (String::new(), "EOF"),
    ] {
        fs::write(&file, content).unwrap();
        let (code, _, said) = build(&checkpoint, &target, &options);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("ranges.json") && said.contains(says),
            "{said}"
        );
        assert!(!target.exists(), "{says}");
    }
    // Other weights of the same structure, by another seed and by a LoRA's like.
    fs::write(&file, &text).unwrap();
    let (code, _, said) = build(&synthetic(dir.path(), "sd15", 1), &target, &options);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("hint:") && said.contains("sdrun calibrate"),
        "{said}"
    );
    let changed = changed(&checkpoint, |key, data| {
        if key == CONV {
            data[1] ^= 0x80;
        }
    });
    assert_eq!(build(&changed, &target, &options).0, Some(1));
    assert!(!target.exists());
    for wrong in [
        &["--ranges", file.to_str().unwrap()][..],
        &[
            "--precision",
            "int8",
            "--portable",
            "--ranges",
            file.to_str().unwrap(),
        ],
    ] {
        let (code, _, said) = build(&checkpoint, &target, wrong);
        assert_eq!(code, Some(2), "{said}");
    }
}

#[test]
fn portable_products_of_weights_that_are_odd_or_changed_by_loras() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let with = |fill: [u8; 2], name: &str| {
        let odd = changed(&checkpoint, |key, data| {
            if key == CONV {
                data.fill(0);
                data[..2].copy_from_slice(&fill);
            }
        });
        build(&odd, &dir.path().join(name), &PORTABLE)
    };
    let (code, _, said) = with(0x7E00u16.to_le_bytes(), "nan");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(CONV), "{said}");
    let (code, _, said) = with([0; 2], "zeros");
    assert_eq!(code, Some(0), "{said}");

    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let [base, lora] =
        ["tiny-shapes", "pixel-style"].map(|name| demo.join(name).with_extension("safetensors"));
    let lora = ["--lora", lora.to_str().unwrap(), "--precision", "int8"];
    let [stored, multiplied] = ["stored", "multiplied"].map(|name| dir.path().join(name));
    assert_eq!(build(&base, &stored, &lora).0, Some(0));
    let lora = [&lora[..], &["--portable"]].concat();
    assert_eq!(build(&base, &multiplied, &lora).0, Some(0));
    let data = |dir: &Path| fs::read(dir.join("unet/model.onnx_data")).unwrap();
    assert!(data(&stored) == data(&multiplied));
}

#[test]
fn portable_products_need_weights_of_whole_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = synthetic(dir.path(), "sd15", 0);
    let (code, _, said) = build(&checkpoint, &dir.path().join("model"), &["--portable"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--precision int8"), "{said}");
}

/// Rewrites a graph.
fn rewrite(path: &Path, change: impl FnOnce(&mut ModelProto)) {
    let mut model = graph(path);
    change(&mut model);
    fs::write(path, model.encode_to_vec()).unwrap();
}

#[test]
fn scales_that_are_missing_or_too_few_are_named() {
    const WEIGHT: &str = "down_blocks.0.resnets.0.conv1.weight";
    let scales = format!("{WEIGHT}_scale");
    let dir = tempfile::tempdir().unwrap();
    let (target, _) = built(dir.path(), "sd15");
    // Without its manifest, whose hashes would tell first.
    fs::remove_file(target.join("sdrt.json")).unwrap();
    let verify = || {
        let output = sdconvert(&["verify", target.to_str().unwrap()]);
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(verify().0, Some(0), "{}", verify().1);
    for file in ["model.onnx", "native.onnx"] {
        let path = target.join("unet").join(file);
        let whole = fs::read(&path).unwrap();
        rewrite(&path, |model| {
            let graph = model.graph.as_mut().unwrap();
            graph.initializer.retain(|t| t.name != scales);
        });
        let (code, said) = verify();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(file) && said.contains(&scales), "{said}");
        fs::write(&path, &whole).unwrap();
        rewrite(&path, |model| {
            let graph = model.graph.as_mut().unwrap();
            let found = graph.initializer.iter_mut().find(|t| t.name == scales);
            let found = found.unwrap();
            found.dims[0] -= 1;
            found
                .raw_data
                .as_mut()
                .unwrap()
                .truncate(4 * found.dims[0] as usize);
        });
        let (code, said) = verify();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(file) && said.contains(&scales), "{said}");
        fs::write(&path, &whole).unwrap();
    }
    // The last tensor of the data is cut off.
    let data = target.join("unet/model.onnx_data");
    let length = fs::metadata(&data).unwrap().len();
    let cut = fs::File::options().write(true).open(&data).unwrap();
    cut.set_len(length - 1).unwrap();
    let (code, said) = verify();
    assert_eq!(code, Some(1), "{said}");
    let found = tensors(&graph(&target.join("unet/model.onnx")));
    let external = found.values().filter(|t| t.data_location == EXTERNAL);
    let named = external.filter(|t| said.contains(&format!("`{}`", t.name)));
    assert_eq!(named.count(), 1, "{said}");
    assert!(said.contains("model.onnx_data"), "{said}");
}
