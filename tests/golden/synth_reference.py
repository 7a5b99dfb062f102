"""Reference outputs of a synthetic checkpoint, by diffusers and transformers in single precision.

    python synth_reference.py CHECKPOINT OUT.safetensors [--seed N]

CHECKPOINT is made by `sdconvert synth --family sd15 [--tiny]`. Every weight in it is first made again by the rule that
`sdconvert` documents (SHA-256 of seed and name, SplitMix64) and must be the same to the bit. The networks' widths are read
from the tensors. The full-width output is not committed; the tiny one is `tiny_synth.safetensors`.

Made with torch 2.15.0, diffusers 0.39.0, transformers 4.57.6, numpy 2, safetensors 0.8 (any recent ones will do).
"""

import argparse
import hashlib
import struct

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_PREFIX = "cond_stage_model.transformer."


def rule(seed, name, shape):
    """The weight `name` in half precision."""
    key = struct.unpack("<Q", hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])[0]
    i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(key) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    if name.endswith(".bias"):
        base, amplitude = 0.0, 0.05
    elif len(shape) == 1:
        base, amplitude = 1.0, 0.1
    elif name.endswith("_embedding.weight"):
        base, amplitude = 0.0, 0.05
    else:
        base, amplitude = 0.0, np.sqrt(3.0 / np.prod(shape[1:]))
    value = np.float32(base) + np.float32(amplitude) * (np.float32(2) * u - np.float32(1))
    return value.astype(np.float16).reshape(shape)


def load_checked(path, seed):
    weights = load_file(path)
    for name, tensor in weights.items():
        if tensor.dtype == torch.float16:
            expected = torch.from_numpy(rule(seed, name, tuple(tensor.shape)))
            assert torch.equal(tensor, expected), f"{name} does not follow the rule"
    return {name: tensor.float() for name, tensor in weights.items()}


def build_unet(weights):
    prefix = "model.diffusion_model."
    ldm = {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
    # Levels start after the input convolution and after every downsampling: blocks 1, 4, 7, 10.
    widths = [ldm[f"input_blocks.{b}.0.in_layers.2.weight"].shape[0] for b in (1, 4, 7, 10)]
    context = ldm["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    model = UNet2DConditionModel(
        block_out_channels=widths, cross_attention_dim=context, attention_head_dim=8, layers_per_block=2
    )
    model.load_state_dict(convert_ldm_unet_checkpoint(dict(weights), {**model.config}))
    return model.eval()


def build_vae(weights):
    prefix = "first_stage_model."
    widths = [weights[f"{prefix}encoder.down.{i}.block.1.conv2.weight"].shape[0] for i in range(4)]
    model = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        layers_per_block=2,
    )
    model.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), {**model.config}))
    return model.eval()


def build_text(weights):
    text = {k[len(TEXT_PREFIX):]: v for k, v in weights.items() if k.startswith(TEXT_PREFIX)}
    text = {k: v for k, v in text.items() if not k.endswith("position_ids")}
    width = text["text_model.embeddings.token_embedding.weight"].shape[1]
    layers = 1 + max(int(k.split(".")[3]) for k in text if ".layers." in k)
    feed_forward = text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act="quick_gelu",
        eos_token_id=2,  # as in the published configurations: pool at the highest id
    )
    model = CLIPTextModel(config)
    missing, unexpected = model.load_state_dict(text, strict=False)
    assert not unexpected and all(k.endswith("position_ids") for k in missing), (missing, unexpected)
    return model.eval()


@torch.no_grad()
def outputs(weights):
    random = np.random.RandomState(0)

    def normal(*shape):
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    result = {}
    text = build_text(weights)
    # "a photo of a cat"
    ids = torch.full((1, 77), 49407)
    ids[0, :6] = torch.tensor([49406, 320, 1125, 539, 320, 2368])
    states = text(input_ids=ids, output_hidden_states=True)
    result["text.input_ids"] = ids
    result["text.last_hidden_state"] = states.last_hidden_state
    result["text.pooler_output"] = states.pooler_output
    result["text.hidden_states.1"] = states.hidden_states[1]
    result["text.normed_hidden_states.1"] = text.text_model.final_layer_norm(states.hidden_states[1])

    unet = build_unet(weights)
    context = unet.config.cross_attention_dim
    full_width = context == 768
    # The second sample's sides are no multiples of 8: upsampling goes to the skip's size. The third has two chunks.
    cases = [(1, 64, 64, 77, 981.0)] if full_width else [(2, 16, 24, 77, 981.0), (1, 9, 13, 77, 3.5), (1, 8, 8, 154, 500.0)]
    for i, (batch, height, width, tokens, timestep) in enumerate(cases):
        sample, embeddings = normal(batch, 4, height, width), normal(batch, tokens, context)
        result[f"unet.{i}.sample"] = sample
        result[f"unet.{i}.timestep"] = torch.tensor(timestep)
        result[f"unet.{i}.encoder_hidden_states"] = embeddings
        result[f"unet.{i}.out_sample"] = unet(sample, timestep, embeddings).sample

    vae = build_vae(weights)
    latent, image = (normal(1, 4, 32, 32), normal(1, 3, 128, 128)) if full_width else (normal(1, 4, 6, 5), normal(1, 3, 40, 48))
    result["vae_decoder.latent_sample"] = latent
    result["vae_decoder.sample"] = vae.decode(latent).sample
    result["vae_encoder.sample"] = image
    result["vae_encoder.latent_parameters"] = vae.encode(image).latent_dist.parameters
    return {name: tensor.contiguous().numpy() for name, tensor in result.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    save_file(outputs(load_checked(args.checkpoint, args.seed)), args.out)


if __name__ == "__main__":
    main()
