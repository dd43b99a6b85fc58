"""``rismusic calibrate``: responses and positions of the elements of one panel, from a recording."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from rismusic.cli.command import Command, Option, check_extras, note
from rismusic.errors import InputError
from rismusic.files import PLOT_ENDINGS, check_output, read_text
from rismusic.parallel import check_workers, default_division, usable_cores
from rismusic.registry import ESTIMATORS
from rismusic.spec import CalibrateSpec
from rismusic.text import counted

if TYPE_CHECKING:
    from rismusic.sources import Sources

_COLUMNS = ("scene", "azimuth_deg", "elevation_deg", "range_m")


class Calibrate(Command):
    """Calibrate the panel of a recording from all of its scenes (.h5, .npz or .mat)."""

    FLAT: ClassVar[str] = "settings"
    POSITIONAL: ClassVar[str] = "file"

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

    def run(self) -> int:
        """Calibrate and say what was found."""
        check_output(self.output, overwrite=self.overwrite, endings=(".h5",))
        if self.plot is not None:
            check_output(self.plot, overwrite=self.overwrite, endings=PLOT_ENDINGS)
            check_extras("report", "matplotlib")
        check_workers(self.workers or None, self.cluster)
        from rismusic.estimation.noise import check_fit
        from rismusic.hybrid import BLOCK_SCENES
        from rismusic.io import read
        from rismusic.io.reader import in_file
        from rismusic.panel_calibration import calibrate_panel, check_recording

        recording = read(self.file)
        with in_file(self.file):
            check_recording(recording)
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
    """Positions of the sources of every scene from a CSV file.

    Args:
        path: a file with the columns scene, azimuth_deg, elevation_deg and range_m; others are ignored.
        scenes: number of scenes of the recording, S.

    Returns:
        Sources [S, K], NaN where a scene has fewer.

    Raises:
        InputError: a column is missing, a value is no number, or a scene does not exist.
    """
    from rismusic.sources import Sources

    # Spreadsheets end lines with \r or \r\n, and mark a text as UTF-8 by a first character of its own.
    rows = csv.DictReader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=None))
    found: list[list[tuple[float, ...]]] = [[] for _ in range(scenes)]
    try:
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        lines = list(enumerate(rows, start=2))
    except csv.Error as error:
        raise InputError(str(path), f"is not a CSV file: {error}") from None
    if missing:
        raise InputError(str(path), f"has no column {missing[0]}; needed are {', '.join(_COLUMNS)}")
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
        found[int(scene)].append(tuple(place))
    most = max(1, *map(len, found))
    table = [places + [(math.nan,) * 3] * (most - len(places)) for places in found]
    try:
        return Sources.from_degrees(*([[place[axis] for place in row] for row in table] for axis in range(3)))
    except InputError as error:
        raise InputError(str(path), f"{error.field} {error.problem}") from None
