//! Loops over many numbers, compiled for the vector units of the machine they run on.
//!
//! Sums are taken in 64 lanes whatever the machine, so that results do not depend on it.

#![expect(
    clippy::inline_always,
    reason = "what runs under `Arch::dispatch` must be compiled with its features"
)]

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

const LANES: usize = 64;

#[inline(always)]
fn add_squares(lanes: &mut [f32; LANES], chunk: &[f32; LANES]) {
    for i in 0..LANES {
        lanes[i] = chunk[i].mul_add(chunk[i], lanes[i]);
    }
}

/// Changes of elements, each by a rule for its value and another number.
struct Change<'a, F> {
    values: &'a mut [f32],
    others: &'a [f32],
    rule: F,
}

impl<F: Fn(f32, f32) -> f32> WithSimd for Change<'_, F> {
    /// Sum of squares of the changes.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0f32; LANES];
        let others = &self.others[..self.values.len()];
        let (values, values_rest) = self.values.as_chunks_mut::<LANES>();
        let (others, others_rest) = others.as_chunks::<LANES>();
        for (values, others) in values.iter_mut().zip(others) {
            for i in 0..LANES {
                let change = (self.rule)(values[i], others[i]);
                values[i] += change;
                lanes[i] = change.mul_add(change, lanes[i]);
            }
        }
        let mut rest = 0.0;
        for (value, other) in values_rest.iter_mut().zip(others_rest) {
            let change = (self.rule)(*value, *other);
            *value += change;
            rest += f64::from(change) * f64::from(change);
        }
        lanes.iter().map(|x| f64::from(*x)).sum::<f64>() + rest
    }
}

#[inline]
fn change(values: &mut [f32], others: &[f32], rule: impl Fn(f32, f32) -> f32) -> f64 {
    Arch::new().dispatch(Change {
        values,
        others,
        rule,
    })
}

/// `values += changes`; returns the sum of squares of the changes.
pub(super) fn add(values: &mut [f32], changes: &[f32]) -> f64 {
    change(
        values,
        changes,
        #[inline(always)]
        |_, x| x,
    )
}

/// `values += factor * others`; returns the sum of squares of the changes.
pub(super) fn add_scaled(values: &mut [f32], factor: f64, others: &[f32]) -> f64 {
    let factor = factor as f32;
    change(
        values,
        others,
        #[inline(always)]
        |_, x| factor * x,
    )
}

/// `values += scale * outer (x) inner`, a row of a Kronecker product; returns the sum of squares of the changes.
pub(super) fn add_outer(values: &mut [f32], scale: f32, outer: &[f32], inner: &[f32]) -> f64 {
    let energy = f64::from(scale) * f64::from(scale) * energy(outer) * energy(inner);
    Arch::new().dispatch(AddOuter {
        values,
        scale,
        outer,
        inner,
    });
    energy
}

struct AddOuter<'a> {
    values: &'a mut [f32],
    scale: f32,
    outer: &'a [f32],
    inner: &'a [f32],
}

impl WithSimd for AddOuter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let blocks = self.values.chunks_exact_mut(self.inner.len());
        for (values, outer) in blocks.zip(self.outer) {
            let factor = self.scale * outer;
            for (value, inner) in values.iter_mut().zip(self.inner) {
                *value = factor.mul_add(*inner, *value);
            }
        }
    }
}

/// `values += strength * (factor * others - values)`; returns the sum of squares of the changes.
pub(super) fn interpolate(values: &mut [f32], strength: f64, factor: f64, others: &[f32]) -> f64 {
    let (strength, factor) = (strength as f32, factor as f32);
    change(
        values,
        others,
        #[inline(always)]
        |w, v| strength * factor.mul_add(v, -w),
    )
}

/// `values += strength * (factors * others - values)`; returns the sum of squares of the changes.
pub(super) fn interpolate_each(
    values: &mut [f32],
    strength: f64,
    factors: &[f32],
    others: &[f32],
) -> f64 {
    scratch(others.len(), |scaled| {
        scaled.copy_from_slice(others);
        multiply(scaled, factors);
        interpolate(values, strength, 1.0, scaled)
    })
}

