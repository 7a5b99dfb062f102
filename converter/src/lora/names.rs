//! Which weight a module of an adapter is for.
//!
//! Names are never split at underscores: every layer of the model is spelled in every known way, and looked up.

use std::collections::{BTreeMap, HashMap};

use sd_models::arch::UNetConfig;
use sd_models::family::ModelFamily;
use sd_models::keys::layout::Layout;
use sd_models::keys::{Component, Part};

use crate::Remedy;
use crate::model::Name;

/// What a module's name stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// A layer.
    Layer(Component, String),
    /// Layers whose weights lie one below the other in `OpenCLIP`: queries, keys and values.
    Fused(Component, [String; 3]),
    /// A layer that the network does not run: the last one of Stable Diffusion 2's text encoder.
    Unused,
}

/// Names of projections in diffusers' first LoRAs for text encoders.
const OLD_TEXT: [(&str, &str); 4] = [
    ("to_q", "q_proj"),
    ("to_k", "k_proj"),
    ("to_v", "v_proj"),
    ("to_out", "out_proj"),
];

/// Every way to spell the layers of a model.
pub(super) struct Names(HashMap<String, Place>);

impl Names {
    /// Spells the layers of these weights; `unet` is the configuration of the model's UNet, if it has one.
    pub(super) fn of<'a>(
        weights: impl Iterator<Item = &'a Name> + Clone,
        unet: Option<&UNetConfig>,
    ) -> Self {
        let family = unet.map(ModelFamily::of);
        let layout = unet.map(|cfg| Layout::single_file(ModelFamily::of(cfg), cfg, 4, false));
        let layers = weights.filter_map(|(component, name)| {
            let path = name.strip_suffix(".weight")?;
            Some((*component, path))
        });
        let mut names = Self(HashMap::new());
        // SDXL's refiner has only the second encoder, which then goes by the names of the only one.
        let has_first = layers.clone().any(|(c, _)| c == Component::TextEncoder);
        let mut fused: BTreeMap<(Component, String), [String; 3]> = BTreeMap::new();
        for (component, path) in layers.clone() {
            let place = Place::Layer(component, path.to_owned());
            for path in aliases(component, path) {
                names.add(component, &path, has_first, &place);
            }
            let Some(layout) = &layout else { continue };
            let key = layout.key(component, &format!("{path}.weight"));
            match (component, key) {
                (Component::UNet, Some((key, _))) => names.add_single_file(&key, &place),
                (Component::TextEncoder | Component::TextEncoder2, Some((key, part))) => {
                    let Some(path) = open_clip_path(&key) else {
                        continue;
                    };
                    match part {
                        Part::Third(i) => {
                            let thirds = fused.entry((component, path)).or_default();
                            path_of(&place).clone_into(&mut thirds[i]);
                        }
                        _ => names.add(component, &path, has_first, &place),
                    }
                }
                _ => {}
            }
        }
        for ((component, path), thirds) in fused {
            let place = Place::Fused(component, thirds);
            names.add(component, &path, has_first, &place);
        }
        if family == Some(ModelFamily::Sd21) {
            names.add_unused_layer(layers, has_first);
        }
        names
    }

    /// The layer that a module is for.
    pub(super) fn place(&self, module: &str) -> Option<&Place> {
        self.0.get(module)
    }

    /// Spells a layer whose path is diffusers', transformers' or `OpenCLIP`'s.
    fn add(&mut self, component: Component, path: &str, has_first: bool, place: &Place) {
        let flat = path.replace('.', "_");
        let (flat_prefixes, dotted_prefixes): (&[&str], &[&str]) = match component {
            Component::UNet => (
                &["lora_unet_", "oft_unet_", "lycoris_"],
                &[
                    "",
                    "unet.",
                    "lora.",
                    "lora_unet.",
                    "lycoris.",
                    "base_model.model.",
                    "base_model.model.unet.",
                    "unet.base_model.model.",
                ],
            ),
            Component::TextEncoder => (
                &["lora_te_", "lora_te1_"],
                &[
                    "text_encoder.",
                    "text_encoder.base_model.model.",
                    "base_model.model.text_encoder.",
                    "text_encoders.clip_l.transformer.",
                    "text_encoders.clip_h.transformer.",
                    "clip_l.",
                    "lora_te.",
                    "lora_te1.",
                ],
            ),
            Component::TextEncoder2 => (
                &["lora_te2_"],
                &[
                    "text_encoder_2.",
                    "text_encoder_2.base_model.model.",
                    "base_model.model.text_encoder_2.",
                    "text_encoders.clip_g.transformer.",
                    "clip_g.",
                    "lora_te2.",
                ],
            ),
            _ => return,
        };
        for prefix in flat_prefixes {
            self.0.insert(format!("{prefix}{flat}"), place.clone());
        }
        // Some writers leave out the level that holds all of a text encoder.
        let short = path.strip_prefix("text_model.");
        for path in [Some(path), short].into_iter().flatten() {
            for prefix in dotted_prefixes {
                self.0.insert(format!("{prefix}{path}"), place.clone());
            }
        }
        // A text encoder alone under a trainer's wrapper, or the only one of its model.
        if component == Component::TextEncoder && path.starts_with("text_model.") {
            self.0
                .insert(format!("base_model.model.{path}"), place.clone());
            self.0.insert(format!("lycoris_{flat}"), place.clone());
        }
        if component == Component::TextEncoder2 && !has_first {
            self.0.insert(format!("lora_te_{flat}"), place.clone());
            self.0.insert(format!("text_encoder.{path}"), place.clone());
        }
    }

    /// Spells a layer of the UNet by its name in single files.
    fn add_single_file(&mut self, key: &str, place: &Place) {
        let Some(path) = key
            .strip_suffix(".weight")
            .and_then(|key| key.strip_prefix("model.diffusion_model."))
        else {
            return;
        };
        let flat = path.replace('.', "_");
        for prefix in ["lora_unet_", "oft_unet_"] {
            self.0.insert(format!("{prefix}{flat}"), place.clone());
        }
        // `unet.` is OneTrainer's.
        for prefix in [
            "diffusion_model.",
            "model.diffusion_model.",
            "unet.",
            "lora_unet.",
        ] {
            self.0.insert(format!("{prefix}{path}"), place.clone());
        }
    }

    /// Adapters of the whole encoder change its last layer too, whose output nothing reads.
    fn add_unused_layer<'a>(
        &mut self,
        layers: impl Iterator<Item = (Component, &'a str)> + Clone,
        has_first: bool,
    ) {
        const LAYERS: &str = "text_model.encoder.layers.";
        let of_layer = |path: &'a str| {
            let (number, rest) = path.strip_prefix(LAYERS)?.split_once('.')?;
            Some((number.parse::<usize>().ok()?, rest))
        };
        let text = layers.filter(|(component, _)| *component == Component::TextEncoder);
        let numbered = text.filter_map(|(_, path)| of_layer(path));
        let Some(last) = numbered.clone().map(|(number, _)| number).max() else {
            return;
        };
        for (_, rest) in numbered.filter(|(number, _)| *number == last) {
            let path = format!("{LAYERS}{}.{rest}", last + 1);
            self.add(Component::TextEncoder, &path, has_first, &Place::Unused);
        }
    }
}

