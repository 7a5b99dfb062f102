//! Reads the networks' configurations from the shapes of their tensors.

use std::collections::BTreeMap;

use crate::arch::{
    Activation, AddedConditioning, ClipTextConfig, ControlNetConfig, Level, MidBlock, PooledAt,
    Projection, TIME_ID_WIDTH, TaesdConfig, UNetConfig, VaeConfig,
};
use crate::family::ModelFamily;

/// Shapes of a component's tensors, by canonical name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The tensors do not make up a network of a known structure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StructureError {
    /// A tensor from which the structure is read is absent.
    #[error("{component}: tensor `{name}` is missing, from which {tells} is read")]
    Missing {
        /// Which network.
        component: &'static str,
        /// Canonical name.
        name: String,
        /// What it would tell.
        tells: &'static str,
    },
    /// The ways down and up have numbers of layers that do not go together.
    #[error(
        "{component}: level {level} has {down} residual blocks on the way down and {up} on the way up; expected the same number on every level, and one more on the way up"
    )]
    Layers {
        /// Which network.
        component: &'static str,
        /// Counted from the finest.
        level: usize,
        /// Residual blocks on the way down.
        down: usize,
        /// Residual blocks on the way up.
        up: usize,
    },
    /// A tensor has a rank or size that no known structure has.
    #[error("{component}: tensor `{name}` has shape {found:?}; expected {expected}")]
    Shape {
        /// Which network.
        component: &'static str,
        /// Canonical name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What a known structure would have.
        expected: String,
    },
}

/// What a number of input channels is for that no supported model has.
#[must_use]
pub fn purpose_of_input_channels(channels: usize) -> &'static str {
    match channels {
        5 => "a depth-conditioned model",
        7 => "an upscaler",
        _ => "a model of unknown purpose",
    }
}

/// Reads a UNet's widths and depths from its tensors.
///
/// # Errors
/// A structure that no Stable Diffusion UNet has.
pub fn unet_config(shapes: &Shapes) -> Result<UNetConfig, StructureError> {
    let reader = Reader {
        component: "UNet",
        shapes,
    };
    let conv_out = reader.conv("conv_out.weight", "the number of output channels")?;
    let mut cfg = way_down(&reader)?;
    cfg.out_channels = conv_out[0];
    let levels = cfg.levels.len();
    for (i, level) in cfg.levels.iter_mut().enumerate() {
        level.up = reader.depths(&format!("up_blocks.{}", levels - 1 - i));
        if level.up.len() != level.down.len() + 1 {
            return Err(StructureError::Layers {
                component: reader.component,
                level: i,
                down: level.down.len(),
                up: level.up.len(),
            });
        }
    }
    Ok(cfg)
}

/// Reads a ControlNet's widths and depths from its tensors.
///
/// # Errors
/// A structure that no ControlNet has.
pub fn controlnet_config(shapes: &Shapes) -> Result<ControlNetConfig, StructureError> {
    let reader = Reader {
        component: "ControlNet",
        shapes,
    };
    let hint = "controlnet_cond_embedding.conv_in.weight";
    let hint = reader.conv(hint, "the hint's channels")?;
    let mut hint_widths = vec![hint[0]];
    let block = |i: usize| format!("controlnet_cond_embedding.blocks.{i}.weight");
    for i in (1..reader.count(block)).step_by(2) {
        hint_widths.push(reader.conv(&block(i), "the hint's widths")?[0]);
    }
    Ok(ControlNetConfig {
        trunk: way_down(&reader)?,
        hint_channels: hint[1],
        hint_widths,
    })
}

/// What a UNet and a ControlNet have in common; the levels' ways up are left empty.
fn way_down(reader: &Reader<'_>) -> Result<UNetConfig, StructureError> {
    let conv_in = reader.conv("conv_in.weight", "the number of input channels")?;
    let level_count = reader.count(|i| format!("down_blocks.{i}.resnets.0.conv2.weight"));
    let attention = reader.first_attention()?;
    let kind = "the kind of transformer";
    let projection = match reader
        .get(&format!("{attention}.proj_in.weight"), kind)?
        .len()
    {
        4 => Projection::Convolution,
        _ => Projection::Linear,
    };
    let mut levels = Vec::new();
    for i in 0..level_count {
        let name = format!("down_blocks.{i}.resnets.0.conv2.weight");
        let channels = reader.conv(&name, "a level's width")?[0];
        levels.push(Level {
            channels,
            heads: ModelFamily::heads(projection, channels),
            down: reader.depths(&format!("down_blocks.{i}")),
            up: Vec::new(),
        });
    }
    let layers = levels.first().map_or(0, |level| level.down.len());
    if let Some(i) = levels.iter().position(|level| level.down.len() != layers) {
        return Err(StructureError::Layers {
            component: reader.component,
            level: i,
            down: levels[i].down.len(),
            up: layers + 1,
        });
    }
    if levels.is_empty() {
        let first = "down_blocks.0.resnets.0.conv2.weight";
        return Err(reader.missing(first, "the number of levels"));
    }
    let text = format!("{attention}.transformer_blocks.0.attn2.to_k.weight");
    let guidance = "time_embedding.cond_proj.weight";
    let guidance_width = match reader.shapes.contains_key(guidance) {
        true => Some(reader.rank(guidance, 2, "the width of the guidance embedding")?[1]),
        false => None,
    };
    Ok(UNetConfig {
        in_channels: conv_in[1],
        out_channels: 0,
        mid: reader.mid(),
        projection,
        cross_attention_dim: reader.rank(&text, 2, "the width of the text embeddings")?[1],
        added: added_conditioning(reader, &levels)?,
        guidance_width,
        levels,
    })
}

