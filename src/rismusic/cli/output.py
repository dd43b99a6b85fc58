"""Where output goes: data to standard output, everything else to standard error."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rismusic.errors import InputError
from rismusic.files import TABLE_ENDINGS, check_output, failure, write_text
from rismusic.text import command_line, csv_text, plain, printable, redact
from rismusic.version import __version__


class SafeConsole(Console):
    """Console for text of any origin: no markup in it is interpreted, and control characters are escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is, line breaks included."""
        return super().render_str(printable(text), **options)


def complain(sentence: str) -> None:
    """Print an error on standard error, in one line."""
    line = Text.assemble(("error:", "bold red"), " ", plain(sentence))
    SafeConsole(stderr=True).print(line, soft_wrap=True)


def save_traceback(error: BaseException) -> str:
    """Write the traceback of an error into a new temporary file; say where it is."""
    lines = [f"rismusic {__version__}: {command_line()}\n\n", *traceback.format_exception(error)]
    text = printable(redact("".join(lines)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rismusic-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as unsaved:
        return f"The traceback could not be saved ({failure(unsaved)})"
    return f"The traceback is in {file.name}"


def check_extras(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before work starts.

    Raises:
        InputError: one of them is not; the sentence has the command that installs it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(package, f"is not installed; run: pip install 'rismusic[{extra}]'")


def note(sentence: str) -> None:
    """Print something that is not data, on standard error, in one line."""
    SafeConsole(stderr=True).print(plain(sentence), soft_wrap=True)


def say(line: str) -> None:
    """Print one line of data on standard output, at once."""
    print(plain(line), flush=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="cyan")


def progress_bar() -> Progress:
    """A progress bar with count, rate and time left; silent where standard error is no terminal."""
    console = SafeConsole(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def write_rows(path: Path, rows: Sequence[Any], *, overwrite: bool, **head: object) -> None:
    """Write dataclass rows as CSV or, with ``head`` beside them, as JSON, by the ending of the name.

    Raises:
        InputError: another ending; the file exists and ``overwrite`` is off; it cannot be written.
    """
    check_output(path, overwrite=overwrite, endings=TABLE_ENDINGS)
    records = [dataclasses.asdict(row) for row in rows]
    if path.suffix == ".json":
        text = json.dumps({**head, "rows": records}, indent=1, allow_nan=False) + "\n"
    else:
        text = csv_text([field.name for field in dataclasses.fields(rows[0])], records)
    write_text(path, text, overwrite=overwrite)
