from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from rich.console import Console

from rismusic.checks.recording import CheckFinding
from rismusic.cli import COMMANDS, main
from rismusic.cli.command import EVERYDAY, SafeConsole, json_record, note, progress_bar
from rismusic.cli.locate import results_table, scenes_table
from rismusic.cli.parser import parse, settings_of
from rismusic.devices import VARIABLE
from rismusic.errors import InputError
from rismusic.estimation.table import COLUMNS
from rismusic.hybrid import locate
from rismusic.io import open_recording, read, write
from rismusic.io.calibration import PanelCalibration
from rismusic.nn.spec import TrainSpec
from rismusic.registry import ESTIMATORS, register_estimator
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec, SystemSpec, read_spec
from rismusic.spectrum_map import spectrum
from rismusic.text import spans
from rismusic.tuning.spec import TuneSpec

SMALL = ["--panel.rows", "4", "--panel.columns", "5", "--codebook.snapshots", "6", "--channel.antennas", "7"]


def run(*args):
    """Exit code of the command line."""
    return main([str(arg) for arg in args])


@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.mat"])
def test_simulate_is_the_twin_of_the_python_call(name, tmp_path):
    path = tmp_path / name
    assert run("simulate", "-o", path, "--scenes", 9, "--sources", 2, "--snr-db", 7, "--seed", 4, *SMALL) == 0
    spec = read_spec(SystemSpec, tmp_path / f"{name}.toml")
    assert spec.sources == 2
    assert spec.panel.rows == 4
    expected = simulate(spec, scenes=9, seed=4)
    written = read(path)
    assert written.snapshots.equal(expected.snapshots)
    assert written.truth.azimuth.equal(expected.truth.azimuth.double())
    assert written.noise_variance.equal(expected.noise_variance.double())


def test_simulate_in_blocks_equals_simulate_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("rismusic.cli.recordings._BLOCK_NUMBERS", 4 * 20 * 6)
    assert run("simulate", "-o", tmp_path / "a.h5", "--scenes", 10, *SMALL) == 0
    expected = simulate(read_spec(SystemSpec, tmp_path / "a.h5.toml"), scenes=10)
    assert read(tmp_path / "a.h5").snapshots.equal(expected.snapshots)


def test_config_and_flags(tmp_path):
    config = tmp_path / "system.toml"
    config.write_text(
        'sources = [2, 3]\none_link = true\n[panel]\nrows = 4\n[codebook]\nbits = "continuous"\n'
    )
    args = ["simulate", "-o", tmp_path / "a.h5", "--panel.rows", 6, "--scenes", 2, "--config", config]
    assert run(*args) == 0
    assert read_spec(SystemSpec, tmp_path / "a.h5.toml") == SystemSpec(
        sources=(2, 3), one_link=True, panel={"rows": 6}, codebook={"bits": "continuous"}
    )
    assert run("bound", "--scenes", 3, "--sources", 1, "--snr-db", 10, f"--config={config}") == 0


def test_a_range_of_sources_and_of_snr(tmp_path):
    args = ["--scenes", "40", "--sources", "1", "3", "--snr-db", "-5", "20"]
    assert run("simulate", "-o", tmp_path / "a.h5", *args, *SMALL) == 0
    with open_recording(tmp_path / "a.h5") as file:
        assert file.sources_max == 3
        assert set(file[:].truth.active.sum(-1).tolist()) == {1, 2, 3}


def test_link_from_another_recording(tmp_path, samples):
    assert (
        run("simulate", "-o", tmp_path / "a.npz", "--scenes", 3, "--link-from", samples / "one_link_20dB.mat")
        == 0
    )
    written, given = read(tmp_path / "a.npz"), read(samples / "one_link_20dB.mat")
    assert written.channel.equal(given.channel)
    assert written.codes.equal(given.codes)
    code = run("simulate", "-o", tmp_path / "b.npz", "--scenes", 3, "--link-from", samples / "ideal_10dB.h5")
    assert code == 2


def test_existing_files_are_kept(tmp_path, capsys):
    path = tmp_path / "a.h5"
    path.write_text("precious")
    assert run("simulate", "-o", path, "--scenes", 3, *SMALL) == 2
    assert "the file exists already; pass overwrite=True (--overwrite)" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert run("simulate", "-o", path, "--scenes", 3, "--overwrite", *SMALL) == 0
    assert len(read(path)) == 3


