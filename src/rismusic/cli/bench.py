"""``rismusic bench``, ``bound`` and ``plan``: methods, bounds and systems compared on random scenes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from rich.table import Table

from rismusic.benchmark.spec import RESULTS, TIMINGS, BenchSpec, sweep_points
from rismusic.cli.command import (
    Command,
    Option,
    SafeConsole,
    check_extras,
    note,
    number_table,
    progress_bar,
    without_channel,
    write_rows,
)
from rismusic.errors import InputError
from rismusic.spec import (
    ChannelSpec,
    CodebookSpec,
    Count,
    Decibels,
    FigureWidth,
    LinkBudgetSpec,
    PanelSpec,
    Positive,
    SceneSpec,
    SystemSpec,
    WidebandSpec,
)
from rismusic.text import command_line, counted

if TYPE_CHECKING:
    from rismusic.benchmark.planning import BoundRow
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
        """The swept setting as ``sweep`` and ``sweep_values``."""
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
        return [("--out", self.out / name) for name in (RESULTS, TIMINGS)] + super().writes()

    def run(self) -> int:
        """Run, then print the results."""
        if self.figure_width is not None:
            check_extras("report", "matplotlib")
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
            from rismusic.report import write_bench_report

            write_bench_report(
                self.report,
                result.rows,
                settings=result.spec,
                timings=result.timings,
                command=command_line(),
                overwrite=self.overwrite,
            )
            note(f"report written to {self.report}")
        rows, scenes = counted(len(result.rows), "row"), counted(result.spec.scenes, "scene")
        note(f"results of {rows} and {scenes} each in {self.out}")
        return 0

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
    wrapped = [
        "\n".join(textwrap.wrap(head, _WIDTH_OF_SHARE - 1)) if "\n" not in head else head for head in heads
    ]
    table = number_table(("method", *wrapped), title=title, title_justify="left", title_style="bold")
    table.columns[0].justify, table.min_width = "left", _WIDTH
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
        causes = (row.search_failures, row.ambiguities, row.wrong_counts)
        shares = (*causes, row.false_alarms, row.f1, row.count_right)
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


# With a sweep, unless they are given: few enough curves for one plot.
_SOURCES_IN_SWEEP, _SNR_DB_IN_SWEEP = (1, 3), (10.0,)


class _OfSystems(Command):
    """A command with the tables of a system and of its link budget."""

    IGNORED: ClassVar[tuple[str, ...]] = ("one_link", "one_panel", "hardware")

    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()
    wideband: WidebandSpec = WidebandSpec()
    budget: LinkBudgetSpec = LinkBudgetSpec()

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse an SNR beside a link budget."""
        if "snr_db" in typed and "power_dbm" in typed:
            raise InputError("--power-dbm", "cannot be combined with --snr-db; give one of them")

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Options of a link budget that is not made, and of a channel that is not there."""
        yield from super().without_effect(typed)
        yield from without_channel(self.channel, typed)
        if not self.has_budget:
            yield from ((name, "it needs --power-dbm") for name in typed if name.startswith("budget."))

    @property
    def has_budget(self) -> bool:
        """Whether the SNR follows from a link budget."""
        raise NotImplementedError

    def system(self, sources: int) -> SystemSpec:
        """The system, with a number of sources."""
        names = ("scene", "panel", "channel", "codebook", "wideband")
        return SystemSpec().replace(sources=sources, **{name: getattr(self, name) for name in names})


class Bound(_OfSystems):
    """Table of the Cramer-Rao bound over random scenes; several values of one setting make a sweep.

    ``--panel.rows 8 12 16`` is a sweep of three values. The values of several such settings are paired in
    order.
    """

    SWEPT: ClassVar[tuple[str, ...]] = ("scene", "panel", "channel", "codebook", "wideband", "budget")
    NEEDS: ClassVar[Mapping[str, str]] = {"figure_width": "plot"}

    sources: tuple[Count, ...] = (1, 2, 3, 5)
    """Numbers of sources, K. In a sweep the default is 1 3."""
    snr_db: tuple[Decibels, ...] = (0.0, 5.0, 10.0, 20.0)
    """SNRs in dB. In a sweep the default is 10."""
    power_dbm: tuple[Decibels, ...] = ()
    """Transmit powers of each source in dBm, in place of SNRs, which then follow from the link budget."""
    scenes: Count = 200
    """Number of scenes of each cell."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the scenes."""
    kind: Literal["conditional", "unconditional"] = "conditional"
    """Deterministic symbols (conditional), or Gaussian symbols with unknown powers (unconditional)."""
    output: Annotated[Path | None, Option("FILE", short="-o")] = None
    """Write the table to a .csv or .json file, too."""
    plot: Annotated[Path | None, Option("FILE")] = None
    """Plot the table (.png, .pdf or .svg)."""
    figure_width: Annotated[FigureWidth | None, Option("MM")] = None
    """Width of the plot in mm (a column is 88.9 mm wide)."""
    overwrite: bool = False
    """Replace output files that exist."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""
    sweep: Annotated[dict[str, tuple[int | float | str, ...]], Option(hidden=True)] = Field(
        default_factory=dict
    )
    """Values of the swept settings."""

    @classmethod
    def with_sweep(cls, values: Mapping[str, Any], sweep: Mapping[str, tuple[Any, ...]]) -> Mapping[str, Any]:
        """The swept settings as ``sweep``, and few numbers of sources and SNRs unless they are given."""
        few = {"sources": _SOURCES_IN_SWEEP, "snr_db": _SNR_DB_IN_SWEEP}
        return {**few, **values, "sweep": dict(sweep)}

    @property
    def has_budget(self) -> bool:
        """With a transmit power."""
        return bool(self.power_dbm)

    @model_validator(mode="after")
    def _valid_sweep(self) -> Bound:
        sweep_points(self.sweep, self.system(1), self.budget)
        return self

    def run(self) -> int:
        """Compute, print and write the table."""
        if not self.sources or not self.snr_db:
            raise InputError("--snr-db" if self.sources else "--sources", "give at least one value")
        from rismusic.benchmark.planning import BoundRow, bound_figure, bound_table
        from rismusic.plots import save

        system = self.system(1)
        points = len(next(iter(self.sweep.values()), (None,)))
        with progress_bar() as progress:
            task = progress.add_task(
                "cells", total=len(self.sources) * len(self.power_dbm or self.snr_db) * points
            )
            rows = bound_table(
                system,
                sources=self.sources,
                snr_db=self.snr_db,
                power_dbm=self.power_dbm,
                sweep=self.sweep,
                budget=self.budget,
                scenes=self.scenes,
                seed=self.seed,
                kind=self.kind,
                progress=lambda: progress.advance(task),
            )
        SafeConsole().print(
            _bound_table(rows, f"{self.kind} Cramer-Rao bound, median over {counted(self.scenes, 'scene')}")
        )
        if self.output is not None:
            write_rows(
                self.output,
                rows,
                row_type=BoundRow,
                overwrite=self.overwrite,
                **self.model_dump(mode="json", include={"kind", "scenes", "seed", "sweep", "budget"}),
                system=system.model_dump(mode="json"),
            )
        if self.plot is not None:
            save(bound_figure(rows, width_mm=self.figure_width), self.plot, overwrite=self.overwrite)
            note(f"plot written to {self.plot}")
        return 0


def _bound_table(rows: Sequence[BoundRow], title: str) -> Table:
    swept, power = rows[0].sweep, rows[0].power_dbm is not None
    points = len(dict.fromkeys(row.point for row in rows))
    title += f"\nsweep of {swept}" if swept else ""
    swept_heads = [",\n".join(name.rpartition(".")[2] for name in swept.split(", "))] if swept else []
    caption = "position: error bound in 3-D, root mean square"
    table = Table(title=title, caption=caption, show_edge=False, pad_edge=False)
    heads = ["K", *["power\n/ dBm"] * power, "SNR\n/ dB", *swept_heads]
    heads += ["azimuth\n/ deg", "elevation\n/ deg", "range\n/ m", "1/range\n/ (1/m)", "position\n/ m"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=head not in swept_heads, overflow="fold")
    for place, row in enumerate(rows, start=1):
        values = (
            row.azimuth_std_deg,
            row.elevation_std_deg,
            row.range_std_m,
            row.inverse_range_std_per_m,
            row.position_error_bound_m,
        )
        after = rows[place] if place < len(rows) else None
        table.add_row(
            str(row.sources),
            *([] if row.power_dbm is None else [f"{row.power_dbm:g}"]),
            f"{row.snr_db:.3g}" if power else f"{row.snr_db:g}",
            *[row.point] * bool(swept),
            *(f"{value:.3g}" for value in values),
            end_section=after is None
            or after.sources != row.sources
            or (bool(swept) and place % points == 0),
        )
    return table


class Plan(_OfSystems):
    """The smallest systems whose position error bound reaches a target.

    Candidates differ in panel size, antennas, snapshots and bits. A system is listed if it reaches the target
    and no candidate does that is smaller in one of the four and larger in none.
    """

    target_m: Positive
    """Median position error bound to reach, in metres (3-D)."""
    range_m: Positive
    """Range of the sources in metres. Their directions are drawn as --scene options say."""
    rows: tuple[Count, ...] = (4, 6, 8, 10, 12, 16, 20, 24, 32)
    """Candidates: numbers of rows of the panel, which is square."""
    antennas: tuple[Count, ...] = (4, 8, 16, 32)
    """Candidates: numbers of base station antennas, M."""
    snapshots: tuple[Count, ...] = (4, 8, 16, 32, 64)
    """Candidates: numbers of snapshots, L."""
    bits: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (1, 2, 3)
    """Candidates: phase resolutions in bits."""
    sources: Count = 1
    """Number of sources, K."""
    power_dbm: Decibels = 0.0
    """Transmit power of each source in dBm; the SNR follows from the link budget."""
    snr_db: Decibels | None = None
    """SNR in dB of every candidate, in place of the link budget."""
    scenes: Count = 30
    """Number of scenes of each candidate."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the scenes."""
    kind: Literal["conditional", "unconditional"] = "conditional"
    """Deterministic symbols (conditional), or Gaussian symbols with unknown powers (unconditional)."""
    output: Annotated[Path | None, Option("FILE", short="-o")] = None
    """Write the table to a .csv or .json file, too."""
    overwrite: bool = False
    """Replace an output file that exists."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse settings of the system that the candidates replace."""
        for path, instead in (
            ("panel.rows", "--rows"),
            ("panel.columns", "--rows"),
            ("channel.antennas", "--antennas"),
            ("codebook.snapshots", "--snapshots"),
            ("codebook.bits", "--bits"),
            ("scene.range_min_m", "--range-m"),
            ("scene.range_max_m", "--range-m"),
        ):
            if path in typed:
                raise InputError(f"--{path.replace('_', '-')}", f"is not used here; give {instead}")
        super().check_options(typed)

    @property
    def has_budget(self) -> bool:
        """Without an SNR."""
        return self.snr_db is None

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """As for any system; direct sampling leaves panel size and snapshots to choose."""
        yield from super().without_effect(typed)
        for name in ("antennas", "bits") if self.channel.kind == "direct" else ():
            if name in typed:
                yield name, "--channel.kind direct has neither channel nor RIS"

    def run(self) -> int:
        """Search, print and write the systems."""
        from rismusic.benchmark.planning import PlannedSystem, plan

        system = self.system(self.sources)
        with progress_bar() as bar:
            task = bar.add_task("candidates", total=None)
            result = plan(
                self.target_m,
                self.range_m,
                rows=self.rows,
                antennas=self.antennas,
                snapshots=self.snapshots,
                bits=self.bits,
                sources=self.sources,
                power_dbm=self.power_dbm,
                snr_db=self.snr_db,
                system=system,
                budget=self.budget,
                scenes=self.scenes,
                seed=self.seed,
                kind=self.kind,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if result.systems:
            SafeConsole().print(_plan_table(result.systems, self.target_m, self.range_m))
        else:
            note(
                f"no candidate reaches {self.target_m:g} m at {self.range_m:g} m; the largest "
                f"({result.largest}) reaches {result.largest.position_error_bound_m:.3g} m at "
                f"{result.largest.snr_db:.3g} dB"
            )
        if self.output is not None:
            settings = self.model_dump(mode="json", exclude={"output", "overwrite", "config"})
            write_rows(
                self.output,
                result.systems,
                row_type=PlannedSystem,
                overwrite=self.overwrite,
                settings=settings,
            )
        return 0


def _plan_table(systems: Sequence[Any], target_m: float, range_m: float) -> Table:
    table = Table(title=f"smallest systems with a median position error of {target_m:g} m at {range_m:g} m")
    for head in ("panel", "N", "antennas M", "snapshots L", "bits", "SNR\n/ dB", "position\n/ m"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in systems:
        table.add_row(
            f"{one.rows} x {one.columns}",
            str(one.elements),
            str(one.antennas),
            str(one.snapshots),
            "-" if one.bits is None else str(one.bits),
            f"{one.snr_db:.3g}",
            f"{one.position_error_bound_m:.3g}",
        )
    return table
