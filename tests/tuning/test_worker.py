"""The queue of a study and the loop of a worker: interrupted, killed, resumed, with failures and company."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import optuna
import pytest
from optuna.trial import TrialState
from study_case import frozen, jobs, objective, worker

from forked import ended, forked
from rismusic.errors import InputError
from rismusic.tuning import worker as worker_module
from rismusic.tuning.storage import Requeue, open_storage, quiet
from rismusic.tuning.worker import (
    WORKER,
    cancel,
    current,
    enqueue,
    failure,
    is_finished,
    requeue_abandoned,
)

FAIL, RUNNING, WAITING, PRUNED = TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED
COMPLETE = TrialState.COMPLETE


# A worker that stays in its second trial.
def stuck(folder, said):
    """A worker that says the parameter of its second trial, and does not end it."""

    def evaluated(trial):
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 0)
        if trial.number == 1:
            os.write(said, repr(x).encode())
            time.sleep(60)
        return x

    with quiet(), open_storage(None, folder, heartbeat_s=1) as storage:
        worker(storage).run(optuna.create_study(storage=storage, study_name="s"), evaluated, jobs(4))


@pytest.fixture
def opened():
    storage = optuna.storages.InMemoryStorage()
    with quiet():
        yield optuna.create_study(storage=storage, study_name="s"), storage


def numbers(trials):
    return sorted(trial.number for trial in current(trials).values())


def counting(study):
    """The trials that count, by their jobs."""
    return [trial for _, trial in sorted(current(study.get_trials()).items(), key=lambda item: int(item[0]))]


def test_a_repeated_trial_counts_once():
    assert numbers([frozen(0), frozen(1, FAIL), frozen(2), frozen(3, WAITING, after=[1])]) == [0, 2, 3]
    assert numbers([frozen(0, FAIL), frozen(1, FAIL, after=[0]), frozen(2, RUNNING, after=[0, 1])]) == [2]


def test_a_failed_trial_counts_until_it_is_repeated():
    assert numbers([frozen(0), frozen(1, FAIL), frozen(2)]) == [0, 1, 2]


def test_a_trial_that_two_workers_repeat_counts_once():
    trials = [frozen(0, FAIL), frozen(1, RUNNING, after=[0]), frozen(2, RUNNING, after=[0])]
    assert numbers(trials) == [1]
    # Nor does the repetition of the one that does not count.
    assert numbers([*trials, frozen(3, WAITING, after=[0, 2])]) == [1]


def test_a_job_that_two_workers_queue_counts_once():
    trials = [frozen(0, job="a"), frozen(1, job="b"), frozen(2, RUNNING, job="a"), frozen(3, job=None)]
    assert numbers(trials) == [0, 1]
    assert numbers([frozen(0, FAIL, job="a"), frozen(1, job="a"), frozen(2, job="a", after=[0])]) == [2]


@pytest.mark.parametrize(
    ("trial", "reason", "finished"),
    [
        (frozen(0), "", True),
        (frozen(0, WAITING), "", False),
        (frozen(0, FAIL), "", False),
        (frozen(0, FAIL, reason="no"), "no", True),
        (frozen(2, FAIL, after=[0]), "", False),
        (
            frozen(3, FAIL, after=[0, 2]),
            "its worker process was killed 3 times (out of memory?)",
            True,
        ),
        (frozen(0, PRUNED), "", True),
    ],
)
def test_failures(trial, reason, finished):
    assert (failure(trial), is_finished(trial)) == (reason, finished)


def test_killed_and_resumed(tmp_path):
    """kill -9 during a trial: the trial is repeated with the same parameters, and nothing else changes."""
    listen, said = os.pipe()
    process = forked(lambda: stuck(tmp_path, said))
    os.close(said)
    x = float(os.read(listen, 100))
    os.close(listen)
    with quiet(), open_storage(None, tmp_path, heartbeat_s=1) as storage:
        study = optuna.load_study(storage=storage, study_name="s")
        # As long as the worker lives, its trial is left alone.
        requeue_abandoned(study, storage)
        assert [trial.state for trial in study.get_trials()] == [COMPLETE, RUNNING, WAITING, WAITING]
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        worker(storage).run(study, objective(), jobs(4))
        trials = study.get_trials()
        assert [trial.state for trial in trials[:2]] == [COMPLETE, FAIL]
        assert [trial.number for trial in counting(study)] == [0, 4, 2, 3]
    assert [trial.state for trial in current(trials).values()] == [COMPLETE] * 4
    assert trials[4].params == {"x": x}
    assert trials[4].system_attrs["retry_history"] == [1]


def test_interrupted_and_resumed(opened):
    study, storage = opened

    def interrupt(number):
        if number == 1:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        worker(storage).run(study, objective(interrupt), jobs(3))
    assert [trial.state for trial in counting(study)] == [COMPLETE, WAITING, WAITING]
    said = []
    worker(storage, say=said.append).run(study, objective(), jobs(3))
    assert [trial.number for trial in counting(study)] == [0, 3, 2]
    assert study.get_trials()[3].params == study.get_trials()[1].params
    assert said == ["trial 3: repeats trial 1, whose worker was killed or interrupted"]


@pytest.fixture
def heard():
    """SIGINT raises KeyboardInterrupt, also for tests in the background, which inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_while_a_trial_is_stored_waits(opened, monkeypatch):
    """Optuna itself fails if it is interrupted there."""
    study, storage = opened
    store = storage.set_trial_state_values

    def interrupted(trial, state, values=None):
        if state == COMPLETE:
            signal.raise_signal(signal.SIGINT)
        return store(trial, state, values)

    monkeypatch.setattr(storage, "set_trial_state_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker(storage).run(study, objective(), jobs(2))
    assert [trial.state for trial in counting(study)] == [COMPLETE, WAITING]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(storage, "set_trial_state_values", store)
    worker(storage).run(study, lambda _: signal.raise_signal(signal.SIGINT), jobs(1))  # nothing left to do
    with pytest.raises(KeyboardInterrupt):
        worker(storage).run(study, lambda _: signal.raise_signal(signal.SIGINT), jobs(2))
    assert [trial.state for trial in counting(study)] == [COMPLETE, WAITING], "queued again"


def test_more_and_fewer_jobs(opened):
    study, storage = opened
    ran = []
    enqueue(study, jobs(6))
    cancel(study, storage, jobs(2))
    for wanted in (2, 4):
        worker(storage).run(
            study, objective(lambda number: float(ran.append(number) or number)), jobs(wanted)
        )
    assert len(ran) == len(set(ran)) == 4
    assert list(current(study.get_trials())) == jobs(4)


def test_failures_are_stored_with_their_reason(opened):
    study, storage = opened

    def value(number):
        if number == 0:
            raise InputError("network.width", "must be a multiple of heads; got 7")
        if number == 1:
            raise ZeroDivisionError
        return float(number)

    worker(storage).run(study, objective(value), jobs(4))
    assert [failure(trial) for trial in counting(study)] == [
        "network.width: must be a multiple of heads; got 7",
        "ZeroDivisionError: ZeroDivisionError",
        "",
        "",
    ]


def test_too_many_failures_in_a_row_end_the_search(opened):
    study, storage = opened

    def value(number):
        if number != 2:
            raise InputError("x", "is wrong")
        return 0.0

    with pytest.raises(InputError, match="trials: 4 trials failed in a row; the last failure: x: is wrong"):
        worker(storage).run(study, objective(value), jobs(9))
    assert [trial.state for trial in study.get_trials()][:8] == [FAIL, FAIL, COMPLETE, *[FAIL] * 4, WAITING]
    # The cause may have been removed.
    worker(storage).run(study, objective(), jobs(9))
    assert [trial.state for trial in study.get_trials()][7:] == [COMPLETE] * 2


def test_a_bug_ends_the_search_at_once(opened):
    study, storage = opened

    def value(number):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        worker(storage).run(study, objective(value), jobs(3))
    assert [failure(trial) for trial in counting(study)] == ["TypeError: a bug", "", ""]


def test_a_trial_that_kills_its_workers_is_given_up(opened):
    study, storage = opened
    enqueue(study, jobs(1))
    for _ in range(3):
        trial = study.ask()
        trial.set_user_attr(WORKER, "killed")
        study.tell(trial, state=FAIL)
        Requeue(max_retry=2)(study, study.get_trials()[-1])
    assert [trial.state for trial in study.get_trials()] == [FAIL] * 3
    assert failure(counting(study)[0]) == "its worker process was killed 3 times (out of memory?)"
    worker(storage).run(study, objective(), jobs(2))
    assert [trial.number for trial in counting(study)] == [2, 3]


@pytest.mark.parametrize("state", [RUNNING, FAIL])
def test_an_abandoned_trial_is_repeated(opened, monkeypatch, state):
    """Its worker was killed before the first heartbeat, or before it queued another's trial again."""
    study, storage = opened
    enqueue(study, jobs(1))
    trial = study.ask()
    if state == FAIL:
        study.tell(trial, state=FAIL)
    requeue_abandoned(study, storage)
    assert len(study.get_trials()) == 1
    monkeypatch.setattr(worker_module, "_ABANDONED", timedelta(0))
    requeue_abandoned(study, storage)
    requeue_abandoned(study, storage)
    assert [trial.state for trial in study.get_trials()] == [FAIL, WAITING]


def test_a_repeated_trial_has_no_worker_until_one_takes_it(opened):
    """Otherwise one that is abandoned at once would never be repeated."""
    study, _ = opened
    enqueue(study, jobs(1))
    trial = study.ask()
    trial.set_user_attr(WORKER, "killed")
    trial.set_user_attr("epochs", [1.0])
    study.tell(trial, state=FAIL)
    Requeue()(study, study.get_trials()[0])
    assert study.get_trials()[1].user_attrs == {"job": "0"}


@pytest.mark.parametrize("reports", [True, False])
def test_a_late_result_is_dropped(opened, reports):
    """The heartbeat of a living worker was late, and another worker queued its trial again."""
    study, storage = opened
    said = []

    def late(trial):
        if trial.number == 0:
            storage.set_trial_state_values(trial._trial_id, FAIL)
            Requeue()(study, storage.get_trial(trial._trial_id))
            if reports:
                trial.report(1.0, 0)
        return float(trial.number)

    worker(storage, say=said.append).run(study, late, jobs(2))
    assert [(trial.number, trial.value) for trial in counting(study)] == [(2, 2.0), (1, 1.0)]
    assert said[0].startswith("trial 0: late heartbeat")


def test_a_trial_that_is_not_needed_does_nothing(opened):
    """Two workers queued the same job at the same time."""
    study, storage = opened
    for _ in range(2):
        study.enqueue_trial({}, user_attrs={"job": "0"})
    enqueue(study, jobs(3))
    ran = []
    worker(storage).run(study, objective(lambda number: ran.append(number) or 0.0), jobs(3))
    assert ran == [0, 2, 3]
    assert study.get_trials()[1].state == FAIL
    assert [trial.number for trial in counting(study)] == [0, 2, 3]


def test_others_are_waited_for(opened):
    study, storage = opened
    enqueue(study, jobs(2))
    other = study.ask()
    other.set_user_attr(WORKER, "another")
    said = []

    def say(line):
        said.append(line)
        study.tell(other, 7.0)

    worker(storage, say=say).run(study, objective(), jobs(2))
    assert said == ["waiting for the trials of other workers"]
    assert [trial.value for trial in counting(study)] == [7.0, 1.0]


def test_progress_counts_finished_jobs(opened):
    study, storage = opened
    reported = []
    worker(storage, progress=lambda *counts: reported.append(counts)).run(study, objective(), jobs(3))
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_loop_does_not_wait_between_its_own_trials(opened):
    study, storage = opened
    begun = time.monotonic()
    worker(storage, poll_s=60.0).run(study, objective(), jobs(3))
    assert time.monotonic() - begun < 30
