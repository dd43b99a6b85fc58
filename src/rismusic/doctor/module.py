"""Diagnosis of any :class:`torch.nn.Module` with a loss and a batch, independent of source localisation.

All checks work on copies; the module itself stays unchanged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.references import cosine, total_norm
from rismusic.doctor.report import Diagnosis, listed, must_be_zero, report_of
from rismusic.errors import InputError
from rismusic.nn.monitors import MIN_DECREASE, Report, at_least, at_most, dead_report

Loss = Callable[[nn.Module, Any], Tensor]
Output = Callable[[nn.Module, Any], Tensor]
Validation = Callable[[nn.Module], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# Step of the finite differences, relative to the weights.
_DIFFERENCE = 1e-5
# Derivatives below this share of the whole gradient are lost in rounding.
_SMALL = 1e-3


def diagnose_module(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    optimizer: MakeOptimizer | None = None,
    output: Output | None = None,
    validation: Validation | None = None,
    clip_norm: float | None = None,
    steps: int = 20,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Find out why a network of your own does not learn.

    Args:
        module: the network before training.
        loss: maps the module and the batch to a scalar with a gradient, as in the training.
        batch: a tensor, or tensors in lists, tuples and dictionaries; at least 8 samples.
        optimizer: creates the optimizer of the training from the parameters; AdamW at 1e-3 by default.
        output: maps the module and a batch to the output [samples, ...], which must not be constant.
        validation: validation loss of a module, which must change when the weights do.
        clip_norm: limit of the gradient norm, if the training clips.
        steps: optimizer steps on the batch, in which the loss must decrease by a fifth.
        say: called with each line for the console.

    Raises:
        InputError: a module without parameters, or a loss that is not a scalar tensor.
    """
    if not list(module.parameters()):
        raise InputError("module", "it has no parameters, so there is nothing to train")
    make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    case = _ModuleUnderTest(module, loss, batch, make)
    reports = [case.check_finite(), case.check_coverage(), case.check_modes()]
    # The remaining checks need a finite gradient.
    if not reports[0].wrong:
        reports += [
            case.check_precision(),
            case.check_gradient(clip_norm),
            case.check_steps(steps, validation),
        ]
        if output is not None:
            reports.append(case.check_constant_output(output, steps))
    for report in reports:
        for line in report.lines:
            say(line)
    return Diagnosis(tuple(reports))


