//! Kernels of 3 with stride 1 by Winograd's algorithm F(4 x 4, 3 x 3): a quarter of the multiplications (Winograd 1980; Lavin
//! and Gray 2016, arXiv:1509.09308).
//!
//! A tile is 4 x 4 pixels of the output, made of 6 x 6 of the input. Input tiles, weights and output tiles are transformed, and
//! between them stand 36 products of matrices: `m[xi][tile][output] = v[xi][tile][input] u[xi][input][output]`. The points are 0,
//! +-5/8, +-5/4 and infinity: all constants but the weights' are exact, and errors are half of those of 0, +-1, +-2.
//!
//! Weights are transformed at run time, since transformed ones are four times as large and need single precision. There are two
//! orders. With many tiles, all weights are transformed first, and each task takes some tiles with all their channels. With few,
//! all tiles are transformed first, and each task takes some outputs with all their weights, which it transforms block by block.

// Loops over the rows and columns of small matrices.
#![allow(clippy::needless_range_loop)]

use super::{Conv, Pictures, load, spread};
use crate::factors::{FactorTask, Factors, Kind, vectorize};
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::product::{Product, panel_columns};
use crate::rows::{CHUNK, Rows};
use crate::scratch::Shared;
use crate::simd::Simd;
use crate::{OutOfMemory, Run};

/// Height and width of a tile of the output.
const TILE: usize = 4;
/// Height and width of a tile of the input.
const WIDE: usize = 6;
/// Products for each tile.
const POINTS: usize = WIDE * WIDE;
const TAPS: usize = 9;

/// The points, and their powers.
const A: f32 = 0.625;
const B: f32 = 1.25;
const A2: f32 = A * A;
const B2: f32 = B * B;
const A3: f32 = A * A2;
const B3: f32 = B * B2;
/// What Lagrange's polynomials are divided by at 0, A and B.
const AT_0: f32 = A2 * B2;
const AT_A: f32 = 2.0 * A2 * (A2 - B2);
const AT_B: f32 = 2.0 * B2 * (B2 - A2);

/// Fewest tiles whose products are worth rounding the weights for.
const ROUNDED_TILES: usize = 16;

/// Largest layer whose transformed weights are kept while its tiles are done, in words: 48 MB.
const KEPT: usize = 12 << 20;
/// Numbers of transformed tiles that are kept at a time otherwise: 64 MB.
const KEPT_TILES: usize = 16 << 20;

/// Inputs of a block of weights are a multiple of this: whole chunks and whole vectors.
const DEPTH_STEP: usize = 16;

/// Whether it takes less time than the direct way: tiles are filled well, and vectors as well.
pub(super) fn pays(layer: &Conv<'_>, pictures: &Pictures<'_>) -> bool {
    let (height, width) = pictures.size;
    layer.kernel == 3
        && layer.stride == 1
        && layer.inputs >= 16
        && layer.outputs >= 16
        && pictures.many * height * width > tiles(pictures) * TILE * TILE / 2
}

/// Tiles of all pictures.
fn tiles(pictures: &Pictures<'_>) -> usize {
    let (height, width) = pictures.size;
    pictures.many * height.div_ceil(TILE) * width.div_ceil(TILE)
}

/// The convolution of all pictures.
pub(super) struct Winograd<'a, 'r> {
    pub run: &'a mut Run<'r>,
    pub pictures: Pictures<'a>,
}

impl Task for Winograd<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let factors = match self.run.factors() {
            _ if tiles(&self.pictures) < ROUNDED_TILES => Kind::Single,
            // Transforms take more digits than these have: the error would be 1 or 2 %.
            Kind::Bf16 | Kind::Int8 => Kind::Int16,
            other => other,
        };
        // SAFETY: the caller's promise.
        unsafe { factors.dispatch::<S, _>(self) }
    }
}