def test_check_as_a_table_and_as_json(samples, capsys, tmp_path):
    assert run("check", samples / "ideal_10dB.h5", "--plot", tmp_path / "scene.png", "--scene", 2) == 0
    said = capsys.readouterr()
    assert "Nothing suspicious." in said.out
    assert "Fraunhofer distance" in said.out
    assert (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    assert run("check", samples / "one_link_20dB.mat", "--json", "--no-fit") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["findings"] == []
    assert result["facts"]["scenes S"] == "10"
    finding = CheckFinding("antenna_dead", math.inf, 10.0, "a receiver output is weak", "check its cable")
    assert json_record(finding)["value"] is None  # JSON has no infinity


def test_help_and_tables_fit_a_terminal_of_any_width(monkeypatch, capsys):
    for columns in ("1", "3", "40", "500"):
        monkeypatch.setenv("COLUMNS", columns)
        assert run("locate", "--help-all") == 0
        assert "--method" in capsys.readouterr().out
        assert run("bound", "--scenes", 2, "--sources", 1, "--snr-db", 10, *SMALL) == 0
        assert "10" in capsys.readouterr().out


def test_locate_by_weights_of_ones_own(samples, capsys, tmp_path):
    small = tmp_path / "small.h5"
    write(small, read(samples / "ideal_10dB.h5")[:1])
    args = ["locate", small, "--method", "hybrid", "--sources", 1, "--hybrid.beta", 0.2]
    assert run(*args, "--weights", tmp_path / "none.safetensors") == 2
    assert "cannot be read: no such file or directory\n" in capsys.readouterr().err
    assert run(*args, "--weights", "robus") == 2
    assert "robus: cannot be read: no such file or directory; weights are a file or one of ideal, robust" in (
        capsys.readouterr().err
    )
    assert run(*args, "--range-max-m", 11.0) == 0
    assert "scene 0: located by sbl, not by the network: " in capsys.readouterr().err


def test_a_warning_of_several_scenes_is_one_line(capsys, tmp_path):
    simulated = simulate(scenes=4, sources=1, snr_db=20, panel={"rows": 4, "columns": 4})
    write(tmp_path / "a.h5", simulated)
    assert run("locate", tmp_path / "a.h5", "--sources", 1, "--sources-max", 5) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "another panel" in line]
    assert len(said) == 1
    assert said[0].startswith("scenes 0 to 3: located by sbl")


def test_tensors_are_printed_as_their_shapes():
    recording = simulate(scenes=2, sources=1, panel={"rows": 4, "columns": 4})
    found = spectrum(recording, method="music", n_sources=1)
    shapes = [f"{name}={list(getattr(found, name).shape)}" for name in ("values", "azimuth_deg")]
    assert repr(found).startswith(f"SpectrumMap({', '.join(shapes)}, elevation_deg=[")
    assert "method='music'" in repr(found)
    assert "u_x=[" in repr(found.grid)
    assert "_steering" not in repr(found.grid)


def test_spans():
    assert spans([4]) == "4"
    assert spans([0, 1]) == "0 and 1"
    assert spans([0, 3, 7, 8, 9]) == "0, 3 and 7 to 9"
    assert spans([0, 1, 2, 5, 6]) == "0 to 2, 5 and 6"


def test_locate_as_a_table_csv_and_json(samples, capsys, tmp_path):
    from rismusic.hybrid import locate

    small = tmp_path / "small.h5"
    write(small, read(samples / "ideal_10dB.h5")[:3])
    args = ["locate", small, "--method", "omp", "--sources", 2]
    assert run(*args, "--plot", tmp_path / "scene.png") == 0
    said = capsys.readouterr()
    assert "true" in said.out
    assert "true sources hit" in said.err
    assert (tmp_path / "scene.png").exists()
    assert run(*args, "-o", tmp_path / "out.csv") == 0
    text = (tmp_path / "out.csv").read_text().splitlines()
    assert text[0] == (
        "scene,source,azimuth_deg,elevation_deg,range_m,azimuth_std_deg,elevation_std_deg,range_std_m,power_db,range_lower_m,"
        "existence_probability,status"
    )
    rows = list(csv.DictReader(text))
    assert [(row["scene"], row["source"]) for row in rows] == [
        (str(s), str(k)) for s in range(3) for k in range(2)
    ]
    expected = locate(read(small), method="omp", n_sources=2)
    assert float(rows[3]["azimuth_deg"]) == pytest.approx(float(expected.sources.azimuth[1, 1].rad2deg()))
    assert float(rows[3]["range_std_m"]) == pytest.approx(float(expected.std[1, 1, 2]))
    assert run(*args, "-o", tmp_path / "out.json") == 0
    scenes = json.loads((tmp_path / "out.json").read_text())["scenes"]
    assert [scene["scene"] for scene in scenes] == [0, 1, 2]
    assert scenes[1]["settings"]["method"] == "omp"
    assert isinstance(scenes[1]["warnings"], list)
    assert scenes[1]["sources"][1]["azimuth_deg"] == pytest.approx(float(rows[3]["azimuth_deg"]))


