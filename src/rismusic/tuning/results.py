"""The result of a search: final evaluation, comparison with the default, plots, and the files in the folder.

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

Each plot takes ``ax=`` and returns the axes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from rismusic.errors import InputError
from rismusic.files import check_output, read_beginning, write_text
from rismusic.nn.run_folder import BEST as BEST_WEIGHTS
from rismusic.nn.spec import TrainSpec
from rismusic.plots import COLOURS, MARKERS, decorated, new_axes, save
from rismusic.report.page import Plot, fixed, general, setting_rows, within, write_page
from rismusic.spec import LocateSpec, dump_spec
from rismusic.text import csv_text
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
from rismusic.tuning.spec import TuneSpec, apply
from rismusic.tuning.storage import experimental
from rismusic.tuning.worker import WORKER, Say, current, failure
from rismusic.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_RESAMPLED = 4000


def candidates(spec: TuneSpec, trials: Sequence[FrozenTrial]) -> list[Candidate]:
    """The default and the best trials, the best one first."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda trial: (trial.value, trial.number))
    best = [Candidate(str(trial.number), dict(trial.params)) for trial in done[: spec.finalists]]
    return [Candidate(DEFAULT, {}), *best]


@dataclass(frozen=True)
class Final:
    """Settings of the final evaluation and their results, one per seed.

    The name is ``default``, the number of a trial, or ``default, inference tuned``.
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
    """Cost of the default minus that of the best settings on the test scenes, with its 95 % interval."""

    gain: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the best settings beat the default by more than the interval."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether they are worse by more than the interval."""
        return self.high < 0

    def sentence(self, name: str) -> str:
        """The comparison in a sentence."""
        result = "is better" if self.better else "is worse" if self.worse else "is not significantly better"
        return (
            f"{name} {result} than the default on the test scenes. Cost of the default minus its cost: "
            f"{self.gain:+.4f} (95 % confidence interval {self.low:+.4f} to "
            f"{self.high:+.4f})."
        )


def compare(default: Sequence[Evaluation], best: Sequence[Evaluation], *, seed: int = 0) -> Comparison:
    """Compare two settings on the same scenes, with a paired bootstrap over scenes.

    Both are trained from the same seeds. Scenes are resampled in pairs, each with all of its trainings (Efron
    and Tibshirani, "An introduction to the bootstrap", 1993). The interval is that of the scenes; it does not
    include the variation with the seed of a training.
    """
    rows, other = pooled(default), pooled(best)
    scenes = len(rows)
    drawn = np.random.default_rng(seed).integers(scenes, size=(_RESAMPLED, scenes))
    gains = pooled_cost(rows[drawn], len(default)) - pooled_cost(other[drawn], len(best))
    low, high = np.quantile(gains, (0.025, 0.975))
    gain = pooled_cost(rows, len(default)) - pooled_cost(other, len(best))
    return Comparison(float(gain), float(low), float(high))


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
        value = self.correlation["surrogate"]
        correlation = "undefined" if math.isnan(value) else f"{value:.2f}"
        return [
            self.comparison.sentence(f"Trial {self.best.name}"),
            f"{len(self.trials)} trials: {pruned} pruned, {failed} failed. Pruning saved "
            f"{self.pruning_saved:.0%} of the epochs, early stopping {self.patience_saved:.0%}.",
            f"Rank correlation of the surrogate with the cost: {correlation} over the {completed} completed "
            "trials.",
        ]


def summarize(
    objective: FinalObjective,
    trials: Sequence[FrozenTrial],
    long_trials: Sequence[FrozenTrial],
    *,
    folder: Path,
    command: str,
) -> TuneResult:
    """Put together the result of a search."""
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


_FILES = (
    *("best.toml", "locate.toml", "trials.csv", "finals.csv", "comparison.txt"),
    *("history.png", "importance.png", "report.html"),
)


