"""Checks that repeat the calculation of a loss with other data: what a right loss and network must satisfy.

No check knows a kind of mistake. Each compares the loss with itself: with the samples in another order, with
the inputs of other samples, with the best constant output, with one term at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rismusic.doctor.report import Findings, listed, must_be_zero, report_of
from rismusic.doctor.state import ERRORS, names, real_view, size_of
from rismusic.doctor.tape import DROPOUT as _DROPOUT
from rismusic.doctor.tape import Call, LeftOutError, Replay, Tape
from rismusic.nn.monitors import Finding, Report, at_least, at_most

# Relative changes of a loss or an output that rounding does not explain, in double and single precision.
_CHANGED = {True: 1e-5, False: 2e-3}
# Share of the varying input entries, or of the columns, that may be without any effect.
_UNUSED = 0.3


@dataclass
class Samples:
    """The samples of a tape: their number, and their axis in each tensor that has one."""

    number: int
    axes: dict[int, int]
    primary: int

    def roots(self, replay: Replay, index: Tensor, only: Sequence[int] | None = None) -> dict[int, Tensor]:
        """The tensors with other samples."""
        return {
            key: replay.roots[key].index_select(axis, index.to(replay.roots[key].device))
            for key, axis in self.axes.items()
            if only is None or key in only
        }

    def reordered(self, replay: Replay, order: Tensor) -> dict[int, Tensor]:
        """The tensors with the samples in another order; those that number samples get the new numbers."""
        places = order.argsort()
        numbered = {key: places.to(one.device)[one[order]] for key, one in self._partners(replay)}
        return self.roots(replay, order) | numbered

    def _partners(self, replay: Replay) -> Iterator[tuple[int, Tensor]]:
        """Tensors that have the number of another sample for each, as the labels of a contrastive loss."""
        for key in self.axes:
            value = replay.roots[key]
            numbers = value.ndim == 1 and value.dtype == torch.long and int(value.min()) == 0
            if numbers and _is_index(value.sort().values):
                yield key, value


def _is_index(value: Tensor) -> bool:
    """Whether a tensor numbers the samples, as the labels of a contrastive loss do."""
    return value.ndim == 1 and not value.is_floating_point() and bool((value.diff() == 1).all())


def _is_diagonal(value: Tensor) -> bool:
    """Whether a square matrix treats all pairs of two samples alike, so that their order does not matter."""
    diagonal = value.diagonal()
    rest = value[~torch.eye(len(value), dtype=torch.bool, device=value.device)]
    return bool((diagonal == diagonal[0]).all()) and bool((rest == rest[0]).all())


def samples_of(tape: Tape, axis: int = 0) -> Samples:
    """The samples along an axis of the input, if they may be exchanged."""
    if tape.random:
        raise LeftOutError("the loss draws numbers that depend on the network")
    roots = tape.roots
    # Statistics with which the data are scaled are the same for all samples.
    scales = {key for call in tape.calls if call.pure and len(set(call.reads)) > 1 for key in call.reads}
    inputs = [key for key in tape.inputs if roots[key].value.ndim > axis and roots[key].value.numel() > 1]
    if not inputs:
        raise LeftOutError("no data reach the network")
    square = [key for key in inputs if list(roots[key].value.shape[:2]) == [len(roots[key].value)] * 2]
    if any(len(roots[key].value) == len(roots[one].value) for key in square for one in inputs if one != key):
        raise LeftOutError("the batch has a matrix that relates samples to each other")
    primary = max(inputs, key=lambda key: roots[key].value.numel())
    number, axes = roots[primary].value.shape[axis], {}
    if number < 4:
        raise LeftOutError("fewer than 4 samples")
    for key, root in roots.items():
        shape = list(root.value.shape)
        if _is_index(root.value) or root.value.numel() < 2:
            continue
        if shape[:2] == [number, number] and key != primary:
            if root.kind == "constant" and len(shape) == 2 and _is_diagonal(root.value):
                continue
            raise LeftOutError("the batch has a matrix that relates samples to each other")
        if axis < len(shape) and shape[axis] == number:
            axes[key] = axis
        elif number in shape:
            axes[key] = shape.index(number)
        elif key in scales:
            continue
        elif root.kind == "data" and any(one.key in tape.reached(key) for one in tape.results):
            raise LeftOutError("a tensor of the batch has no axis of samples")
        elif root.kind == "data" and key in tape.targets:
            raise LeftOutError("the loss has data without an axis of samples")
    return Samples(number, axes, primary)


def lively(tape: Tape) -> dict[int, Tensor]:
    """The weights, with matrices of zeros (heads that start at 0) drawn at random, so that signals pass."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for key, weight in tape.weights.items():
        value = weight.detach()
        if value.ndim > 1 and not bool(value.any()):
            value = 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        found[key] = value
    return found