impl FactorTask for Winograd<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) -> Self::Output {
        let Self { run, pictures } = self;
        let &Conv {
            inputs, outputs, ..
        } = pictures.layer;
        let tiles = tiles(&pictures);
        let words = POINTS * F::words(inputs) * outputs;
        let tiles_first = tiles < 192 || words > KEPT;
        // Small blocks of weights, so that they stay in the second-level cache beside their outputs; blocks that all tasks share are
        // read from farther away.
        let (columns, depth) = if tiles_first { (32, 48) } else { (64, 320) };
        let columns = columns.max(panel_columns::<S>());
        let columns = outputs
            .div_ceil(outputs.div_ceil(columns))
            .next_multiple_of(panel_columns::<S>());
        let work = Work {
            down: pictures.size.0.div_ceil(TILE),
            across: pictures.size.1.div_ceil(TILE),
            pictures,
            tiles,
            columns,
            depth: inputs
                .div_ceil(inputs.div_ceil(depth))
                .next_multiple_of(DEPTH_STEP),
        };
        // SAFETY: the caller's promise.
        unsafe {
            if tiles_first {
                work.tiles_first::<S, F>(run)
            } else {
                work.weights_first::<S, F>(run)
            }
        }
    }
}

/// How the work is cut.
struct Work<'a> {
    pictures: Pictures<'a>,
    /// Tiles of a picture.
    down: usize,
    across: usize,
    /// Tiles of all.
    tiles: usize,
    /// Outputs of a block of weights, whole panels.
    columns: usize,
    /// Inputs of a block of weights.
    depth: usize,
}

