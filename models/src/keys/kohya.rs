//! Names of LoRA modules as kohya's sd-scripts write them, which A1111 and ComfyUI read.

use super::Component;
use super::layout::Layout;
use crate::family::ModelFamily;

/// The name of the LoRA module on the weight `canonical`, a name ending in `.weight`.
///
/// UNet modules go by diffusers' names, but in SDXL by those of its single file (`layout`).
#[must_use]
pub fn module(
    family: ModelFamily,
    layout: &Layout,
    component: Component,
    canonical: &str,
) -> Option<String> {
    let sdxl = matches!(family, ModelFamily::Sdxl | ModelFamily::SdxlRefiner);
    let path = canonical.strip_suffix(".weight")?;
    let underscored = |path: &str| path.replace('.', "_");
    match component {
        Component::UNet if sdxl => {
            let (key, _) = layout.key(component, canonical)?;
            let path = key.strip_suffix(".weight")?;
            let path = path.strip_prefix("model.diffusion_model.")?;
            Some(format!("lora_unet_{}", underscored(path)))
        }
        Component::UNet => Some(format!("lora_unet_{}", underscored(path))),
        Component::TextEncoder if sdxl => Some(format!("lora_te1_{}", underscored(path))),
        Component::TextEncoder2 if family == ModelFamily::Sdxl => {
            Some(format!("lora_te2_{}", underscored(path)))
        }
        Component::TextEncoder | Component::TextEncoder2 => {
            Some(format!("lora_te_{}", underscored(path)))
        }
        _ => None,
    }
}

/// What a low-rank module is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A matrix or 1x1 convolution of attention and feed-forward layers: what every LoRA trains.
    Linear,
    /// A layer of a residual block or a resampling: what LoCon trains too.
    Conv,
}

/// Which kind of target a weight is, if it is one. Norms, biases, embeddings, the first and the last convolution are none.
#[must_use]
pub fn target(component: Component, canonical: &str) -> Option<Target> {
    let path = canonical.strip_suffix(".weight")?;
    let last = path.rsplit_once('.').map_or(path, |(_, last)| last);
    match component {
        Component::TextEncoder | Component::TextEncoder2 => {
            let layers = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"];
            layers.contains(&last).then_some(Target::Linear)
        }
        Component::UNet if path.contains(".attentions.") => {
            (!path.contains("norm")).then_some(Target::Linear)
        }
        Component::UNet if path.contains(".resnets.") => {
            (!path.contains("norm")).then_some(Target::Conv)
        }
        Component::UNet => path.contains("samplers.0.conv").then_some(Target::Conv),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{clip_text_encoder, unet};
    use crate::presets::Preset;

    /// How many linear and convolutional targets a preset's UNet has, and how many its text encoders.
    fn counts(name: &str) -> (usize, usize, Vec<usize>) {
        let preset = Preset::named(name).unwrap();
        let params = unet(&preset.unet(false)).unwrap().params;
        let of_kind = |kind| {
            let targets = params.iter().map(|p| target(Component::UNet, &p.name));
            targets.filter(|target| *target == Some(kind)).count()
        };
        let encoders = preset.family().text_encoders(false);
        let text = encoders.iter().map(|(component, cfg)| {
            let params = clip_text_encoder(cfg).unwrap().params;
            let targets = params.iter().filter_map(|p| target(*component, &p.name));
            targets.count()
        });
        (
            of_kind(Target::Linear),
            of_kind(Target::Conv),
            text.collect(),
        )
    }

    #[test]
    fn models_have_their_published_numbers_of_targets() {
        assert_eq!(counts("sd15"), (192, 86, vec![72]));
        assert_eq!(counts("sd21"), (192, 86, vec![138]));
        assert_eq!(counts("sdxl"), (722, 66, vec![72, 192]));
    }

    #[test]
    fn modules_are_named_as_sd_scripts_names_them() {
        let named = |name: &str, component, canonical: &str| {
            let preset = Preset::named(name).unwrap();
            let layout = Layout::single_file(preset.family(), &preset.unet(false), 4, false);
            module(preset.family(), &layout, component, canonical).unwrap()
        };
        let attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight";
        assert_eq!(
            named("sd15", Component::UNet, attention),
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
        );
        assert_eq!(
            named("sdxl", Component::UNet, attention),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"
        );
        let text = "text_model.encoder.layers.0.mlp.fc1.weight";
        let first = Component::TextEncoder;
        assert_eq!(
            named("sd21", first, text),
            "lora_te_text_model_encoder_layers_0_mlp_fc1"
        );
        assert_eq!(
            named("sdxl", first, text),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1"
        );
    }
}
