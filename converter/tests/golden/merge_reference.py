"""Merged weights in double precision, rounded once to half precision.

    python merge_reference.py OUT.safetensors

Model A is the tiny synthetic SD 1.5 of seed 0, whose weights are made again here by the rule that `sdconvert` documents; B
goes 0.3 and C 0.2 of the way to those of seeds 1 and 2. Where sd-mecha has the method, its result is checked to be the
same up to single precision.

Made with numpy 2, torch 2.15.0, sd-mecha 1.1.8.
"""

import hashlib
import struct
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from sd_mecha.extensions.builtin.merge_methods import cosine, linear, ties

UNET = "model.diffusion_model."
TENSORS = {
    "conv_in.weight": (UNET + "input_blocks.0.0.weight", (32, 4, 3, 3)),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight": (
        UNET + "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
        (64, 64),
    ),
    "time_embedding.linear_1.bias": (UNET + "time_embed.0.bias", (128,)),
}


def numbers(seed, name, count):
    key = struct.unpack("<Q", hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])[0]
    i = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(key) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def synthetic(seed, name, shape):
    u = numbers(seed, name, int(np.prod(shape)))
    amplitude = 0.05 if name.endswith("bias") else np.sqrt(3.0 / np.prod(shape[1:]))
    value = np.float32(amplitude) * (np.float32(2) * u - np.float32(1))
    return value.astype(np.float16).astype(np.float32).reshape(shape)


def towards(a, b, part):
    return (a + np.float32(part) * (b - a)).astype(np.float16).astype(np.float64)


def cosine_local(a, b, alpha, whole):
    flat_a, flat_b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    norm = lambda x: np.maximum(np.sqrt((x**2).sum(0)), 1e-8)
    similarity = (flat_a * flat_b).sum(0) / (norm(flat_a) * norm(flat_b))
    if whole:
        similarity = (similarity + (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())) / 2
    k = 1 - np.clip(similarity - alpha, 0, 1)
    return a + k.reshape(a.shape[1:]) * (b - a)


def slerp(a, b, alpha):
    length_a, length_b = np.sqrt((a**2).sum()), np.sqrt((b**2).sum())
    omega = np.arccos((a * b).sum() / (length_a * length_b))
    arc = (np.sin((1 - alpha) * omega) * a / length_a + np.sin(alpha * omega) * b / length_b) / np.sin(omega)
    return arc * (length_a + alpha * (length_b - length_a))


def ties_merge(a, others, alpha, density):
    kept = int(round(density * a.size))
    deltas = []
    for other in others:
        # Differences are single precision before they are ranked.
        delta = (other.astype(np.float32) - a.astype(np.float32)).astype(np.float64)
        threshold = np.sort(np.abs(delta).ravel())[-kept]
        deltas.append(np.where(np.abs(delta) >= threshold, delta, 0))
    deltas = np.stack(deltas)
    agree = deltas * deltas.sum(0) > 0
    count = agree.sum(0)
    return a + alpha * np.where(count > 0, (deltas * agree).sum(0) / np.maximum(count, 1), 0)


def dare_merge(name, a, others, alpha, density, seed):
    inputs = len(others) + 1
    u = numbers(seed, name, a.size * inputs).astype(np.float64).reshape(a.size, inputs)
    result = a.ravel().copy()
    for i, other in enumerate(others, 1):
        result += np.where(u[:, i] < density, alpha / density * (other - a).ravel(), 0)
    return result.reshape(a.shape)


def train_difference(a, b, c, alpha):
    near, far = np.abs(b - a), np.abs(b - c)
    mask = np.divide(near, near + far, out=np.zeros_like(a), where=near + far > 0)
    return a + 1.8 * alpha * mask * (b - c)


def reference(name, a, b, c):
    return {
        "weighted-sum": a + 0.3 * (b - a),
        "add-difference": a + 0.7 * (b - c),
        "sum-twice": (a + 0.3 * (b - a)) + 0.4 * (c - (a + 0.3 * (b - a))),
        "triple-sum": 0.3 * a + 0.3 * b + 0.4 * c,
        "train-difference": train_difference(a, b, c, 1.0),
        "slerp": slerp(a, b, 0.3),
        "cosine-a": cosine_local(a, b, 0.6, False),
        "cosine-b": cosine_local(a, b, 0.6, True),
        "ties": ties_merge(a, [b, c], 0.8, 0.25),
        "dare": dare_merge(name, a, [b, c], 0.5, 0.25, 7),
        "average": (a + 2 * b + 0.5 * c) / 3.5,
    }


def check_with_sd_mecha(a, b, c, found):
    t = lambda x: torch.from_numpy(x)
    kept = int(round(0.25 * a.size))
    k = (kept - 1.5) / a.size  # sd-mecha keeps one element more
    delta = lambda x: t((x.astype(np.float32) - a.astype(np.float32)).astype(np.float64))
    mask = linear.train_difference_mask.__wrapped__(t(a), t(b), t(c), torch.tensor(1.0, dtype=torch.float64))
    expected = {
        "slerp": linear.slerp.__wrapped__(t(a), t(b), torch.tensor(0.3, dtype=torch.float64)),
        "cosine-a": cosine.add_cosine_a.__wrapped__(t(a), t(b), torch.tensor(0.6, dtype=torch.float64)),
        "cosine-b": cosine.add_cosine_b.__wrapped__(t(a), t(b), torch.tensor(0.6, dtype=torch.float64)),
        "train-difference": t(a) + mask * t(b - c),
        "ties": t(a) + 0.8 * ties.ties_sum.__wrapped__(delta(b), delta(c), k=k, vote_sgn=True),
    }
    for name, value in expected.items():
        error = np.abs(value.numpy() - found[name]).max() / np.abs(found[name]).max()
        assert error < 1e-6, (name, error)


def main():
    result = {}
    for name, (key, shape) in TENSORS.items():
        a, b, c = (synthetic(seed, key, shape) for seed in (0, 1, 2))
        b, c = towards(a, b, 0.3), towards(a, c, 0.2)
        a = a.astype(np.float64)
        found = reference(name, a, b, c)
        check_with_sd_mecha(a, b, c, found)
        for method, value in found.items():
            result[f"{method}:{name}"] = value.astype(np.float16)
    save_file(result, sys.argv[1])


if __name__ == "__main__":
    main()
