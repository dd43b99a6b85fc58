"""One trial: what the pruner is told, what the search is told of a failure."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner
from optuna.trial import TrialState
from tuning_case import SPEC

from rismusic.errors import InputError
from rismusic.evaluate.metrics import Score
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.validation import Validation
from rismusic.tuning import trial as trial_module
from rismusic.tuning.failures import EXPECTED
from rismusic.tuning.ledger import REASON
from rismusic.tuning.run import pruner
from rismusic.tuning.scoring import Judged
from rismusic.tuning.space import Knob, Space
from rismusic.tuning.storage import quiet
from rismusic.tuning.trial import SURROGATE, Work, folder_of, short_trial

EPOCHS = 3
pytestmark = pytest.mark.usefixtures("quick_validation")


@pytest.fixture(autouse=True)
def _judged(monkeypatch):
    found = Judged(hits=(1,), true=(1,), found=(2,), gospa_m=(1.0,))
    monkeypatch.setattr("rismusic.tuning.trial.judge", lambda *_: found)
    monkeypatch.setattr("rismusic.tuning.inference.judge", lambda *_: found)


def work(folder, knobs=None, **settings):
    space = Space(training=knobs or {"head_learning_rate": Knob(low=1e-4, high=1e-3, log=True)})
    spec = SPEC.replace(**{"epochs_per_trial": EPOCHS, **settings})
    return Work(spec, space, 9, folder, "me", "cpu", lambda _: None)


def study_of(surrogates, pruner):
    """A study with trials that told this in every epoch."""
    study = optuna.create_study(pruner=pruner)
    for value in surrogates:
        told = dict.fromkeys(range(EPOCHS), value)
        study.add_trial(optuna.create_trial(value=value, intermediate_values=told))
    return study


def run(study, given):
    with quiet():
        study.optimize(lambda trial: short_trial(given, trial), n_trials=1, catch=EXPECTED)
    return study.get_trials()[-1]


def test_the_pruner_is_told_of_every_epoch(tmp_path):
    given = work(tmp_path)
    done = run(study_of([1e9] * 3, MedianPruner(0, 0)), given)
    logged = RunFolder(folder_of(tmp_path, done)).records("epoch")
    assert done.state == TrialState.COMPLETE
    assert list(done.intermediate_values) == [line["epoch"] for line in logged] == list(range(EPOCHS))
    for line, told in zip(logged, done.intermediate_values.values(), strict=True):
        terms = line["validation"]["terms"]
        assert told == pytest.approx(sum(weight * terms[name] for name, weight in SURROGATE.items()))
    # F1 of 1 hit of 1, with a false alarm, and a GOSPA of half the cutoff.
    assert done.value == pytest.approx(1 / 3 + 1 / 2)


@pytest.mark.parametrize("warm_up", [0, 1])
def test_a_bad_trial_is_pruned(tmp_path, warm_up):
    """All trials before it were better: it stops at the first epoch at which it may."""
    done = run(study_of([1e-9] * 3, MedianPruner(0, warm_up)), work(tmp_path))
    assert done.state == TrialState.PRUNED
    assert len(done.intermediate_values) == len(done.user_attrs["epochs"]) == warm_up + 1
    assert len(RunFolder(folder_of(tmp_path, done)).records("epoch")) == warm_up + 1


@pytest.mark.parametrize("heard", [True, False])
def test_hyperband_stops_trials_by_what_it_is_told(tmp_path, monkeypatch, heard):
    """Each trial is worse than those before it; a pruner that is not told of them stops none."""
    told = []
    score = Score(4, **{field.name: 0.5 for field in fields(Score) if field.name != "scenes"})
    found = Validation(
        loss=1.0, terms={}, weights={}, oracle={}, scores={"blend": score}, covariance={}, first_batch=1.0
    )

    def training(spec, *, out, device, watch):
        told.append(0)
        for epoch in range(9):
            told[-1] += 1
            if watch(epoch, found):
                return

    monkeypatch.setattr(trial_module, "train", training)
    monkeypatch.setattr(trial_module, "surrogate", lambda _: float(len(told)))
    if not heard:
        monkeypatch.setattr(optuna.Trial, "report", lambda *_: None)
    given = work(tmp_path, epochs_per_trial=9, pruner="hyperband")
    given = replace(given, trials=12)
    study = optuna.create_study(
        study_name="bands", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner(given.spec)
    )
    for _ in range(12):
        run(study, given)
    states = [trial.state for trial in study.get_trials()]
    assert states[0] == TrialState.COMPLETE
    stopped = [epochs for epochs, state in zip(told, states, strict=True) if state == TrialState.PRUNED]
    assert len(stopped) >= 4 if heard else not stopped
    assert all(epochs < 9 for epochs in stopped)
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.get_trials())


def test_settings_that_do_not_fit_are_a_reason(tmp_path):
    done = run(study_of([], NopPruner()), work(tmp_path, {"network.width": Knob(choices=(9,))}))
    assert done.state == TrialState.FAIL
    assert done.user_attrs[REASON] == "network.width: expected a multiple of heads = 2, found 9"


def test_a_validation_that_is_not_finite_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "surrogate", lambda _: math.nan)
    done = run(study_of([], NopPruner()), work(tmp_path))
    assert done.state == TrialState.FAIL
    assert done.user_attrs[REASON].startswith("the validation loss of epoch 0 is")
    assert not done.intermediate_values


def test_losses_that_mean_something_else_in_each_trial_are_no_part_of_the_surrogate():
    assert not SURROGATE.keys() & {"covariance", "subspace", "eigengap", "peak_contrast"}
    assert SURROGATE["covariance_predicted"] == 1.0


def test_a_trial_too_many_does_nothing(tmp_path):
    from rismusic.tuning.failures import Surplus

    study = study_of([1.0] * 9, NopPruner())
    with pytest.raises(Surplus, match="trial 9 is not needed"):
        run(study, work(tmp_path))
    assert study.get_trials()[-1].user_attrs["surplus"] is True
    assert not any(tmp_path.iterdir())


def test_the_space_must_be_one_of_settings(tmp_path):
    with pytest.raises(InputError, match=r"locate\.method: expected 'hybrid'"):
        SPEC.replace(locate=SPEC.locate.replace(method="omp"))
