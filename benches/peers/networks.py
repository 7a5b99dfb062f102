"""The networks of a Stable Diffusion 1.5 checkpoint as diffusers and transformers have them, without a model hub."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/golden"))
from synth_reference import build_text, build_unet, build_vae  # noqa: E402

torch.set_grad_enabled(False)
SCHEDULER = dict(
    _class_name="EulerDiscreteScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    steps_offset=1,
    timestep_spacing="linspace",
)


class Unet(torch.nn.Module):
    """`sample`, `timestep`, `encoder_hidden_states` -> `out_sample`."""

    def __init__(self, checkpoint):
        super().__init__()
        self.unet = build_unet(load_file(checkpoint))
        self.names = ["sample", "timestep", "encoder_hidden_states"]

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    def example(self, side, timestep):
        context = self.unet.config.cross_attention_dim
        return (torch.randn(1, 4, side, side), timestep, torch.randn(1, 77, context))


class VaeDecoder(torch.nn.Module):
    """`latent_sample` -> `sample`."""

    def __init__(self, checkpoint):
        super().__init__()
        self.vae = build_vae(load_file(checkpoint))
        self.vae.encoder = self.vae.quant_conv = None
        self.names = ["latent_sample"]

    def forward(self, latent_sample):
        return self.vae.decode(latent_sample, return_dict=False)[0]

    def example(self, side, _):
        return (torch.randn(1, 4, side, side),)


class TextEncoder(torch.nn.Module):
    """`input_ids` -> `last_hidden_state`."""

    def __init__(self, checkpoint):
        super().__init__()
        self.text = build_text(load_file(checkpoint))
        self.names = ["input_ids"]

    def forward(self, input_ids):
        return self.text(input_ids=input_ids, return_dict=False)[0]


NETWORKS = dict(unet=(Unet, "out_sample"), vae_decoder=(VaeDecoder, "sample"))
