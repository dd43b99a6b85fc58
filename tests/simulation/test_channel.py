from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.array import Panel
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.simulation.scene import draw_channel, line_of_sight
from rismusic.spec import ChannelSpec

PANEL = Panel.uniform_planar()


def draws(scenes, seed=0):
    return Draws(seed, "test", torch.arange(scenes))


def test_line_of_sight_against_distances():
    """exp(-j k0 (|b_m - p_n| - r_0)) with every position written out."""
    spec = ChannelSpec(distance_m=20.0, antennas=5)
    H = line_of_sight(PANEL, spec, draws(4), torch.complex128).numpy()
    turn = 2 * draws(4).uniform(Stream.STATION, 2, dtype=torch.float64).numpy() - 1
    az, el = np.radians(60 * turn[:, 0]), np.radians(30 * turn[:, 1])
    middle = 20 * np.stack((np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)), axis=-1)
    place = (2 - np.arange(5)) * 0.15
    antennas = middle[:, None] + place[:, None] * np.array([1.0, 0, 0])
    d = np.linalg.norm(antennas[:, :, None] - PANEL.elements.numpy(), axis=-1)
    np.testing.assert_allclose(H, np.exp(-2j * np.pi / 0.3 * (d - 20)), atol=1e-10)


def test_line_of_sight_in_float32():
    spec = ChannelSpec(antennas=64)
    panel = Panel.uniform_planar(64, 64)
    narrow, wide = (
        line_of_sight(panel, spec, draws(20), dtype) for dtype in (torch.complex64, torch.complex128)
    )
    # The station's angles are drawn in float32, which alone is worth 1e-7 of 140 rad on so large a panel.
    assert (narrow.to(torch.complex128) * wide.conj()).angle().abs().max() < 2e-4


@pytest.mark.parametrize("factor_db", [-3.0, 4.0, 10.0])
def test_energy_ratio_of_the_parts_is_the_rician_factor(factor_db):
    spec = ChannelSpec(rician_factor_db=factor_db)
    H = draw_channel(PANEL, spec, draws(400), torch.complex128)
    sight = line_of_sight(PANEL, spec, draws(400), torch.complex128)
    assert sight.abs().sub(1).abs().max() < 1e-12
    # The scatter is independent of the line of sight, so projecting on the latter tells the two apart.
    weight = (sight.conj() * H).mean(dim=(1, 2), keepdim=True)
    scatter = H - weight * sight
    ratio = 10 * math.log10(weight.abs().square().mean() / scatter.abs().square().mean())
    assert ratio == pytest.approx(factor_db, abs=0.05)
    assert H.abs().square().mean() == pytest.approx(1, abs=0.01)


def test_rician_factors_are_uniform_in_db():
    """With the scatter known, each scene's factor can be read off: H = a LoS + b W."""
    spec = ChannelSpec(antennas=2)
    H = draw_channel(PANEL, spec, draws(2000), torch.complex128)
    sight = line_of_sight(PANEL, spec, draws(2000), torch.complex128)
    scatter = draws(2000).complex_normal(Stream.SCATTER, 2, 144, dtype=torch.complex128)
    basis = torch.stack((sight.flatten(1), scatter.flatten(1)), dim=-1)
    a, b = torch.linalg.lstsq(basis, H.flatten(1)[..., None]).solution.squeeze(-1).real.unbind(-1)
    torch.testing.assert_close(a.square() + b.square(), torch.ones(2000, dtype=torch.float64))
    factor_db = 20 * (a / b).log10()
    assert -3 <= factor_db.min() < -2.9
    assert 9.9 < factor_db.max() <= 10
    assert factor_db.mean() == pytest.approx(3.5, abs=5 * 13 / math.sqrt(12 * 2000))


def test_rayleigh_is_white():
    H = draw_channel(PANEL, ChannelSpec(kind="rayleigh"), draws(200), torch.complex128)
    assert H.abs().square().mean() == pytest.approx(1, abs=0.01)
    assert (H[:, :, 1:] * H[:, :, :-1].conj()).mean().abs() < 0.01


def test_direct_sampling_has_no_channel():
    assert draw_channel(PANEL, ChannelSpec(kind="direct"), draws(2)) is None


def test_channels_look_like_those_of_the_samples(samples):
    """Same power per entry, same direction laws: the strongest part of H is one plane wave per side."""
    import h5py

    with h5py.File(samples / "ideal_10dB.h5") as file:
        theirs = torch.from_numpy(file["channel"][()]).to(torch.complex128)
    ours = draw_channel(PANEL, ChannelSpec(), draws(400), torch.complex128)
    for H in (theirs, ours):
        assert H.abs().square().mean() == pytest.approx(1, abs=0.02)
        # The antennas run along -x: the phase slopes at both ends of the link are the same.
        U, _, V = torch.linalg.svd(H, full_matrices=False)
        grid = V[:, 0].reshape(-1, 12, 12)
        across = (grid[:, :, 1:] * grid[:, :, :-1].conj()).sum(dim=(1, 2)).angle()
        along = (U[:, 1:, 0] * U[:, :-1, 0].conj()).sum(dim=1).angle()
        assert (across - along).abs().median() < 0.03
    strongest = [torch.linalg.svdvals(H)[:, 0].square() / (16 * 144) for H in (theirs, ours)]
    spread = strongest[1].std() / math.sqrt(24)
    assert abs(strongest[0].mean() - strongest[1].mean()) < 4 * spread
