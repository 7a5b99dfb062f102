"""Makes what the peers read, from the checkpoint: see `peers.py`, which calls this.

    onnx        torch's own ONNX exports, in single precision and of a fixed size
    openvino    a folder as openvino_genai reads it; in single precision, as optimum-intel exports networks of this size
    int8        that folder with NNCF's hybrid quantization, as optimum-intel applies it to pipelines: int8 weights of matrix
                products; of the UNet's convolutions also int8 activations; int8 weights only in the other networks
    reference   outputs of the networks in single precision by torch
"""

import argparse
import gc
import json
import os
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, SCHEDULER, TextEncoder, Unet, VaeDecoder
from safetensors.numpy import load_file, save_file

PROMPTS = ("a photo of a cat", "a red car in the rain", "portrait of an old sailor", "mountains at dawn", "")
CALIBRATION_SAMPLES = 5


def onnx_exports(args):
    import onnx

    for name, (network, output) in NETWORKS.items():
        network = network(args.checkpoint)
        path = args.out / name / "model.onnx"
        path.parent.mkdir(parents=True)
        torch.onnx.export(
            network,
            network.example(args.size // 8, torch.tensor(1.0)),
            str(path),
            input_names=network.names,
            output_names=[output],
            opset_version=17,
            dynamo=False,
        )
        del network
        gc.collect()
        model = onnx.load(path)
        for old in path.parent.iterdir():
            old.unlink()
        onnx.save(model, path, save_as_external_data=True, location="model.onnx_data")


def openvino_folder(args):
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import CLIPTokenizerFast

    def save(folder, network, output, example, shapes, config):
        model = openvino.convert_model(network, example_input=example, input=shapes)
        for port, name in zip(model.inputs, network.names):
            port.get_tensor().set_names({name})
        model.outputs[0].get_tensor().set_names({output})
        (args.out / folder).mkdir(parents=True)
        openvino.save_model(model, args.out / folder / "openvino_model.xml", compress_to_fp16=False)
        write(f"{folder}/config.json", config)

    def write(name, value):
        (args.out / name).parent.mkdir(exist_ok=True, parents=True)
        (args.out / name).write_text(json.dumps(value, indent=2))

    unet = Unet(args.checkpoint)
    context = unet.unet.config.cross_attention_dim
    side = args.size // 8
    save(
        "unet",
        unet,
        "out_sample",
        unet.example(side, torch.tensor([1])),
        [[-1, 4, -1, -1], [1], [-1, 77, context]],
        dict(in_channels=4, sample_size=64),
    )
    del unet
    gc.collect()
    decoder = VaeDecoder(args.checkpoint)
    config = {name: decoder.vae.config[name] for name in ("in_channels", "latent_channels", "out_channels")}
    config |= dict(scaling_factor=0.18215, block_out_channels=list(decoder.vae.config.block_out_channels))
    save("vae_decoder", decoder, "sample", decoder.example(side, None), [[-1, 4, -1, -1]], config)
    text = TextEncoder(args.checkpoint)
    config = dict(max_position_embeddings=77, num_hidden_layers=text.text.config.num_hidden_layers)
    ids = torch.full((1, 77), 49407)
    save("text_encoder", text, "last_hidden_state", (ids,), [[-1, 77]], config)
    tokenizer = CLIPTokenizerFast.from_pretrained(args.ours / "tokenizer")
    for model, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer")):
        (args.out / "tokenizer").mkdir(exist_ok=True)
        openvino.save_model(model, args.out / "tokenizer" / f"openvino_{name}.xml")
    write("scheduler/scheduler_config.json", SCHEDULER)
    write(
        "model_index.json",
        dict(
            _class_name="StableDiffusionPipeline",
            scheduler=["diffusers", SCHEDULER["_class_name"]],
            text_encoder=["transformers", "CLIPTextModel"],
            tokenizer=["transformers", "CLIPTokenizer"],
            unet=["diffusers", "UNet2DConditionModel"],
            vae=["diffusers", "AutoencoderKL"],
        ),
    )


def calibration(args):
    """Inputs of the UNet over the noise levels: noise, since the synthetic model's latents are little else."""
    from transformers import CLIPTokenizer

    text = TextEncoder(args.checkpoint)
    tokenizer = CLIPTokenizer.from_pretrained(args.ours / "tokenizer")
    random = np.random.default_rng(0)
    for i, timestep in enumerate(np.linspace(981, 1, CALIBRATION_SAMPLES)):
        prompt = PROMPTS[i % len(PROMPTS)]
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        sample = random.standard_normal((1, 4, args.size // 8, args.size // 8)).astype(np.float32)
        yield dict(
            sample=sample,
            timestep=np.array([int(timestep)]),
            encoder_hidden_states=text(ids).numpy(),
        )


def int8_folder(args):
    import nncf
    import openvino

    core = openvino.Core()
    args.out.mkdir()
    for entry in sorted(os.listdir(args.openvino)):
        if not (args.openvino / entry / "openvino_model.xml").exists():
            (args.out / entry).symlink_to((args.openvino / entry).resolve())
            continue
        (args.out / entry).mkdir()
        (args.out / entry / "config.json").write_bytes((args.openvino / entry / "config.json").read_bytes())
        model = core.read_model(args.openvino / entry / "openvino_model.xml")
        if entry == "unet":
            # optimum.intel.openvino.quantization._hybrid_quantization
            products = [op.get_friendly_name() for op in model.get_ops() if reads_weights(op)]
            model = nncf.compress_weights(
                model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=nncf.IgnoredScope(types=["Convolution"])
            )
            smooth = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            model = nncf.quantize(
                model,
                nncf.Dataset(list(calibration(args))),
                subset_size=CALIBRATION_SAMPLES,
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=products),
                advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
            )
        else:
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, args.out / entry / "openvino_model.xml", compress_to_fp16=False)
        del model
        gc.collect()


def reads_weights(op):
    """Whether it is a matrix product with a constant, behind conversions to single precision."""
    if op.get_type_name() != "MatMul":
        return False
    nodes = [value.get_node() for value in op.input_values()]
    nodes = [node.input_value(0).get_node() if node.get_type_name() == "Convert" else node for node in nodes]
    return any(node.get_type_name() == "Constant" for node in nodes)


def reference(args):
    inputs, outputs = load_file(args.inputs), {}
    for name, (network, output) in NETWORKS.items():
        network = network(args.checkpoint)
        given = [torch.from_numpy(inputs[f"{name}.{key}"]) for key in network.names]
        outputs[f"{name}.{output}"] = network(*given).contiguous().numpy()
        del network
        gc.collect()
    save_file(outputs, args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = dict(onnx=onnx_exports, openvino=openvino_folder, int8=int8_folder, reference=reference)
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--ours", type=Path, required=True, help="our model directory, for its tokenizer")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kinds[args.what](args)
