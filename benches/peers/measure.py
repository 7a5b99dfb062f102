"""Runs one contender once: a network's passes over given inputs, or a picture. `peers.py` calls this; results are JSON.

Each engine is set up as its documentation says for least time of one sample on a CPU: fixed shapes, `threads` threads, and
the precision in the contender's name. Modules are imported where they are needed: what one contender does not use counts
neither as its time nor as its memory.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

OUTPUTS = dict(unet="out_sample", vae_decoder="sample")


class OnnxRuntime:
    def __init__(self, args):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        path = str(args.model / args.part / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = {port.name for port in self.session.get_inputs()}

    def __call__(self, inputs):
        return self.session.run(None, inputs)[0]


def openvino_properties(contender, threads):
    precision = "f32" if contender == "openvino-f32" else "bf16"
    return dict(INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY")


class OpenVino:
    def __init__(self, args):
        import openvino

        model = openvino.Core().read_model(args.model / args.part / "openvino_model.xml")
        given = {name: [1] if name == "timestep" else tensor.shape for name, tensor in args.inputs.items()}
        model.reshape({port.any_name: list(given[port.any_name]) for port in model.inputs})
        properties = openvino_properties(args.contender, args.threads)
        self.compiled = openvino.compile_model(model, "CPU", properties)
        self.request = self.compiled.create_infer_request()

    def __call__(self, inputs):
        given = {k: v.reshape(1).astype(np.int64) if k == "timestep" else v for k, v in inputs.items()}
        return self.request.infer(given)[0]


class Torch:
    def __init__(self, args):
        import torch
        from networks import NETWORKS

        torch.set_num_threads(args.threads)
        self.torch = torch
        self.dtype = torch.bfloat16 if args.contender == "torch-bf16" else torch.float32
        network = NETWORKS[args.part][0](args.model)
        self.network = network.to(dtype=self.dtype, memory_format=torch.channels_last)

    def __call__(self, inputs):
        given = [self.torch.from_numpy(inputs[name]) for name in self.network.names]
        given = [x if x.ndim == 0 else x.to(self.dtype) for x in given]
        with self.torch.inference_mode():
            return self.network(*given).float().contiguous().numpy()


def passes(args):
    from safetensors.numpy import load_file, save_file

    prefix = f"{args.part}."
    found = load_file(args.inputs)
    args.inputs = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    args.inputs.pop(OUTPUTS[args.part])
    start = time.perf_counter()
    engine = {"onnxruntime": OnnxRuntime, "openvino": OpenVino, "torch": Torch}[args.contender.split("-")[0]](args)
    load_s = time.perf_counter() - start
    engine(args.inputs)
    seconds = []
    for _ in range(args.runs):
        start = time.perf_counter()
        output = engine(args.inputs)
        seconds.append(time.perf_counter() - start)
    save_file({prefix + OUTPUTS[args.part]: np.array(output)}, args.out)
    return dict(load_s=load_s, seconds=seconds)


def genai_picture(args):
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(args.model)
    pipeline.reshape(1, args.size, args.size, args.guidance)
    pipeline.compile("CPU", **openvino_properties(args.contender, args.threads))
    start = time.perf_counter()
    picture = pipeline.generate(
        args.prompt,
        negative_prompt=args.negative,
        width=args.size,
        height=args.size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        generator=openvino_genai.TorchGenerator(args.seed),
    )
    return np.array(picture.data[0]), time.perf_counter() - start


def diffusers_picture(args):
    import diffusers
    import torch
    from networks import SCHEDULER, TextEncoder, Unet, build_vae, load_file
    from transformers import CLIPTokenizer

    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.contender == "torch-bf16" else torch.float32
    pipeline = diffusers.StableDiffusionPipeline(
        vae=build_vae(load_file(args.model)),
        text_encoder=TextEncoder(args.model).text,
        tokenizer=CLIPTokenizer.from_pretrained(args.ours / "tokenizer"),
        unet=Unet(args.model).unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype)
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    # Noise in single precision, so that all contenders start from the same.
    latents = torch.randn(1, 4, args.size // 8, args.size // 8, generator=torch.Generator().manual_seed(args.seed))
    start = time.perf_counter()
    picture = pipeline(
        args.prompt,
        negative_prompt=args.negative,
        width=args.size,
        height=args.size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        latents=latents.to(dtype),
    ).images[0]
    return np.array(picture), time.perf_counter() - start


def picture(args):
    from PIL import Image

    make = genai_picture if args.contender.startswith("openvino") else diffusers_picture
    pixels, seconds = make(args)
    Image.fromarray(pixels).save(args.out, format="PNG")
    return dict(generate_s=seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*OUTPUTS, "picture"])
    parser.add_argument("contender")
    parser.add_argument("model", type=Path)
    parser.add_argument("--ours", type=Path, required=True, help="our model directory, for its tokenizer")
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--prompt")
    parser.add_argument("--negative")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    print(json.dumps(picture(args) if args.part == "picture" else passes(args)))
