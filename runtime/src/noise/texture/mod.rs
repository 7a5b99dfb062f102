//! What first noise may look like. Models are trained with white noise; all else is an experiment, and no standard of other
//! programs. One kind per file, each with mean 0 and variance 1 in every channel.

mod image;
mod perlin;
mod pink;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ndarray::{Array, Array2, Array3, Axis, ShapeBuilder};

pub use self::image::{Pixels, TextureError};
use super::NoiseSource;

/// What noise looks like; `I` is a file's name or its pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Texture<I> {
    /// Every number for itself.
    #[default]
    White,
    /// Perlin's gradient noise in four octaves.
    Perlin,
    /// Power falls as one over frequency.
    Pink,
    /// A picture's brightness and colours.
    Image(I),
}

impl Texture<PathBuf> {
    /// Reads the picture, if it is one.
    ///
    /// # Errors
    /// It cannot be read, or has one colour only.
    pub fn open(&self) -> Result<Texture<Pixels>, TextureError> {
        Ok(match self {
            Self::White => Texture::White,
            Self::Perlin => Texture::Perlin,
            Self::Pink => Texture::Pink,
            Self::Image(path) => Texture::Image(Pixels::open(path)?),
        })
    }
}

impl Texture<Pixels> {
    /// Noise of `shape`, [C, H, W]. Every kind but a picture is made of what `source` draws.
    #[must_use]
    pub fn draw(&self, source: &mut dyn NoiseSource, shape: [usize; 3]) -> Array3<f32> {
        let [_, height, width] = shape;
        let mut field: Box<dyn FnMut(usize) -> Array2<f32>> = match self {
            Self::White => return white(source, shape),
            Self::Perlin => Box::new(|_| perlin::perlin(source, height, width)),
            Self::Pink => Box::new(|_| pink::pink(source, height, width)),
            Self::Image(pixels) => Box::new(|c| pixels.channel(c, height, width)),
        };
        let mut noise = Array3::zeros(shape);
        for (c, mut channel) in noise.axis_iter_mut(Axis(0)).enumerate() {
            channel.assign(&normalised(&field(c)));
        }
        noise
    }
}

fn white<Sh: ShapeBuilder>(source: &mut dyn NoiseSource, shape: Sh) -> Array<f32, Sh::Dim> {
    let mut noise = Array::zeros(shape);
    let numbers = noise.as_slice_mut();
    source.normal(numbers.expect("new arrays are contiguous"));
    noise
}

/// With mean 0 and variance 1; a flat field is 0.
fn normalised(field: &Array2<f32>) -> Array2<f32> {
    let count = field.len() as f64;
    let mean = field.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares = field.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    let scale = if deviation < 1e-6 {
        0.0
    } else {
        1.0 / deviation
    };
    field.map(|&x| ((f64::from(x) - mean) * scale) as f32)
}

/// A name that is no kind of noise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no noise is called `{0}`; there are white, perlin, pink and image:FILE")]
pub struct UnknownTexture(String);

impl FromStr for Texture<PathBuf> {
    type Err = UnknownTexture;

    fn from_str(name: &str) -> Result<Self, UnknownTexture> {
        match (name, name.strip_prefix("image:")) {
            ("white", _) => Ok(Self::White),
            ("perlin", _) => Ok(Self::Perlin),
            ("pink", _) => Ok(Self::Pink),
            (_, Some(path)) if !path.is_empty() => Ok(Self::Image(path.into())),
            _ => Err(UnknownTexture(name.to_owned())),
        }
    }
}

impl fmt::Display for Texture<PathBuf> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::White => f.write_str("white"),
            Self::Perlin => f.write_str("perlin"),
            Self::Pink => f.write_str("pink"),
            Self::Image(path) => write!(f, "image:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Rng;

    #[test]
    fn names_are_read_back() {
        for name in ["white", "perlin", "pink", "image:a b.png"] {
            assert_eq!(name.parse::<Texture<_>>().unwrap().to_string(), name);
        }
        for name in ["brown", "image:", ""] {
            let error = name.parse::<Texture<_>>().unwrap_err().to_string();
            assert!(error.contains("image:FILE"), "{error}");
        }
    }

    #[test]
    fn noise_is_normal_in_every_channel_and_fixed_by_the_seed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.png");
        let gradient = ::image::RgbImage::from_fn(40, 30, |x, y| {
            ::image::Rgb([x as u8 * 6, y as u8 * 8, (x * y) as u8 / 2])
        });
        gradient.save(&file).unwrap();
        for texture in [Texture::Perlin, Texture::Pink, Texture::Image(file)] {
            let texture = texture.open().unwrap();
            for rng in Rng::ALL {
                let draw = |seed| texture.draw(&mut *rng.source(seed), [4, 24, 20]);
                let noise = draw(3);
                for channel in noise.outer_iter() {
                    assert!(channel.mean().unwrap().abs() < 1e-5, "{texture:?}");
                    assert!((channel.std(0.0) - 1.0).abs() < 1e-5, "{texture:?}");
                }
                assert_eq!(noise, draw(3));
                let is_image = matches!(texture, Texture::Image(_));
                assert_eq!(noise == draw(4), is_image, "{texture:?}");
            }
        }
    }

    /// Mean product of neighbours: 0 for white noise.
    #[test]
    fn neighbours_are_alike_in_coloured_noise() {
        for (texture, least, most) in [
            (Texture::White, -0.05, 0.05),
            (Texture::Pink, 0.25, 0.6),
            (Texture::Perlin, 0.6, 0.98),
        ] {
            let noise = texture.draw(&mut *Rng::TorchCpu.source(1), [4, 64, 64]);
            let (left, right) = (
                noise.slice(ndarray::s![.., .., ..63]),
                noise.slice(ndarray::s![.., .., 1..]),
            );
            let alike = (&left * &right).mean().unwrap();
            assert!((least..most).contains(&alike), "{texture:?}: {alike}");
        }
    }
}
