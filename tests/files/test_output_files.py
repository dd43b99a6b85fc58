"""Output files appear complete or not at all, and nothing that is not ours is replaced or followed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from pydantic_core import SchemaError

from rismusic.benchmark.spec import BenchSpec, all_units
from rismusic.benchmark.summary import Store
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.files import OutputFile, check_output, replace_file, sweep, sweep_tree, write_text
from rismusic.nn.checkpoint import State, save_checkpoint
from rismusic.nn.run_folder import LOCK, LOG, RunFolder
from rismusic.nn.spec import TrainSpec


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(path, sentence, **options):
    with pytest.raises(InputError, match=sentence):
        write_text(path, "new", overwrite=True, **options)


def test_links_pipes_and_read_only_files_are_not_replaced(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "read-only").write_text("precious")
    (tmp_path / "read-only").chmod(0o444)
    before = names(tmp_path)
    refused(tmp_path / "link", "is a symbolic link")
    refused(tmp_path / "dangling", "is a symbolic link")
    refused(tmp_path / "pipe", "is a pipe")
    refused(tmp_path / "read-only", "is read-only")
    refused(Path("/dev/null"), "is a device")
    assert names(tmp_path) == before
    assert (tmp_path / "target").read_text() == (tmp_path / "read-only").read_text() == "precious"


def test_the_mode_of_a_file_is_kept(tmp_path):
    path = tmp_path / "private.csv"
    path.write_text("old")
    path.chmod(0o600)
    with replace_file(path, overwrite=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new.csv", "new", overwrite=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640


def test_temporary_names_are_random_and_exclusive(tmp_path, monkeypatch):
    first, second = (OutputFile(tmp_path / "a.csv", overwrite=False) for _ in range(2))
    assert first.temporary != second.temporary
    first.discard()
    second.discard()
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / "target").write_text("precious")
    first.temporary.with_name(
        first.temporary.name.replace(first.temporary.name.split("-")[-1], "known.part.csv")
    ).symlink_to("target")
    refused(tmp_path / "a.csv", "File exists")
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("length", [200, 255])
def test_long_names(length, tmp_path):
    path = tmp_path / ("x" * (length - 4) + ".csv")
    write_text(path, "new", overwrite=False)
    write_text(path, "newer", overwrite=True)
    assert path.read_text() == "newer"
    assert names(tmp_path) == [path.name]
    with pytest.raises(InputError, match="longer than 255 bytes"):
        check_output(tmp_path / ("ä" * 127 + ".csv"), overwrite=False)


def test_a_file_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.csv"
    output = OutputFile(path, overwrite=False)
    output.temporary.write_text("ours")
    path.write_text("theirs")
    with pytest.raises(InputError, match="exists already"):
        output.commit()
    output.discard()
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["a.csv"]


def test_the_last_moment(tmp_path, monkeypatch):
    """The file appears after the last look at it."""
    path = tmp_path / "a.csv"
    output = OutputFile(path, overwrite=False)
    path.write_text("theirs")
    monkeypatch.setattr("rismusic.files.check_output", lambda *_, **__: None)
    with pytest.raises(InputError, match="another process has written the file meanwhile"):
        output.commit()
    output.discard()
    assert path.read_text() == "theirs"


def left_by_killed_process(path):
    """An output file whose process has ended without removing it."""
    child = os.fork()
    if child == 0:
        try:
            OutputFile(path, overwrite=False)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (name for name in names(path.parent) if name.startswith(f".rismusic-{_host()}-{child}-"))
    return path.parent / left


def _host():
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def test_files_of_killed_processes_are_swept(tmp_path):
    path = tmp_path / "a.csv"
    left_by_killed_process(path)
    own = OutputFile(path, overwrite=False)  # which sweeps
    foreign = tmp_path / ".rismusic-00000000-1-ab.part.csv"
    foreign.write_text("of another machine")
    (tmp_path / ".rismusic-notes").write_text("precious")
    sweep(tmp_path)
    assert names(tmp_path) == sorted([own.temporary.name, foreign.name, ".rismusic-notes"])
    old = time.time() - 8 * 24 * 3600
    os.utime(foreign, (old, old))
    sweep(tmp_path)
    assert not foreign.exists()
    own.discard()
    (tmp_path / "runs" / "0000").mkdir(parents=True)
    left_by_killed_process(tmp_path / "runs" / "0000" / "state.json")
    sweep_tree(tmp_path)
    assert list(tmp_path.rglob("*.part*")) == []


def test_a_folder_with_a_file_of_a_killed_process_counts_as_empty(tmp_path):
    """A training or benchmark that was killed while its first file was written can be started again."""
    run, bench = RunFolder(tmp_path / "run"), Store(tmp_path / "bench")
    for folder, begin in (
        (run.folder, lambda: run.create(TrainSpec())),
        (bench.folder, lambda: bench.open(BenchSpec(), resume=False)),
    ):
        folder.mkdir()
        left_by_killed_process(folder / "settings.toml")
        begin()
        assert names(folder) == ["settings.toml"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".rismusic-notes").touch()
    with pytest.raises(InputError, match="must be a new or empty folder"):
        RunFolder(tmp_path / "other").create(TrainSpec())


@pytest.mark.skipif(os.getuid() != 0, reason="becomes an ordinary user")
def test_a_read_only_folder_is_named_before_work_starts(tmp_path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o055)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            check_output(tmp_path / "a.csv", overwrite=True)
        except InputError as error:
            os.write(theirs, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    assert b"is read-only for this user" in os.read(ours, 1000)
    os.close(ours)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's folder of processes")
def test_a_folder_that_takes_no_files_is_named_before_work_starts():
    """Root may write to it by its permissions."""
    with pytest.raises(InputError, match=r"^/proc/a\.csv: cannot be written"):
        check_output(Path("/proc/a.csv"), overwrite=True)


def test_the_memory_budget_is_checked_before_a_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RISMUSIC_MEMORY_BUDGET_MIB", "0")
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: RISMUSIC_MEMORY_BUDGET_MIB: ")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOURCE_DATE_EPOCH", "abc"),
        ("SOURCE_DATE_EPOCH", "9" * 17),
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
    ],
)
def test_variables_that_libraries_read_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys, name, value):
    """NumPy, matplotlib and torch end with an error of their own."""
    monkeypatch.setenv(name, value)
    assert main(["train", "--preset", "tiny", "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_is_ctrl_c(number, tmp_path):
    """A simulation that is terminated leaves nothing behind and ends as an interrupted one."""
    out, said = tmp_path / "out", tmp_path / "said"
    out.mkdir()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w")
            code = main(["simulate", "-o", str(out / "a.npz"), "--scenes", "1000000"])
            sys.stderr.flush()
        finally:
            os._exit(code)
    until = time.monotonic() + 60
    while not names(out) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert said.read_text() == "error: interrupted\n"
    assert names(out) == []


def test_an_interrupt_while_a_temporary_file_is_made(tmp_path, monkeypatch):
    """Also what a database leaves beside its file is removed, but no file of another process."""
    (other := tmp_path / ".rismusic-0-0-0.part.csv").write_text("of another machine")
    open_ = os.open

    def interrupted(path, *args):
        descriptor = open_(path, *args)
        if "rismusic-" in str(path):
            os.close(open_(f"{path}-wal", os.O_CREAT))
            raise KeyboardInterrupt
        return descriptor

    monkeypatch.setattr("rismusic.files.os.open", interrupted)
    assert main(["bound", "--scenes", "1", "--sources", "1", "-o", str(tmp_path / "a.csv")]) == 130
    assert names(tmp_path) == [other.name]


def dropped_in_a_callback() -> int:
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
    time.sleep(60)  # until the interruption
    return 0


def dropped_in_an_import() -> int:
    """As in the import of NumPy, where C code prints the exception and raises another one."""
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    raise ImportError("numpy._core.multiarray failed to import")


def replaced_by(error) -> int:
    """As while pydantic builds a model: its error has the interruption in its text alone."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    raise error


