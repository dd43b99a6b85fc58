"""``.h5`` files: one dataset for each field, in chunks of scenes; also the basis of MATLAB 7.3 files."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from rismusic.errors import InputError
from rismusic.files import failure
from rismusic.io.schema import ATTRIBUTES, FIELDS, WIDEBAND
from rismusic.io.store import Array, Sink, Store, StoredArray

_CHUNK_BYTES = 1 << 18
_LARGEST_CHUNK_BYTES = 1 << 30
_MOST_LINKS = 64
# Signature and version of a heap of texts, and the bytes at each end of a file in which they are looked for.
_HEAP, _SCANNED = b"GCOL\1\0\0\0", 2**21
# Types of attributes that are read.
_PLAIN = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT)
LARGEST_RATIO = 1100
"""A little more than the largest compression ratio of deflate, 1032."""


class Hdf5Store(Store):
    """A ``.h5`` file open for reading."""

    format = "h5"

    def __init__(self, path: Path) -> None:
        self._file = open_hdf5(path)

    def names(self) -> set[str]:
        """Datasets of the root and of ``truth``, and the root's attributes."""
        names = members(self._file) - {"truth", *ATTRIBUTES} | members(self._file.attrs)
        if "truth" in self._file:
            truth = member(self._file, "truth")
            if not isinstance(truth, h5py.Group):
                raise InputError("truth", "must be a group of arrays; got an array")
            names |= {f"truth/{name}" for name in members(truth)}
        return names

    def array(self, name: str) -> StoredArray:
        """A dataset, or an attribute as an array of one value."""
        if name in ATTRIBUTES:
            return attribute(self._file, name)
        return dataset(self._file, name)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Hdf5Sink(Sink):
    """A ``.h5`` file under construction."""

    userblock_bytes: ClassVar[int] = 0

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self._path = path
        self._file = CarefulFile(path, userblock_bytes=self.userblock_bytes, resumed=resumed)

    def attribute(self, name: str, value: str | float) -> None:
        """Write an attribute of the root."""
        self._file.hdf5.attrs[name] = value

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Create a dataset in chunks of whole scenes."""
        self._file.hdf5.create_dataset(name, shape, dtype, chunks=chunk_shape(name, shape, dtype))

    def write(self, name: str, start: int, block: Array) -> None:
        """Write part of a dataset."""
        self._file.hdf5[name][start : start + len(block)] = block
        self._file.check()

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    abort = finish


class PartialHdf5Sink(Hdf5Sink):
    """A ``.h5`` file under construction that can be continued after the last call of :meth:`flush`.

    The space of a dataset is allocated when it is created, so that nothing but values is written afterwards.
    A process that is killed therefore leaves a valid file.
    """

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Create a dataset in chunks of whole scenes, and allocate its space."""
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._file.hdf5.create_dataset(name, shape, dtype, chunks=chunk_shape(name, shape, dtype), dcpl=plist)

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        self._file.hdf5.flush()
        self._file.sync()


class CarefulFile:
    """HDF5 file that can be closed on a full disk."""

    def __init__(self, path: Path, *, userblock_bytes: int = 0, resumed: bool = False) -> None:
        self._disk = HeldErrors(path, "r+" if resumed else "w+")
        if resumed:
            self.hdf5 = h5py.File(self._disk, "r+")
        else:
            self.hdf5 = h5py.File(self._disk, "w", userblock_size=userblock_bytes)
        self.check = self._disk.raise_held

    def sync(self) -> None:
        """Wait until all that was flushed is on the disk, or raise the error of an earlier write."""
        self.check()
        os.fsync(self._disk.fileno())

    def close(self) -> None:
        """Close the file, and then raise the error of an earlier write."""
        self.hdf5.close()
        self._disk.close()
        self.check()


