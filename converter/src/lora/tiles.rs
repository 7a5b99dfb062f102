//! Changes of one weight, applied in single precision, to one tile after the other, on all cores.
//!
//! Every sum runs in an order that does not depend on threads.

use rayon::prelude::*;

use super::{Change, Target, product, tile_rows, vector};
use crate::checkpoint::{Dtype, read_f32, to_f32};
use crate::merge::{Stored, store};
use crate::model::Tensor;
use crate::onnx::{scatter, transpose};

/// Rows whose elements, in half precision, are a line of the cache.
const LINE: usize = 32;

/// A change of a weight, ready to be applied.
pub(super) struct Step<'a> {
    pub(super) adapter: usize,
    pub(super) strength: f64,
    /// Rows of the change that belong to weights before this one.
    pub(super) first_row: usize,
    pub(super) change: Change<'a>,
}

impl Step<'_> {
    /// Changes a tile; returns the sum of squares of the change.
    fn apply(&self, start: usize, tile: &mut [f32], target: &Target<'_>) -> f64 {
        match &self.change {
            Change::Added(delta) => {
                let start = self.first_row * target.columns() + start;
                delta.add(start, self.strength, tile)
            }
            Change::Computed(transform) => transform.apply(start, tile, target, self.strength),
        }
    }

    /// Rows that must lie in one tile.
    fn rows_together(&self, target: &Target<'_>) -> usize {
        match &self.change {
            Change::Added(_) => 1,
            Change::Computed(transform) => transform.rows_together(target),
        }
    }

    /// Whether it needs the whole weight, which it then changes on all cores by itself.
    fn is_global(&self, target: &Target<'_>) -> bool {
        self.rows_together(target) == target.rows() && target.rows() > 1
    }
}

/// A changed weight.
pub(super) struct Applied {
    pub(super) bytes: Vec<u8>,
    pub(super) stored: Stored,
    /// Sum of squares of the weight before.
    pub(super) base: f64,
    /// Sum of squares of each step's change.
    pub(super) changes: Vec<f64>,
}

/// In which order the elements of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As in checkpoints: [out, in].
    Rows,
    /// Transposed: [in, out].
    Columns,
}

