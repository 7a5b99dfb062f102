//! Pink noise: white noise whose power is divided by its frequency.

use std::f64::consts::TAU;

use ndarray::{Array2, Axis, Zip};

use super::super::NoiseSource;
use super::white;

type Complex = [f64; 2];

/// White noise of the same draw, filtered; the constant part is left out.
pub(super) fn pink(source: &mut dyn NoiseSource, height: usize, width: usize) -> Array2<f32> {
    let white = white(source, (height, width));
    let mut spectrum = white.map(|&x| [f64::from(x), 0.0]);
    transform(&mut spectrum, -1.0);
    let frequency = |k: usize, n: usize| k.min(n - k) as f64 / n as f64;
    Zip::indexed(&mut spectrum).for_each(|(y, x), value| {
        let frequency = frequency(y, height).hypot(frequency(x, width));
        let amplitude = if frequency > 0.0 {
            frequency.powf(-0.5)
        } else {
            0.0
        };
        *value = value.map(|part| part * amplitude);
    });
    transform(&mut spectrum, 1.0);
    spectrum.map(|[real, _]| *real as f32)
}

/// The discrete Fourier transform, unscaled. Latents are too small to want a fast one.
fn transform(field: &mut Array2<Complex>, sign: f64) {
    for axis in [Axis(0), Axis(1)] {
        let n = field.len_of(axis);
        let turn = |k: usize| sign * TAU * k as f64 / n as f64;
        let roots: Vec<Complex> = (0..n).map(|k| [turn(k).cos(), turn(k).sin()]).collect();
        for mut lane in field.lanes_mut(axis) {
            let values = lane.to_vec();
            for (k, sum) in lane.iter_mut().enumerate() {
                *sum = [0.0; 2];
                for (j, [real, imaginary]) in values.iter().enumerate() {
                    let [cos, sin] = roots[j * k % n];
                    sum[0] += real * cos - imaginary * sin;
                    sum[1] += real * sin + imaginary * cos;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Rng;

    #[test]
    fn power_falls_as_one_over_frequency() {
        let mut power = [(0.0, 0); 2];
        for seed in 0..8 {
            let noise = pink(&mut *Rng::Philox.source(seed), 48, 40);
            let mut spectrum = noise.map(|&x| [f64::from(x), 0.0]);
            transform(&mut spectrum, -1.0);
            // Along the rows, at an eighth and a half of the sampling rate.
            for (k, power) in [6, 24].into_iter().zip(&mut power) {
                for y in [k, 48 - k] {
                    power.0 += spectrum[[y, 0]].map(|part| part * part).iter().sum::<f64>();
                    power.1 += 1;
                }
            }
            let mean = noise.mean().unwrap_or(1.0);
            assert!(mean.abs() < 1e-4);
        }
        let [low, high] = power.map(|(sum, count)| sum / f64::from(count));
        assert!((2.0..8.0).contains(&(low / high)), "{low} {high}");
    }

    #[test]
    fn a_transform_there_and_back_changes_nothing_but_the_scale() {
        let field = Array2::from_shape_fn((3, 5), |(y, x)| [y as f64, x as f64 * 0.5]);
        let mut there = field.clone();
        transform(&mut there, -1.0);
        transform(&mut there, 1.0);
        for ([a, b], [c, d]) in there.iter().zip(&field) {
            assert!((a / 15.0 - c).abs() < 1e-12 && (b / 15.0 - d).abs() < 1e-12);
        }
    }
}
