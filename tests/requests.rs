//! What people ask for, and what they get wrong: sizes, batches, profiles, damaged models.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::Path;

use prost::Message;
use sd_converter::onnx::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto,
    TensorTypeProto, ValueInfoProto, attribute_type, data_type,
};
use sd_models::manifest::PredictionType;
use sd_runtime::engine::{Cancel, EngineError};
use sd_runtime::noise::texture::Texture;
use sd_runtime::noise::{BrownianTree, Rng};
use sd_runtime::pipeline::{
    self, Destination, Dump, Micro, ModelDir, Models, PipelineError, Plans, Request,
};
use sd_runtime::profile::{A1111, COMFYUI, DIFFUSERS, PROFILES, Profile};
use sd_runtime::sampler::math::ancestral;
use sd_runtime::sampler::{
    DDIM, DPM_ADAPTIVE, DPM_FAST, DPM2, DPMPP_2M, EULER, EULER_ANCESTRAL, METHODS, PLMS, Sampler,
};
use sdrt_tests::{
    Made, Reference, demo_model, engine, make, make_with, psnr, relative_l2, synthetic,
};

fn circle() -> Request {
    Request {
        prompt: "a large red circle on a blue background".to_owned(),
        guidance_scale: Some(5.0),
        seed: 1,
        steps: Some(8),
        ..Request::default()
    }
}

fn run(request: &Request, dump: Option<&mut Dump>) -> Made {
    make(demo_model(), request, dump).unwrap()
}

fn picture(request: &Request) -> Vec<u8> {
    run(request, None).pictures.remove(0).rgb
}

fn mean_color(made: &Made, x: usize, y: usize) -> [u8; 3] {
    let picture = &made.pictures[0];
    let at = 3 * (y * picture.width + x);
    picture.rgb[at..at + 3].try_into().unwrap()
}

#[test]
fn every_sampler_of_every_profile_draws_the_prompt() {
    for profile in PROFILES {
        // Some of each kind are enough where profiles share the solvers.
        let few = [&EULER, &EULER_ANCESTRAL, &DPM2, &DPMPP_2M, &DDIM, &PLMS];
        let solved = |sampler: &Sampler| (profile.solver)(sampler) == Some(*sampler);
        for sampler in METHODS.into_iter().filter(solved) {
            if profile != &A1111 && !few.contains(&sampler) {
                continue;
            }
            let mut request = Request {
                sampler: Some(sampler),
                profile,
                steps: Some(14),
                ..circle()
            };
            if [&DPM_FAST, &DPM_ADAPTIVE].contains(&sampler) {
                // Few steps of high order do not keep up with as much noise as A1111 adds.
                request.options.eta = Some(0.0);
            }
            let made = run(&request, None);
            let what = format!("{sampler} {}", profile.name);
            let ([r, _, b], [cr, _, cb]) = (mean_color(&made, 64, 64), mean_color(&made, 2, 2));
            assert!(r > 150 && b < 100, "{what}: the middle is not red");
            assert!(cb > 150 && cr < 100, "{what}: the corner is not blue");
            let calls = made.plans[0].calls.unwrap_or(made.calls);
            assert_eq!(made.calls, calls, "{what}");
        }
    }
}

#[test]
fn what_a_program_does_in_another_way_than_asked_is_said() {
    let comfyui = Request {
        profile: &COMFYUI,
        steps: Some(1),
        ..circle()
    };
    let made = run(&comfyui, None);
    assert_eq!((made.warnings.len(), made.notes.len()), (0, 0));
    let weighted = Request {
        prompt: "a (red:1.2) circle".to_owned(),
        sampler: Some(&DDIM),
        ..comfyui.clone()
    };
    let made = run(&weighted, None);
    assert!(made.warnings[0].contains("as in A1111"), "{made:?}");
    assert_eq!(made.notes, ["comfyui's DDIM is Euler"]);
    assert!(made.plans[0].infotext.contains("Sampler: Euler,"));

    let a1111 = Request {
        sampler: Some(&DDIM),
        steps: Some(2),
        ..circle()
    };
    let made = run(&a1111, None);
    assert_eq!(made.notes, ["under a1111's rules 2 steps are 1"]);
}

