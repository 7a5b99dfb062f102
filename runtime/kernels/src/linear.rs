//! Linear layers over rows of tokens or pixels: `activation(x W + b) + residual`.
//!
//! A task is a block of columns: its weights are widened once into panels that stay in the second-level cache, and rows pass by
//! them. So weights are read from memory once, and a 16-bit weight costs little more than a single-precision one.

use crate::activation::Activation;
use crate::factors::{FactorTask, Factors, Kind, Split, vectorize};
use crate::isa::Task;
use crate::outliers::{self, MOST};
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

/// Numbers of a task's weights, which stay in the second-level cache.
const WEIGHTS: usize = 80 << 10;

/// Rows that are taken through all of a task's panels before the next ones.
const ROWS: usize = 48;

/// Fewest rows that are worth rounding the weights for. What a time embedding passes through has one or two, and what follows from
/// it is everywhere.
const ROUNDED_ROWS: usize = 8;

/// Rows that one task rounds to factors.
const TASK_ROWS: usize = 16;

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
    assert!(layer.weight.fit(columns), "scales");
    assert!(layer.bias.is_none_or(|b| b.len() == columns), "bias");
    assert!(
        residual.is_none_or(|r| {
            let whole = r.len().is_multiple_of(layer.outputs);
            !r.is_empty() && whole && y.len().is_multiple_of(r.len())
        }),
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
        let rows = self.x.len() / self.layer.inputs;
        let factors = if rows < ROUNDED_ROWS {
            Kind::Single
        } else {
            self.run.factors()
        };
        // SAFETY: the caller's promise.
        unsafe { factors.dispatch::<S, _>(self) }
    }
}

impl FactorTask for Rows<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) -> Self::Output {
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
        let split = Split::new(layer.inputs, F::DEPTH);
        let words = split.words::<F>();
        let fit = (WEIGHTS / words / halves / panel).clamp(1, 16) * panel;
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
        let shape = Shape {
            rows: rows.div_ceil(row_blocks),
            halves,
            split,
        };

        let tasks = rows.div_ceil(TASK_ROWS);
        let scaled = F::OUTLIER.is_finite();
        let factors = if F::PLAIN { 0 } else { rows * words };
        let largest = if scaled { tasks * layer.inputs } else { 0 };
        let weights = words * columns * halves;
        let sums = ROWS * columns * halves;
        let widened = if F::PLAIN { 0 } else { split.depth * panel };
        let outlying = if scaled { MOST * columns * halves } else { 0 };
        let row = if scaled { layer.inputs } else { 0 };
        let all = weights + sums + widened + outlying + row;
        let (shared, own) = run.scratch.take(factors + largest, all, workers)?;
        let round = |outliers: &[usize]| {
            for_each_task(run.pool, tasks, &|task, worker| {
                let first = task * TASK_ROWS;
                let round = Round {
                    x: &x[first * layer.inputs..],
                    rows: TASK_ROWS.min(rows - first),
                    split,
                    outliers,
                    row: own[worker].at(all - row),
                    largest: scaled.then(|| shared.at(factors + task * layer.inputs)),
                    to: shared.at(first * words),
                };
                // SAFETY: tasks are different rows; scratch is the worker's own; the level was chosen by `dispatch`.
                unsafe { vectorize::<S, F, _>(round) };
            });
        };
        let mut outliers = Vec::new();
        if !F::PLAIN {
            round(&[]);
        }
        if scaled {
            let mut of_all = vec![0.0f32; layer.inputs];
            for task in 0..tasks {
                for (k, largest) in of_all.iter_mut().enumerate() {
                    // SAFETY: every task wrote its numbers.
                    let of_task = unsafe { *shared.at(factors + task * layer.inputs + k) };
                    *largest = largest.max(of_task);
                }
            }
            outliers = outliers::outliers(&of_all, F::OUTLIER);
            if !outliers.is_empty() {
                round(&outliers);
            }
        }
        let y = Shared::new(y);
        for_each_task(run.pool, column_blocks * row_blocks, &|task, worker| {
            let first_column = task % column_blocks * columns;
            let left = (layer.outputs - first_column).next_multiple_of(panel);
            let block = Block {
                layer,
                shape,
                first_row: task / column_blocks * shape.rows,
                first_column,
                columns: columns.min(left),
                x: if F::PLAIN { x.as_ptr() } else { shared.at(0) },
                numbers: x,
                outliers: &outliers,
                all_rows: rows,
                residual,
                y: &y,
                panels: own[worker].at(0),
                sums: own[worker].at(weights),
                widened: own[worker].at(weights + sums),
                outlying: own[worker].at(weights + sums + widened),
            };
            // SAFETY: tasks are different blocks of y; scratch is the worker's own; the level was chosen by `dispatch`.
            unsafe { vectorize::<S, F, _>(block) };
        });
        Ok(())
    }
}

