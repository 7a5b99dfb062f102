//! CLIP's byte-pair tokenizer (Radford et al. 2021), from the files of a `tokenizer` folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sd_models::tokenizer::{END_OF_TEXT, END_OF_WORD, START_OF_TEXT};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{SplitDelimiterBehavior, Tokenizer};

use super::TextError;
use super::clean::clean;

/// Words, single digits, runs of other signs: what CLIP splits text into before it looks for pairs.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer and its special tokens.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    vocab_size: usize,
    start: u32,
    end: u32,
    pad: u32,
    comma: u32,
}

impl ClipTokenizer {
    /// Reads a model directory's `tokenizer` folder.
    ///
    /// # Errors
    /// A file is missing or is no CLIP vocabulary.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| TextError::Read { path, source })
        };
        let wrong = |name: &str, problem: String| TextError::Tokenizer {
            path: dir.join(name),
            problem,
        };
        let vocab: HashMap<String, u32> = serde_json::from_str(&read("vocab.json")?)
            .map_err(|e| wrong("vocab.json", format!("not a map from token to id: {e}")))?;
        let merges = parse_merges(&read("merges.txt")?).map_err(|line| {
            wrong(
                "merges.txt",
                format!("line {line} is not a pair of symbols"),
            )
        })?;
        let special: serde_json::Value = serde_json::from_str(&read("special_tokens_map.json")?)
            .map_err(|e| wrong("special_tokens_map.json", e.to_string()))?;
        let id = |token: &str| {
            let missing = || wrong("vocab.json", format!("it has no token `{token}`"));
            vocab.get(token).copied().ok_or_else(missing)
        };
        let pad = &special["pad_token"];
        let pad = pad
            .as_str()
            .or(pad["content"].as_str())
            .unwrap_or(END_OF_TEXT);
        let (start, end, pad) = (id(START_OF_TEXT)?, id(END_OF_TEXT)?, id(pad)?);
        let comma = id(&format!(",{END_OF_WORD}"))?;
        let vocab_size = vocab.len();
        let bpe = BPE::builder()
            .vocab_and_merges(
                vocab
                    .into_iter()
                    .collect::<tokenizers::models::bpe::Vocab>(),
                merges,
            )
            .unk_token(END_OF_TEXT.to_owned())
            .end_of_word_suffix(END_OF_WORD.to_owned())
            .build()
            .map_err(|e| wrong("merges.txt", e.to_string()))?;
        let pattern = SplitPattern::Regex(PATTERN.to_owned());
        let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true)
            .expect("the pattern is valid");
        let bytes = ByteLevel::new(false, true, false);
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
        Ok(Self {
            tokenizer,
            vocab_size,
            start,
            end,
            pad,
            comma,
        })
    }

    /// Ids of a text, without special tokens; their spellings in the text are text.
    ///
    /// # Errors
    /// None in practice: every byte has a token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenizer
            .encode(clean(text), false)
            .map_err(|e| TextError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// First token of every chunk.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Token after the last word.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.end
    }

    /// What fills a chunk after the end token.
    #[must_use]
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The comma, where long prompts are preferably cut.
    #[must_use]
    pub fn comma(&self) -> u32 {
        self.comma
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Pairs of a `merges.txt`, or the number of the line that is none.
fn parse_merges(text: &str) -> Result<Vec<(String, String)>, usize> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(i, line)| {
            let (a, b) = line.split_once(' ').ok_or(i + 1)?;
            Ok((a.to_owned(), b.to_owned()))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sd_models::tokenizer::{Pad, files};

    pub(crate) fn tokenizer(pad: Pad) -> ClipTokenizer {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files(pad) {
            fs::write(dir.path().join(name), content).unwrap();
        }
        ClipTokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn ids_are_those_of_clip() {
        let clip = tokenizer(Pad::EndOfText);
        let cases: [(&str, &[u32]); 19] = [
            (
                "a photo of an astronaut riding a horse on mars",
                &[320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496],
            ),
            ("A  Photo\tof\nA CAT", &[320, 1125, 539, 320, 2368]),
            (
                "masterpiece, best quality, 1girl",
                &[12066, 267, 949, 3027, 267, 272, 1611],
            ),
            (
                "it's 2024! 3.14",
                &[585, 568, 273, 271, 273, 275, 256, 274, 269, 272, 275],
            ),
            ("café", &[15304]),
            ("cafe\u{301}", &[15304]),
            ("don't they'll", &[847, 713, 889, 1342]),
            (
                "hello_world-foo/bar",
                &[3306, 318, 1002, 268, 23435, 270, 2411],
            ),
            (
                "supercalifragilisticexpialidocious",
                &[1642, 2857, 13093, 2076, 5868, 26850, 835, 639, 38466],
            ),
            ("🙂", &[14860]),
            ("猫 and 犬", &[163, 234, 360, 537, 163, 232, 361]),
            ("ＦＵＬＬ", &[1476]),
            ("ﬁne", &[3797]),
            ("&amp; &lt;b&gt;", &[261, 283, 321, 285]),
            ("(a:1.2)", &[263, 320, 281, 272, 269, 273, 264]),
            ("()", &[8475]),
            ("!", &[256]),
            ("", &[]),
            ("   ", &[]),
        ];
        for (text, ids) in cases {
            assert_eq!(clip.encode(text).unwrap(), ids, "{text}");
        }
        assert_eq!(
            (clip.start(), clip.end(), clip.pad(), clip.comma()),
            (49406, 49407, 49407, 267)
        );
        assert_eq!(tokenizer(Pad::Exclamation).pad(), 0);
    }

    #[test]
    fn special_tokens_in_a_prompt_are_text() {
        let ids = tokenizer(Pad::EndOfText).encode("<|endoftext|>").unwrap();
        assert!(ids.len() > 1 && !ids.contains(&49407), "{ids:?}");
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = ClipTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("vocab.json"), "{error}");
        for (name, content) in files(Pad::EndOfText) {
            fs::write(dir.path().join(name), content).unwrap();
        }
        fs::write(dir.path().join("merges.txt"), "#version: 0.2\nin\n").unwrap();
        let error = ClipTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        fs::write(dir.path().join("vocab.json"), "{}").unwrap();
        fs::write(dir.path().join("merges.txt"), "").unwrap();
        let error = ClipTokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("startoftext"), "{error}");
    }
}
