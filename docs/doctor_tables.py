"""The docs' tables of planted faults, from the files that ``benchmarks/doctor_faults.py`` writes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from markdown_table import table

MEASURED = Path(__file__).parent / "measured"


# Set, file, and command.
_SETS = (
    ("known mistakes, planted", "doctor_faults", "patched --seeds 20"),
    ("edits of one source file", "doctor_source_faults", "source --fast"),
    ("healthy trainings, all presets and recipes", "doctor_healthy", "healthy"),
    ("small networks, `diagnose_module`", "doctor_modules", "modules"),
    ("small loops, `watch`", "doctor_loops", "loops"),
)


def doctor_sets() -> str:
    """Numbers of faults and of healthy cases by outcome, for each set."""
    lines = []
    for name, file, command in _SETS:
        path = MEASURED / f"{file}.csv"
        rows = list(csv.DictReader(path.open(newline="", encoding="utf-8"))) if path.exists() else []
        number = Counter(_outcome(row) for row in rows)
        faults = ("named", "noticed", "missed", "crashed")
        healthy = number["healthy"] + number["alarm"]
        cells = [str(sum(number[one] for one in faults)), *(str(number[one]) for one in faults[:3])]
        lines.append((name, *cells, f"{number['alarm']} of {healthy}", f"`--set {command}`"))
    head = ("set", "faults", "named", "noticed", "missed", "false findings", "`benchmarks/doctor_faults.py`")
    return table(head, lines)


def _outcome(row: dict[str, str]) -> str:
    """The outcome of a row of any of the files."""
    if "outcome" in row:
        return row["outcome"]
    found = row["caught"] == "yes"
    if row["mistake"] == "healthy":
        return "alarm" if found else "healthy"
    return "named" if found else "noticed" if row["checks"] else "missed"


def doctor_comparison() -> str:
    """Numbers of outcomes by tool, on the same networks and faults."""
    path = MEASURED / "doctor_comparison.csv"
    if not path.exists():
        return "Not measured yet for this version; run the command below.\n"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["case"].split(": "), row["outcome"]) for row in csv.DictReader(file)]
    with (MEASURED / "doctor_modules.csv").open(newline="", encoding="utf-8") as file:
        own = {row["case"]: row["outcome"] for row in csv.DictReader(file)}
    first = rows[0][0][0]
    same = [name for (tool, *name), _ in rows if tool == first]
    number = {"rismusic": Counter(own[n[0] if n[1] == "healthy" else ": ".join(n)] for n in same)}
    for (tool, *_), outcome in rows:
        number.setdefault(tool, Counter())[outcome] += 1
    heads = ("named", "noticed", "missed", "crashed", "healthy", "alarm")
    return table(("tool", *heads), [(tool, *(str(n[head]) for head in heads)) for tool, n in number.items()])


TABLES: tuple[Callable[[], str], ...] = (doctor_sets, doctor_comparison)
