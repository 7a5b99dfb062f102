//! Pictures by other decoders than the model's own, on the way and at the end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sd_converter::checkpoint::SafetensorsFile;
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_kernels::Isa;
use sd_models::demo;
use sd_runtime::Remedy;
use sd_runtime::engine::{Cancel, Compute};
use sd_runtime::pipeline::infotext::Settings;
use sd_runtime::pipeline::{
    Event, ModelDir, Models, Picture, PipelineError, Plans, Replay, Request, VaeApprox, run,
};
use sd_runtime::sampler::EULER;
use sdrt_tests::{
    Reference, converted, demo_model, engine, make, make_with, psnr, relative_l2, repository,
    synthetic, synthetic_model,
};
use tempfile::TempDir;

fn small() -> Request {
    Request {
        prompt: "a red circle".to_owned(),
        width: Some(64),
        height: Some(64),
        steps: Some(4),
        seed: 5,
        ..Request::default()
    }
}

fn with(model: &Path, approx: &Path) -> Models {
    Models {
        vae_approx: Some(VaeApprox::open(approx).unwrap()),
        ..Models::one(ModelDir::open(model).unwrap())
    }
}

/// A TAESD with random weights, of a file with this name.
fn taesd(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    let synth = Synth {
        kind: Kind::named("taesd").unwrap(),
        tiny: true,
        seed: 0,
    };
    synth.write(&file, false, &Unwatched).unwrap();
    converted(SafetensorsFile::open(&file).unwrap())
}

/// Pictures, and the previews of the first with their steps.
fn made(models: &Models, request: &Request, every: usize) -> (Vec<Picture>, Vec<(usize, Picture)>) {
    let mut plans = Plans::resolve(request, models, u64::MAX).unwrap();
    plans.preview = NonZero::new(every);
    let mut previews = Vec::new();
    let mut listener = |event: Event<'_>| {
        if let Event::Preview {
            picture: 0,
            steps,
            image,
        } = event
        {
            previews.push((steps, image.clone()));
        }
    };
    let outcome = run(
        &plans,
        models,
        engine(),
        &Cancel::new(),
        &mut listener,
        None,
    );
    (outcome.unwrap().pictures, previews)
}

/// Against diffusers' `AutoencoderTiny` (`golden/family_reference.py`), which is given latents as the UNet sees them.
#[test]
fn the_tiny_decoder_gets_scaled_latents() {
    let reference = Reference::open(&repository("tests/golden/families.safetensors"));
    let (_dir, approx) = synthetic("taesd");
    let models = with(synthetic_model(), &approx);
    let mut plan = Plans::resolve(&small(), &models, u64::MAX)
        .unwrap()
        .plans
        .remove(0);
    let latents = reference.get("taesd.latent_sample");
    (plan.latent_shape, plan.size) = ([1, 4, 5, 6], [48, 40]);
    let replay = Replay {
        plan: &plan,
        models: &models,
        engine: engine(),
        cancel: &Cancel::new(),
    };
    let decoded = replay.decode(&latents.into_dimensionality().unwrap());
    let decoded = decoded.unwrap().insert_axis(ndarray::Axis(0)).into_dyn();
    let error = relative_l2(&decoded, &reference.get("taesd.sample"));
    // Single precision adds up in another order in torch.
    assert!(error < 1e-5, "{error:.2e}");
}