def test_check_prints_findings(tmp_path, capsys):
    run("simulate", "-o", tmp_path / "a.npz", "--scenes", 3, *SMALL, "--panel.spacing-wavelengths", 2)
    assert run("check", tmp_path / "a.npz") == 0
    assert "elements_coarse" in capsys.readouterr().out


def test_bound_table_csv_json_and_plot(tmp_path, capsys):
    args = ["bound", "--sources", 1, 2, "--snr-db", 0, 20, "--scenes", 5, *SMALL]
    assert run(*args, "-o", tmp_path / "b.csv", "--plot", tmp_path / "b.pdf") == 0
    said = capsys.readouterr()
    assert "Cramer-Rao" in said.out
    assert "written" not in said.out, "notes are no data"
    rows = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert [(row["sources"], row["snr_db"]) for row in rows] == [
        ("1", "0.0"),
        ("1", "20.0"),
        ("2", "0.0"),
        ("2", "20.0"),
    ]
    ratio = float(rows[0]["azimuth_std_deg"]) / float(rows[1]["azimuth_std_deg"])
    assert ratio == pytest.approx(10, rel=1e-3), "20 dB are a factor of 10, on the same scenes"
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    assert run(*args, "-o", tmp_path / "b.json", "--kind", "unconditional") == 0
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["kind"] == "unconditional"
    assert len(result["rows"]) == 4


BAD = [
    ("simulate -o {tmp}/a.h5 --scenes 0", "scenes: expected at least 1, found 0"),
    ("simulate -o {tmp}/a.txt --scenes 1", ".txt"),
    ("simulate -o {tmp}/none/a.h5 --scenes 1", "none does not exist"),
    ("simulate -o {tmp} --scenes 1", "is a folder"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --panel.rows 0", "panel.rows: expected at least 1"),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --sources 5 2",
        "sources: give the lower limit first; got 5, 2",
    ),
    ("simulate -o {tmp}/a.h5 --scenes 1 --snr-db nan", "--snr-db: expected a finite number, found nan"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --seed -1", "seed: expected at least 0, found -1"),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --sources 40",
        "scene.separation_deg: 40 sources do not fit",
    ),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --config {tmp}/none.toml",
        "none.toml: cannot be read: no such file",
    ),
    ("simulate -o {tmp}/a.h5 --scenes 1 --config", "--config: a value is missing"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --link-from {tmp}/none.h5", "none.h5"),
    ("simulate -o {tmp}/a.h5 --scenes many", "many"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --frobnicate", "--frobnicate"),
    ("check {tmp}/none.h5", "none.h5"),
    ("check {tmp}", "{tmp}"),
    ("check {samples}/README.md", "README.md"),
    ("check {samples}/ideal_10dB.h5 --plot {tmp}/a.xyz", "the file name must end in .png, .pdf or .svg"),
    (
        "check {samples}/ideal_10dB.h5 --plot {tmp}/a.png --scene 99",
        "--scene: the recording has scenes 0 to 23; got 99",
    ),
    (
        "check {samples}/one_link_20dB.mat --plot {tmp}/a.png",
        "one_link_20dB.mat: has no true positions to plot",
    ),
    ("locate {tmp}/none.h5", "none.h5: no such file"),
    ("locate {samples}/ideal_10dB.h5 --sources 99", "identify at most 14 sources; got 99"),
    ("locate {samples}/ideal_10dB.h5 --sources -1", "sources: expected at least 0, found -1"),
    ("locate {samples}/ideal_10dB.h5 --range-min-m 20", "--range-max-m: expected at least range_min_m = 20"),
    (
        "locate {samples}/ideal_10dB.h5 --range-min-m 1e-10",
        "--range-min-m: expected 1e-06 to 1e+12 m, found 1e-10",
    ),
    (
        "locate {samples}/ideal_10dB.h5 {samples}/ideal_0dB.h5 -o {tmp}/t.csv",
        "t.csv is the name of a file",
    ),
    (
        "locate {samples}/ideal_10dB.h5 --fuse {samples}/ideal_10dB.h5",
        "ideal_10dB.h5 is fused already; each panel counts once",
    ),
    ("locate {samples}/ideal_10dB.h5 --method esprit", "esprit"),
    ("locate {samples}/ideal_10dB.h5 -o {tmp}/a.txt", "the file name must end in .csv or .json"),
    (
        "locate {samples}/ideal_10dB.h5 --plot {tmp}/a.png --scene 24",
        "--scene: the recording has scenes 0 to 23",
    ),
    ("bound --scenes 2 -o {tmp}/a.xls", "the file name must end in .csv or .json"),
    ("bound --scenes 2 --sources", "--sources: give at least one value"),
    ("bound --kind joint", "--kind: expected 'conditional' or 'unconditional', found 'joint'"),
    ("locate", "FILE: is required; see rismusic locate --help"),
    ("simulate --scenes 2", "--output: is required"),
    ("locate a.h5 --sources many", "--sources: expected an integer or 'auto', found 'many'"),
    ("locate a.h5 --figure-width big", "--figure-width: expected a number, found 'big'"),
    ("simulate -o {tmp}/a.h5 --scenes 1.5", "--scenes: expected an integer, found 1.5"),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --codebook.bits x",
        "expected an integer or 'continuous', found 'x'",
    ),
    ("locate a.h5 --hybrid.beta 2", "--hybrid.beta: expected at most 1, found 2"),
    ("locate a.h5 b.h5", "--output: several recordings (a.h5, b.h5) need a folder"),
    ("locate a.h5 --range-max-m", "--range-max-m: a value is missing"),
    ("locate a.h5 --rang-max-m 3", "--rang-max-m: unknown option; did you mean --range-max-m"),
    ("check a.h5 --rang-max-m 3", "--rang-max-m: unknown option"),
    ("locat a.h5", "unknown command 'locat'; did you mean locate?"),
    ("xyzzy", "unknown command 'xyzzy'; the commands are simulate, check,"),
    ("locate a.h5 --hybrid.belief 1", "--hybrid.belief: was renamed to --hybrid.spatial-prior in 0.2.0"),
    ("locate a.h5 --hybrid.no-own-list", "was renamed to --hybrid.network-sources in 0.2.0"),
    ("bench --locate.hybrid.doubt 0", "was renamed to --locate.hybrid.recheck-p-value in 0.2.0"),
    ("locate a.h5 --hybrid.peak-threshold 1", "--hybrid.peak-threshold: was removed in 0.2.0"),
    ("tune --fresh-scenes 3", "--fresh-scenes: was renamed to --test-scenes in 0.2.0"),
    ("doctor mine.py", "is a Python script; to check its training loop, run the loop there within"),
    (
        "train --resume run --epochs 3",
        "(found --epochs); to train further with others, start from its weights",
    ),
    ("doctor faults", "doctor faults: was removed in 0.2.0; run python benchmarks/doctor_faults.py"),
    ("locate {samples}/ideal_10dB.h5 --device cuda:77", "device: 'cuda:77' is not available on this machine"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --device hpu", "device: 'hpu' is not available on this machine"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --device gpu", "device: 'gpu' is not available on this machine"),
    ("", "simulate"),
]


