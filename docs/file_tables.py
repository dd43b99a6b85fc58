"""The docs' tables of interrupted commands and of damaged files, from ``crashes.csv`` and ``fuzz.csv``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from markdown_table import table

MEASURED = Path(__file__).parent / "measured"


def _rows(name: str) -> list[dict[str, str]]:
    with (MEASURED / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def crashes() -> str:
    """A row for each command, and a column for each event: runs, and in brackets those that ended before."""
    rows = _rows("crashes.csv")
    events = list(dict.fromkeys(row["event"] for row in rows))
    lines = []
    for command in dict.fromkeys(row["command"] for row in rows):
        found = {row["event"]: row for row in rows if row["command"] == command}
        first = next(iter(found.values()))
        cells = []
        for event in events:
            if (row := found.get(event)) is None:
                cells.append("-")
            else:
                cells.append(
                    row["runs"] + (f" ({row['ended_before']})" if row["ended_before"] != "0" else "")
                )
        failed = _sum(list(found.values()), "failed")
        lines.append((f"`{command}`", first["processor_time_s"], *cells, str(failed)))
    total = f"{_sum(rows, 'runs'):,} runs, {_sum(rows, 'failed')} failed."
    return f"{total}\n\n{table(('command', 'processor time / s', *events, 'failed'), lines)}"


def fuzz() -> str:
    """A row for each kind of file and command: inputs, and what became of them."""
    rows = _rows("fuzz.csv")
    names = ("inputs", "read", "sentence", "failed")
    lines = [(row["files"], f"`{row['command']}`", *(row[name] for name in names)) for row in rows]
    lines.append(("all", "", *(f"{_sum(rows, name):,}" for name in names)))
    return table(("files", "command", "inputs", "read", "one sentence", "failed"), lines)


def _sum(rows: Sequence[dict[str, str]], name: str) -> int:
    return sum(int(row[name]) for row in rows)


TABLES: tuple[Callable[[], str], ...] = (crashes, fuzz)
