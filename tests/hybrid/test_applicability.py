"""What a network does not know is located classically, and the scene's warnings say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hybrid_case import SETTINGS, SYSTEM, save_weights

from rismusic.errors import InputError
from rismusic.hybrid import FALLBACK, locate
from rismusic.simulation.simulator import simulate


def hybrid(recording, weights, **settings):
    """Without the second look at scenes in doubt, which is another matter."""
    settings = {**SETTINGS, "hybrid": {"recheck_p_value": 0.0}, **settings}
    return locate(recording, method="hybrid", weights=weights, **settings)


def warned(located, scene: int = 0) -> str:
    """The first warning of a scene, if it is of the fallback."""
    first = next(iter(located.warnings[scene]), "")
    return first if first.startswith(f"located by {FALLBACK}, not by the network") else ""


def equal(one, other) -> bool:
    return torch.equal(one.sources.azimuth.nan_to_num(9), other.sources.azimuth.nan_to_num(9))


CASES = {
    "larger volume": ({}, {"n_sources": 1, "range_max_m": 3.1}, "the search volume is larger"),
    "wider volume": ({}, {"n_sources": 1, "azimuth_max_deg": 61.0}, "the search volume is larger"),
    "nearer": ({}, {"n_sources": 1, "range_min_m": 0.4}, "range 0.5 to 3 m"),
    "more sources": ({}, {"sources_max": 4}, "at most 3 sources, but up to 4 are tried"),
    "direct": ({"channel": {"kind": "direct"}}, {"n_sources": 1}, "they were trained through a channel"),
    "other panel": ({"panel": {"rows": 6, "columns": 6}}, {"n_sources": 1}, "panel, with N = 64 elements"),
    "wider panel": (
        {"panel": {"rows": 8, "columns": 8, "spacing_wavelengths": 0.6}}, {"n_sources": 1},
        "another panel, with elements up to 0.35 wavelengths away from these",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_another_system(case, weights):
    system, settings, sentence = CASES[case]
    made = simulate(SYSTEM.replace(**system), scenes=1, sources=1, snr_db=20.0)
    located = hybrid(made, weights, **settings)
    assert sentence in warned(located)
    assert located.spec.method == "hybrid"
    assert equal(located, locate(made, method=FALLBACK, **{**SETTINGS, **settings}))


def test_what_it_knows_goes_no_other_way(recording, weights):
    for settings in ({}, {"range_max_m": 2.9}, {"azimuth_max_deg": 20.0}):
        assert not warned(hybrid(recording, weights, n_sources=1, **settings))
    assert not warned(hybrid(recording[:1], weights, sources_max=2))


def test_scenes_with_more_sources_go_alone(recording, weights):
    count = torch.tensor([2, 4, 1, 2, 4, 2])
    located = hybrid(recording, weights, n_sources=count)
    assert [bool(warned(located, scene)) for scene in range(6)] == [False, True, False, False, True, False]
    assert "they know at most 3 sources" in warned(located, 1)
    assert torch.equal(located.sources.active.sum(-1), count)
    known = torch.tensor([0, 2, 3, 5])
    alone = hybrid(recording[known], weights, n_sources=count[known])
    assert equal(alone, replace(located[known], sources=located.sources[known].each(lambda v: v[:, :2])))


def test_scenes_far_above_the_snr_of_the_training_go_alone(recording, weights):
    made = simulate(SYSTEM, scenes=3, sources=1, snr_db=60.0)
    mixed = replace(
        recording[:3],
        snapshots=torch.cat((recording.snapshots[:2], made.snapshots[:1])),
        channel=torch.cat((recording.channel[:2], made.channel[:1])),
        codes=torch.cat((recording.codes[:2], made.codes[:1])),
        noise_variance=torch.cat((recording.noise_variance[:2], made.noise_variance[:1])),
        truth=None,
    )
    located = hybrid(mixed, weights, n_sources=1)
    assert [bool(warned(located, scene)) for scene in range(3)] == [False, False, True]
    assert "they were trained up to 20 dB SNR" in warned(located, 2)


def test_the_same_panel_at_another_wavelength_is_known(recording, weights):
    third = replace(recording, wavelength=0.1, elements=recording.elements / 3)
    assert third.panel.aperture == pytest.approx(recording.panel.aperture / 3)
    here = hybrid(recording, weights, n_sources=2)
    there = hybrid(third, weights, n_sources=2, range_min_m=0.5 / 3, range_max_m=1.0)
    assert not warned(there)
    gap = (there.sources.range * 3 - here.sources.range).abs() / here.std[..., 2]
    assert gap.max() < 0.01
    assert ((there.sources.azimuth - here.sources.azimuth).abs() / here.std[..., 0]).max() < 0.01
    # In the same metres the volume is a larger one, in wavelengths.
    assert "the search volume is larger" in warned(hybrid(third, weights, n_sources=2))


def test_weights_that_are_not_installed(recording, monkeypatch, tmp_path):
    monkeypatch.setattr("rismusic.nn.spec.WEIGHTS", tmp_path)
    located = hybrid(recording, "robust", n_sources=2)
    assert "the weights 'robust' are not installed" in warned(located)
    save_weights(tmp_path / "robust.safetensors")
    assert not warned(hybrid(recording, "robust", n_sources=2))
    # Damaged ones are not passed over.
    (tmp_path / "robust.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"robust.safetensors: is not a safetensors file, or it is truncated"
    ):
        hybrid(recording, "robust", n_sources=2)


def test_weights_of_the_users_own_that_are_not_there(recording, tmp_path):
    with pytest.raises(InputError, match="cannot be read: no such file"):
        hybrid(recording, str(tmp_path / "mine.safetensors"), n_sources=2)
