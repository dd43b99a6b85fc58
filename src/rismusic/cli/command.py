"""What all commands have in common: they are specs, and a TOML file can stand in for their flags."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from rismusic.errors import InputError
from rismusic.spec import Spec, load_spec


class Command(Spec):
    """A command of the command line; its fields are its flags."""

    def run(self) -> int:
        """Do it, and return the exit code."""
        raise NotImplementedError


def with_config(args: list[str], leave_out: Mapping[str, Collection[str]]) -> list[str]:
    """Replace ``--config FILE`` by the flags that say the same, so that the flags that were typed still win.

    Args:
        args: the command and its flags.
        leave_out: for each command that takes a configuration, the settings in it that are not its own.

    Raises:
        InputError: no file is named, or the file is no configuration of a system.
    """
    for place, flag in enumerate(args):
        name, equals, path = flag.partition("=")
        if name != "--config" or args[0] not in leave_out:
            continue
        if not equals:
            if place + 1 == len(args):
                raise InputError("--config", "a TOML file", "nothing")
            path = args[place + 1]
        rest = args[place + (1 if equals else 2) :]
        # Right behind the command, so that every flag that was typed comes later and wins.
        return [
            args[0],
            *flags_of(load_spec(path), leave_out[args[0]]),
            *args[1:place],
            *with_config(rest, leave_out),
        ]
    return args


def flags_of(spec: Spec, leave_out: Collection[str] = (), prefix: str = "") -> list[str]:
    """The flags that say what was set in a spec."""
    flags = []
    for name in sorted(spec.model_fields_set.difference(leave_out)):
        value, flag = getattr(spec, name), name.replace("_", "-")
        if isinstance(value, Spec):
            flags += flags_of(value, (), f"{prefix}{flag}.")
        elif isinstance(value, bool):
            flags.append(f"--{prefix}{'' if value else 'no-'}{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{prefix}{flag}", *map(str, values)]
    return flags


def with_file(args: list[str], command: str, load: Callable[[Path], Spec], prefix: str = "") -> list[str]:
    """Put the flags that a command's ``--config FILE`` stands for before those that were typed.

    Args:
        args: the command and its flags; those of other commands are left alone.
        command: whose file it is.
        load: reads it.
        prefix: of its flags.

    Raises:
        InputError: from ``load``.
    """
    path = value_of(args, "--config") if args[:1] == [command] else None
    if path is None:
        return args
    return [command, *flags_of(load(Path(path)), prefix=prefix), *args[1:]]


def value_of(args: list[str], flag: str) -> str | None:
    """The value of a flag, typed as ``--flag value`` or ``--flag=value``."""
    for place, typed in enumerate(args):
        name, equals, value = typed.partition("=")
        if name == flag:
            return value if equals else next(iter(args[place + 1 :]), None)
    return None
