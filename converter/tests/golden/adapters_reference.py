"""Adapter files as their trainers' libraries save them, and the weights that those libraries make of them.

    pip install --no-deps --target OLD lycoris-lora==2.0.2
    python adapters_reference.py FOLDER OUT.safetensors --old OLD

FOLDER holds FAMILY.safetensors for sd15, sd21 and sdxl, made by `sdconvert synth --family FAMILY --tiny --seed 0`.
Every case is one adapter: `CASE/file/KEY` are the tensors of its file, `CASE/merged/COMPONENT/NAME` all weights and
biases that it changes, under the names of diffusers and transformers. The metadata entry `cases` tells the rest.

A merged weight is what the layer does in training, found by feeding it impulses, because some libraries merge otherwise
than they train. Strengths other than one go that part of the way. Everything is checked against the formulas in
`Formula`, which also merge what no library does.

Made with lycoris-lora 3.4.0 (4.1.3 gives the same), peft 0.21.2, diffusers 0.39.0, torch 2.15.0, transformers 4.57.6,
numpy 2, safetensors 0.8.
"""

import argparse
import copy
import importlib
import json
import math
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests" / "golden"))
from family_reference import TEXTS, build_text, build_unet, load

LEVEL = "down_blocks.0.attentions.0."
BLOCK = LEVEL + "transformer_blocks.0."
SELF_Q, CROSS_K = BLOCK + "attn1.to_q", BLOCK + "attn2.to_k"
SELF_OUT, FEED_OUT = BLOCK + "attn1.to_out.0", BLOCK + "ff.net.2"
PROJ_IN = LEVEL + "proj_in"
SHORTCUT = "down_blocks.1.resnets.0.conv_shortcut"
CONV = "down_blocks.0.resnets.0.conv1"
CONV_IN = "conv_in"
COMMON = [SELF_Q, CROSS_K, PROJ_IN, CONV_IN]
LAYER_OF = "text_model.encoder.layers.{}.{}"
LAYER = LAYER_OF.format(0, "")


class Model:
    """A base model in double precision."""

    def __init__(self, folder, family):
        self.family = family
        self.weights = load(folder, family)
        self.components = {"unet": build_unet(family, self.weights).double()}
        for name, (prefix, spec) in zip(("text_encoder", "text_encoder_2"), TEXTS[family]):
            self.components[name] = build_text(prefix, spec, self.weights).double()

    def module(self, component, path):
        return self.components[component].get_submodule(path)

    def copy(self, component):
        return copy.deepcopy(self.components[component]).float()


class Case:
    """An adapter file with the weights made of it; `modules` tells what the prefixes of its keys stand for."""

    def __init__(self, model, made_by, file, modules, merged, metadata=None, config=None, hints=None):
        self.model, self.made_by, self.file, self.modules = model, made_by, file, modules
        self.merged = {name: value.detach().double().numpy() for name, value in merged.items() if value is not None}
        self.metadata, self.config, self.hints = metadata or {}, config, hints or {}
        self.strength = 1.0

    def at(self, strength):
        self.strength = strength
        return self

    def base(self, component, name):
        path, kind = name.rsplit(".", 1)
        value = getattr(self.model.module(component, path), kind, None)
        return None if value is None else value.detach().numpy()

    def groups(self):
        longest = sorted(self.modules, key=len, reverse=True)
        groups = {}
        for key, value in self.file.items():
            prefix = next(p for p in longest if key.startswith(p + "."))
            groups.setdefault(prefix, {})[key[len(prefix) + 1 :]] = value.double().numpy()
        return groups

    def expected(self):
        expected = {}
        for prefix, parts in self.groups().items():
            component, path = self.modules[prefix]
            weight, bias = (self.base(component, f"{path}.{kind}") for kind in ("weight", "bias"))
            changed = Formula(parts, weight, bias, **self.hints.get(path, {})).changed()
            for kind, value in zip(("weight", "bias"), changed):
                if value is not None:
                    expected[component, f"{path}.{kind}"] = value
        return expected

    def check(self):
        expected = self.expected()
        assert expected.keys() == self.merged.keys(), expected.keys() ^ self.merged.keys()
        for (component, name), value in self.merged.items():
            change = np.linalg.norm(value - self.base(component, name))
            error = np.linalg.norm(value - expected[component, name])
            assert error < 1e-6 * np.linalg.norm(value), (name, error / np.linalg.norm(value))
            assert error < 1e-5 * change, (name, error / change)

    def tensors(self, case):
        result = {f"{case}/file/{key}": value.contiguous() for key, value in self.file.items()}
        for (component, name), value in self.merged.items():
            base = self.base(component, name)
            value = (base + self.strength * (value - base)).astype(np.float32)
            result[f"{case}/merged/{component}/{name}"] = torch.from_numpy(value)
        return result

    def description(self):
        return {
            "family": self.model.family,
            "strength": self.strength,
            "metadata": self.metadata,
            "adapter_config": self.config,
            "made_by": self.made_by,
        }


