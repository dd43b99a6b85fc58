"""Diagnosis of any :class:`torch.nn.Module` with a loss and a batch, independent of source localisation.

Some optimizer steps on the batch are watched like a training loop, see :mod:`rismusic.doctor.watch`. What a
loop cannot be asked follows: the loss in evaluation mode, in double precision and at moved weights. The
module itself is used; weights, buffers, gradients, modes and random generators are restored.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.layers import layer_record, update_ratio
from rismusic.doctor.references import total_norm
from rismusic.doctor.report import Diagnosis, Findings, report_of
from rismusic.doctor.state import (
    ERRORS,
    Networks,
    as_one,
    real_view,
    restored,
    seeded,
    tensors_in,
    widened,
)
from rismusic.doctor.tape import DRAWS
from rismusic.doctor.watch import Watch
from rismusic.errors import InputError
from rismusic.nn.monitors import Finding, Report, at_least, at_most

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

# Steps of the finite differences, relative to the weights. Both must agree, or the loss has a kink there.
_DIFFERENCES = (1e-5, 3e-6)
# Derivatives below this share of the whole gradient are lost in rounding.
_SMALL = 1e-3
# Relative decrease of the loss on one batch that needs no second look.
_CLEAR_DECREASE = 0.05
# Smallest decrease that counts when the loss rises at the given learning rate.
_SOME = 0.02
# Most steps and seconds of CPU time in which a loss is followed on one batch.
_MOST_STEPS, _MOST_SECONDS = 100, 3.0
# Largest relative change of a weight matrix in a step, below which nothing can be learned in time.
_SLOWEST = 2e-6
# Steps at other learning rates.
_TRIED_STEPS = 30
# Share of the size of an output below which it does not depend on something.
_DEPENDS = 1e-3


def diagnose_module(
    module: Networks,
    loss: Loss,
    batch: Any,
    *,
    optimizer: MakeOptimizer | torch.optim.Optimizer | None = None,
    steps: int = 20,
    surrogate_gradient: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Find out why a network of your own does not learn.

    Args:
        module: the network before training, or several networks in a list or dictionary.
        loss: maps the module (as given) and the batch to a scalar with a gradient, as in the training.
        batch: a tensor, or tensors in lists, tuples and dictionaries; at least 8 samples.
        optimizer: creates the optimizer of the training from the parameters, or is the optimizer; AdamW at
            1e-3 by default.
        steps: optimizer steps on the batch, in which the loss must decrease.
        surrogate_gradient: whether the gradient differs from that of the loss on purpose, as with
            straight-through estimators, stopped gradients and gradient reversal; [SLOPE] is then left out.
        say: called with each line for the console.

    Raises:
        InputError: a module without parameters, or a loss that is not a scalar tensor.
    """
    whole = as_one(module)
    if not list(whole.parameters()):
        raise InputError("module", "it has no parameters, so there is nothing to train")
    if any(isinstance(weight, UninitializedParameter) for weight in whole.parameters()):
        raise InputError("module", "it has lazy parameters; run it once on the batch, then diagnose it")
    make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    case = _ModuleUnderTest(whole, module, loss, batch, make)
    reports: list[Report] = []

    def run(tag: str, check: Callable[[], Report]) -> None:
        with restored(whole):
            try:
                report = check()
            except InputError:
                raise
            except ERRORS as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                report = report_of(tag, f"left out: {text}")
        reports.append(report)
        for line in report.lines:
            say(line)

    with restored(whole):
        whole.train()
        case.evaluate()  # Errors of the user's own code are raised here, as they are.
    run("FINITE", case.check_finite)
    # The remaining checks need a finite loss with a gradient.
    if reports[-1].wrong:
        run("INPUT", case.check_input)
        return Diagnosis(tuple(reports))
    reports += (watched := case.watched(steps))
    for line in (line for report in watched for line in report.lines):
        say(line)
    run("MODES", case.check_modes)
    run("PRECISION", case.check_precision)
    if not surrogate_gradient:
        run("SLOPE", case.check_gradient)
    run("LITMUS", lambda: case.check_steps(steps))
    run("CONSTANT", lambda: case.check_constant_output(steps))
    return Diagnosis(tuple(reports))


