"""The verdict, the table for the console, the record for JSON and the HTML page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from faults.plant import healthy
from test_run_log import run_of

from rismusic.doctor.causes import place_of
from rismusic.doctor.report import Diagnosis, findings_table, listed, report_of, write_diagnosis
from rismusic.errors import InputError
from rismusic.nn.monitors import at_most
from rismusic.nn.run_folder import CURVES

GOOD = report_of("A", "sound", [at_most("good", 1.0, 2.0, "It is large.", "Make it small.")])
BAD = report_of("B", "not sound", [at_most("bad <b>", float("nan"), 2.0, "It is large.", "Make it small.")])


def test_verdict_names_the_first_finding():
    assert Diagnosis((GOOD,)).verdict == "Healthy: all 1 findings are within their limits."
    sick = Diagnosis((GOOD, BAD))
    assert not sick.healthy
    assert sick.verdict == (
        "1 of 2 findings outside their limits, with one possible cause. "
        "Start here: [B] It is large. Make it small."
    )
    assert repr(sick) == f"1. [B] {BAD.findings[0].sentence}\n{sick.verdict}"
    record = json.loads(json.dumps(sick.record(), allow_nan=False))
    assert record["reports"][1]["findings"][0]["value"] == "nan"
    assert findings_table(sick).row_count == 1


def wrong(tag, name, meaning, advice="Mend it.", where=""):
    return report_of(tag, "", [replace(at_most(name, 1.0, 0.0, meaning, advice), where=where)])


def test_causes_come_first_with_what_follows_from_them():
    """A missing parameter before the loss that does not fall; another fault stands for itself."""
    diagnosis = Diagnosis(
        (
            wrong("LITMUS", "decrease", "nothing is learned."),
            wrong("BATCH", "change", "samples affect each other.", "Check the axes."),
            wrong("GRAD", "parameters", "these do not learn: a.", "Check a.", "forward (net.py:3)"),
            wrong("DRIFT", "unmoved", "these do not learn: a."),
        )
    )
    assert [(cause.tag, [tag for tag, _ in cause.consequences]) for cause in diagnosis.causes] == [
        ("GRAD", ["LITMUS", "DRIFT"]),
        ("BATCH", []),
    ]
    assert "2 possible causes. Start here: [GRAD]" in diagnosis.verdict
    assert diagnosis.verdict.endswith("Look at forward (net.py:3).")
    assert [line[:12] for line in diagnosis.lines] == [
        "1. [GRAD] pa",
        "   follows: ",
        "   follows: ",
        "2. [BATCH] c",
    ]
    assert len(diagnosis.record()["causes"]) == findings_table(diagnosis).row_count == 2
    assert "May follow" not in diagnosis.verdict


def test_a_place_is_the_function_of_the_loop_in_use():
    class Own:
        def step(self):
            pass

    assert place_of(Own.step).endswith(f"Own.step (test_report.py:{Own.step.__code__.co_firstlineno})")
    assert place_of(None) == ""


def test_page_has_findings_curves_and_settings(tmp_path):
    folder = run_of(tmp_path)
    (folder / CURVES).write_bytes(b"a picture")
    write_diagnosis(tmp_path / "d.html", Diagnosis((GOOD, BAD)), settings=healthy(), run=folder, command="x")
    text = (tmp_path / "d.html").read_text()
    assert "It is large." in text
    assert "bad &lt;b&gt;" in text
    assert "data:image/png;base64,YSBwaWN0dXJl" in text
    assert "network.width" in text
    with pytest.raises(InputError, match="html"):
        write_diagnosis(tmp_path / "d.txt", Diagnosis((GOOD,)))
    write_diagnosis(tmp_path / "sound.html", Diagnosis((GOOD,)))
    assert "Nothing wrong" in (tmp_path / "sound.html").read_text()


def test_listed():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f, ..."
