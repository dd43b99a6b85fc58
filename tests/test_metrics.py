from __future__ import annotations

import itertools
import math

import pytest
import torch

from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.hybrid import locate
from rismusic.metrics import MEDIAN_OF_NORMAL, gospa, match, score
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources

NAN = math.nan


def sources(*scenes):
    """Sources from rows of (azimuth deg, elevation deg, range m), NaN-padded."""
    most = max(len(scene) for scene in scenes)
    rows = torch.tensor([[*scene, *[(NAN, NAN, NAN)] * (most - len(scene))] for scene in scenes]).double()
    rows = rows.reshape(len(scenes), most, 3)
    return Sources(azimuth=rows[..., 0].deg2rad(), elevation=rows[..., 1].deg2rad(), range=rows[..., 2])


def test_order_does_not_matter_and_errors_are_found_minus_true():
    truth = sources([(10, 0, 2), (-20, 5, 4)])
    matched = match(truth, sources([(-19, 5, 5), (10, -2, 2)]))
    assert matched.partner.tolist() == [[1, 0]]
    error = matched.error[0]
    torch.testing.assert_close(error[:, :2].rad2deg(), torch.tensor([[0.0, -2.0], [1.0, 0.0]]).double())
    torch.testing.assert_close(error[:, 2], torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(matched.inverse_range_error[0], torch.tensor([0.0, 1 / 5 - 1 / 4]).double())


def test_an_estimate_is_matched_as_its_sources_are():
    recording = simulate(scenes=2, sources=2, snr_db=20.0, panel={"rows": 6, "columns": 6})
    estimate = locate(recording, method="omp", n_sources=2)
    matched = match(recording.truth, estimate)
    assert matched.hit.any()
    assert torch.equal(matched.partner, match(recording.truth, estimate.sources).partner)


def test_the_gate_counts_each_angle():
    truth = sources([(0, 0, 2)], [(0, 0, 2)], [(0, 0, 2)])
    matched = match(truth, sources([(4.99, 4.99, 9)], [(5.01, 0, 2)], [(0, -5.01, 2)]))
    assert matched.hit.flatten().tolist() == [True, False, False]
    assert matched.error[1:].isnan().all(), "errors are of hits only"


def test_misses_and_false_alarms_always_count():
    truth = sources([(0, 0, 2), (30, 0, 2), (-30, 0, 2)], [(0, 0, 2)])
    found = sources([(0, 0, 2)], [(0, 0, 2), (40, 0, 2)])
    result = score(match(truth, found))
    assert (result.misses, result.recall) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (result.false_alarms, result.precision) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert result.f1 == pytest.approx(2 * 2 / (4 + 3))
    assert result.count_right == 0
    assert result.azimuth_over_bound != result.azimuth_over_bound, "no bound, no ratio"


def test_as_many_hits_as_possible():
    """A greedy choice, or one by total distance alone, would leave one source without its partner."""
    truth = sources([(0, 0, 2), (4, 0, 2)])
    found = sources([(3, 0, 2), (-4.5, 0, 2)])
    assert match(truth, found).hit.all()
    truth, found = sources([(0, 0, 2), (20, 0, 2)]), sources([(4.9, 0, 2), (-20, 0, 2)])
    assert match(truth, found).hit.tolist() == [[True, False]]


def test_nothing_found_and_nothing_there():
    truth = sources([(0, 0, 2)])
    nothing = sources([(NAN, NAN, NAN)])
    result = score(match(truth, nothing))
    assert (result.misses, result.false_alarms, result.precision) == (1, 0, 1)
    assert math.isnan(result.azimuth_error_deg)
    result = score(match(nothing, truth))
    assert (result.misses, result.false_alarms) == (0, 1)
    empty = Sources(azimuth=torch.zeros(1, 0), elevation=torch.zeros(1, 0), range=torch.zeros(1, 0))
    assert score(match(truth, empty)).misses == 1


def brute_force_gospa(X, Y, c=2.0):
    best = math.inf
    for size in range(min(len(X), len(Y)) + 1):
        for rows in itertools.permutations(range(len(X)), size):
            for columns in itertools.combinations(range(len(Y)), size):
                d = sum(math.dist(X[i], Y[j]) ** 2 for i, j in zip(rows, columns, strict=True))
                best = min(best, d + c**2 / 2 * (len(X) + len(Y) - 2 * size))
    return math.sqrt(best)


def test_gospa_against_brute_force(generator):
    for _ in range(30):
        made, places = [], []
        for count in torch.randint(0, 5, (2,), generator=generator).tolist():
            draw = torch.rand(count, 2, generator=generator, dtype=torch.float64)
            made.append([(40 * a, 0.0, 1 + 3 * r) for a, r in draw.tolist()] or [(NAN, NAN, NAN)])
            turned = [(math.radians(40 * a), 1 + 3 * r) for a, r in draw.tolist()]
            places.append([(r * math.sin(a), 0.0, r * math.cos(a)) for a, r in turned])
        truth, found = (sources(scene) for scene in made)
        assert float(gospa(truth, found)) == pytest.approx(brute_force_gospa(*places), abs=1e-6)


def test_gospa_of_a_source_in_the_far_field():
    # Straight ahead, two coordinates of its place are 0 times infinity.
    truth, found = sources([(0.0, 0.0, 3.0)]), sources([(0.0, 0.0, math.inf)])
    assert float(gospa(truth, found)) == 2.0
    assert float(gospa(found, found)) == 2.0


def test_ratio_to_the_bound_is_1_for_errors_of_that_size(generator):
    recording = simulate(scenes=300, sources=2, snr_db=20.0, dtype=torch.float64)
    bound = recording_crb(recording)
    truth = recording.truth
    noise = torch.randn(3, 300, 2, generator=generator, dtype=torch.float64)
    inverse = 1 / truth.range + noise[2] * bound.inverse_range_std
    found = Sources(
        azimuth=truth.azimuth + noise[0] * bound.std[..., 0],
        elevation=truth.elevation + noise[1] * bound.std[..., 1],
        range=1 / inverse,
    )
    result = score(match(truth, found), bound)
    for ratio in (result.azimuth_over_bound, result.elevation_over_bound, result.inverse_range_over_bound):
        assert ratio == pytest.approx(1, abs=0.12)
    assert (
        pytest.approx(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(0.75))), abs=1e-6)
        == MEDIAN_OF_NORMAL
    )


def test_another_number_of_scenes():
    with pytest.raises(InputError, match="found: must have the 1 scenes of the truth; got 2"):
        match(sources([(0, 0, 1)]), sources([(0, 0, 1)], [(0, 0, 1)]))
