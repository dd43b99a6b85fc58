"""Checks of the network: does the gradient reach every parameter, and does the output depend on the input?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from rismusic.doctor.case import Case
from rismusic.doctor.report import listed, must_be_zero, report_of
from rismusic.io import Recording
from rismusic.nn import monitors as probes
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.validation import variety

# Repetitions of the same input: a dropout of few numbers may drop the same ones twice.
_REPETITIONS = 8


def check_gradient_paths(case: Case) -> list[Report]:
    """[GRADPATH] and [GRAD]: the probes of the training loop, on the scenes of the case."""
    return probes.gradients(case.learner, case.recording, 0.3, case.spec.loss.weights)


def check_optimizer(case: Case) -> Report:
    """[OPTIMIZER]: does the optimizer hold every parameter of the network, once?"""
    learner = case.learner
    held = [id(p) for group in learner.optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in learner.network.named_parameters()}
    missing = [name for key, name in names.items() if key not in held]
    frozen = [name for name, p in learner.network.named_parameters() if not p.requires_grad]
    findings = [
        must_be_zero(
            "parameters missing from the optimizer",
            len(missing),
            f"these parameters never change: {listed(missing)}.",
            "Pass every parameter of the network to the optimizer.",
        ),
        must_be_zero(
            "parameters that are frozen (requires_grad is False)",
            len(frozen),
            f"these parameters never change: {listed(frozen)}.",
            "Set requires_grad, unless they are frozen on purpose.",
        ),
        must_be_zero(
            "parameters of the optimizer that do not belong to the network",
            sum(key not in names for key in held),
            "the optimizer changes weights of another network (a stale copy?).",
            "Create the optimizer after the network has its final form.",
        ),
        must_be_zero(
            "parameters that the optimizer holds twice",
            len(held) - len(set(held)),
            "they move twice in each step.",
            "Put each parameter into one group.",
        ),
    ]
    text = f"{len(names)} parameters, {len(learner.optimizer.param_groups)} groups"
    return report_of("OPTIMIZER", text, findings)


def check_invariance(case: Case) -> Report:
    """[INPUT]: the output is repeatable, and independent of batch and input level."""
    recording, learner = case.recording, case.learner

    def predict(scenes: Recording) -> Prediction:
        return learner.predict(scenes, averaged=False)

    base = predict(recording)
    findings = [
        _unchanged(
            "repeated inputs",
            base,
            [predict(recording) for _ in range(_REPETITIONS)],
            "the output is random in validation: dropout that is on, or noise?",
            "Call network.eval() for validation, or remove the dropout.",
        ),
        _unchanged(
            "a scene without the others of its batch",
            base[slice(0, 1)],
            [predict(recording[:1])],
            "the scenes of a batch affect each other (a norm over the batch?).",
            "Normalise over channels, not over the batch.",
        ),
        _unchanged(
            "inputs 1000 times larger",
            base,
            [predict(_scaled(recording, 1e3))],
            "the input is not normalised. The output depends on the receiver's gain.",
            "Scale each scene to unit power first.",
        ),
        _input_size(learner.network, recording),
    ]
    return report_of("INPUT", "repeated, alone, scaled", findings)


def _scaled(recording: Recording, gain: float) -> Recording:
    noise = recording.noise_variance
    noise = None if noise is None else noise * gain**2
    return replace(recording, snapshots=recording.snapshots * gain, noise_variance=noise)


def _unchanged(
    inputs: str, base: Prediction, others: Sequence[Prediction], meaning: str, advice: str
) -> Finding:
    worst = 0.0
    for other, field in itertools.product(others, fields(Prediction)):
        one, two = getattr(base, field.name), getattr(other, field.name)
        if one is None or not one.numel():
            continue
        one, two = one.detach(), two.detach()
        # The median over scenes: where two peaks are equally high, rounding may choose the other one.
        off = (one - two).abs().flatten(1).amax(1) / one.abs().flatten(1).amax(1).clamp_min(1e-6)
        worst = max(worst, float(off.median())) if off.isfinite().all() else math.inf
    return at_most(f"relative change of the output for {inputs}", worst, 1e-2, meaning, advice)


def _input_size(network: nn.Module, recording: Recording) -> Finding:
    """The root mean square of the input of each layer; the largest must be of order 1."""
    sizes: dict[str, float] = {}

    def measure(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given and isinstance(given[0], Tensor) and given[0].is_floating_point():
                sizes[name] = float(given[0].detach().square().mean().sqrt())

        return hook

    handles = [
        module.register_forward_pre_hook(measure(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            network(recording)
    finally:
        for handle in handles:
            handle.remove()
    name = max(sizes, key=sizes.__getitem__, default="none")
    return at_most(
        "largest root mean square of a layer's input",
        sizes.get(name, 0.0),
        30.0,
        f"the input of {name} is not normalised. Activations should be of order 1.",
        "Scale inputs to unit size, and take logarithms of powers.",
    )


def check_constant_output(case: Case) -> Report:
    """[CONSTANT]: does the output differ from scene to scene, and depend on the snapshots?"""
    recording, learner = case.recording, case.learner
    base = learner.predict(recording, averaged=False).detach()
    noise = recording.noise_variance
    other = replace(
        recording,
        snapshots=recording.snapshots.flip(0),
        noise_variance=None if noise is None else noise.flip(0),
    )
    swapped = learner.predict(other, averaged=False).detach()
    moved = (base.angle_factor - swapped.angle_factor).abs().flatten(1).amax(1)
    moved = moved / base.angle_factor.abs().flatten(1).amax(1).clamp_min(1e-9)
    findings = [
        at_least(
            "variety of R_pred over the scenes, 0 to 1",
            variety(base.covariance),
            0.1,
            "the network predicts the same for every scene, such as free factors or the mean.",
            "Let every output depend on the input, and check the input of the network.",
        ),
        at_least(
            "relative change of the factors with the snapshots of another scene",
            float(moved.median()),
            1e-2,
            "the output hardly depends on the snapshots.",
            "Check that the input is built from the snapshots and that the network does not saturate.",
        ),
    ]
    for field in fields(Prediction):
        value = getattr(base, field.name)
        if value is None:
            continue
        flat = value.detach().flatten(1)
        spread = (flat - flat.mean(0)).abs().square().mean() / flat.abs().square().mean().clamp_min(1e-30)
        meaning = f"{field.name} is the same for every scene: a constant, or an output without an input?"
        if field.name == "count_logits":
            meaning = (
                "the number of sources is the same for every scene, as from MDL on a rank-deficient matrix."
            )
        findings.append(
            at_least(
                f"spread of {field.name} over the scenes, over its size",
                float(spread.sqrt()),
                1e-4,
                meaning,
                "Let every output depend on the input.",
            )
        )
    return report_of("CONSTANT", "variety of the outputs before training", findings)
