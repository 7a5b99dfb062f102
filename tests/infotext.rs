//! Settings in pictures: they hold all that decides a picture, so it can be made again from its file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;

use sd_kernels::Isa;
use sd_runtime::engine::{Cancel, Compute, Dialect, Ep};
use sd_runtime::noise::Rng;
use sd_runtime::noise::texture::Texture;
use sd_runtime::pipeline::infotext::{Settings, within_reach};
use sd_runtime::pipeline::{
    Destination, Format, Micro, ModelDir, Models, PictureFile, Plan, Plans, Request,
};
use sd_runtime::profile::{COMFYUI, DIFFUSERS};
use sd_runtime::sampler::{DDIM, EULER_ANCESTRAL, HEUN, Options};
use sd_runtime::sigmas::Spread;
use sd_runtime::text::Emphasis;
use sdrt_tests::{demo_model, make, synthetic};

/// Small and quick.
fn small() -> Request {
    Request {
        prompt: "a (red:1.3) circle".to_owned(),
        width: Some(64),
        height: Some(64),
        steps: Some(2),
        seed: 3,
        ..Request::default()
    }
}

/// Requests that differ from [`small`] in one thing each, by its name.
fn variations() -> Vec<(&'static str, Request)> {
    let mut all = vec![("nothing", small())];
    let mut with = |name, change: &dyn Fn(&mut Request)| {
        let mut request = small();
        change(&mut request);
        all.push((name, request));
    };
    with("prompt", &|r| {
        "a \"blue\" square, Steps: 3\nNegative prompt: \\猫".clone_into(&mut r.prompt);
    });
    with("negative_prompt", &|r| {
        r.negative_prompt = Some("green: 1,\nstar".to_owned());
    });
    with("width", &|r| r.width = Some(72));
    with("steps", &|r| r.steps = Some(3));
    with("guidance_scale", &|r| r.guidance_scale = Some(4.3));
    with("guidance_rescale", &|r| r.guidance_rescale = 0.7);
    with("emphasis", &|r| r.emphasis = Some(Emphasis::NoNorm));
    with("seed", &|r| r.seed = u64::MAX);
    with("subseed", &|r| {
        (r.subseed, r.subseed_strength) = (Some(5), 0.35);
    });
    with("seed_resize", &|r| r.seed_resize = Some([128, 64]));
    with("ensd", &|r| {
        (r.ensd, r.sampler) = (-31_337, Some(&EULER_ANCESTRAL));
    });
    with("noise", &|r| r.noise = Texture::Pink);
    with("sampler", &|r| r.sampler = Some(&EULER_ANCESTRAL));
    with("spread", &|r| r.spread = Some(Spread::Exponential));
    with("eta", &|r| {
        (r.sampler, r.options.eta) = (Some(&DDIM), Some(0.4));
    });
    with("churn", &|r| {
        r.sampler = Some(&HEUN);
        r.options = Options {
            s_churn: 1.0,
            s_tmin: 0.5,
            s_tmax: 20.0,
            s_noise: 1.01,
            ..Options::default()
        };
    });
    with("profile", &|r| (r.profile, r.batch) = (&COMFYUI, 2));
    with("idle_draws", &|r| {
        (r.profile, r.sampler, r.options.idle_draws) = (&COMFYUI, Some(&EULER_ANCESTRAL), true);
    });
    with("class", &|r| r.profile = &DIFFUSERS);
    with("rng", &|r| r.rng = Rng::Philox);
    with("clip_skip", &|r| r.clip_skip = 2);
    with("graph", &|r| r.graph = Dialect::Portable);
    // Native graphs work in bands.
    if Isa::detect() != Isa::Scalar {
        with("tile", &|r| r.tile = true);
    }
    with("ignore_lora_tags", &|r| {
        "a circle <lora:none:1>".clone_into(&mut r.prompt);
        r.negative_prompt = Some("<lora:nothing:0.5>".to_owned());
        r.ignore_lora_tags = true;
    });
    if Compute::I16.on(Isa::detect()).is_some() && Isa::detect() != Isa::Scalar {
        with("compute", &|r| r.compute = Compute::I16);
    }
    all
}

/// What a picture's settings ask for, which is all of it.
fn asked_again(text: &str, models: &Models) -> (Request, usize) {
    let settings = Settings::read(text).unwrap();
    assert_eq!(settings.not_carried, [], "{text}");
    assert_eq!(settings.wanted.lacks(&models.base), None, "{text}");
    assert_eq!(settings.wanted.not_carried(models), [], "{text}");
    (settings.request, settings.place)
}

