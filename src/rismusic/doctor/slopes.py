"""Are the gradients of the losses those of the losses, finite, and there for every scene?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from rismusic.doctor import guesses
from rismusic.doctor.case import Case, double, told
from rismusic.doctor.losses import total_of
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.network import Prediction
from rismusic.nn.spec import TermName

# Terms that have something to say of every scene with a source.
_ALWAYS = (
    "covariance",
    "covariance_predicted",
    "subspace",
    "count",
    "heat_map",
    "existence",
    "angle",
    "log_range",
)
_OUTPUTS = tuple(field.name for field in fields(Prediction))


def slopes(case: Case) -> Report:
    """Gradients of the losses by the outputs: true to finite differences, and there for every scene."""
    recording = double(case.few)
    targets = Targets.of(recording, case.learner.grid)
    like = guesses.wide(case.learner.predict(case.few, averaged=False))
    findings = []
    idle = dict.fromkeys(_ALWAYS, 0.0)
    for seed in range(2):
        prediction = like if seed else guesses.random(like)
        held = _leaves(prediction)
        losses = total_of(case, replace(prediction, **held), targets)
        for name in losses.terms:
            found = _by_outputs(losses.terms[name], held)
            if name in _ALWAYS:
                quiet = torch.stack([g.abs().flatten(1).amax(1) for g in found.values()]).amax(0) == 0
                idle[name] = max(idle[name], float(quiet[targets.count.cpu() > 0].double().mean()))
            if seed == 0:
                bad = [key for key, g in found.items() if not bool(g.isfinite().all())]
                findings.append(
                    at_most(
                        f"outputs to which the loss {name} gives a gradient that is not finite",
                        float(len(bad)),
                        0.0,
                        f"a NaN or an infinity in the gradient by {', '.join(bad)}: is it differentiated "
                        "through "
                        "eigenvectors, or a root or norm at 0?",
                        "Project on the true steering vectors; no gradient flows through eigenvectors.",
                    )
                )
                if not bad:
                    findings.append(_slope(case, prediction, targets, name, found))
    findings += [
        at_most(
            f"share of the scenes that the loss {name} gives no gradient",
            share,
            0.05,
            "these scenes teach nothing: is the loss clamped, or cut off by a threshold?",
            "Use a loss whose gradient neither vanishes nor grows with the error (Huber), and no clamp.",
        )
        for name, share in idle.items()
        if name in losses.terms
    ]
    return told("SLOPE", f"{len(losses.terms)} losses", findings)


def _leaves(prediction: Prediction) -> dict[str, Tensor]:
    values = {name: getattr(prediction, name) for name in _OUTPUTS}
    return {name: v.detach().clone().requires_grad_() for name, v in values.items() if v is not None}


def _by_outputs(loss: Tensor, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in held.items()}
    found = torch.autograd.grad(loss, list(held.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(value) if g is None else g
        for (name, value), g in zip(held.items(), found, strict=True)
    }


def _slope(
    case: Case, prediction: Prediction, targets: Targets, name: TermName, found: dict[str, Tensor]
) -> Finding:
    """The change of a loss along a fixed direction, over what its gradient says, near 1."""
    step = 1e-5
    generator = torch.Generator().manual_seed(1)
    size = sum(float(g.abs().square().sum()) for g in found.values()) ** 0.5
    ways = {}
    for key, g in found.items():
        # Mostly along the gradient; a random part finds what the gradient leaves out.
        noise = torch.randn(g.shape, generator=generator, dtype=g.dtype)
        ways[key] = (g / size if size else 0.0) + 0.3 * noise / noise.norm()
    values = {key: getattr(prediction, key) for key in found}
    with torch.no_grad():
        up, down = (
            float(
                total_of(
                    case,
                    replace(
                        prediction, **{key: values[key] + sign * step * way for key, way in ways.items()}
                    ),
                    targets,
                ).terms[name]
            )
            for sign in (1, -1)
        )
    expected = sum(float((g.conj() * ways[key]).real.sum()) for key, g in found.items())
    rise = (up - down) / (2 * step)
    return at_most(
        f"error of the gradient of loss {name} against finite differences, relative",
        abs(rise - expected) / max(abs(rise), abs(expected), 1e-9),
        0.05,
        "the gradient is not that of the loss: detached, reversed (the wrong sign), or clamped?",
        "Let autograd differentiate the whole loss; detach nothing but R_samp.",
    )
