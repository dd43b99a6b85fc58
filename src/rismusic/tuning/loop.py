"""The loop of a worker: one trial after the other until all that are wanted are there, whoever did them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from rismusic.errors import InputError
from rismusic.tuning.failures import EXPECTED, Say, Surplus
from rismusic.tuning.ledger import cut_off, failures_in_a_row, standing
from rismusic.tuning.storage import Workers, put_back, put_back_dead

Progress = Callable[[int, int], None]
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Loop:
    """What a worker works with.

    Args:
        storage: of the study.
        workers: who is at work.
        failures: trials in a row that may fail.
        poll_s: seconds between two looks at what others do.
        progress: called with the number of trials that have ended and that of all.
        say: called with each line for the console.
    """

    storage: BaseStorage
    workers: Workers
    failures: int
    poll_s: float
    progress: Progress
    say: Say

    def run(self, study: optuna.Study, objective: Callable[[optuna.Trial], float], wanted: int) -> None:
        """Do trials until so many stand, and wait for those that others are at.

        Raises:
            InputError: too many failures in a row.
            KeyboardInterrupt: after the running trial was put back.
        """
        waited = False
        while True:
            for number in put_back_dead(study, self.storage, self.workers):
                self.say(f"trial {number}: its worker is gone; put back")
            trials = study.get_trials(deepcopy=False)
            now = standing(trials)
            ended = sum(trial.state in _ENDED for trial in now)
            self.progress(ended, wanted)
            if len(now) < wanted or any(trial.state == TrialState.WAITING for trial in trials):
                self._one(study, objective)
                self._check(study)
                waited = False
            elif ended == len(now):
                return
            else:
                if not waited:
                    self.say("waiting for the trials of other workers")
                waited = True
                time.sleep(self.poll_s)

    def _one(self, study: optuna.Study, objective: Callable[[optuna.Trial], float]) -> None:
        """One trial, whatever becomes of it."""
        number: list[int] = []

        def signed(trial: optuna.Trial) -> float:
            number.append(trial.number)
            return objective(trial)

        try:
            study.optimize(signed, n_trials=1, catch=(*EXPECTED, Surplus))
        except KeyboardInterrupt:
            if number and cut_off(trial := study.get_trials(deepcopy=False)[number[0]]):
                put_back(study, self.storage, trial)
            raise
        except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
            # Optuna refuses the result of a trial that has ended for it.
            if not number or not self._taken(study, number[0]):
                raise
            self.say(f"trial {number[0]}: taken for dead, and put back meanwhile ({error})")

    def _check(self, study: optuna.Study) -> None:
        """After a trial, so that a search that was stopped here can be tried again."""
        reasons = failures_in_a_row(study.get_trials(deepcopy=False))
        if len(reasons) > self.failures:
            raise InputError("trials", f"at most {self.failures} failures in a row", reasons[-1])

    @staticmethod
    def _taken(study: optuna.Study, number: int) -> bool:
        trials = study.get_trials(deepcopy=False)
        return number not in {trial.number for trial in standing(trials)}
