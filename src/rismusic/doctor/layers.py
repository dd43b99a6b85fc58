"""What happens inside a network: inputs, activations and gradients of its layers, measured with hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rismusic.doctor.report import listed, must_be_zero
from rismusic.doctor.state import Hook
from rismusic.nn.monitors import Finding, at_least, at_most

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
# Distance of inputs from fixed statistics that other data do not explain.
_OFF = 4.0
# Factor by which the activations may grow from the first to the last layer with weights.
_GROWTH = 1e4
# Share of the weight matrices that may be 0 at the start.
_ZERO = 0.5


@dataclass
class LayerRecord:
    """Measurements of the layers in one forward pass.

    Args:
        first: name, root mean square of the input, and ratio of its features' scales, of the first layer with
            weights.
        dead: share of dead units of each rectifier.
        saturated: share of saturated outputs of each saturating activation.
        output: first tensor of the outermost module's output.
        weighted: names of the layers with weights, in the order of their first call.
        sizes: root mean square of the output of each of these layers at its first call.
        repeated: layers both halves of whose input are the same.
        off: how far the inputs of each normalisation with fixed statistics are from these.
    """

    first: tuple[str, float, float] | None = None
    dead: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, float] = field(default_factory=dict)
    output: Tensor | None = None
    weighted: list[str] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    repeated: dict[str, None] = field(default_factory=dict)
    off: dict[str, float] = field(default_factory=dict)
    normalised: bool = False

    def observe(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Observer of a :class:`~rismusic.doctor.calls.CallRecorder`: measures activations."""
        kind = _ACTIVATIONS.get(getattr(func, "__name__", ""))
        if kind is not None and self.path and isinstance(result, Tensor):
            self.see_activation(self.path[-1], kind, result)

    def see_activation(self, name: str, kind: str, value: Tensor) -> None:
        """Measure an activation, ``relu``, ``tanh`` or ``sigmoid``."""
        if not value.is_floating_point() or value.ndim < 2 or value.shape[0] < 4 or not value.numel():
            return
        value = value.detach()
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
        return [
            at_most(
                f"activations at {last} over those at {first}",
                sizes[last] / sizes[first],
                _GROWTH,
                "the initial weights are too large: the activations grow from layer to layer.",
                "Use the default initialisation (standard deviation 1 / sqrt(inputs)), or normalisation.",
            )
        ]

    def input_findings(self) -> list[Finding]:
        """Findings of the size of the input and of its features."""
        found: list[Finding] = []
        if self.first is not None and all(map(math.isfinite, self.first[1:])):
            name, size, ratio = self.first
            found += [
                at_most(
                    f"root mean square of the network's input (at {name})",
                    size,
                    _LARGEST_INPUT,
                    f"the input of {name} is not normalised: its values are of order {size:.0g}.",
                    "Scale the inputs to mean 0 and standard deviation 1.",
                ),
                at_least(
                    f"root mean square of the network's input (at {name}), lower limit",
                    size,
                    _SMALLEST_INPUT,
                    f"the input of {name} is nearly 0: divided twice, or in another unit?",
                    "Scale the inputs to mean 0 and standard deviation 1.",
                ),
                at_most(
                    "largest over smallest standard deviation of the input's features",
                    ratio,
                    _FEATURE_RATIO,
                    "the features of the input have very different scales, so most are ignored at first.",
                    "Scale each feature to mean 0 and standard deviation 1.",
                ),
            ]
        return found

    def statistics_findings(self) -> list[Finding]:
        """Findings of repeated features, and of normalisations with fixed statistics."""
        name = max(self.off, key=self.off.__getitem__, default="")
        found = [
            must_be_zero(
                "layers that get the same features twice",
                len(self.repeated),
                f"both halves of the input of {listed(list(self.repeated))} are the same: a tensor is "
                "concatenated with itself, and another one (a skip connection, the other direction) is not "
                "used.",
            )
        ]
        if name:
            found.append(
                at_most(
                    f"distance of the inputs of {name} from its fixed statistics, in standard deviations or "
                    "as a ratio of variances",
                    self.off[name],
                    _OFF,
                    f"the inputs of {name} do not fit the statistics that it was trained with: the data are "
                    "scaled otherwise than in the pretraining, or the weights before it are others.",
                    "Scale the data as in the pretraining, or train the statistics (train(), not eval()).",
                )
            )
        return found

    def unit_findings(self) -> list[Finding]:
        """Findings of dead and saturated units."""
        found: list[Finding] = []
        for what, shares, limit, meaning, advice in (
            (
                "dead",
                self.dead,
                _DEAD,
                "the units are 0 for every sample (dead ReLU), and get no gradient.",
                "Lower the learning rate, check the bias, and scale the inputs.",
            ),
            (
                "saturated",
                self.saturated,
                _SATURATED,
                "the activations are at their limits (saturated), where the gradient vanishes.",
                "Use smaller initial weights, and scale the inputs.",
            ),
        ):
            if shares:
                name = max(shares, key=shares.__getitem__)
                found.append(
                    at_most(f"largest share of {what} units ({name})", shares[name], limit, meaning, advice)
                )
        return found


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    for part in parts:
        found = _first_tensor(part)
        if found is not None:
            return found
    return _first_tensor(vars(value)) if hasattr(value, "__dataclass_fields__") else None


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
            elif (
                isinstance(part, _NORMS) and record.first is not None and record.weighted == [record.first[0]]
            ):
                # The size of the first layer's output does not matter.
                record.first = (record.first[0], 1.0, record.first[2])
            fixed = isinstance(part, nn.modules.batchnorm._BatchNorm) and not part.training
            if fixed and value is not None and value.ndim > 1 and torch.is_grad_enabled():
                record.off[name] = max(record.off.get(name, 0.0), _distance_of_statistics(part, value))
            if not isinstance(part, _WEIGHTED):
                return
            if value is not None and value.requires_grad and _repeats(value, part):
                record.repeated.setdefault(name)
            if name not in record.weighted:
                record.weighted.append(name)
            if value is not None and (
                record.first is None or (record.first[0] == name and record.first[1] == 0)
            ):
                # Inputs of 0 are no sample of the data.
                record.first = None if record.normalised else _input_size(name, value, part)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any, result: Any) -> None:
            record.path.pop()
            value = _first_tensor(result)
            if isinstance(part, _WEIGHTED) and value is not None and value.numel():
                size = float(value.detach().abs().double().square().mean().sqrt())
                record.sizes.setdefault(name, size)
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


