"""Eight adapters of mixed kinds for every attention layer of a checkpoint, to time conversions with many LoRAs.

    python mixed_loras.py CHECKPOINT.safetensors FOLDER

Modules go by the names of the checkpoint's single-file layout. The numbers are noise, of a size that changes each layer by
about one percent. Made with numpy 2 and safetensors 0.8 (any recent ones will do).
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

UNET = "model.diffusion_model."
CLIP_L = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2")
CONVOLUTIONS = ("in_layers.2", "out_layers.3", "skip_connection", ".op", "emb_layers.1")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

random = np.random.default_rng(0)


def shapes(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: info["shape"] for name, info in header.items()}


def modules(checkpoint):
    """Module name, shape, and whether it is one that only LoCon changes."""
    for name, shape in checkpoint.items():
        if not name.endswith(".weight") or len(shape) < 2:
            continue
        path = name.removesuffix(".weight")
        if path.startswith(UNET):
            flat = "lora_unet_" + path.removeprefix(UNET).replace(".", "_")
            if path.endswith(LAYERS):
                yield flat, shape, False
            elif path.endswith(CONVOLUTIONS):
                yield flat, shape, True
        elif path.startswith(CLIP_L) and path.endswith(TEXT):
            prefix = next(p for p in CLIP_L if path.startswith(p))
            yield "lora_te1_" + path.removeprefix(prefix).replace(".", "_"), shape, False


def noise(*shape, size=1.0):
    return (size * random.standard_normal(shape, dtype=np.float32)).astype(np.float16)


def low_rank(name, shape, rank):
    rows, columns, kernel = shape[0], shape[1], shape[2:]
    ones = [1] * len(kernel)
    return {
        f"{name}.lora_up.weight": noise(rows, rank, *ones, size=0.02),
        f"{name}.lora_down.weight": noise(rank, columns, *kernel, size=0.02),
        f"{name}.alpha": np.array(rank, np.float16),
    }


def loha(name, shape, rank):
    rows, columns = shape[0], int(np.prod(shape[1:]))
    parts = {f"{name}.alpha": np.array(rank, np.float16)}
    for i in "12":
        parts[f"{name}.hada_w{i}_a"] = noise(rows, rank, size=0.1)
        parts[f"{name}.hada_w{i}_b"] = noise(rank, columns, size=0.1)
    return parts


def lokr(name, shape, rank, factor=8):
    rows, columns = shape[0] // factor, int(np.prod(shape[1:])) // factor
    return {
        f"{name}.lokr_w1": noise(factor, factor, size=0.1),
        f"{name}.lokr_w2_a": noise(rows, rank, size=0.05),
        f"{name}.lokr_w2_b": noise(rank, columns, size=0.05),
        f"{name}.alpha": np.array(rank, np.float16),
    }


def dora(name, shape, rank):
    norms = (1 + noise(shape[0], *[1] * (len(shape) - 1), size=0.02)).astype(np.float16)
    return {**low_rank(name, shape, rank), f"{name}.dora_scale": norms}


def ia3(name, shape):
    return {f"{name}.weight": noise(shape[0], size=0.02), f"{name}.on_input": np.array(0, np.float16)}


def oft(name, shape, size=32):
    return {f"{name}.oft_blocks": noise(shape[0] // size, size, size, size=0.002)}


def glora(name, shape, rank):
    rows, columns, ones = shape[0], shape[1], [1] * (len(shape) - 2)
    return {
        f"{name}.a1.weight": noise(columns, rank, *ones, size=0.02),
        f"{name}.a2.weight": noise(rank, columns, *ones, size=0.02),
        f"{name}.b1.weight": noise(rows, rank, *ones, size=0.02),
        f"{name}.b2.weight": noise(rank, columns, *shape[2:], size=0.02),
    }


def main():
    checkpoint, folder = shapes(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    kinds = {
        "lora-32": (lambda n, s: low_rank(n, s, 32), False),
        "locon-16": (lambda n, s: low_rank(n, s, 16), True),
        "loha-8": (lambda n, s: loha(n, s, 8), False),
        "lokr-8": (lambda n, s: lokr(n, s, 8), False),
        "dora-16": (lambda n, s: dora(n, s, 16), False),
        "ia3": (ia3, False),
        "oft-32": (oft, False),
        "glora-8": (lambda n, s: glora(n, s, 8), False),
    }
    for kind, (make, convolutions) in kinds.items():
        tensors = {}
        for name, shape, only_locon in modules(checkpoint):
            if convolutions or not only_locon:
                tensors.update(make(name, shape))
        save_file(tensors, folder / f"{kind}.safetensors")
        print(kind, len(tensors))


if __name__ == "__main__":
    main()