#[test]
fn comfyuis_steps_draw_from_a_generator_of_the_next_seed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let request = Request {
        profile: &COMFYUI,
        sampler: Some(&EULER_ANCESTRAL),
        steps: Some(2),
        ..circle()
    };
    let made = run(&request, Some(&mut dump));
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    let tensors = Reference::open(&file);
    let schedule = &made.plans[0].schedule;
    let [from, to] = [schedule.steps[0].from.sigma, schedule.steps[0].to.sigma];
    let (down, up) = ancestral(from, to, 1.0);
    let mut source = request.rng.source(request.seed + 1);
    let mut noise = tensors.get("initial_noise");
    let x = &noise * schedule.initial_scale as f32;
    source.normal(noise.as_slice_mut().unwrap());
    let ratio = (down / from) as f32;
    let expected = x * ratio + tensors.get("denoised.000") * (1.0 - ratio) + noise * up as f32;
    assert!(relative_l2(&tensors.get("latents.000"), &expected) < 1e-6);
}

#[test]
fn pictures_of_a_batch_are_those_of_their_seeds() {
    let request = Request {
        batch: 3,
        sampler: Some(&EULER_ANCESTRAL),
        ..circle()
    };
    let batch = run(&request, None);
    for (i, (made, plan)) in batch.pictures.iter().zip(&batch.plans).enumerate() {
        assert_eq!(plan.seed, 1 + i as u64);
        let single = picture(&Request {
            batch: 1,
            seed: plan.seed,
            ..request.clone()
        });
        assert!(made.rgb == single, "picture {i}");
    }
    assert_ne!(batch.pictures[0], batch.pictures[1]);
}

#[test]
fn pictures_of_a_batch_of_variations_share_the_seed() {
    let request = Request {
        subseed: Some(7),
        subseed_strength: 0.3,
        seed_resize: Some([64, 96]),
        batch: 2,
        steps: Some(2),
        ..circle()
    };
    let batch = run(&request, None);
    for (i, (made, plan)) in batch.pictures.iter().zip(&batch.plans).enumerate() {
        assert_eq!(plan.seed, 1);
        let subseed = 7 + i as u64;
        let single = picture(&Request {
            batch: 1,
            subseed: Some(subseed),
            ..request.clone()
        });
        assert!(made.rgb == single, "picture {i}");
        let said = format!(
            "Model: tiny-shapes, Variation seed: {subseed}, Variation seed strength: 0.3, \
             Seed resize from: 64x96, RNG: CPU"
        );
        assert!(plan.infotext.contains(&said), "{}", plan.infotext);
    }
    assert_ne!(batch.pictures[0], batch.pictures[1]);
    // Without strength there is no variation.
    let off = Request {
        subseed_strength: 0.0,
        seed_resize: None,
        batch: 1,
        ..request
    };
    let plain = Request {
        subseed: None,
        ..off.clone()
    };
    assert!(picture(&off) == picture(&plain));
}

#[test]
fn another_seed_for_later_noise_acts_on_samplers_that_draw_it() {
    let with = |ensd, sampler| {
        let request = Request {
            ensd,
            sampler: Some(sampler),
            steps: Some(3),
            ..circle()
        };
        let mut made = run(&request, None);
        let told = made.plans[0].infotext.contains("ENSD: 31337, RNG");
        (made.pictures.remove(0).rgb, told)
    };
    let (ancestral, told) = with(31_337, &EULER_ANCESTRAL);
    assert!(told && ancestral != with(0, &EULER_ANCESTRAL).0);
    let (deterministic, told) = with(31_337, &EULER);
    assert!(!told && deterministic == with(0, &EULER).0);
}

#[test]
fn first_noise_of_other_kinds_makes_other_pictures_and_is_told() {
    let plain = picture(&circle());
    for (noise, name) in [(Texture::Perlin, "perlin"), (Texture::Pink, "pink")] {
        let request = Request { noise, ..circle() };
        let made = run(&request, None);
        assert_ne!(made.pictures[0].rgb, plain, "{name}");
        let told = format!("RNG: CPU, Noise: {name}, Version");
        assert!(made.plans[0].infotext.contains(&told));
    }
    let missing = Request {
        noise: Texture::Image("/nowhere.png".into()),
        ..circle()
    };
    let error = make(demo_model(), &missing, None).unwrap_err().to_string();
    assert!(error.contains("/nowhere.png"), "{error}");
}

