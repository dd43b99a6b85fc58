"""What happens inside a network: inputs, activations and gradients of its layers, measured with hooks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.report import Findings, listed
from rismusic.doctor.state import Hook, size_of
from rismusic.nn.monitors import Finding, at_most

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear, nn.RNNBase)
_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d)
_ACTIVATIONS = {"relu": "relu", "relu_": "relu", "tanh": "tanh", "sigmoid": "sigmoid"}
# Limits of the root mean square of the network's input. Beyond them, steps of the first weights are too
# large or too small.
_LARGEST_INPUT, _SMALLEST_INPUT = 30.0, 1e-3
# Ratio of the largest to the smallest standard deviation of the input's features.
_FEATURE_RATIO = 1e3
# Share of the units of a layer that are 0, or at a limit, for every sample.
_DEAD, _SATURATED = 0.9, 0.8
# Ratio of the relative gradients of the first and the last layer.
_VANISHING = 1e-5
# Factor by which the activations may grow from the first to the last layer with weights.
_GROWTH = 1e4
# Factor between the initial weights of layers of one kind, and fewest weights of one that is compared.
_ALIKE, _FEWEST = 5.0, 32
# Share of the weight matrices that may be 0 at the start.
_ZERO = 0.5


@dataclass
class LayerRecord:
    """Measurements of the layers in one forward pass, by name of the layer."""

    first: tuple[str, float, float] | None = None
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    output: Tensor | None = None
    weighted: list[str] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    normalised: bool = False

    def observe(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Observer of a :class:`~rismusic.doctor.calls.CallRecorder`: measures activations."""
        kind = _ACTIVATIONS.get(getattr(func, "__name__", ""))
        if kind is None or not self.path or not isinstance(result, Tensor):
            return
        name, value = self.path[-1], result.detach()
        if not value.is_floating_point() or value.ndim < 2 or value.shape[0] < 4 or not value.numel():
            return
        if kind == "relu":
            # A unit is a channel of a feature map, or an entry of a vector.
            flat = value.flatten(2).amax(2) if value.ndim > 3 else value.flatten(0, -2)
            if flat.shape[1] >= 4:
                share = float((flat == 0).all(0).double().mean())
                self.dead[name] = max(self.dead.get(name, 0.0), share)
            return
        # A single unit is an output, which may be near its limits: it counts if its gradient is lost.
        single = value.shape[1:].numel() == 1
        margin = 1e-6 if single else 0.01
        near = value.abs() > 1 - margin if kind == "tanh" else (value < margin) | (value > 1 - margin)
        if value.numel() >= (16 if single else 64):
            self.saturated[name] = max(self.saturated.get(name, 0.0), float(near.double().mean()))

    def growth_findings(self) -> list[Finding]:
        """The growth of the activations from the first to the last layer."""
        sizes = {name: size for name, size in self.sizes.items() if 0 < size < math.inf}
        if len(sizes) < 4:
            return []
        first, last = next(iter(sizes)), max(sizes, key=sizes.__getitem__)
        measured = sizes[last] / sizes[first]
        meaning = "the initial weights are too large: the activations grow from layer to layer."
        advice = "Use the default initialisation (standard deviation 1 / sqrt(inputs)), or normalisation."
        return [at_most(f"activations at {last} over those at {first}", measured, _GROWTH, meaning, advice)]

    def input_findings(self) -> list[Finding]:
        """Findings of the size of the input and of its features."""
        found = Findings()
        if self.first is not None and all(map(math.isfinite, self.first[1:])):
            name, size, ratio = self.first
            meaning = f"the input of {name} is not normalised: its values are of order {size:.0g}."
            advice = "Scale the inputs to mean 0 and standard deviation 1."
            what = f"root mean square of the network's input (at {name})"
            found.at_most(what, size, _LARGEST_INPUT, meaning, advice)
            meaning = f"the input of {name} is nearly 0: divided twice, or in another unit?"
            found.at_least(f"{what}, lower limit", size, _SMALLEST_INPUT, meaning, advice)
            found.at_most(
                "largest over smallest standard deviation of the input's features",
                ratio,
                _FEATURE_RATIO,
                "the features of the input have very different scales, so most are ignored at first.",
                "Scale each feature to mean 0 and standard deviation 1.",
            )
        return found

    def unit_findings(self) -> list[Finding]:
        """Findings of dead and saturated units."""
        found = Findings()
        if self.dead:
            name, share = max(self.dead.items(), key=lambda pair: pair[1])
            meaning = "the units are 0 for every sample (dead ReLU), and get no gradient."
            advice = "Lower the learning rate, check the bias, and scale the inputs."
            found.at_most(f"largest share of dead units ({name})", share, _DEAD, meaning, advice)
        if self.saturated:
            name, share = max(self.saturated.items(), key=lambda pair: pair[1])
            meaning = "the activations are at their limits (saturated), where the gradient vanishes."
            advice = "Use smaller initial weights, and scale the inputs."
            found.at_most(f"largest share of saturated units ({name})", share, _SATURATED, meaning, advice)
        return found


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, Mapping):
        value = vars(value)
    parts = value.values() if isinstance(value, Mapping) else value
    found = map(_first_tensor, parts if isinstance(value, (Mapping, list, tuple)) else ())
    return next((one for one in found if one is not None), None)


