"""Distribution of p-values for correct and wrong models.

Run ``python benchmarks/goodness_of_fit.py [--scenes 300]``.

Default system, K given, OMP with NF-MLE. For each case: share of scenes with a p-value below .05, .01 and
.001, with known and unknown noise variance. For correct fits (every source hit) p-values should be uniform;
the p-value of the Kolmogorov-Smirnov test of this is given too.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor

from rismusic.hybrid import locate
from rismusic.io import Recording, read
from rismusic.metrics import match
from rismusic.simulation.simulator import simulate

SAMPLES = Path(__file__).parent.parent / "samples"
# The impairments of the sample recordings `impaired`.
IMPAIRED = {
    "static_phase_rad": 0.1,
    "code_phase_rad": 0.04,
    "gain": 0.05,
    "dead_fraction": 0.03,
    "position_wavelengths": 0.025,
}
LEVELS = (0.05, 0.01, 0.001)


def cases(scenes: int, seed: int) -> Iterator[tuple[str, Recording, Tensor | int]]:
    """Name, recording, number of sources that are fitted."""
    for snr_db in (10.0, 0.0):
        made = simulate(scenes=scenes, snr_db=snr_db, seed=seed)
        assert made.truth is not None
        yield f"sound, 1 to 5 sources, {snr_db:g} dB", made, made.truth.active.sum(-1)
    for snr_db in (20.0, 10.0, 5.0, 0.0):
        made = simulate(scenes=scenes, sources=3, snr_db=snr_db, seed=seed)
        yield f"one of 3 sources not fitted, {snr_db:g} dB", made, 2
    for snr_db in (10.0, 0.0):
        made = simulate(scenes=scenes, sources=2, snr_db=snr_db, seed=seed)
        conjugated = made.snapshots.conj().resolve_conj()
        yield f"snapshots conjugated, 2 sources, {snr_db:g} dB", replace(made, snapshots=conjugated), 2
    for snr_db in (20.0, 10.0):
        made = simulate(scenes=scenes, snr_db=snr_db, hardware=IMPAIRED, seed=seed)
        assert made.truth is not None
        yield f"panel impaired, 1 to 5 sources, {snr_db:g} dB", made, made.truth.active.sum(-1)
    for name in ("impaired_10dB", "ideal_10dB", "ideal_0dB", "direct_10dB"):
        sample = read(SAMPLES / f"{name}.h5")
        with np.load(SAMPLES / f"{name}.bound.npz") as file:
            sample = replace(sample, noise_variance=torch.from_numpy(file["noise_variance"]))
        assert sample.truth is not None
        yield f"sample {name}", sample, sample.truth.active.sum(-1)
    wide = {"azimuth_max_deg": 80.0}
    made = simulate(scenes=6 * scenes, sources=2, snr_db=10.0, scene=wide, seed=seed)
    assert made.truth is not None
    one = (made.truth.azimuth.abs().rad2deg() > 65).sum(-1) == 1
    made = made[one.nonzero()[:scenes, 0]]
    yield "one of 2 sources at 65 to 80 deg, 60 deg searched, 10 dB", made, 2


def measure(
    name: str, recording: Recording, count: Tensor | int, *, known: bool
) -> dict[str, float | int | str]:
    """One row."""
    sound = name.startswith("sound")
    given = recording if known else replace(recording, noise_variance=None)
    located = locate(given, n_sources=count, method="omp")
    p = located.p_value
    if sound:
        assert recording.truth is not None
        p = p[(match(recording.truth, located.sources).hit | ~recording.truth.active).all(-1)]
    row: dict[str, float | int | str] = {"case": name, "noise": "known" if known else "not known"}
    row |= {"scenes": len(p), **{f"below_{level:g}": float((p < level).double().mean()) for level in LEVELS}}
    return row | {"uniform_p": float(kstest(p.numpy(), "uniform").pvalue)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, recording, count in cases(options.scenes, options.seed):
        for known in (True, False):
            if known and recording.noise_variance is None:
                continue
            rows.append(measure(name, recording, count, known=known))
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()))
            if options.csv is not None:
                with options.csv.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