#[test]
fn the_tiny_decoder_makes_pictures_and_previews_of_their_size() {
    let (_dir, approx) = taesd("taesd_decoder.safetensors");
    let models = with(demo_model(), &approx);
    let (pictures, previews) = made(&models, &small(), 2);
    let steps: Vec<usize> = previews.iter().map(|(steps, _)| *steps).collect();
    assert_eq!(steps, [2, 4]);
    // Nothing is left to be done after the last step.
    assert!(previews[1].1 == pictures[0] && previews[0].1 != pictures[0]);

    let by_tiny = make_with(&models, &small(), None).unwrap();
    assert!(by_tiny.pictures == pictures, "previews change nothing");
    let own = Models::one(ModelDir::open(demo_model()).unwrap());
    let by_own = make_with(&own, &small(), None).unwrap();
    assert!(by_own.pictures != pictures);
    let (linear, small_previews) = made(&own, &small(), 4);
    assert!(linear == by_own.pictures);
    assert_eq!(small_previews[0].1.width, 8);

    // It is told, with what it takes to find it again.
    let text = by_tiny.infotext();
    let hash = models.vae_approx.as_ref().unwrap().weights_hash().unwrap();
    let told = format!("VAE Decoder: TAESD, VAE Decoder hash: {hash}");
    assert!(text.contains(&told), "{text}");
    assert!(!by_own.infotext().contains("VAE Decoder"));
    let settings = Settings::read(&text).unwrap();
    assert_eq!(settings.not_carried, []);
    let missing = |models: &Models| settings.wanted.lacks_beside(models);
    assert_eq!(missing(&models), None);
    let lacks = missing(&own).unwrap().to_string();
    assert_eq!(lacks, format!("missing: vae-approx {hash}"));
    let left_out = settings.wanted.not_carried(&own);
    assert_eq!(left_out[0].field, "VAE Decoder");
    let by_full = Settings::read(&by_own.infotext()).unwrap();
    assert_eq!(by_full.wanted.not_carried(&own), []);
    let left_out = by_full.wanted.not_carried(&models);
    let told = left_out.iter().map(|it| (&*it.field, &*it.value));
    assert!(told.eq([("VAE Decoder", "Full")]));
    // Other programs do not say which it was.
    let foreign = Settings::read("x\nSteps: 1, Seed: 1, Sampler: Euler, VAE Decoder: TAESD");
    assert!(foreign.unwrap().wanted.lacks_beside(&models).is_none());
}

#[test]
fn decoders_of_other_latents_are_refused_where_that_can_be_told() {
    let resolved = |models: &Models| Plans::resolve(&small(), models, u64::MAX);
    let (_dir, model) = synthetic("sdxl");
    for (name, fits_sdxl) in [
        ("taesdxl_decoder.safetensors", true),
        ("TAESD.safetensors", false),
    ] {
        let (_dir, approx) = taesd(name);
        let models = [with(synthetic_model(), &approx), with(&model, &approx)];
        let [sd, sdxl] = models.each_ref().map(resolved);
        let (right, wrong) = if fits_sdxl { (sdxl, sd) } else { (sd, sdxl) };
        assert_eq!(right.unwrap().notes, Vec::<String>::new(), "{name}");
        let error = wrong.unwrap_err();
        assert!(
            matches!(error, PipelineError::OtherLatents { .. }),
            "{error}"
        );
    }
    let (_dir, approx) = taesd("tiny.safetensors");
    let plans = resolved(&with(&model, &approx)).unwrap();
    assert!(
        plans.notes[0].contains("cannot be told"),
        "{:?}",
        plans.notes
    );

    for wrong in [model.as_path(), Path::new("nowhere"), &model.join("unet")] {
        let error = VaeApprox::open(wrong).unwrap_err();
        assert!(matches!(error, PipelineError::NotAModel { .. }), "{error}");
    }
}

