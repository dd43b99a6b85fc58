"""The result of a search: final evaluation, comparison with the default, and the files in the folder.

=================== ===============================================================================
``best.toml``       settings of the best training, for ``rismusic train``
``locate.toml``     its inference settings, for ``rismusic locate --config``
``trials.csv``      every trial: state, reason of failure, cost, epochs, settings
``finals.csv``      every training of the final evaluation
``comparison.txt``  the comparison with the default and a summary of the search, in sentences
``history.png``     costs and surrogates of the trials
``importance.png``  importance of each setting
``report.html``     all of it
=================== ===============================================================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.nn.run_folder import BEST as BEST_WEIGHTS
from rismusic.nn.spec import TrainSpec
from rismusic.plots import save
from rismusic.spec import LocateSpec, dump_spec
from rismusic.tuning.objective import (
    DEFAULT,
    EPOCHS,
    EVALUATION,
    EVALUATION_DEFAULT,
    INFERENCE_COST,
    LOCATE,
    SECONDS,
    TEST,
    TEST_DEFAULT,
    Candidate,
    Evaluation,
    FinalObjective,
    cost,
    locate_settings,
)
from rismusic.tuning.report import plot_importance, plot_overview, write_tune_report
from rismusic.tuning.spec import TuneSpec, apply
from rismusic.tuning.storage import experimental
from rismusic.tuning.worker import WORKER, Say, current, failure
from rismusic.version import __version__

_RESAMPLED = 4000


def candidates(spec: TuneSpec, trials: Sequence[FrozenTrial]) -> list[Candidate]:
    """The default and the best trials, the best one first."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda trial: (trial.value, trial.number))
    best = [Candidate(str(trial.number), dict(trial.params)) for trial in done[: spec.finalists]]
    return [Candidate(DEFAULT, {}), *best]


@dataclass(frozen=True)
class Final:
    """Settings of the final evaluation and their results.

    Args:
        name: ``default``, the number of a trial, or ``default, inference tuned``.
        objective: evaluations on the scenes of the objective, one per seed.
        test: evaluations on the test scenes, one per seed.
    """

    name: str
    objective: list[Evaluation]
    test: list[Evaluation]

    @property
    def cost(self) -> float:
        """Mean cost over the seeds, on the scenes of the objective."""
        return float(np.mean([one.cost for one in self.objective]))

    @property
    def test_cost(self) -> float:
        """Mean cost over the seeds, on the test scenes."""
        return self.test_mean("cost")

    def test_mean(self, name: str) -> float:
        """Mean of a property of :class:`~rismusic.tuning.objective.Evaluation` over seeds, test scenes."""
        return float(np.mean([getattr(one, name) for one in self.test]))


@dataclass(frozen=True)
class Comparison:
    """Cost of the default minus cost of the best settings on the test scenes; positive is a gain.

    Args:
        gain: difference of the costs.
        low: lower limit of the confidence interval.
        high: upper limit.
        level: confidence level.
    """

    gain: float
    low: float
    high: float
    level: float

    @property
    def better(self) -> bool:
        """Whether the best settings beat the default by more than the interval."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether they are worse by more than the interval."""
        return self.high < 0

    def sentence(self, name: str) -> str:
        """The comparison in a sentence.

        Args:
            name: name of the best settings.
        """
        result = "is better" if self.better else "is worse" if self.worse else "is not significantly better"
        return (
            f"{name} {result} than the default on the test scenes. Cost of the default minus its cost: "
            f"{self.gain:+.4f} ({100 * self.level:.0f} % confidence interval {self.low:+.4f} to "
            f"{self.high:+.4f})."
        )


