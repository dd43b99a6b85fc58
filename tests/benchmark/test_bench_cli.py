from __future__ import annotations

import json
import subprocess
import sys

from rismusic.benchmark.run import bench
from rismusic.benchmark.spec import BenchSpec
from rismusic.benchmark.summary import read_table
from rismusic.cli import main

TINY = (
    "--methods omp:conditional oracle:truth:conditional --sources 2 --snr-db 20 --scenes 2 --seed 3 "
    "--panel.rows 4 --panel.columns 5 --channel.antennas 7 --codebook.snapshots 6 --locate.oversampling 1.2"
)
SPEC = BenchSpec(
    methods=("omp:conditional", "oracle:truth:conditional"), sources=(2,), snr_db=(20.0,), scenes=2, seed=3,
    panel={"rows": 4, "columns": 5}, channel={"antennas": 7}, codebook={"snapshots": 6},
    locate={"oversampling": 1.2},
)  # fmt: skip


def run(*args):
    try:
        return main(["bench", *map(str, args)])
    except SystemExit as leave:
        return leave.code


def shown(capsys):
    """What was printed, whole and within 80 columns."""
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    return out


def test_the_command_is_the_twin_of_the_call(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert run(*TINY.split(), "-o", "own.json", "--workers", 1) == 0
    expected = bench(SPEC, workers=1)
    assert read_table(tmp_path / "bench" / "results.csv") == expected.rows
    records = json.loads((tmp_path / "own.json").read_text())
    assert [(one["method"], one["uses_truth"]) for one in records] == [
        ("omp:conditional", False), ("oracle:truth:conditional", True)
    ]  # fmt: skip
    out = shown(capsys)
    for word in (
        "oracle:truth:conditional",
        "search",
        "ambig.",
        "F1",
        "GOSPA",
        "/ CRB",
        "uses the true sources",
    ):
        assert word in out
    names = {path.name for path in (tmp_path / "bench").iterdir()}
    assert names == {
        "parts", "settings.toml", "results.csv", "timings.csv", "misses_none.png", "errors_none.png"
    }  # fmt: skip


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for args, sentence in (
        (
            "--methods esprit",
            "error: --methods: no method is named 'esprit'; known are hybrid, music, soft_music, ",
        ),
        ("--shard 4/4", "error: --shard: was removed in 0.2.0"),
        ("--workers 2 --cluster tcp://host:8786", "error: workers: cannot be combined with cluster"),
        ("-o table.txt", "error: table.txt: the file name must end in .csv or .json"),
        ("--scenes 0", "error: --scenes: expected at least 1, found 0"),
    ):
        assert run(*args.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith(sentence)
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_and_settings_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "system.toml").write_text("sources = [5]\n[scene]\nseparation_deg = 12.0\n")
    flags = [
        *TINY.replace("--scenes 2", "--scenes 1").split(),
        "--sweep",
        "symbols",
        "--config",
        "system.toml",
    ]
    assert run(*flags, "--out", "whole", "--workers", 1) == 0
    out = shown(capsys)
    for word in ("K = 2, 20 dB, symbols: missed in %", "gaussian", "qpsk", "constant", "error over bound"):
        assert word in out
    assert "separation_deg = 12.0" in (tmp_path / "whole" / "settings.toml").read_text()
    rows = read_table(tmp_path / "whole" / "results.csv")
    assert [row.point for row in rows] == ["gaussian", "gaussian", "qpsk", "qpsk", "constant", "constant"]
    assert run(*flags, "--out", "whole", "--seed", 4, "--resume") == 2
    assert "seed: must be 3 as in whole/settings.toml; got 4" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rismusic.benchmark.run.bench", interrupted)
    assert run("--out", tmp_path / "b") == 130
    assert "continue with --resume" in capsys.readouterr().err


def test_no_matplotlib_is_no_reason_to_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(*TINY.split(), "--out", tmp_path / "b", "--workers", 1) == 0
    assert "no plots: plot: plots need matplotlib, which is not installed" in capsys.readouterr().err


def test_what_the_command_line_reads_does_not_wait_for_torch():
    names = "rismusic.benchmark.spec, rismusic.parallel"
    code = f"import sys, {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