/// The demo model with tensors multiplied by what `factor` says of their names.
fn changed(factor: impl Fn(&str) -> Option<f32>) -> (TempDir, PathBuf) {
    let file = SafeTensors::deserialize(demo::CHECKPOINT).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in file.tensors() {
        let shape = tensor.shape().to_vec();
        let Some(factor) = factor(&name) else {
            tensors.insert(name, (tensor.dtype(), shape, tensor.data().to_vec()));
            continue;
        };
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => {
                let values = tensor.data().as_chunks().0.iter();
                values.map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::F16 => {
                let halves = tensor.data().as_chunks().0.iter();
                halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        let bytes = values.iter().flat_map(|x| (x * factor).to_le_bytes());
        tensors.insert(name, (Dtype::F32, shape, bytes.collect()));
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("changed.safetensors");
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    converted(SafetensorsFile::open(&file).unwrap())
}

/// The demo model with a decoder whose attention has values that single precision holds and whole numbers of 16 bits do not: values
/// are multiplied by a power of 2, which the projection behind them takes back, so that pictures stay what they are.
fn loud(exponent: i32) -> (TempDir, PathBuf) {
    const ATTENTION: &str = "first_stage_model.decoder.mid.attn_1";
    changed(|name| match name.strip_prefix(ATTENTION)? {
        ".v.weight" | ".v.bias" => Some(2f32.powi(exponent)),
        ".proj_out.weight" => Some(2f32.powi(-exponent)),
        _ => None,
    })
}

#[test]
fn a_decoder_that_overflows_is_run_again_in_single_precision_and_told() {
    if Compute::I16.on(Isa::detect()).is_none() {
        println!("SKIPPED: this processor does not multiply whole 16-bit numbers");
        return;
    }
    let request = |compute| Request {
        compute,
        batch: 2,
        ..small()
    };
    let (_dir, model) = loud(70);
    let again = |made: &sdrt_tests::Made| {
        let said = made.warnings.iter();
        said.filter(|text| text.contains("decoding again in f32"))
            .count()
    };
    let told = |made: &sdrt_tests::Made| made.infotext().contains("VAE retry: f32");

    let exact = make(&model, &request(Compute::F32), None).unwrap();
    assert!(again(&exact) == 0 && !told(&exact), "{:?}", exact.warnings);
    let plain = make(demo_model(), &request(Compute::F32), None).unwrap();
    assert!(exact.pictures == plain.pictures, "powers of 2 are exact");

    let repaired = make(&model, &request(Compute::I16), None).unwrap();
    // Each picture is what it would be alone.
    assert_eq!(again(&repaired), 2, "{:?}", repaired.warnings);
    assert!(told(&repaired));
    let read = Settings::read(&repaired.infotext()).unwrap();
    assert_eq!(read.not_carried, []);
    let quiet = make(demo_model(), &request(Compute::I16), None).unwrap();
    assert!(again(&quiet) == 0 && !told(&quiet), "{:?}", quiet.warnings);
    for (repaired, quiet) in repaired.pictures.iter().zip(&quiet.pictures) {
        assert!(psnr(&repaired.rgb, &quiet.rgb) > 30.0);
    }

    // What overflows in single precision, too, is no picture.
    let (_dir, model) = loud(126);
    for compute in [Compute::F32, Compute::I16] {
        let error = make(&model, &request(compute), None).unwrap_err();
        assert!(matches!(error, PipelineError::NonFinite { .. }), "{error}");
    }
}

#[test]
fn a_unet_that_overflows_ends_the_run_at_once_with_all_that_tells_why() {
    let louder = |factor: f32| {
        changed(move |name| (name == "model.diffusion_model.out.2.weight").then_some(factor))
    };
    let (_dir, model) = louder(f32::MAX);
    let request = Request {
        sampler: Some(&EULER),
        ..small()
    };
    let error = make(&model, &request, None).unwrap_err();
    let said = error.to_string();
    for part in ["step 1: the UNet returned", "NaN", "Euler", "in f32 by cpu"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(error.hint(), Some(Remedy::CheckWeights));
    // What a network returns may be finite, and what guidance makes of it not.
    let (_other_dir, other) = louder(f32::MAX / 4.0);
    let said = make(&other, &request, None).unwrap_err().to_string();
    assert!(said.starts_with("step 1: the latents have "), "{said}");
    if Compute::I16.on(Isa::detect()).is_some() {
        let compute = Compute::I16;
        let error = make(&model, &Request { compute, ..request }, None).unwrap_err();
        assert!(error.to_string().contains("in i16 by cpu"), "{error}");
        assert_eq!(error.hint(), Some(Remedy::ComputeExactly));
    }
}
