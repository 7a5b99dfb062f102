//! Which families an adapter may be made for: those whose layers have its modules' names and shapes.

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

/// The families that an adapter may be made for: several where the modules that tell them apart are not in the file, none
/// where nothing tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MadeFor(Vec<String>);

impl MadeFor {
    /// The families that have every module that was tried. Metadata decide between several, and if there is none.
    pub(super) fn of(groups: &[Group], source: &dyn TensorSource) -> Self {
        let tried = telling(groups);
        let takes_all = |known: &&Known| {
            let mut parts = tried.iter().map(|group| Parts { group, source });
            !tried.is_empty() && parts.all(|parts| known.takes(&parts))
        };
        let families = known().iter().filter(takes_all);
        let families: Vec<String> = families.map(|known| known.family.to_string()).collect();
        match training::base(source.metadata()) {
            Some(told) if families.is_empty() || families.iter().any(|f| f == told) => {
                Self(vec![told.to_owned()])
            }
            _ => Self(families),
        }
    }

    /// The families that two adapters have in common, if there is no contradiction: what may be for any family has all.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        match (self.is_unknown(), other.is_unknown()) {
            (true, _) => Some(other.clone()),
            (_, true) => Some(self.clone()),
            _ => {
                let common = self.0.iter().filter(|family| other.0.contains(family));
                let common = Self(common.cloned().collect());
                (!common.is_unknown()).then_some(common)
            }
        }
    }

    /// Whether nothing tells.
    pub(super) fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it may be made for this family.
    pub(super) fn may_be(&self, family: ModelFamily) -> bool {
        self.is_unknown() || self.0.contains(&family.to_string())
    }

    /// The families, for people.
    pub(super) fn told(&self) -> Option<String> {
        (!self.is_unknown()).then(|| self.0.join(" or "))
    }
}

/// Some of an adapter's modules, by which families can be told apart.
fn telling(groups: &[Group]) -> Vec<&Group> {
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
    cross
        .into_iter()
        .take(half)
        .chain(others.into_iter().take(half))
        .collect()
}

/// What an adapter is made for, and how it differs from a model, for messages: punctuation and text, or nothing.
pub(super) fn guess(
    groups: &[Group],
    source: &dyn TensorSource,
    base: &dyn Model,
) -> (MadeFor, String) {
    let made_for = MadeFor::of(groups, source);
    let family = base.unet_config().ok().map(|cfg| ModelFamily::of(&cfg));
    let mut text = match (made_for.told(), family) {
        (Some(lora), Some(model)) if !made_for.may_be(model) => {
            format!("; it is made for {lora}, this is {model}")
        }
        (Some(lora), None) => format!("; it is made for {lora}"),
        (None, _) => "; nothing in it tells what it is made for".to_owned(),
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
