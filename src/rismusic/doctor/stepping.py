"""One step of the optimizer: the litmus test, what it is given, how far it goes, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rismusic.doctor.case import Case, told
from rismusic.io import Recording
from rismusic.nn import monitors as probes
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.monitors import LEAST_FALL, Report, at_least, at_most, litmus
from rismusic.nn.spec import TrainSpec

# Scenes of the batch of the litmus test, and of the batches of a trial step.
_LITMUS, _BATCH = 32, 8
# A clip norm this many times below the gradient leaves the direction and takes all of the size.
_CLIPPED = 30.0


def first_steps(case: Case) -> Report:
    """The litmus test: five steps on one batch, and the same without a learning rate, which must fail."""

    def make(spec: TrainSpec) -> tuple[Learner, TrainingScenes]:
        trainer = case.begin(spec)
        return trainer.learner, trainer.scenes

    spec = _batches_of(case.spec, _LITMUS)
    small = _batches_of(case.spec, _BATCH)
    learned = litmus(spec, make=make)
    still = litmus(small.replace(backbone_learning_rate=0.0, head_learning_rate=0.0), make=make, steps=2)
    findings = [
        at_least(
            "share of the loss that five steps on one batch take away",
            learned.fall,
            LEAST_FALL,
            "the network does not learn even one batch.",
            "Is the learning rate 0 or far off, the gradient cut, reversed or clipped, or the loss detached?",
        ),
        at_most(
            "the same at a learning rate of 0, absolute",
            abs(still.fall),
            1e-3,
            "the loss changes although nothing can be learned: the test proves nothing.",
            "Does something beside the optimizer change weights, or the loss at random (dropout)?",
        ),
    ]
    text = f"loss {learned.before:.3f} -> {learned.after:.3f}; without a learning rate {still.before:.3f} -> "
    text += f"{still.after:.3f}"
    return told("LITMUS", text, findings)


def _batches_of(spec: TrainSpec, most: int) -> TrainSpec:
    batch = min(most, spec.batch)
    return spec.replace(batch=batch, accumulation=1, scenes_per_epoch=8 * batch)


@dataclass
class NetworkOutput:
    """What the optimizer was given.

    Args:
        steps: how often it stepped.
        gradients: before the last step, by name.
        rates: learning rate of each group, at every step.
    """

    steps: int
    gradients: dict[str, Tensor]
    rates: list[dict[str, float]]


@contextmanager
def watched(learner: Learner) -> Iterator[NetworkOutput]:
    """Look over the optimizer's shoulder."""
    seen = NetworkOutput(0, {}, [])

    def look(*_: object) -> None:
        seen.steps += 1
        seen.rates.append({str(g["name"]): float(g["lr"]) for g in learner.optimizer.param_groups})
        seen.gradients = {
            name: weight.grad.detach().clone()
            for name, weight in learner.weights.items()
            if weight.grad is not None
        }

    handle = learner.optimizer.register_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def trial(case: Case) -> tuple[Learner, list[Recording]]:
    """A learner of its own whose step takes two small batches, and these.

    There is no dropout in it, so that the losses of a step can be asked for again.
    """
    batch = min(_BATCH, case.spec.batch)
    spec = case.spec.replace(
        network=case.spec.network.replace(dropout=0.0),
        batch=batch,
        accumulation=2,
        scenes_per_epoch=2 * batch * 8,
    )
    trainer = case.begin(spec)
    return trainer.learner, list(trainer.scenes.step(0, 0))


def step(case: Case) -> list[Report]:
    """Is the gradient that the optimizer gets that of the loss, and does the step follow it?"""
    learner, recordings = trial(case)
    weights, beta = case.spec.loss.weights, 0.1
    parameters = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    mean = torch.stack([learner.losses(one, beta, weights).total for one in recordings]).mean()
    wanted = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
    expected = {
        name: torch.zeros_like(parameters[name]) if g is None else g
        for name, g in zip(parameters, wanted, strict=True)
    }
    before, rates = probes.snapshot(learner), probes.learning_rate(learner)
    with watched(learner) as seen:
        numbers = learner.step(recordings, beta, weights)
    moved = {name: learner.weights[name].detach() - old for name, old in before.items()}
    size = norm(expected)
    clip = case.spec.clip_norm
    kept = min(1.0, clip / size) if size else 1.0
    given = norm(seen.gradients)
    findings = [
        at_least(
            "cosine between the gradient that the optimizer gets and that of the loss",
            cosine(seen.gradients, expected),
            0.99,
            "the optimizer does not follow the loss: reversed gradient, a batch left out of the "
            "accumulation, or "
            "numbers put in the place of gradients.",
            "Call backward on the loss of each batch over the number of batches, and change nothing "
            "afterwards.",
        ),
        at_most(
            "size of the gradient that the optimizer gets against the loss's, clipped: distance from 1",
            abs(given / (kept * size) - 1) if size else math.inf,
            0.05,
            "the gradient is scaled on its way: unscaled twice, clipped before unscaling, or a sum for a "
            "mean.",
            "Unscale once, then clip, then step; divide each batch's loss by the number of batches.",
        ),
        at_most(
            "reported norm of the gradient against the loss's: distance from 1",
            abs(float(numbers["gradient"]) / size - 1) if size else math.inf,
            0.05,
            "the logged gradient is not that of the loss.",
            "Log the norm after unscaling and before clipping.",
        ),
        at_most(
            "optimizer steps in one call of step, distance from 1",
            abs(seen.steps - 1.0),
            0.0,
            "the optimizer does not step once for each accumulated batch: its step is outside the batch "
            "loop?",
            "Step once after the last of the accumulated batches.",
        ),
        at_least(
            "cosine between the step and the way down",
            -cosine(moved, expected),
            0.0,
            "the step goes up the loss: wrong sign of gradient or update.",
            "The optimizer subtracts the gradient.",
        ),
        at_most(
            "norm of the gradient over clip_norm, first step",
            size / clip,
            _CLIPPED,
            f"clip_norm = {clip:g} lies far below the usual gradient norm, so steps lose their size.",
            "Raise clip_norm to a few times the usual norm, or look for a loss that is far too large.",
        ),
    ]
    by_group = rates.values
    taken = [rate for rate in seen.rates[-1:] if rate != by_group]
    findings.append(
        at_most(
            "learning rates in the step that are not those before it",
            float(len(taken)),
            0.0,
            "the schedule moves before the optimizer does: the first rate is never used.",
            "Step the optimizer, then the schedule.",
        )
    )
    return [
        told("STEP", f"gradient {size:.3g}, clipped at {clip:g}, {seen.steps} optimizer step", findings),
        probes.change(learner, before, by_group),
        rates,
    ]


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Of all tensors together; NaN counts as infinite."""
    total = sum(float(value.detach().double().square().sum()) for value in tensors.values())
    return math.sqrt(total) if math.isfinite(total) else math.inf


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Of two sets of tensors by name; what one lacks counts as 0."""
    sizes = norm(first) * norm(second)
    if sizes == 0 or not math.isfinite(sizes):
        return 0.0
    dot = sum(
        float((value.detach().double() * second[name].detach().double()).sum())
        for name, value in first.items()
        if name in second
    )
    return dot / sizes
