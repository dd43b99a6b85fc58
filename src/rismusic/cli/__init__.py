"""The command line: ``rismusic COMMAND``. Each command has a Python function of the same name.

Data goes to standard output, everything else to standard error. Nothing here imports torch before a command
runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from rismusic.cli.command import Command, complain, drop, note, prepare_streams, save_traceback
from rismusic.cli.parser import HELP, HELP_ALL, command_kind, help_text, overview, parse
from rismusic.errors import InputError
from rismusic.files import failure, remove_own
from rismusic.interruption import INTERRUPTED, no_interrupt_is_lost, terminated_as_interrupted
from rismusic.text import redact
from rismusic.version import __version__

DESCRIPTION = "Localisation of radio sources in 3-D in the near field of a RIS or antenna panel."


class _Commands(UserDict[str, Any]):
    """Commands by name. Only those that are asked for are imported: their settings take time to build."""

    def __getitem__(self, name: str) -> type[Command]:
        module, _, command = self.data[name].partition(":")
        kind: type[Command] = getattr(import_module(f"rismusic.cli.{module}"), command)
        return kind


COMMANDS: Mapping[str, type[Command]] = _Commands(
    {
        "simulate": "recordings:Simulate",
        "check": "recordings:Check",
        "locate": "locate:Locate",
        "calibrate": "recordings:Calibrate",
        "bound": "bench:Bound",
        "plan": "bench:Plan",
        "bench": "bench:Bench",
        "train": "train:Train",
        "doctor": "train:Doctor",
        "tune": "train:Tune",
    }
)

# What NumPy and torch say about the size of an array.
_ALLOCATION = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGTPE]iB)")
# Why standard output takes nothing: a full disk, or a descriptor that is open for reading alone.
_REFUSED = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EBADF)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: done, and ``doctor`` found a problem. 2: bad input or usage, or too little memory, explained
    in one sentence. 70: an error in rismusic itself, whose traceback is in a file. 130: interrupted.
    """
    # Threads that wait by spinning make a busy machine ten times slower; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    os.environ["MPLBACKEND"] = "agg"  # figures are written to files; a backend of the user may not exist
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it cannot keep its list of fonts, and such
    args = list(sys.argv[1:] if args is None else args)
    try:
        Path.cwd()
    except FileNotFoundError:  # in which MKL ends the process
        complain("the current folder no longer exists; change to another one")
        return 2
    try:
        with terminated_as_interrupted(), no_interrupt_is_lost(), _warnings_noted():
            code = _run(args)
            sys.stdout.flush()
            return code
    except InputError as error:
        complain(redact(str(error)))
        return 2
    except KeyboardInterrupt:
        remove_own()
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        drop(sys.stdout)  # The reader of our output has gone.
        return 0
    except OSError as error:
        if error.filename is None and error.errno in _REFUSED:  # standard output is a file
            drop(sys.stdout)
            complain(f"the output cannot be written: {failure(error).lower()}")
            return 2
        # A path that the system refuses: too long, or in a folder that may not be read.
        if not isinstance(error.filename, (str, bytes)):
            return _unexpected(error)
        complain(redact(f"{os.fsdecode(error.filename)}: cannot be used: {failure(error).lower()}"))
        return 2
    except Exception as error:
        return _unexpected(error)


class _Notes(logging.Handler):
    """Print the messages of the library as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(redact(record.getMessage()))


@contextlib.contextmanager
def _warnings_noted() -> Iterator[None]:
    """Print what the library logs as a warning on standard error."""
    handler, log = _Notes(logging.WARNING), logging.getLogger("rismusic")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _unexpected(error: Exception) -> int:
    """Complain about too little memory, or about an error in rismusic itself; the exit code."""
    if _is_out_of_memory(error):
        found = _ALLOCATION.search(str(error))
        size = f" for {_size(found)} at once" if found else ""
        complain(
            f"memory: there is not enough{size}. Less is needed with a smaller RISMUSIC_MEMORY_BUDGET_MIB "
            "(default: 256, on a GPU 2048), fewer processes, or a smaller batch, panel or search grid"
        )
        return 2
    cause = " ".join(redact(str(error)).split()) or "no message"
    saved = save_traceback(error)
    complain(f"internal error: {type(error).__name__}: {cause[:500]}. {saved}; please report it.")
    return 70


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused to Python, NumPy or torch, which has an own exception for GPUs alone."""
    torch = sys.modules.get("torch")
    if isinstance(error, (MemoryError, *([torch.OutOfMemoryError] if torch else []))):
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or "DefaultCPUAllocator" in str(error)


def _size(found: re.Match[str]) -> str:
    """The size in the message of a failed allocation, such as "3.7 GiB"."""
    if found[2] == "bytes":
        mebibytes = int(found[1]) / 2**20
        return f"{mebibytes:,.1f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:,.1f} GiB"
    return f"{found[1].removesuffix('.')} {found[2]}"


def _run(args: Sequence[str]) -> int:
    if args == ["--version"]:
        print(f"rismusic {__version__}")
        return 0
    if {*HELP, HELP_ALL}.intersection(args):
        if args[0].startswith("-"):
            print(overview(DESCRIPTION, COMMANDS))
        else:
            print(help_text(args[0], command_kind(args, COMMANDS), everything=HELP_ALL in args))
        return 0
    command = parse(args, COMMANDS)
    command.check_files()
    command.check_outputs()
    if "RISMUSIC_MEMORY_BUDGET_MIB" in os.environ:
        from rismusic.devices import budget_of_environment

        budget_of_environment()  # a wrong one is refused before anything is written
    _check_date(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    return command.run()


def _check_date(text: str) -> None:
    """Refuse a time of reproducible builds that NumPy and matplotlib, which read it, cannot use."""
    try:
        datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(
            "SOURCE_DATE_EPOCH",
            f"the environment variable must be a whole number of seconds since 1970; got {text!r}",
        ) from None
