use std::collections::BTreeMap;

use super::*;
use crate::arch::{
    ControlNetConfig, VaeConfig, clip_text_encoder, controlnet, unet, vae_decoder, vae_encoder,
};
use crate::graph::Graph;
use crate::presets::{PRESETS, Preset};

/// Canonical names of a preset's tensors.
fn canonical_names(preset: &Preset) -> Vec<(Component, String)> {
    let mut graphs = vec![
        (Component::UNet, unet(&preset.unet(false)).unwrap()),
        (Component::Vae, vae_encoder(&VaeConfig::sd()).unwrap()),
        (Component::Vae, vae_decoder(&VaeConfig::sd()).unwrap()),
    ];
    for (component, mut cfg) in preset.family().text_encoders(false) {
        cfg.layers += usize::from(preset.family() == ModelFamily::Sd21);
        graphs.push((component, clip_text_encoder(&cfg).unwrap()));
    }
    let names = |(component, graph): (Component, Graph)| {
        graph.params.into_iter().map(move |p| (component, p.name))
    };
    graphs.into_iter().flat_map(names).collect()
}

fn layout(preset: &Preset) -> Layout {
    let (family, unet) = (preset.family(), preset.unet(false));
    Layout::single_file(family, &unet, 4, preset.generative_models_layout)
}

/// Every preset's file, by the keys that its layout gives, is recognised and mapped back without a loss.
#[test]
fn canonical_to_single_file_and_back_is_the_identity() {
    for preset in PRESETS {
        let names = canonical_names(preset);
        let layout = layout(preset);
        let mut keys: BTreeMap<String, Vec<(Component, String, Part)>> = BTreeMap::new();
        for (component, name) in names {
            let (key, part) = layout.key(component, &name).unwrap();
            keys.entry(key).or_default().push((component, name, part));
        }
        let set: BTreeSet<&str> = keys.keys().map(String::as_str).collect();
        let detected = Layout::detect(&set);
        for (key, held) in &keys {
            for layout in [&layout, &detected] {
                let (component, parts) = match layout.classify(key) {
                    Key::Weight(component, parts) => (component, parts),
                    // Stable Diffusion 2 leaves the last stored layer unused.
                    Key::Ignorable if key.contains("resblocks.23.") => continue,
                    other => panic!("{key}: {other:?}"),
                };
                assert_eq!(parts.len(), held.len(), "{key}");
                for (held_by, name, part) in held {
                    assert_eq!(*held_by, component, "{key}");
                    assert!(parts.contains(&(name.clone(), *part)), "{key}");
                }
            }
        }
    }
}

#[test]
fn single_files_have_their_published_number_of_unet_keys() {
    for (name, count) in [("sd15", 686), ("sdxl", 1680), ("bk-sdm-tiny", 358)] {
        let preset = Preset::named(name).unwrap();
        let layout = layout(preset);
        let keys: BTreeSet<String> = canonical_names(preset)
            .into_iter()
            .filter(|(component, _)| *component == Component::UNet)
            .map(|(component, name)| layout.key(component, &name).unwrap().0)
            .collect();
        assert_eq!(keys.len(), count, "{name}");
    }
}

