"""``.mat`` files of version 5 (the default of MATLAB's ``save``) and of version 7.3 (HDF5).

Version 5: the reader parses the tags of the file itself and checks every length against the file, since
``scipy.io.loadmat`` crashes on damaged files. Variables are read in slices; compressed variables are unpacked
into a temporary file first. The format is described in MathWorks' "MAT-File Format".

Version 7.3: a header of 512 bytes precedes the HDF5 content. MATLAB stores axes in reverse order, so that its
[S, L, M] is (M, L, S) in HDF5, and every array has at least two axes. Complex numbers are pairs (real, imag),
text is uint16, and the attribute ``MATLAB_class`` holds the class of a variable.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, ClassVar

import h5py
import numpy as np

from rismusic.errors import InputError
from rismusic.io.hdf5 import LARGEST_RATIO, Hdf5Sink, Hdf5Store, chunk_shape, dataset, member, members
from rismusic.io.schema import from_flat, to_flat
from rismusic.io.store import Array, Sink, Store, StoredArray, to_complex, understood

LARGEST_BYTES = 2**31 - 1
"""Largest size of one variable in version 5."""
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX = 0x0800
_LARGEST_RANK = 32
_PIECE_BYTES = 1 << 20
# Upper bound of the size of tags, flags, dimensions and name of a variable.
_HEAD_BYTES = 4096

TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1",
    17: "u2",
}  # fmt: skip
"""NumPy types of stored values, by the type code in a tag."""
CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2",
    11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8", 16: "function", 17: "opaque",
}  # fmt: skip
"""Classes of variables by code: the NumPy type of numeric classes, MATLAB's name of the others."""

HEADER_BYTES = 512
_TEXT = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, written by rismusic, HDF5 schema 1.00 ."
_HEADER = _TEXT.ljust(116) + bytes(8) + (0x0200).to_bytes(2, "little") + b"IM"
_CLASSES = {"f4": "single", "f8": "double", "c8": "single", "c16": "double"}


class Mat5Store(Store):
    """A file of version 5, open for reading."""

    format = "mat 5"
    matlab = True

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._unpacked: list[IO[bytes]] = []
        try:
            with understood(str(path), "must be a complete MATLAB 5 file"):
                # Variables without a name hold data of MATLAB objects.
                self._variables = {
                    from_flat(found.name): found for found in variables(self._file) if found.name
                }
        except InputError:
            self._file.close()
            raise

    def names(self) -> set[str]:
        """Names of the variables."""
        return set(self._variables)

    def structs(self) -> list[str]:
        """Names of variables of class ``struct``."""
        return [name for name, found in self._variables.items() if found.kind == "struct"]

    def array(self, name: str) -> StoredArray:
        """Open a variable; text becomes an array of one value."""
        found = self._variables[name]
        if found.kind.isalpha() and found.kind != "char":
            raise InputError(
                name, f"must be a full array of numbers, or text in single quotes; got a MATLAB {found.kind}"
            )
        with understood(name, "must be a readable variable"):
            file, offset = self._locate(found)
            array = Mat5Array(file, offset, found)
            return array.text() if found.kind == "char" else array

    def close(self) -> None:
        """Close the file and the temporary files."""
        for file in (*self._unpacked, self._file):
            file.close()

    def _locate(self, found: Variable) -> tuple[IO[bytes], int]:
        """File that holds the uncompressed variable, and its offset there."""
        if not found.compressed:
            return self._file, found.offset
        # Two parts of at most eight bytes a value, and tags.
        most = 16 * int(np.prod(found.shape, dtype=object)) + 2 * _HEAD_BYTES
        if int(np.prod(found.shape, dtype=object)) > LARGEST_RATIO * found.size:
            raise ValueError(f"shape {list(found.shape)}, but only {found.size} compressed bytes")
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
                if unpacked.tell() > most:
                    raise ValueError("the compressed values are longer than the shape says")
        unpacked.write(inflate.flush())
        if not inflate.eof:
            raise ValueError("the compressed values are truncated")
        unpacked.flush()
        return unpacked, 0