class Formula:
    """Weight and bias of a layer with an adapter of strength one, in the words of the adapters' papers."""

    SAME = {
        "up": ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up", "up"),
        "down": ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down", "down"),
    }

    def __init__(self, parts, weight, bias, scale=None, on_input=None):
        same = {f"{old}.weight": new for new, olds in self.SAME.items() for old in olds}
        self.p = {same.get(key, key): value for key, value in parts.items()}
        self.w, self.b, self.scale, self.on_input = weight, bias, scale, on_input

    def scaling(self, rank):
        if self.scale is not None:
            return self.scale
        return self.p["alpha"].item() / rank if "alpha" in self.p else 1.0

    def changed(self):
        p, w, b = self.p, self.w, self.b
        if "up" in p or "hada_w1_a" in p or any(key.startswith("lokr") for key in p):
            return self.decomposed(w + self.delta()), self.with_bias()
        if "on_input" in p:
            return self.along(w, 1 + p["weight"].ravel(), axis=int(p["on_input"])), None
        if "ia3_l" in p:
            return self.multiplied()
        if "diff" in p:
            return w + p["diff"].reshape(w.shape), b + p["diff_b"] if "diff_b" in p else None
        if "w_norm" in p:
            return w + p["w_norm"], b + p["b_norm"]
        if "a1.weight" in p:
            return self.generalized(), None
        return self.rotated(), None

    def along(self, w, factors, axis):
        shape = [1] * w.ndim
        shape[axis] = -1
        return w * factors.reshape(shape)

    def delta(self):
        p = self.p
        if "up" in p:
            up, down = p["up"].reshape(len(p["up"]), -1), p["down"].reshape(len(p["down"]), -1)
            if "lora_mid.weight" in p:
                product = np.einsum("om,mnxy,ni->oixy", up, p["lora_mid.weight"], down)
            else:
                product = (up @ down).reshape(self.w.shape)
            if "bias_values" in p:
                sparse = np.zeros(p["bias_size"].astype(int))
                sparse[tuple(p["bias_indices"].astype(int))] = p["bias_values"]
                product = product + sparse.reshape(self.w.shape)
            return product * self.scaling(len(down))
        if "hada_w1_a" in p:
            one, two = (self.hadamard_factor(i) for i in "12")
            return (one * two).reshape(self.w.shape) * self.scaling(len(p["hada_w1_b"]))
        return self.kronecker()

    def hadamard_factor(self, i):
        a, b = self.p[f"hada_w{i}_a"], self.p[f"hada_w{i}_b"]
        if f"hada_t{i}" not in self.p:
            return a @ b
        return np.einsum("mnxy,mo,ni->oixy", self.p[f"hada_t{i}"], a, b)

    def kronecker(self):
        p, factored = self.p, [key for key in ("lokr_w1_b", "lokr_w2_b") if key in self.p]
        one = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        if "lokr_w2" in p:
            two = p["lokr_w2"]
        elif "lokr_t2" in p:
            two = np.einsum("mnxy,mp,nq->pqxy", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
        else:
            two = p["lokr_w2_a"] @ p["lokr_w2_b"]
        two = two.reshape(len(two), -1, *self.w.shape[2:])
        product = np.einsum("ij,pq...->ipjq...", one, two).reshape(self.w.shape)
        if factored:
            return product * self.scaling(len(p[factored[0]]))
        return product * (1 if self.scale is None else self.scale)

    def decomposed(self, v):
        found = [key for key in ("dora_scale", "lora_magnitude_vector") if key in self.p]
        if not found:
            return v
        g = self.p[found[0]]
        axis = 0 if found[0] != "dora_scale" or g.shape[0] == len(v) and g.shape[1] == 1 else 1
        norms = np.sqrt((v**2).sum(tuple(i for i in range(v.ndim) if i != axis)))
        return self.along(v, g.ravel() / norms, axis)

    def with_bias(self):
        return self.b + self.scale * self.p["lora_B.bias"] if "lora_B.bias" in self.p else None

    def multiplied(self):
        factors = self.p["ia3_l"].ravel()
        bias = None if self.on_input or self.b is None else self.b * factors
        return self.along(self.w, factors, int(self.on_input)), bias

    def generalized(self):
        a1, a2, b1, b2 = (self.p[f"{key}.weight"] for key in ("a1", "a2", "b1", "b2"))
        if len(a1) < len(a2):  # before 3.0 the names were the other way round
            a1, a2, b1, b2 = a2, a1, b2, b1
        flat = lambda x: x.reshape(len(x), -1)
        a = flat(a1) @ flat(a2)
        b = (flat(b1) @ flat(b2)).reshape(self.w.shape)
        return self.w + self.scaling(len(a2)) * (np.einsum("oi...,ij->oj...", self.w, a) + b)

    def rotations(self):
        if "oft_diag" in self.p:
            return self.p["oft_diag"]
        x = self.p["oft_blocks"]
        q = x - x.swapaxes(-1, -2)
        constraint, norm = self.p["alpha"].item() * len(self.w), np.sqrt((q**2).sum())
        if 0 < constraint < norm:
            q = q * constraint / norm
        one = np.eye(q.shape[-1])
        return (one + q) @ np.linalg.inv(one - q)

    def rotated(self):
        r, w = self.rotations(), self.w
        if r.ndim == 3:
            w = np.einsum("knm,kn...->km...", r, w.reshape(*r.shape[:2], *w.shape[1:])).reshape(w.shape)
        else:
            for i, stage in enumerate(r):
                rows = np.arange(len(w)).reshape(-1, 2, 2**i * stage.shape[-1] // 2).swapaxes(1, 2).ravel()
                turned = np.einsum("kab,kb...->ka...", stage, w[rows].reshape(*stage.shape[:2], *w.shape[1:]))
                w = w.copy()
                w[rows] = turned.reshape(w.shape)
        return self.along(w, self.p["rescale"].ravel(), 0) if "rescale" in self.p else w


def effective(forward, layer):
    """Weight and bias of the linear map `forward`, which stands in for `layer`."""
    if isinstance(layer, nn.Linear):
        x = torch.eye(layer.in_features, dtype=torch.float64)
        bias = forward(torch.zeros_like(x[:1]))[0]
        return (forward(x) - bias).T, bias
    inputs, (height, width) = layer.in_channels, layer.kernel_size
    at = 1 if layer.padding[0] else 0
    start = at * layer.stride[0] - layer.padding[0]
    x = torch.zeros(inputs, height, width, inputs, start + height, start + width, dtype=torch.float64)
    for i, y, z in np.ndindex(inputs, height, width):
        x[i, y, z, i, start + y, start + z] = 1
    x = x.flatten(0, 2)
    bias = forward(torch.zeros_like(x[:1]))[0, :, at, at]
    weight = forward(x)[:, :, at, at] - bias
    return weight.reshape(inputs, height, width, -1).permute(3, 0, 1, 2), bias


def with_names(component, path, layer, weight, bias):
    """What an adapter makes of a layer; a bias that it leaves alone is left out."""
    found = {(component, f"{path}.weight"): weight}
    if layer.bias is not None and bias is not None and not torch.allclose(bias, layer.bias, rtol=0, atol=1e-9):
        found[component, f"{path}.bias"] = bias
    return found


def fill(module, around=False):
    """Numbers for all parameters that half precision can hold, if wished near those that they have."""
    for name, value in module.named_parameters():
        if not value.requires_grad:
            continue
        noise = 0.3 * torch.randn(value.shape)
        if around:
            noise = value + noise / 8
        elif name.endswith("scalar"):
            noise = torch.full_like(noise, 0.5)
        elif any(word in name for word in ("dora_scale", "rescale", "magnitude", "ia3_l")):
            noise = value * (1 + noise / 2)
        value.copy_(noise.half())


def read(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in sorted(file.keys())}, dict(sorted((file.metadata() or {}).items()))


def saved(network, dtype):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "adapter.safetensors")
        network.save_weights(path, dtype, {})
        return read(path)


def lycoris_preset(folder, unet, text):
    exact = lambda paths: json.dumps([re.escape(path) + "$" for path in paths])
    path = os.path.join(folder, "preset.toml")
    Path(path).write_text(
        f"unet_target_module = []\nunet_target_name = {exact(unet)}\n"
        f"text_encoder_target_module = []\ntext_encoder_target_name = {exact(text)}\n"
        f"target_module = []\ntarget_name = {exact(unet)}\n"
    )
    return path


def lycoris_merged(network, places):
    merged = {}
    for lora in network.loras:
        component, path = places[lora.lora_name]
        layer = lora.org_module[0]
        if hasattr(lora, "w_norm"):
            weight, bias = lora.get_merged_weight(multiplier=1)
        elif hasattr(lora, "up_list"):
            weight, bias = lora.get_merged_weight(rank=lora.lora_dim - 1)
        else:
            weight, bias = effective(lora, layer)
        merged.update(with_names(component, path, layer, weight, bias))
    return merged


def lycoris(model, unet=COMMON, text=(), dim=2, alpha=1.0, dtype=torch.float16, alone=False, **options):
    """A network of LyCORIS, by its interface for sd-scripts or by its own."""
    from lycoris import create_lycoris
    from lycoris.kohya import create_network

    said = ", ".join(f"{key}={value}" for key, value in options.items())
    with tempfile.TemporaryDirectory() as folder:
        options["preset"] = lycoris_preset(folder, unet, text)
        if alone:
            network = create_lycoris(model.components["unet"], 1.0, dim, alpha, **options)
            network.apply_to()
        else:
            encoder = model.components["text_encoder"] if text else None
            network = create_network(1.0, dim, alpha, None, encoder, model.components["unet"], **options)
            network.apply_to(encoder, model.components["unet"], bool(text), True)
    places = {}
    for component, paths in (("unet", unet), ("text_encoder", text)):
        prefix = "lycoris_" if alone else {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
        places.update({prefix + path.replace(".", "_"): (component, path) for path in paths})
    fill(network, around=options.get("algo") == "full")
    file, metadata = saved(network, dtype)
    assert {key.split(".")[0] for key in file} == places.keys()
    for lora in network.loras:
        lora.restore()
    if not hasattr(network.loras[0], "oft_blocks"):  # which are inverted in single precision only
        network.double()
    call = "create_lycoris" if alone else "kohya.create_network"
    return Case(model, f"lycoris 3.4.0 {call}({said})", file, places, lycoris_merged(network, places), metadata)


def lycoris_ia3(model, paths, on_input, dtype):
    """The trainer of 3.x does not offer (IA)^3, though the library has it."""
    from lycoris.modules.ia3 import IA3Module

    file, places, merged = {}, {}, {}
    for path in paths:
        name, layer = "lora_unet_" + path.replace(".", "_"), model.module("unet", path)
        lora = IA3Module(name, layer, train_on_input=on_input)
        fill(lora)
        file.update({f"{name}.{key}": value.to(dtype or value.dtype) for key, value in lora.state_dict().items()})
        places[name] = ("unet", path)
        merged.update(with_names("unet", path, layer, *effective(lora.double(), layer)))
    return Case(model, f"lycoris 3.4.0 IA3Module(train_on_input={on_input})", file, places, merged)


def old_lycoris(old, name):
    """A module of the old release, past the one that is installed."""
    for module in [module for module in sys.modules if module.split(".")[0] == "lycoris"]:
        del sys.modules[module]
    sys.path.insert(0, str(old))
    try:
        return importlib.import_module(f"lycoris.modules.{name}")
    finally:
        sys.path.remove(str(old))
        for module in [module for module in sys.modules if module.split(".")[0] == "lycoris"]:
            del sys.modules[module]


def lycoris_old(model, old, paths, algo, **options):
    module, kind = {"oft": ("diag_oft", "DiagOFTModule"), "glora": ("glora", "GLoRAModule")}[algo]
    kind = getattr(old_lycoris(old, module), kind)
    file, places, merged = {}, {}, {}
    for path in paths:
        name, layer = "lora_unet_" + path.replace(".", "_"), model.module("unet", path)
        lora = kind(name, layer, **options)
        fill(lora)
        state = lora.state_dict() if algo == "glora" else lora.custom_state_dict()
        file.update({f"{name}.{key}": value.detach().float() for key, value in state.items()})
        places[name] = ("unet", path)
        if algo == "oft":
            merged["unet", f"{path}.weight"] = lora.make_weight()
        else:  # as merge_to of 2.1 does; the forward pass scales twice
            change = lora.double().make_weight() * lora.scale
            merged["unet", f"{path}.weight"] = layer.weight + change.reshape(layer.weight.shape)
    return Case(model, f"lycoris 2.0.2 {kind.__name__}({options})", file, places, merged)


def peft_hint(config, path):
    if config["peft_type"] == "IA3":  # shapes of convolutions do not tell
        return {"on_input": path in config["feedforward_modules"]}
    matching = lambda patterns, other: next(
        (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path)), other
    )
    rank = matching(config["rank_pattern"], config["r"])
    alpha = matching(config["alpha_pattern"], config.get("lora_alpha", config.get("alpha")))
    return {"scale": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)}


