//! Models whose weights are whole numbers of 8 bits: both dialects compute the same from them, and pictures are much like those of
//! the published weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;

use ndarray::ArrayD;
use sd_converter::build::Precision;
use sd_converter::checkpoint::SafetensorsFile;
use sd_kernels::Isa;
use sd_models::demo;
use sd_models::manifest::Manifest;
use sd_runtime::engine::{Cancel, Compute, Dialect, Input, Key};
use sd_runtime::pipeline::Request;
use sdrt_tests::{
    Reference, circle, converted_as, demo_model, engine, make, psnr, relative_l2, repository,
    synthetic_as,
};

/// Single precision adds up in another order.
const ROUNDING: f64 = 1e-5;

/// Rounding changes weights by 0.5 %; random ones amplify that where transformers are ten deep. Half precision would make 1e-4.
const WHOLE_NUMBERS: std::ops::Range<f64> = 1e-3..6e-2;

fn run(
    model: &Path,
    (component, graph): (&str, &str),
    compute: Compute,
    inputs: &[(&str, Input<'_>)],
    outputs: &[&str],
) -> Vec<ArrayD<f32>> {
    let manifest = std::fs::read_to_string(model.join("sdrt.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    let key = Key::new(model, component, &[]).variant(graph);
    let key = key.compute(compute.on(Isa::detect()).unwrap());
    let mut network = engine()
        .lease(&key, Some(&manifest), &Cancel::new())
        .unwrap();
    network.run(inputs, outputs, &Cancel::new()).unwrap()
}

/// Both dialects of a component agree, and are as far from the published weights as rounding makes them.
fn agree(
    model: &Path,
    component: &str,
    inputs: &[(String, ArrayD<f32>)],
    (outputs, expected): (&[&str], &[ArrayD<f32>]),
) {
    let inputs: Vec<_> = inputs
        .iter()
        .map(|(name, x)| (name.as_str(), Input::F32(x.view())))
        .collect();
    let of = |graph: &str, compute| run(model, (component, graph), compute, &inputs, outputs);
    let portable = of("model.onnx", Compute::F32);
    let native = of("native.onnx", Compute::F32);
    for (i, name) in outputs.iter().enumerate() {
        let distance = relative_l2(&native[i], &portable[i]);
        assert!(distance <= ROUNDING, "{component} {name}: {distance:.2e}");
        let distance = relative_l2(&native[i], &expected[i]);
        assert!(
            WHOLE_NUMBERS.contains(&distance),
            "{component} {name}: {distance:.2e}"
        );
    }
    // What these numbers cost wherever weights are stored, amplified by transformers of random weights.
    for (compute, most) in [
        (Compute::Bf16, 5e-2),
        (Compute::I16, 1e-2),
        (Compute::I8, 2e-1),
    ] {
        if compute.on(Isa::detect()).is_none() {
            continue;
        }
        for (found, portable) in of("native.onnx", compute).iter().zip(&portable) {
            let distance = relative_l2(found, portable);
            assert!(distance <= most, "{component}, {compute:?}: {distance:.2e}");
        }
    }
}

fn unet_agrees(family: &str) {
    let reference = Reference::open(&repository("tests/golden/families.safetensors"));
    let (_dir, model) = synthetic_as(family, Precision::Int8);
    let inputs = reference.unet_inputs(family);
    let expected = reference.get(&format!("{family}.unet.out_sample"));
    agree(&model, "unet", &inputs, (&["out_sample"], &[expected]));
}

#[test]
fn unet_of_sd15() {
    unet_agrees("sd15");
}

#[test]
fn unet_of_sd21() {
    unet_agrees("sd21");
}

#[test]
fn unet_of_sdxl() {
    unet_agrees("sdxl");
}

#[test]
fn unet_of_ssd_1b() {
    unet_agrees("ssd-1b");
}

#[test]
fn unet_of_sdxl_lcm() {
    unet_agrees("sdxl-lcm");
}

#[test]
fn controlnet_of_sdxl() {
    let reference = Reference::open(&repository("tests/golden/families.safetensors"));
    let (_dir, model) = synthetic_as("controlnet-sdxl", Precision::Int8);
    let mut inputs = reference.unet_inputs("controlnet-sdxl");
    let hint = reference.get("controlnet-sdxl.controlnet_cond");
    inputs.push(("controlnet_cond".to_owned(), hint));
    let scale = ndarray::arr0(0.75).into_dyn();
    inputs.push(("conditioning_scale".to_owned(), scale));
    let outputs = ["down_block_res_samples.4", "mid_block_res_sample"];
    let expected = outputs.map(|name| reference.get(&format!("controlnet-sdxl.{name}")));
    agree(&model, "controlnet", &inputs, (&outputs, &expected));
}

#[test]
fn text_encoders_of_sdxl() {
    let reference = Reference::open(&repository("tests/golden/families.safetensors"));
    let (_dir, model) = synthetic_as("sdxl", Precision::Int8);
    let ids = reference.ids("sdxl.text.input_ids");
    let inputs = [("input_ids", Input::Ids(ids.view()))];
    let of = |graph| {
        let graph = ("text_encoder_2", graph);
        run(&model, graph, Compute::F32, &inputs, &["text_embeds"]).remove(0)
    };
    let native = of("native.onnx");
    let distance = relative_l2(&native, &of("model.onnx"));
    assert!(distance <= ROUNDING, "{distance:.2e}");
    let distance = relative_l2(&native, &reference.get("sdxl.text.2.text_embeds"));
    assert!(WHOLE_NUMBERS.contains(&distance), "{distance:.2e}");
}

/// The demo model's picture is the one of the published weights, a little changed: another seed's has less than 15 dB.
#[test]
fn pictures_stay_what_they_are() {
    let file = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let (_dir, model) = converted_as(file, Precision::Int8);
    let request = Request {
        steps: Some(20),
        ..circle()
    };
    let picture = |model: &Path, graph| {
        let request = Request {
            graph,
            ..request.clone()
        };
        make(model, &request, None).unwrap().pictures.remove(0)
    };
    let native = picture(&model, Dialect::Auto);
    let portable = picture(&model, Dialect::Portable);
    let dialects = psnr(&native.rgb, &portable.rgb);
    assert!(dialects >= 45.0, "{dialects:.1} dB");
    let published = psnr(&native.rgb, &picture(demo_model(), Dialect::Auto).rgb);
    assert!(published >= 40.0, "{published:.1} dB");
}

#[test]
fn pictures_say_that_weights_are_whole_numbers() {
    let file = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
    let (_dir, whole) = converted_as(file, Precision::Int8);
    let request = Request {
        steps: Some(1),
        ..circle()
    };
    let says = |model: &Path| {
        let made = make(model, &request, None).unwrap();
        made.plans[0].infotext.contains(", Weights: int8")
    };
    assert!(says(&whole) && !says(demo_model()));
}
