//! Tokens to CLIP's sequences of 77: as many chunks as a prompt needs (A1111, `ComfyUI`), or one (diffusers).

use std::sync::Arc;

use ndarray::{Array2, ArrayView1};
use sd_models::tokenizer::POSITIONS;

use super::prompt::Part;
use super::{ClipTokenizer, TextError};

/// Tokens of a chunk without the start and end tokens.
pub(super) const CONTENT: usize = POSITIONS - 2;

/// How far back a comma may lie at which a full chunk is cut instead: A1111's default.
const COMMA_BACKTRACK: usize = 20;

/// What CLIP reads at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// 77 token ids.
    pub ids: Vec<u32>,
    /// How strongly the embedding of each acts.
    pub weights: Vec<f32>,
    /// Vectors of textual inversions that take the place of tokens, and these places. Ids are 0 there.
    pub vectors: Vec<(usize, Vec<f32>)>,
}

/// What a text consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Unit {
    /// A word or a part of one.
    Token(u32),
    /// A textual inversion, [vectors, width].
    Vectors(Arc<Array2<f32>>),
}

/// What texts are made of.
pub trait Vocabulary {
    /// The tokenizer.
    fn clip(&self) -> &ClipTokenizer;

    /// The units of a text.
    ///
    /// # Errors
    /// The tokenizer fails, or a textual inversion cannot be used.
    fn units(&self, text: &str) -> Result<Vec<Unit>, TextError>;
}

impl Vocabulary for ClipTokenizer {
    fn clip(&self) -> &ClipTokenizer {
        self
    }

    fn units(&self, text: &str) -> Result<Vec<Unit>, TextError> {
        Ok(self.encode(text)?.into_iter().map(Unit::Token).collect())
    }
}

impl Chunk {
    /// The ids as text encoders take them, [1, 77].
    #[must_use]
    pub fn row(&self) -> Array2<i64> {
        Array2::from_shape_fn((1, self.ids.len()), |(_, i)| i64::from(self.ids[i]))
    }

    /// Vectors in place of tokens, [n, width], and the batch and position of each, [n, 2]. `width` is for chunks without.
    #[must_use]
    pub fn placed_vectors(&self, width: usize) -> (Array2<f32>, Array2<i64>) {
        let width = self.vectors.first().map_or(width, |(_, v)| v.len());
        let vectors =
            Array2::from_shape_fn((self.vectors.len(), width), |(i, j)| self.vectors[i].1[j]);
        let place = |(i, axis): (usize, usize)| {
            if axis == 0 {
                0
            } else {
                self.vectors[i].0 as i64
            }
        };
        (
            vectors,
            Array2::from_shape_fn((self.vectors.len(), 2), place),
        )
    }
}

/// A place in a chunk.
struct Token {
    id: u32,
    weight: f32,
    vector: Option<Vec<f32>>,
}

impl Unit {
    fn len(&self) -> usize {
        match self {
            Self::Token(_) => 1,
            Self::Vectors(vectors) => vectors.nrows(),
        }
    }

    /// Its places in a chunk.
    fn tokens(&self, weight: f32) -> Vec<Token> {
        let of_row = |row: ArrayView1<'_, f32>| Token {
            id: 0,
            weight,
            vector: Some(row.to_vec()),
        };
        match self {
            Self::Token(id) => vec![Token {
                id: *id,
                weight,
                vector: None,
            }],
            Self::Vectors(vectors) => vectors.rows().into_iter().map(of_row).collect(),
        }
    }
}

/// Most that words may weigh, or its opposite. Norms take squares of weighted numbers, which reach the end of single precision
/// at 1e19; pictures are noise long before.
const MOST_WEIGHT: f32 = 1e6;

/// A weight that embeddings can be multiplied by.
fn checked(text: &str, weight: f32) -> Result<f32, TextError> {
    if weight.abs() <= MOST_WEIGHT {
        return Ok(weight);
    }
    Err(TextError::Weight {
        text: text.to_owned(),
        weight,
        most: MOST_WEIGHT,
    })
}

/// The words of a chunk in the making.
#[derive(Default)]
struct Content {
    tokens: Vec<Token>,
    last_comma: Option<usize>,
}