class Mat5Sink(Sink):
    """A file of version 5 under construction: kept in memory, at most 2 GiB for each variable."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._variables: dict[str, Any] = {}

    def attribute(self, name: str, value: str | float) -> None:
        """Add a variable of one value."""
        self._variables[name] = value

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Allocate a variable; refuses sizes above the limit of the format."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size > LARGEST_BYTES:
            raise InputError(
                name,
                f"a variable of a MATLAB 5 file holds at most 2 GiB; got {size / 2**30:.1f} GiB. "
                'Use mat_version="7.3" or .h5',
            )
        self._variables[to_flat(name)] = np.empty(shape, dtype)

    def write(self, name: str, start: int, block: Array) -> None:
        """Copy a block into a variable."""
        self._variables[to_flat(name)][start : start + len(block)] = block

    def finish(self) -> None:
        """Write the file."""
        from scipy.io import savemat  # reading does not need it, and it takes long to import

        savemat(self._file, self._variables, format="5", oned_as="column")
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        self._file.close()


class Mat5Array:
    """A variable of version 5: real and imaginary parts are separate, in column-major order."""

    def __init__(self, file: IO[bytes], offset: int, found: Variable) -> None:
        self._file, self._order, self.shape = file, found.order, found.shape
        self.dtype: np.dtype[Any] = np.dtype("u2" if found.kind == "char" else found.kind)
        if found.is_complex:
            self.dtype = np.result_type(self.dtype, np.complex64)
        end = file.seek(0, 2)
        position = offset + found.data
        self._parts: list[tuple[np.dtype[Any], int]] = []
        for _ in range(2 if found.is_complex else 1):
            file.seek(position)
            stored, size, values, after = read_tag(file.read(8), 0, found.order)
            # MATLAB stores integer values as integers, whatever the class of the variable.
            dtype = np.dtype(found.order + TYPES[stored])
            expected = int(np.prod(found.shape, dtype=object)) * dtype.itemsize
            if size != expected or position + values + size > end:
                raise ValueError(f"{size} bytes of values instead of {expected}")
            self._parts.append((dtype, position + values))
            position += after

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a part as a new array."""
        # A new mapping for each slice, so that its pages are released afterwards.
        parts = [
            np.memmap(self._file, dtype, "r", position, self.shape, order="F")[index]
            for dtype, position in self._parts
        ]
        return parts[0].astype(self.dtype) if len(parts) == 1 else to_complex(parts[0], parts[1], self.dtype)

    def text(self) -> Array:
        """Text of a variable of class ``char``."""
        dtype, position = self._parts[0]
        self._file.seek(position)
        content = self._file.read(int(np.prod(self.shape)) * dtype.itemsize)
        utf16 = {"<": "utf-16-le", ">": "utf-16-be"}[self._order]
        return np.asarray(content.decode(utf16 if dtype.itemsize == 2 else "utf-8"))


class Mat73Store(Hdf5Store):
    """A file of version 7.3, open for reading."""

    format = "mat 7.3"
    matlab = True

    def names(self) -> set[str]:
        """Names of the variables, without MATLAB's internal groups."""
        return {from_flat(name) for name in members(self._file) if not name.startswith("#")}

    def structs(self) -> list[str]:
        """Names of groups of class ``struct``."""
        return [name for name in self.names() if isinstance(member(self._file, to_flat(name)), h5py.Group)]

    def array(self, name: str) -> StoredArray:
        """Open a variable; text becomes an array of one value."""
        found = dataset(self._file, to_flat(name))
        kind = found.attrs.get("MATLAB_class", b"")
        if kind in (b"char", "char") and found.dtype == np.uint16 and "MATLAB_empty" not in found.attrs:
            return np.asarray(found[()].T.astype("<u2").tobytes().decode("utf-16-le"))
        return Mat73Array(found)


class Mat73Sink(Hdf5Sink):
    """A file of version 7.3 under construction."""

    userblock_bytes: ClassVar[int] = HEADER_BYTES

    def attribute(self, name: str, value: str | float) -> None:
        """Write a variable of one value."""
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
        """Create a variable in chunks of whole scenes."""
        chunks = chunk_shape(name, shape, dtype)
        found = self._file.hdf5.create_dataset(
            to_flat(name), _matlab_shape(shape), _as_pairs(dtype), chunks=chunks and _matlab_shape(chunks)
        )
        found.attrs["MATLAB_class"] = np.bytes_(_CLASSES[dtype.str[1:]])

    def write(self, name: str, start: int, block: Array) -> None:
        """Write part of a variable."""
        block = np.ascontiguousarray(block if block.ndim > 1 else block[:, None])
        pairs = block.view(_as_pairs(block.dtype))
        self._file.hdf5[to_flat(name)][..., start : start + len(block)] = pairs.T
        self._file.check()

    def finish(self) -> None:
        """Close the file and write MATLAB's header in front of it."""
        super().finish()
        with self._path.open("r+b") as file:
            file.write(_HEADER.ljust(HEADER_BYTES, b"\0"))


