"""Report of a benchmark as one HTML file: plots, tables and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rismusic.benchmark.plots import benchmark_figure, plot_errors, plot_misses
from rismusic.benchmark.spec import BenchSpec
from rismusic.benchmark.summary import BenchRow, Group, Share, TimingRow, groups
from rismusic.errors import InputError
from rismusic.report.page import (
    Plot,
    check_report,
    fixed,
    fragment,
    general,
    setting_rows,
    within,
    write_page,
)

# Size limits in bytes: plots, tables by group, table of all results.
_PLOTS, _TABLES, _ALL = 450_000, 250_000, 200_000

# Columns of the table of all results: name, unit, attribute.
COLUMNS = (
    ("missed", "%", "misses"),
    ("search", "%", "search_failures"),
    ("ambiguous", "%", "ambiguities"),
    ("number", "%", "wrong_counts"),
    ("false alarms", "%", "false_alarms"),
    ("precision", "%", "precision"),
    ("recall", "%", "recall"),
    ("F1", "%", "f1"),
    ("correct number", "%", "count_right"),
    ("GOSPA", "m", "gospa_m"),
    ("azimuth", "degrees", "azimuth_error_deg"),
    ("elevation", "degrees", "elevation_error_deg"),
    ("range", "m", "range_error_m"),
    ("azimuth", "/ bound", "azimuth_over_bound"),
    ("elevation", "/ bound", "elevation_over_bound"),
    ("1/range", "/ bound", "inverse_range_over_bound"),
)


def write_bench_report(
    path: str | Path,
    rows: Sequence[BenchRow],
    *,
    settings: BenchSpec | None = None,
    timings: Sequence[TimingRow] = (),
    command: str = "",
    overwrite: bool = False,
) -> None:
    """Write the rows of a benchmark as one HTML file below 1 MB, with plots.

    Args:
        path: an ``.html`` file.
        rows: one for each cell and method, as of
            :attr:`Benchmark.rows <rismusic.benchmark.run.Benchmark>` or from
            :func:`~rismusic.benchmark.summary.read_table`.
        settings: settings of the benchmark, where they are known.
        timings: computing times of the methods.
        command: the command line that made the report.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: no rows, the packages that reports need are not installed, or the file cannot be written.
    """
    check_report(Path(path), overwrite=overwrite)
    if not rows:
        raise InputError("report", "the benchmark has no rows to report")
    arranged = groups(rows)
    drawn = list(_plots(arranged))
    kept = len(within((plot.image for plot in drawn), _PLOTS))
    tables = [fragment("matrices.html.j2", pair=list(_matrices(group))) for group in arranged]
    rates = {(_cell_of(row), row.method): row.scenes_per_s for row in timings}
    lines = []
    for row in rows:
        rate = general(rates.get((_cell_of(row), row.method), math.nan))
        values = [getattr(row, name) for _, _, name in COLUMNS]
        cells = [_share(value) if isinstance(value, Share) else (general(value), "") for value in values]
        lines.append(fragment("bench_row.html.j2", row=row, cells=cells, rate=rate, timed=bool(rates)))
    shown_tables, shown_lines = within(tables, _TABLES), within(lines, _ALL)
    write_page(
        Path(path),
        "bench.html.j2",
        overwrite=overwrite,
        command=command,
        methods=list(dict.fromkeys(row.method for row in rows)),
        cells=len(set(map(_cell_of, rows))),
        scenes=sorted({row.scenes for row in rows}),
        oracles=any(row.uses_truth for row in rows),
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


def _cell_of(row: BenchRow | TimingRow) -> tuple[str, str, int, float]:
    return row.sweep, row.point, row.sources, row.snr_db


def _plots(arranged: Sequence[Group]) -> Iterator[Plot]:
    """Misses and errors of each sweep."""
    for sweep in dict.fromkeys(group.sweep for group in arranged):
        some = [group for group in arranged if group.sweep == sweep]
        over = f"{some[0].axis} for {'; '.join(group.title for group in some)}"
        yield Plot.of(
            benchmark_figure(some, plot_misses), f"Share of sources missed over {over}, with 95 % intervals."
        )
        yield Plot.of(
            benchmark_figure(some, plot_errors),
            f"Median error of hits divided by the Cramér-Rao bound, over {over}.",
        )


def _matrices(group: Group) -> Iterator[dict[str, object]]:
    """Misses and errors of one group: a row for each method, a column for each SNR or value."""
    title = group.title if group.sweep == "none" else f"{group.title}, {group.axis}"
    misses = {name: [row.misses.value for row in some] for name, some in group.rows.items()}
    errors = {name: [row.worst_over_bound for row in some] for name, some in group.rows.items()}
    for what, values in (
        ("sources missed / % (95 % interval)", misses),
        ("median error of hits / Cramér-Rao bound", errors),
    ):
        methods = [values[name] for name, some in group.rows.items() if not some[0].uses_truth]
        lowest = [
            min((value for value in column if not math.isnan(value)), default=math.nan)
            for column in zip(*methods, strict=True)
        ]
        rows = []
        for name, some in group.rows.items():
            cells = []
            for row, value, best in zip(some, values[name], lowest or [math.nan] * len(some), strict=True):
                text = (fixed(value, 2), "") if values is errors else _share(row.misses)
                cells.append((*text, value == best and not row.uses_truth))
            rows.append((name, some[0].uses_truth, cells))
        yield {"title": title, "what": what, "heads": group.heads, "rows": rows}


def _share(share: Share) -> tuple[str, str]:
    """A share and its interval in percent."""
    low, high = fixed(100 * share.low, 1), fixed(100 * share.high, 1)
    return fixed(100 * share.value, 1), f"{low}–{high}"