@contextmanager
def layer_record(module: nn.Module) -> Iterator[LayerRecord]:
    """Record the layers of the forward passes inside the context."""
    record, handles = LayerRecord(), []

    def before(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any) -> None:
            record.path.append(name)
            value = _first_tensor(given)
            if isinstance(part, (*_NORMS, nn.Embedding)) and record.first is None:
                record.normalised = True
            elif isinstance(part, _NORMS) and record.first and record.weighted == [record.first[0]]:
                # The size of the first layer's output does not matter.
                record.first = (record.first[0], 1.0, record.first[2])
            if not isinstance(part, _WEIGHTED):
                return
            if name not in record.weighted:
                record.weighted.append(name)
            # Inputs of 0 are no sample of the data.
            if value is not None and (record.first is None or record.first[:2] == (name, 0)):
                record.first = None if record.normalised else _input_size(name, value, part)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any, result: Any) -> None:
            record.path.pop()
            value = _first_tensor(result)
            if isinstance(part, _WEIGHTED) and value is not None and value.numel():
                record.sizes.setdefault(name, size_of(value))
            if not record.path and record.output is None:
                record.output = _first_tensor(result)

        return hook

    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(Hook(before(name or "the network"))))
        handles.append(part.register_forward_hook(Hook(after(name or "the network")), always_call=True))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _input_size(name: str, value: Tensor, part: nn.Module) -> tuple[str, float, float] | None:
    # A leaf with a gradient is data that the loss differentiates by.
    made = value.requires_grad and value.grad_fn is not None
    if not (value.is_floating_point() or value.is_complex()) or made or not value.numel():
        return None
    value = value.detach()
    size, ratio = size_of(value), 1.0
    if isinstance(part, nn.Linear) and value.numel() > value.shape[-1]:
        spread = value.flatten(0, -2).abs().double().std(0)
        spread = spread[spread > 0]
        if len(spread) > 1:
            ratio = float(spread.max() / spread.min())
    return name, size, ratio