/// Rounds rows of numbers to factors.
struct Round<'a> {
    x: &'a [f32],
    rows: usize,
    split: Split,
    /// Channels that are taken for zero.
    outliers: &'a [usize],
    /// Where a row without them fits.
    row: *mut f32,
    /// Where each channel's largest number goes.
    largest: Option<*mut f32>,
    to: *mut f32,
}

impl FactorTask for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let words = self.split.words::<F>();
        let inputs = self.split.count;
        for row in 0..self.rows {
            let mut from = self.x[row * inputs..].as_ptr();
            // SAFETY: the rows are there, and scratch holds one.
            unsafe {
                if !self.outliers.is_empty() {
                    from.copy_to(self.row, inputs);
                    for &k in self.outliers {
                        *self.row.add(k) = 0.0;
                    }
                    from = self.row;
                }
                for (start, count) in self.split.each() {
                    let to = self
                        .to
                        .add(row * words + self.split.words_before::<F>(start));
                    F::row::<S>(from.add(start), count, to);
                }
            }
        }
        if let Some(largest) = self.largest {
            // SAFETY: so many numbers of each row are there.
            unsafe { largest_of_channels::<S>(self.x, self.rows, inputs, largest) };
        }
    }
}

/// Each channel's largest absolute value in `rows` rows.
///
/// # Safety
/// The rows are there, and `channels` numbers can be written.
#[inline(always)]
unsafe fn largest_of_channels<S: Simd>(x: &[f32], rows: usize, channels: usize, to: *mut f32) {
    for k in (0..channels).step_by(S::LANES) {
        let n = S::LANES.min(channels - k);
        unsafe {
            let mut largest = S::splat(0.0);
            for row in 0..rows {
                let x = S::load_first(x[row * channels + k..].as_ptr(), n);
                largest = S::max(S::abs(x), largest);
            }
            S::store_first(to.add(k), largest, n);
        }
    }
}

/// How the output is cut into blocks.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    halves: usize,
    /// Terms of a sum between two visits of its result.
    split: Split,
}

/// A block of the output.
struct Block<'a> {
    layer: &'a Linear<'a>,
    shape: Shape,
    first_row: usize,
    first_column: usize,
    /// Columns, whole panels.
    columns: usize,
    /// Rows of factors.
    x: *const f32,
    /// Rows of numbers.
    numbers: &'a [f32],
    /// Channels that are no factors.
    outliers: &'a [usize],
    all_rows: usize,
    residual: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    panels: *mut f32,
    sums: *mut f32,
    /// A panel in single precision.
    widened: *mut f32,
    /// Weights of outliers.
    outlying: *mut f32,
}

impl FactorTask for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let Self {
            shape,
            first_row,
            columns,
            x,
            ..
        } = self;
        let panel = panel_columns::<S>();
        let panels = columns / panel * shape.halves;
        let last_row = (first_row + shape.rows).min(self.all_rows);
        let words = shape.split.words::<F>();
        unsafe {
            self.pack::<S, F>();
            for row in (first_row..last_row).step_by(ROWS) {
                let rows = ROWS.min(last_row - row);
                for (input, inputs) in shape.split.each() {
                    let before = shape.split.words_before::<F>(input);
                    for p in 0..panels {
                        let b = before * panels + p * F::words(inputs);
                        let b = self.panels.add(b * panel);
                        Product {
                            rows,
                            k: inputs.div_ceil(F::IN_WORD),
                            a: x.add(row * words + before),
                            a_stride: words,
                            b,
                            c: self.sums.add(p * panel),
                            c_stride: panels * panel,
                            accumulate: input > 0,
                            next: b.wrapping_add(F::words(inputs) * panel),
                        }
                        .run::<S, F>(2);
                    }
                }
                for i in 0..rows {
                    let sums = self.sums.add(i * panels * panel);
                    self.add_outliers::<S>(row + i, sums, panels * panel);
                    self.finish::<S>(row + i, sums);
                }
            }
        }
    }
}

