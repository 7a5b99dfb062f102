//! Group normalization (Wu and He 2018) of channels-last pictures.
//!
//! Two passes over the picture. The first takes sums over blocks of pixels, of distances from the block's own mean: the variance
//! is right also where the mean is far from zero. Blocks depend on the sizes alone, and are combined in order in double precision
//! (Chan et al. 1979). The second pass scales.

use std::ops::Range;

use crate::activation::Activation;
use crate::isa::Task;
use crate::pool::for_each_task;
use crate::scratch::Shared;
use crate::simd::Simd;
use crate::{OutOfMemory, Run};

/// A normalization of groups of channels.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// One factor for each channel.
    pub weight: &'a [f32],
    /// One number for each channel.
    pub bias: &'a [f32],
    /// What follows.
    pub activation: Activation,
}

/// Numbers of a block, which stay in the second-level cache.
const BLOCK: usize = 32 << 10;

/// Pixels of a block at most: longer sums would lose digits.
const PIXELS: usize = 256;

/// Rows that are summed before sums go back to memory.
const ROWS: usize = 8;

/// `x` [batch, pixels, channels] -> `y` like it.
///
/// # Errors
/// There is no memory for intermediate results.
///
/// # Panics
/// Lengths that do not fit together.
pub fn group_norm(
    run: &mut Run<'_>,
    layer: &GroupNorm<'_>,
    batch: usize,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let channels = layer.weight.len();
    assert_eq!(layer.bias.len(), channels, "bias");
    assert!(
        channels > 0 && channels.is_multiple_of(layer.groups),
        "{} groups of {channels} channels",
        layer.groups
    );
    assert_eq!(y.len(), x.len(), "result");
    if x.is_empty() {
        return Ok(());
    }
    assert!(
        x.len().is_multiple_of(batch * channels),
        "{batch} pictures of {channels} channels"
    );
    let moments = moments(run, channels, layer.groups, batch, x)?;
    normalize(run, layer, &moments, x, y)
}

/// Moments of each group of `x` [batch, pixels, channels]: [batch, groups].
///
/// # Errors
/// There is no memory for intermediate results.
pub(crate) fn moments(
    run: &mut Run<'_>,
    channels: usize,
    groups: usize,
    batch: usize,
    x: &[f32],
) -> Result<Vec<Moments>, OutOfMemory> {
    run.isa.dispatch(Measured {
        run,
        blocks: Blocks::new(channels, batch, x.len()),
        groups,
        x,
    })
}

/// `x` [batch, pixels, channels], of pictures whose groups have these `moments` [batch, groups], -> `y` like it.
///
/// # Errors
/// There is no memory for intermediate results.
pub(crate) fn normalize(
    run: &mut Run<'_>,
    layer: &GroupNorm<'_>,
    moments: &[Moments],
    x: &[f32],
    y: &mut [f32],
) -> Result<(), OutOfMemory> {
    let (channels, batch) = (layer.weight.len(), moments.len() / layer.groups);
    run.isa.dispatch(Normalized {
        run,
        layer,
        blocks: Blocks::new(channels, batch, x.len()),
        moments,
        x,
        y,
    })
}

/// Pictures in blocks of pixels, which depend on the sizes alone.
#[derive(Clone, Copy)]
struct Blocks {
    channels: usize,
    /// Numbers of a picture.
    picture: usize,
    /// Pixels of a block.
    rows: usize,
    /// Blocks of a picture, and of all.
    each: usize,
    all: usize,
}

impl Blocks {
    fn new(channels: usize, batch: usize, count: usize) -> Self {
        let picture = count / batch;
        let pixels = picture / channels;
        let rows = (BLOCK / channels).clamp(1, PIXELS.min(pixels.div_ceil(8)));
        let each = pixels.div_ceil(rows);
        Self {
            channels,
            picture,
            rows,
            each,
            all: batch * each,
        }
    }

    /// The numbers of block `i`.
    fn part(&self, i: usize) -> Range<usize> {
        let start = i / self.each * self.picture + i % self.each * self.rows * self.channels;
        let end = (start + self.rows * self.channels).min((i / self.each + 1) * self.picture);
        start..end
    }
}

