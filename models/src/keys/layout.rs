//! Which names a file uses for which component, and where.
//!
//! A single file holds several components under prefixes; a file of a pipeline folder holds one, without. Both are
//! described by a list of sections, found by tensors that only one way of naming has.

use std::collections::BTreeSet;

use super::averages::{self, AverageNames};
use super::ldm::{UNetNames, VaeNames};
use super::{Component, Key, Part, Parts, open_clip, taesd};
use crate::arch::UNetConfig;
use crate::family::ModelFamily;

/// Schedule buffers and training state at the top level of a file, and marks that [`super::super::family`] reads.
const IGNORABLE: &[&str] = &[
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "global_step",
    "model_ema.decay",
    "model_ema.num_updates",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
    "difference",
    "lora_controlnet",
];

/// Parts of the training set-up that some files still carry.
const IGNORABLE_PREFIXES: &[&str] = &[
    "loss.",
    "embedding_manager.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
];

/// Tensors without influence that text encoders have wherever a program puts them: positions, and how CLIP's two halves are
/// compared.
const IGNORABLE_TEXT: &[&str] = &["position_ids", "logit_scale", "logit_bias", "attn_mask"];

/// The other half of CLIP, beside a text encoder.
const IGNORABLE_TEXT_PREFIXES: &[&str] = &["visual.", "vision_model.", "visual_projection."];

/// What a first text encoder has no use for: only the second one's pooled output is given to a UNet.
const UNUSED_BY_FIRST: &[&str] = &["text_projection", open_clip::UNUSED_LAYER];

/// A way of naming, as far as it is known before a file is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// diffusers' and transformers' names.
    Canonical,
    /// transformers' without the level `text_model`.
    BareText,
    LdmUNet,
    LdmVae,
    OpenClip,
    TaesdEncoder,
    TaesdDecoder,
}

/// A prefix under which a component may lie, and a tensor that is there if it does.
type Candidate = (Component, &'static str, &'static str, Kind);

const LDM_UNET: &str = "input_blocks.0.0.weight";
const UNET: &str = "down_blocks.0.resnets.0.conv1.weight";
const LDM_VAE: &str = "decoder.up.0.block.0.conv1.weight";
const VAE: &str = "decoder.up_blocks.0.resnets.0.conv1.weight";
const TEXT: &str = "text_model.embeddings.token_embedding.weight";
const BARE_TEXT: &str = "embeddings.token_embedding.weight";
const OPEN_CLIP: &str = "transformer.resblocks.0.ln_1.weight";
const LDM_CONTROL: &str = "zero_convs.0.0.weight";
const CONTROL: &str = "controlnet_cond_embedding.conv_in.weight";

/// Of each component, the first that a file has counts.
const CANDIDATES: &[Candidate] = {
    use Component::{ControlNet, TextEncoder, TextEncoder2, UNet, Vae};
    use Kind::{BareText, Canonical, LdmUNet, LdmVae, OpenClip};
    &[
        (ControlNet, "control_model.", LDM_CONTROL, LdmUNet),
        (ControlNet, "controlnet.", CONTROL, Canonical),
        (ControlNet, "", LDM_CONTROL, LdmUNet),
        (ControlNet, "", CONTROL, Canonical),
        (UNet, "model.diffusion_model.", LDM_UNET, LdmUNet),
        (UNet, "diffusion_model.", LDM_UNET, LdmUNet),
        (UNet, "unet.", UNET, Canonical),
        (UNet, "", LDM_UNET, LdmUNet),
        (UNet, "", UNET, Canonical),
        (Vae, "first_stage_model.", LDM_VAE, LdmVae),
        (Vae, "first_stage_model.", VAE, Canonical),
        (Vae, "vae.", LDM_VAE, LdmVae),
        (Vae, "vae.", VAE, Canonical),
        (Vae, "", LDM_VAE, LdmVae),
        (Vae, "", VAE, Canonical),
        (
            TextEncoder,
            "cond_stage_model.transformer.",
            TEXT,
            Canonical,
        ),
        (
            TextEncoder,
            "cond_stage_model.transformer.",
            BARE_TEXT,
            BareText,
        ),
        (TextEncoder, "cond_stage_model.model.", OPEN_CLIP, OpenClip),
        (
            TextEncoder,
            "conditioner.embedders.0.transformer.",
            TEXT,
            Canonical,
        ),
        (
            TextEncoder,
            "conditioner.embedders.0.transformer.",
            BARE_TEXT,
            BareText,
        ),
        (
            TextEncoder,
            "conditioner.embedders.0.model.",
            OPEN_CLIP,
            OpenClip,
        ),
        (TextEncoder, "text_encoder.", TEXT, Canonical),
        (TextEncoder, "text_encoder.", BARE_TEXT, BareText),
        (
            TextEncoder,
            "text_encoders.clip_l.transformer.",
            TEXT,
            Canonical,
        ),
        (TextEncoder, "clip_l.transformer.", TEXT, Canonical),
        (TextEncoder, "", TEXT, Canonical),
        (TextEncoder, "", BARE_TEXT, BareText),
        (TextEncoder, "", OPEN_CLIP, OpenClip),
        (
            TextEncoder2,
            "conditioner.embedders.1.model.",
            OPEN_CLIP,
            OpenClip,
        ),
        (
            TextEncoder2,
            "conditioner.embedders.0.model.",
            OPEN_CLIP,
            OpenClip,
        ),
        (TextEncoder2, "text_encoder_2.", TEXT, Canonical),
        (TextEncoder2, "text_encoder_2.", BARE_TEXT, BareText),
        (
            TextEncoder2,
            "text_encoders.clip_g.transformer.",
            TEXT,
            Canonical,
        ),
        (TextEncoder2, "clip_g.transformer.", TEXT, Canonical),
        (TextEncoder2, "", TEXT, Canonical),
        (TextEncoder2, "", BARE_TEXT, BareText),
        (TextEncoder2, "", OPEN_CLIP, OpenClip),
    ]
};

