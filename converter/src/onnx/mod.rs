//! ONNX files: protobuf messages, and the writer that streams weights into external data.

mod external_data;
pub mod proto;
mod transpose;
mod writer;

pub(crate) use transpose::{scatter, transpose};
pub use writer::{Stored, Weight, WeightReader, WriteError, Written, write_model};
