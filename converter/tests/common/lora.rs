//! LoRAs made up for tests, and models to bake them into.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use sd_converter::lora::{LoraSpec, Options, WithLoras};
use sd_converter::model::{Model, Name};
use sd_converter::weights::Weights;
use sd_models::keys::Component;
use tempfile::TempDir;

use super::{sdconvert, synthetic, with_hint};

/// Shape and values by key.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Weights that are not rounded to the checkpoint's half precision.
pub(crate) const SINGLE: Options = Options {
    allow_partial: false,
    storage: Some(sd_converter::checkpoint::Dtype::F32),
};

pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) base: PathBuf,
}

impl Place {
    pub(crate) fn new(family: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = synthetic(dir.path(), family, 0);
        Self { dir, base }
    }

    pub(crate) fn write(&self, tensors: &Tensors) -> PathBuf {
        let path = self.dir.path().join("lora.safetensors");
        let halves: BTreeMap<&String, Vec<u8>> = tensors
            .iter()
            .map(|(key, (_, values))| {
                let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
                (key, bytes.collect())
            })
            .collect();
        let views = tensors.iter().map(|(key, (shape, _))| {
            (
                key,
                TensorView::new(Dtype::F16, shape.clone(), &halves[key]).unwrap(),
            )
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    }

    pub(crate) fn bake(&self, tensors: &Tensors, strength: f64) -> Result<WithLoras, String> {
        let spec = LoraSpec::new(self.write(tensors), strength);
        let baked = WithLoras::new(self.model(), &[spec], SINGLE);
        baked.map_err(|e| with_hint(&e, e.hint()))
    }

    /// Where [`Self::build`] puts its model.
    pub(crate) fn output(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    /// `sdconvert build --lora`
    pub(crate) fn build(&self, lora: &str, more: &[&str]) -> Output {
        let (base, output) = (&self.base, self.output());
        let paths = [base, &output].map(|path| path.to_str().unwrap());
        let args = ["build", paths[0], "--lora", lora, "-o", paths[1]];
        sdconvert(&[&args, more].concat())
    }

    pub(crate) fn model(&self) -> Box<dyn Model> {
        Box::new(Weights::open(&self.base, None).unwrap())
    }

    pub(crate) fn refused(&self, tensors: &Tensors, said: &[&str]) {
        let Err(error) = self.bake(tensors, 1.0) else {
            panic!("it was accepted")
        };
        for part in said {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}

/// Numbers that are exact in half precision.
pub(crate) fn ramp(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| ((i % 7) as f32 - 3.0) * step).collect()
}

pub(crate) const QUERY: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight";

pub(crate) const KOHYA: &str =
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";

/// A module of rank 2 on a matrix [64, 64] or [128, 128].
pub(crate) fn module(up: &str, down: &str, width: usize) -> Tensors {
    BTreeMap::from([
        (up.to_owned(), (vec![width, 2], ramp(2 * width, 0.25))),
        (down.to_owned(), (vec![2, width], ramp(2 * width, 0.125))),
    ])
}

pub(crate) fn kohya(module_name: &str) -> Tensors {
    let part = |part: &str| format!("{module_name}.lora_{part}.weight");
    module(&part("up"), &part("down"), 64)
}

pub(crate) fn query() -> Name {
    (Component::UNet, QUERY.to_owned())
}

/// Adds a module's tensors, all of rank 1, for a weight of this shape.
pub(crate) fn low_rank(tensors: &mut Tensors, module: &str, rows: usize, columns: &[usize]) {
    let width: usize = columns.iter().product();
    let down = [&[1], columns].concat();
    tensors.insert(
        format!("{module}.lora_up.weight"),
        (vec![rows, 1], ramp(rows, 0.25)),
    );
    tensors.insert(
        format!("{module}.lora_down.weight"),
        (down, ramp(width, 0.125)),
    );
}

/// A LoRA that fits SDXL's layers only.
pub(crate) fn for_sdxl() -> Tensors {
    let module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let mut tensors = Tensors::new();
    low_rank(&mut tensors, module, 640, &[2048]);
    tensors
}
