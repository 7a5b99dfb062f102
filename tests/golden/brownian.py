"""Prints the known answers of `runtime/src/noise/brownian.rs`: k-diffusion's BrownianTreeNoiseSampler over torchsde's tree.

Each case: a seed, an axis, a number of elements and queries in order; then the SHA-256 of all increments as little-endian
f32, one after the other, and the first number of the first ones. Then the same of three pictures' parts of a batch that has one
motion from one seed, and the first numbers of four steps of a Karras schedule.

Made with torch 2.14.1, torchsde 0.2.6, k-diffusion 0.1.1.post1, numpy 2.4.6, on x86-64.
"""

import hashlib
import sys
from unittest import mock

import numpy
import torch

# k-diffusion's package imports its training code, which needs more than the sampler does.
for name in (
    "clip clean_fid cleanfid cleanfid.inception_torchscript dctorch jsonmerge kornia kornia.augmentation skimage "
    "skimage.transform torchvision torchvision.transforms"
).split():
    sys.modules.setdefault(name, mock.MagicMock())
from k_diffusion.sampling import BrownianTreeNoiseSampler, get_sigmas_karras  # noqa: E402

SD15 = (0.0291671582, 14.6146412)
THREE_QUARTERS = [14.6146412]
while len(THREE_QUARTERS) < 20:
    THREE_QUARTERS.append(THREE_QUARTERS[-1] * 0.75)
CASES = [
    (0, SD15, 4, [14.6146412, 7.5, 3, 1, 0.3, 0.0291671582]),
    (42, SD15, 4, [14.6146412, 7.5]),
    (7, SD15, 1024, THREE_QUARTERS),
    (2**32 + 5, SD15, 1024, THREE_QUARTERS[::4]),
    (2**63 + 11, (0.002, 80.0), 256, [80, 40.123456, 13.7, 0.5000005, 0.0078125, 0.002]),
    (3, (0.0291671582, 4518.25), 33, [4518.25, 100, 99.99999, 0.1, 0.0291671582]),
    (3, SD15, 16, [0.3, 0.0291671582, 14.6146412, 1, 7.5]),
    (5, (1.0000015, 2.0000005), 17, [2.0000005, 1.5, 1.499999, 1.0000015]),
]


def root(x):
    """Correctly rounded; torch's own, which comes from MKL, is now and then one ulp off."""
    return torch.tensor(numpy.sqrt(x.numpy()))


def walk(seed, low, high, shape, times):
    sampler = BrownianTreeNoiseSampler(torch.zeros(shape), torch.tensor(low), torch.tensor(high), seed=seed)
    for a, b in zip(times, times[1:]):
        a, b = torch.tensor(a), torch.tensor(b)
        increment = sampler.tree(a, b) / root((a - b).abs())
        assert torch.allclose(increment, sampler(a, b), rtol=4e-7, atol=0)
        yield increment


for seed, (low, high), count, times in CASES:
    sha, firsts = hashlib.sha256(), []
    for increment in walk(seed, low, high, count, times):
        sha.update(increment.numpy().tobytes())
        firsts.append(f"{increment[0].item():.9g}")
    print(seed, (low, high), count, len(times) - 1, sha.hexdigest(), *firsts[:5])

for seed, count in [(9, 33), (10, 1024)]:
    parts = [hashlib.sha256() for _ in range(3)]
    for increment in walk(seed, *SD15, (3, count), THREE_QUARTERS):
        for part, sha in zip(increment, parts):
            sha.update(part.numpy().tobytes())
    print("batch of 3", seed, count, *(sha.hexdigest() for sha in parts))

x = torch.zeros(1, 4, 8, 8)
sigmas = get_sigmas_karras(10, 0.0291675348, 14.6146421)
sampler = BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=[0])
for i in (0, 1, 2, 8):
    print(i, [f"{v:.9g}" for v in sampler(sigmas[i], sigmas[i + 1]).flatten()[:4].tolist()])
