"""One trial: values reported to the pruner, and reasons of failures."""

from __future__ import annotations

import math
from dataclasses import fields

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner
from optuna.trial import TrialState
from tuning_case import SPEC

from rismusic.errors import InputError
from rismusic.metrics import Score
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.validation import Validation
from rismusic.tuning import objective as objective_module
from rismusic.tuning.objective import SURROGATE, Evaluation, Objective
from rismusic.tuning.spec import Parameter, Space
from rismusic.tuning.storage import quiet
from rismusic.tuning.study import pruner
from rismusic.tuning.worker import EXPECTED, REASON

EPOCHS = 3
pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(autouse=True)
def _evaluated(monkeypatch):
    evaluation = Evaluation(hits=(1,), true=(1,), estimated=(2,), gospa_m=(1.0,))
    monkeypatch.setattr(objective_module, "evaluate", lambda *_: evaluation)


def objective(folder, parameters=None, **settings):
    space = Space(training=parameters or {"head_learning_rate": Parameter(low=1e-4, high=1e-3, log=True)})
    spec = SPEC.replace(**{"epochs_per_trial": EPOCHS, **settings})
    return Objective(spec, space, folder, "cpu", lambda _: None)


def study_of(surrogates, pruner):
    """A study with trials that reported these values in every epoch."""
    study = optuna.create_study(pruner=pruner)
    for value in surrogates:
        reported = dict.fromkeys(range(EPOCHS), value)
        study.add_trial(optuna.create_trial(value=value, intermediate_values=reported))
    return study


def run(study, given):
    with quiet():
        study.optimize(given, n_trials=1, catch=EXPECTED)
    return study.get_trials()[-1]


def test_every_epoch_is_reported_to_the_pruner(tmp_path):
    given = objective(tmp_path)
    done = run(study_of([1e9] * 3, MedianPruner(0, 0)), given)
    logged = RunFolder(given.run_folder(done)).records("epoch")
    assert done.state == TrialState.COMPLETE
    assert list(done.intermediate_values) == [line["epoch"] for line in logged] == list(range(EPOCHS))
    for line, reported in zip(logged, done.intermediate_values.values(), strict=True):
        terms = line["validation"]["terms"]
        assert reported == pytest.approx(sum(weight * terms[name] for name, weight in SURROGATE.items()))
    # F1 of 1 hit of 1, with a false alarm, and a GOSPA of half the cutoff.
    assert done.value == pytest.approx(1 / 3 + 1 / 2)


@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_bad_trial_is_pruned(tmp_path, warm_up):
    """All trials before it were better: it stops at the first epoch at which it may."""
    given = objective(tmp_path)
    done = run(study_of([1e-9] * 3, MedianPruner(0, warm_up)), given)
    assert done.state == TrialState.PRUNED
    assert len(done.intermediate_values) == len(done.user_attrs["epochs"]) == warm_up + 1
    assert len(RunFolder(given.run_folder(done)).records("epoch")) == warm_up + 1


@pytest.mark.parametrize("reported", [True, False])
def test_hyperband_prunes_by_the_reported_values(tmp_path, monkeypatch, reported):
    """Each trial is worse than those before it; without reports no trial is pruned."""
    epochs_run = []
    score = Score(4, **{field.name: 0.5 for field in fields(Score) if field.name != "scenes"})
    found = Validation(
        loss=1.0, terms={}, weights={}, oracle={}, scores={"blend": score}, covariance={}, first_batch=1.0
    )

    def training(spec, *, out, device, on_epoch):
        epochs_run.append(0)
        for epoch in range(9):
            epochs_run[-1] += 1
            if on_epoch(epoch, found):
                return

    monkeypatch.setattr(objective_module, "train", training)
    monkeypatch.setattr(objective_module, "surrogate", lambda _: float(len(epochs_run)))
    if not reported:
        monkeypatch.setattr(optuna.Trial, "report", lambda *_: None)
    given = objective(tmp_path, epochs_per_trial=9, pruner="hyperband")
    study = optuna.create_study(
        study_name="bands", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner(given.spec)
    )
    for _ in range(12):
        run(study, given)
    states = [trial.state for trial in study.get_trials()]
    assert states[0] == TrialState.COMPLETE
    stopped = [epochs for epochs, state in zip(epochs_run, states, strict=True) if state == TrialState.PRUNED]
    assert len(stopped) >= 4 if reported else not stopped
    assert all(epochs < 9 for epochs in stopped)
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.get_trials())


def test_an_invalid_combination_is_a_reason(tmp_path):
    done = run(study_of([], NopPruner()), objective(tmp_path, {"network.width": Parameter(choices=(9,))}))
    assert done.state == TrialState.FAIL
    assert done.user_attrs[REASON] == "network.width: must be a multiple of heads = 2; got 9"


def test_a_validation_loss_that_is_not_finite_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(objective_module, "surrogate", lambda _: math.nan)
    done = run(study_of([], NopPruner()), objective(tmp_path))
    assert done.state == TrialState.FAIL
    assert done.user_attrs[REASON].startswith("the validation loss of epoch 0 is")
    assert not done.intermediate_values


def test_losses_that_depend_on_searched_settings_are_no_part_of_the_surrogate():
    assert not SURROGATE.keys() & {"covariance", "subspace", "eigengap", "peak_contrast"}
    assert SURROGATE["covariance_predicted"] == 1.0


def test_a_method_without_a_network_is_refused():
    with pytest.raises(InputError, match=r"locate\.method: a search needs a method with a network"):
        SPEC.replace(locate=SPEC.locate.replace(method="omp"))