impl Content {
    /// Start token, words, end tokens up to the length; encoders that pad with another token want it after the first end.
    fn close(&mut self, clip: &ClipTokenizer) -> Chunk {
        let mut chunk = Chunk {
            ids: vec![clip.start()],
            weights: vec![1.0],
            vectors: Vec::new(),
        };
        for token in std::mem::take(self).tokens {
            if let Some(vector) = token.vector {
                chunk.vectors.push((chunk.ids.len(), vector));
            }
            chunk.ids.push(token.id);
            chunk.weights.push(token.weight);
        }
        chunk.ids.push(clip.end());
        chunk.ids.resize(POSITIONS, clip.pad());
        chunk.weights.resize(POSITIONS, 1.0);
        chunk
    }
}

/// A prompt's chunks by A1111's rules: parts are tokenised on their own, a full chunk is cut after a near comma, and vectors of a
/// textual inversion stay together.
///
/// # Errors
/// A weight is out of range, the tokenizer fails, or a textual inversion cannot be used.
pub fn chunks(parts: &[Part], vocabulary: &impl Vocabulary) -> Result<Vec<Chunk>, TextError> {
    let clip = vocabulary.clip();
    let mut chunks = Vec::new();
    let mut content = Content::default();
    for part in parts {
        let Part::Text { text, weight } = part else {
            chunks.push(content.close(clip));
            continue;
        };
        let weight = checked(text, *weight)?;
        for unit in vocabulary.units(text)? {
            let full = content.tokens.len() == CONTENT;
            if unit == Unit::Token(clip.comma()) {
                content.last_comma = Some(content.tokens.len());
            } else if let Some(comma) = content.last_comma
                && full
                && CONTENT - comma <= COMMA_BACKTRACK
            {
                let carried = content.tokens.split_off(comma + 1);
                chunks.push(content.close(clip));
                content.tokens = carried;
            }
            if content.tokens.len() + unit.len() > CONTENT {
                chunks.push(content.close(clip));
            }
            content.tokens.extend(unit.tokens(weight));
        }
    }
    if chunks.is_empty() || !content.tokens.is_empty() {
        chunks.push(content.close(clip));
    }
    Ok(chunks)
}

/// Parts of at least so many tokens are cut where a chunk is full; shorter ones go to the next one whole.
const LONG: usize = 8;

/// A prompt's chunks by `ComfyUI`'s rules: parts and textual inversions are tokenised on their own, and short ones are kept
/// together.
///
/// # Errors
/// A weight is out of range, the tokenizer fails, or a textual inversion cannot be used.
pub fn comfyui(parts: &[Part], vocabulary: &impl Vocabulary) -> Result<Vec<Chunk>, TextError> {
    let clip = vocabulary.clip();
    let mut chunks = Vec::new();
    let mut content = Content::default();
    for part in parts {
        let Part::Text { text, weight } = part else {
            continue;
        };
        let weight = checked(text, *weight)?;
        let units = vocabulary.units(text)?;
        let is_word = |unit: &Unit| matches!(unit, Unit::Token(_));
        for group in units.chunk_by(|a, b| is_word(a) && is_word(b)) {
            let mut tokens: Vec<Token> = group.iter().flat_map(|u| u.tokens(weight)).collect();
            let is_long = tokens.len() >= LONG;
            let room = |content: &Content| CONTENT - content.tokens.len();
            while tokens.len() > room(&content) {
                if is_long {
                    let rest = tokens.split_off(room(&content));
                    content.tokens.append(&mut tokens);
                    tokens = rest;
                }
                chunks.push(content.close(clip));
            }
            content.tokens.append(&mut tokens);
        }
    }
    chunks.push(content.close(clip));
    Ok(chunks)
}

/// The empty prompt's chunk.
#[must_use]
pub fn empty(clip: &ClipTokenizer) -> Chunk {
    Content::default().close(clip)
}

/// The one chunk that diffusers makes of a text, and how many tokens did not fit.
///
/// # Errors
/// The tokenizer fails.
pub fn truncated(text: &str, vocabulary: &impl Vocabulary) -> Result<(Chunk, usize), TextError> {
    let units = vocabulary.units(text)?;
    let mut tokens: Vec<Token> = units.iter().flat_map(|unit| unit.tokens(1.0)).collect();
    let cut = tokens.len().saturating_sub(CONTENT);
    tokens.truncate(CONTENT);
    let mut content = Content {
        tokens,
        last_comma: None,
    };
    Ok((content.close(vocabulary.clip()), cut))
}

#[cfg(test)]
mod tests {
    use sd_models::tokenizer::Pad;

    use super::super::prompt::{parse_attention, parse_comfyui};
    use super::super::tokenizer::tests::tokenizer;
    use super::*;

    fn words(chunk: &Chunk) -> Vec<u32> {
        let end = chunk.ids.iter().position(|&id| id == 49407).unwrap();
        chunk.ids[1..end].to_vec()
    }

