//! Which family an adapter is made for: the one whose layers have its modules' names and shapes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;

use sd_models::arch::{UNetConfig, clip_text_encoder, unet};
use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::presets::Preset;

use super::group::{Group, Parts};
use super::names::{Names, Place};
use super::{Target, load, training};
use crate::checkpoint::TensorSource;
use crate::model::{Model, Name};

/// Presets that stand for their families.
const PRESETS: [&str; 4] = ["sd15", "sd21", "sdxl", "sdxl-refiner"];

/// How many modules are tried.
const TRIED: usize = 16;

/// The layers of a published model.
pub(super) struct Known {
    pub(super) family: ModelFamily,
    pub(super) unet: UNetConfig,
    pub(super) names: Names,
    pub(super) shapes: BTreeMap<Name, Vec<usize>>,
}

/// The published models' layers.
pub(super) fn known() -> &'static [Known] {
    static KNOWN: OnceLock<Vec<Known>> = OnceLock::new();
    KNOWN.get_or_init(|| PRESETS.iter().map(|name| Known::of(name)).collect())
}

impl Known {
    fn of(name: &str) -> Self {
        let preset = Preset::named(name).expect("a preset of the table");
        let cfg = preset.unet(false);
        let mut shapes = BTreeMap::new();
        let graph = unet(&cfg).expect("published models have graphs");
        let params = graph.params.into_iter();
        shapes.extend(params.map(|p| ((Component::UNet, p.name), p.shape)));
        for (component, cfg) in preset.family().text_encoders(false) {
            let graph = clip_text_encoder(&cfg).expect("published models have graphs");
            let params = graph.params.into_iter();
            shapes.extend(params.map(|p| ((component, p.name), p.shape)));
        }
        Self {
            family: preset.family(),
            names: Names::of(shapes.keys(), Some(&cfg)),
            unet: cfg,
            shapes,
        }
    }

    /// Shape of the weight that a module is for.
    fn shape(&self, module: &str) -> Option<Vec<usize>> {
        match self.names.place(module)? {
            Place::Layer(component, path) => self
                .shapes
                .get(&(*component, format!("{path}.weight")))
                .cloned(),
            Place::Fused(component, [path, ..]) => {
                let mut shape = self
                    .shapes
                    .get(&(*component, format!("{path}.weight")))?
                    .clone();
                shape[0] *= 3;
                Some(shape)
            }
            Place::Unused => None,
        }
    }

    /// Whether a module has the name and the shape of one of the layers.
    fn takes(&self, parts: &Parts<'_>) -> bool {
        let shape = self.shape(&parts.group.module);
        shape.is_some_and(|shape| {
            let target = Target {
                shape: &shape,
                has_bias: true,
            };
            load(parts, &target).is_ok()
        })
    }
}

/// The families that have every module that was tried, if any has, and else what the metadata says.
pub(super) fn made_for(groups: &[Group], source: &dyn TensorSource) -> Option<String> {
    // Cross-attention tells families apart best, then text encoders.
    let rank = |group: &&Group| {
        let flat = group.module.replace('.', "_");
        match () {
            () if flat.contains("attn2_to_k") || flat.contains("attn2_to_v") => 0,
            () if flat.contains("text_model") || flat.contains("resblocks") => 1,
            () => 2,
        }
    };
    let mut tried: Vec<&Group> = groups.iter().collect();
    tried.sort_by_key(rank);
    let (cross, others): (Vec<&Group>, Vec<&Group>) = tried.into_iter().partition(|g| rank(g) == 0);
    let half = TRIED / 2;
    let tried: Vec<&Group> = cross
        .into_iter()
        .take(half)
        .chain(others.into_iter().take(half))
        .collect();
    let takes_all = |known: &&Known| {
        let mut parts = tried.iter().map(|group| Parts { group, source });
        !tried.is_empty() && parts.all(|parts| known.takes(&parts))
    };
    let families: Vec<String> = known()
        .iter()
        .filter(takes_all)
        .map(|k| k.family.to_string())
        .collect();
    match &families[..] {
        [one] => Some(one.clone()),
        several => {
            let told = training::base(source.metadata()).map(str::to_owned);
            let any = (!several.is_empty()).then(|| several.join(" or "));
            told.or(any)
        }
    }
}

/// What an adapter is made for, and how it differs from a model, for messages: punctuation and text, or nothing.
pub(super) fn guess(
    groups: &[Group],
    source: &dyn TensorSource,
    base: &dyn Model,
) -> (Option<String>, String) {
    let made_for = made_for(groups, source);
    let family = base
        .unet_config()
        .ok()
        .map(|cfg| ModelFamily::of(&cfg).to_string());
    let mut text = match (&made_for, &family) {
        (Some(lora), Some(model)) if lora != model => {
            format!("; it is made for {lora}, this is {model}")
        }
        _ => String::new(),
    };
    if let (Some(lora), Some(model)) = (text_width(groups, source), model_width(base))
        && lora != model
    {
        let _ = write!(
            text,
            "; its cross-attention takes text of width {lora} ({}), the model's {model} ({})",
            of_width(lora),
            of_width(model)
        );
    }
    (made_for, text)
}

/// Width of the text that an adapter's cross-attention takes.
fn text_width(groups: &[Group], source: &dyn TensorSource) -> Option<usize> {
    let cross = groups
        .iter()
        .find(|group| group.module.replace('.', "_").contains("attn2_to_k"));
    Parts {
        group: cross?,
        source,
    }
    .shape("down")?
    .get(1)
    .copied()
}

fn model_width(base: &dyn Model) -> Option<usize> {
    let cross = base.entries().iter().find(|((component, name), _)| {
        *component == Component::UNet && name.ends_with("attn2.to_k.weight")
    });
    cross?.1.shape.get(1).copied()
}

/// The family whose text has this width.
fn of_width(width: usize) -> &'static str {
    match width {
        768 => "Stable Diffusion 1.x",
        1024 => "Stable Diffusion 2.x",
        2048 => "SDXL",
        1280 => "the SDXL refiner",
        _ => "no published model",
    }
}
