//! Attention: `softmax(q k^T / sqrt(d)) v`, head by head.
//!
//! No matrix of scores is kept: a block of queries passes by blocks of keys, and what it has summed so far is scaled down when a
//! larger score turns up (Milakov and Gimelshein 2018, Dao et al. 2022). Keys and values become panels once, which all queries of
//! a head share. Exponentials are powers of two: queries are multiplied by log2(e) / sqrt(d).

use crate::factors::{FactorTask, Factors, Kind, Split, vectorize};
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::product::{Product, panel_vectors};
use crate::scratch::Shared;
use crate::simd::{Simd, exp2};
use crate::{OutOfMemory, Run};

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Sequences of queries; one is used with every sequence of keys.
    pub batch_q: usize,
    /// Sequences of keys and values; one is used with every sequence of queries.
    pub batch_kv: usize,
    /// Tokens that ask.
    pub queries: usize,
    /// Tokens that answer.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Numbers of a token in one head.
    pub width: usize,
}

/// Numbers of a block of keys, whose panels stay in the second-level cache with those of the values.
const KEY_NUMBERS: usize = 32 << 10;

/// Keys of a block: at least and at most.
const KEYS: (usize, usize) = (64, 256);

/// Numbers of a block of queries: wide ones come in more rows for each look at keys that no cache holds.
const QUERY_NUMBERS: usize = 64 << 10;

/// Queries of a block: at least and at most.
const QUERIES: (usize, usize) = (48, 144);

/// Terms of a score between two visits of its sum.
const DEPTH: usize = 320;

/// Numbers between the ends of rows of scores, so that rows do not compete for one place in the cache.
const GAP: usize = 16;

/// A score less than the largest by so much (in powers of two) is taken for this: no result is a subnormal number, which would be
/// slow.
const LEAST: f32 = -100.0;

/// `q` `[batch_q, queries, heads * width]`, `k` and `v` `[batch_kv, keys, heads * width]` -> `y` like q, with the larger batch.
///
/// # Errors
/// There is no memory for intermediate results.
///
/// # Panics
/// Lengths that do not fit together; batches that differ and are not 1; no keys.
pub fn attention(
    run: &mut Run<'_>,
    layer: &Attention,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let token = layer.heads * layer.width;
    let batch = layer.batch_q.max(layer.batch_kv);
    assert!(layer.keys > 0, "there are no keys");
    assert!(
        [layer.batch_q, layer.batch_kv]
            .iter()
            .all(|&n| n == batch || n == 1),
        "batches of {} and {}",
        layer.batch_q,
        layer.batch_kv
    );
    assert_eq!(q.len(), layer.batch_q * layer.queries * token, "queries");
    assert_eq!(k.len(), layer.batch_kv * layer.keys * token, "keys");
    assert_eq!(v.len(), k.len(), "values");
    assert_eq!(y.len(), batch * layer.queries * token, "result");
    if y.is_empty() {
        return Ok(());
    }
    run.isa.dispatch(Heads {
        run,
        layer,
        q,
        k,
        v,
        y,
    })
}

/// The arguments of [`attention`].
struct Heads<'a, 'r> {
    run: &'a mut Run<'r>,
    layer: &'a Attention,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: &'a mut [f32],
}

impl Task for Heads<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let factors = match self.run.factors() {
            // Exponentials multiply the scores' errors.
            Kind::Int8 => Kind::Int16,
            other => other,
        };
        // SAFETY: the caller's promise.
        unsafe { factors.dispatch::<S, _>(self) }
    }
}

impl FactorTask for Heads<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) -> Self::Output {
        let Self {
            run,
            layer,
            q,
            k,
            v,
            y,
        } = self;
        let blocks = Blocks::new::<S>(layer);
        let heads_kv = layer.batch_kv * layer.heads;
        let heads = layer.batch_q.max(layer.batch_kv) * layer.heads;
        let packed = blocks.packed::<F>();
        let own = blocks.own::<F>().max(blocks.panel::<S>());
        let (shared, own) = run
            .scratch
            .take(heads_kv * packed, own, run.pool.workers())?;

