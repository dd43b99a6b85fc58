"""The result object, its files, and the likelihood and spectrum that go with it."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace

import matplotlib
import pytest
import torch

import rismusic
from rismusic import Estimate, Sources, locate, log_likelihood, simulate, spectrum
from rismusic.errors import InputError
from rismusic.estimation.estimate import Reason, join_estimates, warnings_of
from rismusic.estimation.grid import Volume
from rismusic.estimation.table import COLUMNS
from rismusic.registry import ESTIMATORS, SPECTRA
from rismusic.spec import LocateSpec, SystemSpec

matplotlib.use("agg")

SMALL = SystemSpec(
    panel={"rows": 6, "columns": 6},
    channel={"antennas": 8},
    codebook={"snapshots": 8},
    scene={"range_max_m": 2.0, "separation_deg": 30.0},
)


@pytest.fixture(scope="module")
def recording():
    return simulate(SMALL, scenes=3, sources=2, snr_db=20.0)


@pytest.fixture(scope="module")
def estimate(recording) -> Estimate:
    return locate(recording, n_sources=torch.tensor([2, 0, 1]), method="omp", range_max_m=2.0)


def test_degrees_metres_and_cartesian_positions(estimate):
    azimuth, elevation = (
        math.radians(float(v[0, 0])) for v in (estimate.azimuth_deg, estimate.elevation_deg)
    )
    r = float(estimate.range_m[0, 0])
    expected = (
        r * math.sin(azimuth) * math.cos(elevation),
        r * math.sin(elevation),
        r * math.cos(azimuth) * math.cos(elevation),
    )
    assert estimate.position[0, 0].tolist() == pytest.approx(expected)
    assert estimate.position.shape == (3, 2, 3)
    assert float(estimate.azimuth_std_deg[0, 0]) == pytest.approx(math.degrees(estimate.std[0, 0, 0]))
    assert estimate.n_sources.tolist() == [2, 0, 1]


def test_covariance_of_the_position_is_that_of_many_draws(estimate):
    one = estimate[0]
    narrow = replace(one, covariance=one.covariance * 1e-4)
    mean = torch.tensor([0.7, 0.5, 2.0], dtype=torch.float64)
    places = {n: v.expand(1, 2) for n, v in zip(("azimuth", "elevation", "range"), mean, strict=True)}
    narrow = replace(narrow, sources=Sources(**places))
    root = torch.linalg.cholesky(narrow.covariance[0, 0])
    draws = mean + torch.randn(20000, 3, dtype=torch.float64, generator=torch.manual_seed(0)) @ root.mT
    sources = Sources(azimuth=draws[None, :, 0], elevation=draws[None, :, 1], range=draws[None, :, 2])
    sampled = replace(one, sources=sources).position[0].mT.cov()
    expected = narrow.position_covariance[0, 0]
    assert float((sampled - expected).norm() / expected.norm()) < 0.05


def test_position_in_the_room(estimate):
    turned = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]], dtype=torch.float64)
    x, y, z = estimate.position[0, 0].tolist()
    moved = replace(estimate, pose=turned).position_room[0, 0].tolist()
    assert moved == pytest.approx([5 - y, 6 + x, 7 + z])
    with pytest.raises(InputError, match="pose: the recording has no pose"):
        _ = estimate.position_room


def test_length_indices_and_iteration(estimate):
    assert len(estimate) == 3
    assert [len(one) for one in estimate] == [1, 1, 1]
    assert estimate[-1].n_sources.tolist() == [1]
    assert estimate[1:].n_sources.tolist() == [0, 1]
    assert estimate[torch.tensor([2, 0])].n_sources.tolist() == [1, 2]
    assert estimate[torch.tensor([False, False, True])].n_sources.tolist() == [1]
    with pytest.raises(IndexError):
        estimate[3]


def test_repr_is_a_small_table(estimate):
    lines = repr(estimate).splitlines()
    assert lines[0] == "Estimate(3 scenes, 3 sources, method='omp')"
    assert len(lines) == 5


def test_csv(estimate, tmp_path):
    estimate.to_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS) == (
        "scene,source,azimuth_deg,elevation_deg,range_m,azimuth_std_deg,elevation_std_deg,range_std_m,power_db,range_lower_m,"
        "existence_probability,status"
    )
    assert [(row["scene"], row["source"]) for row in rows] == [("0", "0"), ("0", "1"), ("2", "0")]
    assert float(rows[2]["range_m"]) == float(estimate.range_m[2, 0])
    with pytest.raises(InputError):
        estimate.to_csv(tmp_path / "a.csv")
    estimate[1].to_csv(tmp_path / "a.csv", overwrite=True)
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_json(estimate, tmp_path):
    estimate.to_json(tmp_path / "a.json", recording="mine.h5")
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["version", "recording", "scenes"]
    one = content["scenes"][0]
    assert list(one)[:6] == ["scene", "sources", "noise_variance", "p_value", "settings", "warnings"]
    assert one["n_sources"] == 2
    assert one["method"] == "omp"


def test_dataframe(estimate):
    pandas = pytest.importorskip("pandas")
    frame = estimate.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 3


def test_dataframe_without_pandas(estimate, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'rismusic\[pandas\]'"):
        estimate.to_dataframe()


def test_estimates_with_other_largest_numbers_of_sources_are_joined(recording):
    """A scene that is searched again in a wider volume, or by another method, may identify more sources."""
    few, many = (locate(recording[0], n_sources="auto", method="omp", sources_max=most) for most in (1, 2))
    joined = join_estimates([few, many])
    assert joined.n_sources_probability.shape == (2, 3)
    assert joined.n_sources_probability[0].tolist() == [*few.n_sources_probability[0].tolist(), 0.0]
    assert joined.n_sources_probability[1].equal(many.n_sources_probability[0])


def test_an_estimate_from_positions_alone(recording, estimate):
    """The same powers, bound and likelihood as the estimator's own, whatever the order of the sources."""
    flipped = Sources(**{n: getattr(estimate.sources, n).flip(1) for n in ("azimuth", "elevation", "range")})
    again = Estimate.from_sources(recording, flipped, spec=estimate.spec)
    torch.testing.assert_close(again.sources.range, estimate.sources.range, equal_nan=True)
    torch.testing.assert_close(again.std, estimate.std, equal_nan=True, rtol=1e-3, atol=0)
    torch.testing.assert_close(again.neg_log_likelihood, estimate.neg_log_likelihood, rtol=0, atol=1e-2)
    torch.testing.assert_close(again.p_value, estimate.p_value, rtol=1e-3, atol=1e-6)


