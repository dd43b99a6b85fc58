"""The comparison with the default, and the summary of the trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.trial import TrialState
from study_case import frozen
from tuning_case import SPEC

from rismusic.tuning.objective import Evaluation
from rismusic.tuning.results import compare, correlations, pooled, pooled_cost, shares_saved


def evaluation(seed, *, scenes=200, hit=0.8, gospa=1.0):
    """Scenes of 1 to 3 sources, of which this share is located."""
    draw = np.random.default_rng(seed)
    true = draw.integers(1, 4, size=scenes)
    hits = draw.binomial(true, hit)
    metres = gospa * draw.uniform(0.5, 1.5, size=scenes)
    return Evaluation(*(tuple(values.tolist()) for values in (hits, true, true, metres)))


def test_the_same_is_not_better():
    one = [evaluation(0), evaluation(1)]
    found = compare(one, one)
    assert (found.gain, found.low, found.high, found.better, found.worse) == (0, 0, 0, False, False)
    assert "is not significantly better than the default" in found.sentence("Trial 3")


def test_a_gain_and_a_loss_are_detected():
    default, best = [evaluation(0, hit=0.6, gospa=1.4)], [evaluation(0, hit=0.9)]
    found = compare(default, best)
    assert found.better
    assert found.low < found.gain < found.high
    assert found.gain == pytest.approx(default[0].cost - best[0].cost)
    assert found.sentence("Trial 3").startswith("Trial 3 is better than the default on the test scenes.")
    back = compare(best, default)
    assert back.worse
    assert back.gain == pytest.approx(-found.gain)
    assert "Trial 3 is worse than the default" in back.sentence("Trial 3")


def test_seeds_are_means_of_their_costs():
    """Exact if the number of located sources is the same for every seed."""
    several = [evaluation(seed, hit=1.0) for seed in range(3)]
    # The same scenes for all of them.
    several = [Evaluation(one.true, several[0].true, several[0].true, one.gospa_m) for one in several[:1] * 3]
    assert pooled_cost(pooled(several), 3) == pytest.approx(np.mean([one.cost for one in several]))


def test_the_interval_covers_as_often_as_it_says():
    """GOSPA alone, of pairs: against the interval of their mean that a normal distribution gives."""
    ones = tuple([1] * 400)
    draw = np.random.default_rng(5)
    metres = draw.uniform(0.5, 1.5, size=(2, 400))
    default, best = (Evaluation(ones, ones, ones, tuple(row.tolist())) for row in metres)
    gain = (metres[0] - metres[1]) / 2
    half = 1.96 * gain.std(ddof=1) / 20
    found = compare([default], [best])
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    assert (found.low + found.high) / 2 == pytest.approx(gain.mean(), abs=0.1 * half)


def test_pairs_make_the_interval_narrow():
    """A scene that is hard for one is hard for the other: an unpaired interval would hide this gain."""
    one = evaluation(0, gospa=1.0)
    other = Evaluation(one.hits, one.true, one.estimated, tuple(value - 0.02 for value in one.gospa_m))
    assert compare([one], [other]).better


def trained(number, epochs, state=TrialState.COMPLETE, value=None):
    values = [{"surrogate": value, "loss": -(value or 0), "f1": -(value or 0)} for _ in range(epochs)]
    return frozen(number, state, value=value, epochs=values)


def test_epochs_saved():
    spec = SPEC.replace(epochs_per_trial=10)
    trials = [trained(0, 10), trained(1, 4, TrialState.PRUNED), trained(2, 8), trained(3, 1, TrialState.FAIL)]
    assert shares_saved(spec, trials) == (6 / 30, 2 / 30)


def test_rank_correlation():
    trials = [trained(number, 1, value=value) for number, value in enumerate((1.0, 8.0, 27.0))]
    assert correlations(trials) == {"surrogate": 1.0, "loss": -1.0, "f1": 1.0}
    assert math.isnan(correlations(trials[:2])["surrogate"])
