"""How the weights move: what decay takes, what a bad gradient leaves, and whether all of them follow."""

from __future__ import annotations

import math

from rismusic.doctor.case import Case, told
from rismusic.doctor.stepping import norm, trial
from rismusic.nn import monitors as probes
from rismusic.nn.monitors import Finding, Report, at_least, at_most


def decay(case: Case) -> Report:
    """How much of the weights the decay takes away in the whole training."""
    learner = case.learner
    steps = float(learner.factors.double().sum())
    worst = max(
        float(group["weight_decay"]) * float(group["highest"]) * steps
        for group in learner.optimizer.param_groups
    )
    finding = at_most(
        "sum over the steps of learning rate times weight decay",
        worst,
        1.0,
        "the weight decay pulls the weights to 0 faster than they can learn.",
        "Lower weight_decay: 0.01 is usual.",
    )
    return told("DECAY", f"weights shrink to {math.exp(-worst):.0%} by decay alone", [finding])


def non_finite(case: Case) -> Report:
    """A gradient that is not finite: the step must be skipped, counted, and leave nothing behind."""
    learner, recordings = trial(case)
    weights = case.spec.loss.weights
    # A sound step first, so that the average is not where the weights are.
    learner.step(recordings, 0.1, weights)
    before = probes.snapshot(learner)
    average = {name: value.clone() for name, value in learner.average.items()}
    name, target = max(
        ((n, w) for n, w in learner.weights.items() if w.requires_grad), key=lambda pair: pair[1].numel()
    )
    handle = target.register_hook(lambda gradient: gradient * math.nan)
    numbers = learner.step(recordings, 0.1, weights)
    handle.remove()
    moved = {key: learner.weights[key].detach() - old for key, old in before.items()}
    drifted = {key: learner.average[key] - old for key, old in average.items()}
    findings = [
        at_most(
            "change of the weights by a step whose gradient is not finite",
            norm(moved),
            0.0,
            "a non-finite gradient is replaced by numbers, or applied, in place of being skipped.",
            "Skip such a step, count it, and stop past a limit; never use nan_to_num.",
        ),
        at_most(
            "change of the averaged weights by such a step",
            norm(drifted),
            0.0,
            "the moving average takes part in a step that was not taken.",
            "Leave the average as it is after a skipped step.",
        ),
        at_most(
            "such a step logged as taken",
            float(numbers["taken"]),
            0.0,
            "a non-finite gradient is logged as healthy.",
            "Log whether a step was taken.",
        ),
    ]
    return told("FINITE", f"a NaN in the gradient of {name}", findings)


def drift(case: Case) -> list[Report]:
    """After some steps: has every parameter moved, no one too far, and the moving average with them?"""
    learner, recordings = trial(case)
    before = probes.snapshot(learner)
    average = {name: value.clone() for name, value in learner.average.items()}
    for _ in range(3):
        learner.step(recordings, 0.1, case.spec.loss.weights)
    moved = {name: learner.weights[name].detach() - old for name, old in before.items()}
    followed = {name: learner.average[name] - old for name, old in average.items()}
    still = [name for name, change in moved.items() if float(change.abs().max()) == 0]
    share = norm(moved) / max(norm(before), 1e-30)
    findings: list[Finding] = [
        at_most(
            "parameters that three steps have not moved",
            float(len(still)),
            0.0,
            f"these do not learn: {', '.join(still[:6])}{', ...' if len(still) > 6 else ''}.",
            "Are they frozen, outside the optimizer, at a learning rate of 0, or behind an output nobody "
            "uses?",
        ),
        at_most(
            "change of all weights by three steps, relative",
            share,
            0.5,
            "the weights are thrown away within three steps.",
            "Lower learning rates or weight decay.",
        ),
        at_least(
            "change of the averaged weights over that of the weights",
            norm(followed) / max(norm(moved), 1e-30),
            1e-2,
            "the moving average (EMA) of the weights is never updated: validation looks at stale weights.",
            "Update the average after every step that was taken.",
        ),
    ]
    return [told("DRIFT", f"weights change by {share:.2%} in three steps", findings)]
