"""The examples of the documentation work: each page's Python blocks and commands, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rismusic.cli import COMMANDS, main
from rismusic.cli.parser import _typed, command_kind, settings_of

DOCS = Path(__file__).parent.parent.parent / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text("utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    untyped: None,
) -> None:
    """As a reader runs them, without types enforced."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    names: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            # Blank lines in front, so that a traceback names the line of the page.
            lines = text.count("\n", 0, block.start(2))
            exec(compile("\n" * lines + block[2], str(page), "exec"), names)
            continue
        for line in block[2].splitlines():
            prompt, program, *arguments = shlex.split(line)
            assert (prompt, program) == ("$", "rismusic")
            assert main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_options_of_commands_that_do_not_run_here_exist(page: Path) -> None:
    """Commands in blocks of plain text take too long to run, or are parts of a workflow."""
    for block in re.findall(r"^```text\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.match(r"(?:PYTHONPATH=\S+ )?rismusic (.*?)(?: && .*)?$", line):
                args = shlex.split(command[1], comments=True)
                kind = command_kind(args, COMMANDS)
                _typed(args[1:], kind, {option.path: option for option in settings_of(kind)})


def test_pages_have_examples() -> None:
    assert {"index", "conventions", "recordings", "simulation", "bounds"} <= {page.stem for page in PAGES}


def test_every_page_is_reached_from_the_first() -> None:
    first = (DOCS / "index.md").read_text("utf-8")
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    toctrees = re.findall(r"```\{toctree\}.*?```", first, re.DOTALL)
    listed = re.findall(r"^(\w+)$", "\n".join(toctrees), re.MULTILINE)
    assert pages == set(listed)
    assert len(listed) == len(pages)