@pytest.mark.parametrize(("command", "sentence"), BAD, ids=[command or "nothing" for command, _ in BAD])
def test_bad_input_is_a_sentence_and_exit_code_2(command, sentence, tmp_path, samples, capsys):
    args = command.format(tmp=tmp_path, samples=samples).split()
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert sentence.format(tmp=tmp_path) in " ".join(said.replace("│", " ").split())
    assert "Traceback" not in said
    assert said.count("\n") == 1
    for internal in ("typing.", "Annotated", "FieldInfo", "NoneType", "<class", "Spec("):
        assert internal not in said
    assert list(tmp_path.iterdir()) == [], "nothing half written"


CONFIGS = [
    ("simulate -o a.h5 --scenes 1", "rows = 3", "rows: unknown setting; did you mean panel.rows?"),
    (
        "simulate -o a.h5 --scenes 1",
        "[panel]\nrow = 3",
        "panel.row: unknown setting; did you mean panel.rows?",
    ),
    ("simulate -o a.h5 --scenes 1", "[panel]\nrows = 0", "panel.rows: expected at least 1, found 0"),
    ("simulate -o a.h5 --scenes 1", "self = 1", "self: unknown setting"),
    ("bound", "self = 1", "self: unknown setting"),
    ("bound", "config = 'x'", "config: unknown setting"),
    ("locate a.h5", "[hybrid]\ndoubt = 0.1", "hybrid.doubt: was renamed to hybrid.recheck_p_value in 0.2.0"),
    ("locate a.h5", "[hybrid]\nbeta = 2.0", "hybrid.beta: expected at most 1, found 2.0"),
    ("bench", "[locate.hybrid]\nsteps = 3", "was renamed to locate.hybrid.max_evaluations in 0.2.0"),
    ("locate a.h5", "plugins = ['.']", "plugins: '.' is not the name of a module"),
    ("locate a.h5", "unknowns = []", "unknowns: expected at least one value, found []"),
    ("locate a.h5", "panel_error = 1e300", "panel_error: expected at most 10"),
    ("bench", "scenes = 'few'", "scenes: expected an integer, found 'few'"),
    ("check a.h5", "fits = false", "fits: unknown setting; did you mean fit?"),
    ("train", "[network]\nwidths = 8", "network.widths: unknown setting; did you mean network.width?"),
    ("tune", "trialss = 8", "trialss: unknown setting; did you mean trials?"),
    ("doctor", "self = 8", "self: unknown setting"),
]


