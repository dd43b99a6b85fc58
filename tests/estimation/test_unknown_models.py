"""Models chosen from the data, coordinates that are held, the far field, and noise of unequal outputs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from model_scenes import MODELS, make
from rismusic.array import Panel, steering
from rismusic.cli.locate import results_table
from rismusic.crb import conditional_crb, recording_crb
from rismusic.errors import InputError
from rismusic.estimation.signal_model import (
    evidence_of_symbols,
    evidence_of_waves,
    for_geometry,
    with_output_noise,
)
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match, score
from rismusic.operator import Link
from rismusic.simulation.simulator import Simulator, simulate
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, SystemSpec

SMALL = {"rows": 6, "columns": 6}


def plane_waves(panel, azimuth_deg, *, snapshots=40, seed=0, snr_db=20.0):
    """A recording of plane waves from these azimuths, elevation 0."""
    generator = torch.Generator().manual_seed(seed)
    azimuth = torch.tensor(azimuth_deg, dtype=torch.float64).deg2rad()
    zero, far = torch.zeros_like(azimuth), torch.full_like(azimuth, math.inf)
    A = steering(panel, azimuth, zero, far)
    shape = (len(azimuth), snapshots)
    s = torch.randn(*shape, dtype=torch.complex128, generator=generator)
    noise = torch.randn(panel.size, snapshots, dtype=torch.complex128, generator=generator)
    y = A @ s
    level = float(y.abs().square().mean() / 10 ** (snr_db / 10))
    return Recording.from_arrays((y + math.sqrt(level) * noise).mT, panel.elements, panel.wavelength)


@pytest.mark.parametrize("wave", ["spherical", "uniform", "fresnel", "paraxial"])
def test_the_wave_of_the_data_has_the_most_evidence(wave):
    settings = LocateSpec(range_max_m=2.0, sources_max=1, method="omp")
    panel = {"rows": 5, "columns": 5, "spacing_wavelengths": 0.7, "wave": wave}
    system = {"scene": {"range_max_m": 2.0}, "channel": {"antennas": 8}, "codebook": {"snapshots": 8}}
    made = simulate(scenes=2, sources=1, snr_db=25.0, panel=panel, **system)
    evidence = evidence_of_waves(made, settings)
    assert max(evidence, key=lambda name: evidence[name]) == wave
    if wave == "fresnel":
        found = locate(made, n_sources=1, wave="auto", spec=settings)
        assert (found.azimuth_deg - made.truth.azimuth_deg).abs().max() < 2


@pytest.mark.parametrize("kind", ["direct", "rician"])
@pytest.mark.parametrize("symbols", ["gaussian", "constant"])
def test_constant_symbols_are_told_from_independent_ones(symbols, kind):
    system = {"panel": SMALL, "channel": {"kind": kind}, "scene": {"symbols": symbols}}
    made = simulate(scenes=1, sources=1, snr_db=10.0, **system)
    evidence = evidence_of_symbols(made, LocateSpec(sources_max=1))
    assert (evidence["constant"] > evidence["independent"]) == (symbols == "constant")


def test_a_line_of_elements_leaves_out_one_angle():
    horizontal = Panel.uniform_linear(8)
    assert for_geometry(LocateSpec(), horizontal).unknowns == ("azimuth", "range")
    vertical = Panel.uniform_planar(8, 1)
    assert for_geometry(LocateSpec(), vertical).unknowns == ("elevation", "range")
    assert for_geometry(LocateSpec(), Panel.uniform_planar(2, 8)).unknowns == LocateSpec().unknowns
    assert for_geometry(LocateSpec(unknowns=("range",)), horizontal).unknowns == ("range",)


def test_the_bound_of_a_line_is_that_with_the_elevation_known():
    panel = Panel.uniform_linear(8)
    sources = Sources.from_degrees([-20, 25], [10, 0], [1.0, 2.0])
    sources = replace(sources, symbols=torch.ones(2, 5, dtype=torch.complex128))
    noise = torch.tensor(0.1).double()
    whole = conditional_crb(panel, Link(), sources, noise)
    known = conditional_crb(panel, Link(), sources, noise, unknowns=("azimuth", "range"))
    assert whole.std[:, 1].isinf().all()
    torch.testing.assert_close(whole.std[:, [0, 2]], known.std[:, [0, 2]])
    # Two sources in the same place have no bound at all.
    twins = replace(
        sources, **{name: getattr(sources, name)[[0, 0]] for name in ("azimuth", "elevation", "range")}
    )
    assert conditional_crb(panel, Link(), twins, noise).std.isinf().all()


def test_a_source_in_the_far_field_has_an_infinite_range_and_a_lower_limit(tmp_path):
    made = plane_waves(Panel.uniform_planar(6, 6), [20.0], seed=3)
    found = locate(made, method="omp", n_sources=1, range_max_m=math.inf)
    assert found.azimuth_deg[0, 0] == pytest.approx(20, abs=0.5)
    assert found.range_lower_m[0, 0] > 2 * made.panel.aperture
    far = replace(found, sources=replace(found.sources, range=torch.full((1, 1), math.inf).double()))
    assert "far, >" in repr(far)
    far.to_csv(tmp_path / "a.csv")
    assert ",inf," in (tmp_path / "a.csv").read_text("utf-8")
    assert not any("boundary" in sentence for sentence in found.warnings[0] if "range" in sentence)


def test_plane_waves_have_a_bound():
    panel = Panel.uniform_planar(6, 6)
    sources = Sources.from_degrees([20], [5], [2.0])
    sources = replace(
        sources, range=torch.tensor([math.inf]).double(), symbols=torch.ones(1, 4, dtype=torch.complex128)
    )
    far = conditional_crb(panel, Link(), sources, torch.tensor(0.1).double())
    near = conditional_crb(
        panel, Link(), replace(sources, range=torch.tensor([1e6]).double()), torch.tensor(0.1).double()
    )
    torch.testing.assert_close(far.std[:, :2], near.std[:, :2], rtol=1e-4, atol=0)
    torch.testing.assert_close(far.inverse_range_std, near.inverse_range_std, rtol=1e-4, atol=0)
    assert far.std[0, 2].isinf()


def test_held_coordinates_are_said_and_have_no_error_bar(tmp_path):
    made = plane_waves(Panel.uniform_linear(8), [-10.0, 30.0])
    found = locate(made, method="omp", n_sources=2, unknowns=("azimuth",), range_max_m=math.inf)
    assert found.azimuth_deg[0].sort().values.tolist() == pytest.approx([-10, 30], abs=0.3)
    assert found.std[0, :, 0].isfinite().all()
    assert found.std[0, :, 1:].isinf().all()
    assert any("held at 0 deg" in sentence for sentence in found.warnings[0])
    # Nothing is known of a range that is held.
    assert "the range was not estimated but held at infinity" in found.warnings[0]
    assert found.range_lower_m.isnan().all()
    for text in (str(found), cli_table(found)):
        assert text.count("far field") == 2
        assert "nan" not in text
        assert ">" not in text
    path = tmp_path / "x.json"
    found.to_json(path)
    scene = json.loads(path.read_text())["scenes"][0]
    assert scene["settings"]["range_max_m"] == "inf"
    assert [one["range_lower_m"] for one in scene["sources"]] == [None, None]
    assert found.spec == LocateSpec(**scene["settings"])


def test_held_coordinates_have_no_error_bar_with_an_erring_panel():
    made = simulate(scenes=1, sources=1, snr_db=20.0, panel=SMALL, channel={"kind": "direct"})
    found = locate(made, method="omp", n_sources=1, unknowns=("azimuth",), panel_error=0.1)
    assert found.std[0, 0].isfinite().tolist() == [True, False, False]


def cli_table(found):
    with io.StringIO() as text:
        Console(width=100, file=text).print(results_table(found, []))
        return text.getvalue()


@pytest.mark.parametrize("kind", ["direct", "rician"])
def test_noise_of_unequal_outputs(kind):
    made = simulate(scenes=8, sources=1, snr_db=10.0, panel=SMALL, channel={"kind": kind, "antennas": 12})
    M, generator = made.snapshots.shape[-1], torch.Generator().manual_seed(1)
    level = torch.ones(M, dtype=torch.float64)
    level[:3] = 100.0
    more = torch.randn(made.snapshots.shape, dtype=made.snapshots.dtype, generator=generator)
    extra = (made.noise_variance.double()[:, None] * (level - 1)).sqrt()[:, None].to(more.dtype)
    covariance = torch.diag_embed((made.noise_variance.double()[:, None] * level).to(torch.complex128))
    noisy = replace(made, snapshots=made.snapshots + extra * more, noise_covariance=covariance)
    noisy = replace(noisy, noise_variance=covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1))
    blind = replace(noisy, truth=None, noise_covariance=None, noise_variance=None)
    bound = recording_crb(noisy)

    def error(**settings):
        found = locate(blind, method="omp", n_sources=1, **settings)
        return score(match(made.truth, found.sources), bound)

    white, estimated = error(), error(noise="per_output")
    assert estimated.misses == 0
    assert estimated.azimuth_over_bound < 1.8
    assert white.misses > 0 or white.azimuth_over_bound > 1.5 * estimated.azimuth_over_bound


def test_noise_of_outputs_most_of_which_are_dead():
    """Whitening multiplies a dead output by no more than ten times the factor of the others."""
    made = simulate(scenes=2, sources=1, snr_db=10.0, panel=SMALL, channel={"antennas": 6})
    made.snapshots[..., 1:] = 0
    made.snapshots[1] = 0
    nowhere = torch.empty(2, 0, dtype=torch.float64)
    nobody = Sources(azimuth=nowhere, elevation=nowhere, range=nowhere)
    noise = with_output_noise(made, nobody).noise_covariance.diagonal(dim1=-2, dim2=-1).real
    torch.testing.assert_close(noise[0, 1:], noise[0, :1].expand(5) / 100)
    assert (noise[1] == noise[1, 0]).all()
    assert locate(made, noise="per_output", method="omp").n_sources[1] == 0


def test_known_symbols_need_pilots():
    with pytest.raises(InputError, match="pilots"):
        locate(simulate(scenes=1, sources=1, panel=SMALL), symbols="known", method="omp")


def test_pilots_are_searched_from_each_source_first():
    # Searched first, source 0 of this scene is lost in the field of source 1.
    spec = SystemSpec(sources=2, snr_db=10, scene={"symbols": "pilots"})
    made = Simulator(spec, seed=1, split="test").scenes(46, 47)
    found = locate(made, method="omp")
    assert bool(match(made.truth, found.sources).hit.all())


def test_symbols_that_are_not_as_recorded_are_named():
    """Pilots that were conjugated, and symbols that are new in every snapshot taken for constant ones."""

    def named(found):
        return [any("free symbols" in one for one in reasons) for reasons in found.reasons]

    pilots = simulate(scenes=3, sources=2, snr_db=10, seed=4, scene={"symbols": "pilots"})
    pilots = replace(pilots, noise_variance=None)
    assert not any(named(locate(pilots)))
    assert all(named(locate(replace(pilots, pilots=pilots.pilots.conj()))))
    constant = simulate(scenes=3, sources=2, snr_db=10, seed=4, scene={"symbols": "constant"})
    assert not any(named(locate(replace(constant, noise_variance=None))))
    free = replace(simulate(scenes=3, sources=2, snr_db=10, seed=4), noise_variance=None, symbols="constant")
    located = locate(free)
    explained = [float(error) > 0 for error in located.panel_error]
    assert all(a or b for a, b in zip(named(located), explained, strict=True))
    assert all(status != "ok" for status in located.status)


@pytest.mark.parametrize("unknowns", [("azimuth",), ("azimuth", "range")])
def test_three_coherent_sources_of_a_line_of_eight_are_at_the_bound(unknowns, generator):
    """One snapshot: 16 real numbers, three symbols, three or six coordinates and the noise variance."""
    panel = Panel.uniform_linear(8)
    aside = torch.empty(100, 3, dtype=torch.float64).uniform_(-8, 8, generator=generator)
    azimuth = torch.tensor([-40.0, 0.0, 40.0]) + aside
    truth = Sources.from_degrees(azimuth, 0 * azimuth, torch.full_like(azimuth, 1e5))
    recording = simulate(
        sources=truth,
        panel=panel,
        snr_db=30.0,
        channel={"kind": "direct"},
        codebook={"snapshots": 1},
        scene={"symbols": "constant"},
    )
    blind = replace(recording, truth=None, noise_variance=None)
    settings = {"unknowns": unknowns, "range_max_m": float("inf"), "azimuth_max_deg": 70.0}
    found = locate(blind, n_sources=3, method="best", **settings)
    made = recording.stacked()
    bound = conditional_crb(made.panel, made.link, made.truth, recording.noise_variance, unknowns=unknowns)
    matched = match(truth, found.sources)
    assert (~matched.hit).any(1).sum() <= 1
    rms = float((matched.error[..., 0] / bound.std[..., 0]).square().nanmean().sqrt())
    # The range of a plane wave ends at the boundary, infinity, in half of the scenes: better than the bound.
    assert 0.75 < rms < 1.15
    ratio = (found.noise_variance / recording.noise_variance)[matched.hit.all(1)]
    assert abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / len(ratio) ** 0.5


def test_a_search_that_is_too_large_is_refused_before_the_models_are_compared(monkeypatch):
    """The fits of the models use a coarser grid, on which they could take minutes."""

    def fitted(*_):
        raise AssertionError("a model was fitted")

    monkeypatch.setattr("rismusic.estimation.signal_model._evidence", fitted)
    sparse = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    snapshots = torch.randn(1, 5, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    recording = Recording(elements=sparse, wavelength=0.3, snapshots=snapshots, wave="fresnel")
    for settings in ({"symbols": "auto"}, {"wave": "auto"}):
        with pytest.raises(InputError, match="more than 16,777,216 points"):
            locate(recording, method="omp", azimuth_max_deg=180, **settings)


@pytest.mark.parametrize("wave", ["fresnel", "spherical"])
def test_waves_are_compared_with_the_sources_of_the_pilots(wave):
    made = simulate(
        scenes=3, sources=2, snr_db=25, seed=4, panel={**SMALL, "wave": wave}, scene={"symbols": "pilots"}
    )
    hidden = replace(made, truth=None, noise_variance=None, wave="spherical")
    evidence = evidence_of_waves(hidden)
    assert max(evidence, key=lambda name: evidence[name]) == wave


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("known, direct", {"noise": "per_output", "polish": False}),  # whitened, each with its own pilots
        ("constant", {"method": "mvdr", "sources_max": 8}),  # more than the panel resolves
        ("wideband, direct", {"method": "music", "sources_max": 8}),  # more than one subcarrier has snapshots
        # One antenna identifies no source whose symbols are new in every snapshot.
        ("known, one antenna", {"symbols": "independent", "method": "music", "wave": "fresnel"}),
        # A panel error is not estimated beside weights.
        ("weighted, constant, direct", {"symbols": "independent", "method": "hybrid", "range_max_m": 3.0}),
    ],
)
def test_models_meet_settings_that_few_people_combine(model, settings):
    """An unknown number of sources is never too large; nothing contradicts itself."""
    made = replace(make(**MODELS[model]), truth=None)
    for recording in (made, replace(made, noise_variance=None)):
        found = locate(recording, **{"method": "omp", **settings})
        assert len(found.status) == len(made)