def check_folder(folder: Path, *, continued: bool) -> None:
    """Check that no file is replaced but earlier results of the same study (if it is ``continued``).

    Links, read-only files and folders in their places are refused, and a folder that takes no files.
    """
    present = [name for name in _FILES if os.path.lexists(folder / name)]
    # It is written first, so the others are results if it is one.
    ours = present[:1] == [_FILES[0]] and read_beginning(folder / _FILES[0], 16).startswith(b"# rismusic ")
    if present and not (continued and ours):
        raise InputError(
            str(folder), f"contains {present[0]} already, which would be replaced; choose another folder"
        )
    for name in present or _FILES[:1] * folder.is_dir():
        check_output(folder / name, overwrite=True)


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
        write_text(folder / name, text, overwrite=True)
    importance = importances(study)
    say(f"wrote best.toml, locate.toml and the tables to {folder}")

    def plots() -> None:
        save(plot_overview(result), folder / "history.png", overwrite=True)
        if importance:
            save(plot_importance(importance), folder / "importance.png", overwrite=True)

    def report() -> None:
        write_tune_report(folder / "report.html", result, rows, importance, overwrite=True)

    for name, write in (("plots", plots), ("report.html", report)):
        try:
            write()
            say(f"wrote {name} to {folder}")
        except InputError as error:
            say(f"no {name}: {error}")


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
    return csv_text(list(rows[0]), rows)


# Maximum size of the table of trials, in bytes.
_ROWS = 300_000


