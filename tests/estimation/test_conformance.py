"""What every registered estimator guarantees, the examples' among them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from rismusic import Estimate, locate, simulate
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.io import Recording
from rismusic.nn.checkpoint import save_network
from rismusic.nn.network import Network
from rismusic.nn.spec import NetworkSpec, WeightsCard
from rismusic.registry import ESTIMATORS, SPECTRA, load_plugins, method_names
from rismusic.spec import SystemSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = SystemSpec(
    sources=(1, 2),
    panel={"rows": 6, "columns": 6},
    channel={"antennas": 8},
    codebook={"snapshots": 8},
    scene={"range_max_m": 2.0, "separation_deg": 30.0},
)
COORDINATES = ("azimuth", "elevation", "range")


def registered() -> tuple[str, ...]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(EXAMPLES))
        load_plugins(("own_spectrum", "own_estimator"))
    return method_names()


METHODS = registered()
ALL = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module", autouse=True)
def _examples_registered() -> Iterator[None]:
    registered()  # other modules of tests may have removed them since the import
    yield
    ESTIMATORS.unregister("grid_peaks")
    SPECTRA.unregister("weighted_music")
    for name in ("own_spectrum", "own_estimator"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return replace(simulate(SMALL, scenes=4, sources=2, snr_db=20.0), truth=None)


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory) -> Callable[..., Estimate]:
    """``locate`` on the small volume; the hybrid with a small untrained network for this panel."""
    weights = tmp_path_factory.mktemp("weights") / "small.safetensors"
    spec = NetworkSpec(sources_max=2, stages=1, depth=1, width=8, kernel=3, heads=1)
    grid = SearchGrid.cover(recording.panel, Volume.from_spec(SMALL.scene), spec.oversampling)
    network = Network(spec, grid, torch.Generator().manual_seed(0))
    save_network(weights, network, card=WeightsCard(system=SMALL, sources_max=2, beta=0.5))

    def run(some: Recording, sources, method: str, **settings: object) -> Estimate:
        return locate(
            some,
            n_sources=sources,
            method=method,
            weights=str(weights),
            range_max_m=2.0,
            sources_max=2,
            **settings,
        )

    return run


@pytest.fixture(scope="module")
def answers(recording, run) -> Callable[[str], Estimate]:
    return cache(lambda method: run(recording, 2, method))


def gap(one: Estimate, other: Estimate) -> float:
    """Largest difference of two estimates in standard deviations; infinite where their sources differ."""
    if not torch.equal(one.sources.active, other.sources.active):
        return math.inf
    moved = [getattr(one.sources, name) - getattr(other.sources, name) for name in COORDINATES]
    ratio = torch.stack(moved, dim=-1).abs() / one.std
    return float(ratio[one.sources.active].amax())


@ALL
def test_estimate_is_complete(method, answers):
    estimate = answers(method)
    assert len(estimate) == len(estimate.warnings) == len(estimate.method) == 4
    assert torch.equal(estimate.n_sources, torch.tensor([2] * 4))
    for name in (*COORDINATES, "power"):
        value = getattr(estimate.sources, name)
        assert value.shape == (4, 2)
        assert value.dtype == torch.float64
        assert value.isfinite().all()
    assert estimate.std.shape == (4, 2, 3)
    assert (estimate.std > 0).all()
    assert estimate.std.isfinite().all()
    assert estimate.neg_log_likelihood.isfinite().all()
    assert estimate.p_value.shape == estimate.noise_variance.shape == (4,)
    assert ((estimate.p_value >= 0) & (estimate.p_value <= 1)).all()
    assert set(estimate.method) <= {method, "sbl"}
    assert not any("not by the network" in sentence for some in estimate.warnings for sentence in some)
    assert estimate.spec.method == method
    assert estimate.n_sources_probability is None
    for value in (estimate.sources.azimuth, estimate.covariance, estimate.neg_log_likelihood):
        assert not value.requires_grad
        assert not value.is_inference()
        assert value.device.type == "cpu"


@ALL
def test_scenes_may_come_in_any_order(method, recording, run, answers):
    order = torch.tensor([2, 0, 3, 1])
    assert gap(run(recording[order], 2, method), answers(method)[order]) < 0.01


@ALL
def test_batch_equals_single(method, recording, run, answers):
    assert gap(run(recording[1:2], 2, method), answers(method)[1]) < 0.01


@ALL
def test_phase_and_scale_of_the_snapshots_do_not_matter(method, recording, run, answers):
    factor = torch.tensor([1j, 100, 0.01, -30j], dtype=torch.complex64)
    changed = replace(
        recording,
        snapshots=recording.snapshots * factor[:, None, None],
        noise_variance=recording.noise_variance * factor.abs().square(),
    )
    assert gap(run(changed, 2, method), answers(method)) < 0.01


@ALL
def test_number_of_sources_per_scene(method, recording, run):
    """A tensor, zero among its values; empty places hold NaN and come last."""
    count = torch.tensor([0, 1, 2, 1])
    estimate = run(recording, count, method)
    assert torch.equal(estimate.n_sources, count)
    empty = torch.arange(estimate.sources.azimuth.shape[1]) >= count[:, None]
    for value in (*(getattr(estimate.sources, name) for name in (*COORDINATES, "power")), estimate.snr_db):
        assert torch.equal(value.isnan(), empty)


@ALL
def test_no_source_at_all(method, recording, run):
    estimate = run(recording, 0, method)
    assert int(estimate.n_sources.sum()) == 0
    assert estimate.neg_log_likelihood.isfinite().all()


@ALL
def test_number_of_sources_unknown(method, recording, run):
    estimate = run(recording[:2], "auto", method)
    assert (estimate.n_sources <= 2).all()
    if estimate.n_sources_probability is not None:
        torch.testing.assert_close(
            estimate.n_sources_probability.sum(-1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5
        )


@ALL
def test_the_input_is_not_modified(method, recording, run):
    before = {
        name: getattr(recording, name).clone() for name in ("snapshots", "channel", "codes", "elements")
    }
    run(recording, 2, method)
    for name, value in before.items():
        assert torch.equal(getattr(recording, name), value)


def test_all_estimators_are_covered():
    assert {"hybrid", "music", "omp", "sbl", "weighted_music", "grid_peaks"} <= set(METHODS)


def test_an_unknown_method_lists_the_known_ones(recording):
    with pytest.raises(
        InputError, match=r"no estimator or spectrum is named 'omq'. Did you mean 'omp'\? Known: hybrid"
    ):
        locate(recording, method="omq")
    with pytest.raises(InputError, match=r"'MVDR'. Did you mean 'mvdr'"):
        locate(recording, method="MVDR")
