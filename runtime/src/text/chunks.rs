//! Tokens to CLIP's sequences of 77: as many chunks as a prompt needs (A1111, `ComfyUI`), or one (diffusers).

use ndarray::Array2;
use sd_models::tokenizer::POSITIONS;

use super::prompt::Part;
use super::{ClipTokenizer, TextError};

/// Tokens of a chunk without the start and end tokens.
const CONTENT: usize = POSITIONS - 2;

/// How far back a comma may lie at which a full chunk is cut instead: A1111's default.
const COMMA_BACKTRACK: usize = 20;

/// What CLIP reads at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// 77 token ids.
    pub ids: Vec<u32>,
    /// How strongly the embedding of each acts.
    pub weights: Vec<f32>,
}

impl Chunk {
    /// The ids as text encoders take them, [1, 77].
    #[must_use]
    pub fn row(&self) -> Array2<i64> {
        Array2::from_shape_fn((1, self.ids.len()), |(_, i)| i64::from(self.ids[i]))
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
    tokens: Vec<(u32, f32)>,
    last_comma: Option<usize>,
}

impl Content {
    /// Start token, words, end tokens up to the length; encoders that pad with another token want it after the first end.
    fn close(&mut self, clip: &ClipTokenizer) -> Chunk {
        let content = std::mem::take(self).tokens;
        let mut ids = vec![clip.start()];
        ids.extend(content.iter().map(|(id, _)| *id));
        ids.push(clip.end());
        ids.resize(POSITIONS, clip.pad());
        let mut weights = vec![1.0];
        weights.extend(content.iter().map(|(_, weight)| *weight));
        weights.resize(POSITIONS, 1.0);
        Chunk { ids, weights }
    }
}

/// A prompt's chunks by A1111's rules: parts are tokenised on their own, a full chunk is cut after a near comma.
///
/// # Errors
/// A weight is out of range, or the tokenizer fails.
pub fn chunks(parts: &[Part], clip: &ClipTokenizer) -> Result<Vec<Chunk>, TextError> {
    let mut chunks = Vec::new();
    let mut content = Content::default();
    for part in parts {
        let Part::Text { text, weight } = part else {
            chunks.push(content.close(clip));
            continue;
        };
        let weight = checked(text, *weight)?;
        for id in clip.encode(text)? {
            let full = content.tokens.len() == CONTENT;
            if id == clip.comma() {
                content.last_comma = Some(content.tokens.len());
            } else if let Some(comma) = content.last_comma
                && full
                && CONTENT - comma <= COMMA_BACKTRACK
            {
                let carried = content.tokens.split_off(comma + 1);
                chunks.push(content.close(clip));
                content.tokens = carried;
            }
            if content.tokens.len() == CONTENT {
                chunks.push(content.close(clip));
            }
            content.tokens.push((id, weight));
        }
    }
    if chunks.is_empty() || !content.tokens.is_empty() {
        chunks.push(content.close(clip));
    }
    Ok(chunks)
}

/// Parts of at least so many tokens are cut where a chunk is full; shorter ones go to the next one whole.
const LONG: usize = 8;

/// A prompt's chunks by `ComfyUI`'s rules: parts are tokenised on their own, and short ones are kept together.
///
/// # Errors
/// A weight is out of range, or the tokenizer fails.
pub fn comfyui(parts: &[Part], clip: &ClipTokenizer) -> Result<Vec<Chunk>, TextError> {
    let mut chunks = Vec::new();
    let mut content = Content::default();
    for part in parts {
        let Part::Text { text, weight } = part else {
            continue;
        };
        let weight = checked(text, *weight)?;
        let ids = clip.encode(text)?.into_iter();
        let mut tokens: Vec<(u32, f32)> = ids.map(|id| (id, weight)).collect();
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
pub fn truncated(text: &str, clip: &ClipTokenizer) -> Result<(Chunk, usize), TextError> {
    let ids = clip.encode(text)?;
    let tokens = ids.iter().take(CONTENT).map(|&id| (id, 1.0)).collect();
    let chunk = Content {
        tokens,
        last_comma: None,
    }
    .close(clip);
    Ok((chunk, ids.len().saturating_sub(CONTENT)))
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
