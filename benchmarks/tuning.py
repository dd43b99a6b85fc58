"""Measurements for ``docs/tuning.md``: a search, its best training repeated, and two workers, one killed.

``python benchmarks/tuning.py --out FOLDER`` takes about 15 minutes on two idle cores, most of it for the
search. ``--parts`` selects parts. An interrupted search is resumed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import optuna

from postgres_server import postgres_server
from rismusic.nn.spec import TrainSpec
from rismusic.spec import LocateSpec, read_spec
from rismusic.tuning.objective import evaluate, scenes_for
from rismusic.tuning.storage import DATABASE, open_storage, quiet
from rismusic.tuning.worker import current, history

MEASURED = Path(__file__).parent.parent / "docs" / "measured" / "tuning"
BASE = MEASURED / "base.toml"
SCENES, TRIALS = 96, 6
SEARCH = (
    "tune --trials 24 --epochs-per-trial 20 --space wide --early-stop-patience 6 --inference-trials 6 "
    f"--inference-scenes 24 --objective-scenes {SCENES} --test-scenes 192 --finalists 2 --final-seeds 2 "
    "--final-epochs 30"
).split()
SHARED = (
    f"tune --trials {TRIALS} --epochs-per-trial 2 --space narrow --inference-trials 1 --inference-scenes 4 "
    "--objective-scenes 8 --test-scenes 8 --finalists 1 --final-seeds 1 --final-epochs 2 --heartbeat-s 5"
).split()


def rismusic(*arguments: str) -> list[str]:
    """The command line in a process of its own."""
    return [sys.executable, "-m", "rismusic", *arguments]


def search(out: Path) -> None:
    """Run the search of the page, or resume it."""
    folder = out / "search"
    new = [*SEARCH, "--config", str(BASE)]
    begun = time.monotonic()
    again = (folder / DATABASE).exists()
    subprocess.run(
        rismusic(*(["tune", "--resume"] if again else new), "--out", str(folder)),
        check=True,
    )
    print(f"search{' (resumed)' if again else ''}: {time.monotonic() - begun:.0f} s")
    for name in ("comparison.txt", "trials.csv", "finals.csv", "best.toml", "history.png", "importance.png"):
        shutil.copy(folder / name, MEASURED / name)
    _without(MEASURED / "trials.csv", "worker")
    (MEASURED / "outcome.md").write_text(_page(), encoding="utf-8")


def _without(path: Path, column: str) -> None:
    """Remove a column of a table: here the names of the machines."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [name for name in rows[0] if name != column]
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _page() -> str:
    """The results as a page of the documentation."""
    lines = [
        "```text",
        f"rismusic {' '.join(SEARCH)} --config base.toml --out search",
        "```",
        "",
        "| settings | cost | test cost | test F1 | test GOSPA / m | test cost of each seed |",
        "|---|---|---|---|---|---|",
    ]
    finals = list(csv.DictReader((MEASURED / "finals.csv").read_text(encoding="utf-8").splitlines()))
    for name in dict.fromkeys(row["settings"] for row in finals):
        rows = [row for row in finals if row["settings"] == name]
        means = [
            statistics.fmean(float(row[column]) for row in rows)
            for column in ("cost", "test_cost", "test_f1", "test_gospa_m")
        ]
        seeds = ", ".join(f"{float(row['test_cost']):.3f}" for row in rows)
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} | {seeds} |")
    pictures = [f"![Trials of the search](measured/tuning/{name}.png)" for name in ("history", "importance")]
    sentences = [f"- {line}" for line in (MEASURED / "comparison.txt").read_text().splitlines()]
    return "\n".join([*lines, "", *sentences, "", *pictures, ""])


def reproduce(out: Path) -> None:
    """Train ``best.toml`` again and compute its cost."""
    folder, again = out / "search", out / "again"
    subprocess.run(
        rismusic("train", str(folder / "best.toml"), "--out", str(again)),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    training = read_spec(TrainSpec, folder / "best.toml")
    locate = read_spec(LocateSpec, folder / "locate.toml").replace(weights=str(again / "best.safetensors"))
    cost = evaluate(scenes_for("objective", training.system, 0, SCENES, "cpu"), locate).cost
    recorded = (folder / "best.toml").read_text().splitlines()[0]
    print(f"reproduce: cost {cost!r}; best.toml: {recorded}")


def shared(out: Path) -> None:
    """Run two workers on one PostgreSQL server and kill one while it trains."""
    with postgres_server() as url:
        commands = [
            rismusic(*SHARED, "--config", str(BASE), "--storage", url, "--out", str(out / f"worker{number}"))
            for number in range(2)
        ]
        victim = subprocess.Popen(commands[0])
        held = _first_epoch(url, out)
        other = subprocess.Popen(commands[1])
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        if other.wait() != 0:
            raise SystemExit("the other worker failed")
        with quiet(), open_storage(url, out, heartbeat_s=5) as storage:
            trials = optuna.load_study(study_name="tune", storage=storage).get_trials()
        rows = [
            {"trial": trial.number, "state": trial.state.name, "repeats": history(trial)} for trial in trials
        ]
        print(json.dumps({"killed in": held, "counting": len(current(trials)), "trials": rows}, indent=1))


def _first_epoch(url: str, out: Path) -> int:
    """Wait until a trial has reported an epoch, and return its number."""
    while True:
        time.sleep(0.5)
        with quiet(), open_storage(url, out, heartbeat_s=5) as storage:
            names = optuna.get_all_study_names(storage)
            trials = optuna.load_study(study_name="tune", storage=storage).get_trials() if names else []
        for trial in trials:
            if trial.intermediate_values and not trial.state.is_finished():
                return trial.number


PARTS = {"search": search, "reproduce": reproduce, "shared": shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for part in chosen.parts:
        PARTS[part](chosen.out)


if __name__ == "__main__":
    main()
