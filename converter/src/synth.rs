//! Synthetic checkpoints: random weights in a family's exact file layout, so that anybody can try and time a family
//! without owning its weights.
//!
//! Each tensor depends on its name and the seed alone. With `u` the number `i` in [0, 1) of its name (`random.rs`), the
//! element `i` is `base + amplitude * (2 u - 1)` in single precision, then rounded to half precision. Base and amplitude are 0
//! and 0.05 for biases and embeddings, 1 and 0.1 for other vectors, otherwise 0 and the root of 3 over the product of all
//! dimensions but the first. One bias of models that predict velocity has the amplitude 0.2, by which they are known.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};
use sd_models::arch::{
    ControlNetConfig, TaesdConfig, clip_text_encoder, controlnet, taesd_decoder, taesd_encoder,
    unet, vae_decoder, vae_encoder,
};
use sd_models::family::ModelFamily;
use sd_models::graph::{Graph, GraphError};
use sd_models::keys::layout::Layout;
use sd_models::keys::{Component, Part};
use sd_models::presets::{PRESETS, Preset};

use crate::ConvertError;
use crate::output::write_file;
use crate::progress::Progress;
use crate::random;

/// Rows of the causal mask: what `position_ids` count.
const POSITIONS: usize = 77;

/// What kind of file.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole checkpoint.
    Checkpoint(&'static Preset),
    /// A ControlNet for the preset's UNet.
    ControlNet(&'static Preset),
    /// A ControlNet as low-rank changes to the preset's UNet.
    ControlLora(&'static Preset),
    /// Both halves of a tiny autoencoder.
    Taesd,
}

/// Presets that there are ControlNets for.
const CONTROLLED: [&str; 3] = ["sd15", "sd21", "sdxl"];

impl Kind {
    /// The kind called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == "taesd" {
            return Some(Self::Taesd);
        }
        let base = |prefix: &str| {
            let base = name.strip_prefix(prefix)?;
            Preset::named(base).filter(|_| CONTROLLED.contains(&base))
        };
        base("controlnet-")
            .map(Self::ControlNet)
            .or_else(|| base("control-lora-").map(Self::ControlLora))
            .or_else(|| Preset::named(name).map(Self::Checkpoint))
    }

    /// Every name.
    #[must_use]
    pub fn names() -> Vec<String> {
        let presets = PRESETS.iter().map(|preset| preset.name.to_owned());
        let controls = CONTROLLED.iter().map(|base| format!("controlnet-{base}"));
        presets
            .chain(controls)
            .chain(["taesd".to_owned()])
            .collect()
    }
}

