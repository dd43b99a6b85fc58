"""The docs' table of planted faults and the findings that name them, from ``measured/doctor_faults.csv``."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from markdown_table import table

MEASURED = Path(__file__).parent / "measured" / "doctor_faults.csv"


def doctor_faults() -> str:
    """Each fault with the finding that names it, and the number of healthy trainings with a finding."""
    if not MEASURED.exists():
        return "Not measured yet for this version; run the command below.\n"
    with MEASURED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    faults = [row for row in rows if row["mistake"] != "healthy"]
    healthy = [row for row in rows if row["mistake"] == "healthy"]
    lines = []
    for row in faults:
        others = [check for check in row["checks"].split() if check != row["check"]]
        name = f"`{row['check']}`" if row["caught"] == "yes" else "**missed**"
        shown = (row["finding"], row["value"], row["limit"], row["meaning"])
        lines.append((row["mistake"] or "-", row["fault"], name, *shown, ", ".join(others)))
    caught = [row for row in faults if row["caught"] == "yes"]
    known = {row["mistake"] for row in caught if row["mistake"]}
    alarms = [row for row in healthy if row["caught"] == "yes"]
    summary = f"{len(caught)} of {len(faults)} faults are caught, {len(known)} of the 28 known mistakes. "
    if healthy:
        summary += f"{len(alarms)} of {len(healthy)} healthy trainings (different seeds) have a finding."
    head = ("mistake", "fault", "caught by", "measured", "value", "limit", "meaning", "other checks")
    return f"{summary}\n\n{table(head, lines)}"


def _outcomes(name: str) -> str:
    """Cases with outcome, check and finding, from a file of ``benchmarks/doctor_faults.py``."""
    path = MEASURED.with_name(name)
    if not path.exists():
        return "Not measured yet for this version; run the command below.\n"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    number = Counter(row["outcome"] for row in rows)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in number.items())
    lines = []
    for row in rows:
        outcome = f"**{row['outcome']}**" if row["outcome"] in _BAD else row["outcome"]
        lines.append((row["case"], outcome, row["check"], row["finding"].partition(":")[0]))
    head = ("case", "outcome", "check", "measured")
    return f"Of {len(rows)} cases: {summary}.\n\n{table(head, lines)}"


# Outcomes that are shown in bold.
_BAD = ("missed", "crashed", "alarm")


def doctor_source_faults() -> str:
    """Source edits of the package and what the doctor finds."""
    return _outcomes("doctor_source_faults.csv")


def doctor_modules() -> str:
    """Small networks, healthy and with faults, and what ``diagnose_module`` finds."""
    return _outcomes("doctor_modules.csv")


def doctor_loops() -> str:
    """Small training loops, healthy and with faults, and what ``watch`` finds."""
    return _outcomes("doctor_loops.csv")


def doctor_healthy() -> str:
    """Healthy trainings and what the doctor finds."""
    return _outcomes("doctor_healthy.csv")


def doctor_comparison() -> str:
    """Numbers of outcomes by tool, on the same networks and faults."""
    path = MEASURED.with_name("doctor_comparison.csv")
    if not path.exists():
        return "Not measured yet for this version; run the command below.\n"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["case"].split(": "), row["outcome"]) for row in csv.DictReader(file)]
    with MEASURED.with_name("doctor_modules.csv").open(newline="", encoding="utf-8") as file:
        own = {row["case"]: row["outcome"] for row in csv.DictReader(file)}
    # The doctor's own outcomes of the same cases are those of the table above.
    first = rows[0][0][0]
    same = [name for (tool, *name), _ in rows if tool == first]
    number = {"rismusic": Counter(own[n[0] if n[1] == "healthy" else ": ".join(n)] for n in same)}
    for (tool, *_), outcome in rows:
        number.setdefault(tool, Counter())[outcome] += 1
    heads = ("named", "noticed", "missed", "crashed", "healthy", "alarm")
    return table(("tool", *heads), [(tool, *(str(n[head]) for head in heads)) for tool, n in number.items()])


TABLES: tuple[Callable[[], str], ...] = (
    doctor_faults,
    doctor_source_faults,
    doctor_modules,
    doctor_loops,
    doctor_healthy,
    doctor_comparison,
)
