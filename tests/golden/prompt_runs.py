"""Whole runs by A1111's rules with prompts that are edited, alternate and are composed, over tiny synthetic checkpoints.

    python prompt_runs.py FOLDER OUT.safetensors

FOLDER holds sd15.safetensors and sdxl.safetensors, by `sdconvert synth --family FAMILY --tiny`. Networks are built as in
`family_reference.py`, prompts are read by `prompts.py`; encoding, guidance and samplers are written down here. OUT has, per
case of CASES, the last latents, and of some the embeddings.

Made with torch 2.14.1, diffusers 0.39.0, transformers 4.57.6, lark 1.3.1, ftfy 6.3.1.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from family_reference import TEXTS, build_text, build_unet, load
from prompts import chunks, clip_tokenizer, parts, schedule

SEED, STEPS, SCALE = 7, 6, 5.0

# Family, sampler, prompt, negative prompt. `tests/prompts.rs` has the same.
CASES = {
    "edit": ("sd15", "euler", "a [cat:dog:2] on a (mat:1.3)", "[bad|ugly] quality"),
    "alternate": ("sd15", "heun", "[a|b|(c:1.2)] house [at night:.5]", "blurry"),
    "compose": ("sd15", "euler", "a cat AND a red (dog:0.8):0.6 AND [sea|sky] :-0.3", "blurry"),
    "heavy": ("sd15", "euler", "a house:1.5", ""),
    "long": ("sd15", "euler", "a cat BREAK on a mat AND a dog", "a [bad BREAK ugly:good:3] picture"),
    "sdxl": ("sdxl", "euler", "[a cat|a (dog:1.2)] in the rain AND snow:0.5", "[x:y:3] z"),
}


class Encoders:
    """A family's text encoders, and A1111's way with them."""

    def __init__(self, family, weights):
        self.xl = family == "sdxl"
        self.models = [build_text(prefix, spec, weights) for prefix, spec in TEXTS[family]]

    def encode(self, texts, tokenizer):
        """Each of the texts that take turns, padded to as many chunks: [tokens, width], and the pooled embedding."""
        read = [chunks(text, tokenizer) for text in texts]
        most = max(map(len, read))
        return [self.encode_chunks(own + [[]] * (most - len(own))) for own in read]

    def encode_chunks(self, own):
        joined, pooled = [], None
        for chunk in own:
            states = []
            for i, model in enumerate(self.models):
                ids = [49406, *(token for token, _ in chunk), 49407]
                ids += [0 if i == 1 else 49407] * (77 - len(ids))
                weights = torch.tensor([1.0, *(weight for _, weight in chunk)] + [1.0] * (76 - len(chunk)))
                out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
                z = (out.hidden_states[-2] if self.xl else out.last_hidden_state)[0]
                if pooled is None and i == 1:
                    pooled = out.text_embeds
                mean = z.mean()
                weighted = z * weights[:, None]
                states.append(weighted * (mean / weighted.mean()) if (weights != 1).any() else z)
            joined.append(torch.cat(states, dim=1))
        return torch.cat(joined), pooled


def active(turns, call):
    return next((value for end, value in turns if call <= end), turns[0][1])


class Guided:
    def __init__(self, family, weights, tokenizer, prompt, negative, steps):
        encoders = Encoders(family, weights)
        self.unet, self.xl, self.calls = build_unet(family, weights), encoders.xl, 0

        def timeline(text):
            turns = schedule(text, steps)
            texts = list(dict.fromkeys(text for _, text in turns))
            made = dict(zip(texts, encoders.encode(texts, tokenizer)))
            return [(end, made[text]) for end, text in turns]

        self.conds = [(timeline(text), weight) for text, weight in parts(prompt)]
        self.uncond = timeline(negative)

    def predict(self, x, sigma, t, cond):
        context, pooled = cond
        added = dict(text_embeds=pooled, time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]])) if self.xl else None
        x = x / (sigma**2 + 1) ** 0.5
        return self.unet(x, torch.tensor(t), context[None], added_cond_kwargs=added, return_dict=False)[0]

    def __call__(self, x, sigma):
        t = timestep(sigma)
        conds = [(active(turns, self.calls), weight) for turns, weight in self.conds]
        length = max(len(context) for (context, _), _ in conds)
        extend = lambda context: torch.cat([context, context[-1:].repeat(length - len(context), 1)])
        uncond = self.predict(x, sigma, t, active(self.uncond, self.calls))
        out = uncond.clone()
        for (context, pooled), weight in conds:
            out += weight * SCALE * (self.predict(x, sigma, t, (extend(context), pooled)) - uncond)
        self.calls += 1
        return x - sigma * out


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
ABAR = np.cumprod(1 - BETAS).astype(np.float32)
LOG_SIGMAS = np.log(((1 - ABAR) / ABAR) ** np.float32(0.5)).astype(np.float64)


def sigma_at(t):
    return float(np.exp(np.interp(t, np.arange(1000), LOG_SIGMAS)))


def timestep(sigma):
    return float(np.interp(np.log(sigma), LOG_SIGMAS, np.arange(1000)))


def sample(kind, model):
    sigmas = [sigma_at(t) for t in np.linspace(999, 0, STEPS)] + [0.0]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED)) * sigmas[0]
    for a, b in zip(sigmas, sigmas[1:]):
        d = (x - model(x, a)) / a
        if kind == "heun" and b > 0:
            other = x + d * (b - a)
            d = (d + (other - model(other, b)) / b) / 2
        x = x + d * (b - a)
    return x


@torch.no_grad()
def main(folder, out):
    result, tokenizer = {}, clip_tokenizer()
    for name, (family, kind, prompt, negative) in CASES.items():
        steps = STEPS * (2 if kind == "heun" else 1)
        model = Guided(family, load(Path(folder), family), tokenizer, prompt, negative, steps)
        if name in ("edit", "sdxl"):
            # The first and the last turn, and the negative prompt's first.
            turns = model.conds[0][0]
            result[f"{name}.first"], result[f"{name}.last"] = turns[0][1][0], turns[-1][1][0]
            result[f"{name}.uncond"] = model.uncond[0][1][0]
        result[f"{name}.final_latents"] = sample(kind, model)
        print(name, model.calls, float(result[f"{name}.final_latents"].std()))
    save_file({key: value.contiguous() for key, value in result.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
