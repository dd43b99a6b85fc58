"""Run the doctor on faults made by someone who had not seen it, and keep its reports.

``--check`` verifies that each edit of ``blind_source_faults.py`` changes a short training without a crash.
``--source``, ``--healthy`` and ``--modules`` run the doctor on the edits, on healthy trainings, and on the
scripts of ``blind_module_faults.py``, each in a process of its own, and store every report under ``--out``.
``--set 2`` takes the edits and the scripts of the second set, ``blind_source_faults_2.py`` and
``blind_module_faults_2.py``; ``--set 3`` to ``--set 5`` those of a third to a fifth one. The sixth
set has scripts only (``--modules --set 6``); ``blind_module_faults_6.py --check`` checks them. The seventh
and the eighth have edits only (``--source --set 7``).
``--table`` joins the reports of set 1, 7 or 8 with the verdicts of
``docs/measured/doctor_blind_verdicts.json``.

Verdicts, by the rules below, written down before the run, from the report alone:

* *named*: the report says the cause (the wrong quantity and in which way), or names the function or the line
  that was edited as suspected.
* *noticed*: a finding outside its limits (or a crash with an error message) that the healthy training does
  not have and that the fault brings about, without its cause.
* *missed*: neither; also where the only findings are those of the healthy training.

A finding that lists several possible causes names the fault if the cause is among the first two. A finding
about the training as a whole ("does not learn") only notices. On healthy trainings and scripts every finding
outside its limits is false, advice without a limit is not.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import random
import resource
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy  # noqa: F401 (for the forks)
import scipy.optimize  # noqa: F401
import torch

from blind_source_faults import SourceFault
from doctor_faults import edited_package

PACKAGE = Path(__file__).parent.parent / "src" / "rismusic"
MEASURED = Path(__file__).parent.parent / "docs" / "measured"

# Healthy trainings: presets, and settings that differ in what a training does.
HEALTHY: dict[str, tuple[str, ...]] = {
    "small": (),
    "tiny": ("--preset", "tiny"),
    "search": ("--preset", "search", "--batch", "32"),
    "accumulation": ("--preset", "tiny", "--accumulation", "4"),
    "dropout_and_curriculum": ("--preset", "tiny", "--network.dropout", "0.2", "--schedule.curriculum"),
    "powers_and_known_noise": (
        *("--preset", "tiny", "--system.scene.power-spread-db", "12"),
        *("--hidden-noise", "0"),
    ),
    "hardware_errors": (
        *("--preset", "tiny", "--system.hardware.gain", "0.1"),
        *("--system.hardware.static-phase-rad", "0.1", "--system.one-panel"),
    ),
}

# Seed of the sample, fixed before the first run.
SAMPLE_SEED = 20261129

PROBE = """
import json, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import train
from rismusic.nn.data import TrainingScenes
from rismusic.nn.checkpoint import load_network
changes = json.loads(sys.argv[1])
spec = TrainSpec.tiny()
spec = spec.replace(
    network=spec.network.replace(width=16, heads=2, dropout=changes.get("dropout", 0.0)),
    schedule=spec.schedule.replace(epochs=4), batch=8, accumulation=changes.get("accumulation", 1),
    scenes_per_epoch=64, validation_scenes=16, scored_scenes=8, save_steps=1, log_steps=1,
    system=spec.system.replace(scene=spec.system.scene.replace(power_spread_db=changes.get("spread", 0.0))))
rows = {}
first = next(TrainingScenes(spec).step(0, 0))
rows["data"] = [float(first.snapshots.abs().square().mean()), float(first.noise_variance.mean()),
                float(first.codes.real.double().std()), float(first.truth.azimuth.nan_to_num().sum())]
with tempfile.TemporaryDirectory() as folder:
    losses = []
    def stop(epoch, validation):
        rows.setdefault("validation", []).append([validation.loss, validation.scores["blend"].recall,
                                                  validation.scores["blend"].gospa_m])
        rows.setdefault("covariance", []).append(list(validation.covariance.values()))
        if epoch == 1 and not losses:
            losses.append(1)
            raise KeyboardInterrupt
        return False
    out = Path(folder, "run")
    try:
        train(spec, out=out, on_epoch=stop, device="cpu")
    except KeyboardInterrupt:
        pass
    result = train(out=out, resume=True, on_epoch=stop, device="cpu")
    rows["epochs"] = [one["training"]["loss"] for one in result.epochs]
    rows["best"] = [float(sum(p.detach().double().square().sum() for p in result.network.parameters()))]
    rows["last"] = [float(sum(p.detach().double().abs().sum()
                    for p in load_network(sorted(out.glob("*last*"))[0]).parameters()))]
print(json.dumps(rows))
"""


@contextmanager
def edited(fault: SourceFault | None) -> Iterator[Path]:
    """The package, or a copy of it with the edit, as a folder for PYTHONPATH.

    Raises:
        ValueError: the text does not occur exactly once.
    """
    if fault is None:
        yield PACKAGE.parent
        return
    if (times := (PACKAGE / fault.file).read_text().count(fault.old)) != 1:
        raise ValueError(f"{fault.name}: the text occurs {times} times")
    with tempfile.TemporaryDirectory(prefix="blind") as folder:
        edited_package(Path(folder), fault.file, fault.old, fault.new)
        yield Path(folder)


def run(source: Path, *arguments: str, limit: float = 1500) -> tuple[int, str, float]:
    """Exit status, output and seconds of the processor, of Python with the package in a folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(source), str(Path(__file__).parent))),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = sum(os.times()[2:4])
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, text = -1, f"{(error.stdout or b'').decode(errors='replace')}\nstopped after {limit:g} s"
    return status, text, sum(os.times()[2:4]) - before