/// How wide the pooled text is follows from how many numbers are embedded beside it. The refiner takes five: it is the
/// one network with added conditioning whose coarsest level does not attend.
fn added_conditioning(
    reader: &Reader<'_>,
    levels: &[Level],
) -> Result<Option<AddedConditioning>, StructureError> {
    let name = "add_embedding.linear_1.weight";
    if !reader.shapes.contains_key(name) {
        return Ok(None);
    }
    let shape = reader.rank(name, 2, "the width of the added conditioning")?;
    let coarsest = levels.last().expect("there is a level");
    let time_ids = if coarsest.down.iter().all(|&depth| depth == 0) {
        5
    } else {
        6
    };
    match shape[1].checked_sub(time_ids * TIME_ID_WIDTH) {
        Some(pooled_width) if pooled_width > 0 => Ok(Some(AddedConditioning {
            pooled_width,
            time_ids,
        })),
        _ => Err(StructureError::Shape {
            component: reader.component,
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: format!("more than {} columns", time_ids * TIME_ID_WIDTH),
        }),
    }
}

/// Reads a tiny autoencoder's widths from the half that is there.
///
/// # Errors
/// Neither half is that of a tiny autoencoder.
pub fn taesd_config(shapes: &Shapes) -> Result<TaesdConfig, StructureError> {
    let reader = Reader {
        component: "TAESD",
        shapes,
    };
    let (first, axis) = if shapes.contains_key("decoder.layers.0.weight") {
        ("decoder.layers.0.weight", [0, 1])
    } else {
        ("encoder.layers.14.weight", [1, 0])
    };
    let shape = reader.conv(first, "the widths")?;
    Ok(TaesdConfig {
        channels: shape[axis[0]],
        latent_channels: shape[axis[1]],
    })
}

/// Reads an autoencoder's widths from its decoder's tensors.
///
/// # Errors
/// A structure other than that of the KL autoencoder.
pub fn vae_config(shapes: &Shapes) -> Result<VaeConfig, StructureError> {
    let reader = Reader {
        component: "VAE",
        shapes,
    };
    let level_count = reader.count(|i| format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"));
    let layers = reader.count(|j| format!("decoder.up_blocks.0.resnets.{j}.conv2.weight"));
    let mut channels = Vec::new();
    for i in (0..level_count).rev() {
        channels.push(
            reader.conv(
                &format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"),
                "a level's width",
            )?[0],
        );
    }
    if channels.is_empty() || layers < 2 {
        return Err(reader.missing(
            "decoder.up_blocks.0.resnets.1.conv2.weight",
            "the number of levels and layers",
        ));
    }
    let latent = reader.conv("decoder.conv_in.weight", "the number of latent channels")?;
    Ok(VaeConfig {
        channels,
        layers_per_block: layers - 1,
        latent_channels: latent[1],
    })
}

/// Reads a CLIP text encoder's widths and depth from its tensors. Heads are 64 wide in every CLIP; the activation is the
/// one thing that shapes do not show.
///
/// # Errors
/// A structure other than that of CLIP.
pub fn clip_text_config(
    shapes: &Shapes,
    activation: Activation,
) -> Result<ClipTextConfig, StructureError> {
    let reader = Reader {
        component: "text encoder",
        shapes,
    };
    let tokens = reader.rank(
        "text_model.embeddings.token_embedding.weight",
        2,
        "the vocabulary's size",
    )?;
    let positions = reader.rank(
        "text_model.embeddings.position_embedding.weight",
        2,
        "the longest sequence",
    )?;
    let layer = |i| format!("text_model.encoder.layers.{i}.mlp.fc1.weight");
    let layers = reader.count(layer);
    let feed_forward = reader.rank(&layer(0), 2, "the feed-forward width")?;
    if tokens[1] % 64 != 0 {
        return Err(StructureError::Shape {
            component: reader.component,
            name: "text_model.embeddings.token_embedding.weight".into(),
            found: tokens.to_vec(),
            expected: "a width that is a multiple of 64, the width of a head".into(),
        });
    }
    Ok(ClipTextConfig {
        vocab_size: tokens[0],
        positions: positions[0],
        hidden_size: tokens[1],
        intermediate_size: feed_forward[0],
        layers,
        heads: tokens[1] / 64,
        activation,
        pooled_at: PooledAt::LargestId,
        projection: match shapes.contains_key("text_projection.weight") {
            true => Some(reader.rank("text_projection.weight", 2, "the pooled width")?[0]),
            false => None,
        },
    })
}

struct Reader<'a> {
    component: &'static str,
    shapes: &'a Shapes,
}

