"""Run every command on damaged and hostile files, and count what each of them gets.

    python benchmarks/fuzz_inputs.py --inputs 2000 [--seed N] [--out FOLDER] [--commands NAME ...]

In some inputs (``--odd``) the files are valid and the options are odd: numbers out of all limits, devices and
numbers of workers that no machine has, outputs that are inputs or stand beside one.

Valid files of every format are made first: recordings, calibrations, known positions, settings, weights, the
folders of trainings and benchmarks, studies, and outputs that were cut. Each input is one of them, with
random changes, or with something else in its place (a pipe, an endless device, a folder, a link). A command
then reads it in a process of its own, with limits on time and memory. Work that would follow the reading is
left out.

An input is a failure if the command shows a stack trace, ends with exit code 70 or by a signal, needs more
than 10 s of processor time or 2 GiB of memory, or changes or removes a file that it should only read. Inputs
that fail are kept. The exit code is 1 if there is any. With ``--table docs/measured/fuzz.csv`` the counts go
to the table of the documentation.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TextIO
from unittest import mock

SECONDS, BYTES = 10, 2 * 2**30
BEGUN = 200
"""Exit code of a child whose command has read everything and would begin to work."""

SMALL = ("--panel.rows", "3", "--panel.columns", "4", "--channel.antennas", "4", "--codebook.snapshots", "6")
NETWORK = (
    *(
        "--system.panel.rows",
        "3",
        "--system.panel.columns",
        "4",
        "--system.sources",
        "1",
        "--network.width",
        "8",
    ),
    *("--network.heads", "1", "--network.stages", "1", "--network.depth", "1", "--device", "cpu"),
)
LOCATE = ("--method", "bartlett", "--no-polish", "--sources", "1")
CALIBRATE = ("--method", "omp", "--sources", "1", "--rounds", "1", "-o", "FOLDER/new.h5")
SETTINGS = {
    "simulate": 'sources = 2\nsnr_db = [0.0, 10.0]\n[panel]\nrows = 3\n[channel]\nkind = "rician"\n',
    "bound": "sources = [1]\nsnr_db = [10.0]\nscenes = 1\n[panel]\nrows = 3\n",
    "plan": "target_m = 0.1\nrange_m = 2.0\nrows = [3, 4]\nbits = [1]\nscenes = 1\n",
    "calibrate": 'method = "omp"\nsources = 1\nrounds = 1\npanel_error = 0.1\n',
    "bench": 'methods = ["bartlett"]\nsources = [2]\nsnr_db = [5.0]\nscenes = 2\n[panel]\nrows = 4\n',
    "train": "batch = 4\nscenes_per_epoch = 8\n[network]\nwidth = 8\nheads = 1\n[schedule]\nepochs = 1\n",
    "doctor": "batch = 4\nscenes_per_epoch = 8\n[network]\nwidth = 8\nheads = 1\n",
    "tune": 'finalists = 2\nsampler = "random"\n',
    "locate": 'method = "bartlett"\nsources = 1\npolish = false\nrange_max_m = 8.0\n',
}


@dataclass(frozen=True)
class Case:
    """A command and the file that it reads.

    Args:
        kind: kind of the file, for the table.
        command: arguments; ``FOLDER`` stands for the folder with a copy of all valid files.
        target: the file that is changed.
        changes: files that the command changes by design.
    """

    kind: str
    command: tuple[str, ...]
    target: str
    changes: tuple[str, ...] = ()


def cases() -> list[Case]:
    """All commands and files."""
    found = []
    for name in ("a.h5", "a.npz", "packed.npz", "a5.mat", "a73.mat"):
        path = f"FOLDER/{name}"
        kind = {"a5.mat": "mat 5", "a73.mat": "mat 7.3"}.get(name, name.rpartition(".")[2])
        found += [
            Case(kind, ("check", path, "--no-fit"), name),
            Case(kind, ("locate", path, *LOCATE), name),
            Case(kind, ("locate", path, "-o", "FOLDER/new.csv", *LOCATE), name),
            Case(kind, ("simulate", "-o", "FOLDER/new.h5", "--scenes", "1", "--link-from", path), name),
            Case(kind, ("calibrate", path, *CALIBRATE), name),
        ]
    known = ("--known-positions", "FOLDER/known.csv")
    corrected = ("locate", "FOLDER/a.h5", "--calibration", "FOLDER/calibration.h5", *LOCATE)
    found += [
        Case("positions", ("calibrate", "FOLDER/a.h5", *known, *CALIBRATE), "known.csv"),
        Case("calibration", corrected, "calibration.h5"),
    ]
    for command in SETTINGS:
        name = f"{command}.toml"
        rest = {
            "simulate": ("-o", "FOLDER/new.h5", "--scenes", "1"),
            "bench": ("--out", "FOLDER/new"),
            "train": ("--out", "FOLDER/new"),
            "tune": ("--out", "FOLDER/new"),
            "locate": ("FOLDER/a.h5",),
            "calibrate": ("FOLDER/a.h5", "-o", "FOLDER/new.h5"),
        }.get(command, ())
        found.append(Case("settings", (command, *rest, "--config", f"FOLDER/{name}"), name))
    weights = ("--method", "hybrid", "--weights", "FOLDER/w.safetensors", "--sources", "1", "--no-polish")
    found += [
        Case("weights", ("locate", "FOLDER/a.h5", *weights), "w.safetensors"),
        Case(
            "weights",
            ("train", "--out", "FOLDER/new", "--start", "FOLDER/w.safetensors", *NETWORK),
            "w.safetensors",
        ),
    ]
    for name in ("settings.toml", "log.jsonl"):
        found.append(Case("run folder", ("doctor", "FOLDER/run"), f"run/{name}"))
    for name in ("settings.toml", "log.jsonl", "state.json", "state.safetensors", "lock"):
        target = f"run/{name}"
        kept = ("run/lock", "run/log.jsonl")
        found.append(Case("run folder", ("train", "--resume", "FOLDER/run"), target, kept))
    for name in ("settings.toml", "part.npz", "results.csv"):
        resumed = ("bench", "--out", "FOLDER/bench", "--resume", "--config", "FOLDER/bench.toml")
        found += [
            Case("bench folder", resumed, f"bench/{name}", ("bench/results.csv", "bench/timings.csv")),
        ]
    tune = ("tune", "--out", "FOLDER/new", "--resume", "--storage")
    found += [
        Case("study", (*tune, "FOLDER/study.db"), "study.db", ("study.db",)),
        Case("study", (*tune, "sqlite:///FOLDER/a.h5"), "a.h5"),
    ]
    for name in ("cut.csv.part", "cut.csv.run.json"):
        again = ("locate", "FOLDER/a.h5", "-o", "FOLDER/cut.csv", "--resume", *LOCATE)
        found.append(Case("cut output", again, name, ("cut.csv.part", "cut.csv.run.json")))
    return found


def make_files(folder: Path) -> None:
    """Write a valid file of every kind."""
    import numpy as np
    import torch

    from rismusic.cli import main
    from rismusic.cli.locate import PartialOutput
    from rismusic.estimation.table import COLUMNS
    from rismusic.hybrid import locate
    from rismusic.io import read, write
    from rismusic.nn.checkpoint import State, save_checkpoint, save_network
    from rismusic.nn.run_folder import RunFolder
    from rismusic.nn.spec import TrainSpec
    from rismusic.spec import LocateSpec

    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    for command, text in SETTINGS.items():
        (folder / f"{command}.toml").write_text(text)
    _quiet(main, ["simulate", "-o", str(folder / "a.h5"), "--scenes", "3", "--one-link", *SMALL])
    names = {"FOLDER/a.h5": "a.h5", "FOLDER/new.h5": "calibration.h5"}
    calibrate = ["calibrate", "FOLDER/a.h5", *CALIBRATE]
    _quiet(main, [str(folder / names[word]) if word in names else word for word in calibrate])
    _quiet(main, ["locate", str(folder / "a.h5"), "-o", str(folder / "known.csv"), *LOCATE])
    recording = read(folder / "a.h5")
    write(folder / "a.npz", recording)
    with np.load(folder / "a.npz") as held:
        np.savez_compressed(folder / "packed.npz", **held)
    write(folder / "a5.mat", recording)
    write(folder / "a73.mat", recording, mat_version="7.3")
    system = {"panel": {"rows": 3, "columns": 4}, "channel": {"antennas": 4}, "sources": 1}
    spec = TrainSpec.model_validate(
        {"network": {"width": 8, "heads": 1, "stages": 1, "depth": 1}, "system": system}
    )
    run = RunFolder(folder / "run")
    run.create(spec)
    from rismusic.nn.train import Trainer

    trainer = Trainer(spec, run)
    save_network(folder / "w.safetensors", trainer.learner.network, training=spec)
    save_checkpoint(run, spec, State(begun=True, log_bytes=10**6), trainer.learner.tensors())
    finding = {"name": "x", "value": 1.0, "threshold": 2.0, "fine": True, "meaning": "m", "advice": "a"}
    losses = {
        "loss": 1.0,
        "terms": {"covariance": 0.5},
        "scores": {"blend": {"recall": 0.5, "count_right": 1.0}},
    }
    records: list[dict[str, object]] = []
    for epoch in range(4):
        records += [
            {"kind": "probe", "tag": "VAL", "epoch": epoch, "findings": [finding]},
            {"kind": "step", "epoch": epoch, "step": 0, "taken": 1.0, "loss": 1.0},
            {"kind": "epoch", "epoch": epoch, "training": {"loss": 1.0 / (epoch + 1)}, "validation": losses},
        ]
    run.log(records)
    options = ("--config", str(folder / "bench.toml"), "--workers", "1")
    _quiet(main, ["bench", "--out", str(folder / "bench"), *options])
    settings = LocateSpec(method="bartlett", polish=False, sources=1)
    estimate = locate(recording, spec=settings)
    (folder / "cut.csv").unlink(missing_ok=True)
    with PartialOutput(
        folder / "cut.csv",
        folder / "a.h5",
        settings.model_dump(mode="json"),
        name="",
        resume=False,
        overwrite=False,
        columns=COLUMNS,
    ) as output:
        output.append(estimate[:2])
    from rismusic.tuning.spec import TuneSpec, load_space
    from rismusic.tuning.storage import open_storage, quiet
    from rismusic.tuning.study import _begin, _settings

    with quiet(), open_storage(str(folder / "study.db"), folder, heartbeat_s=60) as storage:
        chosen = TuneSpec()
        _begin(storage, "tune", _settings(chosen, load_space(chosen.space), 3))
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint")


def _quiet(call: Callable[[list[str]], int], arguments: list[str]) -> None:
    with (
        Path(os.devnull).open("w") as sink,
        contextlib.redirect_stderr(sink),
        contextlib.redirect_stdout(sink),
    ):
        code = call(arguments)
    assert code == 0, arguments


Mutation = Callable[[random.Random, bytes], bytes]
_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_WORDS = (
    *(
        b"-1",
        b"0",
        b"1e999",
        b"nan",
        b"NaN",
        b"Infinity",
        b"99999999999999999999",
        b"1e-300",
        b"null",
        b"true",
    ),
    *(
        b'""',
        b"[]",
        b"{}",
        b"[[[[[[[[[[",
        b"'",
        b'"',
        b"\\u0000",
        b"\x1b[2J",
        b"../../etc/passwd",
        b"/dev/zero",
    ),
    *(b"self", b"__class__", b"[/foo]", b"\xff\xfe", b"\r\n", b"=1+1", b"A" * 5000, b"." * 300),
)


def flip(rng: random.Random, data: bytes) -> bytes:
    """Flip bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def number(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a binary number with an extreme one."""
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(_VALUES) % 256**width
    place = rng.randrange(max(1, len(data) - width))
    return data[:place] + value.to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]


def word(rng: random.Random, data: bytes) -> bytes:
    """Insert a word, or put it in the place of a few bytes."""
    place = rng.randrange(len(data))
    return data[:place] + rng.choice(_WORDS) + data[place + rng.choice((0, 0, 1, 4, 20)) :]


def written_number(rng: random.Random, data: bytes) -> bytes:
    """Replace a decimal number in a text."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?", data[:200_000]))
    if not places:
        return word(rng, data)
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(_WORDS[:10]) + data[place.end() :]


