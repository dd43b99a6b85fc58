"""What came of a search, from its trials alone: any worker can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from rismusic.errors import InputError
from rismusic.nn.run_folder import BEST
from rismusic.nn.spec import TrainSpec
from rismusic.spec import LocateSpec
from rismusic.tuning.finals import DEFAULT, FRESH, FRESH_UNTUNED, UNTUNED, candidates, job
from rismusic.tuning.ledger import JOB, standing
from rismusic.tuning.scoring import Judged, locate_in
from rismusic.tuning.space import Space, apply
from rismusic.tuning.spec import TuneSpec
from rismusic.tuning.trial import folder_of, kept
from rismusic.tuning.verdict import Difference, difference


@dataclass(frozen=True)
class Final:
    """Settings of the second stage and what they reached.

    Args:
        name: ``default``, the number of a trial of the first stage, or ``default, inference tuned``.
        objective: on the scenes that choose, one for each seed.
        fresh: on fresh scenes, one for each seed.
    """

    name: str
    objective: list[Judged]
    fresh: list[Judged]

    @property
    def cost(self) -> float:
        """Mean over the seeds, on the scenes that choose."""
        return float(np.mean([one.cost for one in self.objective]))

    @property
    def fresh_cost(self) -> float:
        """Mean over the seeds, on fresh scenes."""
        return self.fresh_mean("cost")

    def fresh_mean(self, name: str) -> float:
        """Mean of a property of :class:`~rismusic.tuning.scoring.Judged` over the seeds, on fresh scenes."""
        return float(np.mean([getattr(one, name) for one in self.fresh]))


@dataclass(frozen=True)
class Tuned:
    """What came of a search.

    Args:
        spec: the settings of the search.
        space: what was searched.
        trials: that count, of the first stage.
        finals: of the second stage, the default first.
        best: the one among them, not the default, with the lowest cost.
        training: its settings, with the seed that did best on the scenes that choose.
        locate: its settings of inference, with the weights where they are on this machine.
        score: what this training reached on the scenes that choose.
        verdict: of the best against the default on fresh scenes.
        correlation: rank correlation with the cost, over the trials that were not stopped, of ``surrogate``,
            ``loss`` (the trial's own validation loss) and ``f1`` (MUSIC on R_blend); NaN below three trials.
        saved: share of the epochs that pruning saved.
        stopped: share that the trials' own patience saved.
        folder: of the results.
        command: that was given.
    """

    spec: TuneSpec
    space: Space
    trials: list[FrozenTrial]
    finals: list[Final]
    best: Final
    training: TrainSpec
    locate: LocateSpec
    score: Judged
    verdict: Difference
    correlation: dict[str, float]
    saved: float
    stopped: float
    folder: Path
    command: str

    def sentences(self) -> list[str]:
        """What came of it, in words."""
        failed = sum(trial.state == TrialState.FAIL for trial in self.trials)
        pruned = sum(trial.state == TrialState.PRUNED for trial in self.trials)
        held = self.correlation["surrogate"]
        done = len(self.trials) - failed - pruned
        return [
            self.verdict.sentence(f"Trial {self.best.name}"),
            f"{len(self.trials)} trials: {pruned} pruned, {failed} failed. Pruning saved {self.saved:.0%} of "
            f"their epochs, and the patience of the trials {self.stopped:.0%}.",
            f"Rank correlation of the surrogate with the cost: {held:.2f} over the {done} trials that were "
            "not stopped.",
        ]


def outcome(
    spec: TuneSpec,
    space: Space,
    short: Sequence[FrozenTrial],
    long: Sequence[FrozenTrial],
    *,
    folder: Path,
    runs: Path,
    command: str,
) -> Tuned:
    """Put together what came of a search.

    Args:
        spec: the settings of the search.
        space: what was searched.
        short: trials of the first stage.
        long: trials of the second stage.
        folder: of the results.
        runs: folder of the runs of the second stage.
        command: that was given.

    Raises:
        InputError: no training of the default, or of any finalist, has come to an end.
    """
    jobs = {trial.user_attrs[JOB]: trial for trial in standing(long) if trial.state == TrialState.COMPLETE}
    found = candidates(spec, short)
    finals, ended = [], {}
    for candidate in found:
        names = [job(candidate.name, seed) for seed in range(spec.final_seeds)]
        done = [jobs[name] for name in names if name in jobs]
        # A pair of means over different seeds would not be one.
        if len(done) < spec.final_seeds:
            continue
        tuned = [[kept(trial, name) for trial in done] for name in ("judged", FRESH)]
        if candidate.name == DEFAULT:
            plain = [[kept(trial, name) for trial in done] for name in (UNTUNED, FRESH_UNTUNED)]
            finals += [Final(DEFAULT, *plain), Final(f"{DEFAULT}, inference tuned", *tuned)]
        else:
            finals.append(Final(candidate.name, *tuned))
            ended[candidate.name] = (candidate, done)
    if not ended or not finals or finals[0].name != DEFAULT:
        raise InputError("finalists", "the default and one other that were trained from all seeds", "fewer")
    best = min((final for final in finals if final.name in ended), key=lambda final: final.cost)
    candidate, done = ended[best.name]
    place = min(range(len(done)), key=lambda seed: best.objective[seed].cost)
    trials = standing(short)
    saved, stopped = shares_saved(spec, trials)
    return Tuned(
        spec=spec,
        space=space,
        trials=trials,
        finals=finals,
        best=best,
        training=candidate.training(spec, space, place),
        locate=_locate(spec, space, done[place], runs),
        score=best.objective[place],
        verdict=difference(finals[0].fresh, best.fresh, seed=spec.seed),
        correlation=correlations(trials),
        saved=saved,
        stopped=stopped,
        folder=folder,
        command=command,
    )


def _locate(spec: TuneSpec, space: Space, trial: FrozenTrial, runs: Path) -> LocateSpec:
    """Settings of inference for a trial's network; the weights are those that it left, if they are here."""
    found = apply(spec.locate, space.locate, trial.user_attrs["locate"])
    weights = folder_of(runs, trial) / BEST
    return locate_in(spec.training.system, found, weights.resolve() if weights.exists() else Path(BEST))


def epochs_of(trial: FrozenTrial) -> list[Mapping[str, Any]]:
    """What was told of each epoch of a trial."""
    return list(trial.user_attrs.get("epochs", []))


def correlations(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Spearman's rank correlation of what the last epoch said with the cost."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    costs = [trial.value for trial in done]
    result = {}
    for name, sign in (("surrogate", 1), ("loss", 1), ("f1", -1)):
        said = [sign * epochs_of(trial)[-1][name] for trial in done]
        varied = len(done) > 2 and len(set(said)) > 1 and len(set(costs)) > 1
        result[name] = float(spearmanr(said, costs).statistic) if varied else float("nan")
    return result


def shares_saved(spec: TuneSpec, trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Shares of the epochs of all trials that pruning, and the trials' own patience, have saved."""
    most = spec.epochs_per_trial
    ran = [trial for trial in trials if trial.state in (TrialState.PRUNED, TrialState.COMPLETE)]
    missing = {
        state: sum(most - len(epochs_of(trial)) for trial in ran if trial.state == state)
        for state in (TrialState.PRUNED, TrialState.COMPLETE)
    }
    whole = max(1, most * len(ran))
    return missing[TrialState.PRUNED] / whole, missing[TrialState.COMPLETE] / whole
