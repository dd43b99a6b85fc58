"""Settings of a hyperparameter search, and its search space. The module does not import torch.

A search space names settings by their dotted names, each with limits or a list of choices::

    [training."network.width"]
    choices = [24, 32, 48]

    [training."loss.subspace"]
    low = 0.01
    high = 0.2
    log = true
    also = ["loss.subspace_last"]

    [locate."hybrid.beta"]
    low = 0.0
    high = 0.6

If both limits are integers, the parameter is an integer. ``also`` lists settings that receive the same value;
a setting that is a pair receives it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from rismusic.errors import InputError, in_file
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count, LocateSpec, Spec, flat_settings, read_toml

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
Values: TypeAlias = Mapping[str, Any]
S = TypeVar("S", bound=Spec)

SHIPPED = Path(__file__).parent / "spaces"


class Parameter(Spec):
    """One searched setting, with limits or choices."""

    low: StrictInt | StrictFloat | None = None
    """Lower limit."""
    high: StrictInt | StrictFloat | None = None
    """Upper limit."""
    log: bool = False
    """Sample uniformly on a logarithmic scale."""
    step: StrictInt | StrictFloat | None = None
    """Step between values; none means continuous (or 1 for integers)."""
    choices: tuple[Value, ...] = ()
    """Possible values, instead of limits."""
    also: tuple[str, ...] = ()
    """Other settings that receive the same value."""

    @model_validator(mode="after")
    def _limits_or_choices(self) -> Parameter:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise InputError("choices", "cannot be combined with low, high, log or step")
            return self
        if self.low is None or self.high is None:
            raise InputError("low, high", "give both limits, or choices")
        if self.high < self.low:
            raise InputError("high", f"must be at least low = {self.low:g}; got {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise InputError(
                "log", f"needs a positive low and no step; got low = {self.low:g}, step = {self.step}"
            )
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All choices, or both limits."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value proposed by the sampler of the study."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, float(self.low), float(self.high), log=self.log, step=self.step)


def suggest(trial: optuna.Trial, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """A value for each parameter, proposed by the sampler of the study."""
    return {name: parameter.suggest(trial, name) for name, parameter in parameters.items()}


class Space(Spec):
    """A search space."""

    training: dict[str, Parameter] = Field(default_factory=dict)
    """Settings of :class:`~rismusic.nn.spec.TrainSpec`, one value for each training."""
    locate: dict[str, Parameter] = Field(default_factory=dict)
    """Settings of :class:`~rismusic.spec.LocateSpec`, searched on each trained network."""

    def check(self, training: TrainSpec, locate: LocateSpec) -> None:
        """Check that every name is a setting and every limit and choice is a valid value of it."""
        if not self.training:
            raise InputError("space", "must contain at least one setting under [training]")
        parts: list[tuple[str, dict[str, Parameter], Spec]] = [
            ("training", self.training, training),
            ("locate", self.locate, locate),
        ]
        for part, parameters, spec in parts:
            for name, parameter in parameters.items():
                for value in parameter.extremes:
                    try:
                        apply(spec, parameters, {name: value})
                    except InputError as error:
                        raise InputError(f"space.{part}.{name}", error.problem) from None


def load_space(name: str) -> Space:
    """Load a search space that comes with the package (``narrow``, ``wide``), or one from a TOML file."""
    path = Path(name)
    if path.suffix != ".toml":
        shipped = sorted(one.stem for one in SHIPPED.glob("*.toml"))
        if name not in shipped:
            raise InputError("space", f"must be one of {', '.join(shipped)}, or a .toml file; got {name!r}")
        path = SHIPPED / f"{name}.toml"
    with in_file(path):
        return Space(**read_toml(path))


def apply(spec: S, parameters: Mapping[str, Parameter], values: Values) -> S:
    """A copy of the settings with the values of some parameters."""
    now, changed = flat_settings(spec.model_dump()), {}
    for name, value in values.items():
        if name not in parameters:
            raise InputError(name, "is not a parameter of the search space")
        for each in (name, *parameters[name].also):
            changed[each] = (value, value) if isinstance(now.get(each), tuple) else value
    return spec.changed(changed)


TRIALS = 50
"""Default number of trials."""


class TuneSpec(Spec):
    """Settings of a search: what is varied, for how long each trial trains, and how it is evaluated."""

    training: TrainSpec = TrainSpec.search()
    """Training settings that are not searched. With ``locate`` they form the default, the baseline."""
    locate: LocateSpec = LocateSpec(method="hybrid")
    """Inference settings that are not searched. The search volume and the weights are filled in."""
    space: str = "narrow"
    """Search space: 'narrow', 'wide', or a TOML file."""
    epochs_per_trial: Count = 12
    """Maximum number of epochs of a trial."""
    sampler: Literal["tpe", "gp", "qmc", "nsgaii", "random"] = "tpe"
    """Optuna sampler: 'tpe' (multivariate), 'gp' (Gaussian process), 'qmc', 'nsgaii' or 'random'."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Optuna pruner, which stops unpromising trials early."""
    inference_trials: Annotated[int, Field(ge=0)] = 12
    """Number of inference settings tried on each trained network; 0 keeps the default ones."""
    inference_scenes: Count = 64
    """Number of scenes on which inference settings are compared."""
    objective_scenes: Count = 128
    """Number of scenes on which the cost of every trial is computed, the same scenes for all trials."""
    finalists: Count = 3
    """Number of best trials that enter the final evaluation, in addition to the default."""
    final_seeds: Count = 3
    """Number of trainings of each in the final evaluation, each with its own seed."""
    final_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of a training in the final evaluation; 0 means three times those of a trial."""
    test_scenes: Annotated[int, Field(ge=2)] = 256
    """Number of test scenes, used only to compare the best settings with the default at the end."""
    max_failures: Count = 5
    """Stop the search when more than this many trials of a worker fail in a row."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Seed of the sampler, of the trainings of all trials, and of the scenes on which they are evaluated."""

    @model_validator(mode="after")
    def _hybrid(self) -> TuneSpec:
        if self.locate.method != "hybrid":
            raise InputError(
                "locate.method",
                f"a search needs a method with a network, 'hybrid'; got {self.locate.method!r}",
            )
        return self

    @property
    def long_epochs(self) -> int:
        """Epochs of a training in the final evaluation."""
        return self.final_epochs or 3 * self.epochs_per_trial

    def short_training(self) -> TrainSpec:
        """Training settings of a trial before the searched values are applied."""
        return self._training(self.epochs_per_trial, self.seed)

    def long_training(self, seed: int) -> TrainSpec:
        """Training settings in the final evaluation before the searched values are applied.

        Args:
            seed: index of the training, counted from 0; its seed differs from that of the trials.
        """
        return self._training(self.long_epochs, self.seed + 1 + seed)

    def _training(self, epochs: int, seed: int) -> TrainSpec:
        schedule = self.training.schedule.replace(epochs=epochs)
        return self.training.replace(schedule=schedule, seed=seed)
