"""A worker's loop on a journal: interrupted, killed, resumed, with failures and company."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from study_case import loop, signed

from rismusic.errors import InputError
from rismusic.tuning import storage as storage_module
from rismusic.tuning.ledger import reason, standing
from rismusic.tuning.storage import WORKER, open_storage, put_back_dead, quiet

HERE = Path(__file__).parent

# A worker that says where it is, and stays in its second trial.
STUCK = """
import sys, time
sys.path.insert(0, sys.argv[1])
import optuna
from pathlib import Path
from study_case import loop
from rismusic.tuning.storage import WORKER, open_storage, quiet

storage, workers = open_storage(None, Path(sys.argv[2]), heartbeat_s=1)
def objective(trial):
    trial.set_user_attr(WORKER, workers.name)
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    if trial.number == 1:
        print("stuck", x, flush=True)
        time.sleep(60)
    return x
with quiet(), workers.at_work():
    loop(storage, workers).run(optuna.create_study(storage=storage, study_name="s"), objective, 4)
"""


@pytest.fixture
def opened(tmp_path):
    storage, workers = open_storage(None, tmp_path, heartbeat_s=1)
    with quiet(), workers.at_work():
        yield optuna.create_study(storage=storage, study_name="s"), storage, workers


def test_killed_and_resumed(tmp_path):
    """kill -9 in a trial: it is put back with the same settings, and nothing else changes."""
    worker = subprocess.Popen(
        [sys.executable, "-c", STUCK, HERE, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    x = float(worker.stdout.readline().split()[1])
    storage, workers = open_storage(None, tmp_path, heartbeat_s=1)
    study = optuna.load_study(storage=storage, study_name="s")
    # As long as it lives, its trial is left alone.
    assert put_back_dead(study, storage, workers) == []
    worker.kill()
    worker.wait()
    worker.stdout.close()
    with quiet(), workers.at_work():
        loop(storage, workers).run(study, signed(workers), 4)
    trials = study.get_trials()
    assert [trial.state for trial in trials[:2]] == [TrialState.COMPLETE, TrialState.FAIL]
    done = standing(trials)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    (back,) = (trial for trial in done if trial.system_attrs.get("retry_history"))
    assert back.params == {"x": x}
    assert back.system_attrs["retry_history"] == [1]


def test_interrupted_and_resumed(opened):
    study, storage, workers = opened

    def interrupt(number):
        if number == 1:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        loop(storage, workers).run(study, signed(workers, interrupt), 3)
    assert [trial.state for trial in standing(study.get_trials())] == [
        TrialState.COMPLETE,
        TrialState.WAITING,
    ]
    loop(storage, workers).run(study, signed(workers), 3)
    done = standing(study.get_trials())
    assert [trial.number for trial in done] == [0, 2, 3]
    assert done[1].params == study.get_trials()[1].params


def test_failures_are_kept_with_their_reason(opened):
    study, storage, workers = opened

    def value(number):
        if number == 0:
            raise InputError("network.width", "a multiple of heads", "7")
        if number == 1:
            raise ZeroDivisionError
        return float(number)

    loop(storage, workers).run(study, signed(workers, value), 4)
    assert [reason(trial) for trial in standing(study.get_trials())] == [
        "network.width: expected a multiple of heads, found 7",
        "ZeroDivisionError: ZeroDivisionError",
        "",
        "",
    ]


def test_too_many_failures_end_the_search(opened):
    study, storage, workers = opened

    def value(number):
        raise InputError("x", "y", "z")

    with pytest.raises(InputError, match="trials: expected at most 3 failures in a row, found x: expected y"):
        loop(storage, workers).run(study, signed(workers, value), 20)
    assert len(study.get_trials()) == 4
    # What was wrong may have been put right.
    loop(storage, workers).run(study, signed(workers), 5)
    assert [trial.state for trial in study.get_trials()][-1] == TrialState.COMPLETE


def test_a_bug_ends_the_search_at_once(opened):
    study, storage, workers = opened

    def value(number):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        loop(storage, workers).run(study, signed(workers, value), 20)
    assert [reason(trial) for trial in study.get_trials()] == ["TypeError: a bug"]


def test_a_trial_that_kills_its_workers_is_given_up(opened):
    study, storage, workers = opened
    for _ in range(3):
        trial = study.ask()
        trial.set_user_attr(WORKER, "somebody who has gone")
        put_back_dead(study, storage, workers)
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert reason(standing(trials)[0]) == "its worker died, 3 times"
    loop(storage, workers).run(study, signed(workers), 2)
    assert [trial.number for trial in standing(study.get_trials())] == [2, 3]


def test_a_trial_that_nobody_signed_is_put_back_in_the_end(opened, monkeypatch):
    """Its worker was killed between asking for it and signing it."""
    study, storage, workers = opened
    study.ask()
    assert put_back_dead(study, storage, workers) == []
    monkeypatch.setattr(storage_module, "_UNSIGNED", timedelta(0))
    assert put_back_dead(study, storage, workers) == [0]
    assert [trial.state for trial in standing(study.get_trials())] == [TrialState.WAITING]


def test_a_failed_trial_that_nobody_put_back_is(opened, monkeypatch):
    """Its second worker was killed between marking it and putting it back."""
    study, storage, workers = opened
    study.tell(study.ask(), state=TrialState.FAIL)
    assert put_back_dead(study, storage, workers) == []
    monkeypatch.setattr(storage_module, "_SETTLED", timedelta(0))
    assert put_back_dead(study, storage, workers) == [0]
    assert put_back_dead(study, storage, workers) == []


def test_a_trial_that_was_put_back_is_nobodys_until_it_is_signed(opened):
    """Else whoever takes it is taken for the dead worker, between taking and signing it."""
    study, storage, workers = opened
    study.ask().set_user_attr(WORKER, "somebody who has gone")
    assert put_back_dead(study, storage, workers) == [0]
    study.ask()
    assert put_back_dead(study, storage, workers) == []


def test_a_result_that_comes_too_late_is_dropped(opened):
    """A worker that was taken for dead, and was not."""
    study, storage, workers = opened

    def taken(number):
        if number == 0:
            storage.set_trial_state_values(study.get_trials()[0]._trial_id, TrialState.FAIL)
            storage_module.put_back(study, storage, study.get_trials()[0])
        return float(number)

    loop(storage, workers).run(study, signed(workers, taken), 2)
    assert [(trial.number, trial.value) for trial in standing(study.get_trials())] == [(1, 1.0), (2, 2.0)]


def test_others_are_waited_for(opened):
    study, storage, workers = opened
    other = study.ask()
    other.set_user_attr(WORKER, workers.name)
    slept = []

    def say(line):
        slept.append(line)
        study.tell(other, 7.0)

    loop(storage, workers, say=say).run(study, signed(workers), 2)
    assert slept == ["waiting for the trials of other workers"]
    assert [trial.value for trial in standing(study.get_trials())] == [7.0, 1.0]


def test_a_torn_line_is_cut(tmp_path):
    storage, _ = open_storage(None, tmp_path, heartbeat_s=1)
    with quiet():
        study = optuna.create_study(storage=storage, study_name="s")
        study.tell(study.ask(), 1.0)
        journal = tmp_path / "study.journal"
        whole = journal.read_bytes()
        journal.write_bytes(whole + b'{"op_code":4,"wor')
        storage, _ = open_storage(None, tmp_path, heartbeat_s=1)
        assert journal.read_bytes() == whole
        study = optuna.load_study(storage=storage, study_name="s")
        study.tell(study.ask(), 2.0)
    again, _ = open_storage(None, tmp_path, heartbeat_s=1)
    assert [trial.value for trial in optuna.load_study(storage=again, study_name="s").trials] == [1.0, 2.0]


def test_a_journal_of_something_else_is_refused(tmp_path):
    (tmp_path / "study.journal").write_text("nothing of ours\nat all\n")
    with pytest.raises(InputError, match="expected a journal of a study"):
        open_storage(None, tmp_path, heartbeat_s=1)


def test_databases_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="storage: expected a database that can be reached"):
        open_storage(f"postgresql://u@/d?host={tmp_path}", tmp_path, heartbeat_s=1)
    with pytest.raises(InputError, match="storage: expected a database that can be reached"):
        open_storage("oracul://u@/d", tmp_path, heartbeat_s=1)
