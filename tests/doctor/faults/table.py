"""The table of planted faults and of the findings that name them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults import covariances, losses, predictions, scenes, training
from faults.plant import Fault, healthy
from rismusic.doctor.diagnose import diagnose
from rismusic.doctor.report import Diagnosis
from rismusic.nn.monitors import Finding

FAULTS: tuple[Fault, ...] = tuple(
    sorted(
        (*scenes.FAULTS, *covariances.FAULTS, *losses.FAULTS, *predictions.FAULTS, *training.FAULTS),
        key=lambda fault: (fault.number == 0, fault.number),
    )
)

CANNOT = {
    21: "A pruner belongs to the search for settings, whose own tests cover it.",
    26: "A training simulates its scenes and reads no file. The tests of the readers check their memory.",
}
"""Known mistakes that cannot be planted into a training, and why."""

HEADER = ("mistake", "fault", "caught", "check", "finding", "value", "limit", "meaning", "checks")


@dataclass(frozen=True)
class Row:
    """The diagnosis of one fault or of one healthy training.

    Args:
        number: number in the list of known mistakes; 0 for one that is not on it, -1 for a healthy training.
        name: name of the fault.
        check: for a fault, the first check that names the cause; empty if none does. For a healthy training,
            the first check with a finding outside its limit.
        finding: the finding of that check.
        checks: all checks with a finding outside its limit.
    """

    number: int
    name: str
    check: str
    finding: Finding | None
    checks: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether the cause was named; for a healthy training, whether there was any finding."""
        return self.finding is not None

    @property
    def line(self) -> str:
        """One line for the console."""
        checks = ", ".join(self.checks) or "none"
        if self.number < 0:
            return f"{self.name}: findings in {checks}"
        where = f"mistake {self.number}" if self.number else "not on the list"
        if self.finding is None:
            return f"{self.name} ({where}): MISSED; findings in {checks}"
        return f"{self.name} ({where}): [{self.check}] {self.finding.name}: {self.finding.meaning}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the CSV file."""
        number = "" if self.number == 0 else "healthy" if self.number < 0 else str(self.number)
        start, checks = (number, self.name, "yes" if self.caught else "no", self.check), " ".join(self.checks)
        if self.finding is None:
            return (*start, "", "", "", "", checks)
        one = self.finding
        return (*start, one.name, f"{one.value:.4g}", f"{one.threshold:.4g}", one.meaning, checks)


@dataclass(frozen=True)
class FaultTable:
    """One row for each fault and each healthy training."""

    rows: tuple[Row, ...]

    @property
    def missed(self) -> list[str]:
        """Faults whose cause no finding names."""
        return [row.name for row in self.rows if row.number >= 0 and not row.caught]

    @property
    def unnoticed(self) -> list[str]:
        """Faults without any finding."""
        return [row.name for row in self.rows if row.number >= 0 and not row.checks]

    @property
    def alarms(self) -> list[str]:
        """Healthy trainings with a finding."""
        return [row.name for row in self.rows if row.number < 0 and row.caught]

    @property
    def summary(self) -> str:
        """The numbers of faults named and noticed, and of false alarms."""
        faults = [row for row in self.rows if row.number >= 0]
        known = {row.number for row in faults if row.number > 0 and row.caught}
        text = (
            f"{len(faults) - len(self.missed)} of {len(faults)} faults named "
            f"({len(faults) - len(self.unnoticed)} noticed), {len(known)} of the 28 known mistakes; "
            f"{len(self.alarms)} of {len(self.rows) - len(faults)} healthy trainings with a finding."
        )
        return text + (f" Missed: {', '.join(self.missed)}." if self.missed else "")

    def write(self, path: Path) -> None:
        """Write the table as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(row.cells for row in self.rows)


def fault_table(
    *, only: Sequence[str] = (), seeds: int = 1, say: Callable[[str], None] = lambda _: None
) -> FaultTable:
    """Diagnose healthy trainings, then one training for each fault.

    Args:
        only: numbers or names of the faults to plant; all by default.
        seeds: number of healthy trainings, each with its own seed.
        say: called with a line for each training.

    Raises:
        ValueError: a number or name that is not in the catalogue.
    """
    if missing := set(only) - {key for fault in FAULTS for key in (str(fault.number), fault.name)}:
        raise ValueError(f"no such fault: {', '.join(sorted(missing))}")
    rows = []
    for seed in range(seeds):
        rows.append(_healthy_row(diagnose(healthy(seed)), seed))
        say(rows[-1].line)
    for fault in FAULTS:
        if not only or {str(fault.number), fault.name} & set(only):
            rows.append(fault_row(fault))
            say(rows[-1].line)
    return FaultTable(tuple(rows))


def fault_row(fault: Fault, seed: int = 0) -> Row:
    """Plant a fault and diagnose the training, which gets the settings only."""
    with fault.plant(healthy(seed)) as spec:
        diagnosis = diagnose(spec)
    check, finding = naming(fault, diagnosis) or ("", None)
    return Row(fault.number, fault.name, check, finding, _checks(diagnosis))


def naming(fault: Fault, diagnosis: Diagnosis) -> tuple[str, Finding] | None:
    """The first check and finding whose text names the cause."""
    for report in diagnosis.reports:
        for finding in report.wrong:
            text = f"{finding.name}: {finding.meaning}"
            forms = [(words,) if isinstance(words, str) else words for words in fault.words]
            if all(any(words in text for words in alternatives) for alternatives in forms):
                return report.tag, finding
    return None


def _healthy_row(diagnosis: Diagnosis, seed: int) -> Row:
    checks = _checks(diagnosis)
    finding = diagnosis.wrong[0] if diagnosis.wrong else None
    return Row(-1, f"healthy, seed {seed}", checks[0] if checks else "", finding, checks)


def _checks(diagnosis: Diagnosis) -> tuple[str, ...]:
    return tuple(dict.fromkeys(report.tag for report in diagnosis.reports if report.wrong))
