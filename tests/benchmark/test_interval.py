from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from rismusic.benchmark.summary import share_interval


@pytest.mark.parametrize(("misses", "scenes"), [(0, 20), (1, 20), (7, 50), (50, 50), (199, 200)])
def test_one_source_a_scene_is_wilsons_interval(misses, scenes):
    part = np.repeat([1.0, 0.0], [misses, scenes - misses])
    low, high = share_interval(part, np.ones(scenes))
    expected = binomtest(misses, scenes).proportion_ci(0.95, method="wilson")
    assert (float(low), float(high)) == pytest.approx(expected, abs=1e-12)


def test_sources_that_are_missed_together_count_as_one():
    together = share_interval(np.repeat([4.0, 0.0], [9, 31]), np.full(40, 4.0))
    expected = binomtest(9, 40).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(together, expected, atol=1e-12)


def test_sources_missed_apart_count_each():
    """One of two missed in every scene: no sign of dependence, so the interval is that of all sources."""
    apart = share_interval(np.ones(300), np.full(300, 2.0))
    expected = binomtest(300, 600).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(apart, expected, atol=1e-12)


def test_no_misses_tell_as_much_as_one_miss_and_less_than_so_many_sources():
    whole = np.full(200, 5.0)
    none, one = np.zeros(200), np.eye(1, 200)[0]
    assert 0.015 < share_interval(none, whole)[1] < 0.02  # 1000 sources alone: 0.004
    assert share_interval(none, whole)[1] < 1.05 * share_interval(one, whole)[1]
    assert [float(limit) for limit in share_interval(np.zeros(3), np.zeros(3))] == [0.0, 1.0]


@pytest.mark.parametrize("sources", [1, 3, 5])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_coverage(sources, correlation):
    """Over 2,000 benchmarks of 200 scenes the interval holds the true share as often as it says."""
    draw = np.random.default_rng(20261121)
    for share in (0.05, 0.3):
        size = (2000, 200)
        if correlation == 0.0:
            missed = draw.binomial(sources, share, size)
        elif correlation == 1.0:
            missed = sources * draw.binomial(1, share, size)
        else:
            a, b = (p * (1 / correlation - 1) for p in (share, 1 - share))
            missed = draw.binomial(sources, draw.beta(a, b, size))
        low, high = share_interval(missed.astype(float), np.full(size, float(sources)))
        assert 0.93 < ((low <= share) & (share <= high)).mean() < 0.98