def test_log_likelihood_has_the_sign_of_its_name(recording, estimate):
    value = log_likelihood(recording, estimate.sources)
    torch.testing.assert_close(value, -estimate.neg_log_likelihood, rtol=0, atol=1e-2)
    moved = replace(estimate.sources, azimuth=estimate.sources.azimuth + 0.2)
    for criterion in ("unconditional", "conditional"):
        best, worse = (log_likelihood(recording, s, criterion=criterion) for s in (estimate.sources, moved))
        assert (best[[0, 2]] > worse[[0, 2]]).all()


def test_device_is_checked(recording):
    with pytest.raises(InputError, match="device: 'warp' is not available"):
        locate(recording, n_sources=1, method="omp", device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: 'cuda' is not available"):
            locate(recording, n_sources=1, method="omp", device="cuda")
    assert locate(recording[:1], n_sources=1, method="omp", device="cpu").n_sources.tolist() == [1]


@pytest.mark.parametrize("method", ["bartlett", "mvdr", "music", "soft_music"])
def test_spectrum_has_axes_and_peaks(recording, method):
    """One source at 20 dB: the highest point of each spectrum lies within a step of the grid."""
    one = simulate(SMALL, scenes=2, sources=1, snr_db=20.0)
    found = spectrum(one, method=method, n_sources=1, range_max_m=2.0)
    X, Y, Z = found.grid.shape
    assert found.values.shape == (2, X, Y, Z)
    assert found.azimuth_deg.shape == (X, Y)
    assert found.elevation_deg.shape == (Y,)
    assert found.range_m.shape == (Z,)
    assert one.truth is not None
    peaks = found.peaks(1)
    for name in ("azimuth", "elevation"):
        assert float((getattr(peaks, name) - getattr(one.truth, name)).abs().max()) < math.radians(10)
    place = int(found.values[0].nan_to_num(0).argmax())
    x, y, z = place // (Y * Z), place // Z % Y, place % Z
    assert math.radians(found.azimuth_deg[x, y]) == pytest.approx(float(found.grid.azimuth[place]))
    assert math.radians(found.elevation_deg[y]) == pytest.approx(float(found.grid.elevation[place]))
    assert float(found.range_m[z]) == pytest.approx(float(found.grid.range[place]))


def test_spectrum_of_subcarriers_is_that_of_the_middle_one():
    system = {"panel": {"rows": 4, "columns": 5}, "wideband": {"subcarriers": 3, "bandwidth_hz": 5e7}}
    made = simulate(scenes=1, sources=1, snr_db=20.0, channel={"antennas": 8}, **system)
    of_all, of_one = (spectrum(one, method="mvdr").values for one in (made, made.subcarrier()))
    torch.testing.assert_close(of_all, of_one, equal_nan=True)


def test_spectrum_draws_itself(recording):
    from matplotlib import pyplot

    found = spectrum(recording, method="mvdr", n_sources=2, range_max_m=2.0)
    _, ax = pyplot.subplots()
    assert found.plot(ax=ax) is ax
    assert ax.get_xlabel() == "azimuth / deg"
    assert found.plot(ax=ax).xaxis_inverted()  # as in all plots, also when drawn again
    assert "range" in found.plot(scene=1, range_m=1.0).get_title()
    with pytest.raises(InputError, match="scene: there are 3 scenes"):
        found.plot(scene=3)
    pyplot.close("all")


def test_spectrum_refuses(recording):
    with pytest.raises(InputError, match=r"no spectrum is named 'omp'\. Known: hybrid, music"):
        spectrum(recording, method="omp")
    with pytest.raises(InputError, match="at least 1 source"):
        spectrum(recording, n_sources=0)


def test_names_of_built_in_methods_are_protected():
    with pytest.raises(InputError, match="built-in"):
        rismusic.register_estimator("omp", lambda spec: None)
    with pytest.raises(InputError, match="name"):
        rismusic.register_spectrum("omp", lambda covariance, n_sources: None)
    with pytest.raises(InputError, match="not a valid"):
        rismusic.register_spectrum("own:music", lambda covariance, n_sources: None)
    assert "own" not in ESTIMATORS
    assert "own" not in SPECTRA


def test_plugins_that_cannot_be_imported(recording):
    with pytest.raises(InputError, match=r"cannot import 'mine.py' .*; give the name without .py, 'mine' on"):
        LocateSpec(plugins=("mine.py",))
    with pytest.raises(InputError, match="plugins: cannot import 'no_such_module'"):
        locate(recording, plugins=("no_such_module",))


def raising(covariance, n_sources):
    raise ZeroDivisionError("boo")


def dense_matrix(covariance, n_sources):
    return covariance.dense()


def of_ten_elements(covariance, n_sources):
    return rismusic.Spectrum.from_subspace(covariance.factor[:, :10])


def too_long(covariance, n_sources):
    return rismusic.Spectrum.from_subspace(3 * covariance.eigen(2)[1])


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (raising, r"the spectrum 'faulty' failed with ZeroDivisionError: boo \(at .*test_estimate.py:\d+\)"),
        (dense_matrix, "must return a rismusic.Spectrum; got Tensor"),
        (of_ten_elements, r"must have vectors V of shape \[S, N, C\], \[3, \d+, C\]; got \[3, 10, \d+\]"),
        (too_long, r"\|V\^H a\|\^2 up to 9 .* orthonormal"),
    ],
)
def test_faults_of_a_spectrum_of_ones_own_are_said_as_such(function, sentence, recording):
    rismusic.register_spectrum("faulty", function)
    try:
        for call in (lambda: locate(recording, n_sources=2, method="faulty"), lambda: spectrum_of(recording)):
            with pytest.raises(InputError, match=f"method: .*{sentence}"):
                call()
    finally:
        SPECTRA.unregister("faulty")


