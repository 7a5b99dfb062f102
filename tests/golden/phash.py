"""Makes phash.json: hashes of the demo model's sample pictures by Python's imagehash.

    python phash.py

Needs numpy, pillow and imagehash 4.3. Pictures are brought to 32x32 by means of areas before, in double precision, and imagehash is
given the brightness as 32-bit numbers, so that nothing rounds on the way.
"""

import json
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
grid = np.asarray(Image.open(HERE / "../../models/demo/tiny-shapes/quality-samples.png").convert("RGB"), dtype=np.float64)


class Grey:
    """What imagehash asks of a picture: brightness at the size that it wants."""

    def __init__(self, pixels):
        height, width, _ = pixels.shape
        means = pixels.reshape(32, height // 32, 32, width // 32, 3).mean(axis=(1, 3))
        self.pixels = means @ np.array([0.299, 0.587, 0.114])

    def convert(self, mode):
        assert mode == "L"
        return self

    def resize(self, size, _):
        assert size == (32, 32)
        return self

    def __array__(self, dtype=None, copy=None):
        return self.pixels


def phash(pixels):
    return str(imagehash.phash(Grey(pixels)))


golden = {
    "imagehash": imagehash.__version__,
    "hashes": [phash(grid[y : y + 128, x : x + 128]) for y in range(0, 640, 128) for x in range(0, 1024, 128)],
    "wide": phash(grid[:128, :384]),
}
(HERE / "phash.json").write_text(json.dumps(golden, indent=1) + "\n")
