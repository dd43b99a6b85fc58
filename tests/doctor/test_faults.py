"""Each planted fault is named by a finding; the healthy training has no finding."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from faults import table
from faults.plant import healthy
from faults.table import CANNOT, FAULTS, fault_table, naming

from rismusic.doctor import hypotheses
from rismusic.doctor.case import open_case
from rismusic.doctor.diagnose import CHECKS, run_check
from rismusic.doctor.report import Diagnosis

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import source_faults

# The check that must name each fault. The other checks do not run here.
CHECK = {
    "degrees for radians": "POSITIONS",
    "converted twice": "POSITIONS",
    "one steering conjugated": "WAVE",
    "one steering in another order": "WAVE",
    "wavelength counted twice": "PANEL",
    "panel off centre": "PANEL",
    "R_samp from the labels": "R_SAMP",
    "R_samp centred": "R_SAMP",
    "R_samp from H c": "R_SAMP",
    "symbols held": "DRAWS",
    "overlapping seeds": "LEAK",
    "loading too large": "FUNCTIONS",
    "Rician factor undone": "LINK",
    "beams left out": "LINK",
    "truth on the grid": "POSITIONS",
    "wrong wavelength": "PANEL",
    "azimuth and elevation exchanged": "TRUTH",
    "labels shuffled": "TRUTH",
    "labels noisy": "TRUTH",
    "R_samp reversed": "R_SAMP",
    "eigenvalues sorted wrong": "FUNCTIONS",
    "exception swallowed": "FUNCTIONS",
    "loss on raw factors": "FUNCTIONS",
    "gradient through eigenvectors": "SLOPE",
    "one step an epoch": "REPLAY",
    "schedule ticks in epochs": "REPLAY",
    "schedule starts at 0": "SCHEDULE",
    "scheduler before optimizer": "REPLAY",
    "unscaled twice": "STEP",
    "clipped before unscaling": "STEP",
    "last batch only": "STEP",
    "NaN replaced": "FINITE",
    "clip norm too small": "STEP",
    "loss clamped": "SLOPE",
    "heads by index": "SYMMETRY",
    "free factors": "CONSTANT",
    "MDL on the panel": "CONSTANT",
    "loss floor": "FUNCTIONS",
    "similarity for error": "FUNCTIONS",
    "unused output": "GRADPATH",
    "penalties averaged": "FUNCTIONS",
    "misses cost nothing": "FUNCTIONS",
    "validation of a stale copy": "HELDOUT",
    "validation in bfloat16": "HELDOUT",
    "validation on another matrix": "HELDOUT",
    "loss detached": "LITMUS",
    "loss reversed": "SYMMETRY",
    "gradient reversed": "STEP",
    "sum for mean": "SYMMETRY",
    "backbone frozen": "OPTIMIZER",
    "learning rate 0": "SCHEDULE",
    "learning rate too large": "SCHEDULE",
    "weight decay too large": "DECAY",
    "average never updated": "REPLAY",
    "dropout in validation": "INPUT",
    "input not normalised": "INPUT",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_named(fault, monkeypatch, functions_of):
    monkeypatch.setattr(hypotheses, "_RUNS", 100)  # what explains a value is tested elsewhere
    tag = CHECK[fault.name]
    if tag in ("FUNCTIONS", "REPLAY"):
        functions_of("nn.losses", "covariance", "metrics")
    with fault.plant(healthy()) as spec, open_case(spec) as case:
        reports = tuple(run_check(tag, dict(CHECKS)[tag], case))
    found = naming(fault, Diagnosis(reports))
    assert found is not None, [one.sentence for report in reports for one in report.wrong]
    assert found[0] in (tag, "GRAD")


@pytest.fixture(scope="module")
def sound():
    with open_case(healthy()) as case:
        yield case


@pytest.mark.parametrize("tag", [tag for tag, _ in CHECKS])
def test_healthy_training_has_no_finding(sound, tag):
    for report in run_check(tag, dict(CHECKS)[tag], sound):
        assert [one.sentence for one in report.wrong] == []


def test_healthy_training_with_dft_codebook_has_no_finding(sound):
    """The healthy counterpart of the fault that changes the kind of codebook."""
    system = healthy().system
    beams = system.replace(codebook=system.codebook.replace(kind="dft"))
    with open_case(healthy().replace(system=beams)) as case:
        for report in run_check("LINK", dict(CHECKS)["LINK"], case):
            assert report.wrong == []


def test_healthy_training_with_a_curriculum_has_no_finding():
    """The curriculum has no room in the single epoch of the first steps."""
    schedule = healthy().schedule.replace(curriculum=True)
    with open_case(healthy().replace(schedule=schedule)) as case:
        for report in run_check("LITMUS", dict(CHECKS)["LITMUS"], case):
            assert [one.sentence for one in report.wrong] == []


def test_most_of_the_known_mistakes_are_planted():
    planted = {fault.number for fault in FAULTS} - {0}
    assert len(planted) >= 22
    assert planted | set(CANNOT) == set(range(1, 29))
    assert not planted & set(CANNOT)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def only(monkeypatch, *tags):
    checks = tuple(pair for pair in CHECKS if pair[0] in tags)
    monkeypatch.setattr("rismusic.doctor.diagnose.CHECKS", checks)


def test_table_has_healthy_named_and_missed_trainings(tmp_path, monkeypatch):
    only(monkeypatch, "PANEL", "DECAY")
    said = []
    found = fault_table(only=("panel off centre", "13"), say=said.append)
    assert said[0] == "healthy, seed 0: findings in none"
    assert "MISSED" in said[2]
    assert found.missed == found.unnoticed == ["clip norm too small"]
    assert found.summary.startswith("1 of 2 faults named (1 noticed), 1 of the 28 known mistakes; 0 of 1")
    found.write(tmp_path / "faults.csv")
    lines = (tmp_path / "faults.csv").read_text().splitlines()
    assert lines[0].startswith("mistake,fault,caught,check")
    assert lines[1].startswith("healthy,")
    assert lines[2].startswith("5,panel off centre,yes,PANEL,")
    assert lines[3].startswith("13,clip norm too small,no,,")
    with pytest.raises(ValueError, match="no such fault: nothing"):
        fault_table(only=("nothing",))


def test_healthy_training_with_a_finding_is_an_alarm(monkeypatch):
    only(monkeypatch, "DECAY")
    monkeypatch.setattr(table, "healthy", lambda seed=0: healthy(seed).replace(weight_decay=50.0))
    assert fault_table(only=("panel off centre",)).alarms == ["healthy, seed 0"]


def test_the_edits_of_the_benchmark_are_of_this_source():
    edits, package = source_faults.FAULTS, Path(hypotheses.__file__).parents[1]
    source = {edit.file: (package / edit.file).read_text("utf-8") for edit in edits}
    assert [edit.name for edit in edits if edit.old not in source[edit.file]] == []
