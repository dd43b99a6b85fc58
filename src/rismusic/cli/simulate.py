"""``rismusic simulate``: draw scenes of a system and write them as a recording, truth inside."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from tyro.conf import arg

from rismusic.cli.command import Command
from rismusic.cli.output import note, progress_bar
from rismusic.errors import InputError
from rismusic.files import check_output, replace_file
from rismusic.spec import Count, SystemSpec, dump_spec
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel
    from rismusic.operator import Link

# Scenes simulated at a time: enough for full speed, little enough for memory with a large panel.
_BLOCK_NUMBERS = 2**22


class Simulate(Command):
    """Simulate scenes and write them as a recording (.h5, .npz or .mat), the truth inside."""

    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE")]
    """File to write. FILE.toml beside it keeps the settings."""
    scenes: Count
    """Number of scenes, S."""
    system: Annotated[SystemSpec, arg(name="")] = SystemSpec()
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """The same seed gives the same scenes."""
    split: Literal["train", "validation", "test"] = "test"
    """Splits of one seed share no scene."""
    link_from: Annotated[Path | None, arg(metavar="FILE")] = None
    """Take wavelength, elements, channel and codes from this recording (one link for all scenes)."""
    mat_version: Literal["5", "7.3"] = "5"
    """Version of a .mat file."""
    overwrite: bool = False
    """Replace the output file if it exists."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with settings of the system; flags on the command line win."""

    def run(self) -> int:
        """Simulate block by block straight into the file, so that memory stays flat."""
        settings = self.output.with_name(f"{self.output.name}.toml")
        for path in (self.output, settings):
            check_output(path, overwrite=self.overwrite)
        from rismusic.io import RecordingWriter
        from rismusic.simulation.simulator import Simulator

        panel, link = self._given()
        simulator = Simulator(self.system, seed=self.seed, split=self.split, panel=panel, link=link)
        codebook = self.system.codebook
        block = max(1, _BLOCK_NUMBERS // (simulator.panel.size * codebook.snapshots))
        with (
            RecordingWriter(
                self.output, scenes=self.scenes, overwrite=self.overwrite, mat_version=self.mat_version
            ) as writer,
            progress_bar() as progress,
        ):
            task = progress.add_task("simulating scenes", total=self.scenes)
            for recording in simulator.stream(block, stop=self.scenes):
                writer.append(recording)
                progress.advance(task, len(recording))
        with replace_file(settings, overwrite=self.overwrite) as temporary:
            command = shlex.join(["rismusic", *sys.argv[1:]])
            temporary.write_text(f"# rismusic {__version__}: {command}\n{dump_spec(self.system)}", "utf-8")
        note(f"{self.output}: {self.scenes} scenes; settings in {settings}")
        return 0

    def _given(self) -> tuple[Panel, Link] | tuple[None, None]:
        if self.link_from is None:
            return None, None
        from rismusic.io import open_recording

        with open_recording(self.link_from) as file:
            one = file[0:1]
        if one.link.per_scene:
            raise InputError(str(self.link_from), "one link for all scenes", "a link per scene")
        return one.panel, one.link