def replay_of(tape: Tape) -> Replay:
    """A replay in double precision where that is possible."""
    weights = lively(tape)
    single = Replay(tape, weights)
    try:
        double = Replay(tape, weights, double=True)
    except (RuntimeError, TypeError, ValueError):
        return single
    return double if math.isclose(single.loss, double.loss, rel_tol=1e-2, abs_tol=1e-5) else single


def permutation(number: int) -> Tensor:
    """A fixed random order."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))


def _orders(number: int) -> Iterator[Tensor]:
    """Other orders of a batch: of its rows, and of samples that have a row in each half (views, pairs)."""
    yield permutation(number)
    if number % 2 == 0 and number >= 8:
        half = permutation(number // 2)
        yield torch.cat((half, half + number // 2))


def _sample_axis(value: Tensor, samples: Samples) -> int | None:
    shape = list(value.shape)
    if shape.count(samples.number) > 1 and shape[0] != samples.number:
        return None
    return shape.index(samples.number) if samples.number in shape else None


def mixing_findings(tape: Tape) -> list[Finding]:
    """Samples of a batch do not affect each other's outputs, and their order does not change the loss."""
    samples = chosen_samples(tape)
    replay = replay_of(tape)
    limit = _CHANGED[replay.double]
    change = min(
        abs(replay.value(roots=samples.reordered(replay, order)) - replay.loss) / max(abs(replay.loss), 1e-6)
        for order in _orders(samples.number)
    )
    # One sample is replaced by the last one; then, all are put in another order.
    index, rest = torch.arange(samples.number), torch.arange(1, samples.number)
    index[0] = samples.number - 1
    mixed, first, line = _differing(replay, samples, index, rest, rest, limit)
    other = _time_major(tape)
    if (mixed > limit or change > limit) and other is not None:
        roots = other.roots(replay, permutation(other.number))
        moved = abs(replay.value(roots=roots) - replay.loss) / max(abs(replay.loss), 1e-6)
        if moved <= limit and not tape.roots[samples.primary].picked:
            raise LeftOutError("the samples may be along the second axis")
    recurrent = any(word in first for word in ("LSTM", "GRU", "RNN", "Transformer", "Attention"))
    found = Findings()
    found.at_most(
        "change of the outputs of other samples when one sample is replaced, over their size",
        mixed,
        limit,
        f"samples of a batch affect each other{first}: "
        + (
            "batch_first does not fit the order of the axes."
            if recurrent
            else "axes are mixed up (view or flatten across the batch, batch_first, softmax, transform "
            "or statistics over the batch)."
        ),
        "The first axis is the samples: batch_first=True for recurrent layers and attention; flatten "
        "from axis 1; transpose in place of view.",
        line,
    )
    if mixed <= limit:
        order = permutation(samples.number)
        every = torch.arange(samples.number)
        place, first, line = _differing(replay, samples, order, every, order, limit)
        found.at_most(
            "change of the outputs when the samples are put in another order, over their size",
            place,
            limit,
            f"the output of a sample depends on its place in the batch{first}: a table, mask or position "
            "is indexed along the samples, not along another axis (time).",
            "Look at what is added to or multiplied with the samples, and at its axis.",
            line,
        )
        if place <= limit:
            found.at_most(
                "relative change of the loss when samples and their targets are put in another order",
                change,
                limit,
                "the loss depends on the order of the samples, though each output belongs to one "
                "sample: outputs and targets are flattened or matched in different orders, so outputs "
                "meet the targets of others.",
            )
    return found


