//! ONNX files: protobuf messages, and the writer that streams weights into external data.

pub mod proto;
mod transpose;
mod writer;

pub(crate) use writer::hex;
pub use writer::{Stored, WeightReader, WriteError, Written, write_model};
