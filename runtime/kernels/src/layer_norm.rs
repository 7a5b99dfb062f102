//! Layer normalization (Ba et al. 2016) of rows.
//!
//! A row stays in the first-level cache while its mean, the sums of distances from it and the result are computed. Those sums
//! also correct the mean, which single precision leaves inexact where it is far from zero.

use crate::Run;
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::scratch::Shared;
use crate::simd::Simd;

/// A normalization of rows.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Added to the variance.
    pub epsilon: f32,
    /// One factor for each column.
    pub weight: &'a [f32],
    /// One number for each column.
    pub bias: &'a [f32],
}

/// Numbers of a task.
const BLOCK: usize = 16 << 10;

/// `x` [rows, columns] -> `y` like it.
///
/// # Panics
/// Lengths that do not fit together.
pub fn layer_norm(run: &mut Run<'_>, layer: &LayerNorm<'_>, x: &[f32], y: &mut [f32]) {
    let columns = layer.weight.len();
    assert_eq!(layer.bias.len(), columns, "bias");
    assert_eq!(y.len(), x.len(), "result");
    if x.is_empty() {
        return;
    }
    assert!(
        columns > 0 && x.len().is_multiple_of(columns),
        "rows of {columns} numbers"
    );
    let block = (BLOCK / columns).max(1) * columns;
    let y = Shared::new(y);
    for_each_task(run.pool, x.len().div_ceil(block), &|task, _| {
        let start = task * block;
        let rows = Rows {
            layer,
            x: &x[start..(start + block).min(x.len())],
            y: y.at(start),
        };
        // Tasks are different rows of y.
        run.isa.dispatch(rows);
    });
}

/// Some of the rows.
struct Rows<'a> {
    layer: &'a LayerNorm<'a>,
    x: &'a [f32],
    y: *mut f32,
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { layer, x, y } = self;
        let columns = layer.weight.len();
        let whole = columns / S::LANES * S::LANES;
        let (weight, bias) = (layer.weight.as_ptr(), layer.bias.as_ptr());
        let count = columns as f32;
        for row in (0..x.len()).step_by(columns) {
            // SAFETY: loads and stores end with a row.
            unsafe {
                let (x, y) = (x.as_ptr().add(row), y.add(row));
                let center = sum::<S>(x, columns) / count;
                let (sum, squares) = distances::<S>(x, columns, center);
                let rest = sum / count;
                let variance = (squares / count - rest * rest).max(0.0);
                let deviation = S::splat(1.0 / (variance + layer.epsilon).sqrt());
                let (center, rest) = (S::splat(center), S::splat(rest));
                for column in (0..columns).step_by(S::LANES) {
                    let n = S::LANES.min(columns - column);
                    let x = load::<S>(x, column, whole, n);
                    let distance = S::sub(S::sub(x, center), rest);
                    let y_n = S::fma(
                        S::mul(distance, deviation),
                        load::<S>(weight, column, whole, n),
                        load::<S>(bias, column, whole, n),
                    );
                    if column < whole {
                        S::store(y.add(column), y_n);
                    } else {
                        S::store_first(y.add(column), y_n, n);
                    }
                }
            }
        }
    }
}

/// A vector of a row, of which the last one may have only `n` numbers.
#[inline(always)]
unsafe fn load<S: Simd>(row: *const f32, column: usize, whole: usize, n: usize) -> S::V {
    unsafe {
        if column < whole {
            S::load(row.add(column))
        } else {
            S::load_first(row.add(column), n)
        }
    }
}

/// Sums that run beside each other.
const LANES: usize = 4;

/// The sum of a row.
#[inline(always)]
unsafe fn sum<S: Simd>(x: *const f32, columns: usize) -> f32 {
    let step = LANES * S::LANES;
    let unrolled = columns / step * step;
    unsafe {
        let mut sums = [S::splat(0.0); LANES];
        for column in (0..unrolled).step_by(step) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(x.add(column + i * S::LANES)));
            }
        }
        for column in (unrolled..columns).step_by(S::LANES) {
            let n = S::LANES.min(columns - column);
            sums[0] = S::add(sums[0], S::load_first(x.add(column), n));
        }
        total::<S>(sums)
    }
}

