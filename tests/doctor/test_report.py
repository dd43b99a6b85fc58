"""The verdict, the table for the console, the record for JSON and the HTML page."""

from __future__ import annotations

import json

import pytest
from faults.plant import healthy
from test_run_log import run_of

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
    assert sick.verdict == "1 of 2 findings are outside their limits. Start with the first: [B] It is large."
    record = json.loads(json.dumps(sick.record(), allow_nan=False))
    assert record["reports"][1]["findings"][0]["value"] == "nan"
    assert findings_table(sick).row_count == 1


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
