"""Who is to blame where gradients are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rismusic.errors import InputError
from rismusic.learn.guard import finite
from rismusic.learn.learner import Learner
from rismusic.learn.scenes import Scenes
from rismusic.learn.schedules import beta_at, weights_at
from rismusic.recording import Recording


def culprit(learner: Learner, scenes: Scenes, record: Mapping[str, object], skipped: int) -> InputError:
    """What to raise after too many skipped steps: what is not finite, by name.

    The scenes of the skipped step are made again: their data are looked at, then the outputs of the network,
    then each loss and its gradient by itself.

    Args:
        learner: as it is now.
        scenes: the training's.
        record: what was logged of the step.
        skipped: steps that were.
    """
    epoch, step = int(str(record["epoch"])), int(str(record["step"]))
    schedule = learner.spec.schedule
    beta = beta_at(schedule, epoch, learner.spec.seed)
    guilty = [name for each in scenes.step(epoch, step) for name in guilty_of(learner, each, epoch, beta)]
    if not guilty:
        # Something of another process's share.
        weights = learner.spec.loss.weights
        guilty = [name for name, value in record.items() if name in weights and value - value != 0]  # type: ignore[operator]
    who = ", ".join(dict.fromkeys(guilty)) or "no loss by itself (the sum, or the weights, overflow)"
    return InputError(
        "gradient",
        f"finite values in all but skipped_max = {learner.spec.skipped_max} steps",
        f"{skipped} steps skipped, the last at epoch {epoch}, step {step}; not finite: {who}",
    )


def guilty_of(learner: Learner, recording: Recording, epoch: int, beta: float) -> list[str]:
    """What is not finite of the data, else of the network's outputs, else of the losses and their gradients.

    Args:
        learner: as it is now.
        recording: a batch.
        epoch: whose weights of the losses are taken.
        beta: share of R_samp.
    """
    if bad := [f"{name} of the scenes" for name, fine in finite(recording).items() if not fine]:
        return bad
    prediction = learner.network(recording)
    if bad := [f"{name} of the network" for name, fine in finite(prediction).items() if not fine]:
        return bad
    spec = learner.spec
    weights = weights_at(spec.loss, spec.schedule, epoch, beta)
    trained = [weight for weight in learner.weights.values() if weight.requires_grad]
    for name, term in learner.judged(prediction, recording, beta, weights).terms.items():
        if not term.isfinite():
            bad.append(name)
        elif term.requires_grad:
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            if not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
                bad.append(name)
    return bad
