//! ControlNets stored as changes to a base model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::synthetic;
use safetensors::tensor::{Dtype, TensorView};
use sd_converter::Remedy;
use sd_converter::build::{BuildOptions, BuildPlan};
use sd_converter::checkpoint::{Dtype as Element, open, to_f32};
use sd_converter::control::ControlOnBase;
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::weights::Weights;
use sd_models::keys::Component;

fn on_base(file: &Path, base: &Path) -> Result<ControlOnBase, String> {
    let base = Box::new(Weights::open(base, None).unwrap());
    ControlOnBase::new(open(file).unwrap(), base).map_err(|e| e.to_string())
}

fn control(name: &str) -> (Component, String) {
    (Component::ControlNet, name.to_owned())
}

fn unet(name: &str) -> (Component, String) {
    (Component::UNet, name.to_owned())
}

#[test]
fn a_control_lora_is_the_base_plus_the_product_of_its_factors() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["sd15", "sdxl"] {
        let file = synthetic(dir.path(), &format!("control-lora-{family}"), 0);
        let base = synthetic(dir.path(), family, 0);
        let error = Weights::open(&file, None).unwrap_err();
        assert_eq!(error.hint(), Some(Remedy::GiveBase), "{error}");

        let model = on_base(&file, &base).unwrap();
        let source = open(&file).unwrap();
        let base_model = Weights::open(&base, None).unwrap();
        let values = |key: &str| {
            let dtype = source.tensors()[key].dtype;
            to_f32(dtype, &source.bytes(key).unwrap()).unwrap()
        };
        // A convolution and a matrix, by their definition.
        for (module, name) in [
            (
                "input_blocks.1.0.in_layers.2",
                "down_blocks.0.resnets.0.conv1",
            ),
            ("time_embed.2", "time_embedding.linear_2"),
        ] {
            let (up, down) = (
                values(&format!("{module}.up")),
                values(&format!("{module}.down")),
            );
            let rank = 4;
            let columns = down.len() / rank;
            let weight = base_model
                .read_f32(&unet(&format!("{name}.weight")))
                .unwrap();
            let found = model.read_f32(&control(&format!("{name}.weight"))).unwrap();
            for (i, (found, weight)) in found.iter().zip(&weight).enumerate() {
                let (row, column) = (i / columns, i % columns);
                let products = (0..rank).map(|k| up[row * rank + k] * down[k * columns + column]);
                let expected = weight + products.sum::<f32>();
                assert!(
                    (found - expected).abs() <= 2e-3 * expected.abs().max(0.05),
                    "{name} {i}"
                );
            }
        }
        // Biases are the file's own, as are the hint's layers.
        let bias = model
            .read_f32(&control("time_embedding.linear_2.bias"))
            .unwrap();
        assert_eq!(bias, values("time_embed.2.bias"));
        let hint = control("controlnet_cond_embedding.conv_in.weight");
        assert_eq!(
            model.read_f32(&hint).unwrap(),
            values("input_hint_block.0.weight")
        );

        let plan = BuildPlan::new(Box::new(model), BuildOptions::default()).unwrap();
        assert!(plan.kind().starts_with("ControlNet for"), "{}", plan.kind());
        let target = dir.path().join(format!("{family}-model"));
        let report = plan.write(&target, &Unwatched).unwrap();
        assert_eq!(report.manifest.sources.len(), 2);
    }
}

/// Tensors of a ControlNet by bare name, in half precision.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = open(path).unwrap();
    let half = file
        .tensors()
        .iter()
        .filter(|(_, info)| info.dtype == Element::F16);
    half.map(|(name, info)| {
        let bare = name.strip_prefix("control_model.").unwrap_or(name);
        let data = file.bytes(name).unwrap().into_owned();
        (bare.to_owned(), (info.shape.clone(), data))
    })
    .collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) {
    let view = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<u8>))| {
        let view = TensorView::new(Dtype::F16, shape.clone(), data).unwrap();
        (
            name.clone(),
            view.dtype(),
            view.shape().to_vec(),
            data.clone(),
        )
    };
    let all: Vec<_> = tensors.iter().map(view).collect();
    let views = all.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn a_difference_controlnet_is_added_to_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, base) = (
        synthetic(dir.path(), "controlnet-sd15", 0),
        synthetic(dir.path(), "sd15", 0),
    );
    let mut changes = tensors(&whole);
    changes.insert("difference".to_owned(), (vec![0], Vec::new()));
    let file = dir.path().join("difference.safetensors");
    write(&file, &changes);
    let model = on_base(&file, &base).unwrap();
    let (base_model, own) = (
        Weights::open(&base, None).unwrap(),
        Weights::open(&whole, None).unwrap(),
    );
    let name = "down_blocks.0.resnets.0.conv1.weight";
    let found = model.read_f32(&control(name)).unwrap();
    let sum = base_model.read_f32(&unet(name)).unwrap().into_iter();
    let sum = sum.zip(own.read_f32(&control(name)).unwrap());
    for (found, (base, change)) in found.iter().zip(sum) {
        assert!((found - (base + change)).abs() <= 1e-3 * found.abs().max(0.05));
    }
    let zero = control("controlnet_mid_block.weight");
    assert_eq!(model.read_f32(&zero).unwrap(), own.read_f32(&zero).unwrap());
}

#[test]
fn changes_for_another_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = synthetic(dir.path(), "control-lora-sdxl", 0);
    let base = synthetic(dir.path(), "sd15", 0);
    let error = on_base(&file, &base).err().unwrap();
    assert!(
        error.contains("shape") || error.contains("is not in"),
        "{error}"
    );
    let taesd = synthetic(dir.path(), "taesd", 0);
    let error = on_base(&file, &taesd).err().unwrap();
    assert!(error.contains("no UNet"), "{error}");
    // One of the factors is missing.
    let mut cut = tensors(&synthetic(dir.path(), "control-lora-sd15", 0));
    cut.remove("time_embed.2.down");
    cut.insert("lora_controlnet".to_owned(), (vec![0], Vec::new()));
    write(&file, &cut);
    let error = on_base(&file, &base).err().unwrap();
    assert!(error.contains("time_embed.2.down"), "{error}");
}
