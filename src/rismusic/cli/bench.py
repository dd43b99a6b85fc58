"""``rismusic bench``: methods compared on the same scenes, and with the Cramer-Rao bound."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from rismusic.benchmark.spec import BenchSpec
from rismusic.cli.command import (
    Command,
    Option,
    SafeConsole,
    check_extras,
    note,
    progress_bar,
)
from rismusic.errors import InputError
from rismusic.files import TABLE_ENDINGS, check_output
from rismusic.spec import FigureWidth
from rismusic.text import command_line, counted

if TYPE_CHECKING:
    from rich.table import Table

    from rismusic.benchmark.run import Benchmark
    from rismusic.benchmark.summary import BenchRow, Group, Share


_WIDTH, _WIDTH_OF_NAME, _WIDTH_OF_SHARE = 78, 25, 13


class Bench(Command):
    """Compare methods on the same scenes, over number of sources, SNR and other settings.

    Several values of one setting of the system (``--panel.rows 8 12 16``) stand for ``--sweep panel.rows
    --sweep-values 8 12 16``.
    """

    FLAT: ClassVar[str] = "settings"
    SWEPT: ClassVar[tuple[str, ...]] = ("scene", "panel", "channel", "codebook", "hardware")

    settings: BenchSpec = BenchSpec()
    out: Annotated[Path, Option("FOLDER")] = Path("bench")
    """Folder for the settings, the results of every scene, the tables and the plots."""
    resume: bool = False
    """Resume an interrupted benchmark with the same settings in the same folder."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of processes; 0: one per core."""
    cluster: Annotated[str | None, Option("ADDRESS")] = None
    """Use the workers of a Dask cluster, such as tcp://host:8786, not processes of this machine."""
    device: str = "cpu"
    """Device that the methods compute on, such as cpu or cuda."""
    output: Annotated[Path | None, Option("FILE", short="-o")] = None
    """Write the table to this .csv or .json file, too."""
    figure_width: Annotated[FigureWidth | None, Option("MM")] = None
    """Width of the plots in mm (a column is 88.9 mm wide); they are then written as .pdf, too."""
    report: Annotated[Path | None, Option("FILE")] = None
    """Write a self-contained HTML report."""
    overwrite: bool = False
    """Replace output files that exist."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""

    @classmethod
    def with_sweep(cls, values: Mapping[str, Any], sweep: Mapping[str, tuple[Any, ...]]) -> Mapping[str, Any]:
        """The swept setting as ``sweep`` and ``sweep_values``.

        Raises:
            InputError: another sweep, or a second setting with several values.
        """
        name, *others = sweep
        if others or "sweep" in values:
            other = others[0] if others else "sweep"
            raise InputError(
                name, f"has several values and makes a sweep, as does {other}; sweep one of them"
            )
        table, _, setting = name.partition(".")
        others_of_table = {key: value for key, value in values[table].items() if key != setting}
        return {**values, table: others_of_table, "sweep": (name,), "sweep_values": sweep[name]}

    def writes(self) -> list[tuple[str, Path]]:
        """The given files, and the tables in the folder."""
        from rismusic.benchmark.spec import RESULTS, TIMINGS

        return [("--out", self.out / name) for name in (RESULTS, TIMINGS)] + super().writes()

    def run(self) -> int:
        """Run, then print the results."""
        if self.figure_width is not None:
            check_extras("report", "matplotlib")
        if self.output is not None:
            check_output(self.output, overwrite=self.overwrite, endings=TABLE_ENDINGS)
        if self.report is not None:
            check_extras("report", "jinja2", "matplotlib")
            from rismusic.report import check_report

            check_report(self.report, overwrite=self.overwrite)
        from rismusic.benchmark.run import bench
        from rismusic.benchmark.summary import write_table

        try:
            with progress_bar() as bar:
                task = bar.add_task("scenes", total=None)
                result = bench(
                    self.settings,
                    out=self.out,
                    resume=self.resume,
                    workers=self.workers or None,
                    cluster=self.cluster,
                    device=None if self.device == "cpu" else self.device,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
        except KeyboardInterrupt:
            note(f"results so far are in {self.out}; continue with --resume")
            raise
        _show(result)
        if self.output is not None:
            write_table(self.output, result.rows, overwrite=self.overwrite)
            note(f"table written to {self.output}")
        self._draw(result)
        if self.report is not None:
            self._report(result, self.report)
        rows, scenes = counted(len(result.rows), "row"), counted(result.spec.scenes, "scene")
        note(f"results of {rows} and {scenes} each in {self.out}")
        return 0

    def _report(self, result: Benchmark, path: Path) -> None:
        from rismusic.report import write_bench_report

        write_bench_report(
            path,
            result.rows,
            settings=result.spec,
            timings=result.timings,
            command=command_line(),
            overwrite=self.overwrite,
        )
        note(f"report written to {path}")

    def _draw(self, result: Benchmark) -> None:
        """Plots beside the tables. A run of hours does not fail because matplotlib is missing."""
        from rismusic.benchmark.plots import save_plots
        from rismusic.benchmark.summary import groups

        try:
            save_plots(groups(result.rows), self.out, width_mm=self.figure_width)
        except InputError as error:
            note(f"no plots: {error}")


def _show(result: Benchmark) -> None:
    from rismusic.benchmark.summary import groups

    console = SafeConsole()
    if len(result.spec.cells()) == 1:
        for table in _details(result):
            console.print(table)
        console.print(
            "missed = search (the fit from the truth is likelier than the estimate)\n"
            "+ ambig. (it is not) + count (wrong number of sources).",
            style="dim",
        )
    else:
        across = max(1, (console.width - _WIDTH_OF_NAME) // _WIDTH_OF_SHARE)
        for group in groups(result.rows):
            for start in range(0, len(group.heads), across):
                part = slice(start, start + across)
                console.print(
                    _matrix(group, part, "missed in %, 95 % interval", lambda row: _share(row.misses))
                )
                console.print(
                    _matrix(group, part, "error over bound", lambda row: _plain(row.worst_over_bound, 2))
                )
    if any(row.uses_truth for row in result.rows):
        console.print("oracle: uses the true sources; not a method.", style="dim")


def _table(title: str, heads: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=0,
        title_justify="left",
        title_style="bold",
        min_width=_WIDTH,
    )
    table.add_column("method", no_wrap=True)
    for head in heads:
        wrapped = "\n".join(textwrap.wrap(head, _WIDTH_OF_SHARE - 1)) if "\n" not in head else head
        table.add_column(wrapped, justify="right", no_wrap=True)
    return table


def _matrix(group: Group, part: slice, what: str, cell: Callable[[BenchRow], str]) -> Table:
    axis = "" if group.sweep == "none" else f", {group.axis}"
    table = _table(f"{group.title}{axis}: {what}", group.heads[part])
    for name, rows in group.rows.items():
        table.add_row(name, *map(cell, rows[part]), style="dim" if rows[0].uses_truth else None)
    return table


def _details(result: Benchmark) -> list[Table]:
    """Everything about a single cell, in two tables of 80 columns."""
    cell = result.spec.cells()[0]
    title = f"K = {cell.sources}, {cell.snr_db:g} dB, {counted(result.spec.scenes, 'scene')}"
    misses = _table(
        f"{title}: share of sources missed in %, and why",
        ("missed", "search", "ambig.", "count", "false\nalarms", "F1", "count\nright"),
    )
    errors = _table(
        f"{title}: median error of hits, and over the bound",
        (
            "GOSPA\nm",
            "azim.\ndeg",
            "elev.\ndeg",
            "range\nm",
            "azim.\n/ CRB",
            "elev.\n/ CRB",
            "1 / r\n/ CRB",
            "scenes\n/s",
        ),
    )
    rates = {row.method: row.scenes_per_s for row in result.timings}
    for row in result.rows:
        style = "dim" if row.uses_truth else None
        shares = (
            row.search_failures,
            row.ambiguities,
            row.wrong_counts,
            row.false_alarms,
            row.f1,
            row.count_right,
        )
        misses.add_row(
            row.method, _share(row.misses), *(_plain(100 * one.value, 1) for one in shares), style=style
        )
        degrees = (row.azimuth_error_deg, row.elevation_error_deg, row.range_error_m)
        over = (row.azimuth_over_bound, row.elevation_over_bound, row.inverse_range_over_bound)
        errors.add_row(
            row.method,
            *(_plain(value, 2) for value in (row.gospa_m, *degrees, *over)),
            _plain(rates[row.method], 1) if row.method in rates else "",
            style=style,
        )
    return [misses, errors]


def _share(share: Share) -> str:
    return f"{100 * share.value:.1f} {100 * share.low:.0f}-{100 * share.high:.0f}"


def _plain(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
