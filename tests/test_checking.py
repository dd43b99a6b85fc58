from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rismusic.checking import FINDINGS, check
from rismusic.mixups import mix_ups, unexplained_share
from rismusic.panel import Panel
from rismusic.recording import Recording, read, write
from rismusic.scene import Sources
from rismusic.simulator import simulate

SMALL = {"panel": {"rows": 4, "columns": 5}, "codebook": {"snapshots": 6}, "channel": {"antennas": 7}}


def recording(**settings) -> Recording:
    return simulate(scenes=6, **{"snr_db": 10.0, "sources": (1, 3), **SMALL, **settings})


def names(tmp_path, faulty: Recording) -> list[str]:
    path = tmp_path / "faulty.h5"
    write(path, faulty)
    return [finding.name for finding in check(path).findings]


@pytest.mark.parametrize(
    "name", ["ideal_0dB.h5", "ideal_10dB.h5", "impaired_10dB.h5", "direct_10dB.h5", "one_link_20dB.mat"]
)
def test_every_sample_is_accepted(name, samples):
    result = check(samples / name)
    assert result.findings == []
    assert result.facts["Fraunhofer distance"].startswith("36.3 m")
    assert result.facts["nearest elements"] == "0.5 wavelengths apart"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"snr_db": -5.0},
        {"channel": {"kind": "direct"}},
        {"one_link": True},
        {"sources": 5},
        {"codebook": {"kind": "dft"}},
    ],
)
def test_sound_recordings_raise_nothing(settings, tmp_path):
    assert names(tmp_path, recording(**settings)) == []


def moved(faulty: Recording, change) -> Recording:
    return replace(faulty, elements=change(faulty.elements.clone()))


def by_columns(elements):
    """What a program that numbers x slowest would write for these channel and codes."""
    return elements.reshape(4, 5, 3).transpose(0, 1).reshape(-1, 3)


def out_of_plane(elements):
    return elements[:, [0, 2, 1]]


FAULTS = {
    "snapshots_conjugated": lambda r: replace(r, snapshots=r.snapshots.conj().resolve_conj()),
    "channel_conjugated": lambda r: replace(r, channel=r.channel.conj().resolve_conj()),
    "codes_conjugated": lambda r: replace(r, codes=r.codes.conj().resolve_conj()),
    "azimuth_mirrored": lambda r: replace(r, truth=replace(r.truth, azimuth=-r.truth.azimuth)),
    "elevation_mirrored": lambda r: replace(r, truth=replace(r.truth, elevation=-r.truth.elevation)),
    "angles_swapped": lambda r: replace(
        r, truth=replace(r.truth, azimuth=r.truth.elevation, elevation=r.truth.azimuth)
    ),
    "elements_renumbered": lambda r: moved(r, by_columns),
    "snapshots_real": lambda r: replace(r, snapshots=r.snapshots.real + 0j, truth=None),
    "channel_real": lambda r: replace(r, channel=r.channel.real + 0j, truth=None),
    "noise_too_loud": lambda r: replace(r, noise_variance=100 * r.noise_variance),
    "snapshots_repeated": lambda r: replace(
        r, snapshots=r.snapshots[:, :1].expand(-1, 6, -1).clone(), truth=None
    ),
    "codes_repeated": lambda r: replace(r, codes=r.codes[:, :1].expand(-1, 6, -1).clone(), truth=None),
    "codes_modulus": lambda r: replace(r, codes=r.codes * 3, truth=None),
    "scenes_repeated": lambda r: r[torch.tensor([0, 1, 2, 1])],
    "truth_far": lambda r: replace(r, truth=replace(r.truth, range=1000 * r.truth.range)),
    "elements_coarse": lambda r: moved(r, lambda e: 3 * e),
    "elements_dense": lambda r: moved(r, lambda e: e / 10),
    "elements_off_centre": lambda r: moved(r, lambda e: e + torch.tensor([1.0, 0, 0])),
    "elements_out_of_plane": lambda r: moved(r, out_of_plane),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_is_raised_by_its_fault(name, tmp_path):
    """And the healthy twin raises none (above)."""
    assert name in names(tmp_path, FAULTS[name](recording()))


@pytest.mark.parametrize("name", ["ideal_0dB.h5", "ideal_10dB.h5", "impaired_10dB.h5", "direct_10dB.h5"])
def test_mix_ups_in_the_samples_are_named(name, samples):
    """Planted in recordings not made by this code, the first mistake that fits best is the one planted."""
    sound = read(samples / name)
    assert max(float(ratio.sum()) for ratio in mix_ups(sound).values()) < -1000
    for fault, plant in FAULTS.items():
        if fault in ("channel_conjugated", "codes_conjugated") and sound.channel is None:
            continue
        if fault == "elements_renumbered":
            elements = sound.elements.reshape(12, 12, 3).transpose(0, 1).reshape(-1, 3)
            planted = replace(sound, elements=elements)
        elif fault in mix_ups(sound):
            planted = plant(sound)
        else:
            continue
        ratios = {name: float(ratio.sum()) for name, ratio in mix_ups(planted).items()}
        assert max(ratios, key=ratios.get) == fault
        assert ratios[fault] > 1000


def test_findings_say_what_to_do(tmp_path):
    path = tmp_path / "faulty.h5"
    write(path, FAULTS["noise_too_loud"](recording()))
    (finding,) = check(path).findings
    assert finding.value == 6
    assert finding.threshold == 0
    assert "noise_variance" in finding.meaning
    assert "E|n|^2" in finding.remedy


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


def test_one_element_and_no_truth(tmp_path):
    one = simulate(scenes=3, panel=Panel(torch.zeros(1, 3, dtype=torch.float64), 0.3), **_tiny_link())
    path = tmp_path / "one.npz"
    write(path, replace(one, truth=None, noise_variance=None))
    result = check(path)
    assert result.facts["elements N"] == "1"
    assert result.facts["truth"] == "not given"


def _tiny_link():
    from rismusic.link import Link

    codes = torch.polar(torch.ones(4, 1), torch.arange(4.0)[:, None])
    return {"link": Link(torch.ones(3, 1, dtype=torch.complex64) * (1 + 1j), codes), "sources": 1}
