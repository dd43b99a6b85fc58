from __future__ import annotations

import csv
import itertools
import json

import pytest

import rismusic
from rismusic.benchmark.planning import plan, scene_bounds
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.spec import SystemSpec

ROWS, ANTENNAS, SNAPSHOTS, BITS = (4, 6, 8), (4, 8), (4, 8, 16), (1, 2)
CANDIDATES = {"rows": ROWS, "antennas": ANTENNAS, "snapshots": SNAPSHOTS, "bits": BITS}
FLAGS = ["--rows", *ROWS, "--antennas", *ANTENNAS, "--snapshots", *SNAPSHOTS, "--bits", *BITS]


def run(*args):
    return main([str(arg) for arg in args])


def median_bound(rows, antennas, snapshots, bits, **level):
    system = SystemSpec(
        sources=1,
        snr_db=level.pop("snr_db", 0.0),
        scene={"range_min_m": 3.0, "range_max_m": 3.0},
        panel={"rows": rows, "columns": rows},
        channel={"antennas": antennas},
        codebook={"snapshots": snapshots, "bits": bits},
    )
    return float(scene_bounds(system, scenes=30, **level).position_error.median())


@pytest.mark.parametrize("level", [{"snr_db": 15.0}, {"power_dbm": -5.0}], ids=["snr", "power"])
def test_against_all_candidates(level):
    """The search finds what an exhaustive search finds, with fewer bounds."""
    target = 0.2
    found = plan(target, 3.0, **CANDIDATES, **level)
    bounds = {
        place: median_bound(*place, **level) for place in itertools.product(ROWS, ANTENNAS, SNAPSHOTS, BITS)
    }
    reach = [place for place, value in bounds.items() if value <= target]
    # What reaches the target by the rule of monotony: anything above a place that does.
    smallest = {
        place
        for place in reach
        if not any(
            other != place and all(a <= b for a, b in zip(other, place, strict=True)) for other in reach
        )
    }
    assert len(smallest) > 2
    assert {(one.rows, one.antennas, one.snapshots, one.bits) for one in found.systems} == smallest
    assert found.evaluated < 0.7 * len(bounds)
    for one in found.systems:
        assert one.position_error_bound_m == pytest.approx(
            bounds[one.rows, one.antennas, one.snapshots, one.bits]
        )
        assert one.elements == one.rows**2 == one.rows * one.columns
    sizes = [(one.elements, one.antennas, one.snapshots, one.bits) for one in found.systems]
    assert sizes == sorted(sizes)


def test_a_harder_target_needs_a_larger_system():
    easy, hard = (plan(target, 3.0, **CANDIDATES, snr_db=15.0).systems for target in (1.0, 0.2))
    assert min(one.elements * one.snapshots for one in easy) < min(
        one.elements * one.snapshots for one in hard
    )
    far = plan(0.3, 6.0, **CANDIDATES, power_dbm=0.0)
    near = plan(0.3, 2.0, **CANDIDATES, power_dbm=0.0)
    assert near.systems[0].elements < far.largest.elements
    assert near.largest.position_error_bound_m < far.largest.position_error_bound_m
    assert near.largest.snr_db > far.largest.snr_db + 8


def test_direct_sampling_has_rows_and_snapshots_only():
    system = SystemSpec(channel={"kind": "direct"})
    found = plan(0.1, 3.0, **CANDIDATES, snr_db=10.0, system=system, scenes=5)
    assert found.systems
    assert {(one.antennas, one.bits) for one in found.systems} <= {(side**2, None) for side in ROWS}
    assert "bits" not in str(found.largest)


def test_constant_symbols_need_one_antenna_only():
    arguments = {**CANDIDATES, "antennas": [1], "snapshots": [32], "bits": [2]}
    system = SystemSpec(scene={"symbols": "constant"})
    assert plan(0.5, 3.0, **arguments, snr_db=20.0, system=system, scenes=5).systems
    assert not plan(0.5, 3.0, **arguments, snr_db=20.0, scenes=5).systems, "symbols that change"


def test_progress_counts_decided_candidates():
    calls = []
    plan(0.2, 3.0, **CANDIDATES, snr_db=15.0, scenes=5, progress=lambda *done: calls.append(done))
    decided, totals = zip(*calls, strict=True)
    assert set(totals) == {36}
    assert list(decided) == sorted(decided)
    assert decided[-1] == 36


def test_the_command_is_the_twin_of_the_call(tmp_path, capsys):
    assert rismusic.plan is plan
    args = ["plan", "--target-m", 0.2, "--range-m", 3, "--power-dbm", -5, *FLAGS, "--scenes", 10]
    assert run(*args, "-o", tmp_path / "a.csv") == 0
    assert "smallest systems" in capsys.readouterr().out
    expected = plan(0.2, 3.0, **CANDIDATES, power_dbm=-5.0, scenes=10).systems
    found = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [(int(row["rows"]), int(row["snapshots"])) for row in found] == [
        (one.rows, one.snapshots) for one in expected
    ]
    assert float(found[0]["position_error_bound_m"]) == expected[0].position_error_bound_m
    assert run(*args, "-o", tmp_path / "a.json") == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert len(written["rows"]) == len(expected)
    assert written["settings"]["power_dbm"] == -5


def test_no_system_reaches_the_target(tmp_path, capsys):
    args = ["plan", "--target-m", 1e-6, "--range-m", 3, *FLAGS, "--scenes", 3]
    assert run(*args, "-o", tmp_path / "a.csv") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        "no candidate reaches 1e-06 m at 3 m; the largest (8 x 8, M = 8, L = 16, 2 bits) reaches 0."
    )
    assert (tmp_path / "a.csv").read_text().count("\n") == 1, "the header alone"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--range-m 3", "error: --target-m: is required; see rismusic plan --help"),
        ("--target-m 0 --range-m 3", "error: --target-m: expected more than 0, found 0"),
        ("--target-m 1 --range-m -3", "error: --range-m: expected more than 0, found -3"),
        ("--target-m 1 --range-m 3 --rows", "error: rows: give at least one candidate"),
        ("--target-m 1 --range-m 3 --rows 0", "error: --rows: expected at least 1, found 0"),
        ("--target-m 1 --range-m 3 --bits 2 continuous", "error: --bits: expected an integer"),
        ("--target-m 1 --range-m 3 --panel.rows 8", "error: --panel.rows: is not used here; give --rows"),
        ("--target-m 1 --range-m 3 --scene.range-max-m 8", "error: --scene.range-max-m: is not used here"),
        ("--target-m 1 --range-m 3 --snr-db 3 --power-dbm 3", "error: --power-dbm: cannot be combined"),
        ("--target-m 1 --range-m 3 -o a.txt", "error: a.txt: the file name must end in .csv or .json"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(options, sentence, capsys):
    assert run("plan", *options.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_bad_arguments():
    with pytest.raises(InputError, match=r"target_m: must be positive and finite, in metres; got 0"):
        plan(0.0, 3.0)
    with pytest.raises(InputError, match=r"range_m: must be positive and finite, in metres; got nan"):
        plan(0.1, float("nan"))
    with pytest.raises(InputError, match="antennas: give at least one candidate"):
        plan(0.1, 3.0, antennas=[])
