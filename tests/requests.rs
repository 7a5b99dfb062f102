//! What people ask for, and what they get wrong: sizes, batches, profiles, damaged models.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prost::Message;
use sd_converter::onnx::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto,
    TensorTypeProto, ValueInfoProto, attribute_type, data_type,
};
use sd_models::manifest::PredictionType;
use sd_runtime::engine::EngineError;
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{Destination, Dump, ModelDir, Outcome, PipelineError, Txt2Img};
use sd_runtime::sampler::{Profile, Sampler};
use sdrt_tests::{Quiet, Reference, demo_model, engine, never, psnr, relative_l2, synthetic};

fn circle() -> Txt2Img {
    Txt2Img {
        prompt: "a large red circle on a blue background".to_owned(),
        guidance_scale: 5.0,
        seed: 1,
        steps: 8,
        ..Txt2Img::default()
    }
}

fn run(request: &Txt2Img, dump: Option<&mut Dump>) -> (Outcome, Quiet) {
    let model = ModelDir::open(demo_model()).unwrap();
    let mut watch = Quiet::default();
    let outcome = request
        .run(engine(), &model, &never(), &mut watch, dump)
        .unwrap();
    (outcome, watch)
}

fn mean_color(outcome: &Outcome, x: usize, y: usize) -> [u8; 3] {
    let picture = &outcome.pictures[0].0;
    let at = 3 * (y * picture.width + x);
    picture.rgb[at..at + 3].try_into().unwrap()
}

#[test]
fn every_sampler_of_every_profile_draws_the_prompt() {
    for profile in Profile::ALL {
        for sampler in Sampler::ALL {
            let request = Txt2Img {
                sampler: Some(sampler),
                profile,
                steps: 20,
                ..circle()
            };
            let (outcome, watch) = run(&request, None);
            let what = format!("{sampler} {}", profile.name());
            let ([r, _, b], [cr, _, cb]) =
                (mean_color(&outcome, 64, 64), mean_color(&outcome, 2, 2));
            assert!(r > 150 && b < 100, "{what}: the middle is not red");
            assert!(cb > 150 && cr < 100, "{what}: the corner is not blue");
            assert_eq!(watch.calls, outcome.calls, "{what}");
        }
    }
}

#[test]
fn pictures_of_a_batch_are_those_of_their_seeds() {
    let request = Txt2Img {
        batch: 3,
        sampler: Some(Sampler::EulerAncestral),
        ..circle()
    };
    let (batch, _) = run(&request, None);
    for (i, (picture, seed, _)) in batch.pictures.iter().enumerate() {
        assert_eq!(*seed, 1 + i as u64);
        let (single, _) = run(
            &Txt2Img {
                batch: 1,
                seed: *seed,
                ..request.clone()
            },
            None,
        );
        assert_eq!(*picture, single.pictures[0].0, "picture {i}");
    }
    assert_ne!(batch.pictures[0].0, batch.pictures[1].0);
}

