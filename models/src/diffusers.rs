//! The configuration files of a diffusers/optimum pipeline folder, so that other programs run our directories unchanged.

use serde_json::{Value, json};

use crate::arch::{Activation, ClipTextConfig, UNetConfig, VaeConfig};
use crate::family::ModelFamily;
use crate::manifest::PredictionType;

/// Version of diffusers whose file formats are written.
const DIFFUSERS_VERSION: &str = "0.39.0";

/// Folders of a Stable Diffusion 1 pipeline that hold a graph.
pub const COMPONENTS: [&str; 4] = ["text_encoder", "unet", "vae_encoder", "vae_decoder"];

/// `model_index.json`: which class runs each folder.
#[must_use]
pub fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// `scheduler/scheduler_config.json` as the family's reference repository ships it.
#[must_use]
pub fn scheduler(family: ModelFamily) -> Value {
    match family {
        ModelFamily::Sd15 => json!({
            "_class_name": "PNDMScheduler",
            "_diffusers_version": DIFFUSERS_VERSION,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
            "steps_offset": 1,
            "trained_betas": null,
        }),
    }
}

/// `unet/config.json`; `sample_size` is the side of the default latents.
#[must_use]
pub fn unet(cfg: &UNetConfig, sample_size: usize) -> Value {
    let attends = |i: usize| cfg.levels[i].transformer_depth > 0;
    let levels = cfg.levels.len();
    let down = |i| {
        if attends(i) {
            "CrossAttnDownBlock2D"
        } else {
            "DownBlock2D"
        }
    };
    let up = |i: usize| {
        if attends(levels - 1 - i) {
            "CrossAttnUpBlock2D"
        } else {
            "UpBlock2D"
        }
    };
    json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        // The historic misnomer: this is the number of heads.
        "attention_head_dim": cfg.levels[0].heads,
        "block_out_channels": cfg.levels.iter().map(|l| l.channels).collect::<Vec<_>>(),
        "center_input_sample": false,
        "cross_attention_dim": cfg.cross_attention_dim,
        "down_block_types": (0..levels).map(down).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": cfg.in_channels,
        "layers_per_block": cfg.layers_per_block,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": cfg.out_channels,
        "sample_size": sample_size,
        "time_cond_proj_dim": null,
        "up_block_types": (0..levels).map(up).collect::<Vec<_>>(),
    })
}

/// `vae_encoder/config.json` and `vae_decoder/config.json`; `sample_size` is the side of the default picture.
#[must_use]
pub fn vae(cfg: &VaeConfig, scaling_factor: f64, sample_size: usize) -> Value {
    let levels = cfg.channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": cfg.channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "in_channels": 3,
        "latent_channels": cfg.latent_channels,
        "layers_per_block": cfg.layers_per_block,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    })
}

/// `text_encoder/config.json`.
#[must_use]
pub fn text_encoder(cfg: &ClipTextConfig) -> Value {
    let activation = match cfg.activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    };
    json!({
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 49406,
        "dropout": 0.0,
        "eos_token_id": 49407,
        "hidden_act": activation,
        "hidden_size": cfg.hidden_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": cfg.intermediate_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": cfg.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.layers,
        "pad_token_id": 49407,
        "vocab_size": cfg.vocab_size,
    })
}

/// What diffusers calls a prediction type.
#[must_use]
pub fn prediction_type(name: &str) -> Option<PredictionType> {
    match name {
        "epsilon" => Some(PredictionType::Epsilon),
        "v_prediction" => Some(PredictionType::VPrediction),
        "sample" => Some(PredictionType::Sample),
        _ => None,
    }
}
