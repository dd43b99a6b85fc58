"""One conformance suite for all estimators, and what `locate` adds to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from rismusic.array import Panel
from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.estimation.classical import STRATEGIES, Starts
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.grid import searched_grid
from rismusic.estimation.maximum_likelihood import refine
from rismusic.estimation.search import Dictionary, GridSearch
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match, score
from rismusic.operator import Link
from rismusic.registry import CLASSICAL_METHODS, SPECTRA
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec, SystemSpec
from rismusic.spectrum_map import spectrum

SMALL = SystemSpec(
    panel={"rows": 8, "columns": 8, "wave": "uniform"},
    channel={"antennas": 10},
    codebook={"snapshots": 10},
    scene={"range_max_m": 3.0, "separation_deg": 20.0},
)
SETTINGS = {"range_max_m": 3.0}
ALL = pytest.mark.parametrize("method", CLASSICAL_METHODS)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return simulate(SMALL, scenes=6, sources=2, snr_db=20.0)


@pytest.fixture(scope="module")
def answers(recording) -> Callable[[str], Estimate]:
    """What each method says of the recording, found once for all tests."""
    blind = replace(recording, truth=None)
    return cache(lambda method: locate(blind, n_sources=2, method=method, **SETTINGS))


def same(
    first: Estimate, second: Estimate, scenes=slice(None), places=slice(None), *, tolerance: float = 1e-4
) -> bool:
    """Positions of ``first`` equal to those of some scenes of ``second``, in standard deviations."""
    other = second.sources[scenes].each(lambda value: value[:, places])
    if not torch.equal(first.sources.active, other.active):
        return False
    gap = torch.stack(
        [getattr(first.sources, n) - getattr(other, n) for n in ("azimuth", "elevation", "range")], dim=-1
    )
    return bool(((gap.abs() / first.std)[first.sources.active] < tolerance).all())


@ALL
def test_shapes(method, answers):
    located = answers(method)
    assert located.sources.azimuth.shape == located.snr_db.shape == (6, 2)
    assert located.std.shape == (6, 2, 3)
    assert located.noise_variance.shape == located.neg_log_likelihood.shape == (6,)
    assert len(located.warnings) == 6
    assert located.sources.azimuth.dtype == torch.float64
    assert located.sources.active.all()
    assert (located.snr_db[:, 0] >= located.snr_db[:, 1] - 6).all()
    assert located.spec.method == method


@ALL
def test_finds_what_is_there(method, recording, answers):
    """At 20 dB and 20 deg apart the searches miss nothing; a spectrum of R_samp may miss a third."""
    result = score(match(recording.truth, answers(method).sources), recording_crb(recording))
    assert result.misses <= (0.0 if method in ("omp", "relax", "sbl") else 0.35)


@ALL
def test_batch_equals_loop(method, recording, answers):
    whole = answers(method)
    for i in (0, 3):
        one = locate(recording[i : i + 1], n_sources=2, method=method, **SETTINGS)
        assert same(one, whole, slice(i, i + 1), tolerance=0.01)


@ALL
def test_order_of_snapshots_phase_and_scale_change_nothing(method, recording, answers, generator):
    """Each in two scenes of one batch."""
    order, kept = torch.randperm(10, generator=generator), torch.arange(10)
    orders = torch.stack([order, order, *[kept] * 4])
    scenes = torch.arange(6)[:, None]
    turn = complex(math.cos(1.0), math.sin(1.0))
    scale = torch.tensor([1, 1, turn, turn, 100, 100], dtype=torch.complex64)
    changed = replace(
        recording,
        snapshots=recording.snapshots[scenes, orders] * scale[:, None, None],
        codes=recording.codes[scenes, orders],
        noise_variance=recording.noise_variance * scale.abs().square(),
    )
    assert same(locate(changed, n_sources=2, method=method, **SETTINGS), answers(method), tolerance=0.01)


@ALL
def test_conjugated_data_are_other_data(method, recording, answers):
    two = recording[:2]
    conjugated = replace(two, snapshots=two.snapshots.conj().resolve_conj())
    located = locate(conjugated, n_sources=2, method=method, **SETTINGS)
    assert not same(located, answers(method), slice(0, 2), tolerance=0.01)


@ALL
def test_a_number_for_each_scene(method, recording):
    count = torch.tensor([1, 2, 0, 2, 1, 3])
    located = locate(recording, n_sources=count, method=method, **SETTINGS)
    assert torch.equal(located.sources.active.sum(-1), count)
    two = locate(recording[1:2], n_sources=2, method=method, **SETTINGS)
    assert same(two, located, slice(1, 2), slice(2), tolerance=0.01)


@ALL
@pytest.mark.parametrize("kind", ["one link", "direct", "large"])
def test_other_systems(method, kind):
    if kind == "large":
        spec, scenes = SystemSpec(panel={"rows": 24, "columns": 24}), 1
    else:
        spec = (
            SMALL.replace(one_link=True) if kind == "one link" else SMALL.replace(channel={"kind": "direct"})
        )
        scenes = 3
    made = simulate(spec, scenes=scenes, sources=1, snr_db=20.0)
    settings = {"range_max_m": spec.scene.range_max_m, "oversampling": 2.0}
    located = locate(replace(made, noise_variance=None, truth=None), n_sources=1, method=method, **settings)
    assert score(match(made.truth, located.sources)).misses == 0


@ALL
def test_the_noise_variance_need_not_be_given(method, recording, answers):
    located = locate(replace(recording, noise_variance=None), n_sources=2, method=method, **SETTINGS)
    ratio = located.noise_variance / recording.noise_variance
    assert 0.7 < ratio.median() < 1.6
    given = answers(method)
    torch.testing.assert_close(given.noise_variance, recording.noise_variance.double())


@ALL
def test_what_the_data_cannot_carry_is_refused(method, recording):
    with pytest.raises(InputError, match=r"identify at most \d+ sources; got 10"):
        locate(recording, n_sources=10, method=method, **SETTINGS)


@ALL
def test_a_single_snapshot(method):
    made = simulate(SMALL.replace(codebook={"snapshots": 1}), scenes=3, sources=1, snr_db=30.0)
    located = locate(replace(made, noise_variance=None), n_sources=1, method=method, **SETTINGS)
    assert located.sources.active.all()
    assert located.sources.azimuth.isfinite().all()


@ALL
def test_coincident_sources_and_pure_noise_are_answered(method, recording, generator):
    place = {n: getattr(recording.truth, n)[:, :1].expand(-1, 2) for n in ("azimuth", "elevation", "range")}
    A = replace(recording.truth, **place).steering(recording.panel)
    field = recording.truth.symbols.mT @ A.mT
    twins = recording.link.apply(field)[:3]
    noise = torch.randn(3, 10, 10, dtype=torch.complex64, generator=generator)
    data = replace(recording, snapshots=torch.cat((twins, noise)), noise_variance=None)
    located = locate(data, n_sources=2, method=method, **SETTINGS)
    assert located.sources.azimuth.isfinite().all()
    assert not located.std.isnan().any()


@ALL
def test_sources_outside_the_volume_are_flagged(method):
    made = simulate(SMALL, scenes=4, sources=1, snr_db=20.0)
    located = locate(made, n_sources=1, method=method, azimuth_max_deg=10.0, **SETTINGS)
    outside = made.truth.azimuth[:, 0].abs().rad2deg() > 15
    assert outside.any()
    assert located.sources.azimuth.abs().max() <= math.radians(10) + 1e-9
    for scene in outside.nonzero()[:, 0].tolist():
        said = " ".join(located.warnings[scene])
        assert "boundary of the search volume" in said or "times the energy of the noise" in said


def test_a_sound_fit_is_not_called_incomplete(recording):
    for said in locate(recording, n_sources=2, method="omp", **SETTINGS).warnings:
        assert not any("times the energy of the noise" in sentence for sentence in said)
    fewer = locate(recording, n_sources=1, method="omp", **SETTINGS)
    assert all(
        any("times the energy of the noise" in sentence for sentence in said) for said in fewer.warnings
    )


@pytest.mark.parametrize("method", ["omp", "music"])
def test_auto(method):
    made = simulate(SMALL, scenes=8, sources=(1, 3), snr_db=20.0)
    located = locate(made, method=method, n_sources="auto", **SETTINGS)
    right = located.sources.active.sum(-1) == made.truth.active.sum(-1)
    assert right.double().mean() >= (0.85 if method == "omp" else 0.4)


def test_auto_finds_nothing_in_noise(recording, generator):
    noise = torch.randn(6, 10, 10, dtype=torch.complex64, generator=generator)
    located = locate(replace(recording, snapshots=noise, noise_variance=None), method="omp", **SETTINGS)
    assert located.sources.active.sum() == 0


def test_hits_reach_the_bound_and_error_bars_hold():
    made = simulate(SMALL, scenes=100, sources=1, snr_db=15.0)
    located = locate(replace(made, noise_variance=None), n_sources=1, method="omp", **SETTINGS)
    matched = match(made.truth, located.sources)
    result = score(matched, recording_crb(made))
    assert result.misses == 0
    for ratio in (result.azimuth_over_bound, result.elevation_over_bound, result.inverse_range_over_bound):
        assert 0.7 < ratio < 1.35
    within = (matched.error.abs() < located.std)[..., :2].double().mean()
    assert 0.58 < within < 0.78


def test_power_is_received_power_over_noise():
    made = simulate(SMALL, scenes=50, sources=1, snr_db=13.0)
    located = locate(made, n_sources=1, method="omp", **SETTINGS)
    assert located.snr_db.median() == pytest.approx(13.0, abs=0.6)


def test_blocks_of_scenes_equal_one(monkeypatch, recording):
    whole = locate(recording, method="omp", sources_max=3, **SETTINGS)
    monkeypatch.setattr("rismusic.hybrid.BLOCK_SCENES", 4)
    parts = locate(recording, method="omp", sources_max=3, **SETTINGS)
    assert same(whole, parts)


def test_without_polish_a_spectrum_is_only_a_spectrum(recording):
    rough = locate(recording, n_sources=2, method="music", polish=False, **SETTINGS)
    fine = locate(recording, n_sources=2, method="music", polish=True, **SETTINGS)
    assert (fine.neg_log_likelihood <= rough.neg_log_likelihood + 1e-6).double().mean() > 0.8
    assert not same(rough, fine)


def test_arbitrary_elements(generator):
    elements = torch.rand(60, 3, generator=generator, dtype=torch.float64) - 0.5
    elements[:, 2] = 0
    panel = Panel(elements - elements.mean(0), 0.3)
    link = Link(
        torch.randn(10, 60, generator=generator, dtype=torch.complex64),
        torch.polar(torch.ones(12, 60), 6.28 * torch.rand(12, 60, generator=generator)),
    )
    made = simulate(SMALL, scenes=3, sources=1, snr_db=20.0, panel=panel, link=link)
    located = locate(made, n_sources=1, method="omp", **SETTINGS)
    assert score(match(made.truth, located.sources)).misses == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "esprit"},
            r"method: no estimator or spectrum is named 'esprit'\..* Known: hybrid, music, soft_music",
        ),
        ({"range_min_m": 20.0}, "range_max_m: expected at least range_min_m = 20"),
        ({"n_sources": -1}, "sources: expected at least 0"),
        ({"n_sources": "many"}, "sources: expected"),
        ({"oversampling": 0.5}, "oversampling: expected at least 1"),
        ({"colour": 1}, "colour: unknown setting"),
        ({"sources": 2}, r"sources: was renamed to n_sources in 0\.2\.0"),
    ],
)
def test_bad_settings(settings, sentence, recording):
    with pytest.raises(InputError, match=sentence):
        locate(recording, **settings)


def test_numbers_of_sources_of_numpy_are_not_ignored(recording, untyped):
    each = [1, 2] + [1] * (len(recording) - 2)
    for given, expected in ((np.int64(1), [1] * len(recording)), (each, each), (np.array(each), each)):
        assert locate(recording, method="omp", n_sources=given).n_sources.tolist() == expected
    for wrong in (2.5, [0.5], [each]):
        with pytest.raises(InputError, match="n_sources: must be a whole number"):
            locate(recording, method="omp", n_sources=wrong)


def test_one_antenna_with_new_symbols_is_a_failure_with_advice():
    system = {"panel": {"rows": 6, "columns": 6}, "channel": {"antennas": 1}, "codebook": {"snapshots": 32}}
    made = simulate(scenes=2, sources=1, snr_db=20.0, scene={"symbols": "constant"}, **system)
    assert not any("cannot identify" in text for text in locate(made, method="omp").warnings[0])
    found = locate(replace(made, symbols="independent"), method="omp")
    assert found.status == ["failed", "failed"]
    assert all("32 snapshots of 1 antenna cannot identify" in texts[0] for texts in found.warnings)


@pytest.mark.parametrize(("given", "advice"), [("a.h5", "rismusic.read"), (np.zeros(3), "from_arrays")])
def test_an_argument_that_is_no_recording(given, advice, untyped):
    for call in (locate, spectrum):
        with pytest.raises(InputError, match=rf"recording: must be a rismusic.Recording; got .*{advice}"):
            call(given)


def test_every_classical_method_is_a_search_or_a_spectrum():
    for name in CLASSICAL_METHODS:
        assert (name in STRATEGIES) != (name in SPECTRA), name
    assert set(STRATEGIES) <= set(CLASSICAL_METHODS)


def test_sbl_starts_from_the_likeliest_peaks():
    # Through a channel of low rank, the highest peaks of the map are often not those of the sources.
    made = simulate(scenes=12, sources=3, snr_db=20, seed=6, channel={"rician_factor_db": 40.0})
    search = GridSearch(Dictionary.of(searched_grid(made, LocateSpec())), made)
    count = torch.full((12,), 3)
    active = torch.ones(12, 3, dtype=torch.bool)
    strategy = replace(STRATEGIES["sbl"], criterion="unconditional")
    starts = Starts.prepare(search, count, strategy)
    value = [
        refine(made, peaks, active, search.grid.volume, criterion="unconditional").value
        for peaks in (
            starts.peaks[:, :3],
            starts._best_peaks(torch.arange(12), 3, "unconditional"),
        )
    ]
    assert (value[1] < value[0] + 1).all()
    assert (value[1] < value[0] - 1).sum() >= 3
