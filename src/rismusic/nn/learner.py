"""What is not finite in a batch: found without waiting for the device, and put aside.

A NaN that reaches an eigenvalue solver ends the training with an error of the solver. So the numbers of such
a batch are set to 1 before the losses see them, and the losses to NaN after: the step is skipped and counted.

A network that learns: its optimizer, the moving average of its weights, and one step of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.func import functional_call

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.io import Recording
from rismusic.nn.checkpoint import optimizer_tensors, restore_optimizer
from rismusic.nn.data import channel_dropout
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.losses import Losses, Targets, total_loss
from rismusic.nn.network import Prediction, build_network
from rismusic.nn.schedules import learning_rate_factor
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.simulation.random_numbers import Draws

Held = TypeVar("Held", Recording, Prediction)


def finite(held: Recording | Prediction) -> dict[str, Bool[Tensor, ""]]:
    """Of each tensor of a recording (but for its truth) or prediction: whether all numbers are finite."""
    return {name: value.isfinite().all() for name, value in _tensors(held).items()}


def all_finite(*held: Recording | Prediction) -> Bool[Tensor, ""]:
    """Whether all numbers of all of them are finite."""
    return torch.stack([flag for each in held for flag in finite(each).values()]).all()


def put_aside(held: Held, whole: Bool[Tensor, ""]) -> Held:
    """The same where ``whole``, else with 1 for every number."""
    changed: dict[str, Any] = {
        name: torch.where(whole, value, torch.ones_like(value)) for name, value in _tensors(held).items()
    }
    return replace(held, **changed)


def marked(losses: Losses, whole: Bool[Tensor, ""]) -> Losses:
    """The same where ``whole``, else with NaN for every loss."""

    def mark(value: Tensor) -> Tensor:
        return torch.where(whole, value, torch.nan)

    return replace(
        losses,
        total=mark(losses.total),
        terms={name: mark(value) for name, value in losses.terms.items()},
        oracle={name: mark(value) for name, value in losses.oracle.items()},
    )


def _tensors(held: Recording | Prediction) -> dict[str, Tensor]:
    named = {field.name: getattr(held, field.name) for field in fields(held) if field.name != "elements"}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


GROUPS = ("backbone", "head")


class Learner:
    """What a training changes.

    Args:
        spec: all settings.
        group: the processes and the device.

    Raises:
        InputError: a batch that the processes cannot share evenly.
    """

    def __init__(self, spec: TrainSpec, group: ProcessGroup | None = None) -> None:
        self.spec, self.group = spec, group or ProcessGroup()
        device = self.group.device
        if spec.batch % self.group.world:
            raise InputError("batch", f"a multiple of the {self.group.world} processes", str(spec.batch))
        volume = Volume.from_scene(spec.system.scene)
        panel = Panel.from_spec(spec.system.panel).to(device)
        self.grid = SearchGrid.cover(panel, volume, spec.network.oversampling)
        generator = torch.Generator().manual_seed(spec.seed)
        self.network = build_network(spec.network, self.grid, generator).to(device)
        self.weights = dict(self.network.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        # Fused: it leaves the weights as they are where ``found_inf`` says so, without asking the host.
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)
        dtype = precision_on(device, spec.precision)
        self.precision = None if dtype == torch.float32 else dtype
        self._set_precision(self.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        steps = spec.steps_per_epoch * spec.schedule.epochs
        factors = [learning_rate_factor(spec.schedule, i, steps) for i in range(steps)]
        self.factors = torch.tensor(factors, device=device)
        self.taken = torch.zeros((), dtype=torch.int64, device=device)
        self._schedule()

    def losses(self, recording: Recording, beta: float, weights: Mapping[TermName, float]) -> Losses:
        """The losses of a batch, in single precision but for the stages of the network; no dropout."""
        return self.judged(self.network(recording), recording, beta, weights)

    def judged(
        self,
        prediction: Prediction,
        recording: Recording,
        beta: float,
        weights: Mapping[TermName, float],
        *,
        oracle: bool = False,
    ) -> Losses:
        """The losses of a prediction; NaN where it or the recording is not finite."""
        whole = all_finite(recording, prediction)
        targets = Targets.of(put_aside(recording, whole), self.grid)
        prediction = put_aside(prediction, whole)
        losses = total_loss(prediction, targets, self.spec.loss, beta=beta, weights=weights, oracle=oracle)
        return marked(losses, whole)

    def step(
        self, recordings: Iterable[Recording], beta: float, weights: Mapping[TermName, float]
    ) -> dict[str, Tensor]:
        """One optimizer step, on ``spec.accumulation`` batches; the host does not wait for the device.

        Args:
            recordings: the batches.
            beta: share of R_samp in R_blend.
            weights: of the losses.

        Returns:
            Numbers on the device: ``loss`` and its terms (means over all scenes of all processes), norms of
            the gradient, whether the step was taken and the gradient clipped, and the learning rate's factor.
        """
        spec, parameters = self.spec, list(self.weights.values())
        self.optimizer.zero_grad(set_to_none=True)
        numbers, names = torch.zeros((), device=self.taken.device), []
        for part, recording in enumerate(recordings):
            losses = self.judged(self._thinned(recording, part), recording, beta, weights)
            if not losses.total.requires_grad:
                raise InputError("loss", "a total with a gradient", "none: nothing can be learned")
            self.scaler.scale(losses.total / spec.accumulation).backward()
            names = ["loss", *losses.terms]
            numbers = numbers + torch.stack([losses.total.detach(), *losses.terms.values()]).detach()
        numbers = self.group.average(parameters, numbers / spec.accumulation)
        self.scaler.unscale_(self.optimizer)
        norms = self._norms()
        norm = norms.norm()
        held = [parameter for parameter in parameters if parameter.grad is not None]
        nn.utils.clip_grads_with_norm_(held, spec.clip_norm, norm)
        finite = numbers.isfinite().all() & norm.isfinite()
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        factor = self._factor()
        self.taken += finite
        self._schedule()
        self._follow(finite)
        return {
            **dict(zip(names, numbers, strict=True)),
            "gradient": norm,
            **{f"gradient_{name}": value for name, value in zip(GROUPS, norms, strict=True)},
            "taken": finite.float(),
            "clipped": (norm > spec.clip_norm).float(),
            "learning_rate_factor": factor,
        }

    @torch.no_grad()
    def predict(self, recording: Recording, *, averaged: bool = True) -> Prediction:
        """What the network says, in single precision, with the averaged weights or its own."""
        with self.single_precision():
            if not averaged:
                return self.network(recording)
            return functional_call(self.network, self.average, (recording,))

    @contextmanager
    def single_precision(self) -> Iterator[None]:
        """The stages in float32 meanwhile."""
        self._set_precision(None)
        try:
            yield
        finally:
            self._set_precision(self.precision)

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes."""
        held = {"taken": self.taken}
        for kind, tensors in (
            ("weights", self.weights),
            ("average", self.average),
            ("optimizer", optimizer_tensors(self.optimizer)),
        ):
            held |= {f"{kind}/{name}": value for name, value in tensors.items()}
        return held

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` returned.

        Raises:
            InputError: tensors of another network.
        """
        memory = {}
        for name, value in sorted(tensors.items()):
            kind, _, key = name.partition("/")
            if kind == "optimizer":
                memory[key] = value
                continue
            kinds: dict[str, Mapping[str, Tensor]] = {
                "weights": self.weights,
                "average": self.average,
                "taken": {"": self.taken},
            }
            own = kinds.get(kind, {})
            if key not in own or own[key].shape != value.shape:
                raise InputError("checkpoint", "the weights of this network", f"{name} of another one")
            own[key].copy_(value)
        if missing := self.tensors().keys() - tensors.keys() - {"taken"}:
            raise InputError("checkpoint", "the weights of this network", f"none for {min(missing)}")
        restore_optimizer(self.optimizer, memory)
        self._schedule()

    def _thinned(self, recording: Recording, part: int) -> Prediction:
        """What the network says of a batch of the step at hand, with dropout.

        A scene's share in it is told by its place among all scenes of all steps that were taken, whichever
        process has it.
        """
        spec = self.spec
        if not spec.network.dropout:
            return self.network(recording)
        first = part * spec.batch + self.group.rank * (spec.batch // self.group.world)
        scenes = torch.arange(first, first + len(recording), device=self.taken.device)
        draws = Draws(spec.seed, "train", self.taken * spec.batch * spec.accumulation + scenes)
        return self.network(recording, channel_dropout(spec.network, draws))

    def _norms(self) -> Tensor:
        """Norm of the gradient of backbone and heads."""
        norms = []
        for group in GROUPS:
            gradients = [
                parameter.grad
                for part in self.optimizer.param_groups
                if part["name"] == group
                for parameter in part["params"]
                if parameter.grad is not None
            ]
            norms.append(nn.utils.get_total_norm(gradients) if gradients else self.factors.new_zeros(()))
        return torch.stack(norms)

    def _schedule(self) -> None:
        """The learning rate of the next step, by the number of steps that were taken."""
        factor = self._factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor

    def _factor(self) -> Tensor:
        """Of the learning rate at the next step; ``take``, since an index would make the host wait."""
        return self.factors.take(self.taken.clamp_max(len(self.factors) - 1))

    @torch.no_grad()
    def _follow(self, finite: Tensor) -> None:
        """Move the average towards the weights; quickly at first, not at all after a skipped step."""
        decay = ((1 + self.taken) / (10 + self.taken)).clamp_max(self.spec.average_decay)
        share = (1 - decay) * finite
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, share)

    def _set_precision(self, precision: torch.dtype | None) -> None:
        self.network.set_precision(precision)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a layer that writes an output."""
    return name.startswith(("details.", "count.")) or ".write." in name


def parameter_groups(network: nn.Module, spec: TrainSpec) -> list[dict[str, object]]:
    """The optimizer's groups: backbone and head, each with and without weight decay."""
    rates = dict(zip(GROUPS, (spec.backbone_learning_rate, spec.head_learning_rate), strict=True))
    parts: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        parts.setdefault((GROUPS[is_head(name)], decay), []).append(parameter)
    return [
        {"params": held, "name": group, "highest": rates[group], "lr": rates[group], "weight_decay": decay}
        for (group, decay), held in parts.items()
    ]


def precision_on(device: torch.device, wanted: str) -> torch.dtype:
    """The type in which the stages of the network multiply."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
