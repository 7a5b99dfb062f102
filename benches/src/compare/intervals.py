"""Writes `intervals.json`: ratios of samples with the intervals that scipy's exact rank-sum test leaves.

    python intervals.py            (scipy 1.17.1, numpy 2.4.6)

An interval holds the factors by which `a` may be multiplied so that `scipy.stats.mannwhitneyu(.., method="exact")` has a p-value above
1 - confidence for it and `b`. The p-value changes only where a product becomes equal to a number of `b`, so its ends are among the
quotients, and a factor between each two neighbours is tried. Nothing of the formula for the rank is used.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu


def interval(a, b, confidence):
    quotients = np.sort(np.divide.outer(b, a).ravel())
    between = np.sqrt(quotients[:-1] * quotients[1:])
    tried = np.concatenate([[quotients[0] / 2], between, [quotients[-1] * 2]])
    kept = [mannwhitneyu(a * factor, b, method="exact").pvalue > 1 - confidence for factor in tried]
    if kept[0] or kept[-1]:  # no factor is ruled out
        return None
    first, last = np.flatnonzero(kept)[[0, -1]]
    # Between quotients number i - 1 and i lies factor i.
    return dict(
        estimate=float(np.exp(np.median(np.log(quotients)))), low=float(quotients[first - 1]), high=float(quotients[last])
    )


def main():
    rng = np.random.Generator(np.random.PCG64(7))
    cases = []
    sizes = [(3, 3), (3, 5), (4, 4), (4, 7), (5, 5), (5, 6), (8, 8), (10, 3), (12, 9), (20, 20)]
    for confidence in (0.9, 0.95, 0.99):
        for n, m in sizes:
            a = rng.lognormal(0, 0.05, n) * 2
            b = rng.lognormal(0, 0.05, m) * 2.1
            cases.append(dict(a=a.tolist(), b=b.tolist(), confidence=confidence, ratio=interval(a, b, confidence)))
    text = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_suffix(".json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
