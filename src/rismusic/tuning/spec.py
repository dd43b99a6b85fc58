"""Settings of a search of settings. The module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import Count, LocateSpec, Spec

TRIALS = 50
"""Trials of the first stage where nothing else is said."""


class TuneSpec(Spec):
    """A whole search: what is tried, for how long, and on which scenes it is judged."""

    training: TrainSpec = TrainSpec.search()
    """Settings of a training that are not searched. With ``locate`` they are the default, to be beaten."""
    locate: LocateSpec = LocateSpec(method="hybrid")
    """The same for inference; the searched volume and the weights are filled in."""
    space: str = "narrow"
    """What is searched: 'narrow', 'wide', or a TOML file."""
    epochs_per_trial: Count = 12
    """Epochs of a trial at most."""
    early_stop_patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation loss after which any training stops; 0: never."""
    sampler: Literal["tpe", "gp", "qmc", "nsgaii", "random"] = "tpe"
    """Who proposes settings: 'tpe' (multivariate), 'gp' (Gaussian process), 'qmc', 'nsgaii' or 'random'."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Who stops trials that do badly."""
    startup_trials: Annotated[int, Field(ge=0)] = 5
    """Trials that finish before the median is asked."""
    inference_trials: Annotated[int, Field(ge=0)] = 12
    """Settings of inference that are tried on each trained network; 0: the default ones are kept."""
    knob_scenes: Count = 64
    """Scenes on which these are compared."""
    objective_scenes: Count = 128
    """Other scenes on which every trial is judged, the same for all."""
    finalists: Count = 3
    """Best trials that go to the second stage, beside the default."""
    final_seeds: Count = 3
    """Seeds of each there."""
    final_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of each there; 0: three times those of a trial."""
    fresh_scenes: Annotated[int, Field(ge=2)] = 256
    """Scenes that nothing was chosen by, on which the best and the default are compared at the end."""
    failures: Count = 5
    """Trials in a row that may fail; one more and the search stops."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """Of the proposals, of the trainings of the first stage and of the scenes that judge."""

    @model_validator(mode="after")
    def _hybrid(self) -> TuneSpec:
        if self.locate.method != "hybrid":
            raise InputError(
                "locate.method", "'hybrid' (the others use no network)", repr(self.locate.method)
            )
        return self

    @property
    def long_epochs(self) -> int:
        """Epochs of a training of the second stage."""
        return self.final_epochs or 3 * self.epochs_per_trial

    def short_training(self) -> TrainSpec:
        """What a trial begins with."""
        return self._training(self.epochs_per_trial, self.seed)

    def long_training(self, seed: int) -> TrainSpec:
        """What a training of the second stage begins with.

        Args:
            seed: counted from 0; none of them is that of the first stage.
        """
        return self._training(self.long_epochs, self.seed + 1 + seed)

    def _training(self, epochs: int, seed: int) -> TrainSpec:
        schedule = self.training.schedule.replace(epochs=epochs)
        return self.training.replace(schedule=schedule, seed=seed, patience=self.early_stop_patience)
