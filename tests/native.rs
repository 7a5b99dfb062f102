//! Native graphs against the portable ones of the same model: pictures, and what happens where they cannot be run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::ArrayD;
use prost::Message;
use sd_converter::onnx::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    attribute_type, data_type,
};
use sd_kernels::Isa;
use sd_models::graph::custom;
use sd_models::manifest::Manifest;
use sd_runtime::engine::{Cancel, Compute, Dialect, EngineError, Input, Key};
use sd_runtime::pipeline::{PipelineError, Request};
use sdrt_tests::{
    Reference, circle, copy_dir, demo_model, engine, make, psnr, relative_l2, repository, synthetic,
};
use tempfile::TempDir;

fn short() -> Request {
    Request {
        steps: Some(2),
        ..circle()
    }
}

/// Whether native graphs are run on this machine.
fn runs_native_graphs() -> bool {
    Isa::detect() >= Isa::Avx2
}

/// Pictures of both dialects differ by roundings only.
fn pictures_agree(model: &Path, request: &Request) {
    let of = |graph| {
        let request = Request {
            graph,
            ..request.clone()
        };
        make(model, &request, None).unwrap().pictures
    };
    let (native, portable) = (of(Dialect::Auto), of(Dialect::Portable));
    assert_eq!(native.len(), portable.len());
    for (native, portable) in native.iter().zip(&portable) {
        let psnr = psnr(&native.rgb, &portable.rgb);
        assert!(psnr >= 45.0, "{psnr:.1} dB");
    }
}

#[test]
fn twenty_steps_of_both_dialects_make_the_same_picture() {
    let request = Request {
        steps: Some(20),
        ..circle()
    };
    pictures_agree(demo_model(), &request);
}

#[test]
fn sides_need_not_be_multiples_of_what_networks_halve() {
    let request = Request {
        width: Some(136),
        height: Some(72),
        ..short()
    };
    pictures_agree(demo_model(), &request);
}

#[test]
fn prompts_may_have_more_chunks_than_negative_ones() {
    let request = Request {
        prompt: "a (large:1.3) red circle on a blue background, ".repeat(12),
        negative_prompt: Some("square".to_owned()),
        batch: 2,
        ..short()
    };
    pictures_agree(demo_model(), &request);
}

#[test]
fn models_that_are_told_more_than_the_prompt_agree() {
    for family in ["sdxl", "sdxl-lcm", "sd15-lcm"] {
        let (_dir, model) = synthetic(family);
        let request = Request {
            width: Some(64),
            height: Some(72),
            ..short()
        };
        pictures_agree(&model, &request);
    }
}

#[test]
fn fewer_bits_are_close_to_single_precision() {
    for (compute, error) in [
        (Compute::Bf16, 1e-4..2e-2),
        (Compute::I16, 1e-5..5e-3),
        (Compute::I8, 1e-3..5e-2),
    ] {
        let Some(numbers) = compute.on(Isa::detect()) else {
            let request = Request { compute, ..short() };
            assert_eq!(request.check().unwrap_err().field(), Some("compute"));
            continue;
        };
        let reference = Reference::open(&repository("tests/golden/families.safetensors"));
        let (_dir, model) = synthetic("sd15");
        let manifest = fs::read_to_string(model.join("sdrt.json")).unwrap();
        let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
        let names = ["sample", "timestep", "encoder_hidden_states"];
        let inputs = names.map(|name| (name, reference.get(&format!("sd15.unet.{name}"))));
        let inputs: Vec<_> = inputs
            .iter()
            .map(|(name, x)| (*name, Input::F32(x.view())))
            .collect();
        let key = Key::new(&model, "unet", &[]).variant("native.onnx");
        let mut unet = engine()
            .lease(&key.compute(numbers), Some(&manifest), &Cancel::new())
            .unwrap();
        let found: ArrayD<f32> = unet
            .run(&inputs, &["out_sample"], &Cancel::new())
            .unwrap()
            .remove(0);
        let distance = relative_l2(&found, &reference.get("sd15.unet.out_sample"));
        assert!(
            error.contains(&distance),
            "{compute:?}: relative L2 {distance:.2e}"
        );
    }
}

/// A copy of the demo model whose manifest was changed.
fn changed(change: impl Fn(String) -> String) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    copy_dir(demo_model(), &path);
    let manifest = path.join("sdrt.json");
    let text = change(fs::read_to_string(&manifest).unwrap());
    fs::write(&manifest, text).unwrap();
    (dir, path)
}

#[test]
fn operators_of_another_version_are_not_run_and_a_note_says_so() {
    let (_dir, path) = changed(|text| text.replace("sdrt:1", "sdrt:9999"));
    let made = make(&path, &short(), None).unwrap();
    let said = |note: &String| note.contains("another version");
    assert_eq!(
        made.notes.iter().any(said),
        runs_native_graphs(),
        "{:?}",
        made.notes
    );
    let asked = Request {
        graph: Dialect::Native,
        ..short()
    };
    let error = make(&path, &asked, None).unwrap_err();
    let native = PipelineError::Engine(EngineError::NoNativeGraph { reason: "" });
    assert_eq!(
        std::mem::discriminant(&error),
        std::mem::discriminant(&native),
        "{error}"
    );
    assert!(error.hint().is_some());
}