impl Block<'_> {
    /// Weights as panels `[depth block][panel][k][2 LANES]`; panels of the second half follow those of the first.
    #[inline(always)]
    unsafe fn pack<S: Simd, F: Factors>(&self) {
        let Self { layer, shape, .. } = self;
        let panel = panel_columns::<S>();
        let matrix = Matrix {
            data: layer.weight,
            order: layer.order,
            inputs: layer.inputs,
            outputs: layer.outputs * shape.halves,
        };
        let part = |input, inputs, half: usize, column: usize| {
            let column = self.first_column + column;
            Part {
                input,
                inputs,
                output: half * layer.outputs + column,
                outputs: layer.outputs.saturating_sub(column).min(panel),
            }
        };
        let mut to = self.outlying;
        for &k in self.outliers {
            for half in 0..shape.halves {
                for column in (0..self.columns).step_by(panel) {
                    // SAFETY: the part lies in the matrix, and scratch holds these rows.
                    unsafe {
                        matrix.pack::<S>(part(k, 1, half, column), to);
                        to = to.add(panel);
                    }
                }
            }
        }
        let mut to = self.panels;
        for (input, inputs) in shape.split.each() {
            for half in 0..shape.halves {
                for column in (0..self.columns).step_by(panel) {
                    let part = part(input, inputs, half, column);
                    // SAFETY: the part lies in the matrix, and scratch holds all panels.
                    unsafe {
                        if F::PLAIN {
                            matrix.pack::<S>(part, to);
                        } else if !(F::STORED && matrix.pack_whole::<S>(part, to)) {
                            matrix.pack::<S>(part, self.widened);
                            F::panel::<S>(self.widened, inputs, 2, to);
                        }
                        to = to.add(F::words(inputs) * panel);
                    }
                }
            }
        }
    }

    /// Adds the products of a row's outliers to its sums.
    #[inline(always)]
    unsafe fn add_outliers<S: Simd>(&self, row: usize, sums: *mut f32, columns: usize) {
        for (i, &k) in self.outliers.iter().enumerate() {
            // SAFETY: sums and weights have so many columns.
            unsafe {
                let x = S::splat(self.numbers[row * self.layer.inputs + k]);
                for column in (0..columns).step_by(S::LANES) {
                    let weights = S::load(self.outlying.add(i * columns + column));
                    let sum = sums.add(column);
                    S::store(sum, S::fma(x, weights, S::load(sum)));
                }
            }
        }
    }

    /// A row's sums become its output.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, sums: *const f32) {
        let &Self {
            layer,
            first_column,
            columns,
            ..
        } = self;
        let end = (first_column + columns).min(layer.outputs);
        for column in (first_column..end).step_by(S::LANES) {
            let n = S::LANES.min(end - column);
            // SAFETY: n numbers are there; sums have whole vectors.
            unsafe {
                let biased = |half: usize| {
                    let sum = S::load(sums.add(half * columns + column - first_column));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compute;
    use crate::testing::{Random, close, every_level, stored};

    /// The formula, in double precision.
    fn twin(layer: &Linear<'_>, x: &[f32], residual: Option<&[f32]>) -> Vec<f64> {
        let columns = layer.outputs * (1 + usize::from(layer.geglu));
        let w = layer.weight.to_f32(layer.order);
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

    /// At some levels it is single precision.
    #[test]
    fn linear_layers_of_16_bit_numbers_are_close_to_the_formula() {
        let mut random = Random::new(2);
        for case in 0..60 {
            let (compute, tolerance) = [
                (Compute::Bf16, 1e-2),
                (Compute::Int16, 5e-4),
                (Compute::Int8, 2e-2),
            ][case % 3];
            let (rows, inputs, outputs) = (random.size(210), random.size(1500), random.size(150));
            let geglu = case % 5 == 0;
            let columns = outputs * (1 + usize::from(geglu));
            let (x, w) = (
                random.normals(rows * inputs),
                random.normals(inputs * columns),
            );
            let bias = random.normals(columns);
            let order = [Order::InputsFirst, Order::OutputsFirst][case / 8 % 2];
            let w = stored(&w, case, order, columns);
            let layer = Linear {
                weight: w.floats(),
                order,
                inputs,
                outputs,
                bias: Some(&bias),
                activation: Activation::None,
                geglu,
            };
            let expected = twin(&layer, &x, None);
            every_level(|run| {
                run.compute = compute;
                let mut y = vec![f32::NAN; rows * outputs];
                linear(run, &layer, &x, None, &mut y).unwrap();
                close(&y, &expected, tolerance);
                y
            });
        }
    }

    /// Rounding them again would not be.
    #[test]
    fn stored_whole_numbers_are_multiplied_as_they_are() {
        let mut random = Random::new(3);
        let (rows, inputs, outputs) = (9, 644, 96);
        let mut whole = |count: usize| -> Vec<i8> {
            let number = |x: f32| (x * 40.0).round().clamp(-120.0, 120.0) as i8;
            random.normals(count).into_iter().map(number).collect()
        };
        let numbers = whole(inputs * outputs);
        // Rows whose scale is 1.
        let mut x: Vec<f32> = whole(rows * inputs).into_iter().map(f32::from).collect();
        x.iter_mut().step_by(4).for_each(|x| *x = 127.0);
        let scales: Vec<f32> = (0..outputs).map(|i| 0.5f32.powi(i as i32 % 9)).collect();
        let layer = Linear {
            weight: Floats::Int8 {
                numbers: &numbers,
                scales: &scales,
            },
            order: Order::OutputsFirst,
            inputs,
            outputs,
            bias: None,
            activation: Activation::None,
            geglu: false,
        };
        let expected = twin(&layer, &x, None);
        every_level(|run| {
            run.compute = Compute::Int8;
            let mut y = vec![f32::NAN; rows * outputs];
            linear(run, &layer, &x, None, &mut y).unwrap();
            let tolerance = if run.isa.multiplies_int8() {
                1e-6
            } else {
                5e-4
            };
            close(&y, &expected, tolerance);
            y
        });
    }

    /// They would be all that is left of whole numbers with one scale. Their weights are small, so that results need the others.
    #[test]
    fn outlying_channels_cost_the_others_nothing() {
        let mut random = Random::new(4);
        let (rows, inputs, outputs) = (37, 330, 70);
        for (case, geglu) in [(0, false), (3, true)] {
            let columns = outputs * (1 + usize::from(geglu));
            let mut x = random.normals(rows * inputs);
            let mut w = random.normals(inputs * columns);
            for k in [0, 3, 329] {
                x.iter_mut().skip(k).step_by(inputs).for_each(|x| *x *= 1e4);
                w.iter_mut()
                    .skip(k)
                    .step_by(inputs)
                    .for_each(|w| *w *= 1e-4);
            }
            let w = stored(&w, case, Order::OutputsFirst, columns);
            let layer = Linear {
                weight: w.floats(),
                order: Order::OutputsFirst,
                inputs,
                outputs,
                bias: None,
                activation: Activation::None,
                geglu,
            };
            let expected = twin(&layer, &x, None);
            for (compute, tolerance) in [(Compute::Int16, 5e-4), (Compute::Int8, 2e-2)] {
                every_level(|run| {
                    run.compute = compute;
                    let mut y = vec![f32::NAN; rows * outputs];
                    linear(run, &layer, &x, None, &mut y).unwrap();
                    close(&y, &expected, tolerance);
                    y
                });
            }
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
            let order = [Order::InputsFirst, Order::OutputsFirst][case / 4 % 2];
            let w = stored(&w, case, order, columns);
            let layer = Linear {
                weight: w.floats(),
                order,
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
