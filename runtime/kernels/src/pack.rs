//! Weights, in the type and order they are stored in, become panels of columns in single precision.

use half::{bf16, f16};

use crate::Floats;
use crate::product::panel_columns;
use crate::rows::Rows;
use crate::simd::{COLUMNS, Simd};

/// Which index of a stored matrix `[K, M]` or `[M, K]` moves faster. K is what is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[inputs, outputs]`, as `MatMul` reads it.
    InputsFirst,
    /// `[outputs, inputs]`, as checkpoints and convolutions have it.
    OutputsFirst,
}

/// A stored number type.
pub(crate) trait Stored: Copy {
    /// `LANES` of them in single precision.
    ///
    /// # Safety
    /// They can be read; the machine has the instructions of `S`.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Numbers `at..at + 8` of `LANES` rows, as 8 vectors over rows.
    ///
    /// # Safety
    /// They can be read; the machine has the instructions of `S`.
    unsafe fn columns<S: Simd>(rows: *const *const Self, at: usize) -> [S::V; COLUMNS];
    /// One of them.
    fn get(self) -> f32;
    /// Whether they are whole numbers, which outputs have scales for.
    const SCALED: bool = false;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: *const *const Self, at: usize) -> [S::V; COLUMNS] {
        unsafe { S::columns_f32(rows, at) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: *const *const Self, at: usize) -> [S::V; COLUMNS] {
        unsafe { S::columns_f16(rows, at) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: *const *const Self, at: usize) -> [S::V; COLUMNS] {
        unsafe { S::columns_bf16(rows, at) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load_i8(from) }
    }
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: *const *const Self, at: usize) -> [S::V; COLUMNS] {
        unsafe { S::columns_i8(rows, at) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from(self)
    }
}

/// Numbers of a row that are turned while the next ones are fetched.
const TURNED: usize = 64;

/// A matrix of weights.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: Floats<'a>,
    pub order: Order,
    pub inputs: usize,
    pub outputs: usize,
}

/// A part of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub input: usize,
    pub inputs: usize,
    pub output: usize,
    /// At most a panel's columns.
    pub outputs: usize,
}

impl Matrix<'_> {
    /// Writes a part of it as a panel `[inputs][2 LANES]`; nobody asks what missing columns are.
    ///
    /// # Safety
    /// The part lies in the matrix and the panel can be written; the machine has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn pack<S: Simd>(&self, part: Part, panel: *mut f32) {
        unsafe {
            match self.data {
                Floats::F32(w) => self.pack_stored::<S, _>(w.as_ptr(), &[], part, panel),
                Floats::F16(w) => self.pack_stored::<S, _>(w.as_ptr(), &[], part, panel),
                Floats::Bf16(w) => self.pack_stored::<S, _>(w.as_ptr(), &[], part, panel),
                Floats::Int8 { numbers, scales } => {
                    self.pack_stored::<S, _>(numbers.as_ptr(), scales, part, panel);
                }
            }
        }
    }

    /// Writes a part of a matrix of whole 8-bit numbers as a panel of [`Int8`](crate::factors::Int8), whose scales are the
    /// outputs'. Returns whether it did: if not, the matrix has other numbers or another order, or the part has less than a
    /// panel's columns, or torn or few words.
    ///
    /// # Safety
    /// As of [`Matrix::pack`]; the level has products of 8-bit numbers.
    #[inline(always)]
    pub(crate) unsafe fn pack_whole<S: Simd>(&self, part: Part, panel: *mut f32) -> bool {
        let (Floats::Int8 { numbers, scales }, Order::OutputsFirst) = (self.data, self.order)
        else {
            return false;
        };
        let columns = panel_columns::<S>();
        let words = part.inputs / 4;
        if part.outputs < columns || !part.inputs.is_multiple_of(4) || words < COLUMNS {
            return false;
        }
        for half in 0..2 {
            let first = part.output + half * S::LANES;
            let panel = panel.wrapping_add(half * S::LANES);
            let mut rows = [numbers.as_ptr(); 16];
            // SAFETY: the part lies in the matrix, which has a scale for each output.
            unsafe {
                for (i, row) in rows[..S::LANES].iter_mut().enumerate() {
                    *row = row.add((first + i) * self.inputs + part.input);
                }
                for word in (0..words).step_by(COLUMNS) {
                    // The last ones may be turned twice.
                    let at = word.min(words - COLUMNS);
                    let turned = S::columns_f32(rows.as_ptr().cast(), at);
                    for (i, fours) in turned.into_iter().enumerate() {
                        S::store(panel.add((at + i) * columns), S::int8_raise(fours));
                    }
                }
                let scales = S::load(scales.as_ptr().add(first));
                S::store(panel.add(words * columns), scales);
            }
        }
        true
    }

    #[inline(always)]
    unsafe fn pack_stored<S: Simd, T: Stored>(
        &self,
        w: *const T,
        scales: &[f32],
        part: Part,
        panel: *mut f32,
    ) {
        let columns = panel_columns::<S>();
        unsafe {
            match self.order {
                Order::InputsFirst if part.outputs == columns => {
                    let scales = scales.as_ptr().wrapping_add(part.output);
                    let scaled = |x: S::V, lane: usize| match T::SCALED {
                        true => S::mul(x, S::load(scales.add(lane))),
                        false => x,
                    };
                    for i in 0..part.inputs {
                        let w = w.add((part.input + i) * self.outputs + part.output);
                        let to = panel.add(i * columns);
                        S::store(to, scaled(T::load::<S>(w), 0));
                        let second = T::load::<S>(w.add(S::LANES));
                        S::store(to.add(S::LANES), scaled(second, S::LANES));
                    }
                }
                Order::InputsFirst => {
                    for i in 0..part.inputs {
                        let w = w.add((part.input + i) * self.outputs + part.output);
                        for j in 0..columns {
                            let x = match j < part.outputs {
                                true if T::SCALED => (*w.add(j)).get() * scales[part.output + j],
                                true => (*w.add(j)).get(),
                                false => 0.0,
                            };
                            *panel.add(i * columns + j) = x;
                        }
                    }
                }
                Order::OutputsFirst => {
                    for half in 0..2 {
                        let first = part.output + half * S::LANES;
                        let rows =
                            Rows::new(self.data, self.inputs, self.outputs, first, part.input);
                        for i in (0..part.inputs).step_by(TURNED) {
                            let to = panel.add(i * columns + half * S::LANES);
                            rows.turn::<S>(i, TURNED.min(part.inputs - i), to, columns);
                        }
                    }
                }
            }
        }
    }
}
