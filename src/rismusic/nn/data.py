"""The scenes of a training: a function of epoch, step and process, so that a resumed one sees the same.

Dropout of whole channels, drawn for each scene by its address.

The places of a map that lie side by side say much the same, so that a number left out at one of them is told
by the next. What is left out is therefore a channel, everywhere (Tompson et al., "Efficient object
localization using convolutional networks", CVPR 2015), of what a block adds (Vaswani et al., "Attention is
all you need", NeurIPS 2017).

The generator that torch shares among all that ask would make a training depend on how often it was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.estimation.calibration import whitened
from rismusic.estimation.noise import guess_noise
from rismusic.io import Recording
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.spec import NetworkSpec, TrainSpec
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.simulation.simulator import Simulator

# Scenes that the probes look at.
_PROBED = 16


class TrainingScenes:
    """Batches for training and validation, simulated when they are asked for.

    Args:
        spec: system, sizes of the batches, seed.
        group: the processes and the device.
    """

    def __init__(self, spec: TrainSpec, group: ProcessGroup | None = None) -> None:
        self.spec, self.group = spec, group or ProcessGroup()
        # Scenes that are to be learned by heart are what the validation looks at, too.
        self._train, self._validation = (
            Simulator(spec.system, seed=spec.seed, split=split, device=self.group.device)
            for split in ("train", "validation" if spec.fresh else "train")
        )

    def numbers(self, epoch: int, step: int) -> list[range]:
        """The scene numbers of an optimizer step's batches: this process's share of each."""
        spec, world = self.spec, self.group.world
        first = step * spec.accumulation * spec.batch + (epoch * spec.scenes_per_epoch if spec.fresh else 0)
        share = spec.batch // world
        starts = [first + part * spec.batch + self.group.rank * share for part in range(spec.accumulation)]
        return [range(start, start + share) for start in starts]

    def hidden(self, epoch: int, step: int) -> list[bool]:
        """Of which of an optimizer step's batches the noise variance is hidden: the same in all processes."""
        parts = self.spec.accumulation
        batches = torch.arange(parts) + parts * (epoch * self.spec.steps_per_epoch + step)
        uniform = Draws(self.spec.seed, "train", batches).uniform(Stream.HIDDEN_NOISE, 1)[:, 0]
        return [value < self.spec.hidden_noise for value in uniform.tolist()]

    def step(self, epoch: int, step: int) -> Iterator[Recording]:
        """The batches of an optimizer step, one by one."""
        for numbers, hide in zip(self.numbers(epoch, step), self.hidden(epoch, step), strict=True):
            yield self._given(self._train.scenes(numbers.start, numbers.stop), hide)

    def validation(self) -> Iterator[Recording]:
        """The validation set in batches: a half with its noise variance, a half without.

        Where ``spec.fresh`` is off, its scenes are those that are trained on.
        """
        scenes = self.spec.validation_scenes
        for hide, (start, stop) in ((False, (0, scenes // 2)), (True, (scenes // 2, scenes))):
            for recording in self._validation.stream(self.spec.batch, start=start, stop=stop):
                yield self._given(recording, hide)

    def scored(self) -> tuple[Recording, Recording]:
        """The scenes that are located: as they are, and as the network is given them.

        Every second one is given with an estimate of its noise variance.
        """
        scenes = self._validation.scenes(0, self.spec.scored_scenes)
        guessed = with_guessed_noise(scenes)
        assert scenes.noise_variance is not None
        assert guessed.noise_variance is not None
        odd = torch.arange(len(scenes), device=self.group.device) % 2 == 1
        noise = torch.where(odd, guessed.noise_variance, scenes.noise_variance)
        return scenes, self._given(replace(scenes, noise_variance=noise))

    def probe(self) -> Recording:
        """A few scenes of the validation set, for the probes."""
        count = min(_PROBED, self.spec.batch, self.spec.validation_scenes)
        return self._given(self._validation.scenes(0, count))

    def _given(self, recording: Recording, hide: bool = False) -> Recording:
        """A recording as inference hands it to the network: whitened where panels err."""
        recording = with_guessed_noise(recording) if hide else recording
        return whitened(recording, self.spec.system.hardware.response_error)


def with_guessed_noise(recording: Recording) -> Recording:
    """The recording as inference takes one without a noise variance: with an estimate in its place."""
    noise = guess_noise(replace(recording, noise_variance=None))
    return replace(recording, noise_variance=noise.to(recording.snapshots.real.dtype))


def channel_dropout(spec: NetworkSpec, draws: Draws) -> Float[Tensor, "S T B 2 W"]:
    """What to multiply the channels with that the blocks add: 0 where one is left out, else above 1.

    The mean is 1, so that nothing is multiplied once the training is over.

    Args:
        spec: T stages of B blocks of W channels, and the share that is left out. Of each block the first row
            is for what its small network adds, the second for its attention, where it has one.
        draws: one row for each of S scenes.
    """
    uniform = draws.uniform(Stream.DROPOUT, spec.stages, spec.depth, 2, spec.width)
    return (uniform >= spec.dropout).to(uniform.dtype) / (1 - spec.dropout)
