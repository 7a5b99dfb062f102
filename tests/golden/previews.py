"""Makes previews.json: cheap previews of random latents, computed by torch as ComfyUI's Latent2RGBPreviewer does.

    python previews.py

Factors are those of ComfyUI's `comfy/latent_formats.py` (SD15, which also serves Stable Diffusion 2, and SDXL). `colours` are torch's
`linear` over the channels; `bytes` are (x + 1) / 2, clamped, times 255, cut off.
"""

import json
from pathlib import Path

import torch

FACTORS = {
    "sd": (
        [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]],
        None,
    ),
    "sdxl": (
        [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]],
        [0.1084, -0.0175, -0.0011],
    ),
}


def preview(latents, factors, bias):
    weight = torch.tensor(factors).transpose(0, 1)
    colours = torch.nn.functional.linear(latents.movedim(0, -1), weight, bias=bias and torch.tensor(bias))
    pixels = (((colours + 1.0) / 2.0).clamp(0, 1) * 255).to(torch.uint8)
    return {"colours": colours.flatten().tolist(), "bytes": pixels.flatten().tolist()}


latents = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(7)) * 1.2
golden = {"torch": torch.__version__, "shape": list(latents.shape), "latents": latents.flatten().tolist()}
golden |= {name: preview(latents, *factors) for name, factors in FACTORS.items()}
(Path(__file__).parent / "previews.json").write_text(json.dumps(golden) + "\n")
