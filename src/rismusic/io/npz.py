"""``.npz``: what ``numpy.savez`` writes, read and written without ever holding a whole array.

Members that are stored plainly are memory-mapped where they lie in the archive. Compressed members are
unpacked once, in pieces, into a temporary file, which is then memory-mapped.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from rismusic.errors import InputError
from rismusic.io.schema import ATTRIBUTES, from_flat, to_flat
from rismusic.io.store import Array, Sink, Store, StoredArray, understood

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_PIECE_BYTES = 1 << 20


class NpzStore(Store):
    """A ``.npz`` file open for reading."""

    format = "npz"

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            with understood(str(path), "must be a complete npz file"):
                self.archive = zipfile.ZipFile(self._file)
        except InputError:
            self._file.close()
            raise
        self._members = {
            from_flat(info.filename.removesuffix(".npy")): info for info in self.archive.infolist()
        }
        self._spools: list[IO[bytes]] = []

    def names(self) -> set[str]:
        """The members of the archive."""
        return set(self._members)

    def array(self, name: str) -> StoredArray:
        """A member; only its header is read. Attributes, being scalars, are read."""
        info = self._members[name]
        if info.flag_bits & _ENCRYPTED:
            raise InputError(name, "is encrypted in the archive; store it without encryption")
        with understood(name, "must be an array in numpy's format"):
            member = NpzMember(self, info)
        if name in ATTRIBUTES and not member.dtype.hasobject and int(np.prod(member.shape)) == 1:
            return member[tuple(slice(None) for _ in member.shape)]
        return member

    def close(self) -> None:
        """Close the file and the temporary files."""
        for spool in self._spools:
            spool.close()
        self.archive.close()
        self._file.close()

    def locate(self, info: zipfile.ZipInfo) -> tuple[IO[bytes], int]:
        """A file in which the member lies unpacked, and where in it."""
        if info.compress_type == zipfile.ZIP_STORED:
            self._file.seek(info.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise zipfile.BadZipFile("the archive's directory points to no member")
            return self._file, info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        spool = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the store)
        self._spools.append(spool)
        with self.archive.open(info) as member:
            shutil.copyfileobj(member, spool, _PIECE_BYTES)
        spool.flush()
        return spool, 0


class NpzMember:
    """An array in a ``.npz`` file."""

    def __init__(self, store: NpzStore, info: zipfile.ZipInfo) -> None:
        self._store, self._info = store, info
        self._place: tuple[IO[bytes], int] | None = None
        with store.archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"version {version} of the format")
            self.shape, self._fortran, self.dtype = read_header(stream)
            self._header_bytes = stream.tell()
        size = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        if not self.dtype.hasobject and info.file_size != self._header_bytes + size:
            raise ValueError(f"{info.file_size - self._header_bytes} bytes of values instead of {size}")

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """A copy of the part that the slices select."""
        if self._place is None:
            self._place = self._store.locate(self._info)
        file, offset = self._place
        # Mapped anew for each slice: the pages that were touched are given back with the mapping.
        mapped = np.memmap(
            file,
            self.dtype,
            "r",
            offset + self._header_bytes,
            self.shape or (1,),
            order="F" if self._fortran else "C",
        )
        return np.array(mapped.reshape(self.shape)[index])


class NpzSink(Sink):
    """A ``.npz`` file under construction.

    A zip archive is written one member after the other, scenes arrive with all fields at once: each array
    waits in a nameless temporary file next to the output until the archive is put together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._waiting: dict[str, tuple[IO[bytes], dict[str, Any]]] = {}

    def attribute(self, name: str, value: str | float) -> None:
        """A member without axes."""
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """A member to come."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        spool = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115  (closed with the sink)
        self._waiting[name] = (spool, header)

    def write(self, name: str, start: int, block: Array) -> None:
        """Fill part of a member to come."""
        spool, _ = self._waiting[name]
        spool.seek(start * block[0].nbytes)
        spool.write(np.ascontiguousarray(block).data)

    def finish(self) -> None:
        """Put the archive together."""
        for name, (spool, header) in self._waiting.items():
            with self._zip.open(f"{to_flat(name)}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                spool.seek(0)
                shutil.copyfileobj(spool, member, _PIECE_BYTES)
            spool.close()
        self._zip.close()

    def abort(self) -> None:
        """Close everything."""
        for spool, _ in self._waiting.values():
            spool.close()
        self._zip.close()