/// `values += offset * values`; returns the sum of squares of the changes.
pub(super) fn stretch(values: &mut [f32], offset: f64) -> f64 {
    let offset_squared = offset * offset;
    offset_squared
        * Arch::new().dispatch(Stretch {
            values,
            factor: (1.0 + offset) as f32,
        })
}

struct Stretch<'a> {
    values: &'a mut [f32],
    factor: f32,
}

impl WithSimd for Stretch<'_> {
    /// Sum of squares before.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = self.values.as_chunks_mut::<LANES>();
        for chunk in chunks {
            add_squares(&mut lanes, chunk);
            chunk.iter_mut().for_each(|x| *x *= self.factor);
        }
        let mut squares = 0.0;
        for value in rest {
            squares += f64::from(*value) * f64::from(*value);
            *value *= self.factor;
        }
        lanes.iter().map(|x| f64::from(*x)).sum::<f64>() + squares
    }
}

/// `values += offsets * values`; returns the sum of squares of the changes.
pub(super) fn stretch_each(values: &mut [f32], offsets: &[f32]) -> f64 {
    change(
        values,
        offsets,
        #[inline(always)]
        |w, offset| offset * w,
    )
}

/// Sum of squares, for reports: in single precision.
pub(super) fn energy(values: &[f32]) -> f64 {
    Arch::new().dispatch(Energy(values))
}

struct Energy<'a>(&'a [f32]);

impl WithSimd for Energy<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut lanes = [0.0f32; LANES];
        for chunk in chunks {
            add_squares(&mut lanes, chunk);
        }
        let rest = rest.iter().map(|x| f64::from(*x) * f64::from(*x));
        lanes.iter().map(|x| f64::from(*x)).sum::<f64>() + rest.sum::<f64>()
    }
}

/// Sum of squares, for formulas: in double precision, but for the sums of eight.
pub(super) fn squares(values: &[f32]) -> f64 {
    Arch::new().dispatch(Squares(values))
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        // Single precision makes no error here that is more than those of the weights.
        for chunks in chunks.chunks(8) {
            let mut singles = [0.0f32; LANES];
            for chunk in chunks {
                add_squares(&mut singles, chunk);
            }
            for i in 0..LANES {
                lanes[i] += f64::from(singles[i]);
            }
        }
        let rest = rest.iter().map(|x| f64::from(*x) * f64::from(*x));
        lanes.iter().sum::<f64>() + rest.sum::<f64>()
    }
}

/// `out = out * values`, element by element.
pub(super) fn multiply(out: &mut [f32], values: &[f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || out.iter_mut().zip(values).for_each(|(out, x)| *out *= x),
    );
}

/// Calls `use_it` with numbers of the thread's own, which hold anything.
pub(super) fn scratch<T>(length: usize, use_it: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local! {
        static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    let result = use_it(&mut buffer[..length]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_measured() {
        let numbers = |f: fn(f32) -> f32| -> Vec<f32> { (0..37u8).map(|n| f(n.into())).collect() };
        let expected = 36.0 * 37.0 * 73.0 / 6.0;
        assert_eq!(squares(&numbers(|x| x)), expected);
        assert_eq!(energy(&numbers(|x| x)), expected);
        let mut values = numbers(|x| x);
        assert_eq!(add(&mut values, &numbers(|x| x)), expected);
        assert_eq!(values, numbers(|x| 2.0 * x));
        assert_eq!(stretch(&mut values, -0.5), expected);
        assert_eq!(stretch_each(&mut values, &numbers(|_| 1.0)), expected);
        assert_eq!(interpolate(&mut values, 0.5, 2.0, &numbers(|x| x)), 0.0);
        assert_eq!(
            interpolate_each(&mut values, 1.0, &numbers(|_| 3.0), &numbers(|x| x)),
            expected
        );
        assert_eq!(values, numbers(|x| 3.0 * x));
    }
}
