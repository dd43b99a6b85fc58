from __future__ import annotations

import math

import pytest
import torch

from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import draw_sources, draw_symbols
from rismusic.sources import check_sources
from rismusic.spec import SceneSpec

S = 3000


def draw(sources=(1, 5), scenes=S, snapshots=4, **settings):
    draws = Draws(0, "train", torch.arange(scenes))
    return draw_sources(SceneSpec(**settings), sources, snapshots, draws, torch.float64)


def test_number_and_volume():
    drawn = draw()
    count = drawn.active.sum(-1)
    assert torch.bincount(count, minlength=6)[1:].sub(S / 5).abs().max() < 5 * math.sqrt(S / 5)
    assert (drawn.active == (torch.arange(5) < count[:, None])).all(), "sources first, then empty places"
    for value, low, high in (
        (drawn.azimuth.rad2deg(), -60, 60),
        (drawn.elevation.rad2deg(), -30, 30),
        (drawn.range, 0.5, 10),
    ):
        present = value[drawn.active]
        width = high - low
        assert low < present.min() < low + width / 100
        assert high - width / 100 < present.max() < high
    check_sources(drawn)


def test_first_source_is_uniform_and_off_any_grid():
    drawn = draw(sources=1)
    for value, low, high in ((drawn.azimuth.rad2deg(), -60, 60), (drawn.range, 0.5, 10)):
        counts = torch.histc(value, 20, low, high)
        assert ((counts - S / 20).square() / (S / 20)).sum() < 19 + 5 * math.sqrt(38)
        assert len(value.unique()) > S - 10, "23 bits of resolution: hardly any two alike"


@pytest.mark.parametrize("separation", [0.0, 8.0, 20.0])
def test_separation(separation):
    drawn = draw(sources=(2, 5), separation_deg=separation)
    places = torch.stack((drawn.azimuth, drawn.elevation), dim=-1).rad2deg()
    gap = (places[:, :, None] - places[:, None]).abs().amax(-1)
    gap = gap[~gap.isnan() & ~torch.eye(5, dtype=torch.bool)]
    assert gap.min() >= separation
    assert gap.min() < separation + 1, "no farther than asked"


def test_hard_separations_are_found_and_impossible_ones_refused():
    places = draw(sources=5, scenes=20, separation_deg=35.0)
    assert not places.azimuth.isnan().any()
    with pytest.raises(
        InputError,
        match=r"scene.separation_deg: 5 sources do not fit into the volume at a separation of 90 deg",
    ):
        draw(sources=5, scenes=4, separation_deg=90.0)


def test_separation_does_not_break_independence_of_the_batch():
    many, alone = draw(sources=5, scenes=30, separation_deg=30.0), None
    draws = Draws(0, "train", torch.tensor([17]))
    alone = draw_sources(SceneSpec(separation_deg=30.0), 5, 4, draws, torch.float64)
    assert torch.equal(alone.azimuth[0], many.azimuth[17])


def test_powers():
    assert torch.equal(draw().power[draw().active], torch.ones_like(draw().power[draw().active]))
    spread = draw(sources=5, power_spread_db=10.0).power
    torch.testing.assert_close(spread.mean(-1), torch.ones(S, dtype=torch.float64))
    width = 10 * (spread.amax(-1) / spread.amin(-1)).log10()
    assert 9 < width.max() <= 10
    path = draw(sources=5, power="path_loss")
    torch.testing.assert_close(path.power.mean(-1), torch.ones(S, dtype=torch.float64))
    ratio = path.power * path.range.square()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


@pytest.mark.parametrize(("kind", "fourth"), [("gaussian", 2.0), ("qpsk", 1.0), ("constant", 1.0)])
def test_symbols(kind, fourth):
    s = draw_symbols(kind, 5, 16, Draws(0, "train", torch.arange(S)), torch.complex128)
    assert s.shape == (S, 5, 16)
    assert s.abs().square().mean() == pytest.approx(1, abs=0.01)
    assert s.abs().pow(4).mean() == pytest.approx(fourth, abs=0.05)
    assert s.mean().abs() < 5 / math.sqrt(5 * S)
    held = torch.equal(s[..., 1:], s[..., :-1])
    assert held == (kind == "constant")
    if kind == "qpsk":
        assert len((s * 1e6).real.round().unique()) == 2


def test_symbols_carry_the_power():
    drawn = draw(sources=(2, 3), snapshots=2000, scenes=20, power_spread_db=20.0)
    measured = drawn.symbols.abs().square().mean(-1)[drawn.active]
    assert (measured / drawn.power[drawn.active] - 1).abs().max() < 0.15
    assert drawn.symbols.isnan().any(-1).equal(~drawn.active)