#[test]
fn brownian_noise_of_a_plan_is_that_of_its_seed_and_noise_levels() {
    let model = Models::one(ModelDir::open(demo_model()).unwrap());
    let request = Request {
        rng: Rng::Philox,
        ..circle()
    };
    let plan = Plans::resolve(&request, &model, u64::MAX)
        .unwrap()
        .plans
        .remove(0);
    let steps = &plan.schedule.steps;
    let (least, most) = (steps[7].from.sigma, steps[0].from.sigma);
    let mut expected = BrownianTree::new(1, Rng::Philox, 4 * 16 * 16, least, most);
    let (mut a, mut b) = (vec![0.0; 4 * 16 * 16], vec![0.0; 4 * 16 * 16]);
    plan.brownian_tree().increment(most, least, &mut a);
    expected.increment(most, least, &mut b);
    assert_eq!(a, b);
    assert!(a.iter().all(|&x| x != 0.0));
}

#[test]
fn sizes_that_are_no_multiple_of_the_unets_stride_work() {
    for (width, height) in [(128, 72), (104, 136), (64, 64)] {
        let request = Request {
            width: Some(width),
            height: Some(height),
            steps: Some(2),
            ..circle()
        };
        let picture = &run(&request, None).pictures[0];
        assert_eq!(
            (picture.width, picture.height, picture.rgb.len()),
            (width, height, 3 * width * height)
        );
    }
}

#[test]
fn a_dump_holds_what_its_name_says_and_its_noise_makes_the_same_picture() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let first = run(
        &Request {
            rng: Rng::Philox,
            ..circle()
        },
        Some(&mut dump),
    );
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    let tensors = Reference::open(&file);
    assert_eq!(tensors.ids("token_ids").shape(), [1, 77]);
    assert_eq!(tensors.get("text_embeddings_uncond").shape(), [1, 77, 128]);
    for name in [
        "initial_noise",
        "latents.000",
        "denoised.007",
        "final_latents",
    ] {
        assert_eq!(tensors.get(name).shape(), [1, 4, 16, 16], "{name}");
    }
    // The last step of DPM++ 2M goes all the way to the last estimate.
    assert!(relative_l2(&tensors.get("latents.007"), &tensors.get("denoised.007")) < 1e-6);
    let again = Request {
        seed: 99,
        initial_noise: Some(file),
        ..circle()
    };
    assert_eq!(run(&again, None).pictures, first.pictures);
}

#[test]
fn emphasis_and_negative_prompts_change_the_picture_and_long_prompts_take_more_chunks() {
    let plain = picture(&circle());
    let psnr_with = |request: &Request| psnr(&picture(request), &plain);
    let stressed = Request {
        prompt: "a large (red:0.5) circle on a (blue:1.5) background".to_owned(),
        ..circle()
    };
    assert!(psnr_with(&stressed) < 45.0);
    assert!(
        psnr_with(&Request {
            negative_prompt: Some("a green square".to_owned()),
            ..circle()
        }) < 45.0
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let long = Request {
        prompt: "a red circle, ".repeat(25),
        steps: Some(1),
        ..circle()
    };
    run(&long, Some(&mut dump));
    dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
        .unwrap();
    assert_eq!(
        Reference::open(&file).get("text_embeddings").shape(),
        [1, 154, 128]
    );
    let cut = Request {
        profile: &DIFFUSERS,
        ..long
    };
    let warnings = run(&cut, None).warnings;
    assert!(warnings[0].contains("cut off"), "{warnings:?}");
}

#[test]
fn clip_skip_takes_an_earlier_layer() {
    let skipped = Request {
        clip_skip: 2,
        ..circle()
    };
    let made = run(&skipped, None);
    assert!(made.plans[0].infotext.contains("Clip skip: 2"));
    assert!(psnr(&made.pictures[0].rgb, &picture(&circle())) < 45.0);
    let beyond = Request {
        clip_skip: 6,
        ..circle()
    };
    let error = make(demo_model(), &beyond, None).unwrap_err();
    assert!(error.to_string().contains("4 inner layers"), "{error}");
}

#[test]
fn infotexts_say_how_the_picture_was_made() {
    let request = Request {
        negative_prompt: Some("fog".to_owned()),
        ..circle()
    };
    let text = &run(&request, None).plans[0].infotext;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "a large red circle on a blue background",
            "Negative prompt: fog"
        ]
    );
    let expected = "Steps: 8, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 1, Size: 128x128, \
                    Model hash: 30398d282e, Model: tiny-shapes, RNG: CPU, Version: sdrt-";
    assert!(lines[2].starts_with(expected), "{}", lines[2]);
}