/// The arguments of [`moments`].
struct Measured<'a, 'r> {
    run: &'a mut Run<'r>,
    blocks: Blocks,
    groups: usize,
    x: &'a [f32],
}

impl Task for Measured<'_, '_> {
    type Output = Result<Vec<Moments>, OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let Self {
            run,
            blocks,
            groups,
            x,
        } = self;
        let channels = blocks.channels;
        let workers = run.pool.workers();
        let (_, own) = run.scratch.take(0, 3 * channels, workers)?;
        let mut moments = vec![Moments::default(); blocks.all * groups];
        let shared = Shared::new(&mut moments);
        for_each_task(run.pool, blocks.all, &|task, worker| {
            let measure = Measure {
                x: &x[blocks.part(task)],
                channels,
                groups,
                own: own[worker].at(0),
                to: shared.at(task * groups),
            };
            // SAFETY: tasks write different moments; scratch is the worker's own; the level was chosen by `dispatch`.
            unsafe { S::vectorize(measure) };
        });
        let of_picture = |n: usize, group: usize| {
            let all = (0..blocks.each).map(|i| moments[(n * blocks.each + i) * groups + group]);
            all.fold(Moments::default(), Moments::and)
        };
        let pictures = 0..blocks.all / blocks.each;
        let all = pictures.flat_map(|n| (0..groups).map(move |group| (n, group)));
        Ok(all.map(|(n, group)| of_picture(n, group)).collect())
    }
}

/// The arguments of [`normalize`].
struct Normalized<'a, 'r> {
    run: &'a mut Run<'r>,
    layer: &'a GroupNorm<'a>,
    blocks: Blocks,
    moments: &'a [Moments],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Task for Normalized<'_, '_> {
    type Output = Result<(), OutOfMemory>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let Self {
            run,
            layer,
            blocks,
            moments,
            x,
            y,
        } = self;
        let (channels, groups) = (blocks.channels, layer.groups);
        let workers = run.pool.workers();
        let batch = blocks.all / blocks.each;
        let (scales, _) = run.scratch.take(batch * 3 * channels, 0, workers)?;
        for (i, &moments) in moments.iter().enumerate() {
            // SAFETY: scratch has room for the scales of all pictures.
            unsafe { layer.scale(i % groups, moments, scales.at(i / groups * 3 * channels)) };
        }
        let y = Shared::new(y);
        for_each_task(run.pool, blocks.all, &|task, _| {
            // What was measured last is still near.
            let part = blocks.part(blocks.all - 1 - task);
            let scale = Scale {
                scales: scales.at(part.start / blocks.picture * 3 * channels),
                activation: layer.activation,
                channels,
                y: y.at(part.start),
                x: &x[part],
            };
            // SAFETY: tasks are different parts of y; the level was chosen by `dispatch`.
            unsafe { S::vectorize(scale) };
        });
        Ok(())
    }
}

impl GroupNorm<'_> {
    /// `y = (x - center) factor + offset` for each channel of a group: three rows of numbers.
    unsafe fn scale(&self, group: usize, moments: Moments, to: *mut f32) {
        let channels = self.weight.len();
        let size = channels / self.groups;
        let variance = moments.squares / moments.count;
        let deviation = (variance + f64::from(self.epsilon)).sqrt();
        let center = moments.mean as f32;
        for channel in group * size..(group + 1) * size {
            let factor = (f64::from(self.weight[channel]) / deviation) as f32;
            let rest = (moments.mean - f64::from(center)) * f64::from(factor);
            // SAFETY: the caller's promise.
            unsafe {
                *to.add(channel) = center;
                *to.add(channels + channel) = factor;
                *to.add(2 * channels + channel) = (f64::from(self.bias[channel]) - rest) as f32;
            }
        }
    }
}

/// How many numbers, their mean, and the sum of their squared distances from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of both sets together.
    pub(crate) fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        let (distance, share) = (other.mean - self.mean, other.count / count);
        Self {
            count,
            mean: self.mean + distance * share,
            squares: self.squares + other.squares + distance * distance * self.count * share,
        }
    }
}

/// Moments of each group in a block of pixels.
struct Measure<'a> {
    x: &'a [f32],
    channels: usize,
    groups: usize,
    own: *mut f32,
    to: *mut Moments,
}

