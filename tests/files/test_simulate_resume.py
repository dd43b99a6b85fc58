"""``simulate -o FILE.h5`` stores block by block, and ``--resume`` continues a file that was cut."""

from __future__ import annotations

import json
import os
import resource
import signal

import h5py
import numpy as np
import pytest

from rismusic import read
from rismusic.cli import main
from rismusic.io.hdf5 import PartialHdf5Sink
from rismusic.io.writer import RecordingWriter
from rismusic.partial import PartialFile

SMALL = ("--panel.rows", "3", "--panel.columns", "4", "--channel.antennas", "4", "--codebook.snapshots", "6")
OPTIONS = ("--scenes", "17", "--seed", "3", *SMALL)
# Files of two simulations, of which the first was cut or is complete.
WHOLE = ["whole.h5", "whole.h5.run.json", "whole.h5.toml"]
CUT = ["a.h5.part", "a.h5.run.json", *WHOLE]
COMPLETE = ["a.h5", "a.h5.run.json", "a.h5.toml", *WHOLE]


@pytest.fixture(autouse=True)
def blocks_of_five(monkeypatch):
    monkeypatch.setattr("rismusic.cli.recordings._BLOCK_NUMBERS", 5 * 12 * 6)


def run(*args):
    return main(["simulate", *(str(arg) for arg in args)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupt():
    raise KeyboardInterrupt


def cut(monkeypatch, output, *options, scenes=10, error=interrupt):
    """Simulate until so many scenes are complete."""
    append = RecordingWriter.append

    def until(self, block):
        append(self, block)
        if self._written >= scenes:
            error()

    with monkeypatch.context() as patched:
        patched.setattr(RecordingWriter, "append", until)
        return run("-o", output, *OPTIONS, *options)


@pytest.mark.parametrize(
    "options", [(), ("--one-link",), ("--wideband.subcarriers", "2"), ("--workers", "2")]
)
def test_a_cut_recording_is_continued(options, tmp_path, monkeypatch, capsys, quick_workers):
    whole, output = tmp_path / "whole.h5", tmp_path / "a.h5"
    assert run("-o", whole, *OPTIONS, *options) == 0
    assert cut(monkeypatch, output, *options) == 130
    assert "10 of 17 scenes are in" in capsys.readouterr().err
    assert names(tmp_path) == CUT
    for more, sentence in (
        ([], "an earlier run left 10 scenes in a.h5.part; continue it with --resume"),
        (["--resume", "--snr-db", "3"], "was written with other settings"),
    ):
        assert run("-o", output, *OPTIONS, *options, *more) == 2
        assert sentence in capsys.readouterr().err
    assert names(tmp_path) == CUT
    simulated = []
    monkeypatch.setattr(RecordingWriter, "append", counted(simulated))
    assert run("-o", output, *OPTIONS, *options, "--resume") == 0
    assert run("-o", output, *OPTIONS, *options, "--resume") == 0
    assert "a.h5 is complete" in capsys.readouterr().err
    assert simulated == [5, 2]
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == COMPLETE


def counted(sizes):
    append = RecordingWriter.append

    def appended(self, block):
        append(self, block)
        sizes.append(len(block))

    return appended


def test_the_link_of_another_recording_is_part_of_the_settings(tmp_path, monkeypatch, capsys):
    for seed in (1, 2):
        run("-o", tmp_path / f"{seed}.h5", "--scenes", 1, "--one-link", "--seed", seed, *SMALL)
    assert cut(monkeypatch, tmp_path / "a.h5", "--link-from", str(tmp_path / "1.h5")) == 130
    resumed = ("-o", tmp_path / "a.h5", *OPTIONS, "--resume", "--link-from")
    assert run(*resumed, tmp_path / "2.h5") == 2
    assert "was written with another recording" in capsys.readouterr().err
    assert run(*resumed, tmp_path / "1.h5") == 0


@pytest.mark.parametrize("moment", ["between blocks", "within a block", "before the progress"])
def test_a_killed_process_leaves_what_is_complete(moment, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.h5", tmp_path / "a.h5"
    assert run("-o", whole, *OPTIONS) == 0
    place = {"within a block": (PartialHdf5Sink, "flush"), "before the progress": (PartialFile, "keep")}
    child = os.fork()
    if child == 0:
        try:
            if moment != "between blocks":
                kind, name = place[moment]
                call, calls = getattr(kind, name), [None] * (3 if name == "flush" else 4)

                def killed(*args, **settings):
                    calls.pop()
                    if not calls:
                        os.kill(os.getpid(), signal.SIGKILL)
                    call(*args, **settings)

                monkeypatch.setattr(kind, name, killed)
            cut(monkeypatch, output, error=lambda: os.kill(os.getpid(), signal.SIGKILL), scenes=(
                10 if moment == "between blocks" else 17
            ))  # fmt: skip
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert json.loads((tmp_path / "a.h5.run.json").read_text())["scenes"] == 10
    assert run("-o", output, "--resume", *OPTIONS) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == COMPLETE


def test_nothing_but_values_is_written_after_a_dataset_was_created(tmp_path):
    """Else a file whose process is killed would not be valid."""
    path, values = tmp_path / "a.h5", np.ones((1500, 16, 16), np.complex64)
    sink = PartialHdf5Sink(path, resumed=False)
    sink.create("snapshots", (2000, *values.shape[1:]), values.dtype)
    sink.flush()
    before = np.fromfile(path, np.uint8)
    sink.write("snapshots", 0, values)
    sink.flush()
    after = np.fromfile(path, np.uint8)
    sink.finish()
    with h5py.File(path) as file:
        chunks = file["snapshots"].id
        for place in map(chunks.get_chunk_info, range(chunks.get_num_chunks())):
            for content in (before, after):
                content[place.byte_offset : place.byte_offset + place.size] = 0
    assert np.array_equal(before, after)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_block_is_stored_waits(number, tmp_path, monkeypatch):
    flush, output = PartialHdf5Sink.flush, tmp_path / "a.h5"

    def interrupted(self):
        os.kill(os.getpid(), number)
        flush(self)

    with monkeypatch.context() as patched:
        patched.setattr(PartialHdf5Sink, "flush", interrupted)
        assert run("-o", output, *OPTIONS) == 130
    assert json.loads((tmp_path / "a.h5.run.json").read_text())["scenes"] == 5
    assert run("-o", output, "--resume", *OPTIONS) == 0
    assert len(read(output)) == 17


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(b"text"),
        lambda path: change(
            path, lambda file: file["snapshots"].write_direct(file["snapshots"][...][::-1].copy())
        ),
        lambda path: change(path, lambda file: file.__delitem__("truth/range")),
        lambda path: change(path, lambda file: file.__setitem__("pilots", h5py.ExternalLink("b.h5", "x"))),
    ],
)
def test_a_part_that_has_changed_is_refused(damage, tmp_path, monkeypatch, capsys):
    assert cut(monkeypatch, tmp_path / "a.h5") == 130
    damage(tmp_path / "a.h5.part")
    content = (tmp_path / "a.h5.part").read_bytes()
    assert run("-o", tmp_path / "a.h5", "--resume", *OPTIONS) == 2
    assert "a.h5.part: has changed since it was written; start again with" in capsys.readouterr().err
    assert (tmp_path / "a.h5.part").read_bytes() == content
    assert run("-o", tmp_path / "a.h5", "--overwrite", *OPTIONS) == 0


def change(path, how):
    with h5py.File(path, "r+") as file:
        how(file)


def test_a_part_of_locate_is_not_continued(tmp_path, monkeypatch, capsys):
    assert cut(monkeypatch, tmp_path / "a.h5") == 130
    state = tmp_path / "a.h5.run.json"
    state.write_text(state.read_text().replace("rismusic-simulate/1", "rismusic-locate/1"))
    assert run("-o", tmp_path / "a.h5", "--resume", *OPTIONS) == 2
    assert "was written with another command" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_complete(tmp_path, capsys):
    output, limits = tmp_path / "a.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    assert run("-o", output, *OPTIONS) == 0
    size = output.stat().st_size
    output.unlink()
    (tmp_path / "a.h5.toml").unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, limits[1]))
    try:
        assert run("-o", output, *OPTIONS) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert run("-o", output, *OPTIONS, "--resume") == 0
    assert len(read(output)) == 17


