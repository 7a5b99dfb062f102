//! What `sdrun` makes of model directories: damaged and edited ones, those of other programs, and every family.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::Path;

use prost::Message;
use sd_converter::onnx::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto,
    TensorTypeProto, ValueInfoProto, attribute_type, data_type,
};
use sd_models::manifest::{self, PredictionType};
use sd_runtime::Remedy;
use sd_runtime::engine::{Dialect, EngineError};
use sd_runtime::pipeline::{Dump, ModelDir, Models, PipelineError, Plans, Request};
use sd_runtime::profile::{DIFFUSERS, PROFILES};
use sd_runtime::sampler::{DDIM, EULER, PLMS};
use sdrt_tests::{Made, circle, copy_dir, demo_model, make, psnr, synthetic};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn run(request: &Request, dump: Option<&mut Dump>) -> Made {
    make(demo_model(), request, dump).unwrap()
}

fn picture(request: &Request) -> Vec<u8> {
    run(request, None).pictures.remove(0).rgb
}

/// A request that means the same graphs with a manifest and without.
fn portable() -> Request {
    Request {
        graph: Dialect::Portable,
        ..circle()
    }
}

fn run_in(path: &Path, request: &Request) -> Made {
    make(path, request, None).unwrap()
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
fn a_manifest_of_a_later_layout_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let later = serde_json::json!({"schema": manifest::SCHEMA + 1, "unknown": {}});
    let path = edited(dir.path(), manifest::FILE_NAME, &later);
    let error = ModelDir::open(&path).unwrap_err();
    let said = format!(
        "its schema is {}, this program reads {}",
        manifest::SCHEMA + 1,
        manifest::SCHEMA
    );
    assert!(error.to_string().contains(&said), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_truncated_data_file_is_an_error_also_where_no_manifest_tells_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    let data = path.join("unet/model.onnx_data");
    let bytes = fs::read(&data).unwrap();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&data, &bytes[..length]).unwrap();
        let error = make(&path, &portable(), None).unwrap_err().to_string();
        assert!(error.contains("unet/model.onnx"), "{length}: {error}");
    }
}

#[test]
#[cfg(unix)]
fn a_link_to_nowhere_is_named_with_where_it_leads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let lose = |name: &str| {
        fs::remove_file(path.join(name)).unwrap();
        std::os::unix::fs::symlink("../../blobs/0123", path.join(name)).unwrap();
    };
    let said = |name: &str| {
        let error = make(&path, &portable(), None).unwrap_err();
        let text = error.to_string();
        let expected = format!("{name}: it is a link to ../../blobs/0123, which is missing");
        assert!(text.contains(&expected), "{text}");
        assert!(error.hint().unwrap().to_string().contains("copy it again"));
    };
    lose("unet/model.onnx_data");
    said("unet/model.onnx_data");
    fs::remove_file(path.join("sdrt.json")).unwrap();
    said("unet/model.onnx_data");
    lose("unet/model.onnx");
    let error = ModelDir::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("unet/model.onnx is a link to ../../blobs/0123"),
        "{error}"
    );
}

#[test]
#[cfg(unix)]
fn files_that_a_directory_names_lie_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let data = path.join("unet/model.onnx_data");
    let blob = data.with_file_name("blob");
    fs::rename(&data, &blob).unwrap();
    let link = |to: &Path| {
        let _ = fs::remove_file(&data);
        std::os::unix::fs::symlink(to, &data).unwrap();
        make(&path, &portable(), None).map_err(|e| e.to_string())
    };
    link(Path::new("blob")).unwrap();
    link(&blob).unwrap();
    fs::remove_file(&data).unwrap();
    fs::copy(&blob, &data).unwrap();

    let manifest_path = path.join(manifest::FILE_NAME);
    let whole: Value = serde_json::from_slice(&fs::read(&manifest_path).unwrap()).unwrap();
    let write = |json: &Value| fs::write(&manifest_path, json.to_string()).unwrap();
    for name in ["../x", "/etc/passwd"] {
        let mut json = whole.clone();
        json["components"]["unet"]["files"][name] = serde_json::json!({"size": 1, "sha256": ""});
        write(&json);
        let error = ModelDir::open(&path).unwrap_err().to_string();
        let said = format!("sdrt.json: it lists `{name}`");
        assert!(error.contains(&said), "{error}");
    }

    // A graph whose weights lie elsewhere is refused, whatever the manifest says of the graph.
    let graph = path.join("unet/model.onnx");
    let mut bytes = fs::read(&graph).unwrap();
    let (name, outside) = (b"model.onnx_data", b"../model.o_data");
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(outside);
    fs::write(&graph, &bytes).unwrap();
    let mut json = whole;
    json["components"]["unet"]["files"]["model.onnx"]["sha256"] =
        manifest::hex(&Sha256::digest(&bytes)).into();
    write(&json);
    let error = make(&path, &portable(), None).err().unwrap().to_string();
    let said = "unet/model.onnx: its weights lie in `../model.o_data`";
    assert!(error.contains(said), "{error}");
}

#[test]
fn what_a_part_of_a_model_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let without = |networks: &[&str]| {
        let path = dir.path().join("model");
        copy_dir(demo_model(), &path);
        let file = path.join(manifest::FILE_NAME);
        let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for network in networks {
            json["components"].as_object_mut().unwrap().remove(*network);
            fs::remove_dir_all(path.join(network)).unwrap();
        }
        fs::write(file, json.to_string()).unwrap();
        let error = make(&path, &portable(), None).err().unwrap().to_string();
        fs::remove_dir_all(path).unwrap();
        error
    };
    for (networks, said) in [
        (
            &["text_encoder", "vae_decoder", "vae_encoder"][..],
            "only unet without text_encoder",
        ),
        (
            &["vae_decoder", "vae_encoder"],
            "only text_encoder and unet without vae_decoder",
        ),
        (
            &["unet"],
            "only text_encoder and vae_decoder and vae_encoder",
        ),
    ] {
        let error = without(networks);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn directories_of_other_programs_run_without_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    fs::remove_file(path.join("sdrt.json")).unwrap();
    let model = ModelDir::open(&path).unwrap();
    assert_eq!(model.default_size, [128, 128]);
    let made = make(&path, &portable(), None).unwrap();
    assert_eq!(made.pictures, run(&portable(), None).pictures);
    let in_bands = Request {
        tile: true,
        ..circle()
    };
    let error = make(&path, &in_bands, None).unwrap_err();
    assert!(error.to_string().contains("the directory has none"));
    assert_eq!(error.hint(), Some(Remedy::DoNotTile));
    let error = ModelDir::open(dir.path()).unwrap_err();
    let convert = Remedy::Convert { checkpoint: None };
    assert_eq!(error.hint(), Some(convert), "{error}");
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
        ("sd15-inpaint", "InpaintPipeline"),
        ("sdxl-inpaint", "InpaintPipeline"),
        ("instruct-pix2pix", "InstructPix2Pix"),
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
        .replace("PNDMScheduler", "IPNDMScheduler");
    fs::write(&config, text).unwrap();
    let error = make(&path, &request, None).unwrap_err();
    assert!(error.to_string().contains("IPNDM"), "{error}");
    let chosen = Request {
        sampler: Some(&EULER),
        ..request
    };
    make(&path, &chosen, None).unwrap();
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
        ..portable()
    };
    assert!(run_in(&path, &request).pictures[0].rgb == picture(&portable()));
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
        ..portable()
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
    let hint = make(&refiner, &circle(), None).unwrap_err().hint();
    let hint = hint.unwrap().to_string();
    assert!(hint.contains("SDXL base model"), "{hint}");
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
