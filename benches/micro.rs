//! Small parts, timed with criterion: `cargo bench --bench micro`.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safetensors::tensor::{Dtype as Stored, TensorView};
use sd_converter::checkpoint::{Dtype, SafetensorsFile, TensorSource, count_non_finite};
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::Model;
use sd_converter::progress::Unwatched;
use sd_converter::synth::{Kind, Synth};
use sd_converter::weights::Weights;
use sd_kernels::{
    Activation, Attention, Compute, Conv, Floats, GroupNorm, Isa, LayerNorm, Linear, Order,
    Scratch, Serial, attention, conv, group_norm, layer_norm, linear,
};
use sd_models::arch::unet;
use sd_models::diffusers::{self, Pipeline};
use sd_models::keys::Component;
use sd_models::keys::layout::Layout;
use sd_models::presets::Preset;
use sd_runtime::denoise::{DenoiseError, Denoiser, Latents, Level};
use sd_runtime::engine::Cancel;
use sd_runtime::noise::Rng;
use sd_runtime::pipeline::{Destination, Format, Picture};
use sd_runtime::profile::{A1111, Trained};
use sd_runtime::sampler::{self, Run};
use sd_runtime::text::ClipTokenizer;
use sd_runtime::text::prompt::parse_attention;
use sdrt_tests::demo_model;

/// Numbers of SD 1.5's latents at 512x512.
const LATENTS: [usize; 4] = [1, 4, 64, 64];

/// Numbers between -0.5 and 0.5, always the same.
fn numbers(count: usize) -> Vec<f32> {
    let number = |i: usize| (i * 37 % 101) as f32 / 100.0 - 0.5;
    (0..count).map(number).collect()
}

fn noise(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise");
    let count = LATENTS.iter().product();
    group.throughput(Throughput::Elements(count as u64));
    for rng in Rng::ALL {
        let mut out = vec![0.0; count];
        group.bench_function(rng.name(), |b| {
            b.iter(|| rng.source(black_box(1)).normal(&mut out));
        });
    }
    group.finish();
}

fn text(c: &mut Criterion) {
    let prompt = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))). ".repeat(20);
    c.bench_function("prompt of 1000 characters", |b| {
        b.iter(|| parse_attention(black_box(&prompt)));
    });
    let folder = demo_model().join("tokenizer");
    let tokenizer = ClipTokenizer::from_dir(&folder).expect("the demo model has one");
    c.bench_function("tokens of 1000 characters", |b| {
        b.iter(|| tokenizer.encode(black_box(&prompt)));
    });
}

/// A denoiser that takes no time worth speaking of: what is left is the solver's.
struct Half;

impl Denoiser for Half {
    fn denoise(&mut self, x: &Latents, _: Level) -> Result<Latents, DenoiseError> {
        Ok(x * 0.5)
    }
}

struct Quiet;

impl Run for Quiet {
    fn noise(&mut self, noise: &mut Latents) {
        noise.fill(0.5);
    }

    fn brownian(&mut self, _: f64, _: f64, noise: &mut Latents) {
        noise.fill(0.5);
    }

    fn step(&mut self, _: usize, _: &Latents) -> Result<(), DenoiseError> {
        Ok(())
    }
}

fn samplers(c: &mut Criterion) {
    let config = diffusers::scheduler(Pipeline::SD1);
    let trained = Trained {
        config: &config,
        xl: false,
    };
    let mut group = c.benchmark_group("20 steps without a model");
    let count = LATENTS.iter().product();
    let x = Latents::from_shape_vec(LATENTS, numbers(count)).expect("as many numbers");
    for name in ["Euler", "Euler a", "DPM++ 2M", "DPM++ SDE", "UniPC", "DDIM"] {
        let (method, _) = sampler::parse(name).expect("a known solver");
        let spread = (A1111.spreads)(method).first().copied();
        let schedule = (A1111.schedule)(method, spread, 20, &trained).expect("a usual schedule");
        let options = sampler::Options::default();
        group.bench_function(name, |b| {
            b.iter(|| (method.solve)(&mut Half, x.clone(), &schedule, &options, &mut Quiet));
        });
    }
    group.finish();
}