def test_other_formats_are_not_resumed(tmp_path, capsys):
    for name in ("a.npz", "a.mat"):
        assert run("-o", tmp_path / name, *OPTIONS, "--resume") == 2
        assert "--resume: continues .h5 files only" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_a_recording_that_was_cut_after_its_last_block_gets_its_name(tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.h5", tmp_path / "a.h5"
    assert run("-o", whole, *OPTIONS) == 0
    assert cut(monkeypatch, output, scenes=17) == 130
    assert run("-o", output, *OPTIONS, "--resume") == 0
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == COMPLETE


def test_a_complete_recording_of_other_settings_is_not_resumed(tmp_path, capsys):
    output = tmp_path / "a.h5"
    assert run("-o", output, *OPTIONS) == 0
    content = output.read_bytes()
    for options, sentence in (
        (
            ("--scenes", "7", "--seed", "3", *SMALL),
            "a.h5: was written with other settings (scenes: 17, now 7)",
        ),
        (("--scenes", "17", "--seed", "4", *SMALL), "a.h5: was written with other settings (seed: 3, now 4)"),
    ):
        assert run("-o", output, *options, "--resume") == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "a.h5.run.json").rename(tmp_path / "kept")
    assert run("-o", output, *OPTIONS, "--resume") == 2
    assert "a.h5: exists and is not known to be of" in capsys.readouterr().err
    assert output.read_bytes() == content
    # A process that was killed before it wrote the settings.
    (tmp_path / "kept").rename(tmp_path / "a.h5.run.json")
    (tmp_path / "a.h5.toml").unlink()
    for _ in range(2):
        assert run("-o", output, *OPTIONS, "--resume") == 0
        assert names(tmp_path) == ["a.h5", "a.h5.run.json", "a.h5.toml"]
