"""Impulsive noise: simulated, found, and down-weighted in every fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.estimation.impulses import weigh_samples
from rismusic.hybrid import locate
from rismusic.metrics import match, score
from rismusic.simulation.simulator import simulate

SYSTEM = {"panel": {"rows": 6, "columns": 6}, "channel": {"antennas": 12}, "codebook": {"snapshots": 12}}
IMPULSES = {"fraction": 0.03, "power_db": 40.0}


@pytest.fixture(scope="module")
def pair():
    """The same scenes with and without impulses."""
    settings = {"scenes": 4, "sources": 1, "snr_db": 10.0, "seed": 1, **SYSTEM}
    return simulate(impulses=IMPULSES, **settings), simulate(**settings)


def blind(recording):
    return replace(recording, truth=None, noise_variance=None)


def test_simulated_impulses(pair):
    noisy, clean = pair
    added = (noisy.snapshots - clean.snapshots).abs().square()
    share = float((added > 0).double().mean())
    assert share == pytest.approx(IMPULSES["fraction"], abs=0.01)
    level = added.sum((1, 2)) / (added > 0).sum((1, 2)) / noisy.noise_variance
    assert 10 * float(level.mean().log10()) == pytest.approx(IMPULSES["power_db"], abs=3.0)
    torch.testing.assert_close(noisy.noise_variance, clean.noise_variance)


def test_impulses_are_found_given_the_sources(pair):
    noisy, clean = pair
    added = (noisy.snapshots - clean.snapshots).abs().square() / noisy.noise_variance[:, None, None]
    found = weigh_samples(blind(noisy), noisy.truth)
    assert ((found.weights < 0.5) == (added > 20)).double().mean() > 0.998
    assert (found.weights > 0).all()
    assert (found.weights <= 1).all()
    assert found.count.tolist() == (found.weights < 0.5).flatten(1).sum(1).tolist()
    assert weigh_samples(blind(clean), clean.truth).weights.mean() > 0.99


def test_estimates_with_impulses(pair):
    """As good as without impulses, and the p-values and error bars are those of noise without impulses."""
    noisy, clean = pair
    bound = recording_crb(clean)

    def located(recording, noise):
        found = locate(blind(recording), n_sources=1, method="omp", noise=noise, oversampling=1.6)
        return found, score(match(clean.truth, found.sources), bound)

    plain, _ = located(clean, "white")
    robust, robust_score = located(noisy, "impulsive")
    unneeded, _ = located(clean, "impulsive")
    assert robust_score.misses == 0
    assert robust_score.azimuth_over_bound < 2
    assert robust.p_value.min() > 1e-3
    assert (robust.std / plain.std - 1).abs().median() < 0.2
    torch.testing.assert_close(robust.noise_variance, plain.noise_variance, rtol=0.1, atol=0)
    assert 2 <= robust.impulses.min() <= robust.impulses.max() <= 12
    assert unneeded.impulses.max() <= 1
    change = (unneeded.sources.azimuth - plain.sources.azimuth).abs() / plain.std[..., 0]
    assert change.median() < 0.1
    assert change.max() < 1
    assert plain.impulses is None
    assert robust[1].impulses.tolist() == robust.impulses[1:2].tolist()


def test_number_of_sources_is_kept_in_the_order_of_the_scenes(pair):
    noisy, _ = pair
    count = torch.tensor([1, 0, 1, 0])
    found = locate(blind(noisy), n_sources=count, method="omp", noise="impulsive", oversampling=1.6)
    assert found.n_sources.tolist() == count.tolist()


def test_no_calibration_of_the_panel_with_impulses(pair):
    with pytest.raises(InputError, match="impulsive noise"):
        locate(pair[0], n_sources=1, method="omp", noise="impulsive", panel_error=0.1)


def test_impulses_on_subcarriers_of_an_array_without_a_ris():
    """Constant symbols: each subcarrier has weights of its own."""
    made = simulate(
        scenes=2,
        sources=1,
        snr_db=20.0,
        seed=1,
        panel={"rows": 4, "columns": 4},
        channel={"kind": "direct"},
        codebook={"snapshots": 4},
        scene={"symbols": "constant"},
        wideband={"subcarriers": 3, "bandwidth_hz": 20e6},
        impulses={"fraction": 0.03, "power_db": 30.0},
    )
    found = locate(blind(made), method="omp", noise="impulsive")
    assert match(found.sources, made.truth).hit.sum(1).tolist() == [1, 1]
    assert (found.impulses > 0).all()


def test_samples_without_any_energy_have_finite_weights(pair):
    """All of a scene, and more than half of one: the median of the powers is 0."""
    _, clean = pair
    silent = clean.snapshots.clone()
    silent[0], silent[1, :, :7] = 0, 0
    found = locate(blind(replace(clean, snapshots=silent)), method="omp", noise="impulsive")
    assert found.n_sources[0] == 0
    assert found.noise_variance[1:].isfinite().all()
