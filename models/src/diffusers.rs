//! The configuration files of a diffusers/optimum pipeline folder, so that other programs run our directories unchanged.

use serde_json::{Value, json};

use crate::arch::{
    Activation, ClipTextConfig, ControlNetConfig, Level, MidBlock, PooledAt, Projection,
    TaesdConfig, UNetConfig, VaeConfig,
};
use crate::family::{ModelFamily, Purpose};
use crate::keys::Component;
use crate::manifest::PredictionType;

/// Version of diffusers whose file formats are written.
const DIFFUSERS_VERSION: &str = "0.39.0";

/// Folders that may hold a graph, in the order they run.
pub const COMPONENTS: [&str; 6] = [
    "text_encoder",
    "text_encoder_2",
    "controlnet",
    "unet",
    "vae_encoder",
    "vae_decoder",
];

/// What a pipeline is, as far as its configuration files say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Text encoders, latent space and conditioning.
    pub family: ModelFamily,
    /// What the UNet's input channels are for.
    pub purpose: Purpose,
    /// What the UNet predicts.
    pub prediction: PredictionType,
    /// Whether it is a latent consistency model with an embedded guidance scale.
    pub consistency: bool,
    /// Whether the noise schedule ends in pure noise.
    pub zero_snr: bool,
}

impl Pipeline {
    /// Stable Diffusion 1 for text to image.
    pub const SD1: Self = Self {
        family: ModelFamily::Sd15,
        purpose: Purpose::TextToImage,
        prediction: PredictionType::Epsilon,
        consistency: false,
        zero_snr: false,
    };

    fn class(self) -> &'static str {
        use ModelFamily::{Sdxl, SdxlRefiner};
        match (self.family, self.purpose) {
            (SdxlRefiner, _) => "StableDiffusionXLImg2ImgPipeline",
            (Sdxl, Purpose::TextToImage) => "StableDiffusionXLPipeline",
            (Sdxl, Purpose::Inpaint) => "StableDiffusionXLInpaintPipeline",
            (Sdxl, Purpose::Edit) => "StableDiffusionXLInstructPix2PixPipeline",
            (_, Purpose::TextToImage) if self.consistency => "LatentConsistencyModelPipeline",
            (_, Purpose::TextToImage) => "StableDiffusionPipeline",
            (_, Purpose::Inpaint) => "StableDiffusionInpaintPipeline",
            (_, Purpose::Edit) => "StableDiffusionInstructPix2PixPipeline",
        }
    }

    fn scheduler_class(self) -> &'static str {
        match (self.family, self.prediction) {
            _ if self.consistency => "LCMScheduler",
            (ModelFamily::Sdxl | ModelFamily::SdxlRefiner, _) => "EulerDiscreteScheduler",
            (_, PredictionType::VPrediction) => "DDIMScheduler",
            _ => "PNDMScheduler",
        }
    }
}