def _distance_of_statistics(part: Any, value: Tensor) -> float:
    """Mean (in standard deviations) and variance (as a ratio) of an input against fixed statistics."""
    axes = [0, *range(2, value.ndim)]
    if value.numel() // value.shape[1] < 16 or part.running_var is None or part.running_mean is None:
        return 0.0
    mean, variance = value.detach().mean(axes), value.detach().var(axes) + part.eps
    shift = ((mean - part.running_mean).square() / (part.running_var + part.eps)).mean().sqrt()
    ratio = float((variance / (part.running_var + part.eps)).median())
    return max(float(shift), ratio, 1 / max(ratio, 1e-12))


def _repeats(value: Tensor, part: nn.Module) -> bool:
    """Whether both halves of the features of an input are the same, and not 0."""
    axis = 1 if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else value.ndim - 1
    if value.ndim < 2 or value.shape[axis] % 2 or value.shape[axis] < 4:
        return False
    one, two = value.detach().chunk(2, axis)
    return torch.equal(one, two) and bool((one != one.flatten()[0]).any())


def _input_size(name: str, value: Tensor, part: nn.Module) -> tuple[str, float, float] | None:
    # A leaf with a gradient is data that the loss differentiates by.
    made = value.requires_grad and value.grad_fn is not None
    if not (value.is_floating_point() or value.is_complex()) or made or not value.numel():
        return None
    value = value.detach()
    size = float(value.abs().double().square().mean().sqrt())
    ratio = 1.0
    if isinstance(part, nn.Linear) and value.numel() > value.shape[-1]:
        spread = value.flatten(0, -2).abs().double().std(0)
        spread = spread[spread > 0]
        if len(spread) > 1:
            ratio = float(spread.max() / spread.min())
    return name, size, ratio


