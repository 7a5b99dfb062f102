//! Prompts that are edited, alternate and are composed give the embeddings and latents of A1111's rules, written down over
//! torch (`golden/prompt_runs.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ndarray::{Axis, Slice};
use sd_runtime::engine::Cancel;
use sd_runtime::pipeline::{Destination, Dump, ModelDir, Models, Request};
use sd_runtime::profile::COMFYUI;
use sd_runtime::sampler::{EULER, HEUN, Sampler};
use sd_runtime::text::Emphasis;
use sdrt_tests::{Reference, make_with, relative_l2, repository, synthetic};
use tempfile::TempDir;

/// Single precision adds up in another order in every library.
const LATENTS: f64 = 2e-5;
const EMBEDDINGS: f64 = 1e-5;

fn sd15() -> &'static PathBuf {
    static MODEL: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    &MODEL.get_or_init(|| synthetic("sd15")).1
}

fn request(sampler: Sampler, prompt: &str, negative_prompt: &str) -> Request {
    Request {
        prompt: prompt.to_owned(),
        negative_prompt: Some(negative_prompt.to_owned()),
        width: Some(64),
        height: Some(64),
        steps: Some(6),
        guidance_scale: Some(5.0),
        seed: 7,
        sampler: Some(sampler),
        ..Request::default()
    }
}

/// Makes the picture, and reads the inside of the run.
fn dumped(model: &Path, request: &Request) -> Reference {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let models = Models::one(ModelDir::open(model).unwrap());
    make_with(&models, request, Some(&mut dump)).unwrap();
    let to = Destination::find(&file).unwrap();
    dump.write(&to, &Cancel::new()).unwrap();
    Reference::open(&file)
}

fn has_latents(dump: &Reference, name: &str) {
    let golden = Reference::open(&repository("tests/golden/prompt_runs.safetensors"));
    let expected = golden.get(&format!("{name}.final_latents"));
    let error = relative_l2(&dump.get("final_latents"), &expected);
    assert!(error < LATENTS, "{name}: {error:.2e}");
}

fn has_embeddings(dump: &Reference, name: &str, tensors: [(&str, &str); 3]) {
    let golden = Reference::open(&repository("tests/golden/prompt_runs.safetensors"));
    for (found, expected) in tensors {
        let expected = golden.get(&format!("{name}.{expected}"));
        let found = dump.get(found).remove_axis(Axis(0));
        let error = relative_l2(&found, &expected);
        assert!(error < EMBEDDINGS, "{name}: {error:.2e}");
    }
}

fn dumped_case(name: &str, sampler: Sampler, prompt: &str, negative: &str) -> Reference {
    let dump = dumped(sd15(), &request(sampler, prompt, negative));
    has_latents(&dump, name);
    dump
}

#[test]
fn edited_prompts_change_after_their_step() {
    let (prompt, negative) = ("a [cat:dog:2] on a (mat:1.3)", "[bad|ugly] quality");
    let dump = dumped_case("edit", &EULER, prompt, negative);
    // Calls 0 to 2 are the first turn's.
    let tensors = [
        ("text_embeddings.000", "first"),
        ("text_embeddings.003", "last"),
        ("text_embeddings_uncond.000", "uncond"),
    ];
    has_embeddings(&dump, "edit", tensors);
    assert_eq!(dump.ids("token_ids.003")[[0, 2]], 1929);
    assert_eq!(dump.get("token_weights.003")[[0, 5]], 1.3);
    // Alternatives are those of steps 1, 2, ..; the first one has two calls.
    let uncond = |call: usize| dump.find(&format!("text_embeddings_uncond.{call:03}"));
    let changes: Vec<usize> = (0..9).filter(|&call| uncond(call).is_some()).collect();
    assert_eq!(changes, [0, 2, 3, 4, 5]);
    for name in ["text_embeddings", "token_ids", "weight.000.0"] {
        assert!(dump.find(name).is_none(), "{name}");
    }
}

#[test]
fn samplers_of_two_calls_per_step_count_both() {
    let prompt = "[a|b|(c:1.2)] house [at night:.5]";
    dumped_case("alternate", &HEUN, prompt, "blurry");
}

