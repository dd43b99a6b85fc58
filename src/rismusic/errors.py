"""The one exception for bad input: which field, what was expected, what was found."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, said in one sentence: ``field: expected ..., found ...``.

    The command line prints the sentence and leaves with exit code 2; a traceback there is a bug.

    Args:
        field: the name of the offending field, argument or file.
        expected: what would have been accepted.
        found: what was there instead.
    """

    def __init__(self, field: str, expected: str, found: str) -> None:
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"{field}: expected {expected}, found {found}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Between processes it travels as its three parts."""
        return type(self), (self.field, self.expected, self.found)