/// Every field of a request is in the settings, and 20 pictures and more, as PNG, JPEG and WebP, are made again bit by bit.
#[test]
fn pictures_are_made_again_from_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let mut texts: Vec<String> = Vec::new();
    let all = variations();
    assert!(all.len() > 20);
    for (name, request) in all {
        let mut made = make(demo_model(), &request, None).unwrap();
        let last = made.pictures.len() - 1;
        let plan: &Plan = &made.plans[last];
        let text = plan.infotext.with(&made.computed).to_string();
        assert!(
            !texts.contains(&text),
            "{name} is not in the settings: {text}"
        );
        texts.push(text.clone());
        let picture = made.pictures.remove(last);

        let (again, place) = asked_again(&text, &models);
        let made_again = make(demo_model(), &again, None).unwrap();
        let picture_again = &made_again.pictures[place];
        assert_eq!(
            made_again.plans[place]
                .infotext
                .with(&made_again.computed)
                .to_string(),
            text,
            "{name}"
        );
        for (file, format) in [
            ("a.png", Format::Png),
            ("a.jpg", Format::Jpeg { quality: 90 }),
            ("a.webp", Format::WebP),
        ] {
            let path = dir.path().join(file);
            let to = Destination::find(&path).unwrap();
            picture.write(&to, format, &text, &Cancel::new()).unwrap();
            let read = PictureFile::open(&path).unwrap();
            assert_eq!(read.parameters, text, "{name}");
            assert_eq!(
                read.decode().unwrap(),
                picture_again.stored_as(format).unwrap(),
                "{name} as {file}"
            );
        }
    }
}

/// What only an SDXL hears.
#[test]
fn settings_of_sdxl_and_its_refiner_are_read_back() {
    let [(_a, base), (_b, refiner)] = ["sdxl", "sdxl-refiner"].map(synthetic);
    let open = |path: &Path| ModelDir::open(path).unwrap();
    let models = Models {
        refiner: Some(open(&refiner)),
        ..Models::one(open(&base))
    };
    let text = |request: &Request| {
        let plans = Plans::resolve(request, &models, u64::MAX).unwrap();
        plans.plans[0].infotext.to_string()
    };
    let plain = text(&small());
    let mut requests = vec![small(); 7];
    requests[0].micro.original_size = Some([100, 200]);
    requests[1].micro.target_size = Some([300, 400]);
    requests[2].micro.crop = [5, 6];
    requests[3].aesthetic = [7.5, 1.25];
    requests[4].refiner_start = 0.55;
    requests[5].micro = Micro {
        original_size: Some([64, 65]),
        target_size: Some([66, 67]),
        crop: [0, 68],
    };
    (requests[6].profile, requests[6].negative_prompt) = (&DIFFUSERS, Some(String::new()));
    for request in requests {
        let told = text(&request);
        assert_ne!(told, plain);
        let (again, _) = asked_again(&told, &models);
        assert_eq!(text(&again), told);
        assert_eq!(again.micro, request.micro);
        assert_eq!(
            (again.aesthetic, again.refiner_start),
            (request.aesthetic, request.refiner_start)
        );
        assert_eq!(again.negative_prompt, request.negative_prompt);
    }
    // Another refiner, or none, is said.
    let settings = Settings::read(&plain).unwrap();
    assert!(settings.wanted.is_refiner(models.refiner.as_ref().unwrap()));
    assert!(!settings.wanted.is_refiner(&models.base));
    let alone = Models::one(open(&base));
    let missing = settings.wanted.lacks_beside(&alone).unwrap().to_string();
    let hash = open(&refiner).hash().unwrap().to_owned();
    assert_eq!(missing, format!("missing: refiner {hash}"));
    let left_out = settings.wanted.not_carried(&alone);
    assert_eq!(left_out[0].field, "Refiner");
    // Without a hash, the name decides.
    let named = |name: &str| {
        let text = format!("a circle\nSteps: 2, Seed: 3, Refiner: {name}");
        Settings::read(&text).unwrap().wanted
    };
    let refiner = models.refiner.as_ref().unwrap();
    assert!(named(&refiner.title()).is_refiner(refiner));
    let other = named("another.safetensors");
    assert!(!other.is_refiner(refiner));
    let missing = other.lacks_beside(&models).unwrap().to_string();
    assert_eq!(missing, "missing: refiner another.safetensors");
    let left_out = other.not_carried(&models);
    assert_eq!(left_out[0].value, "another.safetensors");
}

