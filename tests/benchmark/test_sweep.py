from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from rismusic.benchmark.planning import bound_figure, bound_table, scene_bounds
from rismusic.benchmark.spec import BenchSpec, axis_label, sweep_cells, sweep_points
from rismusic.cli import COMMANDS, main
from rismusic.cli.parser import parse
from rismusic.crb import Bound, recording_crb
from rismusic.errors import InputError
from rismusic.simulation.simulator import Simulator
from rismusic.spec import LinkBudgetSpec, SystemSpec

SMALL = SystemSpec(
    panel={"rows": 4, "columns": 5}, channel={"antennas": 7}, codebook={"snapshots": 6}, sources=2
)
FLAGS = ["--panel.columns", "5", "--channel.antennas", "7", "--codebook.snapshots", "6", "--scenes", "5"]


def run(*args):
    return main([str(arg) for arg in args])


def test_the_position_error_is_the_trace_of_the_cartesian_covariance():
    """Against the Jacobian of the positions by automatic differentiation, and the whole covariance."""
    recording = Simulator(SMALL, seed=3, dtype=torch.float64).scenes(0, 4)
    truth, bound = recording.truth, recording_crb(recording)
    found = bound.position_error(truth.elevation)

    def position(coordinates):
        azimuth, elevation, r = coordinates
        return r * torch.stack(
            (azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos())
        )

    for s in range(4):
        for k in range(2):
            at = torch.stack((truth.azimuth[s, k], truth.elevation[s, k], truth.range[s, k]))
            J = torch.autograd.functional.jacobian(position, at)
            expected = (J @ bound.per_source[s, k] @ J.T).trace().sqrt()
            torch.testing.assert_close(found[s, k], expected)


def test_the_position_error_of_known_coordinates_and_unused_slots():
    covariance = torch.full((2, 3, 2, 3), math.nan, dtype=torch.float64)
    covariance[0, 0, 0, 0] = 0.04
    bound = Bound.from_covariance(covariance, torch.tensor([5.0, math.nan], dtype=torch.float64))
    error = bound.position_error(torch.tensor([0.0, math.nan], dtype=torch.float64))
    assert float(error[0]) == pytest.approx(1.0), "0.2 rad at 5 m; elevation and range are known"
    assert error[1].isnan()


def test_a_power_is_the_snr_that_the_budget_gives():
    """One source: the bound at the SNR of the budget, scene by scene."""
    system = SMALL.replace(sources=1, scene={"symbols": "qpsk"})
    found = scene_bounds(system, scenes=5, power_dbm=-5.0)
    plain = scene_bounds(system.replace(snr_db=0.0), scenes=5)
    # The SNR of the plain scenes is realised, that of the budget is a mean over channels: compare shapes.
    assert found.snr_db.isfinite().all()
    assert found.snr_db.unique().numel() == 5, "each range has its own SNR"
    ratio = plain.position_error / found.position_error / (found.snr_db[:, None] / 20 * math.log(10)).exp()
    assert ratio.log().abs().max() < 0.8
    louder = scene_bounds(system, scenes=5, power_dbm=5.0)
    torch.testing.assert_close(louder.position_error * math.sqrt(10), found.position_error, rtol=1e-4, atol=0)
    noisier = scene_bounds(system, scenes=5, power_dbm=5.0, budget=LinkBudgetSpec(bandwidth_hz=1e7))
    torch.testing.assert_close(noisier.position_error, found.position_error, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["rician", "direct"])
def test_the_power_of_the_budget_meets_the_simulated_snr(kind):
    """At the positions and powers of the budget, the simulated SNR over many scenes is that of the budget."""
    system = SMALL.replace(
        sources=2, channel={"kind": kind, "antennas": 7}, scene={"range_min_m": 2.0, "range_max_m": 2.0},
        codebook={"snapshots": 40},
    )  # fmt: skip
    snr = scene_bounds(system, scenes=20, power_dbm=0.0).snr_db
    single = scene_bounds(system.replace(sources=1), scenes=20, power_dbm=0.0).snr_db
    assert float(snr.mean() - single.mean()) == pytest.approx(3.01, abs=0.2), "two sources, twice the power"


