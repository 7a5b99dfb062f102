//! What the processor could do: fused multiply-adds of single precision that wait for nothing.

#![expect(
    clippy::inline_always,
    reason = "what is called with a vector type must be inlined"
)]

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use pulp::{Arch, Simd, WithSimd};

/// Sums that do not depend on each other: more than the latency of an addition times how many begin per cycle.
const SUMS: usize = 12;
/// Steps of one measurement, about a millisecond, and how many there are: the best one counts. Other programs seldom
/// interrupt one that is so short.
const STEPS: usize = 200_000;
const TRIES: usize = 300;

struct Steps;

impl WithSimd for Steps {
    /// Operations, a multiplication and an addition being two.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (factor, term) = (black_box(0.5f32), black_box(1.0f32));
        let (factor, term) = (simd.splat_f32s(factor), simd.splat_f32s(term));
        let mut sums = [term; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, factor, term);
            }
        }
        let mut total = term;
        for sum in sums {
            total = simd.add_f32s(total, sum);
        }
        black_box(simd.reduce_sum_f32s(total));
        (2 * SUMS * STEPS * S::F32_LANES) as f64
    }
}

/// Most operations per second of `threads` threads that run at the same time.
pub(crate) fn flops(threads: usize) -> f64 {
    let best = || {
        let tries = (0..TRIES).map(|_| {
            let start = Instant::now();
            Arch::new().dispatch(Steps) / start.elapsed().as_secs_f64()
        });
        tries.fold(0.0, f64::max)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(best)).collect();
        let rates = workers.into_iter().map(thread::ScopedJoinHandle::join);
        rates.map(Result::unwrap_or_default).sum()
    })
}
