"""Interrupted and distributed trainings compared with uninterrupted ones.

Run ``python benchmarks/training_robustness.py``.

* ``kills``: a training is killed (kill -9) at random instants and resumed, repeatedly; its weights,
  averages, optimizer state, log and saved networks are compared bit by bit with those of an uninterrupted
  one.
* ``group``: one process and two of ``torchrun`` train the same network; their losses are compared by epoch.

Everything runs through the command line, on the CPU. The tables go to ``docs/measured/training_NAME.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rismusic.nn.checkpoint import read_tensors
from rismusic.nn.run_folder import BEST, LAST, LOG, STATE, RunFolder
from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.spec import ChannelSpec, CodebookSpec, PanelSpec, SystemSpec, dump_spec

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
ALONE = [sys.executable, "-m", "rismusic", "train"]
SHARED = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("-m", "rismusic", "train"),
]
SMALL = TrainSpec(
    system=SystemSpec(
        panel=PanelSpec(rows=6, columns=6),
        channel=ChannelSpec(antennas=8),
        codebook=CodebookSpec(snapshots=7),
        sources=(1, 2),
        snr_db=(5.0, 20.0),
    ),
    network=NetworkSpec(sources_max=2, oversampling=1.3, stages=2, depth=1, width=8, kernel=3, heads=2),
    schedule=ScheduleSpec(epochs=6),
    scenes_per_epoch=512,
    batch=8,
    validation_scenes=32,
    scored_scenes=8,
    average_decay=0.9,
    log_steps=4,
    save_steps=10,
)
KILLS = 8
# Latest instant of a kill, in seconds after the training has gone on.
LATEST = 4.0

Row = dict[str, object]


def started(command: Sequence[str], *arguments: str) -> subprocess.Popen[bytes]:
    """A training in a process of its own, one thread; what it says is thrown away."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments, "--device", "cpu"], stderr=subprocess.PIPE, env=environment
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(stderr.decode())


def killed_at_random(folder: Path, configuration: Path, draws: random.Random) -> list[Row]:
    """Train to the end in spite of kills; where each of them struck, and what was gone back to."""
    rows: list[Row] = []
    while True:
        again = ["--resume", str(folder)] if folder.exists() else [str(configuration), "--out", str(folder)]
        process = started(ALONE, *again)
        if len(rows) == KILLS:
            finish(process)
            return rows
        # While torch is loaded nothing can be lost; the log is cut where the training goes on.
        before = stamp(folder / LOG)
        while stamp(folder / LOG) == before and process.poll() is None:
            time.sleep(0.01)
        delay = draws.uniform(0.0, LATEST)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError("the training ended before it could be killed")
        last = last_step(folder)
        state = json.loads((folder / STATE).read_text())
        rows.append(
            {
                "kill": len(rows) + 1,
                "seconds": round(delay, 2),
                "log_epoch": last[0],
                "log_step": last[1],
                "checkpoint_epoch": state["state"]["epoch"],
                "checkpoint_step": state["state"]["step"],
            }
        )
        print(rows[-1])


def stamp(path: Path) -> float:
    return path.stat().st_mtime_ns if path.exists() else 0


def last_step(folder: Path) -> tuple[object, object]:
    """Epoch and step of the last whole line of a step in the log."""
    lines = [line for line in (folder / LOG).read_text().splitlines(keepends=True) if line.endswith("\n")]
    steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
    return (steps[-1]["epoch"], steps[-1]["step"]) if steps else ("", "")


def differing(one: Path, other: Path) -> dict[str, tuple[int, int]]:
    """Of each part of two trainings: numbers that differ, and numbers in all."""
    found: dict[str, tuple[int, int]] = {}
    files = [json.loads((folder / STATE).read_text())["tensors"] for folder in (one, other)]
    for name, (first, second) in {"state": files, BEST: (BEST, BEST), LAST: (LAST, LAST)}.items():
        tensors, others = read_tensors(one / first)[0], read_tensors(other / second)[0]
        if tensors.keys() != others.keys():
            raise RuntimeError(f"{name}: other tensors")
        for key, value in tensors.items():
            part = f"{name}: {key.split('/')[0]}" if name == "state" else name
            wrong, numbers = found.get(part, (0, 0))
            same = value.flatten().view(torch.uint8) == others[key].flatten().view(torch.uint8)
            bad = int((~same.view(value.numel(), -1).all(-1)).sum())
            found[part] = (wrong + bad, numbers + value.numel())
    lines = [(folder / LOG).read_text().splitlines() for folder in (one, other)]
    wrong = sum(a != b for a, b in zip(*lines, strict=False)) + abs(len(lines[0]) - len(lines[1]))
    return found | {"log.jsonl, lines": (wrong, len(lines[0]))}


def kills(folder: Path, seed: int) -> dict[str, list[Row]]:
    configuration = folder / "small.toml"
    configuration.write_text(dump_spec(SMALL))
    finish(started(ALONE, str(configuration), "--out", str(folder / "undisturbed")))
    rows = killed_at_random(folder / "killed", configuration, random.Random(seed))
    finish(started(ALONE, str(configuration), "--out", str(folder / "other"), "--seed", "1"))
    same = differing(folder / "undisturbed", folder / "killed")
    # That the comparison can fail.
    other = differing(folder / "undisturbed", folder / "other")
    compared: list[Row] = [
        {"part": part, "numbers": total, "differ": wrong, "differ_other_seed": other[part][0]}
        for part, (wrong, total) in same.items()
    ]
    return {"kills": rows, "kills_compared": compared}


def group(folder: Path, seed: int) -> dict[str, list[Row]]:
    configuration = folder / "small.toml"
    configuration.write_text(dump_spec(SMALL.replace(seed=seed)))
    for command, name in ((ALONE, "one"), (SHARED, "two")):
        finish(started(command, str(configuration), "--out", str(folder / name)))
    rows: list[Row] = []
    runs = [RunFolder(folder / name) for name in ("one", "two")]
    epochs: list[list[Any]] = [run.records("epoch") for run in runs]
    steps: list[list[Any]] = [run.records("step") for run in runs]
    for one, two in zip(*epochs, strict=True):
        row: Row = {"epoch": one["epoch"]}
        for kind in ("training", "validation"):
            first, second = one[kind]["loss"], two[kind]["loss"]
            row |= {
                f"{kind}_1_process": first,
                f"{kind}_2_processes": second,
                f"{kind}_relative_difference": abs(first - second) / abs(first),
            }
        row["largest_relative_difference_of_a_step"] = max(
            abs(a["loss"] - b["loss"]) / abs(a["loss"])
            for a, b in zip(*steps, strict=True)
            if a["epoch"] == one["epoch"]
        )
        rows.append(row)
    return {"ranks": rows}


SHOWS: dict[str, Callable[[Path, int], dict[str, list[Row]]]] = {"kills": kills, "ranks": group}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shows", nargs="+", choices=SHOWS, default=list(SHOWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MEASURED)
    chosen = parser.parse_args()
    for show in chosen.shows:
        with tempfile.TemporaryDirectory() as folder:
            tables = SHOWS[show](Path(folder), chosen.seed)
        for name, rows in tables.items():
            with (chosen.out / f"training_{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
                )
            for row in rows:
                print(row)


if __name__ == "__main__":
    main()