/// `model_index.json`: which class runs each folder. `scheduler` is the scheduler's class.
#[must_use]
pub fn model_index(pipeline: Pipeline, scheduler: &str) -> Value {
    let mut index = json!({
        "_class_name": pipeline.class(),
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    let encoders = pipeline.family.text_encoders(false);
    let class = |component| {
        let (_, cfg) = encoders.iter().find(|(c, _)| *c == component)?;
        Some(text_encoder_class(cfg))
    };
    let mut add = |component, encoder: &str, tokenizer: &str| {
        let entry = |class: Option<&str>| match class {
            Some(class) => json!(["transformers", class]),
            None => json!([null, null]),
        };
        index[encoder] = entry(class(component));
        index[tokenizer] = entry(class(component).map(|_| "CLIPTokenizer"));
    };
    add(Component::TextEncoder, "text_encoder", "tokenizer");
    match pipeline.family {
        ModelFamily::Sdxl | ModelFamily::SdxlRefiner => {
            add(Component::TextEncoder2, "text_encoder_2", "tokenizer_2");
            index["force_zeros_for_empty_prompt"] = json!(pipeline.family == ModelFamily::Sdxl);
            if pipeline.family == ModelFamily::SdxlRefiner {
                index["requires_aesthetics_score"] = json!(true);
            }
        }
        ModelFamily::Sd15 | ModelFamily::Sd21 => {
            index["requires_safety_checker"] = json!(false);
            index["safety_checker"] = json!([null, null]);
        }
    }
    index
}

/// `scheduler/scheduler_config.json` as the family's reference repository ships it.
#[must_use]
pub fn scheduler(pipeline: Pipeline) -> Value {
    let class = pipeline.scheduler_class();
    let mut config = json!({
        "_class_name": class,
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_name(pipeline.prediction),
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    match class {
        "EulerDiscreteScheduler" => {
            config["interpolation_type"] = json!("linear");
            config["timestep_spacing"] = json!("leading");
            config["use_karras_sigmas"] = json!(false);
        }
        "LCMScheduler" => {
            config["original_inference_steps"] = json!(50);
            config["set_alpha_to_one"] = json!(true);
            config["steps_offset"] = json!(0);
            config["timestep_scaling"] = json!(10.0);
            config["timestep_spacing"] = json!("leading");
        }
        _ => {}
    }
    if pipeline.zero_snr {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}

/// `unet/config.json`; `sample_size` is the side of the default latents.
#[must_use]
pub fn unet(cfg: &UNetConfig, sample_size: usize) -> Value {
    let attends = |depths: &[usize]| depths.iter().any(|&depth| depth > 0);
    let finest_first = || cfg.levels.iter();
    let coarsest_first = || cfg.levels.iter().rev();
    let down = |level: &Level| match attends(&level.down) {
        true => "CrossAttnDownBlock2D",
        false => "DownBlock2D",
    };
    let up = |level: &Level| match attends(&level.up) {
        true => "CrossAttnUpBlock2D",
        false => "UpBlock2D",
    };
    let (mid, mid_depth) = match cfg.mid {
        MidBlock::Absent => (Value::Null, 0),
        MidBlock::ResNet => (json!("UNetMidBlock2D"), 0),
        MidBlock::Transformer(depth) => (json!("UNetMidBlock2DCrossAttn"), depth),
    };
    // diffusers builds the middle with the coarsest level's depth; levels that do not attend ignore theirs.
    let depth_down = |(i, level): (usize, &Level)| match level.down[0] {
        0 if i + 1 == cfg.levels.len() => mid_depth.max(1),
        depth => depth.max(1),
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        // The historic misnomer: this is the number of heads.
        "attention_head_dim": finest_first().map(|l| l.heads).collect::<Vec<_>>(),
        "block_out_channels": finest_first().map(|l| l.channels).collect::<Vec<_>>(),
        "center_input_sample": false,
        "cross_attention_dim": cfg.cross_attention_dim,
        "down_block_types": finest_first().map(down).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": cfg.in_channels,
        "layers_per_block": cfg.layers_per_block(),
        "mid_block_scale_factor": 1,
        "mid_block_type": mid,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": cfg.out_channels,
        "sample_size": sample_size,
        "time_cond_proj_dim": cfg.guidance_width,
        "transformer_layers_per_block": finest_first().enumerate().map(depth_down).collect::<Vec<_>>(),
        "up_block_types": coarsest_first().map(up).collect::<Vec<_>>(),
        "use_linear_projection": cfg.projection == Projection::Linear,
    });
    // Only where the way up has depths of its own.
    let mirrored = |level: &Level| level.up.iter().all(|&depth| depth == level.down[0]);
    if !finest_first().all(mirrored) {
        let depths = |level: &Level| match attends(&level.up) {
            true => json!(level.up),
            false => json!(1),
        };
        config["reverse_transformer_layers_per_block"] = coarsest_first().map(depths).collect();
    }
    if let Some(added) = cfg.added {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(crate::arch::TIME_ID_WIDTH);
        config["projection_class_embeddings_input_dim"] = json!(added.width());
    }
    config
}

/// `controlnet/config.json`.
#[must_use]
pub fn controlnet(cfg: &ControlNetConfig) -> Value {
    let mut config = unet(&cfg.trunk, 64);
    let fields = config
        .as_object_mut()
        .expect("a configuration is an object");
    // What only the way up has.
    for field in [
        "center_input_sample",
        "out_channels",
        "sample_size",
        "time_cond_proj_dim",
        "up_block_types",
        "reverse_transformer_layers_per_block",
    ] {
        fields.remove(field);
    }
    config["_class_name"] = json!("ControlNetModel");
    config["conditioning_channels"] = json!(cfg.hint_channels);
    config["conditioning_embedding_out_channels"] = json!(cfg.hint_widths);
    config["controlnet_conditioning_channel_order"] = json!("rgb");
    config["global_pool_conditions"] = json!(false);
    config
}

/// `config.json` of both halves of a tiny autoencoder.
#[must_use]
pub fn taesd(cfg: TaesdConfig) -> Value {
    json!({
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "relu",
        "decoder_block_out_channels": vec![cfg.channels; 4],
        "encoder_block_out_channels": vec![cfg.channels; 4],
        "in_channels": 3,
        "latent_channels": cfg.latent_channels,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
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

/// The `eos_token_id` of old configurations, by which transformers knows that the pooled output is taken at the largest id.
pub const POOLED_AT_LARGEST_ID: u32 = 2;

fn text_encoder_class(cfg: &ClipTextConfig) -> &'static str {
    match cfg.projection {
        Some(_) => "CLIPTextModelWithProjection",
        None => "CLIPTextModel",
    }
}

/// `text_encoder/config.json`, with the ids of the first token and of the padding.
#[must_use]
pub fn text_encoder(cfg: &ClipTextConfig, start: u32, pad: u32) -> Value {
    let activation = match cfg.activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    };
    let end = match cfg.pooled_at {
        PooledAt::LargestId => POOLED_AT_LARGEST_ID,
        PooledAt::First(id) => id,
    };
    json!({
        "architectures": [text_encoder_class(cfg)],
        "attention_dropout": 0.0,
        "bos_token_id": start,
        "dropout": 0.0,
        "eos_token_id": end,
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
        "pad_token_id": pad,
        "projection_dim": cfg.projection.unwrap_or(cfg.hidden_size),
        "vocab_size": cfg.vocab_size,
    })
}

const PREDICTION_TYPES: [(&str, PredictionType); 3] = [
    ("epsilon", PredictionType::Epsilon),
    ("v_prediction", PredictionType::VPrediction),
    ("sample", PredictionType::Sample),
];

/// The prediction type that diffusers calls `name`.
#[must_use]
pub fn prediction_type(name: &str) -> Option<PredictionType> {
    let found = PREDICTION_TYPES.iter().find(|(n, _)| *n == name);
    found.map(|(_, kind)| *kind)
}

/// What diffusers calls a prediction type.
#[must_use]
pub fn prediction_name(kind: PredictionType) -> &'static str {
    let found = PREDICTION_TYPES.iter().find(|(_, k)| *k == kind);
    found.expect("every type has a name").0
}