#[test]
fn requests_that_make_no_sense_are_answered_before_anything_is_opened() {
    for (request, said) in [
        (
            Request {
                width: Some(100),
                ..circle()
            },
            "104",
        ),
        (
            Request {
                height: Some(8),
                ..circle()
            },
            "64",
        ),
        (
            Request {
                steps: Some(0),
                ..circle()
            },
            "steps",
        ),
        (
            Request {
                batch: 0,
                ..circle()
            },
            "batch",
        ),
        (
            Request {
                guidance_scale: Some(f64::NAN),
                ..circle()
            },
            "cfg",
        ),
        (
            Request {
                subseed: Some(1),
                subseed_strength: 1.5,
                ..circle()
            },
            "subseed-strength 1.5 is out of range",
        ),
        (
            Request {
                subseed_strength: 0.5,
                ..circle()
            },
            "needs a subseed",
        ),
        (
            Request {
                seed_resize: Some([512, 500]),
                ..circle()
            },
            "seed-resize height 500",
        ),
    ] {
        let error = request.check().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_run_stops_when_the_user_wants() {
    let model = Models::one(ModelDir::open(demo_model()).unwrap());
    let plans = Plans::resolve(&circle(), &model, u64::MAX).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = pipeline::run(&plans, &model, engine(), &cancel, &mut |_| (), None);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "interrupted");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn damaged_model_directories_are_named_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let data = path.join("unet/model.onnx_data");
    let bytes = fs::read(&data).unwrap();
    let failure = || {
        ModelDir::open(&path).map_err(|e| e.to_string())?;
        make(&path, &circle(), None).map(|_| ()).map_err(|e| {
            assert!(
                matches!(e, PipelineError::Engine(EngineError::Damaged { .. })),
                "{e}"
            );
            e.to_string()
        })
    };
    let mut altered = bytes.clone();
    altered[100_000] ^= 1;
    fs::write(&data, &altered).unwrap();
    let error = failure().unwrap_err();
    assert!(
        error.contains("model.onnx_data") && error.contains("SHA-256"),
        "{error}"
    );
    fs::write(&data, &bytes[..bytes.len() / 2]).unwrap();
    let error = failure().unwrap_err();
    assert!(
        error.contains("model.onnx_data") && error.contains("bytes"),
        "{error}"
    );
    fs::remove_file(&data).unwrap();
    assert!(failure().unwrap_err().contains("it is missing"));
    fs::write(&data, &bytes).unwrap();
    failure().unwrap();
    fs::write(path.join("sdrt.json"), "{").unwrap();
    assert!(failure().unwrap_err().contains("sdrt.json"));
}

#[test]
fn directories_of_other_programs_run_without_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    let model = ModelDir::open(&path).unwrap();
    assert_eq!(model.default_size, [128, 128]);
    let made = make(&path, &circle(), None).unwrap();
    assert_eq!(made.pictures, run(&circle(), None).pictures);
    let error = ModelDir::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("sdconvert build"), "{error}");
}

#[test]
fn the_diffusers_profile_follows_the_directorys_scheduler_or_says_that_it_cannot() {
    let request = Request {
        profile: &DIFFUSERS,
        steps: Some(2),
        ..circle()
    };
    assert_eq!(run(&request, None).plans[0].sampler, &PLMS);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let config = path.join("scheduler/scheduler_config.json");
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace("PNDMScheduler", "DPMSolverSDEScheduler");
    fs::write(&config, text).unwrap();
    let error = make(&path, &request, None).unwrap_err();
    assert!(error.to_string().contains("DPMSolverSDE"), "{error}");
    let chosen = Request {
        sampler: Some(&EULER),
        ..request
    };
    make(&path, &chosen, None).unwrap();
}

