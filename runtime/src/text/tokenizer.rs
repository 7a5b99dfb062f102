//! CLIP's byte-pair tokenizer (Radford et al. 2021), from the files of a `tokenizer` folder.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sd_models::tokenizer::folder::{FILES, Files, Parts};
use sd_models::tokenizer::{END_OF_TEXT, END_OF_WORD};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::tokenizer::{
    AddedToken, NormalizedString, Normalizer, SplitDelimiterBehavior, TokenizerImpl,
};

use super::TextError;
use super::clean::clean;

/// Words, single digits, runs of other signs: what CLIP splits text into before it looks for pairs.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// [`clean`] as a step of the tokenizer: added tokens are found before it or after it.
#[derive(Clone, Debug)]
struct Clean;

impl Normalizer for Clean {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        *text = clean(text.get()).into();
        Ok(())
    }
}

/// A tokenizer and its special tokens.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    tokenizer: TokenizerImpl<BPE, Clean, Sequence, PostProcessorWrapper, DecoderWrapper>,
    /// Tokens that follow an added token: the further vectors of a textual inversion.
    followers: HashMap<u32, Vec<u32>>,
    last: (String, u32),
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
        let mut files = Files::new();
        for name in FILES {
            let path = dir.join(name);
            if path.is_file() {
                let text = fs::read_to_string(&path);
                files.insert(
                    name,
                    text.map_err(|source| TextError::Read { path, source })?,
                );
            }
        }
        let parts = Parts::read(&files).map_err(|e| TextError::Tokenizer {
            path: dir.join(e.file),
            problem: e.problem,
        })?;
        let wrong = |problem: String| TextError::Tokenizer {
            path: dir.to_owned(),
            problem,
        };
        if let Some([a, b]) = same_when_cleaned(&parts) {
            return Err(wrong(format!(
                "its added tokens `{a}` and `{b}` are the same in lower case"
            )));
        }
        let (last, last_id) = parts.last();
        let last = (last.to_owned(), last_id);
        let followers = followers(&parts);
        let comma = format!(",{END_OF_WORD}");
        let comma = match parts.vocabulary.get(&comma) {
            Some(comma) => *comma,
            None => return Err(wrong(format!("its vocabulary has no token `{comma}`"))),
        };
        // Added tokens keep their ids by being in the vocabulary; no merge makes them.
        let added = parts.added.iter().map(|t| (t.content.clone(), t.id));
        let vocabulary = parts.vocabulary.into_iter().chain(added);
        let bpe = BPE::builder()
            .vocab_and_merges(
                vocabulary.collect::<tokenizers::models::bpe::Vocab>(),
                parts.merges,
            )
            .unk_token(END_OF_TEXT.to_owned())
            .end_of_word_suffix(END_OF_WORD.to_owned())
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let pattern = SplitPattern::Regex(PATTERN.to_owned());
        let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true)
            .expect("the pattern is valid");
        let bytes = ByteLevel::new(false, true, false);
        let mut tokenizer = TokenizerImpl::new(bpe);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
        let added = parts.added.into_iter().map(|token| AddedToken {
            content: token.content,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized,
            special: false,
        });
        tokenizer
            .with_normalizer(Some(Clean))
            .and_then(|tokenizer| tokenizer.add_tokens(added))
            .map_err(|e| wrong(format!("its added tokens cannot be searched for: {e}")))?;
        Ok(Self {
            tokenizer,
            followers,
            last,
            start: parts.start,
            end: parts.end,
            pad: parts.pad,
            comma,
        })
    }

    /// Ids of a text, without special tokens; their spellings in the text are text. A textual inversion of several
    /// vectors is called by its first token, as in diffusers: `cat` stands for `cat cat_1 cat_2` where these are there.
    ///
    /// # Errors
    /// None in practice: every byte has a token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|e| TextError::Tokenize(e.to_string()))?;
        let with_followers = encoding.get_ids().iter().flat_map(|id| {
            let followers = self.followers.get(id);
            [*id]
                .into_iter()
                .chain(followers.into_iter().flatten().copied())
        });
        Ok(with_followers.collect())
    }

    /// Whether this is a token.
    #[must_use]
    pub fn has_token(&self, token: &str) -> bool {
        self.tokenizer.token_to_id(token).is_some()
    }

    /// The token with the largest id.
    #[must_use]
    pub fn last(&self) -> (&str, u32) {
        (&self.last.0, self.last.1)
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
}

