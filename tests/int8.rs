//! Models whose weights are whole numbers of 8 bits: both dialects compute the same from them, and pictures are much like those of
//! the published weights. Portable graphs that multiply whole numbers are a little farther off.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;

use ndarray::ArrayD;
use sd_converter::build::{Precision, Ranges};
use sd_converter::checkpoint::SafetensorsFile;
use sd_converter::onnx::{Stored, Weight, WeightReader, write_model};
use sd_kernels::Isa;
use sd_models::demo;
use sd_models::graph::{Conv, DType, GraphBuilder, Param, Value, Whole};
use sd_models::manifest::Manifest;
use sd_runtime::engine::{Cancel, Compute, Dialect, Input, Key};
use sd_runtime::pipeline::infotext::Settings;
use sd_runtime::pipeline::{ModelDir, Models, Request};
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

/// A call of the UNet whose portable graph multiplies whole numbers: activations of 8 bits with one range for a whole tensor are off
/// by half a percent, which random weights amplify.
#[test]
fn portable_products_of_whole_numbers() {
    let reference = Reference::open(&repository("tests/golden/families.safetensors"));
    let families = ["sd15", "sdxl"];
    let cases = families.map(|family| [Ranges::Dynamic, Ranges::Static].map(|r| (family, r)));
    for (family, ranges) in cases.concat() {
        let (_dir, model) = synthetic_as(family, Precision::Int8Portable(ranges));
        let inputs = reference.unet_inputs(family);
        let inputs: Vec<_> = inputs
            .iter()
            .map(|(name, x)| (name.as_str(), Input::F32(x.view())))
            .collect();
        let of = |graph| {
            run(
                &model,
                ("unet", graph),
                Compute::F32,
                &inputs,
                &["out_sample"],
            )
        };
        let (native, portable) = (of("native.onnx").remove(0), of("model.onnx").remove(0));
        let distance = relative_l2(&portable, &native);
        assert!(
            (1e-3..1.5e-1).contains(&distance),
            "{family} {ranges:?}: {distance:.2e}"
        );
    }
}

/// A convolution and a linear layer of whole numbers, written by hand.
#[test]
fn products_are_those_of_the_formulas() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("unet");
    std::fs::create_dir(&folder).unwrap();
    let mut g = GraphBuilder::new("declared");
    for (name, conv) in CONVOLUTIONS {
        let weight = [OUTPUTS, CHANNELS, conv.kernel, conv.kernel];
        g.scope(name, |g| g.param("weight", weight)).unwrap();
    }
    let matrix = [OUTPUTS, CHANNELS];
    g.scope("linear", |g| g.param_transposed("weight", matrix))
        .unwrap();
    let declared = g.finish();
    let mut g = GraphBuilder::new("products");
    let shape = ["batch".into(), CHANNELS.into(), 5.into(), 6.into()];
    let x = g.input("x", DType::F32, shape).unwrap();
    for param in &declared.params {
        let name = param.name.trim_end_matches(".weight");
        let weight = g.param_like(param, DType::Stored).unwrap();
        let scales = g.scales_of(param).unwrap();
        let conv = CONVOLUTIONS.iter().find(|(found, _)| *found == name);
        let y = match conv {
            Some((_, conv)) => {
                let padded = g.pad_for(x, *conv).unwrap();
                let whole = channels_last(&mut g, padded);
                let unfolded = g.unfold(whole, *conv).unwrap();
                let matrix = g.unfolded_weight(weight).unwrap();
                g.matmul_integer(unfolded, matrix, scales).unwrap()
            }
            None => {
                let whole = channels_last(&mut g, x);
                g.matmul_integer(whole, weight, scales).unwrap()
            }
        };
        g.output(name, y).unwrap();
    }
    let graph = g.finish();
    write_model(
        &declared.params,
        &[("model.onnx", &graph)],
        &Numbers,
        &folder,
    )
    .unwrap();

    let x = ArrayD::from_shape_fn(vec![2, CHANNELS, 5, 6], |at| {
        let i = ((at[0] * CHANNELS + at[1]) * 5 + at[2]) * 6 + at[3];
        ((i * 37 % 101) as f32 / 30.0 - 1.2).powi(3)
    });
    let key = Key::new(dir.path(), "unet", &[]).variant("model.onnx");
    let mut network = engine().lease(&key, None, &Cancel::new()).unwrap();
    for param in &declared.params {
        let name = param.name.trim_end_matches(".weight");
        let inputs = [("x", Input::F32(x.view()))];
        let found = network.run(&inputs, &[name], &Cancel::new()).unwrap();
        let conv = CONVOLUTIONS.iter().find(|(found, _)| *found == name);
        let expected = by_hand(&x, conv.map_or(Conv::K1, |(_, conv)| *conv));
        let distance = relative_l2(&found[0], &expected);
        assert!(distance < 1e-6, "{name}: {distance:.2e}");
    }
}

const CHANNELS: usize = 5;
const OUTPUTS: usize = 7;
const CONVOLUTIONS: [(&str, Conv); 3] = [
    ("conv", Conv::K3),
    ("half", Conv::K3_STRIDE_2),
    ("pixel", Conv::K1),
];

/// A picture as whole numbers, channels last.
fn channels_last(g: &mut GraphBuilder, x: Value) -> Whole {
    let whole = g.dynamic_quantize(x);
    let numbers = g.transpose(whole.numbers, [0, 2, 3, 1]).unwrap();
    Whole { numbers, ..whole }
}

