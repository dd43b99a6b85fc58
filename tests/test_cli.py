from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from rismusic.cli import main
from rismusic.io import open_recording, read, write
from rismusic.simulation.simulator import simulate
from rismusic.spec import SystemSpec, load_spec

SMALL = ["--panel.rows", "4", "--panel.columns", "5", "--codebook.snapshots", "6", "--channel.antennas", "7"]


def run(*args):
    """Exit code of the command line, whether it returns it or leaves with it."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as leave:
        return leave.code


@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.mat"])
def test_simulate_is_the_twin_of_the_python_call(name, tmp_path):
    path = tmp_path / name
    assert run("simulate", "-o", path, "--scenes", 9, "--sources", 2, "--snr-db", 7, "--seed", 4, *SMALL) == 0
    spec = load_spec(tmp_path / f"{name}.toml")
    assert spec.sources == 2
    assert spec.panel.rows == 4
    expected = simulate(spec, scenes=9, seed=4)
    written = read(path)
    assert written.snapshots.equal(expected.snapshots)
    assert written.truth.azimuth.equal(expected.truth.azimuth.double())
    assert written.noise_variance.equal(expected.noise_variance.double())


def test_simulate_in_blocks_equals_simulate_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("rismusic.cli.simulate._BLOCK_NUMBERS", 4 * 20 * 6)
    assert run("simulate", "-o", tmp_path / "a.h5", "--scenes", 10, *SMALL) == 0
    expected = simulate(load_spec(tmp_path / "a.h5.toml"), scenes=10)
    assert read(tmp_path / "a.h5").snapshots.equal(expected.snapshots)


def test_config_and_flags(tmp_path):
    config = tmp_path / "system.toml"
    config.write_text(
        'sources = [2, 3]\none_link = true\n[panel]\nrows = 4\n[codebook]\nbits = "continuous"\n'
    )
    args = ["simulate", "-o", tmp_path / "a.h5", "--panel.rows", 6, "--scenes", 2, "--config", config]
    assert run(*args) == 0
    assert load_spec(tmp_path / "a.h5.toml") == SystemSpec(
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
    assert "a new file (or overwrite=True, --overwrite), found an existing one" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert run("simulate", "-o", path, "--scenes", 3, "--overwrite", *SMALL) == 0
    assert len(read(path)) == 3


def test_check_as_a_table_and_as_json(samples, capsys, tmp_path):
    assert run("check", samples / "ideal_10dB.h5", "--plot", tmp_path / "scene.png", "--scene", 2) == 0
    said = capsys.readouterr()
    assert "Nothing suspicious." in said.out
    assert "Fraunhofer distance" in said.out
    assert (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    assert run("check", samples / "one_link_20dB.mat", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["findings"] == []
    assert result["facts"]["scenes S"] == "10"


def test_locate_by_weights_of_ones_own(samples, capsys, tmp_path):
    small = tmp_path / "small.h5"
    write(small, read(samples / "ideal_10dB.h5")[:1])
    args = ["locate", small, "--method", "hybrid", "--sources", 1, "--hybrid.beta", 0.2]
    assert run(*args, "--weights", tmp_path / "none.safetensors") == 2
    assert "expected a readable file of weights, found no such file" in capsys.readouterr().err
    assert run(*args, "--range-max-m", 11.0) == 0
    assert "scene 0: located by sbl, not by the network: " in capsys.readouterr().err


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
        "scene,source,azimuth_deg,elevation_deg,range_m,azimuth_std_deg,elevation_std_deg,range_std_m,power_db"
    )
    rows = list(csv.DictReader(text))
    assert [(row["scene"], row["source"]) for row in rows] == [
        (str(s), str(k)) for s in range(3) for k in range(2)
    ]
    expected = locate(read(small), method="omp", sources=2)
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
    ("simulate -o {tmp}/none/a.h5 --scenes 1", "expected an existing folder to write to"),
    ("simulate -o {tmp} --scenes 1", "found a folder"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --panel.rows 0", "panel.rows: expected at least 1"),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --sources 5 2",
        "sources: expected the lower limit first, found 5, 2",
    ),
    ("simulate -o {tmp}/a.h5 --scenes 1 --snr-db nan", "snr_db: expected a finite number, found nan"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --seed -1", "seed: expected at least 0, found -1"),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --sources 40",
        "scene.separation_deg: 40 sources do not fit",
    ),
    (
        "simulate -o {tmp}/a.h5 --scenes 1 --config {tmp}/none.toml",
        "none.toml: expected a readable TOML file",
    ),
    ("simulate -o {tmp}/a.h5 --scenes 1 --config", "--config: expected a TOML file, found nothing"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --link-from {tmp}/none.h5", "none.h5"),
    ("simulate -o {tmp}/a.h5 --scenes many", "many"),
    ("simulate -o {tmp}/a.h5 --scenes 1 --frobnicate", "--frobnicate"),
    ("check {tmp}/none.h5", "none.h5"),
    ("check {tmp}", "{tmp}"),
    ("check {samples}/README.md", "README.md"),
    ("check {samples}/ideal_10dB.h5 --plot {tmp}/a.xyz", "expected a name ending in .png or .pdf or .svg"),
    (
        "check {samples}/ideal_10dB.h5 --plot {tmp}/a.png --scene 99",
        "scene: expected a scene from 0 to 23, found 99",
    ),
    ("check {samples}/one_link_20dB.mat --plot {tmp}/a.png", "truth: expected sources to draw"),
    ("locate {tmp}/none.h5", "none.h5: no such file"),
    ("locate {samples}/ideal_10dB.h5 --sources 99", "identify at most 14 sources"),
    ("locate {samples}/ideal_10dB.h5 --sources -1", "sources: expected at least 0, found -1"),
    ("locate {samples}/ideal_10dB.h5 --range-min-m 20", "range_max_m: expected at least range_min_m = 20"),
    ("locate {samples}/ideal_10dB.h5 --method esprit", "esprit"),
    ("locate {samples}/ideal_10dB.h5 -o {tmp}/a.txt", "expected a name ending in .csv or .json"),
    ("locate {samples}/ideal_10dB.h5 --plot {tmp}/a.png --scene 24", "scene: expected a scene from 0 to 23"),
    ("bound --scenes 2 -o {tmp}/a.xls", "expected a name ending in .csv or .json"),
    ("bound --scenes 2 --sources", "sources: expected at least one value, found none"),
    ("bound --kind joint", "joint"),
    ("", "simulate"),
]


@pytest.mark.parametrize(("command", "sentence"), BAD, ids=[command or "nothing" for command, _ in BAD])
def test_bad_input_is_a_sentence_and_exit_code_2(command, sentence, tmp_path, samples, capsys):
    args = command.format(tmp=tmp_path, samples=samples).split()
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert sentence.format(tmp=tmp_path) in " ".join(said.replace("│", " ").split())
    assert "Traceback" not in said
    assert "tyro-dummy" not in said
    assert list(tmp_path.iterdir()) == [], "nothing half written"


def test_interrupted_simulation_leaves_nothing(tmp_path, monkeypatch, capsys):
    from rismusic.io import RecordingWriter

    append = RecordingWriter.append

    def interrupted(self, block):
        append(self, block)
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordingWriter, "append", interrupted)
    assert run("simulate", "-o", tmp_path / "a.h5", "--scenes", 3, *SMALL) == 130
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
    done = call("check", "b.h5")
    assert done.returncode == 2
    assert done.stderr.startswith("error: b.h5: no such file")
