"""Errors on every sample recording: ``python benchmarks/samples.py [--methods sbl omp ...] [--csv FILE]``.

Neither the samples nor the bounds in ``*.bound.npz`` were made by this code. Where there is no such file,
this package computes the bound. Settings are the defaults; the number of sources is known in one row (K)
and unknown in the other (auto). The noise variance is used where the recording has it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from measure import write_csv
from rismusic.crb import Bound, conditional_crb
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.hybrid import locate
from rismusic.io import Recording, read
from rismusic.metrics import match, score
from rismusic.sources import Sources
from rismusic.spec import LocateSpec

SAMPLES = Path(__file__).parent.parent / "samples"
METHODS = ["music", "omp", "relax", "sbl", "hybrid", "hybrid:robust"]


def truth_of(path: Path, recording: Recording) -> Sources:
    """The truth in the recording, or in the file beside it."""
    if recording.truth is not None:
        return recording.truth
    beside = np.load(path.with_suffix(".truth.npz"))
    return Sources(**{name: torch.from_numpy(beside[name]) for name in ("azimuth", "elevation", "range")})


def bound_of(path: Path, recording: Recording, truth: Sources, noise: torch.Tensor) -> Bound:
    """The bound beside the recording, or ours, with the symbols and noise of the best fit at the truth."""
    beside = path.with_suffix(".bound.npz")
    if beside.exists():
        std = torch.from_numpy(np.load(beside)["crb"])[:, : truth.azimuth.shape[1]]
        covariance = torch.diag_embed(std.square().flatten(-2)).unflatten(-1, std.shape[-2:])
        return Bound.from_covariance(covariance.unflatten(-3, std.shape[-2:]), truth.range)
    fitted = nfmle(recording, truth, Volume.from_spec(LocateSpec())).sources
    return conditional_crb(recording.panel, recording.link, fitted, noise)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=SAMPLES)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for path in sorted(options.folder.iterdir()):
        if path.suffix not in (".h5", ".mat"):
            continue
        recording = read(path)
        truth = truth_of(path, recording)
        count = truth.active.sum(-1)
        for method in options.methods:
            base, _, weights = method.partition(":")
            for known in (True, False):
                found = locate(
                    recording,
                    n_sources=count if known else "auto",
                    method=base,
                    weights=weights or "ideal",
                )
                bound = bound_of(path, recording, truth, found.noise_variance)
                result = score(match(truth, found.sources), bound)
                hits = round((1 - result.misses) * int(count.sum()))
                false_alarms = int(found.sources.active.sum()) - hits
                rows.append(
                    {
                        "sample": path.name,
                        "method": method,
                        "count": "K" if known else "auto",
                        "sources": int(count.sum()),
                        "hits": hits,
                        "false_alarm_count": false_alarms,
                        **asdict(result),
                    }
                )
                print(
                    f"{path.name:<20} {method:<13} {'K' if known else 'auto':<5} hits {hits:3d} of "
                    f"{int(count.sum()):3d}, false alarms {false_alarms:2d}, over bound "
                    f"{result.azimuth_over_bound:6.2f} {result.elevation_over_bound:6.2f} "
                    f"{result.inverse_range_over_bound:6.2f}",
                    flush=True,
                )
    if options.csv is not None:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
