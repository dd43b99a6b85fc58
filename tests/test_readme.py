"""Every snippet and command of the README runs, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rismusic.cli import main
from rismusic.io import read, write

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def few_scenes(samples, tmp_path_factory):
    """The samples, of two scenes each, four of the one that Python reads; all of them take long."""
    folder = tmp_path_factory.mktemp("samples")
    for path in samples.glob("*.h5"):
        write(folder / path.name, read(path)[: 4 if path.stem == "ideal_10dB" else 2])
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, few_scenes):
    """An empty folder outside the checkout: the README needs the installed package only."""
    monkeypatch.setattr("rismusic.io.reader.SAMPLES", few_scenes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_runs(folder, capsys, untyped):
    ran = {"python": 0, "bash": 0}
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
            ran[language] += 1
        elif language == "bash":
            for line in text.strip().splitlines():
                program, *args = shlex.split(line)
                assert program == "rismusic"
                assert main(args) == 0, line
                ran[language] += 1
        else:
            assert language in ("console", "matlab"), "every other block must be run by a test too"
    assert ran == {"python": 3, "bash": 4}
    for name in ("positions.csv", "sources.csv", "scene.png", "report.html", "mine.h5"):
        assert (folder / name).exists()


def test_commands_of_the_tables_run(folder, capsys, untyped):
    commands = re.findall(r"\| `(rismusic [^`]*)`", README.read_text())
    assert len(commands) >= 2
    for command in commands:
        # A bound over the whole volume is one over as many scenes; here a few will do.
        few = ["--scenes", "5"] if command.startswith("rismusic bound") else []
        assert main([*shlex.split(command)[1:], *few]) == 0


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README.read_text()):
        assert f"\n{target}:" in makefile


def test_the_matlab_block_names_the_fields_of_a_recording():
    matlab = next(text for language, text in BLOCKS if language == "matlab")
    saved = re.search(r"save\((.*)\)", matlab).group(1).replace("'", "").split(", ")[1:]
    assert saved == ["format", "wavelength", "elements", "snapshots", "channel", "codes"]
    for name in saved:
        assert re.search(rf"\b{name}\s*=", matlab)
