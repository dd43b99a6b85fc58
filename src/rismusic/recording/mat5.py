"""``.mat`` version 5: what MATLAB saves by default; read one variable at a time, gathered before writing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat, savemat, whosmat
from scipy.io.matlab import MatReadWarning

from rismusic.errors import InputError
from rismusic.recording.layout import from_flat, to_flat
from rismusic.recording.store import Array, Sink, Store, StoredArray, understood

LARGEST_BYTES = 2**31 - 1
"""The format's limit for one variable."""

# MATLAB stores whole numbers of a floating-point class as integers to save room.
_FLOAT_CLASSES = {"single": (np.float32, np.complex64), "double": (np.float64, np.complex128)}


class Mat5Store(Store):
    """A MATLAB 5 file open for reading. A variable is read whole, when first asked for, and kept."""

    format = "mat 5"
    matlab = True

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            with understood(str(path), "a complete MATLAB 5 file"):
                self._classes = {name: kind for name, _, kind in whosmat(self._file)}
        except InputError:
            self._file.close()
            raise
        self._names = {from_flat(name): name for name in self._classes}
        self._arrays: dict[str, Array] = {}

    def names(self) -> set[str]:
        """The variables."""
        return set(self._names)

    def array(self, name: str) -> StoredArray:
        """A variable."""
        if name not in self._arrays:
            self._arrays[name] = self._load(name)
        return _Copied(self._arrays[name])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _load(self, name: str) -> Array:
        variable = self._names[name]
        with understood(name, "a readable variable"), warnings.catch_warnings():
            # scipy warns of a broken variable and returns a text in its place.
            warnings.simplefilter("error", MatReadWarning)
            self._file.seek(0)
            value = loadmat(self._file, variable_names=[variable])[variable]
        if not isinstance(value, np.ndarray):
            raise InputError(name, "a full array", f"a {type(value).__name__}")
        kind = self._classes[variable]
        if kind in _FLOAT_CLASSES and value.dtype.kind in "iufc":
            real, complex_ = _FLOAT_CLASSES[kind]
            return value.astype(complex_ if value.dtype.kind == "c" else real, copy=False)
        return value


class _Copied:
    """An array in memory whose slices are copies, as those of a file are."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        return np.array(self._array[index])


class Mat5Sink(Sink):
    """A MATLAB 5 file under construction: gathered in memory, at most 2 GiB a variable."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._variables: dict[str, Any] = {}

    def attribute(self, name: str, value: str | float) -> None:
        """A variable of one value."""
        self._variables[name] = value

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """A variable; refused if it is larger than the format allows."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size > LARGEST_BYTES:
            raise InputError(
                name,
                "at most 2 GiB in one variable of a MATLAB 5 file",
                f'{size / 2**30:.1f} GiB (mat_version="7.3" and .h5 have no such limit)',
            )
        self._variables[to_flat(name)] = np.empty(shape, dtype)

    def write(self, name: str, start: int, block: Array) -> None:
        """Fill part of a variable."""
        self._variables[to_flat(name)][start : start + len(block)] = block

    def finish(self) -> None:
        """Write the file."""
        savemat(self._file, self._variables, format="5", oned_as="column")
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        self._file.close()
