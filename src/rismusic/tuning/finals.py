"""The second stage: the best few and the default, trained for longer, each from several seeds.

Every training of it is a job that any worker may take. What a job is follows from the trials of the first
stage, so that all workers agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rismusic.nn.run_folder import BEST
from rismusic.nn.spec import TrainSpec
from rismusic.tuning.failures import reason_kept
from rismusic.tuning.ledger import JOB, standing
from rismusic.tuning.scoring import fresh_scenes, judge, locate_in, objective_scenes
from rismusic.tuning.space import Space, apply
from rismusic.tuning.spec import TuneSpec
from rismusic.tuning.trial import Work, folder_of, judged_after, keep, trained

DEFAULT = "default"
FRESH, FRESH_UNTUNED, UNTUNED = "fresh", "fresh_untuned", "untuned"


@dataclass(frozen=True)
class Candidate:
    """Settings that reached the second stage.

    Args:
        name: ``default``, or the number of the trial of the first stage.
        values: of the knobs of the training.
    """

    name: str
    values: dict[str, Any]

    def training(self, spec: TuneSpec, space: Space, seed: int) -> TrainSpec:
        """The settings of its training from a seed, counted from 0."""
        return apply(spec.long_training(seed), space.training, self.values)


def candidates(spec: TuneSpec, trials: Sequence[FrozenTrial]) -> list[Candidate]:
    """The default and the best trials of the first stage, the best one first."""
    done = [trial for trial in standing(trials) if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda trial: (trial.value, trial.number))
    best = [Candidate(str(trial.number), dict(trial.params)) for trial in done[: spec.finalists]]
    return [Candidate(DEFAULT, {}), *best]


def job(name: str, seed: int) -> str:
    """The name of a training of the second stage."""
    return f"{name}/{seed}"


def enqueue(study: optuna.Study, spec: TuneSpec, found: Sequence[Candidate]) -> int:
    """See to it that every job is there; their number.

    Two workers may both add one; the later of the two does not count, see
    :func:`rismusic.tuning.ledger.standing`.
    """
    there = {trial.user_attrs.get(JOB) for trial in study.get_trials(deepcopy=False)}
    for seed in range(spec.final_seeds):
        for candidate in found:
            name = job(candidate.name, seed)
            if name not in there:
                study.enqueue_trial({"candidate": candidate.name, "seed": seed}, user_attrs={JOB: name})
    return len(found) * spec.final_seeds


def long_trial(work: Work, found: Sequence[Candidate], trial: optuna.Trial) -> float:
    """A trial of the second stage; it is never pruned.

    Raises:
        Surplus: one trial too many.
        InputError, RuntimeError, ArithmeticError: see :mod:`rismusic.tuning.trial`.
    """
    spec = work.spec
    work.sign(trial, len(found) * spec.final_seeds, jobs=True)
    with reason_kept(trial):
        name = trial.suggest_categorical("candidate", [candidate.name for candidate in found])
        seed = trial.suggest_int("seed", 0, max(1, spec.final_seeds - 1))
        candidate = next(one for one in found if one.name == name)
        training = candidate.training(spec, work.space, seed)
        folder = folder_of(work.folder, trial)
        trained(work, trial, training, folder)
        inference, judged = judged_after(work, trial, training, folder / BEST)
        fresh = fresh_scenes(training.system, spec.seed, spec.fresh_scenes, work.device)
        keep(trial, FRESH, judge(fresh, inference.spec))
        # The same network with the settings of inference that nobody searched.
        untuned = locate_in(training.system, spec.locate, folder / BEST)
        objective = objective_scenes(training.system, spec.seed, spec.objective_scenes, work.device)
        keep(trial, UNTUNED, judge(objective, untuned))
        keep(trial, FRESH_UNTUNED, judge(fresh, untuned))
        work.say(f"{name}, seed {seed}: cost {judged.cost:.4f}")
        return judged.cost
