"""Conversion between decibels and linear power ratios. Inside the package, power is linear."""

from __future__ import annotations

import math

from torch import Tensor


def from_db(level_db: Tensor) -> Tensor:
    """Power ratio of a level in dB.

    Uses ``exp``, whose result for an element does not depend on the size of the tensor. ``10 ** x`` treats
    the last few elements of a tensor differently, so that a scene would depend on its batch in the last bit.
    """
    return (level_db * (math.log(10) / 10)).exp()


def to_db(ratio: Tensor) -> Tensor:
    """Level in dB of a power ratio."""
    return 10 * ratio.log10()