fn png(c: &mut Criterion) {
    let (width, height) = (512, 512);
    let smooth = |i: usize| ((i / 3 % width) / 2 + (i / 3 / width) / 4 + i % 3 * 20) as u8;
    let picture = Picture {
        width,
        height,
        rgb: (0..3 * width * height).map(smooth).collect(),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let to = Destination::find(&folder.path().join("picture.png")).expect("it can be written");
    c.bench_function("PNG of 512x512, with its file", |b| {
        b.iter(|| {
            let written = picture.write(&to, Format::Png, "a lighthouse", &Cancel::new());
            written.expect("the folder can be written");
        });
    });
}

/// A tiny checkpoint, and a LoRA of rank 16 for all projections of its attention.
fn checkpoint_and_lora(folder: &Path) -> (PathBuf, PathBuf) {
    let checkpoint = folder.join("checkpoint.safetensors");
    let synth = Synth {
        kind: Kind::named("sd15").expect("a known family"),
        tiny: true,
        seed: 0,
    };
    synth
        .write(&checkpoint, false, &Unwatched)
        .expect("the folder can be written");
    let model = Weights::open(&checkpoint, None).expect("a checkpoint");
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for ((component, name), entry) in model.entries() {
        let projects = [".to_q.weight", ".to_k.weight", ".to_v.weight"];
        if *component == Component::UNet && projects.iter().any(|end| name.ends_with(end)) {
            let module = name.trim_end_matches(".weight").replace('.', "_");
            let (rows, columns) = (entry.shape[0], entry.shape[1]);
            let tensor = |part: &str| format!("lora_unet_{module}.lora_{part}.weight");
            tensors.push((tensor("down"), vec![16, columns]));
            tensors.push((tensor("up"), vec![rows, 16]));
        }
    }
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            let all = numbers(shape.iter().product());
            all.into_iter().flat_map(f32::to_le_bytes).collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        let view = TensorView::new(Stored::F32, shape.clone(), data);
        (name, view.expect("as many bytes as the shape has"))
    });
    let lora = folder.join("lora.safetensors");
    safetensors::serialize_to_file(views, None, &lora).expect("the folder can be written");
    (checkpoint, lora)
}

fn conversion(c: &mut Criterion) {
    let weights = vec![0x3Cu8; 1 << 24];
    let mut group = c.benchmark_group("conversion");
    group.throughput(Throughput::Bytes(weights.len() as u64));
    group.bench_function("search for NaN", |b| {
        b.iter(|| count_non_finite(Dtype::F16, black_box(&weights)));
    });
    group.finish();
    let cfg = Preset::named("sd15").expect("a preset").unet(false);
    c.bench_function("graph of SD 1.5's UNet", |b| {
        b.iter(|| unet(black_box(&cfg)));
    });

    let folder = tempfile::tempdir().expect("a temporary folder");
    let (checkpoint, lora) = checkpoint_and_lora(folder.path());
    let file = SafetensorsFile::open(&checkpoint).expect("a checkpoint");
    let names: BTreeSet<&str> = file.tensors().keys().map(String::as_str).collect();
    c.bench_function("canonical names of SD 1.5's tensors", |b| {
        b.iter(|| {
            let layout = Layout::detect(black_box(&names));
            let keys = names.iter().map(|name| layout.classify(name));
            keys.collect::<Vec<_>>()
        });
    });
    let open = || {
        let base = Box::new(Weights::open(&checkpoint, None).expect("a checkpoint"));
        let specs = [LoraSpec::new(&lora, 0.8)];
        WithLoras::new(base, &specs, Options::default()).expect("a LoRA that fits")
    };
    c.bench_function("fit a LoRA of rank 16 to a tiny model", |b| b.iter(open));
    let model = open();
    let is_changed = |name: &str| name.contains("attn1.to_q") || name.contains("attn2.to_v");
    let changed: Vec<_> = model
        .entries()
        .keys()
        .filter(|(_, name)| is_changed(name))
        .collect();
    c.bench_function("bake that LoRA into 32 weights", |b| {
        b.iter(|| {
            for name in &changed {
                black_box(model.read(name).expect("an entry of the model"));
            }
        });
    });
}