@dataclass
class _ModuleUnderTest:
    """The arguments of :func:`diagnose_module`, and its checks."""

    module: nn.Module
    given: Networks
    loss: Loss
    batch: Any
    make: MakeOptimizer | torch.optim.Optimizer

    def evaluate(self, batch: Any = None, seed: int = 0) -> Tensor:
        """The loss, with the same random numbers in each call with the same seed."""
        with seeded(self.module, seed):
            value = self.loss(self.given, self.batch if batch is None else batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = f"type {type(value).__name__}"
            if isinstance(value, Tensor):
                kind = f"shape {list(value.shape)}"
            raise InputError("loss", f"it must return a scalar tensor; the result has {kind}")
        if value.is_complex():
            raise InputError("loss", "it must be real; the result is complex. Take its modulus or real part")
        return value.reshape(())

    def value(self, batch: Any = None, seed: int = 0) -> float:
        """The loss as a number. Gradients stay enabled, because a loss may need them itself."""
        return float(self.evaluate(batch, seed).detach())

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters that are trained; frozen ones are frozen on purpose."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def gradients(self, batch: Any = None) -> dict[str, Tensor]:
        """Gradient of the loss by each trained parameter; zeros where there is none."""
        weights = self.weights
        value = self.evaluate(batch)
        if not value.requires_grad or not weights:
            return {name: torch.zeros_like(weight) for name, weight in weights.items()}
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        return {
            name: torch.zeros_like(weight) if one is None else one.to_dense() if one.is_sparse else one
            for (name, weight), one in zip(weights.items(), found, strict=True)
        }

    @contextmanager
    def optimizer(self, factor: float = 1.0) -> Iterator[torch.optim.Optimizer]:
        """The optimizer of the training, at a multiple of its learning rates."""
        if isinstance(self.make, torch.optim.Optimizer):
            optimizer, state = self.make, copy.deepcopy(self.make.state_dict())
        else:
            optimizer, state = self.make(self.module.parameters()), None
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        try:
            yield optimizer
        finally:
            if state is not None:
                optimizer.load_state_dict(state)

    def train(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Take optimizer steps on the batch."""
        for _ in range(steps):
            self._step(optimizer)

    def _step(self, optimizer: torch.optim.Optimizer) -> float:
        """One step; the loss before it."""
        values: list[float] = []

        def closure() -> Tensor:
            self.module.zero_grad(set_to_none=True)
            value = self.evaluate()
            value.backward()
            values.append(float(value.detach()))
            return value

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        return values[0]

    def losses(self, steps: int, factor: float = 1.0) -> list[float]:
        """The loss before each of some steps, and after them; ends at a loss that is not finite."""
        end, values = time.thread_time() + _MOST_SECONDS, []
        with restored(self.module), self.optimizer(factor) as optimizer:
            self.module.train()
            for _ in range(steps):
                values.append(self._step(optimizer))
                if not math.isfinite(values[-1]) or time.thread_time() > end:
                    break
            values.append(self.value())
        return values

    def change(self, seed: int) -> float:
        """Relative difference of the loss from that in an evaluation with other seeds, or the same (0)."""
        first, second = self.value(), self.value(seed=seed)
        return abs(first - second) / max(abs(first), abs(second), 1e-12)

    def observed(self) -> CallRecorder:
        """The calls of one evaluation."""
        with CallRecorder() as calls:
            self.evaluate()
        return calls

    def watched(self, steps: int) -> list[Report]:
        """What a watched loop of optimizer steps on the batch says."""
        with restored(self.module), self.optimizer() as optimizer:
            self.module.train()
            with Watch(self.given, optimizer, say=lambda _: None) as watch:
                self.train(optimizer, steps)
                return watch.step_reports

    def check_input(self) -> Report:
        """[INPUT]: the size of the input, which may be why the loss is not finite."""
        self.module.train()
        with layer_record(self.module) as layers:
            self.evaluate()
        return report_of("INPUT", "input of the first layer", layers.input_findings())

    def check_finite(self) -> Report:
        """[FINITE]: a finite loss with a finite gradient."""
        self.module.train()
        value = self.evaluate()
        loss, size = float(value.detach()), total_norm(self.gradients())
        bad = sum(not bool(one.isfinite().all()) for one in tensors_in(self.batch))
        weights, slopes = list(self.weights.values()), tuple[Tensor | None]()
        if weights and value.requires_grad:
            slopes = torch.autograd.grad(value, weights, allow_unused=True)
        reached, frozen = any(one is not None for one in slopes), not weights
        findings = Findings()
        meaning = "the batch contains NaN or infinity."
        findings.must_be_zero("tensors of the batch that are not finite", bad, meaning)
        meaning = "the loss is NaN or infinite."
        advice = "Look for logarithms, square roots and divisions at 0, and for non-finite data in the batch."
        findings.must_be_zero("loss that is not finite", not math.isfinite(loss), meaning, advice)
        findings.at_least(
            "loss with a gradient",
            float(reached),
            1.0,
            "all parameters are frozen, so nothing can be learned."
            if frozen
            else "the loss is detached from the network, so nothing can be learned.",
            "Set requires_grad of the parameters that are to learn."
            if frozen
            else f"Remove detach(), item(), no_grad and numpy between network and loss."
            f"{self.observed().detached_lines}",
        )
        meaning = "the gradient is NaN or infinite."
        advice = "Square roots and norms have no derivative at 0, nor eigenvectors of equal eigenvalues."
        findings.must_be_zero("gradient that is not finite", not math.isfinite(size), meaning, advice)
        return report_of("FINITE", f"loss {loss:.4g}, gradient {size:.3g}", findings)

    def predict(self) -> Tensor | None:
        """The output [samples, ...] in evaluation mode: the first tensor of the outermost module."""
        self.module.eval()
        with seeded(self.module), layer_record(self.module) as layers:
            self.loss(self.given, self.batch)
        return None if layers.output is None else layers.output.detach()

    def check_modes(self) -> Report:
        """[MODES]: evaluation mode is deterministic and close to training mode."""
        self.module.train()
        norms = [part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        if norms:
            # Running statistics start at 0 and 1, and follow the data within some batches.
            momentum = [part.momentum for part in norms]
            for part in norms:
                if part.momentum:
                    part.momentum = None
                    part.reset_running_stats()
            for seed in range(3):
                self.value(seed=seed)
            for part, value in zip(norms, momentum, strict=True):
                part.momentum = value
        training = sum(self.value(seed=seed) for seed in range(3)) / 3
        moved = self.losses(5)
        self.module.eval()
        first, second = (self.value(seed=seed) for seed in (0, 1))
        scale = max(abs(training), abs(first), abs(moved[0] - moved[-1]), 1e-12)
        findings = Findings()
        findings.at_most(
            "relative change of the loss between two evaluations in evaluation mode",
            0.0 if self._draws_on_purpose() else abs(first - second) / scale,
            1e-5,
            "the network is random in evaluation mode: noise or dropout that eval() does not turn off?",
            "Use nn.Dropout, which eval() turns off, and draw no random numbers in evaluation mode.",
        )
        findings.at_most(
            "relative difference of the loss between training and evaluation mode",
            abs(training - first) / scale,
            0.5,
            "the network behaves differently in evaluation mode: batch normalisation, or much dropout?",
            "Normalise over channels, use larger batches, or use less dropout.",
        )
        return report_of("MODES", f"loss {training:.4g} in training, {first:.4g} in evaluation", findings)

    def _draws_on_purpose(self) -> bool:
        """Whether the loss draws random numbers other than dropout in evaluation mode, as a VAE does."""
        called: set[str] = set()
        with CallRecorder(lambda func, *_: called.add(getattr(func, "__name__", ""))):
            self.evaluate()
        return not called.isdisjoint(DRAWS)

    def check_precision(self) -> Report:
        """[PRECISION]: the loss in single against double precision."""
        self.module.train()
        if self.change(1) > 1e-6:
            self.module.eval()
            first, second = self.value(), self.value(seed=1)
            if first != second:
                return report_of("PRECISION", "left out: the loss is random, also in evaluation mode")
        if all(weight.dtype in (torch.float64, torch.complex128) for weight in self.module.parameters()):
            return report_of("PRECISION", "left out: the network is in double precision")
        single = self.value()
        with self.in_double() as batch:
            if batch is None:
                return report_of("PRECISION", f"left out: {self._not_double}")
            double = self.value(batch)
        off = abs(single - double) / max(abs(double), 1e-2 * abs(self.scale), 1e-9)
        finding = at_most(
            "relative error of the loss against double precision",
            off,
            1e-3,
            "single precision is not enough for this loss: cancellation of large numbers, or an overflow?",
            "Subtract large common parts early, and take logarithms of wide ranges.",
        )
        return report_of("PRECISION", f"{off:.1e} against double precision", [finding])

    _not_double = ""

    @cached_property
    def scale(self) -> float:
        """Size of the changes of the loss in a few steps, for losses near 0."""
        values = [value for value in self.losses(5) if math.isfinite(value)]
        return max(values) - min(values) if values else 0.0

    @contextmanager
    def in_double(self) -> Iterator[Any]:
        """The network and the batch in double precision; None where a part of the loss stays in single."""
        batch = widened(self.batch)
        with restored(self.module):
            for tensor in [*self.module.parameters(), *self.module.buffers()]:
                tensor.data = widened(tensor.data)
            try:
                result = self.evaluate(batch)
                moved = result.dtype == torch.float64
                self._not_double = "" if moved else "a part of network or loss stays in single precision"
            except (RuntimeError, TypeError, ValueError) as error:
                moved = False
                text = " ".join(str(error).split())[:120]
                self._not_double = f"network or loss cannot be moved to double precision ({text})"
            yield batch if moved else None

    def check_gradient(self) -> Report:
        """[SLOPE]: the gradient against finite differences in double precision."""
        self.module.train()
        if not self.change(0) <= 1e-5:
            return report_of("SLOPE", "left out: the loss differs between evaluations with the same seeds")
        rounded = list(self.observed().rounded)
        with self.in_double() as batch:
            if batch is None:
                return report_of("SLOPE", f"left out: {self._not_double}")
            gradients = self.gradients(batch)
            errors, size = self._slope_errors(batch, gradients), total_norm(gradients)
        worst = max(errors, key=lambda name: errors[name], default="")
        if errors and errors[worst] > 0.01 and rounded:
            text = f"left out: the network rounds ({', '.join(rounded)}), so it is not differentiable"
            return report_of("SLOPE", text)
        value, left = errors.get(worst, 0.0), len(gradients) - len(errors)
        finding = at_most(
            "relative error of the gradient against finite differences of the loss",
            value,
            0.01,
            f"the gradient is not that of the loss: a part is detached, reversed, or rounded (at {worst}).",
            "Remove detach(), item() and rounding. Test your own backward with "
            f"torch.autograd.gradcheck.{self.observed().detached_lines}",
        )
        text = f"gradient {size:.3g}" + (f"; {left} parameters at a kink left out" if left else "")
        return report_of("SLOPE", text, [finding])

    def _slope_errors(self, batch: Any, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Relative error by parameter; without those at which the loss has a kink or a jump."""
        generator = torch.Generator().manual_seed(0)
        weights, size = self.weights, total_norm(gradients)
        length = max(1.0, total_norm(weights) / 10)
        errors = {}
        for name, g in gradients.items():
            # One parameter at a time, along its gradient; the random part shows what the gradient leaves out.
            noise = torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)
            direction = g / g.norm().clamp_min(1e-30) + 0.3 * noise / noise.norm().clamp_min(1e-30)
            expected = float((g.conj() * direction).real.sum())
            found = []
            for step in _DIFFERENCES:
                values = []
                for sign in (1, -2, 1):
                    with torch.no_grad():
                        weights[name].add_(direction, alpha=sign * length * step)
                    values.append(self.value(batch))
                rise = (values[0] - values[1]) / (2 * length * step)
                most = max(abs(rise), abs(expected), _SMALL * size, 1e-12)
                found.append((rise, abs(rise - expected) / most))
            (one, first), (two, second) = found
            if abs(one - two) <= 0.05 * max(abs(one), abs(two), _SMALL * size):
                errors[name] = min(first, second)
        return errors

    def check_steps(self, steps: int) -> Report:
        """[LITMUS]: in some steps on the batch, the loss falls."""
        self.module.train()
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        first = self.value()
        with self.optimizer() as optimizer:
            self.train(optimizer, 1)
            matrices = {name: w.detach() for name, w in self.weights.items() if w.ndim > 1}
            ratios = (update_ratio(w - before[name], before[name]) for name, w in matrices.items())
            ratio = max(ratios, default=0.0)
            self.train(optimizer, steps - 1)
        last = self.value()
        for name, weight in self.weights.items():
            weight.data.copy_(before[name])
        decrease, meaning, advice = self._decrease(first, last)
        if 0 < ratio < _SLOWEST and decrease < _CLEAR_DECREASE:
            decrease = -abs(decrease)
            meaning = (
                f"the network does not learn even one batch: weights change by {ratio:.1g} of their size in "
                "a step, so the learning rate is too low."
            )
            advice = "Use a learning rate at which weights change by 1e-4 to 1e-2 of their size in a step."
        findings = Findings()
        findings.at_least(
            f"relative decrease of the loss in {steps} steps on one batch", decrease, 0.0, meaning, advice
        )
        findings.at_most(
            "relative change of a weight matrix by the first step",
            ratio,
            0.5,
            "the initial weights are lost in one step.",
            "Lower the learning rate or the weight decay.",
        )
        return report_of("LITMUS", f"loss {first:.4g} -> {last:.4g} in {steps} steps", findings)

    def _decrease(self, first: float, last: float) -> tuple[float, str, str]:
        """Relative decrease of the loss, what it means, and advice; negative only if something is wrong.

        A small decrease is judged against other learning rates, since a low one can be right.
        """
        fine = "the network does not learn even one batch.", "See the other findings first."
        scale = max(abs(first), 1e-12)
        decrease = (first - last) / scale
        if decrease >= _CLEAR_DECREASE:
            return decrease, *fine
        own = self.losses(_MOST_STEPS)
        best = (own[0] - own[-1]) / scale
        if best >= _CLEAR_DECREASE:
            return best, *fine
        tried = {}
        # A lower rate than necessary is no fault by itself, so that the loss at higher ones counts only where
        # it does not fall at all.
        for factor in (0.1, 0.01) if best < 0 else (0.1, 10.0, 100.0):
            values = self.losses(_TRIED_STEPS, factor)
            low = min((v for v in values[-3:] if math.isfinite(v)), default=math.inf)
            tried[factor] = (values[0] - low) / scale if math.isfinite(values[-1]) else -math.inf
        factor = max(tried, key=lambda one: tried[one])
        text = f"with {factor:g} times the learning rate it falls by {tried[factor]:.0%}"
        if factor < 1 and tried[factor] >= max(_SOME, 3 * best):
            return (
                min(best, -1e-9),
                f"the loss does not fall; {text}: the learning rate is too high.",
                f"Use {factor:g} times the learning rate.",
            )
        if max(best, tried[factor]) < 1e-3 and not self.at_floor():
            meaning = "the network does not learn even one batch, at any learning rate."
            return min(best, -1e-9), meaning, "See the other findings first."
        return abs(best), *fine

    def at_floor(self) -> bool:
        """Whether the gradient is so small that the loss is at a minimum."""
        return total_norm(self.gradients()) < 1e-6 * max(1.0, total_norm(self.weights))

    def check_constant_output(self, steps: int) -> Report:
        """[CONSTANT]: the output differs from sample to sample after some steps."""
        spreads = []
        for number in (0, steps):
            with self.optimizer() as optimizer:
                self.module.train()
                self.train(optimizer, number)
            spreads.append(_spread(self.predict()))
        before, after = spreads
        if math.isnan(before) or math.isnan(after):
            return report_of("CONSTANT", "left out: the loss calls no module with an output of samples")
        finding: Finding = at_least(
            "spread of the outputs over the samples after some steps, over their size",
            after,
            _DEPENDS,
            "the output is the same for every sample (such as the mean of the data).",
            "Look for dead units, inputs far from order 1, and a head that is a free parameter.",
        )
        return report_of("CONSTANT", f"spread of the outputs {before:.3g}, then {after:.3g}", [finding])


def _spread(values: Tensor | None) -> float:
    """Root mean square distance of the outputs from their mean, over the root mean square of the outputs."""
    if values is None or values.ndim < 1 or len(values) < 2:
        return math.nan
    flat = real_view(values).double().reshape(len(values), -1)
    return float((flat - flat.mean(0)).square().mean().sqrt() / flat.square().mean().sqrt().clamp_min(1e-30))