def spectrum_of(recording):
    return rismusic.spectrum(recording, method="faulty", n_sources=2)


@pytest.mark.parametrize(
    ("estimator", "sentence"),
    [
        (lambda recording, n_sources: 1 / 0, "the estimator 'faulty' failed with ZeroDivisionError"),
        (lambda recording, n_sources: recording, "must return an Estimate of 3 scenes; got Recording"),
        (
            lambda recording, n_sources: locate(recording[:1], method="omp", n_sources=2),
            "must return an Estimate of 3 scenes; got one of 1 scene",
        ),
    ],
)
def test_faults_of_an_estimator_of_ones_own_are_said_as_such(estimator, sentence, recording):
    rismusic.register_estimator("faulty", lambda spec: estimator)
    try:
        with pytest.raises(InputError, match=f"method: .*{sentence}"):
            locate(recording, n_sources=2, method="faulty")
    finally:
        ESTIMATORS.unregister("faulty")


def test_entry_points_are_found_without_an_import(monkeypatch):
    """The names of installed packages' methods are known before their modules are imported."""
    from importlib.metadata import EntryPoint

    from rismusic import registry

    points = {
        "rismusic.estimators": [EntryPoint("installed", "math:sqrt", "rismusic.estimators")],
        "rismusic.spectra": [EntryPoint("broken", "no_such_module:function", "rismusic.spectra")],
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: points.get(group, []))
    assert "installed" in registry.method_names()
    assert registry.check_method("installed") == "installed"
    assert ESTIMATORS.get("installed") is math.sqrt
    with pytest.raises(InputError, match="the entry point 'broken'"):
        SPECTRA.get("broken")


