"""What all commands have in common: a command is a spec whose fields are its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rismusic.spec import Spec


@dataclass(frozen=True)
class Option:
    """How a field is written on the command line, where that differs from its name.

    Args:
        metavar: placeholder of the value in the help.
        short: a second, short option such as ``-o``.
        name: name of the option in place of the field's.
    """

    metavar: str = ""
    short: str = ""
    name: str = ""


class Command(Spec):
    """A command of the command line. Its fields are its options; those of ``FLAT`` are groups of options."""

    FLAT: ClassVar[str] = ""
    """Field whose settings are options without a prefix."""
    POSITIONAL: ClassVar[str] = ""
    """Field that may be given without the name of its option."""
    CONFIG_TABLES: ClassVar[Mapping[str, str]] = {"config": ""}
    """Options that take a TOML file, and the table that the file fills; "": the settings of the command."""
    IGNORED: ClassVar[tuple[str, ...]] = ()
    """Settings of a system that the command does not use. They are accepted in a TOML file."""

    @classmethod
    def positional_field(cls, value: str) -> str:
        """Field that a value without an option stands for."""
        del value
        return cls.POSITIONAL

    @classmethod
    def base(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings below those of files and options, such as a preset.

        Args:
            given: what files and options set.
        """
        del given
        return {}

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other.

        Args:
            typed: values of the options that were typed, by dotted field name.

        Raises:
            InputError: options that cannot be combined.
        """

    def run(self) -> int:
        """Run the command and return the exit code."""
        raise NotImplementedError
