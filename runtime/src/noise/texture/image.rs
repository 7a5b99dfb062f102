//! A picture as first noise.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::imageops::{FilterType, resize};
use image::{ImageReader, Rgb32FImage};
use ndarray::Array2;

use crate::{Remedy, regular};

/// A file is no picture that noise could be made of.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct TextureError {
    path: PathBuf,
    problem: String,
}

impl TextureError {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        Some(Remedy::GivePng)
    }
}

/// A picture in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels(Arc<Rgb32FImage>);

impl Pixels {
    pub(super) fn open(path: &Path) -> Result<Self, TextureError> {
        let wrong = |problem: String| TextureError {
            path: path.to_owned(),
            problem,
        };
        let file = regular::open(path).map_err(|e| wrong(e.to_string()))?;
        let reader = ImageReader::new(BufReader::new(file)).with_guessed_format();
        let reader = reader.map_err(|e| wrong(e.to_string()))?;
        let pixels = reader
            .decode()
            .map_err(|e| wrong(e.to_string()))?
            .to_rgb32f();
        let mut all = pixels.pixels();
        let first = all.next();
        if all.all(|pixel| Some(pixel) == first) {
            return Err(wrong("the picture has one colour only".to_owned()));
        }
        Ok(Self(Arc::new(pixels)))
    }

    /// Channel `c` at another size: brightness, red, green and blue, and again.
    pub(super) fn channel(&self, c: usize, height: usize, width: usize) -> Array2<f32> {
        let small = resize(&*self.0, width as u32, height as u32, FilterType::Triangle);
        Array2::from_shape_fn((height, width), |(y, x)| {
            let [r, g, b] = small.get_pixel(x as u32, y as u32).0;
            [0.299 * r + 0.587 * g + 0.114 * b, r, g, b][c % 4]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    #[test]
    fn channels_are_brightness_and_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        RgbImage::from_fn(8, 4, |x, _| Rgb([255, if x < 4 { 0 } else { 51 }, 0]))
            .save(&path)
            .unwrap();
        let pixels = Pixels::open(&path).unwrap();
        let middle = |c| pixels.channel(c, 2, 4)[[1, 3]];
        let expected = [0.299 + 0.587 * 0.2, 1.0, 0.2, 0.0, 0.299 + 0.587 * 0.2];
        for (c, expected) in expected.into_iter().enumerate() {
            assert!((middle(c) - expected).abs() < 1e-5, "channel {c}");
        }
    }

    #[test]
    fn what_is_no_picture_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let said = |path: &Path| Pixels::open(path).unwrap_err().to_string();
        assert!(said(&path).contains("a.png"));
        std::fs::write(&path, "no picture").unwrap();
        assert!(said(&path).contains("a.png"));
        RgbImage::from_pixel(4, 4, Rgb([9, 9, 9]))
            .save(&path)
            .unwrap();
        assert!(said(&path).contains("one colour only"));
    }
}
