"""Recordings that state another signal model than that of their data, with truth and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mistakes
import pytest
import torch

from rismusic import check, simulate, write
from rismusic.checks import fits
from rismusic.checks.conventions import as_subcarriers, with_bandwidth
from rismusic.checks.fits import BlindFit, TruthFit
from rismusic.io import Recording, read
from rismusic.sources import Sources

DATA = Path(__file__).parent.parent / "data"
# Near sources, whose waves differ, on a small panel.
SIZE = {
    "panel": {"rows": 8, "columns": 8},
    "channel": {"antennas": 16},
    "codebook": {"snapshots": 12},
    "scene": {"range_min_m": 0.5, "range_max_m": 1.0},
}
DIRECT = SIZE | {"channel": {"kind": "direct"}, "codebook": {"snapshots": 12}}


@pytest.fixture(autouse=True)
def one_source(monkeypatch):
    """A search for one source instead of three, which is enough for these scenes."""
    monkeypatch.setattr(fits, "SETTINGS", fits.SETTINGS.replace(sources=1))


def simulated(wave: str, snr_db: float, size: dict = DIRECT, scenes: int = 2) -> Recording:
    panel = size["panel"] | {"wave": wave}
    return simulate(scenes=scenes, sources=1, snr_db=snr_db, seed=3, **(size | {"panel": panel}))


def with_truth(recording: Recording) -> str | None:
    fit = TruthFit()
    fit.add(recording)
    found = fit.wrong_convention()
    return None if found is None else found.change.name


def without_truth(recording: Recording) -> str | None:
    found = BlindFit(replace(recording, truth=None)).search()
    return None if found is None else found.change.name


@pytest.mark.parametrize("wave", ["spherical", "uniform", "fresnel"])
def test_the_wave_of_the_data_is_named(wave):
    """In noise that hides it more; a false alarm shows with less noise, too."""
    for snr_db in (20.0, 10.0):
        right = simulated(wave, snr_db)
        assert with_truth(right) is None
        assert without_truth(right) is None
    for stated in {"spherical", "uniform", "fresnel"} - {wave}:
        wrong = replace(right, wave=stated)
        assert with_truth(wrong) == f"wave_{wave}", stated
        assert without_truth(wrong) == f"wave_{wave}", stated


def test_behind_a_ris():
    right = simulated("fresnel", 20.0, SIZE)
    assert with_truth(right) is None
    assert without_truth(right) is None
    wrong = replace(right, wave="spherical")
    assert with_truth(wrong) == without_truth(wrong) == "wave_fresnel"


def test_the_search_of_each_model_is_a_start_for_the_others():
    """Differences between waves are not those between local optima: far sources give hardly any evidence."""
    far = DIRECT | {"scene": {"range_min_m": 400.0, "range_max_m": 600.0}}
    fit = BlindFit(replace(simulated("spherical", 30.0, far), truth=None))
    fit.search()
    waves = {each.change.name: each.ratio for each in fit.evidence() if each.change.family == "wave"}
    assert all(abs(ratio) < 10 for ratio in waves.values()), waves


def constant(antennas: int) -> Recording:
    """Constant symbols behind a RIS, stated as independent."""
    size = SIZE | {"channel": {"antennas": antennas}, "codebook": {"snapshots": 40}}
    return simulate(scenes=2, sources=1, snr_db=20.0, **(size | {"scene": {"symbols": "constant"}}))


@pytest.mark.parametrize("antennas", [1, 4])
def test_constant_symbols(antennas, tmp_path):
    wrong = replace(constant(antennas), symbols="independent", pilots=None)
    assert with_truth(wrong) == without_truth(wrong) == "symbols_constant"
    right = replace(wrong, symbols="constant")
    assert with_truth(right) is None
    assert without_truth(right) is None
    write(tmp_path / "a.h5", wrong)
    (finding,) = check(tmp_path / "a.h5").findings
    assert "--symbols constant" in finding.remedy
    assert "symbols = constant" in finding.remedy
    write(tmp_path / "b.h5", right)
    report = check(tmp_path / "b.h5")
    assert not report.findings
    assert report.facts["symbols"] == "constant"


def wideband(bandwidth: float) -> Recording:
    """One source whose L snapshots are subcarriers, at 25 dB."""
    base = simulate(scenes=2, sources=1, **(DIRECT | {"codebook": {"snapshots": 24}}))
    shape = with_bandwidth(base, bandwidth)
    generator = torch.Generator().manual_seed(0)
    sources = Sources.from_degrees([[40.0], [-50.0]], [[10.0], [0.0]], [[0.8], [2.0]])
    A = sources.steering(shape.panel).unflatten(1, (24, -1))[..., 0]  # [S, F, N]
    s = torch.randn(2, 24, 1, dtype=A.dtype, generator=generator)
    noise = torch.randn(A.shape, dtype=A.dtype, generator=generator)
    y = s * A + 10 ** (-25 / 20) / A.shape[-1] ** 0.5 * noise
    truth = replace(sources, symbols=s.mT)
    return replace(base, snapshots=y.to(torch.complex64), truth=truth, noise_variance=None)


@pytest.mark.parametrize("bandwidth", [0.02, -0.1])
def test_subcarriers_as_snapshots(bandwidth):
    wrong = wideband(bandwidth)
    assert with_truth(wrong) == without_truth(wrong) == "subcarriers_as_snapshots"
    right = with_bandwidth(wrong, bandwidth)
    assert with_truth(right) is None
    assert without_truth(right) is None
    for truth in (wrong.truth, None):
        frequencies = as_subcarriers(replace(wrong, truth=truth)).frequencies
        found = (frequencies[-1] - frequencies[0]) / frequencies.mean()
        assert float(found) == pytest.approx(bandwidth, rel=0.1)


def test_a_recording_with_subcarriers_is_right(tmp_path):
    right = with_bandwidth(wideband(0.05), 0.05)
    write(tmp_path / "a.h5", right)
    report = check(tmp_path / "a.h5")
    assert not report.findings
    assert report.facts["subcarriers F"].startswith("24 from ")
    assert report.facts["wave"] == "spherical"


def test_cases(tmp_path):
    """Situations from public questions; their right answers are in shared/cases/README.md."""

    def names(case: str, elements: slice | None = None) -> list[str]:
        path = DATA / f"{case}.npz"
        if elements is not None:
            whole = read(path)
            part = {"elements": whole.elements[elements], "snapshots": whole.snapshots[..., elements]}
            write(path := tmp_path / path.name, replace(whole, **part))
        return [finding.name for finding in check(path).findings]

    middle = slice(36, 108)  # six of twelve rows, a third of the time

    assert names("one_antenna_constant_pilot") == ["symbols_constant"]
    # Its wave has no amplitudes either.
    assert names("subcarriers_1_percent", middle) == ["wave_uniform", "subcarriers_as_snapshots"]
    assert names("line_of_8") == []
    assert names("moving") == ["sources_moving"]
    assert names("iq_offset", middle) == ["wave_uniform", "symbols_repeated"]


def test_pilots_that_are_not_those_that_were_sent():
    scene = {**SIZE["scene"], "symbols": "pilots"}
    made = simulate(scenes=1, sources=2, snr_db=10, seed=4, **SIZE | {"scene": scene})
    assert with_truth(made) is None
    for name in ("pilots_late", "pilots_early", "pilots_reversed", "pilots_conjugated"):
        assert with_truth(mistakes.made(name, made)) == name
    one = simulate(scenes=1, sources=1, snr_db=10, seed=4, **SIZE | {"scene": scene})
    assert without_truth(mistakes.made("pilots_conjugated", one)) == "pilots_conjugated"


def test_symbols_that_are_not_constant(tmp_path):
    """They are no wrong convention, but free ones explain the data."""
    made = simulate(scenes=1, sources=1, snr_db=10, seed=4, **SIZE)
    write(tmp_path / "free.h5", replace(made, truth=None, noise_variance=None, symbols="constant"))
    found = {finding.name for finding in check(tmp_path / "free.h5").findings}
    assert found & {"symbols_free", "panel_error"}


def test_pilots_and_noise_covariance():
    """Known symbols and coloured noise are checked under their own model."""
    size = SIZE | {"channel": {"antennas": 2}, "codebook": {"snapshots": 40}}
    base = simulate(scenes=1, sources=1, snr_db=20.0, **size)
    pilots = base.truth.symbols.mT.to(torch.complex64)
    right = replace(
        base, symbols="known", pilots=pilots, noise_covariance=torch.eye(2, dtype=torch.complex64)
    )
    assert with_truth(right) is None
    assert without_truth(right) is None
    wrong = replace(right, channel=right.channel.conj().resolve_conj())
    assert with_truth(wrong) == without_truth(wrong) == "channel_conjugated"
