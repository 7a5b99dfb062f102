"""Whole runs of diffusers' pipelines over tiny synthetic checkpoints, in single precision.

    python pipelines.py FOLDER OUT.safetensors

FOLDER holds, for every family that `pipelines.json` names and `sdxl-refiner`, FAMILY.safetensors by `sdconvert synth --family FAMILY --tiny`
and the folder FAMILY by `sdconvert build FAMILY.safetensors -o FAMILY`. Networks are built from the former as
`family_reference.py` does it; tokenizers and the scheduler's configuration are those of the latter. The output is
`pipelines.safetensors`: per case of `pipelines.json` the first noise, the last latents, and of some the picture.

`pipelines.json` speaks as requests do: sizes are width and height, a crop is its left and top edge, clip skip 1 is the last
layer. `class` is a scheduler other than the folder's own, `scheduler` are changes of its configuration.

Made with torch 2.14.1, diffusers 0.39.0, transformers 4.57.6 (version 5 names CLIP's tensors otherwise), numpy 2,
safetensors 0.8.
"""

import argparse
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.numpy import save_file
from transformers import CLIPTokenizer

from family_reference import TEXTS, build_text, build_unet, load

SEED = 7
SIDE = 64


def build_vae(family, weights):
    prefix = "first_stage_model.decoder."
    widths = [weights[f"{prefix}up.{i}.block.0.conv1.weight"].shape[0] for i in range(4)]
    model = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        scaling_factor=0.13025 if is_xl(family) else 0.18215,
    )
    model.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), model.config))
    return model.eval()


def is_xl(family):
    return family.startswith(("sdxl", "ssd-1b"))


def build_texts(family, weights):
    """SSD-1B and the consistency models have the text encoders of what they were distilled from."""
    texts = TEXTS[family if family in TEXTS else "sdxl" if is_xl(family) else "sd15"]
    return [build_text(prefix, spec, weights) for prefix, spec in texts]


def build_scheduler(folder, case):
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    config |= case.get("scheduler", {})
    return getattr(diffusers, case.get("class", config["_class_name"])).from_config(config)


class Networks:
    """A family's networks and tokenizers."""

    def __init__(self, folder, family):
        weights = load(folder, family)
        self.xl = is_xl(family)
        self.texts = build_texts(family, weights)
        self.refines = family == "sdxl-refiner"
        names = ["tokenizer_2"] if self.refines else ["tokenizer", "tokenizer_2"][: len(self.texts)]
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / family / name) for name in names]
        self.unet = build_unet(family, weights)
        self.vae = build_vae(family, weights)

    def pipeline(self, scheduler):
        untouched = type(scheduler).from_config(scheduler.config)
        parts = dict(vae=self.vae, unet=self.unet, scheduler=scheduler)
        if self.refines:
            return StableDiffusionXLImg2ImgPipeline(
                **parts,
                text_encoder=None,
                tokenizer=None,
                text_encoder_2=self.texts[0],
                tokenizer_2=self.tokenizers[0],
                requires_aesthetics_score=True,
                force_zeros_for_empty_prompt=False,
                add_watermarker=False,
            )
        parts |= dict(text_encoder=self.texts[0], tokenizer=self.tokenizers[0])
        if self.xl:
            return StableDiffusionXLPipeline(
                **parts, text_encoder_2=self.texts[1], tokenizer_2=self.tokenizers[1], add_watermarker=False
            )
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        # This class corrects the offset of the configurations that it is built with. The one that is made for consistency
        # models does not, but runs no other scheduler than theirs.
        if self.unet.config.time_cond_proj_dim is not None:
            pipeline.scheduler = untouched
        return pipeline


def run(networks, refiner, folder, case, prompt, steps):
    pipeline = networks.pipeline(build_scheduler(folder, case))
    pipeline.set_progress_bar_config(disable=True)
    width, height = case.get("width", SIDE), SIDE
    told = dict(
        prompt=prompt,
        negative_prompt=case.get("negative_prompt"),
        num_inference_steps=steps,
        guidance_scale=case["guidance_scale"],
        guidance_rescale=case.get("guidance_rescale", 0.0),
        clip_skip=case["clip_skip"] - 1 if "clip_skip" in case else None,
    )
    if networks.xl:
        turned = lambda name: tuple(reversed(case[name])) if name in case else None
        told |= dict(
            original_size=turned("original_size"),
            target_size=turned("target_size"),
            crops_coords_top_left=turned("crop") or (0, 0),
        )
    made = lambda output, **more: pipeline(
        **told,
        width=width,
        height=height,
        generator=torch.Generator().manual_seed(SEED),
        output_type=output,
        **more,
    ).images
    noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(SEED))
    if "refiner_start" in case:
        start = case["refiner_start"]
        refining = refiner.pipeline(build_scheduler(folder, case))
        refining.set_progress_bar_config(disable=True)
        latents = made("latent", denoising_end=start)
        latents = refining(**told, image=latents, denoising_start=start, output_type="latent").images
    else:
        latents = made("latent")
    result = dict(initial_noise=noise.numpy(), final_latents=latents.numpy())
    if case.get("picture"):
        result["picture"] = np.array(made("pil")[0])
    return result


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    args = parser.parse_args()
    asked = json.loads((Path(__file__).parent / "pipelines.json").read_text())
    result, networks = {}, {}
    refiner = Networks(args.folder, "sdxl-refiner")
    for name, case in asked["cases"].items():
        family = name.split(".")[0]
        if family not in networks:
            networks = {family: Networks(args.folder, family)}
        found = run(networks[family], refiner, args.folder / family, case, asked["prompt"], asked["steps"])
        result.update({f"{name}.{key}": value for key, value in found.items()})
    save_file(result, args.out)


if __name__ == "__main__":
    main()
