"""Text from files, names and command lines, made safe for where it goes.

=========================== ====================================================================
terminal, log, TOML comment :func:`plain`: one line without control characters
rich tables                 :class:`rismusic.cli.command.SafeConsole`, which uses :func:`printable`
CSV                         :func:`csv_text`: no cell is a formula
HTML                        the templates escape markup; :func:`printable` removes control characters
anything that is kept       :func:`redact`, :func:`command_line`: no passwords of URLs
=========================== ====================================================================

The module does not import torch.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 2000
"""Largest number of characters of a sentence that is printed."""

_FORMULA = ("=", "+", "-", "@")
_USER = re.compile(r"(://[^\s:/?#@'\"]*:)[^\s'\"]*@")
_USER_OF_ARGUMENT = re.compile(r"(://[^:/?#@]*:).*@", re.DOTALL)
_SECRET = r"((?:^|[?&;\s])[a-z_]*(?:password|passwd|passphrase|pwd|secret|token)=)"
_QUERY = re.compile(_SECRET + r"[^\s&;'\"]*", re.IGNORECASE)
_QUERY_OF_ARGUMENT = re.compile(_SECRET + r"[^&;]*", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with control characters, such as those of a terminal, as escapes; line breaks stay."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]


def plain(text: str, *, limit: int = LONGEST) -> str:
    r"""The text, cut, as one line: line breaks and control characters become escapes such as ``\n``."""
    text = text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return printable(text).replace("\n", "\\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    """Rows as CSV. A cell of text that a spreadsheet would take for a formula gets an apostrophe in front."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return buffer.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value.startswith(_FORMULA) else plain(value)


def decimals_of(bar: float) -> int:
    """Decimals that show two significant figures of an error bar, at most 3; 2 without a bar."""
    if not math.isfinite(bar):
        return 2
    return min(3, max(0, 1 - math.floor(math.log10(bar)))) if bar > 0 else 3


def json_text(content: object) -> str:
    """The content as JSON; a number that is not finite is an error."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def finite(value: object) -> object:
    """The value, or none for a number that is not finite: JSON has no such numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 scene" or "2 scenes"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def spans(numbers: Iterable[int]) -> str:
    """Ascending whole numbers as ``0, 3 and 7 to 9``."""
    pairs = (
        run if len(run) == 2 else [f"{run[0]} to {run[-1]}" if len(run) > 2 else run[0]]
        for run in runs(numbers)
    )
    return all_of(str(one) for pair in pairs for one in pair)


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending whole numbers, divided where one is missing."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def short_repr(record: Any) -> str:
    """The fields of a dataclass; of arrays and tensors the shape alone."""
    values = {one.name: getattr(record, one.name) for one in dataclasses.fields(record) if one.repr}
    shown = (f"{name}={list(one.shape) if hasattr(one, 'shape') else one!r}" for name, one in values.items())
    return f"{type(record).__name__}({', '.join(shown)})"


def any_of(words: Iterable[str]) -> str:
    """The words of a list as ``a, b or c``."""
    return _joined(words, " or ")


def all_of(words: Iterable[str]) -> str:
    """The words of a list as ``a, b and c``."""
    return _joined(words, " and ")


def _joined(words: Iterable[str], before_last: str) -> str:
    *most, last = words
    return before_last.join(filter(None, (", ".join(most), last)))


def redact(text: str) -> str:
    """The text with the passwords of URLs replaced by ``***``."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


def command_line() -> str:
    """The command line of this process as one line for a shell, with the passwords of URLs replaced."""
    arguments = [
        _QUERY_OF_ARGUMENT.sub(r"\1***", _USER_OF_ARGUMENT.sub(r"\1***@", one)) for one in sys.argv[1:]
    ]
    return plain(shlex.join(["rismusic", *arguments]), limit=10 * LONGEST)
