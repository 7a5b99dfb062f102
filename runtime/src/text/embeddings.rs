//! Textual inversions (Gal et al. 2022, arXiv:2208.01618): files whose names, in a prompt, stand for vectors that were trained.
//!
//! Names are found as A1111 finds them: by the tokens that they are made of, the longest first, so `cat` is found in `a cat`
//! and not in `cats`. `embedding:NAME`, as `ComfyUI` writes it, is understood, too. How files are read is the caller's.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;
use sd_models::manifest::hex;
use sha2::{Digest, Sha256};

use super::chunks::{CONTENT, Unit, Vocabulary};
use super::{ClipTokenizer, TextError};

/// Reads a file: [vectors, width] for every text encoder, the narrower first.
pub type Read =
    dyn Fn(&Path) -> Result<Vec<Array2<f32>>, Box<dyn Error + Send + Sync>> + Send + Sync;

/// How deep folders are searched.
const DEEPEST: usize = 16;

/// What goes before a name in `ComfyUI`.
const EXPLICIT: &str = "embedding:";

/// The textual inversions that prompts may name.
pub struct Embeddings {
    files: BTreeMap<String, PathBuf>,
    read: Box<Read>,
    /// Those that were read already.
    known: Mutex<BTreeMap<String, Arc<Embedding>>>,
}

/// A textual inversion.
#[derive(Debug, PartialEq)]
pub struct Embedding {
    /// Its name: the file's, without extension.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// [vectors, width] for every text encoder.
    pub vectors: Vec<Array2<f32>>,
}

impl Embeddings {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self {
            files: BTreeMap::new(),
            read: Box::new(|_| Err("there are no embeddings".into())),
            known: Mutex::default(),
        }
    }

    /// The `.pt`, `.bin` and `.safetensors` files of folders and those in them; of several with one name the first. None of
    /// them is read before a prompt names it.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn list(folders: &[PathBuf], read: Box<Read>) -> Result<Self, TextError> {
        let mut files = BTreeMap::new();
        for folder in folders {
            list(folder, DEEPEST, &mut files).map_err(|source| TextError::Read {
                path: folder.clone(),
                source,
            })?;
        }
        Ok(Self {
            files,
            read,
            known: Mutex::default(),
        })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Reads one, unless that was done before.
    pub(crate) fn get(&self, name: &str) -> Option<Result<Arc<Embedding>, TextError>> {
        let path = self.files.get(name)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(name) {
            return Some(Ok(Arc::clone(known)));
        }
        Some(self.open(name, path).map(|embedding| {
            let embedding = Arc::new(embedding);
            known.insert(name.to_owned(), Arc::clone(&embedding));
            embedding
        }))
    }

    fn open(&self, name: &str, path: &Path) -> Result<Embedding, TextError> {
        let vectors = (self.read)(path).map_err(|source| TextError::ReadEmbedding {
            name: name.to_owned(),
            source,
        })?;
        let wrong = |problem: String| TextError::Embedding {
            path: path.to_owned(),
            problem,
        };
        let counts: Vec<usize> = vectors.iter().map(Array2::nrows).collect();
        if counts.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(wrong(format!(
                "it has {} vectors for the first text encoder and {} for the second; expected as many",
                counts[0], counts[1]
            )));
        }
        match counts.first() {
            Some(1..=CONTENT) => {}
            count => {
                return Err(wrong(format!(
                    "it has {} vectors; expected 1 to {CONTENT}",
                    count.unwrap_or(&0)
                )));
            }
        }
        let broken = vectors.iter().flatten().filter(|x| !x.is_finite()).count();
        if broken > 0 {
            return Err(wrong(format!("{broken} of its values are NaN or infinite")));
        }
        let bytes = fs::read(path).map_err(|source| TextError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Embedding {
            name: name.to_owned(),
            path: path.to_owned(),
            sha256: hex(&Sha256::digest(&bytes)),
            vectors,
        })
    }
}

impl fmt::Debug for Embeddings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Embeddings").field(&self.files).finish()
    }
}

fn list(folder: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let is_one = |extension: &str| ["pt", "bin", "safetensors"].contains(&extension);
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if depth > 0 {
                list(&path, depth - 1, files)?;
            }
        } else if is_one(&extension.to_lowercase()) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            files.entry(name.into_owned()).or_insert(path.clone());
        }
    }
    Ok(())
}

