"""Prints the known answers of `runtime/src/sampler/tests.rs`: k-diffusion and diffusers on toy models of two numbers.

k-diffusion: denoised = (x + sin(sigma)) / (1 + sigma^2), x0 = [5, -12.5], sigmas 10 5 2 1 0.4 0.1 0.
diffusers: the network returns 0.3 input + 0.05 cos(t / 100); start [0.5, -1.25] times the scheduler's initial scale.
The k-th noise draw is [0.7 (-1)^k, 0.3 (k + 1)].

Made with torch 2.15.0, diffusers 0.39.0, k-diffusion 0.1.1.post1 (any recent ones will do).
"""

import sys
from unittest import mock

import diffusers
import torch

# k-diffusion's package imports its training code, and that CLIP; the samplers need neither.
sys.modules.setdefault("clip", mock.MagicMock())
from k_diffusion import sampling  # noqa: E402

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
    skip_prk_steps=True,
)


class Draws:
    """Stands for every random generator."""

    def __init__(self):
        self.k = 0

    def __call__(self, *_, dtype=torch.float32, **__):
        k, self.k = self.k, self.k + 1
        return torch.tensor([0.7 * (-1) ** k, 0.3 * (k + 1)], dtype=torch.float64).reshape(1, 1, 1, 2).to(dtype)


def k_diffusion():
    sigmas = torch.tensor([10, 5, 2, 1, 0.4, 0.1, 0], dtype=torch.float64)
    x = torch.tensor([5.0, -12.5], dtype=torch.float64).reshape(1, 1, 1, 2)

    def model(x, sigma, **_):
        return (x + torch.sin(sigma)) / (1 + sigma**2)

    for name in ("sample_euler", "sample_euler_ancestral", "sample_dpmpp_2m"):
        draws = Draws()
        options = {"noise_sampler": lambda *_: draws(dtype=torch.float64)} if "ancestral" in name else {}
        result = getattr(sampling, name)(model, x.clone(), sigmas, disable=True, **options)
        print(f"{name:28} {[f'{v:.12g}' for v in result.flatten().tolist()]}")


def scheduler(name, spacing, karras, steps):
    options = dict(SD15, timestep_spacing=spacing)
    if karras:
        options["use_karras_sigmas"] = True
    made = getattr(diffusers, name).from_config({"_class_name": name, **options})
    made.set_timesteps(steps)
    return made


def run_diffusers(name, spacing, karras=False, steps=5):
    made = scheduler(name, spacing, karras, steps)
    draws = Draws()
    module = __import__(type(made).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda shape, **options: draws(dtype=options.get("dtype") or torch.float32)
    x = torch.tensor([0.5, -1.25]).reshape(1, 1, 1, 2) * made.init_noise_sigma
    for t in made.timesteps:
        scaled = made.scale_model_input(x, t)
        output = 0.3 * scaled + 0.05 * torch.cos(torch.as_tensor(t, dtype=torch.float32) / 100)
        x = made.step(output, t, x).prev_sample
    times = [round(float(t), 3) for t in made.timesteps][:6]
    print(f"{name:32} {spacing:9} karras={karras!s:5} {steps:2} {times} {[f'{v:.9g}' for v in x.flatten().tolist()]}")


def main():
    k_diffusion()
    for spacing in ("leading", "linspace"):
        run_diffusers("DDIMScheduler", spacing)
    run_diffusers("PNDMScheduler", "leading")
    for spacing in ("leading", "linspace", "trailing"):
        run_diffusers("EulerDiscreteScheduler", spacing)
    for spacing in ("linspace", "leading"):
        run_diffusers("EulerDiscreteScheduler", spacing, karras=True)
    for spacing in ("leading", "trailing"):
        run_diffusers("EulerAncestralDiscreteScheduler", spacing)
    for spacing in ("linspace", "leading", "trailing"):
        run_diffusers("DPMSolverMultistepScheduler", spacing)
    run_diffusers("DPMSolverMultistepScheduler", "linspace", karras=True)
    run_diffusers("DPMSolverMultistepScheduler", "linspace", steps=20)


if __name__ == "__main__":
    main()
