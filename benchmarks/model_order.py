"""Accuracy of the estimated number of sources.

Run ``python benchmarks/model_order.py [--scenes 100] [--csv FILE]``.

Default system, unknown noise variance, K = 0 .. 5 sources at 0, 5, 10 and 20 dB; for K = 0 as many scenes
of noise as for all SNRs together. MDL and AIC count the eigenvalues of a sample covariance, at the receiver
or on the panel; ``evidence`` is ``locate --sources auto``. The table counts how often each estimated each
number. ``--reliability FILE`` compares the probability given to the estimated number with how often it is
right.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rismusic.benchmark.summary import share_interval
from rismusic.estimation.model_order import aic, mdl
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.simulation.simulator import simulate

COUNTS, SNRS_DB = (0, 1, 2, 3, 4, 5), (0.0, 5.0, 10.0, 20.0)
CRITERIA: dict[str, Callable[[Recording], Tensor]] = {
    "MDL, receiver": mdl,
    "AIC, receiver": aic,
    "MDL, panel": lambda recording: mdl(recording, panel=True),
    "AIC, panel": lambda recording: aic(recording, panel=True),
}
BINS = (0.0, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0)
Row = dict[str, str | int | float]


def scenes_of(K: int, snr_db: float | None, scenes: int, seed: int) -> Recording:
    """Scenes of K sources, or of noise alone through the same links, without truth and noise variance."""
    made = simulate(scenes=scenes, sources=max(1, K), snr_db=10.0 if snr_db is None else snr_db, seed=seed)
    if K == 0:
        _, L, M = made.snapshots.shape
        draws = Draws(seed, "validation", torch.arange(scenes))
        made = replace(made, snapshots=draws.complex_normal(Stream.NOISE, L, M))
    return replace(made, truth=None, noise_variance=None)


def cell(K: int, snr_db: float | None, scenes: int, seed: int, method: str) -> tuple[list[Row], np.ndarray]:
    """Rows of all criteria, and [S, 2]: probability of the number named by evidence, whether it is right."""
    recording = scenes_of(K, snr_db, scenes, seed)
    located = locate(recording, method=method, n_sources="auto", sources_max=COUNTS[-1])
    named = {name: count(recording) for name, count in CRITERIA.items()}
    named["evidence"] = located.sources.active.sum(-1)
    rows = []
    for name, count in named.items():
        right = (count == K).double().numpy()
        low, high = share_interval(right, np.ones(scenes))
        row: Row = {"sources": K, "snr_db": "" if snr_db is None else snr_db, "criterion": name}
        row |= {"scenes": scenes, "right": right.mean(), "right_low": float(low), "right_high": float(high)}
        row |= {f"named_{k}": int((count == k).sum()) for k in COUNTS}
        rows.append(row | {"named_more": int((count > COUNTS[-1]).sum())})
        print(
            f"K = {K}  {'noise' if snr_db is None else f'{snr_db:g} dB':>6}  {name:<14} "
            f"right {right.mean():.2f} ({low:.2f} to {high:.2f})  "
            f"named 0, 1, ...: {torch.bincount(count, minlength=6).tolist()}",
            flush=True,
        )
    assert located.n_sources_probability is not None
    stated = located.n_sources_probability.amax(1).numpy()
    return rows, np.stack((stated, (named["evidence"] == K).double().numpy()), axis=1)


def reliability(stated_and_right: np.ndarray) -> list[Row]:
    """Stated probability and share right, by bins of the former."""
    rows: list[Row] = []
    for low, high in pairwise(BINS):
        some = stated_and_right[(stated_and_right[:, 0] > low) & (stated_and_right[:, 0] <= high)]
        if len(some):
            limits = share_interval(some[:, 1], np.ones(len(some)))
            row: Row = {"above": low, "to": high, "scenes": len(some), "stated": some[:, 0].mean()}
            rows.append(
                row
                | {"right": some[:, 1].mean(), "right_low": float(limits[0]), "right_high": float(limits[1])}
            )
    return rows


def save(path: Path | None, rows: list[Row]) -> None:
    if path is not None and rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sbl", help="of locate")
    parser.add_argument("--cells", nargs="*", help="K,dB pairs such as 3,10, and 0 for noise; all if none")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--reliability", type=Path, metavar="FILE")
    options = parser.parse_args()
    cells: list[tuple[int, float | None]] = [(0, None)]
    cells += [(K, snr_db) for K in COUNTS[1:] for snr_db in SNRS_DB]
    if options.cells:
        pairs = [one.split(",") for one in options.cells]
        cells = [(int(pair[0]), float(pair[1]) if len(pair) > 1 else None) for pair in pairs]
    rows: list[Row] = []
    stated_and_right = np.empty((0, 2))
    for K, snr_db in cells:
        scenes = options.scenes * (len(SNRS_DB) if K == 0 else 1)
        more, stated = cell(K, snr_db, scenes, options.seed, options.method)
        rows, stated_and_right = rows + more, np.concatenate((stated_and_right, stated))
        # After each cell: a long run that is cut short has not run for nothing.
        save(options.csv, rows)
        save(options.reliability, reliability(stated_and_right))
    for row in reliability(stated_and_right):
        print(
            f"stated {row['stated']:.3f}: right {row['right']:.3f} "
            f"({row['right_low']:.3f} to {row['right_high']:.3f}), {row['scenes']} scenes"
        )


if __name__ == "__main__":
    main()
