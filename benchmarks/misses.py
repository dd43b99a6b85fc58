"""Who misses how many sources: ``python benchmarks/misses.py [--scenes 200] [--csv FILE] [--methods ...]``.

The table of the design, made again: default system, off grid, no scene dropped, noise variance estimated, K
known. Beside the locators stand three rows that have peeked: maximum likelihood started from the truth, and
the best of the OMP, SBL and truth starts under either likelihood (what a perfect search would return).
Locators maximise the unconditional likelihood unless they are called conditional.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from rismusic.bounds import recording_crb
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.locate import searched_volume
from rismusic.estimate.locators import fit_known
from rismusic.estimate.nfmle import Fit, nfmle
from rismusic.estimate.refine import Criterion
from rismusic.evaluate.metrics import match, score
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.simulator import simulate
from rismusic.spec import LocateSpec

CELLS = [(1, 10.0), *((K, snr_db) for K in (2, 3, 5) for snr_db in (0.0, 5.0, 10.0, 20.0))]
METHODS = [
    "music alone",
    "music",
    "soft_music",
    "mvdr",
    "bartlett",
    "omp conditional",
    "omp",
    "relax",
    "sbl conditional",
    "sbl",
]
CRITERIA: dict[Criterion, Callable[[Fit], Tensor]] = {
    "conditional": lambda fit: fit.cost,
    "unconditional": lambda fit: fit.likelihood,
}
BLOCK = 100


def run(name: str, recording: Recording, count: Tensor, grid: SearchGrid) -> Fit:
    """One locator: ``music alone`` is not polished, ``omp conditional`` uses the other likelihood."""
    method, _, how = name.partition(" ")
    settings = {"method": method, "polish": how != "alone"}
    if how == "conditional":
        settings["criterion"] = how
    return fit_known(recording, count, grid, LocateSpec().replace(**settings))


def best(fits: list[Fit], value: Callable[[Fit], Tensor]) -> Sources:
    """Of several fits of each scene the sources of the one with the lowest value."""
    chosen = torch.stack([value(fit) for fit in fits]).argmin(0)

    def pick(name: str) -> Tensor:
        stacked = torch.stack([getattr(fit.sources, name) for fit in fits])
        return stacked[chosen, torch.arange(stacked.shape[1])]

    return Sources(azimuth=pick("azimuth"), elevation=pick("elevation"), range=pick("range"))


def joined(parts: list[Sources]) -> Sources:
    names = ("azimuth", "elevation", "range")
    return Sources(**{name: torch.cat([getattr(part, name).double() for part in parts]) for name in names})


def cell(K: int, snr_db: float, scenes: int, methods: list[str], seed: int) -> list[dict[str, float | str]]:
    """Rows of all methods for one K and SNR."""
    found: dict[str, list[Sources]] = {}
    seconds: dict[str, float] = {}
    made = simulate(scenes=scenes, sources=K, snr_db=snr_db, seed=seed)
    assert made.truth is not None
    grid = SearchGrid.cover(made.panel, searched_volume(LocateSpec()), LocateSpec().oversampling)
    for start in range(0, scenes, BLOCK):
        block = made[start : start + BLOCK]
        blind = replace(block, truth=None, noise_variance=None)
        count = torch.full((len(block),), K)
        fits: dict[str, Fit] = {}
        for name in methods:
            begin = time.perf_counter()
            fits[name] = run(name, blind, count, grid)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - begin
            found.setdefault(name, []).append(fits[name].sources)
        assert block.truth is not None
        for criterion, value in CRITERIA.items():
            peeked = nfmle(blind, joined([block.truth]), grid.volume, criterion=criterion)
            if criterion == "unconditional":
                found.setdefault("ML from the truth", []).append(peeked.sources)
            suffix = " conditional" if criterion == "conditional" else ""
            starts = [fits[name + suffix] for name in ("omp", "sbl") if name + suffix in fits] + [peeked]
            if len(starts) == 3:
                found.setdefault(f"best start, {criterion}", []).append(best(starts, value))
    bound = recording_crb(made)
    rows: list[dict[str, float | str]] = []
    for name, parts in found.items():
        result = score(match(made.truth, joined(parts)), bound)
        rate = scenes / seconds[name] if name in seconds else float("nan")
        rows.append({"sources": K, "snr_db": snr_db, "method": name, **asdict(result), "scenes_per_s": rate})
        print(
            f"K = {K}  {snr_db:5.1f} dB  {name:<26} misses {result.misses:.3f}   over bound "
            f"{result.azimuth_over_bound:5.2f} {result.elevation_over_bound:5.2f} "
            f"{result.inverse_range_over_bound:5.2f}   {rate:7.1f} scenes/s",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--cells", nargs="*", help="K,dB pairs such as 3,10; all if none")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    cells = [tuple(map(float, one.split(","))) for one in options.cells or []] or CELLS
    rows = []
    for K, snr_db in cells:
        rows += cell(int(K), snr_db, options.scenes, options.methods, options.seed)
        if options.csv is not None:  # after each cell: a long run that is cut short has not run for nothing
            with options.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