def cut(rng: random.Random, data: bytes) -> bytes:
    """Truncate."""
    return data[: rng.randrange(len(data))]


def without(rng: random.Random, data: bytes) -> bytes:
    """Remove, repeat or clear a piece."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 8, 100, 1000, len(data))))
    middle = rng.choice((b"", bytes(stop - start), 2 * data[start:stop], rng.randbytes(stop - start)))
    return data[:start] + middle + data[stop:]


def moved(rng: random.Random, data: bytes) -> bytes:
    """Exchange two pieces."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[b:] + data[a:b] + data[:a]


def lines(rng: random.Random, data: bytes) -> bytes:
    """Remove, repeat or exchange lines."""
    parts = data.split(b"\n")
    rng.shuffle(parts) if rng.random() < 0.3 else parts.insert(rng.randrange(len(parts)), rng.choice(parts))
    return b"\n".join(parts[: rng.randrange(1, len(parts) + 1)] if rng.random() < 0.3 else parts)


MUTATIONS: tuple[Mutation, ...] = (flip, number, word, written_number, cut, without, moved, lines)


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> tuple[bytes, str]:
    """The content with one to four changes, and their names."""
    if rng.random() < 0.05:
        other = rng.choice(others)
        return rng.choice(
            (b"", other, data[: len(data) // 2] + other, rng.randbytes(3000))
        ), "another content"
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choice(MUTATIONS)
        data = change(rng, data or b"\0")
        names.append(getattr(change, "__name__", "change"))
    return data, " + ".join(names)


def replaced(rng: random.Random, path: Path) -> str:
    """Put something that is no file in the place of a file."""
    kind = rng.choice(
        ("a pipe", "an endless device", "a folder", "a link to nothing", "a link to itself", "nothing")
    )
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "an endless device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to("nowhere" if kind == "a link to nothing" else path.name)
    return kind


# Options with odd values, for the commands that have them.
_ODD = {
    "--device": ("cuda", "cuda:99", "cpu:7", "meta", "mps", "xla:0", "gpu", "", "cpu cuda"),
    "--workers": ("-1", "99999", "1e9", "2.5", "nan", "", "0x2"),
    "--seed": ("-1", str(2**63), str(2**64), "1e3", "nan"),
    "--scenes": ("0", "-3", "1e30", "99999999999999999999"),
    "--sources": ("-1", "0", "999", "99999999999999999999", "1.5", "nan", "auto auto"),
    "--snr-db": ("nan", "inf", "-1e308", "1e308", "-400", "400"),
    "--sources-max": ("0", "-1", "1000", "1e9"),
    "--range-min-m": ("0", "-1", "1e-320", "1e-30", "nan", "inf", "1e300"),
    "--range-max-m": ("0", "-1", "1e-320", "inf", "nan", "1e300", "1e16"),
    "--azimuth-max-deg": ("0", "-5", "1e-300", "90", "180", "nan"),
    "--oversampling": ("0", "-1", "0.5", "1e9", "nan", "inf"),
    "--panel-error": ("-1", "1e-300", "1e300", "nan", "auto"),
    "--panel.pattern-exponent": ("-1", "-0.5", "-1e300", "1e300", "nan"),
    "--panel.wavelength-m": ("-0.3", "0", "1e-320", "1e300", "nan"),
    "--panel.rows": ("0", "-4", "1e9", "99999999999"),
    "--channel.antennas": ("0", "-4", "99999999999"),
    "--codebook.bits": ("0", "-3", "17", "99999", "continuous"),
    "--impulses.power-db": ("-1e308", "1e308", "nan"),
    "--cluster": ("nowhere", "tcp://", "tcp://127.0.0.1:1", ""),
    "--epochs": ("0", "-1", "1e30"),
    "--report-scenes": ("0", "-1", "99999999999999999999"),
    "--figure-width": ("0", "-1", "39", "1e9", "nan"),
    "--config": ("", ".", "FOLDER", "/dev/null", "sample:ideal_10dB"),
}
_WRITES = ("-o", "--output", "--json", "--plot", "--report")


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """The options that a command has."""
    from rismusic.cli import COMMANDS
    from rismusic.cli.parser import help_text

    return frozenset(re.findall(r"--?[a-z][\w.-]*", help_text(command, COMMANDS[command], everything=True)))


def without_option(command: list[str], option: str) -> list[str]:
    """The command without an option and its values."""
    if option not in command:
        return command
    place = command.index(option)
    end = next((i for i in range(place + 1, len(command)) if command[i].startswith("-")), len(command))
    return command[:place] + command[end:]


def odd_command(rng: random.Random, case: Case, names: list[str]) -> Case:
    """The command with an odd option, or with an output that is an input or another file, perhaps both."""
    command, changes = list(case.command), set(case.changes)
    known = options_of(command[0])
    kinds = rng.choice((("option",), ("option", "option"), ("output",), ("output", "option")))
    for _ in range(kinds.count("option")):
        option = rng.choice(sorted(known & _ODD.keys()))
        command = [*without_option(command, option), option, *rng.choice(_ODD[option]).split(" ")]
    if "output" in kinds and (writes := [one for one in _WRITES if one in known]):
        option = rng.choice(writes)
        inputs = [word.removeprefix("FOLDER/") for word in command if word.startswith("FOLDER/")]
        name = rng.choice((*inputs, *rng.choices(names, k=2)))
        for beside in (".toml", ".part", ".run.json", ".part.lock"):
            if rng.random() < 0.5:  # what is written beside an output is an input
                name = name.removesuffix(beside)
        if rng.random() < 0.2:
            name += rng.choice((".h5", ".csv", ".json", ".html", ".png"))
        command = without_option(command, "-o" if option == "--output" else option)
        inputs = [word.removeprefix("FOLDER/") for word in command if word.startswith("FOLDER/")]
        command = [*without_option(command, "--overwrite"), option, f"FOLDER/{name}", "--overwrite"]
        # All that is written may change, but for what is read.
        written = {name, *(name + end for end in (".toml", ".part", ".run.json", ".part.lock"))}
        changes |= {one for one in written if not any(one == at or one.startswith(f"{at}/") for at in inputs)}
    return replace(case, command=tuple(command), changes=tuple(sorted(changes)))


def contents(folder: Path) -> dict[str, str]:
    """What each file is: its hash, or what it is instead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[str(path.relative_to(folder))] = "no file"
    return found


def begun(*_: Any, **__: Any) -> NoReturn:
    """Stands for the work that follows the reading."""
    os._exit(BEGUN)


# What begins the work: trainings, searches, benchmarks and checks of settings.
_WORK = (
    "rismusic.nn.train.Trainer.train",
    "rismusic.nn.train.RunFolder.create",
    "rismusic.tuning.worker.Worker.run",
    "rismusic.tuning.study.create_storage",
    "rismusic.benchmark.run.run_all",
    "rismusic.doctor.diagnose.diagnose",
    "rismusic.benchmark.planning.recording_crb",
)


@contextlib.contextmanager
def no_work(command: tuple[str, ...]) -> Iterator[None]:
    """Leave out the work; a command that resumes reads more than one that begins."""
    resumes = "--resume" in command or "--start" in command
    with contextlib.ExitStack() as stack:
        for name in _WORK:
            if resumes and name.endswith(("RunFolder.create", "create_storage")):
                continue
            stack.enter_context(mock.patch(name, begun))
        yield


@dataclass(frozen=True)
class Outcome:
    """What an input got.

    Args:
        verdict: ``sentence``, ``read``, or what is wrong.
        said: standard error of the command.
    """

    verdict: str
    said: str = ""

    @property
    def fine(self) -> bool:
        """Whether this is no failure."""
        return self.verdict in ("sentence", "read")


def attempt(case: Case, folder: Path) -> Outcome:
    """Run the command of a case in a forked process, and judge what it did.

    Args:
        case: the command and the file.
        folder: its files, one of which is changed.
    """
    from rismusic.cli import main

    before = contents(folder)
    command = [word.replace("FOLDER", str(folder)) for word in case.command]
    log = folder.parent / f"{folder.name}.said"
    child = os.fork()
    if child == 0:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout = sys.stderr = os.fdopen(sink, "w", encoding="utf-8", errors="backslashreplace")
        code = 255
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(12 * SECONDS)  # for those that wait; the machine may be busy
            tempfile.tempdir = str(folder.parent)
            with no_work(case.command):
                code = main(command)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    said = log.read_text("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    after = contents(folder)
    lost = [name for name in before if before[name] != after.get(name) and name not in case.changes]
    if code in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        return Outcome("hang", said)
    if code < 0:
        return Outcome(f"signal {-code}", said)
    if usage.ru_maxrss * 1024 > BYTES:
        return Outcome("memory", said)
    if code == 70 or "Traceback (most recent call last)" in said:
        return Outcome("trace", said)
    if lost:
        return Outcome(f"changed {', '.join(lost)}", said)
    if code == 2 and said.count("error: ") >= 1 and "\x1b" not in said:
        return Outcome("sentence", said)
    return Outcome("read" if code in (0, 1, BEGUN) else f"exit code {code}", said)


def warm_up() -> None:
    """Import what the commands import, so that the forked processes need not."""
    for name in ("cli", "hybrid", "checks", "nn.train", "tuning.study", "benchmark.run", "doctor.diagnose"):
        importlib.import_module(f"rismusic.{name}")
    for name in ("doctor.run_log", "benchmark.planning", "benchmark.plots"):
        importlib.import_module(f"rismusic.{name}")
    for name in ("cli.locate", "panel_calibration"):
        importlib.import_module(f"rismusic.{name}")


def prepared(model: Path, folder: Path) -> None:
    """Copy the valid files, with short names for those whose names vary."""
    shutil.copytree(model, folder)


def resolve(folder: Path, target: str) -> Path:
    """The file that a target names; two of them have names that vary."""
    if target == "run/state.safetensors":
        return next((folder / "run").glob("state-*.safetensors"))
    if target == "bench/part.npz":
        return sorted((folder / "bench" / "parts").glob("*/*/*.npz"))[0]
    return folder / target


def fuzz(
    inputs: int,
    seed: int,
    out: Path,
    *,
    commands: Collection[str] = (),
    odd: float = 0.0,
    valid: Path | None = None,
    say: Callable[[str], None] = print,
) -> Counter[tuple[str, str, str]]:
    """Try inputs, and count them by kind of file, command and verdict.

    Args:
        inputs: how many.
        seed: of the changes.
        out: inputs that fail are kept here.
        commands: only inputs of these commands; all if empty.
        odd: share of inputs whose files are valid, and whose options are odd.
        valid: folder of valid files; made here if none.
        say: called with each line for the console.
    """
    rng = random.Random(seed)
    every = [case for case in cases() if not commands or case.command[0] in commands]
    warm_up()
    model = valid or out / "valid"
    if valid is None:
        make_files(model)
    others = [path.read_bytes() for path in model.rglob("*") if path.is_file()]
    found: Counter[tuple[str, str, str]] = Counter()
    begin = time.monotonic()
    for count in range(inputs):
        case = every[count % len(every)]
        folder = out / f"input-{count}"
        prepared(model, folder)
        path = resolve(folder, case.target)
        if rng.random() < odd:
            case = odd_command(rng, case, sorted(contents(folder)))
            what = "odd options"
        elif rng.random() < 0.1:
            what = replaced(rng, path) if path.exists() else "nothing"
        else:
            data, what = mutated(rng, path.read_bytes() if path.exists() else b"1\n", others)
            path.write_bytes(data)
        outcome = attempt(case, folder)
        found[case.kind, case.command[0], outcome.verdict if outcome.fine else "FAILED"] += 1
        if outcome.fine:
            shutil.rmtree(folder)
            (out / f"{folder.name}.said").unlink()
        else:
            end = outcome.said[-400:].replace("\n", " | ")
            say(f"{outcome.verdict}: {' '.join(case.command)} on {case.target} ({what}): {end}")
        if count % 500 == 499:
            say(f"{count + 1} inputs, {time.monotonic() - begin:.0f} s")
    return found


def write_table(found: Counter[tuple[str, str, str]], file: TextIO) -> None:
    """The counts as CSV, a row for each kind of file and command."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("files", "command", "inputs", "read", "sentence", "failed"))
    for kind, command in sorted({(kind, command) for kind, command, _ in found}):
        counts = [found[kind, command, verdict] for verdict in ("read", "sentence", "FAILED")]
        writer.writerow((kind, command, sum(counts), *counts))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, help="folder for inputs that fail (default: a new one in /tmp)")
    parser.add_argument("--table", type=Path, help="CSV file for the counts")
    parser.add_argument("--odd", type=float, default=0.25, help="share of odd options in place of odd files")
    parser.add_argument("--commands", nargs="+", default=(), help="only inputs of these commands")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="rismusic-fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}; inputs that fail are kept in {out}", flush=True)
    found = fuzz(
        options.inputs,
        options.seed,
        out,
        commands=options.commands,
        odd=options.odd,
        say=lambda line: print(line, flush=True),
    )
    write_table(found, sys.stdout)
    if options.table is not None:
        with options.table.open("w", encoding="utf-8", newline="") as file:
            write_table(found, file)
    return int(any(verdict == "FAILED" for _, _, verdict in found))


if __name__ == "__main__":
    sys.exit(main())