impl Work<'_> {
    fn input_blocks(&self) -> usize {
        self.pictures.layer.inputs.div_ceil(self.depth)
    }

    fn output_blocks(&self) -> usize {
        self.pictures.layer.outputs.div_ceil(self.columns)
    }

    /// Inputs of block `i`.
    fn inputs(&self, i: usize) -> usize {
        self.depth.min(self.pictures.layer.inputs - i * self.depth)
    }

    /// Words between two points of a block of weights.
    fn u_plane<F: Factors>(&self) -> usize {
        spread(F::words(self.depth) * self.columns)
    }

    /// Words between two points of one block of inputs of `tiles` tiles.
    fn v_plane<F: Factors>(&self, tiles: usize) -> usize {
        spread(F::words(self.depth) * tiles)
    }

    /// Numbers between two points of what is transformed, before it is rounded to factors: `columns` of a block of inputs.
    fn rounded_plane(&self, columns: usize) -> usize {
        spread(self.depth * columns)
    }

    /// Numbers of a panel that is transformed, before they are rounded to factors.
    fn rounded<S: Simd, F: Factors>(&self) -> usize {
        if F::PLAIN {
            0
        } else {
            POINTS * self.rounded_plane(panel_columns::<S>())
        }
    }

    /// Numbers between two points of a block of outputs of `tiles` tiles.
    fn m_plane(&self, tiles: usize) -> usize {
        spread(self.columns * tiles)
    }

    /// Room for a row of zeros that vectors may read to its end.
    fn zeros(&self) -> usize {
        self.pictures.layer.inputs.next_multiple_of(16)
    }

    /// All weights are transformed; then each task takes some tiles with all their channels.
    #[inline(always)]
    unsafe fn weights_first<S: Simd, F: Factors>(
        &self,
        run: &mut Run<'_>,
    ) -> Result<(), OutOfMemory> {
        /// Tiles that share a pass over the weights.
        const TILES: usize = 48;
        let workers = run.pool.workers();
        let blocks = self.input_blocks() * self.output_blocks();
        let panels = self.columns / panel_columns::<S>();
        let tasks = self.tiles.div_ceil(TILES).next_multiple_of(workers);
        let most = self.tiles.div_ceil(tasks);
        let tasks = self.tiles.div_ceil(most);

        let u_size = blocks * POINTS * self.u_plane::<F>();
        let v_size = self.input_blocks() * POINTS * self.v_plane::<F>(most);
        let m_size = POINTS * self.m_plane(most);
        let rounded = self.rounded::<S, F>();
        let (shared, own) =
            run.scratch
                .take(self.zeros() + u_size, v_size + m_size + rounded, workers)?;
        self.clear_zeros(&shared);
        for_each_task(run.pool, blocks * panels, &|task, worker| {
            let (block, panel) = (task / panels, task % panels);
            let task = WeightsTask {
                work: self,
                rounded: own[worker].at(v_size + m_size),
                output: block / self.input_blocks(),
                input: block % self.input_blocks(),
                panel,
                u: shared.at(self.zeros() + block * POINTS * self.u_plane::<F>()),
            };
            // SAFETY: tasks are different panels of the weights; the level was chosen by `dispatch`.
            unsafe { vectorize::<S, F, _>(task) };
        });
        for_each_task(run.pool, tasks, &|task, worker| {
            let task = TilesTask {
                work: self,
                first: task * most,
                last: self.tiles.min((task + 1) * most),
                room: most,
                zeros: shared.at(0),
                u: shared.at(self.zeros()),
                v: own[worker].at(0),
                m: own[worker].at(v_size),
                rounded: own[worker].at(v_size + m_size),
            };
            // SAFETY: tasks are different tiles of the output; scratch is the worker's own.
            unsafe { vectorize::<S, F, _>(task) };
        });
        Ok(())
    }

    /// Tiles are transformed; then each task takes some outputs of them with all their weights.
    #[inline(always)]
    unsafe fn tiles_first<S: Simd, F: Factors>(
        &self,
        run: &mut Run<'_>,
    ) -> Result<(), OutOfMemory> {
        let workers = run.pool.workers();
        let most = KEPT_TILES / POINTS / self.pictures.layer.inputs;
        let most = self.tiles.div_ceil(self.tiles.div_ceil(most.clamp(1, 512)));
        // Where there are more workers than blocks of outputs, a block's tiles are split, and its weights are transformed twice.
        let parts = workers
            .div_ceil(self.output_blocks())
            .min(most.div_ceil(16));
        let part = most.div_ceil(parts);

        let v_size = self.input_blocks() * POINTS * self.v_plane::<F>(most);
        let u_size = POINTS * self.u_plane::<F>();
        let m_size = POINTS * self.m_plane(part);
        let rounded = self.rounded::<S, F>();
        let (shared, own) =
            run.scratch
                .take(self.zeros() + v_size, u_size + m_size + rounded, workers)?;
        self.clear_zeros(&shared);
        for start in (0..self.tiles).step_by(most) {
            let end = self.tiles.min(start + most);
            for_each_task(run.pool, end - start, &|tile, worker| {
                let task = InputTask {
                    work: self,
                    rounded: own[worker].at(u_size + m_size),
                    tile: start + tile,
                    slot: tile,
                    room: most,
                    zeros: shared.at(0),
                    v: shared.at(self.zeros()),
                };
                // SAFETY: tasks are different tiles; the level was chosen by `dispatch`.
                unsafe { vectorize::<S, F, _>(task) };
            });
            for_each_task(run.pool, self.output_blocks() * parts, &|task, worker| {
                let first = start + task % parts * part;
                let task = OutputsTask {
                    work: self,
                    output: task / parts,
                    first,
                    last: end.min(first + part),
                    slot: first - start,
                    room: most,
                    part,
                    v: shared.at(self.zeros()),
                    u: own[worker].at(0),
                    m: own[worker].at(u_size),
                    rounded: own[worker].at(u_size + m_size),
                };
                // SAFETY: tasks are different outputs or tiles; scratch is the worker's own.
                unsafe { vectorize::<S, F, _>(task) };
            });
        }
        Ok(())
    }

    fn clear_zeros(&self, shared: &Shared<'_, f32>) {
        // SAFETY: it is the start of the memory, and nobody else uses it yet.
        unsafe { shared.at(0).write_bytes(0, self.zeros()) };
    }

    /// Transforms the weights of one panel of a block: `u[xi][panel][input][2 LANES]`.
    #[inline(always)]
    unsafe fn weights<S: Simd, F: Factors>(
        &self,
        output: usize,
        input: usize,
        panel: usize,
        rounded: *mut f32,
        u: *mut f32,
    ) {
        let layer = self.pictures.layer;
        let columns = panel_columns::<S>();
        let first = output * self.columns + panel * columns;
        if first >= layer.outputs {
            return;
        }
        let length = layer.inputs * TAPS;
        let inputs = self.inputs(input);
        let start = input * self.depth * TAPS;
        let u = u.wrapping_add(panel * F::words(inputs) * columns);
        let (to, plane) = if F::PLAIN {
            (u, self.u_plane::<F>())
        } else {
            (rounded, self.rounded_plane(columns))
        };
        let halves = [first, first + S::LANES]
            .map(|first| Rows::new(layer.weight, length, layer.outputs, first, start));
        let mut turned = [0.0f32; CHUNK * TAPS * 16];
        unsafe {
            for k in (0..inputs).step_by(CHUNK) {
                let n = CHUNK.min(inputs - k);
                for (half, rows) in halves.iter().enumerate() {
                    rows.turn::<S>(k * TAPS, n * TAPS, turned.as_mut_ptr(), S::LANES);
                    for i in 0..n {
                        weight_transform::<S>(
                            turned.as_ptr().add(i * TAPS * S::LANES),
                            to.add((k + i) * columns + half * S::LANES),
                            plane,
                        );
                    }
                }
            }
            if !F::PLAIN {
                for xi in 0..POINTS {
                    let u = u.add(xi * self.u_plane::<F>());
                    F::panel::<S>(to.add(xi * plane), inputs, 2, u);
                }
            }
        }
    }

    /// Transforms tile number `tile` of the input: `v[input block][xi][slot][input]`, with room for `room` tiles.
    #[inline(always)]
    unsafe fn input<S: Simd, F: Factors>(
        &self,
        tile: usize,
        (slot, room): (usize, usize),
        zeros: *const f32,
        rounded: *mut f32,
        v: *mut f32,
    ) {
        let (picture, y, x) = self.place(tile);
        let mut pixels = [zeros; POINTS];
        let mut columns = [None; WIDE];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = self.pictures.column(x + j);
        }
        for i in 0..WIDE {
            let row = self.pictures.row(y + i);
            for (j, &column) in columns.iter().enumerate() {
                pixels[i * WIDE + j] = self.pictures.pixel(picture, row, column, zeros);
            }
        }
        let v_plane = self.v_plane::<F>(room);
        unsafe {
            for block in 0..self.input_blocks() {
                let v = v.add(block * POINTS * v_plane + slot * F::words(self.depth));
                let (to, plane) = if F::PLAIN {
                    (v, v_plane)
                } else {
                    (rounded, self.rounded_plane(1))
                };
                let (start, inputs) = (block * self.depth, self.inputs(block));
                let whole = inputs / S::LANES * S::LANES;
                for k in (0..whole).step_by(S::LANES) {
                    input_transform::<S, true>(&pixels, start + k, S::LANES, to.add(k), plane);
                }
                if whole < inputs {
                    let n = inputs - whole;
                    input_transform::<S, false>(&pixels, start + whole, n, to.add(whole), plane);
                }
                if !F::PLAIN {
                    for xi in 0..POINTS {
                        F::row::<S>(to.add(xi * plane), inputs, v.add(xi * v_plane));
                    }
                }
            }
        }
    }

    /// The 36 products of one block of weights and some tiles.
    #[inline(always)]
    unsafe fn products<S: Simd, F: Factors>(
        &self,
        input: usize,
        tiles: usize,
        (v, v_plane): (*const f32, usize),
        u: *const f32,
        (m, m_plane): (*mut f32, usize),
    ) {
        let inputs = self.inputs(input);
        let words = F::words(inputs);
        let columns = panel_columns::<S>();
        let panels = self.columns / columns;
        for xi in 0..POINTS {
            for panel in 0..panels {
                let b = u.wrapping_add(xi * self.u_plane::<F>() + panel * words * columns);
                let last = panel + 1 == panels;
                let next = if last {
                    u.wrapping_add((xi + 1) * self.u_plane::<F>())
                } else {
                    b.wrapping_add(words * columns)
                };
                let product = Product {
                    rows: tiles,
                    k: inputs.div_ceil(F::IN_WORD),
                    a: v.wrapping_add(xi * v_plane),
                    a_stride: F::words(self.depth),
                    b,
                    c: m.wrapping_add(xi * m_plane + panel * columns),
                    c_stride: self.columns,
                    accumulate: input > 0,
                    next,
                };
                // SAFETY: the blocks are there: the caller's promise.
                unsafe { product.run::<S, F>(2) };
            }
        }
    }

    /// Transforms a block of outputs of tile number `tile` and finishes it.
    #[inline(always)]
    unsafe fn output<S: Simd>(&self, tile: usize, output: usize, m: *const f32, plane: usize) {
        let (picture, y, x) = self.place(tile);
        let (height, width) = self.pictures.size;
        let (rows, columns) = (TILE.min(height - y), TILE.min(width - x));
        let first = output * self.columns;
        let last = self.pictures.layer.outputs.min(first + self.columns);
        for channel in (first..last).step_by(S::LANES) {
            let n = S::LANES.min(last - channel);
            unsafe {
                let offset = self.pictures.offset::<S>(picture, channel, n);
                let sums = output_transform::<S>(m.add(channel - first), plane);
                for (i, row) in sums.iter().enumerate().take(rows) {
                    for (j, &sum) in row.iter().enumerate().take(columns) {
                        let pixel = (y + i) * width + x + j;
                        let sum = S::add(sum, offset);
                        self.pictures.finish::<S>(picture, pixel, channel, n, sum);
                    }
                }
            }
        }
    }

    /// Picture, row and column of a tile's first pixel.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (line, x) = (tile / self.across, tile % self.across);
        (line / self.down, line % self.down * TILE, x * TILE)
    }
}