/// Kernels at shapes of SD 1.5's UNet for 512x512 pixels, on one thread, in every kind of number that this processor multiplies.
fn kernels(c: &mut Criterion) {
    let isa = Isa::detect();
    let (side, channels) = (32, 640);
    let pixels = side * side;
    let x = numbers(pixels * channels);
    let weight = numbers(channels * channels * 9);
    let (one, zero) = (vec![1.0; channels], vec![0.0; channels]);
    let mut y = vec![0.0; pixels * channels];
    let mut scratch = Scratch::new();
    let mut group = c.benchmark_group("kernels");
    let kinds = [
        (Compute::F32, true),
        (Compute::Bf16, isa.multiplies_bf16()),
        (Compute::Int16, isa.multiplies_int16()),
        (Compute::Int8, isa.multiplies_int8()),
    ];
    for (compute, _) in kinds.into_iter().filter(|(_, is_there)| *is_there) {
        let mut run = sd_kernels::Run {
            isa,
            compute,
            pool: &Serial,
            scratch: &mut scratch,
        };
        let kind = compute.name();
        let operations = |count: usize| Throughput::Elements(2 * count as u64);
        group.throughput(operations(pixels * channels * channels * 9));
        let layer = Conv {
            weight: Floats::F32(&weight),
            bias: Some(&zero),
            inputs: channels,
            outputs: channels,
            kernel: 3,
            stride: 1,
            pads: [1; 4],
            activation: Activation::None,
            enlarge: None,
        };
        group.bench_function(
            BenchmarkId::new("conv 3x3, 640 channels, 32x32", kind),
            |b| {
                b.iter(|| conv(&mut run, &layer, &x, (1, side, side), None, None, &mut y));
            },
        );
        group.throughput(operations(pixels * channels * channels));
        let layer = Linear {
            weight: Floats::F32(&weight[..channels * channels]),
            order: Order::OutputsFirst,
            inputs: channels,
            outputs: channels,
            bias: Some(&zero),
            activation: Activation::None,
            geglu: false,
        };
        group.bench_function(BenchmarkId::new("linear 1024x640x640", kind), |b| {
            b.iter(|| linear(&mut run, &layer, &x, None, &mut y));
        });
        group.throughput(operations(2 * pixels * pixels * channels));
        let layer = Attention {
            batch_q: 1,
            batch_kv: 1,
            queries: pixels,
            keys: pixels,
            heads: 8,
            width: channels / 8,
        };
        group.bench_function(
            BenchmarkId::new("attention 1024, 8 heads of 80", kind),
            |b| {
                b.iter(|| attention(&mut run, &layer, &x, &x, &x, &mut y));
            },
        );
    }
    let mut run = sd_kernels::Run {
        isa,
        compute: Compute::F32,
        pool: &Serial,
        scratch: &mut scratch,
    };
    group.throughput(Throughput::Elements((pixels * channels) as u64));
    let layer = GroupNorm {
        groups: 32,
        epsilon: 1e-5,
        weight: &one,
        bias: &zero,
        activation: Activation::Silu,
    };
    group.bench_function("group norm with SiLU, 640 channels, 32x32", |b| {
        b.iter(|| group_norm(&mut run, &layer, 1, &x, &mut y));
    });
    let layer = LayerNorm {
        epsilon: 1e-5,
        weight: &one,
        bias: &zero,
    };
    group.bench_function("layer norm, 1024x640", |b| {
        b.iter(|| layer_norm(&mut run, &layer, &x, &mut y));
    });
    group.finish();
}

/// A minute and a half for everything: figures of less than a second each, over as many runs as fit.
fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
}

criterion_group! {
    name = benches;
    config = quick();
    targets = noise, text, samplers, png, conversion, kernels
}
criterion_main!(benches);
