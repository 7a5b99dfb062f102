//! What can be wrong with a prompt or a tokenizer.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::Remedy;

/// A prompt that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A tokenizer file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tokenizer file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer failed on a text.
    #[error("cannot tokenize the prompt: {0}")]
    Tokenize(String),
    /// A LoRA is asked for that is not in the model.
    #[error("the prompt asks for `{tag}`, but {problem}")]
    ExtraNetwork {
        /// The tag.
        tag: String,
        /// Why it cannot be had.
        problem: String,
        /// What can be done.
        remedy: Remedy,
    },
    /// A textual inversion that cannot be read.
    #[error("the embedding `{name}` cannot be read: {source}")]
    ReadEmbedding {
        /// Its name.
        name: String,
        /// Why, with the file.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A textual inversion that does not fit the model, or holds no numbers.
    #[error("{}: {problem}", path.display())]
    Embedding {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A weight with which embeddings would leave the range of numbers.
    #[error("the prompt gives `{text}` a weight of {weight}; the most is {most}")]
    Weight {
        /// The words.
        text: String,
        /// What they weigh.
        weight: f32,
        /// What they may weigh, or its opposite.
        most: f32,
    },
    /// Fewer layers than are to be skipped.
    #[error("clip skip {clip_skip}: this model's text encoder returns {layers} inner layers")]
    ClipSkip {
        /// What was asked for.
        clip_skip: usize,
        /// How many there are.
        layers: usize,
    },
    /// The text encoder does not fit the tokenizer.
    #[error("the text encoder returned {found:?}; expected {expected}")]
    Shape {
        /// What came.
        found: Vec<usize>,
        /// What should have come.
        expected: String,
    },
    /// The text encoder failed.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

impl TextError {
    /// What can be done about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<Remedy> {
        match self {
            Self::ExtraNetwork { remedy, .. } => Some(remedy.clone()),
            Self::ClipSkip { .. } => Some(Remedy::words(
                "models that other programs converted may return none; use 1 then",
            )),
            Self::Engine(error) => error.hint(),
            _ => None,
        }
    }
}