#[test]
fn a_stable_diffusion_2_model_runs_and_others_are_refused_by_name() {
    let request = |size| Request {
        width: Some(size),
        height: Some(size),
        steps: Some(2),
        ..circle()
    };
    let (_dir, sd21) = synthetic("sd21");
    let model = ModelDir::open(&sd21).unwrap();
    assert_eq!(model.prediction, PredictionType::VPrediction);
    let made = make(&sd21, &request(64), None).unwrap();
    assert_eq!(made.pictures[0].width, 64);
    for (family, said) in [
        ("sd15-inpaint", "`sdrun inpaint`"),
        ("sdxl-inpaint", "`sdrun inpaint`"),
        ("instruct-pix2pix", "`sdrun img2img`"),
        ("controlnet-sd15", "only controlnet"),
        ("taesd", "only vae_decoder and vae_encoder"),
    ] {
        let (_dir, path) = synthetic(family);
        let error = ModelDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// A copy of the demo model's directory in `dir`, whose JSON file `name` gets other values.
fn edited(dir: &Path, name: &str, edit: &serde_json::Value) -> std::path::PathBuf {
    let path = dir.join("model");
    if !path.exists() {
        copy_dir(demo_model(), &path);
    }
    let file = path.join(name);
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for (key, value) in edit.as_object().unwrap() {
        json[key] = value.clone();
    }
    fs::write(file, json.to_string()).unwrap();
    path
}

const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn run_in(path: &Path, request: &Request) -> Made {
    make(path, request, None).unwrap()
}

#[test]
fn a_prediction_type_corrected_by_hand_is_followed_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let velocity = serde_json::json!({"prediction_type": "v_prediction"});
    let path = edited(dir.path(), SCHEDULER, &velocity);
    for profile in PROFILES {
        let request = Request {
            profile,
            steps: Some(2),
            ..circle()
        };
        let velocity = run_in(&path, &request);
        let notes = &velocity.notes;
        assert!(
            notes.iter().any(|n| n.contains("v_prediction")),
            "{notes:?}"
        );
        let epsilon = run(&request, None);
        assert_ne!(velocity.pictures, epsilon.pictures);
        assert!(epsilon.notes.is_empty(), "{:?}", epsilon.notes);
    }
}

#[test]
fn a_prediction_type_that_is_no_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = edited(
        dir.path(),
        SCHEDULER,
        &serde_json::json!({"prediction_type": 5}),
    );
    let error = ModelDir::open(&path).unwrap_err().to_string();
    assert!(error.contains("prediction type 5"), "{error}");
}

#[test]
fn settings_that_a_profile_never_reads_do_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = edited(
        dir.path(),
        SCHEDULER,
        &serde_json::json!({"thresholding": true}),
    );
    run_in(
        &path,
        &Request {
            steps: Some(1),
            ..circle()
        },
    );
    let request = Request {
        profile: &DIFFUSERS,
        sampler: Some(&DDIM), // PNDM's class does not read it
        steps: Some(1),
        ..circle()
    };
    let error = make(&path, &request, None).unwrap_err().to_string();
    assert!(error.contains("thresholding"), "{error}");
    assert_eq!(error.matches("scheduler_config.json").count(), 1, "{error}");
}

#[test]
fn diffusers_guides_above_1_only_and_a1111_at_any_scale() {
    let made = |profile, guidance_scale| {
        let request = Request {
            profile,
            guidance_scale: Some(guidance_scale),
            sampler: Some(&EULER),
            steps: Some(3),
            ..circle()
        };
        let mut made = run(&request, None);
        (made.pictures.remove(0), made.notes)
    };
    let one = made(&DIFFUSERS, 1.0).0;
    for scale in [0.0, 0.5] {
        assert!(made(&DIFFUSERS, scale).0 == one, "{scale}");
        assert!(made(&A1111, scale).0 != made(&A1111, 1.0).0);
    }
    assert!(made(&DIFFUSERS, 1.5).0 != one);
    let notes = made(&A1111, 0.0).1;
    assert!(notes[0].contains("negative prompt only"), "{notes:?}");
}

#[test]
fn clip_skip_acts_where_the_profiles_program_applies_it() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = |path: &Path, profile: Profile, clip_skip| {
        let file = dir.path().join("dump.safetensors");
        let request = Request {
            profile,
            clip_skip,
            negative_prompt: Some("fog".to_owned()),
            steps: Some(1),
            width: Some(64),
            height: Some(64),
            ..circle()
        };
        let mut dump = Dump::default();
        let made = make(path, &request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        let tensors = Reference::open(&file);
        let get = |name: &str| tensors.get(name);
        (
            get("text_embeddings"),
            get("text_embeddings_uncond"),
            made.notes,
        )
    };
    let demo = demo_model();
    for (profile, reaches_negative) in [(&A1111, true), (&DIFFUSERS, false)] {
        let (last, skipped) = (embeddings(demo, profile, 1), embeddings(demo, profile, 2));
        assert!(last.0 != skipped.0, "{}", profile.name);
        assert_eq!(last.1 != skipped.1, reaches_negative, "{}", profile.name);
    }
    let (_dir, sd21) = synthetic("sd21");
    let (last, skipped) = (embeddings(&sd21, &A1111, 1), embeddings(&sd21, &A1111, 2));
    assert!(last.0 == skipped.0);
    assert!(skipped.2[0].contains("no effect"), "{:?}", skipped.2);
}

