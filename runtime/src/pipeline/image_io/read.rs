//! Pictures of this and other programs: the settings in them, and their pixels.
//!
//! Settings are a text chunk `parameters` in PNG, and EXIF's `UserComment` in JPEG and WebP. What files say of their sizes is checked
//! before anything is made of it.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::{ImageFormat, ImageReader};

use super::{Format, Picture, exif};
use crate::pipeline::infotext::LONGEST;
use crate::regular;

/// Most bytes of a file.
const LARGEST_FILE: u64 = 1 << 28;

/// Most pixels of a picture: 16384 by 8192.
const MOST_PIXELS: u64 = 1 << 27;

/// The marker in front of a JPEG's pixels.
const START_OF_SCAN: [u8; 2] = [0xff, 0xda];

/// What PNG files begin with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The chunk that ends PNGs.
const END_OF_PNG: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// What is wrong with a file that is not [`is_whole`].
const CUT_OFF: &str = "the end of the file is missing";

/// A file that is no picture with settings.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct PictureError {
    path: PathBuf,
    problem: String,
}

/// A picture's file, whose pixels are not decoded yet.
#[derive(Clone, Debug)]
pub struct PictureFile {
    /// The file.
    pub path: PathBuf,
    /// What it is, by its first bytes.
    pub format: Format,
    /// Width and height.
    pub size: [usize; 2],
    /// Its settings.
    pub parameters: String,
    bytes: Vec<u8>,
}

impl PictureFile {
    /// Reads a PNG, JPEG or WebP file.
    ///
    /// # Errors
    /// It cannot be read, is none of these or broken, is too large, or holds no settings.
    pub fn open(path: &Path) -> Result<Self, PictureError> {
        let wrong = |problem: String| PictureError {
            path: path.to_owned(),
            problem,
        };
        let mut bytes = Vec::new();
        let file = regular::open(path).map_err(|e| wrong(e.to_string()))?;
        let read = file.take(LARGEST_FILE + 1).read_to_end(&mut bytes);
        read.map_err(|e| wrong(e.to_string()))?;
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(wrong(format!(
                "more than {} MB; that is no picture of text",
                LARGEST_FILE >> 20
            )));
        }
        let ((width, height), format, parameters) = found(&bytes).map_err(wrong)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            size: [width, height].map(|side| side as usize),
            parameters,
            bytes,
        })
    }

    /// Its pixels, without transparency.
    ///
    /// # Errors
    /// The file is broken or incomplete.
    pub fn decode(&self) -> Result<Picture, PictureError> {
        let whole = if is_whole(self.format, &self.bytes) {
            Ok(&self.bytes)
        } else {
            Err(CUT_OFF.to_owned())
        };
        whole
            .and_then(|bytes| decoded(bytes))
            .map_err(|problem| PictureError {
                path: self.path.clone(),
                problem,
            })
    }
}

/// Whether these are the first bytes of a PNG, of which the end is missing.
#[must_use]
pub fn is_cut_off_png(bytes: &[u8]) -> bool {
    let begins = bytes.iter().zip(PNG).all(|(a, b)| a == b);
    begins && !is_whole(Format::Png, bytes)
}

/// Whether a file's end is there, without which decoders may make up pixels.
fn is_whole(format: Format, bytes: &[u8]) -> bool {
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    match format {
        // Other programs may have added bytes.
        Format::Png => {
            let mut places = bytes.windows(END_OF_PNG.len()).rev();
            places.any(|place| place == END_OF_PNG)
        }
        // A thumbnail in the metadata has an end of its own, and so do few other bytes behind the last picture's.
        Format::Jpeg { .. } => {
            let scan = bytes.windows(2).rposition(|pair| pair == START_OF_SCAN);
            let rest = scan.map_or(bytes, |at| &bytes[at..]);
            rest.windows(2).any(|pair| pair == END_OF_IMAGE)
        }
        // RIFF's length counts what is behind it.
        Format::WebP => {
            let length = bytes.get(4..8).and_then(|length| length.try_into().ok());
            length.is_some_and(|length| {
                bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes(length))
            })
        }
    }
}

/// The pixels of a file's bytes.
pub(super) fn decoded(bytes: &[u8]) -> Result<Picture, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(|e| e.to_string())?;
    // The decoder's own limit of memory holds, too.
    let rgb = reader.decode().map_err(|e| e.to_string())?.into_rgb8();
    Ok(Picture {
        width: rgb.width() as usize,
        height: rgb.height() as usize,
        rgb: rgb.into_raw(),
    })
}