@pytest.mark.parametrize(("command", "text", "sentence"), CONFIGS)
def test_a_bad_configuration_is_one_sentence_with_file_and_key(command, text, sentence, tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert run(*command.split(), "--config", path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_typed_options_win_over_the_configuration(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "method = 'omp'\nsources = 3\npolish = false\noutput = 'a.csv'\n"
        "[hybrid]\nbeta = 0.5\nrelax_sweeps = 1\n"
    )
    made = parse(
        ["locate", "a.h5", "--hybrid.beta", "0.25", "--config", str(path), "--sources=auto"], COMMANDS
    )
    assert made.settings == LocateSpec(
        method="omp", polish=False, hybrid={"beta": 0.25, "relax_sweeps": 1}, sources="auto"
    )
    assert (made.output, made.file) == (Path("a.csv"), Path("a.h5"))
    # A bad value in the file does not matter where an option replaces it.
    path.write_text("[hybrid]\nbeta = 2.0\n")
    assert parse(["locate", "a.h5", "--hybrid.beta", "0", "--config", str(path)], COMMANDS)
    # Of two bad values the one that counts is named.
    with pytest.raises(InputError, match=r"^--hybrid.beta: expected at most 1, found 3$"):
        parse(["locate", "a.h5", "--hybrid.beta", "3", "--config", str(path)], COMMANDS)


@pytest.mark.parametrize(
    ("command", "idle"),
    [
        ("locate a.h5 --method omp --weights robust --hybrid.beta 1", "--weights --hybrid.beta"),
        ("locate a.h5 --weights robust --hybrid.beta 1", ""),
        (
            "locate a.h5 --scene 1 --figure-width 80 --report-scenes 2",
            "--scene --figure-width --report-scenes",
        ),
        ("locate a.h5 --scene 1 --figure-width 80 --plot a.png --report a.html --report-scenes 2", ""),
        ("locate a.h5 --sources 2 --sources-max 3", "--sources-max"),
        ("locate a.h5 --sources auto --sources-max 3", ""),
        ("locate a.h5 --method omp --no-polish", "--no-polish"),
        ("locate a.h5 --method omp --polish", ""),
        ("locate a.h5 --method music --no-polish", ""),
        ("check a.h5 --scene 1", "--scene"),
        ("calibrate a.h5 -o b.h5 --sources 2 --sources-max 3", "--sources-max"),
        ("calibrate a.h5 -o b.h5 --method omp --known-positions c.csv --sources 2", "--method --sources"),
        ("simulate -o a.h5 --scenes 1 --mat-version 5", "--mat-version"),
        ("simulate -o a.mat --scenes 1 --mat-version 5", ""),
        (
            "simulate -o a.h5 --scenes 1 --channel.kind direct --channel.antennas 3 --codebook.bits 2 "
            "--codebook.snapshots 2",
            "--channel.antennas --codebook.bits",
        ),
        ("bound --figure-width 80 --budget.bandwidth-hz 1e6", "--figure-width --budget.bandwidth-hz"),
        ("bound --power-dbm 3 --budget.bandwidth-hz 1e6", ""),
        ("plan --target-m 1 --range-m 3 --budget.bandwidth-hz 1e6", ""),
        ("plan --target-m 1 --range-m 3 --snr-db 3 --budget.bandwidth-hz 1e6", "--budget.bandwidth-hz"),
        ("plan --target-m 1 --range-m 3 --channel.kind direct --bits 2", "--bits"),
    ],
)
def test_options_without_effect_are_named(command, idle, capsys):
    parse(command.split(), COMMANDS)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" has no effect: ")[0] for line in said] == idle.split()


def test_an_estimator_of_ones_own_may_use_weights(capsys):
    register_estimator("with_network", lambda spec: None)
    parse(["locate", "a.h5", "--method", "with_network", "--weights", "robust", "--no-polish"], COMMANDS)
    ESTIMATORS.unregister("with_network")
    assert not capsys.readouterr().err