/// Applies steps to a weight; the result is stored as `dtype`.
pub(super) fn apply(
    source: &Tensor<'_>,
    steps: &[Step<'_>],
    target: &Target<'_>,
    dtype: Dtype,
    order: Order,
) -> Result<Applied, String> {
    if !steps.iter().any(|step| step.is_global(target)) {
        return apply_to_tiles(source, steps, target, dtype, order);
    }
    let mut applied = apply_to_whole(source, steps, target, dtype)?;
    if order == Order::Columns {
        applied.bytes = transpose(
            &applied.bytes,
            target.rows(),
            target.columns(),
            dtype.size(),
        );
    }
    Ok(applied)
}

/// Rows of a tile: in whole lines of the cache as far as possible, and such that every step finds the rows it needs.
fn rows_of_tiles(steps: &[Step<'_>], target: &Target<'_>, order: Order) -> usize {
    let together = steps.iter().map(|step| step.rows_together(target));
    let together = together.fold(1, lcm);
    let line = match order {
        Order::Rows => 1,
        Order::Columns => LINE,
    };
    let rows = tile_rows(target.columns()).next_multiple_of(line);
    rows.next_multiple_of(together).min(target.rows())
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Where a tile is stored.
enum Place<'a> {
    Rows(&'a mut [u8]),
    /// Its part of each column.
    Columns(Vec<&'a mut [u8]>),
}

impl<'a> Place<'a> {
    /// The places of all tiles of `rows` rows.
    fn of_tiles(
        bytes: &'a mut [u8],
        rows: usize,
        target: &Target<'_>,
        size: usize,
        order: Order,
    ) -> Vec<Self> {
        if order == Order::Rows {
            let tiles = bytes.chunks_mut(rows * target.columns() * size);
            return tiles.map(Self::Rows).collect();
        }
        let count = target.rows().div_ceil(rows);
        let mut tiles: Vec<Vec<&mut [u8]>> = Vec::new();
        tiles.resize_with(count, || Vec::with_capacity(target.columns()));
        for column in bytes.chunks_mut(target.rows() * size) {
            let parts = column.chunks_mut(rows * size);
            tiles
                .iter_mut()
                .zip(parts)
                .for_each(|(tile, part)| tile.push(part));
        }
        tiles.into_iter().map(Self::Columns).collect()
    }

    fn store(self, dtype: Dtype, values: &[f32], columns: usize) -> Stored {
        match self {
            Self::Rows(bytes) => store(dtype, values, bytes),
            Self::Columns(mut places) => {
                let mut bytes = vec![0; values.len() * dtype.size()];
                let stored = store(dtype, values, &mut bytes);
                scatter(&bytes, columns, dtype.size(), &mut places);
                stored
            }
        }
    }
}

/// Everything happens to a tile while it is in a core's cache.
fn apply_to_tiles(
    source: &Tensor<'_>,
    steps: &[Step<'_>],
    target: &Target<'_>,
    dtype: Dtype,
    order: Order,
) -> Result<Applied, String> {
    let rows = rows_of_tiles(steps, target, order);
    let tile = rows * target.columns();
    let mut bytes = vec![0; product(target.shape) * dtype.size()];
    let inputs = source.bytes.par_chunks(tile * source.dtype.size());
    let places = Place::of_tiles(&mut bytes, rows, target, dtype.size(), order);
    let tiles = inputs.zip(places).enumerate();
    let done = tiles.map(|(n, (input, place))| {
        vector::scratch(input.len() / source.dtype.size(), |values| {
            read_f32(source.dtype, input, values)?;
            let base = vector::energy(values);
            let apply = |step: &Step<'_>| step.apply(n * tile, values, target);
            let changes: Vec<f64> = steps.iter().map(apply).collect();
            Ok((base, changes, place.store(dtype, values, target.columns())))
        })
    });
    let done: Vec<(f64, Vec<f64>, Stored)> = done.collect::<Result<_, String>>()?;
    let change = |i: usize| done.iter().map(|(_, changes, _)| changes[i]).sum();
    Ok(Applied {
        base: done.iter().map(|(base, ..)| base).sum(),
        changes: (0..steps.len()).map(change).collect(),
        stored: done
            .iter()
            .map(|(.., stored)| *stored)
            .fold(Stored::Finite, worse),
        bytes,
    })
}

/// The whole weight is held in memory.
fn apply_to_whole(
    source: &Tensor<'_>,
    steps: &[Step<'_>],
    target: &Target<'_>,
    dtype: Dtype,
) -> Result<Applied, String> {
    let mut weight = to_f32(source.dtype, &source.bytes)?;
    let tile = rows_of_tiles(&[], target, Order::Rows) * target.columns();
    let base: Vec<f64> = weight.par_chunks(tile).map(vector::energy).collect();
    let mut changes = Vec::new();
    let is_global = |step: &Step<'_>| step.is_global(target);
    for segment in steps.chunk_by(|a, b| !is_global(a) && !is_global(b)) {
        if is_global(&segment[0]) {
            changes.push(segment[0].apply(0, &mut weight, target));
            continue;
        }
        let tile = rows_of_tiles(segment, target, Order::Rows) * target.columns();
        let tiles = weight.par_chunks_mut(tile).enumerate();
        let done = tiles.map(|(n, values)| {
            let apply = |step: &Step<'_>| step.apply(n * tile, values, target);
            segment.iter().map(apply).collect::<Vec<f64>>()
        });
        let done: Vec<Vec<f64>> = done.collect();
        let change = |i: usize| done.iter().map(|changes| changes[i]).sum();
        changes.extend((0..segment.len()).map(change).collect::<Vec<f64>>());
    }
    let mut bytes = vec![0; weight.len() * dtype.size()];
    let tiles = weight
        .par_chunks(tile)
        .zip(bytes.par_chunks_mut(tile * dtype.size()));
    let stored = tiles.map(|(values, output)| store(dtype, values, output));
    let stored = stored.collect::<Vec<Stored>>();
    let stored = stored.into_iter().fold(Stored::Finite, worse);
    Ok(Applied {
        bytes,
        stored,
        base: base.iter().sum(),
        changes,
    })
}

fn worse(a: Stored, b: Stored) -> Stored {
    if a == Stored::Finite { b } else { a }
}
