//! Text as CLIP's tokenizer wants it: what ftfy's `fix_text`, whitespace collapsing and lower case make of it.
//!
//! Not here: ftfy's repair of wrongly decoded text (mojibake).

use unicode_normalization::UnicodeNormalization;

/// Latin ligatures, which ftfy takes apart.
const LIGATURES: [(char, &str); 20] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
];

/// Cleans a prompt.
#[must_use]
pub fn clean(text: &str) -> String {
    // Text with tags may mean its entities; text without can only have got them by accident.
    let unescaped = if text.contains('<') {
        text.into()
    } else {
        html_escape::decode_html_entities(text)
    };
    let mut fixed = String::with_capacity(unescaped.len());
    for c in unescaped.chars() {
        match c {
            '\u{02BC}' | '\u{2018}'..='\u{201B}' => fixed.push('\''),
            '\u{201C}'..='\u{201F}' => fixed.push('"'),
            '\u{FF01}'..='\u{FF5E}' => {
                fixed.push(char::from_u32(c as u32 - 0xFEE0).expect("these are ASCII"));
            }
            '\0'..='\u{8}'
            | '\u{B}'
            | '\u{E}'..='\u{1F}'
            | '\u{7F}'
            | '\u{206A}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFC}' => {}
            _ => match LIGATURES.iter().find(|(ligature, _)| *ligature == c) {
                Some((_, letters)) => fixed.push_str(letters),
                None => fixed.push(c),
            },
        }
    }
    let composed: String = fixed.nfc().collect();
    composed
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cleaned_as_ftfy_does() {
        for (text, expected) in [
            ("A  Photo\tof\nA CAT\u{2028}x", "a photo of a cat x"),
            ("“it’s”", "\"it's\""),
            ("ＦＵＬＬ", "full"),
            ("ﬁne", "fine"),
            ("&amp; &lt;b&gt;", "& <b>"),
            ("&amp; <b>", "&amp; <b>"),
            ("cafe\u{301}", "café"),
            ("İ", "i\u{307}"),
            ("a\u{0}b\u{FEFF}c", "abc"),
            ("", ""),
        ] {
            assert_eq!(clean(text), expected);
        }
    }
}