/// The sums of distances from `center` and of their squares.
#[inline(always)]
unsafe fn distances<S: Simd>(x: *const f32, columns: usize, center: f32) -> (f32, f32) {
    let step = LANES * S::LANES;
    let unrolled = columns / step * step;
    unsafe {
        let around = S::splat(center);
        let (mut sums, mut squares) = ([S::splat(0.0); LANES], [S::splat(0.0); LANES]);
        for column in (0..unrolled).step_by(step) {
            for i in 0..LANES {
                let distance = S::sub(S::load(x.add(column + i * S::LANES)), around);
                sums[i] = S::add(sums[i], distance);
                squares[i] = S::fma(distance, distance, squares[i]);
            }
        }
        let (mut sum, mut square) = (total::<S>(sums), total::<S>(squares));
        let whole = columns / S::LANES * S::LANES;
        let (mut sums, mut squares) = (S::splat(0.0), S::splat(0.0));
        for column in (unrolled..whole).step_by(S::LANES) {
            let distance = S::sub(S::load(x.add(column)), around);
            sums = S::add(sums, distance);
            squares = S::fma(distance, distance, squares);
        }
        sum += S::sum(sums);
        square += S::sum(squares);
        for column in whole..columns {
            let distance = *x.add(column) - center;
            sum += distance;
            square += distance * distance;
        }
        (sum, square)
    }
}

#[inline(always)]
unsafe fn total<S: Simd>(sums: [S::V; LANES]) -> f32 {
    unsafe { S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close, every_level};

    /// The formula, in double precision.
    fn twin(layer: &LayerNorm<'_>, x: &[f32]) -> Vec<f64> {
        let columns = layer.weight.len();
        let normalize = |x: &[f32]| {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let mean = x.iter().sum::<f64>() / columns as f64;
            let squares: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
            let deviation = (squares / columns as f64 + f64::from(layer.epsilon)).sqrt();
            let affine = x.iter().zip(layer.weight).zip(layer.bias);
            affine
                .map(|((x, &w), &b)| (x - mean) / deviation * f64::from(w) + f64::from(b))
                .collect::<Vec<_>>()
        };
        x.chunks(columns).flat_map(normalize).collect()
    }

    fn check(layer: &LayerNorm<'_>, x: &[f32], tolerance: f64) {
        let expected = twin(layer, x);
        every_level(|run| {
            let mut y = vec![f32::NAN; x.len()];
            layer_norm(run, layer, x, &mut y);
            close(&y, &expected, tolerance);
            y
        });
    }

    #[test]
    fn layer_norms_equal_the_formula_at_every_level() {
        let mut random = Random::new(7);
        for case in 0..60 {
            let (rows, columns) = (random.size(100), random.size(1500));
            let far = [0.0, 3.0, 1e4][case % 3];
            let x: Vec<f32> = random
                .normals(rows * columns)
                .iter()
                .map(|x| x + far)
                .collect();
            let (weight, bias) = (random.normals(columns), random.normals(columns));
            let layer = LayerNorm {
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
            };
            check(&layer, &x, 1e-6);
        }
    }

    #[test]
    fn equal_and_subnormal_numbers_become_the_bias() {
        let layer = LayerNorm {
            epsilon: 1e-5,
            weight: &[2.0; 21],
            bias: &[0.5; 21],
        };
        check(&layer, &[123.456; 21 * 3], 1e-6);
        let tiny: Vec<f32> = Random::new(8)
            .normals(21 * 3)
            .iter()
            .map(|x| x * 1e-40)
            .collect();
        check(&layer, &tiny, 1e-6);
    }
}