impl<'a> Reader<'a> {
    /// How many consecutive indices, from 0, have a tensor.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..self.shapes.len())
            .take_while(|&i| self.shapes.contains_key(&name(i)))
            .count()
    }

    /// Transformer blocks after each residual block of `block`.
    fn depths(&self, block: &str) -> Vec<usize> {
        let resnets = self.count(|j| format!("{block}.resnets.{j}.conv2.weight"));
        let depth = |j| {
            self.count(|k| {
                format!("{block}.attentions.{j}.transformer_blocks.{k}.attn2.to_k.weight")
            })
        };
        (0..resnets).map(depth).collect()
    }

    fn mid(&self) -> MidBlock {
        let block = |k| format!("mid_block.attentions.0.transformer_blocks.{k}.attn2.to_k.weight");
        match self.count(block) {
            0 if self.shapes.contains_key("mid_block.resnets.0.conv2.weight") => MidBlock::ResNet,
            0 => MidBlock::Absent,
            depth => MidBlock::Transformer(depth),
        }
    }

    /// The first transformer on the way down.
    fn first_attention(&self) -> Result<String, StructureError> {
        let name = self.shapes.keys().find_map(|name| {
            let module = name.strip_suffix(".transformer_blocks.0.attn2.to_k.weight")?;
            Some(module.to_owned())
        });
        let any = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
        name.ok_or_else(|| self.missing(any, "the width of the text embeddings"))
    }

    fn get(&self, name: &str, tells: &'static str) -> Result<&'a [usize], StructureError> {
        self.shapes
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| self.missing(name, tells))
    }

    fn rank(
        &self,
        name: &str,
        rank: usize,
        tells: &'static str,
    ) -> Result<&'a [usize], StructureError> {
        let shape = self.get(name, tells)?;
        if shape.len() == rank && shape.iter().all(|&n| n > 0) {
            return Ok(shape);
        }
        let expected = format!("{rank} dimensions, none of them 0");
        Err(StructureError::Shape {
            component: self.component,
            name: name.into(),
            found: shape.to_vec(),
            expected,
        })
    }

    fn conv(&self, name: &str, tells: &'static str) -> Result<&'a [usize], StructureError> {
        self.rank(name, 4, tells)
    }

    fn missing(&self, name: &str, tells: &'static str) -> StructureError {
        StructureError::Missing {
            component: self.component,
            name: name.into(),
            tells,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{clip_text_encoder, controlnet, unet, vae_decoder, vae_encoder};
    use crate::graph::Graph;
    use crate::presets::{PRESETS, Preset, Trunk};

    fn shapes(graphs: &[Graph]) -> Shapes {
        graphs
            .iter()
            .flat_map(|g| &g.params)
            .map(|p| (p.name.clone(), p.shape.clone()))
            .collect()
    }

    #[test]
    fn configurations_are_read_back_from_the_tensors_they_declare() {
        for preset in PRESETS {
            for tiny in [false, true] {
                let cfg = preset.unet(tiny);
                let found = unet_config(&shapes(&[unet(&cfg).unwrap()])).unwrap();
                assert_eq!(found, cfg, "{}", preset.name);
                assert_eq!(ModelFamily::of(&found), preset.family());
                assert!(Trunk::of(&found, preset.family()).is_some());
                for (_, cfg) in preset.family().text_encoders(tiny) {
                    let shapes = shapes(&[clip_text_encoder(&cfg).unwrap()]);
                    assert_eq!(clip_text_config(&shapes, cfg.activation).unwrap(), cfg);
                }
            }
        }
        for cfg in [VaeConfig::sd(), VaeConfig::tiny()] {
            let graphs = [vae_encoder(&cfg).unwrap(), vae_decoder(&cfg).unwrap()];
            assert_eq!(vae_config(&shapes(&graphs)).unwrap(), cfg);
        }
    }

    #[test]
    fn a_controlnet_is_read_back_but_for_the_way_up() {
        for name in ["sd15", "sdxl"] {
            let cfg = ControlNetConfig::of(Preset::named(name).unwrap().unet(true));
            let mut found = controlnet_config(&shapes(&[controlnet(&cfg).unwrap()])).unwrap();
            for (found, known) in found.trunk.levels.iter_mut().zip(&cfg.trunk.levels) {
                found.up.clone_from(&known.up);
            }
            found.trunk.out_channels = cfg.trunk.out_channels;
            assert_eq!(found, cfg);
        }
    }

    #[test]
    fn an_uneven_network_is_refused_with_its_numbers() {
        let cfg = Preset::named("sd15").unwrap().unet(true);
        let mut shapes = shapes(&[unet(&cfg).unwrap()]);
        shapes.retain(|name, _| !name.starts_with("up_blocks.0.resnets.2."));
        let error = unet_config(&shapes).unwrap_err().to_string();
        assert!(error.contains("level 3 has 2"), "{error}");
    }
}