def test_bounds_fall_along_a_sweep():
    for sweep in (
        {"panel.rows": (4, 8), "panel.columns": (5, 10)},
        {"codebook.snapshots": (6, 24)},
        {"channel.antennas": (7, 14)},
    ):
        rows = bound_table(SMALL, sources=[2], snr_db=[10.0], sweep=sweep, scenes=20)
        assert [row.sweep for row in rows] == 2 * [", ".join(sweep)]
        assert rows[1].position_error_bound_m < 0.8 * rows[0].position_error_bound_m
    rows = bound_table(
        SMALL,
        sources=[1],
        power_dbm=[0.0],
        sweep={"scene.range_min_m": (1.0, 20.0), "scene.range_max_m": (2.0, 30.0)},
        scenes=10,
    )
    assert [row.point for row in rows] == ["1, 2", "20, 30"]
    assert rows[1].snr_db < rows[0].snr_db - 15
    assert rows[1].position_error_bound_m > 10 * rows[0].position_error_bound_m


def test_settings_of_the_budget_are_swept():
    sweep = {"budget.bandwidth_hz": (1e6, 1e8)}
    near, far = bound_table(SMALL, sources=[1], power_dbm=[0.0], sweep=sweep, scenes=5)
    assert near.snr_db - far.snr_db == pytest.approx(20, abs=1e-3)
    assert far.azimuth_std_deg == pytest.approx(10 * near.azimuth_std_deg, rel=1e-3)


def test_subcarriers_share_the_power():
    sweep = {"wideband.subcarriers": (1, 4)}
    one, four = bound_table(SMALL, sources=[1], power_dbm=[0.0], sweep=sweep, scenes=5)
    assert one.snr_db - four.snr_db == pytest.approx(10 * math.log10(4), abs=1e-3)


def test_the_position_error_of_a_row_is_a_root_mean_square():
    (row,) = bound_table(SMALL, sources=[2], snr_db=[10.0], scenes=7)
    bound = recording_crb(Simulator(SMALL.replace(snr_db=10.0), split="test").scenes(0, 7))
    truth = Simulator(SMALL.replace(snr_db=10.0), split="test").scenes(0, 7).truth
    scale = torch.stack((truth.range * truth.elevation.cos(), truth.range, torch.ones_like(truth.range)), -1)
    expected = (bound.std * scale).square().sum() / 14
    assert row.position_error_bound_m == pytest.approx(float(expected.sqrt()), rel=1e-6)


def test_limits_may_move_past_the_old_ones():
    sweep = {"scene.range_min_m": (20.0, 0.1), "scene.range_max_m": (30.0, 0.2)}
    points = sweep_points(sweep, SystemSpec())
    assert [point.system.scene.range_max_m for point in points] == [30.0, 0.2]
    cells = sweep_cells("range", (20.0, 30.0), (1,), (5.0,), SystemSpec())
    assert cells[0].system.scene.range_min_m == 20


