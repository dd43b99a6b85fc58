"""CONTRIBUTING.md names every module, and none that does not exist; docs/files.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import rismusic

PACKAGE = Path(rismusic.__file__).parent
TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def layout() -> set[str]:
    """Paths that the section on the layout names, relative to the package."""
    section = TEXT.partition("## Layout")[2].partition("\n## ")[0]
    named = set()
    for line in re.split(r"\n- ", section)[1:]:
        head = re.match(r"\*\*`(\w+/)`", line)
        folder = "" if head is None else head[1]
        named |= {folder + name for name in re.findall(r"`(\w+\.py)`", line)}
    return named


def test_the_layout_is_that_of_the_package():
    modules = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py", "version.py")
    }
    assert layout() - {"__init__.py"} == modules


def test_paths_exist():
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", TEXT):
        assert any((root / name).exists() for root in (PACKAGE, PACKAGE.parents[1])), name


def test_functions_that_the_text_names_exist():
    """In "`file.py` (`one`, `other`)" of the section that says where to find what."""
    section = TEXT.partition("## Where to find")[2].partition("\n## ")[0]
    found = re.findall(r"`([\w/]+\.py)`\s+\(([^)]*)\)", section)
    assert len(found) > 10
    for file, names in found:
        code = (PACKAGE / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", code), (file, name)


def test_tests_that_the_page_on_files_names_exist():
    root = PACKAGE.parents[1]
    page = (root / "docs" / "files.md").read_text(encoding="utf-8")
    files, functions = re.findall(r"`(\w+/\w+\.py)`", page), re.findall(r"`(test_\w+)`", page)
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py"))
    assert len(files) > 10
    assert len(functions) > 10
    assert [
        name for name in files if not (root / "tests" / name).exists() and not (root / name).exists()
    ] == []
    assert [name for name in functions if f"def {name}(" not in code] == []
