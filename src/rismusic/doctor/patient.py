"""Any module, its loss and a batch, and what is looked at on copies of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.batches import spread, widened
from rismusic.doctor.case import told
from rismusic.doctor.stepping import cosine, norm
from rismusic.errors import InputError
from rismusic.nn.monitors import LEAST_FALL, Report, at_least, at_most, dead_report

Loss = Callable[[nn.Module, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# Length of the step of finite differences, relative to the weights.
_STEP = 1e-5
# Slopes below this share of the whole gradient are not told from rounding.
_SMALL = 1e-3


@dataclass(frozen=True)
class Patient:
    """What is looked at.

    Args:
        module: as it was given; it is never changed.
        loss: from module and batch to a scalar.
        batch: of the training.
        make: what makes the optimizer.
    """

    module: nn.Module
    loss: Loss
    batch: Any
    make: MakeOptimizer

    def copy(self) -> nn.Module:
        """A module to be changed."""
        return copy.deepcopy(self.module).train()

    def of(self, module: nn.Module, batch: Any = None) -> Tensor:
        """The loss, random numbers always from the same seed."""
        device = next(module.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            value = self.loss(module, self.batch if batch is None else batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError("loss", "a scalar tensor", found)
        return value.reshape(())

    def slopes(self, module: nn.Module, batch: Any = None) -> dict[str, Tensor]:
        """The gradient of the loss by each parameter; zeros where there is none."""
        named = dict(module.named_parameters())
        wanted = {name: weight for name, weight in named.items() if weight.requires_grad}
        value = self.of(module, batch)
        if not (value.requires_grad and wanted):
            return {name: torch.zeros_like(weight) for name, weight in named.items()}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        held = dict(zip(wanted, found, strict=True))
        return {
            name: torch.zeros_like(weight) if held.get(name) is None else held[name]
            for name, weight in named.items()
        }

    def gradients(self) -> Report:
        """Is there a loss, with a gradient, finite?"""
        module = self.copy()
        value = self.of(module)
        size = norm(self.slopes(module))
        findings = [
            at_most(
                "loss that is not finite",
                float(not math.isfinite(float(value.detach()))),
                0.0,
                "the loss is a NaN or infinite.",
                "Look for logarithms, square roots and divisions at 0, and for bad numbers in the batch.",
            ),
            at_least(
                "the loss has a gradient",
                float(value.requires_grad),
                1.0,
                "the loss is detached from the network: nothing can be learned.",
                "Take out detach(), item(), no_grad and numpy between network and loss.",
            ),
            at_most(
                "gradient that is not finite",
                float(not math.isfinite(size)),
                0.0,
                "the gradient holds a NaN or an infinity though the loss does not.",
                "Square roots and norms at 0 and eigenvectors have no derivative; keep them away from it.",
            ),
        ]
        report = told("FINITE", f"loss {float(value.detach()):.4g}, gradient {size:.3g}", findings)
        sound = float(value.requires_grad and math.isfinite(size))
        return Report(report.tag, report.text, {**report.values, "finite": sound}, report.findings)

    def coverage(self) -> Report:
        """Does every parameter have a gradient, and a place in the optimizer?"""
        module = self.copy()
        slopes = self.slopes(module)
        dead = dead_report({name: float(value.norm()) for name, value in slopes.items()})
        held = {id(p) for group in self.make(module.parameters()).param_groups for p in group["params"]}
        missing = [name for name, p in module.named_parameters() if id(p) not in held]
        left_out = at_most(
            "parameters that the optimizer does not have",
            float(len(missing)),
            0.0,
            f"these stay as they are: {', '.join(missing[:6])}.",
            "Give every parameter to the optimizer.",
        )
        return Report("GRAD", dead.text, dead.values, (*dead.findings, left_out))

    @torch.no_grad()
    def modes(self) -> Report:
        """In evaluation mode: the same answer twice, and near that of training mode?"""
        module = self.copy()
        training = float(self.of(module))
        module.eval()
        values = [float(self.loss(module, self.batch)) for _ in range(2)]
        scale = max(abs(training), abs(values[0]), 1e-12)
        findings = [
            at_most(
                "change of the loss when it is asked for again in evaluation mode, relative",
                abs(values[0] - values[1]) / scale,
                1e-5,
                "the network answers at random in evaluation mode: noise or dropout that eval() does not "
                "turn off.",
                "Use nn.Dropout, which listens to eval(), and draw no random numbers there.",
            ),
            at_most(
                "difference of the loss between training and evaluation mode, relative",
                abs(training - values[0]) / scale,
                0.5,
                "the network is another one in evaluation: statistics of a norm over the batch, or much "
                "dropout.",
                "Use a norm over channels, or larger batches, or less dropout.",
            ),
        ]
        return told("MODES", f"loss {training:.4g} in training, {values[0]:.4g} in evaluation", findings)

    @torch.no_grad()
    def precision(self) -> Report:
        """Single against double precision."""
        narrow = float(self.of(self.copy()))
        wide = float(self.of(self.copy().double(), widened(self.batch)))
        off = abs(narrow - wide) / max(abs(wide), 1e-9)
        finding = at_most(
            "error of the loss against double precision, relative",
            off,
            1e-3,
            "single precision is not enough for this loss: large numbers that cancel, or a range that "
            "overflows.",
            "Subtract what is common before numbers are rounded, and take logarithms of wide ranges.",
        )
        return told("PRECISION", f"{off:.1e} against double precision", [finding])

    def slope(self, clip_norm: float | None) -> Report:
        """Is the gradient that of the loss, by finite differences in double precision?"""
        module, batch = self.copy().double(), widened(self.batch)
        slopes = self.slopes(module, batch)
        size = norm(slopes)
        generator = torch.Generator().manual_seed(0)
        weights = dict(module.named_parameters())
        length = _STEP * max(1.0, norm(weights) / 10)
        errors = [0.0]
        for name, g in slopes.items():
            # One parameter at a time: along its gradient, and a random part that finds what this leaves out.
            noise = torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.device)
            way = g / g.norm().clamp_min(1e-30) + 0.3 * noise / noise.norm().clamp_min(1e-30)
            values = []
            with torch.no_grad():
                for sign in (1, -2, 1):
                    weights[name].add_(way, alpha=sign * length)
                    values.append(float(self.of(module, batch)))
            rise, expected = (values[0] - values[1]) / (2 * length), float((g * way).sum())
            errors.append(abs(rise - expected) / max(abs(rise), abs(expected), _SMALL * size, 1e-12))
        findings = [
            at_most(
                "error of the gradient against finite differences of the loss, relative",
                max(errors),
                0.01,
                "the gradient is not that of the loss: a part is detached, reversed, or goes through a "
                "rounding.",
                "Take out detach(), item(), rounding; check your own backward by torch.autograd.gradcheck.",
            )
        ]
        if clip_norm is not None:
            findings.append(
                at_most(
                    "norm of the gradient over clip_norm",
                    size / clip_norm,
                    30.0,
                    f"clip_norm = {clip_norm:g} is far below the usual gradient norm: steps lose their size.",
                    "Raise clip_norm to a few times the usual norm.",
                )
            )
        return told("SLOPE", f"gradient {size:.3g}", findings)

    def learns(self, steps: int, validation: Callable[[nn.Module], Tensor] | None) -> Report:
        """Some steps on the batch: does its loss fall, does everything move, and validation with it?"""
        module = self.copy()
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        first, slopes = float(self.of(module).detach()), self.slopes(module)
        seen = [] if validation is None else [_value(validation, module)]
        optimizer = self.make(module.parameters())
        moved: dict[str, Tensor] = {}
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            self.of(module).backward()
            optimizer.step()
            if step == 0:
                moved = {n: w.detach() - before[n] for n, w in module.named_parameters()}
        last = float(self.of(module).detach())
        changed = {name: weight.detach() - before[name] for name, weight in module.named_parameters()}
        still = [name for name, change in changed.items() if not bool(change.any())]
        findings = [
            at_least(
                f"share of the loss that {steps} steps on one batch take away",
                1 - last / first if first else 0.0,
                LEAST_FALL,
                "the network does not learn even one batch.",
                "See the other findings; else try learning rates ten times lower and higher.",
            ),
            at_least(
                "cosine between the first step and the way down",
                -cosine(moved, slopes),
                0.0,
                "the step goes up the loss: wrong sign of gradient or update.",
                "The optimizer subtracts the gradient of what is to become smaller.",
            ),
            at_most(
                "parameters that have not moved",
                float(len(still)),
                0.0,
                f"these do not learn: {', '.join(still[:6])}{', ...' if len(still) > 6 else ''}.",
                "Are they frozen, outside the optimizer, at a learning rate of 0, or behind an output "
                "nobody uses?",
            ),
            at_most(
                "change of all weights by the first step, relative",
                norm(moved) / max(norm(before), 1e-30),
                0.5,
                "the weights are thrown away in one step: learning rate or weight decay is far too large.",
                "Lower them.",
            ),
        ]
        if validation is not None:
            seen.append(_value(validation, module))
            findings.append(
                at_least(
                    "change of the validation loss while the network learned, relative",
                    abs(seen[1] - seen[0]) / max(abs(seen[0]), 1e-12),
                    1e-6,
                    "the validation loss is constant: it looks at other weights than those that learn.",
                    "Validate the module that is trained.",
                )
            )
        return told("LITMUS", f"loss {first:.4g} -> {last:.4g} in {steps} steps", findings)

    def constant(self, answer: Callable[[nn.Module, Any], Tensor], steps: int) -> Report:
        """Does the answer differ from sample to sample, before and after some steps?"""
        module = self.copy()
        optimizer = self.make(module.parameters())
        seen = [spread(answer, module, self.batch)]
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            self.of(module).backward()
            optimizer.step()
        seen.append(spread(answer, module, self.batch))
        findings = [
            at_least(
                f"spread of the answers over the samples {when}, over their size",
                value,
                1e-3,
                "the network says the same of every sample: a constant prediction (the mean of the data).",
                "Does the input reach the output? Look for dead units, an input far from order 1, a head "
                "that is a free parameter.",
            )
            for when, value in zip(("before the first step", "after some steps"), seen, strict=True)
        ]
        return told("CONSTANT", f"spread of the answers {seen[0]:.3g}, then {seen[1]:.3g}", findings)


@torch.no_grad()
def _value(validation: Callable[[nn.Module], Tensor], module: nn.Module) -> float:
    module.eval()
    found = float(validation(module))
    module.train()
    return found
