"""Positions in the room frame: in the estimate, its files, the table and the report."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace

import matplotlib
import pytest
import torch

from rismusic import Estimate, locate, simulate, write, write_report
from rismusic.cli import main
from rismusic.estimation.table import COLUMNS, ROOM_COLUMNS, position_rows

matplotlib.use("agg")

# The panel hangs on a wall at x = 5 m and faces the room along -x, its x axis along y of the room.
POSE = torch.tensor([[0.0, 0, -1, 5], [1, 0, 0, 6], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def recording():
    made = simulate(
        scenes=2,
        sources=1,
        snr_db=20.0,
        panel={"rows": 4, "columns": 4},
        channel={"kind": "direct"},
        codebook={"snapshots": 8},
        scene={"range_max_m": 1.0},
    )
    return replace(made, pose=POSE)


@pytest.fixture(scope="module")
def estimate(recording) -> Estimate:
    return locate(recording, n_sources=1, method="omp")


def test_covariance_in_the_room_is_rotated(estimate):
    C, turned = estimate.position_covariance[0, 0], estimate.position_covariance_room[0, 0]
    # Room (x, y, z) = (5 - z, 6 + x, 1.5 - y) of the panel.
    order, sign = [2, 0, 1], torch.tensor([-1.0, 1, -1], dtype=C.dtype)
    torch.testing.assert_close(turned, C[order][:, order] * sign[:, None] * sign)


def test_what_the_data_do_not_determine_is_infinite_in_the_room(estimate):
    lost = estimate.covariance.clone()
    lost[0, 0, 1, 1] = math.inf
    turned = replace(estimate, covariance=lost).position_covariance_room
    assert turned[0, 0].isposinf().all()
    assert turned[1, 0].isfinite().all()


def test_a_source_in_the_far_field_has_no_place_in_the_room(estimate):
    far = replace(estimate, sources=replace(estimate.sources, range=estimate.sources.range * math.inf))
    assert math.isnan(asdict(position_rows(far)[0])["x_room_m"])


def test_files(estimate, tmp_path):
    estimate.to_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ROOM_COLUMNS
    assert ROOM_COLUMNS[: len(COLUMNS)] == COLUMNS
    place = [float(rows[1][f"{axis}_room_m"]) for axis in "xyz"]
    assert place == pytest.approx(estimate.position_room[1, 0].tolist())
    estimate.to_json(tmp_path / "a.json")
    source = json.loads((tmp_path / "a.json").read_text())["scenes"][1]["sources"][0]
    C = torch.tensor(source["covariance_room_m2"], dtype=torch.float64)
    torch.testing.assert_close(C, estimate.position_covariance_room[1, 0])
    assert source["y_room_std_m"] == pytest.approx(float(C[1, 1].sqrt()))


def test_command_line_and_report(recording, estimate, tmp_path, capsys):
    file = tmp_path / "a.h5"
    write(file, recording)
    settings = ["--method", "omp", "--sources", "1"]
    assert main(["locate", str(file), *settings]) == 0
    assert "room frame" in capsys.readouterr().out
    assert main(["locate", str(file), *settings, "-o", str(tmp_path / "b.csv")]) == 0
    estimate.to_csv(tmp_path / "c.csv")
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == ",".join(ROOM_COLUMNS)
    write_report(tmp_path / "r.html", recording, estimate, details=1)
    x = f"x = {float(estimate.position_room[0, 0, 0]):.3f}"
    assert x in (tmp_path / "r.html").read_text()
