"""The result of a diagnosis: findings by check, the verdict, a table for the console and an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rismusic.files import read_small
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.run_folder import CURVES
from rismusic.nn.spec import TrainSpec
from rismusic.report.page import LIMIT, check_report, png_address, setting_rows, write_page

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Diagnosis:
    """The result of all checks.

    Args:
        reports: one or more for each check, in the order in which the checks ran.
    """

    reports: tuple[Report, ...]

    @property
    def wrong(self) -> list[Finding]:
        """Findings outside their limits, in the order of the checks."""
        return [finding for report in self.reports for finding in report.wrong]

    @property
    def healthy(self) -> bool:
        """Whether all findings are within their limits."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        total = sum(len(report.findings) for report in self.reports)
        if self.healthy:
            return f"Healthy: all {total} findings are within their limits."
        first = next(report for report in self.reports if report.wrong)
        return (
            f"{len(self.wrong)} of {total} findings are outside their limits. Start with the first: "
            f"[{first.tag}] {first.wrong[0].meaning}"
        )

    def record(self) -> dict[str, object]:
        """The diagnosis as plain types for JSON; non-finite numbers become text."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "reports": [
                {"tag": one.tag, "text": one.text, "findings": [_plain(f) for f in one.findings]}
                for one in self.reports
            ],
        }


def _plain(finding: Finding) -> dict[str, object]:
    fields = asdict(finding)
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def report_of(tag: str, text: str, findings: Sequence[Finding]) -> Report:
    """A report whose values are those of its findings."""
    return Report(tag, text, {one.name: one.value for one in findings}, tuple(findings))


def must_be_zero(name: str, value: float | int, meaning: str, advice: str) -> Finding:
    """A finding whose limit is 0, such as the number of things that are wrong."""
    return at_most(name, float(value), 0.0, meaning, advice)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, separated by commas, with an ellipsis for the rest."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def findings_table(diagnosis: Diagnosis) -> Table:
    """A table for the console with one row for each finding outside its limit."""
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("check", "measured", "value", "limit", "meaning and advice"):
        table.add_column(head, justify="right" if head in ("value", "limit") else "left")
    for report in diagnosis.reports:
        for one in report.wrong:
            text = f"{one.meaning} {one.advice}"
            table.add_row(report.tag, one.name, f"{one.value:.3g}", f"{one.threshold:.3g}", text)
    return table


def write_diagnosis(
    path: str | Path,
    diagnosis: Diagnosis,
    *,
    settings: TrainSpec | None = None,
    run: str | Path | None = None,
    command: str = "",
    overwrite: bool = False,
) -> None:
    """Write a diagnosis as one self-contained HTML file below 1 MB.

    Args:
        path: an ``.html`` file.
        diagnosis: the diagnosis to write.
        settings: settings of the training, shown at the end of the page.
        run: folder of the run, whose curves are shown beside the findings.
        command: command line that made the report.
        overwrite: whether to replace an existing file.

    Raises:
        InputError: the packages for reports are not installed, or the file cannot be written.
    """
    check_report(Path(path), overwrite=overwrite)
    curves = None if run is None else Path(run) / CURVES
    image = png_address(read_small(curves, limit=LIMIT)) if curves is not None and curves.is_file() else ""
    write_page(
        Path(path),
        "doctor.html.j2",
        overwrite=overwrite,
        command=command,
        made=None,
        diagnosis=diagnosis,
        looked=sum(len(report.findings) for report in diagnosis.reports),
        run="" if run is None else str(run),
        image=image,
        settings=[] if settings is None else setting_rows(settings),
    )