def depth_findings(module: nn.Module, gradients: Mapping[str, Tensor], order: list[str]) -> list[Finding]:
    """Vanishing and exploding gradients: those of the first layers (in order) over the last ones."""
    weights = dict(module.named_parameters())
    sizes: dict[str, float] = {}
    for layer in order:
        parts = [n for n in gradients if n.rpartition(".")[0] == layer and weights[n].ndim > 1]
        if parts:
            g = math.sqrt(sum(float(gradients[n].abs().double().square().mean()) for n in parts))
            if g > 0:
                sizes[layer] = g
    names = list(sizes)
    if len(names) < 4:
        return []
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    early, late = min(first, key=sizes.__getitem__), max(second, key=sizes.__getitem__)
    largest, last = max(first, key=sizes.__getitem__), min(second, key=sizes.__getitem__)
    found = Findings()
    found.at_least(
        f"gradient of {early} over that of {late}",
        sizes[early] / sizes[late],
        _VANISHING,
        f"the gradient vanishes on its way to the first layers ({listed([early])}).",
        "Use ReLU or GELU in place of sigmoid or tanh, normalisation, skip connections, or larger weights.",
    )
    measured = sizes[largest] / sizes[last]
    meaning = "the gradient explodes on its way to the first layers."
    advice = "Use smaller initial weights, normalisation, or skip connections."
    found.at_most(f"gradient of {largest} over that of {last}", measured, 1 / _VANISHING, meaning, advice)
    return found


def initial_findings(module: nn.Module) -> list[Finding]:
    """Initial weights of 0, apart from single layers that start at 0 on purpose (heads, gates, residuals)."""
    matrices = {n: p for n, p in module.named_parameters() if p.requires_grad and p.ndim > 1}
    zero = [name for name, value in matrices.items() if not bool(value.detach().any())]
    drawn = {name: value.detach() for name, value in matrices.items() if len(value) > 1 and name not in zero}
    alike = [name for name, value in drawn.items() if bool((value == value[:1]).all())]
    if len(matrices) < 2:
        return []
    found = Findings()
    meaning = f"the initial weights of {listed(alike)} are the same for all units, so these learn the same."
    found.must_be_zero("weight matrices whose units are all alike at the start", len(alike), meaning)
    found.at_most(
        "share of the weight matrices that are 0 at the start",
        len(zero) / len(matrices),
        _ZERO,
        f"the initial weights of {listed(zero)} are 0: all units of a layer are alike, and do not learn "
        "different features.",
    )
    return [*found, *sibling_findings(drawn)]


def sibling_findings(weights: Mapping[str, Tensor]) -> list[Finding]:
    """Initial weights against those of layers of the same shape and place, such as other blocks or stages."""
    groups: dict[Any, dict[str, float]] = {}
    for name, value in weights.items():
        if value.numel() >= _FEWEST and (size := size_of(value)):
            groups.setdefault((re.sub(r"\d+", "#", name), value.shape), {})[name] = size
    found = Findings()
    for sizes in (one for one in groups.values() if len(one) > 1):
        middle = sorted(sizes.values())[(len(sizes) - 1) // 2]
        name = max(sizes, key=lambda name: abs(math.log(sizes[name] / middle)))
        factor, rest = sizes[name] / middle, listed([one for one in sizes if one != name])
        found.at_most(
            f"size of the initial {name} over that of {rest}, or the inverse",
            max(factor, 1 / factor),
            _ALIKE,
            f"the initial weights of {name} are {factor:.3g} times as large as those of {rest}, which "
            "have the same shape and place.",
            "Initialise layers of one kind alike, with a standard deviation by the number of inputs.",
        )
    return found


def without_gradient(sizes: Mapping[str, float]) -> list[str]:
    """Parameters whose gradient is 0; a bias that cancels, as in a distance of two outputs, does no harm."""

    def weight(name: str) -> float:
        return sizes.get(name.removesuffix("bias") + "weight", 0.0)

    return [
        name for name, size in sizes.items() if size == 0 and (not name.endswith("bias") or weight(name) == 0)
    ]


def update_ratio(change: Tensor, before: Tensor) -> float:
    """Size of an update over that of the weights; those that start at 0 count as 0.1 each."""
    size = float(torch.linalg.vector_norm(before.detach()))
    if size < 1e-3 * math.sqrt(before.numel()):
        size = 0.1 * math.sqrt(before.numel())
    return float(torch.linalg.vector_norm(change.detach())) / size
