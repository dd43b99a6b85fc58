"""Do two sets of samples come from one distribution? If not, what makes one of the other?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rismusic.doctor.state import row_codes
from rismusic.nn.monitors import Finding, at_most

# Fewest and most samples of each set, most features that are compared one by one, and most tokens.
_FEW, _MANY, _FEATURES, _TOKENS = 48, 1000, 64, 32
# Probability of a difference by chance, and distance of two distribution functions that matters.
_CHANCE, _DISTANCE = 1e-6, 0.3
# Distance of two distribution functions from which a change explains a shift.
_EXPLAINED = 0.2
# Quantile of the distances of nearest neighbours, from which a sample is far from a set.
_FAR = 0.95


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
    found |= {
        "the size of a sample": size,
        "its mean": flat.mean(1),
        "its share of zeros": (flat == 0).double().mean(1),
    }
    for axis in range(1, value.ndim):
        if value.shape[axis] >= 6:
            near = (
                value.narrow(axis, 1, value.shape[axis] - 1)
                * value.narrow(axis, 0, value.shape[axis] - 1).conj()
            )
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
                yield (
                    f"taken at every {step}. place along axis {axis}",
                    torch.cat((thin, thin.new_zeros(rest)), axis),
                )
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
    alike = [
        one for one in batches if other is not None and one.ndim == other.ndim and one.dtype == other.dtype
    ]
    if other is None or not alike:
        return []
    same = [one for one in alike if one.shape[1:] == other.shape[1:]]
    if not same:
        return []
    own = torch.cat(same)
    own = own[_first_places(row_codes(own))][:_MANY]
    new = other.detach()[:_MANY]
    seen, codes = set(row_codes(own).tolist()), row_codes(new)
    new = new[[n for n in _first_places(codes).tolist() if float(codes[n]) not in seen]]
    if min(len(own), len(new)) < _FEW:
        return []
    distance, text = shift(own, new)
    cause, noise = "", 1.5 * math.sqrt(1 / len(own) + 1 / len(new))
    if distance > _DISTANCE:
        for words, made in other_inputs(new):
            if shift(own, made, math.inf)[0] < min(_EXPLAINED + noise, distance / 2):
                cause = f" They have the same distribution if those of the validation are {words}."
                break
        else:
            for words, made in other_inputs(own):
                if shift(made, new, math.inf)[0] < min(_EXPLAINED + noise, distance / 2):
                    cause = f" They have the same distribution if those of the training are {words}."
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


def _first_places(codes: Tensor) -> Tensor:
    """Places of the rows that differ from all before."""
    first: dict[float, int] = {}
    for place, code in enumerate(codes.tolist()):
        first.setdefault(code, place)
    return torch.tensor(list(first.values()))


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
