"""``rismusic locate``: positions of the sources in a recording, with error bars."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tyro.conf import Positional, arg

from rismusic.cli.command import Command
from rismusic.cli.output import note, progress_bar, write_rows
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, TABLE_ENDINGS, check_output, replace_file
from rismusic.spec import Count, LocateSpec
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.estimation.estimate import Estimate
    from rismusic.evaluate.positions import Position, Truth
    from rismusic.io import Recording
    from rismusic.report import LocateReport

# Scenes located between two steps of the progress bar.
_BLOCK = 64


class Locate(Command):
    """Locate the sources of every scene of a recording (.h5, .npz or .mat)."""

    file: Positional[Path]
    """The recording."""
    settings: Annotated[LocateSpec, arg(name="")] = LocateSpec()
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with these settings, such as the locate.toml of a search; flags win."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE")] = None
    """Write the positions to a .csv or .json file in place of the table on the screen."""
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Draw a scene with its estimates and error regions (.png, .pdf or .svg)."""
    figure_width: Annotated[float | None, Field(ge=40, le=1000), arg(metavar="MM")] = None
    """Printed width of the plot in mm (a column is 88.9 mm wide)."""
    scene: Annotated[int, Field(ge=0)] = 0
    """The scene to draw, counted from 0."""
    report: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a report of everything as one .html file that needs no network."""
    report_scenes: Count = 8
    """Scenes that the report shows in full, from the first on (fewer where it would pass 1 MB)."""
    overwrite: bool = False
    """Replace output files that exist."""

    def run(self) -> int:
        """Locate block by block, so that the file may be larger than memory."""
        for path, endings in ((self.output, TABLE_ENDINGS), (self.plot, PLOT_ENDINGS)):
            if path is not None:
                check_output(path, overwrite=self.overwrite, endings=endings)
        if self.plot is not None:
            from rismusic.plots import check_matplotlib

            check_matplotlib()
        report = None if self.report is None else self._new_report(self.report)
        from rismusic.evaluate.positions import position_rows, scene_records, truth_rows
        from rismusic.hybrid import locate
        from rismusic.io import open_recording

        positions: list[Position] = []
        truth: list[Truth] = []
        records: list[dict[str, object]] = []
        drawn: tuple[Recording, Estimate] | None = None
        with open_recording(self.file) as file, progress_bar() as progress:
            if self.plot is not None and self.scene >= len(file):
                raise InputError("scene", f"a scene from 0 to {len(file) - 1}", str(self.scene))
            task = progress.add_task("locating in scenes", total=len(file))
            first = 0
            for recording in file.batches(_BLOCK):
                located = locate(recording, spec=self.settings)
                positions += position_rows(located, first_scene=first)
                records += scene_records(located, first_scene=first)
                if recording.truth is not None:
                    truth += truth_rows(recording.truth, located, first_scene=first)
                if first <= self.scene < first + len(recording):
                    drawn = recording, located
                if report is not None:
                    report.add(recording, located)
                first += len(recording)
                progress.advance(task, len(recording))
        for record in records:
            for sentence in record["warnings"]:  # type: ignore[attr-defined]
                note(f"scene {record['scene']}: {sentence}")
        if self.output is None:
            self._print(positions, truth)
        elif self.output.suffix == ".csv":
            write_rows(self.output, positions, overwrite=self.overwrite)
        else:
            head = {"version": __version__, "recording": str(self.file)}
            with replace_file(self.output, overwrite=self.overwrite) as temporary:
                temporary.write_text(
                    json.dumps({**head, "scenes": records}, indent=1, allow_nan=False) + "\n"
                )
        if self.output is not None:
            note(f"{len(positions)} sources in {len(records)} scenes written to {self.output}")
        if self.plot is not None and drawn is not None:
            self._draw(*drawn, self.plot)
        if self.report is not None and report is not None:
            self._write(report, self.report)
        return 0

    def _new_report(self, path: Path) -> LocateReport:
        from rismusic.report import LocateReport, check_report

        check_report(path, overwrite=self.overwrite)
        return LocateReport(details=self.report_scenes)

    def _write(self, report: LocateReport, path: Path) -> None:
        from rismusic.checks import check

        checked = check(self.file)
        report.write(
            path,
            name=self.file.name,
            facts=checked.facts,
            remarks=[f"{one.meaning}: {one.value:.3g}. {one.remedy}" for one in checked.findings],
            command=shlex.join(["rismusic", *sys.argv[1:]]),
            overwrite=self.overwrite,
        )
        note(f"report written to {path}")

    def _print(self, positions: list[Position], truth: list[Truth]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(
            title=f"{self.settings.method}: sources found, ± the Cramer-Rao bound at the estimate",
            box=box.SIMPLE_HEAD,
            padding=0,
        )
        names = ["scene", "#", "azimuth\ndeg", "elevation\ndeg", "range\nm", "power\ndB"]
        for name in names + (["true\nazim.", "true\nelev.", "true\nrange"] if truth else []):
            table.add_column(name, justify="right", no_wrap=True)
        beside = {(row.scene, row.found): row for row in truth if row.found is not None}
        missed: dict[int, list[Truth]] = {}
        for row in truth:
            if row.found is None:
                missed.setdefault(row.scene, []).append(row)
        scenes = sorted({row.scene for row in positions} | set(missed))
        for scene in scenes:
            for found in (row for row in positions if row.scene == scene):
                true = beside.get((scene, found.source))
                cells = [
                    str(scene),
                    str(found.source),
                    _with_bar(found.azimuth_deg, found.azimuth_std_deg),
                    _with_bar(found.elevation_deg, found.elevation_std_deg),
                    _with_bar(found.range_m, found.range_std_m),
                    f"{found.power_db:.1f}",
                ]
                table.add_row(*cells, *(_true_cells(true) if truth else []))
            for lost in missed.get(scene, []):
                table.add_row(str(scene), "", "missed", "", "", "", *_true_cells(lost))
            table.add_section()
        Console().print(table)
        if truth:
            hits, true_count = len(beside), len(truth)
            false_alarms = len(positions) - hits
            note(f"{hits} of {true_count} true sources hit (within 5 deg), {false_alarms} false alarms")

    def _draw(self, recording: Recording, located: Estimate, path: Path) -> None:
        from rismusic.estimation.estimate import volume_of
        from rismusic.plots import save, scene_figure

        place = self.scene % _BLOCK
        found = located.sources.each(lambda value: value[place])
        truth = None if recording.truth is None else recording.truth.each(lambda value: value[place])
        figure = scene_figure(
            recording.panel,
            found,
            covariance=located.covariance[place],
            truth=truth,
            volume=volume_of(located.spec),
            width_mm=self.figure_width,
        )
        save(figure, path, overwrite=self.overwrite)
        note(f"picture of scene {self.scene} written to {path}")


def _with_bar(value: float, bar: float) -> str:
    """A value and its error bar, with the decimals the bar is worth: two figures, three places at most."""
    if not math.isfinite(bar):
        return f"{value:.2f} ±?"
    places = min(3, max(0, 1 - math.floor(math.log10(bar)))) if bar > 0 else 3
    return f"{value:.{places}f} ±{bar:.{places}f}"


def _true_cells(true: Truth | None) -> list[str]:
    if true is None:
        return ["false", "alarm", ""]
    return [f"{true.azimuth_deg:.2f}", f"{true.elevation_deg:.2f}", f"{true.range_m:.2f}"]
