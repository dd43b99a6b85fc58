"""``.h5``: one dataset for each field, chunked by scenes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rismusic.errors import InputError
from rismusic.recording.hdf5file import CarefulFile
from rismusic.recording.layout import ATTRIBUTES, FIELDS
from rismusic.recording.store import Array, Sink, Store, StoredArray, reason

_CHUNK_BYTES = 1 << 18
_LARGEST_CHUNK_BYTES = 1 << 30


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        InputError: it is being written by another program, truncated, or broken.
    """
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        found = f"one that cannot be read ({reason(error)})"
        if "unable to lock" in str(error) or "open for write" in str(error):
            found = "one that another program is writing (or was writing when it died)"
        elif "truncated" in str(error):
            found = "a truncated one"
        raise InputError(str(path), "a complete HDF5 file", found) from error


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of the file that holds values."""
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise InputError(name, "an array", "a group")
    if found.shape is None:
        raise InputError(name, "an array", "a dataset without any values")
    return found


def members(group: Iterable[str | bytes]) -> set[str]:
    """Names in a group; h5py gives those that are no UTF-8 as bytes."""
    return {name if isinstance(name, str) else name.decode("utf-8", "replace") for name in group}


def chunk_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Chunks of whole scenes; none where scenes share the array or one alone is too large for a chunk."""
    if not FIELDS[name].per_scene(len(shape)):
        return None
    scene_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if scene_bytes > _LARGEST_CHUNK_BYTES:
        return None
    return (max(1, min(shape[0], _CHUNK_BYTES // scene_bytes)), *shape[1:])


class Hdf5Store(Store):
    """A ``.h5`` file open for reading."""

    format = "h5"

    def __init__(self, path: Path) -> None:
        self._file = open_hdf5(path)

    def names(self) -> set[str]:
        """Datasets of the root and of ``truth``, and the root's attributes."""
        names = members(self._file) - {"truth", *ATTRIBUTES} | members(self._file.attrs)
        if "truth" in self._file:
            if not isinstance(self._file["truth"], h5py.Group):
                raise InputError("truth", "a group of arrays", "an array")
            names |= {f"truth/{name}" for name in members(self._file["truth"])}
        return names

    def array(self, name: str) -> StoredArray:
        """A dataset, or an attribute as an array of one value."""
        if name in ATTRIBUTES:
            return np.asarray(self._file.attrs[name])
        return dataset(self._file, name)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Hdf5Sink(Sink):
    """A ``.h5`` file under construction."""

    def __init__(self, path: Path) -> None:
        self._file = CarefulFile(path)

    def attribute(self, name: str, value: str | float) -> None:
        """An attribute of the root."""
        self._file.hdf5.attrs[name] = value

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """A dataset, in chunks of whole scenes."""
        self._file.hdf5.create_dataset(name, shape, dtype, chunks=chunk_shape(name, shape, dtype))

    def write(self, name: str, start: int, block: Array) -> None:
        """Fill part of a dataset."""
        self._file.hdf5[name][start : start + len(block)] = block
        self._file.check()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        self._file.close()
