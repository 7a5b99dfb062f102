//! Linear layers over rows of tokens or pixels: `activation(x W + b) + residual`.
//!
//! A task is a block of columns: its weights are widened once into panels that stay in the second-level cache, and rows pass by
//! them. So weights are read from memory once, and a 16-bit weight costs little more than a single-precision one.

use crate::activation::Activation;
use crate::isa::Task;
use crate::pack::{Matrix, Part};
use crate::pool::for_each_task;
use crate::product::{Product, panel_columns};
use crate::scratch::Shared;
use crate::simd::{Simd, gelu};
use crate::{Floats, OutOfMemory, Run};

pub use crate::pack::Order;

/// A linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `inputs x columns` numbers.
    pub weight: Floats<'a>,
    /// How they lie.
    pub order: Order,
    /// Width of a row that goes in.
    pub inputs: usize,
    /// Width of a row that comes out.
    pub outputs: usize,
    /// One number for each column.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub activation: Activation,
    /// The weight has twice as many columns as come out: the first half is gated by the GELU of the second (Shazeer 2020). There
    /// is no other activation then.
    pub geglu: bool,
}

/// Terms of a sum between two visits of its result: a panel of so many rows stays in the first-level cache.
const DEPTH: usize = 320;

/// Numbers of a task's weights, which stay in the second-level cache.
const WEIGHTS: usize = 80 << 10;

/// Rows that are taken through all of a task's panels before the next ones.
const ROWS: usize = 96;

/// `x` [rows, inputs] -> `y` [rows, outputs]; `residual` is added, again from its start where it is shorter than `y`.
///
/// # Errors
/// There is no memory for intermediate results.
///
/// # Panics
/// Lengths that do not fit together.
pub fn linear(
    run: &mut Run<'_>,
    layer: &Linear<'_>,
    x: &[f32],
    residual: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let rows = x.len() / layer.inputs;
    let columns = layer.outputs * (1 + usize::from(layer.geglu));
    assert_eq!(
        x.len(),
        rows * layer.inputs,
        "rows of {} numbers",
        layer.inputs
    );
    assert_eq!(
        y.len(),
        rows * layer.outputs,
        "rows of {} numbers",
        layer.outputs
    );
    assert_eq!(layer.weight.len(), layer.inputs * columns, "weights");
    assert!(layer.bias.is_none_or(|b| b.len() == columns), "bias");
    assert!(
        residual.is_none_or(|r| !r.is_empty() && y.len().is_multiple_of(r.len())),
        "residual"
    );
    if rows == 0 {
        return Ok(());
    }
    run.isa.dispatch(Rows {
        run,
        layer,
        x,
        residual,
        y,
    })
}

/// The arguments of [`linear`].
struct Rows<'a, 'r> {
    run: &'a mut Run<'r>,
    layer: &'a Linear<'a>,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Task for Rows<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let Self {
            run,
            layer,
            x,
            residual,
            y,
        } = self;
        let rows = x.len() / layer.inputs;
        let halves = 1 + usize::from(layer.geglu);
        let panel = panel_columns::<S>();
        let fit = (WEIGHTS / layer.inputs / halves / panel).clamp(1, 16) * panel;
        let column_blocks = layer.outputs.div_ceil(fit);
        let columns = layer
            .outputs
            .div_ceil(column_blocks)
            .next_multiple_of(panel);
        let column_blocks = layer.outputs.div_ceil(columns);
        let workers = run.pool.workers();
        let row_blocks = (4 * workers)
            .div_ceil(column_blocks)
            .min(rows.div_ceil(ROWS))
            .max(1);
        let depth = layer.inputs.div_ceil(layer.inputs.div_ceil(DEPTH));
        let shape = Shape {
            rows: rows.div_ceil(row_blocks),
            columns,
            halves,
            depth: depth.next_multiple_of(2),
            pairs: S::PAIRS && run.multiplies_pairs(),
        };

        let weights = (layer.inputs + 1) * columns * halves;
        let sums = ROWS * columns * halves;
        let pairs = if shape.pairs {
            shape.depth * panel + ROWS * shape.depth / 2
        } else {
            0
        };
        let (_, own) = run.scratch.take(0, weights + sums + pairs, workers)?;
        let y = Shared::new(y);
        for_each_task(run.pool, column_blocks * row_blocks, &|task, worker| {
            let block = Block {
                layer,
                shape,
                first_row: task / column_blocks * shape.rows,
                first_column: task % column_blocks * columns,
                x,
                residual,
                y: &y,
                panels: own[worker].at(0),
                sums: own[worker].at(weights),
                pairs: own[worker].at(weights + sums),
            };
            // SAFETY: tasks are different blocks of y; scratch is the worker's own; the level was chosen by `dispatch`.
            unsafe {
                if shape.pairs {
                    S::vectorize(BlockOfPairs(block));
                } else {
                    S::vectorize(block);
                }
            }
        });
        Ok(())
    }
}

/// How the output is cut into blocks.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
    halves: usize,
    /// Terms of a sum between two visits of its result.
    depth: usize,
    /// Whether factors are pairs of bf16 numbers.
    pairs: bool,
}

