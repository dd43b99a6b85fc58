"""A whole search on a system that takes seconds: what it leaves, that it can be resumed and reproduced."""

from __future__ import annotations

import csv
import math

import optuna
import pytest
from optuna.trial import TrialState
from study_case import frozen
from tuning_case import SPACE, SPEC

from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.nn.run_folder import load_train_spec
from rismusic.nn.train import train
from rismusic.spec import load_locate_spec
from rismusic.tuning.outcome import correlations, shares_saved
from rismusic.tuning.run import pruner, sampler, tune
from rismusic.tuning.scoring import judge, objective_scenes

pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(scope="module")
def searched(quick_validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    (folder / "space.toml").write_text(SPACE)
    spec = SPEC.replace(space=str(folder / "space.toml"))
    return spec, tune(spec, out=folder / "out", trials=2, device="cpu", command="rismusic tune")


def test_best_toml_reproduces_the_score(searched, tmp_path):
    spec, tuned = searched
    training = load_train_spec(tuned.folder / "best.toml")
    assert training == tuned.training
    trained = train(training, out=tmp_path / "again", device="cpu")
    locate = load_locate_spec(tuned.folder / "locate.toml")
    weights = str(trained.folder / "best.safetensors")
    assert locate.weights != weights
    scenes = objective_scenes(training.system, spec.seed, spec.objective_scenes, "cpu")
    assert judge(scenes, locate.replace(weights=weights)) == tuned.score
    assert judge(scenes, locate) == tuned.score


def test_what_it_leaves(searched):
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
    assert (tuned.folder / "history.png").stat().st_size > 10_000


def test_resumed_without_anything_left_to_do(searched):
    _, tuned = searched
    before = (tuned.folder / "trials.csv").read_text()
    again = tune(out=tuned.folder, resume=True, device="cpu")
    assert (tuned.folder / "trials.csv").read_text() == before
    assert again.verdict == tuned.verdict
    assert again.training == tuned.training


def test_a_study_is_not_begun_twice(searched, tmp_path):
    spec, tuned = searched
    with pytest.raises(InputError, match="expected a new folder"):
        tune(spec, out=tuned.folder)
    journal = str(tuned.folder / "study.journal")
    with pytest.raises(InputError, match="study: expected the settings that it was begun with"):
        tune(spec.replace(inference_trials=5), out=tmp_path, storage=journal, trials=2)
    with pytest.raises(InputError, match="study: expected the settings that it was begun with"):
        tune(spec, out=tmp_path, storage=journal, trials=3)
    with pytest.raises(InputError, match="resume: expected no settings beside it"):
        tune(spec, out=tuned.folder, resume=True)
    with pytest.raises(InputError, match="study: expected one that was begun, found 'other'"):
        tune(out=tuned.folder, resume=True, study="other")


def test_every_sampler_and_pruner_has_a_name():
    for name in ("tpe", "gp", "qmc", "nsgaii", "random"):
        study = optuna.create_study(sampler=sampler(SPEC.replace(sampler=name), 0))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    names = [type(pruner(SPEC.replace(pruner=name))).__name__ for name in ("median", "hyperband", "none")]
    assert names == ["MedianPruner", "HyperbandPruner", "NopPruner"]


def told(number, epochs, state=TrialState.COMPLETE, value=None):
    said = [{"surrogate": value, "loss": -(value or 0), "f1": -(value or 0)} for _ in range(epochs)]
    return frozen(number, state, value=value, epochs=said)


def test_epochs_saved():
    spec = SPEC.replace(epochs_per_trial=10)
    trials = [told(0, 10), told(1, 4, TrialState.PRUNED), told(2, 8), told(3, 1, TrialState.FAIL)]
    assert shares_saved(spec, trials) == (6 / 30, 2 / 30)


def test_rank_correlation():
    trials = [told(number, 1, value=value) for number, value in enumerate((1.0, 8.0, 27.0))]
    assert correlations(trials) == {"surrogate": 1.0, "loss": -1.0, "f1": 1.0}
    assert math.isnan(correlations(trials[:2])["surrogate"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--space nowhere", "space: expected narrow, wide or a .toml file, found 'nowhere'"),
        ("--resume --space wide", "--resume: cannot be combined with settings other than --trials"),
        ("--config none.toml", "none.toml: cannot be read: no such file"),
        ("--resume", "study: expected one that was begun"),
        ("--locate.method omp", "locate.method: expected 'hybrid'"),
    ],
)
def test_bad_input_on_the_command_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *flags.split()]) == 2
    assert said in capsys.readouterr().err
