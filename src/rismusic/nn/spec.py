"""Settings of network and training, and the cards of weights. The module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from rismusic.errors import InputError
from rismusic.registry import NETWORKS, load_plugins
from rismusic.spec import WEIGHTS, Count, Finite, NonNegative, Positive, Spec, SystemSpec, limits

TermName = Literal[
    "covariance",
    "covariance_predicted",
    "subspace",
    "eigengap",
    "peak_contrast",
    "orthogonality",
    "cross",
    "count",
    "angle",
    "log_range",
    "existence",
    "heat_map",
]

Main = Annotated[float, Field(ge=0.1, le=10)]
Part = Annotated[float, Field(ge=0, le=1)]
Structural = Annotated[float, Field(ge=0, le=0.5)]
Share = Annotated[float, Field(ge=0, le=1)]


class LossSpec(Spec):
    """Weights of the losses; the defaults are those of the final training."""

    section: ClassVar[str] = "loss"

    covariance: Main = 1.0
    """Error of R_blend; the main loss, always on."""
    covariance_predicted: Part = 0.05
    """Error of R_pred alone, whose part in R_blend is small for a large beta."""
    subspace_warm_up: Structural = 0.02
    """Energy of R_blend outside the subspace of the true sources, while beta rises."""
    subspace: Structural = 0.05
    """The same, after that."""
    subspace_last: tuple[Structural, Structural] = (0.10, 0.20)
    """The same, at the beginning and the end of the last phase."""
    eigengap: Annotated[float, Field(ge=0, le=0.1)] = 0.012
    """Hinge loss of the eigengap of R_blend."""
    peak_contrast_last: tuple[Structural, Structural] = (0.05, 0.10)
    """Contrast of the MVDR spectrum at the true sources, at the beginning and the end of the last phase."""
    orthogonality: Structural = 0.01
    """Coherence of the columns within each factor."""
    cross: Structural = 0.01
    """Coherence of the columns of the angle factor with those of the range factor."""
    count: Part = 0.1
    """Number of sources."""
    angle: Part = 0.05
    """Azimuth and elevation of the source heads."""
    log_range: Part = 0.05
    """Range of the source heads."""
    existence: Part = 0.1
    """Existence of a source at each head."""
    heat_map: Part = 0.1
    """Heat map over the search grid, if the network has one."""

    @classmethod
    def search(cls) -> LossSpec:
        """For tuning: constant weights after the warm-up, so that trials are comparable."""
        return cls(subspace_last=(0.05, 0.05), peak_contrast_last=(0.0, 0.0))

    @property
    def weights(self) -> dict[TermName, float]:
        """The weight of each loss after the warm-up and before the last phase."""
        return {name: getattr(self, name, 0.0) for name in get_args(TermName)}


class ScheduleSpec(Spec):
    """Schedules of beta, learning rate and loss weights."""

    section: ClassVar[str] = "schedule"

    epochs: Count = 40
    """Number of epochs."""
    beta: Share = 0.30
    """Share of R_samp in R_blend after the ramp."""
    beta_ramp: Share = 0.2
    """Share of the epochs, at least 2 epochs, in which beta rises linearly from 0."""
    beta_jitter: Annotated[float, Field(ge=0, le=0.3)] = 0.05
    """After the ramp, beta varies randomly between epochs by up to this."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps, at least one step, in which the learning rate rises."""
    learning_rate_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Factor of the learning rate at the last optimizer step."""
    curriculum: bool = False
    """Train angles first, then range, then both; the covariance always."""
    curriculum_ends: tuple[Share, Share] = (0.2, 0.4)
    """Shares of the epochs at which the angle stage and the range stage end."""

    @model_validator(mode="after")
    def _stages_in_turn(self) -> ScheduleSpec:
        first, second = self.curriculum_ends
        if second < first:
            raise InputError(
                "schedule.curriculum_ends",
                f"the range stage must not end before the angle stage; got {first:g}, {second:g}",
            )
        if self.curriculum and self.epochs - 1 < first * self.epochs:
            raise InputError(
                "schedule.curriculum",
                f"the angle stage ({first:g} of the epochs) leaves none of {self.epochs} for the range; "
                "take more epochs, or turn the curriculum off",
            )
        return self

    @classmethod
    def search(cls) -> ScheduleSpec:
        """For tuning: less jitter, so that trials are comparable."""
        return cls(beta_jitter=0.02)


class NetworkSpec(Spec):
    """Kind and sizes of the network."""

    section: ClassVar[str] = "network"

    plugins: Annotated[tuple[str, ...], AfterValidator(load_plugins)] = ()
    """Modules with networks of your own, on PYTHONPATH."""
    kind: Annotated[str, AfterValidator(NETWORKS.check)] = "sbl_unrolled"
    """The network: 'sbl_unrolled', or a registered name. Sizes that a network does not use are ignored."""
    sources_max: Annotated[int, Field(ge=1, le=8)] = 5
    """Largest number of sources in a scene, K_max."""
    oversampling: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Grid points per beam width."""
    sbl_iterations: Annotated[int, Field(ge=1, le=100)] = 2
    """SBL iterations before the first stage."""
    stages: Annotated[int, Field(ge=1, le=8)] = 3
    """Learned stages; each gets new statistics of the data under the powers of the previous one."""
    depth: Annotated[int, Field(ge=1, le=64)] = 3
    """Blocks per stage; the last one has attention."""
    width: Annotated[int, Field(ge=8, le=1024)] = 96
    """Channels."""
    kernel: Literal[3, 5, 7, 9] = 5
    """Side length of the convolution kernels."""
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    """Attention heads."""
    dropout: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Dropout probability of the channels of the residual branches, in training."""

    @model_validator(mode="after")
    def _divisible(self) -> NetworkSpec:
        if self.width % self.heads:
            raise InputError("network.width", f"must be a multiple of heads = {self.heads}; got {self.width}")
        return self

    @classmethod
    def tiny(cls) -> NetworkSpec:
        """Small: memorises a few hundred scenes in a minute on two cores."""
        return cls(stages=2, depth=2, width=48)


class TrainSpec(Spec):
    """All settings of a training."""

    network: NetworkSpec = NetworkSpec()
    system: SystemSpec = SystemSpec()
    """The training scenes."""
    loss: LossSpec = LossSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights and scenes. Training, validation and test scenes never overlap."""
    scenes_per_epoch: Count = 25_600
    """Scenes per epoch, a multiple of batch times accumulation; each epoch ends with a validation."""
    fresh: bool = True
    """Draw new scenes for each epoch. Without new scenes, all epochs and the validation use the same ones, to
    test whether the network can memorise them."""
    hidden_noise: Share = 0.5
    """Share of the batches whose noise variance is hidden and estimated."""
    batch: Count = 64
    """Scenes per batch, over all processes."""
    accumulation: Count = 1
    """Batches per optimizer step."""
    backbone_learning_rate: NonNegative = 2e-4
    """Peak learning rate of all but the output layers."""
    head_learning_rate: NonNegative = 8e-4
    """Peak learning rate of the output layers."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW; none for biases and norms."""
    clip_norm: Positive = 1.0
    """Gradient norm above which the gradient is clipped."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of the weights, which is validated and saved."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the stages; 'auto': bfloat16 (or float16) on a GPU, else float32. The rest is float32."""
    skipped_max: Annotated[int, Field(ge=0)] = 20
    """Number of steps with non-finite gradients that are skipped before the training stops."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many epochs without a lower validation loss; 0 disables it."""
    validation_scenes: Annotated[int, Field(ge=2)] = 512
    """Validation scenes, the same in each epoch; half of them with hidden noise variance."""
    scored_scenes: Annotated[int, Field(ge=2)] = 64
    """Number of validation scenes whose sources are located."""
    log_steps: Count = 20
    """Log after this many steps; each time, the numbers are fetched from the device."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between checkpoints within an epoch; 0: by time only."""
    save_minutes: Positive = 10.0
    """Minutes between checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.system.panel.kind != "planar" or self.system.scene.azimuth_max_deg >= 90:
            raise InputError(
                "system.panel.kind", "must be planar, with azimuths below 90 deg: networks see the front only"
            )
        for name in ("rows", "columns"):
            if getattr(self.system.panel, name) == 1:
                raise InputError(
                    f"system.panel.{name}",
                    "must be at least 2, since networks estimate two angles and a line one",
                )
        scene = self.system.scene
        if scene.symbols not in ("gaussian", "qpsk"):
            raise InputError(
                "system.scene.symbols",
                f"must be gaussian or qpsk, since networks take independent symbols; got {scene.symbols}",
            )
        if scene.range_max_m == scene.range_min_m:
            raise InputError(
                "system.scene.range_max_m",
                f"must be above range_min_m = {scene.range_min_m:g}, since networks estimate the range",
            )
        if self.system.wideband.subcarriers > 1:
            raise InputError(
                "system.wideband.subcarriers",
                f"must be 1, since networks take narrowband signals; got {self.system.wideband.subcarriers}",
            )
        most, step = limits(self.system.sources)[1], self.batch * self.accumulation
        if most > self.network.sources_max:
            raise InputError(
                "network.sources_max",
                f"must be at least {most}, the maximum of system.sources; got {self.network.sources_max}",
            )
        if self.scenes_per_epoch % step:
            raise InputError(
                "scenes_per_epoch",
                f"must be a multiple of batch x accumulation = {step}; got {self.scenes_per_epoch}",
            )
        if self.scored_scenes > self.validation_scenes:
            raise InputError(
                "scored_scenes",
                f"must be at most validation_scenes = {self.validation_scenes}; got {self.scored_scenes}",
            )
        return self

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.scenes_per_epoch // (self.batch * self.accumulation)

    @classmethod
    def tiny(cls) -> TrainSpec:
        """A few minutes on two cores, to see that a training works."""
        return cls(
            network=NetworkSpec.tiny(),
            schedule=ScheduleSpec(epochs=20),
            scenes_per_epoch=2048,
            batch=32,
            average_decay=0.99,
            validation_scenes=128,
        )

    @classmethod
    def search(cls) -> TrainSpec:
        """For tuning: short, with equal loss weights in all trials."""
        return cls(
            loss=LossSpec.search(), schedule=ScheduleSpec.search().replace(epochs=12), scenes_per_epoch=6400
        )

    @classmethod
    def final(cls) -> TrainSpec:
        """For weights to be used."""
        return cls(schedule=ScheduleSpec(epochs=100), patience=25)


SHIPPED: tuple[Literal["ideal"], Literal["robust"]] = ("ideal", "robust")
"""Names of the weights that come with the package."""

KEY = "card"
"""Metadata key of the card in a weights file."""


class WeightsCard(Spec):
    """What weights were trained on, what they reach, and what they are not for."""

    section: ClassVar[str] = "card"

    name: str = ""
    """Name."""
    system: SystemSpec = SystemSpec()
    """Training systems: panel, link, SNR, search volume, hardware impairments."""
    sources_max: Count
    """Largest number of sources in a scene."""
    beta: Annotated[float, Field(ge=0, le=1)]
    """Share of R_samp in R_blend in training."""
    scenes: Annotated[int, Field(ge=0)] = 0
    """Number of training scenes."""
    hours: NonNegative = 0.0
    """Training time, hours."""
    device: str = ""
    """Training device."""
    figures: dict[str, Finite] = Field(default_factory=dict)
    """Measured performance."""
    limits: tuple[str, ...] = ()
    """Limitations."""
    licence: str = "Apache-2.0"
    """Licence of the weights."""


def weights_path(weights: str | Path) -> Path:
    """The path of shipped weights, by name, or of a file."""
    return WEIGHTS / f"{weights}.safetensors" if weights in SHIPPED else Path(weights)


def card_of(source: str, metadata: Mapping[str, str]) -> WeightsCard:
    """The card of a weights file, or one from its training settings if it has none."""
    try:
        if KEY in metadata:
            return WeightsCard(**_table(metadata[KEY]))
        training = _table(metadata["training"])
        return WeightsCard(
            name=Path(source).stem,
            system=SystemSpec(**training["system"]),
            sources_max=training["network"]["sources_max"],
            beta=training["schedule"]["beta"],
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            source, f"the weights have no valid card or training settings ({reason_of(error)})"
        ) from None


def reason_of(error: Exception) -> str:
    """What is wrong with metadata, without words of Python."""
    return "a value has another type" if isinstance(error, TypeError) else str(error)


def _table(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a table is needed, not {value!r:.30}")  # noqa: TRY004
    return value