/// A block of the output.
struct Block<'a> {
    layer: &'a Linear<'a>,
    shape: Shape,
    first_row: usize,
    first_column: usize,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    panels: *mut f32,
    sums: *mut f32,
    /// A panel and rows on their way to pairs.
    pairs: *mut f32,
}

impl Task for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.compute::<S, false>() }
    }
}

/// The same in pairs of bf16 numbers.
struct BlockOfPairs<'a>(Block<'a>);

impl Task for BlockOfPairs<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.compute::<S, true>() }
    }
}

impl Block<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const PAIRS: bool>(&self) {
        let &Self {
            layer,
            shape,
            first_row,
            first_column,
            x,
            ..
        } = self;
        let panel = panel_columns::<S>();
        let panels = shape.columns / panel * shape.halves;
        let last_row = (first_row + shape.rows).min(x.len() / layer.inputs);
        let terms = |k: usize| if PAIRS { k.div_ceil(2) } else { k };
        unsafe {
            self.pack::<S, PAIRS>();
            for row in (first_row..last_row).step_by(ROWS) {
                let rows = ROWS.min(last_row - row);
                for input in (0..layer.inputs).step_by(shape.depth) {
                    let k = shape.depth.min(layer.inputs - input);
                    let (mut a, mut a_stride) =
                        (x.as_ptr().add(row * layer.inputs + input), layer.inputs);
                    if PAIRS {
                        let to = self.pairs.add(shape.depth * panel);
                        rows_to_pairs::<S>((a, a_stride), rows, k, to);
                        (a, a_stride) = (to, terms(k));
                    }
                    for p in 0..panels {
                        let b = self
                            .panels
                            .add((terms(input) * panels + p * terms(k)) * panel);
                        Product {
                            rows,
                            k: terms(k),
                            a,
                            a_stride,
                            b,
                            c: self.sums.add(p * panel),
                            c_stride: panels * panel,
                            accumulate: input > 0,
                            next: b.wrapping_add(terms(k) * panel),
                        }
                        .run_vectors::<S, PAIRS>(2);
                    }
                }
                for i in 0..rows {
                    self.finish::<S>(row + i, self.sums.add(i * panels * panel), first_column);
                }
            }
        }
    }

    /// Weights as panels `[depth block][panel][k][2 LANES]`; panels of the second half follow those of the first.
    #[inline(always)]
    unsafe fn pack<S: Simd, const PAIRS: bool>(&self) {
        let Self { layer, shape, .. } = self;
        let panel = panel_columns::<S>();
        let matrix = Matrix {
            data: layer.weight,
            order: layer.order,
            inputs: layer.inputs,
            outputs: layer.outputs * shape.halves,
        };
        let mut to = self.panels;
        for input in (0..layer.inputs).step_by(shape.depth) {
            let inputs = shape.depth.min(layer.inputs - input);
            for half in 0..shape.halves {
                for column in (0..shape.columns).step_by(panel) {
                    let column = self.first_column + column;
                    let part = Part {
                        input,
                        inputs,
                        output: half * layer.outputs + column,
                        outputs: layer.outputs.saturating_sub(column).min(panel),
                    };
                    // SAFETY: the part lies in the matrix, and scratch holds all panels.
                    unsafe {
                        if PAIRS {
                            matrix.pack::<S>(part, self.pairs);
                            to = panel_to_pairs::<S>(self.pairs, inputs, to);
                        } else {
                            matrix.pack::<S>(part, to);
                            to = to.add(inputs * panel);
                        }
                    }
                }
            }
        }
    }

    /// A row's sums become its output.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, sums: *const f32, first_column: usize) {
        let Self { layer, shape, .. } = self;
        let end = (first_column + shape.columns).min(layer.outputs);
        for column in (first_column..end).step_by(S::LANES) {
            let n = S::LANES.min(end - column);
            // SAFETY: n numbers are there; sums have whole vectors.
            unsafe {
                let biased = |half: usize| {
                    let sum = S::load(sums.add(half * shape.columns + column - first_column));
                    match layer.bias {
                        Some(b) => {
                            let b = b.as_ptr().add(half * layer.outputs + column);
                            S::add(sum, S::load_first(b, n))
                        }
                        None => sum,
                    }
                };
                let mut v = if layer.geglu {
                    S::mul(biased(0), gelu::<S>(biased(1)))
                } else {
                    layer.activation.apply::<S>(biased(0))
                };
                let at = row * layer.outputs + column;
                if let Some(residual) = self.residual {
                    let r = residual.as_ptr().add(at % residual.len());
                    v = S::add(v, S::load_first(r, n));
                }
                S::store_first(self.y.at(at), v, n);
            }
        }
    }
}

