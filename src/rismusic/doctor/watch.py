"""Watching an existing training loop in PyTorch: ``with rismusic.watch(model, optimizer) as w:``.

The loop stays as it is. Hooks on the modules, on the gradients and on the optimizer's step see what the loop
really does; a :class:`~rismusic.doctor.calls.CallRecorder` sees the calls of torch functions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.counterfactuals import HELD, Settings
from rismusic.doctor.layers import (
    LayerRecord,
    depth_findings,
    initial_findings,
    layer_record,
    update_ratio,
    without_gradient,
)
from rismusic.doctor.learning_checks import deviation
from rismusic.doctor.report import Diagnosis, Findings, listed, must_be_zero, report_of
from rismusic.doctor.state import Hook, Networks, as_one, calling_line, groups_of, weights_of
from rismusic.doctor.steps import StepRecord, optimizers_seen
from rismusic.doctor.tape import DROPOUT, TapeRecorder
from rismusic.doctor.tape_record import TapeRecord
from rismusic.doctor.validations import Validations
from rismusic.errors import InputError
from rismusic.nn.monitors import Report

# Numbers of each parameter that are kept to see whether it changes.
_KEPT = 256
# Layers and calls are measured in the first forward passes only, because that takes time.
_MEASURED = 3
# A weight whose relative change per step stays below this does not learn at any speed.
_SLOWEST, _FASTEST = 1e-8, 0.5
# Ratio of the relative changes of two weight matrices that no ordinary training has.
_UNEQUAL = 1e-4
# Fewest losses for findings about their course, and the share at the start and at the end that is compared.
_FEWEST_LOSSES, _PART = 20, 0.2
# Growth of the learning rate that is no warm-up.
_GROWN = 100.0
# Rounding of a sum, in units of that of one term: the root of the number of terms.
_TERMS = 32
# What evaluation mode changes.
_SWITCHED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
# Sum of the relative changes of a weight matrix, from which the loss should have changed.
_MOVED = 0.05


class Watch:
    """What a training loop does while the context is open; for the arguments see :func:`watch`.

    Attributes:
        losses: the loss at each call of ``backward``.
    """

    def __init__(
        self,
        model: Networks,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        self.module = as_one(model)
        if not list(self.module.parameters()):
            raise InputError("model", "it has no parameters, so there is nothing to train")
        self.optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self._given = bool(self.optimizers)
        self.losses: list[float] = []
        self._say = say
        self._names = {id(p): name for name, p in self.module.named_parameters()}
        self._stack = ExitStack()
        self._tape = TapeRecorder(self.module)
        self._tapes = TapeRecord(self.module)
        self._calls = CallRecorder(self._observe, numbers_cut=False, tape=self._tape)
        self._step_record = StepRecord(self._names)
        self._seen: list[torch.optim.Optimizer] = []
        self._layers: LayerRecord | None = None
        self._measuring = ExitStack()
        self._forwards = 0
        self._evaluation = self._steps = 0
        self._without_gradient: Counter[bool] = Counter()
        self._validations = Validations(self._predict)
        # Learning rates in each step, by optimizer and group.
        self._rates: dict[tuple[int, int], list[float]] = {}
        self._settings: Settings | None = None
        # By parameter: whether its gradient was reset since the last step, and whether it had old values.
        self._fresh: dict[int, bool] = {}
        self._stale = 0
        self._gradient: dict[str, float] = {}
        # Of each parameter: the gradient of the losses since the last reset, and the largest at a step.
        self._since: dict[str, float] = {}
        self._stepped: dict[str, float] = {}
        self._last_gradients: dict[str, Tensor] = {}
        self._non_finite: list[str] = []
        self._start = {name: self._sample(p) for name, p in self.module.named_parameters()}
        self._initial = initial_findings(self.module)
        self._before: dict[str, Tensor] = {}
        self._ratios: dict[str, list[float]] = {}
        # The line of a dropout that evaluation mode does not turn off.
        self._kept_dropout = ""
        self._diagnosis: Diagnosis | None = None
        self._closed = False

    def __enter__(self) -> Watch:
        stack = self._stack
        stack.enter_context(self._measuring)
        self._layers = self._measuring.enter_context(layer_record(self.module))
        several = isinstance(self.module, (nn.ModuleDict, nn.ModuleList))
        handles: list[RemovableHandle] = []
        for part in (self.module, *(self.module.children() if several else ())):
            handles.append(part.register_forward_pre_hook(Hook(self._before_forward)))
            handles.append(part.register_forward_hook(Hook(self._after_forward)))
        for part in self.module.modules():
            if part is not self.module and next(part.parameters(recurse=False), None) is not None:
                handles.append(part.register_forward_pre_hook(Hook(self._before_layer)))
        handles += self._tape.hooks()
        for weight in self.module.parameters():
            if weight.requires_grad:
                handles.append(weight.register_hook(Hook(self._gradient_hook(weight))))
        # All optimizers of the process, so that those count that a framework makes within the context.
        handles += [
            register_optimizer_step_pre_hook(Hook(self._before_step)),
            register_optimizer_step_post_hook(Hook(self._after_step)),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(self._calls)
        return self

    def _predict(self, *given: Any) -> Any:
        """The outputs of the network in evaluation mode."""
        modes = {part: part.training for part in self.module.modules()}
        self.module.eval()
        self._tapes.checking = True
        with torch.no_grad():
            found = self.module(*given)
        self._tapes.checking = False
        for part, mode in modes.items():
            part.training = mode
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._closed = True
        if kind is None or issubclass(kind, (KeyboardInterrupt, StopIteration)):
            diagnosis = self.diagnosis
            for line in [*diagnosis.lines, diagnosis.verdict]:
                self._say(line)
            if self._tapes.over:
                self._say(f"Some losses were not repeated with other data: {self._tapes.over}.")

    @property
    def diagnosis(self) -> Diagnosis:
        """The findings up to now, ordered by cause."""
        if self._diagnosis is None:
            on, self._tape.on = self._tape.on, False
            found = self._diagnosed()
            self._tape.on = on
            if not self._closed:
                return found
            self._diagnosis = found
        return self._diagnosis

    def _diagnosed(self) -> Diagnosis:
        reports = [self._check_finite(), *self.step_reports, self._check_foreign(), self._check_losses()]
        reports.append(self._tapes.data_report())
        if all(map(math.isfinite, self.losses)):
            held = groups_of(*self.optimizers).keys()
            alone = len(self.optimizers) == 1 and len(self._seen) == 1
            settings = self._settings and self._settings.scheduled(
                list(self._rates.values()), self._step_record.clip
            )
            reports += self._tapes.final_reports(self._steps, set(held), alone=alone, settings=settings)
        falls = [one.value for report in reports for one in report.findings if one.name == HELD]
        holds = bool(falls) and falls[0] > _PART
        found = self._validations.findings(holds=holds, varied=self._tape.varied)
        reports.append(report_of("DATA", "validations", found))
        return Diagnosis(tuple(reports))

    @property
    def step_reports(self) -> list[Report]:
        """What the steps alone say, without their data and the course of the loss."""
        return [
            self._check_input(),
            report_of("CALLS", "calls of torch functions", list(self._calls.findings)),
            self._check_loop(),
            self._check_optimizer(),
            self._check_layers(),
            self._check_updates(),
            *self._tapes.start_reports,
        ]

    @staticmethod
    def _sample(weight: Tensor) -> Tensor:
        return weight.detach().flatten()[:_KEPT].clone()

    def _observe(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Note the loss of each ``backward``."""
        if self._tapes.checking:
            return
        if self._layers is not None:
            self._layers.observe(func, args, result)
        name = getattr(func, "__name__", "")
        if name in DROPOUT and not self.module.training and self._tape.inside and not self._kept_dropout:
            given = args[0] if args else None
            if isinstance(given, Tensor) and isinstance(result, Tensor) and not torch.equal(given, result):
                self._kept_dropout = calling_line() or "a call"
        if torch.is_grad_enabled() and not self._tape.inside:
            self._validations.see_loss(name, args)
        if name != "backward":
            self._validations.judge(name, args, result, inside=self._tape.inside)
        if name == "backward" and args and isinstance(args[0], Tensor) and args[0].numel() == 1:
            self.losses.append(float(args[0].detach()))
            self._evaluation += not self.module.training and bool(_switched_off(self.module))
            if self._tape.on:
                self._tapes.add(self._tape, args[0], self._steps)

    def _before_forward(self, part: nn.Module, given: Any) -> None:
        if self._tapes.checking:
            return
        value = next((one for one in given if isinstance(one, Tensor)), None)
        if value is not None:
            self._validations.see(value, given, alone=part is self.module)
        self._forwards += 1
        if not torch.is_grad_enabled():
            self._without_gradient[self.module.training] += 1

    def _before_layer(self, _: nn.Module, given: Any) -> None:
        if given and not self._tapes.checking:
            self._validations.enter(given[0])

    def _after_forward(self, _part: nn.Module, _: Any, result: Any) -> None:
        if self._tapes.checking:
            return
        self._validations.note(result)
        if self._forwards == _MEASURED:
            self._measuring.close()

    def _gradient_hook(self, weight: nn.Parameter) -> Callable[[Tensor], None]:
        key, name = id(weight), self._names[id(weight)]

        def hook(gradient: Tensor) -> None:
            # Called before the gradient is added to ``weight.grad``.
            self._step_record.add(weight, gradient, len(self.losses))
            if not self._fresh.get(key, True) and (weight.grad is None or not bool(weight.grad.any())):
                self._fresh[key] = True
            size = float(torch.linalg.vector_norm(gradient.detach()))
            if name not in self._gradient or self._gradient[name] == 0:
                self._gradient[name] = size
            reset = weight.grad is None or not bool(weight.grad.any())
            self._since[name] = size if reset else max(size, self._since.get(name, 0.0))
            if len(self._non_finite) < 3 and not bool(gradient.isfinite().all()):
                self._non_finite.append(name)

        return hook

    def _watches(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is one of those given; without any, those with weights of the model are."""
        known = any(one is optimizer for one in self.optimizers)
        if known or self._given or self._names.keys().isdisjoint(groups_of(optimizer)):
            return known
        self.optimizers.append(optimizer)
        return True

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._tapes.checking:
            return
        if not any(one is optimizer for one in self._seen) and len(self._seen) < 100:
            self._seen.append(optimizer)
        # A closure calculates the loss within the step.
        closure = len(args) > 1 or "closure" in kwargs
        self._tape.on &= closure
        if not self._watches(optimizer):
            return
        self._steps += 1
        self._settings = self._settings or Settings.of(optimizer)
        held = [p for p in weights_of(optimizer) if p.grad is not None]
        moving = [p for p in held if bool(p.grad.any())]
        if moving and not closure and not any(self._fresh.get(id(p), True) for p in moving):
            self._stale += 1
        for p in weights_of(optimizer):
            name = self._names.get(id(p), "")
            self._stepped[name] = max(self._stepped.get(name, 0.0), self._since.pop(name, 0.0))
        self._step_record.before(optimizer, closure=closure, stale=self._stale > 0)
        which = next(n for n, one in enumerate(self.optimizers) if one is optimizer)
        for number, group in enumerate(optimizer.param_groups):
            self._rates.setdefault((which, number), []).append(float(group["lr"]))
        self._before = {
            self._names[id(p)]: p.detach().clone()
            for p in held
            if id(p) in self._names and p.ndim > 1 and p.numel() <= 10**6
        }
        if not self._last_gradients or self._steps <= 3:
            self._last_gradients = {
                self._names[id(p)]: p.grad.detach().clone() for p in held if id(p) in self._names
            }

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._tapes.checking:
            return
        self._tape.clear()
        self._tape.on = self._tapes.wants(self._steps)
        self._validations.forget()
        if not self._watches(optimizer):
            return
        self._step_record.after(optimizer)
        weights = dict(self.module.named_parameters())
        for name, old in self._before.items():
            self._ratios.setdefault(name, []).append(update_ratio(weights[name].detach() - old, old))
        self._before = {}
        self._fresh.update(dict.fromkeys(groups_of(optimizer), False))

    def _check_finite(self) -> Report:
        """[FINITE]: losses and gradients are finite."""
        bad = [number for number, loss in enumerate(self.losses) if not math.isfinite(loss)]
        findings = Findings()
        findings.must_be_zero(
            "losses that are not finite",
            len(bad),
            f"the loss is NaN or infinite, first at backward {bad[0] if bad else 0}.",
            "Look for logarithms, square roots and divisions at 0, NaN in the data, and a learning rate "
            "that is too high.",
        )
        findings.must_be_zero(
            "parameters whose gradient is not finite",
            len(self._non_finite),
            f"the gradient of {listed(self._non_finite)} is NaN or infinite.",
            "Square roots and norms have no derivative at 0. See the loss first.",
        )
        return report_of("FINITE", f"{len(self.losses)} losses", findings)

    def _check_input(self) -> Report:
        found = [] if self._layers is None else self._layers.input_findings()
        return report_of("INPUT", "input of the first layer", found)

    def _check_loop(self) -> Report:
        """[LOOP]: gradients are reset, the optimizer steps, the mode is right."""
        drops = any(isinstance(part, _SWITCHED) for part in self.module.modules())
        findings = Findings()
        meaning = "the gradients of earlier steps are added up: zero_grad is missing."
        advice = "Call optimizer.zero_grad() before each backward()."
        findings.must_be_zero("steps with the gradient of earlier steps in it", self._stale, meaning, advice)
        meaning = "backward was never called, so no gradient was computed."
        findings.at_least("calls of backward", float(len(self.losses)), 1.0, meaning)
        if self.optimizers or self.losses:
            findings.at_least(
                "steps of the optimizer",
                float(self._steps),
                1.0,
                "the optimizer never steps, so no weight changes."
                if self._given
                else "no optimizer with weights of the model steps, so no weight changes.",
                "Call step() of the optimizer that is watched after backward().",
            )
        if self._steps:
            findings.at_most(
                "calls of backward per step of the optimizer",
                len(self.losses) / self._steps,
                64.0,
                "the optimizer steps once per epoch, not once per batch: its step is outside the batch loop.",
            )
        findings += [*self._step_record.findings, optimizers_seen(self._seen, self._names)]
        meaning = "the network is trained in evaluation mode: dropout is off, batch normalisation is frozen."
        advice = "Call model.train() at the start of each epoch, since validation leaves the evaluation mode."
        findings.must_be_zero("calls of backward in evaluation mode", self._evaluation, meaning, advice)
        quiet = self._without_gradient
        findings.must_be_zero(
            "validations in training mode",
            quiet[True] if drops and not quiet[False] and not self._tapes.without_gradient else 0,
            "the network is validated in training mode: dropout is on, and batch normalisation uses "
            "(and learns) the statistics of the validation data.",
            "Call model.eval() before validation, and model.train() after it.",
        )
        own = any(
            part.training for part in self.module.modules() if isinstance(part, nn.modules.dropout._DropoutNd)
        )
        findings.must_be_zero(
            "calls of dropout in evaluation mode",
            int(bool(self._kept_dropout) and not (own and not self.module.training)),
            f"dropout stays on in evaluation mode (at {self._kept_dropout}), so outputs are random: "
            "eval() does not turn it off.",
            "Use nn.Dropout, or functional.dropout(x, p, training=self.training).",
        )
        text = f"{len(self.losses)} backward, {self._steps} steps"
        return report_of("LOOP", text, findings)

    def _check_optimizer(self) -> Report:
        """[OPTIMIZER]: the optimizer holds the parameters that get gradients, at a sensible learning rate."""
        if not self.optimizers:
            return report_of("OPTIMIZER", "left out: no optimizer stepped")
        held = groups_of(*self.optimizers).keys()
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        missing = [name for name, p in trained.items() if id(p) not in held]
        rates = [rate for values in self._rates.values() for rate in values]
        zero = sum(rate == 0 for rate in rates)
        grown = [
            values[-1] / next((rate for rate in values if rate > 0), math.inf)
            for values in self._rates.values()
            if len(values) >= _FEWEST_LOSSES and values[-1] == max(values)
        ]
        counts = Counter(map(id, weights_of(*self.optimizers)))
        shared = [self._names[key] for key, count in counts.items() if count > 1 and key in self._names]
        shared = shared if self._given else []
        frozen = self._frozen()
        # Cosine schedules end at 0, so that only the fall within the first half counts.
        early = [values[len(values) // 2] / max(values) for values in self._rates.values() if max(values) > 0]
        findings = Findings()
        meaning = f"these parameters never change: {listed(missing)}."
        advice = "Pass every parameter to the optimizer, after the network has its final form."
        findings.must_be_zero("parameters missing from the optimizer", len(missing), meaning, advice)
        findings.must_be_zero(
            "parameters of the optimizer that the model does not have",
            len(held - self._names.keys()),
            "the optimizer changes other weights than those of the model (another network): it was made "
            "before the model was replaced or copied.",
            "Create the optimizer after the model has its final form.",
        )
        meaning = "the learning rate is 0: nothing is learned in these steps."
        findings.at_most(
            "share of steps at a learning rate of 0", zero / len(rates) if rates else 0.0, 0.1, meaning
        )
        findings.at_least(
            "learning rate halfway over the highest",
            min(early, default=1.0) if len(rates) >= _FEWEST_LOSSES else 1.0,
            1e-3,
            "the learning rate falls to nothing long before the end: the schedule was made for epochs "
            "and is advanced at every batch.",
            "Call scheduler.step() once per epoch, or make the schedule for the number of batches.",
        )
        findings.at_most(
            "highest learning rate over the first one of the schedule",
            max(grown, default=1.0),
            _GROWN,
            "the learning rate grows out of bounds: the factor of the schedule is above 1.",
        )
        meaning = f"two optimizers change the same weights ({listed(shared)}), one against the other."
        findings.must_be_zero("weights that two optimizers hold", len(shared), meaning)
        meaning = f"{listed(frozen)} is frozen, though layers before and around it are trained."
        findings.must_be_zero("frozen layers between trained ones", len(frozen), meaning)
        return report_of("OPTIMIZER", f"{len(held)} parameters", findings)

    def _check_foreign(self) -> Report:
        """[OPTIMIZER]: no weights outside the model that should be trained."""
        stepped = groups_of(*self._seen, *self.optimizers)
        finding = must_be_zero(
            "weights outside the model that get a gradient but are in no optimizer",
            sum(id(p) not in stepped for p in self._tapes.foreign(set(self._names))),
            "the loss reaches weights that neither the model nor an optimizer has: modules in a plain "
            "list, a layer made anew, or a network whose output should be detached.",
            "Keep modules in nn.ModuleList or as attributes; detach the output of a fixed network.",
        )
        return report_of("OPTIMIZER", "weights outside the model", [finding])

    def _frozen(self) -> list[str]:
        """Frozen layers in a network that is trained from its first layer on."""
        called = [] if self._layers is None else self._layers.weighted
        parts = dict(self.module.named_modules())
        own = {name: parts[name].parameters(recurse=False) for name in called if name in parts}
        trained = {name: any(p.requires_grad for p in weights) for name, weights in own.items()}
        frozen = [name for name, value in trained.items() if not value]
        first = next(iter(trained.values()), False)
        return frozen if first and 2 * len(frozen) < len(trained) else []

    def _check_layers(self) -> Report:
        """[LAYERS]: dead and saturated units, parameters without a gradient, gradients by depth."""
        findings, layers = Findings(self._initial), self._layers
        if layers is not None:
            findings += [*layers.unit_findings(), *layers.growth_findings()]
        if self.losses:
            trained = [name for name, p in self.module.named_parameters() if p.requires_grad]
            dead = without_gradient({name: self._gradient.get(name, 0.0) for name in trained})
            meaning = f"these parameters do not learn: {listed(dead)}."
            advice = f"Check for unused outputs and detach().{self._calls.detached_lines}"
            findings.must_be_zero("parameters without a gradient", len(dead), meaning, advice)
        if layers is not None and self._last_gradients:
            findings += depth_findings(self.module, self._last_gradients, layers.weighted)
        return report_of("LAYERS", "first forward passes", findings)

    def _has_gradient(self, name: str) -> bool:
        """Whether the losses before the steps give a parameter a gradient that is more than rounding.

        The last bias of a critic has terms that cancel; those of the layer's weight are as large as its own.
        """
        sizes = self._stepped if name in self._stepped else self._gradient
        layer = name.rpartition(".")[0]
        others = [size for other, size in sizes.items() if other.rpartition(".")[0] == layer]
        rounding = _TERMS * torch.finfo(self._start[name].dtype).eps
        return sizes.get(name, 0.0) > rounding * max(others, default=0.0)

    def _check_updates(self) -> Report:
        """[UPDATES]: the optimizer changes the weights, neither hardly nor beyond recognition."""
        if not self._steps:
            return report_of("UPDATES", "no steps")
        now = {name: self._sample(p) for name, p in self.module.named_parameters() if p.requires_grad}
        still = [name for name, value in now.items() if torch.equal(value, self._start[name])]
        unmoved = list(filter(self._has_gradient, still))
        median = {name: sorted(values)[len(values) // 2] for name, values in self._ratios.items()}
        largest = max(median, key=median.__getitem__, default="")
        highest = max(median.values(), default=1.0)
        findings = Findings()
        findings.must_be_zero(
            "parameters that have a gradient but do not change",
            len(unmoved),
            f"these weights stay as they are: {listed(unmoved)}.",
            "The optimizer holds other weights, its learning rate is 0, or something restores them.",
        )
        meaning = "the steps are too small to change anything: the learning rate is too low."
        advice = "Use a learning rate at which weights change by 1e-4 to 1e-2 of their size in a step."
        name = "relative change of a weight matrix in a step"
        findings.at_least(f"largest {name}", highest, _SLOWEST, meaning, advice)
        meaning = "each step replaces the weights: the learning rate or the weight decay is too high."
        findings.at_most(f"{name} ({largest})", highest if median else 0.0, _FASTEST, meaning, advice)
        slow = {name: value for name, value in median.items() if 0 < value < _UNEQUAL * highest}
        findings.must_be_zero(
            "weight matrices that change far less than others",
            len(slow),
            f"{listed(list(slow))} hardly changes, relative to the other weights: a learning rate of its "
            "own that is far too low, or a gradient that vanishes.",
        )
        return report_of("UPDATES", f"weights change by {highest:.1e} in a step", findings)

    def _check_losses(self) -> Report:
        """[COURSE]: the loss falls, and does not oscillate."""
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        if len(losses) < _FEWEST_LOSSES:
            return report_of("COURSE", f"left out: fewer than {_FEWEST_LOSSES} losses")
        if len(self.optimizers) > 1:
            return report_of("COURSE", "left out: networks with optimizers of their own may compete")
        if self._tapes.moving_targets:
            return report_of("COURSE", "left out: the targets depend on a network that changes")
        # Weights that have hardly moved cannot have learned yet.
        moved = max((sum(values) for values in self._ratios.values()), default=math.inf)
        part = max(3, int(_PART * len(losses)))
        first, last = losses[:part], losses[-part:]
        spread = max(deviation(first), deviation(last)) / math.sqrt(part)
        start, end = sum(first) / part, sum(last) / part
        scale = max(abs(start), abs(end), 1e-12)
        # A loss that compares with its own detached outputs may rise while it is learned.
        rises = end - start > 3 * spread and not self._tapes.detached
        findings = Findings()
        findings.at_most(
            "mean of the last losses over that of the first ones",
            (end - start) / scale if rises else -1.0,
            0.2,
            "the loss rises: the learning rate is too high, or the gradient has the wrong sign.",
            "Lower the learning rate ten times; if the loss still rises, look for a wrong sign.",
        )
        measured = float(abs(end - start) <= max(1e-3 * scale, spread / 2) and moved > _MOVED)
        meaning = "the loss does not fall."
        advice = "See the other findings first; then try learning rates ten times lower and higher."
        findings.at_most("course of the loss: 1 if it does not fall at all", measured, 0.0, meaning, advice)
        return report_of("COURSE", f"loss {start:.4g} -> {end:.4g}", findings)


def _switched_off(module: nn.Module) -> list[nn.Module]:
    """Dropout and normalisation in evaluation mode that belong to weights that are trained.

    Those of a frozen part are in evaluation mode on purpose.
    """
    found: list[nn.Module] = []
    for part in module.modules():
        for child in part.children():
            weights = list(child.parameters()) or list(part.parameters())
            switched = isinstance(child, _SWITCHED) and not child.training
            if switched and any(weight.requires_grad for weight in weights):
                found.append(child)
    return found


def watch(
    model: Networks,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
    *,
    say: Callable[[str], None] = print,
) -> Watch:
    """Watch an existing training loop and say what is wrong with it.

    Use it as a context manager around the loop, or a part of it such as the first hundred steps. The loop
    itself stays as it is. The forward, backward and optimizer steps must run in the thread of the context.

    Args:
        model: the network, or several in a list or dictionary.
        optimizer: the optimizer, or several; by default, all that step with weights of the model.
        say: called with each line for the console when the context is closed.

    Returns:
        A context manager. Its ``diagnosis`` has the findings, also while the loop runs.

    Raises:
        InputError: a model without parameters.

    Example:
        >>> with rismusic.watch(model, optimizer) as w:  # doctest: +SKIP
        ...     train_one_epoch()
    """
    return Watch(model, optimizer, say=say)