fn canonical_of(layout: &Layout, key: &str) -> String {
    match layout.classify(key) {
        Key::Weight(_, parts) => parts[0].0.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn keys_of_real_files_land_where_diffusers_has_them() {
    let cases = [
        ("input_blocks.0.0.weight", "conv_in.weight"),
        (
            "input_blocks.1.0.in_layers.0.weight",
            "down_blocks.0.resnets.0.norm1.weight",
        ),
        (
            "input_blocks.11.0.in_layers.0.weight",
            "down_blocks.3.resnets.1.norm1.weight",
        ),
        (
            "input_blocks.3.0.op.bias",
            "down_blocks.0.downsamplers.0.conv.bias",
        ),
        (
            "output_blocks.2.1.conv.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
        ),
        (
            "output_blocks.2.2.conv.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
        ),
        (
            "output_blocks.5.2.conv.weight",
            "up_blocks.1.upsamplers.0.conv.weight",
        ),
        (
            "middle_block.2.out_layers.3.bias",
            "mid_block.resnets.1.conv2.bias",
        ),
        (
            "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias",
            "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0.bias",
        ),
        ("label_emb.0.2.bias", "add_embedding.linear_2.bias"),
        (
            "time_embed.cond_proj.weight",
            "time_embedding.cond_proj.weight",
        ),
        (
            "time_embedding.cond_proj.weight",
            "time_embedding.cond_proj.weight",
        ),
    ];
    let sd15 = layout(Preset::named("sd15").unwrap());
    for (key, name) in cases {
        let key = format!("model.diffusion_model.{key}");
        assert_eq!(canonical_of(&sd15, &key), name);
    }
    let vae = [
        (
            "decoder.up.3.block.0.conv1.weight",
            "decoder.up_blocks.0.resnets.0.conv1.weight",
        ),
        (
            "decoder.up.1.upsample.conv.bias",
            "decoder.up_blocks.2.upsamplers.0.conv.bias",
        ),
        (
            "encoder.down.1.block.0.nin_shortcut.bias",
            "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
        ),
        (
            "encoder.mid.attn_1.proj_out.weight",
            "encoder.mid_block.attentions.0.to_out.0.weight",
        ),
        ("quant_conv.bias", "quant_conv.bias"),
        ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
    ];
    for (key, name) in vae {
        let key = format!("first_stage_model.{key}");
        assert_eq!(canonical_of(&sd15, &key), name);
    }
}

/// Models with one residual block per level exist in two numberings.
#[test]
fn gaps_in_the_numbering_are_understood() {
    let preset = Preset::named("bk-sdm-base").unwrap();
    let natural = layout(preset);
    let gapped = layout(Preset::named("sd15").unwrap());
    let mut keys = BTreeSet::new();
    for (component, name) in canonical_names(preset) {
        if component == Component::UNet {
            let key = gapped.key(component, &name).unwrap().0;
            keys.insert((key, name));
        }
    }
    assert!(
        keys.iter()
            .any(|(key, _)| key.ends_with("input_blocks.3.0.op.weight"))
    );
    let set: BTreeSet<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
    let detected = Layout::detect(&set);
    assert_ne!(detected, natural);
    for (key, name) in &keys {
        assert_eq!(canonical_of(&detected, key), *name, "{key}");
    }
}

#[test]
fn controlnets_are_found_in_both_layouts_with_and_without_prefix() {
    for name in ["sd15", "sdxl"] {
        let cfg = ControlNetConfig::of(Preset::named(name).unwrap().unet(true));
        let layout = Layout::ldm_controlnet(&cfg.trunk);
        let params = controlnet(&cfg).unwrap().params;
        let component = Component::ControlNet;
        let keys: Vec<String> = params
            .iter()
            .map(|p| layout.key(component, &p.name).unwrap().0)
            .collect();
        for strip in ["", "control_model."] {
            let keys = keys.iter().map(|key| key.strip_prefix(strip).unwrap());
            let keys: Vec<&str> = keys.collect();
            let detected = Layout::detect(&keys.iter().copied().collect());
            for (key, param) in keys.iter().zip(&params) {
                assert_eq!(canonical_of(&detected, key), param.name);
            }
        }
        let names: BTreeSet<&str> = params.iter().map(|p| p.name.as_str()).collect();
        let detected = Layout::detect(&names);
        assert!(detected.has(component) && !detected.has(Component::UNet));
        for name in names {
            assert_eq!(canonical_of(&detected, name), name);
        }
    }
}

#[test]
fn the_level_text_model_may_be_missing() {
    let rest = "encoder.layers.3.mlp.fc1.bias";
    let prefix = "cond_stage_model.transformer.";
    let marker = format!("{prefix}{BARE_TEXT}");
    let layout = Layout::detect(&BTreeSet::from([marker.as_str()]));
    let found = canonical_of(&layout, &format!("{prefix}{rest}"));
    assert_eq!(found, format!("text_model.{rest}"));
}

#[test]
fn old_names_of_the_autoencoders_attention_are_understood() {
    let layout = Layout::detect(&BTreeSet::from([VAE]));
    let old = "decoder.mid_block.attentions.0.proj_attn.weight";
    let new = "decoder.mid_block.attentions.0.to_out.0.weight";
    assert_eq!(canonical_of(&layout, old), new);
}

#[test]
fn sd_turbo_and_the_refiner_are_told_apart_by_their_unet() {
    let encoder = format!("conditioner.embedders.0.model.{OPEN_CLIP}");
    let turbo = Layout::detect(&BTreeSet::from([encoder.as_str()]));
    assert!(turbo.has(Component::TextEncoder) && !turbo.has(Component::TextEncoder2));
    let label = "model.diffusion_model.label_emb.0.0.weight";
    let refiner = Layout::detect(&BTreeSet::from([encoder.as_str(), label]));
    assert!(refiner.has(Component::TextEncoder2) && !refiner.has(Component::TextEncoder));
}

#[test]
fn a_file_with_23_open_clip_blocks_keeps_them_all() {
    let encoder = crate::arch::ClipTextConfig::open_clip_h();
    let unused = format!("transformer.resblocks.{}.", encoder.layers);
    assert_eq!(unused, open_clip::UNUSED_LAYER);
    let prefix = "cond_stage_model.model.";
    for blocks in [23, 24] {
        let keys = (0..blocks).map(|n| format!("{prefix}transformer.resblocks.{n}.ln_1.weight"));
        let keys: Vec<String> = keys.collect();
        let layout = Layout::detect(&keys.iter().map(String::as_str).collect());
        let used = keys
            .iter()
            .filter(|key| layout.classify(key) != Key::Ignorable);
        assert_eq!(used.count(), 23, "of {blocks}");
    }
}

#[test]
fn the_unet_of_a_file_with_only_averages_is_found_in_every_structure() {
    for preset in PRESETS {
        let layout = layout(preset);
        let names = canonical_names(preset).into_iter();
        let unet = names.filter(|(component, _)| *component == Component::UNet);
        let averages: BTreeMap<String, String> = unet
            .map(|(component, name)| {
                let (key, _) = layout.key(component, &name).unwrap();
                (Layout::ema_key(&key).unwrap(), name)
            })
            .collect();
        let detected = Layout::detect(&averages.keys().map(String::as_str).collect());
        for (key, name) in &averages {
            assert_eq!(canonical_of(&detected, key), *name, "{}", preset.name);
            let found = detected.key(Component::UNet, name).unwrap();
            assert_eq!(found.0, *key);
        }
    }
}

#[test]
fn what_comfyui_saves_beside_the_first_text_encoder_does_not_matter() {
    for (preset, encoder) in [
        ("sd15", "cond_stage_model."),
        ("sdxl", "conditioner.embedders.0."),
    ] {
        let layout = layout(Preset::named(preset).unwrap());
        for rest in [
            "logit_scale",
            "text_projection",
            "transformer.logit_scale",
            "transformer.text_projection.weight",
            "transformer.text_model.embeddings.position_ids",
        ] {
            let key = format!("{encoder}{rest}");
            assert_eq!(layout.classify(&key), Key::Ignorable, "{key}");
        }
    }
    let sdxl = layout(Preset::named("sdxl").unwrap());
    let second = "conditioner.embedders.1.";
    let used = sdxl.classify(&format!("{second}model.text_projection"));
    assert!(matches!(used, Key::Weight(Component::TextEncoder2, _)));
    for (rest, known) in [
        ("logit_scale", Key::Ignorable),
        ("text_projection", Key::Unknown),
    ] {
        assert_eq!(sdxl.classify(&format!("{second}{rest}")), known, "{rest}");
    }
}

#[test]
fn what_does_not_matter_is_known_and_what_is_unknown_is_said() {
    let sd15 = layout(Preset::named("sd15").unwrap());
    for key in [
        "betas",
        "model_ema.decay",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.vision_model.post_layernorm.bias",
    ] {
        assert_eq!(sd15.classify(key), Key::Ignorable, "{key}");
    }
    let unknown = [
        "nonsense",
        "model.diffusion_model.input_blocks.1.7.x",
        "model.diffusion_model.input_blocks.0.0",
        "first_stage_model.encoder.down.9.block",
        "first_stage_model.decoder.up.9.block.0.conv1.weight",
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.transformer.",
    ];
    for key in unknown {
        assert_eq!(sd15.classify(key), Key::Unknown, "{key}");
    }
    let sdxl = layout(Preset::named("sdxl").unwrap());
    for key in ["logit_scale", "visual.proj", "attn_mask"] {
        let key = format!("conditioner.embedders.1.model.{key}");
        assert_eq!(sdxl.classify(&key), Key::Ignorable, "{key}");
    }
}

#[test]
fn ema_names_have_no_dots() {
    let key = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(
        Layout::ema_key(key).unwrap(),
        "model_ema.diffusion_modelinput_blocks00weight"
    );
    let sd15 = layout(Preset::named("sd15").unwrap());
    let ema = "model_ema.diffusion_modelinput_blocks00weight";
    assert_eq!(sd15.classify(ema), Key::Ema);
}
