"""Which trials count, as a function of the list of them."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState
from study_case import frozen

from rismusic.tuning.ledger import cut_off, failures_in_a_row, is_surplus, reason, standing

FAIL, RUNNING, WAITING, PRUNED = TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED


def numbers(trials):
    return [trial.number for trial in standing(trials)]


def test_a_trial_that_was_put_back_counts_once():
    assert numbers([frozen(0), frozen(1, FAIL), frozen(2), frozen(3, WAITING, after=[1])]) == [0, 2, 3]


def test_a_trial_that_is_to_be_put_back_keeps_its_place():
    assert numbers([frozen(0), frozen(1, FAIL), frozen(2)]) == [0, 1, 2]


def test_put_back_twice_by_two_workers_counts_once():
    trials = [frozen(0, FAIL), frozen(1, RUNNING, after=[0]), frozen(2, RUNNING, after=[0])]
    assert numbers(trials) == [1]
    assert is_surplus(trials, 2, 5, jobs=False)
    assert not is_surplus(trials, 1, 5, jobs=False)


def test_a_trial_whose_workers_died_twice_counts_once():
    trials = [frozen(0, FAIL), frozen(1, FAIL, after=[0]), frozen(2, RUNNING, after=[0, 1])]
    assert numbers(trials) == [2]


def test_trials_beyond_those_wanted_are_surplus():
    trials = [frozen(0), frozen(1, FAIL), frozen(2, RUNNING), frozen(3, RUNNING)]
    assert [is_surplus(trials, number, 3, jobs=False) for number in (0, 2, 3)] == [False, False, True]
    # The one that takes the place of another has a high number, and is not.
    trials = [frozen(0), frozen(1, FAIL), frozen(2), frozen(3, RUNNING, after=[1])]
    assert not is_surplus(trials, 3, 3, jobs=False)
    # Those that know it already leave their place.
    assert numbers([frozen(0), frozen(1, FAIL, surplus=True, reason="x"), frozen(2)]) == [0, 2]


def test_every_job_counts_once():
    trials = [frozen(0, job="a"), frozen(1, job="b"), frozen(2, RUNNING, job="a"), frozen(3, RUNNING)]
    assert numbers(trials) == [0, 1, 3]
    assert [is_surplus(trials, number, 3, jobs=True) for number in (1, 2, 3)] == [False, True, True]
    # A job that was put back has its name still.
    trials = [frozen(0, FAIL, job="a"), frozen(1, job="b"), frozen(2, RUNNING, job="a", after=[0])]
    assert numbers(trials) == [1, 2]
    assert not is_surplus(trials, 2, 2, jobs=True)


@pytest.mark.parametrize(
    ("trial", "said", "again"),
    [
        (frozen(0), "", False),
        (frozen(0, FAIL), "", True),
        (frozen(0, FAIL, reason="no"), "no", False),
        (frozen(2, FAIL, after=[0]), "", True),
        (frozen(3, FAIL, after=[0, 2]), "its worker died, 3 times", False),
        (frozen(0, PRUNED, reason="of one before"), "", False),
    ],
)
def test_reasons(trial, said, again):
    assert (reason(trial), cut_off(trial)) == (said, again)


def test_failures_in_a_row():
    bad = [frozen(number, FAIL, reason="no") for number in (1, 2, 3)]
    assert failures_in_a_row([frozen(0), *bad]) == ["no"] * 3
    assert failures_in_a_row([frozen(0), *bad, frozen(4)]) == []
    assert failures_in_a_row([frozen(0), *bad, frozen(4, RUNNING)]) == ["no"] * 3
    assert failures_in_a_row([*bad, frozen(4, FAIL)]) == []
    assert failures_in_a_row([*bad, frozen(4, FAIL, after=[8, 9])])[-1] == "its worker died, 3 times"
