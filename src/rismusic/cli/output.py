"""Where output goes: data to standard output, everything else to standard error."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
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
from rismusic.files import TABLE_ENDINGS, check_output, replace_file
from rismusic.version import __version__


def complain(sentence: str) -> None:
    """Print an error on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print("[bold red]error:[/] ", end="")
    print(sentence, file=sys.stderr)


def save_traceback(error: BaseException) -> Path:
    """Write the traceback of an error into a new temporary file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="rismusic-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"rismusic {__version__}: {' '.join(sys.argv)}\n\n")
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


def check_extras(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before work starts.

    Raises:
        InputError: one of them is not; the sentence has the command that installs it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(package, f"is not installed; run: pip install 'rismusic[{extra}]'")


def note(sentence: str) -> None:
    """Print something that is not data, on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(sentence)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="cyan")


def progress_bar() -> Progress:
    """A progress bar with count, rate and time left; silent where standard error is no terminal."""
    console = Console(stderr=True)
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
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(
            buffer, [field.name for field in dataclasses.fields(rows[0])], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(records)
        text = buffer.getvalue()
    with replace_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