/// Rows of `k` numbers, `stride` apart, become rows of `k / 2` pairs.
#[inline(always)]
unsafe fn rows_to_pairs<S: Simd>(
    (from, stride): (*const f32, usize),
    rows: usize,
    k: usize,
    to: *mut f32,
) {
    let pairs = k.div_ceil(2);
    for row in 0..rows {
        for i in (0..pairs).step_by(S::LANES) {
            // SAFETY: no more numbers are read and pairs written than there are.
            unsafe {
                let from = from.add(row * stride + 2 * i);
                let low = S::load_first(from, S::LANES.min(k - 2 * i));
                let high = (k - 2 * i).saturating_sub(S::LANES).min(S::LANES);
                let high = S::load_first(from.wrapping_add(S::LANES), high);
                let n = S::LANES.min(pairs - i);
                S::store_first(to.add(row * pairs + i), S::pairs(low, high), n);
            }
        }
    }
}

/// A panel of `inputs` rows becomes one of `inputs / 2` rows of pairs. Returns its end.
#[inline(always)]
unsafe fn panel_to_pairs<S: Simd>(from: *const f32, inputs: usize, to: *mut f32) -> *mut f32 {
    let panel = panel_columns::<S>();
    // SAFETY: rows that are read exist; a missing one is zero.
    unsafe {
        for i in 0..inputs.div_ceil(2) {
            for j in (0..panel).step_by(S::LANES) {
                let low = S::load(from.add(2 * i * panel + j));
                let high = if 2 * i + 1 < inputs {
                    S::load(from.add((2 * i + 1) * panel + j))
                } else {
                    S::splat(0.0)
                };
                S::store(to.add(i * panel + j), S::interleave(low, high));
            }
        }
        to.add(inputs.div_ceil(2) * panel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compute;
    use crate::testing::{Random, close, every_level, stored};

    /// The formula, in double precision.
    fn twin(layer: &Linear<'_>, x: &[f32], residual: Option<&[f32]>) -> Vec<f64> {
        let columns = layer.outputs * (1 + usize::from(layer.geglu));
        let w = layer.weight.to_f32();
        let rows = x.len() / layer.inputs;
        let z = |row: usize, column: usize| {
            let terms = (0..layer.inputs).map(|k| {
                let w = match layer.order {
                    Order::InputsFirst => w[k * columns + column],
                    Order::OutputsFirst => w[column * layer.inputs + k],
                };
                f64::from(x[row * layer.inputs + k]) * f64::from(w)
            });
            terms.sum::<f64>() + layer.bias.map_or(0.0, |b| f64::from(b[column]))
        };
        let y = |i: usize| {
            let (row, column) = (i / layer.outputs, i % layer.outputs);
            let y = if layer.geglu {
                z(row, column) * Activation::Gelu.of(z(row, layer.outputs + column))
            } else {
                layer.activation.of(z(row, column))
            };
            y + residual.map_or(0.0, |r| f64::from(r[i % r.len()]))
        };
        (0..rows * layer.outputs).map(y).collect()
    }

    /// At other levels it is single precision.
    #[test]
    fn linear_layers_in_bf16_are_close_to_the_formula() {
        let mut random = Random::new(2);
        for case in 0..30 {
            let (rows, inputs, outputs) = (random.size(210), random.size(1500), random.size(150));
            let geglu = case % 5 == 0;
            let columns = outputs * (1 + usize::from(geglu));
            let (x, w) = (
                random.normals(rows * inputs),
                random.normals(inputs * columns),
            );
            let bias = random.normals(columns);
            let w = stored(&w, case);
            let layer = Linear {
                weight: w.floats(),
                order: [Order::InputsFirst, Order::OutputsFirst][case / 3 % 2],
                inputs,
                outputs,
                bias: Some(&bias),
                activation: Activation::None,
                geglu,
            };
            let expected = twin(&layer, &x, None);
            every_level(|run| {
                run.compute = Compute::Bf16;
                let mut y = vec![f32::NAN; rows * outputs];
                linear(run, &layer, &x, None, &mut y).unwrap();
                close(&y, &expected, 1e-2);
                y
            });
        }
    }

    #[test]
    fn linear_layers_equal_the_formula_at_every_level() {
        let mut random = Random::new(1);
        for case in 0..60 {
            let (rows, inputs, outputs) = (random.size(210), random.size(700), random.size(150));
            let geglu = case % 5 == 0;
            let columns = outputs * (1 + usize::from(geglu));
            let (x, w) = (
                random.normals(rows * inputs),
                random.normals(inputs * columns),
            );
            let (bias, residual) = (random.normals(columns), random.normals(rows * outputs));
            let activations = [
                Activation::None,
                Activation::Relu,
                Activation::Silu,
                Activation::Gelu,
                Activation::QuickGelu,
            ];
            let w = stored(&w, case);
            let layer = Linear {
                weight: w.floats(),
                order: [Order::InputsFirst, Order::OutputsFirst][case / 3 % 2],
                inputs,
                outputs,
                bias: (case % 2 == 0).then_some(&bias),
                activation: if geglu {
                    Activation::None
                } else {
                    activations[case % 5]
                },
                geglu,
            };
            let residual = (case % 7 < 3).then_some(&residual[..]);
            let expected = twin(&layer, &x, residual);
            every_level(|run| {
                let mut y = vec![f32::NAN; rows * outputs];
                linear(run, &layer, &x, residual, &mut y).unwrap();
                close(&y, &expected, 2e-6);
                y
            });
        }
    }
}
