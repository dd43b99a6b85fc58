"""Is the best better than the default?"""

from __future__ import annotations

import numpy as np
import pytest

from rismusic.tuning.scoring import Judged
from rismusic.tuning.verdict import difference, pooled, pooled_cost


def judged(seed, *, scenes=200, hit=0.8, gospa=1.0):
    """Scenes of 1 to 3 sources, of which this share is found."""
    draw = np.random.default_rng(seed)
    true = draw.integers(1, 4, size=scenes)
    hits = draw.binomial(true, hit)
    metres = gospa * draw.uniform(0.5, 1.5, size=scenes)
    return Judged(*(tuple(values.tolist()) for values in (hits, true, true, metres)))


def test_the_same_is_not_better():
    one = [judged(0), judged(1)]
    found = difference(one, one)
    assert (found.cost, found.low, found.high, found.better, found.worse) == (0, 0, 0, False, False)
    assert "does not beat the default on fresh scenes beyond doubt" in found.sentence("Trial 3")


def test_a_planted_gain_is_seen_and_a_planted_loss():
    default, best = [judged(0, hit=0.6, gospa=1.4)], [judged(0, hit=0.9)]
    found = difference(default, best)
    assert found.better
    assert found.low < found.cost < found.high
    assert found.cost == pytest.approx(default[0].cost - best[0].cost)
    assert found.sentence("Trial 3").startswith("Trial 3 beats the default on fresh scenes: the cost of")
    back = difference(best, default)
    assert back.worse
    assert back.cost == pytest.approx(-found.cost)
    assert "it is worse" in back.sentence("Trial 3")


def test_seeds_are_means_of_their_costs():
    """Exact where every seed found as many sources."""
    several = [judged(seed, hit=1.0) for seed in range(3)]
    # The same scenes for all: only what was found differs.
    several = [Judged(one.true, several[0].true, several[0].true, one.gospa_m) for one in several[:1] * 3]
    assert pooled_cost(pooled(several), 3) == pytest.approx(np.mean([one.cost for one in several]))


def test_the_interval_covers_as_often_as_it_says():
    """GOSPA alone, of pairs: against the interval of their mean that a normal distribution gives."""
    ones = tuple([1] * 400)
    draw = np.random.default_rng(5)
    metres = draw.uniform(0.5, 1.5, size=(2, 400))
    default, best = (Judged(ones, ones, ones, tuple(row.tolist())) for row in metres)
    gain = (metres[0] - metres[1]) / 2
    half = 1.96 * gain.std(ddof=1) / 20
    found = difference([default], [best])
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    assert (found.low + found.high) / 2 == pytest.approx(gain.mean(), abs=0.1 * half)


def test_pairs_make_the_interval_narrow():
    """What is hard for one is hard for the other: unpaired, a gain this small would be lost."""
    one = judged(0, gospa=1.0)
    other = Judged(one.hits, one.true, one.found, tuple(value - 0.02 for value in one.gospa_m))
    assert difference([one], [other]).better
