"""Prints the known answers of `runtime/src/sampler/tests.rs` and `runtime/src/sigmas/`: k-diffusion and diffusers on toy
models of two numbers, Restart as A1111 has it, and noise levels by the programs' formulas.

k-diffusion: denoised = (x + sin(sigma)) / (1 + sigma^2), x0 = [5, -12.5], sigmas 10 5 2 1 0.4 0.1 0.
diffusers: the network returns 0.3 input + 0.05 cos(t / 100); start [0.5, -1.25] times the scheduler's initial scale.
The k-th noise draw is [0.7 (-1)^k, 0.3 (k + 1)].

Made with torch 2.15.0, diffusers 0.39.0, k-diffusion 0.1.1.post1 (any recent ones will do).
"""

import importlib.util
import math
import sys
import types
from unittest import mock

import diffusers
import numpy
import torch
from scipy import stats

# k-diffusion's package imports its training code and what that needs; the samplers need neither.
package = types.ModuleType("k_diffusion")
package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
sys.modules["k_diffusion"] = package
for unused in ("torchvision", "torchvision.transforms"):
    sys.modules.setdefault(unused, mock.MagicMock())
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

    ends = {"sigma_min": 0.1, "sigma_max": 10.0}
    chain = {"sigmas": sigmas}
    noisy = ("ancestral", "sde", "dpm_fast", "dpm_adaptive")
    for name, options in [
        ("euler", chain),
        ("euler", {**chain, "s_churn": 3.0}),
        ("euler_ancestral", chain),
        ("euler_ancestral", {**chain, "eta": 0.5}),
        ("heun", chain),
        ("dpm_2", chain),
        ("dpm_2_ancestral", chain),
        ("lms", chain),
        ("dpmpp_2s_ancestral", chain),
        ("dpmpp_sde", chain),
        ("dpmpp_2m", chain),
        ("dpmpp_2m_sde", chain),
        ("dpmpp_2m_sde", {**chain, "solver_type": "heun"}),
        ("dpmpp_2m_sde", {**chain, "eta": 0.0}),
        ("dpmpp_3m_sde", chain),
        ("dpm_fast", {**ends, "n": 6}),
        ("dpm_fast", {**ends, "n": 7}),
        ("dpm_fast", {**ends, "n": 6, "eta": 1.0}),
        ("dpm_fast", {**ends, "n": 8, "eta": 0.5}),
        ("dpm_adaptive", ends),
        ("dpm_adaptive", {**ends, "eta": 1.0}),
    ]:
        draws, calls = Draws(), 0

        def counted(x, sigma, **_):
            nonlocal calls
            calls += 1
            return model(x, sigma)

        named = {k: torch.tensor(v, dtype=torch.float64) if k in ends else v for k, v in options.items()}
        if any(part in name for part in noisy):
            named["noise_sampler"] = lambda *_: draws(dtype=torch.float64)
        with mock.patch.object(torch, "randn_like", lambda _: draws(dtype=torch.float64)):
            result = getattr(sampling, f"sample_{name}")(counted, x.clone(), disable=True, **named)
        told = {k: v for k, v in options.items() if k != "sigmas"}
        print(f"{name:20} {told} {[f'{v:.12g}' for v in result.flatten().tolist()]} {calls} {draws.k}")
    for count in (20, 40):
        restart(model, x, sampling.get_sigmas_karras(count, 0.03, 14.0).double())


