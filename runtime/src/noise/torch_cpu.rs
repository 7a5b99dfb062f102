//! `torch.randn` on the CPU, for contiguous single-precision tensors.
//!
//! Fewer than 16 numbers go one by one through double precision, with the second number of a Box-Muller pair kept for the
//! next call. From 16 on, blocks of 16 uniforms are transformed in single precision by the vectorised kernel of torch's
//! x86-64 builds, whose logarithm and sine are the polynomials of the Cephes library with fused multiply-adds: followed
//! here operation by operation, so every bit is torch's. Builds for other processors differ in the last bits.

use std::f32::consts::PI;

use super::NoiseSource;
use super::mt19937::Mt19937;

const BLOCK: usize = 16;

/// torch's CPU generator.
#[derive(Clone, Debug)]
pub struct TorchCpu {
    mt: Mt19937,
    /// The second number of a pair that was drawn one by one.
    cached: Option<f64>,
}

impl TorchCpu {
    /// As `torch.Generator("cpu").manual_seed(seed)`: only the lower 32 bits count.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            mt: Mt19937::new(seed as u32),
            cached: None,
        }
    }

    /// 24 bits in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.mt.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// 53 bits in [0, 1).
    fn uniform_double(&mut self) -> f64 {
        (self.mt.next_u64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal_double(&mut self) -> f64 {
        if let Some(second) = self.cached.take() {
            return second;
        }
        let angle = 2.0 * std::f64::consts::PI * self.uniform_double();
        let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
        self.cached = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

impl NoiseSource for TorchCpu {
    fn normal(&mut self, out: &mut [f32]) {
        let n = out.len();
        if n < BLOCK {
            out.iter_mut()
                .for_each(|x| *x = self.normal_double() as f32);
            return;
        }
        out.iter_mut().for_each(|x| *x = self.uniform());
        let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(box_muller);
        if !tail.is_empty() {
            // The last 16 are drawn again, over the end of the block before.
            let mut block = [0.0; BLOCK];
            block.iter_mut().for_each(|x| *x = self.uniform());
            box_muller(&mut block);
            out[n - BLOCK..].copy_from_slice(&block);
        }
    }
}

/// Uniforms to normals: the first half gives radii, the second angles.
fn box_muller(block: &mut [f32; BLOCK]) {
    for j in 0..BLOCK / 2 {
        let radius = (-2.0 * ln(1.0 - block[j])).sqrt();
        let (sin, cos) = sin_cos(2.0 * PI * block[j + BLOCK / 2]);
        block[j] = radius * cos;
        block[j + BLOCK / 2] = radius * sin;
    }
}

/// Cephes' `logf` for positive normal numbers.
#[expect(clippy::excessive_precision, reason = "the constants as published")]
fn ln(x: f32) -> f32 {
    const P: [f32; 8] = [
        -1.151_461_031_0e-1,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 127) as f32 + 1.0;
    let fraction = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let m = if fraction < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        (fraction - 1.0) + fraction
    } else {
        fraction - 1.0
    };
    let z = m * m;
    let mut y = P
        .iter()
        .fold(7.037_683_629_2e-2f32, |y, &c| y.mul_add(m, c));
    y *= m;
    y = y.mul_add(z, e * -2.121_944_40e-4);
    y = (-z).mul_add(0.5, y);
    e.mul_add(0.693_359_375, m + y)
}

/// Cephes' `sinf` and `cosf` for numbers that are not negative.
#[expect(clippy::excessive_precision, reason = "the constants as published")]
fn sin_cos(x: f32) -> (f32, f32) {
    let j = ((x * 1.273_239_544_735_16) as i32 + 1) & !1;
    let f = j as f32;
    let x = f.mul_add(-0.785_156_25, x);
    let x = f.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = f.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;
    let c = 2.443_315_711_809_948e-5f32.mul_add(z, -1.388_731_625_493_765e-3);
    let c = c.mul_add(z, 4.166_664_568_298_827e-2) * z;
    let c = c.mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.951_529_589_1e-4f32).mul_add(z, 8.332_160_873_6e-3);
    let s = s.mul_add(z, -1.666_665_461_1e-1) * z;
    let s = s.mul_add(x, x);
    let (sin, cos) = if j & 2 == 0 { (s, c) } else { (c, s) };
    let negate = |value: f32, negative: bool| if negative { -value } else { value };
    (negate(sin, j & 4 != 0), negate(cos, !(j - 2) & 4 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::digest;

    fn draw(seed: u64, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        TorchCpu::new(seed).normal(&mut out);
        out
    }

    #[test]
    fn hashes_of_whole_tensors_are_torchs() {
        for (seed, n, expected) in [
            (
                0,
                4 * 64 * 64,
                "24efac55b39e95b2d74d8fb5b3a8e8a8e808bd04129f260c4cdbb225bb952a4d",
            ),
            (
                42,
                4 * 64 * 64,
                "e97f3de04c7c6ba86354db4402b91d4402ede9c72aabed29a96dd7d635a798ba",
            ),
            (
                1234,
                4 * 64 * 64,
                "1a5280994365d72aaaba851e3c0ced941dac95c59af075897fcd3732eb3e6ae2",
            ),
            (
                (1 << 32) + 5,
                4 * 64 * 64,
                "5703ceb9b4c010a8da470be3862360c2edaa719ca5380e6521b4058a1902174b",
            ),
            (
                0,
                4 * 128 * 128,
                "33e5e1492edd7110d7f1a65492cbc485924cb2dc9343099bd01121af5e47a0e7",
            ),
            (
                42,
                4 * 128 * 128,
                "23c72e908d9e3fbe50836a02f09ccde0acfcf28c00dec75b986c49dadf0c115e",
            ),
            (
                0,
                17,
                "6d2169852e19b6d18ed57d5a11b37c14723e147e06b2b3868a4e6d8a30017923",
            ),
        ] {
            assert_eq!(digest(&draw(seed, n)), expected, "seed {seed}, {n} numbers");
        }
    }

    /// Two draws of about a million numbers each: `torch.randn(n, generator=torch.Generator().manual_seed(seed))`, torch 2.14.1.
    #[test]
    fn millions_of_numbers_are_torchs() {
        for (seed, n, expected) in [
            (
                0,
                1_000_000,
                "66738e6a797de5d334bd7952c27d2739bcf41f1ae35424979bd7ac2719c69638",
            ),
            (
                42,
                1_000_001,
                "b9ea681db0a976e423e74547ac2a8cbdf1184b010bfab21540e2cea778190387",
            ),
            (
                u64::from(u32::MAX),
                999_999,
                "a9c6774b54c9fa462c19613a193c89bb176db13beb9f7b7688fe82cfd37c10e2",
            ),
            (
                1_234_567_890_123,
                (1 << 20) + 7,
                "826b925e7ca11316420536b239b22d710ea0b36b79790d62eddeaee3ffeb271a",
            ),
            (
                u64::MAX,
                4 * 135 * 97,
                "8135f4f9a884635fedace869c1917b5279b234621992cb36cb7060d4a01d2da0",
            ),
            (
                31_337,
                63,
                "7a10c31701791ad025e0cf3a28010c549c4513ed87efad06d3d94e7afc9d06a7",
            ),
        ] {
            let mut source = TorchCpu::new(seed);
            let mut numbers = vec![0.0; 2 * n];
            let (first, second) = numbers.split_at_mut(n);
            source.normal(first);
            source.normal(second);
            assert_eq!(digest(&numbers), expected, "seed {seed}, {n} numbers");
        }
    }

    #[test]
    fn few_numbers_go_through_double_precision() {
        assert_eq!(
            draw(0, 4),
            [1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26]
        );
        assert_eq!(
            draw(42, 4),
            [0.336_690_37, 0.128_809_4, 0.234_462_37, 0.230_333_03]
        );
        assert_eq!(
            draw(1234, 4),
            [0.046_130_463, 0.402_402_82, -1.011_529_1, 0.216_738_24]
        );
        assert_eq!(
            draw(u64::MAX, 4),
            [1.219_763, -0.392_979_47, 1.023_075_1, -0.373_421_13]
        );
        assert_eq!(draw((1 << 32) + 5, 15), draw(5, 15));
        assert_eq!(draw(0, 15)[14], -1.071_187_4);
        let first = TorchCpu::new(0).normal_double();
        assert!((first - 1.540_996_108_244_043_3).abs() < 1e-15); // the library's logarithm may be off by an ulp
    }

    #[test]
    fn the_second_of_a_pair_waits_for_the_next_small_draw() {
        let mut source = TorchCpu::new(0);
        source.normal(&mut [0.0; 3]);
        source.normal(&mut [0.0; 16]);
        let mut last = [0.0];
        source.normal(&mut last);
        assert_eq!(last, [0.568_431_26]);
    }

    #[test]
    fn successive_draws_of_whole_blocks_are_one_draw() {
        let mut source = TorchCpu::new(7);
        let (mut a, mut b) = ([0.0; 256], [0.0; 256]);
        source.normal(&mut a);
        source.normal(&mut b);
        assert_eq!(draw(7, 512), [a, b].concat());
    }
}