def test_gradients_of_an_own_estimator_stay_inside(recording):
    """What ``locate`` returns carries no gradient, even if the estimator's positions do."""
    truth = replace(recording.truth, power=None, symbols=None)

    def factory(spec):
        def estimator(some, n_sources):
            made = Estimate.from_sources(some, truth, spec=spec)
            moved = replace(made.sources, azimuth=made.sources.azimuth.clone().requires_grad_(True))
            return replace(made, sources=moved)

        return estimator

    rismusic.register_estimator("with_gradient", factory)
    try:
        found = locate(recording, n_sources=2, method="with_gradient")
    finally:
        ESTIMATORS.unregister("with_gradient")
    assert found.method == ["with_gradient"] * 3
    assert not found.sources.azimuth.requires_grad


def test_a_direction_that_is_no_better_than_a_guess_is_doubtful():
    volume = Volume.from_spec(LocateSpec())
    sources = Sources.from_degrees([[10.0, 20.0]], [[5.0, 5.0]], [[2.0, 2.0]])
    std = torch.tensor(
        [[[0.01, 0.01, 0.1], [0.7, 0.01, 0.1]]], dtype=torch.float64
    )  # 120 deg / sqrt(12): 0.6
    (said,) = warnings_of(sources, std, torch.tensor([True]), volume, torch.zeros(1, 2))
    assert len(said) == 1
    assert isinstance(said[0], Reason)
    assert "source 1: the azimuth is not determined" in said[0]


def test_data_without_noise_are_sound():
    made = simulate(scenes=2, sources=1, snr_db=200, panel={"rows": 6, "columns": 6}, dtype=torch.float64)
    found = locate(replace(made, noise_variance=None), method="omp")
    assert found.status == ["ok"] * 2
    assert all(any("no noise but rounding" in one for one in words) for words in found.warnings)
    error = found.sources.azimuth[:, 0].double() - made.truth.azimuth[:, 0]
    assert (error.abs() < 1e-6).all()
