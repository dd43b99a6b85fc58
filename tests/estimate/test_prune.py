from __future__ import annotations

import dense
import pytest
import torch

from rismusic.estimate.likelihood import losses, moments, unconditional_value
from rismusic.estimate.prune import prune
from rismusic.estimate.refine import fit_levels


@pytest.fixture
def places(generator):
    """Scenes of two sources at 20 dB, and six places each: the sources among four others, in some order."""
    recording = dense.small(scenes=5, sources=2, snr_db=20.0)
    truth, _ = dense.truth_of(recording)
    decoys = torch.rand(5, 4, 3, dtype=torch.float64, generator=generator) - 0.5
    decoys[..., 2] = 1 + decoys[..., 2]
    order = torch.stack([torch.randperm(6, generator=generator) for _ in range(5)])
    positions = torch.cat((truth, decoys), dim=1).gather(1, order[..., None].expand(-1, -1, 3))
    return recording, truth, positions


@pytest.mark.parametrize("one_link", [False, True])
def test_losses_are_those_of_the_likelihood(places, one_link):
    recording, _, positions = places
    if one_link:
        recording = dense.small(dense.ONE_LINK, scenes=5, sources=2, snr_db=20.0)
    active = torch.ones(5, 6, dtype=torch.bool)
    active[0, 3] = False
    power, noise = fit_levels(recording, positions, active)
    at = moments(recording, positions, active)
    lost = losses(at, power, noise)
    whole = unconditional_value(at, power, noise)
    for source in range(6):
        without = power.clone()
        without[:, source] = 0
        expected = unconditional_value(at, without, noise) - whole
        torch.testing.assert_close(lost[:, source], expected, rtol=1e-6, atol=1e-6)


def test_the_sources_are_left(places):
    recording, truth, positions = places
    left = prune(recording, positions, torch.ones(5, 6, dtype=torch.bool), torch.full((5,), 2))
    apart = (left[:, :, None] - truth[:, None]).abs().amax(-1)
    assert (apart.amin(1) == 0).all()


def test_each_scene_has_its_own_number_and_absent_places_are_never_taken(places):
    recording, truth, positions = places
    active = torch.ones(5, 6, dtype=torch.bool)
    apart = (positions[:, :, None] - truth[:, None]).abs().amax(-1)
    first = apart[1, :, 0].argmin()
    active[1, first] = False
    count = torch.tensor([2, 1, 3, 6, 0])
    left = prune(recording, positions, active, count)
    assert left.shape == (5, 6, 3)
    for scene in (0, 2, 3):
        some = left[scene, : int(count[scene])]
        assert ((some[:, None] - truth[scene]).abs().amax(-1).amin(0) == 0).all()
        assert len({tuple(one.tolist()) for one in some}) == count[scene]
    assert (left[1, 0] == truth[1, 1]).all()
