"""Tables of the benchmarks page, from the two runs of ``rismusic bench`` that the page names."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import headline
from markdown_table import table
from rismusic.benchmark.plots import save_plots
from rismusic.benchmark.summary import BenchRow, Group, groups, read_table

MEASURED = Path(__file__).parent / "measured"


def measured() -> list[Group]:
    """The rows that were measured, arranged for tables and plots."""
    return groups([row for run in ("bench", "sweeps") for row in read_table(MEASURED / run / "results.csv")])


def bench_scenes() -> str:
    """Number of scenes of each cell."""
    grid = [group for group in measured() if group.sweep == "none"]
    counts = sorted({row.scenes for group in grid for rows in group.rows.values() for row in rows})
    return f"{' to '.join(map(str, counts))} scenes a cell.\n"


def bench_misses() -> str:
    """Share of sources missed over K and SNR."""
    return _tables("none", _missed)


def bench_causes() -> str:
    """Misses by search failure and by ambiguity, oracles left out."""
    return _tables(
        "none",
        lambda row: f"{_digits(row.search_failures.value)} + {_digits(row.ambiguities.value)}",
        oracles=False,
    )


def bench_errors() -> str:
    """The largest of the three ratios of the median error of hits to the bound."""
    return _tables("none", lambda row: f"{row.worst_over_bound:.2f}")


def bench_sweeps() -> str:
    """Share of sources missed over the values of each sweep."""
    sweeps = dict.fromkeys(group.sweep for group in measured() if group.sweep != "none")
    return "".join(_tables(sweep, _missed) for sweep in sweeps)


def bench_speed() -> str:
    """Scenes a second on one core, over the grid of K and SNR."""
    with (MEASURED / "bench" / "timings.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["sweep"] == "none"]
    counts = sorted({int(row["sources"]) for row in rows})
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for K in counts:
            some = [row for row in rows if (row["method"], int(row["sources"])) == (method, K)]
            rate = sum(int(row["scenes"]) for row in some) / sum(float(row["seconds"]) for row in some)
            cells.append(f"{rate:.3g}")
        lines.append([f"`{method}`", *cells])
    return table(["method", *(f"K = {K}" for K in counts)], lines)


def hybrid_misses() -> str:
    """Sources missed by the hybrid and the classical estimators on the same scenes."""
    return _tables("none", _missed, among=headline.compared())


def hybrid_errors() -> str:
    """Errors of hits over the bound, of the same."""
    return _tables("none", lambda row: f"{row.worst_over_bound:.2f}", among=headline.compared())


def hybrid_ablation() -> str:
    """Sources missed by the hybrid estimator and by its ablations."""
    return _tables(
        "none",
        _missed,
        among=groups(read_table(MEASURED / "hybrid_ablation" / "results.csv")),
    )


def hybrid_counts() -> str:
    """Share of scenes with the right number of sources, and F1, for an unknown number."""
    return _counts("hybrid_auto")


def hybrid_robust() -> str:
    """Median errors of hits with hardware impairments, and their ratio to those of SBL."""
    rows = read_table(MEASURED / "robust" / "results.csv")
    lines = []
    for classical in (row for row in rows if row.method == "sbl"):
        (robust,) = (row for row in rows if (row.method, row.sources) == ("hybrid", classical.sources))
        lines.append(
            [
                f"{classical.sources}",
                *(
                    f"{row.azimuth_error_deg:.3f}, {row.elevation_error_deg:.3f}"
                    for row in (classical, robust)
                ),
                f"{robust.azimuth_error_deg / classical.azimuth_error_deg:.2f}, "
                f"{robust.elevation_error_deg / classical.elevation_error_deg:.2f}",
                _missed(classical),
                _missed(robust),
            ]
        )
    head = ["K", "`sbl`, deg", "`robust`, deg", "ratio", "`sbl` misses, %", "`robust` misses, %"]
    return table(head, lines)


def hybrid_robust_counts() -> str:
    """Share of scenes with the right number of sources, with hardware impairments."""
    return _counts("robust_auto")


TABLES: tuple[Callable[[], str], ...] = (
    hybrid_misses,
    hybrid_errors,
    hybrid_ablation,
    hybrid_counts,
    hybrid_robust,
    hybrid_robust_counts,
    bench_scenes,
    bench_misses,
    bench_causes,
    bench_errors,
    bench_sweeps,
    bench_speed,
)


def draw(folder: Path) -> None:
    """Draw ``misses_SWEEP.png`` and ``errors_SWEEP.png``."""
    save_plots(measured(), folder)


def _tables(
    sweep: str, cell: Callable[[BenchRow], str], *, oracles: bool = True, among: list[Group] | None = None
) -> str:
    text = ""
    for group in measured() if among is None else among:
        if group.sweep != sweep:
            continue
        axis = "" if sweep == "none" else f", {group.axis}"
        lines = [
            [f"`{name}`", *map(cell, rows)]
            for name, rows in group.rows.items()
            if oracles or not rows[0].uses_truth
        ]
        text += f"**{group.title}{axis}**\n\n{table(['method', *group.heads], lines)}\n"
    return text


def _missed(row: BenchRow) -> str:
    return _percent(row.misses.value, row.misses.low, row.misses.high)


def _percent(value: float, low: float, high: float) -> str:
    return f"{_digits(value)} ({100 * low:.0f} to {100 * high:.0f})"


def _digits(share: float) -> str:
    return f"{100 * share:.1f}"


def _counts(run: str) -> str:
    lines = [
        [
            f"`{row.method}`",
            f"{row.sources}",
            f"{row.snr_db:g} dB",
            _percent(row.count_right.value, row.count_right.low, row.count_right.high),
            f"{row.f1.value:.3f}",
        ]
        for row in read_table(MEASURED / run / "results.csv")
    ]
    return table(["method", "K", "SNR", "K right, %", "F1"], lines)
