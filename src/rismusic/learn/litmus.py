"""The quickest test of a training: do a few steps on one batch bring the loss of that batch down?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rismusic.learn.learner import Learner
from rismusic.learn.losses import check_start
from rismusic.learn.scenes import Scenes
from rismusic.learn.spec import TrainSpec

LEAST_FALL = 0.2
"""Share of the loss that is to go."""


@dataclass(frozen=True)
class Litmus:
    """Loss of one batch at beta = 0, before and after.

    Args:
        before: total loss.
        after: total loss.
    """

    before: float
    after: float

    @property
    def fall(self) -> float:
        """Share of the loss that has gone."""
        return 1 - self.after / self.before

    @property
    def passed(self) -> bool:
        """Whether that is enough."""
        return self.fall >= LEAST_FALL


def litmus(
    spec: TrainSpec,
    *,
    steps: int = 5,
    beta: float = 0.3,
    make: Callable[[TrainSpec], tuple[Learner, Scenes]] = lambda spec: (Learner(spec), Scenes(spec)),
) -> Litmus:
    """Take a few steps on the first batch, beta rising from 0, at the full learning rates.

    The loss is that of the network's own weights, all terms with the weights of the settings, at beta = 0.

    Args:
        spec: settings; those of the schedule count for nothing here.
        steps: optimizer steps.
        beta: at the last of them.
        make: what makes the learner and its scenes.
    """
    constant = spec.schedule.replace(epochs=1, warm_up=0.0, learning_rate_floor=1.0)
    spec = spec.replace(schedule=constant, accumulation=1, scenes_per_epoch=steps * spec.batch)
    learner, scenes = make(spec)
    recording = next(scenes.step(0, 0))
    weights = spec.loss.weights
    prediction = learner.network(recording)
    losses = learner.judged(prediction, recording, 0.0, weights)
    check_start(losses, prediction)
    for step in range(steps):
        learner.step([recording], beta * step / max(1, steps - 1), weights)
    after = learner.losses(recording, 0.0, weights)
    return Litmus(float(losses.total.detach()), float(after.total.detach()))
