"""Interrupt commands at random instants, take the disk away, and check that nothing is lost.

    python benchmarks/crashes.py [--commands simulate locate calibrate ...] [--instants N] [--seed N]

Each command runs to its end once, as the reference. Then it is started again and again, and gets SIGKILL,
SIGTERM or SIGINT at a random instant, one in each of ``--instants`` equal parts of the processor time of the
reference. Afterwards it is run again, with ``--resume`` where it has that option, and must reach the result
of the reference. An older output must be whole until then. Further rows: a disk that takes no more (a limit
on the size of files), a folder that an ordinary user may not write, two processes with one output, and eight
processes with one input. Plots are left out where they would take most of the time.

The counts are written to ``docs/measured/crashes.csv``, from which the documentation makes its table. Rows of
commands and events that were not run stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import hashlib
import importlib
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuzz_inputs import SMALL, warm_up

MEASURED = Path(__file__).parents[1] / "docs" / "measured" / "crashes.csv"
COLUMNS = ("command", "event", "runs", "ended_before", "failed", "processor_time_s", "seed")

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOBODY = 65534
TRAINING = (
    *("batch = 4", "scenes_per_epoch = 8", "validation_scenes = 4", "scored_scenes = 2"),
    *("[network]", "width = 8", "heads = 1", "stages = 1", "depth = 1"),
    *("[system]", "sources = 1", "[system.panel]", "rows = 3", "columns = 3"),
    *("[system.channel]", "antennas = 4", "[system.codebook]", "snapshots = 6"),
)
TUNING = (
    *("epochs_per_trial = 1", "final_epochs = 1", "finalists = 1", "final_seeds = 1", 'sampler = "random"'),
    *("inference_trials = 0", "objective_scenes = 2", "test_scenes = 2", "inference_scenes = 2"),
    *("[locate]", "sources = 1", "polish = false"),
)
TRIALS = 2
FUSED = 300
IMPULSES = ("--impulses.fraction", "0.01")


@dataclass(frozen=True)
class Job:
    """A command and what it leaves.

    Args:
        command: arguments; ``OUT`` stands for the folder of the run, ``IN`` for that of the inputs.
        again: what to run after an interruption, if the first command has begun.
        result: files that must equal those of the reference.
        overwrites: whether an older file of the name of the first result is there before.
        code: exit code of a complete run; 1 for a diagnosis with findings.
    """

    command: tuple[str, ...]
    again: tuple[str, ...]
    result: tuple[str, ...]
    overwrites: bool = False
    code: int = 0


def jobs() -> dict[str, Job]:
    """All commands."""
    cheap = ("--method", "music", "--no-polish", "--sources", "1")
    simulate = (
        *("simulate", "-o", "OUT/a.h5", "--scenes", "4000", "--one-link", "--seed", "1", "--overwrite"),
        *("--panel.rows", "8", "--panel.columns", "8", "--codebook.snapshots", "64"),  # four blocks
    )
    packed = (
        *("simulate", "-o", "OUT/a.npz", "--scenes", "20000", "--seed", "1", "--overwrite"),
        *(*SMALL, *IMPULSES),
    )
    # One process: instants are given in the processor time of the process that gets the signal.
    locate = ("locate", "IN/a.h5", "-o", "OUT/a.csv", "--overwrite", "--workers", "1", *cheap)
    calibrate = (
        *("calibrate", "IN/few.h5", "-o", "OUT/a.h5", "--overwrite"),
        *("--method", "omp", "--sources", "1", "--rounds", "1"),
    )
    fuse = (
        *("locate", "IN/west.h5", "--fuse", "IN/south.h5", "-o", "OUT/a.json", "--overwrite"),
        *("--method", "omp", "--sources", "1"),
    )
    report = ("locate", "IN/few.h5", "--report", "OUT/a.html", "--report-scenes", "1", "--overwrite")
    few = ("--scenes", "100", "--sources", "1", "-o", "OUT/a.csv", "--overwrite")
    plan = ("plan", "--target-m", "0.1", "--range-m", "2", "--rows", "4", "6", "--bits", "1", "2", *few)
    doctor = ("doctor", "IN/run", "--json", "OUT/a.json", "--overwrite")
    bench = (
        *("bench", "--out", "OUT/bench", "--methods", "omp", "bartlett", "--sources", "1", "2"),
        *("--snr-db", "10", "--scenes", "24", "--workers", "1", *SMALL),
    )
    train = (
        *("train", "--out", "OUT/run", "--config", "IN/training.toml"),
        *("--save-steps", "1", "--schedule.epochs", "3"),
    )
    tune = ("tune", "--out", "OUT/tune", "--trials", str(TRIALS), "--heartbeat-s", "1")
    settings = ("--config", "IN/tune.toml", "--training-config", "IN/training.toml")
    return {
        "simulate": Job(simulate, (*simulate, "--resume"), ("a.h5",), overwrites=True),
        "simulate -o a.npz": Job(packed, packed, ("a.npz",), overwrites=True),
        "locate": Job(locate, (*locate, "--resume"), ("a.csv",), overwrites=True),
        "locate --fuse": Job(fuse, (*fuse, "--resume"), ("a.json",), overwrites=True),
        "locate --report": Job((*report, *cheap), (*report, *cheap), ("a.html",), overwrites=True),
        "calibrate": Job(calibrate, calibrate, ("a.h5",), overwrites=True),
        "bound": Job(("bound", *few), ("bound", *few), ("a.csv",), overwrites=True),
        "plan": Job(plan, plan, ("a.csv",), overwrites=True),
        "doctor": Job(doctor, doctor, ("a.json",), overwrites=True, code=1),
        "bench": Job(bench, (*bench, "--resume"), ("bench/results.csv",)),
        "train": Job(
            train, ("train", "--resume", "OUT/run"), ("run/best.safetensors", "run/last.safetensors")
        ),
        "tune": Job((*tune, *settings), (*tune, "--resume"), ("tune/trials.csv",)),
    }


def make_inputs(folder: Path) -> None:
    """Files that the commands read."""
    folder.mkdir(parents=True)
    for name, scenes in (("a.h5", "700"), ("few.h5", "12")):
        run(("simulate", "-o", str(folder / name), "--scenes", scenes, "--one-link", *SMALL), folder / "said")
    _make_room(folder)
    (folder / "training.toml").write_text("\n".join(TRAINING))
    (folder / "tune.toml").write_text("\n".join(TUNING))
    run(("train", "--out", str(folder / "run"), "--config", str(folder / "training.toml")), folder / "said")


def _make_room(folder: Path) -> None:
    """Recordings of the same sources by two panels, on walls at a right angle."""
    import torch

    from rismusic.io import write
    from rismusic.simulation.simulator import simulate
    from rismusic.sources import Sources

    west = [[0.0, 0, 1, 0], [1, 0, 0, 2], [0, 1, 0, 1.5], [0, 0, 0, 1]]
    south = [[-1.0, 0, 0, 3], [0, 0, 1, 0], [0, 1, 0, 1.5], [0, 0, 0, 1]]
    system: dict[str, Any] = {"panel": {"rows": 4, "columns": 4}, "channel": {"kind": "direct"}, "snr_db": 20}
    for seed, (name, numbers) in enumerate({"west": west, "south": south}.items()):
        pose = torch.tensor(numbers, dtype=torch.float64)
        sources = Sources.from_room(pose.numpy(), [[2.0, 2.5, 1.3]])
        made = simulate(scenes=FUSED, sources=sources, seed=seed, **system)
        write(folder / f"{name}.h5", replace(made, pose=pose))


def start(command: tuple[str, ...], said: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command in a forked process, which has imported everything; its number."""
    child = os.fork()
    if child:
        return child
    code = 255
    try:
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout = sys.stderr = os.fdopen(
            os.dup2(sink, 2), "w", encoding="utf-8", errors="backslashreplace"
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "--report" not in command:
            sys.modules["matplotlib"] = None  # type: ignore[assignment]
        before()
        from rismusic.cli import main

        code = main(list(command))
        sys.stdout.flush()
    except KeyboardInterrupt:  # between two commands, as it were: before the first or after the last line
        code = 130
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(command: tuple[str, ...], said: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command to its end; its exit code."""
    return ended(start(command, said, before))


def digest(path: Path) -> str:
    """What a result must agree in.

    Of weights the tensors, since the order of the metadata varies; of a search the number of complete trials,
    since the proposals depend on the process that makes them; of a report all but the time.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        from rismusic.nn.checkpoint import checksum

        return checksum(load_file(path))
    if path.name == "trials.csv":
        with path.open(encoding="utf-8", newline="") as file:
            return str(sorted(row["state"] for row in csv.DictReader(file)))
    content = path.read_bytes()
    if path.suffix == ".html":
        content = re.sub(rb"<dt>made</dt><dd>[^<]*</dd>", b"", content)
    return hashlib.sha256(content).hexdigest()


def named(command: tuple[str, ...], folder: Path, inputs: Path) -> tuple[str, ...]:
    """The command with the folders of this run."""
    return tuple(one.replace("OUT", str(folder)).replace("IN/", f"{inputs}/") for one in command)


class Trial:
    """A folder for one run of a job, with an older output in it where the job replaces one."""

    def __init__(self, job: Job, inputs: Path, folder: Path, reference: dict[str, str]) -> None:
        self.job, self.inputs, self.folder, self.reference = job, inputs, folder, reference
        folder.mkdir(parents=True)
        self.said = folder.parent / f"{folder.name}.said"
        self.ran_through = 0
        if job.overwrites:
            (folder / job.result[0]).write_text("an older output")

    def command(self, *, again: bool = False) -> tuple[str, ...]:
        """The command, or what follows an interruption of it."""
        begun = not again or "--resume" not in self.job.again or self._begun()
        chosen = self.job.again if again and begun else self.job.command
        return named(chosen, self.folder, self.inputs)

    def _begun(self) -> bool:
        marks = (
            "run/settings.toml",
            "bench/settings.toml",
            "tune/study.db",
            "a.csv.run.json",
            "a.json.run.json",
            "a.h5.run.json",
        )
        return any((self.folder / mark).exists() for mark in marks)

    def old_or_whole(self) -> bool:
        """Whether the output is still the older one, or already the new one."""
        if not self.job.overwrites:
            return True
        path = self.folder / self.job.result[0]
        return path.read_text("latin-1") == "an older output" or digest(path) == self.reference[path.name]

    def problems(self, code: int, signal_sent: signal.Signals | None) -> list[str]:
        """What is wrong after an interruption and a second run."""
        said, found = self.said.read_text("utf-8", "replace"), []
        if "Traceback" in said:
            found.append("trace")
        if signal_sent in (signal.SIGTERM, signal.SIGINT) and code not in (self.job.code, 130):
            found.append(f"exit code {code}")
        if not self.old_or_whole():
            found.append("an output was neither the older nor the new one")
        if signal_sent is not signal.SIGKILL and (left := list(self.folder.rglob(".rismusic-*"))):
            found.append(f"temporary files stayed: {', '.join(map(str, left))}")
        if (again := run(self.command(again=True), self.said)) != self.job.code:
            found.append(
                f"the second run ended with {again}: {self.said.read_text('utf-8', 'replace')[-300:]}"
            )
            return found
        for name, expected in self.reference.items():
            if digest(self.folder / name) != expected:
                found.append(f"{name} differs from that of an undisturbed run")
        if any(list(self.folder.rglob(name)) for name in (".rismusic-*", "*.part", "*.part.lock")):
            found.append("temporary files stayed after the second run")
        return found


def processor_time(child: int) -> float:
    """Processor time in seconds that a process has used; infinite if it has ended."""
    state, *fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return math.inf if state == "Z" else sum(map(int, fields[10:12])) / os.sysconf("SC_CLK_TCK")


def interrupted(trial: Trial, number: signal.Signals, instant: float) -> list[str]:
    """Start a job, send a signal after a processor time, run it again, and say what is wrong."""
    child = start(trial.command(), trial.said)
    while (used := processor_time(child)) < instant:
        time.sleep(0.002)
    if math.isfinite(used):
        time.sleep(random.Random(instant).uniform(0, 0.02))  # the clock has steps of 10 ms
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
    code = ended(child)
    trial.ran_through = int(code == trial.job.code)
    return trial.problems(code, number)


def full(trial: Trial, limit: int) -> list[str]:
    """Run a job where no file may grow beyond a size, then without the limit."""
    # The limit holds for a file of messages, too; those pass through another process.
    with trial.said.open("wb") as said, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said) as pipe:
        assert pipe.stdin is not None
        sink = pipe.stdin.fileno()
        code = run(trial.command(), trial.said, lambda: limited(sink, limit))
    found = [] if code in (trial.job.code, 2) else [f"exit code {code}"]
    return found + trial.problems(code, None)


def limited(sink: int, limit: int) -> None:
    """In the child: messages go to a descriptor, and no file may grow beyond a size."""
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def read_only(trial: Trial, instant: float) -> list[str]:
    """Begin a job, and go on as an ordinary user in a folder that is not the user's.

    Args:
        trial: the job.
        instant: processor time after which the first run is killed; 0: nothing is begun.
    """
    if instant:
        child = start(trial.command(), trial.said)
        while processor_time(child) < instant:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        ended(child)

    def before() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    trial.said.touch()
    trial.said.chmod(0o666)
    contents = {path: path.read_bytes() for path in trial.folder.rglob("*") if path.is_file()}
    code = run(trial.command(again=bool(instant)), trial.said, before)
    found = [] if code == 2 else [f"exit code {code}"]
    if {path: path.read_bytes() for path in trial.folder.rglob("*") if path.is_file()} != contents:
        found.append("the folder was changed")
    if "Traceback" in trial.said.read_text("utf-8", "replace"):
        found.append("trace")
    return found


def twice(trial: Trial) -> list[str]:
    """Run a job in two processes at once; one of them may be refused, and the result is whole."""
    children = [start(trial.command(), trial.said) for _ in range(2)]
    codes = sorted(ended(child) for child in children)
    whole = trial.job.code
    found = [] if codes in ([whole, whole], [whole, 2]) else [f"exit codes {codes}"]
    for name, expected in trial.reference.items():
        if digest(trial.folder / name) != expected:
            found.append(f"{name} differs from that of an undisturbed run")
    if "Traceback" in trial.said.read_text("utf-8", "replace"):
        found.append("trace")
    return found


def together(trials: list[Trial]) -> list[str]:
    """Run a job in several processes at once, each with an output of its own."""
    children = [start(trial.command(), trial.said) for trial in trials]
    codes = [ended(child) for child in children]
    found = [] if {*codes} == {trials[0].job.code} else [f"exit codes {codes}"]
    for trial in trials:
        for name, expected in trial.reference.items():
            if digest(trial.folder / name) != expected:
                found.append(f"{trial.folder / name} differs from that of a single run")
    return found


class Table:
    """The runs of one command, and a row of the table for each kind of them."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.inputs, self.out = name, out / "inputs", out / name
        self.job, self._count = jobs()[name], 0
        for attempt in ("first", "reference"):  # the first one fills the cache of compiled functions
            whole = Trial(self.job, self.inputs, self.out / attempt, {})
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            code = run(whole.command(), whole.said)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert code == self.job.code, whole.said.read_text()
        self.seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.reference = {path: digest(whole.folder / path) for path in self.job.result}
        self.largest = max(path.stat().st_size for path in whole.folder.rglob("*") if path.is_file())

    def trial(self) -> Trial:
        """A folder for the next run."""
        self._count += 1
        return Trial(self.job, self.inputs, self.out / str(self._count), self.reference)

    def rows(
        self, instants: int, rng: random.Random, signals: Sequence[str] = ()
    ) -> Iterator[tuple[str, list[list[str]], int]]:
        """What happens, the problems of each run, and the number of runs that ended before it."""
        for number in SIGNALS:
            if signals and number.name not in signals:
                continue
            trials = [self.trial() for _ in range(instants)]
            places = [(place + rng.random()) / instants * self.seconds for place in range(instants)]
            found = [interrupted(trial, number, place) for trial, place in zip(trials, places, strict=True)]
            yield number.name, found, sum(trial.ran_through for trial in trials)
        if signals:
            return
        limits = [rng.randrange(1000, max(2000, self.largest)) for _ in range(max(1, instants // 3))]
        yield "disk full", [full(self.trial(), limit) for limit in limits], 0
        if os.getuid() == 0:
            yield (
                "folder of another user",
                [read_only(self.trial(), part * self.seconds) for part in (0, 0.5)],
                0,
            )
        if self.name != "tune":
            yield "two processes, one output", [twice(self.trial())], 0
        if self.name == "locate":
            yield "eight processes, one input", [together([self.trial() for _ in range(8)])], 0


def save(path: Path, command: str, rows: list[dict[str, str]]) -> None:
    """Put the rows of a command into the table, in place of earlier ones of the same events."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            found = {(row["command"], row["event"]): row for row in csv.DictReader(file)}
    found |= {(command, row["event"]): row for row in rows}
    order = list(jobs())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(found.values(), key=lambda row: order.index(row["command"])))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instants", type=int, default=30, help="instants of each signal and command")
    parser.add_argument("--commands", nargs="+", default=list(jobs()), choices=list(jobs()))
    parser.add_argument(
        "--signals", nargs="+", default=(), choices=[one.name for one in SIGNALS], help="these events alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=MEASURED, help="CSV file for the counts")
    options = parser.parse_args()
    prepare()
    out = Path(tempfile.mkdtemp(prefix="rismusic-crashes-"))
    out.chmod(0o755)
    make_inputs(out / "inputs")
    failures = 0
    for name in options.commands:
        table, rows = Table(name, out), []
        for event, results, ended_before in table.rows(
            options.instants, random.Random(f"{options.seed}/{name}"), options.signals
        ):
            bad = [problems for problems in results if problems]
            failures += len(bad)
            values = (name, event, len(results), ended_before, len(bad), f"{table.seconds:.1f}", options.seed)
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            for problems in bad:
                print(f"    {'; '.join(problems)}", flush=True)
        save(options.table, name, rows)
    print(f"folders of all runs: {out}")
    return int(failures > 0)


def prepare() -> None:
    """Import what the commands import, once and for all children."""
    import torch

    torch.set_num_threads(1)
    warm_up()
    for name in (
        "torch._dynamo",
        "rismusic.panel_calibration",
        "rismusic.io",
        "rismusic.tuning.results",
        "configparser",
    ):
        importlib.import_module(name)
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
