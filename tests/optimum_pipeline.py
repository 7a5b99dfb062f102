"""Runs a converted model directory, unchanged, in optimum's ONNX pipeline and compares the picture with sdrun's.

    sdrun txt2img -m DIR -p TEXT --profile diffusers --sampler DDIM --cfg 5 --seed 1 -o ours.png --dump ours.safetensors
    python optimum_pipeline.py DIR TEXT ours.png ours.safetensors

Prints the PSNR; fails below 45 dB. Needs optimum-onnx, onnxruntime, diffusers, pillow.
"""

import sys

import numpy as np
import torch
from diffusers import DDIMScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file


def main():
    directory, prompt, picture, dump = sys.argv[1:]
    pipeline = ORTStableDiffusionPipeline.from_pretrained(directory)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = torch.from_numpy(load_file(dump)["initial_noise"])
    theirs = pipeline(
        prompt,
        negative_prompt="",
        num_inference_steps=20,
        guidance_scale=5.0,
        height=noise.shape[2] * 8,
        width=noise.shape[3] * 8,
        latents=noise,
    ).images[0]
    a = np.asarray(theirs, dtype=np.float64)
    b = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    error = np.mean((a - b) ** 2)
    psnr = np.inf if error == 0 else 10 * np.log10(255.0**2 / error)
    print(f"PSNR {psnr:.1f} dB")
    sys.exit(0 if psnr >= 45 else 1)


if __name__ == "__main__":
    main()