        let key_blocks = layer.keys.div_ceil(blocks.keys);
        for_each_task(run.pool, heads_kv * key_blocks, &|task, worker| {
            let (head, block) = (task / key_blocks, task % key_blocks);
            let pack = Pack {
                layer,
                blocks,
                k: &k[source(layer, layer.keys, head)..],
                v: &v[source(layer, layer.keys, head)..],
                first: block * blocks.keys,
                numbers: own[worker].at(0),
                to: shared.at(head * packed),
            };
            // SAFETY: tasks write different panels; the level was chosen by `dispatch`.
            unsafe { vectorize::<S, F, _>(pack) };
        });

        let query_blocks = layer.queries.div_ceil(blocks.queries);
        let y = Shared::new(y);
        for_each_task(run.pool, heads * query_blocks, &|task, worker| {
            let (head, block) = (task / query_blocks, task % query_blocks);
            let first = block * blocks.queries;
            let row = first * layer.heads * layer.width;
            let attend = Attend {
                layer,
                blocks,
                rows: blocks.queries.min(layer.queries - first),
                q: &q[source(layer, layer.queries, head % (layer.batch_q * layer.heads)) + row..],
                packed: shared.at(head % heads_kv * packed),
                own: own[worker].at(0),
                y: y.at(source(layer, layer.queries, head) + row),
            };
            // SAFETY: tasks are different queries of different heads; scratch is the worker's own; the level was chosen by
            // `dispatch`.
            unsafe { vectorize::<S, F, _>(attend) };
        });
        Ok(())
    }
}

/// Where a head (counted through the batch) of sequences of `tokens` starts.
fn source(layer: &Attention, tokens: usize, head: usize) -> usize {
    (head / layer.heads * tokens * layer.heads + head % layer.heads) * layer.width
}

/// How queries and keys are cut into blocks.
#[derive(Clone, Copy)]
struct Blocks {
    /// Queries of a block.
    queries: usize,
    /// Keys of a block, whole vectors.
    keys: usize,
    /// Keys of a head, whole vectors.
    all_keys: usize,
    /// Numbers of a token, whole vectors.
    columns: usize,
    /// Numbers of a token, as terms of a score.
    width: Split,
}

impl Blocks {
    fn new<S: Simd>(layer: &Attention) -> Self {
        let even = |count: usize, (least, most): (usize, usize), numbers: usize| {
            let fit = (numbers / layer.width).clamp(least, most);
            count.div_ceil(count.div_ceil(fit))
        };
        Self {
            queries: even(layer.queries, QUERIES, QUERY_NUMBERS),
            keys: even(layer.keys, KEYS, KEY_NUMBERS).next_multiple_of(S::LANES),
            all_keys: layer.keys.next_multiple_of(S::LANES),
            columns: layer.width.next_multiple_of(S::LANES),
            width: Split::new(layer.width, DEPTH),
        }
    }

    /// Words of a head's keys as panels.
    fn packed_keys<F: Factors>(self) -> usize {
        self.all_keys * self.width.words::<F>()
    }

    /// Words of a head's values before those of key `first`, where a block starts.
    fn values_before<F: Factors>(self, first: usize) -> usize {
        first / self.keys * F::words(self.keys) * self.columns
    }

    /// Words of a head's keys and values as panels.
    fn packed<F: Factors>(self) -> usize {
        self.packed_keys::<F>() + self.values_before::<F>(self.all_keys.next_multiple_of(self.keys))
    }

    /// Numbers of the largest panel.
    fn panel<S: Simd>(self) -> usize {
        self.width.depth.max(self.keys) * 3 * S::LANES
    }

    /// Numbers between the starts of two queries.
    fn query_stride<F: Factors>(self) -> usize {
        self.width.words::<F>().max(self.width.count)
    }

    /// Numbers between the starts of two rows of scores.
    fn score_stride(self) -> usize {
        self.keys + GAP
    }

    /// Numbers that a worker needs: queries, scores, sums of values, and of each row the largest score and the sum of weights.
    fn own<F: Factors>(self) -> usize {
        self.queries * (self.query_stride::<F>() + self.score_stride() + self.columns + 2)
    }
}

