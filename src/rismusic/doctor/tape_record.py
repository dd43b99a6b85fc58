"""The tapes of a loop, from the first step to the last, and what they say about it."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.report import listed, must_be_zero, report_of
from rismusic.doctor.state import row_codes
from rismusic.doctor.tape import DROPOUT, LeftOutError, Replay, Tape, TapeRecorder, faithful
from rismusic.doctor.tape_checks import (
    Batch,
    Trained,
    attempted,
    constant_losses,
    constant_order,
    dropout_rate,
    rows_of,
    size_of,
    term_gradients,
    terms_of,
    train_anew,
)
from rismusic.doctor.tape_losses import tape_reports
from rismusic.nn.monitors import Finding, Report, at_least, at_most

# Steps whose tape is kept: all of the first ones, then one in eight.
_FIRST_STEPS, _EVERY = 64, 8
# Tapes that are kept from the start and the end of a loop, and most entries of their data.
_KEPT, _LARGEST = 12, 5 * 10**6
# Kinds of losses that are checked at the start, such as those of two networks.
_KINDS = 3
# Fewest steps after which a network should know more than a constant.
_FEWEST_STEPS = 40
# Gain over the best constant output, relative to its loss, below which nothing is learned of the inputs.
_GAIN = 0.02
# CPU seconds for training anew.
_SECONDS = 2.0
# Steps in which a part of the batch is not used, from which it never is.
_OFTEN = 5
# Relative fall of the loss that says that mirrored targets fit better.
_BETTER = 0.1
# Share of distinct rows among those seen, below which the data are known well enough to hold rows out.
_REPEATED = 0.85


class TapeRecord:
    """Tapes of the losses of a loop.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.problem = ""
        self.first: dict[str, Tape] = {}
        self.early: list[Tape] = []
        self.late: deque[Tape] = deque(maxlen=_KEPT)
        self.initial: dict[int, Tensor] = {}
        self.labels: list[Tensor] = []
        self.moved_rows = 0
        # Whether a check runs, whose own calls and steps are not those of the loop.
        self.checking = False
        self.altered: set[str] = set()
        self._start: dict[str, list[Report]] = {}
        self._same = 0
        self._rows: dict[int, tuple[int, set[int]]] = {}
        self.loader = 0
        # Of each batch: share of the samples that are in it more than once; pairs of inputs that are equal;
        # whether random numbers are those of the batch before.
        self._repeated: list[float] = []
        self._codes: set[float] = set()
        self._alike: list[bool] = []
        self._same_noise: list[bool] = []
        self.steps = 0
        self.unused: Counter[str] = Counter()
        # Weights of the calls without gradients that the first losses use, and their first values.
        self._silent: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def wants(self, step: int) -> bool:
        """Whether the tape of a step is kept."""
        return not self.problem and (step < _FIRST_STEPS or step % _EVERY == 0)

    def add(self, recorder: TapeRecorder, loss: Tensor, step: int) -> None:
        """Keep the tape of a loss; at the first of its kind, check it."""
        if self.problem:
            return
        self.altered |= recorder.altered
        self.unused = recorder.never
        self.checking = True
        try:
            tape = recorder.cut(loss)
            if isinstance(tape, str):
                self._give_up(tape)
                return
            if sum(root.value.numel() for root in tape.roots.values()) > _LARGEST:
                self._give_up("the batches are too large to be kept")
                return
            if step < _KEPT and not self._silent:
                self._silent = _silent_weights(tape)
            kind = _kind(tape)
            if kind not in self.first and len(self.first) < _KINDS:
                if not faithful(tape):
                    self._give_up("repeating the recorded calls gives another loss")
                    return
                self.first[kind] = tape
                for key, weight in tape.weights.items():
                    self.initial.setdefault(key, weight.detach().clone())
                self._start[kind] = self._check(tape, recorder)
            self._note_data(tape, recorder, step)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:120])
            return
        finally:
            self.checking = False
        self.steps = step
        (self.early if len(self.early) < _KEPT else self.late).append(tape)

    def _give_up(self, reason: str) -> None:
        if not self.first:
            self.problem = reason

    def _check(self, tape: Tape, recorder: TapeRecorder) -> list[Report]:
        """Checks of the first tape of a kind, at the initial weights."""
        state = torch.get_rng_state()
        found = tape_reports(tape, recorder.unread())
        torch.set_rng_state(state)
        return found

    def _note_data(self, tape: Tape, recorder: TapeRecorder, step: int) -> None:
        """Labels and rows of a batch."""
        targets = [tape.roots[key].value for key in tape.targets if key not in tape.inputs]
        flat = [one for one in targets if one.ndim == 1 or one.shape[1:].numel() == 1]
        if len(flat) == 1 and len(self.labels) < _FIRST_STEPS and not flat[0].is_complex():
            self.labels.append(flat[0].flatten().double().cpu())
        inputs = [key for key in tape.inputs if key not in tape.targets]
        targets_only = [key for key in tape.targets if key not in tape.inputs]
        for one in inputs if len(inputs) == 1 else ():
            for two in targets_only[:1]:
                self.moved_rows += recorder.other_rows(tape.roots[one], tape.roots[two])
        numbers = [
            v
            for v in (tape.roots[key].value for key in tape.inputs)
            if v.ndim > 1 and len(v) >= 8 and v.shape[1:].numel() > 1 and v.dtype != torch.bool
        ]
        floats = [v for v in numbers if v.is_floating_point() or v.is_complex()]
        if len(self._repeated) < _FIRST_STEPS and floats:
            _, places, counts = row_codes(floats[0]).unique(return_inverse=True, return_counts=True)
            self._repeated.append(float((counts[places] > 1).double().mean()))
            self._codes.update(row_codes(floats[0]).tolist())
            pairs = itertools.combinations(floats, 2)
            self._alike.append(any(a.shape == b.shape and torch.equal(a, b) for a, b in pairs))
        before = self.late[-1] if self.late else self.early[-1] if self.early else None
        noise, old_noise = _drawn(tape), [] if before is None else _drawn(before)
        # The losses of one step may share their random numbers.
        if noise and before is not None and step != self.steps:
            same = len(noise) == len(old_noise)
            self._same_noise.append(same and all(map(torch.equal, noise, old_noise)))
        data = [root.value for root in tape.roots.values() if root.kind == "data" and root.value.numel() > 1]
        if before is not None and data:
            old = [r.value for r in before.roots.values() if r.kind == "data" and r.value.numel() > 1]
            same = len(old) == len(data) and all(
                a.shape == b.shape and torch.equal(a, b) for a, b in zip(old, data, strict=True)
            )
            self._same = self._same + 1 if same else 0
            if self._same == 20:
                self.loader = max(recorder.base_rows(tape), _loader_rows())

    def foreign(self, own: set[int]) -> list[nn.Parameter]:
        """Weights outside the model that the losses reach with a gradient."""
        found: dict[int, nn.Parameter] = {}
        for tape in self.first.values():
            for call in tape.calls:
                for key in call.reads if call.grad else ():
                    weight = tape.weights.get(key)
                    if weight is not None and key not in own and weight.requires_grad:
                        found[key] = weight
        return list(found.values())

    @property
    def without_gradient(self) -> bool:
        """Whether a loss uses outputs that were made without gradients."""
        return any(not call.grad and not call.pure for tape in self.first.values() for call in tape.calls)

    @property
    def moving_targets(self) -> bool:
        """Whether a loss uses outputs that were made without gradients, by weights that have changed."""
        return any(not torch.equal(weight, start) for weight, start in self._silent.values())

    @property
    def start_reports(self) -> list[Report]:
        """What the first tapes said."""
        if not self._start:
            reason = self.problem or "no loss was recorded"
            return [report_of("BATCH", f"left out: {reason}", [])]
        return [report for reports in self._start.values() for report in reports]

    def data_report(self) -> Report:
        """[DATA]: order and rows of the batches."""
        found: list[Finding] = []
        if len(self.labels) >= 8 and min(map(len, self.labels)) >= 4:
            share, kind = _purity(self.labels)
            if share is not None:
                found.append(
                    at_least(
                        "spread of the targets within a batch over that of all batches",
                        share,
                        0.3 if kind == "classes" else 0.1,
                        "batches are not mixed: consecutive batches have targets of one kind each, since "
                        "the data are sorted and not shuffled.",
                        "Shuffle the data (shuffle=True, or a new permutation in each epoch).",
                    )
                )
        found.append(
            must_be_zero(
                "batches whose inputs and targets are different rows",
                self.moved_rows,
                "inputs and targets of a batch are indexed with different rows, so they do not belong "
                "together.",
                "Use one index for both.",
            )
        )
        found.append(
            must_be_zero(
                "calls that change the data in place",
                len(self.altered),
                f"the data are changed in place in the loop ({listed(sorted(self.altered))}), so they differ "
                "from epoch to epoch.",
                "Work on a copy of the batch (x = x * 2 in place of x *= 2).",
            )
        )
        if len(self._repeated) >= 4:
            sizes = [len(root.value) for root in self.early[0].roots.values() if root.value.ndim]
            several = len(self._codes) > 3 * max(sizes, default=1)
            found.append(
                at_most(
                    "share of the samples that are several times in their batch",
                    min(self._repeated) if several else 0.0,
                    0.5,
                    "samples of a batch repeat each other: references to one tensor that changes later are "
                    "kept in place of copies, or two views of a sample are the same one.",
                    "Clone tensors before they are stored, and draw each view anew.",
                )
            )
            found.append(
                must_be_zero(
                    "inputs of the network that equal another input",
                    int(all(self._alike)),
                    "two inputs of the network are the same numbers in every batch: one tensor that changes "
                    "in place, or the same view or state twice.",
                    "Clone tensors before they are stored, and pass each input once.",
                )
            )
        if len(self._same_noise) >= 4:
            found.append(
                at_most(
                    "share of the steps with the random numbers of the step before",
                    sum(self._same_noise) / len(self._same_noise),
                    0.5,
                    "noise or dropout has the same random numbers in every step: a seed is set in the loop.",
                    "Set the seed once, before the loop.",
                )
            )
        unused = recorder_lines(self.unused)
        found.append(
            must_be_zero(
                "tensors of the batch that nothing uses",
                len(unused),
                "a part of each batch is collected but used neither by the network nor by the loss (a mask, "
                "an end of an episode, a weight).",
                "Use it in the loss or the network, or do not collect it.",
                unused[0] if unused else "",
            )
        )
        if self._same >= 20 and self.loader:
            size = max(
                len(r.value) for r in self.early[-1].roots.values() if r.kind == "data" and r.value.ndim
            )
            found.append(
                at_most(
                    "rows of the data over those of the one batch that is used in every step",
                    self.loader / max(size, 1),
                    2.0,
                    "every step uses the same batch, though there are more data.",
                    "Take the next batch in each step, in a loop over the loader.",
                )
            )
        return report_of("DATA", f"{len(self.early) + len(self.late)} batches", found)

    def _of_one_kind(self, tapes: Iterable[Tape]) -> list[Tape]:
        """The tapes of the most frequent kind and shape, each batch once."""
        tapes = list(tapes)
        if not tapes:
            return []
        counts = Counter(_kind(tape) + _shapes(tape) for tape in tapes)
        most = counts.most_common(1)[0][0]
        found: dict[tuple[float, ...], Tape] = {}
        for tape in tapes:
            if _kind(tape) + _shapes(tape) == most:
                found[_fingerprint(tape)] = tape
        return list(found.values())

    def final_reports(self, steps: int, own: set[int], *, alone: bool) -> list[Report]:
        """Checks at the end of the loop.

        Args:
            steps: number of steps.
            own: keys of the weights that an optimizer holds.
            alone: whether there is one optimizer only.
        """
        if self.problem or not self.first:
            return []
        state = torch.get_rng_state()
        self.checking = True
        reports = []
        checks = (
            ("TARGET", partial(self._fixed_target, steps)),
            ("TERMS", partial(self._terms, steps, alone)),
            ("LEARNED", partial(self._learned, steps, own, alone)),
        )
        for tag, findings, reason in attempted(checks):
            text = f"left out: {reason}" if reason else "the last batches, repeated with the last weights"
            reports.append(report_of(tag, text, findings))
        self.checking = False
        torch.set_rng_state(state)
        return reports

    def _fixed_target(self, steps: int) -> list[Finding]:
        """A network that gives bootstrapped targets follows the one that is trained."""
        tape = self.late[-1] if self.late else self.early[-1]
        silent = [call for call in tape.calls if not call.grad and not call.pure]
        if steps < 100 or not any(call.name in ("max", "amax") for call in silent):
            raise LeftOutError("no network gives targets by a maximum, or fewer than 100 steps")
        own = {id(p) for p in self.module.parameters()}
        others = {key for call in silent for key in call.reads if key in tape.weights and key not in own}
        still = [key for key in others if torch.equal(tape.weights[key], self.initial[key])]
        return [
            must_be_zero(
                "weights of a target network that never change",
                len(still) if others and len(still) == len(others) else 0,
                "the target network never changes: the weights of the trained network are not copied to it.",
                "Copy them every some hundred steps (load_state_dict), or follow them with a moving average.",
            )
        ]

    def _terms(self, steps: int, alone: bool) -> list[Finding]:
        """The terms of the loss are all learned."""
        tapes = self._of_one_kind(self.late or self.early)[-8:]
        if not tapes:
            raise LeftOutError("no batches were recorded")
        last = tapes[-1]
        terms = terms_of(last)
        if len(terms) < 2 or not any(term.data for term in terms):
            raise LeftOutError("the loss is no sum of terms that compare with data")
        found: list[Finding] = []
        first = self.first.get(_kind(last), last)
        early = term_gradients(Replay(first, {k: self.initial[k] for k in first.weights}), terms_of(first))
        late = term_gradients(Replay(last), terms)
        idle = [term.name for term, norms in zip(terms, late, strict=True) if not any(norms.values())]
        found.append(
            must_be_zero(
                "terms of the loss without a gradient",
                len(idle) if _made(last, [term.key for term in terms]) else 0,
                f"{listed(idle)} of the loss has no gradient: its weight is 0, or it is detached.",
                "Remove it, or give it a weight, and remove detach(), item() and no_grad.",
            )
        )
        data = [k for k, term in enumerate(terms) if term.data]
        others = [k for k, term in enumerate(terms) if not term.data]
        alike = set(early[0]).intersection(*map(set, early), *map(set, late))
        only = [
            key
            for key in alike
            if last.weights[key].ndim > 1
            and all(one[k].get(key, 0.0) == 0 for one in (early, late) for k in data)
            and any(one[k].get(key, 0.0) > 0 for one in (early, late) for k in others)
        ]
        if only and others and all(constant_order(last, terms[k].key) for k in others):
            names = {id(p): name for name, p in self.module.named_parameters()}
            found.append(
                must_be_zero(
                    "weights that no term of the loss that compares with data reaches",
                    len(only),
                    f"{listed([names.get(key, 'a weight') for key in only])} gets a gradient only from terms "
                    "that compare with no data (a penalty, a divergence): the output that it makes is not "
                    "used for anything else.",
                    "Use this output in the forward pass, as the reparametrisation of a VAE does.",
                )
            )
        if steps < _FEWEST_STEPS or not alone or len(tapes) < 4:
            return found
        for k in data:
            ratios = [(_ratio(one, k, j), j) for one in (early, late) for j in range(len(terms)) if j != k]
            ratio, j = max(ratios, default=(0.0, 0))
            # Terms of data that also feed the network may balance each other, as those of a likelihood do.
            own_data = any(terms[k].key in last.compared(t) for t in last.targets if t not in last.inputs)
            if ratio < (10 if own_data else 30):
                continue
            keys = [terms_of(tape)[k].key for tape in tapes]
            constant = sum(constant_losses([Batch(tape, {}) for tape in tapes], keys)) / len(tapes)
            own = sum(float(Replay(t).base[key].mean()) for t, key in zip(tapes, keys, strict=True)) / len(
                tapes
            )
            if constant <= 1e-3 * abs(own):
                # A term that is lowest for a constant output, such as the pull of a contrastive loss.
                continue
            found.append(
                at_least(
                    f"gain of {terms[k].name} over the best constant output, relative",
                    (constant - own) / max(abs(constant), 1e-12),
                    _GAIN,
                    f"{terms[k].name} of the loss is not learned: it is {own:.3g}, with the best constant "
                    f"output {constant:.3g}. The gradient of {terms[j].name} is {ratio:.3g} times as large "
                    "and outweighs it.",
                    "Weight the terms so that their gradients are of one size: average or sum all alike, "
                    "scale targets.",
                )
            )
        return found

    def _learned(self, steps: int, own: set[int], alone: bool) -> list[Finding]:
        """The outputs are better than the best constant; if not, why."""
        if not alone:
            raise LeftOutError("networks with optimizers of their own may compete")
        if steps < _FEWEST_STEPS:
            raise LeftOutError(f"fewer than {_FEWEST_STEPS} steps")
        tapes = self._of_one_kind([*self.early, *self.late])
        if len(tapes) < 4:
            raise LeftOutError("fewer than 4 batches that differ")
        if any(tape.random for tape in tapes) or not tapes[-1].inputs:
            raise LeftOutError("the loss draws numbers that depend on the network, or there are no inputs")
        if any(not call.grad and not call.pure for call in tapes[-1].calls):
            raise LeftOutError("the targets depend on a network")
        used = tapes[-8:]
        constant = constant_losses([Batch(tape, {}) for tape in used], [tape.loss for tape in used])
        network = [Replay(tape).loss for tape in used]
        level = sum(constant) / len(used)
        scale = max(abs(level), deviation(constant), 1e-12)
        gain = (level - sum(network) / len(used)) / scale
        name = "gain of the outputs over the best constant output, relative to its loss"
        before = [Replay(tape, {k: self.initial[k] for k in tape.weights}).loss for tape in used]
        start, end = sum(before) / len(used), sum(network) / len(used)
        text = f"after {steps} steps the outputs are no better than one constant output (loss {level:.3g})"
        if not tapes[-1].targets:
            return [
                at_least(
                    name,
                    gain if gain < 0 else max(gain, _GAIN),
                    0.0,
                    f"{text}: the loss compares outputs with no data, and is lowest where they do not depend "
                    "on the input. The targets are missing from it.",
                    "Compare the outputs with the targets in the loss.",
                )
            ]
        if gain >= _GAIN and start - end > _GAIN * abs(start):
            learned = level - sum(network) / len(used)
            found = [at_least(name, gain, _GAIN, "", ""), *_mirrored(used), *self._generalises(tapes, own)]
            if any(call.name == "batch_norm" and call.kwargs.get("training") for call in used[-1].calls):
                running = [Replay(tape, running=True).loss for tape in used]
                found.append(
                    at_most(
                        "loss with the running statistics of batch normalisation, over what was learned",
                        (sum(running) - sum(network)) / len(used) / max(learned, 1e-12),
                        0.7,
                        "in evaluation mode the network loses what it has learned: the running statistics "
                        "of batch normalisation do not fit the data (momentum, small batches, data of "
                        "another scale).",
                        "Use larger batches or a momentum of 0.1, or normalise over channels (GroupNorm).",
                    )
                )
            return found
        best = self._anew([Batch(tape, {}) for tape in tapes], own, min(steps, 200))
        if gain >= _GAIN:
            share = (start - end) / max(start - best.held, 1e-12)
            if (start - best.held) / scale < 10 * _GAIN:
                return [at_least(name, gain, _GAIN, "", "")]
            return [
                at_least(
                    "fall of the loss over that of the same network with Adam, on batches held out",
                    share,
                    _GAIN,
                    f"the loop learns hardly anything: the loss falls from {start:.3g} to {end:.3g}, with "
                    f"Adam at {best.rate:g} to {best.held:.3g} on batches held out: the learning rate is too "
                    "low, or the steps are lost.",
                    "Try this optimizer; then look at learning rate, clipping and the order of the calls.",
                )
            ]
        held, learned = ((level - one) / scale for one in (best.held, best.learned))
        if held >= max(5 * _GAIN, 3 * gain):
            if start - end > 0.1 * (start - best.held) or not math.isfinite(start):
                raise LeftOutError("too few steps to judge")
            at_fault = (
                "the learning rate, the optimizer or the order of the calls is at fault, not the network"
            )
            if abs(start - end) < _GAIN * (start - best.held):
                at_fault = "the learning rate is too low, or the steps are lost"
            elif end > start + 0.5 * scale:
                at_fault = "the learning rate is too high, or the steps go uphill"
            return [
                at_least(
                    name,
                    gain,
                    _GAIN,
                    f"{text}, but the same network learns from the same batches with Adam at {best.rate:g} "
                    f"(loss {best.held:.3g} on batches held out): {at_fault}.",
                    "Try this optimizer; then look at learning rate, weight decay, clipping and the loop.",
                )
            ]
        if (order := self._ordered(tapes, own, best, level, scale)) is not None:
            name_of, loss = order
            return [
                at_least(
                    name,
                    gain,
                    _GAIN,
                    f"{text}, but the network learns (loss {loss:.3g} on batches held out) where the targets "
                    f"are {name_of}: inputs and targets are not in the same order.",
                    "Compare the order of samples and axes of inputs, outputs and targets where they are "
                    "flattened, shifted or indexed.",
                )
            ]
        if learned >= 5 * _GAIN:
            what = f"{text}, and what a network learns from some batches"
            return [_unrelated(name, gain, what, best, _GAIN)]
        if steps < 1.5 * _FEWEST_STEPS or best.falling > _GAIN:
            raise LeftOutError("too few steps to judge")
        if level <= best.learned:
            text += (
                "; the loss is lowest for such an output, since nothing in it keeps samples apart (collapse)"
            )
        return [
            at_least(
                name,
                gain,
                _GAIN,
                f"{text}, and the same network does not learn with other optimizers either: the path from "
                "input to loss is broken, or the targets have nothing to do with the inputs.",
                "Check that each input has its own target (labels of other rows?), then network and loss.",
            )
        ]

    def _ordered(
        self, tapes: Sequence[Tape], own: set[int], best: Trained, level: float, scale: float
    ) -> tuple[str, float] | None:
        """Another order of the targets with which the network learns, and its loss on batches held out."""
        last = tapes[-1]
        keys = [key for key in last.targets if key not in last.inputs]
        orders: dict[str, Callable[[Tensor], Tensor]] = {
            "moved by one sample": lambda y: y.roll(1, 0),
            "moved by one sample the other way": lambda y: y.roll(-1, 0),
            "in reverse order": lambda y: y.flip(0),
            "with their first two axes exchanged": lambda y: y.transpose(0, 1).reshape(y.shape),
            "moved by one place along the second axis": lambda y: y.roll(1, 1),
            "moved by one place along the second axis the other way": lambda y: y.roll(-1, 1),
            "reversed along the second axis": lambda y: y.flip(1),
        }
        for name, order in orders.items():
            places = [n for n, key in enumerate(last.roots) if key in keys and last.roots[key].value.ndim]
            if "axis" in name or "axes" in name:
                places = [n for n in places if list(last.roots.values())[n].value.ndim > 1]
            if not places:
                continue
            batches = []
            for tape in tapes:
                roots = list(tape.roots.items())
                batches.append(Batch(tape, {roots[n][0]: order(roots[n][1].value) for n in places}))
            weights = {k: self.initial.get(k, v.detach()) for k, v in last.weights.items()}
            held = max(1, len(batches) // 4)
            other = train_anew(batches, weights, held, best.rate, 120, list(own))
            if (level - other.held) / scale > max(5 * _GAIN, 3 * (level - best.held) / scale):
                return name, other.held
        return None

    def _generalises(self, tapes: Sequence[Tape], own: set[int]) -> list[Finding]:
        """What is learned from some rows holds for others; only where the rows come again and again."""
        try:
            batches, distinct = rows_of(tapes)
        except LeftOutError:
            return []
        if distinct > _REPEATED or len(batches) < 4:
            return []
        best = self._anew(batches, own, 200)
        held = batches[-max(1, len(batches) // 4) :]
        used = [*held, *batches[: len(held)]]
        constant = constant_losses(used, [batch.tape.loss for batch in used])[: len(held)]
        level = sum(constant) / len(held)
        scale = max(abs(level), deviation(constant), 1e-12)
        gain, learned = (level - best.held) / scale, (level - best.learned) / scale
        name = "gain over the best constant output on rows held out, relative to its loss"
        text = "the network only memorises the training data: what it learns from some rows"
        # The lowest of several values is below their mean by chance.
        least = max(1.5 * _GAIN, 0.1 * learned)
        if learned < 2 * least:
            return []
        return [_unrelated(name, gain, text, best, least)]

    def _anew(self, batches: Sequence[Batch], own: set[int], steps: int) -> Trained:
        """The best of some trainings from the initial weights."""
        held = max(1, len(batches) // 4)
        weights = {k: self.initial.get(k, v.detach()) for k, v in batches[0].tape.weights.items()}
        start = time.process_time()
        train_anew(batches, weights, held, 1e-3, 4, list(own))
        each = (time.process_time() - start) / 8
        steps = max(20, min(steps, int(_SECONDS / 3 / max(each, 1e-6))))
        found = [train_anew(batches, weights, held, rate, steps, list(own)) for rate in (1e-3, 3e-3, 2e-2)]
        best = min(found, key=lambda one: one.held)
        best.learned = min(one.learned for one in found)
        best.falling = max(one.falling for one in found)
        return best


def _mirrored(tapes: Sequence[Tape]) -> list[Finding]:
    """Batches whose targets fit the outputs better when mirrored: inputs were flipped without them."""
    found = []
    for n, key in enumerate(tapes[-1].roots):
        y = tapes[-1].roots[key].value
        if key not in tapes[-1].targets or key in tapes[-1].inputs or y.ndim < 3:
            continue
        for axis in range(1, y.ndim):
            better = []
            for tape in tapes:
                own, root = list(tape.roots.items())[n]
                loss = Replay(tape).loss
                mirrored = Replay(tape, roots={own: root.value.flip(axis)}).loss
                better.append(mirrored < loss - _BETTER * abs(loss))
            found.append(
                at_most(
                    f"share of the batches whose loss is lower with targets mirrored along axis {axis}",
                    sum(better) / len(better),
                    0.1,
                    "in some batches the targets are mirrored relative to the inputs: inputs are flipped at "
                    "random, and their targets (masks, boxes, sequences) are not.",
                    "Apply each transformation of the inputs to their targets too.",
                )
            )
    return found


def _unrelated(name: str, gain: float, text: str, best: Trained, least: float) -> Finding:
    return at_least(
        name,
        gain,
        least,
        f"{text} does not hold for others (loss {best.learned:.3g} on those, {best.held:.3g} on batches held "
        "out): inputs and targets do not belong together (labels shuffled, shifted, or of other rows), or "
        "there are too few data.",
        "Check the pairs of inputs and targets one by one, as the loop sees them.",
    )


def _drawn(tape: Tape) -> list[Tensor]:
    """The random numbers of a loss, and the states of the generator for those of dropout."""
    noise = [r.value for r in tape.roots.values() if r.kind == "noise" and r.value.numel() > 3]
    drops = (call for call in tape.calls if call.name in DROPOUT and dropout_rate(call) > 0)
    return noise + [call.state for call in drops if call.state is not None]


def recorder_lines(counts: Counter[str]) -> list[str]:
    """Lines at which data are collected in most steps without being used."""
    return [line for line, count in counts.items() if count >= _OFTEN]


def _made(tape: Tape, keys: Sequence[int]) -> bool:
    """Whether all of some tensors are made from weights."""
    made = {key for call in tape.calls if not call.pure for key in (*call.outs, *call.mutated)}
    return all(key in made or key in tape.weights for key in keys)


def _ratio(norms: Sequence[dict[int, float]], k: int, j: int) -> float:
    """Gradient of a term over that of another, over the weights that both reach."""
    both = [key for key in norms[k] if norms[k][key] > 0 and norms[j].get(key, 0.0) > 0]
    one, two = (math.sqrt(sum(norms[n][key] ** 2 for key in both)) for n in (j, k))
    return one / two if two > 0 else 0.0


def _silent_weights(tape: Tape) -> dict[int, tuple[nn.Parameter, Tensor]]:
    keys = {key for call in tape.calls if not call.grad and not call.pure for key in call.reads}
    return {key: (one, one.detach().clone()) for key, one in tape.weights.items() if key in keys}


def _kind(tape: Tape) -> str:
    return " ".join(call.name for call in tape.calls)


def _shapes(tape: Tape) -> str:
    return " ".join(str(tuple(root.value.shape)) for root in tape.roots.values() if root.kind == "data")


def _fingerprint(tape: Tape) -> tuple[float, ...]:
    return tuple(float(size_of(r.value)) for r in tape.roots.values() if r.kind == "data")


def deviation(values: Sequence[float]) -> float:
    """Standard deviation."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _purity(labels: Sequence[Tensor]) -> tuple[float | None, str]:
    """Spread of the targets within batches over that of all: entropy of classes, or variance of numbers."""
    whole = torch.cat(list(labels))
    values = whole.unique()
    if len(values) < 2:
        return None, ""
    if len(values) <= 100 and bool((values == values.round()).all()):

        def entropy(one: Tensor) -> float:
            share = one.unique(return_counts=True)[1].double() / len(one)
            return float(-(share * share.log()).sum())

        # A small batch has less entropy than the whole by chance: the reference is a shuffled one.
        mixed = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))]
        parts = mixed.split([len(one) for one in labels])
        return sum(map(entropy, labels)) / max(sum(map(entropy, parts)), 1e-12), "classes"
    within = sum(float(one.var(unbiased=False)) for one in labels) / len(labels)
    return within / float(whole.var(unbiased=False)), "numbers"


def _loader_rows() -> int:
    """The size of a data set whose loader is a variable of a caller."""
    frame: Any = sys._getframe(1)
    most = 0
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if isinstance(value, torch.utils.data.DataLoader) and hasattr(value.dataset, "__len__"):
                most = max(most, len(value.dataset))
        frame = frame.f_back
    return most