/// A tiny autoencoder's halves are found one by one, each by the convolution it begins with and its first block.
const TAESD: &[(&str, [&str; 2], Kind)] = &[
    (
        "taesd_encoder.",
        ["0.weight", "1.conv.0.weight"],
        Kind::TaesdEncoder,
    ),
    (
        "taesd_decoder.",
        ["1.weight", "3.conv.0.weight"],
        Kind::TaesdDecoder,
    ),
    (
        "encoder.",
        ["0.weight", "1.conv.0.weight"],
        Kind::TaesdEncoder,
    ),
    (
        "decoder.",
        ["1.weight", "3.conv.0.weight"],
        Kind::TaesdDecoder,
    ),
    ("", ["0.weight", "1.conv.0.weight"], Kind::TaesdEncoder),
    ("", ["1.weight", "3.conv.0.weight"], Kind::TaesdDecoder),
    (
        "",
        ["encoder.layers.0.weight", "encoder.layers.1.conv.0.weight"],
        Kind::Canonical,
    ),
    (
        "",
        ["decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"],
        Kind::Canonical,
    ),
];

/// A way of naming.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Naming {
    Canonical,
    BareText,
    LdmUNet(UNetNames),
    Averages(AverageNames),
    LdmVae(VaeNames),
    OpenClip,
    TaesdEncoder,
    TaesdDecoder,
}

/// One component's place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    component: Component,
    prefix: &'static str,
    naming: Naming,
}

/// Where a file has which component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    sections: Vec<Section>,
}

impl Layout {
    /// Finds out from a file's names.
    #[must_use]
    pub fn detect(names: &BTreeSet<&str>) -> Self {
        let mut layout = Self::default();
        for &(component, prefix, marker, kind) in CANDIDATES {
            let bare_trunk = component == Component::UNet && prefix.is_empty();
            let taken = layout.has(component)
                || (bare_trunk && layout.has(Component::ControlNet))
                || (prefix == "conditioner.embedders.0.model."
                    && component != owner_of_first_embedder(names))
                // A text encoder without prefix is the whole file.
                || (is_text(component) && prefix.is_empty() && !layout.sections.is_empty());
            if !taken && has(names, prefix, marker) {
                layout.push(names, component, prefix, kind);
            }
        }
        layout.find_taesd(names);
        if !layout.has(Component::UNet) {
            layout.find_averages(names);
        }
        layout
    }

    /// Finds out how a file names the one component that it holds.
    #[must_use]
    pub fn of_component(component: Component, names: &BTreeSet<&str>) -> Self {
        let mut layout = Self::default();
        let found = CANDIDATES
            .iter()
            .find(|&&(c, prefix, marker, _)| c == component && has(names, prefix, marker));
        match found {
            Some(&(_, prefix, _, kind)) => layout.push(names, component, prefix, kind),
            // One shard of several need not have the telling tensor.
            None if component != Component::Taesd => {
                layout.push(names, component, "", Kind::Canonical);
            }
            None => {}
        }
        if component == Component::Taesd {
            layout.find_taesd(names);
        }
        layout
    }

