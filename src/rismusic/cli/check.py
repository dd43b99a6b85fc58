"""``rismusic check``: contents of a recording, and suspicious values in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from rismusic.cli.command import Command, Option
from rismusic.cli.output import SafeConsole, check_extras, note
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, check_output
from rismusic.text import plain

if TYPE_CHECKING:
    from rismusic.checks import CheckReport


class Check(Command):
    """Describe a recording, report what looks wrong in it, and the extent of its near field."""

    POSITIONAL: ClassVar[str] = "file"

    file: Path
    """The recording: .h5, .npz or .mat."""
    as_json: Annotated[bool, Option(name="json")] = False
    """Print JSON instead of a table."""
    fit: bool = True
    """Test for mixed-up conventions by quick fits, if there are no true positions (some seconds)."""
    plot: Annotated[Path | None, Option("FILE")] = None
    """Plot the panel and the true sources of a scene (.png, .pdf or .svg)."""
    scene: Annotated[int, Field(ge=0)] = 0
    """Scene to plot, counted from 0."""
    overwrite: bool = False
    """Replace the plot if it exists."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""

    def run(self) -> int:
        """Print facts and findings. Findings do not change the exit code."""
        if self.plot is not None:
            check_output(self.plot, overwrite=self.overwrite, endings=PLOT_ENDINGS)
            check_extras("report", "matplotlib")
        from rismusic.checks import check

        result = check(self.file, fit=self.fit)
        if self.as_json:
            print(json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False))
        else:
            self._print(result)
        if self.plot is not None:
            self._draw(self.plot)
        return 0

    def _print(self, result: CheckReport) -> None:
        from rich.table import Table
        from rich.text import Text

        console = SafeConsole()
        facts = Table(show_header=False, box=None)
        for name, value in result.facts.items():
            facts.add_row(name, plain(value))
        console.print(facts)
        for finding in result.findings:
            console.print(
                Text.assemble(
                    ("\nsuspicious:", "bold yellow"),
                    f" {finding.name}: {finding.meaning}: {finding.value:.3g}"
                    f" (at most {finding.threshold:.3g}).\n  To try: {finding.remedy}.",
                )
            )
            if finding.alike:
                console.print(f"  Fits as well: {', '.join(finding.alike)}.")
        if not result.findings:
            console.print("\nNothing suspicious.")

    def _draw(self, path: Path) -> None:
        from rismusic.io import open_recording
        from rismusic.plots import save, scene_figure

        with open_recording(self.file) as file:
            if self.scene >= len(file):
                raise InputError(
                    "--scene", f"the recording has scenes 0 to {len(file) - 1}; got {self.scene}"
                )
            recording = file[self.scene : self.scene + 1]
        if recording.truth is None:
            raise InputError(str(self.file), "has no true positions to plot")
        sources = recording.truth.each(lambda value: value[0])
        save(scene_figure(recording.panel, truth=sources), path, overwrite=self.overwrite)
        note(f"plot of scene {self.scene} written to {path}")
