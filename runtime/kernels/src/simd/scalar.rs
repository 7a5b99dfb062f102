//! Vectors of four numbers in plain Rust, for processors without a level of their own and for Miri.

use half::{bf16, f16};

use super::{COLUMNS, Simd};
use crate::isa::Task;

/// No special instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

const LANES: usize = 4;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Two whole numbers in the bits of one.
#[inline(always)]
fn join(low: f32, high: f32) -> f32 {
    let bits = |x: f32| u32::from(x.round_ties_even() as i16 as u16);
    f32::from_bits(bits(low) | bits(high) << 16)
}

/// The two of [`join`].
#[inline(always)]
fn halves(pair: f32) -> [i32; 2] {
    let bits = pair.to_bits();
    [bits as u16, (bits >> 16) as u16].map(|half| i32::from(half as i16))
}

/// Four whole numbers in the bits of one.
#[inline(always)]
fn four(numbers: [f32; 4], shift: i32) -> f32 {
    let bytes = numbers.map(|x| (x.round_ties_even() as i32 + shift) as u8);
    f32::from_bits(u32::from_le_bytes(bytes))
}

impl Simd for Scalar {
    type V = [f32; LANES];

    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const INT8: bool = true;

    #[inline(always)]
    unsafe fn vectorize<T: Task>(task: T) -> T::Output {
        unsafe { task.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: Self::V, n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            unsafe { *to.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        std::array::from_fn(|i| unsafe { *from.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        std::array::from_fn(|i| unsafe { *from.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        std::array::from_fn(|i| f32::from(unsafe { *from.add(i) }))
    }

    #[inline(always)]
    unsafe fn columns_f32(rows: *const *const f32, at: usize) -> [Self::V; COLUMNS] {
        let word = |i, j| unsafe { (*rows.add(i)).add(at + j).read_unaligned() };
        std::array::from_fn(|j| std::array::from_fn(|i| word(i, j)))
    }
    #[inline(always)]
    unsafe fn columns_f16(rows: *const *const f16, at: usize) -> [Self::V; COLUMNS] {
        std::array::from_fn(|j| {
            std::array::from_fn(|i| unsafe { *(*rows.add(i)).add(at + j) }.to_f32())
        })
    }
    #[inline(always)]
    unsafe fn columns_bf16(rows: *const *const bf16, at: usize) -> [Self::V; COLUMNS] {
        std::array::from_fn(|j| {
            std::array::from_fn(|i| unsafe { *(*rows.add(i)).add(at + j) }.to_f32())
        })
    }
    #[inline(always)]
    unsafe fn columns_i8(rows: *const *const i8, at: usize) -> [Self::V; COLUMNS] {
        std::array::from_fn(|j| {
            std::array::from_fn(|i| f32::from(unsafe { *(*rows.add(i)).add(at + j) }))
        })
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    /// Two roundings: a fused one is a function call where there is no instruction.
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn int16_row<const N: usize>(a: *const f32, b: &[Self::V; N], sums: &mut [Self::V; N]) {
        let [low, high] = halves(unsafe { *a });
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                let [b_low, b_high] = halves(b);
                let products = low * b_low + high * b_high;
                *sum = f32::from_bits(sum.to_bits().wrapping_add(products as u32));
            }
        }
    }
    #[inline(always)]
    unsafe fn int16_pairs(a: Self::V, b: Self::V) -> Self::V {
        let number = |i: usize| if i < LANES { a[i] } else { b[i - LANES] };
        std::array::from_fn(|i| join(number(2 * i), number(2 * i + 1)))
    }
    #[inline(always)]
    unsafe fn int16_interleave(a: Self::V, b: Self::V, factor: Self::V) -> Self::V {
        std::array::from_fn(|i| join(a[i] * factor[i], b[i] * factor[i]))
    }
    #[inline(always)]
    unsafe fn int8_row<const N: usize>(a: *const f32, b: &[Self::V; N], sums: &mut [Self::V; N]) {
        let row = unsafe { *a }.to_bits().to_le_bytes();
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                let columns = b.to_bits().to_le_bytes();
                let terms = row.iter().zip(columns);
                let products: i32 = terms.map(|(&a, b)| i32::from(a as i8) * i32::from(b)).sum();
                *sum = f32::from_bits(sum.to_bits().wrapping_add(products as u32));
            }
        }
    }
    #[inline(always)]
    unsafe fn int8_in_order(x: [Self::V; 4]) -> Self::V {
        x.map(|numbers| four(numbers, 0))
    }
    #[inline(always)]
    unsafe fn int8_by_lane(x: [Self::V; 4]) -> Self::V {
        std::array::from_fn(|i| four(x.map(|numbers| numbers[i]), 128))
    }
    #[inline(always)]
    unsafe fn int8_raise(x: Self::V) -> Self::V {
        x.map(|x| f32::from_bits(x.to_bits() ^ 0x8080_8080))
    }
    #[inline(always)]
    unsafe fn whole(sums: Self::V) -> Self::V {
        sums.map(|sum| sum.to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}