def plot_history(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """Plot the cost of each trial and the lowest so far; pruned and failed trials are ticks on the axis."""
    ax = ax or new_axes(None)[0]
    done = _completed(trials)
    at, costs = [trial.number for trial in done], [float(trial.value or math.nan) for trial in done]
    ax.plot(at, costs, "o", c=COLOURS[0], label="cost")
    best = [min(costs[: place + 1]) for place in range(len(costs))]
    ax.step(at, best, where="post", c=COLOURS[0], lw=1, label="lowest so far")
    for state, label, marker, colour in (
        (TrialState.PRUNED, "pruned", "|", COLOURS[4]),
        (TrialState.FAIL, "failed", "x", COLOURS[1]),
    ):
        some = [trial.number for trial in trials if trial.state == state]
        if some:
            height = [0.02] * len(some)
            ax.plot(some, height, marker, c=colour, transform=ax.get_xaxis_transform(), label=label)
    ax.set(xlabel="trial", ylabel="cost")
    return decorated(ax, integers=True)


def plot_surrogates(trials: Sequence[FrozenTrial], *, ax: Axes | None = None) -> Axes:
    """Plot the surrogate of each trial over the epochs, with a cross where a trial was pruned."""
    ax = ax or new_axes(None)[0]
    for trial in trials:
        values = [epoch["surrogate"] for epoch in trial.user_attrs.get(EPOCHS, [])]
        pruned = trial.state == TrialState.PRUNED
        at = list(range(1, len(values) + 1))
        ax.plot(at, values, c=COLOURS[4] if pruned else COLOURS[0], lw=0.9, alpha=0.7)
        if pruned:
            ax.plot(at[-1:], values[-1:], "x", c=COLOURS[4])
    ax.plot([], [], c=COLOURS[0], label="not pruned")
    ax.plot([], [], "x-", c=COLOURS[4], label="pruned")
    ax.set(xlabel="epoch", ylabel="surrogate")
    return decorated(ax, integers=True)


def plot_agreement(
    trials: Sequence[FrozenTrial], correlation: float = math.nan, *, ax: Axes | None = None
) -> Axes:
    """Plot the cost of each completed trial over its surrogate in the last epoch."""
    ax = ax or new_axes(None)[0]
    done = _completed(trials)
    values = [trial.user_attrs[EPOCHS][-1]["surrogate"] for trial in done]
    label = "trials" if math.isnan(correlation) else f"rank correlation {correlation:.2f}"
    ax.plot(values, [float(trial.value or math.nan) for trial in done], "o", c=COLOURS[0], label=label)
    ax.set(xlabel="surrogate in the last epoch", ylabel="cost")
    return decorated(ax)


def plot_overview(result: TuneResult) -> Axes:
    """Plot history, surrogates and agreement side by side; the first axes are returned."""
    axes = new_axes(None, None, None, size=(15.0, 4.0))
    plot_surrogates(result.trials, ax=axes[1])
    plot_agreement(result.trials, result.correlation["surrogate"], ax=axes[2])
    return plot_history(result.trials, ax=axes[0])


def plot_importance(importance: Mapping[str, float], *, ax: Axes | None = None) -> Axes:
    """Plot the importance of each setting, the most important one at the top."""
    ax = ax or new_axes(None, size=(6.5, 1.2 + 0.28 * max(3, len(importance))))[0]
    names = sorted(importance, key=lambda name: importance[name])
    ax.barh(names, [100 * importance[name] for name in names], color=COLOURS[0])
    ax.set(xlabel="importance / %")
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_finals(finals: Sequence[Final], *, ax: Axes | None = None) -> Axes:
    """Plot the cost on test scenes of each training of the final evaluation, and the mean of each setting."""
    ax = ax or new_axes(None)[0]
    for place, final in enumerate(finals):
        for seed, test in enumerate(final.test):
            marker, colour = MARKERS[seed % len(MARKERS)], COLOURS[seed % len(COLOURS)]
            label = None if place else f"seed {seed}"
            ax.plot([place], [test.cost], marker, c=colour, label=label, alpha=0.8)
        ax.hlines(final.test_cost, place - 0.3, place + 0.3, color="0.2")
    names = [final.name.replace(", ", ",\n") for final in finals]
    ax.set_xticks(range(len(finals)), names)
    ax.set(ylabel="cost on test scenes")
    return decorated(ax)


def write_tune_report(
    path: Path,
    result: TuneResult,
    rows: Sequence[Mapping[str, Any]],
    importance: Mapping[str, float],
    *,
    overwrite: bool = False,
) -> None:
    """Write the report of a search as one HTML file below 1 MB."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    shown = cells[: len(within(("".join(line) + 20 * "-" for line in cells), _ROWS))]
    spec = result.spec
    write_page(
        path,
        "tuning.html.j2",
        overwrite=overwrite,
        command=result.command,
        trials=len(rows),
        sentences=result.sentences(),
        finals=[
            (
                final.name,
                final is result.best,
                fixed(final.cost, 4),
                fixed(final.test_cost, 4),
                fixed(final.test_mean("f1"), 3),
                fixed(final.test_mean("mean_gospa_m"), 3),
            )
            for final in result.finals
        ],
        seeds=spec.final_seeds,
        epochs=spec.long_epochs,
        test_scenes=spec.test_scenes,
        correlations=[(name, fixed(value, 2)) for name, value in result.correlation.items()],
        plots=_plots(result, importance),
        columns=list(rows[0]),
        rows=shown,
        left_rows=len(cells) - len(shown),
        best=setting_rows(result.training),
        locate=setting_rows(result.locate),
        settings=setting_rows(spec.replace(training=spec.short_training())),
    )


def _plots(result: TuneResult, importance: Mapping[str, float]) -> list[Plot]:
    def axes(height: float = 3.6) -> Any:
        return new_axes(None, size=(5.6, height))[0]

    trials, correlation = result.trials, result.correlation["surrogate"]
    plots = [
        Plot.of(plot_finals(result.finals, ax=axes()), "Cost on test scenes in the final evaluation."),
        Plot.of(plot_history(trials, ax=axes()), "Cost of the trials."),
        Plot.of(plot_surrogates(trials, ax=axes()), "Surrogate, by which trials are pruned."),
        Plot.of(plot_agreement(trials, correlation, ax=axes()), "Agreement of surrogate and cost."),
    ]
    if importance:
        height = 1.2 + 0.26 * len(importance)
        plots.append(Plot.of(plot_importance(importance, ax=axes(height)), "Importance of each setting."))
    return plots


def _completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return general(value) if isinstance(value, float) else str(value)