/// A block of keys and values of one head becomes panels: keys `[vectors][width][keys]`, values `[vectors][keys][width]`.
struct Pack<'a> {
    layer: &'a Attention,
    blocks: Blocks,
    k: &'a [f32],
    v: &'a [f32],
    first: usize,
    /// A panel before its numbers are rounded to factors.
    numbers: *mut f32,
    to: *mut f32,
}

impl FactorTask for Pack<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let Self {
            layer,
            blocks,
            k,
            v,
            first,
            numbers,
            to,
        } = self;
        let width = layer.width;
        let token = layer.heads * width;
        let keys = blocks.keys.min(layer.keys - first);
        // SAFETY: the head's panels hold the block; loads end with a token's numbers of the head.
        unsafe {
            let vectors = keys.div_ceil(S::LANES);
            let mut vector = 0;
            while vector < vectors {
                let taken = panel_vectors(vectors - vector);
                let columns = taken * S::LANES;
                let key = vector * S::LANES;
                let exist = columns.min(keys - key);
                let from = k.as_ptr().add((first + key) * token);
                let to = to.add((first + key) * blocks.width.words::<F>());
                for (start, count) in blocks.width.each() {
                    let to = to.add(blocks.width.words_before::<F>(start) * columns);
                    let panel = if F::PLAIN { to } else { numbers };
                    for i in 0..count {
                        for j in 0..exist {
                            *panel.add(i * columns + j) = *from.add(j * token + start + i);
                        }
                        for j in exist..columns {
                            *panel.add(i * columns + j) = 0.0;
                        }
                    }
                    F::panel::<S>(panel, count, taken, to);
                }
                vector += taken;
            }

            let to = to.add(blocks.packed_keys::<F>() + blocks.values_before::<F>(first));
            let vectors = blocks.columns / S::LANES;
            let mut vector = 0;
            while vector < vectors {
                let taken = panel_vectors(vectors - vector);
                let to = to.add(vector * S::LANES * F::words(keys));
                let panel = if F::PLAIN { to } else { numbers };
                for key in 0..keys {
                    let from = v.as_ptr().add((first + key) * token);
                    for i in 0..taken {
                        let column = (vector + i) * S::LANES;
                        let n = S::LANES.min(width - column);
                        let x = S::load_first(from.add(column), n);
                        S::store(panel.add((key * taken + i) * S::LANES), x);
                    }
                }
                F::panel::<S>(panel, keys, taken, to);
                vector += taken;
            }
        }
    }
}

/// A block of queries of one head.
struct Attend<'a> {
    layer: &'a Attention,
    blocks: Blocks,
    rows: usize,
    q: &'a [f32],
    packed: *const f32,
    own: *mut f32,
    y: *mut f32,
}

impl FactorTask for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, F: Factors>(self) {
        let Self {
            layer,
            blocks,
            rows,
            packed,
            y,
            ..
        } = self;
        let width = layer.width;
        let token = layer.heads * width;
        // SAFETY: scratch holds all rows; stores end with a token's numbers of the head.
        unsafe {
            let queries = self.own;
            let scores = queries.add(blocks.queries * blocks.query_stride::<F>());
            let sums = scores.add(blocks.queries * blocks.score_stride());
            let largest = sums.add(blocks.queries * blocks.columns);
            let weights = largest.add(blocks.queries);

            let factor = S::splat(std::f32::consts::LOG2_E / (width as f32).sqrt());
            for row in 0..rows {
                let q = self.q.as_ptr().add(row * token);
                let query = queries.add(row * blocks.query_stride::<F>());
                for column in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(width - column);
                    let x = S::load_first(q.add(column), n);
                    S::store_first(query.add(column), S::mul(x, factor), n);
                }
                for (start, count) in blocks.width.each() {
                    let to = query.add(blocks.width.words_before::<F>(start));
                    F::row::<S>(query.add(start), count, to);
                }
                *largest.add(row) = f32::MIN;
                *weights.add(row) = 0.0;
            }

