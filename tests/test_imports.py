"""Data flows one way (DESIGN.md, section 4), and so do the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import rismusic

ROOT = Path(rismusic.__file__).parent

# A module imports only from those before it; those on one line do not know each other. A dotted name has a
# place of its own, before the rest of its package.
ORDER = [
    ["version", "errors", "text", "interruption"],
    ["files", "registry", "devices", "batch"],
    ["parallel"],
    ["spec"],
    ["array", "partial"],
    ["operator", "link_budget", "simulation.random_numbers"],
    ["sources"],
    ["io"],
    ["simulation", "covariance", "estimation.likelihood"],
    ["estimation.source_covariance"],
    ["crb"],
    ["estimation", "metrics"],
    ["scene_view"],
    ["plots"],
    ["nn"],
    ["hybrid"],
    ["spectrum_map", "panel_calibration", "room", "locator"],
    ["checks", "benchmark"],
    ["report"],
    ["doctor", "tuning"],
    ["cli"],
    ["__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def place(parts: Sequence[str]) -> str:
    """The name under which a module stands in the order."""
    dotted = ".".join(parts[:2])
    return dotted if dotted in LEVEL else parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {place(name.split(".")[1:]) for name in names if name.startswith("rismusic.")}
    return found


def violations(root: Path) -> list[str]:
    wrong = []
    for path in sorted(root.rglob("*.py")):
        module = place(path.relative_to(root).with_suffix("").parts)
        if module not in LEVEL:
            wrong.append(f"{module} has no place in the order")
            continue
        for other in imports(path) - {module}:
            if LEVEL.get(other, len(ORDER)) >= LEVEL[module]:
                wrong.append(f"{path.relative_to(root)} imports {other}")
    return wrong


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_the_test_can_fail(tmp_path):
    (tmp_path / "array.py").write_text("from rismusic.sources import Sources\n")
    (tmp_path / "stray.py").write_text("")
    (tmp_path / "metrics.py").write_text("from rismusic.benchmark.run import bench\n")
    assert violations(tmp_path) == [
        "array.py imports sources",
        "metrics.py imports benchmark",
        "stray has no place in the order",
    ]


COMMANDS = (
    *("--help", "--version", "simulate --help", "bench --help", "train --help", "doctor --help"),
    *("tune --help", "bound --panel.rows 0"),
)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from rismusic.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    main(command.split())\n"
        "    late = {'torch', 'numpy', 'numba', 'matplotlib'} & sys.modules.keys()\n"
        "    assert not late, (command, late)"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_exist():
    for name in rismusic.__all__:
        assert getattr(rismusic, name) is not None
    assert set(rismusic.__all__) <= set(dir(rismusic))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rismusic.nothing  # noqa: B018


def test_no_module_hides_a_public_name():
    """Importing rismusic.x binds the name x in the package, so a public function must not share it."""
    modules = {path.stem for path in ROOT.iterdir()}
    assert not modules & set(rismusic.__all__)
