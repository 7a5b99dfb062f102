"""The peer of the UNet benchmark: torch's own ONNX export of the same weights, timed by the same ONNX Runtime.

    python peer_torch_export.py export CHECKPOINT FOLDER        CHECKPOINT from `sdconvert synth --family sd15`
    python peer_torch_export.py time MODEL.onnx.. [--threads N] [--runs N] [--size N]
                                                               several models are timed in turn, in one process each

`time` prints one JSON object per model: seconds to load, median and least seconds per pass, peak memory in MB.
Needs torch, diffusers, onnx, onnxruntime.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def export(checkpoint, folder):
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "golden"))
    import torch
    from safetensors.torch import load_file
    from synth_reference import build_unet

    class Unet(torch.nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet = unet

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    unet = build_unet({name: tensor.float() for name, tensor in load_file(checkpoint).items()})
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.onnx")
    context = unet.config.cross_attention_dim
    inputs = (torch.zeros(1, 4, 64, 64), torch.tensor(1.0), torch.zeros(1, 77, context))
    with torch.no_grad():
        torch.onnx.export(
            Unet(unet),
            inputs,
            path,
            input_names=["sample", "timestep", "encoder_hidden_states"],
            output_names=["out_sample"],
            opset_version=17,
            dynamo=False,
        )
    import onnx

    model = onnx.load(path)
    for old in Path(folder).iterdir():
        old.unlink()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data")


def time_one(model, threads, runs, size):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in (("batch", 1), ("height", size), ("width", size)):
        options.add_free_dimension_override_by_name(name, value)
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - start
    random = np.random.RandomState(0)
    width = next(i.shape[2] for i in session.get_inputs() if i.name == "encoder_hidden_states")
    feed = {
        "sample": random.standard_normal((1, 4, size, size)).astype(np.float32),
        "timestep": np.array(981.0, np.float32),
        "encoder_hidden_states": random.standard_normal((1, 77, width)).astype(np.float32),
    }
    session.run(None, feed)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        output = session.run(None, feed)[0]
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "model": model,
                "load_s": round(load, 2),
                "median_s": round(float(np.median(times)), 3),
                "min_s": round(min(times), 3),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "checksum": float(np.abs(output).sum()),
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    e = commands.add_parser("export")
    e.add_argument("checkpoint")
    e.add_argument("folder")
    t = commands.add_parser("time")
    t.add_argument("models", nargs="+")
    t.add_argument("--threads", type=int, default=os.cpu_count())
    t.add_argument("--runs", type=int, default=5)
    t.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    if args.command == "export":
        return export(args.checkpoint, args.folder)
    if len(args.models) == 1:
        return time_one(args.models[0], args.threads, args.runs, args.size)
    for model in args.models:
        options = ["--threads", str(args.threads), "--runs", str(args.runs), "--size", str(args.size)]
        subprocess.run([sys.executable, __file__, "time", model, *options], check=True)


if __name__ == "__main__":
    main()
