"""Which trials of a study count: none twice, and none lost, whatever became of the workers.

A trial whose worker died is marked as failed and put back: a new trial with the same settings takes its
place, and remembers the numbers of those before it. All of this is a function of the list of trials, so that
all workers agree on it without talking to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

REASON = "reason"
"""Why a trial failed; a failed trial without it was cut off."""
SURPLUS = "surplus"
"""Set where two workers began the last trial at once: the later one does nothing."""
JOB = "job"
"""What a trial of the second stage is to do."""
HISTORY = "retry_history"
RETRIES = 2
"""How often a trial whose worker died is put back."""


def history(trial: FrozenTrial) -> list[int]:
    """Numbers of the trials that this one stands for, in order."""
    return list(trial.system_attrs.get(HISTORY, []))


def standing(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count, by number: no surplus ones, none that has been put back, no second copy.

    A trial that was cut off counts until another one takes its place, so that nobody else fills it.
    """
    kept, replaced, jobs = [], set(), set()
    for trial in sorted(trials, key=lambda one: one.number):
        if trial.user_attrs.get(SURPLUS):
            continue
        before = history(trial)
        if before and before[-1] in replaced:
            continue
        job = trial.user_attrs.get(JOB)
        if job is not None and not before:
            if job in jobs:
                continue
            jobs.add(job)
        replaced.update(before)
        kept.append(trial)
    return [trial for trial in kept if trial.number not in replaced]


def is_surplus(trials: Sequence[FrozenTrial], number: int, wanted: int, *, jobs: bool) -> bool:
    """Whether a trial that has just begun is one too many.

    Args:
        trials: all of them.
        number: of the trial.
        wanted: how many there are to be.
        jobs: whether each must have something that it is to do.
    """
    for place, trial in enumerate(standing(trials)):
        if trial.number == number:
            return place >= wanted or (jobs and JOB not in trial.user_attrs)
    return True


def reason(trial: FrozenTrial) -> str:
    """Why a trial failed; nothing if it did not, or is to be done again."""
    if trial.state != TrialState.FAIL:
        return ""
    if not trial.user_attrs.get(REASON) and len(history(trial)) >= RETRIES:
        return f"its worker died, {1 + len(history(trial))} times"
    return str(trial.user_attrs.get(REASON, ""))


def cut_off(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a result and is to be done again."""
    return trial.state == TrialState.FAIL and not reason(trial)


def failures_in_a_row(trials: Sequence[FrozenTrial]) -> list[str]:
    """Why the trials that ended last have failed, in order; nothing if the last one has not."""
    ended = [trial for trial in standing(trials) if trial.datetime_complete is not None]
    ended.sort(key=lambda trial: trial.datetime_complete)  # type: ignore[arg-type, return-value]
    reasons = []
    for trial in reversed(ended):
        if not reason(trial):
            break
        reasons.append(reason(trial))
    return reasons[::-1]
