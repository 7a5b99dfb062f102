//! A Brownian motion over noise levels, as k-diffusion's `BrownianTreeNoiseSampler` takes it from torchsde's `BrownianTree`:
//! the noise between two levels is the same whatever other levels are asked for, and in whatever order.
//!
//! A node of the tree is an interval and the motion's increment over it. Its halves meet at the middle, and a seed that is
//! made of the tree's seed and the node's place decides how the increment is split (a Brownian bridge). Times are rounded to
//! millionths, so every time is an end of some node.
//!
//! Increments of the motion are torchsde's to the last bit. Noise is them by the root of the interval's length, which torch
//! takes from MKL: there it is now and then one ulp off.

use super::Origin;
use super::seed_sequence::first_word;

/// Unit normal noise between any two noise levels of a range.
pub struct BrownianTree {
    seed: u64,
    origin: Origin,
    /// From the root to the node that was visited last.
    path: Vec<Node>,
}

struct Node {
    start: f64,
    end: f64,
    /// The place in its row of the tree.
    key: u64,
    /// The increment from start to end.
    increment: Vec<f32>,
    /// That of the left half, once it is known.
    left: Option<Vec<f32>>,
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

impl BrownianTree {
    /// The motion of `count` numbers between two noise levels, the least and the greatest that are not 0. It is a part of a
    /// batch's where the origin says so.
    ///
    /// ```
    /// use sd_runtime::noise::{BrownianTree, Rng};
    ///
    /// let mut tree = BrownianTree::new(0, Rng::TorchCpu, 4, 0.029_167_158, 14.614_641);
    /// let mut noise = [0.0; 4];
    /// tree.increment(14.614_641, 7.5, &mut noise);
    /// assert_eq!(noise[0], 0.174_320_83);
    /// ```
    #[must_use]
    pub fn new(
        seed: u64,
        origin: impl Into<Origin>,
        count: usize,
        sigma_min: f64,
        sigma_max: f64,
    ) -> Self {
        let origin = origin.into();
        let start = single(sigma_min.min(sigma_max));
        let end = single(sigma_min.max(sigma_max));
        let deviation = (end - start).sqrt() as f32;
        let mut increment = normal(origin, first_word(seed, None), count);
        increment.iter_mut().for_each(|w| *w *= deviation);
        let root = Node {
            start: round(start),
            end: round(end),
            key: 0,
            increment,
            left: None,
        };
        Self {
            seed,
            origin,
            path: vec![root],
        }
    }

    /// Fills `out` with the noise of the way from one level to another one: unit normal, and of opposite sign on the way back.
    /// Levels outside the tree's range are taken for its ends; between levels that are the same to a millionth it is 0.
    ///
    /// # Panics
    /// `out` has another length than the motion.
    pub fn increment(&mut self, from: f64, to: f64, out: &mut [f32]) {
        assert_eq!(out.len(), self.path[0].increment.len(), "numbers per draw");
        out.fill(0.0);
        let (root_start, root_end) = (self.path[0].start, self.path[0].end);
        let inside = |sigma: f64| round(single(sigma).max(root_start).min(root_end));
        let (start, end) = (inside(from.min(to)), inside(from.max(to)));
        if start == end {
            return;
        }
        self.add(0, start, end, out);
        let sign = if from > to { -1.0 } else { 1.0 };
        let deviation = (from as f32 - to as f32).abs().sqrt();
        out.iter_mut().for_each(|w| *w = *w * sign / deviation);
    }

    /// Adds the increment over a part of the path's node at `depth`, from left to right.
    fn add(&mut self, depth: usize, start: f64, end: f64, out: &mut [f32]) {
        let node = &self.path[depth];
        if (start, end) == (node.start, node.end) {
            out.iter_mut()
                .zip(&node.increment)
                .for_each(|(sum, w)| *sum += w);
            return;
        }
        let middle = node.middle();
        if start < middle {
            self.descend(depth, Side::Left);
            self.add(depth + 1, start, end.min(middle), out);
        }
        if end > middle {
            self.descend(depth, Side::Right);
            self.add(depth + 1, start.max(middle), end, out);
        }
    }

    /// Makes one half of the path's node at `depth` the next node of the path.
    fn descend(&mut self, depth: usize, side: Side) {
        let key = 2 * self.path[depth].key + side as u64;
        if self.path.get(depth + 1).is_some_and(|next| next.key == key) {
            return;
        }
        let (seed, origin) = (self.seed, self.origin);
        let node = &mut self.path[depth];
        let middle = node.middle();
        let left = node.left.take().unwrap_or_else(|| {
            let seed = first_word(seed, Some([node.key, depth as u64]));
            node.split(normal(origin, seed, node.increment.len()))
        });
        let (start, end, increment) = match side {
            Side::Left => (node.start, middle, left.clone()),
            Side::Right => {
                let rest = node.increment.iter().zip(&left).map(|(w, left)| w - left);
                (middle, node.end, rest.collect())
            }
        };
        node.left = Some(left);
        self.path.truncate(depth + 1);
        self.path.push(Node {
            start,
            end,
            key,
            increment,
            left: None,
        });
    }
}

impl Node {
    fn middle(&self) -> f64 {
        round(0.5 * (self.start + self.end))
    }

