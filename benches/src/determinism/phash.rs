//! A perceptual hash: pictures that look alike have hashes that differ in few bits.
//!
//! It is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", section 3.2.1), as Python's
//! `imagehash.phash` computes it of a picture of 32x32: the lowest 8x8 frequencies of a cosine transform, each one bit, whether it
//! is above their median. Pictures get to 32x32 by means of areas.

use ndarray::{Array2, ArrayView3, s};

/// Side of the picture that is transformed, and of the square of frequencies.
const SIDE: usize = 32;
const FREQUENCIES: usize = 8;

/// Hash of a picture, [height, width, 3]; both are at least 32.
pub(crate) fn phash(picture: &ArrayView3<'_, u8>) -> u64 {
    let grey = small(picture);
    let basis = Array2::from_shape_fn((FREQUENCIES, SIDE), |(k, n)| {
        let angle = std::f64::consts::PI * k as f64 * (2 * n + 1) as f64 / (2 * SIDE) as f64;
        angle.cos()
    });
    let low = basis.dot(&grey).dot(&basis.t());
    let mut sorted: Vec<f64> = low.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = f64::midpoint(sorted[middle - 1], sorted[middle]);
    let bits = low.iter().map(|&x| u64::from(x > median));
    bits.fold(0, |hash, bit| hash << 1 | bit)
}

/// Brightness of a picture at 32x32.
fn small(picture: &ArrayView3<'_, u8>) -> Array2<f64> {
    // ITU-R BT.601, as Pillow has it.
    const WEIGHTS: [f64; 3] = [0.299, 0.587, 0.114];
    let (height, width, _) = picture.dim();
    let span = |i: usize, length: usize| i * length / SIDE..(i + 1) * length / SIDE;
    Array2::from_shape_fn((SIDE, SIDE), |(y, x)| {
        let part = picture.slice(s![span(y, height), span(x, width), ..]);
        let count = (part.len() / 3) as f64;
        let sums = part.indexed_iter();
        let sums = sums.map(|((_, _, channel), &level)| WEIGHTS[channel] * f64::from(level));
        sums.sum::<f64>() / count
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::golden;
    use ndarray::Array3;

    /// Against Python's imagehash.
    #[test]
    fn hashes_are_those_of_another_implementation() {
        let json: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/phash.json")).unwrap();
        let samples = golden::samples();
        let expected = json["hashes"].as_array().unwrap();
        assert_eq!(expected.len(), 40);
        for (i, expected) in expected.iter().enumerate() {
            let place = [i % 8 * 128, i / 8 * 128];
            let picture = golden::crop(&samples, place, [128, 128]);
            let picture = Array3::from_shape_vec((128, 128, 3), picture.rgb).unwrap();
            let found = format!("{:016x}", phash(&picture.view()));
            assert_eq!(found, expected.as_str().unwrap(), "picture {i}");
        }
        let wide = golden::crop(&samples, [0, 0], [384, 128]);
        let wide = Array3::from_shape_vec((128, 384, 3), wide.rgb).unwrap();
        let found = format!("{:016x}", phash(&wide.view()));
        assert_eq!(found, json["wide"].as_str().unwrap());
    }
}
