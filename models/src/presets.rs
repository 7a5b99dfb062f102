//! The published models by name: table data from which synthetic checkpoints are made and structures are recognised.
//!
//! A [`Trunk`] is what two models of different widths can share; [`Preset`] adds what a checkpoint is made for.

use crate::arch::{
    AddedConditioning, ClipTextConfig, Level, MidBlock, Projection, UNetConfig, VaeConfig,
};
use crate::family::ModelFamily;

/// Structure of a UNet without its widths.
#[derive(Debug)]
pub struct Trunk {
    /// Name in manifests.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Text encoders, latent space and conditioning it goes with.
    pub family: ModelFamily,
    /// Published widths, from the finest level to the coarsest.
    widths: &'static [usize],
    /// Transformer blocks after each residual block on the way down, by level.
    down: &'static [&'static [usize]],
    /// The same on the way up, by level, the finest level first.
    up: &'static [&'static [usize]],
    mid: MidBlock,
}

/// Every trunk that has a name.
pub const TRUNKS: &[Trunk] = &[
    Trunk {
        name: "sd15",
        title: "Stable Diffusion 1.x",
        family: ModelFamily::Sd15,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        up: &[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1], &[0, 0, 0]],
        mid: MidBlock::Transformer(1),
    },
    Trunk {
        name: "bk-sdm-base",
        title: "BK-SDM base (small-sd)",
        family: ModelFamily::Sd15,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1], &[1], &[1], &[0]],
        up: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        mid: MidBlock::Transformer(1),
    },
    Trunk {
        name: "bk-sdm-small",
        title: "BK-SDM small",
        family: ModelFamily::Sd15,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1], &[1], &[1], &[0]],
        up: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        mid: MidBlock::Absent,
    },
    Trunk {
        name: "bk-sdm-tiny",
        title: "BK-SDM tiny (tiny-sd)",
        family: ModelFamily::Sd15,
        widths: &[320, 640, 1280],
        down: &[&[1], &[1], &[1]],
        up: &[&[1, 1], &[1, 1], &[1, 1]],
        mid: MidBlock::Absent,
    },
    Trunk {
        name: "sd21",
        title: "Stable Diffusion 2.x",
        family: ModelFamily::Sd21,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        up: &[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1], &[0, 0, 0]],
        mid: MidBlock::Transformer(1),
    },
    Trunk {
        name: "bk-sdm-v2-base",
        title: "BK-SDM v2 base",
        family: ModelFamily::Sd21,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1], &[1], &[1], &[0]],
        up: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        mid: MidBlock::Transformer(1),
    },
    Trunk {
        name: "bk-sdm-v2-small",
        title: "BK-SDM v2 small",
        family: ModelFamily::Sd21,
        widths: &[320, 640, 1280, 1280],
        down: &[&[1], &[1], &[1], &[0]],
        up: &[&[1, 1], &[1, 1], &[1, 1], &[0, 0]],
        mid: MidBlock::Absent,
    },
    Trunk {
        name: "bk-sdm-v2-tiny",
        title: "BK-SDM v2 tiny",
        family: ModelFamily::Sd21,
        widths: &[320, 640, 1280],
        down: &[&[1], &[1], &[1]],
        up: &[&[1, 1], &[1, 1], &[1, 1]],
        mid: MidBlock::Absent,
    },
    Trunk {
        name: "sdxl",
        title: "SDXL",
        family: ModelFamily::Sdxl,
        widths: &[320, 640, 1280],
        down: &[&[0, 0], &[2, 2], &[10, 10]],
        up: &[&[0, 0, 0], &[2, 2, 2], &[10, 10, 10]],
        mid: MidBlock::Transformer(10),
    },
    Trunk {
        name: "ssd-1b",
        title: "SSD-1B",
        family: ModelFamily::Sdxl,
        widths: &[320, 640, 1280],
        down: &[&[0, 0], &[2, 2], &[4, 4]],
        up: &[&[0, 0, 0], &[2, 1, 1], &[4, 4, 10]],
        mid: MidBlock::ResNet,
    },
    Trunk {
        name: "vega",
        title: "Segmind-Vega",
        family: ModelFamily::Sdxl,
        widths: &[320, 640, 1280],
        down: &[&[0, 0], &[1, 1], &[2, 2]],
        up: &[&[0, 0, 0], &[1, 1, 1], &[2, 2, 2]],
        mid: MidBlock::ResNet,
    },
    Trunk {
        name: "koala-700m",
        title: "KOALA-700M",
        family: ModelFamily::Sdxl,
        widths: &[320, 640, 1280],
        down: &[&[0], &[2], &[5]],
        up: &[&[0, 0], &[2, 2], &[5, 5]],
        mid: MidBlock::Absent,
    },
    Trunk {
        name: "koala-1b",
        title: "KOALA-1B",
        family: ModelFamily::Sdxl,
        widths: &[320, 640, 1280],
        down: &[&[0], &[2], &[6]],
        up: &[&[0, 0], &[2, 2], &[6, 6]],
        mid: MidBlock::Transformer(6),
    },
    Trunk {
        name: "sdxl-refiner",
        title: "SDXL refiner",
        family: ModelFamily::SdxlRefiner,
        widths: &[384, 768, 1536, 1536],
        down: &[&[0, 0], &[4, 4], &[4, 4], &[0, 0]],
        up: &[&[0, 0, 0], &[4, 4, 4], &[4, 4, 4], &[0, 0, 0]],
        mid: MidBlock::Transformer(4),
    },
];