/// Other names that writers use for the same layer.
fn aliases(component: Component, path: &str) -> Vec<String> {
    let mut paths = vec![path.to_owned()];
    // The output projection's number is left out by some.
    paths.extend(
        path.strip_suffix(".to_out.0")
            .map(|p| format!("{p}.to_out")),
    );
    if component != Component::UNet {
        for (old, new) in OLD_TEXT {
            let attention = path
                .strip_suffix(new)
                .filter(|p| p.ends_with(".self_attn."));
            paths.extend(attention.map(|p| format!("{p}{old}")));
        }
    }
    paths
}

/// Path of a layer in `OpenCLIP`, from its key in a single file.
fn open_clip_path(key: &str) -> Option<String> {
    let (_, path) = key.split_once(".model.")?;
    let path = path
        .strip_suffix(".weight")
        .or_else(|| path.strip_suffix("_weight"))?;
    path.starts_with("transformer.resblocks.")
        .then(|| path.to_owned())
}

fn path_of(place: &Place) -> &str {
    match place {
        Place::Layer(_, path) => path,
        Place::Fused(..) | Place::Unused => "",
    }
}

/// A module's name without the level that diffusers' first attention processors added.
pub(super) fn without_processor(module: &str) -> String {
    module.replace(".processor.", ".")
}

/// A key of a Control-LoRA.
const CONTROL_LORA: &str = "lora_controlnet";

/// Keys that only other kinds of files have, and what those are. The first that fits counts.
const UNSUPPORTED: [(&str, &str); 28] = [
    (CONTROL_LORA, "a Control-LoRA"),
    ("lllite_unet", "a ControlNet-LLLite"),
    ("image_proj.", "an IP-Adapter"),
    ("ip_adapter.", "an IP-Adapter"),
    ("motion_modules.", "an AnimateDiff motion LoRA"),
    ("temporal_transformer.", "an AnimateDiff motion LoRA"),
    ("lora_unet_double_blocks_", "a LoRA for Flux"),
    ("lora_unet_single_blocks_", "a LoRA for Flux"),
    ("double_blocks.", "a LoRA for Flux"),
    ("single_transformer_blocks.", "a LoRA for Flux"),
    ("lora_unet_joint_blocks_", "a LoRA for Stable Diffusion 3"),
    ("joint_blocks.", "a LoRA for Stable Diffusion 3"),
    ("lora_te3_", "a LoRA for a model with a T5 text encoder"),
    ("lora_transformer_", "a LoRA for a diffusion transformer"),
    ("lora_prior_unet_", "a LoRA for Stable Cascade or Kandinsky"),
    (".oft_R", "PEFT's OFT"),
    (".boft_R", "PEFT's BOFT"),
    (".boft_s", "PEFT's BOFT"),
    ("vera_", "VeRA"),
    (".lora_embedding_", "a LoRA of token embeddings"),
    (".hra_u", "HRA"),
    (".poly_", "Poly"),
    (".lokr_t1", "a LoKr with a core on both sides"),
    (".adaptive_scale", "an adapter with learned scales"),
    ("unet:", "a list of lora_diffusion"),
    ("text_encoder:", "a list of lora_diffusion"),
    (":up", "a list of lora_diffusion"),
    (".linear.0.weight", "a hypernetwork"),
];

/// What kind of file a key gives away, if it is one that cannot be added to weights, and what to do with it.
pub(super) fn unsupported(key: &str) -> Option<(&'static str, Option<Remedy>)> {
    let found = UNSUPPORTED.iter().find(|(part, _)| key.contains(part));
    let transformer = key.starts_with("transformer.") && key.contains("lora");
    match found {
        Some(&(part, kind)) => {
            let is_control = part == CONTROL_LORA;
            Some((kind, is_control.then_some(Remedy::BesideItsModel)))
        }
        None if transformer => Some(("a LoRA for a diffusion transformer", None)),
        None => None,
    }
}
