"""What the doctor is given: a training that has not begun, its model, data, loop and configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path

import torch

from rismusic.io import Recording
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.monitors import Finding, Report
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import Trainer

MakeTrainer = Callable[[TrainSpec, RunFolder], Trainer]

# Scenes that the checks of single scenes look at, and those of the data as a whole.
_FEW, _MANY = 16, 256


class Case:
    """A training as its loop would begin it. Checks that change weights take a learner of their own.

    Args:
        spec: all settings.
        folder: an empty one, for the runs that the doctor makes.
        make: what makes the loop, with its learner and its scenes.
    """

    def __init__(self, spec: TrainSpec, folder: Path, make: MakeTrainer = Trainer) -> None:
        self.spec, self._folder, self._make = spec, folder, make
        self._numbers = count()
        self.trainer = self.begin(spec)

    def begin(self, spec: TrainSpec) -> Trainer:
        """A loop at its beginning, in a folder of its own."""
        run = RunFolder(self._folder / str(next(self._numbers)))
        run.create(spec)
        return self._make(spec, run)

    @property
    def learner(self) -> Learner:
        """The network at its beginning; no check changes it."""
        return self.trainer.learner

    @property
    def scenes(self) -> TrainingScenes:
        """Where the loop's scenes come from."""
        return self.trainer.scenes

    def fresh(self) -> Learner:
        """Another learner at its beginning, to be changed."""
        return self.begin(self.spec).learner

    @cached_property
    def known(self) -> TrainingScenes:
        """The same scenes, their noise variance never hidden."""
        return type(self.scenes)(self.spec.replace(hidden_noise=0.0), self.trainer.group)

    @cached_property
    def many(self) -> list[Recording]:
        """Some hundred scenes of the training, in batches."""
        found: list[Recording] = []
        for step in range(self.spec.schedule.epochs * self.spec.steps_per_epoch):
            epoch, within = divmod(step, self.spec.steps_per_epoch)
            found += self.known.step(epoch, within)
            if sum(map(len, found)) >= _MANY:
                break
        return found

    @cached_property
    def few(self) -> Recording:
        """A few scenes of the training."""
        return self.many[0][: min(_FEW, len(self.many[0]))]


@contextmanager
def opened(spec: TrainSpec, make: MakeTrainer = Trainer) -> Iterator[Case]:
    """A case in a folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="rismusic-doctor-") as folder:
        yield Case(spec, Path(folder), make)


def told(tag: str, text: str, findings: list[Finding]) -> Report:
    """A report whose numbers are those of its findings."""
    return Report(tag, text, {one.name: one.value for one in findings}, tuple(findings))


def double(recording: Recording) -> Recording:
    """The same recording in double precision."""

    def wide(value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.complex128 if value.is_complex() else torch.float64)

    return replace(
        recording,
        snapshots=wide(recording.snapshots),
        channel=None if recording.channel is None else wide(recording.channel),
        codes=None if recording.codes is None else wide(recording.codes),
        noise_variance=None if recording.noise_variance is None else wide(recording.noise_variance),
        truth=None if recording.truth is None else recording.truth.each(wide),
    )
