"""The findings as a table for the console, and as one HTML file beside the curves of the run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rismusic.doctor.diagnose import Diagnosis
from rismusic.nn.run_folder import CURVES
from rismusic.nn.spec import TrainSpec
from rismusic.report.page import check_report, png_address, setting_rows, write_page

if TYPE_CHECKING:
    from rich.table import Table


def findings_table(diagnosis: Diagnosis, *, every: bool = False) -> Table:
    """The findings that are wrong (or all of them), a row each.

    Args:
        diagnosis: what was found.
        every: whether to show the others too.
    """
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("check", "what was measured", "value", "limit", "what it means, and what to try"):
        table.add_column(head, justify="right" if head in ("value", "limit") else "left")
    for report in diagnosis.reports:
        for one in report.findings:
            if every or not one.fine:
                words = "" if one.fine else f"{one.meaning} {one.advice}"
                table.add_row(report.tag, one.name, f"{one.value:.3g}", f"{one.threshold:.3g}", words)
    return table


def write_diagnosis(
    path: str | Path,
    diagnosis: Diagnosis,
    *,
    settings: TrainSpec | None = None,
    run: str | Path | None = None,
    command: str = "",
    made: datetime | None = None,
    overwrite: bool = False,
) -> None:
    """Write a diagnosis as one HTML file, below 1 MB and without the network.

    Args:
        path: an ``.html`` file.
        diagnosis: what was found.
        settings: of the training.
        run: the folder of the run, whose curves are shown beside the findings.
        command: what made the report.
        made: when; now, if not given.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the packages that reports need are not installed, or the file cannot be written.
    """
    check_report(Path(path), overwrite=overwrite)
    curves = None if run is None else Path(run) / CURVES
    image = ""
    if curves is not None and curves.is_file():
        image = png_address(curves.read_bytes())
    write_page(
        Path(path),
        "doctor.html.j2",
        overwrite=overwrite,
        command=command,
        made=made,
        diagnosis=diagnosis,
        looked=sum(len(report.findings) for report in diagnosis.reports),
        run="" if run is None else str(run),
        image=image,
        settings=[] if settings is None else setting_rows(settings),
    )


__all__ = ["check_report", "findings_table", "write_diagnosis"]
