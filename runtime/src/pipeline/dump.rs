//! The inside of a run as a safetensors file: how pictures of two programs are compared step by step.

use std::collections::HashMap;
use std::path::Path;

use ndarray::{ArrayD, ArrayView, Dimension};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Destination, PipelineError};
use crate::engine::Cancel;

/// What a run leaves for comparison.
#[derive(Debug, Default)]
pub struct Dump {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Dump {
    /// Adds a tensor of numbers, behind those that the name has already, along the first dimension.
    pub fn append<D: Dimension>(&mut self, name: &str, tensor: &ArrayView<'_, f32, D>) {
        let bytes = tensor.iter().flat_map(|x| x.to_le_bytes());
        match self.tensors.iter_mut().find(|(known, ..)| known == name) {
            Some((_, _, shape, data)) => {
                shape[0] += tensor.shape()[0];
                data.extend(bytes);
            }
            None => {
                let shape = tensor.shape().to_vec();
                self.tensors
                    .push((name.to_owned(), Dtype::F32, shape, bytes.collect()));
            }
        }
    }

    /// Adds token ids.
    pub fn add_ids<D: Dimension>(
        &mut self,
        name: impl Into<String>,
        tensor: &ArrayView<'_, i64, D>,
    ) {
        let bytes = tensor.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors
            .push((name.into(), Dtype::I64, tensor.shape().to_vec(), bytes));
    }

    /// Notes a setting of the run.
    pub fn set(&mut self, key: &str, value: &str) {
        self.metadata.insert(key.to_owned(), value.to_owned());
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: &Destination, cancel: &Cancel) -> Result<(), PipelineError> {
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (
                name.as_str(),
                view.expect("bytes and shape are of one tensor"),
            )
        });
        let bytes = safetensors::serialize(views, Some(self.metadata.clone()))
            .expect("names are unique and views are whole");
        to.write(&bytes, cancel)
    }
}

/// Reads the first noise of a run, [N, C, h, w], from a dump or any safetensors file with a tensor `initial_noise`.
///
/// # Errors
/// The file cannot be read or has no such tensor of single precision.
pub fn read_initial_noise(path: &Path) -> Result<ArrayD<f32>, PipelineError> {
    const NAME: &str = "initial_noise";
    let wrong = |problem: String| PipelineError::InitNoise {
        path: path.to_owned(),
        problem,
    };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let tensor = file
        .tensor(NAME)
        .map_err(|_| wrong(format!("it has no tensor `{NAME}`")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(wrong(format!(
            "`{NAME}` is {:?}; expected F32",
            tensor.dtype()
        )));
    }
    let values = tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    ArrayD::from_shape_vec(tensor.shape(), values).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    #[test]
    fn noise_is_read_back_from_a_dump() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.safetensors");
        let mut dump = Dump::default();
        dump.append("initial_noise", &arr1(&[1.5f32, -2.0]).view());
        dump.add_ids("token_ids", &arr1(&[49406i64]).view());
        dump.set("seed", "7");
        let to = Destination::find(&path).unwrap();
        dump.write(&to, &Cancel::new()).unwrap();
        assert_eq!(
            read_initial_noise(&path)
                .unwrap()
                .into_raw_vec_and_offset()
                .0,
            [1.5, -2.0]
        );
        std::fs::write(&path, "nothing").unwrap();
        assert!(
            read_initial_noise(&path)
                .unwrap_err()
                .to_string()
                .contains("not a safetensors")
        );
    }
}
