"""Modules that only some platforms have are not needed. ``make test-no-fcntl`` runs this without fcntl."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rismusic
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.files import locked

ROOT = Path(rismusic.__file__).parent
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "tty"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_no_module_needs_what_windows_has_not():
    assert {name for path in ROOT.rglob("*.py") for name in imported(path)}.isdisjoint(POSIX_ONLY)


@pytest.mark.skipif(not (ROOT.parents[1] / "pyproject.toml").exists(), reason="not a checkout")
def test_everything_that_is_imported_is_declared():
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [
        *project["dependencies"],
        *(one for some in project["optional-dependencies"].values() for one in some),
    ]
    declared = {one.partition(">")[0].partition("[")[0] for one in needed}
    used = {name for path in ROOT.rglob("*.py") for name in imported(path)} - set(sys.stdlib_module_names)
    # mpl_toolkits is part of matplotlib.
    assert used - declared - {"rismusic", "mpl_toolkits", "markupsafe"} == set()


def test_a_lock_file_excludes_other_processes(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys\nfrom pathlib import Path\nfrom rismusic.files import locked\n"
        "with locked(Path(sys.argv[1]), 'run', 'in use'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"^run: in use \(process {other.pid}\)$"),
        locked(path, "run", "in use"),
    ):
        pass
    other.communicate()
    with locked(path, "run", "in use"):
        pass


def test_the_commands_run(tmp_path, capsys):
    path = tmp_path / "a.h5"
    assert (
        main(["simulate", "-o", str(path), "--scenes", "2", "--panel.rows", "3", "--panel.columns", "4"]) == 0
    )
    assert main(["check", str(path)]) == 0
    assert main(["locate", str(path), "-o", str(tmp_path / "a.csv"), "--method", "bartlett"]) == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "a.csv",
        "a.csv.run.json",
        "a.h5",
        "a.h5.run.json",
        "a.h5.toml",
    ]