/// Transforms one panel of a block of weights.
struct WeightsTask<'a> {
    work: &'a Work<'a>,
    output: usize,
    input: usize,
    panel: usize,
    rounded: *mut f32,
    u: *mut f32,
}

impl FactorTask for WeightsTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        unsafe {
            self.work
                .weights::<S, F>(self.output, self.input, self.panel, self.rounded, self.u);
        }
    }
}

/// Transforms one tile of the input.
struct InputTask<'a> {
    work: &'a Work<'a>,
    tile: usize,
    slot: usize,
    room: usize,
    zeros: *const f32,
    rounded: *mut f32,
    v: *mut f32,
}

impl FactorTask for InputTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        unsafe {
            let place = (self.slot, self.room);
            self.work
                .input::<S, F>(self.tile, place, self.zeros, self.rounded, self.v);
        }
    }
}

/// Some tiles with all their channels.
struct TilesTask<'a> {
    work: &'a Work<'a>,
    first: usize,
    last: usize,
    room: usize,
    zeros: *const f32,
    u: *const f32,
    v: *mut f32,
    m: *mut f32,
    rounded: *mut f32,
}

impl FactorTask for TilesTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let Self {
            work,
            first,
            last,
            room,
            zeros,
            u,
            v,
            m,
            rounded,
        } = self;
        let (v_plane, m_plane) = (work.v_plane::<F>(room), work.m_plane(room));
        unsafe {
            for tile in first..last {
                work.input::<S, F>(tile, (tile - first, room), zeros, rounded, v);
            }
            for output in 0..work.output_blocks() {
                for input in 0..work.input_blocks() {
                    let block = output * work.input_blocks() + input;
                    work.products::<S, F>(
                        input,
                        last.saturating_sub(first),
                        (v.add(input * POINTS * v_plane), v_plane),
                        u.add(block * POINTS * work.u_plane::<F>()),
                        (m, m_plane),
                    );
                }
                for tile in first..last {
                    let m = m.add((tile - first) * work.columns);
                    work.output::<S>(tile, output, m, m_plane);
                }
            }
        }
    }
}

