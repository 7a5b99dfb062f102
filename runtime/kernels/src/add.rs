//! Sums of tensors.

use crate::Run;
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::scratch::Shared;
use crate::simd::Simd;

/// Numbers of a task.
const BLOCK: usize = 32 << 10;

/// `y = a + b`; the shorter of both is used again from its start: one picture with each of several.
///
/// # Panics
/// Lengths that do not fit together.
pub fn add(run: &mut Run<'_>, a: &[f32], b: &[f32], y: &mut [f32]) {
    let period = a.len().min(b.len());
    assert_eq!(a.len().max(b.len()), y.len(), "result");
    if y.is_empty() {
        return;
    }
    assert!(
        period > 0 && y.len().is_multiple_of(period),
        "{} and {} numbers",
        a.len(),
        b.len()
    );
    let blocks = period.div_ceil(BLOCK);
    let shared = Shared::new(y);
    let repeats = a.len().max(b.len()) / period;
    for_each_task(run.pool, repeats * blocks, &|task, _| {
        let first = task % blocks * BLOCK;
        let count = BLOCK.min(period - first);
        let start = task / blocks * period + first;
        let from = |x: &[f32]| x[start % x.len()..][..count].as_ptr();
        let sum = Sum {
            a: from(a),
            b: from(b),
            y: shared.at(start),
            count,
        };
        // Tasks are different parts of y.
        run.isa.dispatch(sum);
    });
}

/// `count` numbers.
struct Sum {
    a: *const f32,
    b: *const f32,
    y: *mut f32,
    count: usize,
}

impl Task for Sum {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { a, b, y, count } = self;
        let whole = count / S::LANES * S::LANES;
        // SAFETY: so many numbers are there.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                S::store(y.add(i), S::add(S::load(a.add(i)), S::load(b.add(i))));
            }
            for i in whole..count {
                *y.add(i) = *a.add(i) + *b.add(i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, every_level};

    #[test]
    fn sums_repeat_the_shorter_one() {
        let mut random = Random::new(10);
        for case in 0..30 {
            let (period, batch) = (random.size(100_000), 1 + case % 4);
            let a = random.normals(period * batch);
            let b = random.normals(period);
            let expected: Vec<f32> = (0..a.len()).map(|i| a[i] + b[i % period]).collect();
            every_level(|run| {
                let mut y = vec![f32::NAN; expected.len()];
                add(run, &a, &b, &mut y);
                assert_eq!(y, expected);
                add(run, &b, &a, &mut y);
                assert_eq!(y, expected);
                y
            });
        }
    }
}