            for first in (0..layer.keys).step_by(blocks.keys) {
                let keys = blocks.keys.min(layer.keys - first);
                let panels = packed.add(first * blocks.width.words::<F>());
                self.score::<S, F>(panels, keys, queries, scores);
                for row in 0..rows {
                    let scores = scores.add(row * blocks.score_stride());
                    let (largest, weights) = (largest.add(row), weights.add(row));
                    let factor = soften::<S>(scores, keys, &mut *largest, &mut *weights);
                    F::row::<S>(scores, keys, scores);
                    if first > 0 && factor < 1.0 {
                        let factor = S::splat(factor);
                        for column in (0..blocks.columns).step_by(S::LANES) {
                            let sum = sums.add(row * blocks.columns + column);
                            S::store(sum, S::mul(S::load(sum), factor));
                        }
                    }
                }
                let values = blocks.packed_keys::<F>() + blocks.values_before::<F>(first);
                self.gather::<S, F>(packed.add(values), keys, first > 0, scores, sums);
            }

            for row in 0..rows {
                let factor = S::splat(1.0 / *weights.add(row));
                for column in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(width - column);
                    let sum = S::load(sums.add(row * blocks.columns + column));
                    S::store_first(y.add(row * token + column), S::mul(sum, factor), n);
                }
            }
        }
    }
}

impl Attend<'_> {
    /// Scores of a block of keys; what fills up the last vector has none.
    #[inline(always)]
    unsafe fn score<S: Simd, F: Factors>(
        &self,
        panels: *const f32,
        keys: usize,
        queries: *const f32,
        scores: *mut f32,
    ) {
        let Self { blocks, rows, .. } = *self;
        let vectors = keys.div_ceil(S::LANES);
        let mut vector = 0;
        unsafe {
            while vector < vectors {
                let taken = panel_vectors(vectors - vector);
                let columns = taken * S::LANES;
                let panel = panels.add(vector * S::LANES * blocks.width.words::<F>());
                for (start, count) in blocks.width.each() {
                    let before = blocks.width.words_before::<F>(start);
                    let b = panel.add(before * columns);
                    Product {
                        rows,
                        k: count.div_ceil(F::IN_WORD),
                        a: queries.add(before),
                        a_stride: blocks.query_stride::<F>(),
                        b,
                        c: scores.add(vector * S::LANES),
                        c_stride: blocks.score_stride(),
                        accumulate: start > 0,
                        next: b.wrapping_add(F::words(count) * columns),
                    }
                    .run::<S, F>(taken);
                }
                vector += taken;
            }
            for row in 0..rows {
                for key in keys..vectors * S::LANES {
                    *scores.add(row * blocks.score_stride() + key) = f32::MIN;
                }
            }
        }
    }

    /// Adds a block of values with their weights.
    #[inline(always)]
    unsafe fn gather<S: Simd, F: Factors>(
        &self,
        panels: *const f32,
        keys: usize,
        accumulate: bool,
        weights: *const f32,
        sums: *mut f32,
    ) {
        let Self { blocks, rows, .. } = *self;
        let words = F::words(keys);
        let vectors = blocks.columns / S::LANES;
        let mut vector = 0;
        while vector < vectors {
            let taken = panel_vectors(vectors - vector);
            let b = panels.wrapping_add(vector * S::LANES * words);
            unsafe {
                Product {
                    rows,
                    k: keys.div_ceil(F::IN_WORD),
                    a: weights,
                    a_stride: blocks.score_stride(),
                    b,
                    c: sums.add(vector * S::LANES),
                    c_stride: blocks.columns,
                    accumulate,
                    next: b.wrapping_add(words * taken * S::LANES),
                }
                .run::<S, F>(taken);
            }
            vector += taken;
        }
    }
}