def _differing(
    replay: Replay, samples: Samples, index: Tensor, rows: Tensor, old_rows: Tensor, limit: float
) -> tuple[float, str, str]:
    """The largest difference of rows of a batch of other samples from the old rows that they should equal.

    Also the first module with one above the limit, and the line of the first call with one.
    """
    with torch.no_grad():
        env = replay.run(
            samples.reordered(replay, index) if len(rows) == samples.number else samples.roots(replay, index)
        )

    def change(key: int) -> float:
        old, new = replay.base.get(key), env.get(key)
        if old is None or new is None or not (old.is_floating_point() or old.is_complex()):
            return 0.0
        axis = _sample_axis(old, samples)
        if axis is None or old.shape != new.shape:
            return 0.0
        old = old.index_select(axis, old_rows.to(old.device))
        new = new.index_select(axis, rows.to(new.device))
        return size_of(new - old) / max(size_of(old), 1e-30)

    changes = [(change(one.key), one) for one in replay.tape.outputs]
    worst = max((value for value, one in changes if one.outermost), default=0.0)
    first = next((one for value, one in changes if value > limit), None)
    name = "" if first is None else f", first in {first.name or 'the network'} ({first.kind})"
    if worst <= limit:
        return worst, "", ""
    made = (call.where for call in replay.tape.calls if any(change(key) > limit for key in call.outs))
    return worst, name, next(made, "")


def chosen_samples(tape: Tape) -> Samples:
    """The samples along the first axis of the input, or the second one if the targets have that only."""
    try:
        return samples_of(tape)
    except LeftOutError as error:
        if "axis of samples" not in str(error):
            raise
        # Targets without the first axis of the input, but with its second: sequences first.
        return samples_of(tape, 1)


def _time_major(tape: Tape) -> Samples | None:
    try:
        return samples_of(tape, 1)
    except LeftOutError:
        return None


def usage_findings(tape: Tape, unread: Sequence[str]) -> list[Finding]:
    """The output depends on what varies in the inputs."""
    samples = chosen_samples(tape)
    replay = replay_of(tape)
    results = [one.key for one in tape.results]
    found = Findings()
    meaning = f"the network does not use {listed(unread)}."
    found.must_be_zero("inputs of the network that it does not use", len(unread), meaning)
    for key in tape.inputs:
        value = replay.roots[key]
        if key not in samples.axes or value.dtype == torch.bool:
            continue
        flat = value.movedim(samples.axes[key], 0).reshape(samples.number, -1)
        varying = (flat != flat[:1]).any(0)
        if not bool(varying.any()):
            continue
        if value.is_floating_point() or value.is_complex():
            effect = _effects(replay, key, samples, results)
            unused = float((varying & ~effect).sum() / varying.sum())
        else:
            unused = _column_effects(replay, key, samples, flat, results)
        found.at_most(
            f"share of the entries of an input {list(tape.roots[key].value.shape)} without any effect on "
            "the output",
            unused,
            _UNUSED,
            "a part of the input has no effect on the output of any sample: a mask is inverted or of "
            "another axis, or the network reads only some positions or features.",
        )
    return found


def _effects(replay: Replay, key: int, samples: Samples, results: Sequence[int]) -> Tensor:
    """Which entries of an input affect the outputs of some sample, by the gradient."""
    value = replay.roots[key].clone().requires_grad_(True)
    env = replay.run({key: value}, ends=results)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for one in results:
        out = env[one]
        if out.requires_grad:
            out = real_view(out)
            random = torch.randn(out.shape, generator=generator).to(out.device)
            total = total + (out.double() * random).sum().cpu()
    if not total.requires_grad:
        raise LeftOutError("the outputs have no gradient by the input")
    (g,) = torch.autograd.grad(total, [value], allow_unused=True)
    g = torch.zeros_like(value) if g is None else g
    rows = g.movedim(samples.axes[key], 0).reshape(samples.number, -1)
    return (rows != 0).any(0)


def _column_effects(
    replay: Replay, key: int, samples: Samples, flat: Tensor, results: Sequence[int]
) -> float:
    """Share of the columns of an integer input that may be exchanged without effect on any sample."""
    value = replay.roots[key]
    last = flat[:, -1]
    common = last.mode().values
    padded = float((last == common).double().mean()) > 0.3
    columns = torch.linspace(0, flat.shape[1] - 1, min(12, flat.shape[1])).round().long().unique().tolist()
    unused, tried = 0, 0
    for column in columns:
        new = flat.clone()
        old = flat[:, column]
        kept = (old == common) if padded else torch.zeros_like(old, dtype=torch.bool)
        others = old[~kept].unique()
        if len(others) < 2:
            continue
        places = torch.searchsorted(others, old.contiguous()).clamp_max(len(others) - 1)
        new[:, column] = torch.where(kept, old, others[(places + 1) % len(others)])
        moved = new.reshape(value.movedim(samples.axes[key], 0).shape).movedim(0, samples.axes[key])
        with torch.no_grad():
            env = replay.run({key: moved.contiguous()}, ends=results)
        tried += 1
        unused += all(torch.equal(env[one], replay.base[one]) for one in results)
    return unused / tried if tried else 0.0


