"""Checks of a recorded loss against what it should be satisfied with, and what it should notice.

No check knows a kind of mistake. The outputs themselves, in place of the weights, are changed until the loss
is lowest: then they must be the targets. The targets of two samples are exchanged: then the loss must change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rismusic.doctor.report import must_be_zero, report_of
from rismusic.doctor.state import names
from rismusic.doctor.tape import Call, LeftOutError, Replay, Tape
from rismusic.doctor.tape_checks import (
    attempted,
    bound_findings,
    chosen_samples,
    goes_on,
    linear_findings,
    loss_usage_findings,
    mixing_findings,
    pair_findings,
    permutation,
    range_findings,
    replay_of,
    size_of,
    target_findings,
    usage_findings,
    value_findings,
)
from rismusic.nn.monitors import Finding, Report, at_least, at_most

# Steps in which the outputs themselves are changed, and their learning rate relative to their size.
_STEPS, _RATE = 200, 0.1
# Squared correlation of the best outputs with the targets, below which the loss does not ask for the targets.
_ASKED = 0.5
# Spread of the best outputs over that of the targets, below which they are all alike.
_EVEN = 0.2
# Lowest cross entropy that outputs can reach, over that of equal probabilities.
_FLOOR = 0.6
# Arithmetic in which a number counts, not a label.
_ARITHMETIC = names(
    "add sub rsub mul div true_divide __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ "
    "mse_loss l1_loss smooth_l1_loss huber_loss"
)
# Calls through which a number stays one.
_NUMBERS = _ARITHMETIC | names("float double to type_as view reshape squeeze unsqueeze flatten detach clone")


def tape_reports(tape: Tape, unread: Sequence[str]) -> list[Report]:
    """Checks of a loss before the training: each repeats it with other data.

    Args:
        tape: the loss.
        unread: inputs that the network does not use.
    """
    checks = (
        ("BATCH", partial(mixing_findings, tape)),
        ("USAGE", partial(usage_findings, tape, unread)),
        ("TARGET", partial(target_findings, tape)),
        ("BOUND", partial(bound_findings, tape)),
        ("RANGE", partial(range_findings, tape)),
        ("USAGE", partial(loss_usage_findings, tape)),
        ("PAIRS", partial(pair_findings, tape)),
        ("LINEAR", partial(linear_findings, tape)),
        ("VALUES", partial(value_findings, tape)),
        ("EXCHANGE", partial(exchange_findings, tape)),
        ("SATISFIED", partial(satisfied_findings, tape)),
        ("NUMBERS", partial(number_findings, tape)),
        ("DERIVATIVE", partial(derivative_findings, tape)),
    )
    text = "the calculation of the loss, repeated with other data"
    return [
        report_of(tag, f"left out: {reason}" if reason else text, findings)
        for tag, findings, reason in attempted(checks)
    ]


def left_out_value(tape: Tape) -> float | None:
    """The value of the targets at all places whose outputs have no effect on the loss, and at these only."""
    replay = Replay(tape)
    given = {one.key: replay.base[one.key].detach().clone() for one in tape.results}
    given = {k: v.requires_grad_(True) for k, v in given.items() if v.is_floating_point()}
    if not given or any(call.func is torch.autograd.grad for call in tape.calls):
        return None
    loss = replay.run(given=given)[tape.loss]
    slopes = torch.autograd.grad(loss, list(given.values()), allow_unused=True) if loss.requires_grad else ()
    for g in slopes:
        for y in [replay.base[key].flatten() for key in _compared(tape)]:
            if g is None or g.ndim < 2 or y.is_complex() or len(y.unique()) < 3:
                continue
            effects = [(g != 0).any(axis).flatten() for axis in (-1, 1)] + [(g != 0).flatten()]
            used = next((one for one in effects if one.shape == y.shape and not bool(one.all())), y == y)
            unused = y[~used]
            # Each other value counts at all its places.
            alike = len(unused) > 1 and bool((unused == unused[0]).all())
            if alike and len(unused) == int((y == unused[0]).sum()):
                return float(unused[0])
    return None


def derivative_findings(tape: Tape) -> list[Finding]:
    """Derivatives of a network in its loss have a gradient themselves, and are not 0 everywhere."""
    calls = [call for call in tape.calls if call.func is torch.autograd.grad and call.grad]
    if not calls:
        raise LeftOutError("the loss has no derivatives of the network")
    replay = Replay(tape)
    cut, zero = [], []
    for call in calls:
        values = [replay.base[key] for key in call.outs if key in replay.base]
        if not any(bool(value.any()) for value in values):
            zero.append(call)
        # One that only changes the input of the network, as an adversarial example, needs no graph.
        if not call.kwargs.get("create_graph", False) and _reaches_alone(tape, call):
            cut.append(call)
    return [
        must_be_zero(
            "derivatives in the loss without a graph",
            len(cut),
            "a derivative of the network is used in the loss, but has no gradient by the weights, so this "
            "term teaches nothing: create_graph is missing.",
            "Call torch.autograd.grad(..., create_graph=True).",
            cut[0].where if cut else "",
        ),
        must_be_zero(
            "derivatives in the loss that are 0 for all inputs",
            len(zero),
            "a derivative of the network in the loss is 0 everywhere: the activations have no such "
            "derivative (the second one of ReLU is 0).",
            "Use smooth activations, such as tanh, SiLU or sine.",
            zero[0].where if zero else "",
        ),
    ]


def _reaches_alone(tape: Tape, start: Call) -> bool:
    """Whether the result of a call reaches the loss without a call that has weights."""
    found = set(start.outs)
    for call in tape.calls[tape.calls.index(start) + 1 :]:
        if any(key in found for key in call.reads) and not any(key in tape.weights for key in call.reads):
            found.update(call.outs)
    return tape.loss in found


def exchange_findings(tape: Tape) -> list[Finding]:
    """The loss changes when targets (or weights of samples) are exchanged between samples."""
    samples = chosen_samples(tape)
    replay = replay_of(tape)
    limit = 1e-11 if replay.double else 1e-6
    inputs = set(tape.inputs)
    if any(tape.roots[key].kind != "data" for key in inputs) or _compares_distributions(tape):
        raise LeftOutError("the loss compares distributions, not samples")
    found = []
    for key in tape.targets:
        value = replay.roots[key]
        axis = samples.axes.get(key)
        if key in inputs or axis is None:
            continue
        flat = value.movedim(axis, 0).flatten(1) if value.ndim > 1 else value[:, None]
        if bool((flat == flat[:1]).all()):
            continue
        if value.is_complex() and float(value.abs().std()) > 0.1 * size_of(value):
            generator = torch.Generator().manual_seed(0)
            factor = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
            scaled = value * factor.to(value.device, value.real.dtype)
            found.append(
                at_least(
                    "relative change of the loss when the moduli of complex targets change",
                    abs(replay.value(roots={key: scaled}) - replay.loss) / max(abs(replay.loss), 1e-12),
                    1e-5,
                    "the loss compares angles alone: the moduli of the complex targets do not count, and "
                    "angles of pi and -pi are taken for far apart.",
                    "Compare complex numbers directly: (output - target).abs().square().mean().",
                )
            )
        order = permutation(samples.number)
        change = abs(replay.value(roots=samples.roots(replay, order, [key])) - replay.loss)
        user = next((call for call in tape.calls if _first_use(tape, call, key)), None)
        found.append(
            at_least(
                "relative change of the loss when a target or weight is exchanged between samples",
                change / max(abs(replay.loss), 1e-12),
                limit,
                "the loss does not depend on which sample has which target or weight (a tensor of shape "
                f"{list(value.shape)}): shapes are broadcast, such as [N, 1] with [N], so every output meets "
                "every target, or means are taken before the comparison.",
                "Give both the same shape, such as with squeeze(1), and compare before any mean.",
                user.where if user is not None else "",
            )
        )
    return found


def _first_use(tape: Tape, call: Call, key: int) -> bool:
    """Whether a call is the first that uses a tensor with outputs."""
    pure = {key}
    for one in tape.calls:
        if one.pure and any(k in pure for k in one.reads):
            pure.update(one.outs)
    return not call.pure and any(k in pure for k in call.reads)


def _compares_distributions(tape: Tape) -> bool:
    return any(call.name in ("sort", "cdist", "topk", "argsort") for call in tape.calls)


def number_findings(tape: Tape) -> list[Finding]:
    """Positions (the index of a maximum) do not count as values in the loss."""
    replay = Replay(tape)
    keys = [key for key, root in tape.roots.items() if root.kind == "decision"]
    keys += [key for call in tape.calls for key in call.outs if not call.pure]
    wrong = ""
    for key in keys:
        value = replay.base[key]
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if not whole or value.numel() < 2 or int(value.max()) < 2:
            continue
        numbers = {key}
        for call in tape.calls:
            if any(one in numbers for one in call.reads) and call.name in _NUMBERS:
                if not call.pure and call.name in _ARITHMETIC and not call.inside:
                    wrong = wrong or call.where
                numbers.update(call.outs)
    return [
        must_be_zero(
            "positions that the loss uses as values",
            int(bool(wrong)),
            "the loss calculates with positions (the index of a maximum, such as max(1)[1] or argmax) as if "
            "they were values.",
            "Take the value, max(1)[0] or amax(1), and use indices for indexing only.",
            wrong,
        )
    ]


def satisfied_findings(tape: Tape) -> list[Finding]:
    """The outputs at which the loss is lowest are the targets, and the loss can fall far."""
    keys = _free(tape)
    replay = Replay(tape)
    best, touched = _best_outputs(replay, keys)
    env = {key: value.detach() for key, value in replay.run(given=best).items()}
    found = [*_range_findings(replay, env)]
    for target in _compared(tape):
        y = replay.base[target]
        if y.dtype == torch.bool or not (y.is_floating_point() or y.is_complex()) or y.numel() < 16:
            continue
        if bool((y == y.flatten()[0]).all()):
            continue
        if not _moves_the_best(replay, best, target):
            continue
        alike = [k for k in keys if best[k].numel() == y.numel() and best[k].is_complex() == y.is_complex()]
        # Two labels say a direction whatever their coding, such as 1 for pairs whose distance is to be 0.
        signs = (1, -1) if not y.is_complex() and len(y.unique()) == 2 else (1,)
        fits = {
            key: max(_correlation(best[key], sign * y, touched[key]) for sign in signs)
            for key in alike
            if bool(touched[key].any())
        }
        if not fits:
            continue
        key = max(fits, key=fits.__getitem__)
        found.append(
            at_least(
                "squared correlation of the targets with the outputs at which the loss is lowest",
                fits[key],
                _ASKED,
                "the loss is lowest for outputs that are not the targets"
                f"{_asked(best[key], y, touched[key])}.",
                "Compare output and target directly, entry by entry. Look at signs, abs(), real and means.",
            )
        )
    return found


def _compared(tape: Tape) -> list[int]:
    """Tensors of data as they are when they first meet outputs outside the modules."""
    data = {key for key, root in tape.roots.items() if root.kind == "data"}
    inside = {one.key for one in tape.results}
    found: dict[int, None] = {}
    for call in tape.calls:
        if call.pure and any(key in data for key in call.reads):
            data.update(call.outs)
        elif not call.pure and not call.inside and not inside & set(call.outs):
            found.update(dict.fromkeys(key for key in call.reads if key in data))
    return list(found)


def _free(tape: Tape) -> list[int]:
    """Outputs that reach the loss without further weights."""
    if tape.random:
        raise LeftOutError("the loss draws numbers that depend on the network")
    keys = [one.key for one in tape.results if not goes_on(tape, one.key)]
    if not keys:
        raise LeftOutError("no output reaches the loss without further weights")
    return keys


def _best_outputs(replay: Replay, keys: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Outputs that minimise the loss, and which of their numbers have a gradient."""
    given = {key: replay.base[key].detach().clone() for key in keys}
    free = {
        key: value.requires_grad_(True)
        for key, value in given.items()
        if value.is_floating_point() or value.is_complex()
    }
    scale = max([size_of(value) for value in free.values()] or [0.0])
    if not free or not math.isfinite(scale):
        raise LeftOutError("the loss has no outputs of the network")
    targets = [replay.base[key] for key in _compared(replay.tape)]
    reach = max([size_of(y) for y in targets if y.is_floating_point() or y.is_complex()] or [0.0])
    optimizer = torch.optim.Adam(list(free.values()), lr=_RATE * max(scale, min(reach, 1e3), 0.3))
    touched = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in free.items()}
    for step in range(_STEPS):
        if step in (_STEPS // 2, 3 * _STEPS // 4):
            optimizer.param_groups[0]["lr"] /= 5
        optimizer.zero_grad()
        loss = replay.run(given=free)[replay.tape.loss]
        if not loss.requires_grad or not math.isfinite(float(loss.detach())):
            raise LeftOutError("the loss does not depend on the outputs alone")
        loss.backward()
        for key, value in free.items():
            if value.grad is not None:
                touched[key] |= value.grad != 0
        optimizer.step()
    return {key: value.detach() for key, value in free.items()}, touched


def _moves_the_best(replay: Replay, best: dict[int, Tensor], target: int) -> bool:
    """Whether the best outputs depend on a tensor, as on targets, and not only the size of the loss does."""

    def effect(outputs: dict[int, Tensor]) -> float:
        y = replay.base[target].clone().requires_grad_(True)
        free = {key: value.clone().requires_grad_(True) for key, value in outputs.items()}
        loss = replay.run(given={**free, target: y})[replay.tape.loss]
        slopes = torch.autograd.grad(loss, list(free.values()), create_graph=True, allow_unused=True)
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros((), dtype=torch.float64)
        for g in slopes:
            if g is not None and g.requires_grad:
                g = torch.view_as_real(g) if g.is_complex() else g
                noise = torch.randn(g.shape, generator=generator).to(g.device)
                total = total + (g.double() * noise * (g.detach() != 0)).sum().cpu()
        if not total.requires_grad:
            return math.nan
        (h,) = torch.autograd.grad(total, [y], allow_unused=True)
        return math.nan if h is None else size_of(h)

    first, last = effect({key: replay.base[key].detach() for key in best}), effect(best)
    return math.isnan(first) or first == 0 or last > 0.1 * first


def _range_findings(replay: Replay, best: dict[int, Tensor]) -> list[Finding]:
    """Cross entropies can fall far below that of equal probabilities."""
    found = []
    for call in replay.tape.calls:
        if call.name != "cross_entropy" or call.kwargs.get("reduction", "mean") != "mean" or not call.outs:
            continue
        logits = replay.base.get(call.reads[0])
        labels = replay.base.get(call.reads[-1]) if call.reads else None
        if logits is None or labels is None or labels.is_floating_point() or logits.ndim < 2:
            continue
        if call.kwargs.get("weight") is not None or call.kwargs.get("label_smoothing", 0.0) > 0.2:
            continue
        lowest, even = float(best[call.outs[0]]), math.log(logits.shape[1])
        found.append(
            at_most(
                "lowest cross entropy that any output can reach, over that of equal probabilities",
                lowest / even,
                _FLOOR,
                f"whatever the outputs, the cross entropy stays near that of a guess ({lowest:.3g} of "
                f"{even:.3g}): the logits cannot get large (a temperature multiplied in place of divided, a "
                "normalisation, a softmax or sigmoid before the loss).",
                "Pass logits without bounds, or divide similarities by a temperature of 0.05 to 0.5.",
                call.where,
            )
        )
    return found


def _asked(x: Tensor, y: Tensor, used: Tensor) -> str:
    """What the loss asks for in place of the targets."""
    candidates = {
        ", but their opposite (a sign, or a similarity for an error)": _correlation(x, -y, used),
        ", but have their modulus only (the phase or sign is lost)": _correlation(x.abs(), y.abs(), used),
        ", but have their real part only": _correlation(x.real, y.real, used),
    }
    if y.ndim > 1 and x.shape[: y.ndim] == y.shape:
        other = y.transpose(0, 1).reshape(y.shape)
        candidates[", but the targets in another order of the axes"] = _correlation(x, other, used)
    spread = size_of(x - x.mean()) / max(size_of(y - y.mean()), 1e-30)
    even = ", but nearly the same for all samples (their mean)"
    name = max(candidates, key=candidates.__getitem__)
    if candidates[name] > _ASKED:
        return name
    return even if spread < _EVEN else ": a part of them is lost before they are compared"


def _correlation(x: Tensor, y: Tensor, used: Tensor) -> float:
    """Squared correlation of ranks (of real numbers), or of complex numbers; 0 if it is negative."""
    x, y, used = x.flatten(), y.flatten(), used.flatten()
    x, y = x[used].detach(), y[used].detach()
    if not x.is_complex():
        x, y = _ranks(x), _ranks(y)
    x, y = x - x.mean(), y - y.mean()
    # Equal ranks, as of labels, limit what numbers in the same order can reach.
    most = x.norm() * y.norm() if x.is_complex() else (x.sort().values * y.sort().values).sum()
    product = (x.conj() * y).sum() / most.clamp_min(1e-300)
    return max(float(product.real), 0.0) ** 2


def _ranks(x: Tensor) -> Tensor:
    """The mean rank of each number among all."""
    _, places, counts = x.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - counts / 2)[places]
