"""Settings of a hyperparameter search. The module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count, LocateSpec, Spec

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
    early_stop_patience: Annotated[int, Field(ge=0)] = 0
    """Stop any training after this many epochs without a lower validation loss; 0 disables it."""
    sampler: Literal["tpe", "gp", "qmc", "nsgaii", "random"] = "tpe"
    """Optuna sampler: 'tpe' (multivariate), 'gp' (Gaussian process), 'qmc', 'nsgaii' or 'random'."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Optuna pruner, which stops unpromising trials early."""
    startup_trials: Annotated[int, Field(ge=0)] = 5
    """Number of completed trials before the median pruner prunes any."""
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
        return self.training.replace(schedule=schedule, seed=seed, patience=self.early_stop_patience)
