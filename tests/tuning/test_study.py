"""A complete search on a small system: its files, resuming it, and reproducing its cost."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import optuna
import pytest
from tuning_case import SPACE, SPEC

from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import train
from rismusic.spec import LocateSpec, read_spec
from rismusic.tuning.objective import evaluate, scenes_for
from rismusic.tuning.study import pruner, sampler, tune

pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(scope="module")
def searched(quick_validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    (folder / "space.toml").write_text(SPACE)
    spec = SPEC.replace(space=str(folder / "space.toml"))
    return spec, tune(
        spec,
        out=folder / "out",
        trials=2,
        device="cpu",
        command="rismusic tune --storage postgresql://me:secret@host/db",
    )


def test_best_toml_reproduces_the_score(searched, tmp_path):
    spec, tuned = searched
    training = read_spec(TrainSpec, tuned.folder / "best.toml")
    assert training == tuned.training
    trained = train(training, out=tmp_path / "again", device="cpu")
    locate = read_spec(LocateSpec, tuned.folder / "locate.toml")
    weights = str(trained.folder / "best.safetensors")
    assert locate.weights != weights
    scenes = scenes_for("objective", training.system, spec.seed, spec.objective_scenes, "cpu")
    assert evaluate(scenes, locate.replace(weights=weights)) == tuned.evaluation
    assert evaluate(scenes, locate) == tuned.evaluation


def test_files(searched):
    _, tuned = searched
    rows = list(csv.DictReader((tuned.folder / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert {row["network.width"] for row in rows} <= {"8", "16"}
    assert [float(row["cost"]) for row in rows] == [trial.value for trial in tuned.trials]
    finals = list(csv.DictReader((tuned.folder / "finals.csv").read_text().splitlines()))
    assert [row["settings"] for row in finals] == ["default", "default, inference tuned", tuned.best.name]
    page = (tuned.folder / "report.html").read_text()
    for sentence in tuned.sentences():
        assert sentence.split(":")[0] in page
    assert "postgresql://me:***@host/db" in page
    assert "secret" not in page
    assert (tuned.folder / "history.png").stat().st_size > 10_000


def test_resumed_without_anything_left_to_do(searched):
    _, tuned = searched
    before = (tuned.folder / "trials.csv").read_text()
    again = tune(out=tuned.folder, resume=True, device="cpu")
    assert (tuned.folder / "trials.csv").read_text() == before
    assert again.comparison == tuned.comparison
    assert again.training == tuned.training


def test_an_existing_study_is_not_begun_again(searched, tmp_path):
    spec, tuned = searched
    with pytest.raises(InputError, match="already contains a study"):
        tune(spec, out=tuned.folder)
    database = str(tuned.folder / "study.db")
    with pytest.raises(InputError, match="study: 'tune' exists in this storage with other settings"):
        tune(spec.replace(inference_trials=5), out=tmp_path, storage=database, trials=2)
    with pytest.raises(InputError, match="study: 'tune' exists in this storage with other settings"):
        tune(spec, out=tmp_path, storage=database, trials=3)
    with pytest.raises(InputError, match="resume: cannot be combined with settings"):
        tune(spec, out=tuned.folder, resume=True)
    with pytest.raises(InputError, match="study: there is no study 'other' to resume; the storage has: tune"):
        tune(out=tuned.folder, resume=True, study="other")


def test_samplers_and_pruners():
    for name in ("tpe", "gp", "qmc", "nsgaii", "random"):
        study = optuna.create_study(sampler=sampler(SPEC.replace(sampler=name), 0))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    names = [type(pruner(SPEC.replace(pruner=name))).__name__ for name in ("median", "hyperband", "none")]
    assert names == ["MedianPruner", "HyperbandPruner", "NopPruner"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--space nowhere", "space: must be one of narrow, wide, or a .toml file; got 'nowhere'"),
        ("--resume --space wide", "--resume: cannot be combined with settings other than --trials"),
        ("--config none.toml", "none.toml: cannot be read: no such file"),
        ("--resume", "tune: contains no study to resume"),
        ("--locate.method omp", "locate.method: a search needs a method with a network, 'hybrid'; got 'omp'"),
    ],
)
def test_bad_input_on_the_command_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *flags.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_result_that_cannot_be_replaced_is_refused_before_the_others_are_written(searched, tmp_path):
    _, tuned = searched
    folder = tmp_path / "moved"
    shutil.copytree(tuned.folder, folder)
    (folder / "finals.csv").unlink()
    (folder / "finals.csv").symlink_to("nowhere")
    before = {path: path.read_bytes() for path in folder.glob("*.*") if not path.is_symlink()}
    with pytest.raises(InputError, match=r"finals.csv: is a symbolic link"):
        tune(out=folder, resume=True, device="cpu")
    assert {path: path.read_bytes() for path in folder.glob("*.*") if not path.is_symlink()} == before


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a folder that takes no files, even of root"
)
def test_a_folder_that_takes_no_files_is_refused_before_the_study_begins(searched, tmp_path):
    spec, tuned = searched
    database = tmp_path / "shared.db"
    shutil.copy(tuned.folder / "study.db", database)
    before = database.read_bytes()
    with pytest.raises(InputError, match=r"/proc/self/best.toml: cannot be written"):
        tune(spec, out="/proc/self", storage=str(database), study="another", trials=1, device="cpu")
    assert database.read_bytes() == before


@pytest.mark.parametrize("name", ["locate.toml", "best.toml", "trials.csv", "report.html"])
def test_files_of_others_in_the_folder_are_kept(name, searched, tmp_path):
    """A new study, one that is joined, one that is resumed: none replaces what is not its own."""
    spec, tuned = searched
    out, database = tmp_path / "out", tmp_path / "shared.db"
    out.mkdir()
    (out / name).write_text("precious")
    shutil.copy(tuned.folder / "study.db", database)
    for settings in (
        {"spec": spec, "trials": 2},
        {"spec": spec, "trials": 2, "storage": str(tmp_path / "new.db")},
        {"spec": spec, "trials": 2, "storage": str(database), "study": "another"},
        {"spec": spec, "trials": 2, "storage": str(database)},
        {"storage": str(database), "resume": True},
    ):
        with pytest.raises(InputError, match=f"contains {name} already, which would be replaced"):
            tune(out=out, device="cpu", **settings)
        assert [path.read_text() for path in out.iterdir()] == ["precious"]
    assert not (tmp_path / "new.db").exists()


def test_results_of_another_study_are_kept(searched, tmp_path):
    spec, tuned = searched
    before = (tuned.folder / "best.toml").read_bytes()
    with pytest.raises(InputError, match=r"contains best.toml already"):
        tune(spec, out=tuned.folder, storage=str(tmp_path / "new.db"), trials=1, device="cpu")
    assert (tuned.folder / "best.toml").read_bytes() == before
