"""Mistakes planted in recordings that were not made by this code are named, and nothing else is."""

from __future__ import annotations

import math
from dataclasses import replace

import mistakes
import numpy as np
import pytest
import torch

from rismusic.checks.conventions import CHANGES, MODELS
from rismusic.checks.fits import TruthFit, compared, unexplained_share
from rismusic.errors import InputError
from rismusic.io import Recording, read, validate
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

# Other signal models are no mistakes in the data; test_other_models.py tests them.
NAMES = [change.name for change in CHANGES if change.family not in MODELS]
HINTS = {
    "angles_in_degrees": "degrees?",
    "elements_in_centimetres": "elements in centimetres would be 0.5 apart",
    "frequency_in_mhz": "a frequency in MHz would be 0.5 apart",
    "wavenumber": "2 pi / wavelength would be 0.5 apart",
}
# At 0, 10 and 20 dB; ideal_10dB has nothing that is not in one of them.
SAMPLES = ["ideal_0dB.h5", "impaired_10dB.h5", "direct_10dB.h5", "one_link_20dB.mat"]


def gathered(recording: Recording, block: int = 64) -> TruthFit:
    fit = TruthFit()
    for start in range(0, len(recording), block):
        fit.add(recording[start : start + block])
    return fit


def wrong_convention(recording: Recording):
    return gathered(recording).wrong_convention()


@pytest.fixture(scope="module", params=SAMPLES)
def sample(request, samples) -> Recording:
    recording = read(samples / request.param)
    if recording.truth is None:
        with np.load(samples / "one_link_20dB.truth.npz") as file:
            names = ("azimuth", "elevation", "range")
            truth = {name: torch.from_numpy(file[name]).double() for name in names}
        recording = replace(recording, truth=Sources(**truth))
    return recording[:2]


def test_every_change_has_its_mistake():
    assert set(NAMES) == set(mistakes.MISTAKES)
    assert len({change.name for change in CHANGES}) == len(CHANGES) == len(NAMES) + 6


def refused(recording: Recording) -> str | None:
    """What reading such a file says, if it is refused."""
    try:
        validate(recording)
    except InputError as error:
        return str(error)
    return None


def test_each_mistake_in_the_samples_is_named(sample):
    """Or refused on reading, with the mistake in the sentence."""
    assert wrong_convention(sample) is None
    named = 0
    for name in NAMES:
        wrong = mistakes.made(name, sample)
        if wrong is None:
            continue
        sentence = refused(wrong)
        if sentence is not None:
            assert HINTS[name] in sentence, name
            continue
        found = wrong_convention(wrong)
        assert found is not None, name
        assert found.change.name == name
        assert found.alike == ()
        named += 1
    assert named >= (19 if sample.channel is None else 24)


@pytest.mark.parametrize("name", ["channel_transposed", "channel_hermitian"])
def test_a_square_channel_that_is_transposed(name):
    sound = simulate(
        scenes=4, panel={"rows": 4, "columns": 5}, channel={"antennas": 20}, snr_db=10.0, sources=2
    )
    assert wrong_convention(sound) is None
    assert wrong_convention(mistakes.made(name, sound)).change.name == name


def test_sound_recordings_of_many_kinds():
    """A hundred of larger ones are measured for the documentation."""
    kinds = [
        {},
        {"channel": {"kind": "direct"}},
        {"one_link": True},
        {"codebook": {"kind": "dft", "snapshots": 6}},
        {"hardware": {"static_phase_rad": 0.2, "dead_fraction": 0.05}},
    ]
    size = SystemSpec(panel={"rows": 4, "columns": 5}, codebook={"snapshots": 6}, channel={"antennas": 7})
    for kind in kinds:
        for snr_db in (-5.0, 5.0):
            made = simulate(size, scenes=6, snr_db=snr_db, sources=(1, 3), **kind)
            for scenes in (slice(0, 1), slice(1, 6)):
                assert wrong_convention(made[scenes]) is None


def test_mistakes_that_look_alike_are_told_together():
    """Far from the panel a conjugate wave comes from the opposite direction."""
    far = {"range_min_m": 500.0, "range_max_m": 1000.0}
    size = {"panel": {"rows": 4, "columns": 5}, "codebook": {"snapshots": 6}, "channel": {"antennas": 7}}
    sound = simulate(scenes=6, sources=1, snr_db=20.0, scene=far, **size)
    found = wrong_convention(mistakes.made("all_conjugated", sound))
    assert {found.change.name, *found.alike} == {"all_conjugated", "directions_reversed"}
    assert wrong_convention(mistakes.made("range_in_centimetres", sound)) is None  # and a range is no matter


def test_a_truth_of_other_scenes_is_no_mix_up(generator):
    sound = simulate(scenes=12, sources=2, snr_db=20.0, channel={"kind": "rayleigh"})
    assert gathered(sound).residual_energy < 0.05
    other = gathered(replace(sound, truth=sound.truth.each(lambda value: value.roll(1, 0))))
    assert other.residual_energy > 0.5
    assert other.wrong_convention() is None
    silent = replace(sound, noise_variance=None)
    assert gathered(silent).residual_energy == 0


def test_blocks_of_scenes_add_up(samples):
    sample = read(samples / "ideal_10dB.h5")[:5]
    assert wrong_convention(sample) is None
    whole, parts = (gathered(mistakes.by_columns(sample), block) for block in (5, 2))
    assert whole.scenes == parts.scenes == 5
    assert whole.wrong_convention().ratio == pytest.approx(parts.wrong_convention().ratio, rel=1e-6)


def test_chance(generator):
    """Of white noise the ratio has mean 0 and variance 2 L K where the subspaces have little in common."""
    made = simulate(scenes=400, sources=1, channel={"kind": "rayleigh"})
    noise = torch.randn(made.snapshots.shape, dtype=torch.complex64, generator=generator)
    ratios = {name: ratio for name, ratio, _ in compared(replace(made, snapshots=noise))}
    ratio = ratios["snapshots_conjugated"]
    assert ratio.mean().abs() < 4 * (32 / 400) ** 0.5
    assert ratio.var() == pytest.approx(32, rel=0.3)


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_unexplained_share(snr_db):
    """1 / (1 + SNR) for the truth; without a line of sight, 1 for sources elsewhere."""
    rayleigh = {"kind": "rayleigh"}
    clean = simulate(scenes=300, sources=2, snr_db=snr_db, channel=rayleigh, dtype=torch.float64)
    share = unexplained_share(clean, clean.truth)
    assert share.mean() == pytest.approx(1 / (1 + 10 ** (snr_db / 10)), rel=0.03)
    elsewhere = unexplained_share(clean, clean.truth.each(lambda value: value.flip(0)))
    assert elsewhere.median() == pytest.approx(1, abs=0.15)


def test_unexplained_share_with_gaps_in_the_truth():
    clean = simulate(scenes=4, sources=2, snr_db=60.0, dtype=torch.float64)
    gap = torch.full((4, 1), math.nan, dtype=torch.float64)
    fields = {n: getattr(clean.truth, n) for n in ("azimuth", "elevation", "range")}
    gappy = Sources(**{n: torch.cat((v[:, :1], gap, v[:, 1:]), dim=1) for n, v in fields.items()})
    assert unexplained_share(clean, gappy).max() < 1e-4
    few = simulate(scenes=4, sources=3, channel={"antennas": 3})
    assert (unexplained_share(few, few.truth) == 0).all()
    assert wrong_convention(few) is None
