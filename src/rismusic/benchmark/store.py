"""The folder of a benchmark: settings, one file for each completed unit, and the tables."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import tomlkit

from rismusic.benchmark.spec import SCENES, BenchSpec, Unit
from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.spec import flat_settings, read_toml
from rismusic.version import __version__

SETTINGS = "settings.toml"
_ANSWER = ("azimuth", "elevation", "range", "cost", "likelihood", "seconds")
_TRUTH = ("azimuth", "elevation", "range", "covariance", "noise_variance", "samples")

Arrays = dict[str, np.ndarray]


class Store:
    """Results of a benchmark on disk. Files are written atomically.

    Args:
        folder: ``settings.toml``, and ``parts/CELL/METHOD/SCENE.npz``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, spec: BenchSpec, *, resume: bool) -> None:
        """Create the folder, or continue in it.

        Raises:
            InputError: the folder holds a benchmark and ``resume`` is off, it holds one with other settings,
                or it cannot be written.
        """
        if (self.folder / SETTINGS).exists():
            if not resume:
                raise InputError(
                    str(self.folder),
                    "already holds a benchmark; choose another, or continue with resume=True (--resume)",
                )
            check_same(spec, self.folder)
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(str(self.folder), "not an empty folder; choose a new one for the benchmark")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(self.folder), f"the folder cannot be created: {error.strerror or error}"
            ) from error
        with replace_file(self.folder / SETTINGS, overwrite=True) as temporary:
            temporary.write_text(_dump(spec), encoding="utf-8")

    def path(self, unit: Unit) -> Path:
        """Path of the results of a unit."""
        return (
            self.folder / "parts" / unit.cell.name / unit.method.replace(":", "-") / f"{unit.start:07d}.npz"
        )

    def read(self, unit: Unit) -> Arrays | None:
        """The results of a unit; none if they are missing or the file is damaged."""
        names = _TRUTH if unit.method == SCENES else _ANSWER
        try:
            with self.path(unit).open("rb") as file, np.load(file, allow_pickle=False) as held:
                arrays = {name: held[name] for name in names}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            return None  # a truncated file: the unit is run again
        return arrays if len(arrays["azimuth"]) == unit.stop - unit.start else None

    def write(self, unit: Unit, arrays: Arrays) -> None:
        """Store the results of a unit.

        Raises:
            InputError: the file cannot be written.
        """
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, overwrite=True) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    def copy(self, unit: Unit, source: Store) -> None:
        """Copy the results of a unit from another folder."""
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, overwrite=True) as temporary:
            shutil.copyfile(source.path(unit), temporary)

    def clear(self) -> None:
        """Remove partial files of killed runs."""
        for path in (self.folder / "parts").glob("*/*/.*.part.npz"):
            path.unlink(missing_ok=True)


def load_settings(folder: Path) -> BenchSpec:
    """The settings of the benchmark in a folder.

    Raises:
        InputError: there are none, or another version of rismusic wrote them.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise InputError(str(folder), f"is not the folder of a benchmark: it has no {SETTINGS}")
    values = read_toml(path)
    version = values.pop("version", None)
    if version != __version__:
        raise InputError(
            str(path), f"results of rismusic {version} cannot be continued with version {__version__}"
        )
    try:
        return BenchSpec(**values)
    except InputError as error:
        raise InputError(str(path), str(error)) from None


def check_same(spec: BenchSpec, folder: Path) -> None:
    """Check that settings equal those of the benchmark in a folder.

    Raises:
        InputError: a setting differs; the error names the first one.
    """
    given, kept = (flat_settings(one.model_dump(mode="json")) for one in (spec, load_settings(folder)))
    for name, value in kept.items():
        if given[name] != value:
            raise InputError(name, f"must be {value!r} as in {folder / SETTINGS}; got {given[name]!r}")


def _dump(spec: BenchSpec) -> str:
    values = spec.model_dump(mode="json", exclude_none=True)
    return tomlkit.dumps({"version": __version__, **values})