    /// The left half's increment for a unit normal draw, rounded where torchsde rounds.
    fn split(&self, mut noise: Vec<f32>) -> Vec<f32> {
        let (left, right) = (self.middle() - self.start, self.end - self.middle());
        let reciprocal = 1.0 / (self.end - self.start);
        let deviation = (left * right * reciprocal).sqrt() as f32;
        for (z, w) in noise.iter_mut().zip(&self.increment) {
            *z = left as f32 * w * reciprocal as f32 + deviation * *z;
        }
        noise
    }
}

fn normal(origin: Origin, seed: u32, count: usize) -> Vec<f32> {
    let mut noise = vec![0.0; count];
    origin.source(seed.into()).normal(&mut noise);
    noise
}

/// Noise levels are single precision there.
fn single(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}

/// Python's `round(x, 6)`: the exact value in decimals, halves to even.
fn round(x: f64) -> f64 {
    let text = format!("{x:.6}");
    text.parse().expect("formatted numbers are numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Rng, digest};

    const SD15: [f64; 2] = [0.029_167_158_2, 14.614_641_2];

    fn tree(seed: u64, [sigma_min, sigma_max]: [f64; 2], count: usize) -> BrownianTree {
        BrownianTree::new(seed, Rng::TorchCpu, count, sigma_min, sigma_max)
    }

    /// The increments between successive noise levels.
    fn walk(tree: &mut BrownianTree, count: usize, sigmas: &[f64]) -> Vec<f32> {
        let mut all = Vec::new();
        for pair in sigmas.windows(2) {
            let mut out = vec![0.0; count];
            tree.increment(pair[0], pair[1], &mut out);
            all.extend(out);
        }
        all
    }

    /// Made by `tests/golden/brownian.py`.
    #[test]
    fn increments_are_torchsdes_to_the_last_bit() {
        let mut levels = vec![SD15[1]];
        for i in 0..19 {
            levels.push(levels[i] * 0.75);
        }
        let every_fourth: Vec<f64> = levels.iter().copied().step_by(4).collect();
        let cases = [
            (
                0,
                SD15,
                4,
                &[SD15[1], 7.5, 3.0, 1.0, 0.3, SD15[0]][..],
                "8407f0cb59986fc0f7e16d4ae4c3eeee101d9a484e9b5dfba5a0cb8e017e93bd",
            ),
            (
                42,
                SD15,
                4,
                &[SD15[1], 7.5],
                "ce54d6c2f2e34033d990d4ca1d4052700251a28c3815f0d5010cf4469fefad86",
            ),
            (
                7,
                SD15,
                1024,
                &levels,
                "754924b862de125ab824161b3352fdc2c26df514fe24f82cd008dd8433d8f526",
            ),
            (
                (1 << 32) + 5,
                SD15,
                1024,
                &every_fourth,
                "c32bc36696e3c3a273c712f4f1780352998d80b1326418cfba9e9ff054c6d34e",
            ),
            (
                (1 << 63) + 11,
                [0.002, 80.0],
                256,
                &[80.0, 40.123_456, 13.7, 0.500_000_5, 0.007_812_5, 0.002],
                "a307f63eaa3c6cf863a6e75873c92d0b184f91cc46d645b777b1e67b2df95750",
            ),
            (
                3,
                [SD15[0], 4518.25],
                33,
                &[4518.25, 100.0, 99.999_99, 0.1, SD15[0]],
                "8a92cd507f05245661e42ea215d1d0338f7f9699d3f8adbce4ef0ac7a2ae7a42",
            ),
            (
                3,
                SD15,
                16,
                &[0.3, SD15[0], SD15[1], 1.0, 7.5],
                "27430970f537d7ed39454f7aaac98422b28e63aa52639a22c7640f825de64ccb",
            ),
            (
                5,
                [1.000_001_5, 2.000_000_5],
                17,
                &[2.000_000_5, 1.5, 1.499_999, 1.000_001_5],
                "71d395f5ede4d51ac32d7a40aa71369ad3ab248cba65e0e6a932ef8622dd19cb",
            ),
        ];
        for (seed, range, count, sigmas, expected) in cases {
            let found = walk(&mut tree(seed, range, count), count, sigmas);
            assert_eq!(digest(&found), expected, "seed {seed}, {sigmas:?}");
        }
    }

    /// Made by `tests/golden/brownian.py`.
    #[test]
    fn pictures_of_one_draw_have_their_parts_of_torchsdes_tree() {
        let mut levels = vec![SD15[1]];
        for i in 0..19 {
            levels.push(levels[i] * 0.75);
        }
        for (seed, count, parts) in [
            (
                9,
                33,
                [
                    "d5ff28c9cd7fe90a3eff50f35a284230e6a09c4da3b44cc2e3b822639240fc20",
                    "f75a0999dcfc63ce429e619dd79985a4f5f8c427b7d0b15eb9728c2bdd58950c",
                    "56fff4b9486c42c76f58b9f15acc7ee7b8d32cbe9637a7cdfb06c2f309a58093",
                ],
            ),
            (
                10,
                1024,
                [
                    "e4b6c279bf88922c5cd31bfc99269fcad104551ac1a21f3ec607e8c5e4b22234",
                    "092d5f65b19924d2a6add3b074c94c06a9510666a796e39027397333cdb972b9",
                    "2770f9565346881752d7ffd9bce8c1e6108b0f674fcd56486d2c4108b1fab84a",
                ],
            ),
        ] {
            for (index, expected) in parts.into_iter().enumerate() {
                let origin = Origin {
                    rng: Rng::TorchCpu,
                    index,
                    count: 3,
                };
                let mut tree = BrownianTree::new(seed, origin, count, SD15[0], SD15[1]);
                let found = walk(&mut tree, count, &levels);
                assert_eq!(digest(&found), expected, "seed {seed}, part {index}");
            }
        }
    }

    #[test]
    fn increments_have_the_published_numbers() {
        let found = walk(
            &mut tree(0, SD15, 4),
            4,
            &[SD15[1], 7.5, 3.0, 1.0, 0.3, SD15[0]],
        );
        let expected = [
            [0.174_320_83, -1.107_270_7, 0.020_650_97, 0.778_256_83],
            [-0.071_852_85, 0.584_083_8, 1.518_612_1, 0.108_467_94],
            [0.499_513_92, -1.358_086_1, -0.472_925_13, 0.345_607_82],
            [-0.010_667_598, -0.829_751_85, 0.543_717_4, 0.702_982_84],
            [1.170_346_5, 1.186_765_1, -2.416_154_4, 1.502_743_2],
        ];
        assert_eq!(found, expected.concat());
        let karras = [
            14.614_643_1,
            9.102_933_88,
            5.478_399_28,
            3.168_609_38,
            1.749_423_38,
            0.914_076_567,
            0.446_920_872,
            0.201_399_833,
            0.081_911_079_6,
            0.029_167_538_5,
        ];
        let mut tree = tree(0, [karras[9], karras[0]], 256);
        let found = walk(&mut tree, 256, &karras);
        for (step, expected) in [
            (0, [0.071_249_47, -1.195_154_7, -0.105_365_91, 1.165_74]),
            (1, [0.734_252_87, 2.695_883_8, 0.764_042_7, 0.120_317_56]),
            (2, [-0.554_114_5, 2.415_497_3, -0.957_921_4, -0.457_874_48]),
            (8, [-1.094_138_6, 0.023_949_109, 0.519_286_45, 0.132_160_2]),
        ] {
            assert_eq!(found[step * 256..][..4], expected, "step {step}");
        }
    }

    #[test]
    fn increments_do_not_depend_on_what_was_asked_before() {
        let sigmas = [SD15[1], 9.0, 4.4, 2.0, 1.999_999, 0.5, SD15[0]];
        for rng in Rng::ALL {
            let new = || BrownianTree::new(6, rng, 20, SD15[0], SD15[1]);
            let (mut forth, mut back) = (new(), new());
            let expected = walk(&mut forth, 20, &sigmas);
            for (i, pair) in sigmas.windows(2).enumerate().rev() {
                let mut out = [0.0; 20];
                back.increment(pair[0], pair[1], &mut out);
                assert_eq!(expected[20 * i..][..20], out);
                back.increment(pair[1], pair[0], &mut out);
                assert_eq!(expected[20 * i], -out[0]);
            }
            // Weighted by their deviations, the parts are the whole.
            let whole = walk(&mut forth, 20, &[SD15[1], SD15[0]]);
            let parts: f32 = sigmas.windows(2).enumerate().fold(0.0, |sum, (i, pair)| {
                sum + expected[20 * i] * (pair[0] as f32 - pair[1] as f32).sqrt()
            });
            let deviation = (SD15[1] - SD15[0]).sqrt() as f32;
            assert!((parts - whole[0] * deviation).abs() < 1e-5);
        }
    }

    #[test]
    fn levels_that_are_the_same_to_a_millionth_have_no_noise_between_them() {
        let mut tree = tree(0, SD15, 4);
        for (from, to) in [(1.0, 1.0), (1.000_000_2, 1.0), (20.0, 15.0)] {
            let mut out = [1.0; 4];
            tree.increment(from, to, &mut out);
            assert_eq!(out, [0.0; 4]);
        }
    }

    #[test]
    fn times_are_rounded_as_in_python() {
        for (time, expected) in [
            (1.000_001_5, 1.000_001),
            (2.000_000_5, 2.000_001),
            (0.007_812_5, 0.007_812),
            (0.0, 0.0),
        ] {
            assert_eq!(round(time), expected);
        }
    }
}
