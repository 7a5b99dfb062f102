"""Singular values of the difference of two models' weights, by numpy in double precision.

    python extract_reference.py OUT.safetensors

The models are A and B of `merge_reference.py`.
"""

import sys

import numpy as np
from merge_reference import TENSORS, synthetic, towards
from safetensors.numpy import save_file

result = {}
for name, (key, shape) in TENSORS.items():
    if len(shape) > 1:
        a, b = (synthetic(seed, key, shape) for seed in (0, 1))
        difference = (towards(a, b, 0.3).astype(np.float32) - a).astype(np.float64)
        values = np.linalg.svd(difference.reshape(shape[0], -1), compute_uv=False)
        result[name] = values.astype(np.float32)
save_file(result, sys.argv[1])