/// A block of outputs of some tiles.
struct OutputsTask<'a> {
    work: &'a Work<'a>,
    output: usize,
    first: usize,
    last: usize,
    /// Where the first tile lies among the transformed ones.
    slot: usize,
    room: usize,
    /// Tiles that `m` has room for.
    part: usize,
    v: *const f32,
    u: *mut f32,
    m: *mut f32,
    rounded: *mut f32,
}

impl FactorTask for OutputsTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let Self {
            work,
            output,
            first,
            last,
            slot,
            room,
            part,
            v,
            u,
            m,
            rounded,
        } = self;
        if first >= last {
            return;
        }
        let (v_plane, m_plane) = (work.v_plane::<F>(room), work.m_plane(part));
        unsafe {
            for input in 0..work.input_blocks() {
                for panel in 0..work.columns / panel_columns::<S>() {
                    work.weights::<S, F>(output, input, panel, rounded, u);
                }
                let v = v.add(input * POINTS * v_plane + slot * F::words(work.depth));
                work.products::<S, F>(input, last - first, (v, v_plane), u, (m, m_plane));
            }
            for tile in first..last {
                let m = m.add((tile - first) * work.columns);
                work.output::<S>(tile, output, m, m_plane);
            }
        }
    }
}

/// Six numbers of the input at the six points.
#[inline(always)]
unsafe fn input_points<S: Simd>(d: [S::V; WIDE]) -> [S::V; WIDE] {
    unsafe {
        let even_a = S::fma(S::splat(-B2), d[2], d[4]);
        let odd_a = S::fma(S::splat(-B2), d[1], d[3]);
        let even_b = S::fma(S::splat(-A2), d[2], d[4]);
        let odd_b = S::fma(S::splat(-A2), d[1], d[3]);
        let (both, product) = (S::splat(-A2 - B2), S::splat(A2 * B2));
        [
            S::fma(product, d[0], S::fma(both, d[2], d[4])),
            S::fma(S::splat(A), odd_a, even_a),
            S::fma(S::splat(-A), odd_a, even_a),
            S::fma(S::splat(B), odd_b, even_b),
            S::fma(S::splat(-B), odd_b, even_b),
            S::fma(product, d[1], S::fma(both, d[3], d[5])),
        ]
    }
}

