//! A pipeline folder whose tokenizer has an added token: from its files to token ids, embeddings and the pooled output.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ndarray::{ArrayD, Axis};
use safetensors::tensor::{Dtype, TensorView};
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;
use sd_models::manifest::Manifest;
use sd_models::tokenizer::{self, Pad};
use sd_runtime::engine::{Cancel, Input, Key};
use sd_runtime::pipeline::{ModelDir, PipelineError};
use sdrt_tests::{engine, relative_l2};
use serde_json::json;

const TABLE: &str = "text_model.embeddings.token_embedding.weight";
const ADDED: u32 = 49408;
const END: u32 = 49407;

/// Name, shape and data.
type Tensor<'a> = (&'a str, Vec<usize>, Vec<u8>);

/// The tiny Stable Diffusion 1 as a folder with the added token `<cat-toy>`, whose vector is that of `cat`.
fn write_folder(dir: &Path, end: u32) {
    let single = dir.join("tiny.safetensors");
    let synth = Synth {
        kind: Kind::named("sd15").unwrap(),
        tiny: true,
        seed: 0,
    };
    synth.write(&single, true, &Unwatched).unwrap();
    let single = Weights::open(&single, None).unwrap();
    let mut components: BTreeMap<&str, Vec<Tensor<'_>>> = BTreeMap::new();
    for (name, entry) in single.entries() {
        let (mut shape, mut data) = (
            entry.shape.clone(),
            single.read(name).unwrap().bytes.into_owned(),
        );
        if name.1 == TABLE {
            let row = 2 * shape[1];
            shape[0] += 1;
            data.extend_from_within(2368 * row..2369 * row);
        }
        let tensors = components.entry(name.0.name()).or_default();
        tensors.push((&name.1, shape, data));
    }
    for (component, tensors) in components {
        let folder = dir.join("folder").join(component);
        fs::create_dir_all(&folder).unwrap();
        let views = tensors.iter().map(|(name, shape, data)| {
            let view = TensorView::new(Dtype::F16, shape.clone(), data).unwrap();
            (*name, view)
        });
        let file = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
    }
    let config = json!({"eos_token_id": end, "vocab_size": 49409});
    let path = dir.join("folder/text_encoder/config.json");
    fs::write(path, config.to_string()).unwrap();
    let tokenizer = dir.join("folder/tokenizer");
    fs::create_dir_all(&tokenizer).unwrap();
    for (name, content) in tokenizer::files(Pad::EndOfText) {
        fs::write(tokenizer.join(name), content).unwrap();
    }
    let added = json!({"<cat-toy>": ADDED}).to_string();
    fs::write(tokenizer.join("added_tokens.json"), added).unwrap();
}

fn convert(dir: &Path) -> ModelDir {
    let weights = Weights::open(&dir.join("folder"), None).unwrap();
    let plan = BuildPlan::new(Box::new(weights), BuildOptions::default()).unwrap();
    let model = dir.join("model");
    plan.write(&model, &Unwatched).unwrap();
    ModelDir::open(&model).unwrap()
}

/// Hidden states and pooled output of a prompt.
fn encode(model: &ModelDir, dir: &Path, prompt: &str) -> [ArrayD<f32>; 2] {
    let manifest = fs::read_to_string(dir.join("model/sdrt.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    let key = Key::new(&dir.join("model"), "text_encoder", &[]);
    let network = engine().lease(&key, Some(&manifest), &Cancel::new());
    let clip = &model.texts[0].tokenizer;
    let mut ids = vec![clip.start()];
    ids.extend(clip.encode(prompt).unwrap());
    ids.extend([clip.end(), clip.pad()]);
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let ids = ArrayD::from_shape_vec(vec![1, ids.len()], ids).unwrap();
    let input = Input::Ids(ids.view());
    let outputs = ["last_hidden_state", "pooler_output"];
    let found = network
        .unwrap()
        .run(&[("input_ids", input)], &outputs, &Cancel::new());
    found.unwrap().try_into().unwrap()
}

#[test]
fn an_added_token_reaches_its_vector_and_leaves_the_pooled_output_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), END);
    let model = convert(dir.path());
    let ids = model.texts[0].tokenizer.encode("a <cat-toy>").unwrap();
    assert_eq!(ids, [320, ADDED]);
    let [states, pooled] = encode(&model, dir.path(), "a <cat-toy>");
    let [expected, _] = encode(&model, dir.path(), "a cat");
    assert!(relative_l2(&states, &expected) < 1e-6);
    // After start, `a` and the added token, whose id is larger than the end's.
    let end = states.index_axis(Axis(1), 3).to_owned();
    assert!(relative_l2(&pooled, &end) < 1e-6);
}

#[test]
fn an_old_configuration_takes_the_pooled_output_at_the_largest_id() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), 2);
    let model = convert(dir.path());
    let [states, pooled] = encode(&model, dir.path(), "a <cat-toy>");
    let added = states.index_axis(Axis(1), 2).to_owned();
    assert!(relative_l2(&pooled, &added) < 1e-6);
}

#[test]
fn a_directory_whose_tokens_the_text_encoder_does_not_know_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), END);
    convert(dir.path());
    let added = dir.path().join("model/tokenizer/added_tokens.json");
    fs::write(added, json!({"<dog-toy>": ADDED + 1}).to_string()).unwrap();
    let error = ModelDir::open(&dir.path().join("model")).unwrap_err();
    assert!(matches!(error, PipelineError::NotAModel { .. }));
    assert!(error.to_string().contains("`<dog-toy>` has id 49409"));
}
