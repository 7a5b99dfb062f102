"""Textual inversions in the layouts of A1111, diffusers and SDXL trainers, and the embeddings of prompts that name them.

    python embeddings.py FOLDER OUT

FOLDER holds sd15.safetensors and sdxl.safetensors, by `sdconvert synth --family FAMILY --tiny`; OUT is the folder `embeddings`
beside this file. It gets a file per inversion in `sd15` and `sdxl`, files that must be refused in `bad`, and
`reference.safetensors`: per case of CASES every eleventh token's embedding, which torch's encoders give with the vectors in
place of what they look up.

Made with torch 2.14.1, transformers 4.57.6, safetensors 0.8, ftfy 6.3.1.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from family_reference import load
from prompt_runs import Encoders
from prompts import clip_tokenizer, spans

EVERY = 11

# Family, prompt, negative prompt. `tests/embeddings.rs` has the same.
CASES = {
    "a1111": ("sd15", "a photo of styleone", ""),
    "legacy": ("sd15", "styletwo, a cat", ""),
    "half": ("sd15", "a cat by stylehalf at night", ""),
    "safetensors": ("sd15", "stylethree stylethree", ""),
    "bin": ("sd15", "a cat-toy on a mat", ""),
    "multi": ("sd15", "multitoy", "a multitoy"),
    "concept": ("sd15", "CONCEPT art", ""),
    "tensor": ("sd15", "a (plaintensor:1.3), a [concept]", ""),
    "fits": ("sd15", "cat " * 65 + "longten", ""),
    "next": ("sd15", "cat " * 66 + "longten and a dog", ""),
    "border": ("sd15", "cat " * 74 + "styleone, (stylethree:0.7)", ""),
    "carried": ("sd15", "cat " * 60 + ", concept " + "dog " * 20, ""),
    "whole": ("sd15", "a wholechunk b", ""),
    "break": ("sd15", "styleone BREAK stylethree BREAK cat-toy", ""),
    "negative": ("sd15", "a house", "bad-style, styleone"),
    "longest": ("sd15", "a bad-style and a bad-style-two, bad", ""),
    "spaces": ("sd15", "in my own style, my own", ""),
    "explicit": ("sd15", "a embedding:styleone and embedding:stylethree.safetensors, embedding:concept", ""),
    "pair": ("sdxl", "a pairstyle house", "pairstyle"),
    "pickled pair": ("sdxl", "(pairpickle:1.2) in rain, pairstyle", ""),
    "long pair": ("sdxl", "cat " * 72 + "pairpickle", "a pairstyle BREAK b"),
}


def vectors(count, width, seed):
    return 0.3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def a1111(tensor, name):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": tensor},
        "name": name,
        "step": 1000,
        "sd_checkpoint": "a1b2c3",
        "sd_checkpoint_name": None,
    }


class Runs:
    def __reduce__(self):
        return os.system, ("echo must not run",)


def write(folder, width):
    sd15, sdxl, bad = (folder / name for name in ("sd15", "sdxl", "bad"))
    for path in (sd15, sdxl / "deeper", bad):
        path.mkdir(parents=True, exist_ok=True)
    known = {}

    def keep(name, *tensors):
        known[name] = [torch.atleast_2d(tensor.float()) for tensor in tensors]
        return tensors

    [t] = keep("styleone", vectors(3, width, 1))
    torch.save(a1111(torch.nn.Parameter(t), "styleone"), sd15 / "styleone.pt")
    [t] = keep("styletwo", vectors(2, width, 2))
    legacy = a1111(torch.nn.ParameterDict({"*": torch.nn.Parameter(t)}), "another name")
    legacy = legacy | {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(t)})}
    torch.save(legacy, sd15 / "styletwo.pt", _use_new_zipfile_serialization=False)
    [t] = keep("stylehalf", vectors(2, width, 3).half())
    torch.save(a1111(t, "x"), sd15 / "stylehalf.pt")
    [t] = keep("stylethree", vectors(2, width, 4))
    save_file({"emb_params": t}, sd15 / "stylethree.safetensors")
    [t] = keep("cat-toy", vectors(1, width, 5)[0])
    torch.save({"<cat-toy>": t}, sd15 / "cat-toy.bin")
    [t] = keep("multitoy", vectors(4, width, 6))
    torch.save({"<multi>": t}, sd15 / "multitoy.bin")
    [t] = keep("concept", vectors(2, width, 7).bfloat16())
    save_file({"<concept>": t}, sd15 / "Concept.safetensors")
    [t] = keep("plaintensor", vectors(1, width, 8))
    torch.save({"<plain>": torch.nn.Parameter(t)}, sd15 / "plaintensor.pt")
    for name, count, seed in [("longten", 10, 9), ("wholechunk", 75, 10), ("bad-style", 1, 11), ("bad-style-two", 2, 12), ("my own style", 2, 13)]:
        [t] = keep(name, vectors(count, width, seed))
        save_file({"emb_params": t.half() if count > 9 else t}, sd15 / f"{name}.safetensors")
        known[name] = [(t.half() if count > 9 else t).float()]
    pair = keep("pairstyle", vectors(2, width, 14), vectors(2, 2 * width, 15))
    save_file(dict(zip(["clip_l", "clip_g"], pair)), sdxl / "deeper" / "pairstyle.safetensors")
    pair = keep("pairpickle", vectors(4, width, 16), vectors(4, 2 * width, 17))
    torch.save(dict(zip(["clip_g", "clip_l"], reversed(pair))), sdxl / "pairpickle.pt")

    torch.save({"<code>": vectors(1, width, 18), "more": Runs()}, bad / "runscode.pt")
    nan = vectors(2, width, 19)
    nan[1, 3] = float("nan")
    save_file({"emb_params": nan}, bad / "nanstyle.safetensors")
    save_file({"emb_params": vectors(1, 32, 20)}, bad / "widestyle.safetensors")
    save_file({"emb_params": vectors(76, width, 21).half()}, bad / "endless.safetensors")
    save_file({"a": vectors(1, width, 22), "b": vectors(1, width, 23)}, bad / "twotensors.safetensors")
    (bad / "truncated.safetensors").write_bytes((sd15 / "stylethree.safetensors").read_bytes()[:90])
    return known


def find(ids, names):
    for name, own in names:
        if ids[: len(own)] == own:
            return name, len(own)
    return None, 1


def chunks(text, tokenizer, known):
    """Chunks of (token or (name, row), weight)."""
    names = [(name, tokenizer(name, add_special_tokens=False)["input_ids"]) for name in known]
    names.sort(key=lambda entry: -len(entry[1]))
    text = text.replace("embedding:", "").replace(".safetensors", "")
    done, chunk, comma = [], [], None
    for words, weight in spans(text):
        if words is None:
            done.append(chunk)
            chunk, comma = [], None
            continue
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        while ids:
            name, length = find(ids, names)
            if ids[0] == 267:
                comma = len(chunk)
            elif len(chunk) == 75 and comma is not None and 75 - comma <= 20:
                done.append(chunk[: comma + 1])
                chunk, comma = chunk[comma + 1 :], None
            unit = [(name, row) for row in range(len(known[name][0]))] if name else ids[:1]
            if len(chunk) + len(unit) > 75:
                done.append(chunk)
                chunk, comma = [], None
            chunk += [(token, weight) for token in unit]
            ids = ids[length:]
    if chunk or not done:
        done.append(chunk)
    return done


class WithVectors(Encoders):
    def encode_text(self, text, tokenizer, known):
        done = chunks(text, tokenizer, known)
        self.queue = [chunk for chunk in done for _ in self.models]
        hooks = []
        for i, model in enumerate(self.models):
            table = model.text_model.embeddings.token_embedding

            def replace(_module, _inputs, output, i=i):
                output = output.clone()
                for at, (token, _) in enumerate(self.queue.pop(0)):
                    if isinstance(token, tuple):
                        output[0, at + 1] = known[token[0]][i][token[1]]
                return output

            hooks.append(table.register_forward_hook(replace))
        plain = [[(0 if isinstance(token, tuple) else token, weight) for token, weight in chunk] for chunk in done]
        states, pooled = self.encode_chunks(plain)
        for hook in hooks:
            hook.remove()
        return states, pooled


@torch.no_grad()
def main(folder, out):
    tokenizer, result = clip_tokenizer(), {}
    encoders = {family: WithVectors(family, load(Path(folder), family)) for family in ("sd15", "sdxl")}
    known = write(Path(out), 64)
    for name, (family, *texts) in CASES.items():
        own = {key: value for key, value in known.items() if (len(value) == 2) == (family == "sdxl")}
        for kind, text in zip(["cond", "uncond"], texts):
            if kind == "uncond" and not text:
                continue
            states, pooled = encoders[family].encode_text(text, tokenizer, own)
            result[f"{name}.{kind}"] = states[::EVERY].contiguous()
            if pooled is not None:
                result[f"{name}.{kind}.pooled"] = pooled
    save_file(result, Path(out) / "reference.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
