"""Does the gradient reach everything, and does the network use what it is given?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from rismusic.doctor.case import Case, told
from rismusic.io import Recording
from rismusic.nn import monitors as probes
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.validation import variety

# Times that the same question is put again.
_ASKED = 8


def paths(case: Case) -> list[Report]:
    """[GRADPATH] and [GRAD] of the trainer, on the doctor's scenes."""
    return probes.gradients(case.learner, case.few, 0.3, case.spec.loss.weights)


def trained(case: Case) -> Report:
    """Are all parameters in the optimizer, once, and at a learning rate?"""
    learner = case.learner
    held = [id(p) for group in learner.optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in learner.network.named_parameters()}
    missing = [name for key, name in names.items() if key not in held]
    frozen = [name for name, p in learner.network.named_parameters() if not p.requires_grad]
    stranger = len([key for key in held if key not in names])
    findings = [
        at_most(
            "parameters that the optimizer does not have",
            float(len(missing)),
            0.0,
            f"these stay as they are: {', '.join(missing[:6])}.",
            "Give every parameter of the network to the optimizer.",
        ),
        at_most(
            "parameters that are frozen (requires_grad is off)",
            float(len(frozen)),
            0.0,
            f"these stay as they are: {', '.join(frozen[:6])}.",
            "Set requires_grad, unless this is wanted.",
        ),
        at_most(
            "parameters of the optimizer that are not the network's",
            float(stranger),
            0.0,
            "the optimizer moves weights of another network (a stale copy?).",
            "Make the optimizer after the network is in its final form.",
        ),
        at_most(
            "parameters that the optimizer has twice",
            float(len(held) - len(set(held))),
            0.0,
            "they are moved twice in a step.",
            "Put each parameter into one group.",
        ),
    ]
    return told(
        "OPTIMIZER", f"{len(names)} parameters, {len(learner.optimizer.param_groups)} groups", findings
    )


def invariance(case: Case) -> Report:
    """What must not change the answer, and what must."""
    recording, learner = case.few, case.learner
    base = learner.predict(recording, averaged=False)
    findings = [
        # More than once: what drops few numbers may drop the same ones twice.
        _unchanged(
            "asked again",
            base,
            [learner.predict(recording, averaged=False) for _ in range(_ASKED)],
            "the network answers at random in validation: dropout that is on, or noise?",
            "Call network.eval() for validation, or take dropout out.",
        ),
        _unchanged(
            "asked for one scene alone",
            base[slice(0, 1)],
            [learner.predict(recording[:1], averaged=False)],
            "scenes of a batch leak into each other (a norm over the batch?).",
            "Norm over channels, not over the batch.",
        ),
        _unchanged(
            "all levels are 1000 times higher",
            base,
            [learner.predict(_louder(recording, 1e3), averaged=False)],
            "the input is not normalised: the answer hangs on the gain of the receiver.",
            "Scale each scene to unit power before anything else.",
        ),
    ]
    findings += _magnitudes(learner.network, recording)
    return told("INPUT", "repeated, alone, louder", findings)


def _louder(recording: Recording, gain: float) -> Recording:
    noise = recording.noise_variance
    return replace(
        recording,
        snapshots=recording.snapshots * gain,
        noise_variance=None if noise is None else noise * gain**2,
    )


def _unchanged(
    what: str, base: Prediction, others: Sequence[Prediction], meaning: str, advice: str
) -> Finding:
    worst = 0.0
    for other, field in itertools.product(others, fields(Prediction)):
        one, two = getattr(base, field.name), getattr(other, field.name)
        if one is None or not one.numel():
            continue
        one, two = one.detach(), two.detach()
        # A median over the scenes: where two peaks are equally high, rounding may choose the other one.
        off = (one - two).abs().flatten(1).amax(1) / one.abs().flatten(1).amax(1).clamp_min(1e-6)
        worst = max(worst, float(off.median())) if off.isfinite().all() else math.inf
    return at_most(f"change of the answer when {what}, relative", worst, 1e-2, meaning, advice)


def _magnitudes(network: nn.Module, recording: Recording) -> list[Finding]:
    """The size of what the layers are given."""
    sizes: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given and isinstance(given[0], Tensor) and given[0].is_floating_point():
                sizes[name] = float(given[0].detach().square().mean().sqrt())

        return hook

    handles = [
        module.register_forward_pre_hook(look(name))
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
    return [
        at_most(
            "largest root mean square of what a layer is given",
            sizes.get(name, 0.0),
            30.0,
            f"the input of {name} is not normalised: activations are far from order 1.",
            "Scale inputs to unit size, and take logarithms of powers.",
        )
    ]


def constant(case: Case) -> Report:
    """Does the answer depend on the scene, and on the snapshots of it?"""
    recording, learner = case.few, case.learner
    base = learner.predict(recording, averaged=False).detach()
    deaf = learner.predict(
        replace(recording, snapshots=recording.snapshots.flip(0), noise_variance=_flipped(recording)),
        averaged=False,
    ).detach()
    moved = (base.angle_factor - deaf.angle_factor).abs().flatten(1).amax(1)
    moved = moved / base.angle_factor.abs().flatten(1).amax(1).clamp_min(1e-9)
    findings = [
        at_least(
            "variety of R_pred over the scenes, 0 to 1",
            variety(base.covariance),
            0.1,
            "the network says the same of every scene: a constant prediction, such as free factors or the "
            "mean.",
            "Let every output depend on the input, and look at what the network is given.",
        ),
        at_least(
            "change of the factors when the snapshots of another scene are put in, relative",
            float(moved.median()),
            1e-2,
            "the network does not listen to the snapshots.",
            "Is the input built from something else, or the network saturated?",
        ),
    ]
    for field in fields(Prediction):
        value = getattr(base, field.name)
        if value is None:
            continue
        flat = value.detach().flatten(1)
        spread = (flat - flat.mean(0)).abs().square().mean() / flat.abs().square().mean().clamp_min(1e-30)
        what = "the number of sources is" if field.name == "count_logits" else f"{field.name} is"
        why = (
            " (MDL on a rank-deficient matrix always answers the same)" if what.startswith("the num") else ""
        )
        findings.append(
            at_least(
                f"spread of {field.name} over the scenes, over its size",
                float(spread.sqrt()),
                1e-4,
                f"{what} the same for every scene{why}: a constant, or an output without an input.",
                "Let every output depend on the input.",
            )
        )
    return told("CONSTANT", "variety of the answers before training", findings)


def _flipped(recording: Recording) -> Tensor | None:
    return None if recording.noise_variance is None else recording.noise_variance.flip(0)