def linear_findings(tape: Tape) -> list[Finding]:
    """A network of several layers is not linear."""
    replay = replay_of(tape)
    keys = [k for k in tape.inputs if replay.roots[k].is_floating_point() or replay.roots[k].is_complex()]
    results = [one.key for one in tape.results]
    used = [key for key in tape.weights if set(results) & tape.reached(key) and tape.weights[key].ndim > 1]
    if len(keys) != len(tape.inputs) or not keys or len(used) < 2:
        raise LeftOutError("the network has one layer, or inputs that are no numbers")
    generator = torch.Generator().manual_seed(0)
    change = {}
    for key in keys:
        value = replay.roots[key]
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        change[key] = 3 * size_of(value) * noise
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            env = replay.run({k: replay.roots[k] + sign * c for k, c in change.items()}, ends=results)
        values.append([env[one] for one in results])
    curved, moved = 0.0, 0.0
    for one, two, key in zip(*values, results, strict=True):
        if one.is_floating_point() or one.is_complex():
            curved = max(curved, size_of(one + two - 2 * replay.base[key]))
            moved = max(moved, size_of(one - two))
    return [
        at_least(
            "curvature of the network along a change of its input, over the change of its output",
            curved / moved if moved > 0 else 1.0,
            1e-9 if replay.double else 1e-4,
            f"the network is linear, though it has {len(used)} weight matrices: activations are missing.",
            "Put an activation, such as ReLU, between the layers.",
        )
    ]


def value_findings(tape: Tape) -> list[Finding]:
    """Targets vary where the loss uses them; no dropout on outputs, or of nearly everything."""
    replay = Replay(tape)
    maker = {key: call for call in tape.calls for key in call.outs}
    lost = 0
    for key in tape.targets:
        root = replay.roots[key]
        if root.is_complex() or bool((root == root.flatten()[0]).all()):
            continue
        copies = tape.copies(key)
        for call in tape.users(copies):
            for one in call.reads if not call.inside else ():
                value = replay.base.get(one)
                if one in copies and one != key and value is not None and value.numel() >= 8:
                    lost += bool((value == value.flatten()[0]).all())
    dropped = [
        one.name or "the network"
        for one in tape.results
        if one.key in maker
        and maker[one.key].name in _DROPOUT
        and dropout_rate(maker[one.key]) > 0
        and not goes_on(tape, one.key)
    ]
    rates = [dropout_rate(call) for call in tape.calls if call.name in _DROPOUT]
    found = Findings()
    found.must_be_zero(
        "targets that are the same for all samples where the loss uses them, though the data are not",
        lost,
        "the targets lose their values on the way to the loss (a cast to integers, a product with 0, a "
        "wrong comparison).",
    )
    meaning = f"dropout is applied to the output of {listed(dropped)}, which sets predictions to 0 at random."
    found.must_be_zero("outputs with dropout", len(dropped), meaning)
    meaning = "dropout removes nearly everything: the probability to keep was given for that to drop?"
    found.at_most("largest probability of dropout", max(rates, default=0.0), 0.8, meaning, "Use 0.1 to 0.5.")
    return found


def goes_on(tape: Tape, key: int) -> bool:
    """Whether weights are applied to what depends on a tensor."""
    reached = tape.reached(key)
    return any(reached & set(call.reads) and tape.weights.keys() & set(call.reads) for call in tape.calls)


def dropout_rate(call: Call) -> float:
    """The probability of a call of dropout; 0 in evaluation mode."""
    return float(call.kwargs.get("p", 0.5)) if call.kwargs.get("training", True) else 0.0


def target_findings(tape: Tape) -> list[Finding]:
    """The output does not see the target that it is to predict."""
    samples = chosen_samples(tape)
    replay = Replay(tape, lively(tape))
    found: list[Finding] = []
    for target in tape.targets:
        for key in tape.inputs:
            place = _copied(tape.roots[key].value, tape.roots[target].value, same=key == target)
            if place is None or key not in samples.axes:
                continue
            shift, axis = place
            seen = _sees(replay, key, shift, axis, samples)
            if seen is not None:
                found.append(seen)
    return found


