"""The tapes of a loop, from the first step to the last, and what they say about it."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.counterfactuals import Settings
from rismusic.doctor.learning_checks import LearningChecks
from rismusic.doctor.report import listed, must_be_zero, report_of
from rismusic.doctor.state import ERRORS, row_codes
from rismusic.doctor.tape import DROPOUT, Tape, TapeRecorder, faithful
from rismusic.doctor.tape_checks import dropout_rate, size_of
from rismusic.doctor.tape_losses import left_out_value, tape_reports
from rismusic.nn.monitors import Finding, Report, at_least, at_most

# Steps whose tape is kept: all of the first ones, then one in eight.
_FIRST_STEPS, _EVERY = 64, 8
# Tapes that are kept from the start and the end of a loop; shares of the memory budget for one of them, and
# for all from the start, or the end.
_KEPT, _ONE, _HALF = 12, 1 / 16, 3 / 8
# Kinds of losses that are checked at the start, such as those of two networks.
_KINDS = 3
# Steps in which a part of the batch is not used, from which it never is.
_OFTEN = 5


class TapeRecord:
    """Tapes of the losses of a loop.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.problem = ""
        # Which losses are not repeated because of the memory that it takes.
        self.over = ""
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
        # The value of targets that the loss leaves out, such as padding.
        self.left_out: float | None = None
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
                self.over = recorder.over or self.over
                self._give_up(tape)
                return
            if tape.nbytes > _ONE * recorder.budget:
                self.over = f"the batches are too large to be kept ({tape.nbytes / 2**20:.3g} MiB each)"
                self._give_up(self.over)
                return
            if step < _KEPT and not self._silent:
                self._silent = _silent_weights(tape)
            kind = tape.kind
            if kind not in self.first and len(self.first) < _KINDS:
                if not faithful(tape):
                    self._give_up("repeating the recorded calls gives another loss")
                    return
                self.first[kind] = tape
                for key, weight in tape.weights.items():
                    self.initial.setdefault(key, weight.detach().clone())
                self._start[kind] = self._check(tape, recorder)
                self.left_out = left_out_value(tape) if self.left_out is None else self.left_out
            self._note_data(tape, recorder, step)
        except ERRORS as error:
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:120])
            return
        finally:
            self.checking = False
        self.steps = step
        most = _HALF * recorder.budget
        if not self.late and len(self.early) < _KEPT and _bytes(self.early) + tape.nbytes <= most:
            self.early.append(tape)
            return
        self.late.append(tape)
        while _bytes(self.late) > most:
            self.late.popleft()

    def _give_up(self, reason: str) -> None:
        if not self.first:
            self.problem = reason

    def _check(self, tape: Tape, recorder: TapeRecorder) -> list[Report]:
        """Checks of the first tape of a kind, at the initial weights."""
        with torch.random.fork_rng(devices=[]):
            return tape_reports(tape, recorder.unread())

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

    def _still(self) -> list[str]:
        """Networks all of whose inputs stay the same, in losses with other data that change."""
        kinds: dict[str, list[Tape]] = {}
        for tape in (*self.early, *self.late):
            kinds.setdefault(tape.kind + _shapes(tape), []).append(tape)
        found: dict[str, None] = {}
        for tapes in (one for one in kinds.values() if len(one) >= _OFTEN):
            last = tapes[-1]
            still = {
                key
                for n, (key, root) in enumerate(last.roots.items())
                if all(torch.equal(root.value, list(one.roots.values())[n].value) for one in tapes)
            }
            if all(root.kind == "constant" or key in still for key, root in last.roots.items()):
                continue
            # A network whose samples are judged in this loss, and that learns of another one.
            cut = [c for c in last.calls if not c.pure and (c.name == "detach" or not c.grad)]
            judged = {key for call in cut for key in (*call.reads, *call.outs)}
            for one in (one for one in last.results if one.key in judged):
                given = [
                    key
                    for key, root in last.roots.items()
                    if one.key in last.reached(key) and root.kind != "constant"
                ]
                values = [last.roots[key].value.flatten() for key in given]
                varied = any(len(value) > _OFTEN and bool((value != value[0]).any()) for value in values)
                if varied and still.issuperset(given):
                    found[one.name] = None
        return list(found)

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
    def detached(self) -> bool:
        """Whether a loss uses detached outputs, so that its gradient is not that of its value."""
        calls = (call for tape in self.first.values() for call in tape.calls)
        return any(call.name == "detach" and call.grad and not call.pure for call in calls)

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
                )
            )
            found.append(
                must_be_zero(
                    "inputs of the network that equal another input",
                    int(all(self._alike)),
                    "two inputs of the network are the same numbers in every batch: one tensor that changes "
                    "in place, or the same view or state twice.",
                )
            )
        if len(self._same_noise) >= 4:
            found.append(
                at_most(
                    "share of the steps with the random numbers of the step before",
                    sum(self._same_noise) / len(self._same_noise),
                    0.5,
                    "noise or dropout has the same random numbers in every step: a seed is set in the loop.",
                )
            )
        found.append(
            must_be_zero(
                "networks that get the same numbers in every step",
                len(self._still()),
                "a network gets the same random numbers (or other data) in every step, while other data "
                "change: they are drawn once before the loop, and not anew in each step.",
                "Draw them in each step.",
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
                )
            )
        return report_of("DATA", f"{len(self.early) + len(self.late)} batches", found)

    def final_reports(
        self,
        steps: int,
        own: set[int],
        gradients: Sequence[Mapping[int, Tensor]] = (),
        *,
        alone: bool,
        settings: Settings | None = None,
    ) -> list[Report]:
        """Checks at the end of the loop.

        Args:
            steps: number of steps.
            own: keys of the weights that an optimizer holds.
            gradients: of the first losses, by weight.
            alone: whether there is one optimizer only.
            settings: how the loop trains, if there is one optimizer.
        """
        if self.problem or not self.first:
            return []
        tapes = [*self.early, *self.late]
        if self.over and len(tapes) < 4:
            return [report_of("LEARNED", f"left out: {self.over}", [])]
        state, self.checking = torch.get_rng_state(), True
        kinds = _of_one_kind(tapes), _of_one_kind(list(self.late or self.early))
        loop = LearningChecks(
            *(self.module, self.first, kinds, tapes[-1], self.initial, steps, own, alone, settings),
            gradients,
        )
        reports = loop.reports
        self.checking = False
        torch.set_rng_state(state)
        return reports