impl Task for Measure<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self {
            x,
            channels,
            groups,
            own,
            to,
        } = self;
        let rows = x.len() / channels;
        let size = channels / groups;
        // SAFETY: scratch holds three rows; loads end with a row.
        unsafe {
            let (centers, sums, squares) = (own, own.add(channels), own.add(2 * channels));
            for i in 0..3 * channels {
                *own.add(i) = 0.0;
            }
            let mut row = 0;
            while row < rows {
                let taken = ROWS.min(rows - row);
                let from = x.as_ptr().add(row * channels);
                for column in (0..channels).step_by(S::LANES) {
                    let n = S::LANES.min(channels - column);
                    let mut sum = S::splat(0.0);
                    for i in 0..taken {
                        sum = S::add(sum, S::load_first(from.add(i * channels + column), n));
                    }
                    add_to::<S>(centers.add(column), sum, n);
                }
                row += taken;
            }
            for i in 0..channels {
                *centers.add(i) /= rows as f32;
            }
            let mut row = 0;
            while row < rows {
                let taken = ROWS.min(rows - row);
                let from = x.as_ptr().add(row * channels);
                for column in (0..channels).step_by(S::LANES) {
                    let n = S::LANES.min(channels - column);
                    let center = S::load_first(centers.add(column), n);
                    let (mut sum, mut square) = (S::splat(0.0), S::splat(0.0));
                    for i in 0..taken {
                        let x = S::load_first(from.add(i * channels + column), n);
                        let distance = S::sub(x, center);
                        sum = S::add(sum, distance);
                        square = S::fma(distance, distance, square);
                    }
                    add_to::<S>(sums.add(column), sum, n);
                    add_to::<S>(squares.add(column), square, n);
                }
                row += taken;
            }

            let count = rows as f64;
            for group in 0..groups {
                let channels = group * size..(group + 1) * size;
                let mut mean = 0.0;
                for i in channels.clone() {
                    mean += f64::from(*centers.add(i)) + f64::from(*sums.add(i)) / count;
                }
                mean /= size as f64;
                let mut all = 0.0;
                for i in channels {
                    // The sum of (x - mean)^2 from sums of x - center and its square.
                    let distance = f64::from(*centers.add(i)) - mean;
                    let twice = 2.0 * f64::from(*sums.add(i)) + count * distance;
                    all += f64::from(*squares.add(i)) + distance * twice;
                }
                *to.add(group) = Moments {
                    count: count * size as f64,
                    mean,
                    squares: all,
                };
            }
        }
    }
}

/// Adds to the `n` numbers at `sums`.
#[inline(always)]
unsafe fn add_to<S: Simd>(sums: *mut f32, x: S::V, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { S::store_first(sums, S::add(S::load_first(sums, n), x), n) }
}

/// Scales a block of pixels.
struct Scale<'a> {
    scales: *const f32,
    activation: Activation,
    channels: usize,
    x: &'a [f32],
    y: *mut f32,
}

impl Task for Scale<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // The choice is outside of the loop.
        unsafe {
            match self.activation {
                Activation::None => self.rows::<S>(Activation::None),
                Activation::Silu => self.rows::<S>(Activation::Silu),
                other => self.rows::<S>(other),
            }
        }
    }
}

