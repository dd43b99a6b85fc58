"""Names and contents of files are kept as text: no markup, no control characters, no passwords."""

from __future__ import annotations

import csv
import io
import json
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from rismusic import load_sample
from rismusic.cli import main
from rismusic.cli.command import SafeConsole
from rismusic.io import write
from rismusic.report import write_report
from rismusic.report.page import fragment
from rismusic.text import command_line, csv_text, plain, printable, redact

NASTY = "[/foo] [red]x[/] :smile: \x1b[31mred\x1b[0m \u202e\r\n=1+1"


def test_plain_text_is_one_line_without_control_characters():
    text = plain(NASTY + "\udcff ± e\u0301 日本")
    assert "\n" not in text
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text
    assert "\\u202e\\r\\n" in text
    assert "\\udcff ± é 日本".replace("é", "e\u0301") in text.replace("\\u0301", "\u0301")
    assert printable("two\nlines\x07") == "two\nlines\\x07"
    assert len(plain("x" * 10**6)) < 2100


def test_the_console_takes_text_as_it_is(capsys):
    SafeConsole().print(NASTY, soft_wrap=True)
    said = capsys.readouterr().out
    assert "[/foo] [red]x[/] :smile: \\x1b[31mred" in said
    with pytest.raises(Exception, match="closing tag"):
        Console().print(NASTY)


@pytest.fixture
def nasty_recording(tmp_path):
    path = tmp_path / "[foo] \x1b[2J\nsecond line.npz"
    write(path, load_sample("ideal_10dB")[:2])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("[/foo].npy", b"")
        archive.writestr("\x1b]0;title\x07.npy", b"")
    return path


@pytest.mark.parametrize(
    "command", ["check", "check --json --no-fit", "locate --method bartlett --no-polish --sources 1"]
)
def test_names_of_files_and_fields_reach_the_terminal_as_text(command, nasty_recording, capsys):
    name, *options = command.split()
    assert main([name, str(nasty_recording), *options]) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "\x1b" not in text.replace("\x1b[0m", "")
        assert "\x07" not in text
    if "--json" in options:
        assert "[/foo]" in str(json.loads(said.out))


def test_an_error_about_such_a_file_is_one_line(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none \x1b[2J\n.h5")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\\x1b[2J\\n.h5" in said


def test_settings_beside_a_file_stay_toml(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a\n[scene]\nrange_min_m = 3.h5"
    arguments = ["simulate", "-o", str(path), "--scenes", "1", "--panel.rows", "2"]
    monkeypatch.setattr(sys, "argv", ["rismusic", *arguments])
    assert main(arguments) == 0
    settings = tomllib.loads(Path(f"{path}.toml").read_text("utf-8"))
    assert settings["scene"]["range_min_m"] == 0.5
    assert capsys.readouterr().err.count("\n") == 1


def test_cells_of_csv_are_no_formulas():
    text = csv_text(["name", "value"], [{"name": "=cmd()", "value": -1.5}, {"name": NASTY, "value": None}])
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == ["'=cmd()", "-1.5"]
    assert len(rows) == 3


def test_reports_escape_markup_and_control_characters(tmp_path):
    pytest.importorskip("matplotlib")
    from rismusic.hybrid import locate

    recording = load_sample("ideal_10dB")[:1]
    located = locate(recording, n_sources=1, method="bartlett", polish=False)
    path = tmp_path / "report.html"
    write_report(
        path,
        recording,
        located,
        name="<script>alert(1)</script>\x1b[2J\udcff",
        command="tune --storage postgresql://me:secret@host/db",
    )
    text = path.read_text("utf-8")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\\udcff" in text
    assert "secret" not in text
    assert "postgresql://me:***@host/db" in text
    assert fragment("row.html.j2", row=_Row(), linked=False)


class _Row:
    status = "ok"
    scene, estimated, true, hits, missed, false_alarms, probability, p_value = (
        0,
        1,
        None,
        None,
        None,
        None,
        None,
        0.5,
    )
    warnings = ("<b>\x1b</b>",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--storage", "postgresql://me:secret@host/db"],
        ["--storage=postgresql://me:se/cr:secret@secret@host/db"],
        ["--storage", 'postgresql://me:it\'s secret "quoted"@host/db'],
        ["--storage", "postgresql://host/db?user=me&password=secret&x=1"],
        ["--storage", "postgresql://host/db?sslpassword=secret&a=b"],
        ["--storage", "mysql://host/db?token=secret"],
    ],
)
def test_command_lines_are_kept_without_passwords(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rismusic", "tune", *arguments])
    kept = command_line()
    assert "secret" not in kept
    assert "host/db" in kept
    assert kept.replace("'", "").startswith("rismusic tune --storage")


def test_a_saved_traceback_has_no_password(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = ["bound", "--scenes", "1"]
    monkeypatch.setattr(sys, "argv", ["rismusic", "--x", "postgresql://me:secret@host/db"])

    def fails(self):
        raise RuntimeError("no role at postgresql://me:secret@host/db \x1b[2J")

    monkeypatch.setattr("rismusic.cli.bench.Bound.run", fails)
    assert main(arguments) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: internal error: RuntimeError: no role at postgresql://me:***@host/db")
    assert said.count("\n") == 1
    (saved,) = tmp_path.iterdir()
    text = saved.read_text("utf-8")
    assert "secret" not in text
    assert "Traceback" in text
    assert "\x1b" not in text


def test_a_traceback_that_cannot_be_saved(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    monkeypatch.setattr("rismusic.cli.bench.Bound.run", lambda self: 1 / 0)
    assert main(["bound", "--scenes", "1"]) == 70
    assert "The traceback could not be saved" in capsys.readouterr().err


def test_redact_keeps_the_rest():
    assert redact("see http://a.b/c, mail x@y.z") == "see http://a.b/c, mail x@y.z"