#[test]
fn models_are_called_by_their_folders_whole_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model-v1.5");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    let title = |path: &Path| ModelDir::open(path).unwrap().title();
    assert_eq!(title(&path), "model-v1.5");
    assert_eq!(title(&path.join("unet/..")), "model-v1.5");
}

#[test]
fn a_folder_without_component_configs_is_taken_for_stable_diffusion_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    fs::remove_file(path.join("scheduler/scheduler_config.json")).unwrap();
    for component in ["text_encoder", "unet", "vae_decoder"] {
        fs::remove_file(path.join(component).join("config.json")).unwrap();
    }
    let model = ModelDir::open(&path).unwrap();
    assert_eq!(model.default_size, [512, 512]);
    assert_eq!(model.notes.len(), 4, "{:?}", model.notes);
    let request = Request {
        width: Some(128),
        height: Some(128),
        ..circle()
    };
    assert!(run_in(&path, &request).pictures[0].rgb == picture(&circle()));
}

#[test]
fn a_folder_without_a_manifest_draws_the_same_in_every_family() {
    for family in ["sd21", "sdxl", "sdxl-lcm", "sd15-lcm"] {
        let (_dir, path) = synthetic(family);
        let with = ModelDir::open(&path).unwrap();
        let before = run_in(&path, &tiny()).pictures;
        fs::remove_file(path.join("sdrt.json")).unwrap();
        let without = ModelDir::open(&path).unwrap();
        assert_eq!(without.family, with.family, "{family}");
        assert_eq!(without.default_size, with.default_size, "{family}");
        let after = run_in(&path, &tiny()).pictures;
        assert!(after == before, "{family}");
    }
}

#[test]
fn an_sdxl_without_component_configs_is_taken_for_what_its_encoders_say() {
    let (_dir, path) = synthetic("sdxl");
    let before = run_in(&path, &tiny()).pictures;
    for file in [
        "sdrt.json",
        "model_index.json",
        SCHEDULER,
        "unet/config.json",
        "vae_decoder/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
    ] {
        fs::remove_file(path.join(file)).unwrap();
    }
    let model = ModelDir::open(&path).unwrap();
    assert_eq!(model.default_size, [1024, 1024]);
    let notes = model.notes;
    assert!(
        notes.iter().all(|note| note.contains("of SDXL")),
        "{notes:?}"
    );
    let after = run_in(&path, &tiny()).pictures;
    assert!(after == before);
}

#[test]
fn a_model_without_a_scheduler_config_predicts_what_its_manifest_says() {
    let (_dir, path) = synthetic("sd21");
    let before = run_in(&path, &tiny()).pictures;
    fs::remove_file(path.join(SCHEDULER)).unwrap();
    let model = ModelDir::open(&path).unwrap();
    assert_eq!(model.prediction, PredictionType::VPrediction);
    assert_eq!(run_in(&path, &tiny()).pictures, before);
}

/// A small picture by a solver that every model can be run with.
fn tiny() -> Request {
    Request {
        width: Some(64),
        height: Some(64),
        steps: Some(2),
        sampler: Some(&DDIM),
        profile: &DIFFUSERS,
        ..circle()
    }
}

/// Changes the graph of a directory's component.
fn rewrite(path: &Path, component: &str, change: impl Fn(&mut GraphProto)) {
    let file = path.join(component).join("model.onnx");
    let mut model = ModelProto::decode(&*fs::read(&file).unwrap()).unwrap();
    change(model.graph.as_mut().unwrap());
    fs::write(file, model.encode_to_vec()).unwrap();
}

fn tensor_type(value: &mut ValueInfoProto) -> &mut TensorTypeProto {
    let of_type = value.r#type.as_mut().unwrap();
    of_type.tensor_type.as_mut().unwrap()
}

/// A node between the graph's boundary and `name`, which is called `inner` inside.
fn node(op: &str, input: &str, output: &str, attribute: Option<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: vec![input.to_owned()],
        output: vec![output.to_owned()],
        attribute: attribute.into_iter().collect(),
        ..NodeProto::default()
    }
}

fn cast(to: i32) -> AttributeProto {
    AttributeProto {
        name: "to".to_owned(),
        i: Some(to.into()),
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    }
}

