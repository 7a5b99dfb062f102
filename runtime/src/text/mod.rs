//! Prompt to embeddings: text, tokens, chunks of 75 tokens, CLIP.

pub mod chunks;
pub mod clean;
mod condition;
pub mod emphasis;
pub mod encoder;
mod error;
pub mod lora_tags;
pub mod prompt;
pub mod tokenizer;

pub use chunks::Chunk;
pub use condition::Condition;
pub use emphasis::Emphasis;
pub use encoder::{Encoded, Layer, TextEncoder};
pub use error::TextError;
pub use tokenizer::ClipTokenizer;
