//! Times kernels at Stable Diffusion's shapes: best and median of several runs, by the threads' own CPU time.
#![allow(unsafe_code, clippy::print_stdout, missing_docs)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use half::f16;
use sd_kernels::{Activation, Floats, Isa, Linear, Order, Pool, Run, Scratch, linear};

static CPU: AtomicU64 = AtomicU64::new(0);

fn thread_time() -> u64 {
    #[repr(C)]
    struct Ts(i64, i64);
    unsafe extern "C" {
        fn clock_gettime(id: i32, t: *mut Ts) -> i32;
    }
    let mut t = Ts(0, 0);
    unsafe { clock_gettime(3, &mut t) };
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

fn time(name: &str, ops: f64, isa: Isa, mut f: impl FnMut(&mut Run<'_>)) {
    let pool = Timed(2);
    let mut scratch = Scratch::new();
    let mut cpu = vec![];
    let mut wall = vec![];
    for i in 0..9 {
        let mut run = Run {
            isa,
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
        "{name:34} {isa:12} {:8.2} ms  {:6.0} / {:4.0} Gop/s   wall {:8.2} ms",
        best * 1e3,
        ops / best * 1e-9,
        ops / median * 1e-9,
        wall[0] * 1e3
    );
}

fn noise(n: usize) -> Vec<f32> {
    let mut s = 88172645463325252u64;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / 8388608.0 - 1.0
        })
        .collect()
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    for isa in Isa::available().skip(1) {
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
                linear(run, &layer, &x, None, &mut y)
            });
        }
    }
}
