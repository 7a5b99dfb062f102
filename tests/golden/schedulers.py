"""Writes `schedulers.json`, the known answers of `runtime/src/profile/diffusers/tests.rs`: diffusers' schedulers, set up in
many ways, on a toy network of two numbers.

The network returns 0.3 input + 0.05 cos(t / 100), whatever it predicts; start [0.5, -1.25] times the scheduler's initial
scale. The k-th noise draw is [0.7 (-1)^k, 0.3 (k + 1)].

Made with torch 2.14.1, diffusers 0.39.0, scipy (any recent ones will do).
"""

import json
import math
import pathlib
import sys
import warnings

import diffusers
import torch

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
    skip_prk_steps=True,
)
V = dict(prediction_type="v_prediction")
SAMPLE = dict(prediction_type="sample")
ZERO_SNR = dict(V, rescale_betas_zero_snr=True, timestep_spacing="trailing")
KARRAS, EXPONENTIAL, BETA = dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True), dict(use_beta_sigmas=True)
LEADING, LINSPACE, TRAILING = (dict(timestep_spacing=s) for s in ("leading", "linspace", "trailing"))
COSINE, LINEAR = dict(beta_schedule="squaredcos_cap_v2"), dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
MIN = dict(final_sigmas_type="sigma_min")
SDE, HEUN = dict(algorithm_type="sde-dpmsolver++"), dict(solver_type="heun")
ONE, THREE = dict(solver_order=1), dict(solver_order=3)
NO_LOWER = dict(lower_order_final=False)
# Of noise; these end at the least noise only.
NOISE, NOISE_SDE = (dict(MIN, algorithm_type=a) for a in ("dpmsolver", "sde-dpmsolver"))
# Small enough for these two numbers to be changed by it.
BOUND = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)

CASES = [
    ("DDIM", {}, LINSPACE, TRAILING, V, SAMPLE, ZERO_SNR, dict(set_alpha_to_one=True), COSINE, LINEAR),
    ("DDPM", {}, dict(steps_offset=0), TRAILING, V, ZERO_SNR, dict(variance_type="fixed_small_log"), BOUND),
    ("PNDM", {}, LINSPACE, TRAILING, V, dict(V, **LINSPACE), dict(set_alpha_to_one=True)),
    ("LCM", {}, V, SAMPLE, ZERO_SNR, dict(timestep_scaling=1.0), dict(original_inference_steps=100), BOUND),
    ("TCD", {}, V, SAMPLE, ZERO_SNR, BOUND),
    ("EulerDiscrete", {}, LEADING, TRAILING, KARRAS, dict(KARRAS, **LEADING), EXPONENTIAL, BETA, V, SAMPLE, ZERO_SNR, MIN,
     dict(interpolation_type="log_linear"), dict(KARRAS, interpolation_type="log_linear"), COSINE),
    ("EulerAncestralDiscrete", {}, LEADING, TRAILING, V, ZERO_SNR),
    ("HeunDiscrete", {}, LEADING, KARRAS, V, SAMPLE),
    ("LMSDiscrete", {}, LEADING, KARRAS, V, SAMPLE),
    ("KDPM2Discrete", {}, LEADING, KARRAS, EXPONENTIAL, V),
    ("KDPM2AncestralDiscrete", {}, LEADING, KARRAS, V),
    ("DPMSolverSDE", {}, LEADING, TRAILING, KARRAS, EXPONENTIAL, BETA, V, dict(noise_sampler_seed=7)),
    ("DPMSolverMultistep", {}, LEADING, TRAILING, KARRAS, EXPONENTIAL, BETA, V, SAMPLE, ZERO_SNR, MIN, dict(KARRAS, **MIN), ONE,
     THREE, dict(THREE, **MIN), dict(THREE, **NO_LOWER), HEUN, NO_LOWER, dict(MIN, euler_at_final=True), SDE, dict(SDE, **HEUN),
     dict(SDE, **KARRAS), dict(SDE, **THREE), dict(SDE, **ONE), dict(SDE, **MIN), dict(use_lu_lambdas=True),
     dict(COSINE, lambda_min_clipped=-5.1), dict(COSINE, lambda_min_clipped=-5.1, **TRAILING), BOUND, dict(BOUND, **SDE), NOISE,
     dict(NOISE, **HEUN), dict(NOISE, **ONE), dict(NOISE, **THREE), dict(NOISE, **KARRAS), dict(NOISE, **V), dict(NOISE, **NO_LOWER),
     dict(NOISE, **BOUND), NOISE_SDE, dict(NOISE_SDE, **HEUN), dict(NOISE_SDE, **ONE), dict(NOISE_SDE, **V)),
    ("UniPCMultistep", {}, LEADING, TRAILING, KARRAS, EXPONENTIAL, BETA, V, SAMPLE, ZERO_SNR, MIN, dict(KARRAS, **MIN), ONE, THREE,
     dict(THREE, **MIN), dict(THREE, solver_type="bh1", **MIN), dict(solver_type="bh1", **MIN, **NO_LOWER),
     dict(THREE, predict_x0=False, **MIN), BOUND, dict(BOUND, predict_x0=False, **MIN)),
    ("DEISMultistep", {}, LEADING, TRAILING, KARRAS, EXPONENTIAL, V, SAMPLE, ONE, THREE, NO_LOWER, BOUND),
]

