//! Small parts, timed with criterion: `cargo bench`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sd_converter::checkpoint::{Dtype, count_non_finite};
use sd_models::arch::unet;
use sd_models::presets::Preset;
use sd_runtime::noise::Rng;
use sd_runtime::text::prompt::parse_attention;

/// Numbers of SD 1.5's latents at 512x512.
const LATENTS: usize = 4 * 64 * 64;

fn noise(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise");
    group.throughput(Throughput::Elements(LATENTS as u64));
    for rng in Rng::ALL {
        let mut out = vec![0.0; LATENTS];
        group.bench_function(rng.name(), |b| {
            b.iter(|| rng.source(black_box(1)).normal(&mut out));
        });
    }
    group.finish();
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
}

fn prompts(c: &mut Criterion) {
    let prompt = "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))). ".repeat(20);
    c.bench_function("prompt of 1000 characters", |b| {
        b.iter(|| parse_attention(black_box(&prompt)));
    });
}

criterion_group!(benches, noise, conversion, prompts);
criterion_main!(benches);