/// Two added tokens that are looked for in cleaned text, where they have one spelling.
fn same_when_cleaned(parts: &Parts) -> Option<[&str; 2]> {
    let mut known = HashMap::new();
    let mut normalized = parts.added.iter().filter(|token| token.normalized);
    normalized.find_map(|token| {
        let first = known.insert(clean(&token.content), &*token.content)?;
        Some([first, &*token.content])
    })
}

/// The ids of `X_1`, `X_2` .. for every added token `X` that has such.
fn followers(parts: &Parts) -> HashMap<u32, Vec<u32>> {
    let tokens = parts.added.iter().map(|token| (&*token.content, token.id));
    let ids: HashMap<&str, u32> = tokens.collect();
    let further = |(content, id): (&&str, &u32)| {
        let named = (1..).map_while(|i| ids.get(&*format!("{content}_{i}")).copied());
        let named: Vec<u32> = named.collect();
        (!named.is_empty()).then_some((*id, named))
    };
    ids.iter().filter_map(further).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sd_models::tokenizer::{Pad, files};

    fn of_files(files: &Files) -> Result<ClipTokenizer, TextError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        ClipTokenizer::from_dir(dir.path())
    }

    pub(crate) fn tokenizer(pad: Pad) -> ClipTokenizer {
        of_files(&files(pad)).unwrap()
    }

    /// CLIP's files with one more, or another.
    fn with(name: &'static str, content: &str) -> Result<ClipTokenizer, TextError> {
        let mut files = files(Pad::EndOfText);
        files.insert(name, content.to_owned());
        of_files(&files)
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

    /// Of transformers' `CLIPTokenizer` (`tests/golden/clip_tokenizers.py`).
    #[test]
    fn added_tokens_and_other_vocabularies_give_the_ids_of_transformers() {
        let golden = include_str!("../../../tests/golden/clip_tokenizers.json");
        let cases: serde_json::Value = serde_json::from_str(golden).unwrap();
        for (name, case) in cases.as_object().unwrap() {
            let changed = |name: &str| case["files"][name].as_str().map(str::to_owned);
            let mut of_case = match changed("tokenizer.json") {
                Some(_) => Files::new(),
                None => files(Pad::EndOfText),
            };
            of_case.extend(
                FILES
                    .iter()
                    .filter_map(|name| Some((*name, changed(name)?))),
            );
            let clip = of_files(&of_case).unwrap();
            for pair in case["ids"].as_array().unwrap() {
                let text = pair[0].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(pair[1].clone()).unwrap();
                assert_eq!(clip.encode(text).unwrap(), ids, "{name}: {text}");
            }
        }
    }

    #[test]
    fn a_textual_inversion_of_several_vectors_is_called_by_its_first_token() {
        let added = r#"{"<cat>": 49408, "<cat>_1": 49409, "<cat>_2": 49410, "<dog>": 49411}"#;
        let clip = with("added_tokens.json", added).unwrap();
        let ids = clip.encode("a <cat> <dog>").unwrap();
        assert_eq!(ids, [320, 49408, 49409, 49410, 49411]);
        assert_eq!(clip.last(), ("<dog>", 49411));
    }

    #[test]
    fn added_tokens_that_cannot_be_told_apart_are_errors() {
        let error = |name, content| with(name, content).unwrap_err().to_string();
        let said = error("added_tokens.json", r#"{"cat</w>": 49408}"#);
        let expected = "token `cat</w>` has the ids 2368 and 49408";
        assert!(
            said.contains("added_tokens.json") && said.contains(expected),
            "{said}"
        );
        let said = error("added_tokens.json", r#"{"<A>": 49408, "<a>": 49409}"#);
        assert!(said.contains("`<A>` and `<a>` are the same"), "{said}");
        let said = error(
            "tokenizer_config.json",
            r#"{"pad_token": "[PAD]", "added_tokens_decoder": {}}"#,
        );
        assert!(said.contains("no token `[PAD]`"), "{said}");
    }

    #[test]
    fn special_tokens_are_those_of_the_folder() {
        let config = r#"{
            "bos_token": "<begin>", "eos_token": {"content": "<stop>"}, "pad_token": "!",
            "added_tokens_decoder": {
                "49408": {"content": "<begin>", "special": true},
                "49409": {"content": "<stop>", "special": true}
            }
        }"#;
        let clip = with("tokenizer_config.json", config).unwrap();
        assert_eq!((clip.start(), clip.end(), clip.pad()), (49408, 49409, 0));
        // Their spellings are text.
        assert_eq!(clip.encode("stop!").unwrap(), [1691, 256]);
        assert!(clip.encode("<stop>").unwrap().len() > 1);
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