def test_groups_keep_their_own_defaults():
    """Those of tune differ from those of train."""
    made = parse(["tune", "--training.batch", "32", "--locate.sources-max", "4"], COMMANDS)
    assert made.settings == TuneSpec(
        training=TrainSpec.search().replace(batch=32), locate=LocateSpec(method="hybrid", sources_max=4)
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_help_all_lists_every_setting(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rismusic {name}")
    assert len(text.splitlines()) <= 45
    assert max(map(len, text.splitlines())) <= 80
    assert run(name, "--help-all") == 0
    everything = capsys.readouterr().out
    settings = list(settings_of(COMMANDS[name]))
    assert EVERYDAY[name]
    assert set(EVERYDAY[name]) <= {one.path for one in settings}
    for one in settings:
        assert one.field.description, one.path
        if not (one.path == COMMANDS[name].POSITIONAL and one.field.is_required()):
            assert one.flag in everything or one.negative in everything, one.path
    for internal in ("typing.", "Annotated", "None", "<class"):
        assert internal not in everything


def test_help_of_the_program_names_the_commands(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert run("locat", "--help") == 2


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom rismusic.cli import main, COMMANDS\n"
        "for name in COMMANDS:\n    assert main([name, '--help']) == main([name, '--help-all']) == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["doctor", "check"])
def test_a_path_that_the_system_refuses_is_one_sentence(command, capsys):
    assert run(command, "sample:" + "a" * 300) == 2
    assert "cannot be used: file name too long" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk_is_one_sentence(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["--version"]) == 2
    assert "the output cannot be written: no space left on the disk" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help >&-", 0),
        ("--help <&- >&- 2>&-", 0),
        ("check samples/ideal_10dB.h5 --no-fit >&- 2>&-", 0),
        ("--help 1</dev/null", 2),
        ("check samples/ideal_10dB.h5 --no-fit 1</dev/null", 2),
        ("bogus 2</dev/null", 2),
        ("bogus 2>/dev/full", 2),
        ("--help >/dev/full 2>/dev/full", 2),
    ],
)
def test_streams_that_are_closed_or_take_nothing_do_not_change_what_a_command_does(command, code):
    done = subprocess.run(
        f"{sys.executable} -m rismusic {command}", shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "internal" not in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    # else what a C library or a worker process prints would end up in the file
    program = "from rismusic.cli import main; main(['--version']); n = open('file').fileno(); "
    program += "print(n, file=open('n', 'w'))"
    (tmp_path / "file").touch()
    subprocess.run(f'{sys.executable} -c "{program}" <&- >&- 2>&-', shell=True, cwd=tmp_path, check=True)
    assert int((tmp_path / "n").read_text()) > 2


def test_characters_that_the_terminal_lacks_are_replaced(samples, tmp_path, monkeypatch):
    write(tmp_path / "one.h5", read(samples / "direct_10dB.h5")[:1])
    arguments = ["locate", str(tmp_path / "one.h5"), "--method", "omp", "--sources", "1"]
    with monkeypatch.context() as patched:  # as with PYTHONIOENCODING=ascii
        patched.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding="ascii"))
        assert main(arguments) == 0
        sys.stdout.flush()
        assert b"?" in sys.stdout.buffer.getvalue()
    posix = {"LC_ALL": "xx_YY.bad", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = [sys.executable, "-m", "rismusic", *arguments]
    done = subprocess.run(program, env={**os.environ, **posix}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout


def test_a_reader_of_a_table_that_has_gone_is_no_error(samples):
    program = [sys.executable, "-m", "rismusic", "check", samples / "ideal_10dB.h5", "--no-fit"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_what_does_not_fit_a_recording_is_refused_with_the_name_of_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    system = {"panel": {"rows": 3, "columns": 3}, "channel": {"antennas": 4}, "codebook": {"snapshots": 4}}
    recording = simulate(SystemSpec(**system), scenes=2)
    write("one.h5", recording)
    write("constant.h5", replace(recording, symbols="constant"))
    posed = replace(recording, pose=torch.eye(4, dtype=torch.float64))
    write("posed.h5", posed)
    write("second.h5", posed)
    write("piloted.h5", replace(posed, symbols="known", pilots=torch.ones(4, 5, dtype=torch.complex64)))
    elements = recording.elements
    response = torch.ones(len(elements), dtype=torch.complex128)
    other = PanelCalibration(
        wavelength=recording.wavelength,
        elements=2 * elements,
        response=response,
        response_std=0 * response.real,
        offsets=torch.zeros_like(elements),
    )
    assert repr(other) == "PanelCalibration(9 elements, 0 dead, remaining error 0)"
    other.save("cal.h5")
    lines = ["scene,azimuth_deg,elevation_deg,range_m", *(f"0,{number},0,2" for number in range(9))]
    Path("known.csv").write_text("\n".join(lines))
    for command, named in (
        ("calibrate constant.h5 -o out.h5", "constant.h5"),
        ("calibrate one.h5 -o out.h5 --known-positions known.csv", "known.csv"),
        ("locate one.h5 --calibration cal.h5 --method omp", "cal.h5"),
    ):
        assert main(command.split()) == 2
        assert f"(in {named})" in capsys.readouterr().err
    write("element.h5", simulate(SystemSpec(**{**system, "panel": {"rows": 1, "columns": 1}}), scenes=2))
    write("element_posed.h5", replace(read("element.h5"), pose=posed.pose))
    for command in ("locate element.h5 --method omp", "calibrate element.h5 -o out.h5 --sources 1"):
        assert main(command.split()) == 2
        assert "elements: a single element receives the same" in capsys.readouterr().err
    assert main(["check", "element.h5"]) == 0
    said = capsys.readouterr()
    assert "a single element has no direction" in said.out
    assert "inf" not in said.out + said.err
    for command, sentence in (
        ("posed.h5 --fuse element_posed.h5", "element_posed.h5: elements: a single element receives"),
        ("piloted.h5 --fuse posed.h5", "posed.h5: pilots: missing"),
        ("posed.h5 --fuse piloted.h5", "posed.h5: pilots: missing"),
        ("posed.h5 --fuse one.h5", "one.h5: pose: missing"),
        ("posed.h5 --fuse second.h5 --symbols correlated", "posed.h5: symbols: must not be correlated"),
    ):
        assert main(["locate", *command.split(), "--method", "omp"]) == 2
        assert f"error: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["symbols", "pattern_exponent"])
def test_a_damaged_hdf5_file_is_described_without_the_words_of_the_library(name, tmp_path, samples, capsys):
    path = tmp_path / "a.h5"
    path.write_bytes((samples / "ideal_10dB.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs[name] = h5py.Empty("f8")
    assert main(["check", str(path)]) == 2
    assert "must be an attribute that is a text or a real number" in capsys.readouterr().err
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(192)
    path.write_bytes(content)
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err.endswith("is not a complete HDF5 file\n")


def refused_by_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 139.80 GiB")


def refused_to_torch():
    raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 104857600 bytes.")


def refused_to_a_process():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("ask", "size"),
    [
        (lambda: torch.empty(10**15), " for 3,725,290.3 GiB at once"),
        (refused_to_torch, " for 100.0 MiB at once"),
        (lambda: np.empty(10**14), " for 728 TiB at once"),
        (lambda: bytes(10**15), ""),
        (refused_by_cuda, " for 20.00 GiB at once"),
        (refused_to_a_process, ""),
    ],
)
def test_too_little_memory_is_one_sentence(ask, size, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("rismusic.cli.bench.Bound.run", lambda _: ask())
    assert main(["bound"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: memory: there is not enough{size}. Less is needed with a smaller {VARIABLE} "
    )
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_one_sentence_and_a_file_with_the_traceback(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("rismusic.cli.recordings.Check.run", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("check", "a.h5") == 70
    said = capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    assert said == (
        f"error: internal error: RuntimeError: two lines. The traceback is in {path}; please report it.\n"
    )
    assert "in broken" in path.read_text()


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("check {file} --plot a.png", "matplotlib", "report"),
        ("locate {file} --plot a.png", "matplotlib", "report"),
        ("locate {file} --report a.html", "jinja2", "report"),
        ("bound --plot a.png", "matplotlib", "report"),
        ("bench --report a.html", "jinja2", "report"),
        ("bench --figure-width 80", "matplotlib", "report"),
        ("doctor --report a.html", "jinja2", "report"),
        ("train --tensorboard", "tensorboard", "tensorboard"),
        ("tune", "optuna", "tune"),
    ],
)
def test_extras_are_checked_before_work_starts(
    command, package, extra, samples, tmp_path, monkeypatch, capsys
):
    from importlib.util import find_spec

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "rismusic.cli.command.find_spec", lambda name: None if name == package else find_spec(name)
    )
    assert run(*command.format(file=samples / "ideal_10dB.h5").split()) == 2
    assert capsys.readouterr().err == (
        f"error: {package}: is not installed; run: pip install 'rismusic[{extra}]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_locate_names_the_method_used_and_gives_no_bound_for_unpolished_peaks(
    samples, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "110")
    small = tmp_path / "small.h5"
    write(small, read(samples / "ideal_10dB.h5")[:2])
    assert run("locate", small, "--method", "music", "--sources", 1, "--no-polish") == 0
    text = capsys.readouterr().out
    assert "music: peaks, not polished" in text
    assert "±" not in text
    assert "P(K)" not in text
    assert run("locate", small, "--weights", tmp_path / "none.safetensors", "--method", "sbl") == 0
    text = capsys.readouterr().out
    assert "sbl: ± Cramer-Rao bound" in text
    assert "P(K)" in text
    assert run("locate", small, "--method", "hybrid", "--sources", 1, "--range-max-m", 11) == 0
    assert "sbl instead of hybrid (the warnings say why): ± Cramer-Rao bound" in capsys.readouterr().out


def test_the_table_shows_far_sources_warnings_and_scenes_without_sources(samples, capsys):
    recording = read(samples / "ideal_10dB.h5")[:3]
    found = locate(recording, method="omp", n_sources=1)
    distance = found.sources.range.clone()
    distance[0] = math.inf
    counts = torch.tensor([1, 0, 1])[:, None].bool()
    sources = replace(found.sources, range=distance).each(lambda value: value.where(counts, math.nan))
    probability = torch.tensor([[0.1, 0.9], [0.75, 0.25], [0.0, 1.0]])
    changed = replace(
        found, sources=sources, n_sources_probability=probability, warnings=[["a", "b"], [], []],
        p_value=torch.tensor([math.nan, 0.25, 0.5]), method=["omp", "sbl", "omp"],
    )  # fmt: skip
    Console(width=80).print(results_table(changed, []))
    lines = capsys.readouterr().out.splitlines()
    assert "omp in 2 scenes, sbl in 1 scene: ± Cramer-Rao bound" in lines[0]
    rows = [line.split() for line in lines if line.split()[:1] in (["0"], ["1"], ["2"])]
    assert "far field" in next(line for line in lines if line.split()[:1] == ["0"])
    assert rows[1] == ["1", "no", "source"]
    Console(width=80).print(scenes_table(changed))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.split()[:1] in (["0"], ["1"], ["2"])] == [
        ["0", "1", "0.90", "-", "ok", "2", "omp"],
        ["1", "0", "0.75", "0.25", "ok", "0", "sbl"],
        ["2", "1", "1.00", "0.5", "ok", "0", "omp"],
    ]


def test_locate_writes_a_header_alone_where_there_is_no_source(samples, tmp_path):
    small = tmp_path / "small.h5"
    write(small, read(samples / "ideal_10dB.h5")[:2])
    assert run("locate", small, "--method", "omp", "--sources", 0, "-o", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_interrupted_simulation_leaves_nothing(tmp_path, monkeypatch, capsys):
    """Of a format that is put together at the end; for .h5 see ``files/test_simulate_resume.py``."""
    from rismusic.io import RecordingWriter

    append = RecordingWriter.append

    def interrupted(self, block):
        append(self, block)
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordingWriter, "append", interrupted)
    assert run("simulate", "-o", tmp_path / "a.npz", "--scenes", 3, *SMALL) == 130
    assert list(tmp_path.iterdir()) == []


def test_as_a_program(tmp_path):
    def call(*args):
        return subprocess.run(
            [sys.executable, "-m", "rismusic", *args], capture_output=True, text=True, cwd=tmp_path
        )

    assert call("--version").stdout.startswith("rismusic ")
    done = call("simulate", "-o", "a.h5", "--scenes", "2", *SMALL)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    first = (tmp_path / "a.h5.toml").read_text().splitlines()[0]
    assert first.startswith("# rismusic")
    assert "simulate -o a.h5 --scenes 2 --panel.rows 4" in first
    done = call("simulate", "-o", "a.h5", "--scenes", "2")  # refused before torch is imported
    assert done.returncode == 2
    assert done.stderr.startswith("error: a.h5: the file exists already")


@pytest.mark.parametrize("value", ["-1e1", "-10", "-.1E2", "-1.0e+1"])
def test_negative_numbers_in_any_notation(value):
    assert parse(["bound", "--snr-db", value], COMMANDS).snr_db == (-10.0,)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("simulate --scenes 1 -o .", "is a folder; give the name of a file"),
        ("simulate --scenes 1 -o /", "is a folder; give the name of a file"),
        ("locate x.h5 -o .", "is a folder; give the name of a file"),
        ("simulate --scenes 1 -o x.h5 --device meta", "'meta' is not available"),
        ("bench --workers 2147483648 --out b", "must be from 1 to 1024 processes"),
    ],
)
def test_what_a_fuzz_found_is_a_sentence(command, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_warnings_of_the_library_are_notes(monkeypatch, capsys):
    log = logging.getLogger("rismusic.locate")
    monkeypatch.setattr("rismusic.cli._run", lambda args: log.warning("a [b]%s", "c") or 0)
    for _ in range(2):
        assert main(["locate"]) == 0
    log.warning("afterwards")
    assert capsys.readouterr().err == "a [b]c\n" * 2


def test_a_note_is_printed_above_a_progress_bar(monkeypatch):
    console = SafeConsole(stderr=True)
    console.file, console._force_terminal = StringIO(), True
    monkeypatch.setattr("rismusic.cli.command.SafeConsole", lambda stderr: console)
    with progress_bar() as bar:
        bar.add_task("working", total=2)
        monkeypatch.undo()
        note("a [b]c")
    assert "a [b]c\n" in console.file.getvalue()


def test_a_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["bound", "--scenes", "1"]) == 2
    assert capsys.readouterr().err == "error: the current folder no longer exists; change to another one\n"
