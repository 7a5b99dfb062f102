//! Prompt to embeddings: what holds at which step, weighted words, tokens, chunks of 75 tokens, CLIP.

pub mod chunks;
pub mod clean;
pub mod comments;
pub mod composition;
mod condition;
pub mod editing;
pub mod embeddings;
pub mod emphasis;
pub mod encoder;
mod error;
mod lighter;
pub mod lora_tags;
pub mod prompt;
pub mod styles;
mod timeline;
pub mod tokenizer;

pub use chunks::Chunk;
pub use condition::Condition;
pub use embeddings::{Embedding, Embeddings};
pub use emphasis::Emphasis;
pub use encoder::{Encoded, Layer, TextEncoder};
pub use error::TextError;
pub use timeline::{Guides, Timeline};
pub use tokenizer::ClipTokenizer;

#[cfg(test)]
mod tests;
