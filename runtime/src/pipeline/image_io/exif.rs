//! The one field of EXIF (CIPA DC-008) that holds a picture's settings: `UserComment`, as piexif writes it for A1111.
//!
//! EXIF is a TIFF file: a directory whose entry 0x8769 points to another directory, whose entry 0x9286 is the comment. Entries are
//! 12 bytes: tag, type, count, and a value or the place of one.

/// Bytes before the comment in what [`block`] makes.
const BEFORE: usize = 44;

/// What a comment in UTF-16 begins with.
const UNICODE: &[u8; 8] = b"UNICODE\0";

/// What a block begins with in JPEG files, and in some WebP files.
pub(super) const HEADER: &[u8; 6] = b"Exif\0\0";

/// An EXIF block with a comment in UTF-16, big-endian, as all else in it.
pub(super) fn block(comment: &str) -> Vec<u8> {
    let mut text = UNICODE.to_vec();
    text.extend(comment.encode_utf16().flat_map(u16::to_be_bytes));
    let mut block = b"MM\0*".to_vec();
    let mut directory = |place: u32, [tag, kind]: [u16; 2], count: u32, value: u32| {
        block.extend(place.to_be_bytes());
        block.extend(1u16.to_be_bytes());
        block.extend([tag, kind].into_iter().flat_map(u16::to_be_bytes));
        block.extend([count, value].into_iter().flat_map(u32::to_be_bytes));
    };
    // Each begins with the place of the next: the second one's is that of no further directory.
    directory(8, [0x8769, 4], 1, 26);
    directory(0, [0x9286, 7], text.len() as u32, BEFORE as u32);
    block.extend(0u32.to_be_bytes());
    block.extend(text);
    block
}

/// How many bytes [`block`] is long.
pub(super) fn length(comment: &str) -> usize {
    BEFORE + UNICODE.len() + 2 * comment.encode_utf16().count()
}

/// The comment of an EXIF block; none if there is none, or the block is broken.
pub(super) fn comment(block: &[u8]) -> Option<String> {
    let tiff = block.strip_prefix(HEADER).unwrap_or(block);
    let tiff = Tiff {
        bytes: tiff,
        is_little: tiff.starts_with(b"II"),
    };
    let exif = tiff.entry(tiff.number(4)?, 0x8769)?;
    let comment = tiff.entry(tiff.number(exif + 8)?, 0x9286)?;
    let length = tiff.number(comment + 4)?;
    // Four bytes fit into the entry.
    let place = if length > 4 {
        tiff.number(comment + 8)?
    } else {
        comment + 8
    };
    let bytes = tiff.bytes.get(place..)?.get(..length)?;
    Some(decoded(bytes).trim_end_matches('\0').to_owned())
}

struct Tiff<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

impl Tiff<'_> {
    fn number(&self, place: usize) -> Option<usize> {
        let four = *self.bytes.get(place..)?.first_chunk()?;
        let number = if self.is_little {
            u32::from_le_bytes(four)
        } else {
            u32::from_be_bytes(four)
        };
        usize::try_from(number).ok()
    }

    fn short(&self, place: usize) -> Option<u16> {
        let two = *self.bytes.get(place..)?.first_chunk()?;
        Some(if self.is_little {
            u16::from_le_bytes(two)
        } else {
            u16::from_be_bytes(two)
        })
    }

    /// The place of an entry in a directory.
    fn entry(&self, directory: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.short(directory)?);
        let mut places = (0..count).map(|i| directory + 2 + 12 * i);
        places.find(|&place| self.short(place) == Some(tag))
    }
}

fn decoded(bytes: &[u8]) -> String {
    let Some(units) = bytes.strip_prefix(UNICODE) else {
        let text = ["ASCII\0\0\0", "\0\0\0\0\0\0\0\0"]
            .into_iter()
            .find_map(|code| bytes.strip_prefix(code.as_bytes()));
        return String::from_utf8_lossy(text.unwrap_or(bytes)).into_owned();
    };
    // The standard leaves the order open, and programs differ: settings are full of ASCII, which is rare in the wrong order.
    let read = |unit: fn([u8; 2]) -> u16| -> Vec<u16> {
        let pairs = units.chunks_exact(2);
        pairs.map(|pair| unit([pair[0], pair[1]])).collect()
    };
    let [big, little] = [read(u16::from_be_bytes), read(u16::from_le_bytes)];
    let ascii = |units: &[u16]| units.iter().filter(|&&unit| unit < 128).count();
    let units = if ascii(&little) > ascii(&big) {
        little
    } else {
        big
    };
    String::from_utf16_lossy(&units)
        .trim_start_matches('\u{feff}')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_back() {
        for text in [
            "",
            "a",
            "a cat\nSteps: 1",
            "猫 🦀 Ünïcödé\nSteps: 1, Seed: 2",
        ] {
            let block = block(text);
            assert_eq!(block.len(), length(text));
            assert_eq!(comment(&block).as_deref(), Some(text));
            let mut with_header = HEADER.to_vec();
            with_header.extend(&block);
            assert_eq!(comment(&with_header).as_deref(), Some(text));
            for end in 0..block.len() {
                let _ = comment(&block[..end]);
            }
        }
    }

    /// `piexif.dump({"Exif": {ExifIFD.UserComment: UserComment.dump("a cat", encoding="unicode")}})` of piexif 1.1.3, and a
    /// little-endian block as other programs write it.
    #[test]
    fn other_programs_blocks_are_read() {
        let piexif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87i\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\x01\x92\x86\0\x07\0\0\0\x12\0\0\0(UNICODE\0\0a\0 \0c\0a\0t";
        assert_eq!(comment(piexif).as_deref(), Some("a cat"));
        let little = b"II*\0\x08\0\0\0\x01\0i\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x01\0\x86\x92\x07\0\x12\0\0\0,\0\0\0\0\0\0\0UNICODE\0a\0 \0c\0a\0t\0";
        assert_eq!(comment(little).as_deref(), Some("a cat"));
        let ascii = b"II*\0\x08\0\0\0\x01\0i\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x01\0\x86\x92\x07\0\x0d\0\0\0,\0\0\0\0\0\0\0ASCII\0\0\0a cat";
        assert_eq!(comment(ascii).as_deref(), Some("a cat"));
    }
}
