"""Pictures of full-width models, by `sdrun` and by diffusers in single precision over the same weights: do they agree?

    python full_width.py FOLDER --family sd15 [--size 512] [--steps 4] [--guidance 7] [--seed 7] [--bin target/release]

Makes FOLDER/FAMILY.safetensors (`sdconvert synth`) and FOLDER/FAMILY (`sdconvert build`) unless they are there, lets `sdrun`
and diffusers make a picture with Euler under diffusers' rules, and compares: the relative L2 error of the last latents, the
peak signal-to-noise ratio of the picture, and the peak memory of both. Ends with an error below 45 dB. One network is in
memory at a time: SDXL needs 17 GB for diffusers' side and 14 GB on the disk. Nothing is committed of what it makes.

Made with torch 2.14.1, diffusers 0.39.0, transformers 4.57.6, numpy 2, safetensors 0.8, Pillow.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LEAST_DB = 45.0
PROMPT = "a lighthouse at dusk, oil painting"
NEGATIVE = "blurry"
PREFIXES = dict(
    text=("cond_stage_model.", "conditioner."), unet=("model.diffusion_model.",), vae=("first_stage_model.",)
)


def weights(checkpoint, part):
    """One network's tensors, as they are stored: they become single precision where they are copied into the network."""
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIXES[part])}


def diffusers_picture(folder, args):
    """The last latents and the picture of diffusers' pipeline, whose networks come and go one after the other."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.image_processor import VaeImageProcessor
    from pipelines import build_texts, build_unet, build_vae, is_xl
    from transformers import CLIPTokenizer

    torch.set_grad_enabled(False)
    xl, checkpoint, model = is_xl(args.family), folder / f"{args.family}.safetensors", folder / args.family
    names = ["tokenizer", "tokenizer_2"] if xl else ["tokenizer"]
    none = dict.fromkeys(("vae", "unet", "text_encoder", "tokenizer"))
    if xl:
        none |= dict(text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    else:
        none |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    def pipeline(**parts):
        config = json.loads((model / "scheduler/scheduler_config.json").read_text())
        kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        made = kind(**(none | parts), scheduler=EulerDiscreteScheduler.from_config(config))
        made.set_progress_bar_config(disable=True)
        return made

    texts = build_texts(args.family, weights(checkpoint, "text"))
    parts = {name.replace("tokenizer", "text_encoder"): text for name, text in zip(names, texts)}
    parts |= {name: CLIPTokenizer.from_pretrained(model / name) for name in names}
    encode = pipeline(**parts).encode_prompt
    told = dict(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=args.guidance > 1,
    )
    keys = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(keys, encode(**told)))
    del texts, parts, encode
    gc.collect()

    unet = build_unet(args.family, weights(checkpoint, "unet"))
    gc.collect()
    latents = pipeline(unet=unet)(
        **embeds,
        width=args.size,
        height=args.size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="latent",
    ).images
    del unet
    gc.collect()

    vae = build_vae(args.family, weights(checkpoint, "vae"))
    picture = VaeImageProcessor().postprocess(vae.decode(latents / vae.config.scaling_factor).sample, output_type="pil")
    return latents.numpy(), np.array(picture[0])


def in_a_process(command):
    """Runs a command; seconds and peak memory in bytes."""
    start = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="sd15", help="as `sdconvert synth` names it: sd15 or sdxl")
    parser.add_argument("--tiny", action="store_true", help="a narrow model, to try the script")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=7)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--bin", type=Path, default=root / "target/release", help="folder of sdconvert and sdrun")
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()

    folder, family = args.folder, args.family
    if args.reference:  # this process is the one that runs diffusers
        sys.path.insert(0, str(Path(__file__).parent))
        latents, picture = diffusers_picture(folder, args)
        return np.savez(args.reference, latents=latents, picture=picture)

    from PIL import Image
    from safetensors.numpy import load_file

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{family}.safetensors"
    if not checkpoint.exists():
        tiny = ["--tiny"] if args.tiny else []
        in_a_process([args.bin / "sdconvert", "synth", "--family", family, *tiny, "-o", checkpoint])
    if not (folder / family).exists():
        in_a_process([args.bin / "sdconvert", "build", checkpoint, "-o", folder / family])

    name = f"{family}-{args.size}-{args.steps}-{args.guidance:g}-{args.seed}"
    dump, png, reference = (folder / f"{name}{suffix}" for suffix in (".safetensors", ".png", ".npz"))
    options = ["-W", args.size, "-H", args.size, "--steps", args.steps, "--cfg", args.guidance, "--seed", args.seed]
    ours_s, ours_bytes = in_a_process(
        [args.bin / "sdrun", "txt2img", "-m", folder / family, "-p", PROMPT, "-n", NEGATIVE, "--profile", "diffusers"]
        + ["--sampler", "Euler", *map(str, options), "--dump", dump, "-o", png, "-q"]
    )
    options = ["--size", args.size, "--steps", args.steps, "--guidance", args.guidance, "--seed", args.seed]
    theirs_s, theirs_bytes = in_a_process(
        [sys.executable, __file__, folder, "--family", family, *map(str, options), "--reference", reference]
    )

    expected, found = np.load(reference), load_file(dump)["final_latents"]
    latents = expected["latents"].astype(np.float64)
    picture = np.array(Image.open(png).convert("RGB")).astype(np.float64)
    difference = picture - expected["picture"]
    error = np.mean(difference**2)
    psnr = 10 * np.log10(255**2 / error) if error > 0 else float("inf")
    result = dict(
        case=name,
        latents_relative_l2=float(np.linalg.norm(found - latents) / np.linalg.norm(latents)),
        picture_psnr_db=round(float(psnr), 2),
        picture_largest_difference=int(np.abs(difference).max()),
        picture_spread=round(float(picture.std()), 1),
        ours=dict(seconds=round(ours_s, 1), peak_mb=ours_bytes // 10**6),
        diffusers=dict(seconds=round(theirs_s, 1), peak_mb=theirs_bytes // 10**6),
    )
    print(json.dumps(result, indent=2))
    if not psnr >= LEAST_DB:
        sys.exit(f"the pictures differ: {psnr:.1f} dB, at least {LEAST_DB} are expected")


if __name__ == "__main__":
    main()
