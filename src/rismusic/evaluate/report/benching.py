"""The report of a benchmark: its tables, plots and settings as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rismusic.errors import InputError
from rismusic.evaluate.bench.groups import Group, groups
from rismusic.evaluate.bench.plots import plot_errors, plot_misses, plots
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.evaluate.bench.table import BenchRow, Share, TimingRow
from rismusic.evaluate.report.page import Plot, check_report, fragment, setting_rows, within, write_page
from rismusic.evaluate.report.wording import fixed, general

# Bytes for the plots, for the tables by group, and for the table of everything.
_PLOTS, _TABLES, _ALL = 450_000, 250_000, 200_000

# Columns of the table of everything: name, unit, attribute.
COLUMNS = (
    ("missed", "%", "misses"),
    ("search", "%", "search_failures"),
    ("ambiguous", "%", "ambiguities"),
    ("count", "%", "wrong_counts"),
    ("false alarms", "%", "false_alarms"),
    ("precision", "%", "precision"),
    ("recall", "%", "recall"),
    ("F1", "%", "f1"),
    ("number right", "%", "count_right"),
    ("GOSPA", "m", "gospa_m"),
    ("azimuth", "degrees", "azimuth_error_deg"),
    ("elevation", "degrees", "elevation_error_deg"),
    ("range", "m", "range_error_m"),
    ("azimuth", "/ bound", "azimuth_over_bound"),
    ("elevation", "/ bound", "elevation_over_bound"),
    ("1/range", "/ bound", "inverse_range_over_bound"),
)


@dataclass(frozen=True)
class Cell:
    """A number in a table, what stands behind it, and whether it is the least of its column."""

    text: str
    interval: str
    least: bool


@dataclass(frozen=True)
class Matrix:
    """Methods down, values of what is varied across."""

    title: str
    what: str
    heads: tuple[str, ...]
    rows: list[tuple[str, bool, list[Cell]]]


def write_bench_report(
    path: str | Path,
    rows: Sequence[BenchRow],
    *,
    settings: BenchSpec | None = None,
    timings: Sequence[TimingRow] = (),
    command: str = "",
    made: datetime | None = None,
    overwrite: bool = False,
) -> None:
    """Write the rows of a benchmark as one HTML file below 1 MB, with its plots drawn anew.

    Args:
        path: an ``.html`` file.
        rows: one for each cell and method, as of
            :attr:`Benchmark.rows <rismusic.evaluate.bench.run.Benchmark>` or from
            :func:`~rismusic.evaluate.bench.table.read_table`.
        settings: of the benchmark, where they are known.
        timings: how fast the methods were.
        command: what made the report.
        made: when; now, if not given.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: no rows, the packages that reports need are not installed, or the file cannot be written.
    """
    check_report(Path(path), overwrite=overwrite)
    if not rows:
        raise InputError("report", "at least one row of a benchmark", "none")
    arranged = groups(rows)
    drawn = list(_plots(arranged))
    kept = len(within((plot.image for plot in drawn), _PLOTS))
    tables = [fragment("matrices.html.j2", pair=list(_matrices(group))) for group in arranged]
    rates = {(row.sweep, row.point, row.sources, row.snr_db, row.method): row.scenes_per_s for row in timings}
    lines = [
        fragment("bench_row.html.j2", row=row, cells=_cells(row), rate=_rate(row, rates), timed=bool(rates))
        for row in rows
    ]
    shown_tables, shown_lines = within(tables, _TABLES), within(lines, _ALL)
    write_page(
        Path(path),
        "benching.html.j2",
        overwrite=overwrite,
        command=command,
        made=made,
        methods=list(dict.fromkeys(row.method for row in rows)),
        cells=len({(row.sweep, row.point, row.sources, row.snr_db) for row in rows}),
        scenes=sorted({row.scenes for row in rows}),
        peeked=any(row.peeked for row in rows),
        plots=drawn[:kept],
        left_plots=len(drawn) - kept,
        tables=shown_tables,
        left_tables=len(tables) - len(shown_tables),
        lines=shown_lines,
        left_lines=len(lines) - len(shown_lines),
        columns=COLUMNS,
        timed=bool(rates),
        settings=[] if settings is None else setting_rows(settings),
    )


def _plots(arranged: Sequence[Group]) -> Iterator[Plot]:
    """Misses and errors of each sweep."""
    for sweep in dict.fromkeys(group.sweep for group in arranged):
        some = [group for group in arranged if group.sweep == sweep]
        over = f"{some[0].axis}, {' and '.join(group.title for group in some)}"
        yield Plot.of(plots(some, plot_misses), f"Sources missed, with 95 % intervals, over {over}.")
        yield Plot.of(plots(some, plot_errors), f"Median error of hits over the bound, over {over}.")


def _matrices(group: Group) -> Iterator[Matrix]:
    """Misses and errors of one group."""
    title = group.title if group.sweep == "none" else f"{group.title}, {group.axis}"
    misses = {name: [row.misses.value for row in some] for name, some in group.rows.items()}
    errors = {name: [row.worst_over_bound for row in some] for name, some in group.rows.items()}
    for what, values in (
        ("sources missed / % (95 % interval)", misses),
        ("median error of hits / bound", errors),
    ):
        fair = [values[name] for name, some in group.rows.items() if not some[0].peeked]
        least = [_least(column) for column in zip(*fair, strict=True)]
        rows = []
        for name, some in group.rows.items():
            cells = []
            for row, value, best in zip(some, values[name], least or [math.nan] * len(some), strict=True):
                text, interval = fixed(value, 2), ""
                if values is misses:
                    text, interval = fixed(100 * value, 1), _interval(row.misses)
                cells.append(Cell(text, interval, value == best and not row.peeked))
            rows.append((name, some[0].peeked, cells))
        yield Matrix(title, what, group.heads, rows)


def _least(values: Iterable[float]) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _interval(share: Share) -> str:
    return f"{fixed(100 * share.low, 1)}–{fixed(100 * share.high, 1)}"


def _cells(row: BenchRow) -> list[tuple[str, str]]:
    """Number and interval of every column."""
    cells = []
    for _, _, name in COLUMNS:
        value = getattr(row, name)
        if isinstance(value, Share):
            cells.append((fixed(100 * value.value, 1), _interval(value)))
        else:
            cells.append((general(value), ""))
    return cells


def _rate(row: BenchRow, rates: dict[tuple[str, str, int, float, str], float]) -> str:
    rate = rates.get((row.sweep, row.point, row.sources, row.snr_db, row.method), math.nan)
    return general(rate)
