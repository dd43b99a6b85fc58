"""What a trial may fail of, and how it is remembered. The module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna

from rismusic.errors import InputError
from rismusic.tuning.ledger import REASON

Say = Callable[[str], None]

# What a training may fail of without anybody being to blame: settings that do not fit, numbers that are not
# finite, memory that is full. Anything else is a bug, and stops the search.
EXPECTED = (InputError, RuntimeError, ArithmeticError)


class Surplus(Exception):  # noqa: N818
    """This trial is one too many: another worker began the last one at the same time."""


class NotFiniteError(ArithmeticError):
    """The validation is not finite."""


@contextmanager
def reason_kept(trial: optuna.Trial) -> Iterator[None]:
    """Keep with a trial why it failed; nothing if it was pruned, interrupted or taken away."""
    try:
        yield
    except optuna.exceptions.OptunaError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (InputError, NotFiniteError)):
            text = f"{type(error).__name__}: {text}"
        trial.set_user_attr(REASON, text[:500])
        raise
