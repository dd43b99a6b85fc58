"""Few elements, narrow volumes, little data: an answer of the right shape, or one sentence."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import rismusic
from rismusic.benchmark.planning import bound_table
from rismusic.benchmark.run import bench
from rismusic.errors import InputError
from rismusic.estimation.classical import STRATEGIES
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import Trainer
from rismusic.registry import SPECTRA
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LocateSpec, SystemSpec

# What a system this small is refused for; everything else must work.
EXPECTED = re.compile(
    r"a single element|identify at most|the rank of the covariance|resolves 1 to N - 1 sources"
    r"|do not fit into the volume|panel_error: must be 0|the points (inside the volume|of the search grid)"
    r"|has a gradient with respect"
)
one_of = st.sampled_from
QUICK = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def systems(draw, *, trainable=False):
    near = draw(one_of([0.01, 0.5, 5.0]))
    return SystemSpec(
        sources=draw(st.integers(1, 5)),
        snr_db=draw(one_of([-5.0, 10.0, 40.0])),
        one_link=draw(st.booleans()),
        scene={
            "azimuth_max_deg": draw(one_of([1e-9, 0.1, 5, 30, 89.9])),
            "elevation_max_deg": draw(one_of([1e-9, 0.1, 5, 20, 89])),
            "range_min_m": near,
            "range_max_m": near * draw(one_of([1.0001, 1.5, 100] if trainable else [1, 1.0001, 1.5, 100])),
            "separation_deg": 0,
            "symbols": "gaussian" if trainable else draw(one_of(["gaussian", "constant"])),
        },
        panel={
            "rows": draw(st.integers(2 if trainable else 1, 4)),
            "columns": draw(st.integers(2 if trainable else 1, 4)),
            "spacing_wavelengths": draw(one_of([0.1, 0.5, 1.0])),
            "kind": "planar" if trainable else draw(one_of(["planar", "circular"])),
        },
        channel={"kind": draw(one_of(["rician", "direct"])), "antennas": draw(st.integers(1, 4))},
        codebook={"kind": draw(one_of(["random", "dft"])), "snapshots": draw(one_of([1, 2, 6]))},
        wideband={"subcarriers": 1 if trainable else draw(st.integers(1, 2))},
    )


def answered(call):
    """The result; none if the system is refused with a sentence that says why."""
    try:
        return call()
    except InputError as error:
        if not EXPECTED.search(str(error)):
            raise
        return None


def simulated(system):
    made = answered(lambda: Simulator(system, seed=1).scenes(0, 2))
    assume(made is not None)
    return made


def searched(system, **others):
    limits = system.scene.model_dump(include={"azimuth_max_deg", "elevation_max_deg"})
    return LocateSpec(**limits, **system.scene.model_dump(include={"range_min_m", "range_max_m"}), **others)


@QUICK
@given(
    system=systems(),
    method=one_of(sorted({*STRATEGIES, *SPECTRA.names()})),
    told=st.booleans(),
    unknowns=one_of([("azimuth", "elevation", "range"), ("azimuth",), ("range",), ("azimuth", "elevation")]),
    noise=one_of(["white", "per_output", "impulsive"]),
    polish=st.booleans(),
)
def test_locate_and_locator(system, method, told, unknowns, noise, polish):
    recording = simulated(system)
    spec = searched(
        system, method=method, unknowns=unknowns, noise=noise, polish=polish,
        sources=system.sources if told else "auto",
    )  # fmt: skip
    found = answered(lambda: rismusic.locate(recording, spec=spec))
    again = answered(lambda: rismusic.Locator(recording, spec=spec).locate(recording))
    assert (found is None) == (again is None)
    if found is not None:
        assert len(found) == 2
        assert not told or bool((found.n_sources == system.sources).all())
        assert torch.equal(found.n_sources, again.n_sources)


@QUICK
@given(system=systems(), method=one_of(["music", "soft_music", "mvdr", "bartlett"]), count=st.integers(1, 5))
def test_spectrum_and_its_peaks(system, method, count):
    recording = simulated(system)
    spec = searched(system)
    made = answered(lambda: rismusic.spectrum(recording, method=method, n_sources=count, spec=spec))
    if made is not None:
        assert made.values.shape == (2, *made.grid.shape)
        peaks = answered(lambda: made.peaks(count))
        assert peaks is None or peaks.azimuth.shape == (2, count)


@QUICK
@given(system=systems(), kind=one_of(["conditional", "unconditional"]))
def test_bounds(system, kind):
    (row,) = bound_table(system, sources=(system.sources,), snr_db=(10.0,), scenes=2, seed=0, kind=kind)
    assert row.sources == system.sources


@settings(QUICK, max_examples=10)
@given(system=systems(), method=one_of(["best", "sbl", "omp", "music"]), count=one_of(["auto", "known"]))
def test_a_benchmark(system, method, count):
    made = answered(
        lambda: bench(
            methods=(method,),
            sources=(system.sources,),
            snr_db=(10.0,),
            scenes=2,
            count=count,
            workers=1,
            locate=searched(system),
            **{name: getattr(system, name) for name in ("scene", "panel", "channel", "codebook")},
        )
    )
    assert made is None or {row.method for row in made.rows} >= {method}


@pytest.mark.parametrize("method", ["best", "sbl"])
def test_more_sources_than_points_of_the_grid(method):
    """SBL has no start for two sources on a grid of one point; OMP has."""
    system = SystemSpec(
        sources=2,
        scene={"azimuth_max_deg": 1, "elevation_max_deg": 1e-9, "range_max_m": 0.5, "separation_deg": 0},
        panel={"rows": 4, "columns": 1, "kind": "circular"}, channel={"kind": "direct"},
    )  # fmt: skip
    recording = Simulator(system, seed=1).scenes(0, 2)
    spec = searched(system, method=method, sources=2)
    assert len(SearchGrid.cover(recording.panel, Volume.from_spec(spec))) == 1
    assert rismusic.locate(recording, spec=spec).n_sources.tolist() == [2, 2]


def trained(folder, system, **network):
    """A training up to its first batch."""
    spec = TrainSpec(
        batch=2, scenes_per_epoch=2, validation_scenes=2, scored_scenes=2, schedule={"epochs": 1},
        system=system,
        network={"width": 8, "heads": 1, "stages": 1, "depth": 1, **network},
    )  # fmt: skip
    run = RunFolder(folder)
    run.create(spec)
    Trainer(spec, run)._check_start()
    return True


@settings(QUICK, max_examples=20)
@given(system=systems(trainable=True), most=st.integers(5, 8), oversampling=one_of([1.0, 2.0, 4.0]))
def test_the_start_of_a_training(system, most, oversampling, tmp_path_factory):
    simulated(system)
    folder = tmp_path_factory.mktemp("small")
    answered(lambda: trained(folder / "run", system, sources_max=most, oversampling=oversampling))


def test_a_network_needs_a_point_of_the_grid_for_each_source(tmp_path):
    system = SystemSpec(sources=3, panel={"rows": 4, "columns": 4}, scene={"azimuth_max_deg": 5})
    with pytest.raises(InputError, match=r"network.sources_max: must be at most 4, the points of the search"):
        trained(tmp_path / "a", system)
    assert trained(tmp_path / "b", system, oversampling=4.0)
    assert trained(tmp_path / "c", system, sources_max=4)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"wideband": {"subcarriers": 2}}, "system.wideband.subcarriers"),
        ({"scene": {"range_min_m": 1.0, "range_max_m": 1.0}}, "system.scene.range_max_m"),
    ],
)
def test_what_networks_do_not_estimate_is_refused(settings, field):
    with pytest.raises(InputError) as refused:
        TrainSpec(system=settings)
    assert refused.value.field == field


def test_the_spectrum_of_a_wideband_recording():
    recording = rismusic.simulate(
        scenes=3, sources=1, snr_db=30, panel={"rows": 4, "columns": 4}, wideband={"subcarriers": 3}
    )
    found = rismusic.spectrum(recording, oversampling=5.0).peaks(1)
    assert recording.truth is not None
    assert torch.allclose(found.azimuth, recording.truth.azimuth.double(), atol=0.1)
    with pytest.raises(InputError, match="'hybrid' takes narrowband recordings"):
        rismusic.spectrum(recording, method="hybrid")