/// Number `i` of a weight, and the scale of output `o`.
fn number(i: usize) -> i8 {
    (i * 89 % 255) as u8 as i8
}

fn scale(o: usize) -> f32 {
    0.01 * (o + 1) as f32
}

struct Numbers;

impl WeightReader for Numbers {
    type Error = String;

    fn read(&self, param: &Param) -> Result<Weight<'_>, String> {
        let count: usize = param.shape.iter().product();
        let row = count / OUTPUTS;
        let at = |i: usize| match param.transposed {
            true => i % OUTPUTS * row + i / OUTPUTS,
            false => i,
        };
        let bytes: Vec<u8> = (0..count).map(|i| number(at(i)) as u8).collect();
        Ok(Weight {
            stored: Stored::I8,
            bytes: bytes.into(),
            scales: Some((0..OUTPUTS).map(scale).collect()),
        })
    }
}

/// ONNX's `DynamicQuantizeLinear`, exact sums, and scales.
fn by_hand(x: &ArrayD<f32>, conv: Conv) -> ArrayD<f32> {
    let least = x.iter().copied().fold(0.0, f32::min);
    let most = x.iter().copied().fold(0.0, f32::max);
    let step = (most - least) / 255.0;
    let zero = (-least / step).round_ties_even();
    let whole = x
        .mapv(|x| (x / step).round_ties_even() + zero)
        .mapv(|q| q.clamp(0.0, 255.0) - zero);
    let sides = |n: usize, axis: usize| {
        (n + conv.pads[axis] + conv.pads[axis + 2] - conv.kernel) / conv.stride + 1
    };
    let shape = [
        x.shape()[0],
        sides(x.shape()[2], 0),
        sides(x.shape()[3], 1),
        OUTPUTS,
    ];
    ArrayD::from_shape_fn(shape.to_vec(), |at| {
        let mut sum = 0.0f64;
        for (row, column) in (0..conv.kernel).flat_map(|r| (0..conv.kernel).map(move |c| (r, c))) {
            let [y, x] = [(at[1], row), (at[2], column)]
                .map(|(at, place)| (at * conv.stride + place).wrapping_sub(conv.pads[0]));
            for channel in 0..CHANNELS {
                let i = ((at[3] * CHANNELS + channel) * conv.kernel + row) * conv.kernel + column;
                let pixel = whole.get([at[0], channel, y, x]).copied().unwrap_or(0.0);
                sum += f64::from(pixel) * f64::from(number(i));
            }
        }
        (sum * f64::from(step) * f64::from(scale(at[3]))) as f32
    })
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
    let demo = picture(demo_model(), Dialect::Auto);
    let published = psnr(&native.rgb, &demo.rgb);
    assert!(published >= 40.0, "{published:.1} dB");

    for ranges in [Ranges::Dynamic, Ranges::Static] {
        let file = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
        let (_dir, model) = converted_as(file, Precision::Int8Portable(ranges));
        let same = picture(&model, Dialect::Auto);
        assert!(same.rgb == native.rgb, "its native graphs are the same");
        let products = psnr(&picture(&model, Dialect::Portable).rgb, &demo.rgb);
        assert!(products >= 35.0, "{ranges:?}: {products:.1} dB");
    }
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
        made.infotext().contains(", Weights: int8")
    };
    assert!(says(&whole) && !says(demo_model()));
}

/// Directories with the same weights may differ in what their portable graphs multiply. Pictures of those say which it was.
#[test]
fn forms_of_portable_graphs_are_told_apart() {
    let forms = [
        (Precision::Int8, "f32"),
        (Precision::Int8Portable(Ranges::Dynamic), "int8 dynamic"),
        (Precision::Int8Portable(Ranges::Static), "int8 norms"),
    ];
    let built = forms.map(|(precision, form)| {
        let file = SafetensorsFile::from_static(demo::FILE_NAME, demo::CHECKPOINT).unwrap();
        let (dir, path) = converted_as(file, precision);
        let models = Models::one(ModelDir::open(&path).unwrap());
        assert_eq!(models.base.portable_form().as_deref(), Some(form));
        (dir, path, models)
    });
    let request = |graph| Request {
        steps: Some(1),
        graph,
        ..circle()
    };
    let text = |model: &Path, graph| make(model, &request(graph), None).unwrap().infotext();
    for ((_, path, models), (_, form)) in built.iter().zip(forms) {
        assert_eq!(models.base.weights_hash(), built[0].2.base.weights_hash());
        let text = text(path, Dialect::Portable);
        assert!(
            text.contains(&format!("Graph: portable, Portable graph: {form},")),
            "{text}"
        );
        let settings = Settings::read(&text).unwrap();
        assert_eq!(settings.not_carried, []);
        for (_, _, other) in &built {
            let told = settings.wanted.not_carried(other);
            let told: Vec<&str> = told.iter().map(|it| &*it.field).collect();
            let is_same = other.base.portable_form() == models.base.portable_form();
            assert_eq!(
                told,
                if is_same {
                    vec![]
                } else {
                    vec!["Portable graph"]
                }
            );
            assert_eq!(settings.wanted.has_form(&other.base), is_same);
        }
    }
    // Float weights come in one form, and native graphs, too.
    assert!(!text(demo_model(), Dialect::Portable).contains("Portable graph"));
    if Isa::detect() >= Isa::Avx2 {
        assert!(!text(&built[1].1, Dialect::Auto).contains("Portable graph"));
    }
}
