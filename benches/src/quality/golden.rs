//! Golden numbers and pictures of `tests/golden/quality.py`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use sd_runtime::pipeline::Picture;

/// What other implementations say of [`samples`].
pub(crate) fn json() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../tests/golden/quality.json")).unwrap()
}

/// 40 pictures of the demo model in rows of 8.
pub(crate) fn samples() -> Picture {
    let path = "../models/demo/tiny-shapes/quality-samples.png";
    let file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    Picture {
        width: info.width as usize,
        height: info.height as usize,
        rgb,
    }
}

/// A part of a picture.
pub(crate) fn crop(picture: &Picture, [x, y]: [usize; 2], [width, height]: [usize; 2]) -> Picture {
    let row = |row: usize| &picture.rgb[3 * (row * picture.width + x)..][..3 * width];
    Picture {
        width,
        height,
        rgb: (y..y + height).flat_map(row).copied().collect(),
    }
}
