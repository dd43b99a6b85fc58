"""Trials and workers without any training, and without torch."""

from __future__ import annotations

from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from rismusic.tuning.failures import reason_kept
from rismusic.tuning.ledger import REASON
from rismusic.tuning.loop import Loop
from rismusic.tuning.storage import WORKER


def loop(storage, workers, **settings) -> Loop:
    said: list[str] = []
    given = {"failures": 3, "poll_s": 0.05, "progress": lambda *_: None, "say": said.append, **settings}
    return Loop(storage, workers, **given)


def signed(workers, values=lambda number: float(number)):
    """An objective that makes something of the number of its trial."""

    def objective(trial):
        trial.set_user_attr(WORKER, workers.name)
        trial.set_user_attr(REASON, "")
        with reason_kept(trial):
            trial.suggest_float("x", 0, 1)
            return values(trial.number)

    return objective


def frozen(number, state=TrialState.COMPLETE, *, after=(), reason="", value=None, params=(), **attributes):
    """A trial as a storage gives it back."""
    history = {"failed_trial": after[0], "retry_history": list(after)} if after else {}
    if reason:
        attributes["reason"] = reason
    ended = state.is_finished()
    return FrozenTrial(
        number=number,
        state=state,
        value=(0.0 if value is None else value) if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else datetime(2026, 1, 1, 0, 0, number),
        datetime_complete=datetime(2026, 1, 1, 1, 0, number) if ended else None,
        params=dict(params),
        distributions={},
        user_attrs=attributes,
        system_attrs=history,
        intermediate_values={},
        trial_id=number,
    )