    fn counts(prompt: &str) -> Vec<usize> {
        let chunks = chunks(&parse_attention(prompt), &tokenizer(Pad::EndOfText)).unwrap();
        assert!(
            chunks
                .iter()
                .all(|c| c.ids.len() == 77 && c.weights.len() == 77 && c.ids[0] == 49406)
        );
        chunks.iter().map(|chunk| words(chunk).len()).collect()
    }

    #[test]
    fn weights_that_leave_the_range_of_numbers_are_refused_with_their_words() {
        let clip = tokenizer(Pad::EndOfText);
        let digits = "9".repeat(400);
        for wrong in ["a (red:1000001) cat", &format!("a (red:-{digits}) cat")] {
            let error = chunks(&parse_attention(wrong), &clip).unwrap_err();
            assert!(error.to_string().contains("`red`"), "{error}");
        }
        for wrong in ["(red:1e30)", "(red:-1e9)"] {
            let error = comfyui(&parse_comfyui(wrong), &clip).unwrap_err();
            assert!(error.to_string().contains("`red`"), "{error}");
        }
        chunks(&parse_attention("(red:1000000) (cat:-20)"), &clip).unwrap();
        comfyui(&parse_comfyui("(red:1e6)"), &clip).unwrap();
    }

    #[test]
    fn full_chunks_are_cut_after_a_near_comma() {
        let prompt = |before: usize, after: usize| {
            format!("{},{}", "cat ".repeat(before), " dog".repeat(after))
        };
        assert_eq!(counts(&prompt(74, 10)), [75, 10]);
        assert_eq!(counts(&prompt(60, 20)), [61, 20]);
        assert_eq!(counts(&prompt(50, 30)), [75, 6]);
        assert_eq!(counts(&prompt(75, 1)), [75, 2]);
        assert_eq!(counts(&"cat ".repeat(75)), [75]);
        assert_eq!(counts(""), [0]);
    }

    #[test]
    fn comfyui_keeps_short_parts_together() {
        let clip = tokenizer(Pad::EndOfText);
        let counts = |prompt: &str| -> Vec<usize> {
            let chunks = comfyui(&parse_comfyui(prompt), &clip).unwrap();
            let filled = |chunk: &Chunk| chunk.ids.len() == 77 && chunk.weights.len() == 77;
            assert!(chunks.iter().all(filled));
            chunks.iter().map(|chunk| words(chunk).len()).collect()
        };
        let after = |words: usize| format!("{}({})", "cat ".repeat(70), "dog ".repeat(words));
        assert_eq!(counts(&after(5)), [75]);
        assert_eq!(counts(&after(7)), [70, 7]);
        assert_eq!(counts(&after(8)), [75, 3]);
        assert_eq!(counts(&"cat ".repeat(160)), [75, 75, 10]);
        assert_eq!(counts("a BREAK b"), [3]);
        assert_eq!(counts(""), [0]);
        assert_eq!(comfyui(&[], &clip).unwrap(), [empty(&clip)]);
    }

    #[test]
    fn breaks_start_chunks() {
        let clip = tokenizer(Pad::EndOfText);
        let split = chunks(&parse_attention("a BREAK b"), &clip).unwrap();
        assert_eq!([words(&split[0]), words(&split[1])], [[320], [321]]);
        assert_eq!(counts("BREAK a"), [0, 1]);
        assert_eq!(counts("a BREAK BREAK b"), [1, 0, 1]);
    }

    #[test]
    fn sequences_are_padded_with_the_encoders_token() {
        let cat = |pad| truncated("a cat", &tokenizer(pad)).unwrap();
        let (chunk, cut) = cat(Pad::EndOfText);
        assert_eq!(
            (&chunk.ids[..4], chunk.ids[76], cut),
            (&[49406, 320, 2368, 49407][..], 49407, 0)
        );
        assert_eq!(cat(Pad::Exclamation).0.ids[3..5], [49407, 0]);
        let (chunk, cut) = truncated(&"cat ".repeat(80), &tokenizer(Pad::EndOfText)).unwrap();
        assert_eq!((chunk.ids[76], cut), (49407, 5));
    }

    #[test]
    fn weights_go_with_their_tokens() {
        let weighted = chunks(&parse_attention("a (cat:1.5)"), &tokenizer(Pad::EndOfText)).unwrap();
        assert_eq!(weighted[0].weights[..5], [1.0, 1.0, 1.5, 1.0, 1.0]);
    }
}
