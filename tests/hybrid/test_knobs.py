"""Settings of inference that are off unless they are asked for: what each of them does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hybrid_case import SETTINGS, SYSTEM

from rismusic import hybrid as module
from rismusic.covariance import (
    Conditioning,
    Covariance,
    back_project,
    load_and_shrink,
    predicted_covariance,
    squared_modulus,
)
from rismusic.errors import InputError
from rismusic.estimation.grid import highest_peaks, searched_grid, to_cosines
from rismusic.estimation.maximum_likelihood import Fit
from rismusic.estimation.noise import guess_noise, noise_of
from rismusic.estimation.spectra import music
from rismusic.hybrid import fit_n_sources
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn.inference import LoadedNetwork, NetworkOutput
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import HybridSpec, LocateSpec

BETA = 0.4
SNR_DB = torch.tensor([-10.0, 0.0, 10.0, 30.0])
TWO = torch.full((4,), 2)


@pytest.fixture(scope="module")
def made() -> Recording:
    """One scene at four SNRs."""
    parts = [simulate(SYSTEM, scenes=1, sources=2, snr_db=float(snr), seed=3) for snr in SNR_DB]
    return Recording(
        snapshots=torch.cat([one.snapshots for one in parts]),
        channel=torch.cat([one.channel for one in parts]),
        codes=torch.cat([one.codes for one in parts]),
        noise_variance=torch.cat([one.noise_variance for one in parts]),
        elements=parts[0].elements,
        wavelength=parts[0].wavelength,
        truth=None,
    )


def spec_of(weights: str, **hybrid: object) -> LocateSpec:
    return LocateSpec(
        method="hybrid",
        weights=weights,
        hybrid={"beta": BETA, "birth_death_prior_below": 0.0, **hybrid},
        **SETTINGS,
    )


def output_with(made: Recording, weights: str, **hybrid: object) -> NetworkOutput:
    return NetworkOutput.compute(
        LoadedNetwork.load(weights, torch.device("cpu")), made, noise_of(made), spec_of(weights, **hybrid)
    )


def fitted(made: Recording, weights: str, count=TWO, *, polish: bool = True, **hybrid: object) -> Fit:
    spec = spec_of(weights, **hybrid).replace(polish=polish)
    return fit_n_sources(output_with(made, weights, **hybrid), count, searched_grid(made, spec), spec)


def same(one: Fit, other: Fit) -> bool:
    pairs = [(getattr(fit.sources, name) for fit in (one, other)) for name in ("azimuth", "range")]
    return all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in pairs)


def share_of_sample(output: NetworkOutput) -> torch.Tensor:
    """Of the trace of R_blend without its identity: the columns of R_samp, which are the last ten."""
    columns = squared_modulus(output.blend.factor).sum(-2)
    return columns[:, -10:].sum(-1) / columns.sum(-1)


def test_music_does_not_see_the_identity(generator):
    """Why the shrinkage is not one towards I / N: that one leaves every spectrum of MUSIC as it is."""
    factor = torch.randn(5, 64, 6, dtype=torch.complex128, generator=generator)
    sound = Covariance(factor, torch.zeros(5).double())
    shrunk = Conditioning(torch.full((5,), 0.3).double(), torch.full((5,), 0.5).double())
    spectra = [music(one, 2).vectors for one in (sound, load_and_shrink(sound, shrunk))]
    projectors = [V @ V.mH for V in spectra]
    torch.testing.assert_close(*projectors)
    # The test would see another target.
    other = predicted_covariance(factor.flip(-1)[..., :2], factor[..., :2])
    moved = music(Covariance(torch.cat((factor, other.factor), -1), sound.loading), 2).vectors
    assert (projectors[0] - moved @ moved.mH).abs().max() > 1e-2


def test_shrinkage_takes_from_noisy_scenes(made, weights):
    torch.testing.assert_close(share_of_sample(output_with(made, weights)), torch.full((4,), BETA))
    noise = back_project(made.link, made.snapshots, made.noise_variance).noise_share
    assert (noise.diff() < 0).all()
    assert noise[0] > 0.5
    assert noise[3] < 0.05
    for shrinkage in (0.5, 1.0):
        shares = share_of_sample(output_with(made, weights, shrinkage=shrinkage))
        torch.testing.assert_close(shares, BETA * (1 - shrinkage * noise))
    rough = {"network_sources": False}
    plain, shrunk = (fitted(made, weights, polish=False, shrinkage=one, **rough) for one in (0.0, 1.0))
    gap = (plain.sources.azimuth - shrunk.sources.azimuth).abs().amax(-1)
    assert gap[0] > 100 * gap[3]


def test_shrinkage_with_a_guessed_noise(made, weights):
    hidden = replace(made, noise_variance=None)
    noise = back_project(made.link, made.snapshots, guess_noise(hidden)).noise_share
    shares = share_of_sample(output_with(hidden, weights, shrinkage=1.0))
    torch.testing.assert_close(shares, BETA * (1 - noise))


def test_newton_takes_the_steps_that_were_asked_for(made, weights, monkeypatch):
    asked = []
    whole = module.rap_music_sources
    monkeypatch.setattr(
        module,
        "rap_music_sources",
        lambda *given, options: asked.append(options) or whole(*given, options=options),
    )
    few = {"newton_steps": 2, "network_sources": False, "relax_sweeps": 0, "max_evaluations": 1}
    fitted(made, weights, **few)
    # Peaks that stay are climbed to the top.
    fitted(made, weights, polish=False, **few)
    assert [options.steps for options in asked] == [2, 40]


def test_heads_stand_at_the_highest_peaks(made, weights):
    """What the threshold takes for granted, of its list."""
    network = LoadedNetwork.load(weights, torch.device("cpu")).network
    prediction = network(made)
    peaks = highest_peaks(prediction.grid_logits[:, -1], network.grid, 3)
    heads = to_cosines(prediction.azimuth, prediction.elevation, 1 / prediction.inverse_range)
    on_grid = to_cosines(peaks.azimuth, peaks.elevation, peaks.range)
    for head, peak, step in zip(heads, on_grid, network.grid.step, strict=True):
        assert (head - peak).abs().max() < 2.1 * step


def test_whether_the_list_is_tried_is_each_scene_s_own(weights, generator):
    """A list that is the truth, beside a useless blend; in every second scene it lacks a source."""
    made = simulate(SYSTEM, scenes=6, sources=2, snr_db=20.0)
    spec = spec_of(weights, relax_sweeps=0)
    noise = torch.randn(6, 64, 4, dtype=torch.complex64, generator=generator)
    truth = Sources(**{n: getattr(made.truth, n).double() for n in ("azimuth", "elevation", "range")})
    short = torch.tensor([[False, False], [False, True]] * 3)
    lost = replace(
        output_with(made, weights),
        blend=Covariance(noise, torch.zeros(6)),
        network_sources=truth.each(lambda value: value.masked_fill(short, torch.nan)),
    )
    fit = fit_n_sources(lost, torch.full((6,), 2), searched_grid(made, spec), spec)
    hits = match(made.truth, fit.sources).hit.all(-1)
    assert hits[::2].all()
    assert not hits[1::2].any()
    assert fit.sources.active.all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shrinkage", 1.1),
        ("shrinkage", -0.1),
    ],
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(InputError, match=f"hybrid.{name}: expected"):
        HybridSpec(**{name: value})
