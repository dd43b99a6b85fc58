"""Decibels, which live at the edges only; inside, power is linear."""

from __future__ import annotations

import math

from torch import Tensor


def from_db(level_db: Tensor) -> Tensor:
    """Power ratio of a level in dB.

    By ``exp``, whose result for one number does not depend on how many there are; ``10 ** x`` takes another
    path for the last few numbers of a tensor, so that a scene would depend on its batch in the last bit.
    """
    return (level_db * (math.log(10) / 10)).exp()


def to_db(ratio: Tensor) -> Tensor:
    """Level in dB of a power ratio."""
    return 10 * ratio.log10()
