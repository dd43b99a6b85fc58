"""``.mat`` version 5: what MATLAB saves by default.

Read in slices, from where a variable lies in the file, or from a temporary file into which a compressed one
is unpacked; gathered in memory to be written.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from scipy.io import savemat

from rismusic.errors import InputError
from rismusic.recording.layout import from_flat, to_flat
from rismusic.recording.mat5elements import TYPES, Variable, read_tag, variables
from rismusic.recording.store import Array, Sink, Store, StoredArray, understood

LARGEST_BYTES = 2**31 - 1
"""The format's limit for one variable."""
_PIECE_BYTES = 1 << 20


class Mat5Store(Store):
    """A MATLAB 5 file open for reading."""

    format = "mat 5"
    matlab = True

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._unpacked: list[IO[bytes]] = []
        try:
            with understood(str(path), "a complete MATLAB 5 file"):
                # MATLAB keeps what belongs to objects in a variable without a name.
                self._variables = {
                    from_flat(found.name): found for found in variables(self._file) if found.name
                }
        except InputError:
            self._file.close()
            raise

    def names(self) -> set[str]:
        """The variables."""
        return set(self._variables)

    def array(self, name: str) -> StoredArray:
        """A variable; a text as an array of one."""
        found = self._variables[name]
        if found.kind.isalpha() and found.kind != "char":
            raise InputError(
                name, "a full array of numbers, or a text in single quotes", f"a {found.kind} of MATLAB's"
            )
        with understood(name, "a readable variable"):
            file, offset = self._locate(found)
            array = Mat5Array(file, offset, found)
            return array.text() if found.kind == "char" else array

    def close(self) -> None:
        """Let go of the file and of what was unpacked."""
        for file in (*self._unpacked, self._file):
            file.close()

    def _locate(self, found: Variable) -> tuple[IO[bytes], int]:
        """A file in which the variable lies unpacked, and where in it."""
        if not found.compressed:
            return self._file, found.offset
        unpacked = TemporaryFile()  # noqa: SIM115  (closed with the store)
        self._unpacked.append(unpacked)
        self._file.seek(found.offset)
        left, inflate = found.size, zlib.decompressobj()
        while left and not inflate.eof:
            piece = self._file.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ValueError("the file is truncated")
            left -= len(piece)
            while piece:
                unpacked.write(inflate.decompress(piece, _PIECE_BYTES))
                piece = inflate.unconsumed_tail
        unpacked.write(inflate.flush())
        if not inflate.eof:
            raise ValueError("the compressed values are truncated")
        unpacked.flush()
        return unpacked, 0


class Mat5Array:
    """A variable of numbers, real and imaginary parts apart, the first axis the fastest."""

    def __init__(self, file: IO[bytes], offset: int, found: Variable) -> None:
        self._file, self._order, self.shape = file, found.order, found.shape
        self.dtype: np.dtype[Any] = np.dtype("u2" if found.kind == "char" else found.kind)
        if found.is_complex and self.dtype.kind == "f":
            self.dtype = np.result_type(self.dtype, np.complex64)
        end = file.seek(0, 2)
        place = offset + found.data
        self._parts: list[tuple[np.dtype[Any], int]] = []
        for _ in range(2 if found.is_complex else 1):
            file.seek(place)
            stored, size, values, after = read_tag(file.read(8), 0, found.order)
            # Whole numbers are stored as integers to save room, whatever their class.
            dtype = np.dtype(found.order + TYPES[stored])
            expected = int(np.prod(found.shape, dtype=object)) * dtype.itemsize
            if size != expected or place + values + size > end:
                raise ValueError(f"{size} bytes of values instead of {expected}")
            self._parts.append((dtype, place + values))
            place += after

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """A fresh array with the part that the slices select."""
        # Mapped anew for each slice: the pages that were touched are given back with the mapping.
        parts = [
            np.memmap(self._file, dtype, "r", place, self.shape, order="F")[index]
            for dtype, place in self._parts
        ]
        values = np.empty(parts[0].shape, self.dtype)
        if len(parts) == 1:
            values[...] = parts[0]
        else:
            values.real, values.imag = parts
        return values

    def text(self) -> Array:
        """The letters of a variable of class ``char``, one after the other."""
        dtype, place = self._parts[0]
        self._file.seek(place)
        content = self._file.read(int(np.prod(self.shape)) * dtype.itemsize)
        utf16 = {"<": "utf-16-le", ">": "utf-16-be"}[self._order]
        return np.asarray(content.decode(utf16 if dtype.itemsize == 2 else "utf-8"))


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
