"""Every fault of the catalogue is caught by a finding that names its cause, and its healthy twin by none."""

from __future__ import annotations

import pytest

from rismusic.doctor.case import opened
from rismusic.doctor.diagnose import CHECKS, Diagnosis, examine
from rismusic.doctor.faults import table
from rismusic.doctor.faults.plant import healthy
from rismusic.doctor.faults.table import CANNOT, FAULTS, naming, try_faults
from rismusic.errors import InputError

# The check in which each fault is to be named; the others are not run here.
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
    "symbols held": "SIGNAL",
    "overlapping seeds": "LEAK",
    "loading too large": "R_SAMP",
    "Rician factor undone": "LINK",
    "beams left out": "LINK",
    "truth on the grid": "POSITIONS",
    "wrong wavelength": "PANEL",
    "azimuth and elevation exchanged": "TRUTH",
    "labels shuffled": "TRUTH",
    "labels noisy": "TRUTH",
    "R_samp reversed": "R_SAMP",
    "eigenvalues sorted wrong": "GAP",
    "exception swallowed": "ORACLE",
    "loss on raw factors": "BLEND",
    "gradient through eigenvectors": "SLOPE",
    "one step an epoch": "LOOP",
    "schedule ticks in epochs": "LOOP",
    "schedule starts at 0": "SCHEDULE",
    "scheduler before optimizer": "STEP",
    "unscaled twice": "STEP",
    "clipped before unscaling": "STEP",
    "last batch only": "STEP",
    "NaN replaced": "FINITE",
    "clip norm too small": "STEP",
    "loss clamped": "SLOPE",
    "heads by index": "SYMMETRY",
    "free factors": "CONSTANT",
    "MDL on the panel": "CONSTANT",
    "loss floor": "ORACLE",
    "similarity for error": "ORACLE",
    "unused output": "GRADPATH",
    "penalties averaged": "SCORES",
    "misses cost nothing": "SCORES",
    "validation of a stale copy": "VALIDATION",
    "validation in bfloat16": "VALIDATION",
    "validation on another matrix": "VALIDATION",
    "loss detached": "LITMUS",
    "loss reversed": "SYMMETRY",
    "gradient reversed": "STEP",
    "sum for mean": "SYMMETRY",
    "backbone frozen": "OPTIMIZER",
    "learning rate 0": "SCHEDULE",
    "learning rate too large": "SCHEDULE",
    "weight decay too large": "DECAY",
    "average never updated": "DRIFT",
    "dropout in validation": "INPUT",
    "input not normalised": "INPUT",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_named(fault):
    tag = CHECK[fault.name]
    with fault.plant(healthy()) as spec, opened(spec) as case:
        reports = tuple(examine(tag, dict(CHECKS)[tag], case))
    found = naming(fault, Diagnosis(reports))
    assert found is not None, [one.sentence for report in reports for one in report.wrong]
    assert found[0] in (tag, "GRAD")


@pytest.fixture(scope="module")
def sound():
    with opened(healthy()) as case:
        yield case


@pytest.mark.parametrize("tag", [tag for tag, _ in CHECKS])
def test_nothing_is_found_in_the_healthy_twin(sound, tag):
    for report in examine(tag, dict(CHECKS)[tag], sound):
        assert [one.sentence for one in report.wrong] == []


def test_a_healthy_training_with_beams_has_none(sound):
    """The twin of the fault that changes the kind of codebook."""
    system = healthy().system
    beams = system.replace(codebook=system.codebook.replace(kind="dft"))
    with opened(healthy().replace(system=beams)) as case:
        for report in examine("LINK", dict(CHECKS)["LINK"], case):
            assert report.wrong == []


def test_most_of_the_known_mistakes_are_planted():
    planted = {fault.number for fault in FAULTS} - {0}
    assert len(planted) >= 22
    assert planted | set(CANNOT) == set(range(1, 29))
    assert not planted & set(CANNOT)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_table(tmp_path, monkeypatch):
    """Rows of faults and of the healthy training, and what is missed is said."""
    quick = [pair for pair in CHECKS if pair[0] in ("PANEL", "DECAY")]
    monkeypatch.setattr("rismusic.doctor.diagnose.CHECKS", tuple(quick))
    said, done = [], []
    tried = try_faults(only=("panel off centre", "13"), say=said.append, progress=lambda *at: done.append(at))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert said[0] == "healthy, seed 0: nothing"
    assert tried.missed == ["clip norm too small"]
    assert not tried.passed
    assert "MISSED" in said[2]
    assert "1 of 2 faults caught" in tried.verdict
    tried.write(tmp_path / "faults.csv", overwrite=False)
    lines = (tmp_path / "faults.csv").read_text().splitlines()
    assert lines[0].startswith("mistake,fault,caught,check")
    assert lines[2].startswith("5,panel off centre,yes,PANEL,")
    with pytest.raises(InputError, match="only"):
        try_faults(only=("no such fault",))


def test_a_healthy_training_with_a_finding_is_an_alarm(monkeypatch):
    quick = [pair for pair in CHECKS if pair[0] == "DECAY"]
    monkeypatch.setattr("rismusic.doctor.diagnose.CHECKS", tuple(quick))
    monkeypatch.setattr(table, "healthy", lambda seed=0: healthy(seed).replace(weight_decay=50.0))
    tried = try_faults(only=("panel off centre",))
    assert tried.alarms == ["healthy, seed 0"]
    assert not tried.passed
