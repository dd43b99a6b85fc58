"""The folder of a benchmark: its settings, a file for each part that is done, and the tables made of them."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tomlkit
from tomlkit.exceptions import TOMLKitError

from rismusic.errors import InputError
from rismusic.evaluate.bench.plan import SCENES, Unit
from rismusic.evaluate.bench.spec import BenchSpec
from rismusic.files import replace_file
from rismusic.version import __version__

SETTINGS = "settings.toml"
_ANSWER = ("azimuth", "elevation", "range", "cost", "likelihood", "seconds")
_TRUTH = ("azimuth", "elevation", "range", "covariance", "noise_variance", "samples")

Arrays = dict[str, np.ndarray]


class Store:
    """Results of a benchmark on disk; every file appears whole or not at all.

    Args:
        folder: ``settings.toml``, and ``parts/CELL/METHOD/SCENE.npz``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, spec: BenchSpec, *, resume: bool) -> None:
        """Make the folder, or go on in it.

        Raises:
            InputError: it holds a benchmark and ``resume`` is off, or one with other settings; it cannot be
                written.
        """
        if (self.folder / SETTINGS).exists():
            if not resume:
                raise InputError(
                    str(self.folder), "a new folder (or resume=True, --resume)", "a benchmark in it"
                )
            check_same(spec, self.folder)
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(str(self.folder), "a new or empty folder", "something else in its place")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(self.folder), "a folder that can be made", error.strerror or str(error)
            ) from error
        with replace_file(self.folder / SETTINGS, overwrite=True) as temporary:
            temporary.write_text(_dump(spec), encoding="utf-8")

    def path(self, unit: Unit) -> Path:
        """Where the results of a part are, or will be."""
        return (
            self.folder / "parts" / unit.cell.name / unit.method.replace(":", "-") / f"{unit.start:07d}.npz"
        )

    def read(self, unit: Unit) -> Arrays | None:
        """The results of a part; none where it is not done, or its file is damaged."""
        names = _TRUTH if unit.method == SCENES else _ANSWER
        try:
            with self.path(unit).open("rb") as file, np.load(file, allow_pickle=False) as held:
                arrays = {name: held[name] for name in names}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            return None  # a file cut short: the part is done again
        return arrays if len(arrays["azimuth"]) == unit.stop - unit.start else None

    def write(self, unit: Unit, arrays: Arrays) -> None:
        """Keep the results of a part.

        Raises:
            InputError: the disk is full or refuses the file.
        """
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, overwrite=True) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    def copy(self, unit: Unit, source: Store) -> None:
        """Take the results of a part over from another folder."""
        path = self.path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, overwrite=True) as temporary:
            shutil.copyfile(source.path(unit), temporary)

    def clear(self) -> None:
        """Remove what killed runs have left half written."""
        for path in (self.folder / "parts").glob("*/*/.*.part.npz"):
            path.unlink(missing_ok=True)


def load_settings(folder: Path) -> BenchSpec:
    """The settings that a folder was made with.

    Raises:
        InputError: there are none, or not of this version.
    """
    path = folder / SETTINGS
    try:
        values = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise InputError(str(path), "the settings of a benchmark", str(error)) from None
    version = values.pop("version", None)
    if version != __version__:
        raise InputError(str(path), f"results of this version, {__version__}", f"version {version}")
    return BenchSpec(**values)


def check_same(spec: BenchSpec, folder: Path) -> None:
    """Refuse settings other than those that a folder was made with.

    Raises:
        InputError: naming the first setting that differs.
    """
    given, kept = (dict(_flat(one.model_dump(mode="json"))) for one in (spec, load_settings(folder)))
    for name, value in kept.items():
        if given[name] != value:
            raise InputError(name, f"{value!r} as in {folder / SETTINGS}", repr(given[name]))


def _dump(spec: BenchSpec) -> str:
    values = spec.model_dump(mode="json", exclude_none=True)
    return tomlkit.dumps({"version": __version__, **values})


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