    /// The layout in which a family's single files are published.
    #[must_use]
    pub fn single_file(
        family: ModelFamily,
        unet: &UNetConfig,
        vae_levels: usize,
        generative_models: bool,
    ) -> Self {
        let section = |component, prefix, naming| Section {
            component,
            prefix,
            naming,
        };
        let mut sections = vec![
            section(
                Component::UNet,
                "model.diffusion_model.",
                Naming::LdmUNet(UNetNames::of(unet)),
            ),
            section(
                Component::Vae,
                "first_stage_model.",
                Naming::LdmVae(VaeNames { levels: vae_levels }),
            ),
        ];
        let text = |component, prefix, naming| section(component, prefix, naming);
        let (first, second) = (Component::TextEncoder, Component::TextEncoder2);
        sections.extend(match family {
            ModelFamily::Sd15 => vec![text(
                first,
                "cond_stage_model.transformer.",
                Naming::Canonical,
            )],
            ModelFamily::Sd21 if generative_models => vec![text(
                first,
                "conditioner.embedders.0.model.",
                Naming::OpenClip,
            )],
            ModelFamily::Sd21 => vec![text(first, "cond_stage_model.model.", Naming::OpenClip)],
            ModelFamily::Sdxl => vec![
                text(
                    first,
                    "conditioner.embedders.0.transformer.",
                    Naming::Canonical,
                ),
                text(second, "conditioner.embedders.1.model.", Naming::OpenClip),
            ],
            ModelFamily::SdxlRefiner => vec![text(
                second,
                "conditioner.embedders.0.model.",
                Naming::OpenClip,
            )],
        });
        Self { sections }
    }

    /// The layout in which ControlNets for a UNet like `unet` are first saved.
    #[must_use]
    pub fn ldm_controlnet(unet: &UNetConfig) -> Self {
        let section = Section {
            component: Component::ControlNet,
            prefix: "control_model.",
            naming: Naming::LdmUNet(UNetNames::of(unet)),
        };
        Self {
            sections: vec![section],
        }
    }

    /// Whether there is anything of `component`.
    #[must_use]
    pub fn has(&self, component: Component) -> bool {
        self.sections.iter().any(|s| s.component == component)
    }

    /// Whether any section has names of its own, rather than canonical ones under a prefix.
    #[must_use]
    pub fn is_single_file(&self) -> bool {
        self.sections
            .iter()
            .any(|s| matches!(s.naming, Naming::LdmUNet(_)) && !s.prefix.is_empty())
    }

    fn find_taesd(&mut self, names: &BTreeSet<&str>) {
        for (prefix, markers, kind) in TAESD {
            let known = self.sections.iter().any(|s| s.prefix == *prefix);
            if !known && markers.iter().all(|marker| has(names, prefix, marker)) {
                self.push(names, Component::Taesd, prefix, *kind);
            }
        }
    }

    /// Averages are the UNet of a file that has no other.
    fn find_averages(&mut self, names: &BTreeSet<&str>) {
        if let Some(found) = AverageNames::detect(names) {
            self.add(Component::UNet, averages::PREFIX, Naming::Averages(found));
        }
    }

    fn push(
        &mut self,
        names: &BTreeSet<&str>,
        component: Component,
        prefix: &'static str,
        kind: Kind,
    ) {
        let naming = match kind {
            Kind::Canonical => Naming::Canonical,
            Kind::BareText => Naming::BareText,
            Kind::LdmUNet => Naming::LdmUNet(UNetNames::detect(names, prefix)),
            Kind::LdmVae => Naming::LdmVae(VaeNames::detect(names, prefix)),
            Kind::OpenClip => Naming::OpenClip,
            Kind::TaesdEncoder => Naming::TaesdEncoder,
            Kind::TaesdDecoder => Naming::TaesdDecoder,
        };
        self.add(component, prefix, naming);
    }

    fn add(&mut self, component: Component, prefix: &'static str, naming: Naming) {
        self.sections.push(Section {
            component,
            prefix,
            naming,
        });
        // The most specific prefix is asked first.
        self.sections
            .sort_by_key(|s| std::cmp::Reverse(s.prefix.len()));
    }

    /// What the key of a file stands for.
    #[must_use]
    pub fn classify(&self, key: &str) -> Key {
        if IGNORABLE.contains(&key) || IGNORABLE_PREFIXES.iter().any(|p| key.starts_with(p)) {
            return Key::Ignorable;
        }
        let mut sections = self.sections.iter().map(|section| section.classify(key));
        match sections.find(|found| *found != Key::Unknown) {
            Some(known) => known,
            None if Self::is_average(key) => Key::Ema,
            None => Key::Unknown,
        }
    }

    /// The name of the running average of the UNet weight called `key` in the same file: all dots are removed.
    #[must_use]
    pub fn ema_key(key: &str) -> Option<String> {
        let flat = key.strip_prefix("model.")?.replace('.', "");
        Some(format!("{}{flat}", averages::PREFIX))
    }

    /// Whether a key is that of a running average.
    #[must_use]
    pub fn is_average(key: &str) -> bool {
        key.starts_with(averages::PREFIX)
    }

