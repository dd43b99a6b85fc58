"""Coverage of the stated standard deviations.

Run ``python benchmarks/calibration.py [--scenes 200] [--csv FILE]``.

Default system, K known, noise variance hidden. Each coordinate of every hit gives |error| / std (with 1 /
range in place of range, since its error is nearly normal). The share of these ratios below a quantile of
the normal distribution equals the level of the quantile if the standard deviations are right.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import norm
from torch import Tensor

from measure import write_csv
from rismusic.estimation.estimate import Estimate
from rismusic.hybrid import locate
from rismusic.metrics import Match, match
from rismusic.simulation.simulator import simulate

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6827, 0.8, 0.9, 0.9545)
COORDINATES = ("azimuth", "elevation", "1/range")


def in_bars(located: Estimate, matched: Match) -> Tensor:
    """|error| over the error bar, azimuth, elevation and 1/range of each hit, [hits, 3]."""
    partner = matched.partner.clamp_min(0)
    std = located.std.gather(1, partner[..., None].expand(-1, -1, 3))
    distance = located.sources.range.gather(1, partner)
    bars = torch.stack((std[..., 0], std[..., 1], std[..., 2] / distance.square()), dim=-1)
    errors = torch.cat((matched.error[..., :2], matched.inverse_range_error[..., None]), dim=-1)
    return (errors.abs() / bars)[matched.hit]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--method", default="omp")
    parser.add_argument("--sources", type=int, nargs="*", default=[1, 2, 3, 5])
    parser.add_argument("--snr-db", type=float, nargs="*", default=[0.0, 5.0, 10.0, 20.0])
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for K in options.sources:
        for snr_db in options.snr_db:
            made = simulate(scenes=options.scenes, sources=K, snr_db=snr_db, seed=options.seed, split="test")
            assert made.truth is not None
            blind = replace(made, noise_variance=None, truth=None)
            located = locate(blind, n_sources=K, method=options.method)
            ratio = in_bars(located, match(made.truth, located.sources))
            for axis, name in enumerate(COORDINATES):
                for level in LEVELS:
                    share = float((ratio[:, axis] < norm.ppf((1 + level) / 2)).double().mean())
                    rows.append(
                        {
                            "sources": K,
                            "snr_db": snr_db,
                            "coordinate": name,
                            "level": level,
                            "share": share,
                            "hits": len(ratio),
                        }
                    )
            within = [float((ratio[:, axis] < 1).double().mean()) for axis in range(3)]
            print(
                f"K = {K}  {snr_db:5.1f} dB  {len(ratio):5d} hits, within one error bar: "
                + ", ".join(f"{name} {share:.2f}" for name, share in zip(COORDINATES, within, strict=True)),
                flush=True,
            )
    if options.csv is not None:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
