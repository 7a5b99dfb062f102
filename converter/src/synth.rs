//! Synthetic checkpoints: random weights in a family's exact file layout, so that anybody can try and time a family
//! without owning its weights.
//!
//! Each tensor depends on its name and the seed alone, by a rule any language can follow:
//! `key` = the first 8 bytes, little-endian, of SHA-256 of the text `seed:name`; element `i` is the SplitMix64 output
//! (Steele et al. 2014) of the state `key + (i + 1) * 0x9E3779B97F4A7C15`; its upper 24 bits over 2^24 are `u` in [0, 1); the
//! value is `base + amplitude * (2 u - 1)` in single precision, then rounded to half precision.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::f16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};
use sd_models::arch::{
    ClipTextConfig, UNetConfig, VaeConfig, clip_text_encoder, unet, vae_decoder, vae_encoder,
};
use sd_models::family::ModelFamily;
use sd_models::graph::GraphError;
use sd_models::keys::Component;
use sd_models::keys::ldm::Layout;
use sha2::{Digest, Sha256};

use crate::ConvertError;
use crate::output::write_file;
use crate::progress::Progress;

/// Rows of the causal mask: what `position_ids` count.
const POSITIONS: usize = 77;

/// A synthetic checkpoint to be.
#[derive(Clone, Copy, Debug)]
pub struct Synth {
    /// Whose layout.
    pub family: ModelFamily,
    /// A narrow model of the same structure, for tests.
    pub tiny: bool,
    /// Other seeds give other weights.
    pub seed: u64,
}

/// A tensor and how to make its data.
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
    progress: &'a dyn Progress,
}

enum Fill {
    /// `base + amplitude * v` in half precision.
    Random { key: u64, base: f32, amplitude: f32 },
    /// A schedule buffer.
    F32(Vec<f32>),
    /// 0, 1, 2, ...
    Count,
}

impl Synth {
    /// Writes the checkpoint; an existing file is replaced only with `force`.
    ///
    /// # Errors
    /// The file cannot be written, or the user interrupts.
    pub fn write(
        &self,
        path: &Path,
        force: bool,
        progress: &dyn Progress,
    ) -> Result<(), ConvertError> {
        let tensors = self
            .tensors(progress)
            .map_err(|source| ConvertError::Graph {
                path: path.to_owned(),
                source,
            })?;
        // One entry only: the order of several would vary between runs, and so would the file's hash.
        let resolution = if self.tiny { "128x128" } else { "512x512" };
        let metadata = HashMap::from([("modelspec.resolution".to_owned(), resolution.to_owned())]);
        write_file(path, force, |file| {
            let named = tensors.iter().map(|t| (t.name.as_str(), t));
            let written = safetensors::serialize_to_file(named, Some(metadata), file);
            // Tensors made after the interruption are zeros, and the file is discarded.
            if progress.cancelled() {
                return Err(ConvertError::Interrupted);
            }
            written.map_err(|e| match e {
                safetensors::SafeTensorError::IoError(source) => ConvertError::Write {
                    path: path.to_owned(),
                    source,
                },
                other => ConvertError::Write {
                    path: path.to_owned(),
                    source: std::io::Error::other(other),
                },
            })
        })
    }

    /// Length of the tensors' data in bytes.
    ///
    /// # Errors
    /// None in practice: the presets fit together.
    pub fn size_bytes(&self) -> Result<u64, GraphError> {
        Ok(self
            .tensors(&crate::progress::Unwatched)?
            .iter()
            .map(|t| t.data_len() as u64)
            .sum())
    }

    fn tensors<'a>(&self, progress: &'a dyn Progress) -> Result<Vec<Tensor<'a>>, GraphError> {
        let (unet_cfg, vae_cfg, text_cfg) = match (self.family, self.tiny) {
            (ModelFamily::Sd15, false) => (
                UNetConfig::sd15(),
                VaeConfig::sd(),
                ClipTextConfig::clip_l(),
            ),
            (_, _) => (
                UNetConfig::tiny(),
                VaeConfig::tiny(),
                ClipTextConfig::tiny(),
            ),
        };
        let graphs = [
            (Component::UNet, unet(&unet_cfg)?),
            (Component::Vae, vae_encoder(&vae_cfg)?),
            (Component::Vae, vae_decoder(&vae_cfg)?),
            (Component::TextEncoder, clip_text_encoder(&text_cfg)?),
        ];
        let mut tensors = Vec::new();
        for (component, graph) in graphs {
            for param in graph.params {
                let name = Layout::SD
                    .key(component, &param.name)
                    .expect("every canonical name has a single-file key");
                let mut shape = param.shape;
                if component == Component::Vae && name.contains(".attn_1.") && shape.len() == 2 {
                    shape.extend([1, 1]); // 1x1 convolutions in this layout
                }
                let fill = self.fill(&name, &shape);
                tensors.push(Tensor {
                    name,
                    shape,
                    fill,
                    progress,
                });
            }
        }
        let name = "cond_stage_model.transformer.text_model.embeddings.position_ids".to_owned();
        tensors.push(Tensor {
            name,
            shape: vec![1, POSITIONS],
            fill: Fill::Count,
            progress,
        });
        for (name, values) in schedule_buffers() {
            tensors.push(Tensor {
                name: name.to_owned(),
                shape: vec![values.len()],
                fill: Fill::F32(values),
                progress,
            });
        }
        Ok(tensors)
    }

    fn fill(&self, name: &str, shape: &[usize]) -> Fill {
        let digest = Sha256::digest(format!("{}:{name}", self.seed));
        let key = u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
        let (base, amplitude) = if name.ends_with(".bias") {
            (0.0, 0.05)
        } else if shape.len() == 1 {
            (1.0, 0.1)
        } else if name.ends_with("_embedding.weight") {
            (0.0, 0.05)
        } else {
            let fan_in: usize = shape[1..].iter().product();
            (0.0, (3.0 / fan_in as f64).sqrt() as f32) // variance 1 / fan_in
        };
        Fill::Random {
            key,
            base,
            amplitude,
        }
    }
}

