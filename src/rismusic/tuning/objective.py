r"""The objective of a search: train a network, choose its inference settings, and compute one cost.

.. math:: \text{cost} = (1 - F_1) + \text{GOSPA} / c, \qquad c = 2\,\mathrm m.

F1 counts the sources located within 5 deg but ignores how accurately, and their range. GOSPA measures
distances in space but saturates at its cutoff c. Both terms are of order 1 over the SNRs that are searched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError

from rismusic.errors import InputError
from rismusic.hybrid import locate
from rismusic.io import Recording
from rismusic.metrics import match
from rismusic.nn.run_folder import BEST
from rismusic.nn.spec import LossSpec, TrainSpec
from rismusic.nn.train import train
from rismusic.nn.validation import Validation
from rismusic.simulation.random_numbers import Split
from rismusic.simulation.simulator import Simulator
from rismusic.spec import Finite, LocateSpec, Natural, Record, SystemSpec, complaint, limits
from rismusic.tuning.spec import Parameter, Space, TuneSpec, apply, suggest
from rismusic.tuning.storage import JOB, experimental
from rismusic.tuning.worker import NotFiniteError, Say, failure_recorded

Number = TypeVar("Number", float, np.ndarray)

CUTOFF_M = 2.0
# Split and first index of the scenes of each purpose, far beyond those on which a training validates.
_SCENES: dict[str, tuple[Split, int]] = {
    "inference": ("validation", 2**40),
    "objective": ("validation", 2**41),
    "test": ("test", 0),
}

# Attributes of a trial.
EPOCHS, SECONDS, LOCATE, INFERENCE_COST = "epochs", "seconds", "locate", "inference_cost"
# Evaluations of a trial: on the scenes of the objective and on test scenes, and both again with the default
# inference settings.
EVALUATION, TEST = "evaluation", "test"
EVALUATION_DEFAULT, TEST_DEFAULT = "evaluation_default_inference", "test_default_inference"

DEFAULT = "default"

# The loss terms that depend neither on beta nor on any searched weight, so that trials are comparable.
_WEIGHTS = LossSpec().weights
SURROGATE = {
    "covariance_predicted": _WEIGHTS["covariance"],
    **{name: _WEIGHTS[name] for name in ("count", "angle", "log_range", "existence", "heat_map")},
}


_Whole: TypeAlias = Annotated[Natural, Strict()]
_Metres: TypeAlias = Annotated[Finite, Strict()]


@dataclass(frozen=True)
class Evaluation:
    """Results of locating the sources of some scenes, one number per scene.

    Of the ``true`` sources, ``hits`` were located; ``gospa_m`` is GOSPA in metres.
    """

    # A database holds lists.
    __pydantic_config__ = ConfigDict(strict=False)

    hits: tuple[_Whole, ...]
    true: tuple[_Whole, ...]
    estimated: tuple[_Whole, ...]
    gospa_m: tuple[_Metres, ...]

    def __post_init__(self) -> None:
        scenes = {len(self.hits), len(self.true), len(self.estimated), len(self.gospa_m)}
        if len(scenes) > 1 or 0 in scenes:
            raise ValueError("needs one number for each scene")

    @property
    def f1(self) -> float:
        """F1 over all sources of all scenes."""
        return 2 * sum(self.hits) / max(1, sum(self.true) + sum(self.estimated))

    @property
    def mean_gospa_m(self) -> float:
        """Mean GOSPA over the scenes, in metres."""
        return float(np.mean(self.gospa_m))

    @property
    def cost(self) -> float:
        """The cost, see the head of this module."""
        return cost(self.f1, self.mean_gospa_m)

    def store(self, trial: optuna.Trial, name: str) -> None:
        """Store the evaluation as an attribute of a trial."""
        trial.set_user_attr(name, asdict(self))

    @classmethod
    def of(cls, trial: FrozenTrial, name: str) -> Evaluation:
        """Read an evaluation that :meth:`store` has written."""
        return TypeAdapter(cls).validate_python(trial.user_attrs[name])


class _EpochRecord(Record):
    surrogate: float
    loss: float
    f1: float
    gospa_m: float


class _TrialRecord(Record):
    """The attributes of a trial, which :class:`Objective` and the worker write."""

    job: str | None = None
    worker: str | None = None
    reason: str | None = None
    epochs: list[_EpochRecord] | None = None
    seconds: float | None = None
    locate: dict[str, bool | int | float | str] | None = None
    inference_cost: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    evaluation: Evaluation | None = None
    test: Evaluation | None = None
    evaluation_default_inference: Evaluation | None = None
    test_default_inference: Evaluation | None = None


def check_trials(study: optuna.Study) -> None:
    """Check the attributes of the trials of a study, which a database holds as text."""
    for trial in study.get_trials(deepcopy=False):
        where = f"trial {trial.number} of study {study.study_name!r}"
        try:
            found = _TrialRecord.model_validate(trial.user_attrs)
        except ValidationError as error:
            raise InputError("storage", f"{where} is damaged ({complaint(error)})") from None
        if trial.state != TrialState.COMPLETE:
            continue
        needed = [EVALUATION, EPOCHS]
        if "/" in (found.job or ""):  # a training of the final evaluation
            default = found.job is not None and found.job.startswith(f"{DEFAULT}/")
            needed += [TEST, EVALUATION_DEFAULT, TEST_DEFAULT] if default else [TEST]
        missing = [name for name in needed if not getattr(found, name)]
        # SQLite keeps a text in a column of numbers.
        if not isinstance(trial.value, float) or not math.isfinite(trial.value):
            missing.append("cost")
        if missing:
            raise InputError("storage", f"{where} is damaged: it is complete, but has no {missing[0]}")


def cost(f1: Number, gospa_m: Number) -> Number:
    """The cost of an F1 score and a GOSPA in metres; numbers or arrays."""
    return 1 - f1 + gospa_m / CUTOFF_M


@torch.no_grad()
def evaluate(recording: Recording, spec: LocateSpec) -> Evaluation:
    """Locate the sources of every scene and compare them with the true ones."""
    assert recording.truth is not None
    matched = match(recording.truth, locate(recording, spec=spec).sources)
    return Evaluation(
        hits=tuple(matched.hit.sum(-1).tolist()),
        true=tuple(matched.true_count.tolist()),
        estimated=tuple(matched.found_count.tolist()),
        gospa_m=tuple(matched.gospa.tolist()),
    )


def scenes_for(
    purpose: Literal["inference", "objective", "test"],
    system: SystemSpec,
    seed: int,
    scenes: int,
    device: str,
) -> Recording:
    """Scenes that no training uses, and different ones for each purpose.

    The purposes are to compare inference settings, the cost of a trial, and the comparison at the end.
    """
    split, first = _SCENES[purpose]
    return Simulator(system, seed=seed, split=split, device=device).scenes(first, first + scenes)


def locate_settings(system: SystemSpec, spec: LocateSpec, weights: Path) -> LocateSpec:
    """Inference settings with the weights and with the search volume of a system."""
    return spec.replace(
        weights=str(weights),
        sources_max=limits(system.sources)[1],
        azimuth_max_deg=system.scene.azimuth_max_deg,
        elevation_max_deg=system.scene.elevation_max_deg,
        range_min_m=system.scene.range_min_m,
        range_max_m=system.scene.range_max_m,
    )


@dataclass(frozen=True)
class Inference:
    """The best inference settings for one network.

    ``values`` is empty if the initial settings, of cost ``before``, were best.
    """

    values: dict[str, Any]
    spec: LocateSpec
    cost: float
    before: float


def tune_inference(
    recording: Recording, start: LocateSpec, parameters: dict[str, Parameter], *, trials: int, seed: int
) -> Inference:
    """Search the inference settings of a trained network, from initial ones that include the weights."""
    before = evaluate(recording, start).cost
    best = Inference({}, start, before, before)
    if not parameters or not trials:
        return best
    with experimental():
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=min(5, trials))
    # This runs inside a trial, where Optuna does not allow a second call of optimize.
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        values = suggest(trial, parameters)
        spec = apply(start, parameters, values)
        value = evaluate(recording, spec).cost
        study.tell(trial, value)
        if value < best.cost:
            best = Inference(values, spec, value, before)
    return best


def surrogate(validation: Validation) -> float:
    """The value by which trials are pruned: loss terms that mean the same in all trials."""
    return sum(weight * validation.terms[name] for name, weight in SURROGATE.items())


@dataclass(frozen=True)
class Objective:
    """A trial of the search. Calling it trains a network and returns its cost.

    The call raises ``optuna.TrialPruned`` if the trial is pruned, and one of
    :data:`rismusic.tuning.worker.EXPECTED` if it fails.
    """

    spec: TuneSpec
    space: Space
    folder: Path
    device: str
    say: Say

    def __call__(self, trial: optuna.Trial) -> float:
        """Run the trial."""
        with failure_recorded(trial):
            values = suggest(trial, self.space.training)
            training = apply(self.spec.short_training(), self.space.training, values)
            if self.train(trial, training):
                raise optuna.TrialPruned
            inference, evaluation = self.evaluate(trial, training)
            changed = ", ".join(f"{name} {_short(value)}" for name, value in inference.values.items())
            self.say(
                f"trial {trial.number}: cost {evaluation.cost:.4f} (F1 {evaluation.f1:.3f}, "
                f"GOSPA {evaluation.mean_gospa_m:.3f} m), inference: {changed or 'unchanged'}"
            )
            return evaluation.cost

    def run_folder(self, trial: optuna.Trial | FrozenTrial) -> Path:
        """The run folder of a trial."""
        return self.folder / f"{trial.number:04d}"

    def train(self, trial: optuna.Trial, training: TrainSpec) -> bool:
        """Train, report every epoch to the study, and return whether the trial was pruned."""
        epochs: list[dict[str, float]] = []
        pruned = False
        begun = time.monotonic()

        def watch(epoch: int, validation: Validation) -> bool:
            nonlocal pruned
            value, blend = surrogate(validation), validation.scores["blend"]
            if not math.isfinite(value) or not math.isfinite(validation.loss):
                raise NotFiniteError(f"the validation loss of epoch {epoch} is {validation.loss}")
            epochs.append(
                {"surrogate": value, "loss": validation.loss, "f1": blend.f1, "gospa_m": blend.gospa_m}
            )
            trial.report(value, epoch)
            trial.set_user_attr(EPOCHS, epochs)
            trial.set_user_attr(SECONDS, time.monotonic() - begun)
            pruned = bool(trial.should_prune())  # Optuna returns a numpy.bool
            return pruned

        train(training, out=self.run_folder(trial), device=self.device, on_epoch=watch)
        self.say(
            f"trial {trial.number}: {'pruned' if pruned else 'trained'} after {len(epochs)} epochs, "
            f"surrogate {epochs[-1]['surrogate']:.4f}"
        )
        return pruned

    def evaluate(self, trial: optuna.Trial, training: TrainSpec) -> tuple[Inference, Evaluation]:
        """Choose the inference settings of the trained network and evaluate it with them."""
        spec, system = self.spec, training.system
        inference = tune_inference(
            scenes_for("inference", system, spec.seed, spec.inference_scenes, self.device),
            locate_settings(system, spec.locate, self.run_folder(trial) / BEST),
            self.space.locate,
            trials=spec.inference_trials,
            seed=spec.seed,
        )
        scenes = scenes_for("objective", system, spec.seed, spec.objective_scenes, self.device)
        evaluation = evaluate(scenes, inference.spec)
        trial.set_user_attr(LOCATE, inference.values)
        trial.set_user_attr(INFERENCE_COST, [inference.before, inference.cost])
        evaluation.store(trial, EVALUATION)
        return inference, evaluation


@dataclass(frozen=True)
class Candidate:
    """Settings in the final evaluation: searched ones of a trial, or those of the ``default``."""

    name: str
    values: Mapping[str, Any]

    def training(self, spec: TuneSpec, space: Space, seed: int) -> TrainSpec:
        """Training settings for a seed, counted from 0."""
        return apply(spec.long_training(seed), space.training, self.values)


@dataclass(frozen=True)
class FinalObjective(Objective):
    """A training of the final evaluation, which is never pruned."""

    candidates: Sequence[Candidate]

    def jobs(self) -> list[str]:
        """The names of all trainings, ``CANDIDATE/SEED``."""
        return [f"{one.name}/{seed}" for seed in range(self.spec.final_seeds) for one in self.candidates]

    def __call__(self, trial: optuna.Trial) -> float:
        """Run the training."""
        spec = self.spec
        with failure_recorded(trial):
            name, seed = trial.user_attrs[JOB].split("/")
            candidate = next(one for one in self.candidates if one.name == name)
            training = candidate.training(spec, self.space, int(seed))
            self.train(trial, training)
            inference, evaluation = self.evaluate(trial, training)
            scenes = scenes_for("test", training.system, spec.seed, spec.test_scenes, self.device)
            evaluate(scenes, inference.spec).store(trial, TEST)
            if candidate.name == DEFAULT:
                default = locate_settings(training.system, spec.locate, self.run_folder(trial) / BEST)
                evaluate(scenes, default).store(trial, TEST_DEFAULT)
                scenes = scenes_for(
                    "objective", training.system, spec.seed, spec.objective_scenes, self.device
                )
                evaluate(scenes, default).store(trial, EVALUATION_DEFAULT)
            self.say(f"settings {name}, seed {seed}: cost {evaluation.cost:.4f}")
            return evaluation.cost


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
