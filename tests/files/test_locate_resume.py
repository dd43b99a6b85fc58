"""``locate -o`` writes block by block, and ``--resume`` continues an output that was cut."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from rismusic import files, hybrid, partial, simulate
from rismusic.cli import main
from rismusic.cli.locate import PartialOutput
from rismusic.estimation.table import COLUMNS
from rismusic.hybrid import locate
from rismusic.io import write
from rismusic.spec import LocateSpec, SystemSpec
from rismusic.version import __version__

SPEC = LocateSpec(method="music", polish=False)
OPTIONS = ["--method", "music", "--no-polish", "--workers", "1"]


def scenes_of_seed(seed):
    system = {"panel": {"rows": 3, "columns": 4}, "channel": {"antennas": 4}, "codebook": {"snapshots": 6}}
    return simulate(SystemSpec(**system, sources=(1, 2), snr_db=10.0), scenes=17, seed=seed)


@pytest.fixture(scope="module")
def scenes():
    return scenes_of_seed(1)


@pytest.fixture(scope="module")
def located(scenes):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rismusic.hybrid.BLOCK_SCENES", 5)
        return locate(scenes, spec=SPEC)


@pytest.fixture
def recording(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("rismusic.hybrid.BLOCK_SCENES", 5)
    path = tmp_path / "recording.h5"
    write(path, scenes)
    return path


@pytest.fixture
def looked_up(scenes, located, monkeypatch):
    """Estimates of blocks are parts of the known estimate: these tests are about files."""

    def look_up(block, **_):
        (start,) = (scenes.snapshots == block.snapshots[:1]).flatten(1).all(-1).nonzero()[:, 0].tolist()
        return located[start : start + len(block)]

    monkeypatch.setattr("rismusic.hybrid.locate", look_up)


def run(*args):
    return main([str(arg) for arg in args])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupt():
    raise KeyboardInterrupt


def cut(monkeypatch, recording, output, *, scenes=10, error=interrupt):
    """Locate until so many scenes are complete."""
    append = PartialOutput.append

    def until(self, estimate):
        append(self, estimate)
        if self.scenes >= scenes:
            error()

    with monkeypatch.context() as patched:
        patched.setattr(PartialOutput, "append", until)
        return run("locate", recording, "-o", output, *OPTIONS)


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_stream_equals_the_whole(ending, recording, located, tmp_path, request):
    if ending == "json":
        request.getfixturevalue("looked_up")
    output, whole = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    assert run("locate", recording, "-o", output, *OPTIONS) == 0
    if ending == "csv":
        located.to_csv(whole)
    else:
        located.to_json(whole, recording=str(recording))
    assert output.read_text() == whole.read_text()
    assert names(tmp_path) == [output.name, f"{output.name}.run.json", whole.name, "recording.h5"]


def test_threads_and_processes_write_the_same_file(recording, tmp_path, monkeypatch, quick_workers):
    one, two, threads = (tmp_path / f"{name}.json" for name in ("one", "two", "threads"))
    assert run("locate", recording, "-o", one, *OPTIONS) == 0
    assert run("locate", recording, "-o", two, *OPTIONS[:-1], "2") == 0
    assert one.read_bytes() == two.read_bytes()
    # By default, the cores share the blocks in threads of this process.
    together, locate_block, used = threading.Barrier(2, timeout=60), hybrid.locate_block, set()

    def located(*block):
        together.wait()
        used.add(threading.get_ident())
        return locate_block(*block)

    monkeypatch.setattr("rismusic.cli.locate.usable_cores", lambda: 2)
    monkeypatch.setattr("rismusic.hybrid.locate_block", located)
    assert run("locate", recording, "-o", threads, *OPTIONS[:-2]) == 0
    assert len(used) == 2
    assert one.read_bytes() == threads.read_bytes()


INTERRUPTED = """
import itertools, sys, time
from rismusic import hybrid
from rismusic.cli import locate
from rismusic.__main__ import main

def slow(*block, blocks=itertools.count()):
    if next(blocks):
        print("begun", flush=True)
        time.sleep(600)
    return locate_block(*block)

