"""Makes quality.json and the demo model's default prompts: what scikit-image and models/demo/train.py say of pictures.

    python quality.py

Needs numpy, pillow and scikit-image 0.26. The pictures are those of models/demo/tiny-shapes/quality-samples.png, of which
`python train.py quality` made the first 40 of its 200 prompts; `judge` is taken out of train.py, the rest of which needs torch.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

HERE = Path(__file__).parent
DEMO = HERE / "../../models/demo"
PROMPTS = HERE / "../../benches/src/quality/demo-prompts.txt"
sys.path.insert(0, str(DEMO))
from shapes import COLOURS, POSITIONS, SHAPES, SIZE, quality_scenes, render  # noqa: E402

# Functions of train.py, word by word.
wanted = {"nearest_colour", "judge", "template_in_box"}
tree = ast.parse((DEMO / "train.py").read_text())
tree.body = [node for node in tree.body if getattr(node, "name", None) in wanted]
scope = dict(np=np, COLOURS=COLOURS, POSITIONS=POSITIONS, SHAPES=SHAPES, SIZE=SIZE, _boxes={})
exec(compile(tree, "train.py", "exec"), scope)
judge = scope["judge"]


def measures(a, b):
    ssim = structural_similarity(
        a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    off = (np.abs(a.astype(int) - b.astype(int)).max(axis=2) > 8).mean()
    return {"psnr": float(peak_signal_noise_ratio(a, b, data_range=255)), "ssim": float(ssim), "off": float(off)}


def verdict(scene, pixels):
    """Hits in the order background, colour, shape, position, size: 1 and 0."""
    hits = judge(scene, pixels)
    return "".join(str(int(hits[key])) for key in ("background", "colour", "shape", "position", "size"))


grid = np.asarray(Image.open(DEMO / "tiny-shapes/quality-samples.png").convert("RGB"))
pictures = [grid[y : y + SIZE, x : x + SIZE] for y in range(0, grid.shape[0], SIZE) for x in range(0, grid.shape[1], SIZE)]
scenes, prompts = quality_scenes()
assert len(pictures) == 40

# A wide picture, so that rows and columns are not taken for each other: levels taken away, one column further, other shapes.
wide, below = grid[:SIZE, : 3 * SIZE], grid[SIZE : 2 * SIZE, : 3 * SIZE]
pairs = {
    "levels": measures(wide, wide // 16 * 16),
    "shifted": measures(wide, np.roll(wide, 1, axis=1)),
    "others": measures(wide, below),
}
golden = {
    "scikit_image": skimage.__version__,
    "pairs": pairs,
    "prompts": prompts[:40],
    # Each picture judged by its own prompt, and by that of the picture behind it.
    "own": [verdict(scenes[i], pictures[i]) for i in range(40)],
    "next": [verdict(scenes[(i + 1) % 40], pictures[i]) for i in range(40)],
    # Its upper left quarter, enlarged: other sizes, places and backgrounds.
    "quarter": [verdict(scenes[i], pictures[i][:64, :64].repeat(2, 0).repeat(2, 1)) for i in range(40)],
    # Rows and columns exchanged: shapes that lie on their side.
    "turned": [verdict(scenes[i], pictures[i].transpose(1, 0, 2)) for i in range(40)],
}
(HERE / "quality.json").write_text(json.dumps(golden, indent=1) + "\n")
PROMPTS.write_text("\n".join(prompts[:50]) + "\n")
print(pairs, golden["own"], golden["next"], golden["quarter"], golden["turned"])
