"""Interrupt commands at random instants, take the disk away, and check that nothing is lost.

    python benchmarks/crashes.py --instants 30 [--commands simulate locate bench train tune] [--seed N]

Each command runs to its end once, as the reference. Then it is started again and again, and gets SIGKILL,
SIGTERM or SIGINT at a random instant of its duration. Afterwards it is run again, with ``--resume`` where it
has that option, and must reach the result of the reference. An older output must be whole until then. Further
rows: a disk that takes no more (a limit on the size of files), a folder that an ordinary user may not write,
and two processes with one output.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz_inputs import SMALL, warm_up

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOBODY = 65534
NETWORK = ("--network.width", "8", "--network.heads", "1", "--network.stages", "1", "--network.depth", "1")
TRAINING = (
    *(*NETWORK, "--system.panel.rows", "3", "--system.panel.columns", "3", "--system.sources", "1"),
    *("--batch", "4", "--scenes-per-epoch", "16", "--validation-scenes", "4", "--scored-scenes", "2"),
)


@dataclass(frozen=True)
class Job:
    """A command and what it leaves.

    Args:
        command: arguments; ``OUT`` stands for the folder of the run, ``IN`` for that of the inputs.
        again: what to run after an interruption, if the first command has begun.
        result: files that must equal those of the reference.
        overwrites: whether an older file of the name of the first result is there before.
    """

    command: tuple[str, ...]
    again: tuple[str, ...]
    result: tuple[str, ...]
    overwrites: bool = False


def jobs() -> dict[str, Job]:
    """All commands."""
    simulate: tuple[str, ...] = (
        "simulate",
        "-o",
        "OUT/a.npz",
        "--scenes",
        "20000",
        "--seed",
        "1",
        "--overwrite",
        *SMALL,
    )
    locate = ("locate", "IN/a.h5", "-o", "OUT/a.csv", "--method", "music", "--no-polish", "--sources", "1")
    bench: tuple[str, ...] = (
        "bench",
        "--out",
        "OUT/bench",
        "--methods",
        "omp",
        "bartlett",
        "--sources",
        "1",
        "2",
        "--snr-db",
        "10",
    )
    bench += ("--scenes", "64", "--workers", "1", "--panel.rows", "4", "--panel.columns", "4")
    train = ("train", "--out", "OUT/run", "--schedule.epochs", "4", "--save-steps", "1", *TRAINING)
    tune = ("tune", "--out", "OUT/tune", "--trials", "2", "--heartbeat-s", "1")
    settings = ("--config", "IN/tune.toml", "--training-config", "IN/training.toml")
    return {
        "simulate": Job(simulate, simulate, ("a.npz",), overwrites=True),
        "locate": Job(
            (*locate, "--overwrite"), (*locate, "--overwrite", "--resume"), ("a.csv",), overwrites=True
        ),
        "bench": Job(bench, (*bench, "--resume"), ("bench/results.csv",)),
        "train": Job(
            train, ("train", "--resume", "OUT/run"), ("run/best.safetensors", "run/last.safetensors")
        ),
        "tune": Job((*tune, *settings), (*tune, "--resume"), ()),
    }


def make_inputs(folder: Path) -> None:
    """Files that the commands read."""
    folder.mkdir(parents=True)
    run(("simulate", "-o", str(folder / "a.h5"), "--scenes", "3000", "--one-link", *SMALL), folder / "said")
    (folder / "training.toml").write_text(
        "batch = 4\nscenes_per_epoch = 8\nvalidation_scenes = 4\nscored_scenes = 2\n"
        "[network]\nwidth = 8\nheads = 1\nstages = 1\ndepth = 1\n"
        "[system]\nsources = 1\n[system.panel]\nrows = 3\ncolumns = 3\n"
    )
    (folder / "tune.toml").write_text(
        "epochs_per_trial = 1\nfinal_epochs = 1\nfinalists = 1\nfinal_seeds = 1\ninference_trials = 0\n"
        'objective_scenes = 4\ntest_scenes = 4\ninference_scenes = 4\nsampler = "random"\n'
    )


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
    """Hash of a result; of weights the hash of the tensors, since the order of the metadata varies."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        from rismusic.nn.weights import checksum

        return checksum(load_file(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def named(command: tuple[str, ...], folder: Path, inputs: Path) -> tuple[str, ...]:
    """The command with the folders of this run."""
    return tuple(one.replace("OUT", str(folder)).replace("IN/", f"{inputs}/") for one in command)


class Trial:
    """A folder for one run of a job, with an older output in it where the job replaces one."""

    def __init__(self, job: Job, inputs: Path, folder: Path, reference: dict[str, str]) -> None:
        self.job, self.inputs, self.folder, self.reference = job, inputs, folder, reference
        folder.mkdir(parents=True)
        self.said = folder.parent / f"{folder.name}.said"
        if job.overwrites:
            (folder / job.result[0]).write_text("an older output")

    def command(self, *, again: bool = False) -> tuple[str, ...]:
        """The command, or what follows an interruption of it."""
        if again and not self._begun():  # interrupted between the creation of a folder and its first file
            for name in ("run", "bench", "tune"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        begun = not again or "--resume" not in self.job.again or self._begun()
        chosen = self.job.again if again and begun else self.job.command
        return named(chosen, self.folder, self.inputs)

    def _begun(self) -> bool:
        marks = ("run/settings.toml", "bench/settings.toml", "tune/study.db", "a.csv.part.json")
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
        if signal_sent in (signal.SIGTERM, signal.SIGINT) and code not in (0, 130):
            found.append(f"exit code {code}")
        if not self.old_or_whole():
            found.append("an output was neither the older nor the new one")
        if signal_sent is not signal.SIGKILL and list(self.folder.rglob(".rismusic-*")):
            found.append("temporary files stayed")
        if (again := run(self.command(again=True), self.said)) != 0:
            found.append(
                f"the second run ended with {again}: {self.said.read_text('utf-8', 'replace')[-300:]}"
            )
            return found
        for name, expected in self.reference.items():
            if digest(self.folder / name) != expected:
                found.append(f"{name} differs from that of an undisturbed run")
        if list(self.folder.rglob(".rismusic-*")) or list(self.folder.glob("*.part*")):
            found.append("temporary files stayed after the second run")
        return found


def interrupted(trial: Trial, number: signal.Signals, delay: float) -> list[str]:
    """Start a job, send a signal after a delay, run it again, and say what is wrong."""
    child = start(trial.command(), trial.said)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
    return trial.problems(ended(child), number)


def full(trial: Trial, limit: int) -> list[str]:
    """Run a job where no file may grow beyond a size, then without the limit."""
    # The limit holds for a file of messages, too; those pass through another process.
    with trial.said.open("wb") as said, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said) as pipe:
        assert pipe.stdin is not None
        sink = pipe.stdin.fileno()
        code = run(trial.command(), trial.said, lambda: limited(sink, limit))
    found = [] if code in (0, 2) else [f"exit code {code}"]
    return found + trial.problems(code, None)


def limited(sink: int, limit: int) -> None:
    """In the child: messages go to a descriptor, and no file may grow beyond a size."""
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def read_only(trial: Trial) -> list[str]:
    """Run a job as an ordinary user in a folder that is not the user's."""

    def before() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    trial.said.touch()
    trial.said.chmod(0o666)
    contents = {path: path.read_bytes() for path in trial.folder.rglob("*") if path.is_file()}
    code = run(trial.command(), trial.said, before)
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
    found = [] if codes in ([0, 0], [0, 2]) else [f"exit codes {codes}"]
    for name, expected in trial.reference.items():
        if digest(trial.folder / name) != expected:
            found.append(f"{name} differs from that of an undisturbed run")
    if "Traceback" in trial.said.read_text("utf-8", "replace"):
        found.append("trace")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instants", type=int, default=30, help="instants of each signal and command")
    parser.add_argument("--commands", nargs="+", default=list(jobs()))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    warm_up()
    out = Path(tempfile.mkdtemp(prefix="rismusic-crashes-"))
    out.chmod(0o755)
    make_inputs(out / "inputs")
    failures = 0
    print("| command | what happens | runs | failed |\n|---|---|---|---|", flush=True)
    for name in options.commands:
        job = jobs()[name]
        whole = Trial(job, out / "inputs", out / name / "reference", {})
        begin = time.monotonic()
        code = run(whole.command(), whole.said)
        seconds = time.monotonic() - begin
        assert code == 0, whole.said.read_text()
        reference = {path: digest(whole.folder / path) for path in job.result}
        largest = max(path.stat().st_size for path in whole.folder.rglob("*") if path.is_file())
        count = 0

        def trial() -> Trial:
            nonlocal count
            count += 1
            return Trial(job, out / "inputs", out / name / str(count), reference)  # noqa: B023

        rows: list[tuple[str, list[list[str]]]] = [
            (
                number.name,
                [interrupted(trial(), number, rng.uniform(0, seconds)) for _ in range(options.instants)],
            )
            for number in SIGNALS
        ]
        limits = [rng.randrange(1000, max(2000, largest)) for _ in range(max(1, options.instants // 3))]
        rows += [
            ("disk full", [full(trial(), limit) for limit in limits]),
            ("folder of another user", [read_only(trial())] if os.getuid() == 0 else []),
            ("two processes, one output", [twice(trial())] if name != "tune" else []),
        ]
        for what, results in rows:
            bad = [problems for problems in results if problems]
            failures += len(bad)
            print(f"| {name} ({seconds:.1f} s) | {what} | {len(results)} | {len(bad)} |", flush=True)
            for problems in bad:
                print(f"    {'; '.join(problems)}", flush=True)
    print(f"folders of all runs: {out}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
