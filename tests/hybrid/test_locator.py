"""A ``Locator`` returns what ``locate`` does, and a start from the last positions never locks on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hybrid_case import SETTINGS

from rismusic import Estimate, InputError, Locator, Panel, Recording, locate, register_estimator
from rismusic.registry import ESTIMATORS
from rismusic.sources import Sources


def arrays(recording, scene):
    return recording.snapshots[scene], recording.channel[scene], recording.codes[scene]


def text(estimate, folder):
    estimate.to_json(folder / "a.json", overwrite=True)
    return (folder / "a.json").read_text()


@pytest.mark.parametrize(
    "settings", [{"method": "hybrid"}, {"method": "omp", "n_sources": 2}, {"method": "hybrid", "track": True}]
)
def test_equals_locate(recording, weights, settings, tmp_path):
    common = {**SETTINGS, "weights": weights, **settings}
    locator = Locator(recording.panel, **common)
    tracked = common.pop("track", False)
    for scene in range(2):
        y, H, c = arrays(recording, scene)
        blind = Recording.from_arrays(y, recording.elements, recording.wavelength, H, c)
        assert text(locator(y, H, c), tmp_path) == text(locate(blind, **common), tmp_path)
    if not tracked:
        blind = replace(recording, noise_variance=None, truth=None)
        several = locator(recording.snapshots, recording.channel, recording.codes)
        assert text(several, tmp_path) == text(locate(blind, **common), tmp_path)


@pytest.fixture
def forgetful(recording):
    """A method that finds the sources of the first scene it is given, and never again."""
    calls = []

    def make(spec):
        def estimator(part, n_sources):
            calls.append(part)
            truth = recording.truth[:1] if len(calls) == 2 else None  # the first call is the preparation
            wrong = Sources.from_degrees([[-50.0, 55.0]], [[-25.0, 28.0]], [[0.6, 0.7]])
            return Estimate.from_sources(part, truth or wrong, spec=spec)

        return estimator

    register_estimator("forgetful", make)
    yield "forgetful"
    ESTIMATORS.unregister("forgetful")


def test_the_last_positions_are_a_start_and_no_more(recording, forgetful):
    scene = arrays(recording, 0)
    truth = recording.truth.azimuth[:1].double().sort().values
    locator = Locator(recording.panel, method=forgetful, n_sources=2, track=True, **SETTINGS)
    locator(*scene)
    found = locator(*scene)
    torch.testing.assert_close(found.sources.azimuth.sort().values, truth, atol=0.02, rtol=0)
    # Another scene, whose likelihood from the last positions is what counts.
    locator.reset()
    lost = locator(*scene)
    assert float(lost.neg_log_likelihood) > float(found.neg_log_likelihood) + 10

    cold = Locator(recording.panel, method="omp", n_sources=2, track=True, **SETTINGS)
    cold(*arrays(recording, 1))
    after = cold(*scene)
    torch.testing.assert_close(after.sources.azimuth.sort().values, truth, atol=0.02, rtol=0)


def test_a_recording_gives_the_link_and_the_model(recording):
    shared = replace(recording[0], channel=recording.channel[0], codes=recording.codes[0], symbols="constant")
    locator = Locator(shared, method="omp", n_sources=1, **SETTINGS)
    same = locator(recording.snapshots[2])
    made = replace(shared, snapshots=recording.snapshots[2:3], noise_variance=None)
    assert torch.equal(
        same.sources.azimuth, locate(made, method="omp", n_sources=1, **SETTINGS).sources.azimuth
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"polish": False}, "track: cannot be combined with polish = False"),
        ({"noise": "impulsive"}, "track: cannot be combined with noise = 'impulsive'"),
        ({"panel_error": 0.1}, "track: cannot be combined with panel_error = 0.1"),
    ],
)
def test_tracking_compares_likelihoods(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Locator(Panel.uniform_planar(3, 3), method="music", track=True, **settings)


@pytest.mark.usefixtures("untyped")
def test_another_panel_is_refused(recording):
    locator = Locator(Panel.uniform_planar(4, 4), method="bartlett", n_sources=1, polish=False)
    with pytest.raises(InputError, match="recording: is of another panel"):
        locator.locate(recording)
    with pytest.raises(InputError, match=r"channel: must have shape \[10, 16\]"):
        locator(*arrays(recording, 0))
    with pytest.raises(InputError, match="method: no estimator"):
        Locator(recording.panel, method="omb")
