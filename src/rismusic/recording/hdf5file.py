"""HDF5 onto a disk that may be full."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py


class HeldErrors(io.FileIO):
    """A file whose first failing write is remembered, and after which writes are accepted and dropped.

    HDF5 cannot close a file to which it cannot write: the half-closed file stays in its tables and brings the
    process down later. So the library is told that all is well, and whoever drives it calls
    :meth:`raise_held` after each step.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._held: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it, or remember why not."""
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
        """Set the size, or remember why not."""
        try:
            return self.tell() if self._held else super().truncate(size)
        except OSError as error:
            self._held = error
            return self.tell()

    def raise_held(self) -> None:
        """Raise what was remembered.

        Raises:
            OSError: a write has failed.
        """
        if self._held is not None:
            raise self._held


class CarefulFile:
    """A new HDF5 file that can be closed on a full disk.

    Args:
        path: where it is written.
        userblock_bytes: room before the HDF5 content.
    """

    def __init__(self, path: Path, *, userblock_bytes: int = 0) -> None:
        self._disk = HeldErrors(path)
        self.hdf5 = h5py.File(self._disk, "w", userblock_size=userblock_bytes)

    def check(self) -> None:
        """Raise if a write has failed.

        Raises:
            OSError: a write has failed.
        """
        self._disk.raise_held()

    def close(self) -> None:
        """Close, and raise if a write has failed.

        Raises:
            OSError: a write has failed.
        """
        self.hdf5.close()
        self._disk.close()
        self.check()
