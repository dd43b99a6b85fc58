"""The queue of a study, and the loop of a worker that takes trials from it. The module does not import torch.

Every trial that a search needs is queued as a waiting trial with the name of its job. Optuna hands each
waiting trial to one worker. If a worker is killed, its heartbeat stops and the trial is queued again. Which
trial counts for a job follows from the list of trials alone (:func:`current`), so that all workers agree and
no job counts twice.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from rismusic.errors import InputError
from rismusic.interruption import interrupts_held
from rismusic.tuning.storage import JOB, RETRIES, Requeue, experimental

Progress = Callable[[int, int], None]
Say = Callable[[str], None]

WORKER, REASON, CANCELLED = "worker", "reason", "cancelled"

EXPECTED = (InputError, RuntimeError, ArithmeticError)
"""Exceptions that fail a trial and not the search: invalid combinations, non-finite values, a full memory."""

# A trial without a sign of its worker for this long was abandoned between two steps of Optuna.
_ABANDONED = timedelta(minutes=2)


class NotFiniteError(ArithmeticError):
    """The validation loss is not finite."""


class NotNeededError(Exception):
    """Another trial counts for the job of this one."""


def enqueue(study: optuna.Study, jobs: Sequence[str]) -> None:
    """Queue a trial for each job that has none yet."""
    present = current(study.get_trials(deepcopy=False))
    for job in jobs:
        if job not in present:
            study.enqueue_trial({}, user_attrs={JOB: job})


def cancel(study: optuna.Study, storage: BaseStorage, jobs: Sequence[str]) -> None:
    """Remove waiting trials of other than these jobs from the queue."""
    for job, trial in current(study.get_trials(deepcopy=False)).items():
        if job not in jobs and trial.state == TrialState.WAITING:
            storage.set_trial_user_attr(trial._trial_id, CANCELLED, True)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def history(trial: FrozenTrial) -> list[int]:
    """Numbers of the trials that this one repeats, in order."""
    with experimental():
        return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def current(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
    """The trial that counts for each job: the first one, or the last of its repetitions.

    Two workers may queue the same job, or the same repetition, at the same time. Then the earlier one counts.
    """
    found: dict[str, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda one: one.number):
        job = trial.user_attrs.get(JOB)
        if job is None or trial.user_attrs.get(CANCELLED):
            continue
        if job not in found or history(trial)[-1:] == [found[job].number]:
            found[job] = trial
    return found


def failure(trial: FrozenTrial) -> str:
    """Why a trial failed; empty if it did not, or if it will be repeated."""
    if trial.state != TrialState.FAIL:
        return ""
    if REASON in trial.user_attrs:
        return str(trial.user_attrs[REASON])
    if len(history(trial)) < RETRIES:
        return ""
    return f"its worker process was killed {1 + len(history(trial))} times (out of memory?)"


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial has ended and will not be repeated."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or bool(failure(trial))


@contextmanager
def failure_recorded(trial: optuna.Trial) -> Iterator[None]:
    """Store the reason with a trial that fails, but not with one that is pruned or interrupted."""
    try:
        yield
    except optuna.exceptions.OptunaError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (InputError, NotFiniteError)):
            text = f"{type(error).__name__}: {text}"
        trial.set_user_attr(REASON, text[:500])
        raise


def requeue_abandoned(study: optuna.Study, storage: BaseStorage) -> None:
    """Repeat the trials of killed workers: those without a heartbeat, and the rare ones that never had one.

    A worker can be killed between taking a trial and its first heartbeat, or between failing the trial of
    another worker and queueing it again.
    """
    with experimental():
        optuna.storages.fail_stale_trials(study)
    for trial in current(study.get_trials(deepcopy=False)).values():
        if (
            trial.state == TrialState.RUNNING
            and WORKER not in trial.user_attrs
            and _is_old(trial.datetime_start)
        ):
            try:
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue
        elif trial.state != TrialState.FAIL or failure(trial) or not _is_old(trial.datetime_complete):
            continue
        Requeue(max_retry=RETRIES)(study, trial)


class Worker:
    """A process that runs the trials of a study, alone or together with others.

    It stops when more than ``max_failures`` trials fail in a row, and looks at the trials of other workers
    every ``poll_s`` seconds.
    """

    def __init__(
        self, storage: BaseStorage, *, max_failures: int, poll_s: float, progress: Progress, say: Say
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.storage, self.max_failures, self.poll_s = storage, max_failures, poll_s
        self.progress, self.say = progress, say
        self._failures = 0

    def run(
        self, study: optuna.Study, objective: Callable[[optuna.Trial], float], jobs: Sequence[str]
    ) -> None:
        """Run trials until all jobs are finished, by this worker or by others.

        On Ctrl-C the running trial is queued again.
        """
        enqueue(study, jobs)
        waits = False
        while True:
            requeue_abandoned(study, self.storage)
            trials = current(study.get_trials(deepcopy=False))
            finished = sum(is_finished(trials[job]) for job in jobs)
            self.progress(finished, len(jobs))
            if finished == len(jobs):
                return
            if any(trials[job].state == TrialState.WAITING for job in jobs):
                with interrupts_held() as released:
                    self._run_next(study, objective, released)
                waits = False
                continue
            if not waits:
                self.say("waiting for the trials of other workers")
            waits = True
            time.sleep(self.poll_s)

    def _run_next(
        self,
        study: optuna.Study,
        objective: Callable[[optuna.Trial], float],
        released: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Run the next trial of the queue, within ``released``; interrupts are held otherwise."""
        taken: list[optuna.Trial] = []

        def claimed(trial: optuna.Trial) -> float:
            taken.append(trial)
            self._claim(study, trial)
            try:
                with released():
                    return objective(trial)
            except KeyboardInterrupt:
                Requeue()(study, self.storage.get_trial(trial._trial_id))
                raise

        try:
            study.optimize(
                claimed,
                n_trials=1,
                catch=(*EXPECTED, NotNeededError),
                callbacks=[self._count_failures],
                gc_after_trial=True,
            )
        except (UpdateFinishedTrialError, ValueError, AssertionError):
            # Optuna refuses the result if another worker failed the trial, because its heartbeat was late.
            ended = self.storage.get_trial(taken[0]._trial_id) if taken else None
            if ended is None or ended.state != TrialState.FAIL or REASON in ended.user_attrs:
                raise
            self.say(f"trial {taken[0].number}: late heartbeat; its result is dropped and the trial repeated")

    def _claim(self, study: optuna.Study, trial: optuna.Trial) -> None:
        trial.set_user_attr(WORKER, self.name)
        counting = current(study.get_trials(deepcopy=False)).values()
        if trial.number not in {one.number for one in counting}:
            raise NotNeededError(f"trial {trial.number} is not needed")
        before = history(self.storage.get_trial(trial._trial_id))
        if before:
            self.say(
                f"trial {trial.number}: repeats trial {before[-1]}, whose worker was killed or interrupted"
            )

    def _count_failures(self, _: optuna.Study, trial: FrozenTrial) -> None:
        """Callback after each trial: stop the search if too many trials fail in a row."""
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._failures = 0
        elif REASON in trial.user_attrs:
            self._failures += 1
        if self._failures > self.max_failures:
            raise InputError(
                "trials",
                f"{self._failures} trials failed in a row; the last failure: {trial.user_attrs[REASON]}",
            )


def _is_old(moment: datetime | None) -> bool:
    return moment is not None and datetime.now() - moment > _ABANDONED