/// Scores of a row become weights, relative to the largest score so far. Returns what earlier weights are to be multiplied by.
#[inline(always)]
unsafe fn soften<S: Simd>(
    scores: *mut f32,
    keys: usize,
    largest: &mut f32,
    weights: &mut f32,
) -> f32 {
    let end = keys.next_multiple_of(S::LANES);
    let pairs = end / (2 * S::LANES) * 2 * S::LANES;
    unsafe {
        let mut most = [S::splat(*largest); 2];
        for i in (0..pairs).step_by(2 * S::LANES) {
            most[0] = S::max(most[0], S::load(scores.add(i)));
            most[1] = S::max(most[1], S::load(scores.add(i + S::LANES)));
        }
        if pairs < end {
            most[0] = S::max(most[0], S::load(scores.add(pairs)));
        }
        let most = S::largest(S::max(most[0], most[1]));
        let factor = power::<S>(*largest - most);
        *largest = most;

        let most = S::splat(most);
        let mut sum = [S::splat(0.0); 2];
        for i in (0..pairs).step_by(2 * S::LANES) {
            for (j, sum) in sum.iter_mut().enumerate() {
                let at = scores.add(i + j * S::LANES);
                let weight = weight::<S>(S::load(at), most);
                S::store(at, weight);
                *sum = S::add(*sum, weight);
            }
        }
        if pairs < end {
            let weight = weight::<S>(S::load(scores.add(pairs)), most);
            S::store(scores.add(pairs), weight);
            sum[0] = S::add(sum[0], weight);
        }
        *weights = *weights * factor + S::sum(S::add(sum[0], sum[1]));
        factor
    }
}

/// `2^(score - most)`; NaN where the score is.
#[inline(always)]
unsafe fn weight<S: Simd>(score: S::V, most: S::V) -> S::V {
    unsafe { exp2::<S>(S::max(S::splat(LEAST), S::sub(score, most))) }
}

