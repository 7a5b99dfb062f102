//! CLIP's byte-pair vocabulary, and the files that tokenizers read it from.
//!
//! The vocabulary follows from the list of merges: 256 byte symbols, the same with an end-of-word mark, one token per
//! merge, and the two special tokens (OpenAI CLIP, `simple_tokenizer.py`).

pub mod folder;

use serde_json::json;

use folder::{Files, vocab_json};

/// The merges, one pair per line, in the order of their learning. See `assets/SOURCES.md`.
const MERGES: &str = include_str!("../assets/clip_merges.txt");

/// First token of every sequence.
pub const START_OF_TEXT: &str = "<|startoftext|>";
/// Last token of every sequence.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Length of a sequence with both special tokens.
pub const POSITIONS: usize = 77;
/// Mark of a symbol that ends a word.
pub const END_OF_WORD: &str = "</w>";

/// What fills sequences after the end token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// The end token again: CLIP-L in SD 1 and SDXL.
    EndOfText,
    /// `!`, whose id is 0: OpenCLIP in SD 2 and SDXL.
    Exclamation,
}

/// Bytes as printable characters: those that print stand for themselves, the other 68 for U+0100 and up.
pub fn byte_alphabet() -> impl Iterator<Item = char> {
    let prints = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF);
    prints
        .map(char::from)
        .chain((0x100..0x144u32).map(|c| char::from_u32(c).expect("far below the surrogates")))
}

/// Pairs of symbols, in the order of their merging.
fn merges() -> impl Iterator<Item = &'static str> {
    MERGES.lines()
}

/// Every token, in the order of ids.
#[must_use]
pub fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = byte_alphabet().map(String::from).collect();
    tokens.extend(byte_alphabet().map(|c| format!("{c}{END_OF_WORD}")));
    tokens.extend(merges().map(|pair| pair.replacen(' ', "", 1)));
    tokens.extend([START_OF_TEXT.to_owned(), END_OF_TEXT.to_owned()]);
    tokens
}

/// Names and contents of the files in a `tokenizer` folder, as transformers' `CLIPTokenizer` reads them.
#[must_use]
pub fn files(pad: Pad) -> Files {
    let pad = match pad {
        Pad::EndOfText => END_OF_TEXT,
        Pad::Exclamation => "!",
    };
    let special = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let config = json!({
        "add_prefix_space": false,
        "bos_token": special(START_OF_TEXT),
        "do_lower_case": true,
        "eos_token": special(END_OF_TEXT),
        "errors": "replace",
        "model_max_length": POSITIONS,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special(END_OF_TEXT),
    });
    let tokens_map = json!({
        "bos_token": special(START_OF_TEXT),
        "eos_token": special(END_OF_TEXT),
        "pad_token": pad,
        "unk_token": special(END_OF_TEXT),
    });
    let tokens: Vec<(String, u32)> = vocabulary().into_iter().zip(0..).collect();
    Files::from([
        ("vocab.json", vocab_json(&tokens)),
        ("merges.txt", format!("#version: 0.2\n{MERGES}")),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("special_tokens_map.json", format!("{tokens_map:#}\n")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_published_ones() {
        let tokens = vocabulary();
        assert_eq!(tokens.len(), 49408);
        for (id, token) in [
            (0, "!"),
            (267, ",</w>"),
            (320, "a</w>"),
            (2368, "cat</w>"),
            (49406, START_OF_TEXT),
        ] {
            assert_eq!(tokens[id], token);
        }
        let distinct: std::collections::HashSet<&String> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len());
    }

    #[test]
    fn files_are_valid_json() {
        for (name, content) in files(Pad::Exclamation) {
            if let Some(("vocab", _)) = name.split_once('.') {
                let ids: std::collections::HashMap<String, usize> =
                    serde_json::from_str(&content).unwrap();
                assert_eq!(ids["cat</w>"], 2368);
            } else if name != "merges.txt" {
                let value: serde_json::Value = serde_json::from_str(&content).unwrap();
                assert_eq!(value["pad_token"], "!");
            }
        }
    }
}
