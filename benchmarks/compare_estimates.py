"""Differences of the estimates of two benchmark runs, ``python benchmarks/compare_estimates.py A B``.

A and B are folders that ``rismusic bench --out`` made with the same settings, by two versions of the code or
on two machines. Estimates of one scene are matched by Hungarian assignment. The difference of a scene is the
largest one over its sources and coordinates, in units of the Cramer-Rao bound of the true source that the
first run hit. Scenes in which it hit none are left out; a source that only one run found counts as infinite.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rismusic.metrics import match
from rismusic.sources import Sources

NAMES = ("azimuth", "elevation", "range")


def read(folder: Path) -> tuple[Sources, list[dict[str, np.ndarray]]]:
    """The sources of all parts of a method, and the parts."""
    parts = [dict(np.load(path)) for path in sorted(folder.iterdir())]
    width = max(part["azimuth"].shape[1] for part in parts)

    def joined(name: str) -> Tensor:
        padded = [
            np.pad(part[name], ((0, 0), (0, width - part[name].shape[1])), constant_values=np.nan)
            for part in parts
        ]
        return torch.from_numpy(np.concatenate(padded)).double()

    return Sources(**{name: joined(name) for name in NAMES}), parts


def difference(truth: Sources, std: Tensor, first: Sources, other: Sources, scene: int) -> float:
    """The largest difference of a scene, in units of the bound; NaN where the first run hit no source."""
    one, two = first[scene : scene + 1], other[scene : scene + 1]
    hits, pairs = match(truth[scene : scene + 1], one).partner[0], match(one, two).partner[0]
    worst = math.nan
    for true, k in enumerate(hits.tolist()):
        if k < 0:
            continue
        j = int(pairs[k])
        gaps = [
            abs(float(getattr(one, name)[0, k] - getattr(two, name)[0, j]) / float(std[scene, true, axis]))
            if j >= 0
            else math.inf
            for axis, name in enumerate(NAMES)
        ]
        worst = max([gap for gap in (worst, *gaps) if not math.isnan(gap)])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    print("cell,method,scenes,same number of sources,median,90 %,99 %,within .01,within .05,within 1")
    for cell in sorted((given.before / "parts").iterdir()):
        truth, parts = read(cell / "scenes")
        covariance = torch.from_numpy(np.concatenate([part["covariance"] for part in parts]))
        S, K = truth.azimuth.shape
        std = covariance.reshape(S, 3 * K, 3 * K).diagonal(dim1=-2, dim2=-1).sqrt().view(S, K, 3)
        for method in sorted(path.name for path in cell.iterdir()):
            if method == "scenes" or not (given.after / "parts" / cell.name / method).exists():
                continue
            first, _ = read(cell / method)
            other, _ = read(given.after / "parts" / cell.name / method)
            same = (first.active.sum(-1) == other.active.sum(-1)).double().mean()
            gaps = np.array([difference(truth, std, first, other, scene) for scene in range(S)])
            gaps = gaps[~np.isnan(gaps)]
            row = [f"{np.quantile(gaps, q, method='lower'):.4f}" for q in (0.5, 0.9, 0.99)]
            row += [f"{np.mean(gaps <= limit):.3f}" for limit in (0.01, 0.05, 1.0)]
            print(cell.name, method, S, f"{float(same):.3f}", *row, sep=",")


if __name__ == "__main__":
    main()