class HeldErrors(io.FileIO):
    """File that stores its first write error; later writes are discarded without an error.

    HDF5 cannot close a file after a failed write: the file stays half-closed in its tables and crashes the
    process later. Therefore HDF5 never sees the error, and the caller checks with :meth:`raise_held` after
    each step.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._held: OSError | None = None

    def write(self, content: Any) -> int:
        """Write the content, or store the error."""
        view = memoryview(content).cast("B")
        written = 0
        try:
            while self._held is None and written < len(view):
                written += super().write(view[written:]) or 0
        except OSError as error:
            self._held = error
        if self._held is not None:
            self.seek(len(view) - written, os.SEEK_CUR)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or store the error."""
        try:
            return self.tell() if self._held else super().truncate(size)
        except OSError as error:
            self._held = error
            return self.tell()

    def raise_held(self) -> None:
        """Raise the stored error, if any."""
        if self._held is not None:
            raise self._held


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading."""
    try:
        _check_heaps(path)
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        problem = "is not a complete HDF5 file"
        if isinstance(error, OSError) and error.filename is not None:
            problem = f"cannot be read: {failure(error).lower()}"
        if "unable to lock" in str(error) or "open for write" in str(error):
            problem = "is locked: another program is writing it, or ended while writing it"
        elif "truncated" in str(error):
            problem = "is a truncated HDF5 file"
        raise InputError(str(path), problem) from error


def _check_heaps(path: Path) -> None:
    """Refuse a heap of texts that HDF5 would walk forever: a free block whose size a flipped bit made 0.

    Heaps are written with the attributes, at the beginning of a file or, by some programs, at its end.
    """
    with path.open("rb") as file:
        parts = [file.read(_SCANNED)]
        if len(parts[0]) == _SCANNED:
            file.seek(max(_SCANNED, file.seek(0, os.SEEK_END) - _SCANNED))
            parts.append(file.read())
    for part in parts:
        start = part.find(_HEAP)
        while start >= 0:
            (size,) = struct.unpack_from("<Q", part[start : start + 16].ljust(16, b"\0"), 8)
            offset, end = start + 16, min(start + size, len(part))
            while offset + 16 <= end:
                index, _, length = struct.unpack_from("<HHxxxxQ", part, offset)
                if index == 0 and length == 0:
                    raise InputError(str(path), "is a damaged HDF5 file: a block of its texts has no size")
                offset += 16 + -(-length // 8) * 8 if index else length
            start = part.find(_HEAP, start + 1)


def member(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    """Group or dataset of a name. Links that lead out of the file are not followed."""
    left, found = name.strip("/").split("/"), file
    for _ in range(_MOST_LINKS):
        if not left:
            return found
        part = left.pop(0)
        if part in ("", "."):
            continue
        link = found.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise InputError(
                name, "is a link to another file, which is not followed; store the values themselves"
            )
        if isinstance(link, h5py.SoftLink):
            if link.path.startswith("/"):
                found = file
            left = [*link.path.strip("/").split("/"), *left]
        else:
            try:
                found = found[part]
            except KeyError as error:
                raise InputError(name, "cannot be read; the file is damaged") from error
    raise InputError(name, "is a link that leads to itself")


def attribute(file: h5py.File, name: str) -> Array:
    """An attribute of the root, which holds texts or numbers.

    The type is looked at first: HDF5 can end the process when it reads other types from a damaged file.
    """
    found = file.attrs.get_id(name)
    if found.get_type().get_class() not in _PLAIN or found.shape is None:
        raise InputError(name, "must be an attribute that is a text or a real number")
    return np.asarray(file.attrs[name])


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Dataset of a name, whose values are all in the file."""
    found = member(file, name)
    if not isinstance(found, h5py.Dataset):
        raise InputError(name, "must be an array; got a group")
    if found.shape is None:
        raise InputError(name, "must be an array; got a dataset without any values")
    if found.is_virtual:
        raise InputError(
            name, "is a virtual dataset, whose values are in other files; store the values themselves"
        )
    if found.external:
        raise InputError(
            name, "has its values in another file, which is not read; store the values themselves"
        )
    _check_stored(file, name, found)
    return found


def _check_stored(file: h5py.File, name: str, found: h5py.Dataset) -> None:
    """Compare the declared size of a dataset with what the file holds.

    HDF5 invents zeros for values that were never written, and a few bytes can declare any shape.
    """
    needed = int(np.prod(found.shape, dtype=object)) * found.dtype.itemsize
    plist = found.id.get_create_plist()
    compact = plist.get_layout() == h5py.h5d.COMPACT
    if needed == 0 or compact:
        return
    held = Path(file.filename).stat().st_size
    stored = found.id.get_storage_size()
    filtered = plist.get_nfilters() > 0
    if filtered:
        needed = -(-needed // LARGEST_RATIO)
    complete = stored >= needed <= held
    if found.chunks is not None and complete:
        expected = math.prod(-(-size // chunk) for size, chunk in zip(found.shape, found.chunks, strict=True))
        complete = found.id.get_num_chunks() == expected
        block = math.prod(found.chunks) * found.dtype.itemsize
        if filtered and block > _LARGEST_CHUNK_BYTES:
            raise InputError(name, f"is compressed in blocks of {block:,} bytes; use smaller chunks")
    if not complete:
        raise InputError(
            name,
            f"declares shape {list(found.shape)}, but the file does not hold so many values. Was it written "
            "to the end?",
        )


def members(group: Iterable[str | bytes]) -> set[str]:
    """Names in a group; h5py returns names that are not UTF-8 as bytes."""
    return {name if isinstance(name, str) else name.decode("utf-8", "replace") for name in group}


def chunk_shape(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Chunks of whole scenes; None if the scenes share the array or one scene exceeds the largest chunk."""
    if not (FIELDS[name].per_scene(len(shape)) or WIDEBAND[name].per_scene(len(shape))):
        return None
    scene_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if scene_bytes > _LARGEST_CHUNK_BYTES:
        return None
    return (max(1, min(shape[0], _CHUNK_BYTES // scene_bytes)), *shape[1:])
