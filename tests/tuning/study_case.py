"""Trials and workers without any training, and without torch."""

from __future__ import annotations

from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from rismusic.tuning.worker import Worker, failure_recorded


def worker(storage, **settings) -> Worker:
    given = {
        "max_failures": 3,
        "poll_s": 0.05,
        "progress": lambda *_: None,
        "say": lambda _: None,
        **settings,
    }
    return Worker(storage, **given)


def jobs(number):
    return [str(place) for place in range(number)]


def objective(value=float):
    """An objective that is a function of the number of its trial."""

    def call(trial):
        with failure_recorded(trial):
            trial.suggest_float("x", 0, 1)
            return value(trial.number)

    return call


def frozen(number, state=TrialState.COMPLETE, *, after=(), value=None, params=(), **attributes):
    """A trial as a storage returns it; its job is its own number if none is given."""
    history = {"failed_trial": after[0], "retry_history": list(after)} if after else {}
    ended = state.is_finished()
    return FrozenTrial(
        number=number,
        state=state,
        value=(0.0 if value is None else value) if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else datetime(2026, 1, 1, 0, 0, number),
        datetime_complete=datetime(2026, 1, 1, 1, 0, number) if ended else None,
        params=dict(params),
        distributions={},
        user_attrs={"job": str(after[0] if after else number), **attributes},
        system_attrs=history,
        intermediate_values={},
        trial_id=number,
    )