/// Three weights at the six points.
#[inline(always)]
unsafe fn weight_points<S: Simd>(g: [S::V; 3]) -> [S::V; WIDE] {
    unsafe {
        let even_a = S::fma(
            S::splat(A2 / AT_A),
            g[2],
            S::mul(S::splat(1.0 / AT_A), g[0]),
        );
        let odd_a = S::mul(S::splat(A / AT_A), g[1]);
        let even_b = S::fma(
            S::splat(B2 / AT_B),
            g[2],
            S::mul(S::splat(1.0 / AT_B), g[0]),
        );
        let odd_b = S::mul(S::splat(B / AT_B), g[1]);
        [
            S::mul(S::splat(1.0 / AT_0), g[0]),
            S::add(even_a, odd_a),
            S::sub(even_a, odd_a),
            S::add(even_b, odd_b),
            S::sub(even_b, odd_b),
            g[2],
        ]
    }
}

/// Four numbers of the output, of the six points.
#[inline(always)]
unsafe fn from_points<S: Simd>(m: [S::V; WIDE]) -> [S::V; TILE] {
    unsafe {
        let (even_a, odd_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (even_b, odd_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(m[0], S::add(even_a, even_b)),
            S::fma(S::splat(A), odd_a, S::mul(S::splat(B), odd_b)),
            S::fma(S::splat(A2), even_a, S::mul(S::splat(B2), even_b)),
            S::fma(S::splat(A3), odd_a, S::fma(S::splat(B3), odd_b, m[5])),
        ]
    }
}

/// `n` channels of a tile of the input, from channel `start` on, to 36 planes.
#[inline(always)]
unsafe fn input_transform<S: Simd, const WHOLE: bool>(
    pixels: &[*const f32; POINTS],
    start: usize,
    n: usize,
    to: *mut f32,
    plane: usize,
) {
    unsafe {
        let mut half = [[S::splat(0.0); WIDE]; WIDE];
        for j in 0..WIDE {
            let mut d = [S::splat(0.0); WIDE];
            for i in 0..WIDE {
                let from = pixels[i * WIDE + j].add(start);
                d[i] = if WHOLE {
                    S::load(from)
                } else {
                    load::<S>(from, n)
                };
            }
            let points = input_points::<S>(d);
            for i in 0..WIDE {
                half[i][j] = points[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, v) in input_points::<S>(row).into_iter().enumerate() {
                let to = to.add((i * WIDE + j) * plane);
                if WHOLE {
                    S::store(to, v);
                } else {
                    S::store_first(to, v, n);
                }
            }
        }
    }
}

/// A vector of weights of 9 taps to 36 planes.
#[inline(always)]
unsafe fn weight_transform<S: Simd>(from: *const f32, to: *mut f32, plane: usize) {
    unsafe {
        let mut half = [[S::splat(0.0); 3]; WIDE];
        for j in 0..3 {
            let mut g = [S::splat(0.0); 3];
            for i in 0..3 {
                g[i] = S::load(from.add((i * 3 + j) * S::LANES));
            }
            let points = weight_points::<S>(g);
            for i in 0..WIDE {
                half[i][j] = points[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, u) in weight_points::<S>(row).into_iter().enumerate() {
                S::store(to.add((i * WIDE + j) * plane), u);
            }
        }
    }
}

/// A vector of channels of a tile of the output, from 36 planes.
#[inline(always)]
unsafe fn output_transform<S: Simd>(from: *const f32, plane: usize) -> [[S::V; TILE]; TILE] {
    unsafe {
        let mut half = [[S::splat(0.0); WIDE]; TILE];
        for j in 0..WIDE {
            let mut m = [S::splat(0.0); WIDE];
            for i in 0..WIDE {
                m[i] = S::load(from.add((i * WIDE + j) * plane));
            }
            let numbers = from_points::<S>(m);
            for i in 0..TILE {
                half[i][j] = numbers[i];
            }
        }
        let mut tile = [[S::splat(0.0); TILE]; TILE];
        for (to, row) in tile.iter_mut().zip(half) {
            *to = from_points::<S>(row);
        }
        tile
    }
}
