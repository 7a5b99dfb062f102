//! Decoded pictures to PNG, JPEG and WebP files, with the settings inside, and back.

mod exif;
mod read;

use std::io::{self, Write};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use ndarray::ArrayView3;
use png::text_metadata::{ITXtChunk, TEXtChunk};

use super::{Destination, PipelineError};
use crate::engine::Cancel;

pub use read::{PictureError, PictureFile, is_cut_off_png};

/// How a picture is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Without loss.
    Png,
    /// With loss.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
    /// Without loss.
    WebP,
}

impl Format {
    /// JPEG as A1111 writes it.
    pub const JPEG: Self = Self::Jpeg { quality: 80 };

    /// The format of a file's name; none for one that is no picture's.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_string_lossy().to_lowercase();
        match extension.as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::JPEG),
            "webp" => Some(Self::WebP),
            _ => None,
        }
    }

    /// Most bytes that it holds of settings that take `parameters` bytes there, if they are more.
    #[must_use]
    pub fn exceeded(self, parameters: &str) -> Option<usize> {
        // A segment counts its bytes, with the two of the count, in 16 bits.
        const SEGMENT: usize = 65_535 - 2 - exif::HEADER.len();
        let is_jpeg = matches!(self, Self::Jpeg { .. });
        (is_jpeg && exif::length(parameters) > SEGMENT).then_some(SEGMENT)
    }
}

/// An RGB picture with 8 bits per channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Row by row, three bytes per pixel.
    pub rgb: Vec<u8>,
}

/// Peak signal-to-noise ratio in dB for a mean square of differences, in levels of 255; infinite without a difference.
#[must_use]
pub fn psnr(mean_square: f64) -> f64 {
    10.0 * (255.0 * 255.0 / mean_square).log10()
}

impl Picture {
    /// Takes the decoder's output for one picture, [3, height, width] with values in -1..=1; others are clamped.
    ///
    /// `pixel` rounds values in 0..=255.
    #[must_use]
    pub fn from_decoded(decoded: &ArrayView3<'_, f32>, pixel: fn(f32) -> u8) -> Self {
        let (_, height, width) = decoded.dim();
        let quantize = |x: f32| pixel(f32::midpoint(x, 1.0).clamp(0.0, 1.0) * 255.0);
        let rgb = decoded
            .view()
            .permuted_axes([1, 2, 0])
            .iter()
            .map(|&x| quantize(x))
            .collect();
        Self { width, height, rgb }
    }

