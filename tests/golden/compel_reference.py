"""Embeddings of weighted prompts by compel, over the tiny synthetic text encoder of Stable Diffusion 1.

    python compel_reference.py FOLDER OUT.safetensors

FOLDER holds sd15.safetensors, by `sdconvert synth --family sd15 --tiny`. Prompts are read by `prompts.py`; compel weights them
in its mode REMOVE. OUT has every eleventh token's embedding per case.

Made with compel 2.5.1, torch 2.14.1, transformers 4.57.6.
"""

import sys
from pathlib import Path

import torch
from compel.embeddings_provider import DownweightMode, EmbeddingsProvider
from safetensors.torch import save_file

from family_reference import TEXTS, build_text, load
from prompts import clip_tokenizer, spans

# `tests/prompts.rs` has the same.
CASES = {
    "lighter": "a cat (on a mat:0.5), at night",
    "heavier": "a (cat:1.4) on a mat",
    "both": "(a cat:0.2) on (a mat:1.3) in (rain:0.8)",
    "gone": "a cat (and a dog:0)",
}


@torch.no_grad()
def main(folder, out):
    tokenizer, result = clip_tokenizer(), {}
    tokenizer.model_max_length = 77
    [(prefix, spec)] = TEXTS["sd15"]
    model = build_text(prefix, spec, load(Path(folder), "sd15"))
    provider = EmbeddingsProvider(tokenizer, model, downweight_mode=DownweightMode.REMOVE)
    for name, prompt in CASES.items():
        texts, weights = zip(*spans(prompt))
        z = provider.get_embeddings_for_weighted_prompt_fragments([list(texts)], [list(weights)])
        result[name] = z[0][::11].contiguous()
    save_file(result, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