#[test]
fn sizes_that_are_no_multiple_of_the_unets_stride_work() {
    for (width, height) in [(128, 72), (104, 136), (64, 64)] {
        let request = Txt2Img {
            width: Some(width),
            height: Some(height),
            steps: 2,
            ..circle()
        };
        let (outcome, _) = run(&request, None);
        let picture = &outcome.pictures[0].0;
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
    let (first, _) = run(
        &Txt2Img {
            rng: Rng::Philox,
            ..circle()
        },
        Some(&mut dump),
    );
    dump.write(&Destination::find(&file).unwrap()).unwrap();
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
    let again = Txt2Img {
        seed: 99,
        initial_noise: Some(file),
        ..circle()
    };
    assert_eq!(run(&again, None).0.pictures[0].0, first.pictures[0].0);
}

#[test]
fn emphasis_and_negative_prompts_change_the_picture_and_long_prompts_take_more_chunks() {
    let plain = run(&circle(), None).0;
    let psnr_with = |request: &Txt2Img| {
        psnr(
            &run(request, None).0.pictures[0].0.rgb,
            &plain.pictures[0].0.rgb,
        )
    };
    let stressed = Txt2Img {
        prompt: "a large (red:0.5) circle on a (blue:1.5) background".to_owned(),
        ..circle()
    };
    assert!(psnr_with(&stressed) < 45.0);
    assert!(
        psnr_with(&Txt2Img {
            negative_prompt: "a green square".to_owned(),
            ..circle()
        }) < 45.0
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump.safetensors");
    let mut dump = Dump::default();
    let long = Txt2Img {
        prompt: "a red circle, ".repeat(25),
        steps: 1,
        ..circle()
    };
    run(&long, Some(&mut dump));
    dump.write(&Destination::find(&file).unwrap()).unwrap();
    assert_eq!(
        Reference::open(&file).get("text_embeddings").shape(),
        [1, 154, 128]
    );
    let (_, watch) = run(
        &Txt2Img {
            profile: Profile::Diffusers,
            ..long
        },
        None,
    );
    assert!(
        watch.warnings[0].contains("cut off"),
        "{:?}",
        watch.warnings
    );
}

#[test]
fn clip_skip_takes_an_earlier_layer() {
    let skipped = Txt2Img {
        clip_skip: 2,
        ..circle()
    };
    let outcome = run(&skipped, None).0;
    assert!(outcome.pictures[0].2.contains("Clip skip: 2"));
    assert!(
        psnr(
            &outcome.pictures[0].0.rgb,
            &run(&circle(), None).0.pictures[0].0.rgb
        ) < 45.0
    );
    let model = ModelDir::open(demo_model()).unwrap();
    let beyond = Txt2Img {
        clip_skip: 6,
        ..circle()
    };
    let error = beyond
        .run(engine(), &model, &never(), &mut Quiet::default(), None)
        .unwrap_err();
    assert!(error.to_string().contains("4 inner layers"), "{error}");
}

#[test]
fn infotexts_say_how_the_picture_was_made() {
    let (outcome, _) = run(
        &Txt2Img {
            negative_prompt: "fog".to_owned(),
            ..circle()
        },
        None,
    );
    let text = &outcome.pictures[0].2;
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
            Txt2Img {
                width: Some(100),
                ..circle()
            },
            "104",
        ),
        (
            Txt2Img {
                height: Some(8),
                ..circle()
            },
            "64",
        ),
        (
            Txt2Img {
                steps: 0,
                ..circle()
            },
            "steps",
        ),
        (
            Txt2Img {
                batch: 0,
                ..circle()
            },
            "batch",
        ),
        (
            Txt2Img {
                guidance_scale: f64::NAN,
                ..circle()
            },
            "cfg",
        ),
    ] {
        let error = request.check().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_run_stops_when_the_user_wants() {
    let model = ModelDir::open(demo_model()).unwrap();
    let stop = Arc::new(AtomicBool::new(true));
    let error = circle()
        .run(engine(), &model, &stop, &mut Quiet::default(), None)
        .unwrap_err();
    assert!(
        matches!(&error, PipelineError::Denoise(e) if e.to_string() == "interrupted"),
        "{error}"
    );
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
        let model = ModelDir::open(&path).map_err(|e| e.to_string())?;
        let result = circle().run(engine(), &model, &never(), &mut Quiet::default(), None);
        result.map(|_| ()).map_err(|e| {
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
    let outcome = circle()
        .run(engine(), &model, &never(), &mut Quiet::default(), None)
        .unwrap();
    assert_eq!(outcome.pictures[0].0, run(&circle(), None).0.pictures[0].0);
    let error = ModelDir::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("sdconvert build"), "{error}");
}

#[test]
fn the_diffusers_profile_follows_the_directorys_scheduler_or_says_that_it_cannot() {
    let request = Txt2Img {
        profile: Profile::Diffusers,
        steps: 2,
        ..circle()
    };
    assert_eq!(run(&request, None).0.sampler, Sampler::Plms);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let config = path.join("scheduler/scheduler_config.json");
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace("PNDMScheduler", "UniPCMultistepScheduler");
    fs::write(&config, text).unwrap();
    let model = ModelDir::open(&path).unwrap();
    let error = request
        .run(engine(), &model, &never(), &mut Quiet::default(), None)
        .unwrap_err();
    assert!(error.to_string().contains("UniPC"), "{error}");
    let chosen = Txt2Img {
        sampler: Some(Sampler::Euler),
        ..request
    };
    chosen
        .run(engine(), &model, &never(), &mut Quiet::default(), None)
        .unwrap();
}

#[test]
fn a_stable_diffusion_2_model_runs_and_others_are_refused_by_name() {
    let request = |size| Txt2Img {
        width: Some(size),
        height: Some(size),
        steps: 2,
        ..circle()
    };
    let (_dir, sd21) = synthetic("sd21");
    let model = ModelDir::open(&sd21).unwrap();
    assert_eq!(model.prediction, PredictionType::VPrediction);
    let outcome = request(64)
        .run(engine(), &model, &never(), &mut Quiet::default(), None)
        .unwrap();
    assert_eq!(outcome.pictures[0].0.width, 64);
    for (family, said) in [
        ("sdxl", "StableDiffusionXLPipeline"),
        ("sdxl-refiner", "StableDiffusionXLImg2ImgPipeline"),
        ("sd15-inpaint", "StableDiffusionInpaintPipeline"),
        ("instruct-pix2pix", "StableDiffusionInstructPix2PixPipeline"),
        ("sd15-lcm", "LatentConsistencyModelPipeline"),
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

fn run_in(path: &Path, request: &Txt2Img) -> (Outcome, Quiet) {
    let model = ModelDir::open(path).unwrap();
    let mut watch = Quiet::default();
    let outcome = request.run(engine(), &model, &never(), &mut watch, None);
    (outcome.unwrap(), watch)
}

#[test]
fn a_prediction_type_corrected_by_hand_is_followed_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let velocity = serde_json::json!({"prediction_type": "v_prediction"});
    let path = edited(dir.path(), SCHEDULER, &velocity);
    for profile in Profile::ALL {
        let request = Txt2Img {
            profile,
            steps: 2,
            ..circle()
        };
        let (outcome, watch) = run_in(&path, &request);
        assert!(
            watch.notes.iter().any(|note| note.contains("v_prediction")),
            "{:?}",
            watch.notes
        );
        let (epsilon, watch) = run(&request, None);
        assert_ne!(outcome.pictures[0].0, epsilon.pictures[0].0);
        assert!(watch.notes.is_empty(), "{:?}", watch.notes);
    }
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
        &Txt2Img {
            steps: 1,
            ..circle()
        },
    );
    let request = Txt2Img {
        profile: Profile::Diffusers,
        steps: 1,
        ..circle()
    };
    let model = ModelDir::open(&path).unwrap();
    let error = request.run(engine(), &model, &never(), &mut Quiet::default(), None);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("thresholding"), "{error}");
    assert_eq!(error.matches("scheduler_config.json").count(), 1, "{error}");
}

#[test]
fn diffusers_guides_above_1_only_and_a1111_at_any_scale() {
    let picture = |profile, guidance_scale| {
        let request = Txt2Img {
            profile,
            guidance_scale,
            sampler: Some(Sampler::Euler),
            steps: 3,
            ..circle()
        };
        let (outcome, watch) = run(&request, None);
        (outcome.pictures[0].0.clone(), watch.notes)
    };
    let one = picture(Profile::Diffusers, 1.0).0;
    for scale in [0.0, 0.5] {
        assert!(picture(Profile::Diffusers, scale).0 == one, "{scale}");
        assert!(picture(Profile::A1111, scale).0 != picture(Profile::A1111, 1.0).0);
    }
    assert!(picture(Profile::Diffusers, 1.5).0 != one);
    let notes = picture(Profile::A1111, 0.0).1;
    assert!(notes[0].contains("negative prompt only"), "{notes:?}");
}

#[test]
fn clip_skip_acts_where_the_profiles_program_applies_it() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = |path: &Path, profile, clip_skip| {
        let file = dir.path().join("dump.safetensors");
        let request = Txt2Img {
            profile,
            clip_skip,
            negative_prompt: "fog".to_owned(),
            steps: 1,
            width: Some(64),
            height: Some(64),
            ..circle()
        };
        let (mut dump, mut watch) = (Dump::default(), Quiet::default());
        let model = ModelDir::open(path).unwrap();
        request
            .run(engine(), &model, &never(), &mut watch, Some(&mut dump))
            .unwrap();
        dump.write(&Destination::find(&file).unwrap()).unwrap();
        let tensors = Reference::open(&file);
        let get = |name: &str| tensors.get(name);
        (
            get("text_embeddings"),
            get("text_embeddings_uncond"),
            watch.notes,
        )
    };
    let demo = demo_model();
    for (profile, reaches_negative) in [(Profile::A1111, true), (Profile::Diffusers, false)] {
        let (last, skipped) = (embeddings(demo, profile, 1), embeddings(demo, profile, 2));
        assert!(last.0 != skipped.0, "{}", profile.name());
        assert_eq!(last.1 != skipped.1, reaches_negative, "{}", profile.name());
    }
    let (_dir, sd21) = synthetic("sd21");
    let (last, skipped) = (
        embeddings(&sd21, Profile::A1111, 1),
        embeddings(&sd21, Profile::A1111, 2),
    );
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
    let request = Txt2Img {
        width: Some(128),
        height: Some(128),
        ..circle()
    };
    let (outcome, _) = run_in(&path, &request);
    assert!(outcome.pictures[0].0 == run(&circle(), None).0.pictures[0].0);
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
    let plain = run(&circle(), None).0;
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
    let (outcome, _) = run_in(&path, &circle());
    assert!(psnr(&outcome.pictures[0].0.rgb, &plain.pictures[0].0.rgb) > 50.0);
    // Without guidance there is nothing to fill the second place with but the first.
    let unguided = Txt2Img {
        guidance_scale: 1.0,
        ..circle()
    };
    let rgb = |(outcome, _): (Outcome, Quiet)| outcome.pictures[0].0.rgb.clone();
    assert!(psnr(&rgb(run_in(&path, &unguided)), &rgb(run(&unguided, None))) > 50.0);

    for component in ["text_encoder", "unet", "vae_decoder"] {
        rewrite(&path, component, make_half);
    }
    let (outcome, _) = run_in(&path, &circle());
    assert!(psnr(&outcome.pictures[0].0.rgb, &plain.pictures[0].0.rgb) > 30.0);
}
