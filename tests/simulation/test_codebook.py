from __future__ import annotations

import math

import pytest
import torch

from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import (
    dft_codes,
    draw_codes,
    hadamard_codes,
    hadamard_order,
    quantise,
    spread_order,
)
from rismusic.spec import CodebookSpec, PanelSpec

PANEL = PanelSpec(rows=4, columns=6)


def codes(scenes=20, panel=PANEL, **settings):
    return draw_codes(
        panel, CodebookSpec(**settings), Draws(0, "test", torch.arange(scenes)), torch.complex128
    )


def visited(walk):
    """Numbers of the DFT beams that the codes match, [S, L]."""
    beams = dft_codes(4, 6, torch.arange(24))
    match = torch.einsum("sln,bn->slb", walk, beams.conj()).abs() / 24
    assert (match.amax(-1) > 1 - 1e-9).all(), "every code is one beam"
    return match.argmax(-1)


def test_the_dft_is_orthogonal_and_2d():
    F = dft_codes(4, 6, torch.arange(24))
    torch.testing.assert_close(F @ F.mH, 24 * torch.eye(24, dtype=torch.complex128))
    b, x, y = 9, 5, 2  # b = q * 6 + p
    assert F[b, y * 6 + x].angle() == pytest.approx(
        math.remainder(-2 * math.pi * (3 * x / 6 + 1 * y / 4), 2 * math.pi)
    )


def test_every_dft_beam_is_visited():
    whole = visited(codes(snapshots=24, kind="dft", bits="continuous"))
    assert all(sorted(scene) == list(range(24)) for scene in whole.tolist())
    few = visited(codes(scenes=3000, snapshots=5, kind="dft", bits="continuous"))
    counts = torch.bincount(few.flatten(), minlength=24).double()
    assert (counts - 625).abs().max() < 5 * math.sqrt(625 * 5), "all beams equally often over many scenes"
    assert all(len(set(scene)) == 5 for scene in few.tolist())


def test_more_snapshots_than_beams_start_again():
    twice = visited(codes(snapshots=48, kind="dft", bits="continuous"))
    assert (torch.stack([torch.bincount(scene, minlength=24) for scene in twice]) == 2).all()


@pytest.mark.parametrize("total", [1, 2, 3, 24, 144, 4096])
def test_spread_order_is_a_permutation(total):
    assert sorted(spread_order(total).tolist()) == list(range(total))


def test_spread_order_spreads():
    """Sixteen neighbours of 144 leave no gap of more than a quarter of the circle."""
    order = spread_order(144)
    for first in range(0, 144, 7):
        some = order[torch.arange(first, first + 16) % 144].sort().values
        assert torch.cat((some, some[:1] + 144)).diff().max() <= 36


def test_hadamard_rows():
    from scipy.linalg import hadamard

    expected = torch.from_numpy(hadamard(32)[:, :24].copy()).to(torch.complex128)
    torch.testing.assert_close(hadamard_codes(24, torch.arange(32)), expected)
    assert hadamard_order(144, 16) == 256
    assert hadamard_order(1, 1) == 2
    walk = codes(kind="hadamard", snapshots=24)
    assert set(walk.real.flatten().tolist()) == {-1.0, 1.0}
    assert all(len({tuple(code) for code in scene.real.tolist()}) > 20 for scene in walk)
    # No two elements may wear the same code throughout.
    assert all(len({tuple(element) for element in scene.real.T.tolist()}) == 24 for scene in walk)


@pytest.mark.parametrize("bits", [1, 3, 8, 10, "continuous"])
def test_random_codes(bits):
    walk = codes(scenes=50, bits=bits, panel=PanelSpec())
    assert walk.shape == (50, 16, 144)
    assert walk.abs().sub(1).abs().max() < 1e-12
    assert walk.mean().abs() < 5 / math.sqrt(walk.numel())
    assert (walk[:, 1:] * walk[:, :-1].conj()).mean().abs() < 5 / math.sqrt(walk.numel())
    turns = walk.angle() / (2 * math.pi)
    if bits != "continuous":
        assert (turns * 2**bits - (turns * 2**bits).round()).abs().max() < 1e-9
        levels = (turns * 2**bits).round().remainder(2**bits).unique()
        assert len(levels) == 2**bits
    else:
        assert len(turns.unique()) > 100_000 * 0.9


@pytest.mark.parametrize("kind", ["random", "dft", "hadamard"])
def test_a_scene_does_not_depend_on_the_batch(kind):
    spec = CodebookSpec(kind=kind)
    many = draw_codes(PANEL, spec, Draws(0, "test", torch.arange(9)))
    one = draw_codes(PANEL, spec, Draws(0, "test", torch.tensor([7])))
    assert torch.equal(many[7], one[0])
    assert not torch.equal(many[7], many[6])


def test_quantise():
    turns = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)[None]
    walk = torch.polar(torch.full_like(turns, 0.7), 2 * math.pi * turns)
    for bits in (1, 2, 3):
        coarse = quantise(walk, bits)
        assert coarse.abs().sub(0.7).abs().max() < 1e-12
        assert (coarse * walk.conj()).angle().abs().max() <= math.pi / 2**bits + 1e-9
        assert len(torch.view_as_real(coarse[0]).mul(1e6).round().add(0.0).unique(dim=0)) == 2**bits
    assert torch.equal(quantise(walk, "continuous"), walk)
    for bits in (0, "three"):
        with pytest.raises(InputError, match="bits: must be a positive integer"):
            quantise(walk, bits)
