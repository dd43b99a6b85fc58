"""Is the best better than the default? On scenes that nothing was chosen by, with a confidence interval.

Both are trained from the same seeds and located in the same scenes, so that scenes are resampled in pairs
(Efron and Tibshirani, "An introduction to the bootstrap", 1993): each drawn scene counts with all of its
trainings. The interval is that of scenes; how much the seed of a training matters is told by the costs of the
seeds beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rismusic.tuning.scoring import Judged, cost

_RESAMPLED = 4000


@dataclass(frozen=True)
class Difference:
    """Default minus best, so that a positive one is a gain.

    Args:
        cost: of the means over scenes and seeds.
        low: lower limit of the interval.
        high: upper limit.
        level: of the interval.
    """

    cost: float
    low: float
    high: float
    level: float

    @property
    def better(self) -> bool:
        """Whether the best beats the default beyond the interval."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether it is the other way round."""
        return self.high < 0

    def sentence(self, name: str) -> str:
        """What came of it, in words.

        Args:
            name: of what was found.
        """
        limits = f"{100 * self.level:.0f} % interval {self.low:+.4f} to {self.high:+.4f}"
        gain = f"the cost of the default less its own is {self.cost:+.4f} ({limits})"
        if self.better:
            return f"{name} beats the default on fresh scenes: {gain}."
        if self.worse:
            return f"{name} does not beat the default on fresh scenes, it is worse: {gain}."
        return f"{name} does not beat the default on fresh scenes beyond doubt: {gain}."


def pooled(judged: Sequence[Judged]) -> np.ndarray:
    """Hits, true and found sources, and GOSPA of each scene, summed over seeds: [S, 4]."""
    return sum(
        (np.array([one.hits, one.true, one.found, one.gospa_m], dtype=float).T for one in judged),
        start=np.zeros((len(judged[0].hits), 4)),
    )


def pooled_cost(rows: np.ndarray, seeds: int) -> np.ndarray:
    """The cost of scenes [..., S, 4] whose numbers were summed over so many seeds: [...]."""
    hits, true, found, gospa = np.moveaxis(rows.sum(-2), -1, 0)
    f1 = 2 * hits / np.maximum(1, true + found)
    return np.asarray(cost(f1, gospa / (rows.shape[-2] * seeds)))


def difference(
    default: Sequence[Judged], best: Sequence[Judged], *, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare what two settings found in the same scenes.

    Args:
        default: one for each seed.
        best: one for each seed.
        level: of the interval.
        seed: of the resampling.
    """
    rows, other = pooled(default), pooled(best)
    scenes = len(rows)
    drawn = np.random.default_rng(seed).integers(scenes, size=(_RESAMPLED, scenes))
    gains = pooled_cost(rows[drawn], len(default)) - pooled_cost(other[drawn], len(best))
    low, high = np.quantile(gains, ((1 - level) / 2, (1 + level) / 2))
    value = pooled_cost(rows, len(default)) - pooled_cost(other, len(best))
    return Difference(float(value), float(low), float(high), level)