class Mat73Array:
    """A variable of version 7.3, with axes in MATLAB's order and pairs as complex numbers."""

    def __init__(self, found: h5py.Dataset) -> None:
        self._dataset = found
        # MATLAB stores the shape of an empty array in place of its values.
        empty = "MATLAB_empty" in found.attrs and found.attrs["MATLAB_empty"]
        self.shape: tuple[int, ...] = tuple(int(n) for n in found[()].ravel()) if empty else found.shape[::-1]
        self._pairs = found.dtype.names == ("real", "imag")
        self.dtype: np.dtype[Any] = found.dtype
        if self._pairs:
            self.dtype = np.result_type(found.dtype["real"], found.dtype["imag"], np.complex64)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a part as a new array."""
        full = (*index, *(slice(None),) * (len(self.shape) - len(index)))
        stored = self._dataset[full[::-1]].T
        if not self._pairs:
            return np.asarray(stored)
        return to_complex(stored["real"], stored["imag"], self.dtype)


@dataclass(frozen=True)
class Variable:
    """Position and type (of :data:`CLASSES`) of a variable in a file of version 5.

    ``offset`` and ``size`` in bytes are those of its element in the file, ``data`` is the offset of the
    values within it. The byte order is ``<`` or ``>``.
    """

    name: str
    kind: str
    is_complex: bool
    shape: tuple[int, ...]
    order: str
    data: int
    offset: int
    size: int
    compressed: bool


def variables(file: IO[bytes]) -> list[Variable]:
    """Variables of a file of version 5."""
    length = file.seek(0, 2)
    file.seek(_HEADER_BYTES - 2)
    order = "<" if file.read(2) == b"IM" else ">"
    found = []
    position = _HEADER_BYTES
    while position < length:
        file.seek(position)
        tag = file.read(8)
        if len(tag) < 8:
            raise ValueError("the file is truncated")
        kind, size = struct.unpack(f"{order}2I", tag)
        position += 8
        if position + size > length:
            raise ValueError("the file is truncated")
        if kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"an element of type {kind} where a variable should be")
        head = file.read(min(size, _HEAD_BYTES))
        found.append(_variable(head, order, position, size, compressed=kind == _COMPRESSED))
        position += size
    return found


def read_tag(head: bytes, position: int, order: str) -> tuple[int, int, int, int]:
    """Read a tag: type, number of bytes, offset of the values, and offset of the next tag."""
    if position + 8 > len(head):
        raise ValueError("an element ends too early")
    kind, size = struct.unpack_from(f"{order}2I", head, position)
    if kind >> 16:  # up to four bytes of values within the tag
        return kind & 0xFFFF, kind >> 16, position + 4, position + 8
    return kind, size, position + 8, position + 8 + -(-size // 8) * 8


def _variable(head: bytes, order: str, offset: int, size: int, *, compressed: bool) -> Variable:
    start = 0
    if compressed:
        head = zlib.decompressobj().decompress(head, _HEAD_BYTES)
        kind, _, start, _ = read_tag(head, 0, order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where a variable should be")
    _, flag_bytes, values, position = read_tag(head, start, order)
    if flag_bytes != 8:
        raise ValueError("a variable without flags")
    (flags,) = struct.unpack_from(f"{order}I", head, values)
    mat_class = CLASSES.get(flags & 0xFF, "opaque")
    shape: tuple[int, ...] = ()
    if mat_class != "opaque":  # an opaque object has no shape
        _, shape_bytes, values, position = read_tag(head, position, order)
        rank = shape_bytes // 4
        if not 2 <= rank <= _LARGEST_RANK:
            raise ValueError(f"a variable of {rank} axes")
        shape = struct.unpack_from(f"{order}{rank}i", head, values)
        if min(shape) < 0:
            raise ValueError("a variable of negative size")
    _, name_bytes, values, position = read_tag(head, position, order)
    name = head[values : values + name_bytes].decode("latin-1")
    return Variable(name, mat_class, bool(flags & _COMPLEX), shape, order, position, offset, size, compressed)


def _matlab_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in HDF5 of an array of ``shape`` in MATLAB."""
    return (shape if len(shape) > 1 else (*shape, 1))[::-1]


def _as_pairs(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind != "c":
        return dtype
    part = f"<f{dtype.itemsize // 2}"
    return np.dtype([("real", part), ("imag", part)])
