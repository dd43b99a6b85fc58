"""Which format a file has: its name says what it should be, its first bytes what it is."""

from __future__ import annotations

from pathlib import Path

from rismusic.errors import InputError
from rismusic.recording.hdf5 import Hdf5Store
from rismusic.recording.layout import SUFFIXES
from rismusic.recording.mat5 import Mat5Store
from rismusic.recording.mat73 import HEADER_BYTES, Mat73Store
from rismusic.recording.npz import NpzStore
from rismusic.recording.store import Store

_HDF5 = b"\x89HDF\r\n\x1a\n"
_STORES: dict[str, dict[str, type[Store]]] = {
    ".h5": {"an HDF5 file": Hdf5Store},
    ".npz": {"a zip archive": NpzStore},
    ".mat": {"a MATLAB 5 file": Mat5Store, "a MATLAB 7.3 file": Mat73Store},
}


def suffix(path: Path) -> str:
    """The extension of a recording, in lower case.

    Raises:
        InputError: it is none of the known ones.
    """
    found = path.suffix.lower()
    if found not in SUFFIXES:
        raise InputError(
            str(path), f"a name that ends in {', '.join(SUFFIXES)}", f'"{found}"' if found else "none"
        )
    return found


def open_store(path: Path) -> Store:
    """Open a recording for reading.

    Raises:
        InputError: it is missing, unreadable, or not of a format that goes with its name.
    """
    stores = _STORES[suffix(path)]
    content = _content(path)
    expected = " or ".join(stores)
    if content not in stores:
        raise InputError(str(path), expected, content)
    try:
        return stores[content](path)
    except OSError as error:
        raise InputError(str(path), expected, f"one that cannot be read ({error.strerror})") from error


def _content(path: Path) -> str:
    """What the first bytes say that a file is."""
    try:
        if path.is_dir():
            raise InputError(str(path), "a recording", "a directory")
        if path.exists() and not path.is_file():
            raise InputError(str(path), "a recording", "a device or a pipe")
        with path.open("rb") as file:
            head = file.read(2 * HEADER_BYTES)
            places = [head[place : place + 8] for place in (0, HEADER_BYTES)]
            place = 2 * HEADER_BYTES
            # HDF5 may come after a block of any other content, of 512 bytes or a power of two times that.
            while head and _HDF5 not in places and file.seek(place) == place and (found := file.read(8)):
                places.append(found)
                place *= 2
    except FileNotFoundError:
        raise InputError(str(path), "a recording", "no such file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        found_instead = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(str(path), "a readable file", found_instead) from error
    version = {b"IM": head[124:126][::-1], b"MI": head[124:126]}.get(head[126:128], b"")
    if not head:
        return "an empty file"
    if version == b"\2\0" and places[1] == _HDF5:
        return "a MATLAB 7.3 file"
    if _HDF5 in places:
        return "an HDF5 file"
    if version == b"\1\0":
        return "a MATLAB 5 file"
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "a zip archive"
    if path.suffix.lower() == ".mat" and 0 in head[:4]:
        return "something else (a MATLAB 4 file?)"
    return f"a file that starts with {head[:16]!r}"
