"""The exception for bad input: the field or file it concerns, what is wrong, and what to do about it."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, explained in one sentence: ``field: what is wrong and what to do``.

    The command line prints the sentence and exits with code 2; a traceback there is a bug.

    Args:
        field: name of the offending field, argument or file.
        problem: what is wrong with it and, where that is not obvious, what to do.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        """Pickle the two parts, so that the exception can cross process boundaries."""
        return type(self), (self.field, self.problem)