def restart(model, x, sigmas):
    """Xu et al. 2023 with A1111's plan of restarts, written anew."""
    count = len(sigmas) - 1
    ladder, times = (count // 4, 2) if count >= 36 else (9, 1)
    down = sampling.get_sigmas_karras(count - ladder * times, sigmas[-2].item(), sigmas[0].item()).double()
    low, high = (int((down - level).abs().argmin()) for level in (0.1, 2.0))
    again = sampling.get_sigmas_karras(ladder + 1, down[low].item(), down[high].item()).double()[:-1]
    path = down[: low + 1].tolist() + again.tolist() * times + down[low + 1 :].tolist()
    draws, calls, now, i = Draws(), 0, path[0], 0
    for start, end in zip(path, path[1:]):
        if end >= start:  # between two ladders
            x = x + draws(dtype=torch.float64) * (end**2 - start**2) ** 0.5
            continue
        slope = lambda x, sigma: (x - model(x, torch.tensor(sigma, dtype=torch.float64))) / sigma
        first = slope(x, start)
        calls += 1
        if end == 0:
            x = x + first * (end - start)
            continue
        second = slope(x + first * (end - start), end)
        calls += 1
        x = x + (first + second) / 2 * (end - start)
    print(f"restart {count:12} {[f'{v:.12g}' for v in x.flatten().tolist()]} {calls} {draws.k}")


SIGMAS = [10, 5, 2, 1, 0.4, 0.1, 0]


def both(x, sigma):
    """A guided and an unconditional estimate."""
    guided = (x + math.sin(sigma)) / (1 + sigma**2)
    return guided, 0.5 * guided + 0.1


def comfyui():
    """ComfyUI's CFG++ samplers and its DEIS by the formulas, written anew; its and A1111's UniPC by diffusers' solver."""
    start = numpy.array([5.0, -12.5])
    draws = [numpy.array([0.7 * (-1) ** k, 0.3 * (k + 1)]) for k in range(12)]

    def split(a, b, eta):
        up = min(b, eta * (b * b * (a * a - b * b) / (a * a)) ** 0.5)
        return (b * b - up * up) ** 0.5, up

    def show(name, x, drawn=0):
        print(f"{name:28} {[f'{v:.12g}' for v in x]} {drawn}")

    pairs = list(zip(SIGMAS, SIGMAS[1:]))
    for name, eta in (("euler_cfg_pp", 0), ("euler_ancestral_cfg_pp", 1), ("euler_ancestral_cfg_pp, eta 0.5", 0.5)):
        x, k = start, 0
        for a, b in pairs:
            guided, uncond = both(x, a)
            down, up = split(a, b, eta)
            x = guided + down * (x - uncond) / a
            if b > 0 and eta > 0:
                x, k = x + up * draws[k], k + 1
        show(name, x, k)
    x, old = start, None
    for i, (a, b) in enumerate(pairs):
        guided, uncond = both(x, a)
        x_next = guided + b / a * (x - uncond)
        if old is not None and b > 0:
            r = math.log(SIGMAS[i - 1] / a) / math.log(a / b)
            x_next = x_next + (1 - b / a) / (2 * r) * (guided - old)
        x, old = x_next, uncond
    show("dpmpp_2m_cfg_pp", x)
    x, k = start, 0
    for a, b in pairs:
        guided, uncond = both(x, a)
        down, up = split(a, b, 1)
        if b == 0:
            x = guided
            continue
        middle = (a * down) ** 0.5
        half = middle / a * (x + guided - uncond) + (1 - middle / a) * guided
        second, uncond = both(half, middle)
        x = down / a * (x + guided - uncond) + (1 - down / a) * second + up * draws[k]
        k += 1
    show("dpmpp_2s_ancestral_cfg_pp", x, k)

    # DEIS with polynomials in the time of a variance-preserving SDE whose noise is 0.002 at 0.001 and 80 at 1.
    least, most = math.log(1 + 0.002**2), math.log(1 + 80**2)
    beta_d = 2 * (least / 1e-3 - most) / (1e-3 - 1)
    beta_min = most - beta_d / 2
    time = lambda sigma: (math.sqrt(beta_min**2 + 2 * beta_d * math.log(1 + sigma**2)) - beta_min) / beta_d
    sigma_of = lambda t: numpy.sqrt(numpy.expm1(beta_d / 2 * t**2 + beta_min * t))
    x, slopes = start, []
    for i, (a, b) in enumerate(pairs):
        slopes = [((x - both(x, a)[0]) / a, time(a))] + slopes[:2]
        if i == 0 or b == 0:
            x = x + (b - a) * slopes[0][0]
            continue
        t = numpy.linspace(time(a), time(b), 10000)
        # Differences in place of the derivative of sigma.
        rate = (sigma_of(t + 1e-7) - sigma_of(t - 1e-7)) / 2e-7
        for j, (slope, knot) in enumerate(slopes):
            others = [other for n, (_, other) in enumerate(slopes) if n != j]
            basis = numpy.prod([(t - other) / (knot - other) for other in others], axis=0)
            x = x + (rate * basis).sum() * (time(b) - time(a)) / 10000 * slope
    show("deis, ComfyUI", x)

    for variant in ("bh1", "bh2"):
        ends = SIGMAS[:-1] + [0.001]
        eps = lambda x, sigma, _: (x - both(x, sigma)[0]) / sigma
        show(f"uni_pc, ComfyUI, {variant}", unipc(variant, 3, ends, range(6), start, eps) * (1 + 1e-6) ** 0.5)
    # A1111's clock: even times from 1 to 1/1000, log abar linear between timesteps; the network as diffusers' below.
    betas = numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    logs = numpy.log(numpy.cumprod(1 - betas))
    network = lambda x, sigma, t: 0.3 * x / (1 + sigma**2) ** 0.5 + 0.05 * math.cos(t / 100)
    for variant, order, n in [("bh1", 3, 5), ("bh1", 3, 20), ("bh2", 2, 10)]:
        times = numpy.linspace(1, 0.001, n + 1) * 1000 - 1
        sigmas = numpy.expm1(-numpy.interp(times, numpy.arange(1000), logs)) ** 0.5
        x = numpy.array([0.5, -1.25]) * (1 + sigmas[0] ** 2) ** 0.5
        show(f"UniPC, A1111, {variant}, order {order}, {n}", unipc(variant, order, sigmas, times[:-1], x, network))


def unipc(variant, order, sigmas, times, x, eps):
    """diffusers' solver on given levels, from variance-exploding x to a variance-preserving result."""
    made = diffusers.UniPCMultistepScheduler(solver_type=variant, solver_order=order, final_sigmas_type="sigma_min")
    made.set_timesteps(len(sigmas) - 1)
    made.sigmas = torch.tensor(numpy.array(sigmas), dtype=torch.float64)
    made.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    scale = lambda sigma: (1 + sigma**2) ** 0.5
    x = torch.tensor(x / scale(sigmas[0])).reshape(1, 1, 1, 2)
    for sigma, t, step in zip(sigmas, times, made.timesteps):
        output = torch.tensor(eps(x.flatten().numpy() * scale(sigma), sigma, t)).reshape(1, 1, 1, 2)
        x = made.step(output, step, x).prev_sample
    return x.flatten().numpy()


def levels():
    """Noise levels for five steps, with the tables of A1111 (products rounded) and ComfyUI (levels rounded)."""
    betas = numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    products = numpy.cumprod(1 - betas)
    single = torch.tensor(products, dtype=torch.float32)
    single = ((1 - single) / single) ** 0.5
    double = torch.tensor(((1 - products) / products) ** 0.5).float()
    n, least, most = 5, single[0].item(), single[-1].item()

    def show(name, values):
        print(f"{name:24} {[f'{float(v):.9g}' for v in values]}")

    def at(times):
        logs = single.log()
        low, high, part = times.floor().long(), times.ceil().long(), times.frac()
        return ((1 - part) * logs[low] + part * logs[high]).exp()

    def kl(table, parts):
        parts = torch.tensor(parts)
        return torch.tan(parts * torch.atan(table[0]) + (1 - parts) * torch.atan(table[-1]))

    show("uniform", at(torch.linspace(999, 0, n)))
    show("sgm uniform", at(torch.linspace(999, 0, n + 1)[:-1]))
    show("karras", sampling.get_sigmas_karras(n, least, most))
    show("exponential", sampling.get_sigmas_exponential(n, least, most))
    show("polyexponential, rho 2", sampling.get_sigmas_polyexponential(n, least, most, rho=2.0))
    show("simple", [single[-1 - int(i * 1000 / n)] for i in range(n)])
    show("ddim", single[1 :: 1000 // n].flip(0))
    quantile = lambda p: stats.beta.ppf(p, 0.6, 0.6)
    show("beta, A1111", [least + quantile(p) * (most - least) for p in 1 - numpy.linspace(0, 1, n)])
    for n_beta in (5, 10):
        show("beta, ComfyUI (times)", numpy.rint(quantile(1 - numpy.linspace(0, 1, n_beta, endpoint=False)) * 999))
    show("kl optimal, A1111", kl(single, numpy.arange(n + 1) / n))
    show("kl optimal, ComfyUI", kl(double, numpy.arange(n) / (n - 1)))
    for n_linear in (1, 2, 5):
        show(f"linear quadratic, {n_linear}", linear_quadratic(n_linear) * double[-1].item())
    # A1111's LCM knows every 20th level; the spreads go over these, and the model is told the nearest.
    known = single[19::20]
    at_known = lambda places: numpy.exp(numpy.interp(places, numpy.arange(50), known.log().double().numpy()))
    show("LCM sgm uniform", at_known(numpy.linspace(49, 0, n + 1)[:-1]))
    show("LCM simple", [known[-1 - int(i * 50 / n)] for i in range(n)])
    show("LCM ddim", known[1 :: 50 // n].flip(0))
    show("LCM kl optimal", kl(known, numpy.arange(n + 1) / n))
    for p in (0, 1e-6, 0.001, 0.1, 0.25, 0.5, 0.6, 0.9, 0.999, 1):
        print(f"beta quantile {p:<10} {quantile(p):.15g}")


def linear_quadratic(n):
    """Half of the steps take 0.025 away evenly; then the parabola that goes on with that slope and reaches 1."""
    if n == 1:
        return numpy.array([1.0])
    half, rest = n // 2, n - n // 2
    i = numpy.arange(n)
    past = numpy.maximum(i - half, 0)
    return 1 - (0.025 / half * i + (0.975 - 0.025 / half * rest) / rest**2 * past**2)


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
    comfyui()
    levels()
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