/// Puts `op` behind the graph's input `name`.
fn behind_input(graph: &mut GraphProto, name: &str, op: &str, attribute: Option<AttributeProto>) {
    let inner = format!("{name}.{op}");
    for other in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        if other == name {
            other.clone_from(&inner);
        }
    }
    graph.node.insert(0, node(op, name, &inner, attribute));
}

fn make_half(graph: &mut GraphProto) {
    for i in 0..graph.input.len() {
        if tensor_type(&mut graph.input[i]).elem_type == data_type::FLOAT {
            tensor_type(&mut graph.input[i]).elem_type = data_type::FLOAT16;
            let name = graph.input[i].name.clone();
            behind_input(graph, &name, "Cast", Some(cast(data_type::FLOAT)));
        }
    }
    for i in 0..graph.output.len() {
        tensor_type(&mut graph.output[i]).elem_type = data_type::FLOAT16;
        let name = graph.output[i].name.clone();
        let inner = format!("{name}.inner");
        for other in graph
            .node
            .iter_mut()
            .flat_map(|n| n.output.iter_mut().chain(&mut n.input))
        {
            if *other == name {
                other.clone_from(&inner);
            }
        }
        let cast = node("Cast", &inner, &name, Some(cast(data_type::FLOAT16)));
        graph.node.push(cast);
    }
}

fn fixed(length: i64) -> DimensionProto {
    DimensionProto {
        value: Some(DimensionValue::Fixed(length)),
    }
}

#[test]
fn graphs_of_half_precision_with_a_list_of_timesteps_and_a_fixed_batch_run() {
    let plain = picture(&circle());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();

    rewrite(&path, "unet", |graph| {
        behind_input(graph, "timestep", "Squeeze", None);
        for input in &mut graph.input {
            let name = input.name.clone();
            let shape = tensor_type(input).shape.as_mut().unwrap();
            match name.as_str() {
                "timestep" => shape.dim = vec![fixed(1)],
                _ => shape.dim[0] = fixed(2),
            }
        }
    });
    let made = |request: &Request| run_in(&path, request).pictures.remove(0).rgb;
    assert!(psnr(&made(&circle()), &plain) > 50.0);
    // Without guidance there is nothing to fill the second place with but the first.
    let unguided = Request {
        guidance_scale: Some(1.0),
        ..circle()
    };
    assert!(psnr(&made(&unguided), &picture(&unguided)) > 50.0);

    for component in ["text_encoder", "unet", "vae_decoder"] {
        rewrite(&path, component, make_half);
    }
    assert!(psnr(&made(&circle()), &plain) > 30.0);
}

#[test]
fn models_of_every_family_for_text_to_image_draw() {
    for family in [
        "sdxl",
        "ssd-1b",
        "vega",
        "koala-700m",
        "bk-sdm-tiny",
        "sd-turbo",
        "sd15-lcm",
        "sdxl-lcm",
    ] {
        let (_dir, path) = synthetic(family);
        for profile in PROFILES {
            let request = Request {
                profile,
                width: Some(64),
                height: Some(72),
                steps: Some(2),
                sampler: Some(&EULER),
                ..circle()
            };
            let made = make(&path, &request, None).unwrap_or_else(|e| panic!("{family}: {e}"));
            let picture = &made.pictures[0];
            assert_eq!((picture.width, picture.height), (64, 72), "{family}");
        }
    }
    let (_dir, refiner) = synthetic("sdxl-refiner");
    let error = make(&refiner, &circle(), None).unwrap_err().to_string();
    assert!(error.contains("SDXL base model"), "{error}");
}

