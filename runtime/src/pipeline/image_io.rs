//! Decoded pictures to PNG files, with the settings inside.

use std::io::{self, Write};

use ndarray::ArrayView3;
use png::text_metadata::{ITXtChunk, TEXtChunk};

use super::{Destination, PipelineError};
use crate::engine::Cancel;

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

    /// Writes the picture as PNG, with `parameters` as A1111 reads them.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_png(
        &self,
        to: &Destination,
        parameters: &str,
        cancel: &Cancel,
    ) -> Result<(), PipelineError> {
        let size = format!("{}x{}", self.width, self.height);
        let _span = tracing::info_span!("write", file = %to.path().display(), size).entered();
        let mut bytes = Vec::new();
        self.encode(&mut bytes, parameters)
            .map_err(|source| PipelineError::Write {
                path: to.path().to_owned(),
                source,
            })?;
        to.write(&bytes, cancel)
    }

    fn encode(&self, out: &mut impl Write, parameters: &str) -> io::Result<()> {
        let side = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let mut encoder = png::Encoder::new(out, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        if parameters.chars().all(|c| u32::from(c) < 256) {
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

    #[test]
    fn files_are_read_back_with_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let picture = Picture {
            width: 2,
            height: 1,
            rgb: vec![1, 2, 3, 4, 5, 6],
        };
        for text in ["a café\nSteps: 1", "猫\nSteps: 1"] {
            let path = dir.path().join("a.png");
            let to = Destination::find(&path).unwrap();
            picture.write_png(&to, text, &Cancel::new()).unwrap();
            let decoder =
                png::Decoder::new(io::BufReader::new(std::fs::File::open(&path).unwrap()));
            let mut reader = decoder.read_info().unwrap();
            let mut rgb = vec![0; 6];
            reader.next_frame(&mut rgb).unwrap();
            assert_eq!(rgb, picture.rgb);
            let info = reader.info();
            let latin = info
                .uncompressed_latin1_text
                .iter()
                .map(|chunk| chunk.text.clone());
            let utf8 = info.utf8_text.iter().map(|chunk| chunk.get_text().unwrap());
            assert_eq!(latin.chain(utf8).collect::<Vec<_>>(), [text]);
        }
        assert!(!picture.is_constant());
    }
}
