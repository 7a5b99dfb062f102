//! Weights `[outputs, numbers]`, stored as checkpoints have them, become vectors over outputs.

use half::{bf16, f16};

use crate::Floats;
use crate::pack::Stored;
use crate::simd::{COLUMNS, Simd};

/// Inputs whose weights are turned at a time.
pub(crate) const CHUNK: usize = 8;

/// Pointers to the weights of as many outputs as any vector has lanes.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    F32([*const f32; 16]),
    F16([*const f16; 16]),
    Bf16([*const bf16; 16]),
    /// With the outputs' scales.
    Int8([*const i8; 16], [f32; 16]),
}

impl Rows {
    /// Weights of outputs `first` and following, from number `start` on in each; the last one is repeated past the end, since
    /// nobody asks what comes out there.
    #[inline(always)]
    pub(crate) fn new(
        weight: Floats<'_>,
        length: usize,
        outputs: usize,
        first: usize,
        start: usize,
    ) -> Self {
        #[inline(always)]
        fn rows<T>(
            w: &[T],
            length: usize,
            outputs: usize,
            first: usize,
            start: usize,
        ) -> [*const T; 16] {
            let mut rows = [w.as_ptr(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = w[(first + i).min(outputs - 1) * length + start..].as_ptr();
            }
            rows
        }
        match weight {
            Floats::F32(w) => Self::F32(rows(w, length, outputs, first, start)),
            Floats::F16(w) => Self::F16(rows(w, length, outputs, first, start)),
            Floats::Bf16(w) => Self::Bf16(rows(w, length, outputs, first, start)),
            Floats::Int8 { numbers, scales } => {
                let mut factors = [0.0; 16];
                for (i, factor) in factors.iter_mut().enumerate() {
                    *factor = scales[(first + i).min(outputs - 1)];
                }
                Self::Int8(rows(numbers, length, outputs, first, start), factors)
            }
        }
    }

    /// Numbers `start..start + count` of each output, as `count` vectors.
    ///
    /// # Safety
    /// They can be read, and `count` vectors be written, `stride` numbers apart; the machine has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn turn<S: Simd>(
        &self,
        start: usize,
        count: usize,
        to: *mut f32,
        stride: usize,
    ) {
        unsafe {
            match self {
                Self::F32(rows) => turn::<S, _>(rows, &UNSCALED, start, count, to, stride),
                Self::F16(rows) => turn::<S, _>(rows, &UNSCALED, start, count, to, stride),
                Self::Bf16(rows) => turn::<S, _>(rows, &UNSCALED, start, count, to, stride),
                Self::Int8(rows, scales) => turn::<S, _>(rows, scales, start, count, to, stride),
            }
        }
    }
}

/// Scales of numbers that have none; nobody reads them.
const UNSCALED: [f32; 16] = [1.0; 16];

#[inline(always)]
unsafe fn turn<S: Simd, T: Stored>(
    rows: &[*const T; 16],
    scales: &[f32; 16],
    start: usize,
    count: usize,
    to: *mut f32,
    stride: usize,
) {
    unsafe {
        for row in &rows[..S::LANES] {
            let ahead = row.wrapping_add(start + 2 * count).cast::<f32>();
            for line in 0..(count * size_of::<T>()).div_ceil(64) {
                S::prefetch(ahead.wrapping_add(16 * line));
            }
        }
        if count < COLUMNS {
            for i in 0..count {
                for (lane, row) in rows[..S::LANES].iter().enumerate() {
                    let x = (*row.add(start + i)).get();
                    *to.add(i * stride + lane) = if T::SCALED { x * scales[lane] } else { x };
                }
            }
            return;
        }
        let scales = S::load(scales.as_ptr());
        let mut i = 0;
        while i < count {
            // The last ones may be turned twice.
            let at = i.min(count - COLUMNS);
            let columns = T::columns::<S>(rows.as_ptr(), start + at);
            for (j, column) in columns.into_iter().enumerate() {
                let column = match T::SCALED {
                    true => S::mul(column, scales),
                    false => column,
                };
                S::store(to.add((at + j) * stride), column);
            }
            i += COLUMNS;
        }
    }
}