/// Element `i` of the tensor with this key, in [-1, 1).
fn uniform(key: u64, i: u64) -> f32 {
    let mut z = key.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    2.0 * ((z >> 40) as f32 / (1u32 << 24) as f32) - 1.0
}

/// The buffers that CompVis' training code saves: betas `scaled_linear` from 0.00085 to 0.012 over 1000 steps.
fn schedule_buffers() -> Vec<(&'static str, Vec<f32>)> {
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let betas: Vec<f64> = (0..1000)
        .map(|i| (first + f64::from(i) / 999.0 * (last - first)).powi(2))
        .collect();
    let products = betas.iter().scan(1.0, |product, beta| {
        *product *= 1.0 - beta;
        Some(*product)
    });
    let abar: Vec<f64> = products.collect();
    let mut before = vec![1.0];
    before.extend_from_slice(&abar[..999]);
    let of_abar = |f: fn(f64) -> f64| abar.iter().map(|&a| f(a) as f32).collect::<Vec<f32>>();
    let variance: Vec<f64> = (0..1000)
        .map(|i| betas[i] * (1.0 - before[i]) / (1.0 - abar[i]))
        .collect();
    let per_step = |f: &dyn Fn(usize) -> f64| (0..1000).map(|i| f(i) as f32).collect::<Vec<f32>>();
    vec![
        ("betas", per_step(&|i| betas[i])),
        ("alphas_cumprod", of_abar(|a| a)),
        ("alphas_cumprod_prev", per_step(&|i| before[i])),
        ("sqrt_alphas_cumprod", of_abar(f64::sqrt)),
        (
            "sqrt_one_minus_alphas_cumprod",
            of_abar(|a| (1.0 - a).sqrt()),
        ),
        ("log_one_minus_alphas_cumprod", of_abar(|a| (1.0 - a).ln())),
        ("sqrt_recip_alphas_cumprod", of_abar(|a| (1.0 / a).sqrt())),
        (
            "sqrt_recipm1_alphas_cumprod",
            of_abar(|a| (1.0 / a - 1.0).sqrt()),
        ),
        ("posterior_variance", per_step(&|i| variance[i])),
        (
            "posterior_log_variance_clipped",
            per_step(&|i| variance[i].max(1e-20).ln()),
        ),
        (
            "posterior_mean_coef1",
            per_step(&|i| betas[i] * before[i].sqrt() / (1.0 - abar[i])),
        ),
        (
            "posterior_mean_coef2",
            per_step(&|i| (1.0 - before[i]) * (1.0 - betas[i]).sqrt() / (1.0 - abar[i])),
        ),
    ]
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.fill {
            Fill::Random { .. } => Dtype::F16,
            Fill::F32(_) => Dtype::F32,
            Fill::Count => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.progress.advance(self.data_len() as u64);
        let count: usize = self.shape.iter().product();
        Cow::Owned(match &self.fill {
            _ if self.progress.cancelled() => vec![0; self.data_len()],
            Fill::Random {
                key,
                base,
                amplitude,
            } => {
                let mut bytes = vec![0; 2 * count];
                let element = |i: usize| {
                    f16::from_f32(base + amplitude * uniform(*key, i as u64)).to_le_bytes()
                };
                bytes
                    .as_chunks_mut()
                    .0
                    .par_iter_mut()
                    .enumerate()
                    .with_min_len(4096)
                    .for_each(|(i, b)| *b = element(i));
                bytes
            }
            Fill::F32(values) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Fill::Count => (0..count as i64).flat_map(i64::to_le_bytes).collect(),
        })
    }

    fn data_len(&self) -> usize {
        let count: usize = self.shape.iter().product();
        count * self.dtype().bitsize() / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_pinned() {
        let synth = Synth {
            family: ModelFamily::Sd15,
            tiny: true,
            seed: 0,
        };
        let Fill::Random {
            key,
            base,
            amplitude,
        } = synth.fill("a.weight", &[4, 3])
        else {
            panic!("random expected")
        };
        // SHA-256("0:a.weight") and numpy's arithmetic.
        assert_eq!(
            key,
            u64::from_le_bytes(Sha256::digest("0:a.weight")[..8].try_into().unwrap())
        );
        assert_eq!((base, amplitude), (0.0, 1.0));
        // SplitMix64 of state 0, from the generator's reference implementation: 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
        let expected = |z: u64| 2.0 * ((z >> 40) as f32 / 16_777_216.0) - 1.0;
        assert_eq!(uniform(0, 0), expected(0xE220_A839_7B1D_CDAF));
        assert_eq!(uniform(0, 1), expected(0x6E78_9E6A_A1B9_65F4));
    }

    #[test]
    fn schedule_buffers_hold_the_published_table() {
        let buffers = schedule_buffers();
        let abar = &buffers
            .iter()
            .find(|(name, _)| *name == "alphas_cumprod")
            .unwrap()
            .1;
        assert!((abar[0] - 0.99915).abs() < 1e-6 && (abar[999] - 0.004_660_098).abs() < 1e-8);
    }
}
