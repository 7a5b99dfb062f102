//! Times kernels at Stable Diffusion's shapes: best and median of several runs, by the threads' own CPU time.
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use half::f16;
use sd_kernels::{
    Activation, Attention, Compute, Conv, Floats, GroupNorm, Isa, LayerNorm, Linear, Order, Pool,
    Run, Scratch, attention, concat, conv, group_norm, layer_norm, linear,
};

static CPU: AtomicU64 = AtomicU64::new(0);

fn thread_time() -> u64 {
    #[repr(C)]
    struct Ts(i64, i64);
    unsafe extern "C" {
        fn clock_gettime(id: i32, t: *mut Ts) -> i32;
    }
    let mut t = Ts(0, 0);
    unsafe { clock_gettime(3, &raw mut t) };
    t.0 as u64 * 1_000_000_000 + t.1 as u64
}

struct Timed(usize);
impl Pool for Timed {
    fn workers(&self) -> usize {
        self.0
    }
    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        let one = |i| {
            let start = thread_time();
            work(i);
            CPU.fetch_add(thread_time() - start, Ordering::Relaxed);
        };
        std::thread::scope(|s| {
            for i in 1..self.0 {
                s.spawn(move || one(i));
            }
            one(0);
        });
    }
}

fn time(name: &str, ops: f64, isa: Isa, f: impl FnMut(&mut Run<'_>)) {
    rate(name, (ops, "Gop/s"), isa, f);
}

fn rate(name: &str, (amount, unit): (f64, &str), isa: Isa, mut f: impl FnMut(&mut Run<'_>)) {
    let pool = Timed(2);
    let mut scratch = Scratch::new();
    let mut cpu = vec![];
    let mut wall = vec![];
    for i in 0..9 {
        let mut run = Run {
            isa,
            compute: Compute::F32,
            pool: &pool,
            scratch: &mut scratch,
        };
        let (c, w) = (CPU.load(Ordering::SeqCst), Instant::now());
        f(&mut run);
        if i > 0 {
            cpu.push((CPU.load(Ordering::SeqCst) - c) as f64 * 1e-9 / 2.0);
            wall.push(w.elapsed().as_secs_f64());
        }
    }
    cpu.sort_by(f64::total_cmp);
    wall.sort_by(f64::total_cmp);
    let (best, median) = (cpu[0], cpu[cpu.len() / 2]);
    println!(
        "{name:34} {isa:12} {:8.2} ms  {:6.1} / {:6.1} {unit}   wall {:8.2} ms, scratch {:.1} MB",
        best * 1e3,
        amount / best * 1e-9,
        amount / median * 1e-9,
        wall[0] * 1e3,
        scratch.bytes() as f64 * 1e-6
    );
}

fn noise(n: usize) -> Vec<f32> {
    let mut s = 88_172_645_463_325_252_u64;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let level = std::env::args().nth(2);
    for isa in Isa::available().skip(1) {
        if level.as_deref().is_some_and(|level| level != isa.name()) {
            continue;
        }
        for (rows, k, m, geglu) in [
            (4096, 320, 320, false),
            (4096, 320, 1280, true),
            (4096, 1280, 320, false),
            (1024, 640, 640, false),
            (1024, 640, 2560, true),
            (1024, 2560, 640, false),
            (256, 1280, 1280, false),
            (256, 1280, 5120, true),
            (256, 5120, 1280, false),
            (64, 1280, 1280, false),
            (77, 768, 320, false),
        ] {
            let name = format!("linear {rows}x{k}x{m}{}", if geglu { " geglu" } else { "" });
            if !name.contains(&filter) {
                continue;
            }
            let columns = m * (1 + usize::from(geglu));
            let w: Vec<f16> = noise(k * columns).into_iter().map(f16::from_f32).collect();
            let (x, b, mut y) = (noise(rows * k), noise(columns), vec![0.0; rows * m]);
            let layer = Linear {
                weight: Floats::F16(&w),
                order: Order::InputsFirst,
                inputs: k,
                outputs: m,
                bias: Some(&b),
                activation: Activation::None,
                geglu,
            };
            time(&name, 2.0 * (rows * k * columns) as f64, isa, |run| {
                linear(run, &layer, &x, None, &mut y).unwrap();
            });
            for compute in narrow(isa) {
                let ops = 2.0 * (rows * k * columns) as f64;
                time(&format!("{name} {}", compute.name()), ops, isa, |run| {
                    run.compute = compute;
                    linear(run, &layer, &x, None, &mut y).unwrap();
                });
            }
        }
        convolutions(isa, &filter);
        attentions(isa, &filter);
        norms(isa, &filter);
    }
}

/// What a level computes in besides single precision.
fn narrow(isa: Isa) -> impl Iterator<Item = Compute> {
    let bf16 = isa.multiplies_bf16().then_some(Compute::Bf16);
    let int16 = isa.multiplies_int16().then_some(Compute::Int16);
    let int8 = isa.multiplies_int8().then_some(Compute::Int8);
    bf16.into_iter().chain(int16).chain(int8)
}

fn convolutions(isa: Isa, filter: &str) {
    for (pictures, size, inputs, outputs, kernel, stride, enlarge) in [
        (1, 64, 320, 320, 3, 1, 1),
        (1, 64, 960, 320, 3, 1, 1),
        (1, 32, 640, 640, 3, 1, 1),
        (1, 32, 1920, 640, 3, 1, 1),
        (1, 16, 1280, 1280, 3, 1, 1),
        (1, 16, 2560, 1280, 3, 1, 1),
        (1, 8, 1280, 1280, 3, 1, 1),
        (1, 8, 2560, 1280, 3, 1, 1),
        (2, 64, 320, 320, 3, 1, 1),
        (2, 32, 640, 640, 3, 1, 1),
        (2, 16, 1280, 1280, 3, 1, 1),
        (2, 8, 1280, 1280, 3, 1, 1),
        (1, 32, 640, 640, 3, 1, 2),
        (1, 64, 4, 320, 3, 1, 1),
        (1, 64, 320, 4, 3, 1, 1),
        (1, 64, 320, 320, 3, 2, 1),
        (1, 32, 640, 640, 3, 2, 1),
        (1, 16, 1280, 1280, 3, 2, 1),
        (1, 64, 960, 320, 1, 1, 1),
        (1, 64, 512, 512, 3, 1, 1),
        (1, 128, 512, 512, 3, 1, 1),
        (1, 256, 256, 256, 3, 1, 1),
        (1, 512, 128, 128, 3, 1, 1),
        (1, 256, 512, 512, 3, 1, 1),
        (1, 512, 256, 256, 3, 1, 1),
        (1, 512, 128, 3, 3, 1, 1),
        (1, 512, 3, 128, 3, 1, 1),
    ] {
        let name = format!(
            "conv {inputs}->{outputs} @{size}{}{}{}{}",
            if kernel == 1 { " 1x1" } else { "" },
            if stride == 2 { " stride 2" } else { "" },
            if enlarge == 2 { " enlarged" } else { "" },
            if pictures == 2 { " x2" } else { "" },
        );
        if !name.contains(filter) {
            continue;
        }
        let taps = kernel * kernel;
        let w: Vec<f16> = noise(outputs * inputs * taps)
            .into_iter()
            .map(f16::from_f32)
            .collect();
        let (x, b) = (noise(pictures * size * size * inputs), noise(outputs));
        let layer = Conv {
            weight: Floats::F16(&w),
            bias: Some(&b),
            inputs,
            outputs,
            kernel,
            stride,
            pads: [kernel / 2; 4],
            activation: Activation::None,
            enlarge: (enlarge > 1).then_some((enlarge * size, enlarge * size)),
        };
        let (height, width) = layer.output_size((size, size));
        let mut y = vec![0.0; pictures * height * width * outputs];
        time(&name, 2.0 * (y.len() * inputs * taps) as f64, isa, |run| {
            conv(run, &layer, &x, (pictures, size, size), None, None, &mut y).unwrap();
        });
        if isa.multiplies_int16() {
            let ops = 2.0 * (y.len() * inputs * taps) as f64;
            time(&format!("{name} i16"), ops, isa, |run| {
                run.compute = Compute::Int16;
                conv(run, &layer, &x, (pictures, size, size), None, None, &mut y).unwrap();
            });
        }
    }
}

fn attentions(isa: Isa, filter: &str) {
    for (queries, keys, heads, width) in [
        (4096, 4096, 8, 40),
        (1024, 1024, 8, 80),
        (256, 256, 8, 160),
        (64, 64, 8, 160),
        (4096, 77, 8, 40),
        (1024, 77, 8, 80),
        (256, 77, 8, 160),
        (4096, 4096, 10, 64),
        (1024, 1024, 20, 64),
        (4096, 77, 10, 64),
        (4096, 4096, 1, 512),
        (16384, 16384, 1, 512),
    ] {
        let name = format!("attention {queries}x{keys}x{width} {heads} heads");
        if !name.contains(filter) || (queries > 4096 && !filter.contains("16384")) {
            continue;
        }
        let layer = Attention {
            batch_q: 1,
            batch_kv: 1,
            queries,
            keys,
            heads,
            width,
        };
        let (q, mut y) = (
            noise(queries * heads * width),
            vec![0.0; queries * heads * width],
        );
        let (k, v) = (noise(keys * heads * width), noise(keys * heads * width));
        let ops = 4.0 * (queries * keys * heads * width) as f64;
        time(&name, ops, isa, |run| {
            attention(run, &layer, &q, &k, &v, &mut y).unwrap();
        });
        for compute in narrow(isa) {
            time(&format!("{name} {}", compute.name()), ops, isa, |run| {
                run.compute = compute;
                attention(run, &layer, &q, &k, &v, &mut y).unwrap();
            });
        }
    }
}

fn norms(isa: Isa, filter: &str) {
    for (pixels, channels) in [
        (4096, 320),
        (1024, 640),
        (256, 1280),
        (64, 1280),
        (4096, 960),
        (65536, 256),
        (262_144, 128),
    ] {
        let x = noise(pixels * channels);
        let mut y = vec![0.0; x.len()];
        let (weight, bias) = (noise(channels), noise(channels));
        let bytes = |passes: usize| ((4 * passes * x.len()) as f64, "GB/s");
        for activation in [Activation::None, Activation::Silu] {
            let name = format!("groupnorm {pixels}x{channels} {activation:?}");
            if name.contains(filter) {
                let layer = GroupNorm {
                    groups: 32,
                    epsilon: 1e-5,
                    weight: &weight,
                    bias: &bias,
                    activation,
                };
                rate(&name, bytes(3), isa, |run| {
                    group_norm(run, &layer, 1, &x, &mut y).unwrap();
                });
            }
        }
        let name = format!("layernorm {pixels}x{channels}");
        if name.contains(filter) {
            let layer = LayerNorm {
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
            };
            rate(&name, bytes(2), isa, |run| {
                layer_norm(run, &layer, &x, &mut y);
            });
        }
        let name = format!("concat {pixels}x{channels}");
        if name.contains(filter) {
            let half = x.len() / 2;
            let widths = (channels / 2, channels / 2);
            rate(&name, bytes(2), isa, |run| {
                concat(run, widths, &x[..half], &x[half..], &mut y);
            });
        }
    }
}