/// `2^x` of one number up to 0.
#[inline(always)]
unsafe fn power<S: Simd>(x: f32) -> f32 {
    if x == 0.0 {
        return 1.0;
    }
    unsafe { S::largest(exp2::<S>(S::splat(x.max(LEAST)))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compute;
    use crate::testing::{Random, close, every_level};

    /// The formula, in double precision.
    fn twin(layer: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let (width, token) = (layer.width, layer.heads * layer.width);
        let batch = layer.batch_q.max(layer.batch_kv);
        let mut y = vec![0.0; batch * layer.queries * token];
        for (row, y) in y.chunks_mut(width).enumerate() {
            let (head, query) = (row % layer.heads, row / layer.heads);
            let (n, query) = (query / layer.queries, query % layer.queries);
            let (n_q, n_kv) = (n % layer.batch_q, n % layer.batch_kv);
            let q = &q[(n_q * layer.queries + query) * token + head * width..][..width];
            let at = |key: usize| (n_kv * layer.keys + key) * token + head * width;
            let score = |key: usize| {
                let k = &k[at(key)..][..width];
                let dot: f64 = q
                    .iter()
                    .zip(k)
                    .map(|(&q, &k)| f64::from(q) * f64::from(k))
                    .sum();
                dot / (width as f64).sqrt()
            };
            let scores: Vec<f64> = (0..layer.keys).map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                for (y, &v) in y.iter_mut().zip(&v[at(key)..]) {
                    *y += weight / sum * f64::from(v);
                }
            }
        }
        y
    }

    fn check(layer: &Attention, q: &[f32], k: &[f32], v: &[f32], tolerance: f64) {
        check_in(Compute::F32, layer, [q, k, v], tolerance);
    }

    fn check_in(compute: Compute, layer: &Attention, [q, k, v]: [&[f32]; 3], tolerance: f64) {
        let expected = twin(layer, q, k, v);
        every_level(|run| {
            run.compute = compute;
            let mut y = vec![f32::NAN; expected.len()];
            attention(run, layer, q, k, v, &mut y).unwrap();
            close(&y, &expected, tolerance);
            y
        });
    }

    fn numbers(layer: &Attention, random: &mut Random) -> [Vec<f32>; 3] {
        let token = layer.heads * layer.width;
        let q = random.normals(layer.batch_q * layer.queries * token);
        let k = random.normals(layer.batch_kv * layer.keys * token);
        let v = random.normals(layer.batch_kv * layer.keys * token);
        [q, k, v]
    }

    #[test]
    fn attention_equals_the_formula_at_every_level() {
        let mut random = Random::new(2);
        for case in 0..60 {
            let batch = 1 + case % 4;
            let layer = Attention {
                batch_q: [batch, batch, 1][case % 3],
                batch_kv: [batch, 1, batch][case % 3],
                queries: random.size(150),
                keys: random.size(600),
                heads: random.size(5),
                width: random.size(100),
            };
            let [q, k, v] = numbers(&layer, &mut random);
            check(&layer, &q, &k, &v, 1e-6);
        }
    }

    #[test]
    fn wide_heads_equal_the_formula() {
        for (case, width) in [160, 333, 512].into_iter().enumerate() {
            let layer = Attention {
                batch_q: 1,
                batch_kv: 1,
                queries: 130,
                keys: 150,
                heads: 1,
                width,
            };
            let [q, k, v] = numbers(&layer, &mut Random::new(case as u64));
            check(&layer, &q, &k, &v, 1e-6);
        }
    }

    /// One key wins by far, wherever it is, and its value comes out.
    #[test]
    fn large_scores_pick_a_value() {
        for (keys, winner) in [(1, 0), (40, 39), (700, 0), (700, 350), (700, 699)] {
            let layer = Attention {
                batch_q: 1,
                batch_kv: 1,
                queries: 5,
                keys,
                heads: 1,
                width: 16,
            };
            let [_, _, v] = numbers(&layer, &mut Random::new(keys as u64));
            // Scores of 10,000 and -10,000.
            let q = vec![50.0; 5 * 16];
            let mut k = vec![-50.0; keys * 16];
            k[winner * 16..][..16].fill(50.0);
            check(&layer, &q, &k, &v, 1e-6);
        }
    }

    /// Scores that rise with the keys: every block's largest is larger than all before.
    #[test]
    fn rising_scores_scale_earlier_sums_down() {
        let layer = Attention {
            batch_q: 1,
            batch_kv: 1,
            queries: 3,
            keys: 1000,
            heads: 1,
            width: 9,
        };
        let [_, _, v] = numbers(&layer, &mut Random::new(1));
        let q = vec![1.0; 3 * 9];
        let k: Vec<f32> = (0..1000 * 9).map(|i| (i / 9) as f32 * 0.01).collect();
        check(&layer, &q, &k, &v, 4e-6);
    }

    #[test]
    fn subnormal_numbers_stay_what_they_are() {
        let layer = Attention {
            batch_q: 2,
            batch_kv: 2,
            queries: 7,
            keys: 30,
            heads: 2,
            width: 10,
        };
        let [q, k, v] = numbers(&layer, &mut Random::new(1));
        let tiny = |x: &[f32]| x.iter().map(|x| x * 1e-40).collect::<Vec<_>>();
        // All weights are equal.
        check(&layer, &tiny(&q), &tiny(&k), &v, 1e-6);
    }

    #[test]
    fn what_is_no_number_stays_visible() {
        let layer = Attention {
            batch_q: 1,
            batch_kv: 1,
            queries: 9,
            keys: 40,
            heads: 2,
            width: 10,
        };
        let [mut q, k, v] = numbers(&layer, &mut Random::new(1));
        // The second head of the fourth query.
        q[3 * 20 + 13] = f32::NAN;
        every_level(|run| {
            let mut y = vec![0.0; q.len()];
            attention(run, &layer, &q, &k, &v, &mut y).unwrap();
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_nan(), (70..80).contains(&i), "number {i}");
            }
            y.retain(|y| !y.is_nan());
            y
        });
    }

    /// At some levels it is single precision.
    #[test]
    fn attention_of_16_bit_numbers_is_close_to_the_formula() {
        let mut random = Random::new(11);
        for case in 0..60 {
            let (compute, tolerance) = [(Compute::Bf16, 1e-2), (Compute::Int16, 1e-3)][case % 2];
            let batch = 1 + case % 3;
            let layer = Attention {
                batch_q: [batch, 1][case % 2],
                batch_kv: batch,
                queries: random.size(150),
                keys: random.size(600),
                heads: random.size(5),
                width: random.size(100),
            };
            let [q, k, v] = numbers(&layer, &mut random);
            check_in(compute, &layer, [&q, &k, &v], tolerance);
        }
    }
}