impl Scale<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, activation: Activation) {
        let channels = self.channels;
        for row in (0..self.x.len()).step_by(channels) {
            for column in (0..channels).step_by(S::LANES) {
                let n = S::LANES.min(channels - column);
                // SAFETY: loads and stores end with a row.
                unsafe {
                    let scales = self.scales.add(column);
                    let x = S::load_first(self.x.as_ptr().add(row + column), n);
                    let distance = S::sub(x, S::load_first(scales, n));
                    let factor = S::load_first(scales.add(channels), n);
                    let offset = S::load_first(scales.add(2 * channels), n);
                    let y = S::fma(distance, factor, offset);
                    S::store_first(self.y.add(row + column), activation.apply::<S>(y), n);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close, every_level};

    /// The formula, in double precision.
    fn twin(layer: &GroupNorm<'_>, batch: usize, x: &[f32]) -> Vec<f64> {
        let channels = layer.weight.len();
        let size = channels / layer.groups;
        let mut y = vec![0.0; x.len()];
        let picture = x.len() / batch;
        for n in 0..batch {
            for group in 0..layer.groups {
                let inside = |i: &usize| i % channels / size == group;
                let of_group = || (n * picture..(n + 1) * picture).filter(inside);
                let count = of_group().count() as f64;
                let mean = of_group().map(|i| f64::from(x[i])).sum::<f64>() / count;
                let squares: f64 = of_group().map(|i| (f64::from(x[i]) - mean).powi(2)).sum();
                let deviation = (squares / count + f64::from(layer.epsilon)).sqrt();
                for i in of_group() {
                    let weight = f64::from(layer.weight[i % channels]);
                    let z = (f64::from(x[i]) - mean) / deviation * weight;
                    y[i] = layer.activation.of(z + f64::from(layer.bias[i % channels]));
                }
            }
        }
        y
    }

    fn check(layer: &GroupNorm<'_>, batch: usize, x: &[f32], tolerance: f64) {
        let expected = twin(layer, batch, x);
        every_level(|run| {
            let mut y = vec![f32::NAN; x.len()];
            group_norm(run, layer, batch, x, &mut y).unwrap();
            close(&y, &expected, tolerance);
            y
        });
    }

    #[test]
    fn group_norms_equal_the_formula_at_every_level() {
        let mut random = Random::new(3);
        for case in 0..60 {
            let size = [1, 2, 3, 4, 10, 20, 40, 60, 80][case % 9];
            let (batch, groups, pixels) = (1 + case % 4, random.size(32), random.size(300));
            let channels = groups * size;
            let x = random.normals(batch * pixels * channels);
            let (weight, bias) = (random.normals(channels), random.normals(channels));
            let layer = GroupNorm {
                groups,
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
                activation: [Activation::None, Activation::Silu][case % 2],
            };
            check(&layer, batch, &x, 1e-6);
        }
    }

    /// Mean and deviation as in the last layers of the VAE's decoder, and worse.
    #[test]
    fn a_far_mean_does_not_hide_the_deviation() {
        let mut random = Random::new(4);
        let (groups, channels, pixels) = (4, 12, 5000);
        for mean in [30.0, -1e4] {
            let normals = random.normals(pixels * channels);
            let far = |(i, x): (usize, f32)| x + mean * (1 + i % channels / 3) as f32;
            let x: Vec<f32> = normals.into_iter().enumerate().map(far).collect();
            let layer = GroupNorm {
                groups,
                epsilon: 1e-6,
                weight: &vec![1.0; channels],
                bias: &vec![0.0; channels],
                activation: Activation::None,
            };
            check(&layer, 1, &x, 1e-6);
        }
    }

    /// The first pixels are far from all others.
    #[test]
    fn outliers_do_not_hide_the_deviation() {
        let (channels, pixels) = (8, 4000);
        let mut x = Random::new(5).normals(pixels * channels);
        x[..5 * channels].fill(3e4);
        let layer = GroupNorm {
            groups: 2,
            epsilon: 1e-5,
            weight: &[1.0; 8],
            bias: &[0.0; 8],
            activation: Activation::None,
        };
        check(&layer, 1, &x, 1e-6);
    }

    /// Equal numbers have no deviation: epsilon alone divides, and the bias comes out.
    #[test]
    fn equal_numbers_become_the_bias() {
        let x = vec![123.456; 100 * 6];
        let layer = GroupNorm {
            groups: 3,
            epsilon: 1e-5,
            weight: &[2.0; 6],
            bias: &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
            activation: Activation::None,
        };
        check(&layer, 1, &x, 1e-6);
    }

    #[test]
    fn subnormal_numbers_are_scaled_by_epsilon() {
        let mut random = Random::new(6);
        let x: Vec<f32> = random.normals(50 * 10).iter().map(|x| x * 1e-40).collect();
        let layer = GroupNorm {
            groups: 5,
            epsilon: 1e-5,
            weight: &[1.0; 10],
            bias: &[1.0; 10],
            activation: Activation::Silu,
        };
        check(&layer, 1, &x, 1e-6);
    }
}