def peft_adapter(model, config, paths, component="unet"):
    from peft import get_peft_model

    config.target_modules = set(paths)
    network = get_peft_model(model.copy(component), config)
    fill(network)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        file, metadata = read(os.path.join(folder, "adapter_model.safetensors"))
        written = json.loads(Path(folder, "adapter_config.json").read_text())
    written = {key: sorted(value) if isinstance(value, list) else value for key, value in written.items()}
    network.double().eval()
    merged = {}
    for path in paths:
        layer = model.module(component, path)
        forward = network.base_model.model.get_submodule(path)
        merged.update(with_names(component, path, layer, *effective(forward, layer)))
    places = {f"base_model.model.{path}": (component, path) for path in paths}
    hints = {path: peft_hint(written, path) for path in paths}
    made_by = f"peft 0.21.2 get_peft_model({type(config).__name__}), save_pretrained"
    return Case(model, made_by, file, places, merged, metadata, written, hints)


def lycoris_extracted(model, unet=(), text=(), **options):
    """What LyCORIS finds between the model and another, whose named layers differ."""
    from lycoris.utils import extract_diff

    base = {name: model.copy(name) for name in ("unet", "text_encoder")}
    tuned = copy.deepcopy(base)
    places = {}
    for component, prefix, paths in (("unet", "lora_unet_", unet), ("text_encoder", "lora_te_", text)):
        for path in paths:
            fill(tuned[component].get_submodule(path), around=True)
            places[prefix + path.replace(".", "_")] = (component, path)
    file = extract_diff(
        [base["text_encoder"]], [tuned["text_encoder"]], base["unet"], tuned["unet"], small_conv=False, **options
    )
    return by_formula(model, f"lycoris 3.4.0 utils.extract_diff({options}), merged by formula", file, places)


