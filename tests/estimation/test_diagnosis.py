"""What departs from the model is found and said; sound scenes stay as they are."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_scenes import MODELS, make
from rismusic import Panel, Recording, Sources, load_sample, locate, register_estimator, simulate
from rismusic.array import steering
from rismusic.estimation import diagnosis
from rismusic.estimation.estimate import Estimate, Reason, fit_at
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import sufficient_statistics
from rismusic.estimation.model_error import with_dense_operator
from rismusic.io import read
from rismusic.metrics import match
from rismusic.registry import ESTIMATORS

DATA = Path(__file__).parent.parent / "data"


def blind(recording, **changes):
    return replace(recording, noise_variance=None, **changes)


def said(estimate, words):
    """Scenes with a doubt that contains these words."""
    return [any(words in one for one in reasons) for reasons in estimate.reasons]


def said_notes(estimate, words):
    """Scenes with a warning that contains these words."""
    return [any(words in one for one in warnings) for warnings in estimate.warnings]


def places(recording):
    return Sources(**{n: getattr(recording.truth, n) for n in ("azimuth", "elevation", "range")})


def received(recording, field, snr_db=20.0):
    """The recording with snapshots of another field on the panel [S, L, N]."""
    signal = recording.link.apply(field.to(torch.complex64))
    level = (signal.abs().square().mean((1, 2), keepdim=True) / 10 ** (snr_db / 10)).sqrt()
    noise = torch.randn(signal.shape, dtype=signal.dtype, generator=torch.Generator().manual_seed(5))
    return blind(recording, snapshots=signal + level * noise)


def along_path(recording, step_deg):
    """Field on the panel of the first source, whose azimuth changes from snapshot to snapshot."""
    truth, s = recording.truth, recording.truth.symbols[:, 0, :, None]
    L = s.shape[1]
    azimuth = truth.azimuth[:, :1] + math.radians(step_deg) * (torch.arange(L) - (L - 1) / 2)
    rest = (value[:, :1].double().expand(-1, L) for value in (truth.elevation, truth.range))
    return steering(recording.panel, azimuth.double(), *rest).mT * s


@pytest.fixture(scope="module")
def erring():
    """Panels with dead elements, which surplus sources absorb if the panel is trusted."""
    made = simulate(scenes=6, sources=(1, 2), snr_db=20, hardware={"dead_fraction": 0.06}, seed=3)
    return blind(made)


@pytest.fixture(scope="module")
def found_erring(erring):
    return locate(erring, method="omp", sources_max=3)


def test_a_panel_that_errs_makes_no_sources(erring, found_erring):
    true = erring.truth.active.sum(-1)
    trusted = locate(erring, method="omp", sources_max=3, panel_error=0.0)
    assert (trusted.n_sources != true).sum() >= 3
    found = found_erring
    assert torch.equal(found.n_sources, true)
    assert ((found.panel_error > 0.05) & (found.panel_error < 0.5)).all()
    assert all("departs from its description" in " ".join(some) for some in found.warnings)
    assert set(found.status) <= {"ok", "doubtful"}
    assert found.n_sources_probability.sum(1).allclose(torch.ones(6, dtype=torch.float64))


def test_the_panel_error_of_a_scene_stays_beside_sound_scenes(erring):
    sound = blind(simulate(scenes=3, sources=(1, 2), snr_db=20, seed=3))
    mixed = Recording.concatenate([erring[:3], sound])
    found = locate(mixed, method="omp", sources_max=3)
    assert [float(error) > 0 for error in found.panel_error] == said_notes(
        found, "departs from its description"
    )
    assert (found.panel_error[:3] > 0.05).all()


def test_sound_scenes_beside_those_of_a_panel_that_errs_stay_sound():
    system = {"sources": 2, "snr_db": 20, "panel": {"rows": 8, "columns": 8}}
    bad = simulate(scenes=6, hardware={"static_phase_rad": 0.25}, **system)
    made = Recording.concatenate([simulate(scenes=4, seed=8, **system), bad])
    found = locate(blind(made), method="omp", sources_max=3)
    assert found.status[:4] == ["ok"] * 4
    assert "ok" not in found.status[4:]


def test_a_panel_that_errs_makes_no_sources_of_constant_symbols():
    made = simulate(
        scenes=4,
        sources=1,
        snr_db=20,
        hardware={"dead_fraction": 0.06},
        scene={"symbols": "constant"},
        seed=3,
    )
    trusted, found = (
        locate(blind(made), method="omp", sources_max=3, panel_error=value) for value in (0.0, "auto")
    )
    assert (trusted.n_sources > 1).all()
    assert found.n_sources.tolist() == [1] * 4
    assert ((found.panel_error > 0.05) & (found.panel_error < 0.5)).all()
    error = torch.rad2deg(found.sources.azimuth[:, 0] - made.truth.azimuth[:, 0]).abs()
    assert (error < 4 * found.std[:, 0, 0].rad2deg()).all()


def test_a_panel_that_errs_makes_no_sources_of_correlated_symbols():
    settings = {"hardware": {"dead_fraction": 0.05}, "scene": {"correlation": 0.8}}
    made = blind(
        simulate(scenes=2, sources=2, snr_db=20, seed=11, panel={"rows": 8, "columns": 8}, **settings)
    )
    trusted, found = (locate(made, method="omp", sources_max=3, panel_error=value) for value in (0.0, "auto"))
    assert (trusted.n_sources > 2).all()
    assert found.n_sources.tolist() == [2, 2]
    assert (found.panel_error > 0.05).all()


def test_a_panel_that_errs_makes_no_sources_of_subcarriers():
    wideband = {"wideband": {"subcarriers": 8, "bandwidth_hz": 20e6}, "codebook": {"snapshots": 4}}
    wideband["panel"] = {"rows": 8, "columns": 8}
    made = simulate(scenes=2, sources=2, snr_db=20, hardware={"dead_fraction": 0.06}, seed=3, **wideband)
    trusted, found = (
        locate(blind(made), method="omp", sources_max=3, panel_error=error) for error in (0.0, "auto")
    )
    assert (trusted.n_sources > 2).any()
    assert (found.n_sources == 2).all()
    assert (found.panel_error > 0.05).all()
    sound = simulate(scenes=2, sources=2, snr_db=20, seed=3, **wideband)
    assert (locate(blind(sound), method="omp", sources_max=3).panel_error == 0).all()


@pytest.fixture
def few_degrees_off():
    def few_degrees_off(spec):
        def estimate(recording, n_sources):
            count = torch.ones(len(recording)) if isinstance(n_sources, str) else torch.as_tensor(n_sources)
            off = Sources.from_degrees(14.0, 3.0, 2.0).each(lambda value: value.expand(len(recording), 1))
            off = off.each(
                lambda value: value.masked_fill(count.expand(len(recording))[:, None] < 1, math.nan)
            )
            return Estimate.from_sources(recording, off, spec=spec)

        return estimate

    register_estimator("few_degrees_off", few_degrees_off)
    yield "few_degrees_off"
    ESTIMATORS.unregister("few_degrees_off")


def test_a_known_number_of_sources_at_the_boundary_is_told_which_limit_to_move():
    """And not that the panel errs, which explains such a residual as well."""
    system = {"panel": {"rows": 6, "columns": 6}, "channel": {"kind": "direct"}, "snr_db": 20.0, "scenes": 1}
    for place, limit in (((20.0, 0.0, 0.2), "--range-min-m"), ((75.0, 0.0, 2.0), "--azimuth-max-deg")):
        sources = Sources.from_degrees(*([value] for value in place))
        found = locate(blind(simulate(sources=sources, **system)), n_sources=1, method="omp")
        (reason,) = [one for one in found.reasons[0] if "boundary" in one]
        assert f"enlarge it with {limit}" in reason
        assert not said(found, "panel departs")[0]


def test_which_sources_are_outside_the_volume_if_any_is(few_degrees_off):
    system = {"panel": {"rows": 6, "columns": 6}, "channel": {"kind": "direct"}, "snr_db": 20.0, "scenes": 1}
    inside = blind(simulate(sources=Sources.from_degrees([20.0], [0.0], [2.0]), **system))
    beyond = blind(simulate(sources=Sources.from_degrees([20.0, 75.0], [0.0, 0.0], [2.0, 2.0]), **system))
    found = locate(inside, method=few_degrees_off)
    assert found.method == ["relax"]
    assert found.reasons == [
        ["a search of all directions and ranges explains the data better than few_degrees_off"]
    ]
    found = locate(beyond, method="omp")
    which = (found.azimuth_deg[0] > 60).nonzero()[:, 0].tolist()
    assert len(which) == 1
    assert said(found, f"source {which[0]} is outside the search volume") == [True]


def test_one_antenna_sees_a_source_outside_the_volume():
    # The p-value of a single long snapshot is not small, so that all scenes are searched.
    system = {"channel": {"antennas": 1}, "codebook": {"snapshots": 64}, "scene": {"symbols": "constant"}}
    sources = Sources.from_degrees([[20.0], [-30.0]], [[60.0], [10.0]], [[3.0], [2.0]])
    found = locate(blind(simulate(sources=sources, snr_db=20, seed=9, **system)), method="omp")
    assert said(found, "outside the search volume") == [True, False]
    assert found.azimuth_deg[:, 0].tolist() == pytest.approx([20, -30], abs=1)
    assert found.elevation_deg[:, 0].tolist() == pytest.approx([60, 10], abs=1)


def test_a_frequency_offset_of_one_antenna_is_named():
    """Without the offset one antenna receives what looks like noise."""
    one = {"channel": {"antennas": 1}, "codebook": {"snapshots": 64}, "panel": {"rows": 8, "columns": 8}}
    made = blind(simulate(scenes=6, sources=1, snr_db=15, seed=3, scene={"symbols": "constant"}, **one))
    turn = torch.polar(torch.ones(64), 0.08 * torch.arange(64.0))[:, None]
    words = "carrier-frequency offset: multiply snapshot l by exp(-0.0736j * l)"
    assert all(said(locate(replace(made, snapshots=made.snapshots * turn), method="omp"), words))
    assert not any(said(locate(made, method="omp"), "offset"))


def test_the_dense_operator_is_that_of_constant_symbols():
    made = simulate(scenes=2, sources=2, snr_db=20, scene={"symbols": "constant"}, seed=4).stacked()
    dense = with_dense_operator(made)
    A = torch.randn(2, made.panel.size, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dense.link.matmul(A), made.link.matmul(A), rtol=1e-4, atol=1e-5)
    independent = simulate(scenes=1, sources=1, seed=4)
    assert with_dense_operator(independent) is independent


@pytest.mark.parametrize(
    "unknowns", [("azimuth", "elevation", "range"), ("azimuth",)], ids=["all", "azimuth"]
)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_tested_for_everything(model, unknowns, monkeypatch):
    """Whatever these few samples are taken for, even the largest number of sources that they identify."""
    monkeypatch.setattr(diagnosis, "_SUSPICIOUS", 1.5)
    made = replace(make(**MODELS[model]), truth=None)
    found = locate(made, method="omp", unknowns=unknowns)
    assert len(found.status) == len(made)


def test_a_wave_or_a_source_outside_is_found_for_other_symbols_and_frequencies():
    system = {"panel": {"rows": 8, "columns": 8}}
    constant, pilots = ({"scene": {"symbols": name}} for name in ("constant", "pilots"))
    wideband = {"wideband": {"subcarriers": 4, "bandwidth_hz": 20e6}, "codebook": {"snapshots": 4}}
    for model in (constant, pilots, wideband):
        near = {**model.get("scene", {}), "range_min_m": 0.4, "range_max_m": 0.8}
        settings = {**system, **model, "scene": near, "panel": {**system["panel"], "wave": "paraxial"}}
        made = blind(simulate(scenes=1, sources=1, snr_db=30, seed=7, **settings), wave="spherical")
        assert said(locate(made, method="omp", sources_max=2), "a paraxial wave explains"), model
        outside = Sources.from_degrees([[75.0]], [[5.0]], [[3.0]])
        made = blind(simulate(sources=outside, snr_db=20, seed=7, **system, **model))
        found = locate(made, method="omp", sources_max=2)
        assert said(found, "outside the search volume"), model
        assert float(found.azimuth_deg[0, 0]) == pytest.approx(75, abs=1.5)


def test_sound_scenes_of_other_symbols_and_frequencies_raise_no_doubt():
    system = {"panel": {"rows": 8, "columns": 8}, "codebook": {"snapshots": 8}}
    for model in (
        {"scene": {"symbols": "constant"}},
        {"scene": {"symbols": "pilots"}},
        {"wideband": {"subcarriers": 4, "bandwidth_hz": 20e6}},
    ):
        found = locate(
            blind(simulate(scenes=3, sources=1, snr_db=15, seed=8, **system, **model)), method="omp"
        )
        assert found.status == ["ok"] * 3, model
        assert not any(found.reasons), model


def test_sound_scenes_stay_as_they_are():
    recording = blind(simulate(scenes=6, sources=(1, 3), snr_db=10, seed=4))
    found, trusted = (locate(recording, method="omp", panel_error=value) for value in ("auto", 0.0))
    assert found.status == ["ok"] * 6
    assert (found.panel_error == 0).all()
    torch.testing.assert_close(found.sources.azimuth, trusted.sources.azimuth, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(found.existence_probability > 0.5, found.sources.active)


def test_configurations_of_other_snapshots_fail():
    made = simulate(scenes=3, sources=1, snr_db=20, seed=5)
    found = locate(blind(made, codes=made.codes.roll(1, dims=1)), method="omp")
    assert found.status == ["failed"] * 3
    assert all(said(found, "configurations and snapshots are in the same order"))


def test_sources_outside_the_search_volume_are_located():
    sources = Sources.from_degrees([[75.0], [10.0]], [[5.0], [10.0]], [[3.0], [1e4]])
    found = locate(blind(simulate(sources=sources, snr_db=20, seed=6)), method="omp", sources_max=2)
    assert found.n_sources.tolist() == [1, 1]
    assert found.azimuth_deg[:, 0].tolist() == pytest.approx([75, 10], abs=1.0)
    assert float(found.range_m[1, 0]) > 10
    assert all(said(found, "outside the search volume"))


def test_distant_sources_are_no_noise_through_the_panel():
    """The search outside the volume finds both sources and no others."""
    there = Sources.from_degrees([17.0, -23.0], [6.0, -11.0], [1e4, 1e4])
    made = blind(simulate(scenes=3, sources=there, snr_db=15, codebook={"snapshots": 32}, seed=2))
    found = locate(made, method="omp", sources_max=3)
    assert all(said(found, "outside the search volume"))
    assert not any(said(found, "noise through the panel"))
    assert found.n_sources.tolist() == [2] * 3


def test_sources_behind_an_array_that_is_not_planar_are_located():
    """They are outside the default search volume, and one of them in the far field."""
    placed = Sources.from_degrees([150.0, -40.0], [0.0, 0.0], [50.0, 3.0], behind=True)
    direct = {"channel": {"kind": "direct"}, "codebook": {"snapshots": 32}}
    angle = 2 * math.pi * torch.arange(16) / 16
    circle = Panel(torch.stack((angle.sin(), 0 * angle, angle.cos()), dim=1) * 0.384, wavelength=0.3)
    found = locate(blind(simulate(sources=placed, panel=circle, snr_db=10, seed=1, **direct)), method="omp")
    assert said(found, "outside the search volume") == [True]
    assert found.azimuth_deg[0, :2].sort().values.tolist() == pytest.approx([-40, 150], abs=1)


def test_coherent_sources_are_named_in_one_sentence():
    """Three with the same symbols, and one with others."""
    placed = Sources.from_degrees([-40.0, -10.0, 15.0, 45.0], [0.0] * 4, [3.0, 2.0, 4.0, 3.0])
    direct = {"channel": {"kind": "direct"}, "codebook": {"snapshots": 32}}
    made = simulate(sources=placed, snr_db=20, seed=1, **direct)
    s = made.truth.symbols.mT.clone()  # [S, L, K]
    s[..., 1:3] = s[..., :1]
    field = steering(made.panel, *(x.double() for x in (placed.azimuth, placed.elevation, placed.range)))
    found = locate(received(made, (field.to(s.dtype) * s[..., None, :]).sum(-1)), n_sources=4, method="omp")
    (text,) = [one for one in found.reasons[0] if "same signal" in one]
    group = [int(one) for one in re.findall(r"\d", text.partition(":")[0])]
    alone = (found.azimuth_deg[0] - 45).abs().argmin()
    assert len(group) == 3
    assert int(alone) not in group
    assert f"sources {group[1]} and {group[2]} may be reflections of source {group[0]}" in text


def test_coherence_of_sources_in_one_place_without_noise():
    """The matrix of their fields is singular to rounding."""
    made = simulate(scenes=1, sources=1, snr_db=60, seed=3)
    place = torch.tensor([[[0.2, 0.1, 0.5]] * 3], dtype=torch.float64)
    at = sufficient_statistics(made, place, torch.ones(1, 3, dtype=torch.bool))
    power, noise = torch.full((1, 3), 1e4, dtype=torch.float64), torch.tensor([1e-13], dtype=torch.float64)
    estimate = locate(made, n_sources=3, method="omp")
    estimate = replace(estimate, sources=replace(estimate.sources, power=power), noise_variance=noise)
    p = diagnosis._coherence_p_value(at, estimate)
    assert p.isfinite().all()
    assert (p[0, ~torch.eye(3, dtype=torch.bool)] < 1e-6).all()


def test_interference_in_one_snapshot_is_named():
    """Surplus sources take it: they send in that snapshot only."""
    made = blind(simulate(scenes=1, sources=2, snr_db=15, seed=9))
    assert not any(said(locate(made, method="omp", sources_max=3), "interference"))
    burst = made.snapshots.clone()
    level = burst.abs().square().mean((1, 2)).sqrt()
    burst[:, 5] += 8 * level[:, None] * torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    found = locate(replace(made, snapshots=burst), method="omp", sources_max=3)
    named = [any("snapshot 5" in one and "noise impulsive" in one for one in each) for each in found.reasons]
    assert named == [True]
    cured = locate(replace(made, snapshots=burst), method="omp", noise="impulsive", sources_max=3)
    assert cured.n_sources.tolist() == [2]


def test_paths_of_one_source_are_named():
    made = simulate(scenes=3, sources=2, snr_db=20, seed=7)
    s = made.truth.symbols[:, :1]
    both = torch.cat((s, 0.5 * s), dim=1)
    paths = received(made, (made.truth.steering(made.panel) @ both).mT)
    assert all(said(locate(paths, method="omp", n_sources=2), "source 1 may be a reflection of source 0"))
    assert not any(said(locate(blind(made), method="omp", n_sources=2), "reflection"))


def test_paths_on_several_subcarriers_are_named():
    """The relative phase of a path differs from subcarrier to subcarrier."""
    F = 8
    system = {"panel": {"rows": 6, "columns": 6}, "channel": {"kind": "direct"}, "codebook": {"snapshots": 4}}
    wideband = {"subcarriers": F, "bandwidth_hz": 50e6}
    made = simulate(scenes=6, sources=2, snr_db=15, seed=4, wideband=wideband, **system)
    assert not any(said(locate(blind(made), n_sources=2, method="omp"), "send the same signal"))
    s = made.truth.symbols.to(torch.complex128).unflatten(2, (F, -1))  # [S, K, F, L]
    turn = torch.polar(torch.full((F,), 0.5, dtype=torch.float64), torch.arange(F).double() * 1.9)
    s[:, 1] = s[:, 0] * turn[:, None]
    A = made.truth.steering(made.panel).unflatten(1, (F, -1))  # [S, F, N, K]
    field = (A.to(s.dtype) @ s.movedim(1, 2)).mT
    noise = torch.randn(field.shape, dtype=field.dtype, generator=torch.Generator().manual_seed(1))
    level = (field.abs().square().mean((1, 2, 3), keepdim=True) / 10**1.5).sqrt()
    echoed = blind(made, snapshots=(field + level * noise).to(made.snapshots.dtype), truth=None)
    assert sum(said(locate(echoed, n_sources=2, method="omp"), "send the same signal")) >= 5


def test_a_source_that_moves_is_one_source():
    made = simulate(scenes=4, sources=1, snr_db=20, seed=21)
    field = along_path(made, 0.3)
    found = locate(received(made, field), method="omp", sources_max=3)
    assert found.n_sources.tolist() == [1] * 4
    assert all(said(found, "source 0 moves by about"))
    error = found.sources.azimuth[:, 0].double() - made.truth.azimuth[:, 0].double()
    assert (error.abs() < math.radians(0.2)).all()
    two = blind(simulate(scenes=4, sources=2, snr_db=20, seed=21))
    assert not any(said(locate(two, method="omp", sources_max=3), "moves"))


def test_more_sources_than_the_largest_number():
    made = blind(simulate(scenes=3, sources=2, snr_db=20, seed=8))
    assert all(said(locate(made, method="omp", sources_max=1), "more than 1 sources"))
    assert not any(said(locate(made, method="omp"), "more than 2 sources"))


@pytest.mark.parametrize(("rank", "doubtful"), [(2, 8), (3, 0), (16, 0)])
def test_a_channel_of_too_little_rank_is_named(rank, doubtful, generator):
    """Two sources need three modes of the channel."""
    sound = simulate(scenes=8, sources=2, snr_db=20, seed=3, dtype=torch.float64)
    U, values, V = torch.linalg.svd(sound.channel, full_matrices=False)
    channel = (U[..., :rank] * values[:, None, :rank]) @ V[:, :rank]
    truth = sound.truth
    response = steering(sound.panel, truth.azimuth, truth.elevation, truth.range)
    y = torch.einsum("smn,sln,snk,skl->slm", channel, sound.codes, response, truth.symbols)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    recording = replace(
        sound,
        channel=channel,
        snapshots=y + noise * y.abs().square().mean((1, 2), keepdim=True).sqrt() / 10,
        noise_variance=None,
    )
    found = locate(recording, n_sources=2, method="omp")
    named = [any("independent signals above the noise" in word for word in one) for one in found.warnings]
    assert sum(named) == doubtful
    if doubtful:
        assert set(found.status) == {"doubtful"}
        assert not match(found.sources, truth).hit.all()


def test_a_distant_base_station_in_line_of_sight_carries_one_signal():
    """Each other mode of this channel is weaker than the noise, though not than that of 32 snapshots."""
    made = simulate(scenes=4, sources=2, snr_db=15, codebook={"snapshots": 32}, seed=2, dtype=torch.float64)
    antennas = Panel.uniform_planar(4, 4).elements + torch.tensor([30.0, -10.0, 95.0])
    distance = torch.cdist(antennas, made.elements)
    channel = torch.polar(1 / distance, -2 * math.pi / made.wavelength * distance)
    signal = torch.einsum(
        "mn,sln,snl->slm", channel, made.codes, made.truth.steering(made.panel) @ made.truth.symbols
    )
    noise = torch.randn(signal.shape, dtype=signal.dtype, generator=torch.Generator().manual_seed(5))
    level = (signal.abs().square().mean((1, 2), keepdim=True) / 10**1.5).sqrt()
    far = blind(made, channel=channel, snapshots=signal + level * noise)
    assert all(said(locate(far, n_sources=2, method="omp"), "independent signals above the noise"))


def test_sources_in_one_direction_are_resolved_by_their_ranges():
    there = Sources.from_degrees([17.0, 17.0], [6.0, 6.0], [0.8, 4.0])
    found = locate(blind(simulate(scenes=4, sources=there, snr_db=15, seed=4)), method="omp")
    assert found.n_sources.tolist() == [2] * 4
    assert found.status == ["ok"] * 4
    alike = Sources.from_degrees([17.0, 17.0], [6.0, 6.0], [2.0, 4.0])
    found = locate(blind(simulate(scenes=4, sources=alike, snr_db=20, seed=4)), method="omp", n_sources=2)
    assert all(said(found, "closer than the panel resolves"))


def test_the_number_that_the_antennas_identify_is_noted():
    small = {"channel": {"antennas": 2}, "codebook": {"snapshots": 32}}
    found = locate(blind(simulate(scenes=4, sources=2, snr_db=15, seed=4, **small)), method="omp")
    limited = [K == 1 for K in found.n_sources.tolist()]
    assert any(limited)
    assert said_notes(found, "identify at most 1 source") == limited


def test_a_snapshot_in_which_the_ris_is_off():
    made = simulate(scenes=3, sources=2, snr_db=15, seed=4)
    off = made.codes.clone()
    off[:, 3] = 0
    dark = replace(made, codes=off)
    noise = torch.randn(
        made.snapshots.shape, dtype=made.snapshots.dtype, generator=torch.Generator().manual_seed(5)
    )
    level = made.noise_variance.sqrt()[:, None, None]
    signal = dark.link.apply((made.truth.steering(made.panel) @ made.truth.symbols).mT)
    found = locate(blind(dark, snapshots=signal + level * noise), method="omp")
    assert match(found.sources, made.truth).hit.sum(1).tolist() == [2] * 3


def test_a_sixth_source_is_searched_as_the_others_were_fitted():
    """Where the fields of five sources are projected out instead, four of these scenes pass."""
    made = blind(simulate(scenes=40, sources=6, snr_db=10, seed=8))
    five = locate(made, method="omp", n_sources=5)
    assert (~(diagnosis._gain_of_one_more(made, five, five.spec) > 0)).sum() <= 1


def test_more_constant_symbols_than_told_are_noticed():
    """The p-value of one long snapshot takes the other source for noise."""
    system = {"panel": {"rows": 6, "columns": 6}, "channel": {"antennas": 1}, "codebook": {"snapshots": 100}}
    made = blind(simulate(scenes=8, sources=2, snr_db=20, seed=3, scene={"symbols": "constant"}, **system))
    told = [locate(made, method="omp", n_sources=number) for number in (1, 2)]
    assert [said(found, "one more than") for found in told] == [[True] * 8, [False] * 8]
    assert told[1].status == ["ok"] * 8


def test_another_wave_is_named():
    made = blind(simulate(scenes=4, sources=1, snr_db=20, panel={"wave": "fresnel"}, seed=9))
    assert all(
        said(locate(replace(made, wave="spherical"), method="omp", sources_max=2), "try --wave fresnel")
    )
    assert not any(said(locate(made, method="omp", sources_max=2), "--wave"))


def test_another_wave_is_not_named_of_scenes_that_speak_against_it():
    one = {"sources": 1, "snr_db": 20}
    sound = simulate(scenes=2, scene={"range_min_m": 3.0, "range_max_m": 4.0}, **one)
    other = simulate(
        scenes=4, scene={"range_min_m": 1.0, "range_max_m": 2.0}, panel={"wave": "fresnel"}, **one
    )
    made = Recording.concatenate([sound, replace(other, wave="spherical")])
    named = said(locate(blind(made), method="omp", sources_max=1), "try --wave fresnel")
    assert named == [False] * 2 + [True] * 4


def test_waves_that_the_first_scenes_exclude_are_not_compared_with_the_others(monkeypatch):
    made = blind(simulate(scenes=6, sources=1, snr_db=20, panel={"wave": "fresnel"}, seed=9))
    monkeypatch.setattr(diagnosis, "_WAVE_SCENES", 2)
    compared = []

    def refined(recording, *arguments, **settings):
        compared.append((recording.wave, len(recording)))
        return refine(recording, *arguments, **settings)

    refine = diagnosis.refine
    monkeypatch.setattr(diagnosis, "refine", refined)
    stated = replace(made, wave="spherical")
    assert all(said(locate(stated, method="omp", sources_max=2), "try --wave fresnel"))
    assert compared.count(("fresnel", 2)) == 3
    compared.clear()
    assert not any(said(locate(made, method="omp", sources_max=2), "--wave"))
    assert compared == [(wave, 2) for wave in ("fresnel", "spherical", "uniform", "paraxial")]


def test_a_known_number_is_kept(erring):
    found = locate(erring, method="omp", n_sources=1)
    assert (found.n_sources == 1).all()
    assert sum(said(found, "--panel-error")) >= 4


@pytest.mark.parametrize(
    ("name", "settings", "words", "count"),
    [
        ("grating_1_wavelength", {"range_max_m": 1000.0, "n_sources": 1}, "grating lobe at -20.9", 1),
        ("near_and_far", {"wave": "uniform"}, "outside the search volume", 2),
        ("near_and_far", {}, "uniform wave explains the data better", None),
        ("moving", {}, "source 0 moves by about 18 deg", 1),
        ("iq_offset", {}, "an offset of the receiver", None),
        ("one_channel_inverted", {"wave": "uniform"}, "departs from its description", 1),
    ],
)
def test_cases(name, settings, words, count):
    """Small inputs that went wrong without saying so; right answers as in shared/cases/README.md."""
    found = locate(read(DATA / f"{name}.npz"), **{"method": "omp", **settings})
    assert found.status == ["doubtful"]
    assert said(found, words) == [True]
    if count is not None:
        assert found.n_sources.tolist() == [count]


@pytest.mark.parametrize(("range_m", "better"), [(2.0, True), (10.0, False)], ids=["nearer", "as held"])
def test_a_range_that_is_held_may_be_another_one(range_m, better):
    line, truth = Panel.uniform_linear(16, wavelength=0.1), Sources.from_degrees([-20.0, 25.0], 0.0, range_m)
    direct = {"channel": {"kind": "direct"}, "codebook": {"snapshots": 40}}
    made = blind(simulate(scenes=4, sources=truth, panel=line, snr_db=15.0, **direct))
    found = locate(made, method="omp", unknowns=("azimuth",), sources_max=3)
    assert said(found, "estimate the range, too (--unknowns azimuth range)") == [better] * 4
    assert not any(said(found, "--wave"))


def test_the_case_of_a_far_source():
    found = locate(read(DATA / "near_and_far.npz"), method="omp", wave="uniform")
    azimuth, order = found.azimuth_deg[0, :2].sort()
    assert azimuth.tolist() == pytest.approx([-25, 20], abs=0.1)
    assert found.range_m[0, order].tolist() == pytest.approx([2, 80], rel=0.15)


def test_files_have_status_and_reasons(found_erring, tmp_path):
    found = found_erring[:2]
    found.to_csv(tmp_path / "a.csv")
    found.to_json(tmp_path / "a.json")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [found.status[int(row["scene"])] for row in rows]
    assert all(0 <= float(row["existence_probability"]) <= 1 for row in rows)
    scenes = json.loads((tmp_path / "a.json").read_text())["scenes"]
    assert [one["status"] for one in scenes] == found.status
    assert [one["reasons"] for one in scenes] == found.reasons
    assert [one["panel_error"] for one in scenes] == found.panel_error.tolist()


def test_sources_that_may_not_exist_are_noted():
    found = locate(blind(simulate(scenes=6, sources=4, snr_db=0, seed=3)), method="omp")
    uncertain = found.existence_probability < 0.9
    assert uncertain.any()
    assert (found.existence_probability > 0.9).any()
    for scene, sentences in enumerate(found.warnings):
        noted = {int(one.split()[1]) for one in sentences if "exists with a probability" in one}
        assert noted == set(uncertain[scene].nonzero()[:, 0].tolist())


def test_status_and_existence():
    found = locate(blind(simulate(scenes=2, sources=2, snr_db=20, seed=1)), method="omp")
    some = replace(found, warnings=[[Reason("a"), "b"], ["c"]])
    assert (some.status, some.reasons) == (["doubtful", "ok"], [["a"], []])
    chance = torch.tensor([[0.0, 0.3, 0.7, 0, 0, 0], [0.0, 0.0, 1.0, 0, 0, 0]], dtype=torch.float64)
    exists = replace(found, n_sources_probability=chance).existence_probability
    assert exists[:, :2].flatten().tolist() == pytest.approx([1, 0.7, 1, 1])
    told = locate(blind(simulate(scenes=1, sources=2, snr_db=20, seed=1)), method="omp", n_sources=2)
    assert told.existence_probability.tolist() == [[1, 1]]
    assert math.isnan(float(replace(found, n_sources_probability=chance)[:1].p_value)) is False


@pytest.fixture(scope="module")
def found_pairs():
    """Unresolved pairs, as located with pairs weighed against weak sources, and without."""
    pair = Sources.from_degrees([9.0, 11.0], [4.0, 4.0], [4.0, 4.0])
    recording = blind(simulate(scenes=64, sources=pair, snr_db=10, seed=8))
    weigh, unweighed = diagnosis._with_pairs, []

    def weighed(part, estimate, spec):
        unweighed.append(diagnosis._with_reasons(part, estimate, "auto", spec))
        return weigh(part, estimate, spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "_with_pairs", weighed)
        found = locate(recording, method="omp", sources_max=3)
    (without,) = unweighed
    return found, without


def test_a_weak_source_in_place_of_a_pair_is_named(found_pairs):
    """What one source leaves of an unresolved pair is explained by a weak source far away, too."""

    def silent(found):
        away = (found.azimuth_deg - 10).abs() > 15
        return sum(bool(away[i].any()) for i, status in enumerate(found.status) if status == "ok")

    after, before = map(silent, found_pairs)
    assert before > 1  # others are doubtful since the weak source probably does not exist
    assert after < before


def test_a_weak_source_that_is_there_is_not_taken_for_a_pair():
    sources = Sources.from_degrees([10.0, -20.0], [4.0, 0.0], [4.0, 3.0], power_db=[0.0, -11.0])
    found = locate(
        blind(simulate(scenes=20, sources=sources, snr_db=10, seed=8)), method="omp", sources_max=3
    )
    assert not any(said(found, "within a beam"))
    assert (found.n_sources == 2).sum() > 10
    # A second source that moves to where the weak one is, is none beside another.
    five = blind(simulate(scenes=40, sources=5, snr_db=10, seed=8))
    assert not any(said(locate(five, method="omp", n_sources=5), "within a beam"))


def test_a_weak_source_that_stands_for_a_pair_is_doubtful(found_pairs):
    """Without it, the other source is no point."""
    found, _ = found_pairs
    named = sum(said(found, "may not be there"))
    silent = sum(status == "ok" and K > 1 for status, K in zip(found.status, found.n_sources, strict=True))
    assert named > 3 * silent


def test_the_error_bar_of_a_source_that_is_no_point_covers_its_parts():
    pair = Sources.from_degrees([9.0, 11.0], [4.0, 4.0], [4.0, 4.0])
    recording = blind(simulate(scenes=8, sources=pair, snr_db=10, seed=8))
    found = locate(recording, method="omp", n_sources=1)
    several = torch.tensor(said(found, "source 0 is not one point"))
    assert several.sum() >= 5
    error = (found.azimuth_deg[:, :1] - torch.tensor([9.0, 11.0])).abs()
    bound = Estimate.from_sources(recording, found.sources)
    assert (error[several] > 4 * bound.azimuth_std_deg[several]).any()
    assert (error[several] < 3 * found.azimuth_std_deg[several]).all()
    torch.testing.assert_close(found.std[..., 2], bound.std[..., 2])


def test_the_error_bar_of_a_source_that_looks_like_a_point_covers_a_possible_pair():
    pair = Sources.from_degrees([9.0, 11.0], [4.0, 4.0], [4.0, 4.0])
    recording = blind(simulate(scenes=100, sources=pair, snr_db=10, seed=8))
    found = locate(recording, method="omp", n_sources=1)
    unnoticed = ~torch.tensor(said(found, "source 0 is not one point"))
    error = (found.azimuth_deg - torch.tensor([9.0, 11.0])).abs().amin(1, keepdim=True)  # of the nearer part
    bound = Estimate.from_sources(recording, found.sources)
    before = int((error > 5 * bound.azimuth_std_deg)[unnoticed].sum())
    assert before >= 10
    assert int((error > 5 * found.azimuth_std_deg)[unnoticed].sum()) < 0.7 * before


def test_the_error_bar_of_a_point_stays():
    point = blind(simulate(scenes=60, sources=1, snr_db=10, seed=8))
    found = locate(point, method="omp", n_sources=1)
    grown = (found.std / Estimate.from_sources(point, found.sources).std)[..., :2]
    assert (grown > 0.999).all()
    assert grown.median() < 1.03


def test_sources_are_where_they_are_as_often_as_stated():
    recording = blind(simulate(scenes=60, sources=3, snr_db=0, seed=21))
    found = locate(recording, method="omp", n_sources=3)
    matched = match(recording.truth, found.sources)
    there = torch.zeros_like(found.sources.active)
    scenes, sources = matched.hit.nonzero().unbind(-1)
    there[scenes, matched.partner[scenes, sources]] = True
    stated = found.existence_probability
    share = float(there.double().mean())
    assert share < 0.85
    # Of OMP, whose sources may all be elsewhere together, they are a little too high.
    assert abs(float(stated.mean()) - share) < (1 - share) / 2
    assert float(stated[there].mean() - stated[~there].mean()) > 0.2


@pytest.mark.parametrize("antennas", [1, 8])
def test_a_pilot_that_nobody_sends_is_noted(antennas):
    scene = {"symbols": "pilots"}
    small = {"panel": {"rows": 6, "columns": 6}, "codebook": {"snapshots": 48}}
    made = simulate(scenes=8, sources=2, snr_db=10, scene=scene, channel={"antennas": antennas}, **small)
    quarter = torch.randint(4, made.pilots[..., :1].shape, generator=torch.Generator().manual_seed(1))
    unsent = torch.polar(torch.ones(quarter.shape), torch.pi / 2 * quarter)
    pilots = torch.cat((made.pilots, unsent.to(made.pilots.dtype)), dim=-1)
    found = locate(blind(made, pilots=pilots, truth=None), method="omp")
    stated = found.existence_probability
    assert bool((stated[:, 2] < 0.9).all())
    assert float((stated[:, :2] > 0.9).double().mean()) > 0.9


def test_sources_behind_a_channel_of_low_rank_are_counted_or_doubtful():
    """Ray-traced scenes. Sources without power tied with none, and coincident ones with diffuse noise."""
    recording = load_sample("raytraced_20dB")
    found = locate(replace(recording, noise_variance=None))
    right = found.n_sources == recording.truth.active.sum(-1)
    assert right.sum() >= 20
    unsure = (found.existence_probability < diagnosis.UNCERTAIN).any(1)  # a note names the source
    assert all(right[n] or unsure[n] for n, status in enumerate(found.status) if status == "ok")


@pytest.mark.parametrize(("others", "named"), [(1, 10), (2, 8)])
def test_nearly_all_scenes_speak_for_the_others(others, named):
    """In single scenes of a recording with another wave, false sources may explain the data as well."""
    shown = torch.arange(10) >= others
    assert int(diagnosis._all_but_many(shown).sum()) == named


@pytest.mark.filterwarnings("error")
def test_a_recording_in_which_one_antenna_alone_has_data():
    made = blind(simulate(scenes=1, sources=1, snr_db=20, seed=3))
    alone = torch.zeros_like(made.snapshots)
    alone[..., 0] = made.snapshots[..., 0]
    found = locate(replace(made, snapshots=alone), method="omp")
    assert found.status != ["ok"]
    assert "inf" not in " ".join(found.warnings[0])


def test_sources_that_send_now_and_then_are_sound(generator):
    """Their strongest snapshot stands out more than that of Gaussian symbols without pauses."""
    made = simulate(
        scenes=12, sources=2, snr_db=15, seed=4, channel={"kind": "direct"}, codebook={"snapshots": 40}
    )
    on = torch.rand(made.truth.symbols.shape, generator=generator) < 0.25
    signal = made.truth.steering(made.panel) @ (made.truth.symbols * on)
    noise = made.noise_variance.sqrt()[:, None, None] * torch.randn(
        made.snapshots.shape, generator=generator, dtype=made.snapshots.dtype
    )
    found = locate(blind(made, snapshots=signal.mT + noise), method="omp")
    assert not any(said(found, "only: interference there"))
    assert found.status.count("ok") >= 11


def test_all_directions_are_searched_only_where_a_source_elsewhere_may_gain():
    made = blind(simulate(scenes=6, sources=2, snr_db=15, seed=4))
    two, one = (locate(made, method="omp", n_sources=count) for count in (2, 1))

    def may_gain(found):
        evidence = diagnosis._evidence(made, found.sources, Volume.from_spec(found.spec))
        return diagnosis._may_gain_elsewhere(made, found, evidence, found.spec)

    assert not may_gain(two).any()
    assert may_gain(one).all()
    # The same number of sources, one of them elsewhere.
    azimuth = two.sources.azimuth.clone()
    azimuth[:, 1] += math.radians(12)
    moved = fit_at(made, replace(two.sources, azimuth=azimuth), Volume.from_spec(two.spec)).sources
    assert may_gain(replace(two, sources=moved)).all()
