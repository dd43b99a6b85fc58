"""``rismusic check``: what is in a recording file, and what looks wrong with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tyro.conf import Positional, arg

from rismusic.cli.command import Command
from rismusic.cli.output import note
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, check_output

if TYPE_CHECKING:
    from rismusic.checks import CheckReport


class Check(Command):
    """Say what is in a recording file, what looks wrong with it, and how far the near field reaches."""

    file: Positional[Path]
    """The recording: .h5, .npz or .mat."""
    as_json: Annotated[bool, arg(name="json")] = False
    """Print JSON in place of a table."""
    fit: bool = True
    """Where there is no truth, look for mix-ups of conventions by quick fits (some seconds)."""

    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Draw the panel and the true sources of a scene (.png, .pdf or .svg)."""
    scene: Annotated[int, Field(ge=0)] = 0
    """The scene to draw, counted from 0."""
    overwrite: bool = False
    """Replace the picture if it exists."""

    def run(self) -> int:
        """Print facts and findings; findings are no reason to fail."""
        if self.plot is not None:
            check_output(self.plot, overwrite=self.overwrite, endings=PLOT_ENDINGS)
            from rismusic.plots import check_matplotlib

            check_matplotlib()
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
        from rich.console import Console
        from rich.table import Table

        console = Console()
        facts = Table(show_header=False, box=None)
        for name, value in result.facts.items():
            facts.add_row(name, value)
        console.print(facts)
        for finding in result.findings:
            console.print(
                f"\n[bold yellow]suspicious:[/] {finding.name}: {finding.meaning}: {finding.value:.3g}"
                f" (at most {finding.threshold:.3g}).\n  To try: {finding.remedy}."
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
                raise InputError("scene", f"a scene from 0 to {len(file) - 1}", str(self.scene))
            recording = file[self.scene : self.scene + 1]
        if recording.truth is None:
            raise InputError("truth", "sources to draw", "none in the file")
        sources = recording.truth.each(lambda value: value[0])
        save(scene_figure(recording.panel, truth=sources), path, overwrite=self.overwrite)
        note(f"picture of scene {self.scene} written to {path}")
