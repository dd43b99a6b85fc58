"""``rismusic simulate``, ``check`` and ``calibrate``: write, examine and use recordings."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from rich.table import Table
from rich.text import Text

from rismusic.cli.command import (
    Command,
    Option,
    SafeConsole,
    json_record,
    note,
    progress_bar,
    resumable,
    without_channel,
)
from rismusic.errors import InputError, in_file
from rismusic.files import check_output, read_text, write_text
from rismusic.parallel import check_workers, default_division, run_all, usable_cores
from rismusic.partial import PartialFile, part_files
from rismusic.registry import ESTIMATORS
from rismusic.spec import CalibrateSpec, Count, SystemSpec, dump_spec
from rismusic.text import command_line, counted, plain
from rismusic.version import __version__

if TYPE_CHECKING:
    from rismusic.array import Panel
    from rismusic.checks import CheckReport
    from rismusic.io import Recording
    from rismusic.operator import Link
    from rismusic.scene_view import Scene
    from rismusic.simulation.simulator import Simulator
    from rismusic.sources import Sources


# Numbers simulated at a time: enough for full speed, and little memory even for a large panel.
_BLOCK_NUMBERS = 2**22


def simulate_in_worker(simulator: Simulator, block: int, scenes: int, start: int) -> Recording:
    """Simulate the block of a recording that begins at scene ``start``, perhaps in another process."""
    from rismusic.devices import one_thread

    with one_thread() if scenes > block else nullcontext():
        return simulator.scenes(start, min(start + block, scenes)).to("cpu")


class Simulate(Command):
    """Simulate scenes and write them, with the true positions, as a recording (.h5, .npz or .mat)."""

    FLAT: ClassVar[str] = "system"
    OUTPUT_ENDINGS: ClassVar[tuple[str, ...]] = ()
    RESUMES_OUTPUT: ClassVar[bool] = True

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
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes. One writes as fast as it simulates, unless the panel is large."""
    cluster: Annotated[str | None, Option("ADDRESS")] = None
    """Use the workers of a Dask cluster, such as tcp://host:8786, not processes of this machine."""
    device: str = "cpu"
    """Device to compute on, such as cpu or cuda."""
    resume: bool = False
    """Continue a .h5 file whose writing was interrupted, with the same settings."""

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Options of a channel that is not there, or of another format."""
        yield from without_channel(self.system.channel, typed)
        if "mat_version" in typed and self.output.suffix != ".mat":
            yield "mat_version", f"{self.output} is no .mat file"

    @property
    def settings_file(self) -> Path:
        """The file beside the recording with the settings."""
        return self.output.parent / f"{self.output.name}.toml"

    def writes(self) -> list[tuple[str, Path]]:
        """The recording, and what is beside it: its settings, and a .h5 file until it is complete."""
        beside = [self.settings_file, *(part_files(self.output) if self._is_resumable else [])]
        return [*super().writes(), *(("--output", one) for one in beside)]

    @property
    def _is_resumable(self) -> bool:
        """Whether blocks can be stored as they come; other formats are put together at the end."""
        return self.output.suffix == ".h5"

    def run(self) -> int:
        """Simulate block by block straight into the file, so that memory stays constant."""
        check_workers(self.workers if self.workers > 1 else None, self.cluster)
        if self.resume and not self._is_resumable:
            raise InputError(
                "--resume", f"continues .h5 files only; {self.output} is put together at the end"
            )
        from rismusic.io import RecordingWriter
        from rismusic.simulation.simulator import Simulator

        panel, link, link_from = self._given()
        simulator = Simulator(
            self.system, seed=self.seed, split=self.split, panel=panel, link=link, device=self.device
        )
        codebook = self.system.codebook
        block = max(1, _BLOCK_NUMBERS // (simulator.panel.size * codebook.snapshots))
        with ExitStack() as stack:
            partial_file = None
            if self._is_resumable:
                names = {"system", "seed", "split", "scenes", "device"}
                settings = self.model_dump(mode="json", include=names)
                part = PartialFile(
                    self.output, "simulate", link_from, settings, resume=self.resume, overwrite=self.overwrite
                )
                partial_file = stack.enter_context(resumable(part, self.scenes))
                if part.is_complete:
                    if self.settings_file.exists():
                        note(f"{self.output} is complete")
                    else:
                        self._write_settings()
                    return 0
            check_output(self.settings_file, overwrite=self.overwrite)
            writer = stack.enter_context(
                RecordingWriter(
                    self.output,
                    scenes=self.scenes,
                    overwrite=self.overwrite,
                    mat_version=self.mat_version,
                    partial=partial_file,
                )
            )
            progress = stack.enter_context(progress_bar())
            first = 0 if partial_file is None else partial_file.scenes
            task = progress.add_task("simulating scenes", total=self.scenes, completed=first)
            starts = range(first, self.scenes, block)
            work = partial(simulate_in_worker, simulator, block, self.scenes)
            workers = min(self.workers, max(1, len(starts)))
            for _, recording in run_all(work, starts, workers=workers, cluster=self.cluster, ordered=True):
                writer.append(recording)
                progress.advance(task, len(recording))
        self._write_settings()
        return 0

    def _write_settings(self) -> None:
        head = f"# rismusic {__version__}: {command_line()}\n"
        write_text(self.settings_file, head + dump_spec(self.system), overwrite=self.overwrite)
        note(f"{self.output}: {counted(self.scenes, 'scene')}; settings in {self.settings_file}")

    def _given(self) -> tuple[Panel, Link, Path] | tuple[None, None, None]:
        if self.link_from is None:
            return None, None, None
        from rismusic.io import open_recording

        with open_recording(self.link_from) as file:
            one = file[0:1]
        if one.link.per_scene:
            raise InputError(
                str(self.link_from), "has a channel per scene; --link-from needs one for all scenes"
            )
        return one.panel, one.link, file.path


class Check(Command):
    """Describe a recording, report what looks wrong in it, and the extent of its near field."""

    POSITIONAL: ClassVar[str] = "file"
    NEEDS: ClassVar[Mapping[str, str]] = {"scene": "plot"}

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
        # Refused before the fits, which take seconds.
        scene = None if self.plot is None else self._drawn()
        from rismusic.checks import check

        result = check(self.file, fit=self.fit)
        if self.as_json:
            print(json.dumps(json_record(result), indent=1, allow_nan=False))
        else:
            self._print(result)
        if self.plot is not None and scene is not None:
            from rismusic.plots import save, scene_figure

            save(scene_figure(scene), self.plot, overwrite=self.overwrite)
            note(f"plot of scene {self.scene} written to {self.plot}")
        return 0

    def _print(self, result: CheckReport) -> None:
        console = SafeConsole()
        facts = Table(show_header=False, box=None)
        for name, value in result.facts.items():
            facts.add_row(name, plain(value))
        console.print(facts)
        for finding in result.findings:
            text = Text(f"\n{finding}")
            text.highlight_words(["suspicious:"], "bold yellow")
            console.print(text)
        if not result.findings:
            console.print("\nNothing suspicious.")

    def _drawn(self) -> Scene:
        from rismusic.io import open_recording
        from rismusic.scene_view import Scene

        with open_recording(self.file) as file:
            if self.scene >= len(file):
                raise InputError(
                    "--scene", f"the recording has scenes 0 to {len(file) - 1}; got {self.scene}"
                )
            recording = file[self.scene : self.scene + 1]
        if recording.truth is None:
            raise InputError(str(self.file), "has no true positions to plot")
        return Scene(recording.panel, truth=recording.truth[0])


_COLUMNS = ("scene", "azimuth_deg", "elevation_deg", "range_m")


class Calibrate(Command):
    """Calibrate the panel of a recording from all of its scenes (.h5, .npz or .mat)."""

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "file"
    OUTPUT_ENDINGS: ClassVar[tuple[str, ...]] = (".h5",)

    file: Path
    """The recording."""
    output: Annotated[Path, Option("FILE", short="-o")]
    """Calibration to write (.h5), for locate --calibration."""
    known_positions: Annotated[Path | None, Option("FILE")] = None
    """True positions of the sources: a .csv file with the columns scene, azimuth_deg, elevation_deg and
    range_m, as 'locate' writes them. Without it the calibration is blind."""
    settings: CalibrateSpec = CalibrateSpec()
    plot: Annotated[Path | None, Option("FILE")] = None
    """Plot amplitude and phase of the elements (.png, .pdf or .svg)."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of processes that locate the sources; 0: one per core, as far as there are scenes for them."""
    cluster: Annotated[str | None, Option("ADDRESS")] = None
    """Use the workers of a Dask cluster, such as tcp://host:8786, not processes of this machine."""
    overwrite: bool = False
    """Replace output files that exist."""
    config: Annotated[Path | None, Option("FILE")] = None
    """TOML file with these settings; options on the command line win."""

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Options of a search for sources whose positions or number are given."""
        if self.known_positions is not None:
            idle = [one for one in typed if one in ("method", "sources", "sources_max", "workers", "cluster")]
            yield from ((one, "--known-positions gives the sources") for one in idle)
        elif "sources_max" in typed and self.settings.sources != "auto":
            yield "sources_max", f"--sources {self.settings.sources} gives the number"

    def run(self) -> int:
        """Calibrate and say what was found."""
        check_workers(self.workers or None, self.cluster)
        from rismusic.estimation.noise import check_fit
        from rismusic.hybrid import BLOCK_SCENES
        from rismusic.io import read
        from rismusic.panel_calibration import calibrate_panel, check_calibratable

        recording = read(self.file)
        with in_file(self.file):
            check_calibratable(recording)
        blocks = math.ceil(len(recording) / BLOCK_SCENES)
        is_builtin = ESTIMATORS.is_builtin(self.settings.method)
        workers = self.workers or default_division(blocks, usable_cores(), threaded=is_builtin)[0]
        known = None if self.known_positions is None else read_positions(self.known_positions, len(recording))
        if known is not None:
            with in_file(str(self.known_positions)):
                check_fit(recording, known.active.sum(-1), None)
        calibration = calibrate_panel(
            recording, known, spec=self.settings, workers=workers, cluster=self.cluster
        )
        calibration.save(self.output, overwrite=self.overwrite)
        assert calibration.used is not None
        dead = calibration.dead.nonzero()[:, 0].tolist()
        left = (~calibration.used).nonzero()[:, 0].tolist()
        if left:
            note(f"scenes left out because the fit does not explain them: {', '.join(map(str, left))}")
        if known is None:
            note(
                "blind calibration: a phase gradient and a curvature of the phase over the panel, which "
                "shift all directions and ranges alike, are not identifiable and are taken to be small"
            )
        note(
            f"{self.output}: {len(calibration.response)} elements from "
            f"{counted(int(calibration.used.sum()), 'scene')}, "
            f"{len(dead)} dead{' (' + ', '.join(map(str, dead)) + ')' if dead else ''}; remaining error "
            f"{calibration.remaining_error:.3f}"
        )
        if self.plot is not None:
            from rismusic.plots import plot_panel_calibration, save

            save(plot_panel_calibration(calibration), self.plot, overwrite=self.overwrite)
            note(f"plot written to {self.plot}")
        return 0


def read_positions(path: Path, scenes: int) -> Sources:
    """Positions of the sources of every scene from a CSV file, NaN where a scene has fewer.

    Other columns than scene, azimuth_deg, elevation_deg and range_m are ignored.
    """
    from rismusic.sources import Sources

    # Spreadsheets end lines with \r or \r\n, and mark a text as UTF-8 by a first character of its own.
    rows = csv.DictReader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=None))
    found: list[list[tuple[float, ...]]] = [[] for _ in range(scenes)]
    try:
        times = Counter(rows.fieldnames or ())
        missing = [name for name in _COLUMNS if not times[name]]
        twice = [name for name in _COLUMNS if times[name] > 1]
        lines = list(enumerate(rows, start=2))
    except csv.Error as error:
        raise InputError(str(path), f"is not a CSV file: {error}") from None
    if missing:
        raise InputError(str(path), f"has no column {missing[0]}; needed are {', '.join(_COLUMNS)}")
    if twice:
        raise InputError(str(path), f"has more than one column {twice[0]}; which one holds?")
    if not lines:
        raise InputError(str(path), "has no positions below its first line")
    for line, row in lines:
        try:
            scene, *place = (float(row[name]) for name in _COLUMNS)
        except (TypeError, ValueError):
            raise InputError(str(path), f"line {line}: values must be numbers") from None
        if not all(map(math.isfinite, (scene, *place))):
            raise InputError(str(path), f"line {line}: values must be finite")
        if scene != int(scene) or not 0 <= scene < scenes:
            raise InputError(
                str(path), f"line {line}: scene {scene:g} does not exist; the recording has {scenes} scenes"
            )
        places = found[int(scene)]
        if tuple(place) in places:
            raise InputError(str(path), f"line {line}: scene {scene:g} has this position already")
        places.append(tuple(place))
    most = max(1, *map(len, found))
    table = [places + [(math.nan,) * 3] * (most - len(places)) for places in found]
    try:
        return Sources.from_degrees(*([[place[axis] for place in row] for row in table] for axis in range(3)))
    except InputError as error:
        raise InputError(str(path), f"{error.field} {error.problem}") from None
