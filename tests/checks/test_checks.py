"""Every finding is raised by its fault, and by nothing sound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rismusic.array import Panel
from rismusic.checks import CHECKS, check, fits
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.io import Recording, write
from rismusic.simulation.simulator import simulate

SMALL = {"panel": {"rows": 4, "columns": 5}, "codebook": {"snapshots": 6}, "channel": {"antennas": 7}}


def recording(**settings) -> Recording:
    return simulate(scenes=6, **{"snr_db": 10.0, "sources": (1, 3), **SMALL, **settings})


def names(tmp_path, faulty: Recording) -> list[str]:
    path = tmp_path / "faulty.h5"
    write(path, faulty)
    return [finding.name for finding in check(path, fit=False).findings]


@pytest.mark.parametrize(
    "name", ["ideal_0dB.h5", "ideal_10dB.h5", "impaired_10dB.h5", "direct_10dB.h5", "one_link_20dB.mat"]
)
def test_every_sample_is_accepted(name, samples):
    result = check(samples / name, fit=False)  # fits are tried in test_blindfit.py
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


def clipped(snapshots, level):
    """The real and imaginary parts at this multiple of their RMS value in the scene, at most."""
    most = level * snapshots.abs().square().mean((-2, -1), keepdim=True).div(2).sqrt()
    return torch.complex(
        *(torch.minimum(part.abs(), most) * part.sign() for part in (snapshots.real, snapshots.imag))
    )


WIDEBAND = {"wideband": {"subcarriers": 3, "bandwidth_hz": 50e6}, "sources": 1}


def by_columns(elements):
    """What a program that numbers x slowest would write for these channel and codes."""
    return elements.reshape(4, 5, 3).transpose(0, 1).reshape(-1, 3)


def out_of_plane(elements):
    return elements[:, [0, 2, 1]]


FAULTS = {
    "snapshots_real": lambda r: replace(r, snapshots=r.snapshots.real + 0j, truth=None),
    "channel_real": lambda r: replace(r, channel=r.channel.real + 0j, truth=None),
    "noise_too_loud": lambda r: replace(r, noise_variance=100 * r.noise_variance),
    "snapshots_repeated": lambda r: replace(
        r, snapshots=r.snapshots[:, :1].expand(-1, 6, -1).clone(), truth=None
    ),
    "codes_repeated": lambda r: replace(r, codes=r.codes[:, :1].expand(-1, 6, -1).clone(), truth=None),
    "codes_modulus": lambda r: replace(r, codes=r.codes * 3, truth=None),
    "antenna_dead": lambda r: replace(
        r, snapshots=r.snapshots * torch.ones(7).index_fill(0, torch.tensor(2), 0.1)
    ),
    "snapshots_clipped": lambda r: replace(r, snapshots=clipped(r.snapshots, 0.5)),
    "antenna_loud": lambda r: replace(
        r, snapshots=r.snapshots * torch.ones(7).index_fill(0, torch.tensor(2), 9)
    ),
    "snapshots_offset": lambda r: replace(r, snapshots=r.snapshots + 3 * r.snapshots.abs().mean()),
    "channel_rank": lambda r: replace(r, channel=r.channel[..., :1] * r.channel[..., :1, :]),
    "scenes_repeated": lambda r: r[torch.tensor([0, 1, 2, 1])],
    "truth_unexplained": lambda r: replace(r, channel=r.channel.roll(1, 0)),
    "truth_far": lambda r: replace(r, truth=replace(r.truth, range=1000 * r.truth.range)),
    "elements_coarse": lambda r: moved(r, lambda e: 3 * e),
    "elements_dense": lambda r: moved(r, lambda e: e / 10),
    "elements_off_centre": lambda r: moved(r, lambda e: e + torch.tensor([1.0, 0, 0])),
    "elements_out_of_plane": lambda r: moved(r, out_of_plane),
    "carrier_outside_band": lambda _: replace(
        recording(**WIDEBAND), frequencies=1.03 * recording(**WIDEBAND).frequencies, truth=None
    ),
}


def test_wrong_elements_come_before_the_waves_that_they_imitate(tmp_path):
    found = names(tmp_path, FAULTS["elements_off_centre"](recording()))
    assert found[0] == "elements_off_centre"


def test_rounded_wavelengths_of_subcarriers_are_sound(tmp_path):
    sound = recording(**WIDEBAND)
    rounded = replace(sound, wavelength=float(f"{sound.wavelength:.2g}"), truth=None)
    assert "carrier_outside_band" not in names(tmp_path, rounded)


@pytest.mark.parametrize("name", sorted(CHECKS.keys() - {"noise_variance_off"}))
def test_each_finding_is_raised_by_its_fault(name, tmp_path):
    """And the healthy twin raises none (above)."""
    assert name in names(tmp_path, FAULTS[name](recording()))


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_noise_of_a_real_and_of_a_complex_number_are_told_apart(factor, tmp_path):
    sound = recording(codebook={"snapshots": 16})
    faulty = replace(sound, noise_variance=factor * sound.noise_variance, truth=None)
    path = tmp_path / "faulty.h5"
    write(path, faulty)
    found = {finding.name: finding.value for finding in check(path).findings}
    assert found == ({} if factor == 1 else {"noise_variance_off": pytest.approx(2, rel=0.15)})


def test_a_mix_up_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "faulty.h5"
    conjugated = replace(recording(), channel=recording().channel.conj().resolve_conj())
    write(path, conjugated)
    (finding,) = check(path).findings
    assert finding.name == "channel_conjugated"
    assert finding.value > finding.threshold > 20
    assert "fit better if conjugated" in finding.meaning
    assert finding.remedy.startswith("conjugate channel")
    assert check(path).facts["conventions"] == "tried on the truth of 6 scenes"


def test_a_recording_in_memory_has_the_report_of_its_file(tmp_path):
    """Also one with other fields, and with more scenes than are read at a time."""
    changed = replace(recording(), snapshots=recording().snapshots.conj())  # a lazy conjugate
    many = Recording.concatenate([recording(seed=seed, one_link=True) for seed in range(12)])
    for number, made in enumerate((recording(), recording(**WIDEBAND), changed, many)):
        path = tmp_path / f"{number}.h5"
        write(path, made)
        held, stored = check(made, fit=False), check(path, fit=False)
        assert held.findings == stored.findings
        assert {"file": stored.facts["file"], **held.facts} == stored.facts
    with pytest.raises(InputError, match="snapshots"):
        check(replace(recording(), snapshots=recording().snapshots * torch.nan))


def test_a_report_prints_as_sentences():
    sound = str(check(recording()))
    assert "scenes S: 6\n" in sound
    assert sound.endswith("Nothing suspicious.")
    wrong = str(check(replace(recording(), channel=recording().channel.conj().resolve_conj())))
    assert "suspicious: channel_conjugated: channel fit better" in wrong
    assert "To try: conjugate channel" in wrong
    assert "Nothing suspicious" not in wrong


def test_without_truth_fits_are_tried_unless_it_is_forbidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fits, "SETTINGS", fits.SETTINGS.replace(sources=1))
    path = tmp_path / "blind.h5"
    sound = replace(recording(snr_db=20.0, sources=1)[:2], truth=None)
    write(path, replace(sound, snapshots=sound.snapshots.conj().resolve_conj()))
    (finding,) = check(path).findings
    assert finding.name == "snapshots_conjugated"
    assert check(path, fit=False).findings == []
    assert check(path, fit=False).facts["conventions"] == "not tried (no truth)"
    monkeypatch.setattr("rismusic.checks.fits._LARGEST", 1)
    assert "too large" in check(path).facts["conventions"]


def test_mistakes_that_look_alike_are_said_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "far.h5"
    far = recording(snr_db=20.0, sources=1, scene={"range_min_m": 500.0, "range_max_m": 1000.0})
    write(
        path,
        replace(far, truth=replace(far.truth, azimuth=-far.truth.azimuth, elevation=-far.truth.elevation)),
    )
    assert main(["check", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "directions_reversed" in said
    assert "all_conjugated" in said
    assert "Fits as well:" in said


def test_findings_say_what_to_do(tmp_path):
    path = tmp_path / "faulty.h5"
    write(path, FAULTS["noise_too_loud"](recording()))
    (finding,) = check(path).findings
    assert finding.value == 6
    assert finding.threshold == 0
    assert "noise_variance" in finding.meaning
    assert "E|n|^2" in finding.remedy


def test_one_element_and_no_truth(tmp_path):
    one = simulate(scenes=3, panel=Panel(torch.zeros(1, 3, dtype=torch.float64), 0.3), **_tiny_link())
    path = tmp_path / "one.npz"
    write(path, replace(one, truth=None, noise_variance=None))
    result = check(path)
    assert result.facts["elements N"] == "1"
    assert result.facts["truth"] == "not given"


def _tiny_link():
    from rismusic.operator import Link

    codes = torch.polar(torch.ones(4, 1), torch.arange(4.0)[:, None])
    return {"link": Link(torch.ones(3, 1, dtype=torch.complex64) * (1 + 1j), codes), "sources": 1}