/// The text encoder that words are read for.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// Its tokenizer.
    pub clip: &'a ClipTokenizer,
    /// Its place among the model's text encoders.
    pub number: usize,
    /// The widths of all of them, where they are known.
    pub widths: &'a [Option<usize>],
    /// Whether it is what SDXL has as second one.
    pub is_second_alone: bool,
}

impl Encoder<'_> {
    /// The vectors that it is given.
    fn vectors(&self, embedding: &Embedding) -> Result<Arc<Array2<f32>>, TextError> {
        let found: Vec<usize> = embedding.vectors.iter().map(Array2::ncols).collect();
        let first = usize::from(self.is_second_alone && found.len() == 2);
        let fits = found.len() == self.widths.len() + first && {
            let pairs = found[first..].iter().zip(self.widths);
            pairs
                .into_iter()
                .all(|(found, width)| width.is_none_or(|width| width == *found))
        };
        if fits {
            return Ok(Arc::new(embedding.vectors[first + self.number].clone()));
        }
        let list = |widths: Vec<String>| widths.join(" and ");
        let expected = self
            .widths
            .iter()
            .map(|width| width.map_or("any".to_owned(), |w| w.to_string()));
        let made_for = match found[..] {
            [768] => ": it is made for Stable Diffusion 1",
            [1024] => ": it is made for Stable Diffusion 2",
            [768, 1280] => ": it is made for SDXL",
            _ => "",
        };
        Err(TextError::Embedding {
            path: embedding.path.clone(),
            problem: format!(
                "its vectors have width {}, but this model takes {}{made_for}",
                list(found.iter().map(ToString::to_string).collect()),
                list(expected.collect()),
            ),
        })
    }
}

/// A text encoder's words: those of its tokenizer, and textual inversions.
pub struct Words<'a> {
    encoder: Encoder<'a>,
    embeddings: &'a Embeddings,
    /// By the first of its tokens, the tokens of every name; the longest first.
    by_token: HashMap<u32, Vec<(Vec<u32>, &'a str)>>,
    used: RefCell<Vec<Arc<Embedding>>>,
}

impl<'a> Words<'a> {
    /// A tokenizer's words, and textual inversions. With `explicit` only those behind `embedding:` are, as in `ComfyUI`.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn new(
        encoder: Encoder<'a>,
        embeddings: &'a Embeddings,
        explicit: bool,
    ) -> Result<Self, TextError> {
        let mut by_token: HashMap<u32, Vec<(Vec<u32>, &str)>> = HashMap::new();
        for name in embeddings.names().filter(|_| !explicit) {
            let ids = encoder.clip.encode(name)?;
            if let Some(first) = ids.first() {
                by_token.entry(*first).or_default().push((ids, name));
            }
        }
        for names in by_token.values_mut() {
            names.sort_by_key(|(ids, _)| std::cmp::Reverse(ids.len()));
        }
        Ok(Self {
            encoder,
            embeddings,
            by_token,
            used: RefCell::default(),
        })
    }

    /// The textual inversions that texts named so far, in order.
    #[must_use]
    pub fn into_used(self) -> Vec<Arc<Embedding>> {
        self.used.into_inner()
    }

    fn named(&self, name: &str) -> Option<Result<Unit, TextError>> {
        let embedding = match self.embeddings.get(name)? {
            Ok(embedding) => embedding,
            Err(error) => return Some(Err(error)),
        };
        let unit = self.encoder.vectors(&embedding).map(Unit::Vectors);
        let mut used = self.used.borrow_mut();
        if !used.contains(&embedding) {
            used.push(embedding);
        }
        Some(unit)
    }

    /// What is before the first `embedding:` with a name behind it, its vectors, and what follows.
    fn explicit<'t>(&self, text: &'t str) -> Option<(&'t str, Result<Unit, TextError>, &'t str)> {
        text.match_indices(EXPLICIT).find_map(|(at, _)| {
            let after = &text[at + EXPLICIT.len()..];
            let lengths = self
                .embeddings
                .names()
                .map(|name| (name_length(after, name), name));
            let (length, name) = lengths.max_by_key(|(length, _)| *length)?;
            let unit = (length > 0).then(|| self.named(name)).flatten()?;
            Some((&text[..at], unit, &after[length..]))
        })
    }

    /// Tokens, and vectors where tokens are a name's.
    fn words(&self, text: &str, units: &mut Vec<Unit>) -> Result<(), TextError> {
        let ids = self.encoder.clip.encode(text)?;
        let mut rest = &ids[..];
        while let [first, after @ ..] = rest {
            let names = self.by_token.get(first).into_iter().flatten();
            let named = names
                .filter(|(name, _)| rest.starts_with(name))
                .find_map(|(ids, name)| Some((ids.len(), self.named(name)?)));
            match named {
                Some((length, unit)) => {
                    units.push(unit?);
                    rest = &rest[length..];
                }
                None => {
                    units.push(Unit::Token(*first));
                    rest = after;
                }
            }
        }
        Ok(())
    }
}

