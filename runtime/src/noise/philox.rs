//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with Box-Muller, as torch draws on
//! CUDA and A1111's "NV" source imitates it: element `i` of call `q` has counter `(q, 0, i, 0)` and the seed as key.
//!
//! Real cards split large draws among their threads in a way that depends on the card; that is not imitated.

use super::NoiseSource;

/// The generator; every draw advances it by one, whatever its size.
#[derive(Clone, Debug)]
pub struct Philox {
    seed: u64,
    call: u32,
}

impl Philox {
    /// As `torch.Generator("cuda").manual_seed(seed)`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, call: 0 }
    }
}

impl NoiseSource for Philox {
    fn normal(&mut self, out: &mut [f32]) {
        for (i, x) in out.iter_mut().enumerate() {
            let [radius, angle, ..] = words(self.seed, self.call, i as u32);
            *x = box_muller(radius, angle);
        }
        self.call = self.call.wrapping_add(1);
    }
}

fn words(seed: u64, call: u32, i: u32) -> [u32; 4] {
    philox4x32([call, 0, i, 0], [seed as u32, (seed >> 32) as u32])
}

fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [
                key[0].wrapping_add(0x9E37_79B9),
                key[1].wrapping_add(0xBB67_AE85),
            ];
        }
        let [c0, c1, c2, c3] = counter;
        let (p0, p1) = (0xD251_1F53 * u64::from(c0), 0xCD9E_8D57 * u64::from(c2));
        counter = [
            (p1 >> 32) as u32 ^ c1 ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// The x component of cuRAND's transform, whose constants are single precision.
fn box_muller(radius: u32, angle: u32) -> f32 {
    const UNIT: f32 = 2.328_306_4e-10; // 2^-32
    const TURN: f32 = 1.462_918_1e-9; // 2 pi 2^-32
    let half = |step: f32| f64::from(step / 2.0);
    let u = f64::from(radius) * f64::from(UNIT) + half(UNIT);
    let v = f64::from(angle) * f64::from(TURN) + half(TURN);
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_paper() {
        let all = u32::MAX;
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([all; 4], [all; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let (counter, key) = (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
        );
        assert_eq!(
            philox4x32(counter, key),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
        assert_eq!(
            philox4x32([0, 0, 1, 0], [0; 2]),
            [0x8445_15e1, 0xf08d_6eaa, 0x0f19_c053, 0x83f8_75f0]
        );
        assert_eq!(
            philox4x32([1, 0, 0, 0], [0; 2]),
            [0xf8e4_cca4, 0x5cb2_00db, 0xb1a5_74eb, 0x097e_ff67]
        );
    }

    /// Made by `tests/golden/philox.cpp`.
    #[test]
    fn millions_of_words_are_torchs() {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        for seed in [0, 42, (1 << 32) + 5, u64::MAX] {
            for (call, i) in (0..2).flat_map(|call| (0..500_000).map(move |i| (call, i))) {
                for word in words(seed, call, i) {
                    hash.update(word.to_le_bytes());
                }
            }
        }
        let digest = hash.finalize();
        let found: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            found,
            "e202418b274591be25756757b915be7f90057a4557b9d9eda3d21a1b64fc9e2f"
        );
    }

    /// One ulp: the logarithm and sine are the platform's. With glibc, four million numbers are numpy's to the last bit.
    fn close(found: &[f32], expected: &[f32]) {
        for (f, e) in found.iter().zip(expected) {
            assert!(
                (f.to_bits() as i32 - e.to_bits() as i32).abs() <= 1,
                "{f} instead of {e}"
            );
        }
    }

    #[test]
    fn draws_are_a1111s() {
        let cases: [(u64, [f32; 8], [f32; 4]); 5] = [
            (
                0,
                [
                    -0.924_662_4,
                    -0.425_343_96,
                    -2.643_845_8,
                    0.145_183_88,
                    -0.120_866_51,
                    -0.579_725_7,
                    -0.622_851_3,
                    -0.328_387_14,
                ],
                [0.180_825_89, -0.552_262_7, 0.923_813_4, -0.734_970_33],
            ),
            (
                42,
                [
                    0.194_018_87,
                    2.161_373_9,
                    -0.172_050_95,
                    0.849_06,
                    -1.924_399_3,
                    0.652_985_3,
                    -0.649_441_06,
                    -0.817_524_55,
                ],
                [0.139_137_49, -0.108_216_16, -0.717_422_2, 0.756_648_66],
            ),
            (
                1234,
                [
                    -1.616_490_4,
                    0.568_455_2,
                    -0.510_224_6,
                    -0.911_339_4,
                    -1.155_517_1,
                    -0.226_150_87,
                    -1.289_132_5,
                    1.065_382_2,
                ],
                [0.633_082_8, 1.635_821_9, -0.345_862_93, 1.019_552_8],
            ),
            (
                (1 << 32) + 5,
                [
                    -2.842_747_4,
                    1.340_492_4,
                    0.272_230_86,
                    1.455_062_9,
                    -0.735_296_1,
                    -0.502_260_3,
                    0.523_811_1,
                    0.178_810_92,
                ],
                [1.529_594, -0.215_323_78, 0.051_255_126, 1.588_217_3],
            ),
            (
                5,
                [
                    0.309_687_44,
                    1.216_427_1,
                    0.774_081_35,
                    1.670_136_5,
                    0.400_567,
                    -1.041_492_6,
                    -2.381_863,
                    0.942_264_9,
                ],
                [1.208_941_3, -0.611_668_4, 1.482_586_4, -1.151_339],
            ),
        ];
        for (seed, first, second) in cases {
            let mut source = Philox::new(seed);
            let (mut a, mut b) = ([0.0; 8], [0.0; 4]);
            source.normal(&mut a);
            source.normal(&mut b);
            close(&a, &first);
            close(&b, &second);
        }
    }

    #[test]
    fn a_whole_latent_has_its_published_sum() {
        let mut out = vec![0.0; 4 * 64 * 64];
        Philox::new(0).normal(&mut out);
        close(
            &out[out.len() - 3..],
            &[-0.131_549_91, -0.420_833_17, -2.954_316],
        );
        let sum: f64 = out.iter().map(|&x| f64::from(x)).sum();
        assert!((sum + 113.793_99).abs() < 1e-3); // the published sum has eight digits
    }
}
