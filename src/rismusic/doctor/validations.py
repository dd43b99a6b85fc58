"""Validations of a watched loop: passes without gradients whose outputs are compared with data.

Do their inputs and those of the training come from one distribution? If not, what makes one of the other?
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rismusic.doctor.report import Findings
from rismusic.doctor.state import first_places, names, row_codes, tensors_in
from rismusic.doctor.tape import LIKE
from rismusic.nn.monitors import Finding, at_most

# Most numbers of a sample that is kept, and of all that are.
_WIDEST, _KEPT = 4096, 1_000_000
# Most passes whose inputs are remembered, rows of the training, and rows of a pass whose numbers are kept.
_MOST_PASSES, _MOST_ROWS, _SHOWN = 50, 50_000, 1024
# Fewest and most numbers of outputs that are compared, and the agreement from which an order counts as right.
_PAIR, _AGREED = (64, 100_000), 0.5
# Agreement that is little in validation, and much in training.
_LITTLE, _MUCH = 0.1, 0.4
# Fewest and most samples of each set, most features that are compared one by one, and most tokens.
_FEW, _MANY, _FEATURES, _TOKENS = 48, 1000, 64, 32
# Probability of a difference by chance, and distance of two distribution functions that matters.
_CHANCE, _DISTANCE = 1e-6, 0.3
# Distance of two distribution functions from which a change explains a shift.
_EXPLAINED = 0.2
# Quantile of the distances of nearest neighbours, from which a sample is far from a set.
_FAR = 0.95
# Calls that compare outputs with data, in evaluation mode, and in any mode.
_DIFFERENCES = names("eq __eq__ ne __ne__ sub __sub__ rsub __rsub__")
_COMPARISONS = names("gt lt ge le __gt__ __lt__ __ge__ __le__ cosine_similarity")
_PRODUCTS = names("mul __mul__ __rmul__ logical_and __and__ __rand__ bitwise_and")
_LOSSES = names(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy huber_loss kl_div l1_loss "
    "mse_loss nll_loss smooth_l1_loss"
)
# Those whose outputs, as labels or numbers, may agree with the data.
_AGREEING = names(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy nll_loss l1_loss mse_loss"
)


@dataclass(eq=False)
class _Pass:
    """A forward pass without gradients; ``judged``: compared with data, ``pair``; ``used``: in a loss."""

    mean: float
    spread: float
    rows: Tensor
    codes: Tensor
    judged: bool = False
    used: bool = False
    pair: tuple[Tensor, Tensor] | None = None
    tokens: bool = False
    given: tuple[Any, ...] = ()


def _first(given: Sequence[Any]) -> Tensor | None:
    return next((one for one in given if isinstance(one, Tensor)), None)


def _decided(name: str, outputs: Tensor) -> Tensor:
    """The outputs; of a loss of labels, the labels that they say."""
    outputs = outputs.detach()
    if not name.startswith("binary_cross_entropy"):
        return outputs
    return (outputs > (0.0 if name.endswith("logits") else 0.5)).float()


def _is_label(value: Tensor) -> bool:
    """Whether a tensor has 0 and 1 only."""
    return not value.is_complex() and bool(((value == 0) | (value == 1)).all())


def _scale(value: Tensor) -> tuple[float, float]:
    """Mean and spread."""
    value = value.detach().double()
    return float(value.mean()), float(value.std())


def _agreement(outputs: Tensor, data: Tensor) -> float:
    """Share of the variance of the data that outputs explain; of classes, beyond the most frequent one."""
    if not outputs.is_floating_point() and not data.is_floating_point():
        most = float(data.unique(return_counts=True)[1].amax()) / data.numel()
        return (float((outputs == data).double().mean()) - most) / max(1 - most, 1e-9)
    outputs, data = outputs.double(), data.double()
    if _is_label(outputs) and _is_label(data):
        both = torch.stack((outputs.flatten(), data.flatten()))
        return float(both.corrcoef()[0, 1].nan_to_num())
    spread = (data - data.mean(0)).square().mean().clamp_min(1e-30)
    return float(1 - (outputs - data).square().mean() / spread)


def _other_orders(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The outputs in other orders."""
    for axis in range(value.ndim):
        yield f"in reverse order (axis {axis})", value.flip(axis)
        for by in (1, -1):
            yield f"shifted by {-by} (axis {axis})", value.roll(by, axis)
    if value.ndim > 1 and value.shape[-1] == value.shape[-2]:
        yield "with the last two axes exchanged", value.mT
    n = len(value)
    for rows in range(4, n // 4 + 1):
        if n % rows == 0:
            grid = value.unflatten(0, (rows, -1)).transpose(0, 1)
            yield f"with the axes of a grid of {rows} x {n // rows} exchanged", grid.flatten(0, 1)
    if value.is_floating_point():
        yield "of opposite sign", -value
    else:
        yield "shifted by one class", value + 1


class Validations:
    """Inputs of the training, and passes without gradients with what depends on them."""

    def __init__(self, predict: Callable[..., Any]) -> None:
        self._predict = predict
        # Samples of the training, in their batches.
        self._samples: list[Tensor] = []
        self._inputs: list[tuple[float, float]] = []
        self._passes: list[_Pass] = []
        self._trained_rows: set[float] = set()
        self._depending = WeakTensorKeyDictionary()
        # Agreement in training.
        self._trained: list[float] = []
        # Whether the present pass is noted and has not reached its first layer with weights, and is of the
        # training.
        self._before_layers = self._training = False

    def see(self, value: Tensor, given: tuple[Any, ...], *, alone: bool) -> None:
        """Note the input of a pass; that of one of several networks (not ``alone``) has no common scale."""
        if value.requires_grad or value.numel() < 2:
            return
        training, found = torch.is_grad_enabled(), _scale(value.abs() if value.is_complex() else value)
        self._training = training
        kept = alone and value.ndim > 1 and value[0].numel() <= _WIDEST
        if training and kept and sum(one.numel() for one in self._samples) < _KEPT:
            self._samples.append(value.detach()[: _SHOWN // 4].clone())
        for one in self._passes[:-1]:
            one.given = ()
        if not value.is_floating_point() or not alone:
            # Tokens have no scale, and short texts repeat.
            if not training and len(self._passes) < _MOST_PASSES:
                self._passes.append(
                    _Pass(*found, value[:0], value[:0], tokens=True, given=given if kept else ())
                )
            return
        self._before_layers = len(self._inputs if training else self._passes) < _MOST_PASSES
        if training and len(self._inputs) < _MOST_PASSES:
            self._inputs.append(found)
        elif not training and len(self._passes) < _MOST_PASSES:
            rows = value.detach().flatten(1)[:_SHOWN, :64].clone() if value.ndim > 1 else value[:0, None]
            self._passes.append(_Pass(*found, rows, row_codes(value), given=given if kept else ()))
        if training and len(self._trained_rows) < _MOST_ROWS and value.ndim > 1:
            self._trained_rows.update(row_codes(value).tolist())

    def see_loss(self, name: str, args: Sequence[Any]) -> None:
        """Note how well outputs agree with the data in a loss of the training."""
        one, other = (args[0], args[1]) if len(args) > 1 else (None, None)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or other.requires_grad:
            return
        if name in ("cross_entropy", "nll_loss") and one.ndim == other.ndim + 1:
            one = one.detach().argmax(1)
        if name in _AGREEING and one.shape == other.shape and one.numel() > 1:
            self._trained = [*self._trained[-9:], _agreement(_decided(name, one), other)]

    def enter(self, value: Any) -> None:
        """Note the input of the first layer with weights, which the network may have scaled itself."""
        if not self._before_layers or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        self._before_layers = False
        if value.numel() < 2:
            return
        if self._training:
            self._inputs[-1] = _scale(value)
        else:
            self._passes[-1].mean, self._passes[-1].spread = _scale(value)

    def note(self, result: Any) -> None:
        """Note the outputs of a pass."""
        if self._passes and not torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():
                for value in tensors_in(result):
                    self._depending[value] = self._passes[-1:]

    def judge(self, name: str, args: Sequence[Any], result: Any, *, inside: bool) -> None:
        """Note which passes a call compares with data, or else what depends on them."""
        if not self._passes:
            return
        given = tensors_in(list(args))
        # Each pass once: a sampler that feeds outputs back would double them in every step.
        sources = list(dict.fromkeys(one for value in given for one in self._depending.get(value, ())))
        alone = all(value in self._depending for value in given)
        if name in _LOSSES and inside and not torch.is_grad_enabled():
            self._passes[-1].judged = True
        elif sources and any(value.requires_grad for value in given):
            # A part of a loss, such as the value of the next state.
            for one in sources:
                one.used = True
        elif sources and alone and len(given) > 1 and name in _COMPARISONS:
            # A score of outputs alone, such as which of two is larger.
            for one in sources:
                one.judged = True
        elif sources and not alone:
            pair = given[:2] if given[0] in self._depending else given[1::-1]
            fits = len(given) > 1 and pair[0].shape == pair[1].shape and pair[1] not in self._depending
            hits = name in _PRODUCTS and fits and all(map(_is_label, pair))
            for one in sources if name in _LOSSES or name in _DIFFERENCES or hits else ():
                one.judged = True
                if fits and _PAIR[0] <= pair[0].numel() <= _PAIR[1] and not pair[0].is_complex():
                    one.pair = (_decided(name, pair[0]).clone(), pair[1].detach().clone())
        for value in tensors_in(result) if sources and name not in LIKE else ():
            self._depending[value] = sources

    def forget(self) -> None:
        """Forget passes that were not compared, such as those of a player."""
        self._passes = [one for one in self._passes if one.judged]
        self._depending.clear()

    def _order_findings(self, judged: Sequence[_Pass], *, holds: bool) -> Iterator[Finding]:
        """Outputs agree with the data as they are, not in another order, and as well as in training."""
        pair = next((one.pair for one in reversed(judged) if one.pair is not None), None)
        if pair is None:
            return
        outputs, data = (value.cpu() for value in pair)
        plain, trained = _agreement(outputs, data), sorted(self._trained)[len(self._trained) // 2 :]
        best, words = max((_agreement(other, data), words) for words, other in _other_orders(outputs))
        if (best <= _AGREED or plain >= best / 2) and trained and plain < trained[0] / 2 > _LITTLE:
            words, best = self._other_inputs(judged, outputs, data) or (words, best)
            # What is said of inputs need not be more than what was learned.
            best = best / min(1.0, trained[0]) if best > trained[0] / 2 else best
        gain = best - plain if best > _AGREED and plain < best / 2 else 0.0
        yield at_most(
            "gain in the agreement of a validation if its outputs are put in another order",
            gain,
            0.0,
            f"in the validation the outputs agree with the data {words} ({best:.2f}), not as it is "
            f"({plain:.2f}): what is compared does not belong together.",
            "Compare both in the same order: axes, grid (indexing), first element, direction.",
        )
        if trained:
            yield at_most(
                "agreement of outputs and data in training, if there is little in validation",
                trained[0] if plain < _LITTLE and not gain else 0.0,
                _MUCH,
                f"outputs agree with the data in training ({trained[0]:.2f}), but not in validation "
                f"({plain:.2f}): "
                + (
                    "the network only memorises, or the validation is fed, decoded or compared otherwise "
                    "(mode, transform, state, order)."
                    if not holds
                    else "since what is learned holds for training batches that are held out, the inputs of "
                    "the validation are coded otherwise (vocabulary, transform, order of features), or its "
                    "outputs are decoded or compared otherwise."
                ),
                "Run the code of the validation on a batch of the training: both must agree as well.",
            )

    def _other_inputs(
        self, judged: Sequence[_Pass], outputs: Tensor, data: Tensor
    ) -> tuple[str, float] | None:
        """With which change of its inputs the outputs of a validation agree best, and how well."""
        last = next((one for one in reversed(judged) if one.given and one.pair is not None), None)
        value = None if last is None else _first(last.given)
        if last is None or value is None or len(value) != len(data):
            return None
        found = []
        for words, other in other_inputs(value):
            given = tuple(other if one is value else one for one in last.given)
            made = next(iter(tensors_in(self._predict(*given))), None)
            if made is not None and not outputs.is_floating_point() and made.ndim > outputs.ndim:
                made = made.argmax(-1 if made.shape[:-1] == data.shape else 1)
            if made is not None and made.numel() == data.numel():
                made = made.detach().cpu().reshape(data.shape)
                found.append((_agreement(made, data), f"if its inputs are {words}"))
        return max(found)[::-1] if found else None

    def findings(self, *, holds: bool, varied: bool) -> list[Finding]:
        """Validation has inputs of the scale of the training, and rows of its own, which stay the same.

        ``holds``: what is learned, for batches held out. ``varied``: training data may change at random.
        """
        judged = [one for one in self._passes if one.judged and not one.used]
        shown = next((one for one in reversed(judged) if one.given), None)
        orders = list(self._order_findings(judged, holds=holds))
        if shown is not None:
            orders = shift_findings(self._samples, _first(shown.given), varied=varied) + orders
        if not judged or judged[-1].tokens or not self._inputs:
            return orders
        scales = self._inputs, [(one.mean, one.spread) for one in judged]
        (mean, spread), (other, width) = ([sum(n) / len(n) for n in zip(*s, strict=True)] for s in scales)
        size = max(spread, 1e-12)
        found = Findings()
        found.at_most(
            "difference of the inputs of training and validation, over their spread",
            max(abs(other - mean) / size, 0.5 * width / size, 0.5 * size / max(width, 1e-12)),
            1.5,
            f"the inputs of the validation (mean {other:.3g}, spread {width:.3g}) are scaled otherwise "
            f"than those of the training (mean {mean:.3g}, spread {spread:.3g}).",
        )
        found += orders
        # Rows of few different numbers may be equal by chance.
        judged = [one for one in judged if len(one.rows.unique()) >= max(16, len(one.rows))]
        if not judged or not self._trained_rows:
            return found
        shares = [
            sum(code in self._trained_rows for code in one.codes.tolist()) / len(one.codes) for one in judged
        ]
        findings = Findings()
        findings += found
        findings.at_most(
            "least share of the rows of a validation that were trained on",
            min(shares),
            0.1,
            "the validation has rows that the network is trained on, so it does not show how well it "
            "does on others: the split is not used in the training, or overlaps.",
        )
        return findings


def shift(one: Tensor, other: Tensor, most: float = _CHANCE) -> tuple[float, str]:
    """Largest distance of the distribution functions of any feature of samples [n, ...] and [m, ...], and it.

    A distance that may be chance with a probability above ``most`` does not count.
    """
    first, second = _features(one, other), _features(other, one)
    n, m, worst = len(one), len(other), (0.0, "")
    if min(n, m) < _FEW:
        return worst
    for name, x in first.items():
        y = second.get(name)
        if y is None or not bool(x.isfinite().all() and y.isfinite().all()):
            continue
        every = torch.cat((x, y)).unique()
        below = (torch.searchsorted(v.sort().values, every, right=True) / len(v) for v in (x, y))
        distance = float(torch.stack(list(below)).diff(dim=0).abs().amax())
        chance = 2 * math.exp(-2 * distance**2 * n * m / (n + m)) * len(first)
        if chance < most and distance > worst[0]:
            worst = distance, f"{name} is {_range(x)} in {{one}}, {_range(y)} in {{other}}"
    return worst


def _range(x: Tensor) -> str:
    low, middle, high = x.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=x.dtype)).tolist()
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _features(value: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Numbers that describe each sample."""
    value, other = (one[:, None] if one.ndim == 1 else one for one in (value, other))
    if not value.is_floating_point() and not value.is_complex():
        tokens = torch.cat((value.flatten(), other.flatten())).unique()
        flat = value.flatten(1)
        if len(tokens) > _TOKENS:
            return {"the largest number": flat.amax(1).double(), "the mean number": flat.double().mean(1)}
        return {f"the share of {int(token)}": (flat == token).double().mean(1) for token in tokens}
    parts = torch.view_as_real(value).flatten(-2) if value.is_complex() else value
    flat = parts.double().flatten(1)
    found = {}
    if flat.shape[1] == other[0].numel() * (2 if value.is_complex() else 1):
        step = max(1, flat.shape[1] // _FEATURES)
        found = {f"number {k}": flat[:, k] for k in range(0, flat.shape[1], step)}
    if flat.shape[1] < 8:
        return found
    size = flat.square().mean(1).sqrt()
    found |= {"the size of a sample": size, "its mean": flat.mean(1)}
    found["its share of zeros"] = (flat == 0).double().mean(1)
    for axis in range(1, value.ndim):
        if value.shape[axis] >= 6:
            rest = value.shape[axis] - 1
            near = value.narrow(axis, 1, rest) * value.narrow(axis, 0, rest).conj()
            near = near.flatten(1).mean(1) / size.square().clamp_min(1e-30)
            found[f"its correlation of neighbours along axis {axis}"] = near.real.double()
            if value.is_complex():
                found[f"its rotation from neighbour to neighbour along axis {axis}"] = near.imag.double()
    return found


def other_inputs(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Samples as another preparation of the data would give them."""
    if value.is_complex():
        yield "taken with real and imaginary parts exchanged", torch.complex(value.imag, value.real)
        yield "conjugated", value.conj().resolve_conj()
        flat = torch.view_as_real(value.resolve_conj()).flatten(-2)
        halves = torch.complex(*flat.contiguous().chunk(2, -1))
        yield "read as real parts and then imaginary parts, not as pairs", halves
        yield "taken as their modulus", value.abs().to(value.dtype)
        yield "taken as their real part", value.real.to(value.dtype)
    for axis in range(1, value.ndim):
        size = value.shape[axis]
        yield f"reversed along axis {axis}", value.flip(axis)
        if size >= 6:
            for step in (2, 3, 4):
                thin = value.index_select(axis, torch.arange(0, size, step, device=value.device))
                rest = [size - thin.shape[axis] if k == axis else n for k, n in enumerate(value.shape)]
                whole = torch.cat((thin, thin.new_zeros(rest)), axis)
                yield f"taken at every {step}. place along axis {axis}", whole
            for by in (1, -1):
                yield f"shifted by {by} along axis {axis}", value.roll(by, axis)
        if 2 <= size <= 4 and value.is_floating_point():
            yield f"taken with axis {axis} in another order", value.roll(1, axis)
    if value.ndim > 2 and value.shape[-1] == value.shape[-2]:
        yield "transposed", value.mT
    if value.is_floating_point():
        yield "of opposite sign", -value
        if bool((value >= 0).all()):
            yield "subtracted from their largest number", value.amax() - value


def shift_findings(batches: Sequence[Tensor], other: Tensor | None, *, varied: bool) -> list[Finding]:
    """The inputs of a validation have the distribution of those of the training.

    Those of a ``varied`` training may be augmented, so that only a shift with a cause counts.
    """
    same = [one for one in batches if other is not None and one.dtype == other.dtype]
    same = [one for one in same if other is not None and one.shape[1:] == other.shape[1:]]
    if other is None or not same:
        return []
    own = torch.cat(same)
    own = own[first_places(row_codes(own).tolist())][:_MANY]
    new = other.detach()[:_MANY]
    seen, codes = set(row_codes(own).tolist()), row_codes(new)
    new = new[[n for n in first_places(codes.tolist()).tolist() if float(codes[n]) not in seen]]
    if min(len(own), len(new)) < _FEW:
        return []
    distance, text = shift(own, new)
    cause, noise = "", 1.5 * math.sqrt(1 / len(own) + 1 / len(new))
    if distance > _DISTANCE:
        least = min(_EXPLAINED + noise, distance / 2)
        changes = ((f"validation are {words}", own, made) for words, made in other_inputs(new))
        others = ((f"training are {words}", made, new) for words, made in other_inputs(own))
        for words, one, two in itertools.chain(changes, others):
            if shift(one, two, math.inf)[0] < least:
                cause = f" They have the same distribution if those of the {words}."
                break
        else:
            cause, distance = _covered(own, new), 0.0 if varied else distance
    return [
        at_most(
            "distance of the distributions of the inputs in training and validation, 0 to 1",
            distance,
            _DISTANCE,
            f"the inputs of training and validation have other distributions: "
            f"{text.format(one='training', other='validation')}.{cause}",
            "Draw both from the same shuffled data, and prepare them with the same function.",
        )
    ]


def _nearest(these: Tensor, others: Tensor) -> Tensor:
    """Distance of each sample to the nearest other one of a set."""
    one, two = (value.float().flatten(1) for value in (these, others))
    distance = torch.cdist(one, two)
    if these is others:
        distance.fill_diagonal_(math.inf)
    return distance.amin(1)


def _covered(own: Tensor, new: Tensor) -> str:
    """Which of two sets covers the other one only in part."""
    if not own.is_floating_point():
        return ""
    lonely = []
    for one, two in ((own, new), (new, own)):
        far = _nearest(two, two).quantile(_FAR)
        lonely.append(float((_nearest(one, two) > far).double().mean()))
    if lonely[1] > 0.3 and lonely[1] > 3 * lonely[0]:
        return (
            f" The training lacks {100 * lonely[1]:.0f} % of what the validation has: it is a part of them "
            "only, such as the beginning of a file that is sorted by kind."
        )
    if lonely[0] > 0.3 and lonely[0] > 3 * lonely[1]:
        return (
            f" The validation lacks {100 * lonely[0]:.0f} % of what the training has: it is a part of them "
            "only, such as the end of a file that is sorted by kind."
        )
    return " They are prepared otherwise (scaling, cutting, sampling, order, units)."