/// A picture of a processor is made where there is none of its graphs or numbers, unless somebody asks for them.
#[test]
fn graphs_and_numbers_that_cannot_be_had_are_left_out() {
    let mut models = Models::one(ModelDir::open(demo_model()).unwrap());
    let text = "a circle\nSteps: 2, Seed: 3, Version: sdrt-0.1.0, Graph: native";
    let mut carried = Settings::read(text).unwrap().request;
    assert_eq!(carried.graph, Dialect::Native);
    if Isa::detect() >= Isa::Avx2 {
        let mut same = carried.clone();
        assert_eq!(within_reach(&mut same, &models, Ep::Cpu, [false; 3]), []);
        assert_eq!(same.graph, Dialect::Native);
    }
    let left_out = |request: &mut Request, models: &Models, ep, given| {
        let left_out = within_reach(request, models, ep, given);
        let pairs = left_out.into_iter().map(|it| (it.field, it.value));
        pairs.collect::<Vec<_>>()
    };
    let graph = ("Graph".to_owned(), "native".to_owned());
    let mut request = carried.clone();
    let found = left_out(&mut request, &models, Ep::OpenVino, [false; 3]);
    assert_eq!((found, request.graph), (vec![graph.clone()], Dialect::Auto));
    let mut request = carried.clone();
    let found = left_out(&mut request, &models, Ep::OpenVino, [true, false, false]);
    assert_eq!((found, request.graph), (vec![], Dialect::Native));
    carried.compute = Compute::I16;
    let mut request = carried.clone();
    let found = left_out(&mut request, &models, Ep::OpenVino, [false; 3]);
    let compute = ("Compute".to_owned(), "i16".to_owned());
    assert_eq!((&found[0], &found[1]), (&graph, &compute));
    assert_eq!(request.compute, Compute::Auto);
    carried.compute = Compute::F32;
    for component in models
        .base
        .manifest
        .as_mut()
        .unwrap()
        .components
        .values_mut()
    {
        component.variants.retain(|name, _| name != "native.onnx");
    }
    let found = left_out(&mut carried, &models, Ep::Cpu, [false; 3]);
    assert_eq!((found, carried.graph), (vec![graph], Dialect::Auto));
}

#[test]
fn files_of_first_noise_are_known_by_their_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let models = Models::one(ModelDir::open(demo_model()).unwrap());
    let mut texts = Vec::new();
    for shade in [3u8, 5] {
        let path = dir.path().join("noise.png");
        let gradient = |x: u32, y: u32| image::Rgb([x as u8 * shade, y as u8, 0]);
        image::RgbImage::from_fn(16, 16, gradient)
            .save(&path)
            .unwrap();
        for request in [
            Request {
                noise: Texture::Image(path.clone()),
                ..small()
            },
            Request {
                initial_noise: Some(path.clone()),
                ..small()
            },
        ] {
            let plans = Plans::resolve(&request, &models, u64::MAX).unwrap();
            let text = plans.plans[0].infotext.to_string();
            assert!(
                text.contains("noise.png")
                    && text.contains(", Noise hash: ")
                    && !texts.contains(&text),
                "{text}"
            );
            assert!(!text.contains(dir.path().to_str().unwrap()));
            let settings = Settings::read(&text).unwrap();
            assert_eq!(settings.not_carried.len(), 1);
            assert_eq!(settings.wanted.lacks_beside(&models).unwrap().kind, "noise");
            texts.push(text);
        }
    }
    let missing = Request {
        initial_noise: Some("/nowhere.safetensors".into()),
        ..small()
    };
    let error = Plans::resolve(&missing, &models, u64::MAX).unwrap_err();
    assert!(error.to_string().contains("/nowhere.safetensors"));
}

/// Directories of one checkpoint with other weights are told apart.
#[test]
fn models_are_known_by_their_weights() {
    let (_dir, other) = synthetic("sd15");
    let models = |path: &Path| Models::one(ModelDir::open(path).unwrap());
    let plans = Plans::resolve(&small(), &models(demo_model()), u64::MAX).unwrap();
    let text = plans.plans[0].infotext.to_string();
    let wanted = Settings::read(&text).unwrap().wanted;
    let demo = ModelDir::open(demo_model()).unwrap();
    assert_eq!(wanted.lacks(&demo), None);
    let missing = wanted.lacks(&ModelDir::open(&other).unwrap()).unwrap();
    assert_eq!(missing.to_string(), "missing: model 30398d282e");
    let mut changed = ModelDir::open(demo_model()).unwrap();
    let components = &mut changed.manifest.as_mut().unwrap().components;
    components
        .get_mut("unet")
        .unwrap()
        .files
        .get_mut("model.onnx_data")
        .unwrap()
        .sha256
        .insert(0, '0');
    let missing = wanted.lacks(&changed).unwrap();
    assert_eq!(
        (missing.kind, Some(missing.hash)),
        ("weights", demo.weights_hash())
    );
    let left_out = wanted.not_carried(&models(&other));
    let fields: Vec<&str> = left_out.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["Model", "Model hash"]);
}