#[test]
fn parts_that_the_manifest_does_not_list_are_not_opened() {
    let foreign = "\"../../vae_decoder/model.onnx\"";
    let (_dir, path) =
        changed(|text| text.replace("\"native.time.onnx\"\n", &format!("{foreign}\n")));
    let asked = Request {
        graph: Dialect::Native,
        ..short()
    };
    assert!(make(&path, &asked, None).is_err());
    let (_dir, path) = changed(|text| {
        let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let files = &mut manifest["components"]["unet"]["files"];
        files.as_object_mut().unwrap().remove("native.prompt.onnx");
        manifest.to_string()
    });
    if runs_native_graphs() {
        let error = make(&path, &short(), None).unwrap_err().to_string();
        assert!(
            error.contains("native.prompt.onnx") && error.contains("list"),
            "{error}"
        );
    }
}

#[test]
fn the_fastest_numbers_of_a_portable_graph_are_single_precision() {
    let request = |graph, compute| Request {
        graph,
        compute,
        ..short()
    };
    let exact = make(
        demo_model(),
        &request(Dialect::Portable, Compute::F32),
        None,
    )
    .unwrap();
    let auto = make(
        demo_model(),
        &request(Dialect::Portable, Compute::Auto),
        None,
    )
    .unwrap();
    assert!(exact.pictures == auto.pictures);
    assert!(!auto.infotext().contains("Compute"));
    let both = request(Dialect::Portable, Compute::Bf16);
    assert_eq!(both.check().unwrap_err().field(), Some("compute"));
}

#[test]
fn native_files_that_are_damaged_or_missing_are_named() {
    for file in ["native.onnx", "native.prompt.onnx", "native.time.onnx"] {
        let (_dir, path) = changed(|text| text);
        let graph = path.join("unet").join(file);
        let bytes = fs::read(&graph).unwrap();
        fs::write(&graph, &bytes[..bytes.len() / 2]).unwrap();
        let error = make(&path, &short(), None).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("bytes"), "{error}");
        fs::remove_file(&graph).unwrap();
        let error = make(&path, &short(), None).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("missing"), "{error}");
    }
}

/// Kernels read whole rows of a residual, wherever it ends.
#[test]
fn a_residual_of_broken_rows_is_refused() {
    let value = |name: &str, dims: &[i64]| {
        let dim = |&n: &i64| DimensionProto {
            value: Some(DimensionValue::Fixed(n)),
        };
        let shape = TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        };
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: data_type::FLOAT,
                    shape: Some(shape),
                }),
            }),
        }
    };
    let run = |residual: &[usize]| {
        let flag = |name: &str| AttributeProto {
            name: name.to_owned(),
            i: Some(1),
            r#type: attribute_type::INT,
            ..AttributeProto::default()
        };
        let names = ["x", "weight", "residual"];
        let node = NodeProto {
            input: names.map(str::to_owned).to_vec(),
            output: vec!["y".to_owned()],
            name: "linear".to_owned(),
            op_type: "Linear".to_owned(),
            attribute: vec![flag("transposed"), flag("residual")],
            domain: custom::DOMAIN.to_owned(),
        };
        let shapes = [&[2, 2][..], &[2, 6], residual];
        let tensors = shapes.map(ArrayD::<f32>::ones);
        let declared = |(name, x): (&str, &ArrayD<f32>)| {
            let dims: Vec<i64> = x.shape().iter().map(|&n| n as i64).collect();
            value(name, &dims)
        };
        let domain = |domain: &str, version| OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
        };
        let graph = ModelProto {
            ir_version: 8,
            graph: Some(GraphProto {
                node: vec![node],
                name: "one layer".to_owned(),
                input: names.into_iter().zip(&tensors).map(declared).collect(),
                output: vec![value("y", &[2, 6])],
                ..GraphProto::default()
            }),
            opset_import: vec![
                domain("", 17),
                domain(custom::DOMAIN, *custom::VERSIONS.start()),
            ],
            ..ModelProto::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("layer");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("native.onnx"), graph.encode_to_vec()).unwrap();
        let key = Key::new(dir.path(), "layer", &[]).variant("native.onnx");
        let mut network = engine().lease(&key, None, &Cancel::new()).unwrap();
        let inputs = names.into_iter().zip(&tensors);
        let inputs: Vec<_> = inputs.map(|(n, x)| (n, Input::F32(x.view()))).collect();
        network.run(&inputs, &["y"], &Cancel::new())
    };
    for residual in [&[1, 6][..], &[2, 6]] {
        let y = run(residual).unwrap().remove(0);
        assert!(y.iter().all(|&y| y == 3.0), "{y}");
    }
    let error = run(&[1, 4]).unwrap_err().to_string();
    assert!(error.contains("linear"), "{error}");
}
