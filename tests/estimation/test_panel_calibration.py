"""``calibrate_panel``, ``locate`` with its result, the file, the plot and the command."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from rismusic import (
    Locator,
    PanelCalibration,
    calibrate_panel,
    locate,
    plot_panel_calibration,
    simulate,
    write,
)
from rismusic.array import Panel
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.metrics import match
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import impair
from rismusic.spec import HardwareSpec

HARDWARE = HardwareSpec(static_phase_rad=0.15, gain=0.05, dead_fraction=0.06)
SETTINGS = {
    "sources": 2, "snr_db": 20, "hardware": HARDWARE, "one_panel": True, "seed": 4,
    "panel": {"rows": 5, "columns": 6}, "codebook": {"snapshots": 10}, "channel": {"antennas": 8},
}  # fmt: skip
N = 30


@pytest.fixture(scope="module")
def recording():
    return simulate(scenes=24, **SETTINGS)


@pytest.fixture(scope="module")
def response():
    """The true responses."""
    draws = Draws(4, "link", torch.zeros(1, dtype=torch.int64))
    ones = Link(None, torch.ones(1, N, dtype=torch.complex64))
    _, actual = impair(Panel.uniform_planar(5, 6), ones, HARDWARE, draws)
    return actual.codes[0, 0].to(torch.complex128)


@pytest.fixture(scope="module")
def calibration(recording):
    return calibrate_panel(recording, recording.truth, position_error_wavelengths=0)


def _error(found, response):
    factor = (found.conj() * response).sum() / found.abs().square().sum()
    return float((found * factor - response).abs().square().mean().sqrt())


def test_known_positions_recover_the_panel(calibration, response):
    assert bool((response.abs() < 0.01).any())
    assert _error(calibration.response, response) < 0.03
    assert torch.equal(calibration.dead, response.abs() < 0.01)
    assert bool(calibration.used.all())
    assert calibration.remaining_error < 0.04
    # The gauge: the mean response of the elements that work is nearly 1.
    assert abs(complex(calibration.response[~calibration.dead].mean()) - 1) < 0.05


def test_blind_calibration_finds_the_same_up_to_a_phase_gradient(recording, response):
    blind = calibrate_panel(
        replace(recording, truth=None), n_sources=2, method="omp", position_error_wavelengths=0, rounds=2
    )
    alive = ~blind.dead
    assert torch.equal(blind.dead, response.abs() < 0.01)
    # A gradient and a curvature of the phase are not identifiable; the rest is.
    place = blind.elements[alive]
    phase = (blind.response[alive] / response[alive]).angle()
    square = place[:, :2].square().sum(-1, keepdim=True)
    columns = torch.cat((torch.ones_like(square), place[:, :2], square), dim=1)
    rest = phase - (columns @ torch.linalg.lstsq(columns, phase[:, None]).solution)[:, 0]
    assert float(rest.square().mean().sqrt()) < 0.05


def test_locate_uses_it(recording, calibration):
    other = simulate(scenes=12, split="validation", **SETTINGS)
    error = {}
    for name, panel in (("with", calibration), ("without", None)):
        found = locate(other, n_sources=2, method="omp", calibration=panel)
        error[name] = float(match(other.truth, found.sources).error[..., 0].abs().nanmedian())
    assert error["with"] < 0.5 * error["without"]
    assert locate(other[:1], n_sources=2, method="omp", calibration=calibration).spec.panel_error == (
        calibration.remaining_error
    )


def test_a_panel_that_has_changed_since_is_doubted(calibration):
    changed = SETTINGS | {"seed": 5}  # another panel
    estimate = locate(
        simulate(scenes=8, split="validation", **changed), method="omp", calibration=calibration
    )
    assert estimate.status == ["doubtful"] * 8
    made = simulate(scenes=8, split="validation", **SETTINGS)
    same = locate(made, method="omp", calibration=calibration)
    assert same.status.count("ok") >= 7
    # The error that the calibration leaves is no noise of the receiver.
    torch.testing.assert_close(same.noise_variance, made.noise_variance.double())


def test_a_locator_takes_the_remaining_error_where_the_number_of_sources_is_known(recording, calibration):
    scene = recording[0]
    locator = Locator(recording[:1], method="omp", calibration=calibration)
    for number in (None, 2):
        called = locator.locate(scene, n_sources=number)
        whole = locate(scene, n_sources=number, method="omp", calibration=calibration)
        assert called.spec.panel_error == whole.spec.panel_error
        torch.testing.assert_close(called.std, whole.std, rtol=1e-9, atol=0, equal_nan=True)


def test_the_scenes_used_are_those_of_the_last_fit(recording, monkeypatch):
    # Half of the scenes of any fit are worse than the median one.
    monkeypatch.setattr("rismusic.panel_calibration._BAD_FIT", 1.0)
    found = calibrate_panel(recording, recording.truth, position_error_wavelengths=0, rounds=1)
    assert int(found.used.sum()) == 12


def test_a_direct_array_gets_the_responses_as_codes():
    made = simulate(
        scenes=20, **SETTINGS | {"channel": {"kind": "direct"}, "hardware": HARDWARE.replace(dead_fraction=0)}
    )
    found = calibrate_panel(made, made.truth, position_error_wavelengths=0, rounds=1)
    applied = found.apply(made)
    assert applied.codes.shape == (10, N)
    torch.testing.assert_close(applied.codes[3].to(torch.complex128), found.response, atol=1e-6, rtol=1e-6)
    error = [
        float(
            match(made.truth, locate(made, n_sources=2, method="omp", calibration=panel).sources)
            .error[..., 0].abs().nanmedian()
        )
        for panel in (found, None)
    ]  # fmt: skip
    assert error[0] < 0.5 * error[1]


def test_file(calibration, recording, tmp_path):
    calibration.save(tmp_path / "panel.h5")
    read = PanelCalibration.load(tmp_path / "panel.h5")
    for name in ("elements", "response", "response_std", "offsets"):
        torch.testing.assert_close(getattr(read, name), getattr(calibration, name), rtol=0, atol=0)
    assert read.wavelength == calibration.wavelength
    assert read.remaining_error == calibration.remaining_error
    with pytest.raises(InputError, match="exists already"):
        calibration.save(tmp_path / "panel.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["panel.h5"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda file: file.attrs.__setitem__("format", "rismusic/1"),
            "format must be 'rismusic-calibration/1'",
        ),
        (lambda file: file.attrs.__delitem__("wavelength"), "wavelength must be an attribute"),
        (lambda file: file.attrs.__setitem__("wavelength", -1.0), "wavelength must be positive"),
        (lambda file: file.attrs.__setitem__("remaining_error", 1e300), "remaining_error must be at most 10"),
        (lambda file: file.attrs.__setitem__("wavelength", [0.3, 0.3]), "wavelength must be an attribute"),
        (lambda file: file["offsets"].__setitem__((0, 0), 1e300), "offsets must be at most"),
        (lambda file: file["response"].__setitem__(3, 1e300), "response must be at most 1000"),
        (lambda file: file["response"].__setitem__(slice(None), 0), "response is 0 or nearly 0"),
        (lambda file: file.__delitem__("offsets"), "offsets is missing"),
        (lambda file: file["response"].__setitem__(3, np.nan), "response must be finite"),
        (lambda file: file["response_std"].__setitem__(3, -1), "response_std must not be negative"),
        (lambda file: _replace(file, "response", np.ones(7, complex)), "response must have shape"),
        (lambda file: _replace(file, "response", np.ones(N)), "response must be complex"),
        (lambda file: _replace(file, "offsets", np.zeros((N, 2))), "offsets must have shape"),
        (lambda file: _replace(file, "elements", np.zeros((N, 3), "S3")), "elements must be real"),
    ],
)
def test_bad_files_get_a_sentence(calibration, tmp_path, change, sentence):
    path = tmp_path / "panel.h5"
    calibration.save(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=sentence) as error:
        PanelCalibration.load(path)
    assert "panel.h5" in str(error.value)


def _replace(file, name, value):
    del file[name]
    file[name] = value


def test_files_that_are_no_calibration(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        PanelCalibration.load(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(InputError, match="is not a complete HDF5 file"):
        PanelCalibration.load(tmp_path / "text.h5")
    with pytest.raises(InputError, match="is a folder"):
        PanelCalibration.load(tmp_path)


def test_another_panel_is_refused(calibration, recording):
    for other, sentence in (
        (simulate(scenes=1, sources=1), "panel of 30 elements, but the recording has 144"),
        (replace(recording, wavelength=0.2), "wavelength of 0.3 m"),
        (replace(recording, elements=recording.elements * 1.01), "is for another panel"),
    ):
        with pytest.raises(InputError, match=sentence):
            locate(other, calibration=calibration)


def test_recordings_that_cannot_calibrate(recording):
    with pytest.raises(InputError, match="must be independent"):
        calibrate_panel(replace(recording, symbols="constant"))
    with pytest.raises(InputError, match="must have the 24 scenes"):
        calibrate_panel(recording, recording.truth[:3])
    with pytest.raises(InputError, match="no scene has a source"):
        calibrate_panel(recording, n_sources=0, method="omp")


def test_a_scene_that_the_fit_does_not_explain_is_left_out(recording, response):
    wrong = recording.truth.each(lambda value: value.clone())
    wrong.azimuth[5] += 0.3
    found = calibrate_panel(recording, wrong, position_error_wavelengths=0)
    assert (~found.used).nonzero()[:, 0].tolist() == [5]
    assert _error(found.response, response) < 0.03


def test_plot(calibration):
    figure = plot_panel_calibration(calibration)
    amplitude, phase = figure.axes[:2]
    assert (amplitude.get_title(), phase.get_title()) == ("amplitude", "phase / deg")
    assert amplitude.get_legend().get_texts()[0].get_text() == "dead"
    assert len(amplitude.collections[1].get_offsets()) == int(calibration.dead.sum())
    with pytest.raises(InputError, match="needs two axes"):
        plot_panel_calibration(calibration, ax=figure.axes[:1])


def test_a_calibration_that_explains_little_is_doubted(caplog):
    """The channel of another recording: half of the power belongs to no element."""
    made = simulate(
        scenes=6, sources=1, snr_db=20, one_panel=True, seed=3, one_link=True,
        panel={"rows": 3, "columns": 4}, channel={"antennas": 6}, codebook={"snapshots": 12},
    )  # fmt: skip
    calibrate_panel(made, made.truth, rounds=1)
    assert not caplog.records
    noise = torch.randn(
        made.snapshots.shape, generator=torch.Generator().manual_seed(0), dtype=torch.complex64
    )
    level = made.snapshots.abs().square().mean().sqrt()
    calibrate_panel(replace(made, snapshots=made.snapshots + level * noise), made.truth, rounds=1)
    assert "the calibrated panel still departs by about" in caplog.text


def test_command(recording, response, tmp_path, capsys):
    write(tmp_path / "all.h5", recording)
    lines = ["scene,source,azimuth_deg,elevation_deg,range_m"]
    truth = recording.truth
    for scene in range(len(recording)):
        for source in range(2):
            place = (truth.azimuth_deg, truth.elevation_deg, truth.range)
            lines.append(f"{scene},{source}," + ",".join(f"{float(v[scene, source]):.5f}" for v in place))
    table = tmp_path / "known.csv"
    table.write_text("\n".join(lines) + "\n")
    command = ["calibrate", str(tmp_path / "all.h5"), "-o", str(tmp_path / "panel.h5")]
    plot = ["--plot", str(tmp_path / "panel.png")]
    assert (
        main(
            [
                *command,
                "--known-positions",
                str(table),
                "--position-error-wavelengths",
                "0",
                "--rounds",
                "1",
                *plot,
            ]
        )
        == 0
    )
    assert "remaining error" in capsys.readouterr().err
    assert _error(PanelCalibration.load(tmp_path / "panel.h5").response, response) < 0.03
    assert (tmp_path / "panel.png").stat().st_size > 5000
    located = ["locate", str(tmp_path / "all.h5"), "--calibration", str(tmp_path / "panel.h5")]
    assert main([*located, "--method", "omp", "--sources", "2", "-o", str(tmp_path / "out.csv")]) == 0
    for text, sentence in (
        ("scene,azimuth_deg\n", "has no column elevation_deg"),
        (lines[0] + "\n", "has no positions below its first line"),
        ("\ufeff" + lines[0] + "\r0,0,x,1,1\r", "line 2: values must be numbers"),
        (lines[0] + "\n0,0,1,1,1e-320\n", "ranges must be 1e-06 to 1e+12 m"),
        ('"' + "x" * 200_000, "is not a CSV file: field larger than"),
        (lines[0] + "".join(f"\n0,{n},{n / 2},1,1" for n in range(90)) + "\n", "identify at most"),
        (lines[0].replace("source", "range_m") + "\n0,0,1,1,1\n", "has more than one column range_m"),
        (lines[0] + "\n0,0,1,1,1\n0,1,1,1,1\n", "line 3: scene 0 has this position already"),
        (lines[0] + "\n99,0,1,1,1\n", "line 2: scene 99 does not exist"),
        (lines[0] + "\n0,0,x,1,1\n", "line 2: values must be numbers"),
        (lines[0] + "\n0,0,1,1,-1\n", "must be positive"),
    ):
        table.write_text(text)
        assert main([*command, "--overwrite", "--known-positions", str(table)]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