impl Trunk {
    /// The named trunk with the structure of `cfg`, whatever its widths.
    #[must_use]
    pub fn of(cfg: &UNetConfig, family: ModelFamily) -> Option<&'static Self> {
        TRUNKS.iter().find(|trunk| {
            trunk.family == family
                && trunk.mid == cfg.mid
                && trunk.down.len() == cfg.levels.len()
                && (cfg.levels.iter().enumerate())
                    .all(|(i, level)| level.down == trunk.down[i] && level.up == trunk.up[i])
        })
    }

    fn config(&self, tiny: bool) -> UNetConfig {
        let projection = self.family.projection();
        let narrow: &[usize] = match projection {
            Projection::Convolution => &[32, 64, 96, 96],
            Projection::Linear => &[64, 128, 128, 128],
        };
        let widths = if tiny { narrow } else { self.widths };
        let level = |i: usize| Level {
            channels: widths[i],
            heads: ModelFamily::heads(projection, widths[i]),
            down: self.down[i].to_vec(),
            up: self.up[i].to_vec(),
        };
        let text = self.family.text_encoders(tiny);
        UNetConfig {
            in_channels: 4,
            out_channels: 4,
            levels: (0..self.down.len()).map(level).collect(),
            mid: self.mid,
            projection,
            cross_attention_dim: text.iter().map(|(_, cfg)| cfg.hidden_size).sum(),
            added: self.family.time_ids().map(|time_ids| AddedConditioning {
                pooled_width: text
                    .last()
                    .expect("every family has a text encoder")
                    .1
                    .hidden_size,
                time_ids,
            }),
            guidance_width: None,
        }
    }
}

/// A published kind of checkpoint.
#[derive(Debug)]
pub struct Preset {
    /// Name on command lines.
    pub name: &'static str,
    trunk: &'static str,
    /// Channels of `sample`.
    in_channels: usize,
    /// Width of the guidance scale's embedding, in latent consistency models.
    guidance_width: Option<usize>,
    /// Whether the UNet predicts velocity.
    pub velocity: bool,
    /// Whether the OpenCLIP text encoder is under SDXL's prefix, as newer training code saves it.
    pub generative_models_layout: bool,
}

const fn preset(name: &'static str, trunk: &'static str) -> Preset {
    Preset {
        name,
        trunk,
        in_channels: 4,
        guidance_width: None,
        velocity: false,
        generative_models_layout: false,
    }
}

/// Every preset, in the order of `--family`'s help.
pub const PRESETS: &[Preset] = &[
    preset("sd15", "sd15"),
    Preset {
        in_channels: 9,
        ..preset("sd15-inpaint", "sd15")
    },
    Preset {
        in_channels: 8,
        ..preset("instruct-pix2pix", "sd15")
    },
    Preset {
        guidance_width: Some(256),
        ..preset("sd15-lcm", "sd15")
    },
    preset("bk-sdm-base", "bk-sdm-base"),
    preset("bk-sdm-small", "bk-sdm-small"),
    preset("bk-sdm-tiny", "bk-sdm-tiny"),
    Preset {
        velocity: true,
        ..preset("sd21", "sd21")
    },
    preset("sd21-base", "sd21"),
    Preset {
        in_channels: 9,
        ..preset("sd21-inpaint", "sd21")
    },
    Preset {
        generative_models_layout: true,
        ..preset("sd-turbo", "sd21")
    },
    preset("sdxl", "sdxl"),
    Preset {
        in_channels: 9,
        ..preset("sdxl-inpaint", "sdxl")
    },
    Preset {
        in_channels: 8,
        ..preset("sdxl-pix2pix", "sdxl")
    },
    Preset {
        guidance_width: Some(256),
        ..preset("sdxl-lcm", "sdxl")
    },
    // The structure of their parent; only their training differs.
    preset("sdxl-turbo", "sdxl"),
    preset("sdxl-lightning", "sdxl"),
    preset("sdxl-refiner", "sdxl-refiner"),
    preset("ssd-1b", "ssd-1b"),
    preset("vega", "vega"),
    preset("koala-700m", "koala-700m"),
    preset("koala-1b", "koala-1b"),
];

impl Preset {
    /// The preset called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    fn trunk(&self) -> &'static Trunk {
        TRUNKS
            .iter()
            .find(|trunk| trunk.name == self.trunk)
            .expect("presets name trunks of the table")
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> ModelFamily {
        self.trunk().family
    }

    /// Its UNet; with `tiny`, a narrow one of the same structure.
    #[must_use]
    pub fn unet(&self, tiny: bool) -> UNetConfig {
        UNetConfig {
            in_channels: self.in_channels,
            guidance_width: self.guidance_width,
            ..self.trunk().config(tiny)
        }
    }

    /// Its autoencoder.
    #[must_use]
    pub fn vae(&self, tiny: bool) -> VaeConfig {
        if tiny {
            VaeConfig::tiny()
        } else {
            VaeConfig::sd()
        }
    }

    /// Side in pixels of the pictures it was trained on.
    #[must_use]
    pub fn resolution(&self) -> usize {
        self.family().resolution(self.velocity)
    }
}

/// The encoders whose structure families share.
pub(crate) fn encoder(full: ClipTextConfig, tiny: bool, width: usize) -> ClipTextConfig {
    if tiny { full.narrowed(width, 2) } else { full }
}