    /// The key that holds a canonical tensor, and where in it.
    #[must_use]
    pub fn key(&self, component: Component, canonical: &str) -> Option<(String, Part)> {
        self.sections
            .iter()
            .filter(|s| s.component == component)
            .find_map(|section| {
                let (key, part) = section.naming.key_of(canonical)?;
                Some((format!("{}{key}", section.prefix), part))
            })
    }
}

impl Section {
    fn classify(&self, key: &str) -> Key {
        if is_text(self.component) && self.is_ignorable_text(key) {
            return Key::Ignorable;
        }
        let rest = key.strip_prefix(self.prefix);
        match rest.and_then(|rest| self.naming.to_canonical(rest)) {
            Some(parts) => Key::Weight(self.component, parts),
            None => Key::Unknown,
        }
    }

    fn is_ignorable_text(&self, key: &str) -> bool {
        // Some programs keep what belongs to all of CLIP beside its transformer.
        let mut levels = ["transformer.", "model."].into_iter();
        let beside = levels.find_map(|level| self.prefix.strip_suffix(level));
        let rest = key
            .strip_prefix(self.prefix)
            .or_else(|| key.strip_prefix(beside?));
        let Some(rest) = rest else {
            return false;
        };
        let last = rest.rsplit('.').next().unwrap_or(rest);
        let starts_with = |prefixes: &[&str]| prefixes.iter().any(|p| rest.starts_with(p));
        IGNORABLE_TEXT.contains(&last)
            || starts_with(IGNORABLE_TEXT_PREFIXES)
            || (self.component == Component::TextEncoder && starts_with(UNUSED_BY_FIRST))
    }
}

impl Naming {
    fn to_canonical(&self, rest: &str) -> Option<Parts> {
        let whole = |name: String| vec![(name, Part::Whole)];
        match self {
            Self::Canonical => is_canonical(rest).then(|| whole(canonical(rest))),
            Self::BareText if rest == "text_projection.weight" => Some(whole(rest.to_owned())),
            Self::BareText => Some(whole(format!("text_model.{rest}"))),
            Self::LdmUNet(names) => names.to_canonical(rest).map(whole),
            Self::Averages(names) => names.to_canonical(rest).map(whole),
            Self::LdmVae(names) => names.to_canonical(rest).map(whole),
            Self::OpenClip => open_clip::to_canonical(rest),
            Self::TaesdEncoder => taesd::encoder(rest).map(whole),
            Self::TaesdDecoder => taesd::decoder(rest).map(whole),
        }
    }

    fn key_of(&self, name: &str) -> Option<(String, Part)> {
        let whole = |key: String| (key, Part::Whole);
        match self {
            Self::Canonical => Some(whole(name.to_owned())),
            Self::BareText => {
                let bare = name.strip_prefix("text_model.").unwrap_or(name);
                Some(whole(bare.to_owned()))
            }
            Self::LdmUNet(names) => names.key_of(name).map(whole),
            Self::Averages(names) => names.key_of(name).map(whole),
            Self::LdmVae(names) => names.key_of(name).map(whole),
            Self::OpenClip => open_clip::key_of(name),
            Self::TaesdEncoder if name.starts_with("decoder.") => None,
            Self::TaesdDecoder if name.starts_with("encoder.") => None,
            Self::TaesdEncoder | Self::TaesdDecoder => taesd::key_of(name).map(whole),
        }
    }
}

/// A name of a component's own: a path of at least two parts, ending in a parameter.
fn is_canonical(rest: &str) -> bool {
    matches!(rest.rsplit_once('.'), Some((path, parameter))
        if !path.is_empty() && ["weight", "bias"].contains(&parameter))
}

/// Early diffusers named the autoencoder's attention differently.
fn canonical(rest: &str) -> String {
    const OLD: &[(&str, &str)] = &[
        (".query.", ".to_q."),
        (".key.", ".to_k."),
        (".value.", ".to_v."),
        (".proj_attn.", ".to_out.0."),
    ];
    let old = OLD
        .iter()
        .find(|(old, _)| rest.contains("mid_block.attentions.0") && rest.contains(old));
    match old {
        Some((old, new)) => rest.replace(old, new),
        None => rest.to_owned(),
    }
}

fn has(names: &BTreeSet<&str>, prefix: &str, marker: &str) -> bool {
    names.contains(format!("{prefix}{marker}").as_str())
}

fn is_text(component: Component) -> bool {
    matches!(component, Component::TextEncoder | Component::TextEncoder2)
}

/// SDXL's refiner and newer saves of SD 2 have their only text encoder in the same place; only the refiner's UNet has an
/// embedding of further conditions.
fn owner_of_first_embedder(names: &BTreeSet<&str>) -> Component {
    if has(names, "model.diffusion_model.", "label_emb.0.0.weight") {
        Component::TextEncoder2
    } else {
        Component::TextEncoder
    }
}

#[cfg(test)]
mod tests;
