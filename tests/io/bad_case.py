"""One bad recording, and how a table of them is filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreign import SUFFIX, WRITERS, Values, sound

PATH = "<the file>"


@dataclass(frozen=True)
class BadInput:
    """A bad file.

    Args:
        name: what is wrong.
        make: makes the file in a directory, and says where it is.
        field: the field that the sentence must name; ``PATH`` for the file as a whole.
        fragment: part of the sentence.
    """

    name: str
    make: Callable[[Path], Path]
    field: str
    fragment: str


CASES: list[BadInput] = []


def bad(name: str, field: str, fragment: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Enter the decorated function into the table."""

    def enter(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(BadInput(name, make, field, fragment))
        return make

    return enter


def altered(
    name: str,
    field: str,
    fragment: str,
    *without: str,
    container: str = "h5",
    base: Callable[[], Values] = sound,
    **changes: Any,
) -> None:
    """Enter a sound recording with some fields changed or left out (``truth_x`` stands for ``truth/x``)."""

    def make(directory: Path) -> Path:
        values = base()
        for key, value in changes.items():
            key = key.replace("truth_", "truth/")
            values[key] = value(values[key].copy()) if callable(value) else value
        for key in without:
            del values[key]
        return WRITERS[container](directory / f"bad{SUFFIX[container]}", values)

    CASES.append(BadInput(name, make, field, fragment))


def at(*place: int | slice, value: Any) -> Callable[[Any], Any]:
    """A change: ``value`` at one place of an array."""

    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change
