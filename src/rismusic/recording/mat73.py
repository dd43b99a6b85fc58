"""``.mat`` version 7.3: HDF5 in MATLAB's manner.

512 bytes of header come before the HDF5 content; MATLAB counts axes the other way round, so that its
[S, L, M] is (M, L, S) here; every array has at least two axes; complex numbers are pairs (real, imag); text
is uint16; the attribute ``MATLAB_class`` says what a dataset is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rismusic.recording.hdf5 import chunk_shape, dataset, members, open_hdf5
from rismusic.recording.hdf5file import CarefulFile
from rismusic.recording.layout import from_flat, to_flat
from rismusic.recording.store import Array, Sink, Store, StoredArray

HEADER_BYTES = 512
_TEXT = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, written by rismusic, HDF5 schema 1.00 ."
_HEADER = _TEXT.ljust(116) + bytes(8) + (0x0200).to_bytes(2, "little") + b"IM"
_CLASSES = {"f4": "single", "f8": "double", "c8": "single", "c16": "double"}


class Mat73Store(Store):
    """A MATLAB 7.3 file open for reading."""

    format = "mat 7.3"
    matlab = True

    def __init__(self, path: Path) -> None:
        self._file = open_hdf5(path)

    def names(self) -> set[str]:
        """The variables; MATLAB's own groups are none."""
        return {from_flat(name) for name in members(self._file) if not name.startswith("#")}

    def array(self, name: str) -> StoredArray:
        """A variable, or a text as an array of one."""
        found = dataset(self._file, to_flat(name))
        kind = found.attrs.get("MATLAB_class", b"")
        if kind in (b"char", "char") and found.dtype == np.uint16 and "MATLAB_empty" not in found.attrs:
            return np.asarray(found[()].T.astype("<u2").tobytes().decode("utf-16-le"))
        return MatlabArray(found)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class MatlabArray:
    """A dataset with its axes in MATLAB's order and its pairs as complex numbers."""

    def __init__(self, found: h5py.Dataset) -> None:
        self._dataset = found
        # Of an empty array MATLAB stores the shape in place of the values.
        empty = "MATLAB_empty" in found.attrs and found.attrs["MATLAB_empty"]
        self.shape: tuple[int, ...] = tuple(int(n) for n in found[()].ravel()) if empty else found.shape[::-1]
        self._pairs = found.dtype.names == ("real", "imag")
        self.dtype: np.dtype[Any] = found.dtype
        if self._pairs and all(found.dtype[part].kind == "f" for part in ("real", "imag")):
            self.dtype = np.result_type(found.dtype["real"], found.dtype["imag"], np.complex64)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """A fresh array with the part that the slices select."""
        full = (*index, *(slice(None),) * (len(self.shape) - len(index)))
        stored = self._dataset[full[::-1]].T
        if not self._pairs:
            return np.asarray(stored)
        values = np.empty(stored.shape, self.dtype)
        values.real, values.imag = stored["real"], stored["imag"]
        return values


class Mat73Sink(Sink):
    """A MATLAB 7.3 file under construction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = CarefulFile(path, userblock_bytes=HEADER_BYTES)

    def attribute(self, name: str, value: str | float) -> None:
        """A variable of one value."""
        if isinstance(value, str):
            found = self._file.hdf5.create_dataset(
                name, data=np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None]
            )
            found.attrs["MATLAB_class"] = np.bytes_(b"char")
            found.attrs["MATLAB_int_decode"] = np.int32(2)
        else:
            found = self._file.hdf5.create_dataset(name, data=np.full((1, 1), value))
            found.attrs["MATLAB_class"] = np.bytes_(b"double")

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """A variable, in chunks of whole scenes."""
        chunks = chunk_shape(name, shape, dtype)
        found = self._file.hdf5.create_dataset(
            to_flat(name), _matlab_shape(shape), _as_pairs(dtype), chunks=chunks and _matlab_shape(chunks)
        )
        found.attrs["MATLAB_class"] = np.bytes_(_CLASSES[dtype.str[1:]])

    def write(self, name: str, start: int, block: Array) -> None:
        """Fill part of a variable."""
        block = np.ascontiguousarray(block if block.ndim > 1 else block[:, None])
        pairs = block.view(_as_pairs(block.dtype))
        self._file.hdf5[to_flat(name)][..., start : start + len(block)] = pairs.T
        self._file.check()

    def finish(self) -> None:
        """Close the file and write MATLAB's header in front of it."""
        self._file.close()
        with self._path.open("r+b") as file:
            file.write(_HEADER.ljust(HEADER_BYTES, b"\0"))

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


def _matlab_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in HDF5 of what is ``shape`` in MATLAB, of at least two axes."""
    return (shape if len(shape) > 1 else (*shape, 1))[::-1]


def _as_pairs(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind != "c":
        return dtype
    part = f"<f{dtype.itemsize // 2}"
    return np.dtype([("real", part), ("imag", part)])
