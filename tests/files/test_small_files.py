"""Small files are read by one function that does not wait, does not fill memory, and names the problem."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

import rismusic
from rismusic.benchmark.summary import load_settings
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.files import read_small, read_text
from rismusic.nn.checkpoint import load_checkpoint, load_network
from rismusic.nn.run_folder import LOG, SETTINGS, STATE, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.spec import SystemSpec, read_spec


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


STRANGE = [(pipe, "is a pipe, not a file"), (endless, "is a device, not a file"), (folder, "is a folder")]


@pytest.mark.parametrize(("make", "sentence"), STRANGE)
def test_what_is_no_file_is_refused_at_once(make, sentence, tmp_path):
    path = tmp_path / "config.toml"
    make(path)
    for read in (read_small, lambda path: read_spec(SystemSpec, path), load_network):
        with pytest.raises(InputError, match=sentence) as error:
            read(path)
        assert error.value.field == str(path)
    (tmp_path / "bench").mkdir()
    path.rename(tmp_path / "bench" / SETTINGS)
    for read in (load_settings, lambda folder: RunFolder(folder).settings()):
        with pytest.raises(InputError, match=sentence):
            read(tmp_path / "bench")


@pytest.mark.parametrize(("make", "sentence"), STRANGE)
@pytest.mark.parametrize("name", [STATE, LOG, "state-0000-0000001.safetensors"])
def test_files_of_a_run_that_are_no_files(make, sentence, name, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(TrainSpec())
    make(run.folder / name)
    read = {LOG: lambda: run.records("epoch")}.get(name, lambda: load_checkpoint(run))
    with pytest.raises(InputError, match="the file is missing" if name.endswith("s") else sentence):
        read()


def test_the_size_is_limited(tmp_path):
    path = tmp_path / "large.toml"
    path.write_text("#" * 1000)
    assert len(read_small(path, limit=1000)) == 1000
    with pytest.raises(InputError, match="at most 999 bytes are read here, it has 1,000"):
        read_small(path, limit=999)
    path.write_text("# comment\n" * 10_000)
    with pytest.raises(InputError, match="is too large"):
        read_spec(SystemSpec, path)
    with pytest.raises(InputError, match="is too large"):  # a file without a size
        read_small(Path("/proc/kallsyms"), limit=1000)


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="only root reads the kernel's messages")
def test_a_file_that_waits_for_data_is_refused(tmp_path):
    """It has the mode of a regular file and no size."""
    for name in ("panel.h5", "scene.npz", "config.toml"):
        (tmp_path / name).symlink_to("/proc/kmsg")
    readers = {
        "panel.h5": rismusic.PanelCalibration.load,
        "scene.npz": rismusic.read,
        "config.toml": read_small,
    }
    for name, reader in readers.items():
        with (tmp_path / name).open("rb") as file:
            news = select.select([file], [], [], 0)[0]
        if not news:
            with pytest.raises(InputError, match="reading it would wait for data"):
                reader(tmp_path / name)


def test_text_that_is_none(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes("# Grüße".encode("latin-1"))
    with pytest.raises(InputError, match="is not a text file: byte 4 is not valid UTF-8"):
        read_text(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "content",
    [
        "self = 1",
        "panel.self = 1",
        "rows = " + "9" * 5000,
        "a = " + "[" * 3000,
        ".".join("a" * 3000) + " = 1",
    ],
)
@pytest.mark.parametrize(
    "command", ["simulate -o a.h5 --scenes 1", "bound", "bench", "train", "tune", "doctor"]
)
def test_strange_settings_are_one_sentence(content, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(content)
    assert main([*command.split(), "--config", "config.toml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: config.toml: ")
    assert said.count("\n") == 1
    assert list(Path().iterdir()) == [Path("config.toml")]