#[test]
fn sdxl_is_told_sizes_crop_and_zeros_for_no_negative_prompt() {
    let (_dir, path) = synthetic("sdxl");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let dumped = |request: &Request| {
        let mut dump = Dump::default();
        make(&path, request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        Reference::open(&file)
    };
    let request = |profile, negative: Option<&str>| Request {
        profile,
        negative_prompt: negative.map(str::to_owned),
        sampler: Some(&EULER),
        width: Some(64),
        height: Some(128),
        steps: Some(1),
        ..circle()
    };
    let plain = dumped(&request(&A1111, None));
    let ids: Vec<f32> = plain.get("time_ids").into_iter().collect();
    assert_eq!(ids, [128.0, 64.0, 0.0, 0.0, 128.0, 64.0]);
    assert_eq!(plain.ids("token_ids_2").shape(), [1, 77]);
    let width = plain.get("text_embeddings").shape()[2];
    assert!(plain.get("pooled").shape()[1] < width);
    for (profile, negative, zeros) in [
        (&A1111, None, true),
        (&A1111, Some(""), true),
        (&A1111, Some("fog"), false),
        (&DIFFUSERS, None, true),
        (&DIFFUSERS, Some(""), false),
    ] {
        let dump = dumped(&request(profile, negative));
        for name in ["text_embeddings_uncond", "pooled_uncond"] {
            let found = dump.get(name).iter().all(|&x| x == 0.0);
            assert_eq!(found, zeros, "{} {negative:?} {name}", profile.name);
        }
    }
    let told = Request {
        micro: Micro {
            original_size: Some([1000, 2000]),
            target_size: Some([512, 256]),
            crop: [3, 5],
        },
        ..request(&A1111, None)
    };
    let ids: Vec<f32> = dumped(&told).get("time_ids").into_iter().collect();
    assert_eq!(ids, [2000.0, 1000.0, 5.0, 3.0, 256.0, 512.0]);
    let warnings = run(&told, None).warnings;
    assert!(warnings[0].contains("no SDXL"), "{warnings:?}");
}

#[test]
fn distilled_models_get_the_settings_that_they_are_made_for_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny-lightning-4step");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    let open = Request {
        prompt: "a red circle".to_owned(),
        ..Request::default()
    };
    let model = Models::one(ModelDir::open(&path).unwrap());
    let plans = Plans::resolve(&open, &model, u64::MAX).unwrap();
    let plan = &plans.plans[0];
    assert_eq!((plan.steps, plan.guidance_scale), (4, 1.0));
    assert_eq!(plan.sampler, &EULER);
    assert!(
        plans.notes.iter().any(|n| n.contains("Lightning")),
        "{:?}",
        plans.notes
    );
    let told = Request {
        steps: Some(9),
        guidance_scale: Some(2.0),
        sampler: Some(&PLMS),
        ..open
    };
    let plans = Plans::resolve(&told, &model, u64::MAX).unwrap();
    let plan = &plans.plans[0];
    assert_eq!((plan.steps, plan.guidance_scale), (9, 2.0));
    assert_eq!(plan.sampler, &PLMS);
    assert!(plans.notes.is_empty(), "{:?}", plans.notes);
}

#[test]
fn a_refiner_ends_what_the_base_model_began() {
    let (_base, base) = synthetic("sdxl");
    let (_refiner, refiner) = synthetic("sdxl-refiner");
    let open = |path: &Path| ModelDir::open(path).unwrap();
    let refined = Models {
        base: open(&base),
        refiner: Some(open(&refiner)),
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let request = |profile, refiner_start| Request {
        profile,
        refiner_start,
        sampler: Some(&EULER),
        width: Some(64),
        height: Some(64),
        steps: Some(5),
        ..circle()
    };
    let dumped = |models: &Models, request: &Request| {
        let mut dump = Dump::default();
        let made = make_with(models, request, Some(&mut dump)).unwrap();
        dump.write(&Destination::find(&file).unwrap(), &Cancel::new())
            .unwrap();
        (Reference::open(&file), made)
    };
    for profile in PROFILES {
        let (alone, _) = dumped(&Models::one(open(&base)), &request(profile, 0.8));
        let (both, made) = dumped(&refined, &request(profile, 0.6));
        assert_eq!(made.calls, 5);
        let same: Vec<bool> = (0..5)
            .map(|i| format!("denoised.{i:03}"))
            .map(|name| alone.get(&name) == both.get(&name))
            .collect();
        // Timesteps 999, 749, 499 .. (A1111) and 801, 601, 401 .. (leading): below 400 the refiner is called.
        assert_eq!(same, [true, true, true, false, false], "{}", profile.name);
        let ids: Vec<f32> = both.get("time_ids_refiner").into_iter().collect();
        assert_eq!(ids, [64.0, 64.0, 0.0, 0.0, 6.0]);
        assert!(both.find("text_embeddings_refiner").is_some());
        assert!(made.plans[0].infotext.contains("Refiner switch at: 0.6"));
    }
    // Another family has other latents.
    let strange = Models {
        base: open(demo_model()),
        refiner: Some(open(&refiner)),
    };
    let error = make_with(&strange, &circle(), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not fit"), "{error}");
}