@dataclass(frozen=True)
class _ModuleUnderTest:
    """The arguments of :func:`diagnose_module`, and its checks."""

    module: nn.Module
    loss: Loss
    batch: Any
    make: MakeOptimizer

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.module).train()

    def evaluate(self, module: nn.Module, batch: Any = None) -> Tensor:
        """The loss, with the same random numbers in each call."""
        device = next(module.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            value = self.loss(module, self.batch if batch is None else batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = (
                f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            )
            raise InputError("loss", f"it must return a scalar tensor; the result has {kind}")
        return value.reshape(())

    def gradients(self, module: nn.Module, batch: Any = None) -> dict[str, Tensor]:
        """Gradient of the loss by each parameter; zeros where there is none."""
        named = dict(module.named_parameters())
        found = {name: torch.zeros_like(weight) for name, weight in named.items()}
        trained = {name: weight for name, weight in named.items() if weight.requires_grad}
        value = self.evaluate(module, batch)
        if value.requires_grad and trained:
            gradients = torch.autograd.grad(
                value, list(trained.values()), allow_unused=True, materialize_grads=True
            )
            found.update(zip(trained, gradients, strict=True))
        return found

    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Take optimizer steps on the batch."""
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            self.evaluate(module).backward()
            optimizer.step()

    def check_finite(self) -> Report:
        """[FINITE]: a finite loss with a finite gradient."""
        module = self.copy()
        value = self.evaluate(module)
        loss, size = float(value.detach()), total_norm(self.gradients(module))
        findings = [
            must_be_zero(
                "loss that is not finite",
                not math.isfinite(loss),
                "the loss is NaN or infinite.",
                "Look for logarithms, square roots and divisions at 0, and for non-finite data in the batch.",
            ),
            at_least(
                "loss with a gradient",
                float(value.requires_grad),
                1.0,
                "the loss is detached from the network, so nothing can be learned.",
                "Remove detach(), item(), no_grad and numpy between network and loss.",
            ),
            must_be_zero(
                "gradient that is not finite",
                not math.isfinite(size),
                "the gradient is NaN or infinite.",
                "Square roots and norms have no derivative at 0, nor eigenvectors of equal eigenvalues.",
            ),
        ]
        return report_of("FINITE", f"loss {loss:.4g}, gradient {size:.3g}", findings)

    def check_coverage(self) -> Report:
        """[GRAD]: every parameter has a gradient and is in the optimizer."""
        module = self.copy()
        sizes = {name: float(value.norm()) for name, value in self.gradients(module).items()}
        dead = dead_report(sizes)
        held = {id(p) for group in self.make(module.parameters()).param_groups for p in group["params"]}
        missing = [name for name, p in module.named_parameters() if id(p) not in held]
        left_out = must_be_zero(
            "parameters missing from the optimizer",
            len(missing),
            f"these parameters never change: {listed(missing)}.",
            "Pass every parameter to the optimizer.",
        )
        return Report("GRAD", dead.text, dead.values, (*dead.findings, left_out))

    @torch.no_grad()
    def check_modes(self) -> Report:
        """[MODES]: evaluation mode is deterministic and close to training mode."""
        module = self.copy()
        training = float(self.evaluate(module))
        module.eval()
        first, second = (float(self.loss(module, self.batch)) for _ in range(2))
        scale = max(abs(training), abs(first), 1e-12)
        findings = [
            at_most(
                "relative change of the loss between two evaluations in evaluation mode",
                abs(first - second) / scale,
                1e-5,
                "the network is random in evaluation mode: noise or dropout that eval() does not turn off?",
                "Use nn.Dropout, which eval() turns off, and draw no random numbers in evaluation mode.",
            ),
            at_most(
                "relative difference of the loss between training and evaluation mode",
                abs(training - first) / scale,
                0.5,
                "the network behaves differently in evaluation mode: batch normalisation, or much dropout?",
                "Normalise over channels, use larger batches, or use less dropout.",
            ),
        ]
        return report_of("MODES", f"loss {training:.4g} in training, {first:.4g} in evaluation", findings)

    @torch.no_grad()
    def check_precision(self) -> Report:
        """[PRECISION]: the loss in single against double precision."""
        single = float(self.evaluate(self.copy()))
        double = float(self.evaluate(self.copy().double(), _in_double(self.batch)))
        off = abs(single - double) / max(abs(double), 1e-9)
        finding = at_most(
            "relative error of the loss against double precision",
            off,
            1e-3,
            "single precision is not enough for this loss: cancellation of large numbers, or an overflow?",
            "Subtract large common parts early, and take logarithms of wide ranges.",
        )
        return report_of("PRECISION", f"{off:.1e} against double precision", [finding])

    def check_gradient(self, clip_norm: float | None) -> Report:
        """[SLOPE]: the gradient against finite differences in double precision."""
        module, batch = self.copy().double(), _in_double(self.batch)
        gradients = self.gradients(module, batch)
        size = total_norm(gradients)
        generator = torch.Generator().manual_seed(0)
        weights = dict(module.named_parameters())
        length = _DIFFERENCE * max(1.0, total_norm(weights) / 10)
        errors = [0.0]
        for name, g in gradients.items():
            # One parameter at a time, along its gradient; the random part shows what the gradient leaves out.
            noise = torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.device)
            direction = g / g.norm().clamp_min(1e-30) + 0.3 * noise / noise.norm().clamp_min(1e-30)
            values = []
            with torch.no_grad():
                for sign in (1, -2, 1):
                    weights[name].add_(direction, alpha=sign * length)
                    values.append(float(self.evaluate(module, batch)))
            rise, expected = (values[0] - values[1]) / (2 * length), float((g * direction).sum())
            errors.append(abs(rise - expected) / max(abs(rise), abs(expected), _SMALL * size, 1e-12))
        findings = [
            at_most(
                "relative error of the gradient against finite differences of the loss",
                max(errors),
                0.01,
                "the gradient is not that of the loss: a part is detached, reversed, or rounded.",
                "Remove detach(), item() and rounding. Test your own backward with torch.autograd.gradcheck.",
            )
        ]
        if clip_norm is not None:
            findings.append(
                at_most(
                    "norm of the gradient over clip_norm",
                    size / clip_norm,
                    30.0,
                    f"clip_norm = {clip_norm:g} is far below the usual gradient norm, so steps shrink.",
                    "Raise clip_norm to a few times the usual norm.",
                )
            )
        return report_of("SLOPE", f"gradient {size:.3g}", findings)

    def check_steps(self, steps: int, validation: Validation | None) -> Report:
        """[LITMUS]: in some steps on the batch, the loss falls and every parameter moves."""
        module = self.copy()
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}

        def changes() -> dict[str, Tensor]:
            return {name: weight.detach() - before[name] for name, weight in module.named_parameters()}

        first, gradients = float(self.evaluate(module).detach()), self.gradients(module)
        validated = [] if validation is None else [_value(validation, module)]
        optimizer = self.make(module.parameters())
        self.train(module, optimizer, 1)
        step = changes()
        self.train(module, optimizer, steps - 1)
        last = float(self.evaluate(module).detach())
        unmoved = [name for name, change in changes().items() if not bool(change.any())]
        findings = [
            at_least(
                f"relative decrease of the loss in {steps} steps on one batch",
                1 - last / first if first else 0.0,
                MIN_DECREASE,
                "the network does not learn even one batch.",
                "See the other findings first. Then try learning rates ten times lower and higher.",
            ),
            at_least(
                "cosine between the first step and the negative gradient",
                -cosine(step, gradients),
                0.0,
                "the step increases the loss: wrong sign of gradient or update.",
                "The optimizer must subtract the gradient.",
            ),
            must_be_zero(
                "parameters that have not moved",
                len(unmoved),
                f"these parameters do not learn: {listed(unmoved)}.",
                "Check that they are not frozen, are in the optimizer, and affect the loss.",
            ),
            at_most(
                "relative change of all weights by the first step",
                total_norm(step) / max(total_norm(before), 1e-30),
                0.5,
                "the initial weights are lost in one step.",
                "Lower the learning rate or the weight decay.",
            ),
        ]
        if validation is not None:
            validated.append(_value(validation, module))
            findings.append(
                at_least(
                    "relative change of the validation loss during the steps",
                    abs(validated[1] - validated[0]) / max(abs(validated[0]), 1e-12),
                    1e-6,
                    "the validation loss is constant: it uses other weights than those that are trained.",
                    "Validate the module that is trained.",
                )
            )
        return report_of("LITMUS", f"loss {first:.4g} -> {last:.4g} in {steps} steps", findings)

    def check_constant_output(self, output: Output, steps: int) -> Report:
        """[CONSTANT]: the output differs from sample to sample, before and after some steps."""
        module = self.copy()
        spreads = [_spread(output, module, self.batch)]
        self.train(module, self.make(module.parameters()), steps)
        spreads.append(_spread(output, module, self.batch))
        findings = [
            at_least(
                f"spread of the outputs over the samples {when}, over their size",
                value,
                1e-3,
                "the output is the same for every sample (such as the mean of the data).",
                "Look for dead units, inputs far from order 1, and a head that is a free parameter.",
            )
            for when, value in zip(("before the first step", "after some steps"), spreads, strict=True)
        ]
        return report_of(
            "CONSTANT", f"spread of the outputs {spreads[0]:.3g}, then {spreads[1]:.3g}", findings
        )


@torch.no_grad()
def _value(validation: Validation, module: nn.Module) -> float:
    module.eval()
    found = float(validation(module))
    module.train()
    return found


@torch.no_grad()
def _spread(output: Output, module: nn.Module, batch: Any) -> float:
    """Root mean square distance of the outputs from their mean, over the root mean square of the outputs."""
    module.eval()
    values = output(module, batch)
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.double().flatten(1)
    module.train()
    return float((flat - flat.mean(0)).square().mean().sqrt() / flat.square().mean().sqrt().clamp_min(1e-30))


def _in_double(batch: Any) -> Any:
    """The batch with all floating-point tensors in double precision."""
    if isinstance(batch, Tensor):
        if batch.is_complex():
            return batch.to(torch.complex128)
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {name: _in_double(value) for name, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return type(batch)(_in_double(value) for value in batch)  # type: ignore[call-arg]
    return batch