impl Vocabulary for Words<'_> {
    fn clip(&self) -> &ClipTokenizer {
        self.encoder.clip
    }

    fn units(&self, text: &str) -> Result<Vec<Unit>, TextError> {
        let (mut units, mut rest) = (Vec::new(), text);
        while let Some((before, unit, after)) = self.explicit(rest) {
            self.words(before, &mut units)?;
            units.push(unit?);
            rest = after;
        }
        self.words(rest, &mut units)?;
        Ok(units)
    }
}

/// Length of the beginning of a text that is a name, with folders before it and its extension; 0 if it is another.
fn name_length(text: &str, name: &str) -> usize {
    let word = text.split(char::is_whitespace).next().unwrap_or_default();
    let file = word.rfind(['/', '\\']).map_or(0, |at| at + 1);
    let called = text.get(file..file + name.len());
    if !called.is_some_and(|called| called.eq_ignore_ascii_case(name)) {
        return 0;
    }
    let rest = &text[file + name.len()..];
    let extensions = [".safetensors", ".pt", ".bin"];
    let extension = extensions.iter().find(|e| rest.starts_with(**e));
    let length = file + name.len() + extension.map_or(0, |e| e.len());
    match text[length..].chars().next() {
        Some(c) if c.is_alphanumeric() || "_-".contains(c) => 0,
        _ => length,
    }
}

/// Words of a prompt that look like names of textual inversions that are not there.
#[must_use]
pub fn missing(prompt: &str, embeddings: &Embeddings, clip: &ClipTokenizer) -> Vec<String> {
    let mut missing = Vec::new();
    let words = prompt.split(|c: char| c.is_whitespace() || ",()[]|;\"".contains(c));
    for word in words {
        let explicit = word.split_once(EXPLICIT).map(|(_, name)| name);
        // A weight or a step may follow.
        let bare = word.split(':').next().unwrap_or_default();
        let is_there = match explicit {
            Some(name) => embeddings.names().any(|known| name_length(name, known) > 0),
            None => embeddings
                .names()
                .any(|known| known.eq_ignore_ascii_case(bare)),
        };
        if is_there {
            continue;
        }
        let in_brackets = word
            .strip_prefix('<')
            .and_then(|word| word.strip_suffix('>'));
        let in_brackets = in_brackets.is_some_and(|inside| {
            let is_name = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
            !inside.is_empty() && inside.chars().all(is_name) && !clip.has_token(word)
        });
        let likely = explicit.is_some() || in_brackets || looks_like_a_file(bare);
        let nearest = embeddings.names().find(|name| are_confused(bare, name));
        let name = explicit.unwrap_or(if in_brackets { word } else { bare });
        let text = match nearest {
            Some(nearest) => format!(
                "`{name}` is taken as words: no embedding has this name; one is called `{nearest}`"
            ),
            None if likely => format!("`{name}` is taken as words: no embedding has this name"),
            None => continue,
        };
        if !missing.contains(&text) {
            missing.push(text);
        }
    }
    missing
}

/// Whether a word is a name with a slip in it.
fn are_confused(word: &str, name: &str) -> bool {
    let is_near = word.len() >= 6 && word.len().abs_diff(name.len()) <= 2;
    let alike = || strsim::jaro_winkler(&word.to_lowercase(), &name.to_lowercase());
    is_near && alike() > 0.94
}