/// Size, format and settings.
fn found(bytes: &[u8]) -> Result<((u32, u32), Format, String), String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(|e| e.to_string())?;
    let format = match reader.format() {
        Some(ImageFormat::Png) => Format::Png,
        Some(ImageFormat::Jpeg) => Format::JPEG,
        Some(ImageFormat::WebP) => Format::WebP,
        _ => return Err("no PNG, JPEG or WebP picture".to_owned()),
    };
    // What else is missing follows from that.
    let or_cut_off = |problem: String| match is_whole(format, bytes) {
        true => problem,
        false => CUT_OFF.to_owned(),
    };
    let size = reader.into_dimensions();
    let size = size.map_err(|e| or_cut_off(e.to_string()))?;
    let (width, height) = size;
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!(
            "{width}x{height} pixels; at most {MOST_PIXELS} are read"
        ));
    }
    let parameters = match format {
        Format::Png => png_text(bytes)?,
        Format::Jpeg { .. } => jpeg_exif(bytes).and_then(exif::comment),
        Format::WebP => webp_exif(bytes).and_then(exif::comment),
    };
    let parameters = parameters.filter(|text| !text.trim().is_empty());
    let parameters = parameters.ok_or_else(|| or_cut_off("there are no settings in it: expected a text `parameters` in a PNG, or EXIF's UserComment in a JPEG or WebP".to_owned()))?;
    if parameters.len() > LONGEST {
        return Err(too_long());
    }
    Ok((size, format, parameters))
}

fn too_long() -> String {
    format!("its settings are longer than {LONGEST} bytes")
}

/// A PNG's text `parameters`, from any of its three kinds of text.
fn png_text(bytes: &[u8]) -> Result<Option<String>, String> {
    // Texts of other kinds, and what it takes to pass over the pixels.
    let limits = png::Limits {
        bytes: 32 * LONGEST,
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_iccp_chunk(true);
    let told = |error: png::DecodingError| match error {
        png::DecodingError::LimitsExceeded => too_long(),
        other => other.to_string(),
    };
    let mut reader = decoder.read_info().map_err(told)?;
    if let Some(text) = text_of(reader.info()).map_err(told)? {
        return Ok(Some(text));
    }
    // Some programs write it behind the pixels.
    reader.finish().map_err(told)?;
    let info = reader.info();
    let text = text_of(info).map_err(told)?;
    let is_comfyui = |keyword: &str| ["prompt", "workflow"].contains(&keyword);
    let mut keywords = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| &chunk.keyword)
        .chain(info.utf8_text.iter().map(|chunk| &chunk.keyword));
    if text.is_none() && keywords.any(|keyword| is_comfyui(keyword)) {
        return Err("ComfyUI's workflow (the texts `prompt` and `workflow`) is not read, and there are no settings in A1111's form".to_owned());
    }
    Ok(text)
}

fn text_of(info: &png::Info<'_>) -> Result<Option<String>, png::DecodingError> {
    const KEY: &str = "parameters";
    if let Some(chunk) = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == KEY)
    {
        return Ok(Some(chunk.text.clone()));
    }
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == KEY) {
        let mut chunk = chunk.clone();
        chunk
            .decompress_text_with_limit(LONGEST)
            .map_err(|_| png::DecodingError::LimitsExceeded)?;
        return chunk.get_text().map(Some);
    }
    if let Some(chunk) = info
        .compressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == KEY)
    {
        let mut chunk = chunk.clone();
        chunk
            .decompress_text_with_limit(LONGEST)
            .map_err(|_| png::DecodingError::LimitsExceeded)?;
        return chunk.get_text().map(Some);
    }
    Ok(None)
}

/// A JPEG's EXIF block: segments are a marker of two bytes, a length of two bytes that counts itself, and data.
fn jpeg_exif(bytes: &[u8]) -> Option<&[u8]> {
    const APP1: u8 = 0xe1;
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let [0xff, marker, high, low] = *rest.first_chunk()? else {
            return None;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let data = rest.get(4..2 + length)?;
        match marker {
            APP1 if data.starts_with(exif::HEADER) => return Some(data),
            _ if marker == START_OF_SCAN[1] => return None,
            _ => rest = &rest[2 + length..],
        }
    }
}

/// A WebP's EXIF block: RIFF's chunks are a name, a length and data, which a byte fills up to an even length.
fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(12..)?;
    loop {
        let (name, after) = rest.split_first_chunk::<4>()?;
        let (length, data) = after.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if name == b"EXIF" {
            return data.get(..length);
        }
        rest = data.get(length.checked_next_multiple_of(2)?..)?;
    }
}
