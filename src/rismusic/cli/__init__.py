"""The command line: ``rismusic COMMAND``. Each command has a Python function of the same name.

Data goes to standard output, everything else to standard error. Nothing here imports torch before a command
runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rismusic.cli.bench import Bench, Bound
from rismusic.cli.command import Command, complain, save_traceback
from rismusic.cli.doctor import Doctor
from rismusic.cli.locate import Locate
from rismusic.cli.parser import HELP, HELP_ALL, command_kind, help_text, overview, parse
from rismusic.cli.recordings import Check, Simulate
from rismusic.cli.train import Train, Tune
from rismusic.errors import InputError
from rismusic.version import __version__

DESCRIPTION = "Localisation of radio sources in 3-D in the near field of a RIS or antenna panel."
COMMANDS: dict[str, type[Command]] = {
    "simulate": Simulate,
    "check": Check,
    "locate": Locate,
    "bound": Bound,
    "bench": Bench,
    "train": Train,
    "doctor": Doctor,
    "tune": Tune,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: done, and ``doctor`` found a problem. 2: bad input or usage, explained in one sentence. 70: an
    error in rismusic itself, whose traceback is in a file. 130: interrupted.
    """
    # Threads that wait by spinning make a busy machine ten times slower; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if args is None else args)
    try:
        if args == ["--version"]:
            print(f"rismusic {__version__}")
            return 0
        if {*HELP, HELP_ALL}.intersection(args):
            _help(args)
            return 0
        return parse(args, COMMANDS).run()
    except InputError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; Python must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        complain(
            f"internal error: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}. "
            f"The traceback is in {save_traceback(error)}; please report it."
        )
        return 70


def _help(args: Sequence[str]) -> None:
    if args[0].startswith("-"):
        print(overview(DESCRIPTION, COMMANDS))
    else:
        print(help_text(args[0], command_kind(args, COMMANDS), everything=HELP_ALL in args))
