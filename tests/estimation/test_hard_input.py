"""Input that no estimator can handle well: a clear answer or one clear sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import dense
import pytest
import torch

from rismusic.errors import InputError
from rismusic.estimation import sbl as powermap
from rismusic.estimation.classical import STRATEGIES
from rismusic.hybrid import locate
from rismusic.registry import CLASSICAL_METHODS
from rismusic.simulation.simulator import simulate

ALL = pytest.mark.parametrize("method", CLASSICAL_METHODS)
OF_SPARSE = pytest.mark.parametrize("method", STRATEGIES)
OF_A_SUBSPACE = ("music", "soft_music")
# Scenes of `hard`.
ORDINARY, SILENT, NOISE, OUTSIDE, TWINS, CLEAN_TWINS = range(6)


def small(system="own", scenes=3, *, snapshots=7, antennas=8, **settings):
    spec = dense.SYSTEMS[system].replace(codebook={"snapshots": snapshots})
    if spec.channel.kind != "direct":
        spec = spec.replace(channel={"antennas": antennas})
    return dense.small(spec, scenes, dtype=torch.float32, **settings)


def hard(system, known):
    """Six scenes: one that is easy, and what is wrong with the others."""
    recording = small(system, 6, snr_db=20.0, known=known)
    place = dense.truth_of(recording)[0]
    place[OUTSIDE, :, 0] = 1.3  # 74 deg
    place[TWINS, 1], place[CLEAN_TWINS, 1] = place[TWINS, 0], place[CLEAN_TWINS, 0]
    noisy = dense.planted(recording, place, amplitudes=(1.0, 1.0), noise=0.1)
    snapshots = recording.snapshots.clone()
    snapshots[SILENT] = 0
    snapshots[NOISE] = dense.planted(recording, place, (0.0, 0.0)).snapshots[NOISE] + torch.randn(
        snapshots[NOISE].shape, generator=torch.Generator().manual_seed(3), dtype=snapshots.dtype
    )
    snapshots[[OUTSIDE, TWINS]] = noisy.snapshots[[OUTSIDE, TWINS]]
    snapshots[CLEAN_TWINS] = dense.planted(recording, place, (1.0, 1.0)).snapshots[CLEAN_TWINS]
    variance = None
    if known:
        variance = 0.01 * snapshots.abs().square().mean((1, 2))
        variance[SILENT], variance[NOISE], variance[CLEAN_TWINS] = 0.1, 1.0, 1e-12
    truth = replace(noisy.truth, symbols=None)
    return replace(recording, snapshots=snapshots, noise_variance=variance, truth=truth)


def answered(recording, criterion="conditional", **settings):
    """Estimate, with nothing in the answer that a user could take for a position and is none."""
    located = locate(recording, criterion=criterion, **settings)
    found, there = located.sources, located.sources.active
    low, high = dense.VOLUME.lower, dense.VOLUME.upper
    left = torch.tensor(
        [any("outside the search volume" in line for line in said) for said in located.reasons]
    )
    for axis, value in enumerate((found.azimuth, found.elevation, 1 / found.range)):
        inside = (value >= low[axis] - 1e-9) & (value <= high[axis] + 1e-9)
        assert (inside | left[:, None])[there].all()
        assert value[~there].isnan().all()
    assert found.power[there].isfinite().all()
    heard = recording.snapshots.abs().amax((1, 2)) > 0
    assert located.snr_db[there & heard[:, None]].isfinite().all()
    assert (located.snr_db[there & ~heard[:, None]] == -math.inf).all()
    assert not located.std[there].isnan().any()  # infinite where the data cannot tell
    assert located.neg_log_likelihood.isfinite().all()
    assert (located.noise_variance > 0).all()
    unsure = located.std.isinf().any(-1) & there
    for scene, said in enumerate(located.warnings):
        assert all(any(f"source {k} " in line for line in said) for k in unsure[scene].nonzero()[:, 0])
    return located


# Every method once; what a method does with known noise and with direct sampling is the same for all spectra.
SCENES = [(method, "own", False, "unconditional") for method in CLASSICAL_METHODS]
SCENES += [(method, "own", True, "conditional") for method in ("music", *STRATEGIES)]
SCENES += [(method, "direct", False, "conditional") for method in ("bartlett", *STRATEGIES)]


@pytest.mark.parametrize(("method", "system", "known", "criterion"), SCENES)
def test_hard_scenes_beside_an_easy_one(method, system, known, criterion):
    recording = hard(system, known)
    settings = {"method": method, "criterion": criterion, "sources_max": 2}
    located = answered(recording, n_sources=2, **settings)
    assert located.sources.active.all()
    assert located.std[SILENT].isinf().any(-1).all()
    said = " ".join(located.warnings[OUTSIDE])
    assert "boundary of the search volume" in said or "outside the search volume" in said
    one = recording.truth.each(lambda value: value[:, :1])
    for twins in (TWINS, CLEAN_TWINS):
        scene = slice(twins, twins + 1)
        assert dense.misses(one[scene], located.sources[scene]) == 0
    counted = answered(recording, n_sources="auto", **settings).sources.active.sum(1)
    assert counted[SILENT] == 0
    assert (counted[[ORDINARY, TWINS, CLEAN_TWINS]] > 0).all()
    if method in STRATEGIES:
        assert dense.misses(recording.truth[:1], located.sources[:1]) == 0
        assert counted[NOISE] == 0
        assert counted[ORDINARY] == 2
        assert counted[TWINS] == 1


@pytest.mark.parametrize("system", dense.SYSTEMS)
@ALL
def test_a_single_snapshot(method, system):
    recording = small(system, snapshots=1, sources=1, snr_db=30.0)
    located = answered(recording, sources_max=2, method=method)
    assert located.sources.active[:, 0].all()
    if method in OF_A_SUBSPACE:
        with pytest.raises(InputError, match="sources: must be 1 to 1, the rank of the covariance; got 2"):
            locate(recording, n_sources=2, method=method)


@pytest.mark.parametrize("method", OF_A_SUBSPACE)
def test_fewer_snapshots_than_sources_that_are_tried(method):
    """Two of them: a subspace of three sources does not exist, and auto does not ask for it."""
    recording = small(snapshots=2, sources=2, snr_db=30.0, scenes=6)
    assert answered(recording, method=method).sources.active.sum(1).max() <= 2


@ALL
def test_more_sources_than_the_data_carry(method):
    recording = small(scenes=2, antennas=4)
    for sources in (4, torch.tensor([1, 500])):
        with pytest.raises(
            InputError, match=r"sources: L = 7 snapshots of M = 4 antennas identify at most 3 sources"
        ):
            locate(recording, n_sources=sources, method=method)
    with pytest.raises(InputError, match=r"sources: give one number per scene .2.; got 3"):
        locate(recording, n_sources=torch.tensor([1, 1, 1]), method=method)
    assert answered(recording, n_sources=3, method=method).sources.active.all()
    assert answered(recording, n_sources="auto", sources_max=100, method=method).sources.active.any(1).all()


@ALL
def test_nothing_but_silence(method):
    recording = small()
    silent = replace(recording, snapshots=torch.zeros_like(recording.snapshots))
    assert not answered(silent, method=method, sources_max=2).sources.active.any()
    assert answered(silent, n_sources=1, method=method).std.isinf().any(-1).all()


@ALL
def test_one_antenna(method):
    """One output has no subspace to leave: a source and noise cannot be told apart."""
    recording = small(antennas=1, sources=1)
    with pytest.raises(
        InputError, match=r"sources: L = 7 snapshots of M = 1 antennas identify at most 0 sources"
    ):
        locate(recording, n_sources=1, method=method)
    assert not answered(recording, method=method).sources.active.any()
    assert answered(small(antennas=2, sources=1), n_sources=1, method=method).sources.active.all()


@ALL
def test_one_element(method):
    """A panel of one element has no direction; one of two has no elevation and no range."""
    one = simulate(dense.DIRECT.replace(panel={"rows": 1, "columns": 1}), scenes=2, sources=1)
    behind_ris = replace(
        one, snapshots=torch.randn(2, 5, 6) + 0j, channel=torch.randn(6, 1) + 0j, codes=torch.ones(5, 1) + 0j
    )
    for recording in (replace(one, symbols="constant"), replace(behind_ris, truth=None)):
        for n_sources in ("auto", 1):
            with pytest.raises(InputError, match=r"^elements: a single element receives the same from every"):
                locate(recording, n_sources=n_sources, method=method)
    two = simulate(dense.DIRECT.replace(panel={"rows": 1, "columns": 2}), scenes=2, sources=1)
    located = answered(two, n_sources=1, method=method)
    assert located.std.isinf().any(-1).all()
    assert all(located.warnings)


@OF_SPARSE
def test_a_large_panel(method, monkeypatch, memory_budget):
    """64 x 64 elements: points a few at a time, the map on the best of them."""
    volume = {"azimuth_max_deg": 15.0, "elevation_max_deg": 8.0, "range_min_m": 7.0}
    made = simulate(
        panel={"rows": 64, "columns": 64},
        channel={"antennas": 8},
        codebook={"snapshots": 4},
        scene=volume,
        scenes=2,
        sources=1,
        snr_db=20.0,
    )
    memory_budget(2**23)
    monkeypatch.setattr(powermap, "_FEWEST", 64)
    recording = replace(made, noise_variance=None)
    located = answered(recording, n_sources=1, method=method, oversampling=1.5, **volume)
    assert dense.misses(made.truth, located.sources, degrees=0.5) == 0


@ALL
def test_the_unit_of_the_data(method):
    """Volts of a real receiver; single precision holds 1e-38 at the least."""
    recording = small(scenes=4, sources=1, known=True, snr_db=20.0)
    # The same four scenes in each unit, in one batch.
    scale = torch.tensor([1.0, 1e-10, 1e10], dtype=torch.float64).repeat_interleave(4)
    units = recording[torch.arange(4).repeat(3)]
    snapshots = (units.snapshots * scale[:, None, None]).to(torch.complex64)
    variance = units.noise_variance.double() * scale.square()
    scaled = replace(units, snapshots=snapshots, noise_variance=variance)
    found = answered(scaled, n_sources=1, method=method, criterion="unconditional")
    offset = 2 * recording.snapshots[0].numel() * scale.log()
    expected, *others = (found.neg_log_likelihood - offset).split(4)
    for one in others:
        assert ((one - expected).abs() < 0.1).all()


@ALL
def test_values_that_are_none(method):
    recording = small(known=True)
    for bad in (math.nan, math.inf):
        snapshots, noise = recording.snapshots.clone(), recording.noise_variance.clone()
        snapshots[1, 2, 3], noise[1] = bad, bad
        for sources in (1, "auto"):
            with pytest.raises(InputError, match="snapshots: values must be finite"):
                locate(replace(recording, snapshots=snapshots), n_sources=sources, method=method)
            with pytest.raises(InputError, match="noise_variance: values must be positive"):
                locate(replace(recording, noise_variance=noise), n_sources=sources, method=method)


def test_a_panel_that_does_not_see_the_place_of_a_missing_source():
    """Elements of the pattern cos^100, kilometres apart, receive nothing from 1 m, where missing ones are."""
    made = simulate(scenes=2, sources=1, snr_db=10, seed=1, panel={"rows": 4, "columns": 4})
    scaled = replace(
        made, elements=1e6 * made.elements, wavelength=1e6 * made.wavelength, pattern_exponent=100.0
    )
    found = locate(replace(scaled, truth=None), method="omp", sources_max=2)
    assert "ok" not in found.status