    /// Whether every pixel is the same, which no prompt asks for.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.rgb
            .chunks_exact(3)
            .all(|pixel| pixel == &self.rgb[..3])
    }

    /// Writes the picture, with `parameters` as A1111 reads them; a PNG has no such text if they are empty.
    ///
    /// # Errors
    /// It cannot be written, or the format does not hold so long settings.
    pub fn write(
        &self,
        to: &Destination,
        format: Format,
        parameters: &str,
        cancel: &Cancel,
    ) -> Result<(), PipelineError> {
        let size = format!("{}x{}", self.width, self.height);
        let _span = tracing::info_span!("write", file = %to.path().display(), size).entered();
        let bytes = self
            .encode(format, parameters)
            .map_err(|source| PipelineError::Write {
                path: to.path().to_owned(),
                source,
            })?;
        to.write(&bytes, cancel)
    }

    /// The bytes of a file, with `parameters` as A1111 reads them.
    ///
    /// # Errors
    /// A side is 0 or too long for the format, there are not three bytes for every pixel, or the format does not hold so long
    /// settings.
    pub fn encode(&self, format: Format, parameters: &str) -> io::Result<Vec<u8>> {
        if let Some(most) = format.exceeded(parameters) {
            let text = format!("its settings take more than the {most} bytes that a JPEG holds");
            return Err(io::Error::other(text));
        }
        let mut bytes = Vec::new();
        match format {
            Format::Png => self.encode_png(&mut bytes, parameters)?,
            Format::Jpeg { quality } => {
                self.encode_with(
                    JpegEncoder::new_with_quality(&mut bytes, quality),
                    parameters,
                )?;
            }
            Format::WebP => self.encode_with(WebPEncoder::new_lossless(&mut bytes), parameters)?,
        }
        Ok(bytes)
    }

    fn encode_with(&self, mut encoder: impl ImageEncoder, parameters: &str) -> io::Result<()> {
        let exif = exif::block(parameters);
        encoder.set_exif_metadata(exif).map_err(io::Error::other)?;
        let [width, height] = self.sides()?;
        let written = encoder.write_image(&self.rgb, width, height, ExtendedColorType::Rgb8);
        written.map_err(io::Error::other)
    }

    /// What a format makes of the picture: itself, or what is left of it in a JPEG.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn stored_as(&self, format: Format) -> io::Result<Self> {
        match format {
            Format::Png | Format::WebP => Ok(self.clone()),
            Format::Jpeg { .. } => {
                read::decoded(&self.encode(format, "")?).map_err(io::Error::other)
            }
        }
    }

    /// Greatest difference of a channel's values, and the peak signal-to-noise ratio over all of them in dB; none if the sizes differ.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<(u8, f64)> {
        if (self.width, self.height) != (other.width, other.height) {
            return None;
        }
        let differences = || self.rgb.iter().zip(&other.rgb).map(|(a, b)| a.abs_diff(*b));
        let squares: f64 = differences().map(|d| f64::from(d).powi(2)).sum();
        Some((
            differences().max().unwrap_or(0),
            psnr(squares / self.rgb.len() as f64),
        ))
    }

    fn sides(&self) -> io::Result<[u32; 2]> {
        let side = |n: usize| u32::try_from(n).map_err(io::Error::other);
        Ok([side(self.width)?, side(self.height)?])
    }

    fn encode_png(&self, out: &mut impl Write, parameters: &str) -> io::Result<()> {
        let [width, height] = self.sides()?;
        let mut encoder = png::Encoder::new(out, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        if parameters.is_empty() {
            // Nothing to tell.
        } else if parameters.chars().all(|c| u32::from(c) < 256) {
            writer.write_text_chunk(&TEXtChunk::new("parameters", parameters))?;
        } else {
            let mut chunk = ITXtChunk::new("parameters", parameters);
            chunk.compressed = false;
            writer.write_text_chunk(&chunk)?;
        }
        writer.write_image_data(&self.rgb)?;
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{A1111, DIFFUSERS, Profile};
    use ndarray::Array3;

    #[test]
    fn values_are_quantized_by_the_profiles_rule() {
        // In 0..=1 these are 0.5, 0.999, 0.00197, 1 and beyond.
        let values = [0.0, 0.998, -0.99606, 1.0, 7.0, -7.0];
        let decoded = Array3::from_shape_vec((3, 1, 2), values.to_vec()).unwrap();
        let quantized =
            |profile: Profile| Picture::from_decoded(&decoded.view(), profile.pixel).rgb;
        // Channels become the fastest axis.
        assert_eq!(quantized(&A1111), [127, 0, 255, 254, 255, 0]);
        assert_eq!(quantized(&DIFFUSERS), [128, 1, 255, 255, 255, 0]);
    }

    /// A picture with something in it.
    fn gradient() -> Picture {
        let (width, height) = (24, 16);
        let pixel = |i: usize| [i % width * 10, i / width * 15, i % 7 * 30].map(|x| x as u8);
        Picture {
            width,
            height,
            rgb: (0..width * height).flat_map(pixel).collect(),
        }
    }

    const FORMATS: [(&str, Format); 4] = [
        ("a.png", Format::Png),
        ("a.jpg", Format::JPEG),
        ("a.JPEG", Format::JPEG),
        ("a.webp", Format::WebP),
    ];

    #[test]
    fn files_are_read_back_with_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let picture = gradient();
        for (name, format) in FORMATS {
            let path = dir.path().join(name);
            assert_eq!(Format::of(&path), Some(format));
            for text in ["a café\nSteps: 1", "猫 🦀\nSteps: 1"] {
                let to = Destination::find(&path).unwrap();
                picture.write(&to, format, text, &Cancel::new()).unwrap();
                let file = PictureFile::open(&path).unwrap();
                assert_eq!((file.parameters.as_str(), file.format), (text, format));
                assert_eq!(file.size, [24, 16]);
                let decoded = file.decode().unwrap();
                assert_eq!(decoded, picture.stored_as(format).unwrap(), "{name}");
                let (max, psnr) = decoded.difference(&picture).unwrap();
                match format {
                    Format::Jpeg { .. } => assert!(max > 0 && psnr > 20.0, "{psnr}"),
                    Format::Png | Format::WebP => assert!(max == 0 && psnr == f64::INFINITY),
                }
            }
        }
        assert!(!picture.is_constant());
        assert_eq!(Format::of(Path::new("a.gif")), None);
        let long = "a".repeat(40_000);
        let error = picture.encode(Format::JPEG, &long).unwrap_err().to_string();
        assert!(error.contains("65527 bytes"), "{error}");
        assert!(Format::WebP.exceeded(&long).is_none() && Format::Png.exceeded(&long).is_none());
    }

    /// Cut after every byte, and with every bit of the beginning and many of the rest turned.
    #[test]
    fn broken_files_are_errors_with_their_names_or_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken");
        let try_out = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let tried = PictureFile::open(&path).and_then(|file| file.decode());
            let error = tried.err().map(|error| error.to_string());
            if let Some(error) = &error {
                assert!(error.contains("broken: "), "{error}");
            }
            error
        };
        for (_, format) in FORMATS {
            let bytes = gradient()
                .encode(format, "a cat\nSteps: 1, Seed: 2, Size: 8x8")
                .unwrap();
            for end in 0..bytes.len() {
                let error = try_out(&bytes[..end]);
                assert!(error.is_some(), "{format:?} of {end} bytes");
                // Its settings are behind the pixels.
                if format == Format::WebP && end > bytes.len() / 2 {
                    let error = error.unwrap();
                    assert!(error.contains("the end of the file is missing"), "{error}");
                }
            }
            for bit in (0..8 * bytes.len()).filter(|bit| *bit < 1600 || bit % 29 == 0) {
                let mut turned = bytes.clone();
                turned[bit / 8] ^= 1 << (bit % 8);
                try_out(&turned);
            }
        }
    }

    /// The chunks of a PNG of one pixel, with others before its pixels.
    fn png(size: [u32; 2], more: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut header: Vec<u8> = size.into_iter().flat_map(u32::to_be_bytes).collect();
        header.extend([8, 2, 0, 0, 0]);
        let pixel = vec![0x78, 0x9c, 0x63, 0x60, 0x60, 0x60, 0, 0, 0, 4, 0, 1];
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut add = |name: &[u8; 4], data: &[u8]| {
            bytes.extend((data.len() as u32).to_be_bytes());
            let start = bytes.len();
            bytes.extend(name);
            bytes.extend(data);
            let crc = crc32(&bytes[start..]);
            bytes.extend(crc.to_be_bytes());
        };
        add(b"IHDR", &header);
        more.iter().for_each(|(name, data)| add(name, data));
        add(b"IDAT", &pixel);
        add(b"IEND", &[]);
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }

    /// zlib's form of zeros, stored or packed into about a thousandth.
    fn zeros(count: usize) -> Vec<u8> {
        let mut chunk = png::text_metadata::ZTXtChunk::new("a", "\0".repeat(count));
        chunk.compress_text().unwrap();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_text_chunk(&chunk).unwrap();
        drop(writer);
        let at = bytes.windows(4).position(|name| name == b"zTXt").unwrap();
        let length = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
        // Behind the keyword, its end and the method.
        bytes[at + 7..at + 4 + length].to_vec()
    }

    #[test]
    fn files_that_lie_about_sizes_are_refused_before_they_are_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lies.png");
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            PictureFile::open(&path).unwrap_err().to_string()
        };
        let text = |kind: &'static [u8; 4], head: &[u8], rest: Vec<u8>| {
            (kind, [b"parameters\0", head, &rest].concat())
        };
        let honest = b"a cat\nSteps: 1, Seed: 2, Size: 8x8".to_vec();
        let bomb = zeros(3 << 20);
        assert!(bomb.len() < 1 << 18, "{}", bomb.len());
        for (bytes, said) in [
            (
                png([200_000, 200_000], &[text(b"tEXt", b"", honest.clone())]),
                "200000x200000 pixels",
            ),
            (
                png([1, 1], &[text(b"zTXt", b"\0", bomb.clone())]),
                "longer than 1048576 bytes",
            ),
            (
                png([1, 1], &[text(b"iTXt", b"\x01\0\0\0", bomb)]),
                "longer than 1048576 bytes",
            ),
            (
                png([1, 1], &[text(b"tEXt", b"", vec![b'a'; 2 << 20])]),
                "longer than 1048576 bytes",
            ),
            (png([1, 1], &[]), "no settings"),
            (
                png([1, 1], &[(b"tEXt", b"prompt\0{}".to_vec())]),
                "ComfyUI's workflow",
            ),
            (
                b"GIF89a, which is something else".to_vec(),
                "no PNG, JPEG or WebP",
            ),
            (b"words".to_vec(), "no PNG, JPEG or WebP"),
        ] {
            let error = error(&bytes);
            assert!(
                error.contains(said) && error.contains("lies.png"),
                "{said}: {error}"
            );
        }
        for kind in [b"zTXt", b"iTXt"] {
            let head: &[u8] = if kind == b"zTXt" {
                b"\0"
            } else {
                b"\x01\0\0\0"
            };
            std::fs::write(&path, png([1, 1], &[text(kind, head, zeros(3))])).unwrap();
            assert_eq!(PictureFile::open(&path).unwrap().parameters, "\0\0\0");
        }
        let missing = PictureFile::open(&dir.path().join("none.png")).unwrap_err();
        assert!(missing.to_string().contains("none.png"));
    }
}