def _copied(x: Tensor, y: Tensor, *, same: bool) -> tuple[int, int] | None:
    """By how many places, and along which axis, a target is the input shifted."""
    if x.ndim < 2 or y.ndim != x.ndim or x.dtype != y.dtype or x.is_complex() or len(x.unique()) < 3:
        return None
    for axis in (1, 0) if x.ndim == 2 else (1,):
        for shift in range(5):
            length = min(x.shape[axis] - shift, y.shape[axis])
            if length < 3 or (shift == 0 and not same and x.shape != y.shape):
                continue
            if shift and same:
                continue
            one, two = x.narrow(axis, shift, length), y.narrow(axis, 0, length)
            if one.shape == two.shape and float((one == two).double().mean()) > 0.95:
                return shift, axis
    return None


def _sees(replay: Replay, key: int, shift: int, axis: int, samples: Samples) -> Finding | None:
    """Whether the output at a place depends on the input at the place of its target."""
    value = replay.roots[key]
    steps = value.shape[axis]
    results = [
        one.key
        for one in replay.tape.results
        if replay.base[one.key].ndim >= 2
        and one.key in replay.tape.reached(key)
        and abs(replay.base[one.key].shape[axis] - steps) <= shift
    ]
    if not results or steps < 4 or samples.axes[key] == axis:
        return None
    place = steps // 2
    out = results[-1]
    limit = _CHANGED[False] / 100

    lines: list[str] = []

    def effect(changed: int, line: bool = False) -> float:
        new = value.clone()
        index = torch.arange(samples.number).roll(1)
        column = value.select(axis, changed)
        other = column.index_select(0, index.to(value.device))
        new.select(axis, changed).copy_(other)
        with torch.no_grad():
            env = replay.run({key: new}, ends=[out])
        for call in replay.tape.calls if line else ():
            for one in call.outs:
                old = replay.base.get(one)
                if one not in env or old is None or old.ndim < 3 or old.is_complex():
                    continue
                # A tensor with the places along one axis of three or more.
                axes = [a for a in range(1, old.ndim) if old.shape[a] == steps]
                moved = [size_of((env[one] - old).double().select(a, place)) for a in axes]
                if len(axes) == 1 and call.inside and moved[0] > limit * size_of(old.double()):
                    lines.append(call.where)
        return size_of((env[out] - replay.base[out]).select(axis, place)) / max(
            size_of(replay.base[out]), 1e-30
        )

    if shift:
        seen = effect(place + shift, line=True)
        return at_most(
            "change of the output at a place when the input at the place of its target changes",
            seen,
            limit,
            "the network sees the very target that it is to predict (the next token or value): the causal "
            "mask is missing or wrong, or the layer reads in both directions.",
            "Use a causal mask, a softmax over what is attended to, and no bidirectional layer.",
            lines[0] if lines else "",
        )
    causal = effect(place) > limit and effect(place + 1) <= limit
    return must_be_zero(
        "targets that are the input at the same place of a causal network",
        int(causal),
        "the target at each place is the input at the same place: targets are not shifted, so the network "
        "only learns to copy.",
        "Predict the next token: inputs [:, :-1], targets [:, 1:].",
    )


def bound_findings(tape: Tape) -> list[Finding]:
    """The loss does not fall ever faster as outputs move away."""
    replay = Replay(tape)
    outputs = [one.key for one in tape.results]
    if not outputs or tape.random:
        raise LeftOutError("the loss has no outputs of the network")
    given = {key: replay.base[key].detach().clone() for key in outputs}
    given = {
        key: v.requires_grad_(True) for key, v in given.items() if v.is_floating_point() or v.is_complex()
    }
    loss = replay.run(given=given)[tape.loss]
    if not loss.requires_grad:
        raise LeftOutError("the loss does not depend on the outputs")
    keys = list(given)
    slopes = dict(
        zip(keys, torch.autograd.grad(loss, [given[k] for k in keys], allow_unused=True), strict=True)
    )
    steepest, generator = 0.0, torch.Generator().manual_seed(0)
    for key, g in slopes.items():
        if g is None or not bool(g.any()):
            continue
        value = given[key].detach()
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        for direction in (-g / size_of(g), noise, -1j * noise.real if value.is_complex() else -noise):
            size = 10 * max(size_of(value), 1.0)
            one, two = (
                replay.value(given={key: value + factor * size * direction}) - replay.loss
                for factor in (10, 100)
            )
            if one < -abs(replay.loss) and math.isfinite(two) and two < 0:
                steepest = max(steepest, two / one)
    return [
        at_most(
            "growth of the fall of the loss over ten times the distance of the outputs",
            steepest,
            40.0,
            "the loss has no lower bound: it falls ever faster as outputs move away (a square that is "
            "negative: a wrong sign, or a complex square without modulus).",
            "Check signs, and take .abs() before the square of complex numbers.",
        )
    ]


