from __future__ import annotations

import pytest
import torch

from rismusic.array import Panel
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import impair
from rismusic.simulation.simulator import simulate
from rismusic.spec import HardwareSpec

PANEL = Panel.uniform_planar()
# The impaired sample: 0.1 rad static, 0.04 rad per code, gains +-5 %, 3 % dead, 0.05 x half a wavelength.
IMPAIRED = HardwareSpec(
    static_phase_rad=0.1, code_phase_rad=0.04, gain=0.05, dead_fraction=0.03, position_wavelengths=0.025
)
S = 200


def errors(**settings):
    """The factor by which the acting codes differ from the recorded ones, and the acting panel."""
    codes = torch.polar(torch.ones(S, 16, 144).double(), torch.rand(S, 16, 144).double())
    panel, link = impair(
        PANEL, Link(None, codes), HardwareSpec(**settings), Draws(1, "test", torch.arange(S))
    )
    return link.codes / codes, panel


def test_no_errors_change_nothing():
    link = Link()
    assert impair(PANEL, link, HardwareSpec(), Draws(0, "test", torch.arange(1))) == (PANEL, link)


def test_static_phase():
    factor, _ = errors(static_phase_rad=0.1)
    assert torch.allclose(factor, factor[:, :1]), "the same in every snapshot"
    assert factor.angle()[:, 0].std() == pytest.approx(0.1, rel=0.03)
    assert factor.abs().sub(1).abs().max() < 1e-9


def test_code_phase():
    factor, _ = errors(code_phase_rad=0.04)
    assert factor.angle().std() == pytest.approx(0.04, rel=0.02)
    assert (factor.angle()[:, 1:] * factor.angle()[:, :-1]).mean().abs() < 0.04**2 / 50


def test_gain_and_dead_elements():
    factor, _ = errors(gain=0.05)
    assert 0.95 <= factor.abs().min() < 0.951
    assert 1.049 < factor.abs().max() <= 1.05
    assert factor.abs().mean() == pytest.approx(1, abs=0.001)
    factor, _ = errors(dead_fraction=0.03)
    dead = factor.abs() < 1e-12
    assert torch.equal(dead, dead[:, :1].expand_as(dead)), "dead in every snapshot"
    assert dead.double().mean() == pytest.approx(0.03, abs=0.005)


def test_positions():
    _, panel = errors(position_wavelengths=0.025)
    offset = panel.elements - PANEL.elements
    assert panel.elements.shape == (S, 144, 3)
    assert 0.0074 < offset.abs().max() <= 0.0075
    assert offset.mean().abs() < 1e-4


def test_the_recording_holds_the_nominal_system():
    clean, faulty = (
        simulate(scenes=4, hardware=hardware, snr_db=200) for hardware in (HardwareSpec(), IMPAIRED)
    )
    assert torch.equal(clean.channel, faulty.channel)
    assert torch.equal(clean.codes, faulty.codes)
    assert torch.equal(clean.elements, faulty.elements)
    assert torch.equal(clean.truth.azimuth.nan_to_num(9), faulty.truth.azimuth.nan_to_num(9))
    change = (
        clean.snapshots - faulty.snapshots
    ).abs().square().mean() / clean.snapshots.abs().square().mean()
    # Static, code and gain errors and dead elements: 0.01 + 0.0016 + 0.0008 + 0.03; positions: k0^2 d^2.
    assert 0.03 < change < 0.1


def test_direct_sampling_has_errors_of_its_elements():
    faulty = simulate(
        scenes=2, channel={"kind": "direct"}, hardware={"static_phase_rad": 0.1, "gain": 0.1}, snr_db=200
    )
    clean = simulate(scenes=2, channel={"kind": "direct"}, snr_db=200)
    factor = faulty.snapshots / clean.snapshots
    assert faulty.channel is None
    assert faulty.codes is None
    assert (factor - factor[:, :1]).abs().max() < 1e-3
    assert factor.angle().std() == pytest.approx(0.1, rel=0.15)


def test_one_link_has_one_set_of_errors():
    recording = simulate(scenes=3, one_link=True, hardware=IMPAIRED, sources=1, snr_db=200)
    assert recording.channel.shape == (16, 144)
    assert len(recording) == 3
