//! What the keys of LoRA files mean.
//!
//! Names are never split at underscores: every weight of the model is spelled in every known way, and looked up.

use std::collections::HashMap;

use sd_models::family::ModelFamily;
use sd_models::keys::Component;
use sd_models::keys::layout::Layout;
use sd_models::structure::unet_config;

use super::Part;
use crate::model::{Model, Name};

/// Ends of keys, the longest first, and what they are to their module.
const SUFFIXES: [(&str, Part); 19] = [
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_B.default.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_down.weight", Part::Down),
    (".lora.down.weight", Part::Down),
    ("_lora.down.weight", Part::Down),
    (".lora_mid.weight", Part::Mid),
    (".lora_up.weight", Part::Up),
    (".lora.up.weight", Part::Up),
    ("_lora.up.weight", Part::Up),
    (".lora_B.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B", Part::Up),
    (".lora_A", Part::Down),
    (".lora_up", Part::Up),
    (".lora_down", Part::Down),
    (".alpha", Part::Alpha),
    (".scale", Part::Scale),
];

/// Parts of other kinds of adapters.
const UNSUPPORTED: [(&str, &str); 17] = [
    (".dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".on_input", "(IA)^3"),
    (".ia3_l", "(IA)^3"),
    (".diff", "full difference"),
    (".w_norm", "norm difference"),
    (".b_norm", "norm difference"),
    (".a1.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".vera_", "VeRA"),
    (".set_weight", "replacement"),
    ("bundle_emb.", "file with bundled embeddings"),
    (":up", "list of lora_diffusion"),
];

/// The kind of adapter that a key belongs to, if it is one that is not supported.
pub(super) fn unsupported(key: &str) -> Option<&'static str> {
    let found = UNSUPPORTED.iter().find(|(part, _)| key.contains(part));
    found.map(|(_, kind)| *kind)
}

/// Module and part of a key.
pub(super) fn split(key: &str) -> Option<(String, Part)> {
    let (module, part) = SUFFIXES
        .iter()
        .find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, *part)))?;
    // Attention processors of early diffusers.
    Some((module.replace(".processor", ""), part))
}

/// Every way to spell the modules of a model.
pub(super) struct Names(HashMap<String, Name>);

impl Names {
    pub(super) fn of(model: &dyn Model) -> Self {
        let standard = unet_config(&model.shapes(Component::UNet)).ok();
        let standard =
            standard.map(|cfg| Layout::single_file(ModelFamily::of(&cfg), &cfg, 4, false));
        // SDXL's refiner has only the second encoder, which then goes by the names of the only one.
        let only_second = !model.has(Component::TextEncoder);
        let mut names = HashMap::new();
        for name in model.entries().keys() {
            let (component, canonical) = name;
            let Some(path) = canonical.strip_suffix(".weight") else {
                continue;
            };
            let ldm = standard.as_ref().and_then(|layout| {
                let (key, _) = layout.key(*component, canonical)?;
                let path = key.strip_suffix(".weight")?;
                Some(path.strip_prefix("model.diffusion_model.")?.to_owned())
            });
            let mut paths = vec![path.to_owned()];
            // The output projection's number is left out by some.
            paths.extend(
                path.strip_suffix(".to_out.0")
                    .map(|p| format!("{p}.to_out")),
            );
            for path in paths {
                for spelling in spellings(*component, &path, ldm.as_deref()) {
                    names.insert(spelling, name.clone());
                }
                if only_second && *component == Component::TextEncoder2 {
                    names.insert(format!("lora_te_{}", path.replace('.', "_")), name.clone());
                }
            }
        }
        Self(names)
    }

    /// The weight that a module is for.
    pub(super) fn target(&self, module: &str) -> Option<&Name> {
        self.0.get(module)
    }
}

/// `path` is diffusers' or transformers', `ldm` that of the single file.
fn spellings(component: Component, path: &str, ldm: Option<&str>) -> Vec<String> {
    let flat = path.replace('.', "_");
    let with = |prefixes: &[&str], path: &str| -> Vec<String> {
        prefixes
            .iter()
            .map(|prefix| format!("{prefix}{path}"))
            .collect()
    };
    match component {
        Component::UNet => {
            let mut all = with(&["lora_unet_", "lycoris_"], &flat);
            let dotted = [
                "",
                "unet.",
                "base_model.model.",
                "base_model.model.unet.",
                "unet.base_model.model.",
            ];
            all.extend(with(&dotted, path));
            if let Some(ldm) = ldm {
                all.extend(with(&["lora_unet_"], &ldm.replace('.', "_")));
                all.extend(with(&["diffusion_model.", "model.diffusion_model."], ldm));
            }
            all
        }
        Component::TextEncoder => {
            let mut all = with(&["lora_te_", "lora_te1_"], &flat);
            let dotted = [
                "text_encoder.",
                "text_encoder.base_model.model.",
                "text_encoders.clip_l.transformer.",
                "text_encoders.clip_h.transformer.",
            ];
            all.extend(with(&dotted, path));
            all
        }
        Component::TextEncoder2 => {
            let mut all = with(&["lora_te2_"], &flat);
            let dotted = [
                "text_encoder_2.",
                "text_encoder_2.base_model.model.",
                "text_encoders.clip_g.transformer.",
            ];
            all.extend(with(&dotted, path));
            all
        }
        _ => Vec::new(),
    }
}
