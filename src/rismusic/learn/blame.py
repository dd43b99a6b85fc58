"""Which loss is to blame where gradients are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rismusic.errors import InputError
from rismusic.learn.learner import Learner
from rismusic.learn.scenes import Scenes
from rismusic.learn.schedules import beta_at, weights_at


def culprit(learner: Learner, scenes: Scenes, record: Mapping[str, object], skipped: int) -> InputError:
    """What to raise after too many skipped steps: the loss whose gradient is not finite, by name.

    The scenes of the skipped step are made again, and each loss is differentiated by itself.

    Args:
        learner: as it is now.
        scenes: the training's.
        record: what was logged of the step.
        skipped: steps that were.
    """
    epoch, step = int(str(record["epoch"])), int(str(record["step"]))
    guilty = [
        name
        for name, value in record.items()
        if name in learner.spec.loss.weights and value - value != 0  # type: ignore[operator]
    ]
    schedule = learner.spec.schedule
    beta = beta_at(schedule, epoch, learner.spec.seed)
    weights = weights_at(learner.spec.loss, schedule, epoch, beta)
    trained = [weight for weight in learner.weights.values() if weight.requires_grad]
    for recording in [] if guilty else scenes.step(epoch, step):
        for name, term in learner.losses(recording, beta, weights).terms.items():
            if not term.requires_grad:
                continue
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            if not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
                guilty.append(name)
    who = ", ".join(dict.fromkeys(guilty)) or "no loss by itself (the sum, or the weights, overflow)"
    return InputError(
        "gradient",
        f"finite values in all but skipped_max = {learner.spec.skipped_max} steps",
        f"{skipped} steps skipped, the last at epoch {epoch}, step {step}; not finite: {who}",
    )
