"""The tapes of a loop, from the first step to the last, and what they say about it."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.counterfactuals import Settings
from rismusic.doctor.learning_checks import LearningChecks
from rismusic.doctor.report import Findings, listed, report_of
from rismusic.doctor.state import ERRORS, size_of
from rismusic.doctor.tape import Tape, TapeRecorder, faithful
from rismusic.doctor.tape_checks import tape_reports
from rismusic.nn.monitors import Report

# Steps whose tape is kept: all of the first ones, then one in eight.
_FIRST_STEPS, _EVERY = 64, 8
# Tapes that are kept from the start and the end of a loop; shares of the memory budget for one of them, and
# for all from the start, or the end.
_KEPT, _ONE, _HALF = 12, 1 / 16, 3 / 8
# Kinds of losses that are checked at the start, such as those of two networks.
_KINDS = 3


class TapeRecord:
    """Tapes of the losses of a loop."""

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
        # Whether a check runs, whose own calls and steps are not those of the loop.
        self.checking = False
        self.altered: set[str] = set()
        self._start: dict[str, list[Report]] = {}
        self._same = 0
        self.loader = 0
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
                keys = {key for call in tape.calls if not call.grad and not call.pure for key in call.reads}
                weights = {key: one for key, one in tape.weights.items() if key in keys}
                self._silent = {key: (one, one.detach().clone()) for key, one in weights.items()}
            kind = tape.kind
            if kind not in self.first and len(self.first) < _KINDS:
                if not faithful(tape):
                    self._give_up("repeating the recorded calls gives another loss")
                    return
                self.first[kind] = tape
                for key, weight in tape.weights.items():
                    self.initial.setdefault(key, weight.detach().clone())
                with torch.random.fork_rng(devices=[]):
                    self._start[kind] = tape_reports(tape, recorder.unread())
            self._note_data(tape, recorder)
        except ERRORS as error:
            self._give_up(" ".join(f"{type(error).__name__}: {error}".split())[:120])
            return
        finally:
            self.checking = False
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

    def _note_data(self, tape: Tape, recorder: TapeRecorder) -> None:
        """Labels and rows of a batch."""
        targets = [tape.roots[key].value for key in tape.targets if key not in tape.inputs]
        flat = [one for one in targets if one.ndim == 1 or one.shape[1:].numel() == 1]
        if len(flat) == 1 and len(self.labels) < _FIRST_STEPS and not flat[0].is_complex():
            self.labels.append(flat[0].flatten().double().cpu())
        before = self.late[-1] if self.late else self.early[-1] if self.early else None
        data = [value for value in _data(tape) if value.numel() > 1]
        if before is not None and data:
            old = [value for value in _data(before) if value.numel() > 1]
            same = len(old) == len(data) and all(map(torch.equal, old, data))
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
    def detached(self) -> bool:
        """Whether a loss uses detached outputs, so that its gradient is not that of its value."""
        calls = (call for tape in self.first.values() for call in tape.calls)
        return any(call.name == "detach" and call.grad and not call.pure for call in calls)

    @property
    def start_reports(self) -> list[Report]:
        """What the first tapes said."""
        if not self._start:
            reason = self.problem or "no loss was recorded"
            return [report_of("BATCH", f"left out: {reason}")]
        return [report for reports in self._start.values() for report in reports]

    def data_report(self) -> Report:
        """[DATA]: order and rows of the batches."""
        found = Findings()
        if len(self.labels) >= 8 and min(map(len, self.labels)) >= 4:
            share, kind = _purity(self.labels)
            if share is not None:
                found.at_least(
                    "spread of the targets within a batch over that of all batches",
                    share,
                    0.3 if kind == "classes" else 0.1,
                    "batches are not mixed: consecutive batches have targets of one kind each, since "
                    "the data are sorted and not shuffled.",
                    "Shuffle the data (shuffle=True, or a new permutation in each epoch).",
                )
        found.must_be_zero(
            "calls that change the data in place",
            len(self.altered),
            f"the data are changed in place in the loop ({listed(sorted(self.altered))}), so they differ "
            "from epoch to epoch.",
            "Work on a copy of the batch (x = x * 2 in place of x *= 2).",
        )
        if self._same >= 20 and self.loader:
            size = max(len(value) for value in _data(self.early[-1]) if value.ndim)
            found.at_most(
                "rows of the data over those of the one batch that is used in every step",
                self.loader / max(size, 1),
                2.0,
                "every step uses the same batch, though there are more data.",
            )
        return report_of("DATA", f"{len(self.early) + len(self.late)} batches", found)

    def final_reports(
        self, steps: int, own: set[int], *, alone: bool, settings: Settings | None = None
    ) -> list[Report]:
        """Checks at the end; ``own``: keys of trained weights, ``alone``: whether there is one optimizer."""
        if self.problem or not self.first:
            return []
        tapes = [*self.early, *self.late]
        if self.over and len(tapes) < 4:
            return [report_of("LEARNED", f"left out: {self.over}")]
        self.checking = True
        kinds = _of_one_kind(tapes), _of_one_kind(list(self.late or self.early))
        with torch.random.fork_rng(devices=[]):
            loop = LearningChecks(self.first, kinds, self.initial, steps, own, alone, settings)
            reports = loop.reports
        self.checking = False
        return reports


def _bytes(tapes: Iterable[Tape]) -> int:
    return sum(tape.nbytes for tape in tapes)


def _of_one_kind(tapes: list[Tape]) -> list[Tape]:
    """The tapes of the most frequent kind and shape, each batch once."""
    counts = Counter(tape.kind + _shapes(tape) for tape in tapes)
    most = counts.most_common(1)[0][0] if tapes else ""
    alike = [tape for tape in tapes if tape.kind + _shapes(tape) == most]
    return list({tuple(size_of(value) for value in _data(tape)): tape for tape in alike}.values())


def _shapes(tape: Tape) -> str:
    return " ".join(str(tuple(value.shape)) for value in _data(tape))


def _data(tape: Tape) -> list[Tensor]:
    return [root.value for root in tape.roots.values() if root.kind == "data"]


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
