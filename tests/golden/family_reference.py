"""Reference outputs of every family's tiny synthetic checkpoint, by diffusers and transformers in single precision.

    python family_reference.py FOLDER OUT.safetensors

FOLDER holds FAMILY.safetensors for every family below, made by `sdconvert synth --family FAMILY --tiny`. Tensors are
renamed by diffusers' own single-file converters, and the networks are built from the published configurations, of which
only the widths are replaced by those of the tensors. The output is `families.safetensors`.

Made with torch 2.15.0, diffusers 0.39.0, transformers 4.57.6, numpy 2, safetensors 0.8 (any recent ones will do).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TOKENS = 12
ATTENDS, RESNETS = "CrossAttn{}Block2D", "{}Block2D"

# Structure as in each repository's unet/config.json.
SD1 = dict(levels="aaar", layers_per_block=2, heads=8)
SD2 = dict(SD1, heads=None, use_linear_projection=True)
SDXL = dict(
    levels="raa",
    layers_per_block=2,
    heads=None,
    use_linear_projection=True,
    transformer_layers_per_block=[1, 2, 10],
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
)
UNETS = {
    "sd15": SD1,
    "sd15-inpaint": SD1,
    "instruct-pix2pix": SD1,
    "sd15-lcm": dict(SD1, time_cond_proj_dim=256),
    "bk-sdm-base": dict(SD1, layers_per_block=1),
    "bk-sdm-small": dict(SD1, layers_per_block=1, mid_block_type=None),
    "bk-sdm-tiny": dict(SD1, levels="aaa", layers_per_block=1, mid_block_type=None),
    "sd21": SD2,
    "sd21-inpaint": SD2,
    "sd-turbo": SD2,
    "sdxl": SDXL,
    "sdxl-inpaint": SDXL,
    "sdxl-lcm": dict(SDXL, time_cond_proj_dim=256),
    "sdxl-refiner": dict(SDXL, levels="raar", transformer_layers_per_block=4),
    "ssd-1b": dict(
        SDXL,
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 2, 4],
        reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1],
    ),
    "vega": dict(
        SDXL,
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=[1, 1, 2],
        reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1],
    ),
    "koala-700m": dict(
        SDXL, layers_per_block=1, mid_block_type=None, transformer_layers_per_block=[1, 2, 5]
    ),
    "koala-1b": dict(SDXL, layers_per_block=1, transformer_layers_per_block=[1, 2, 6]),
}

# Where each family's file has its text encoders, and how many of the stored layers it has.
CLIP_L = dict(hidden_act="quick_gelu", kind="clip")
OPEN_CLIP = dict(hidden_act="gelu", kind="open_clip")
TEXTS = {
    "sd15": [("cond_stage_model.transformer.", CLIP_L)],
    "sd21": [("cond_stage_model.model.", dict(OPEN_CLIP, unused=1))],
    "sd-turbo": [("conditioner.embedders.0.model.", dict(OPEN_CLIP, unused=1))],
    "sdxl": [
        ("conditioner.embedders.0.transformer.", CLIP_L),
        ("conditioner.embedders.1.model.", dict(OPEN_CLIP, projection=True)),
    ],
    "sdxl-refiner": [("conditioner.embedders.0.model.", dict(OPEN_CLIP, projection=True))],
}


def unet_config(name, weights):
    spec = dict(UNETS[name])
    levels, heads = spec.pop("levels"), spec.pop("heads")
    prefix = "model.diffusion_model."
    per_level = spec["layers_per_block"] + 1
    shape = lambda key: weights[prefix + key].shape
    widths = [shape(f"input_blocks.{1 + i * per_level}.0.in_layers.2.weight")[0] for i in range(len(levels))]
    kinds = {"a": ATTENDS, "r": RESNETS}
    first_attention = next(k for k in weights if k.startswith(prefix) and k.endswith("attn2.to_k.weight"))
    config = dict(
        spec,
        in_channels=shape("input_blocks.0.0.weight")[1],
        block_out_channels=widths,
        down_block_types=[kinds[k].format("Down") for k in levels],
        up_block_types=[kinds[k].format("Up") for k in reversed(levels)],
        cross_attention_dim=weights[first_attention].shape[1],
        attention_head_dim=heads or [w // 64 for w in widths],
    )
    if "addition_embed_type" in config:
        config["projection_class_embeddings_input_dim"] = shape("label_emb.0.0.weight")[1]
    return config


def build_unet(name, weights):
    config = unet_config(name, weights)
    model = UNet2DConditionModel(**config)
    state = convert_ldm_unet_checkpoint(dict(weights), {**model.config})
    if "time_cond_proj_dim" in config:  # diffusers' converter does not know it
        key = "time_embed.cond_proj.weight"
        state["time_embedding.cond_proj.weight"] = weights["model.diffusion_model." + key]
    model.load_state_dict(state)
    return model.eval()


def build_text(prefix, spec, weights):
    state = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    if spec["kind"] == "clip":
        width = state["text_model.embeddings.token_embedding.weight"].shape[1]
        layers = 1 + max(int(k.split(".")[3]) for k in state if ".layers." in k)
        feed_forward = state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    else:
        width = state["token_embedding.weight"].shape[1]
        layers = 1 + max(int(k.split(".")[2]) for k in state if "resblocks." in k) - spec.get("unused", 0)
        feed_forward = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=spec["hidden_act"],
        projection_dim=width,
        eos_token_id=2,  # as in the published configurations: pool at the highest id
    )
    model = (CLIPTextModelWithProjection if "projection" in spec else CLIPTextModel)(config)
    if spec["kind"] == "open_clip":
        state = convert_open_clip_checkpoint(model, dict(weights), prefix)
    missing, unexpected = model.load_state_dict(state, strict=False)
    allowed = (".position_ids", "text_projection.weight", f".layers.{layers}.")
    assert all(any(a in k for a in allowed) for k in unexpected), unexpected
    assert all(k.endswith("position_ids") for k in missing), missing
    return model.eval()


class Normal:
    def __init__(self, seed):
        self.random = np.random.RandomState(seed)

    def __call__(self, *shape):
        return torch.from_numpy(self.random.standard_normal(shape).astype(np.float32))


def text_outputs(family, weights, result):
    ids = torch.full((1, TOKENS), 49407)
    ids[0, :6] = torch.tensor([49406, 320, 1125, 539, 320, 2368])
    result["text.input_ids"] = ids
    for i, (prefix, spec) in enumerate(TEXTS[family]):
        model = build_text(prefix, spec, weights)
        out = model(input_ids=ids, output_hidden_states=True)
        number = 2 if "projection" in spec else 1
        if family.startswith("sdxl"):
            # SDXL takes the output of the last layer but one, without the final norm.
            result[f"text.{number}.penultimate"] = out.hidden_states[-2]
        else:
            result[f"text.{number}.last_hidden_state"] = out.last_hidden_state
        if "projection" in spec:
            result[f"text.{number}.text_embeds"] = out.text_embeds


def unet_inputs(config, result, normal, size=8):
    inputs = dict(
        sample=normal(1, config["in_channels"], size, size),
        timestep=torch.tensor(981.0),
        encoder_hidden_states=normal(1, TOKENS, config["cross_attention_dim"]),
    )
    if "addition_embed_type" in config:
        five = config.get("transformer_layers_per_block") == 4
        ids = [1024.0, 768.0, 0.0, 16.0, 6.0] if five else [1024.0, 768.0, 0.0, 16.0, 512.0, 640.0]
        inputs["time_ids"] = torch.tensor([ids])
        inputs["text_embeds"] = normal(1, config["projection_class_embeddings_input_dim"] - 256 * len(ids))
    if "time_cond_proj_dim" in config:
        inputs["timestep_cond"] = normal(1, config["time_cond_proj_dim"])
    for name, value in inputs.items():
        result[f"unet.{name}"] = value
    return inputs


def run(model, inputs, **more):
    added = {k: inputs[k] for k in ("time_ids", "text_embeds") if k in inputs}
    if "timestep_cond" in inputs:
        more["timestep_cond"] = inputs["timestep_cond"]
    return model(
        inputs["sample"],
        inputs["timestep"],
        inputs["encoder_hidden_states"],
        added_cond_kwargs=added or None,
        return_dict=False,
        **more,
    )


def control_outputs(name, folder, normal):
    """A ControlNet, and the UNet of the same name under its control."""
    result = {}
    base = load(folder, name)
    config = unet_config(name, base)
    weights = load(folder, f"controlnet-{name}")
    state = convert_controlnet_checkpoint(dict(weights), config)
    for i, j in ((0, 1), (2, 2)):  # diffusers' converter does not know SDXL's added conditioning
        for kind in ("weight", "bias"):
            key = f"control_model.label_emb.0.{i}.{kind}"
            if key in weights:
                state[f"add_embedding.linear_{j}.{kind}"] = weights[key]
    trunk = {k: v for k, v in config.items() if k != "up_block_types"}
    model = ControlNetModel(**trunk)
    model.load_state_dict(state)
    model.eval()
    inputs = unet_inputs(config, result, normal)
    hint = torch.sigmoid(normal(1, 3, 64, 64))
    result["controlnet_cond"] = hint
    down, mid = run(model, inputs, controlnet_cond=hint, conditioning_scale=0.75)
    for i, residual in enumerate(down):
        result[f"down_block_res_samples.{i}"] = residual
    result["mid_block_res_sample"] = mid
    unet = build_unet(name, base)
    result["out_sample"] = run(
        unet, inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid
    )[0]
    return result


def taesd_outputs(folder, normal):
    weights = load(folder, "taesd")
    width = weights["encoder.layers.0.weight"].shape[0]
    model = AutoencoderTiny(
        encoder_block_out_channels=[width] * 4, decoder_block_out_channels=[width] * 4
    )
    model.load_state_dict(weights)
    model.eval()
    image, latents = torch.tanh(normal(1, 3, 40, 48)), normal(1, 4, 5, 6)
    return {
        "image": image,
        "latents": model.encode(image).latents,
        "latent_sample": latents,
        "sample": model.decode(latents).sample,
    }


def load(folder, name):
    return {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    args = parser.parse_args()
    result = {}
    for seed, name in enumerate(UNETS):
        normal, found = Normal(seed), {}
        weights = load(args.folder, name)
        if name in TEXTS:
            text_outputs(name, weights, found)
        model = build_unet(name, weights)
        inputs = unet_inputs(unet_config(name, weights), found, normal)
        found["unet.out_sample"] = run(model, inputs)[0]
        result.update({f"{name}.{key}": value for key, value in found.items()})
    for name in ("sd15", "sdxl"):
        found = control_outputs(name, args.folder, Normal(100))
        result.update({f"controlnet-{name}.{key}": value for key, value in found.items()})
    result.update({f"taesd.{key}": value for key, value in taesd_outputs(args.folder, Normal(200)).items()})
    save_file({name: tensor.contiguous().numpy() for name, tensor in result.items()}, args.out)


if __name__ == "__main__":
    main()
