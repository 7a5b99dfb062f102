//! What the files of a `tokenizer` folder say, by the rules of transformers' `CLIPTokenizer` (5.24).
//!
//! The vocabulary and its merges are in `tokenizer.json`, or else in `vocab.json` and `merges.txt`. Added tokens are
//! listed in `tokenizer_config.json`; where it has no such list, in `added_tokens.json` and `tokenizer.json`, and then
//! `special_tokens_map.json` comes before the configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{END_OF_TEXT, START_OF_TEXT};

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
const WHOLE: &str = "tokenizer.json";

/// Files that say something of a tokenizer.
pub const FILES: [&str; 6] = [VOCAB, MERGES, CONFIG, SPECIAL, ADDED, WHOLE];

/// Contents of a folder's files, by name.
pub type Files = BTreeMap<&'static str, String>;

/// A file of a tokenizer that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TokenizerError {
    /// Its name.
    pub file: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn wrong(file: &'static str, problem: impl Into<String>) -> TokenizerError {
    TokenizerError {
        file,
        problem: problem.into(),
    }
}

/// A token that is found in the text before the text is split into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// How it is spelled.
    pub content: String,
    /// Its row in the text encoder's table.
    pub id: u32,
    /// It takes the white space before it.
    pub lstrip: bool,
    /// It takes the white space behind it.
    pub rstrip: bool,
    /// It is found only between characters that are no part of a word.
    pub single_word: bool,
    /// It is looked for in the cleaned text, in lower case, and not in the text as it was typed.
    pub normalized: bool,
}

/// What a tokenizer is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Ids of symbols and of what merges make of them.
    pub vocabulary: HashMap<String, u32>,
    /// Pairs of symbols, in the order in which they are merged.
    pub merges: Vec<(String, String)>,
    /// Tokens beside the vocabulary. The special ones below are not among them: their spellings in a prompt are text.
    pub added: Vec<AddedToken>,
    /// First token of every sequence.
    pub start: u32,
    /// Token behind the last word.
    pub end: u32,
    /// What fills sequences.
    pub pad: u32,
}

impl Parts {
    /// Reads the files of a folder.
    ///
    /// # Errors
    /// There is no vocabulary, a file is no such file, or tokens have no id or two.
    pub fn read(files: &Files) -> Result<Self, TokenizerError> {
        let (vocabulary, merges) = vocabulary(files)?;
        let config = json_of(files, CONFIG)?.unwrap_or_default();
        let listed = config.get("added_tokens_decoder").is_some();
        let map = json_of(files, SPECIAL)?.filter(|_| !listed);
        let map = map.unwrap_or_default();
        let field = |name: &str| match &map[name] {
            Value::Null => &config[name],
            value => value,
        };
        let special = |name: &str, usual: &str| spelling(field(name)).unwrap_or(usual).to_owned();
        let start = special("bos_token", START_OF_TEXT);
        let ends = ["eos_token", "pad_token", "unk_token"].map(|name| special(name, END_OF_TEXT));

        let (list, mut added) = match listed {
            true => (CONFIG, added_by_config(&config["added_tokens_decoder"])?),
            false if files.contains_key(ADDED) => (ADDED, added_by_files(files)?),
            false => (WHOLE, added_by_files(files)?),
        };
        let mut ids: HashMap<&str, u32> = vocabulary.iter().map(|(t, id)| (&**t, *id)).collect();
        for token in &added {
            if let Some(first) = ids.insert(&token.content, token.id)
                && first != token.id
            {
                let (token, second) = (&token.content, token.id);
                let problem = format!("token `{token}` has the ids {first} and {second}");
                return Err(wrong(list, problem));
            }
        }
        let id = |token: &str| {
            let file = if files.contains_key(WHOLE) {
                WHOLE
            } else {
                VOCAB
            };
            let missing = || wrong(file, format!("it has no token `{token}`"));
            ids.get(token).copied().ok_or_else(missing)
        };
        let mut further = Vec::new();
        for name in ["additional_special_tokens", "extra_special_tokens"] {
            let tokens = field(name).as_array().into_iter().flatten();
            for content in tokens.filter_map(spelling) {
                further.push(AddedToken {
                    content: content.to_owned(),
                    id: id(content)?,
                    lstrip: false,
                    rstrip: false,
                    single_word: false,
                    normalized: false,
                });
            }
        }
        let [end, pad, _] = &ends;
        let (start_id, end_id, pad_id) = (id(&start)?, id(end)?, id(pad)?);
        let known: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
        added.extend(further.into_iter().filter(|t| !known.contains(&t.content)));
        added.retain(|t| !t.content.is_empty() && t.content != start && !ends.contains(&t.content));
        Ok(Self {
            vocabulary,
            merges,
            added,
            start: start_id,
            end: end_id,
            pad: pad_id,
        })
    }

    /// Whether texts have the ids that CLIP's own tokenizer gives them.
    #[must_use]
    pub fn is_clip(&self) -> bool {
        let clip = super::vocabulary();
        let has = |(token, id): (&String, u32)| self.vocabulary.get(token) == Some(&id);
        let same = self.vocabulary.len() == clip.len() && clip.iter().zip(0..).all(has);
        same && self.merges.len() == super::merges().count() && self.added.is_empty()
    }

    /// The token with the largest id.
    #[must_use]
    pub fn last(&self) -> (&str, u32) {
        let vocabulary = self.vocabulary.iter().map(|(token, id)| (&**token, *id));
        let added = self.added.iter().map(|token| (&*token.content, token.id));
        vocabulary
            .chain(added)
            .max_by_key(|(_, id)| *id)
            .unwrap_or_default()
    }
}

