//! How far a picture is from another one.

use sd_runtime::pipeline::Picture;
use serde::{Deserialize, Serialize};

/// Levels, of 255, above which a pixel is off.
pub(crate) const LEVELS: u8 = 8;

/// Deviation of SSIM's window in pixels, and how far it reaches to each side: 11 pixels in all.
const SIGMA: f64 = 1.5;
const REACH: usize = 5;
const WINDOW: usize = 2 * REACH + 1;

/// Difference of two pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    /// Peak signal-to-noise ratio over all channels, in dB; none if the pictures are equal.
    pub(crate) psnr_db: Option<f64>,
    /// Structural similarity, at most 1.
    pub(crate) ssim: f64,
    /// Share of pixels with a channel that is more than [`LEVELS`] off.
    pub(crate) off_percent: f64,
}

impl Difference {
    /// Compares pictures of the same size, which is at least that of SSIM's window.
    pub(crate) fn of(a: &Picture, b: &Picture) -> Self {
        let psnr = a.difference(b).map(|(_, psnr)| psnr);
        let pixels = a.rgb.chunks_exact(3).zip(b.rgb.chunks_exact(3));
        let is_off = |(a, b): &(&[u8], &[u8])| {
            let mut channels = a.iter().zip(*b);
            channels.any(|(a, b)| a.abs_diff(*b) > LEVELS)
        };
        Self {
            psnr_db: psnr.filter(|psnr| psnr.is_finite()),
            ssim: ssim(a, b),
            off_percent: 100.0 * pixels.filter(is_off).count() as f64 / (a.width * a.height) as f64,
        }
    }
}

/// What differs, `factor` times as strong.
pub(crate) fn amplified(a: &Picture, b: &Picture, factor: u8) -> Picture {
    let levels = a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b));
    Picture {
        rgb: levels.map(|x| x.saturating_mul(factor)).collect(),
        ..*a
    }
}

/// Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004, equation 13), mean over the places where the window fits and
/// over the channels. It is scikit-image's `structural_similarity` with `gaussian_weights`, `sigma=1.5` and
/// `use_sample_covariance=False`.
fn ssim(a: &Picture, b: &Picture) -> f64 {
    const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
    const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);
    let (mut sum, mut places) = (0.0, 0);
    for channel in 0..3 {
        let plane = |picture: &Picture| -> Vec<f64> {
            let values = picture.rgb.iter().skip(channel).step_by(3);
            values.map(|&x| f64::from(x)).collect()
        };
        let (x, y) = (plane(a), plane(b));
        let product =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
        let mean = |values: &[f64]| windowed(values, a.width);
        let (mx, my) = (mean(&x), mean(&y));
        let (mxx, myy, mxy) = (
            mean(&product(&x, &x)),
            mean(&product(&y, &y)),
            mean(&product(&x, &y)),
        );
        places += mx.len();
        for i in 0..mx.len() {
            let (mx, my) = (mx[i], my[i]);
            let variances = mxx[i] - mx * mx + (myy[i] - my * my);
            let covariance = mxy[i] - mx * my;
            sum += (2.0 * mx * my + C1) * (2.0 * covariance + C2)
                / ((mx * mx + my * my + C1) * (variances + C2));
        }
    }
    sum / places as f64
}

/// Means under the window, wherever it fits into rows of `width` values.
fn windowed(values: &[f64], width: usize) -> Vec<f64> {
    let mut weights = [0.0; WINDOW];
    for (i, weight) in weights.iter_mut().enumerate() {
        let distance = i as f64 - REACH as f64;
        *weight = (-0.5 * (distance / SIGMA).powi(2)).exp();
    }
    let total: f64 = weights.iter().sum();
    let weights = weights.map(|weight| weight / total);
    let rows = values.chunks_exact(width).flat_map(|row| {
        let sums = row.windows(WINDOW);
        sums.map(|near| near.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>())
    });
    let (rows, width) = (rows.collect::<Vec<f64>>(), width - 2 * REACH);
    let last = rows.len().saturating_sub(2 * REACH * width);
    let column = |i: usize| {
        let down = rows[i..].iter().step_by(width);
        down.zip(&weights).map(|(x, w)| x * w).sum()
    };
    (0..last).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::golden;

    /// Against scikit-image.
    #[test]
    fn figures_are_those_of_another_implementation() {
        let json = golden::json();
        let samples = golden::samples();
        let wide = golden::crop(&samples, [0, 0], [384, 128]);
        let levels = wide.rgb.iter().map(|x| x / 16 * 16).collect();
        let mut shifted = wide.rgb.clone();
        for row in shifted.chunks_exact_mut(3 * wide.width) {
            row.rotate_right(3);
        }
        let other = |rgb| Picture { rgb, ..wide };
        for (name, picture) in [
            ("levels", other(levels)),
            ("shifted", other(shifted)),
            ("others", golden::crop(&samples, [0, 128], [384, 128])),
        ] {
            let found = Difference::of(&wide, &picture);
            let expected = |figure: &str| json["pairs"][name][figure].as_f64().unwrap();
            // Both sum in double precision, in different orders.
            let close = |found: f64, figure: &str| (found - expected(figure)).abs() < 1e-9;
            assert!(close(found.psnr_db.unwrap(), "psnr"), "{name}: {found:?}");
            assert!(close(found.ssim, "ssim"), "{name}: {found:?}");
            assert!(close(found.off_percent / 100.0, "off"), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_picture_equals_itself() {
        let picture = golden::crop(&golden::samples(), [0, 0], [128, 128]);
        let same = Difference {
            psnr_db: None,
            ssim: 1.0,
            off_percent: 0.0,
        };
        assert_eq!(Difference::of(&picture, &picture), same);
        assert!(amplified(&picture, &picture, 8).rgb.iter().all(|x| *x == 0));
    }

    #[test]
    fn differences_are_amplified_up_to_white() {
        let one = |rgb: [u8; 3]| Picture {
            width: 1,
            height: 1,
            rgb: rgb.to_vec(),
        };
        let difference = amplified(&one([10, 20, 0]), &one([12, 10, 255]), 8);
        assert_eq!(difference.rgb, [16, 80, 255]);
    }
}
