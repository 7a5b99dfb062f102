//! Whole runs give the latents and pictures of diffusers' pipelines (`golden/pipelines.py`), over every family's tiny
//! synthetic checkpoint.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use sd_runtime::pipeline::{Micro, ModelDir, Models, Request};
use sd_runtime::profile::DIFFUSERS;
use sd_runtime::sampler;
use sdrt_tests::{Reference, dumped, psnr, relative_l2, repository, synthetic};
use serde_json::Value;

/// Single precision adds up in another order in every library; a wrong timestep or size is 1e-3 and more.
const LATENTS: f64 = 2e-5;

/// Least PSNR of pictures, in dB: some pixels are rounded to the other side.
const PICTURE: f64 = 45.0;

const SEED: u64 = 7;

fn reference() -> Reference {
    Reference::open(&repository("tests/golden/pipelines.safetensors"))
}

fn asked() -> Value {
    let text = fs::read_to_string(repository("tests/golden/pipelines.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A case of `pipelines.json` as a request.
fn request(asked: &Value, case: &Value) -> Request {
    let number = |name: &str, default: f64| case[name].as_f64().unwrap_or(default);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let pair = |name: &str| {
        let side = |i: usize| case[name][i].as_u64().unwrap() as usize;
        case[name].is_array().then(|| [side(0), side(1)])
    };
    Request {
        prompt: text(&asked["prompt"]).unwrap(),
        negative_prompt: text(&case["negative_prompt"]),
        width: Some(number("width", 64.0) as usize),
        height: Some(64),
        steps: Some(asked["steps"].as_u64().unwrap() as usize),
        guidance_scale: case["guidance_scale"].as_f64(),
        guidance_rescale: number("guidance_rescale", 0.0),
        micro: Micro {
            original_size: pair("original_size"),
            target_size: pair("target_size"),
            crop: pair("crop").unwrap_or_default(),
        },
        refiner_start: number("refiner_start", 1.0),
        seed: SEED,
        sampler: case["class"]
            .as_str()
            .map(|class| sampler::parse(class).unwrap().0),
        profile: &DIFFUSERS,
        clip_skip: number("clip_skip", 1.0) as usize,
        ..Request::default()
    }
}

/// Changes values of the folder's `scheduler_config.json`; gives what it was.
fn configure(model: &Path, changes: &Value) -> String {
    let path = model.join("scheduler/scheduler_config.json");
    let before = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&before).unwrap();
    for (key, value) in changes.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    fs::write(&path, config.to_string()).unwrap();
    before
}

/// Every case of a family.
fn runs_are_those_of_diffusers(family: &str) {
    let (asked, reference) = (asked(), reference());
    let (_dir, model) = synthetic(family);
    let cases = asked["cases"].as_object().unwrap();
    let of_family = cases
        .iter()
        .filter(|(name, _)| name.split('.').next() == Some(family));
    let mut failures = Vec::new();
    let mut count = 0;
    for (name, case) in of_family {
        let before = configure(&model, &case["scheduler"]);
        let refiner = case["refiner_start"]
            .is_number()
            .then(|| synthetic("sdxl-refiner"));
        let open = |path: &PathBuf| ModelDir::open(path).unwrap();
        let models = Models {
            refiner: refiner.as_ref().map(|(_dir, path)| open(path)),
            ..Models::one(open(&model))
        };
        let (made, found) = dumped(&models, &request(&asked, case));
        fs::write(model.join("scheduler/scheduler_config.json"), before).unwrap();
        let expected = |tensor: &str| reference.get(&format!("{name}.{tensor}"));
        assert_eq!(
            found.get("initial_noise"),
            expected("initial_noise"),
            "{name}"
        );
        let error = relative_l2(&found.get("final_latents"), &expected("final_latents"));
        if error > LATENTS {
            failures.push(format!("{name}: relative L2 {error:.2e}"));
        }
        if case["picture"] == true {
            let likeness = psnr(
                &made.pictures[0].rgb,
                &reference.bytes(&format!("{name}.picture")),
            );
            if likeness < PICTURE {
                failures.push(format!("{name}: PSNR {likeness:.1} dB"));
            }
        }
        count += 1;
    }
    assert!(count > 0, "no case of {family}");
    assert!(failures.is_empty(), "{failures:#?}");
}

macro_rules! families {
    ($($name:ident = $family:literal),+ $(,)?) => {
        $(#[test] fn $name() { runs_are_those_of_diffusers($family); })+

        #[test]
        fn every_case_is_run() {
            let families = [$($family),+];
            for name in asked()["cases"].as_object().unwrap().keys() {
                let family = name.split('.').next().unwrap();
                assert!(families.contains(&family), "{name}");
            }
        }
    };
}

families!(
    sd15 = "sd15",
    sd21_predicts_velocity = "sd21",
    sd_turbo = "sd-turbo",
    sdxl = "sdxl",
    ssd_1b = "ssd-1b",
    sd15_lcm_embeds_guidance = "sd15-lcm",
    sdxl_lcm_embeds_guidance = "sdxl-lcm",
);
