//! Native graphs and portable ones of the same model directories, at full width, where tiny models would hide errors that add up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::Path;

use ndarray::ArrayD;
use prost::Message;
use sd_converter::onnx::proto::{
    DimensionValue, GraphProto, ModelProto, ValueInfoProto, data_type,
};
use sd_models::manifest::Manifest;
use sd_runtime::engine::{Cancel, Input, Key};
use sd_runtime::noise::Rng;
use sdrt_tests::{engine, relative_l2};

/// Single precision adds up in another order, over some hundred layers; a wrong layer is 1e-3 and more.
const TOLERANCE: f64 = 1e-4;

/// Width and height in pixels, and how many pictures: one that fills all tiles, and one that fills few.
const SIZES: [([usize; 2], usize); 2] = [([512, 512], 1), ([520, 328], 2)];

/// A tensor that a graph is given.
enum Tensor {
    F32(ArrayD<f32>),
    Ids(ArrayD<i64>),
}

/// `SDRT_MODELS`: directories that `sdconvert build` made, with colons between them. `sdconvert synth` makes checkpoints of every
/// family.
#[test]
#[ignore = "needs model directories of full width; see the comment"]
fn both_dialects_agree_at_full_width() {
    let models = std::env::var_os("SDRT_MODELS").expect("SDRT_MODELS names directories");
    for model in std::env::split_paths(&models) {
        let manifest = fs::read_to_string(model.join("sdrt.json")).unwrap();
        let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
        for (component, recorded) in &manifest.components {
            let graphs = ["model.onnx", "controlnet.onnx"].into_iter();
            for graph in graphs.filter(|&graph| recorded.variants.contains_key(graph)) {
                agree(&model, &manifest, component, graph);
            }
        }
    }
}

/// Asserts that a portable graph and the native one of the same layers give the same numbers.
fn agree(model: &Path, manifest: &Manifest, component: &str, portable: &str) {
    let graph = fs::read(model.join(component).join(portable)).unwrap();
    let graph = ModelProto::decode(&*graph).unwrap().graph.unwrap();
    let native = match portable {
        "model.onnx" => "native.onnx".to_owned(),
        other => format!("native.{other}"),
    };
    let outputs: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let sizes = match component.starts_with("text") {
        true => &SIZES[..1],
        false => &SIZES,
    };
    let results = [portable, &native].map(|file| {
        let key = Key::new(model, component, &[]).variant(file);
        let network = engine().lease(&key, Some(manifest), &Cancel::new());
        let mut network = network.unwrap();
        let run = |&size: &([usize; 2], usize)| {
            let tensors = graph.input.iter().map(|input| {
                let name = input.name.as_str();
                (name, tensor(input, &graph, component, size))
            });
            let tensors: Vec<(&str, Tensor)> = tensors.collect();
            let inputs: Vec<(&str, Input<'_>)> = tensors
                .iter()
                .map(|(name, tensor)| match tensor {
                    Tensor::F32(x) => (*name, Input::F32(x.view())),
                    Tensor::Ids(x) => (*name, Input::Ids(x.view())),
                })
                .collect();
            network.run(&inputs, &outputs, &Cancel::new()).unwrap()
        };
        sizes.iter().map(run).collect::<Vec<_>>()
    });
    let [expected, found] = results;
    for ((size, found), expected) in sizes.iter().zip(found).zip(expected) {
        let errors = found.iter().zip(&expected).map(|(a, b)| relative_l2(a, b));
        let error = errors.fold(0.0, f64::max);
        let what = format!(
            "{}: {component}, {native} at {size:?}: relative L2 {error:.2e}",
            model.display()
        );
        assert!(error <= TOLERANCE, "{what}");
        #[expect(clippy::print_stdout, reason = "figures for whoever runs this by hand")]
        {
            println!("{what}");
        }
    }
}

/// What a graph's input is given for pictures of this width and height.
fn tensor(
    input: &ValueInfoProto,
    graph: &GraphProto,
    component: &str,
    (size, batch): ([usize; 2], usize),
) -> Tensor {
    let name = input.name.as_str();
    let of_type = input.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap();
    let [mut width, mut height] = size;
    if component != "vae_encoder" && name != "controlnet_cond" {
        [width, height] = [width / 8, height / 8];
    }
    if let Some(halvings) = halvings(name, graph) {
        [width, height] = [
            width.div_ceil(1 << halvings),
            height.div_ceil(1 << halvings),
        ];
    }
    let mut spatial = [height, width].into_iter();
    let dims = of_type.shape.as_ref().unwrap().dim.iter();
    let shape: Vec<usize> = dims
        .map(|dim| match &dim.value {
            Some(DimensionValue::Fixed(n)) if *n > 0 => *n as usize,
            Some(DimensionValue::Symbol(name)) if name == "batch" => batch,
            Some(DimensionValue::Symbol(name)) if name == "sequence" => 77,
            _ => spatial.next().unwrap(),
        })
        .collect();
    let count = shape.iter().product();
    if of_type.elem_type == data_type::INT64 {
        let ids = (0..count as i64).map(|i| (i * 7919) % 49_000).collect();
        return Tensor::Ids(ArrayD::from_shape_vec(shape, ids).unwrap());
    }
    let mut values = vec![0.0; count];
    match name {
        "timestep" => values.fill(501.0),
        "time_ids" => values.fill(512.0),
        "conditioning_scale" => values.fill(0.75),
        _ => Rng::TorchCpu.source(name.len() as u64).normal(&mut values),
    }
    Tensor::F32(ArrayD::from_shape_vec(shape, values).unwrap())
}

/// How often the latents of a ControlNet's residual were halved, if an input is one. There are three residuals for each level, and
/// that of the middle is as large as the last ones.
fn halvings(input: &str, graph: &GraphProto) -> Option<usize> {
    const DOWN: &str = "down_block_additional_residuals.";
    if input == "mid_block_additional_residual" {
        let down = |input: &&ValueInfoProto| input.name.starts_with(DOWN);
        return Some(graph.input.iter().filter(down).count() / 3 - 1);
    }
    let number: usize = input.strip_prefix(DOWN)?.parse().ok()?;
    Some(number / 3)
}