def test_bad_sweeps():
    for sweep, sentence in (
        ({"panel.row": (1, 2)}, r"panel.row: unknown setting; did you mean panel.rows\?"),
        ({"speed.scene": (1, 2)}, "speed: unknown setting"),
        ({"panel.rows": (8, 0)}, "panel.rows: expected at least 1, found 0"),
        (
            {"panel.rows": (8, 12), "panel.columns": (8, 12, 16)},
            "need equally many values; got 3, and 2 of panel.rows",
        ),
        ({"budget.bandwidth": (1.0, 2.0)}, "budget.bandwidth: unknown setting"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            sweep_points(sweep, SystemSpec())


def test_the_command_sweeps(tmp_path, capsys):
    args = ["bound", "--panel.rows", 4, 6, "--sources", 1, 2, "--snr-db", 10, *FLAGS]
    assert run(*args, "-o", tmp_path / "a.csv", "--plot", tmp_path / "a.png") == 0
    out = capsys.readouterr().out
    assert "panel.rows" in out
    assert "position" in out
    found = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    expected = bound_table(SMALL, sources=[1, 2], snr_db=[10.0], sweep={"panel.rows": (4, 6)}, scenes=5)
    assert [(row["sources"], row["point"]) for row in found] == [
        ("1", "4"),
        ("1", "6"),
        ("2", "4"),
        ("2", "6"),
    ]
    for row, twin in zip(found, expected, strict=True):
        assert float(row["position_error_bound_m"]) == twin.position_error_bound_m
    assert run(*args, "-o", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["sweep"] == {"panel.rows": [4, 6]}


def test_the_table_of_two_swept_settings_and_powers_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    sweep = ["--panel.rows", 4, 6, "--panel.columns", 4, 6, "--power-dbm", 0, 10]
    assert run("bound", *sweep, "--scenes", 2) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "4, 4" in out
    assert "…" not in out
    assert run("bound", "--wideband.subcarriers", 1, 4, "--power-dbm", 0, "--scenes", 2) == 0
    assert "…" not in capsys.readouterr().out


def test_a_file_sweeps_too_and_options_win(tmp_path):
    config = tmp_path / "bound.toml"
    config.write_text("sources = [2]\n[codebook]\nsnapshots = [4, 8]\nbits = [2]\n")
    read = parse(["bound", "--config", str(config)], COMMANDS)
    assert read.sweep == {"codebook.snapshots": (4, 8)}
    assert read.codebook.bits == 2, "a list of one value is that value"
    assert (read.sources, read.snr_db) == ((2,), (10.0,))
    one = parse(["bound", "--config", str(config), "--codebook.snapshots", "6"], COMMANDS)
    assert (one.sweep, one.codebook.snapshots) == ({}, 6)
    pair = parse(["bound", "--channel.rician-factor-db", "0", "5"], COMMANDS)
    assert (pair.sweep, pair.channel.rician_factor_db) == ({}, (0.0, 5.0)), "two limits are no sweep"


def test_bench_takes_the_same_sweep():
    read = parse(["bench", "--codebook.snapshots", "4", "8", "--sources", "2"], COMMANDS)
    assert read.settings == BenchSpec(sweep=("codebook.snapshots",), sweep_values=(4, 8), sources=(2,))
    labels = [cell.point for cell in read.settings.cells()]
    assert labels == ["4", "8"]
    for more in (["--panel.rows", "4", "8"], ["--sweep", "bits"]):
        with pytest.raises(InputError, match="makes a sweep, as does"):
            parse(["bench", "--codebook.snapshots", "4", "8", *more], COMMANDS)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("bound --panel.rows 8 0", "error: --panel.rows: expected at least 1, found 0"),
        ("bound --panel.rows 8 x", "error: --panel.rows: expected an integer"),
        (
            "bound --panel.rows 8 12 --panel.columns 8 12 16",
            "error: --panel.columns: settings that are swept",
        ),
        ("bound --scene.range-min-m 1 20", "error: --scene.range-max-m: expected at least range_min_m = 20"),
        ("bound --power-dbm nan", "error: --power-dbm: expected a finite number, found nan"),
        ("bound --budget.noise-figure-db -1", "error: --budget.noise-figure-db: expected at least 0"),
        ("bound --sources 1 --snr-db", "error: --snr-db: give at least one value"),
        ("locate a.h5 --range-max-m 3 4", "error: --output: several recordings (a.h5, 4) need a folder"),
    ],
)
def test_bad_input_of_the_command(command, sentence, capsys):
    assert run(*command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_infinite_bounds_are_null_in_json(tmp_path):
    """One antenna, symbols that change: nothing can be told."""
    args = [
        "bound",
        "--channel.antennas",
        1,
        "--sources",
        1,
        "--snr-db",
        10,
        "--scenes",
        2,
        "--panel.rows",
        2,
        3,
    ]
    assert run(*args, "-o", tmp_path / "a.json", "--plot", tmp_path / "a.png") == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["position_error_bound_m"] for row in rows] == [None, None]


def test_the_label_of_an_axis_has_words_and_units():
    assert axis_label("bits") == axis_label("codebook.bits") == "bits of the phase shifters"
    assert axis_label("panel.rows, panel.columns") == "panel rows, panel columns"
    assert axis_label("scene.range_max_m") == "scene range max / m"
    assert axis_label("panel.spacing_wavelengths") == "panel spacing wavelengths"


def test_the_plot_of_a_sweep():
    rows = bound_table(
        SMALL, sources=[1, 2], snr_db=[0.0, 10.0], sweep={"codebook.bits": (1, 2, "continuous")}, scenes=2
    )
    figure = bound_figure(rows, width_mm=88.9)
    azimuth, _, position = figure.axes
    assert [text.get_text() for text in azimuth.get_legend().get_texts()] == [
        "K = 1, 0 dB", "K = 1, 10 dB", "K = 2, 0 dB", "K = 2, 10 dB"
    ]  # fmt: skip
    assert azimuth.get_xlabel() == "bits of the phase shifters"
    assert [text.get_text() for text in position.get_xticklabels()] == ["1", "2", "continuous"]
    assert list(position.get_lines()[3].get_ydata()) == [row.position_error_bound_m for row in rows[9:]]


def test_bounds_do_not_depend_on_the_block(monkeypatch):
    system = SystemSpec(panel={"rows": 4, "columns": 4}, sources=2)
    whole = scene_bounds(system, scenes=3, power_dbm=0.0)
    monkeypatch.setattr("rismusic.benchmark.planning._BLOCK", 1)
    parts = scene_bounds(system, scenes=3, power_dbm=0.0)
    torch.testing.assert_close(parts.bound.covariance, whole.bound.covariance, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.position_error, whole.position_error, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.snr_db, whole.snr_db)
