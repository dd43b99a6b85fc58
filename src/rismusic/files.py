"""Writing files so that nothing is ever half written: to a temporary name first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rismusic.errors import InputError

PLOT_ENDINGS = (".png", ".pdf", ".svg")
TABLE_ENDINGS = (".csv", ".json")


def check_output(path: Path, *, overwrite: bool, endings: Collection[str] = ()) -> None:
    """Refuse an output file that cannot or should not be written, before any work is done for it.

    Args:
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        endings: what the name may end in; anything if empty.

    Raises:
        InputError: the file exists and ``overwrite`` is off, is a folder, its folder is missing, or its name
            ends in something else.
    """
    if endings and path.suffix not in endings:
        raise InputError(str(path), f"a name ending in {' or '.join(endings)}", repr(path.suffix))
    if path.is_dir():
        raise InputError(str(path), "the name of a file to write", "a folder")
    if not path.parent.is_dir():
        raise InputError(str(path), "an existing folder to write to", f"no folder {path.parent}")
    if path.exists() and not overwrite:
        raise InputError(str(path), "a new file (or overwrite=True, --overwrite)", "an existing one")


@contextmanager
def replace_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` if all goes well, removed if not.

    Raises:
        InputError: see :func:`check_output`; or the disk is full or refuses the file.
    """
    check_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(str(path), "a place that can be written to", error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
