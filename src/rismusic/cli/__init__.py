"""The command line: ``rismusic COMMAND``, each command the twin of a Python call.

Data goes to standard output, everything else to standard error. Bad input ends in one sentence and exit
code 2. Nothing here imports torch before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from rismusic.cli.bench import Bench
from rismusic.cli.bound import Bound
from rismusic.cli.check import Check
from rismusic.cli.command import Command, with_config, with_file
from rismusic.cli.doctor import Doctor, with_target
from rismusic.cli.locate import Locate
from rismusic.cli.output import complain
from rismusic.cli.simulate import Simulate
from rismusic.cli.train import Train, with_settings
from rismusic.cli.tune import Tune
from rismusic.errors import InputError
from rismusic.nn.run_folder import load_train_spec
from rismusic.spec import load_locate_spec
from rismusic.version import __version__

DESCRIPTION = "Radio sources in 3-D in the near field of a RIS or antenna panel."
Commands = (
    Annotated[Simulate, subcommand("simulate", prefix_name=False)]
    | Annotated[Check, subcommand("check", prefix_name=False)]
    | Annotated[Locate, subcommand("locate", prefix_name=False)]
    | Annotated[Bound, subcommand("bound", prefix_name=False)]
    | Annotated[Bench, subcommand("bench", prefix_name=False)]
    | Annotated[Train, subcommand("train", prefix_name=False)]
    | Annotated[Doctor, subcommand("doctor", prefix_name=False)]
    | Annotated[Tune, subcommand("tune", prefix_name=False)]
)

# A configuration describes a whole system; what of it a command has no use for is left out.
LEAVE_OUT = {
    "simulate": (),
    "bound": ("sources", "snr_db", "one_link", "hardware"),
    "bench": ("sources", "snr_db"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done; 1: done, and something is wrong (``doctor``); 2: bad input or usage; 130: interrupted.
    """
    # Threads that wait by spinning slow a busy machine by ten times; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"rismusic {__version__}")
        return 0
    try:
        args = with_file(with_settings(with_target(args)), "locate", load_locate_spec)
        args = with_file(args, "tune", load_train_spec, "training.")
        return _parse(with_config(args, LEAVE_OUT)).run()
    except InputError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(args: list[str]) -> Command:
    """The command that the arguments name; a bad setting is said in our words rather than tyro's."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Commands, prog="rismusic", args=args, description=DESCRIPTION)
    except SystemExit as leave:
        cause: BaseException | None = leave
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(complaint.getvalue())
        raise