def depth_findings(module: nn.Module, gradients: Mapping[str, Tensor], order: list[str]) -> list[Finding]:
    """Vanishing and exploding gradients: those of the first layers over those of the last ones.

    Args:
        module: the network.
        gradients: by name of the parameter.
        order: names of the layers with weights in the order of their calls.
    """
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
    half = len(names) // 2
    early = min(names[:half], key=sizes.__getitem__)
    late = max(names[half:], key=sizes.__getitem__)
    largest, last = max(names[:half], key=sizes.__getitem__), min(names[half:], key=sizes.__getitem__)
    return [
        at_least(
            f"gradient of {early} over that of {late}",
            sizes[early] / sizes[late],
            _VANISHING,
            f"the gradient vanishes on its way to the first layers ({listed([early])}).",
            "Use ReLU or GELU in place of sigmoid or tanh, normalisation, skip connections, or larger "
            "weights.",
        ),
        at_most(
            f"gradient of {largest} over that of {last}",
            sizes[largest] / sizes[last],
            1 / _VANISHING,
            "the gradient explodes on its way to the first layers.",
            "Use smaller initial weights, normalisation, or skip connections.",
        ),
    ]


def initial_findings(module: nn.Module) -> list[Finding]:
    """Initial weights of 0, apart from single layers that start at 0 on purpose (heads, gates, residuals)."""
    matrices = {n: p for n, p in module.named_parameters() if p.requires_grad and p.ndim > 1}
    zero = [name for name, value in matrices.items() if not bool(value.detach().any())]
    alike = [
        name
        for name, value in matrices.items()
        if len(value) > 1
        and bool(value.detach().any())
        and bool((value.detach() == value.detach()[:1]).all())
    ]
    places: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if any(True for _ in part.parameters(recurse=False)):
            places.setdefault(id(part), []).append(name)
    repeated = [names for names in places.values() if len(names) > 1]
    raw = _as_initialised(module)
    loaded = [
        must_be_zero(
            "frozen layers with the weights of an initialisation",
            len(raw),
            f"the frozen weights of {listed(raw)} look as they are drawn at the start, not trained: a "
            "checkpoint was not loaded (its names do not match, and strict=False hides that), or loaded "
            "into another model.",
            "Look at what load_state_dict returns (missing_keys, unexpected_keys), or use strict=True.",
        )
    ]
    if len(matrices) < 2:
        return loaded
    return [
        *loaded,
        must_be_zero(
            "weight matrices whose units are all alike at the start",
            len(alike),
            f"the initial weights of {listed(alike)} are the same for all units, so these learn the same.",
        ),
        must_be_zero(
            "layers that are in several places of the network",
            len(repeated),
            f"{listed(repeated[0]) if repeated else ''} are one and the same layer, not copies, so they "
            "share their weights.",
        ),
        at_most(
            "share of the weight matrices that are 0 at the start",
            len(zero) / len(matrices),
            _ZERO,
            f"the initial weights of {listed(zero)} are 0: all units of a layer are alike, and do not learn "
            "different features.",
        ),
    ]


def _as_initialised(module: nn.Module) -> list[str]:
    """Frozen layers whose weights are uniform within the limits of torch's initialisation; all, or none.

    Normalisations that have never seen a batch say that these are no random features on purpose.
    """
    fresh = [
        part.num_batches_tracked == 0
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.num_batches_tracked is not None
    ]
    if not fresh or not all(map(bool, fresh)):
        return []
    found, frozen = [], 0
    for name, part in module.named_modules():
        if not isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)) or part.weight.requires_grad:
            continue
        weight, frozen = part.weight.detach().double().flatten(), frozen + 1
        bound = 1 / math.sqrt(part.weight[0].numel())
        # The variance of a uniform distribution, within five standard errors.
        off = abs(float(weight.square().mean()) / bound**2 - 1 / 3) / (0.298 / math.sqrt(len(weight)))
        if len(weight) >= 64 and float(weight.abs().max()) <= bound * (1 + 1e-6) and off < 5:
            found.append(name)
    return found if len(found) == frozen else []


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
