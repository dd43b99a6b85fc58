"""Checks of output files, and atomic writing: to a temporary name that is then renamed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rismusic.errors import InputError

PLOT_ENDINGS = (".png", ".pdf", ".svg")
TABLE_ENDINGS = (".csv", ".json")


def check_output(path: Path, *, overwrite: bool, endings: Collection[str] = ()) -> None:
    """Check that an output file can be written, before the work for it starts.

    Args:
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        endings: allowed extensions; empty for any.

    Raises:
        InputError: the path is a folder or an existing file without ``overwrite``, its folder is missing, or
            the extension is not allowed.
    """
    if endings and path.suffix not in endings:
        raise InputError(
            str(path), f"the name must end in {' or '.join(endings)}; got {path.suffix or 'no extension'}"
        )
    if path.is_dir():
        raise InputError(str(path), "is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(str(path), f"the folder {path.parent} does not exist; create it first")
    if path.exists() and not overwrite:
        raise InputError(
            str(path), "the file exists; choose another name, or replace it with --overwrite (overwrite=True)"
        )


@contextmanager
def replace_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Context manager of a temporary path beside ``path``: renamed to it on success, removed on failure.

    Raises:
        InputError: see :func:`check_output`; or the file cannot be written, as on a full disk.
    """
    check_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
