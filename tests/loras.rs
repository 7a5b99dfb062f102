//! The demo model with its LoRAs, as diffusers has it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use ndarray::{ArrayD, Axis, arr0};
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::Dtype;
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use sd_models::demo;
use sd_runtime::Remedy;
use sd_runtime::engine::{Cancel, Input, Key, Lease};
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{ModelDir, Request};
use sd_runtime::profile::DIFFUSERS;
use sd_runtime::sampler::EULER;
use sd_runtime::sigmas::Spread;
use sdrt_tests::{Reference, engine, make, psnr, relative_l2, repository};
use tempfile::TempDir;

const PIXEL: &str = "models/demo/pixel-style.safetensors";
const OUTLINE: &str = "models/demo/outline-style.locon.safetensors";

/// Prompts of the reference without the words of its case; picture `i` has seed `10 + i`.
const SUBJECTS: [&str; 3] = [
    "a large red heart on a yellow background",
    "a blue star on a gray background",
    "a green circle on the left on a pink background",
];

/// LoRAs and their strengths.
type Loras = &'static [(&'static str, f64)];

/// Each case of the reference, the words it adds to prompts, and its LoRAs.
const CASES: [(&str, &str, Loras); 4] = [
    ("base", "", &[]),
    ("pixel", ", pixel style", &[(PIXEL, 1.0)]),
    ("outline", ", outline style", &[(OUTLINE, 1.0)]),
    (
        "both",
        ", pixel style, outline style",
        &[(PIXEL, 0.7), (OUTLINE, 0.7)],
    ),
];

/// The demo model with LoRAs; `storage` of the changed weights.
fn with_loras(loras: &[(&str, f64)], storage: Option<Dtype>) -> (TempDir, ModelDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let checkpoint = repository("models/demo").join(demo::FILE_NAME);
    let mut model: Box<dyn Model> = Box::new(Weights::open(&checkpoint, None).unwrap());
    let specs = loras
        .iter()
        .map(|&(file, strength)| LoraSpec::new(repository(file), strength));
    let specs: Vec<LoraSpec> = specs.collect();
    let options = Options {
        allow_partial: false,
        storage,
    };
    if !specs.is_empty() {
        model = Box::new(WithLoras::new(model, &specs, options).unwrap());
    }
    let plan = BuildPlan::new(model, BuildOptions::default()).unwrap();
    let report = plan.write(&path, &Unwatched).unwrap();
    assert_eq!(report.manifest.loras.len(), loras.len());
    (dir, ModelDir::open(&path).unwrap())
}

fn load(model: &ModelDir, component: &str) -> Lease {
    let key = Key::new(&model.path, component, &[]);
    let manifest = model.manifest.as_ref();
    engine().lease(&key, manifest, &Cancel::new()).unwrap()
}

fn eps(model: &ModelDir, noise: &ArrayD<f32>, context: &ArrayD<f32>) -> ArrayD<f32> {
    let timestep = arr0(500f32).into_dyn();
    let inputs = [
        ("sample", Input::F32(noise.view())),
        ("timestep", Input::F32(timestep.view())),
        ("encoder_hidden_states", Input::F32(context.view())),
    ];
    load(model, "unet")
        .run(&inputs, &["out_sample"], &Cancel::new())
        .unwrap()
        .remove(0)
}

/// In single precision throughout, a forward is diffusers'; in the half precision of the checkpoint it is as near as the
/// rounding of the weights allows.
#[test]
fn forwards_with_loras_are_those_of_diffusers() {
    let reference = Reference::demo();
    let noise = reference.get("lora.noise");
    for (name, _, loras) in CASES {
        let context = reference.get(&format!("lora.{name}.text_embeddings"));
        let expected = reference.get(&format!("lora.{name}.eps.t500"));
        for (storage, tolerance) in [(Some(Dtype::F32), 1e-5), (None, 1e-3)] {
            let (_dir, model) = with_loras(loras, storage);
            let error = relative_l2(&eps(&model, &noise, &context), &expected);
            assert!(error <= tolerance, "{name}: relative L2 {error:.2e}");
        }
    }
}

#[test]
fn pictures_with_loras_are_those_of_diffusers() {
    let reference = Reference::demo();
    for (name, words, loras) in CASES {
        let (_dir, model) = with_loras(loras, None);
        let images = reference.get(&format!("lora.{name}.image"));
        for (i, subject) in SUBJECTS.into_iter().enumerate() {
            let what = format!("{name} {i}");
            let picture = draw(&model, &format!("{subject}{words}"), 10 + i as u64);
            let similarity = psnr(&picture, &rgb(&images.index_axis(Axis(0), i).to_owned()));
            assert!(similarity >= 40.0, "{what}: {similarity:.1} dB");
        }
    }
}

/// A tag of a LoRA that is in the model is taken out of the prompt; one that is not is an error.
#[test]
fn prompts_may_ask_for_loras_that_are_in_the_model() {
    let (_dir, model) = with_loras(&[(PIXEL, 0.7)], None);
    let drawn = |prompt: &str| {
        let request = Request {
            steps: Some(2),
            ..request(prompt, 10)
        };
        make(&model.path, &request, None)
    };
    let plain = drawn("a red heart").unwrap();
    let tagged = drawn("a red heart<lora:pixel-style:0.7>").unwrap();
    assert_eq!(tagged.pictures, plain.pictures);
    let infotext = &tagged.infotext();
    assert!(infotext.starts_with("a red heart<lora:pixel-style:0.7>"));
    assert!(tagged.notes[0].contains("in the model already, at strength 0.7"));
    let error = drawn("a red heart<lora:pixel-style:1>").unwrap_err();
    let Some(Remedy::Bake { loras, .. }) = error.hint() else {
        panic!("{error}")
    };
    assert_eq!(
        (&*loras[0].file, loras[0].unet),
        ("pixel-style.safetensors", 1.0)
    );
}

fn request(prompt: &str, seed: u64) -> Request {
    Request {
        prompt: prompt.to_owned(),
        guidance_scale: Some(5.0),
        seed,
        sampler: Some(&EULER),
        spread: Some(Spread::Uniform),
        profile: &DIFFUSERS,
        rng: Rng::TorchCpu,
        ..Request::default()
    }
}

/// A picture of the demo's size, three bytes per pixel.
fn draw(model: &ModelDir, prompt: &str, seed: u64) -> Vec<u8> {
    let mut made = make(&model.path, &request(prompt, seed), None).unwrap();
    made.pictures.remove(0).rgb
}

/// A picture [3, h, w] in -1..1, with the colours of a pixel side by side.
fn rgb(image: &ArrayD<f32>) -> Vec<u8> {
    let plane = image.len() / 3;
    let values: Vec<f32> = image.iter().copied().collect();
    let byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    let pixel = |i: usize| [0, 1, 2].map(|c| byte(values[c * plane + i]));
    (0..plane).flat_map(pixel).collect()
}
