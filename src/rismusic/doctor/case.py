"""The training under test: its settings, training loop, network and scenes, before the first step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path

from rismusic.io import Recording
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.run_folder import RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.nn.train import Trainer

MakeTrainer = Callable[[TrainSpec, RunFolder], Trainer]

# Number of scenes for checks of single scenes, and for statistics over scenes.
_FEW, _MANY = 16, 256


class Case:
    """A training before its first step. Checks that change weights start one of their own in the folder."""

    def __init__(self, spec: TrainSpec, folder: Path, make: MakeTrainer = Trainer) -> None:
        self.spec, self._folder, self.make = spec, folder, make
        self._numbers = count()
        self.trainer = self.start(spec)
        self.short_run: object = None

    def start(self, spec: TrainSpec) -> Trainer:
        """A new training loop before its first step, with a run folder of its own."""
        run = RunFolder(self._folder / str(next(self._numbers)))
        run.create(spec)
        return self.make(spec, run)

    @property
    def learner(self) -> Learner:
        """The learner before its first step. Checks must not change it."""
        return self.trainer.learner

    @cached_property
    def scenes_with_noise(self) -> TrainingScenes:
        """The same scenes, each with its noise variance recorded."""
        return type(self.trainer.scenes)(self.spec.replace(hidden_noise=0.0), self.trainer.group)

    @cached_property
    def recordings(self) -> list[Recording]:
        """At least 256 training scenes in batches, or all of them if there are fewer."""
        found: list[Recording] = []
        for step in range(self.spec.schedule.epochs * self.spec.steps_per_epoch):
            epoch, within = divmod(step, self.spec.steps_per_epoch)
            found += self.scenes_with_noise.step(epoch, within)
            if sum(map(len, found)) >= _MANY:
                break
        return found

    @cached_property
    def simulated(self) -> list[Recording]:
        """As :attr:`recordings`, but two batches only where hardware errors are modelled: not whitened."""
        if not self.spec.system.hardware.response_error:
            return self.recordings
        scenes = type(self.trainer.scenes)(self.spec.replace(hidden_noise=0.0), self.trainer.group)
        vars(scenes)["_network_input"] = lambda recording, *_: recording
        return [*scenes.step(0, 0), *scenes.step(0, min(1, self.spec.steps_per_epoch - 1))]

    @cached_property
    def recording(self) -> Recording:
        """Up to 16 training scenes."""
        return self.recordings[0][: min(_FEW, len(self.recordings[0]))]


@contextmanager
def open_case(spec: TrainSpec, make: MakeTrainer = Trainer) -> Iterator[Case]:
    """A case whose folder is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="rismusic-doctor-") as folder:
        yield Case(spec, Path(folder), make)