/// A synthetic checkpoint to be.
#[derive(Clone, Copy, Debug)]
pub struct Synth {
    /// Whose layout.
    pub kind: Kind,
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
        let side = match self.kind {
            _ if self.tiny => 128,
            Kind::Checkpoint(preset) | Kind::ControlNet(preset) | Kind::ControlLora(preset) => {
                preset.resolution()
            }
            Kind::Taesd => 512,
        };
        let resolution = format!("{side}x{side}");
        let metadata = HashMap::from([("modelspec.resolution".to_owned(), resolution)]);
        write_file(path, force, progress, |file| {
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
        let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut order = Vec::new();
        let (layout, graphs) = self.graphs()?;
        for (component, graph) in graphs {
            for param in graph.params {
                let (name, part) = layout
                    .key(component, &param.name)
                    .expect("every canonical name has a single-file key");
                let mut shape = param.shape;
                match part {
                    Part::Whole => {}
                    Part::Third(_) => shape[0] *= 3,
                    Part::Transposed => shape.reverse(),
                }
                if component == Component::Vae && name.contains(".attn_1.") && shape.len() == 2 {
                    shape.extend([1, 1]); // 1x1 convolutions in this layout
                }
                for (name, shape) in self.stored(name, shape) {
                    if tensors.insert(name.clone(), shape).is_none() {
                        order.push(name);
                    }
                }
            }
        }
        let named = |name: String| {
            let shape = tensors[&name].clone();
            let fill = self.fill(&name, &shape);
            Tensor {
                name,
                shape,
                fill,
                progress,
            }
        };
        let mut tensors: Vec<Tensor<'a>> = order.into_iter().map(named).collect();
        for (name, shape, fill) in self.buffers() {
            tensors.push(Tensor {
                name,
                shape,
                fill,
                progress,
            });
        }
        Ok(tensors)
    }

    /// The networks, and how a file names their tensors.
    fn graphs(&self) -> Result<(Layout, Vec<(Component, Graph)>), GraphError> {
        match self.kind {
            Kind::Checkpoint(preset) => self.checkpoint(preset),
            Kind::ControlNet(preset) | Kind::ControlLora(preset) => {
                let trunk = preset.unet(self.tiny);
                let layout = Layout::ldm_controlnet(&trunk);
                let graph = controlnet(&ControlNetConfig::of(trunk))?;
                Ok((layout, vec![(Component::ControlNet, graph)]))
            }
            Kind::Taesd => {
                let cfg = TaesdConfig {
                    channels: if self.tiny { 8 } else { 64 },
                    latent_channels: 4,
                };
                let graphs = [taesd_encoder(cfg)?, taesd_decoder(cfg)?];
                let names = graphs.iter().flat_map(|g| &g.params);
                let names = names.map(|p| p.name.as_str()).collect();
                let layout = Layout::of_component(Component::Taesd, &names);
                let graphs = graphs.into_iter().map(|g| (Component::Taesd, g));
                Ok((layout, graphs.collect()))
            }
        }
    }

    fn checkpoint(&self, preset: &Preset) -> Result<(Layout, Vec<(Component, Graph)>), GraphError> {
        let (unet_cfg, vae_cfg) = (preset.unet(self.tiny), preset.vae(self.tiny));
        let layout = Layout::single_file(
            preset.family(),
            &unet_cfg,
            vae_cfg.channels.len(),
            preset.generative_models_layout,
        );
        let mut graphs = vec![
            (Component::UNet, unet(&unet_cfg)?),
            (Component::Vae, vae_encoder(&vae_cfg)?),
            (Component::Vae, vae_decoder(&vae_cfg)?),
        ];
        for (component, mut cfg) in preset.family().text_encoders(self.tiny) {
            // SD 2's files hold a projection that goes unused, and a 24th layer, which a narrow model does not get to.
            if preset.family() == ModelFamily::Sd21 {
                cfg.layers += usize::from(!self.tiny);
                cfg.projection = Some(cfg.hidden_size);
            }
            graphs.push((component, clip_text_encoder(&cfg)?));
        }
        Ok((layout, graphs))
    }

    /// The tensors that hold a weight: two in a Control-LoRA, for the layers that it shares with the UNet.
    fn stored(&self, name: String, shape: Vec<usize>) -> Vec<(String, Vec<usize>)> {
        const OWN: [&str; 3] = ["input_hint_block.", "zero_convs.", "middle_block_out."];
        if !matches!(self.kind, Kind::ControlLora(_)) {
            return vec![(name, shape)];
        }
        let bare = name.strip_prefix("control_model.").unwrap_or(&name);
        let own = OWN.iter().any(|prefix| bare.starts_with(prefix));
        let module = match bare.strip_suffix(".weight") {
            Some(module) if !own && shape.len() > 1 => module,
            _ => return vec![(bare.to_owned(), shape)],
        };
        let rank = if self.tiny { 4 } else { 128 };
        let mut up = vec![shape[0], rank];
        up.extend(vec![1; shape.len() - 2]);
        let mut down = shape;
        down[0] = rank;
        vec![
            (format!("{module}.up"), up),
            (format!("{module}.down"), down),
        ]
    }

    /// Tensors that are no weights.
    fn buffers(&self) -> Vec<(String, Vec<usize>, Fill)> {
        let preset = match self.kind {
            Kind::Checkpoint(preset) => preset,
            Kind::ControlLora(_) => {
                let marker = "lora_controlnet".to_owned();
                return vec![(marker, vec![1], Fill::F32(vec![1.0]))];
            }
            Kind::ControlNet(_) | Kind::Taesd => return Vec::new(),
        };
        let family = preset.family();
        let prefix = match family {
            ModelFamily::Sd15 => "cond_stage_model.transformer.",
            ModelFamily::Sdxl => "conditioner.embedders.0.transformer.",
            _ => "",
        };
        let mut buffers = Vec::new();
        if !prefix.is_empty() {
            let name = format!("{prefix}text_model.embeddings.position_ids");
            buffers.push((name, vec![1, POSITIONS], Fill::Count));
        }
        let open_clip = match family {
            ModelFamily::Sd15 => None,
            ModelFamily::Sd21 if !preset.generative_models_layout => Some("cond_stage_model"),
            ModelFamily::Sdxl => Some("conditioner.embedders.1"),
            _ => Some("conditioner.embedders.0"),
        };
        if let Some(prefix) = open_clip {
            let name = format!("{prefix}.model.logit_scale");
            buffers.push((name, vec![], Fill::F32(vec![100f32.ln()])));
        }
        let saved_by_compvis = matches!(family, ModelFamily::Sd15 | ModelFamily::Sd21);
        if saved_by_compvis && !preset.generative_models_layout {
            for (name, values) in schedule_buffers() {
                buffers.push((name.to_owned(), vec![values.len()], Fill::F32(values)));
            }
        }
        buffers
    }

    fn fill(&self, name: &str, shape: &[usize]) -> Fill {
        let key = random::key(self.seed, name);
        let (base, amplitude) = if self.is_telling(name) {
            (0.0, 0.2)
        } else if name.ends_with("bias") {
            (0.0, 0.05)
        } else if shape.len() == 1 {
            (1.0, 0.1)
        } else if name.ends_with("_embedding.weight") || name.ends_with("positional_embedding") {
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

    /// The bias whose spread tells a Stable Diffusion 2 model that predicts velocity from one that predicts noise.
    fn is_telling(&self, name: &str) -> bool {
        const TELLING: &str =
            "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
        name == TELLING && matches!(self.kind, Kind::Checkpoint(preset) if preset.velocity)
    }
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
                    let v = 2.0 * random::unit(*key, i as u64) - 1.0;
                    f16::from_f32(base + amplitude * v).to_le_bytes()
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