def compare(
    default: Sequence[Evaluation], best: Sequence[Evaluation], *, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two settings on the same scenes, with a paired bootstrap over scenes.

    Both are trained from the same seeds. Scenes are resampled in pairs, each with all of its trainings (Efron
    and Tibshirani, "An introduction to the bootstrap", 1993). The interval is that of the scenes; it does not
    include the variation with the seed of a training.

    Args:
        default: evaluations of the default, one per seed.
        best: evaluations of the other settings, one per seed.
        level: confidence level.
        seed: seed of the resampling.
    """
    rows, other = pooled(default), pooled(best)
    scenes = len(rows)
    drawn = np.random.default_rng(seed).integers(scenes, size=(_RESAMPLED, scenes))
    gains = pooled_cost(rows[drawn], len(default)) - pooled_cost(other[drawn], len(best))
    low, high = np.quantile(gains, ((1 - level) / 2, (1 + level) / 2))
    gain = pooled_cost(rows, len(default)) - pooled_cost(other, len(best))
    return Comparison(float(gain), float(low), float(high), level)


def pooled(evaluations: Sequence[Evaluation]) -> np.ndarray:
    """Hits, true and estimated sources, and GOSPA of each scene, summed over seeds: [S, 4]."""
    return sum(
        (np.array([one.hits, one.true, one.estimated, one.gospa_m], dtype=float).T for one in evaluations),
        start=np.zeros((len(evaluations[0].hits), 4)),
    )


def pooled_cost(rows: np.ndarray, seeds: int) -> np.ndarray:
    """The cost of scenes [..., S, 4] whose numbers were summed over this many seeds: [...]."""
    hits, true, estimated, gospa = np.moveaxis(rows.sum(-2), -1, 0)
    f1 = 2 * hits / np.maximum(1, true + estimated)
    return np.asarray(cost(f1, gospa / (rows.shape[-2] * seeds)))


@dataclass(frozen=True)
class TuneResult:
    """The result of a search.

    Args:
        spec: settings of the search.
        trials: the trials that count.
        finals: results of the final evaluation, the default first.
        best: the one among them, other than the default, with the lowest cost.
        training: its training settings, with the seed of its best training.
        locate: its inference settings, with the path of the weights on this machine.
        evaluation: evaluation of this training on the scenes of the objective.
        comparison: comparison of the best settings with the default on the test scenes.
        correlation: rank correlation with the cost, over the completed trials, of ``surrogate``, ``loss``
            (the validation loss of the trial) and ``f1`` (MUSIC on R_blend); NaN for fewer than three trials.
        pruning_saved: share of all epochs that pruning saved.
        patience_saved: share of all epochs that early stopping saved.
        folder: folder of the results.
        command: the command that was given.
    """

    spec: TuneSpec
    trials: list[FrozenTrial]
    finals: list[Final]
    best: Final
    training: TrainSpec
    locate: LocateSpec
    evaluation: Evaluation
    comparison: Comparison
    correlation: dict[str, float]
    pruning_saved: float
    patience_saved: float
    folder: Path
    command: str

    def sentences(self) -> list[str]:
        """The comparison and a summary of the search."""
        failed = sum(trial.state == TrialState.FAIL for trial in self.trials)
        pruned = sum(trial.state == TrialState.PRUNED for trial in self.trials)
        completed = len(self.trials) - failed - pruned
        return [
            self.comparison.sentence(f"Trial {self.best.name}"),
            f"{len(self.trials)} trials: {pruned} pruned, {failed} failed. Pruning saved "
            f"{self.pruning_saved:.0%} of the epochs, early stopping {self.patience_saved:.0%}.",
            f"Rank correlation of the surrogate with the cost: {self.correlation['surrogate']:.2f} over the "
            f"{completed} completed trials.",
        ]


def summarize(
    objective: FinalObjective,
    trials: Sequence[FrozenTrial],
    long_trials: Sequence[FrozenTrial],
    *,
    folder: Path,
    command: str,
) -> TuneResult:
    """Put together the result of a search.

    Args:
        objective: the objective of the final evaluation.
        trials: the trials that count.
        long_trials: all trials of the final evaluation.
        folder: folder of the results.
        command: the command that was given.

    Raises:
        InputError: the trainings of the default or of all finalists have failed.
    """
    spec, space = objective.spec, objective.space
    jobs = current(long_trials)
    finals, finished = [], {}
    for candidate in objective.candidates:
        runs = [jobs[f"{candidate.name}/{seed}"] for seed in range(spec.final_seeds)]
        # Means over different seeds could not be compared.
        if any(run.state != TrialState.COMPLETE for run in runs):
            continue
        tuned = [[Evaluation.of(run, name) for run in runs] for name in (EVALUATION, TEST)]
        if candidate.name == DEFAULT:
            plain = [
                [Evaluation.of(run, name) for run in runs] for name in (EVALUATION_DEFAULT, TEST_DEFAULT)
            ]
            finals += [Final(DEFAULT, *plain), Final(f"{DEFAULT}, inference tuned", *tuned)]
        else:
            finals.append(Final(candidate.name, *tuned))
            finished[candidate.name] = (candidate, runs)
    if not finished or finals[0].name != DEFAULT:
        reasons = [reason for trial in jobs.values() if (reason := failure(trial))]
        raise InputError(
            "finalists",
            "the final evaluation needs the default and at least one trial whose trainings all finished; "
            f"the last failure: {(reasons or ['none'])[-1]}",
        )
    best = min((final for final in finals if final.name in finished), key=lambda final: final.cost)
    candidate, runs = finished[best.name]
    seed = min(range(len(runs)), key=lambda one: best.objective[one].cost)
    weights = objective.run_folder(runs[seed]) / BEST_WEIGHTS
    pruning_saved, patience_saved = shares_saved(spec, trials)
    return TuneResult(
        spec=spec,
        trials=list(trials),
        finals=finals,
        best=best,
        training=candidate.training(spec, space, seed),
        locate=locate_settings(
            spec.training.system,
            apply(spec.locate, space.locate, runs[seed].user_attrs[LOCATE]),
            # Another machine may hold the run.
            weights.resolve() if weights.exists() else Path(BEST_WEIGHTS),
        ),
        evaluation=best.objective[seed],
        comparison=compare(finals[0].test, best.test, seed=spec.seed),
        correlation=correlations(trials),
        pruning_saved=pruning_saved,
        patience_saved=patience_saved,
        folder=folder,
        command=command,
    )


def correlations(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Spearman's rank correlation of values of the last epoch with the cost, over the completed trials."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    costs = [trial.value for trial in done]
    result = {}
    for name, sign in (("surrogate", 1), ("loss", 1), ("f1", -1)):
        values = [sign * trial.user_attrs[EPOCHS][-1][name] for trial in done]
        varied = len(done) > 2 and len(set(values)) > 1 and len(set(costs)) > 1
        result[name] = float(spearmanr(values, costs).statistic) if varied else float("nan")
    return result


def shares_saved(spec: TuneSpec, trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Shares of the epochs of all trials that pruning, and early stopping, have saved."""
    missing = {TrialState.PRUNED: 0, TrialState.COMPLETE: 0}
    ran = [trial for trial in trials if trial.state in missing]
    for trial in ran:
        missing[trial.state] += spec.epochs_per_trial - len(trial.user_attrs.get(EPOCHS, []))
    total = max(1, spec.epochs_per_trial * len(ran))
    return missing[TrialState.PRUNED] / total, missing[TrialState.COMPLETE] / total


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each training setting for the cost; empty for fewer than three completed trials.

    Watanabe, Bansal, Hutter, "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
    subspaces" (IJCAI 2023), as implemented in Optuna.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 3 or len({trial.value for trial in done}) < 2:
        return {}
    with experimental():
        return optuna.importance.get_param_importances(study)


def write_results(result: TuneResult, study: optuna.Study, say: Say) -> None:
    """Write all files; plots and report are left out, with a message, if their packages are missing."""
    folder = result.folder
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# rismusic {__version__}, cost {result.evaluation.cost!r} on the scenes of the objective\n"
    rows = trial_rows(result.trials)
    for name, text in (
        ("best.toml", head + dump_spec(result.training)),
        ("locate.toml", head + dump_spec(result.locate)),
        ("trials.csv", _csv(rows)),
        ("finals.csv", _csv(final_rows(result.finals))),
        ("comparison.txt", "".join(f"{sentence}\n" for sentence in result.sentences())),
    ):
        with replace_file(folder / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    importance = importances(study)
    try:
        save(plot_overview(result), folder / "history.png", overwrite=True)
        if importance:
            save(plot_importance(importance), folder / "importance.png", overwrite=True)
        write_tune_report(folder / "report.html", result, rows, importance, overwrite=True)
    except InputError as error:
        say(f"plots and report are left out: {error}")


def trial_rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """A row for each trial."""
    names = sorted({name for trial in trials for name in trial.params})
    inner = sorted({name for trial in trials for name in trial.user_attrs.get(LOCATE, {})})
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        epochs = attributes.get(EPOCHS, [])
        last = epochs[-1] if epochs else {}
        evaluation = Evaluation.of(trial, EVALUATION) if EVALUATION in attributes else None
        before, after = attributes.get(INFERENCE_COST, (None, None))
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "reason": failure(trial),
                "cost": trial.value if trial.state == TrialState.COMPLETE else None,
                "f1": evaluation.f1 if evaluation else None,
                "gospa_m": evaluation.mean_gospa_m if evaluation else None,
                "inference_cost_before": before,
                "inference_cost": after,
                "epochs": len(epochs),
                "surrogate": last.get("surrogate"),
                "loss": last.get("loss"),
                "seconds": attributes.get(SECONDS),
                "worker": attributes.get(WORKER),
                **{name: trial.params.get(name) for name in names},
                **{f"locate.{name}": attributes.get(LOCATE, {}).get(name) for name in inner},
            }
        )
    return rows


def final_rows(finals: Sequence[Final]) -> list[dict[str, Any]]:
    """A row for each training of the final evaluation."""
    return [
        {
            "settings": final.name,
            "seed": seed,
            "cost": one.cost,
            "f1": one.f1,
            "gospa_m": one.mean_gospa_m,
            "test_cost": test.cost,
            "test_f1": test.f1,
            "test_gospa_m": test.mean_gospa_m,
        }
        for final in finals
        for seed, (one, test) in enumerate(zip(final.objective, final.test, strict=True))
    ]


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
