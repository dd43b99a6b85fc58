"""Speed of the hybrid estimator: ``python benchmarks/hybrid.py [--weights FILE] [--json FILE]``.

K = 3, 10 dB, default system, noise variance estimated, 2 threads: scenes/s of 256 scenes, K known and
unknown, the time of a single scene after loading, and the share of processor time of each part.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from measure import report
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate

SCENES, SOURCES, SINGLE = 256, 3, 20
# Name of a part, the file and the function that do it.
PARTS = {
    "statistics of the snapshots": ("statistics.py", ("observe", "__call__")),
    "learned stages": ("network.py", ("forward",)),
    "MUSIC and Newton": ("spectra.py", ("rap_music_sources",)),
    "NF-MLE": ("maximum_likelihood.py", ("nfmle",)),
    "goodness of fit": ("goodness_of_fit.py", ("goodness_of_fit",)),
    "error bars": ("crb.py", ("unconditional_crb",)),
}


def located(recording: Recording, weights: str, sources: int | str) -> None:
    locate(recording, n_sources=sources, method="hybrid", weights=weights)


def seconds(recordings: Sequence[Recording], weights: str, sources: int | str) -> float:
    """Median over the recordings, after a warm-up."""
    located(recordings[0], weights, sources)
    times = []
    for recording in recordings:
        start = time.perf_counter()
        located(recording, weights, sources)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def shares(recording: Recording, weights: str) -> dict[str, float]:
    """Share of each part in the time of the processor, K known."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(located, recording, weights, SOURCES)
    spent = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max(entry[3] for entry in spent.values())

    def of(file: str, name: str) -> float:
        """Of functions of one name in a file the outermost."""
        return max(
            (one[3] for (path, _, own), one in spent.items() if (Path(path).name, own) == (file, name))
        )

    return {part: sum(of(file, name) for name in names) / total for part, (file, names) in PARTS.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="ideal")
    weights = parser.parse_known_args()[0].weights
    torch.set_num_threads(2)
    made = replace(simulate(scenes=3 * SCENES, sources=SOURCES, snr_db=10.0), noise_variance=None, truth=None)
    batches = [made[start : start + SCENES] for start in range(0, len(made), SCENES)]
    rows: dict[str, float | str] = {
        "K known: scenes/s": SCENES / seconds(batches, weights, SOURCES),
        "K not known: scenes/s": SCENES / seconds(batches, weights, "auto"),
    }
    single = [made[scene : scene + 1] for scene in range(SINGLE)]
    rows["K known, one scene: ms"] = 1e3 * seconds(single, weights, SOURCES)
    rows["K not known, one scene: ms"] = 1e3 * seconds(single, weights, "auto")
    rows |= {f"share of {part}": value for part, value in shares(batches[0], weights).items()}
    report("Hybrid estimator", rows)


if __name__ == "__main__":
    main()