def changes_of(settings: tuple[str, ...]) -> dict[str, float]:
    names = {"--accumulation": "accumulation", "--network.dropout": "dropout"}
    names["--system.scene.power-spread-db"] = "spread"
    pairs = zip(settings[::2], settings[1::2], strict=True)
    return {names[name]: int(value) if name == "--accumulation" else float(value) for name, value in pairs}


def check(chosen: list[SourceFault]) -> None:
    """Print what each edit changes in a short training."""
    healthy: dict[tuple[str, ...], dict[str, list[object]]] = {}
    for fault in chosen:
        changes = json.dumps(changes_of(fault.settings))
        if fault.settings not in healthy:
            with edited(None) as source:
                healthy[fault.settings] = json.loads(run(source, "-c", PROBE, changes)[1])
        with edited(fault) as source:
            status, text, _ = run(source, "-c", PROBE, changes)
        if status:
            print(f"{fault.name}: crashes: {text.strip().splitlines()[-1]}", flush=True)
            continue
        found, before = json.loads(text.strip().splitlines()[-1]), healthy[fault.settings]
        changed = [key for key in before if not _close(found[key], before[key])]
        print(f"{fault.name}: {', '.join(changed) or 'HARMLESS'}", flush=True)


def _close(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    assert isinstance(one, (int, float))
    assert isinstance(other, (int, float))
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other), 1e-9) or (one != one and other != other)


def store(out: Path, name: str, result: tuple[int, str, float]) -> None:
    status, text, seconds = result
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.txt").write_text(f"exit status {status}, {seconds:.1f} s\n{text}")
    print(f"{name}: exit status {status}, {seconds:.1f} s of the processor", flush=True)


def forked(source: Path, script: str, *arguments: str, limit: int = 600) -> tuple[int, str, float]:
    """Like :func:`run`, in a fork, which saves the time in which torch is imported.

    Args:
        source: folder of the package, which must not be imported yet.
        script: a script, or the name of a module.
        arguments: of the script.
        limit: seconds of the processor.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
                os.environ["PYTHONPATH"] = str(source)
                sys.path.insert(0, str(source))
                sys.argv = [script, *arguments]
                if script.endswith(".py"):
                    runpy.run_path(script, run_name="__main__")
                else:
                    runpy.run_module(script, run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status, used = os.wait4(child, 0)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), text, used.ru_utime + used.ru_stime


# Small, so that a run takes a quarter of a minute.
SMALL = (
    *("--preset", "tiny", "--batch", "16", "--scenes-per-epoch", "256", "--validation-scenes", "32"),
    *("--scored-scenes", "16", "--system.panel.rows", "8", "--system.panel.columns", "8"),
)


def doctor(source: Path, settings: tuple[str, ...], limit: int) -> tuple[int, str, float]:
    return forked(source, "rismusic", "doctor", *settings, limit=limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("check", "source", "healthy", "modules", "table"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--set", type=int, default=1, dest="number", help="number of the set")
    parser.add_argument("--out", type=Path, default=Path("blind"))
    parser.add_argument("--sample", type=int, help="number of source faults, drawn with a fixed seed")
    parser.add_argument("--only", nargs="*", help="names of faults or cases")
    parser.add_argument("--part", default="0/1", help="share of the work, such as 0/2 and 1/2")
    parser.add_argument("--limit", type=int, default=600, help="seconds of the processor for each report")
    options = parser.parse_args()
    if options.number == 6 and (options.check or options.source):
        parser.error("set 6 has no edits of the package; blind_module_faults_6.py --check checks its scripts")
    if options.number >= 7 and options.modules:
        parser.error(f"set {options.number} has no scripts")
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    suffix = "" if options.number == 1 else f"_{options.number}"
    chosen: list[SourceFault] = []
    if options.check or options.source:
        chosen = list(importlib.import_module(f"blind_source_faults{suffix}").FAULTS)
    if options.sample:
        chosen = random.Random(SAMPLE_SEED).sample(chosen, options.sample)
    if options.only:
        chosen = [fault for fault in chosen if fault.name in options.only]
    if options.check:
        check(chosen[part::parts])
    if options.source:
        for fault in chosen[part::parts]:
            with edited(fault) as source:
                settings = (*SMALL, *fault.settings)
                store(options.out / "source", fault.name, doctor(source, settings, options.limit))
    if options.healthy:
        for name in list(HEALTHY)[part::parts]:
            store(
                options.out / "healthy", name, doctor(PACKAGE.parent, HEALTHY[name] or SMALL, options.limit)
            )
    if options.modules:
        module = f"blind_module_faults{suffix}"
        cases = importlib.import_module(module).CASES
        script = str(Path(__file__).parent / f"{module}.py")
        names = [name for name in cases if not options.only or name in options.only]
        for name in names[part::parts]:
            store(options.out / "modules", name, forked(PACKAGE.parent, script, name))
    if options.table:
        table(options.out, options.number)


def table(out: Path, number: int) -> None:
    """Write the verdicts of a set, with the time of each run, as a table.

    The names of the verdicts of later sets begin with the number of the set.
    """
    verdicts = json.loads((MEASURED / "doctor_blind_verdicts.json").read_text())
    prefix, suffix = ("", "") if number == 1 else (f"{number}/", f"_{number}")
    with (MEASURED / f"doctor_blind{suffix}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("set", "case", "verdict", "seconds", "what_the_report_says"))
        for key, (verdict, words) in verdicts.items():
            if key[0].isdigit() != bool(prefix) or not key.startswith(prefix):
                continue
            kind, _, name = key.removeprefix(prefix).partition("/")
            first = (out / kind / f"{name}.txt").read_text().splitlines()[0]
            writer.writerow((kind, name, verdict, first.split(", ")[1].removesuffix(" s"), words))


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