def _bytes(tapes: Iterable[Tape]) -> int:
    return sum(tape.nbytes for tape in tapes)


def _of_one_kind(tapes: list[Tape]) -> list[Tape]:
    """The tapes of the most frequent kind and shape, each batch once."""
    counts = Counter(tape.kind + _shapes(tape) for tape in tapes)
    most = counts.most_common(1)[0][0] if tapes else ""
    return list({_fingerprint(tape): tape for tape in tapes if tape.kind + _shapes(tape) == most}.values())


def _drawn(tape: Tape) -> list[Tensor]:
    """The random numbers of a loss, and the states of the generator for those of dropout."""
    noise = [r.value for r in tape.roots.values() if r.kind == "noise" and r.value.numel() > 3]
    drops = (call for call in tape.calls if call.name in DROPOUT and dropout_rate(call) > 0)
    return noise + [call.state for call in drops if call.state is not None]


def recorder_lines(counts: Counter[str]) -> list[str]:
    """Lines at which data are collected in most steps without being used."""
    return [line for line, count in counts.items() if count >= _OFTEN]


def _silent_weights(tape: Tape) -> dict[int, tuple[nn.Parameter, Tensor]]:
    keys = {key for call in tape.calls if not call.grad and not call.pure for key in call.reads}
    return {key: (one, one.detach().clone()) for key, one in tape.weights.items() if key in keys}


def _shapes(tape: Tape) -> str:
    return " ".join(str(tuple(root.value.shape)) for root in tape.roots.values() if root.kind == "data")


def _fingerprint(tape: Tape) -> tuple[float, ...]:
    return tuple(float(size_of(r.value)) for r in tape.roots.values() if r.kind == "data")


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
