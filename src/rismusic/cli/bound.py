"""``rismusic bound``: the Cramer-Rao bound over number of sources and SNR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rismusic.cli.command import Command, Option
from rismusic.cli.output import SafeConsole, check_extras, note, progress_bar, write_rows
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, TABLE_ENDINGS, check_output
from rismusic.spec import ChannelSpec, CodebookSpec, Count, Finite, PanelSpec, SceneSpec, SystemSpec
from rismusic.version import __version__


class Bound(Command):
    """Table of the Cramer-Rao bound: median standard deviations over random scenes."""

    IGNORED: ClassVar[tuple[str, ...]] = ("one_link", "hardware")

    sources: tuple[Count, ...] = (1, 2, 3, 5)
    """Numbers of sources, K."""
    snr_db: tuple[Finite, ...] = (0.0, 5.0, 10.0, 20.0)
    """SNRs in dB."""
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
    figure_width: Annotated[float | None, Field(ge=40, le=1000), Option("MM")] = None
    """Width of the plot in mm (a column is 88.9 mm wide)."""
    overwrite: bool = False
    """Replace output files that exist."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""
    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()

    def run(self) -> int:
        """Compute, print and write the table."""
        if not self.sources or not self.snr_db:
            raise InputError("--snr-db" if self.sources else "--sources", "give at least one value")
        for path, endings in ((self.output, TABLE_ENDINGS), (self.plot, PLOT_ENDINGS)):
            if path is not None:
                check_output(path, overwrite=self.overwrite, endings=endings)
        if self.plot is not None:
            check_extras("report", "matplotlib")
        from rich.table import Table

        from rismusic.benchmark.bound_table import bound_figure, bound_table
        from rismusic.plots import save

        system = SystemSpec(scene=self.scene, panel=self.panel, channel=self.channel, codebook=self.codebook)
        with progress_bar() as progress:
            task = progress.add_task("cells", total=len(self.sources) * len(self.snr_db))
            rows = bound_table(
                system,
                sources=self.sources,
                snr_db=self.snr_db,
                scenes=self.scenes,
                seed=self.seed,
                kind=self.kind,
                progress=lambda: progress.advance(task),
            )
        table = Table(title=f"{self.kind} Cramer-Rao bound, median over {self.scenes} scenes")
        for name in ("K", "SNR / dB", "azimuth / deg", "elevation / deg", "range / m", "1/range / (1/m)"):
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(
                str(row.sources),
                f"{row.snr_db:g}",
                f"{row.azimuth_std_deg:.3g}",
                f"{row.elevation_std_deg:.3g}",
                f"{row.range_std_m:.3g}",
                f"{row.inverse_range_std_per_m:.3g}",
                end_section=row.snr_db == self.snr_db[-1],
            )
        SafeConsole().print(table)
        if self.output is not None:
            head = {"version": __version__, "kind": self.kind, "scenes": self.scenes, "seed": self.seed}
            write_rows(
                self.output, rows, overwrite=self.overwrite, **head, system=system.model_dump(mode="json")
            )
            note(f"table written to {self.output}")
        if self.plot is not None:
            save(bound_figure(rows, width_mm=self.figure_width), self.plot, overwrite=self.overwrite)
            note(f"plot written to {self.plot}")
        return 0
