"""Standard streams that are closed, that lack characters, or that take no more output."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO


def prepare_streams() -> None:
    """Connect closed standard streams to the null device, and print "?" for characters that one lacks.

    Python has None in place of a stream that was closed when it started, and of all three under pythonw. The
    descriptors are filled, too: the next file that is opened would get the number of the closed stream, and
    with it what C libraries and worker processes print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (open to the end)
    for stream in (sys.stdout, sys.stderr):
        # Python's own handler of the POSIX locale lets no other character through either.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def drop(stream: TextIO) -> None:
    """Discard what a stream has not written, and all that follows, so that Python does not try at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
