"""Training and validation scenes, and dropout masks.

Both are pure functions of seed, epoch, step and rank, so that a resumed training sees the same scenes and
masks as an uninterrupted one. The global random generator of torch would depend on how often it was called.
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

# Number of scenes for the gradient probes.
_PROBE_SCENES = 16


class TrainingScenes:
    """Batches for training and validation, simulated on demand.

    Args:
        spec: system, batch sizes, seed.
        group: the processes and the device.
    """

    def __init__(self, spec: TrainSpec, group: ProcessGroup | None = None) -> None:
        self.spec, self.group = spec, group or ProcessGroup()
        # Without fresh scenes the question is whether the network memorises, so it is validated on the same.
        self._train, self._validation = (
            Simulator(spec.system, seed=spec.seed, split=split, device=self.group.device)
            for split in ("train", "validation" if spec.fresh else "train")
        )

    def scene_ranges(self, epoch: int, step: int) -> list[range]:
        """Scene numbers of the batches of an optimizer step, the share of this rank only."""
        spec, world_size = self.spec, self.group.world_size
        first = step * spec.accumulation * spec.batch + (epoch * spec.scenes_per_epoch if spec.fresh else 0)
        share = spec.batch // world_size
        starts = [first + part * spec.batch + self.group.rank * share for part in range(spec.accumulation)]
        return [range(start, start + share) for start in starts]

    def noise_hidden(self, epoch: int, step: int) -> list[bool]:
        """For each batch of an optimizer step, whether its noise variance is hidden; equal on all ranks."""
        parts = self.spec.accumulation
        batches = torch.arange(parts) + parts * (epoch * self.spec.steps_per_epoch + step)
        uniform = Draws(self.spec.seed, "train", batches).uniform(Stream.HIDDEN_NOISE, 1)[:, 0]
        return [value < self.spec.hidden_noise for value in uniform.tolist()]

    def step(self, epoch: int, step: int) -> Iterator[Recording]:
        """The batches of an optimizer step."""
        ranges, hidden = self.scene_ranges(epoch, step), self.noise_hidden(epoch, step)
        for scenes, hide in zip(ranges, hidden, strict=True):
            yield self._network_input(self._train.scenes(scenes.start, scenes.stop), hide)

    def validation(self) -> Iterator[Recording]:
        """The validation set in batches; the second half has its noise variance hidden."""
        scenes = self.spec.validation_scenes
        for hide, (start, stop) in ((False, (0, scenes // 2)), (True, (scenes // 2, scenes))):
            for recording in self._validation.stream(self.spec.batch, start=start, stop=stop):
                yield self._network_input(recording, hide)

    def scored(self) -> tuple[Recording, Recording]:
        """The validation scenes whose sources are located: as simulated, and as the network's input.

        In the network's input every second scene has an estimated noise variance.
        """
        scenes = self._validation.scenes(0, self.spec.scored_scenes)
        estimated = with_estimated_noise(scenes)
        assert scenes.noise_variance is not None
        assert estimated.noise_variance is not None
        odd = torch.arange(len(scenes), device=self.group.device) % 2 == 1
        noise = torch.where(odd, estimated.noise_variance, scenes.noise_variance)
        return scenes, self._network_input(replace(scenes, noise_variance=noise))

    def probe(self) -> Recording:
        """A few validation scenes for the gradient probes."""
        n_scenes = min(_PROBE_SCENES, self.spec.batch, self.spec.validation_scenes)
        return self._network_input(self._validation.scenes(0, n_scenes))

    def _network_input(self, recording: Recording, hide_noise: bool = False) -> Recording:
        """A recording as inference passes it to the network: whitened if hardware errors are modelled."""
        recording = with_estimated_noise(recording) if hide_noise else recording
        return whitened(recording, self.spec.system.hardware.response_error)


def with_estimated_noise(recording: Recording) -> Recording:
    """The recording with its noise variance replaced by the estimate that inference uses without one."""
    noise = guess_noise(replace(recording, noise_variance=None))
    return replace(recording, noise_variance=noise.to(recording.snapshots.real.dtype))


def channel_dropout(spec: NetworkSpec, draws: Draws) -> Float[Tensor, "S T B 2 W"]:
    """Masks for channel dropout on the residual branches: 0 for a dropped channel, 1 / (1 - p) otherwise.

    Neighbouring cells of a feature map are strongly correlated, so whole channels are dropped (Tompson et
    al., "Efficient object localization using convolutional networks", CVPR 2015), on the residual branches
    (Vaswani et al., "Attention is all you need", NeurIPS 2017). The mean is 1, so inference needs no scaling.

    Args:
        spec: T stages of B blocks of W channels, and the dropout probability p. Row 0 of each block is for
            its feed-forward branch, row 1 for its attention, if it has one.
        draws: random numbers, one row for each of S scenes.
    """
    uniform = draws.uniform(Stream.DROPOUT, spec.stages, spec.depth, 2, spec.width)
    return (uniform >= spec.dropout).to(uniform.dtype) / (1 - spec.dropout)
