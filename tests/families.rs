//! Every family's tiny synthetic checkpoint, converted, gives the numbers of diffusers and transformers
//! (`golden/family_reference.py`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;

use ndarray::{ArrayD, Axis};
use sd_models::manifest::Manifest;
use sd_runtime::engine::{Cancel, Input, Key, Lease, Network};
use sdrt_tests::{Reference, engine, relative_l2, repository, synthetic};

/// Single precision adds up in another order in every library; a wrong epsilon or activation is 1e-3 and more.
const FORWARD: f64 = 1e-5;

fn reference() -> Reference {
    Reference::open(&repository("tests/golden/families.safetensors"))
}

/// The graphs of a component: of ONNX's operators, and of our own.
const GRAPHS: [&str; 2] = ["model.onnx", "native.onnx"];

fn load(dir: &Path, component: &str, graph: &str) -> Lease {
    let manifest = std::fs::read_to_string(dir.join("sdrt.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    let key = Key::new(dir, component, &[]).variant(graph);
    let lease = engine().lease(&key, Some(&manifest), &Cancel::new());
    lease.unwrap()
}

fn assert_close(found: &ArrayD<f32>, expected: &ArrayD<f32>, what: &str) {
    let error = relative_l2(found, expected);
    assert!(error <= FORWARD, "{what}: relative L2 {error:.2e}");
}

fn run(
    network: &mut Network,
    inputs: &[(String, ArrayD<f32>)],
    outputs: &[&str],
) -> Vec<ArrayD<f32>> {
    let inputs: Vec<(&str, Input<'_>)> = inputs
        .iter()
        .map(|(name, value)| (name.as_str(), Input::F32(value.view())))
        .collect();
    network.run(&inputs, outputs, &Cancel::new()).unwrap()
}

fn unet_is_right(family: &str) {
    let reference = reference();
    let (_dir, model) = synthetic(family);
    let inputs = reference.unet_inputs(family);
    let expected = reference.get(&format!("{family}.unet.out_sample"));
    for graph in GRAPHS {
        let found = run(&mut load(&model, "unet", graph), &inputs, &["out_sample"]);
        assert_close(&found[0], &expected, &format!("{family} UNet, {graph}"));
    }
}

fn text_is_right(family: &str) {
    let reference = reference();
    let (_dir, model) = synthetic(family);
    let ids = reference.ids(&format!("{family}.text.input_ids"));
    for (number, folder) in [(1, "text_encoder"), (2, "text_encoder_2")] {
        for (name, output) in [
            ("last_hidden_state", "last_hidden_state"),
            ("penultimate", "hidden_states.1"), // tiny encoders have two layers
            ("text_embeds", "text_embeds"),
        ] {
            let Some(expected) = reference.find(&format!("{family}.text.{number}.{name}")) else {
                continue;
            };
            let input = [("input_ids", Input::Ids(ids.view()))];
            for graph in GRAPHS {
                let found = load(&model, folder, graph)
                    .run(&input, &[output], &Cancel::new())
                    .unwrap();
                let what = format!("{family} {folder} {name}, {graph}");
                assert_close(&found[0], &expected, &what);
            }
        }
    }
}

macro_rules! families {
    ($check:ident: $($name:ident = $family:literal),+ $(,)?) => {
        $(#[test] fn $name() { $check($family); })+
    };
}

families!(unet_is_right:
    unet_of_sd15 = "sd15",
    unet_of_sd15_for_inpainting = "sd15-inpaint",
    unet_of_instruct_pix2pix = "instruct-pix2pix",
    unet_of_sd15_lcm = "sd15-lcm",
    unet_of_bk_sdm_base = "bk-sdm-base",
    unet_of_bk_sdm_small = "bk-sdm-small",
    unet_of_bk_sdm_tiny = "bk-sdm-tiny",
    unet_of_sd21 = "sd21",
    unet_of_sd21_for_inpainting = "sd21-inpaint",
    unet_of_sd_turbo = "sd-turbo",
    unet_of_sdxl = "sdxl",
    unet_of_sdxl_for_inpainting = "sdxl-inpaint",
    unet_of_sdxl_lcm = "sdxl-lcm",
    unet_of_the_sdxl_refiner = "sdxl-refiner",
    unet_of_ssd_1b = "ssd-1b",
    unet_of_vega = "vega",
    unet_of_koala_700m = "koala-700m",
    unet_of_koala_1b = "koala-1b",
);

families!(text_is_right:
    text_of_sd15 = "sd15",
    text_of_sd21 = "sd21",
    text_of_sd_turbo = "sd-turbo",
    text_of_sdxl = "sdxl",
    text_of_the_sdxl_refiner = "sdxl-refiner",
);

fn control_is_right(family: &str, skips: usize) {
    let reference = reference();
    let name = format!("controlnet-{family}");
    let get = |key: &str| reference.get(&format!("{name}.{key}"));
    let (_dir, control) = synthetic(&name);
    let mut inputs = reference.unet_inputs(&name);
    let unet_inputs = inputs.clone();
    inputs.push(("controlnet_cond".to_owned(), get("controlnet_cond")));
    let scale = ndarray::arr0(0.75).into_dyn();
    inputs.push(("conditioning_scale".to_owned(), scale));

    let mut names: Vec<String> = (0..skips)
        .map(|i| format!("down_block_res_samples.{i}"))
        .collect();
    names.push("mid_block_res_sample".to_owned());
    let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut residuals = Vec::new();
    for graph in GRAPHS {
        residuals = run(&mut load(&control, "controlnet", graph), &inputs, &outputs);
        for (name, found) in outputs.iter().zip(&residuals) {
            assert_close(found, &get(name), &format!("{family} {name}, {graph}"));
        }
    }

    let (_dir, model) = synthetic(family);
    let mut inputs = unet_inputs;
    for (i, residual) in residuals.into_iter().enumerate() {
        let name = match i {
            i if i == skips => "mid_block_additional_residual".to_owned(),
            i => format!("down_block_additional_residuals.{i}"),
        };
        inputs.push((name, residual));
    }
    for graph in ["controlnet.onnx", "native.controlnet.onnx"] {
        let found = run(&mut load(&model, "unet", graph), &inputs, &["out_sample"]);
        let what = format!("{family} under control, {graph}");
        assert_close(&found[0], &get("out_sample"), &what);
    }
}

#[test]
fn a_controlnet_steers_sd15() {
    control_is_right("sd15", 12);
}

#[test]
fn a_controlnet_steers_sdxl() {
    control_is_right("sdxl", 9);
}

#[test]
fn the_tiny_autoencoder_is_that_of_diffusers() {
    let reference = reference();
    let (_dir, model) = synthetic("taesd");
    let image = reference.get("taesd.image");
    let input = [("sample", Input::F32(image.view()))];
    for graph in GRAPHS {
        let found = load(&model, "vae_encoder", graph)
            .run(&input, &["latent_parameters"], &Cancel::new())
            .unwrap();
        let (mean, variance) = found[0].view().split_at(Axis(1), 4);
        assert_close(&mean.to_owned(), &reference.get("taesd.latents"), graph);
        assert!(variance.iter().all(|&v| v == -30.0));
    }
    let latents = reference.get("taesd.latent_sample");
    let input = [("latent_sample", Input::F32(latents.view()))];
    for graph in GRAPHS {
        let found = load(&model, "vae_decoder", graph)
            .run(&input, &["sample"], &Cancel::new())
            .unwrap();
        assert_close(&found[0], &reference.get("taesd.sample"), graph);
    }
}
