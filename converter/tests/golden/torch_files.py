"""Small files as PyTorch writes them, for the readers of .ckpt files.

    python torch_files.py OUT_FOLDER

The tensors' elements are 0, 1, 2, .. in row-major order unless said otherwise. Made with torch 2.15.0.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch

out = Path(sys.argv[1])


def count(*shape, dtype=torch.float32):
    n = 1
    for size in shape:
        n *= size
    return torch.arange(n, dtype=torch.float32).reshape(shape).to(dtype)


def state():
    base = count(4, 6)
    return OrderedDict(
        [
            ("f32", count(2, 3)),
            ("f16", count(2, 3, dtype=torch.float16)),
            ("bf16", count(5, dtype=torch.bfloat16)),
            ("f64", count(3, dtype=torch.float64)),
            ("i64", torch.arange(7)),
            ("scalar", torch.tensor(2.5)),
            ("empty", torch.zeros(0, 3)),
            ("transposed", count(3, 2).t()),  # 0 2 4, 1 3 5
            ("shared.whole", base),
            ("shared.rows", base[1:3]),  # 6 .. 17
            ("shared.columns", base[:, 2]),  # 2 8 14 20
            ("parameter", torch.nn.Parameter(count(2))),
        ]
    )


checkpoint = {"state_dict": state(), "global_step": 875000, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}
torch.save(checkpoint, out / "zip.ckpt")
torch.save(checkpoint, out / "legacy.ckpt", _use_new_zipfile_serialization=False)
torch.save(state(), out / "bare.bin")
f8 = OrderedDict([("e4m3", count(3).to(torch.float8_e4m3fn)), ("e5m2", count(3).to(torch.float8_e5m2))])
torch.save(f8, out / "f8.pt")
torch.jit.script(torch.nn.Linear(2, 2)).save(str(out / "script.pt"))

# A1111's textual inversions, of two times.
embedding = {"string_to_token": {"*": 265}, "name": "thing", "step": 5, "sd_checkpoint": "ab", "sd_checkpoint_name": "x"}
torch.save({**embedding, "string_to_param": {"*": count(2, 768)}}, out / "embedding.pt")
parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(count(2, 768))})
torch.save({**embedding, "string_to_param": parameters}, out / "embedding-parameters.pt")

# A LoRA as early trainers saved them.
module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
lora = {
    f"{module}.lora_up.weight": count(64, 1, dtype=torch.float16) / 8,
    f"{module}.lora_down.weight": count(1, 64, dtype=torch.float16) / 64,
    f"{module}.alpha": torch.tensor(0.5, dtype=torch.float16),
}
torch.save(lora, out / "lora.pt")