# What the pipeline changes in a scheduler's configuration.
IN_PIPELINE = [
    ("DDIM", dict(steps_offset=0), dict(clip_sample=True), dict(steps_offset=7, clip_sample=True, set_alpha_to_one=True)),
    ("DDPM", dict(steps_offset=0, clip_sample=True)),
    ("PNDM", dict(steps_offset=0)),
    ("EulerDiscrete", dict(LEADING, steps_offset=0), dict(LEADING, steps_offset=3)),
    ("UniPCMultistep", dict(LEADING, steps_offset=0)),
]


class Draws:
    """Stands for every random generator."""

    def __init__(self):
        self.k = 0

    def __call__(self, *_, dtype=torch.float32, **__):
        k, self.k = self.k, self.k + 1
        return torch.tensor([0.7 * (-1) ** k, 0.3 * (k + 1)], dtype=torch.float64).reshape(1, 1, 1, 2).to(dtype)


def run(name, options, steps, pipeline):
    made = getattr(diffusers, name).from_config({"_class_name": name, **SD15, **options})
    if pipeline:
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
        made = diffusers.StableDiffusionPipeline(scheduler=made, requires_safety_checker=False, **parts).scheduler
    made.set_timesteps(steps)
    module = sys.modules[type(made).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = Draws()
    if hasattr(module, "BrownianTreeNoiseSampler"):
        draws = Draws()
        module.BrownianTreeNoiseSampler = lambda *_: draws
    x = torch.tensor([0.5, -1.25], dtype=torch.float64).reshape(1, 1, 1, 2) * made.init_noise_sigma
    for t in made.timesteps:
        scaled = made.scale_model_input(x, t)
        output = 0.3 * scaled + 0.05 * math.cos(float(t) / 100)
        x = made.step(output, t, x).prev_sample
    return [float(t) for t in made.timesteps], x.flatten().tolist()


def main():
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    cases = [(f"{short}Scheduler", options, False) for short, *variants in CASES for options in variants]
    cases += [(f"{short}Scheduler", options, True) for short, *variants in IN_PIPELINE for options in variants]
    rows = []
    for name, options, pipeline in cases:
        config = {"_class_name": name, **SD15, **options}
        times, answers = {}, {}
        for steps in (5, 10, 20):
            times[steps], answers[steps] = run(name, options, steps, pipeline)
        assert all(math.isfinite(v) for pair in answers.values() for v in pair), (name, options, answers)
        rows.append(
            {
                "config": config,
                **({"pipeline": "StableDiffusionPipeline"} if pipeline else {}),
                "times": [round(t, 2) for t in times[5]],
                "answers": {steps: [float(f"{v:.9g}") for v in pair] for steps, pair in answers.items()},
            }
        )
    lines = ",\n".join(json.dumps(row) for row in rows)
    pathlib.Path(__file__).with_name("schedulers.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
