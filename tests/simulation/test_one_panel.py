"""``one_panel``: new links in every scene, with the impairments of one panel."""

from __future__ import annotations

import pytest
import torch

from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.simulator import Simulator
from rismusic.spec import SystemSpec

HARDWARE = {"static_phase_rad": 0.1, "gain": 0.1, "dead_fraction": 0.1, "position_wavelengths": 0.02}


@pytest.mark.parametrize("one_panel", [False, True])
def test_all_scenes_have_the_same_panel_and_other_links(one_panel):
    spec = SystemSpec(hardware=HARDWARE, one_panel=one_panel)
    nominal, panel, actual = Simulator(spec, seed=2)._link(Draws(2, "train", torch.arange(3)))
    assert nominal.codes.shape == actual.codes.shape == (3, 16, 144)
    assert not torch.equal(nominal.codes[0], nominal.codes[1])
    response = actual.codes / nominal.codes
    assert torch.allclose(response[0], response[1], atol=1e-5) == one_panel
    assert len(panel.elements) == (1 if one_panel else 3)