/// The folder with a `vocab.json` and a `merges.txt`, which not every reader can do without.
///
/// # Errors
/// It has neither these nor a `tokenizer.json` that holds the same.
pub fn completed(mut files: Files) -> Result<Files, TokenizerError> {
    if !(files.contains_key(VOCAB) && files.contains_key(MERGES)) {
        let (vocabulary, merges) = vocabulary(&files)?;
        let mut tokens: Vec<(String, u32)> = vocabulary.into_iter().collect();
        tokens.sort_by_key(|(_, id)| *id);
        files.insert(VOCAB, vocab_json(&tokens));
        files.insert(MERGES, merges_txt(&merges));
    }
    Ok(files)
}

/// A vocabulary as a JSON object in the given order.
pub(super) fn vocab_json(tokens: &[(String, u32)]) -> String {
    let mut text = String::from("{");
    for (i, (token, id)) in tokens.iter().enumerate() {
        let separator = if i == 0 { "" } else { "," };
        let _ = write!(text, "{separator}{}:{id}", json!(token));
    }
    text + "}"
}

fn merges_txt(merges: &[(String, String)]) -> String {
    let mut text = String::from("#version: 0.2\n");
    for (a, b) in merges {
        let _ = writeln!(text, "{a} {b}");
    }
    text
}

type Vocabulary = (HashMap<String, u32>, Vec<(String, String)>);

fn vocabulary(files: &Files) -> Result<Vocabulary, TokenizerError> {
    if let Some(whole) = json_of(files, WHOLE)? {
        return vocabulary_of_whole(&whole["model"]);
    }
    let get = |name| {
        files
            .get(name)
            .ok_or_else(|| wrong(name, "there is no such file"))
    };
    let vocabulary = serde_json::from_str(get(VOCAB)?)
        .map_err(|e| wrong(VOCAB, format!("not a map from token to id: {e}")))?;
    let lines = get(MERGES)?.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let merges = lines.map(|(i, line)| {
        let problem = || wrong(MERGES, format!("line {} is not a pair of symbols", i + 1));
        pair(line).ok_or_else(problem)
    });
    Ok((vocabulary, merges.collect::<Result<_, _>>()?))
}

/// The part `model` of a `tokenizer.json`. Pairs are lists, or words in older files.
fn vocabulary_of_whole(model: &Value) -> Result<Vocabulary, TokenizerError> {
    if let Some(kind) = model["type"].as_str().filter(|kind| *kind != "BPE") {
        return Err(wrong(WHOLE, format!("its model is {kind}; expected BPE")));
    }
    let vocabulary = serde_json::from_value(model["vocab"].clone())
        .map_err(|e| wrong(WHOLE, format!("`vocab` is no map from token to id: {e}")))?;
    let merges = model["merges"].as_array();
    let merges = merges.ok_or_else(|| wrong(WHOLE, "its model has no `merges`"))?;
    let merges = merges.iter().enumerate().map(|(i, merge)| {
        let both = merge.as_str().and_then(pair);
        let both = both.or_else(|| match &merge.as_array()?[..] {
            [a, b] => Some((a.as_str()?.to_owned(), b.as_str()?.to_owned())),
            _ => None,
        });
        both.ok_or_else(|| wrong(WHOLE, format!("merge {i} is not a pair of symbols")))
    });
    Ok((vocabulary, merges.collect::<Result<_, _>>()?))
}

fn pair(text: &str) -> Option<(String, String)> {
    let (a, b) = text.split_once(' ')?;
    Some((a.to_owned(), b.to_owned()))
}

fn added_by_config(list: &Value) -> Result<Vec<AddedToken>, TokenizerError> {
    let strange = || wrong(CONFIG, "`added_tokens_decoder` is no map from id to token");
    let list = list.as_object().ok_or_else(strange)?.iter();
    let tokens = list.map(|(id, token)| added(token, id.parse().ok()).ok_or_else(strange));
    let mut tokens: Vec<AddedToken> = tokens.collect::<Result<_, _>>()?;
    tokens.sort_by_key(|token| token.id);
    Ok(tokens)
}

/// Tokens of `added_tokens.json`, and of `tokenizer.json`, which knows more of them.
fn added_by_files(files: &Files) -> Result<Vec<AddedToken>, TokenizerError> {
    let mut by_id = BTreeMap::new();
    if let Some(tokens) = json_of(files, ADDED)? {
        let tokens: BTreeMap<String, u32> = serde_json::from_value(tokens)
            .map_err(|e| wrong(ADDED, format!("not a map from token to id: {e}")))?;
        for (content, id) in tokens {
            let token = AddedToken {
                content,
                id,
                lstrip: false,
                rstrip: false,
                single_word: false,
                normalized: true,
            };
            by_id.insert(id, token);
        }
    }
    if let Some(whole) = json_of(files, WHOLE)? {
        for token in whole["added_tokens"].as_array().into_iter().flatten() {
            let strange = || wrong(WHOLE, "`added_tokens` has an entry without content or id");
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let token = added(token, id).ok_or_else(strange)?;
            by_id.insert(token.id, token);
        }
    }
    Ok(by_id.into_values().collect())
}

fn added(token: &Value, id: Option<u32>) -> Option<AddedToken> {
    let flag = |name: &str| token[name].as_bool();
    Some(AddedToken {
        content: token["content"].as_str()?.to_owned(),
        id: id?,
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        single_word: flag("single_word").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(flag("special") != Some(true)),
    })
}

/// A token, which files give as text or with its properties.
fn spelling(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn json_of(files: &Files, name: &'static str) -> Result<Option<Value>, TokenizerError> {
    let parse = |text: &String| serde_json::from_str(text);
    let json = files.get(name).map(parse).transpose();
    json.map_err(|e| wrong(name, format!("not JSON: {e}")))
}