def range_findings(tape: Tape) -> list[Finding]:
    """The last activation can reach the targets."""
    replay = Replay(tape)
    maker = {key: call for call in tape.calls for key in call.outs}

    shapes = names("squeeze unsqueeze view reshape flatten float contiguous clone __getitem__")
    found: list[Finding] = []
    for call in tape.calls:
        if call.name not in _COMPARED or call.inside or call.pure or len(call.reads) < 2:
            continue
        one, two = call.reads[:2]
        if one in tape.roots or (one in maker and maker[one].pure):
            one, two = two, one
        if not (two in tape.roots or (two in maker and maker[two].pure)) or one not in maker:
            continue
        last = maker.get(one)
        while last is not None and last.name in shapes and last.reads:
            last = maker.get(last.reads[0])
        y = replay.base.get(two, replay.roots.get(two))
        if last is not None and last.name in _RANGES and y is not None and y.is_floating_point():
            found.append(_reached(last.name, y))
    return found


def _reached(name: str, y: Tensor) -> Finding:
    """Whether an activation can reach some numbers."""
    low, high = _RANGES[name]
    margin = 0.05 * max(size_of(y), 1e-12)
    outside = float(((y < low - margin) | (y > high + margin)).double().mean())
    return at_most(
        "share of the targets that the output cannot reach",
        outside,
        0.02,
        f"the output ends with {name} and lies in {low:g} to {high:g}, but targets lie in "
        f"{float(y.min()):.3g} to {float(y.max()):.3g}.",
        "Remove the last activation, or scale the targets to its range.",
    )


_COMPARED = names("mse_loss l1_loss smooth_l1_loss huber_loss sub __sub__ __rsub__ rsub binary_cross_entropy")
_RANGES = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "relu_": (0.0, math.inf),
    "softplus": (0.0, math.inf),
}


def attempted(checks: Sequence[tuple[str, Callable[[], list[Finding]]]], text: str) -> Iterator[Report]:
    """A report of each check, or of why it is left out."""
    for tag, check in checks:
        try:
            yield report_of(tag, text, check())
        except LeftOutError as error:
            yield report_of(tag, f"left out: {error}")
        except ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            yield report_of(tag, f"left out: {reason}")


def exchange_findings(tape: Tape) -> list[Finding]:
    """The loss changes when targets (or weights of samples) are exchanged between samples."""
    samples = chosen_samples(tape)
    replay = replay_of(tape)
    limit = 1e-11 if replay.double else 1e-6
    inputs = set(tape.inputs)
    sorts = any(call.name in ("sort", "cdist", "topk", "argsort") for call in tape.calls)
    if sorts or any(tape.roots[key].kind != "data" for key in inputs):
        raise LeftOutError("the loss compares distributions, not samples")
    found = Findings()
    for key in tape.targets:
        value = replay.roots[key]
        axis = samples.axes.get(key)
        if key in inputs or axis is None:
            continue
        flat = value.movedim(axis, 0).flatten(1) if value.ndim > 1 else value[:, None]
        if bool((flat == flat[:1]).all()):
            continue
        order = permutation(samples.number)
        change = abs(replay.value(roots=samples.roots(replay, order, [key])) - replay.loss)
        where = next((call.where for call in tape.users(tape.copies(key))), "")
        found.at_least(
            "relative change of the loss when a target or weight is exchanged between samples",
            change / max(abs(replay.loss), 1e-12),
            limit,
            "the loss does not depend on which sample has which target or weight (a tensor of shape "
            f"{list(value.shape)}): shapes are broadcast, such as [N, 1] with [N], so every output meets "
            "every target, or means are taken before the comparison.",
            "Give both the same shape, such as with squeeze(1), and compare before any mean.",
            where,
        )
    return found


def tape_reports(tape: Tape, unread: Sequence[str]) -> list[Report]:
    """Checks of a loss before the training: each repeats it with other data."""
    checks = (
        ("BATCH", partial(mixing_findings, tape)),
        ("USAGE", partial(usage_findings, tape, unread)),
        ("TARGET", partial(target_findings, tape)),
        ("BOUND", partial(bound_findings, tape)),
        ("RANGE", partial(range_findings, tape)),
        ("LINEAR", partial(linear_findings, tape)),
        ("VALUES", partial(value_findings, tape)),
        ("EXCHANGE", partial(exchange_findings, tape)),
    )
    return list(attempted(checks, "the calculation of the loss, repeated with other data"))
