"""``.npz`` files, as ``numpy.savez`` writes them; no whole array is held in memory.

Uncompressed members are memory-mapped within the archive. Compressed members are unpacked once into a
temporary file, which is then memory-mapped.
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
from rismusic.io.hdf5 import LARGEST_RATIO
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
        """Names of the members of the archive."""
        return set(self._members)

    def array(self, name: str) -> StoredArray:
        """Open a member: only the header of a field is read; attributes are read whole."""
        info = self._members[name]
        if info.flag_bits & _ENCRYPTED:
            raise InputError(name, "is encrypted in the archive; store it without encryption")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                name, "is compressed by another method than deflate, which NumPy's savez_compressed uses"
            )
        with understood(name, "must be an array in NumPy's format"):
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
        """File that holds the uncompressed member, and its offset there."""
        if info.compress_type == zipfile.ZIP_STORED:
            self._file.seek(info.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise zipfile.BadZipFile("the directory of the archive is wrong")
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
        if info.file_size > LARGEST_RATIO * info.compress_size:
            raise ValueError(f"{info.file_size} bytes cannot be unpacked from {info.compress_size}")

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a part as a new array."""
        if self._place is None:
            self._place = self._store.locate(self._info)
        file, offset = self._place
        # A new mapping for each slice, so that its pages are released afterwards.
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

    A zip archive is written member by member, but a block of scenes has all fields. Each array is therefore
    collected in an unnamed temporary file next to the output; :meth:`finish` copies them into the archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._waiting: dict[str, tuple[IO[bytes], dict[str, Any]]] = {}

    def attribute(self, name: str, value: str | float) -> None:
        """Write a member of one value."""
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Create the temporary file of an array."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        spool = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115  (closed with the sink)
        self._waiting[name] = (spool, header)

    def write(self, name: str, start: int, block: Array) -> None:
        """Write part of an array."""
        spool, _ = self._waiting[name]
        spool.seek(start * block[0].nbytes)
        spool.write(np.ascontiguousarray(block).data)

    def finish(self) -> None:
        """Copy the arrays into the archive and close it."""
        for name, (spool, header) in self._waiting.items():
            with self._zip.open(f"{to_flat(name)}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                spool.seek(0)
                shutil.copyfileobj(spool, member, _PIECE_BYTES)
            spool.close()
        self._zip.close()

    def abort(self) -> None:
        """Close the archive and the temporary files."""
        for spool, _ in self._waiting.values():
            spool.close()
        self._zip.close()
