"""Atomic writing of files: to a temporary name first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rismusic.errors import InputError

PLOT_ENDINGS = (".png", ".pdf", ".svg")
TABLE_ENDINGS = (".csv", ".json")


def check_output(path: Path, *, overwrite: bool, endings: Collection[str] = ()) -> None:
    """Check that an output file can be written, before work starts.

    Args:
        path: the file to be written.
        overwrite: whether an existing file may be replaced.
        endings: allowed extensions; empty for any.

    Raises:
        InputError: the path is a folder or an existing file without ``overwrite``, its folder is missing, or
            the extension is not allowed.
    """
    if endings and path.suffix not in endings:
        raise InputError(str(path), f"the file name must end in {' or '.join(endings)}")
    if path.is_dir():
        raise InputError(str(path), "is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise InputError(str(path), f"the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise InputError(
            str(path), "the file exists already; pass overwrite=True (--overwrite) to replace it"
        )


@contextmanager
def replace_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary name beside ``path``; renamed to ``path`` on success, removed on failure.

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
