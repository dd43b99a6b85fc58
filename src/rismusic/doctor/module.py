"""Diagnosis of any :class:`torch.nn.Module` with a loss and a batch, independent of source localisation.

The checks use the module itself and restore weights, buffers, gradients, modes and random generators.
"""

from __future__ import annotations

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
from rismusic.doctor.layers import (
    LayerRecord,
    depth_findings,
    initial_findings,
    initial_update,
    layer_record,
    without_gradient,
)
from rismusic.doctor.references import cosine, total_norm
from rismusic.doctor.report import Diagnosis, listed, must_be_zero, report_of
from rismusic.doctor.state import (
    Networks,
    as_one,
    changed_tensors,
    optimizer_copy,
    restored,
    seeded,
    tensors_in,
    to_double,
    widened,
)
from rismusic.doctor.tape import DRAWS, Tape, TapeRecorder, faithful
from rismusic.doctor.tape_losses import tape_reports
from rismusic.errors import InputError
from rismusic.nn.monitors import Finding, Report, at_least, at_most

Loss = Callable[[Any, Any], Tensor]
Output = Callable[[Any, Any], Tensor]
Validation = Callable[[Any], Tensor]
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
    output: Output | None = None,
    validation: Validation | None = None,
    clip_norm: float | None = None,
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
        output: maps the module and a batch to the output [samples, ...], which must not be constant. By
            default, the first tensor that the outermost module returns in the loss.
        validation: validation loss of a module, which must change when the weights do.
        clip_norm: limit of the gradient norm, if the training clips.
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
    case = _ModuleUnderTest(whole, module, loss, batch, make, output)
    reports: list[Report] = []

    def run(tag: str, check: Callable[[], Report]) -> None:
        with restored(whole):
            try:
                report = check()
            except InputError:
                raise
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                report = report_of(tag, f"left out: {text}", [])
        reports.append(report)
        for line in report.lines:
            say(line)

    with restored(whole):
        whole.train()
        case.evaluate()  # Errors of the user's own code are raised here, as they are.
    run("INPUT", case.check_input)
    run("FINITE", case.check_finite)
    # The remaining checks need a finite loss with a gradient.
    if not reports[-1].wrong:
        run("CALLS", case.check_calls)
        run("LAYERS", case.check_layers)
        run("GRAD", lambda: case.check_coverage(steps))
        run("BATCH", case.check_batch)
        with restored(whole):
            for report in case.tape_reports():
                reports.append(report)
                for line in report.lines:
                    say(line)
        run("MODES", case.check_modes)
        run("PRECISION", case.check_precision)
        if not surrogate_gradient:
            run("SLOPE", case.check_gradient)
        run("LITMUS", lambda: case.check_steps(steps, validation, clip_norm))
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
    output: Output | None

    def evaluate(self, batch: Any = None, seed: int = 0) -> Tensor:
        """The loss, with the same random numbers in each call with the same seed."""
        with seeded(self.module, seed):
            value = self.loss(self.given, self.batch if batch is None else batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = (
                f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            )
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
            optimizer, state = self.make, optimizer_copy(self.make)
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

    @cached_property
    def repeatable(self) -> bool:
        """Whether the loss is the same in two evaluations with the same seeds."""
        first, second = self.value(), self.value()
        return abs(first - second) <= 1e-5 * max(abs(first), abs(second), 1e-12)

    @cached_property
    def random(self) -> bool:
        """Whether the loss changes with the seeds."""
        first, second = self.value(), self.value(seed=1)
        return abs(first - second) > 1e-6 * max(abs(first), abs(second), 1e-12)

    def observed(self) -> tuple[CallRecorder, LayerRecord]:
        """The calls and the layers of one evaluation."""
        with layer_record(self.module) as layers, CallRecorder(layers.observe) as calls:
            self.evaluate()
        return calls, layers

    def check_finite(self) -> Report:
        """[FINITE]: a finite loss with a finite gradient."""
        self.module.train()
        value = self.evaluate()
        loss, size = float(value.detach()), total_norm(self.gradients())
        bad = sum(not bool(one.isfinite().all()) for one in tensors_in(self.batch))
        frozen = not self.weights
        reached = (
            value.requires_grad
            and any(
                one is not None
                for one in torch.autograd.grad(
                    value, list(self.weights.values()), allow_unused=True, retain_graph=True
                )
            )
            if not frozen
            else False
        )
        findings = [
            must_be_zero(
                "tensors of the batch that are not finite",
                bad,
                "the batch contains NaN or infinity.",
                "Remove or replace missing values before training.",
            ),
            must_be_zero(
                "loss that is not finite",
                not math.isfinite(loss),
                "the loss is NaN or infinite.",
                "Look for logarithms, square roots and divisions at 0, and for non-finite data in the batch.",
            ),
            at_least(
                "loss with a gradient",
                float(reached),
                1.0,
                "all parameters are frozen, so nothing can be learned."
                if frozen
                else "the loss is detached from the network, so nothing can be learned.",
                "Set requires_grad of the parameters that are to learn."
                if frozen
                else f"Remove detach(), item(), no_grad and numpy between network and loss."
                f"{self.observed()[0].detached_lines}",
            ),
            must_be_zero(
                "gradient that is not finite",
                not math.isfinite(size),
                "the gradient is NaN or infinite.",
                "Square roots and norms have no derivative at 0, nor eigenvectors of equal eigenvalues.",
            ),
        ]
        return report_of("FINITE", f"loss {loss:.4g}, gradient {size:.3g}", findings)

    def check_calls(self) -> Report:
        """[CALLS]: calls of torch functions that are usually mistakes, such as a double softmax."""
        self.module.train()
        calls, _ = self.observed()
        return report_of("CALLS", "calls of torch functions in network and loss", calls.findings)

    def check_input(self) -> Report:
        """[INPUT]: the size of the network's input, and of its features."""
        self.module.train()
        _, layers = self.observed()
        return report_of("INPUT", "input of the first layer", layers.input_findings())

    def check_layers(self) -> Report:
        """[LAYERS]: dead and saturated units, and gradients by depth."""
        self.module.train()
        _, layers = self.observed()
        findings = [
            *initial_findings(self.module),
            *layers.growth_findings(),
            *layers.unit_findings(),
        ]
        # A layer of zeros at the end stops all gradients before the first steps.
        with self.optimizer() as optimizer:
            self.train(optimizer, 2)
        gradients = self.gradients()
        if math.isfinite(total_norm(gradients)):
            findings += depth_findings(self.module, gradients, layers.weighted)
        return report_of("LAYERS", f"{len(layers.weighted)} layers with weights", findings)

    def check_coverage(self, steps: int) -> Report:
        """[GRAD]: every parameter that is not frozen has a gradient and is in the optimizer."""
        self.module.train()
        names = list(self.weights)
        sizes = {name: float(value.abs().max()) for name, value in self.gradients().items()}
        # Layers before one of zeros get their gradient after the first steps.
        if any(size == 0 for size in sizes.values()):
            with self.optimizer() as optimizer:
                self.train(optimizer, min(3, steps))
            for name, value in self.gradients().items():
                sizes[name] = max(sizes[name], float(value.abs().max()))
        dead = without_gradient(sizes)
        with self.optimizer() as optimizer:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = {id(weight) for weight in self.module.parameters()}
        missing = [name for name, p in self.weights.items() if id(p) not in held]
        frozen = sum(not weight.requires_grad for weight in self.module.parameters())
        calls = self.observed()[0]
        findings = [
            must_be_zero(
                "parameters without a gradient",
                len(dead),
                f"these parameters do not learn: {listed(dead)}.",
                f"Check for unused outputs, and for detach() or rounding in between.{calls.detached_lines}",
            ),
            must_be_zero(
                "parameters missing from the optimizer",
                len(missing),
                f"these parameters never change: {listed(missing)}.",
                "Pass every parameter to the optimizer.",
            ),
            must_be_zero(
                "parameters of the optimizer that the networks do not have",
                len(held - own),
                "the optimizer changes weights of another network (a stale copy?).",
                "Create the optimizer after the network has its final form.",
            ),
        ]
        text = f"{len(dead)} of {len(names)} parameters without a gradient"
        return report_of("GRAD", f"{text}, {frozen} frozen" if frozen else text, findings)

    def predict(self, batch: Any) -> Tensor | None:
        """The output [samples, ...] in evaluation mode, if there is one."""
        training = [part for part in self.module.modules() if part.training]
        self.module.eval()
        try:
            with seeded(self.module):
                if self.output is not None:
                    return self.output(self.given, batch).detach()
                with layer_record(self.module) as layers:
                    self.loss(self.given, batch)
        finally:
            for part in training:
                part.training = True
        return None if layers.output is None else layers.output.detach()

    def samples(self) -> int:
        """The number of samples, if all tensors of the batch have it as their first size; else 0."""
        sizes = {len(one) if one.ndim else 0 for one in tensors_in(self.batch)}
        return sizes.pop() if len(sizes) == 1 else 0

    def check_batch(self) -> Report:
        """[BATCH]: in evaluation mode, the output of a sample does not depend on the other samples."""
        S, base = self.samples(), self.predict(self.batch)
        if S < 4 or base is None or base.ndim < 1 or len(base) != S:
            return report_of("BATCH", "left out: the samples are not the first axis of batch and output", [])
        again = self.predict(self.batch)
        index = torch.arange(S)
        index[0] = S - 1
        other = self.predict(changed_tensors(self.batch, lambda one: one[index.to(one.device)]))
        assert again is not None
        assert other is not None
        if not torch.equal(again, base):
            return report_of("BATCH", "left out: the output is random", [])
        size = base[1:].abs().double().square().mean().sqrt().clamp_min(1e-30)
        change = float((other[1:] - base[1:]).abs().double().square().mean().sqrt() / size)
        finding = at_most(
            "change of the outputs of other samples when one sample is replaced, over their size",
            change,
            1e-4,
            "samples of a batch affect each other: axes are mixed up (view in place of transpose, "
            "batch_first, softmax over the batch?).",
            "Check the order of axes at every view, reshape, transpose, recurrent layer and attention.",
        )
        return report_of("BATCH", f"other samples change by {change:.1e}", [finding])

    def tape_reports(self) -> list[Report]:
        """Checks that repeat the loss with other data, see :mod:`rismusic.doctor.tape_losses`."""
        recorder = TapeRecorder(self.module)
        handles = recorder.hooks()
        try:
            with restored(self.module), CallRecorder(tape=recorder):
                self.module.train()
                tape = recorder.cut(self.evaluate())
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(tape, Tape) and faithful(tape):
            return tape_reports(tape, recorder.unread())
        reason = tape if isinstance(tape, str) else "repeating the recorded calls gives another loss"
        return [report_of("BATCH", f"left out: {reason}", [])]

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
        first, second = (self._value_eval(seed) for seed in (0, 1))
        scale = max(abs(training), abs(first), abs(moved[0] - moved[-1]), 1e-12)
        held = [name for name, part in self.module.named_modules() if part.training]
        findings = [
            at_most(
                "relative change of the loss between two evaluations in evaluation mode",
                0.0 if self._draws_on_purpose() else abs(first - second) / scale,
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
            must_be_zero(
                "modules that stay in training mode after eval()",
                len(held),
                f"eval() does not reach {listed(held)}.",
                "Keep modules as attributes or in a ModuleList, and call super().train(mode) in train().",
            ),
        ]
        return report_of("MODES", f"loss {training:.4g} in training, {first:.4g} in evaluation", findings)

    def _value_eval(self, seed: int) -> float:
        return self.value(seed=seed)

    def _draws_on_purpose(self) -> bool:
        """Whether the loss draws random numbers other than dropout in evaluation mode, as a VAE does."""
        drawn: list[str] = []

        def see(func: Any, *_: Any) -> None:
            name = getattr(func, "__name__", "")
            if name in DRAWS:
                drawn.append(name)

        with CallRecorder(see):
            self.evaluate()
        return bool(drawn)

    def check_precision(self) -> Report:
        """[PRECISION]: the loss in single against double precision."""
        self.module.train()
        if self.random:
            self.module.eval()
            first, second = self.value(), self.value(seed=1)
            if first != second:
                return report_of("PRECISION", "left out: the loss is random, also in evaluation mode", [])
        if all(weight.dtype in (torch.float64, torch.complex128) for weight in self.module.parameters()):
            return report_of("PRECISION", "left out: the network is in double precision", [])
        single = self.value()
        with self.in_double() as batch:
            if batch is None:
                return report_of("PRECISION", f"left out: {self._not_double}", [])
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
            to_double(self.module)
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
        if not self.repeatable:
            return report_of(
                "SLOPE", "left out: the loss differs between evaluations with the same seeds", []
            )
        rounded = list(self.observed()[0].rounded)
        with self.in_double() as batch:
            if batch is None:
                return report_of("SLOPE", f"left out: {self._not_double}", [])
            gradients = self.gradients(batch)
            errors, size = self._slope_errors(batch, gradients), total_norm(gradients)
        worst = max(errors, key=lambda name: errors[name], default="")
        if errors and errors[worst] > 0.01 and rounded:
            return report_of(
                "SLOPE",
                f"left out: the network rounds ({', '.join(rounded)}), so it is not differentiable",
                [],
            )
        value, left = errors.get(worst, 0.0), len(gradients) - len(errors)
        finding = at_most(
            "relative error of the gradient against finite differences of the loss",
            value,
            0.01,
            f"the gradient is not that of the loss: a part is detached, reversed, or rounded (at {worst}).",
            "Remove detach(), item() and rounding. Test your own backward with "
            f"torch.autograd.gradcheck.{self.observed()[0].detached_lines}",
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
            expected = (
                float((g.conj() * direction).real.sum()) if g.is_complex() else float((g * direction).sum())
            )
            found = []
            for step in _DIFFERENCES:
                values = []
                for sign in (1, -2, 1):
                    with torch.no_grad():
                        weights[name].add_(direction, alpha=sign * length * step)
                    values.append(self.value(batch))
                rise = (values[0] - values[1]) / (2 * length * step)
                found.append(
                    (rise, abs(rise - expected) / max(abs(rise), abs(expected), _SMALL * size, 1e-12))
                )
            (one, first), (two, second) = found
            if abs(one - two) <= 0.05 * max(abs(one), abs(two), _SMALL * size):
                errors[name] = min(first, second)
        return errors

    def check_steps(self, steps: int, validation: Validation | None, clip_norm: float | None) -> Report:
        """[LITMUS]: in some steps on the batch, the loss falls and every parameter moves."""
        self.module.train()
        gradients, before = self.gradients(), self._copies()
        validated = [] if validation is None else [self._validated(validation)]
        first = self.value()
        with self.optimizer() as optimizer:
            self.train(optimizer, 1)
            step = self._changes(before)
            self.train(optimizer, steps - 1)
        last = self.value()
        unmoved = [name for name, change in self._changes(before).items() if not bool(change.any())]
        if validation is not None:
            validated.append(self._validated(validation))
        for name, weight in self.weights.items():
            weight.data.copy_(before[name])
        # A frozen or decoupled part (weight decay) does not count: the part along the gradient must go down.
        cosine_down, size = -cosine(step, gradients), total_norm(gradients)
        wide, ratio = initial_update(step, before)
        decrease, meaning, advice = self._decrease(first, last)
        if 0 < ratio < _SLOWEST and decrease < _CLEAR_DECREASE:
            decrease = -abs(decrease)
            meaning = (
                f"the network does not learn even one batch: weights change by {ratio:.1g} of their size in "
                "a step, so the learning rate is too low."
            )
            advice = "Use a learning rate at which weights change by 1e-4 to 1e-2 of their size in a step."
        findings = [
            at_least(
                f"relative decrease of the loss in {steps} steps on one batch", decrease, 0.0, meaning, advice
            ),
            at_least(
                "cosine between the first step and the negative gradient",
                cosine_down,
                -0.05,
                "the step increases the loss: wrong sign of gradient or update.",
                "The optimizer must subtract the gradient.",
            ),
            must_be_zero(
                "parameters that have not moved",
                len(unmoved),
                "the learning rate is 0, so nothing is learned."
                if all(group["lr"] == 0 for group in optimizer.param_groups)
                else f"these parameters do not learn: {listed(unmoved)}.",
                "Check that they are in the optimizer, that its learning rate is not 0, and that they "
                "affect the loss.",
            ),
            at_most(
                "relative change of all weights by the first step",
                ratio,
                0.5,
                f"the initial weights are lost in one step (most in {wide}).",
                "Lower the learning rate or the weight decay.",
            ),
        ]
        if clip_norm is not None:
            # Adam divides by the size of the gradient, so that clipping hardly matters to it.
            adaptive = "exp_avg_sq" in {key for value in optimizer.state.values() for key in value}
            findings.append(
                at_most(
                    "norm of the gradient over clip_norm",
                    0.0 if adaptive and size / clip_norm < 1e3 else size / clip_norm,
                    30.0,
                    f"clip_norm = {clip_norm:g} is far below the usual gradient norm, so steps shrink.",
                    "Raise clip_norm to a few times the usual norm.",
                )
            )
        if validation is not None:
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

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def _changes(self, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight.detach() - before[name] for name, weight in self.weights.items()}

    def _validated(self, validation: Validation) -> float:
        self.module.eval()
        with torch.no_grad():
            found = float(validation(self.given))
        self.module.train()
        return found

    def check_constant_output(self, steps: int) -> Report:
        """[CONSTANT]: the output differs from sample to sample after some steps."""
        spreads = []
        for number in (0, steps):
            with self.optimizer() as optimizer:
                self.module.train()
                self.train(optimizer, number)
            spreads.append(_spread(self.predict(self.batch)))
        before, after = spreads
        if math.isnan(before) or math.isnan(after):
            return report_of("CONSTANT", "left out: the loss calls no module with an output of samples", [])
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
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    flat = values.double().reshape(len(values), -1)
    return float((flat - flat.mean(0)).square().mean().sqrt() / flat.square().mean().sqrt().clamp_min(1e-30))
