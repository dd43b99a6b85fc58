from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from rismusic.crb import recording_crb
from rismusic.estimation.estimate import Estimate
from rismusic.hybrid import locate
from rismusic.io import Recording, read
from rismusic.metrics import score
from rismusic.report.locate import (
    POWERS_FITTED,
    POWERS_KNOWN,
    SYMBOLS_KNOWN,
    compare,
    joined,
)
from rismusic.simulation.simulator import simulate


@pytest.fixture(scope="module")
def recording() -> Recording:
    return simulate(scenes=6, sources=2, snr_db=15, panel={"rows": 6, "columns": 6}, seed=8)


@pytest.fixture(scope="module")
def located(recording) -> Estimate:
    return locate(recording, n_sources=2, method="omp")


def test_the_bound_is_the_best_that_the_truth_allows(recording, located):
    bare = {"symbols": None}
    powers = replace(recording, truth=replace(recording.truth, **bare))
    positions = replace(recording, truth=replace(recording.truth, power=None, **bare))
    for one, kind in ((recording, SYMBOLS_KNOWN), (powers, POWERS_KNOWN), (positions, POWERS_FITTED)):
        assert compare(one, located).kind == kind
    for one, name in ((recording, "conditional"), (powers, "unconditional")):
        expected = recording_crb(one, name)
        assert torch.equal(compare(one, located).bound.covariance, expected.covariance)
    assert compare(replace(recording, truth=None), located) is None


def test_fitted_powers_come_near_the_true_bound(samples):
    """Bounds made by other code with the transmitted symbols; the medians differ by the symbols' luck."""
    recording = read(samples / "direct_10dB.h5")
    true = np.load(samples / "direct_10dB.bound.npz")["crb"]
    comparison = compare(recording, locate(recording, n_sources=0))
    assert comparison.kind == POWERS_FITTED
    ratio = comparison.bound.std.numpy() / true
    assert np.nanmedian(ratio) == pytest.approx(1, abs=0.02)
    assert not comparison.match.hit.any()


def test_true_places_inside_the_ellipsoids(recording, located):
    """Against a loop over hits with the inverse of each covariance."""
    shifted = recording.truth.each(lambda value: value.clone())
    shifted.azimuth[:, 0] += 3 * torch.linspace(0, 1, 6) * located.std[:, :, 0].nan_to_num().amax(1)
    comparison = compare(replace(recording, truth=shifted), located)
    expected = torch.zeros_like(comparison.inside)
    for scene, true in comparison.match.hit.nonzero().tolist():
        error = comparison.match.error[scene, true]
        sigma = located.covariance[scene, comparison.match.partner[scene, true]]
        expected[scene, true] = error @ torch.linalg.inv(sigma) @ error <= 7.814727903251179
    assert torch.equal(comparison.inside, expected)
    assert 0 < int(expected.sum()) < int(comparison.match.hit.sum())
    assert (comparison.match.partner > 0).any()


def test_an_infinite_error_bar_holds_nothing(recording, located):
    vague = replace(located, covariance=torch.full_like(located.covariance, torch.inf))
    assert not compare(recording, vague).inside.any()


def test_blocks_score_like_the_whole(recording, located):
    parts = []
    for part in (recording[:2], recording[2:]):
        parts.append(compare(part, locate(part, n_sources=2, method="omp")))
    whole = compare(recording, located)
    expected = score(whole.match, whole.bound)
    assert asdict(score(*joined(parts))) == pytest.approx(asdict(expected), rel=1e-3)
