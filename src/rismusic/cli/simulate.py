"""``rismusic simulate``: random scenes of a system, as a recording with the true positions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rismusic.cli.command import Command, Option
from rismusic.cli.output import note, progress_bar
from rismusic.errors import InputError
from rismusic.files import check_output, write_text
from rismusic.spec import Count, SystemSpec, dump_spec
from rismusic.text import command_line
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel
    from rismusic.operator import Link

# Numbers simulated at a time: enough for full speed, and little memory even for a large panel.
_BLOCK_NUMBERS = 2**22


class Simulate(Command):
    """Simulate scenes and write them, with the true positions, as a recording (.h5, .npz or .mat)."""

    FLAT: ClassVar[str] = "system"

    output: Annotated[Path, Option("FILE", short="-o")]
    """Recording to write. The settings are written to FILE.toml."""
    scenes: Count
    """Number of scenes, S."""
    system: SystemSpec = SystemSpec()
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the scenes."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the scenes. Different splits of one seed share no scene."""
    link_from: Annotated[Path | None, Option("FILE")] = None
    """Use wavelength, elements, channel and RIS configurations of this recording."""
    mat_version: Literal["5", "7.3"] = "5"
    """Version of a .mat file."""
    overwrite: bool = False
    """Replace the output files if they exist."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""
    device: str = "cpu"
    """Device to compute on, such as cpu or cuda."""

    def run(self) -> int:
        """Simulate block by block straight into the file, so that memory stays constant."""
        settings = self.output.with_name(f"{self.output.name}.toml")
        for path in (self.output, settings):
            check_output(path, overwrite=self.overwrite)
        from rismusic.io import RecordingWriter
        from rismusic.simulation.simulator import Simulator

        panel, link = self._given()
        simulator = Simulator(
            self.system, seed=self.seed, split=self.split, panel=panel, link=link, device=self.device
        )
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
                writer.append(recording.to("cpu"))
                progress.advance(task, len(recording))
        head = f"# rismusic {__version__}: {command_line()}\n"
        write_text(settings, head + dump_spec(self.system), overwrite=self.overwrite)
        note(f"{self.output}: {self.scenes} scenes; settings in {settings}")
        return 0

    def _given(self) -> tuple[Panel, Link] | tuple[None, None]:
        if self.link_from is None:
            return None, None
        from rismusic.io import open_recording

        with open_recording(self.link_from) as file:
            one = file[0:1]
        if one.link.per_scene:
            raise InputError(
                str(self.link_from), "has a channel per scene; --link-from needs one for all scenes"
            )
        return one.panel, one.link
