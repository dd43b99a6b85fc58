"""All checks in their order, and the command."""

from __future__ import annotations

import json

import pytest
from faults.plant import healthy
from test_run_log import run_of

from rismusic.cli import main
from rismusic.doctor import diagnose as diagnosing
from rismusic.doctor.diagnose import CHECKS, diagnose
from rismusic.doctor.report import report_of
from rismusic.nn.monitors import at_least, at_most
from rismusic.nn.train import Trainer
from rismusic.spec import dump_spec

GOOD = report_of("A", "sound", [at_most("good", 1.0, 2.0, "It is large.", "Make it small.")])
BAD = report_of("B", "not sound", [at_most("bad <b>", float("nan"), 2.0, "It is large.", "Make it small.")])


def only(monkeypatch, *tags):
    monkeypatch.setattr(diagnosing, "CHECKS", tuple(pair for pair in CHECKS if pair[0] in tags))


def test_order_of_the_checks():
    order = [tag for tag, _ in CHECKS]
    for first, later in (
        ("PANEL", "TRUTH"),
        ("TRUTH", "R_SAMP"),
        ("R_SAMP", "LITMUS"),
        ("LITMUS", "GRADPATH"),
        ("GRADPATH", "SCHEDULE"),
        ("SCHEDULE", "REPLAY"),
    ):
        assert order.index(first) < order.index(later)


def test_code_that_fails_is_a_finding(monkeypatch):
    def breaks(_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(diagnosing, "CHECKS", (("X", breaks), *CHECKS[:1]))
    said, begun = [], []
    diagnosis = diagnose(healthy(), say=said.append, begun=begun.append)
    assert begun == ["X", "PANEL"]
    assert diagnosis.wrong[0].name == "check X could not run"
    assert "RuntimeError: no such thing" in diagnosis.wrong[0].meaning
    assert said[-1] == "[PANEL] 36 elements"


def test_own_training_loop(monkeypatch):
    """The checks use the learner and the scenes of the given training loop."""
    only(monkeypatch, "SCHEDULE")

    class Late(Trainer):
        def __init__(self, *given):
            super().__init__(*given)
            self.learner.factors.fill_(0.5)

    assert diagnose(healthy()).healthy
    found = diagnose(healthy(), trainer=Late)
    assert "largest distance of the factors of the learning rate from the schedule of the settings" in [
        one.name for one in found.wrong
    ]


def test_command(tmp_path, monkeypatch, capsys):
    """Exit code 0 or 1; findings as they come, then the verdict; JSON and a page on request."""
    only(monkeypatch, "PANEL", "DECAY")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sound.toml").write_text(dump_spec(healthy()))
    (tmp_path / "sick.toml").write_text(dump_spec(healthy().replace(weight_decay=50.0)))
    assert main(["doctor", "sound.toml", "--json", "found.json", "--report", "found.html"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "[PANEL] 36 elements"
    assert "Healthy" in shown.splitlines()[-1]
    assert json.loads((tmp_path / "found.json").read_text())["healthy"] is True
    assert "Nothing wrong" in (tmp_path / "found.html").read_text()
    assert main(["doctor", "sick.toml"]) == 1
    shown = capsys.readouterr().out
    assert "[DECAY] ! sum over the steps of learning rate times weight decay" in shown
    assert shown.splitlines()[-1].startswith("1 of ")
    assert main(["doctor", "sound.toml", "--weight-decay", "50"]) == 1


def test_command_on_a_run(tmp_path, capsys):
    assert main(["doctor", str(run_of(tmp_path))]) == 0
    assert "[PROGRESS]" in capsys.readouterr().out
    sick = run_of(tmp_path / "sick", validation=[1.0] * 8) if (tmp_path / "sick").mkdir() is None else None
    assert main(["doctor", "--run", str(sick), "--json", str(tmp_path / "found.json")]) == 1
    assert "constant" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.toml"],
        ["--run", "missing"],
        ["--preset", "tiny", "--json", "found.txt"],
        ["--preset", "tiny", "--report", "found.txt"],
        ["faults"],
        ["--preset", "tiny", "--run", "."],
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:")
    assert error.count("\n") == 1


def test_a_network_that_stops_short(monkeypatch):
    """A finding of the first check does not keep the later ones from being run."""
    only(monkeypatch, "PANEL", "DECAY")
    monkeypatch.setitem(vars(diagnosing), "CHECKS", (("A", lambda _: BAD), *diagnosing.CHECKS))
    assert [report.tag for report in diagnose(healthy()).reports] == ["B", "PANEL", "DECAY"]
    assert at_least("x", 1.0, 0.0, "", "").fine