#[test]
fn composed_prompts_are_followed_by_weight() {
    let prompt = "a cat AND a red (dog:0.8):0.6 AND [sea|sky] :-0.3";
    let dump = dumped_case("compose", &EULER, prompt, "blurry");
    for (k, weight) in [1.0, 0.6, -0.3].into_iter().enumerate() {
        assert_eq!(dump.get(&format!("weight.000.{k}"))[[0]], weight);
        assert_eq!(dump.ids(&format!("token_ids.002.{k}")).shape(), [1, 77]);
    }
    assert!(dump.find("text_embeddings_uncond").is_some());
}

#[test]
fn a_lone_prompt_may_have_a_weight() {
    let dump = dumped_case("heavy", &EULER, "a house:1.5", "");
    assert_eq!(dump.get("weight.000.0")[[0]], 1.5);
}

#[test]
fn prompts_of_different_lengths_go_together() {
    let prompt = "a cat BREAK on a mat AND a dog";
    let dump = dumped_case("long", &EULER, prompt, "a [bad BREAK ugly:good:3] picture");
    let length = |name: &str| dump.get(name).shape()[1];
    assert_eq!(length("text_embeddings.000.1"), 2 * 77);
    assert_eq!(length("text_embeddings_uncond.004"), 2 * 77);
}

#[test]
fn both_text_encoders_see_edits() {
    let (_dir, model) = synthetic("sdxl");
    let (prompt, negative) = ("[a cat|a (dog:1.2)] in the rain AND snow:0.5", "[x:y:3] z");
    let dump = dumped(&model, &request(&EULER, prompt, negative));
    has_latents(&dump, "sdxl");
    let tensors = [
        ("text_embeddings.000.0", "first"),
        ("text_embeddings.002.0", "last"),
        ("text_embeddings_uncond.000", "uncond"),
    ];
    has_embeddings(&dump, "sdxl", tensors);
    assert_eq!(dump.get("pooled.002.0").shape().len(), 2);
    assert_eq!(dump.ids("token_ids_2.002.0").shape(), [1, 77]);
}

#[test]
fn other_programs_have_no_edits() {
    let of_comfyui = Request {
        profile: &COMFYUI,
        ..request(&EULER, "a [cat:dog:2] AND b", "")
    };
    let dump = dumped(sd15(), &of_comfyui);
    assert!(dump.find("text_embeddings").is_some());
    assert!(
        dump.ids("token_ids")
            .iter()
            .filter(|&&id| id != 49407)
            .count()
            > 9
    );
}

#[test]
fn the_schedule_of_a_picture_is_that_of_its_prompt_and_no_others() {
    // After the last step it is the first turn again, as in A1111; a run of unknown length is told so.
    let adaptive = Request {
        sampler: Some(&sd_runtime::sampler::DPM_ADAPTIVE),
        ..request(&EULER, "[cat:dog:2]", "")
    };
    let dump = dumped(sd15(), &adaptive);
    for (call, is_there) in [(0, true), (3, true), (6, false), (7, true)] {
        let name = format!("text_embeddings.{call:03}");
        assert_eq!(dump.find(&name).is_some(), is_there, "{name}");
    }
}

#[test]
fn compels_weights_are_those_of_compel() {
    let golden = Reference::open(&repository("tests/golden/compel_reference.safetensors"));
    for (name, prompt) in [
        ("lighter", "a cat (on a mat:0.5), at night"),
        ("heavier", "a (cat:1.4) on a mat"),
        ("both", "(a cat:0.2) on (a mat:1.3) in (rain:0.8)"),
        ("gone", "a cat (and a dog:0)"),
    ] {
        let weighted = Request {
            emphasis: Some(Emphasis::Compel),
            steps: Some(1),
            ..request(&EULER, prompt, "")
        };
        let found = dumped(sd15(), &weighted).get("text_embeddings");
        let mut found = found.remove_axis(Axis(0));
        found.slice_axis_inplace(Axis(0), Slice::new(0, None, 11));
        let error = relative_l2(&found, &golden.get(name));
        assert!(error < EMBEDDINGS, "{name}: {error:.2e}");
    }
}

#[test]
fn without_emphasis_brackets_are_words() {
    let literal = Request {
        emphasis: Some(Emphasis::None),
        steps: Some(1),
        ..request(&EULER, "(cat:1.3) BREAK", "")
    };
    let dump = dumped(sd15(), &literal);
    assert_eq!(dump.ids("token_ids").shape(), [1, 77]);
    assert_eq!(dump.ids("token_ids")[[0, 1]], 263);
    assert!(
        dump.get("token_weights")
            .iter()
            .all(|&weight| weight == 1.0)
    );
}
