r"""Training and validation scenes, dropout masks, and schedules of beta, learning rate and loss weights.

All are pure functions of seed, epoch, step and rank, so that a resumed training continues exactly like an
uninterrupted one. The global random generator of torch would depend on how often it was called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimation.calibration import whitened
from rismusic.estimation.noise import guess_noise
from rismusic.io import Recording
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.spec import LossSpec, NetworkSpec, ScheduleSpec, TermName, TrainSpec
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.simulation.simulator import Simulator

# Share of the epochs in which the weights of the structure losses rise.
_LAST_PHASE = 0.3
# From this beta on R_blend hardly depends on R_pred, which then needs a loss of its own.
_BETA_ALL_SAMPLE = 0.999
_MIN_PREDICTED_WEIGHT = 0.2
# Factor of the angle weight in the range stage of the curriculum; heads are matched by the angles too.
_ANGLE_FACTOR = 0.1


def beta_at(spec: ScheduleSpec, epoch: int, seed: int) -> float:
    r"""Share of R_samp in R_blend during an epoch.

    .. math:: \beta_e = \begin{cases} \beta\, e / (n - 1) & e < n \\ \beta + J (2 U_e - 1) & e \ge n
        \end{cases}, \qquad n = \max(2, \lceil 0.2\, E \rceil),

    with the jitter J and :math:`U_e` uniform on (0, 1), a function of seed and epoch. The result is clipped
    to [0, 1].
    """
    _check_epoch(spec, epoch)
    ramp = _ramp(spec)
    if epoch < ramp:
        return spec.beta * epoch / (ramp - 1)
    uniform = Draws(seed, "train", torch.tensor([epoch])).uniform(Stream.BETA, 1, dtype=torch.float64)
    return min(1.0, max(0.0, spec.beta + spec.beta_jitter * (2 * float(uniform) - 1)))


def learning_rate_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    r"""Factor of the learning rate at an optimizer step: linear warm-up, then cosine decay.

    .. math:: f_i = \begin{cases} (i + 1) / w & i < w \\
        f_\infty + (1 - f_\infty) \frac{1 + \cos(\pi\, (i + 1 - w) / (n - w))}{2} & i \ge w \end{cases},

    with :math:`w = \max(1, \mathrm{round}(\mathrm{warm\_up} \cdot n))`. The first step, i = 0, has the factor
    1 / w, not 0; the last, i = n - 1, the floor :math:`f_\infty`. i counts optimizer steps, not batches or
    epochs, like the argument of the function of ``LambdaLR``.
    """
    if steps < 1 or step < 0:
        raise InputError("step", f"must be at least 0, of at least 1 step; got step {step} of {steps}")
    warm = max(1, round(spec.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step + 1 - warm) / (steps - warm)) if steps > warm else 1.0
    return spec.learning_rate_floor + (1 - spec.learning_rate_floor) * (1 + math.cos(math.pi * progress)) / 2


def weights_at(loss: LossSpec, spec: ScheduleSpec, epoch: int, beta: float) -> dict[TermName, float]:
    """The weight of each loss during an epoch.

    While beta rises, the subspace loss has its warm-up weight. In the last phase the weights of subspace and
    peak contrast rise linearly between the two values of the spec. If beta is at least 0.999, the loss of
    R_pred has at least a fifth of the weight of that of R_blend. With a curriculum, the range loss is off in
    the first stage, and the angle loss has a tenth of its weight in the second.
    """
    _check_epoch(spec, epoch)
    weights = dict(loss.weights)
    last = round(_LAST_PHASE * spec.epochs)
    begin = spec.epochs - last
    if epoch < _ramp(spec):
        weights["subspace"] = loss.subspace_warm_up
    elif epoch >= begin:
        progress = (epoch - begin) / max(1, last - 1)
        weights["subspace"] = _interpolate(loss.subspace_last, progress)
        weights["peak_contrast"] = _interpolate(loss.peak_contrast_last, progress)
    if beta >= _BETA_ALL_SAMPLE:
        least = _MIN_PREDICTED_WEIGHT * loss.covariance
        weights["covariance_predicted"] = max(weights["covariance_predicted"], least)
    if spec.curriculum:
        angles_end, range_end = (share * spec.epochs for share in spec.curriculum_ends)
        if epoch < angles_end:
            weights["log_range"] = 0.0
        elif epoch < range_end:
            weights["angle"] *= _ANGLE_FACTOR
    return weights


def _ramp(spec: ScheduleSpec) -> int:
    """Number of epochs in which beta rises."""
    return max(2, math.ceil(spec.beta_ramp * spec.epochs))


def _interpolate(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress


def _check_epoch(spec: ScheduleSpec, epoch: int) -> None:
    if not 0 <= epoch < spec.epochs:
        raise InputError("epoch", f"must be 0 to {spec.epochs - 1}; got {epoch}")


# Number of scenes for the gradient probes.
_PROBE_SCENES = 16


class TrainingScenes:
    """Batches for training and validation, simulated on demand."""

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
    Row 0 of each block is for its feed-forward branch, row 1 for its attention, if it has one.
    """
    uniform = draws.uniform(Stream.DROPOUT, spec.stages, spec.depth, 2, spec.width)
    return (uniform >= spec.dropout).to(uniform.dtype) / (1 - spec.dropout)
