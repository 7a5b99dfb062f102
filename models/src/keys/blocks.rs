//! The blocks that block-weighted merging (bbc-mc's "MBW", hako-mikan's `SuperMerger`) gives values to: `BASE`, `IN00`,
//! `IN01`, .., `M00`, `OUT00`, .. in the numbering of single files.

use std::fmt;

use super::Component;
use super::ldm::split_index;
use crate::arch::UNetConfig;

/// Place of a weight in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// Everything that is not the UNet.
    Base,
    /// On the way down.
    In(usize),
    /// In the middle.
    Mid,
    /// On the way up.
    Out(usize),
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("BASE"),
            Self::In(n) => write!(f, "IN{n:02}"),
            Self::Mid => f.write_str("M00"),
            Self::Out(n) => write!(f, "OUT{n:02}"),
        }
    }
}

/// The blocks of a UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Blocks that a level takes.
    stride: usize,
    /// Blocks on the way down, and as many on the way up.
    count: usize,
}

impl Blocks {
    /// Blocks of Stable Diffusion 1 and 2 in each direction.
    pub const SD: usize = 12;

    /// The blocks of a UNet: 12 in each direction in Stable Diffusion 1 and 2, 9 in SDXL.
    #[must_use]
    pub fn of(cfg: &UNetConfig) -> Self {
        Self {
            stride: cfg.layers_per_block() + 1,
            count: cfg.skips(),
        }
    }

    /// Blocks in each direction.
    #[must_use]
    pub fn count(self) -> usize {
        self.count
    }

    /// Every block, in the order of lists of values.
    pub fn all(self) -> impl Iterator<Item = Block> {
        [Block::Base]
            .into_iter()
            .chain((0..self.count).map(Block::In))
            .chain([Block::Mid])
            .chain((0..self.count).map(Block::Out))
    }

    /// The block of a weight. Time and added embeddings belong to the first, the output layers to the last, as published
    /// recipes have it.
    #[must_use]
    pub fn block(self, component: Component, name: &str) -> Block {
        if component != Component::UNet {
            return Block::Base;
        }
        if name.starts_with("mid_block.") {
            return Block::Mid;
        }
        if let Some((level, layer)) = name.strip_prefix("down_blocks.").and_then(position) {
            return Block::In(match layer {
                Some(layer) => 1 + level * self.stride + layer,
                None => (level + 1) * self.stride,
            });
        }
        if let Some((level, layer)) = name.strip_prefix("up_blocks.").and_then(position) {
            return Block::Out(level * self.stride + layer.unwrap_or(self.stride - 1));
        }
        if name.starts_with("conv_norm_out.") || name.starts_with("conv_out.") {
            return Block::Out(self.count - 1);
        }
        Block::In(0)
    }
}

/// Level and layer of a name within the blocks; up- and downsamplers have no layer.
fn position(rest: &str) -> Option<(usize, Option<usize>)> {
    let (level, rest) = split_index(rest)?;
    let layer = rest
        .strip_prefix("resnets.")
        .or_else(|| rest.strip_prefix("attentions."));
    match layer {
        Some(rest) => Some((level, Some(split_index(rest)?.0))),
        None => Some((level, None)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::arch::unet;
    use crate::keys::layout::Layout;
    use crate::presets::Preset;

    /// How many tensors of a UNet are in each block, in the order of lists.
    fn counts(name: &str) -> Vec<usize> {
        let cfg = Preset::named(name).unwrap().unet(false);
        let blocks = Blocks::of(&cfg);
        let mut counts: BTreeMap<Block, usize> = BTreeMap::new();
        for param in unet(&cfg).unwrap().params {
            let block = blocks.block(Component::UNet, &param.name);
            *counts.entry(block).or_default() += 1;
        }
        let all: Vec<Block> = blocks.all().skip(1).collect();
        assert!(counts.keys().all(|block| all.contains(block)));
        all.iter().map(|block| counts[block]).collect()
    }

    #[test]
    fn blocks_have_their_published_numbers_of_tensors() {
        let sd1 = [
            6, 36, 36, 2, 38, 36, 2, 38, 36, 2, 10, 10, 46, 12, 12, 14, 38, 38, 40, 38, 38, 40, 38,
            38, 42,
        ];
        assert_eq!(counts("sd15"), sd1);
        assert_eq!(counts("sd21"), sd1);
        let sdxl = [
            10, 10, 10, 2, 58, 56, 2, 218, 216, 226, 218, 218, 220, 58, 58, 60, 12, 12, 16,
        ];
        assert_eq!(counts("sdxl"), sdxl);
    }

    /// The block of every key, read off its name in a single file.
    #[test]
    fn every_key_is_in_the_block_of_its_number() {
        for name in [
            "sd15",
            "sd21",
            "sdxl",
            "sdxl-refiner",
            "ssd-1b",
            "bk-sdm-tiny",
        ] {
            let preset = Preset::named(name).unwrap();
            let cfg = preset.unet(false);
            let (blocks, family) = (Blocks::of(&cfg), preset.family());
            let layout = Layout::single_file(family, &cfg, 4, false);
            for param in unet(&cfg).unwrap().params {
                let (key, _) = layout.key(Component::UNet, &param.name).unwrap();
                let key = key.strip_prefix("model.diffusion_model.").unwrap();
                let number = |prefix: &str| {
                    let rest = key.strip_prefix(prefix)?;
                    rest.split('.').next()?.parse::<usize>().ok()
                };
                let expected = match (number("input_blocks."), number("output_blocks.")) {
                    (Some(n), _) => Block::In(n),
                    (_, Some(n)) => Block::Out(n),
                    _ if key.starts_with("middle_block.") => Block::Mid,
                    _ if key.starts_with("out.") => Block::Out(blocks.count() - 1),
                    _ => Block::In(0),
                };
                assert_eq!(
                    blocks.block(Component::UNet, &param.name),
                    expected,
                    "{key}"
                );
            }
        }
    }
}