/// `bad-hands-5`, `ng_deepnegative_v1_75t`: several words joined, with a version.
fn looks_like_a_file(word: &str) -> bool {
    let joints = word.matches(['_', '-']).count();
    let letters = word.chars().filter(|c| c.is_alphabetic()).count();
    let last = word.rsplit(['_', '-']).next().unwrap_or_default();
    let has_version = last
        .strip_prefix(['v', 'V'])
        .unwrap_or(last)
        .starts_with(|c: char| c.is_ascii_digit());
    joints >= 2 && letters >= 6 && has_version || word.contains('_') && has_version && letters >= 8
}

#[cfg(test)]
mod tests {
    use sd_models::tokenizer::Pad;

    use super::super::chunks::chunks;
    use super::super::prompt::parse_attention;
    use super::super::tests::random_prompt;
    use super::super::tokenizer::tests::tokenizer;
    use super::*;

    /// Embeddings of as many vectors as told, of width 4; each number is that of its vector.
    fn embeddings(dir: &Path, files: &[(&str, usize)]) -> Embeddings {
        for (file, count) in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, count.to_string()).unwrap();
        }
        let read = |path: &Path| {
            let count: usize = fs::read_to_string(path)?.parse()?;
            Ok(vec![Array2::from_shape_fn((count, 4), |(i, _)| i as f32)])
        };
        Embeddings::list(&[dir.to_owned()], Box::new(read)).unwrap()
    }

    fn encoder<'a>(clip: &'a ClipTokenizer, widths: &'a [Option<usize>]) -> Encoder<'a> {
        Encoder {
            clip,
            number: 0,
            widths,
            is_second_alone: false,
        }
    }

    /// Token ids, and minus the number of vectors in place of vectors.
    fn units(words: &Words<'_>, text: &str) -> Vec<i64> {
        let unit = |unit: Unit| match unit {
            Unit::Token(id) => i64::from(id),
            Unit::Vectors(vectors) => -(vectors.nrows() as i64),
        };
        words.units(text).unwrap().into_iter().map(unit).collect()
    }

    #[test]
    fn names_are_found_by_their_tokens_the_longest_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("cat.pt", 2),
            ("cat dog.bin", 3),
            ("deep/Style-1.safetensors", 1),
            ("x.txt", 9),
        ];
        let embeddings = embeddings(dir.path(), &files);
        let clip = tokenizer(Pad::EndOfText);
        let words = Words::new(encoder(&clip, &[Some(4)]), &embeddings, false).unwrap();
        assert_eq!(units(&words, "a cat, CAT"), [320, -2, 267, -2]);
        assert_eq!(units(&words, "cat dog"), [-3]);
        assert_eq!(units(&words, "cats x"), [3989, 343]);
        assert_eq!(units(&words, "a style-1"), [320, -1]);
        assert_eq!(units(&words, "a embedding:cat b"), [320, -2, 321]);
        assert_eq!(
            units(&words, "embedding:cat.pt, embedding:deep/Style-1"),
            [-2, 267, -1]
        );
        let used: Vec<_> = words.into_used().iter().map(|e| e.name.clone()).collect();
        assert_eq!(used, ["cat", "cat dog", "Style-1"]);
        let explicit = Words::new(encoder(&clip, &[Some(4)]), &embeddings, true).unwrap();
        assert_eq!(units(&explicit, "cat embedding:cat"), [2368, -2]);
    }

    #[test]
    fn vectors_stay_in_one_chunk_and_have_the_weight_of_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let embeddings = embeddings(dir.path(), &[("ten.pt", 10), ("one.pt", 1)]);
        let clip = tokenizer(Pad::EndOfText);
        let words = Words::new(encoder(&clip, &[None]), &embeddings, false).unwrap();
        let read = |text: &str| chunks(&parse_attention(text), &words).unwrap();
        let places = |text: &str| -> Vec<Vec<usize>> {
            let places =
                |vectors: &[(usize, Vec<f32>)]| vectors.iter().map(|(at, _)| *at).collect();
            read(text)
                .iter()
                .map(|chunk| places(&chunk.vectors))
                .collect()
        };
        let after = |count: usize| format!("{}ten", "cat ".repeat(count));
        assert_eq!(places(&after(65)), [(66..76).collect::<Vec<_>>()]);
        assert_eq!(places(&after(66)), [vec![], (1..11).collect::<Vec<_>>()]);
        // What a comma carries into the next chunk takes its vectors along.
        let carried = format!("{}, (one:1.2) {}", "cat ".repeat(60), "dog ".repeat(20));
        assert_eq!(places(&carried), [vec![], vec![1]]);
        let chunk = &read(&carried)[1];
        assert_eq!((chunk.ids[1], chunk.weights[1]), (0, 1.2));
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_would() {
        let dir = tempfile::tempdir().unwrap();
        let embeddings = embeddings(
            dir.path(),
            &[("long.pt", 76), ("none.pt", 0), ("cat.pt", 2)],
        );
        let clip = tokenizer(Pad::EndOfText);
        let error = |text: &str, widths: &[Option<usize>]| {
            let words = Words::new(encoder(&clip, widths), &embeddings, false).unwrap();
            words.units(text).unwrap_err().to_string()
        };
        let said = error("cat", &[Some(768)]);
        assert!(
            said.contains("cat.pt: its vectors have width 4, but this model takes 768"),
            "{said}"
        );
        let said = error("cat", &[Some(4), Some(4)]);
        assert!(said.contains("takes 4 and 4"), "{said}");
        assert!(error("long", &[None]).contains("76 vectors; expected 1 to 75"));
        assert!(error("none", &[None]).contains("0 vectors"));
    }

    #[test]
    fn damaged_files_are_errors_when_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nan", "unequal", "broken"] {
            fs::write(dir.path().join(format!("{name}.pt")), "").unwrap();
        }
        let read = |path: &Path| match path.file_stem().unwrap().to_str() {
            Some("nan") => Ok(vec![Array2::from_elem((1, 4), f32::NAN)]),
            Some("unequal") => Ok(vec![Array2::zeros((1, 4)), Array2::zeros((2, 4))]),
            _ => Err("broken.pt: it is no file of the kind".into()),
        };
        let embeddings = Embeddings::list(&[dir.path().to_owned()], Box::new(read)).unwrap();
        let clip = tokenizer(Pad::EndOfText);
        let words = Words::new(encoder(&clip, &[Some(4)]), &embeddings, false).unwrap();
        let error = |text: &str| words.units(text).unwrap_err().to_string();
        assert!(error("nan").contains("nan.pt: 4 of its values are NaN"));
        assert!(error("unequal").contains("1 vectors for the first text encoder and 2"));
        assert!(error("broken").contains("`broken` cannot be read: broken.pt"));
        assert_eq!(units(&words, "a"), [320]);
        let folders = [dir.path().join("none")];
        assert!(Embeddings::list(&folders, Box::new(|_| Ok(Vec::new()))).is_err());
    }

    #[test]
    fn names_that_are_not_there_are_told_where_they_are_likely_meant() {
        let dir = tempfile::tempdir().unwrap();
        let embeddings = embeddings(dir.path(), &[("EasyNegative.pt", 1)]);
        let clip = tokenizer(Pad::EndOfText);
        let told = |prompt: &str| missing(prompt, &embeddings, &clip).len();
        for prompt in [
            "embedding:foo",
            "a <cat-toy>",
            "(bad-hands-5:1.2)",
            "ng_deepnegative_v1_75t",
            "EasyNegativ",
        ] {
            assert_eq!(told(prompt), 1, "{prompt}");
        }
        for prompt in [
            "easynegative",
            "embedding:EasyNegative.pt",
            "sci-fi, t-34, 1970-01-01, 8k",
            "1 < 2 > 0, <b c:d>",
            "a_b",
        ] {
            assert_eq!(told(prompt), 0, "{prompt}");
        }
    }

    #[test]
    fn every_text_may_have_names_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let embeddings = embeddings(dir.path(), &[("é.pt", 1), ("🙂3.bin", 2), ("x y.pt", 3)]);
        let clip = tokenizer(Pad::EndOfText);
        let words = |explicit| Words::new(encoder(&clip, &[Some(4)]), &embeddings, explicit);
        let (by_token, explicit) = (words(false).unwrap(), words(true).unwrap());
        let mut state = 2;
        for _ in 0..500 {
            let text = random_prompt(&mut state);
            by_token.units(&text).unwrap();
            explicit.units(&text).unwrap();
            assert!(missing(&text, &embeddings, &clip).len() < 24);
        }
        assert_eq!(by_token.into_used().len(), 2);
    }
}
