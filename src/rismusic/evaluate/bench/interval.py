r"""Confidence intervals of shares whose trials are dependent within a scene.

A share is :math:`p = \sum_i x_i / \sum_i n_i` over scenes i: of n_i sources, x_i were missed. Scenes are
independent, sources of one scene are not. The variance that the bootstrap over scenes converges to is that of
a ratio, and exceeds that of independent sources by the design effect

.. math:: d = \frac{\sum_i (x_i - p\, n_i)^2}{p (1 - p) \sum_i n_i},

so that the sources are worth :math:`n / \max(d, 1)` independent ones, n being their number (Kish, "Survey
sampling", 1965; Korn and Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data", Survey Methodology 24 (1998)). With that number, Wilson's
interval ("Probable inference, the law of succession, and statistical inference", JASA 22 (1927)) stays within
0 .. 1 and does not shrink to nothing where nothing was missed, as percentiles of the bootstrap do.

A few misses say little of how they depend. So two scenes are imagined for d, and for d alone: one with
everything missed and one with nothing missed. No miss at all then weighs as much as that many scenes, not as
that many sources. With one source a scene d is 1, and the interval is Wilson's own.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from jaxtyping import Float


def share_interval(
    part: Float[np.ndarray, "*batch S"], whole: Float[np.ndarray, "*batch S"], *, level: float = 0.95
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Lower and upper limit of sum(part) / sum(whole); 0 and 1 where there is nothing at all.

    Args:
        part: x, of each scene, from 0 to n.
        whole: n, of each scene.
        level: probability that the interval holds the true share.
    """
    trials = whole.sum(-1)
    empty = trials == 0
    n = np.where(empty, 1, trials)
    p = part.sum(-1) / n
    n = n / np.maximum(_design_effect(part, whole), 1)
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # Rounding may push a limit past a share of exactly 0 or 1.
    low, high = np.clip(middle - half, 0, p), np.clip(middle + half, p, 1)
    return np.where(empty, 0.0, low), np.where(empty, 1.0, high)


def _design_effect(part: np.ndarray, whole: np.ndarray) -> np.ndarray | np.float64:
    """The design effect d, [...]; see the head of this module."""
    mean = whole.sum(-1) / np.maximum((whole > 0).sum(-1), 1)
    mean = np.where(mean > 0, mean, 1)[..., None]
    x = np.concatenate((part, mean, np.zeros_like(mean)), axis=-1)
    n = np.concatenate((whole, mean, mean), axis=-1)
    p = x.sum(-1) / n.sum(-1)
    return np.square(x - p[..., None] * n).sum(-1) / (p * (1 - p) * n.sum(-1))