def replaced_by_an_error() -> int:
    return replaced_by(SchemaError("KeyboardInterrupt:"))


def replaced_by_bad_input() -> int:
    return replaced_by(InputError("scenes", "KeyboardInterrupt:"))


def replaced_by_a_missing_file() -> int:
    return replaced_by(FileNotFoundError(errno.ENOENT, "No such file", "a.csv"))


@pytest.mark.parametrize(
    "drop",
    [
        dropped_in_a_callback,
        dropped_in_an_import,
        replaced_by_an_error,
        replaced_by_bad_input,
        replaced_by_a_missing_file,
    ],
)
def test_an_interrupt_that_c_code_drops_is_repeated(drop, monkeypatch, capsys):
    """Also if the machine is so busy that a thread runs long before the one that starts it goes on."""

    class Busy(threading.Thread):
        def start(self):
            super().start()
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                pass

    class BusyTimer(threading.Timer, Busy):
        pass

    monkeypatch.setattr("threading.Thread", Busy)
    monkeypatch.setattr("threading.Timer", BusyTimer)
    monkeypatch.setattr("rismusic.cli.bench.Bound.run", lambda _: drop())
    hooks = sys.excepthook, sys.unraisablehook
    assert main(["bound"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert (sys.excepthook, sys.unraisablehook) == hooks
    # What was interrupted once does not count for the next command.
    assert main(["check", "missing.h5"]) == 2


IMPORTING = """
import contextlib, signal, sys
from pydantic_core import SchemaError

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "rismusic.cli.parser":
            KIND

sys.meta_path.insert(0, Finder())
"""


REPLACED = """
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            raise SchemaError("KeyboardInterrupt:")
"""


@pytest.mark.parametrize("kind", [REPLACED, "exec('signal.raise_signal(signal.SIGINT)')"])
def test_an_interrupt_while_modules_are_imported(kind, tmp_path):
    """Also in code that exec() runs, as dataclasses do: Python would end by the signal, not with a code."""
    (tmp_path / "sitecustomize.py").write_text(IMPORTING.replace("KIND", kind.strip()))
    done = subprocess.run(
        [sys.executable, "-m", "rismusic", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_a_part_of_a_benchmark_that_cannot_be_written(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "parts").touch()
    with pytest.raises(InputError, match=r"0000000\.npz: cannot write: Not a directory"):
        store.write(all_units(BenchSpec())[0], {})


@pytest.mark.parametrize("is_link", [False, True])
def test_files_written_in_place_are_ours(is_link, tmp_path):
    """Only the log and the lock of a training are written in place, and only old checkpoints are removed."""
    precious = tmp_path / "precious"
    precious.write_text("of someone else" * 100)
    run = RunFolder(tmp_path / "run")
    run.create(TrainSpec())
    for name in (LOG, LOCK):
        if is_link:
            (run.folder / name).symlink_to(precious)
        else:
            (run.folder / name).write_bytes(precious.read_bytes())
    sentence = "is a symbolic link" if is_link else "was left as it is"
    with pytest.raises(InputError, match="is a symbolic link" if is_link else "line 1 is not a log record"):
        run.check_log(0)
    with pytest.raises(InputError, match=sentence), run.lock():
        pass
    if is_link:
        with pytest.raises(InputError, match=sentence):
            run.log([{"kind": "step"}])
    kept = run.folder / "state-backup.safetensors"
    kept.touch()
    save_checkpoint(run, TrainSpec(), State(), {})
    assert kept.exists()
    assert all(path.read_text() == "of someone else" * 100 for path in (precious, run.folder / LOG))


MANY = " ".join(map(str, range(1, 101)))


@pytest.mark.parametrize(
    "command",
    [
        "simulate -o a.h5 --scenes 1 --panel.rows 1000000 --panel.columns 1000000",
        "simulate -o a.h5 --scenes 1 --codebook.snapshots 100000000000",
        "simulate -o a.h5 --scenes 1 --sources 1000000",
        "bound --scenes 1 --panel.rows 1000000 --panel.columns 1000000",
        "train --system.panel.rows 1000000 --system.panel.columns 1000000",
        "simulate -o a.h5 --scenes 100000000000000",
        "locate sample:ideal_10dB --method omp --oversampling 1000000",
        "bound --scenes 1000000000",
        "plan --target-m 1 --range-m 2 --scenes 1 --rows 1000000",
        f"plan --target-m 1 --range-m 2 --rows {MANY} --antennas {MANY} --snapshots {MANY}",
    ],
)
def test_what_no_memory_and_no_disk_can_hold(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert "limit is" in (said := capsys.readouterr().err) or "are free" in said or "points" in said
    assert said.count("\n") == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "args",
    [
        ("calibrate", "data.h5", "-o", "data.h5"),
        ("calibrate", "data.h5", "--known-positions", "other.h5", "-o", "./other.h5"),
        ("locate", "data.h5", "--config", "set.json", "-o", "set.json"),
        ("locate", "data.h5", "--calibration", "other.csv", "-o", "other.csv"),
        ("locate", "data.h5", "--fuse", "other.csv", "-o", "other.csv"),
        ("simulate", "--scenes", "1", "-o", "data.h5", "--link-from", "data.h5"),
        ("doctor", "run", "--json", "run/state.json"),
        ("simulate", "--scenes", "1", "-o", "new.h5", "--config", "new.h5.toml"),
        ("locate", "data.h5", "-o", "new.csv", "--config", "new.csv.run.json"),
        ("locate", "data.h5", "-o", "new.csv", "--config", "new.csv.part.lock"),
        ("locate", "data.h5", "other.h5", "-o", "run", "--calibration", "run/other.csv"),
        ("locate", "data.h5", "--method", "hybrid", "--weights", "other.csv", "-o", "other.csv"),
        ("bench", "--out", "run", "--resume", "--locate.weights", "run/results.csv"),
        ("bench", "--out", "new", "--config", "set.json", "--report", "page.html", "-o", "linked.json"),
    ],
)
def test_an_input_is_not_overwritten(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("data.h5", "other.h5", "other.csv", "run/state.json", "run/other.csv", "run/results.csv"):
        Path(name).write_text("precious")
    for name in ("set.json", "new.h5.toml", "new.csv.run.json", "new.csv.part.lock"):
        Path(name).write_text("")  # an empty TOML file
    os.link("set.json", "linked.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*args, "--overwrite"]) == 2
    assert "is an input of this command" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_is_not_written_twice(tmp_path, monkeypatch, capsys):
    """Of two outputs the second one would be refused after hours, or replace the first one."""
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--out", "new", "-o", "./new/../new/results.csv"]) == 2
    assert "is written anyway (--out); name another file" in " ".join(capsys.readouterr().err.split())
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["loop.csv", "a\0.csv", "a" * 5000 + ".csv", "loop.csv/a.csv", "dangling.csv", ".", "/"]
)
def test_names_that_are_none_are_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop.csv").symlink_to("loop.csv")
    Path("dangling.csv").symlink_to("nowhere")
    for command in (["bound"], ["simulate"], ["locate", "sample:ideal_10dB"], ["plan", "--target-m", "1"]):
        assert main([*command, *["--scenes", "1"][: 2 * (command[0] != "locate")], "-o", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert names(tmp_path) == ["dangling.csv", "loop.csv"]
