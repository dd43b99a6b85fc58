"""The table of faults and the findings that catch them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rismusic.doctor.diagnose import Diagnosis, diagnose
from rismusic.doctor.faults import answers, covariances, losses, scenes, steps
from rismusic.doctor.faults.plant import Fault, healthy
from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.nn.monitors import Finding

FAULTS: tuple[Fault, ...] = tuple(
    sorted(
        (*scenes.FAULTS, *covariances.FAULTS, *losses.FAULTS, *answers.FAULTS, *steps.FAULTS),
        key=lambda fault: (fault.number == 0, fault.number),
    )
)

CANNOT = {
    21: "A pruner belongs to the search of settings; a training has none. The search's own tests hold it.",
    26: "A training simulates its scenes and reads no file; the tests of the readers hold their memory.",
}
"""Mistakes that cannot be planted into a training, and why."""


@dataclass(frozen=True)
class Row:
    """What became of one fault, or of the healthy training.

    Args:
        number: in the list of known mistakes; 0 for one that is not on it, -1 for the healthy training.
        fault: its name.
        caught: whether a finding named the cause; for the healthy training, whether there was any finding.
        check: the check that named the cause first.
        finding: what it measured.
        value: what came of it.
        threshold: its limit.
        meaning: what it says.
        checks: all checks that found something.
    """

    number: int
    fault: str
    caught: bool
    check: str
    finding: str
    value: float
    threshold: float
    meaning: str
    checks: tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """The whole table.

    Args:
        rows: one for each fault and each healthy training.
    """

    rows: tuple[Row, ...]

    @property
    def missed(self) -> list[str]:
        """Faults whose cause no finding named."""
        return [row.fault for row in self.rows if row.number >= 0 and not row.caught]

    @property
    def alarms(self) -> list[str]:
        """Healthy trainings with a finding."""
        return [row.fault for row in self.rows if row.number < 0 and row.caught]

    @property
    def passed(self) -> bool:
        """Whether every fault was caught and no healthy training was."""
        return not self.missed and not self.alarms

    @property
    def verdict(self) -> str:
        """In a sentence or two."""
        faults = [row for row in self.rows if row.number >= 0]
        sound = len(self.rows) - len(faults)
        known = {row.number for row in faults if row.number > 0 and row.caught}
        text = (
            f"{len(faults) - len(self.missed)} of {len(faults)} faults caught, {len(known)} of the 28 known "
            "mistakes; "
            f"{len(self.alarms)} of {sound} healthy trainings with a finding."
        )
        if self.missed:
            text += f" Missed: {', '.join(self.missed)}."
        return text

    def write(self, path: Path, *, overwrite: bool) -> None:
        """As CSV."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(
            ("mistake", "fault", "caught", "check", "finding", "value", "limit", "meaning", "checks")
        )
        for row in self.rows:
            number = "" if row.number == 0 else "healthy" if row.number < 0 else str(row.number)
            seen = (f"{row.value:.4g}", f"{row.threshold:.4g}") if row.check else ("", "")
            caught, checks = "yes" if row.caught else "no", " ".join(row.checks)
            writer.writerow((number, row.fault, caught, row.check, row.finding, *seen, row.meaning, checks))
        with replace_file(path, overwrite=overwrite) as temporary:
            temporary.write_text(buffer.getvalue(), encoding="utf-8")


def try_faults(
    *,
    only: Sequence[str] = (),
    seeds: int = 1,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tried:
    """Plant each fault into a small healthy training and look at it; the twin of ``rismusic doctor faults``.

    Args:
        only: of the faults, these, by number or name; all if none are named.
        seeds: of the healthy training beside them.
        say: called with a line for each.
        progress: called with the number of trainings done and that of all.

    Raises:
        InputError: a fault that is not in the catalogue.
    """
    chosen = [fault for fault in FAULTS if not only or {str(fault.number), fault.name} & set(only)]
    if missing := set(only) - {word for fault in chosen for word in (str(fault.number), fault.name)}:
        raise InputError("only", "numbers or names of faults", ", ".join(sorted(missing)))
    rows = []
    total = seeds + len(chosen)
    for seed in range(seeds):
        rows.append(_healthy(diagnose(healthy(seed)), seed))
        say(_line(rows[-1]))
        progress(len(rows), total)
    for fault in chosen:
        rows.append(look_at(fault))
        say(_line(rows[-1]))
        progress(len(rows), total)
    return Tried(tuple(rows))


def look_at(fault: Fault, seed: int = 0) -> Row:
    """Plant a fault and see what the doctor, who is not told, makes of it."""
    with fault.plant(healthy(seed)) as spec:
        diagnosis = diagnose(spec)
    named = naming(fault, diagnosis)
    check, finding = named or ("", Finding("", 0.0, 0.0, True, "", ""))
    return Row(
        fault.number,
        fault.name,
        named is not None,
        check,
        finding.name,
        finding.value,
        finding.threshold,
        finding.meaning,
        _checks(diagnosis),
    )


def naming(fault: Fault, diagnosis: Diagnosis) -> tuple[str, Finding] | None:
    """The first finding whose text names the cause, and its check."""
    for report in diagnosis.reports:
        for finding in report.wrong:
            text = f"{finding.name}: {finding.meaning}"
            if all(word in text for word in fault.words):
                return report.tag, finding
    return None


def _healthy(diagnosis: Diagnosis, seed: int) -> Row:
    first = diagnosis.wrong[0] if diagnosis.wrong else Finding("", 0.0, 0.0, True, "", "")
    checks = _checks(diagnosis)
    return Row(
        -1,
        f"healthy, seed {seed}",
        not diagnosis.healthy,
        checks[0] if checks else "",
        first.name,
        first.value,
        first.threshold,
        first.meaning,
        checks,
    )


def _checks(diagnosis: Diagnosis) -> tuple[str, ...]:
    return tuple(dict.fromkeys(report.tag for report in diagnosis.reports if report.wrong))


def _line(row: Row) -> str:
    if row.number < 0:
        return f"{row.fault}: {'; '.join(row.checks) or 'nothing'}"
    where = f"mistake {row.number}" if row.number else "not on the list"
    if not row.caught:
        return f"{row.fault} ({where}): MISSED; findings in {', '.join(row.checks) or 'no check'}"
    return f"{row.fault} ({where}): [{row.check}] {row.finding}: {row.meaning}"