locate_block, hybrid.locate_block, hybrid.BLOCK_SCENES = hybrid.locate_block, slow, 4
locate.usable_cores = lambda: 2
sys.argv[0] = "rismusic"
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_does_not_wait_for_threads(number, recording, tmp_path):
    (script := tmp_path / "script.py").write_text(INTERRUPTED)
    output = tmp_path / "a.csv"
    process = subprocess.Popen(
        [sys.executable, script, "locate", recording, "-o", output, *OPTIONS[:-2]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, children inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout.readline() == "begun\n"
        until = time.monotonic() + 300  # the first process on a machine compiles
        state = tmp_path / "a.csv.run.json"
        while time.monotonic() < until and not (state.exists() and json.loads(state.read_text())["scenes"]):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "4 of 17 scenes are in" in said
    assert said.endswith("error: interrupted\n")
    assert names(tmp_path) == ["a.csv.part", "a.csv.run.json", "recording.h5", "script.py"]


@pytest.mark.usefixtures("looked_up")
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_cut_output_is_continued(ending, recording, tmp_path, monkeypatch, capsys):
    output, whole = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    assert run("locate", recording, "-o", whole, *OPTIONS) == 0
    assert cut(monkeypatch, recording, output) == 130
    assert "10 of 17 scenes are in" in capsys.readouterr().err
    part = tmp_path / f"a.{ending}.part"
    assert whole.read_bytes().startswith(part.read_bytes())
    with part.open("ab") as file:
        file.write(b"half a li")
    for options, sentence in (
        ([], "an earlier run left 10 scenes in a."),
        (
            ["--resume", "--range-max-m", "11"],
            "was written with other settings (range_max_m: 10.0, now 11.0)",
        ),
    ):
        assert run("locate", recording, "-o", output, *OPTIONS, *options) == 2
        assert sentence in capsys.readouterr().err
    written = json.loads((state := tmp_path / f"a.{ending}.run.json").read_text())
    for name, value, what in (
        ("columns", ["scene"], "other columns"),
        ("version", "0.1.0", "another version"),
    ):
        state.write_text(json.dumps({**written, name: value}))
        assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 2
        assert f"part: was written with {what}; " in capsys.readouterr().err
    state.write_text(json.dumps(written))
    for _ in range(2):  # of a complete output nothing is left to do
        assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 0
        assert output.read_bytes() == whole.read_bytes()
        assert names(tmp_path) == [
            f"a.{ending}",
            f"a.{ending}.run.json",
            f"b.{ending}",
            f"b.{ending}.run.json",
            "recording.h5",
        ]
    assert f"a.{ending} is complete" in capsys.readouterr().err


@pytest.mark.usefixtures("looked_up")
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_complete_output_of_something_else_is_not_resumed(ending, recording, tmp_path, capsys):
    """What is beside it tells what it is of."""
    output, other = tmp_path / f"a.{ending}", tmp_path / "other.h5"
    write(other, scenes_of_seed(2))
    assert run("locate", recording, "-o", output, *OPTIONS) == 0
    content, record = output.read_bytes(), output.with_name(f"{output.name}.run.json")
    unknown = (
        f"a.{ending}: exists and is not known to be of this recording and these settings; replace it with"
    )

    def refused(sentence, *options, file=recording):
        before = output.read_bytes()
        assert run("locate", file, "-o", output, "--resume", *OPTIONS, *options) == 2
        assert sentence in capsys.readouterr().err
        assert output.read_bytes() == before

    refused(f"a.{ending}: was written with another recording", file=other)
    refused(f"a.{ending}: was written with other settings (range_max_m", "--range-max-m", "11")
    output.write_bytes(content[:-1])
    refused(unknown)
    output.write_bytes(content)
    text = record.read_text()
    record.write_text(text.replace(f'"version": "{__version__}"', '"version": "0.1.0"'))
    refused(f"a.{ending}: was written with another version")
    record.unlink()
    refused(unknown)


@pytest.mark.usefixtures("looked_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("place", ["rows", "progress"])
def test_an_interrupt_while_a_block_is_stored_waits(
    place, block, number, recording, tmp_path, monkeypatch, capsys
):
    """Between the rows and their progress, or while the progress is written: the block is complete."""
    whole, output = tmp_path / "whole.csv", tmp_path / "a.csv"
    assert run("locate", recording, "-o", whole, *OPTIONS) == 0
    # Before the first block the head of the table is stored; the progress of no scene even before that.
    call = os.fsync if place == "rows" else files.publish
    left = [None] * (block + (1 if place == "rows" else 2))

    def interrupted(*args, **settings):
        call(*args, **settings)
        left.pop()
        if not left:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        if place == "rows":
            patched.setattr("rismusic.cli.locate.os.fsync", interrupted)
            patched.setattr(files, "sync", lambda path: None)
        else:
            patched.setattr(files, "publish", interrupted)
        assert run("locate", recording, "-o", output, *OPTIONS) == 130
    assert f"{5 * block} of 17 scenes are in" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.csv.run.json").read_text())["scenes"] == 5 * block
    assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("looked_up")
@pytest.mark.parametrize("cut_at", ["the part is made", "the head is written", "the part is removed"])
def test_a_kill_at_the_beginning_or_the_end_needs_no_help(cut_at, recording, tmp_path, monkeypatch):
    output, patched = tmp_path / "a.csv", partial.Path

    def until(call, is_last, *, after=False):
        def called(*args, **settings):
            if after:
                call(*args, **settings)
            if is_last(*args, **settings):
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **settings)

        return called

    child = os.fork()
    if child == 0:
        try:
            if cut_at == "the part is made":
                made = until(patched.open, lambda *args, **_: "xb" in args, after=True)
                monkeypatch.setattr(patched, "open", made)
            elif cut_at == "the head is written":
                monkeypatch.setattr(PartialOutput, "_write", until(None, lambda *_, **__: True))
            else:
                name = "a.csv.part"
                monkeypatch.setattr(
                    patched,
                    "unlink",
                    until(patched.unlink, lambda path, **_: output.exists() and path.name == name),
                )
            run("locate", recording, "-o", output, *OPTIONS)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finished = output.exists()
    assert finished == cut_at.endswith("removed")
    content = output.read_bytes() if finished else b""
    for options in (["--resume"], ["--overwrite", "--resume"]) if finished else ([],):
        assert run("locate", recording, "-o", output, *OPTIONS, *options) == 0
        assert output.read_bytes().startswith(content)
        assert names(tmp_path) == ["a.csv", "a.csv.run.json", "recording.h5"]


@pytest.mark.usefixtures("looked_up")
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_an_output_that_was_cut_after_its_last_block_gets_its_name(ending, recording, tmp_path, monkeypatch):
    output, whole = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    assert run("locate", recording, "-o", whole, *OPTIONS) == 0
    assert cut(monkeypatch, recording, output, scenes=17) == 130
    assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("looked_up")
def test_overwrite_starts_again(recording, tmp_path, monkeypatch):
    output = tmp_path / "a.csv"
    output.write_text("old")
    output.chmod(0o600)
    assert run("locate", recording, "-o", output, *OPTIONS) == 2
    output.rename(tmp_path / "kept")
    assert cut(monkeypatch, recording, output) == 130
    (tmp_path / "kept").rename(output)
    assert run("locate", recording, "-o", output, "--overwrite", *OPTIONS) == 0
    assert output.read_text().count("\n") > 17
    assert output.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a.csv", "a.csv.run.json", "recording.h5"]


@pytest.mark.usefixtures("looked_up")
def test_parts_that_do_not_fit(recording, tmp_path, monkeypatch, capsys):
    output = tmp_path / "a.csv"
    assert cut(monkeypatch, recording, output) == 130

    def refused(sentence):
        assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 2
        assert sentence in capsys.readouterr().err

    part, state = tmp_path / "a.csv.part", tmp_path / "a.csv.run.json"
    content, record = part.read_bytes(), state.read_text()
    part.write_bytes(content[:100])
    refused("has changed since it was written")
    assert not output.with_name(f"{output.name}.part.lock").exists()
    changed = content[:-9] + b"1" + content[-8:] + b"the rest"
    part.write_bytes(changed)
    refused("has changed since it was written")
    assert part.read_bytes() == changed
    part.unlink()
    part.symlink_to(tmp_path / "precious")
    refused("is a symbolic link")
    part.unlink()
    part.symlink_to(recording)
    refused("is an input of this command")
    part.unlink()
    part.write_bytes(content)
    state.write_text("{}")
    refused("is not the progress of rismusic locate")
    assert run("locate", recording, "-o", output, "--overwrite", *OPTIONS) == 2
    assert "a.csv.run.json: is not the progress" in (said := capsys.readouterr().err)
    assert said.endswith("); remove it\n")
    state.write_text(json.dumps({**json.loads(record), "scenes": -1}))
    refused("is not the progress of rismusic locate")
    state.unlink()
    refused("was not written by rismusic locate")
    assert part.read_bytes() == content
    state.write_text(record)
    write(recording, scenes_of_seed(2), overwrite=True)
    refused("was written with another recording")
    for options in (["--plot", "a.png"], ["--report", "a.html"]):
        assert run("locate", recording, "-o", output, "--resume", *options) == 2
        assert "--resume: needs --output" in capsys.readouterr().err


@pytest.mark.usefixtures("looked_up")
def test_one_process_at_a_time(recording, tmp_path, capsys):
    output = tmp_path / "a.csv"
    settings = SPEC.model_dump(mode="json")
    with PartialOutput(output, recording, settings, name="", resume=False, overwrite=False, columns=COLUMNS):
        assert run("locate", recording, "-o", output, *OPTIONS) == 2
        assert f"another process is writing this file (process {os.getpid()})" in capsys.readouterr().err
    assert run("locate", recording, "-o", output, *OPTIONS) == 0
    assert names(tmp_path) == ["a.csv", "a.csv.run.json", "recording.h5"]


@pytest.mark.usefixtures("looked_up")
def test_a_killed_process_leaves_what_is_complete(recording, tmp_path, monkeypatch):
    """By SIGKILL after the second block; the rest is located by the next run."""
    whole, output = tmp_path / "whole.csv", tmp_path / "a.csv"
    assert run("locate", recording, "-o", whole, *OPTIONS) == 0
    child = os.fork()
    if child == 0:
        try:
            cut(monkeypatch, recording, output, error=lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert json.loads((tmp_path / "a.csv.run.json").read_text())["scenes"] == 10
    assert not output.exists()
    assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["a.csv", "a.csv.run.json", "recording.h5", "whole.csv", "whole.csv.run.json"]


@pytest.mark.usefixtures("looked_up")
def test_a_full_disk_keeps_what_is_complete(recording, tmp_path, capsys):
    output = tmp_path / "a.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        assert run("locate", recording, "-o", output, *OPTIONS) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.splitlines()
    assert "cannot write" in said[-1]
    assert "of 17 scenes are in" in said[-2]
    assert run("locate", recording, "-o", output, "--resume", *OPTIONS) == 0
    assert names(tmp_path) == ["a.csv", "a.csv.run.json", "recording.h5"]


def test_several_recordings_into_a_folder(recording, located, looked_up, tmp_path, capsys):
    other, folder = tmp_path / "other.h5", tmp_path / "tables"
    other.write_bytes(recording.read_bytes())
    options = [*OPTIONS, "-o", folder]
    assert run("locate", recording, other, *options) == 0
    tables = [folder / "recording.csv", folder / "other.csv"]
    records = [folder / f"{table.name}.run.json" for table in tables]
    assert sorted(folder.iterdir()) == sorted(tables + records)
    assert tables[0].read_text() == tables[1].read_text()
    assert len(tables[0].read_text().splitlines()) == 1 + int(located.n_sources.sum())
    # What is there is neither replaced nor located again.
    assert run("locate", recording, other, *options) == 2
    tables[1].unlink()
    capsys.readouterr()
    assert run("locate", recording, other, *options, "--resume") == 0
    assert "recording.csv is complete" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == sorted(tables + records)
    assert run("locate", other, recording, *options, "--resume", "--range-max-m", "11") == 2
    assert (
        "other.csv: was written with other settings (range_max_m: 10.0, now 11.0)" in capsys.readouterr().err
    )


def test_several_recordings_need_a_folder_and_different_names(recording, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    same, other = tmp_path / "sub" / recording.name, tmp_path / "other.h5"
    for copy in (same, other):
        copy.write_bytes(recording.read_bytes())
    folder = tmp_path / "tables"
    (tmp_path / "a.txt").write_text("precious")
    for args, words in (
        ((recording, other), "need a folder"),
        ((recording, other, "-o", tmp_path / "a.txt"), "is the name of a file"),
        ((recording, other, "-o", folder, "--plot", tmp_path / "a.png"), "and no --plot"),
        ((recording, same, "-o", folder), "would both be written"),
        ((recording, tmp_path / "none.h5", "-o", folder), "no such file"),
    ):
        assert run("locate", *args, *OPTIONS) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
    assert other.stat().st_size == recording.stat().st_size
