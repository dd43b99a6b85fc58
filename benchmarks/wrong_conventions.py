"""How often ``check`` identifies a wrong convention.

Run ``python benchmarks/wrong_conventions.py [--recordings 100] [--csv FILE]``.

Recordings of many kinds (panels of 4 x 4 to 14 x 14 elements, 4 to 24 snapshots, -5 to 20 dB, 1 to 5
sources, direct sampling or through one link or many, with and without hardware impairments, 1 to 16 scenes)
are checked unchanged and with each mistake in turn, with and without the truth. The table counts how often
the mistake is identified, listed among equivalent ones, or another one is identified.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from rismusic.checks.conventions import CHANGES, WrongConvention
from rismusic.checks.fits import BlindFit, TruthFit
from rismusic.io import Recording
from rismusic.simulation.simulator import simulate

# Mistakes that undo themselves, so that the change that mends them makes them, too.
MISTAKES = (
    "snapshots_conjugated",
    "channel_conjugated",
    "codes_conjugated",
    "channel_and_codes_conjugated",
    "all_conjugated",
    "elements_renumbered",
    "angles_swapped",
    "azimuth_mirrored",
    "elevation_mirrored",
    "directions_reversed",
    "range_inverse",
)
BLIND = ("snapshots_conjugated", "channel_conjugated", "codes_conjugated", "elements_renumbered")


def some_kind(number: int, seed: int) -> Recording:
    """A sound recording of a kind drawn at random."""
    draw = random.Random(1000 * seed + number)
    direct = draw.random() < 0.2
    hardware: dict[str, float] = {}
    if draw.random() < 0.5:
        hardware = {
            "static_phase_rad": draw.choice((0.0, 0.1, 0.2)),
            "gain": draw.choice((0.0, 0.05)),
            "dead_fraction": draw.choice((0.0, 0.03)),
            "position_wavelengths": draw.choice((0.0, 0.025)),
            "code_phase_rad": 0.0 if direct else draw.choice((0.0, 0.04)),
        }
    channel = {"kind": draw.choice(("rician", "rician", "rayleigh")), "antennas": draw.randint(6, 20)}
    return simulate(
        scenes=draw.choice((1, 2, 4, 8, 16)),
        seed=number,
        panel={"rows": draw.randint(4, 14), "columns": draw.randint(4, 14)},
        codebook={"snapshots": draw.randint(4, 24), "kind": draw.choice(("random", "random", "dft"))},
        channel={"kind": "direct"} if direct else channel,
        snr_db=draw.choice((-5.0, 0.0, 5.0, 10.0, 20.0)),
        sources=draw.choice((1, 2, 3, 5, (1, 5))),
        one_link=draw.random() < 0.3,
        hardware=hardware,
        scene={
            "symbols": draw.choice(("gaussian", "gaussian", "qpsk", "constant")),
            "power": draw.choice(("equal", "path_loss")),
            "power_spread_db": draw.choice((0.0, 6.0)),
        },
    )


def wrong_convention(recording: Recording) -> WrongConvention | None:
    """What ``check`` says of the conventions."""
    if recording.truth is None:
        return BlindFit(recording).search()
    fit = TruthFit()
    fit.add(recording)
    return fit.wrong_convention()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    changes = {change.name: change for change in CHANGES}
    counts: dict[tuple[str, str], Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for number in range(options.recordings):
        sound = some_kind(number, options.seed)
        for kind, given, names in (
            ("truth", sound, MISTAKES),
            ("none", replace(sound, truth=None), BLIND),
        ):
            for name in ("", *names):
                wrong = given if name == "" else changes[name].apply(given)
                if wrong is None:
                    continue
                start = time.perf_counter()
                found = wrong_convention(wrong)
                if name == "":
                    seconds[kind] += time.perf_counter() - start  # type: ignore[assignment]
                count = counts.setdefault((kind, name), Counter())
                count["recordings"] += 1
                if found is not None and found.change.name == name:
                    count["named"] += 1
                elif found is not None:
                    alike = name in found.alike
                    count["alike" if alike else "other"] += 1
                    end = " (or this)" if alike else ""
                    line = f"recording {number}, truth {kind}, {name or 'sound'}: {found.change.name}{end}"
                    print(line, flush=True)
        if options.csv is not None:
            with options.csv.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                columns = ("recordings", "named", "alike", "other")
                writer.writerow(("truth", "mistake", *columns))
                for (kind, name), count in sorted(counts.items()):
                    writer.writerow((kind, name or "sound", *(count[column] for column in columns)))
    for (kind, name), count in sorted(counts.items()):
        print(f"truth {kind:<6} {name or 'sound':<30} {dict(count)}")
    for kind, total in seconds.items():
        print(f"truth {kind:<6} {total / options.recordings:.2f} s for a sound recording")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