def by_formula(model, made_by, file, places, metadata=None):
    case = Case(model, made_by, file, places, {}, metadata)
    case.merged = case.expected()
    return case


def kohya_lora(model, places, rank=2, alpha=1.0, dtype=torch.float16):
    """A file as sd-scripts writes it."""
    file = {}
    for name, place in places.items():
        layer = model.module(*place)
        outputs, inputs, *kernel = layer.weight.shape
        shapes = {"lora_down": (rank, inputs, *kernel), "lora_up": (outputs, rank, *(1 for _ in kernel))}
        for part, shape in shapes.items():
            file[f"{name}.{part}.weight"] = (0.3 * torch.randn(shape)).to(dtype)
        if alpha is not None:
            file[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return file


def kohya_oft(model, paths, blocks, alpha):
    file, places = {}, {}
    for path in paths:
        name = "oft_unet_" + path.replace(".", "_")
        size = model.module("unet", path).weight.shape[0] // blocks
        file[f"{name}.oft_blocks"] = (0.3 * torch.randn(blocks, size, size)).half()
        file[f"{name}.alpha"] = torch.tensor(alpha)
        places[name] = ("unet", path)
    made_by = "written as by sd-scripts networks.oft, merged by formula"
    return by_formula(model, made_by, file, places, {"ss_network_module": "networks.oft"})


def diffusers_pipeline(model):
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = {name: model.copy(name) for name in model.components}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(
            vae=None, tokenizer=None, tokenizer_2=None, scheduler=DDIMScheduler(), **parts
        )
    return StableDiffusionPipeline(
        vae=None,
        tokenizer=None,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


def diffusers_fused(model, made_by, file, places, metadata=None, hints=None):
    """All weights that differ after diffusers has loaded and fused a file."""
    pipeline = diffusers_pipeline(model)
    with tempfile.TemporaryDirectory() as folder:
        name = "pytorch_lora_weights.safetensors"
        save_file(file, os.path.join(folder, name), metadata or {})
        pipeline.load_lora_weights(folder, weight_name=name)
    pipeline.fuse_lora(components=list(model.components))
    merged = {}
    for component, base in model.components.items():
        fused = getattr(pipeline, component).state_dict()
        fused = {key.replace(".base_layer.", "."): value for key, value in fused.items() if ".lora_" not in key}
        for key, value in base.state_dict().items():
            if not torch.equal(fused[key].double(), value):
                merged[component, key] = fused[key]
    return Case(model, f"{made_by}, merged by diffusers 0.39.0 fuse_lora", file, places, merged, metadata, None, hints)


def diffusers_saved(model, unet, text, rank, alpha, convert):
    """A file as the training scripts of diffusers write it, today or, converted, before."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    layers, said, places, hints = {}, {}, {}, {}
    for component, paths in (("unet", unet), ("text_encoder", text)):
        network = model.copy(component)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=set(paths))
        network.add_adapter(config)
        fill(network)
        state = get_peft_model_state_dict(network)
        layers[component] = convert_state_dict_to_diffusers(state) if convert else state
        said[component] = None if convert else {**config.to_dict(), "target_modules": sorted(paths)}
        for path in paths:
            places[f"{component}.{path}"] = (component, path)
            hints[path] = {} if convert else {"scale": alpha / rank}
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=layers["unet"],
            text_encoder_lora_layers=layers["text_encoder"],
            unet_lora_adapter_metadata=said["unet"],
            text_encoder_lora_adapter_metadata=said["text_encoder"],
        )
        file, metadata = read(os.path.join(folder, "pytorch_lora_weights.safetensors"))
    return diffusers_fused(model, "diffusers 0.39.0 save_lora_weights", file, places, metadata, hints)


def diffusers_processors(model):
    """The names of attention processors of early diffusers."""
    places = {
        f"unet.{BLOCK}attn1.processor.to_q_lora": ("unet", SELF_Q),
        f"unet.{BLOCK}attn1.processor.to_out_lora": ("unet", SELF_OUT),
        f"unet.{BLOCK}attn2.processor.to_k_lora": ("unet", CROSS_K),
        f"text_encoder.{LAYER}self_attn.to_q_lora": ("text_encoder", LAYER + "self_attn.q_proj"),
        f"text_encoder.{LAYER}self_attn.to_out_lora": ("text_encoder", LAYER + "self_attn.out_proj"),
    }
    file = {}
    for name, place in places.items():
        outputs, inputs = model.module(*place).weight.shape
        file[f"{name}.down.weight"] = (0.3 * torch.randn(2, inputs)).half()
        file[f"{name}.up.weight"] = (0.3 * torch.randn(outputs, 2)).half()
    return diffusers_fused(model, "written as by diffusers 0.14", file, places)


def kohya_names(prefix, component, paths):
    return {prefix + path.replace(".", "_"): (component, path) for path in paths}


def kohya_cases(models):
    layer = LAYER_OF.format
    sd15, sd21, sdxl = (models[family] for family in ("sd15", "sd21", "sdxl"))
    part_of_text = [
        layer(0, "self_attn.q_proj"),
        layer(0, "self_attn.v_proj"),
        layer(1, "self_attn.out_proj"),
        layer(1, "mlp.fc1"),
    ]
    of_sd21 = {
        **kohya_names("lora_unet_", "unet", [SELF_Q, PROJ_IN]),
        **kohya_names("lora_te_", "text_encoder", part_of_text),
    }
    ends = {"lora_unet_input_blocks_0_0": ("unet", "conv_in"), "lora_unet_out_2": ("unet", "conv_out")}
    of_sdxl = {
        **ends,
        "lora_unet_input_blocks_4_0_skip_connection": ("unet", "down_blocks.1.resnets.0.conv_shortcut"),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        **kohya_names("lora_te1_", "text_encoder", [layer(0, "self_attn.q_proj"), layer(1, "self_attn.out_proj")]),
        **kohya_names("lora_te2_", "text_encoder_2", [layer(1, "self_attn.out_proj")]),
    }
    of_lcm = [
        SELF_Q,
        PROJ_IN,
        FEED_OUT,
        SHORTCUT,
        "down_blocks.0.resnets.0.time_emb_proj",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.2.upsamplers.0.conv",
    ]

    def fused(model, places, **options):
        return diffusers_fused(model, "written as by sd-scripts", kohya_lora(model, places, **options), places)

    return {
        "kohya-lora-sd21": lambda: fused(sd21, of_sd21),
        "kohya-lora-sdxl-ldm": lambda: fused(sdxl, of_sdxl, alpha=3.0),
        "kohya-oft": lambda: kohya_oft(sd15, [SELF_Q, CROSS_K, SELF_OUT], 4, 1 / 64),
        "lcm-style": lambda: fused(sd15, kohya_names("lora_unet_", "unet", of_lcm), alpha=1.5),
        "lightning-style": lambda: fused(sdxl, ends, alpha=None),
    }


def diffusers_cases(model):
    query, out = LAYER + "self_attn.q_proj", LAYER + "self_attn.out_proj"
    return {
        "diffusers-unet-lora": lambda: diffusers_saved(model, [SELF_Q, SELF_OUT, PROJ_IN], [query], 4, 3, False),
        "diffusers-dotted-lora": lambda: diffusers_saved(model, [CROSS_K, SELF_OUT], [out], 2, 2, True),
        "diffusers-old-processor": lambda: diffusers_processors(model),
    }


def peft_cases(model):
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig

    return {
        "peft-lora": lambda: peft_adapter(model, LoraConfig(r=3, lora_alpha=2), COMMON),
        "peft-rslora": lambda: peft_adapter(model, LoraConfig(r=4, lora_alpha=2, use_rslora=True), COMMON[:2]),
        "peft-patterns": lambda: peft_adapter(
            model,
            LoraConfig(
                r=3,
                lora_alpha=6,
                rank_pattern={"attn1.to_q": 2},
                alpha_pattern={"attn[0-9].to_k": 1, PROJ_IN: 4},
            ),
            COMMON[:3],
        ),
        "peft-dora": lambda: peft_adapter(model, LoraConfig(r=2, lora_alpha=3, use_dora=True), COMMON),
        "peft-dora-weak": lambda: peft_adapter(
            model, LoraConfig(r=2, lora_alpha=3, use_dora=True), [CROSS_K, SHORTCUT]
        ).at(0.7),
        "peft-lora-bias": lambda: peft_adapter(
            model, LoraConfig(r=2, lora_alpha=1, lora_bias=True), [SELF_OUT, PROJ_IN]
        ),
        "peft-loha": lambda: peft_adapter(model, LoHaConfig(r=2, alpha=3), COMMON),
        "peft-loha-tucker": lambda: peft_adapter(model, LoHaConfig(r=2, alpha=3, use_effective_conv2d=True), [CONV_IN]),
        "peft-lokr": lambda: peft_adapter(model, LoKrConfig(r=2, alpha=3, init_weights=False), COMMON),
        "peft-lokr-full": lambda: peft_adapter(model, LoKrConfig(r=8, alpha=3, init_weights=False), COMMON),
        "peft-lokr-both": lambda: peft_adapter(
            model,
            LoKrConfig(r=2, alpha=3, decompose_both=True, use_effective_conv2d=True),
            [CROSS_K, SHORTCUT, CONV_IN],
        ),
        "peft-ia3": lambda: peft_adapter(
            model, IA3Config(feedforward_modules={FEED_OUT, CONV_IN}), [SELF_Q, SELF_OUT, FEED_OUT, PROJ_IN, CONV_IN]
        ),
        "peft-text": lambda: peft_adapter(
            model, LoraConfig(r=2, lora_alpha=1), [LAYER + "self_attn.q_proj"], "text_encoder"
        ),
    }


def lycoris_cases(model, old):
    make = lambda *args, **options: lambda: lycoris(model, *args, **options)
    norms = [LEVEL + "norm", BLOCK + "norm2", "conv_norm_out"]
    return {
        "lycoris-locon": make(algo="locon"),
        "lycoris-locon-scalar": make([SELF_Q, SHORTCUT], algo="locon", use_scalar=True),
        "lycoris-locon-tucker": make([CONV, CONV_IN], algo="locon", use_tucker=True),
        "lycoris-locon-rs": make([SELF_Q, PROJ_IN], dim=4, alpha=2, algo="locon", rs_lora=True),
        "lycoris-locon-text": make([SELF_Q], [LAYER + "self_attn.q_proj"], algo="locon"),
        "lycoris-alone": make([SELF_Q, SHORTCUT], algo="lora", alone=True),
        "lycoris-loha": make(algo="loha"),
        "lycoris-loha-weak": lambda: lycoris(model, [CROSS_K, SHORTCUT], algo="loha", dim=4, alpha=2).at(-0.5),
        "lycoris-loha-tucker": make([CONV_IN], algo="loha", use_tucker=True),
        "lycoris-lokr-full-full": make(algo="lokr", full_matrix=True),
        "lycoris-lokr-full-huge": make([SELF_Q, PROJ_IN], algo="lokr", dim=100000),
        "lycoris-lokr-full-factored": make(algo="lokr"),
        "lycoris-lokr-both-factored": make([CROSS_K, SHORTCUT], algo="lokr", decompose_both=True),
        "lycoris-lokr-rank-one": make([SELF_Q, CONV_IN], algo="lokr", decompose_both=True, dim=1, alpha=0.5),
        "lycoris-lokr-unbalanced": make([CROSS_K], algo="lokr", unbalanced_factorization=True, factor=4),
        "lycoris-lokr-tucker": make([CONV_IN], algo="lokr", use_tucker=True),
        "lycoris-ia3-output": lambda: lycoris_ia3(model, COMMON, False, torch.float16),
        "lycoris-ia3-input": lambda: lycoris_ia3(model, [CROSS_K, SHORTCUT, CONV_IN], True, None).at(0.7),
        "lycoris-full": make([SELF_Q, PROJ_IN], algo="full", dtype=torch.float32),
        "lycoris-full-weak": lambda: lycoris(model, [CONV_IN], algo="full", dtype=torch.float32).at(0.7),
        "lycoris-norm": make(norms, [LAYER + "layer_norm1"], algo="lora", train_norm=True),
        "lycoris-glora": make(algo="glora"),
        "lycoris-glora-weak": lambda: lycoris(model, [CROSS_K, CONV_IN], algo="glora", dtype=None).at(0.7),
        "lycoris-glora-old-order": lambda: lycoris_old(
            model, old, [SELF_Q, CROSS_K, PROJ_IN], "glora", lora_dim=2, alpha=1
        ),
        "lycoris-diag-oft": make(algo="diag-oft", dim=4),
        "lycoris-diag-oft-constraint": make(algo="diag-oft", dim=4, constraint=1 / 64),
        "lycoris-diag-oft-loose": make([SELF_Q], algo="diag-oft", dim=4, constraint=1 / 4),
        "lycoris-diag-oft-rescaled": make([CROSS_K, CONV_IN], algo="diag-oft", dim=8, rescaled=True),
        "lycoris-diag-oft-weak": lambda: lycoris(model, [SHORTCUT], algo="diag-oft", rescaled=True, dim=4).at(0.7),
        "lycoris-oft-diag-old": lambda: lycoris_old(model, old, [CROSS_K, CONV_IN], "oft", lora_dim=4),
        "lycoris-oft-diag-old-rescaled": lambda: lycoris_old(model, old, [SHORTCUT], "oft", lora_dim=4, rescaled=True),
        "lycoris-boft": make(algo="boft", dim=4),
        "lycoris-boft-rescaled": make([SHORTCUT], algo="boft", dim=8, rescaled=True),
        "lycoris-boft-constraint": make([CROSS_K, CONV_IN], algo="boft", dim=2, constraint=1 / 64),
        "lycoris-boft-weak": lambda: lycoris(
            model, [SELF_Q, "down_blocks.2.resnets.0.conv_shortcut"], algo="boft", dim=6
        ).at(-0.5),
        "lycoris-dora-output": make(algo="locon", dora_wd=True, wd_on_output=True),
        "lycoris-dora-input": make(algo="locon", dora_wd=True, wd_on_output=False),
        "lycoris-dora-weak": lambda: lycoris(model, [CROSS_K, SHORTCUT], algo="locon", dora_wd=True).at(0.7),
        "lycoris-dora-loha": make([CROSS_K, CONV_IN], algo="loha", dora_wd=True, use_tucker=True),
        "lycoris-dora-lokr": make([CROSS_K, CONV_IN], algo="lokr", dora_wd=True, wd_on_output=False),
        "lycoris-extracted": lambda: lycoris_extracted(
            model, [SELF_Q, PROJ_IN], mode="fixed", linear_mode_param=2, use_bias=True, sparsity=0.9
        ),
        "lycoris-extracted-full": lambda: lycoris_extracted(model, [PROJ_IN, LEVEL + "norm"], mode="full"),
        "lycoris-extracted-embedding": lambda: lycoris_extracted(
            model, text=["text_model.embeddings.position_embedding"], mode="full"
        ),
        "lycoris-dylora": make([CROSS_K, CONV_IN], algo="dylora", dim=4, alpha=2, block_size=1),
    }


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--old", type=Path, required=True, help="folder of lycoris-lora 2.0.2")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models = {family: Model(args.folder, family) for family in ("sd15", "sd21", "sdxl")}
    makers = {
        **lycoris_cases(models["sd15"], args.old),
        **kohya_cases(models),
        **peft_cases(models["sd15"]),
        **diffusers_cases(models["sd15"]),
    }
    tensors, cases = {}, {}
    for seed, (name, make) in enumerate(makers.items()):
        torch.manual_seed(seed)
        case = make()
        case.check()
        tensors.update(case.tensors(name))
        cases[name] = case.description()
    save_file(tensors, args.out, {"cases": json.dumps(cases)})


if __name__ == "__main__":
    main()
