//! A picture's first noise, and the generator that goes on after it, by the rules of A1111's `ImageRNG`: variations, noise of
//! another size, and another seed for what is drawn later.

use ndarray::{Array3, s};

use super::slerp::slerp;
use super::texture::{Pixels, Texture};
use super::{NoiseSource, Origin};

/// How the first noise is drawn. The default is one plain draw.
#[derive(Clone, Debug, Default)]
pub struct FirstNoise {
    /// Another draw, and how far to go there.
    pub variation: Option<Variation>,
    /// Height and width of latents whose noise is put into the middle, so that a picture of that size keeps its composition.
    pub resized_from: Option<[usize; 2]>,
    /// What is added to the seed for later noise; A1111's "eta noise seed delta".
    pub ensd: i64,
    /// What the noise looks like.
    pub texture: Texture<Pixels>,
}

/// A way from one draw to another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variation {
    /// Seed of the other draw.
    pub seed: u64,
    /// How far: 0 is not at all, 1 all the way.
    pub strength: f64,
}

impl FirstNoise {
    /// Draws noise of `shape`, [C, H, W], and returns it with the generator of later noise.
    #[must_use]
    pub fn draw(
        &self,
        origin: impl Into<Origin>,
        seed: u64,
        shape: [usize; 3],
    ) -> (Array3<f32>, Box<dyn NoiseSource + Send>) {
        let origin = origin.into();
        let mut source = origin.source(seed);
        let mut noise = self.texture.draw(&mut *source, shape);
        let [channels, height, width] = shape;
        let [from_height, from_width] = self.resized_from.unwrap_or([height, width]);
        let resized = [from_height, from_width] != [height, width];
        let from_shape = [channels, from_height, from_width];
        let fresh = |seed| self.texture.draw(&mut *origin.source(seed), from_shape);
        let mut inner = if resized { fresh(seed) } else { noise.clone() };
        if let Some(variation) = self.variation {
            inner = slerp(variation.strength, &inner, &fresh(variation.seed));
        }
        paste_centred(&inner, &mut noise);
        if self.ensd != 0 {
            source = origin.source(seed.wrapping_add_signed(self.ensd));
        }
        (noise, source)
    }
}

/// Puts `inner` into the middle of `outer`; what does not fit is left out. An odd row stays at the end of `outer`, or is one
/// more that is left out.
fn paste_centred(inner: &Array3<f32>, outer: &mut Array3<f32>) {
    let span = |axis: usize| {
        let (from, to) = (inner.shape()[axis], outer.shape()[axis]);
        if from <= to {
            (0, (to - from) / 2, from)
        } else {
            let skipped = (from - to).div_ceil(2);
            (skipped, 0, from - 2 * skipped)
        }
    };
    let ((y, to_y, height), (x, to_x, width)) = (span(1), span(2));
    let part = inner.slice(s![.., y..y + height, x..x + width]);
    outer
        .slice_mut(s![.., to_y..to_y + height, to_x..to_x + width])
        .assign(&part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Rng;

    fn draw(first: &FirstNoise, rng: Rng, seed: u64) -> Array3<f32> {
        first.draw(rng, seed, [4, 8, 8]).0
    }

    fn plain(seed: u64) -> Array3<f32> {
        draw(&FirstNoise::default(), Rng::TorchCpu, seed)
    }

    fn starts_with(found: impl IntoIterator<Item = f32>, expected: &[f32]) {
        for (found, expected) in found.into_iter().zip(expected) {
            // The arc cosine and the sine are the platform's.
            assert!((found - expected).abs() < 1e-6, "{found} not {expected}");
        }
    }

    #[test]
    fn variations_are_a1111s() {
        let variation = |strength| FirstNoise {
            variation: Some(Variation { seed: 42, strength }),
            ..FirstNoise::default()
        };
        for (strength, expected) in [
            (
                0.25,
                [-0.279_079_26, -0.473_926_54, 0.132_004_01, -1.053_521_9],
            ),
            (0.5, [0.619_378, 0.329_061_99, 0.491_227_98, -1.569_904_9]),
        ] {
            starts_with(draw(&variation(strength), Rng::TorchCpu, 0), &expected);
        }
        starts_with(
            draw(&variation(0.0), Rng::TorchCpu, 0),
            plain(0).as_slice().unwrap(),
        );
        starts_with(
            draw(&variation(1.0), Rng::TorchCpu, 0),
            plain(42).as_slice().unwrap(),
        );
        // A seed's variation towards itself is itself.
        starts_with(
            draw(&variation(0.3), Rng::TorchCpu, 42),
            plain(42).as_slice().unwrap(),
        );
    }

    #[test]
    fn noise_of_another_size_is_put_into_the_middle() {
        let from = |height, width| FirstNoise {
            resized_from: Some([height, width]),
            ..FirstNoise::default()
        };
        let wide = draw(&from(4, 12), Rng::TorchCpu, 0);
        for y in [0, 1, 6, 7] {
            assert_eq!(wide.slice(s![.., y, ..]), plain(0).slice(s![.., y, ..]));
        }
        let row = wide.slice(s![0, 2, ..]).to_vec();
        starts_with(
            row,
            &[
                -0.250_578_58,
                -0.433_878_8,
                0.848_710_36,
                0.692_009_15,
                -0.316_012_77,
            ],
        );
        // The same size is no other.
        assert_eq!(draw(&from(8, 8), Rng::TorchCpu, 0), plain(0));
    }

    #[test]
    fn an_odd_row_is_at_the_end_or_left_out() {
        let inner = |n| Array3::from_shape_fn((1, n, 1), |(_, y, _)| 1.0 + y as f32);
        for (from, to, expected) in [
            (3, 6, vec![0.0, 1.0, 2.0, 3.0, 0.0, 0.0]),
            (7, 4, vec![3.0, 4.0, 5.0, 0.0]),
            (6, 4, vec![2.0, 3.0, 4.0, 5.0]),
        ] {
            let mut outer = Array3::zeros((1, to, 1));
            paste_centred(&inner(from), &mut outer);
            assert_eq!(
                outer.into_raw_vec_and_offset().0,
                expected,
                "{from} into {to}"
            );
        }
    }

    #[test]
    fn later_noise_goes_on_unless_it_has_a_seed_of_its_own() {
        for (ensd, expected) in [
            (
                0,
                [-0.039_372_54, -0.801_472_2, -0.495_544_3, -0.361_514_06],
            ),
            (
                31_337,
                [1.183_281_7, -0.063_058_81, 0.990_850_9, -0.506_069_4],
            ),
        ] {
            let first = FirstNoise {
                ensd,
                ..FirstNoise::default()
            };
            let (noise, mut source) = first.draw(Rng::TorchCpu, 0, [4, 8, 8]);
            assert_eq!(noise, plain(0));
            let mut later = [0.0; 256];
            source.normal(&mut later);
            starts_with(later, &expected);
        }
    }
}
