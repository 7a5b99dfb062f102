//! What the tokenizer and the configuration files of a pipeline folder say is followed, or refused by name.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::synthetic;
use safetensors::tensor::{Dtype, TensorView};
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::merge::{BlockWeights, Merged, Method, Plan, Policy};
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use sd_models::tokenizer::{self, Pad};
use serde_json::{Value, json};
use tempfile::TempDir;

const TABLE: &str = "text_model.embeddings.token_embedding.weight";

/// A family's tiny model as a folder, without configurations.
struct Folder {
    dir: TempDir,
}

impl Folder {
    /// Text encoders get `rows` further tokens.
    fn new(family: &str, rows: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let single = Weights::open(&synthetic(dir.path(), family, 0), None).unwrap();
        let folder = Self { dir };
        for component in single
            .entries()
            .keys()
            .map(|(component, _)| *component)
            .collect::<std::collections::BTreeSet<_>>()
        {
            let of_component = single.entries().iter().filter(|(n, _)| n.0 == component);
            let tensors: Vec<(&String, Vec<usize>, Vec<u8>)> = of_component
                .map(|(name, entry)| {
                    let mut data = single.read(name).unwrap().bytes.into_owned();
                    let mut shape = entry.shape.clone();
                    if name.1 == TABLE {
                        shape[0] += rows;
                        data.resize(shape[0] * shape[1] * 2, 0);
                    }
                    (&name.1, shape, data)
                })
                .collect();
            let views = tensors.iter().map(|(name, shape, data)| {
                let view = TensorView::new(Dtype::F16, shape.clone(), data);
                (*name, view.unwrap())
            });
            let path = folder.path(component.name());
            fs::create_dir_all(&path).unwrap();
            let file = path.join("model.safetensors");
            safetensors::serialize_to_file(views, None, &file).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("pipeline").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// CLIP's tokenizer, and one more file.
    fn write_tokenizer(&self, folder: &str, name: &str, content: &str) {
        for (name, content) in tokenizer::files(Pad::EndOfText) {
            self.write(&format!("{folder}/{name}"), &content);
        }
        self.write(&format!("{folder}/{name}"), content);
    }

    fn plan(&self) -> Result<BuildPlan, String> {
        let weights = Weights::open(&self.path(""), None).map_err(|e| e.to_string())?;
        BuildPlan::new(Box::new(weights), BuildOptions::default()).map_err(|e| e.to_string())
    }

    fn convert(&self) -> PathBuf {
        let target = self.dir.path().join("model");
        let _ = fs::remove_dir_all(&target);
        let plan = self.plan().unwrap();
        plan.write(&target, &Unwatched).unwrap();
        target
    }

    fn refused(&self, said: &[&str]) {
        let Err(error) = self.plan() else {
            panic!("it was accepted; expected {said:?}")
        };
        for part in said {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_folders_tokenizer_and_its_added_tokens_are_carried() {
    let folder = Folder::new("sdxl", 2);
    let added = r#"{"<cat-toy>": 49408, "my_Style": 49409}"#;
    folder.write_tokenizer("tokenizer", "added_tokens.json", added);
    folder.write_tokenizer("tokenizer_2", "extra.txt", "");
    folder.write_tokenizer(
        "tokenizer_2",
        "special_tokens_map.json",
        r#"{"pad_token": "!"}"#,
    );
    let model = folder.convert();
    for name in ["tokenizer", "tokenizer_2"] {
        for file in tokenizer::folder::FILES {
            let given = fs::read_to_string(folder.path(name).join(file)).ok();
            let found = fs::read_to_string(model.join(name).join(file)).ok();
            assert!(given == found, "{name}/{file}");
        }
        assert!(!model.join(name).join("extra.txt").exists());
    }
    for (name, pad) in [("text_encoder", 49407), ("text_encoder_2", 0)] {
        let config = json_of(&model.join(name).join("config.json"));
        assert_eq!(config["vocab_size"], 49410);
        assert_eq!(config["pad_token_id"], pad);
    }
}

#[test]
fn a_tokenizer_in_one_file_gets_the_files_that_other_readers_need() {
    let golden = include_str!("../../tests/golden/clip_tokenizers.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let files = &golden["by_tokenizer_json"]["files"];
    let folder = Folder::new("sd15", 0);
    for (name, content) in files.as_object().unwrap() {
        folder.write(&format!("tokenizer/{name}"), content.as_str().unwrap());
    }
    let tokenizer = folder.convert().join("tokenizer");
    for (name, content) in files.as_object().unwrap() {
        let found = fs::read_to_string(tokenizer.join(name)).unwrap();
        assert_eq!(&found, content.as_str().unwrap());
    }
    let vocabulary = json_of(&tokenizer.join("vocab.json"));
    assert_eq!(vocabulary["cat</w>"], 513);
    assert_eq!(vocabulary.as_object().unwrap().len(), 518);
    let merges = fs::read_to_string(tokenizer.join("merges.txt")).unwrap();
    assert_eq!(merges, "#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n");
}

#[test]
fn a_merge_of_models_whose_tokenizers_differ_tells_which_one_it_takes() {
    let [plain, other] = [r"{}", r#"{"<cat-toy>": 49408}"#].map(|added| {
        let folder = Folder::new("sd15", 1);
        folder.write_tokenizer("tokenizer", "added_tokens.json", added);
        folder
    });
    let merged = |second: &Folder, text_encoders| {
        let open = |folder: &Folder| Weights::open(&folder.path(""), None).unwrap();
        let mut plan = Plan::new(Method::WeightedSum, BlockWeights::Uniform(0.5));
        plan.text_encoders = text_encoders;
        Merged::new(vec![Box::new(open(&plain)), Box::new(open(second))], plan).unwrap()
    };
    let notes = |model: &Merged| model.hints().notes.join("\n");
    let model = merged(&other, Policy::Merge);
    assert!(
        notes(&model).contains("tokenizer of its"),
        "{}",
        notes(&model)
    );
    assert!(!notes(&merged(&plain, Policy::Merge)).contains("tokenizer of its"));
    // Text encoders that are taken whole bring their tokenizers.
    let model = merged(&other, Policy::B);
    assert!(!notes(&model).contains("tokenizer of its"));
    let (parts, _) = model.hints().tokenizers[&Component::TextEncoder]
        .read()
        .unwrap();
    assert_eq!(parts.added.len(), 1);
}

#[test]
fn vectors_that_no_token_reaches_are_told() {
    let folder = Folder::new("sd15", 3);
    let added = r#"{"<cat-toy>": 49408}"#;
    folder.write_tokenizer("tokenizer", "added_tokens.json", added);
    let target = folder.dir.path().join("model");
    let report = folder.plan().unwrap().write(&target, &Unwatched).unwrap();
    let told = "2 tokens of the text encoder are not in its tokenizer";
    assert!(
        report.warnings.iter().any(|w| w.contains(told)),
        "{:?}",
        report.warnings
    );
}

#[test]
fn a_tokenizer_that_does_not_fit_or_cannot_be_read_is_an_error() {
    let folder = Folder::new("sd15", 1);
    let added = r#"{"<cat-toy>": 49408, "my_Style": 49409}"#;
    folder.write_tokenizer("tokenizer", "added_tokens.json", added);
    folder.refused(&["tokenizer:", "`my_Style` has id 49409", "49409 tokens"]);
    folder.write_tokenizer("tokenizer", "added_tokens.json", "[]");
    folder.refused(&["tokenizer/added_tokens.json", "not a map"]);
    fs::remove_file(folder.path("tokenizer/added_tokens.json")).unwrap();
    fs::remove_file(folder.path("tokenizer/vocab.json")).unwrap();
    folder.refused(&["tokenizer/vocab.json", "no such file"]);
    folder.write(
        "tokenizer/tokenizer.json",
        r#"{"model": {"type": "Unigram"}}"#,
    );
    folder.refused(&["tokenizer/tokenizer.json", "Unigram", "BPE"]);
}

#[test]
fn what_our_graphs_do_not_compute_is_refused_by_file_and_field() {
    let folder = Folder::new("sd15", 0);
    for (component, field, value, supported) in [
        (
            "text_encoder",
            "hidden_act",
            json!("relu"),
            "quick_gelu or gelu",
        ),
        ("text_encoder", "layer_norm_eps", json!(1e-6), "0.00001"),
        (
            "text_encoder",
            "eos_token_id",
            json!([1, 2]),
            "a token's id",
        ),
        ("unet", "act_fn", json!("gelu"), "silu or swish"),
        ("unet", "center_input_sample", json!(true), "false"),
        ("unet", "class_embed_type", json!("timestep"), "null"),
        (
            "unet",
            "down_block_types",
            json!(["DownBlock2D", "AttnDownBlock2D"]),
            "DownBlock2D",
        ),
        ("unet", "downsample_padding", json!(0), "1"),
        ("unet", "flip_sin_to_cos", json!(false), "true"),
        ("unet", "freq_shift", json!(1), "0"),
        ("unet", "mid_block_scale_factor", json!(1.5), "1"),
        ("unet", "norm_eps", json!(1e-6), "0.00001"),
        ("unet", "norm_num_groups", json!(16), "32"),
        (
            "unet",
            "only_cross_attention",
            json!([true, false]),
            "false",
        ),
        (
            "unet",
            "resnet_time_scale_shift",
            json!("scale_shift"),
            "default",
        ),
        ("vae", "act_fn", json!("relu"), "silu or swish"),
        ("vae", "latents_mean", json!([0.0, 0.0, 0.0, 0.0]), "null"),
        ("vae", "norm_num_groups", json!(16), "32"),
        (
            "vae",
            "scaling_factor",
            json!("0.18215"),
            "a number above 0",
        ),
        ("vae", "shift_factor", json!(0.1159), "0"),
        ("vae", "use_quant_conv", json!(false), "true"),
    ] {
        let config = format!("{component}/config.json");
        let found = format!("{config}: {field} is {value}; supported is");
        folder.write(&config, &json!({field: value}).to_string());
        folder.refused(&[&found, supported]);
        fs::remove_file(folder.path(&config)).unwrap();
    }
    let control = Folder::new("controlnet-sd15", 0);
    for (field, value) in [
        ("controlnet_conditioning_channel_order", json!("bgr")),
        ("global_pool_conditions", json!(true)),
    ] {
        control.write("controlnet/config.json", &json!({field: value}).to_string());
        control.refused(&["controlnet/config.json", field]);
    }
}

#[test]
fn what_shapes_do_not_show_is_taken_from_the_configurations() {
    let folder = Folder::new("sdxl", 0);
    let text = json!({"num_attention_heads": 2, "eos_token_id": 49407, "hidden_act": "gelu"});
    folder.write("text_encoder/config.json", &text.to_string());
    let text_2 = json!({"eos_token_id": 2});
    folder.write("text_encoder_2/config.json", &text_2.to_string());
    folder.write("vae/config.json", r#"{"scaling_factor": 0.5}"#);
    let index = r#"{"force_zeros_for_empty_prompt": false}"#;
    folder.write("model_index.json", index);
    let model = folder.convert();
    let found = json_of(&model.join("text_encoder/config.json"));
    for (field, value) in text.as_object().unwrap() {
        assert_eq!(&found[field], value, "{field}");
    }
    let graph = |name: &str| {
        let bytes = fs::read(model.join(name).join("model.onnx")).unwrap();
        bytes.windows(5).any(|five| five == b"Equal")
    };
    assert!(graph("text_encoder") && !graph("text_encoder_2"));
    let found = json_of(&model.join("text_encoder_2/config.json"));
    assert_eq!(found["eos_token_id"], 2);
    assert_eq!(
        json_of(&model.join("vae_decoder/config.json"))["scaling_factor"],
        0.5
    );
    let found = json_of(&model.join("model_index.json"));
    assert_eq!(found["force_zeros_for_empty_prompt"], false);
}

/// Fields as published repositories have them, but for sizes.
#[test]
fn published_configurations_are_accepted() {
    let unet = json!({
        "act_fn": "silu", "attention_type": "default", "center_input_sample": false,
        "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "cross_attention_norm": null, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "dropout": 0.0, "dual_cross_attention": false, "encoder_hid_dim": null,
        "encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0, "mid_block_only_cross_attention": null,
        "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
        "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false,
        "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false, "resnet_time_scale_shift": "default",
        "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
        "time_embedding_type": "positional", "timestep_post_act": null, "upcast_attention": null,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "use_linear_projection": true,
    });
    let text = json!({
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "pad_token_id": 1, "projection_dim": 512,
        "torch_dtype": "float16", "vocab_size": 49408,
    });
    let vae = json!({
        "act_fn": "silu", "down_block_types": vec!["DownEncoderBlock2D"; 4], "force_upcast": true, "in_channels": 3,
        "latent_channels": 4, "latents_mean": null, "latents_std": null, "layers_per_block": 2,
        "mid_block_add_attention": true, "norm_num_groups": 32, "out_channels": 3, "scaling_factor": 0.18215,
        "shift_factor": null, "up_block_types": vec!["UpDecoderBlock2D"; 4], "use_post_quant_conv": true,
        "use_quant_conv": true,
    });
    let folder = Folder::new("sd21", 0);
    for (component, config) in [("unet", unet), ("text_encoder", text), ("vae", vae)] {
        folder.write(&format!("{component}/config.json"), &config.to_string());
    }
    folder.plan().unwrap();
}
