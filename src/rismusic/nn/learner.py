"""The state of a training, its network, optimizer and moving average of the weights, and one optimizer step.

A batch that is not finite must not reach an eigenvalue solver, which would raise. Without synchronising with
the device, its values are replaced by 1 before the losses and its losses by NaN after them, so that the step
is skipped and counted.
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
from rismusic.nn.data import channel_dropout, learning_rate_factor
from rismusic.nn.distributed import ProcessGroup
from rismusic.nn.losses import NO_GRADIENT, Losses, Targets, total_loss
from rismusic.nn.network import Prediction, build_network
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.simulation.random_numbers import Draws

Batch = TypeVar("Batch", Recording, Prediction)


def finite(batch: Recording | Prediction) -> dict[str, Bool[Tensor, ""]]:
    """For each tensor of a recording (except its truth) or prediction, whether all its values are finite."""
    return {name: value.isfinite().all() for name, value in _tensors(batch).items()}


def all_finite(*batches: Recording | Prediction) -> Bool[Tensor, ""]:
    """Whether all values of all batches are finite."""
    return torch.stack([flag for batch in batches for flag in finite(batch).values()]).all()


def replace_nonfinite(batch: Batch, is_finite: Bool[Tensor, ""]) -> Batch:
    """The batch if ``is_finite``, otherwise one whose values are all 1."""
    changed: dict[str, Any] = {
        name: torch.where(is_finite, value, torch.ones_like(value)) for name, value in _tensors(batch).items()
    }
    return replace(batch, **changed)


def mask_losses(losses: Losses, is_finite: Bool[Tensor, ""]) -> Losses:
    """The losses if ``is_finite``, otherwise NaN for all of them."""

    def mark(value: Tensor) -> Tensor:
        return torch.where(is_finite, value, torch.nan)

    return replace(
        losses,
        total=mark(losses.total),
        terms={name: mark(value) for name, value in losses.terms.items()},
        oracle={name: mark(value) for name, value in losses.oracle.items()},
    )


def _tensors(batch: Recording | Prediction) -> dict[str, Tensor]:
    named = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "elements"}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


GROUPS = ("backbone", "head")


class Learner:
    """Network, optimizer, moving average of the weights, and learning rate schedule."""

    def __init__(self, spec: TrainSpec, group: ProcessGroup | None = None) -> None:
        self.spec, self.group = spec, group or ProcessGroup()
        device = self.group.device
        if spec.batch % self.group.world_size:
            raise InputError(
                "batch",
                f"must be a multiple of the number of processes, {self.group.world_size}; got {spec.batch}",
            )
        volume = Volume.from_spec(spec.system.scene)
        panel = Panel.from_spec(spec.system.panel).to(device)
        self.grid = SearchGrid.cover(panel, volume, spec.network.oversampling)
        generator = torch.Generator().manual_seed(spec.seed)
        self.network = build_network(spec.network, self.grid, generator).to(device)
        self.weights = dict(self.network.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        # The fused kernel skips the step if ``found_inf`` is set, without synchronising with the host.
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, spec), fused=True)
        dtype = precision_on(device, spec.precision)
        self.precision = None if dtype == torch.float32 else dtype
        self._set_precision(self.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        steps = spec.steps_per_epoch * spec.schedule.epochs
        factors = [learning_rate_factor(spec.schedule, i, steps) for i in range(steps)]
        self.factors = torch.tensor(factors, device=device)
        self.taken = torch.zeros((), dtype=torch.int64, device=device)
        self._set_learning_rate()

    def losses(self, recording: Recording, beta: float, weights: Mapping[TermName, float]) -> Losses:
        """The losses of a batch, without dropout."""
        return self.prediction_losses(self.network(recording), recording, beta, weights)

    def prediction_losses(
        self,
        prediction: Prediction,
        recording: Recording,
        beta: float,
        weights: Mapping[TermName, float],
        *,
        oracle: bool = False,
    ) -> Losses:
        """The losses of a prediction; NaN if the prediction or the recording is not finite."""
        is_finite = all_finite(recording, prediction)
        targets = Targets.of(replace_nonfinite(recording, is_finite), self.grid)
        prediction = replace_nonfinite(prediction, is_finite)
        losses = total_loss(prediction, targets, self.spec.loss, beta=beta, weights=weights, oracle=oracle)
        return mask_losses(losses, is_finite)

    def step(
        self, recordings: Iterable[Recording], beta: float, weights: Mapping[TermName, float]
    ) -> dict[str, Tensor]:
        """One optimizer step on ``spec.accumulation`` batches, without synchronising with the device.

        Returned, on the device, are ``loss`` and its terms (means over the scenes of all processes), gradient
        norms, whether the step was ``taken`` and the gradient ``clipped``, and the learning rate factor.
        """
        spec, parameters = self.spec, list(self.weights.values())
        self.optimizer.zero_grad(set_to_none=True)
        numbers, names = torch.zeros((), device=self.taken.device), []
        for part, recording in enumerate(recordings):
            losses = self.prediction_losses(
                self._predict_with_dropout(recording, part), recording, beta, weights
            )
            if not losses.total.requires_grad:
                raise InputError("loss", NO_GRADIENT)
            self.scaler.scale(losses.total / spec.accumulation).backward()
            names = ["loss", *losses.terms]
            numbers = numbers + torch.stack([losses.total.detach(), *losses.terms.values()]).detach()
        numbers = self.group.average_gradients(parameters, numbers / spec.accumulation)
        self.scaler.unscale_(self.optimizer)
        norms = self._norms()
        norm = norms.norm()
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        nn.utils.clip_grads_with_norm_(trained, spec.clip_norm, norm)
        finite = numbers.isfinite().all() & norm.isfinite()
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        factor = self._learning_rate_factor()
        self.taken += finite
        self._set_learning_rate()
        self._update_average(finite)
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
        """Predict in single precision, with the averaged weights or the current ones."""
        with self.single_precision():
            if not averaged:
                return self.network(recording)
            return functional_call(self.network, self.average, (recording,))

    @contextmanager
    def single_precision(self) -> Iterator[None]:
        """Context in which the network computes in float32."""
        self._set_precision(None)
        try:
            yield
        finally:
            self._set_precision(self.precision)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step changes."""
        named = {"taken": self.taken}
        for kind, tensors in (
            ("weights", self.weights),
            ("average", self.average),
            ("optimizer", optimizer_tensors(self.optimizer)),
        ):
            named |= {f"{kind}/{name}": value for name, value in tensors.items()}
        return named

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors that :meth:`tensors` returned."""
        optimizer = {}
        for name, value in sorted(tensors.items()):
            kind, _, key = name.partition("/")
            if kind == "optimizer":
                optimizer[key] = value
                continue
            kinds: dict[str, Mapping[str, Tensor]] = {
                "weights": self.weights,
                "average": self.average,
                "taken": {"": self.taken},
            }
            own = kinds.get(kind, {})
            if key not in own or own[key].shape != value.shape:
                raise InputError("checkpoint", f"the tensor {name} does not fit this network")
            own[key].copy_(value)
        if missing := self.tensors().keys() - tensors.keys() - {"taken"}:
            raise InputError("checkpoint", f"the tensor {min(missing)} of this network is missing")
        restore_optimizer(self.optimizer, optimizer)
        self._set_learning_rate()

    def _predict_with_dropout(self, recording: Recording, part: int) -> Prediction:
        """Predict a batch of the current step with dropout.

        The mask of a scene depends on its number among all scenes of all steps, not on its rank.
        """
        spec = self.spec
        if not spec.network.dropout:
            return self.network(recording)
        first = part * spec.batch + self.group.rank * (spec.batch // self.group.world_size)
        scenes = torch.arange(first, first + len(recording), device=self.taken.device)
        draws = Draws(spec.seed, "train", self.taken * spec.batch * spec.accumulation + scenes)
        return self.network(recording, channel_dropout(spec.network, draws))

    def _norms(self) -> Tensor:
        """Gradient norms of backbone and head."""
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

    def _set_learning_rate(self) -> None:
        """Set the learning rate of the next step, from the number of steps taken."""
        factor = self._learning_rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor

    def _learning_rate_factor(self) -> Tensor:
        # ``take``, because indexing would synchronise with the host.
        return self.factors.take(self.taken.clamp_max(len(self.factors) - 1))

    @torch.no_grad()
    def _update_average(self, finite: Tensor) -> None:
        """Update the moving average: quickly at first, not at all after a skipped step."""
        decay = ((1 + self.taken) / (10 + self.taken)).clamp_max(self.spec.average_decay)
        share = (1 - decay) * finite
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, share)

    def _set_precision(self, precision: torch.dtype | None) -> None:
        self.network.set_precision(precision)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to an output layer."""
    return name.startswith(("details.", "count.")) or ".write." in name


def parameter_groups(network: nn.Module, spec: TrainSpec) -> list[dict[str, object]]:
    """The optimizer's groups: backbone and head, each with and without weight decay."""
    rates = dict(zip(GROUPS, (spec.backbone_learning_rate, spec.head_learning_rate), strict=True))
    parts: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        parts.setdefault((GROUPS[is_head(name)], decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": group,
            "highest": rates[group],
            "lr": rates[group],
            "weight_decay": decay,
        }
        for (group, decay), parameters in parts.items()
    ]


def precision_on(device: torch.device, wanted: str) -> torch.dtype:
    """The data type of the network's matrix products."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
