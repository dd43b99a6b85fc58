"""How far stated probabilities and error bars can be trusted, in the signal model and off it.

Scenes with 0 to 5 sources are simulated and located with the number of sources unknown and the noise variance
not recorded. Compared with how often they come true are the probability that a source exists, the probability
of the number of sources, and the share of errors within k error bars::

    python benchmarks/reliability.py --scenes 150 --csv reliability.csv

With ``--without-network`` the scenes are those of three systems, in the model, for methods without one::

    python benchmarks/reliability.py --without-network --method sbl --scenes 64

The expected calibration error (ECE) is the mean distance of the two, weighted by the number of cases.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from departures import ROWS, SYSTEMS, Make, sound
from rismusic.estimation.estimate import Estimate
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.simulation.simulator import simulate
from rismusic.spec import SystemSpec

# Limits of the bins of stated probabilities, and stated shares of errors within a bar.
_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0)
# Rows of departures.py with true positions: the hardware, the channel, and the coarse phases.
_OFF = ("2-bit", "positions off", "dead elements", "impaired", "channel known to")


def sets() -> dict[str, dict[str, Make]]:
    """The recordings of each set: in the model by SNR, and off the model by departure."""
    noise = next(row for row in ROWS if row.name == "noise alone")
    inside: dict[str, Make] = {f"{snr_db:g} dB": sound((1, 5), snr_db) for snr_db in _SNR_DB}
    off = {row.name: row.make for row in ROWS if any(text in row.name for text in _OFF)}
    return {"in the model": {**inside, "noise alone": noise.make}, "off the model": off}


def of_other_systems() -> dict[str, dict[str, Make]]:
    """Recordings in the model of the default system, of a directly sampled panel and of a smaller one."""

    def make(snr_db: float, **settings: dict[str, object]) -> Make:
        return lambda count, seed, _: replace(
            simulate(
                SystemSpec().replace(**settings), scenes=count, sources=(1, 5), snr_db=snr_db, seed=seed
            ),
            noise_variance=None,
        )

    systems: dict[str, dict[str, dict[str, object]]] = {
        "default": {},
        "direct sampling": {"channel": {"kind": "direct"}},
        "8 x 8 elements": {"panel": {"rows": 8, "columns": 8}},
    }
    makes = {
        f"{name}, {snr_db:g} dB": make(snr_db, **settings)
        for name, settings in systems.items()
        for snr_db in (0.0, 5.0, 10.0, 20.0)
    }
    return {"in the model": makes}


def cases(recording: Recording, estimate: Estimate) -> dict[str, Tensor]:
    """[cases, 2] of each quantity: what is stated, and whether it came true (error bars: |error| / bar)."""
    truth, found = recording.truth, estimate.sources.active
    assert truth is not None
    matched = match(truth, estimate.sources)
    real = torch.zeros_like(found)
    scene, source = matched.hit.nonzero().unbind(-1)
    partner = matched.partner[scene, source]
    real[scene, partner] = True
    existence = torch.stack((estimate.existence_probability[found], real[found].double()), dim=-1)
    probability = estimate.n_sources_probability
    assert probability is not None
    stated = probability.gather(1, estimate.n_sources[:, None])[:, 0].double()
    right = (matched.true_count == matched.found_count).double()
    error = matched.error[scene, source, :2].double() / estimate.std[scene, partner, :2]
    return {
        "existence of a source": existence,
        "number of sources": torch.stack((stated, right), dim=-1),
        "error bars": error.abs().flatten(),
    }


def binned(values: Tensor) -> list[dict[str, float]]:
    """Stated and observed share of each bin of stated probabilities."""
    stated, true = values.unbind(-1)
    rows = []
    for low, high in pairwise(_BINS):
        some = (stated > low) & (stated <= high) if low else stated <= high
        if bool(some.any()):
            here = {"stated": float(stated[some].mean()), "observed": float(true[some].mean())}
            rows.append({**here, "cases": int(some.sum())})
    return rows


def within(ratios: Tensor) -> list[dict[str, float]]:
    """Stated and observed share of errors within a bar."""
    normal = torch.distributions.Normal(0.0, 1.0)
    rows = []
    for share in _SHARES:
        bars = float(normal.icdf(torch.tensor((1 + share) / 2)))
        rows.append(
            {"stated": share, "observed": float((ratios <= bars).double().mean()), "cases": len(ratios)}
        )
    return rows


def ece(rows: list[dict[str, float]]) -> float:
    """Expected calibration error."""
    total = sum(row["cases"] for row in rows)
    return sum(row["cases"] * abs(row["stated"] - row["observed"]) for row in rows) / max(total, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=150, help="scenes of each row")
    parser.add_argument("--method", default="hybrid")
    parser.add_argument("--without-network", action="store_true", help="scenes of three systems")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, object]] = []
    for name, makes in (of_other_systems() if options.without_network else sets()).items():
        groups: dict[str, list[dict[str, Tensor]]] = {name: []}
        for row, make in makes.items():
            recording = make(options.scenes, options.seed, SYSTEMS["default"])
            one = cases(recording, locate(recording, method=options.method))
            groups[name].append(one)
            groups[f"{name}: {row}"] = [one]
            print(f"{row}: done", flush=True)
        for group, parts in groups.items():
            for quantity in ("existence of a source", "number of sources", "error bars"):
                values = torch.cat([part[quantity] for part in parts])
                if len(values) == 0:
                    continue
                rows = within(values) if quantity == "error bars" else binned(values)
                error = ece(rows)
                print(f"{group:60} {quantity:24} ECE {error:.3f}", flush=True)
                table += [{"set": group, "quantity": quantity, **row, "ece": error} for row in rows]
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["set", "quantity", "stated", "observed", "cases", "ece"])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
