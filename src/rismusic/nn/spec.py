"""Settings of the network and of its training. The module does not import torch.

What a file of weights is for: the systems it was trained on, what it took, and what it reaches.

The module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

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
    """Weights and scales of the losses; the defaults are those of the final training.

    A weight beyond its limits is refused: the covariance is what is learned, and the other terms help it.
    """

    section: ClassVar[str] = "loss"

    covariance: Main = 1.0
    """Error of R_blend. It is never off."""
    covariance_predicted: Part = 0.05
    """Error of R_pred alone, so that it cannot hide behind R_samp."""
    subspace_warm_up: Structural = 0.02
    """Energy of R_blend outside the true sources' subspace, while warming up."""
    subspace: Structural = 0.05
    """The same, from then on."""
    subspace_last: tuple[Structural, Structural] = (0.10, 0.20)
    """The same, at the beginning and at the end of the last phase."""
    eigengap: Annotated[float, Field(ge=0, le=0.1)] = 0.012
    """What the eigengap of R_blend lacks of its margin."""
    peak_contrast_last: tuple[Structural, Structural] = (0.05, 0.10)
    """Contrast of the spectrum at the true sources, at the beginning and at the end of the last phase."""
    orthogonality: Structural = 0.01
    """Coherence of the columns of one factor."""
    cross: Structural = 0.01
    """Coherence of the columns of the angle factor with those of the range factor."""
    count: Part = 0.1
    """Number of sources."""
    angle: Part = 0.05
    """Azimuth and elevation of the heads."""
    log_range: Part = 0.05
    """Range of the heads."""
    existence: Part = 0.1
    """Which heads stand for a source."""
    heat_map: Part = 0.1
    """Heat map over the search grid, where the network has one."""

    eigengap_margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Gap that is asked for at most, in units of the trace."""
    angle_scale_deg: Positive = 5.0
    """Error in degrees at which the loss of an angle turns from a square to a straight line."""
    log_range_scale: Positive = 0.3
    """The same for the logarithm of the range."""
    heat_map_width: Annotated[float, Field(ge=0.2, le=5)] = 0.6
    """Standard deviation of a source's place on the heat map, in steps of the grid."""

    @classmethod
    def final(cls) -> LossSpec:
        """For the final training: structure counts more towards the end."""
        return cls()

    @classmethod
    def search(cls) -> LossSpec:
        """For the search of settings: weights stay as they are after the warm-up, so that trials compare."""
        return cls(subspace_last=(0.05, 0.05), peak_contrast_last=(0.0, 0.0))

    @property
    def weights(self) -> dict[TermName, float]:
        """The weight of each term, after the warm-up and before the last phase."""
        return {
            "covariance": self.covariance,
            "covariance_predicted": self.covariance_predicted,
            "subspace": self.subspace,
            "eigengap": self.eigengap,
            "peak_contrast": 0.0,
            "orthogonality": self.orthogonality,
            "cross": self.cross,
            "count": self.count,
            "angle": self.angle,
            "log_range": self.log_range,
            "existence": self.existence,
            "heat_map": self.heat_map,
        }


class ScheduleSpec(Spec):
    """What changes from epoch to epoch, and from step to step."""

    section: ClassVar[str] = "schedule"

    epochs: Count = 40
    """Epochs of the whole training."""
    beta: Share = 0.30
    """Share of R_samp in R_blend, once it has been reached."""
    beta_ramp: Share = 0.2
    """Share of the epochs, at least 2 of them, in which beta rises from 0 in a straight line."""
    beta_jitter: Annotated[float, Field(ge=0, le=0.3)] = 0.05
    """From then on beta differs by up to this from epoch to epoch."""
    last_phase: Share = 0.3
    """Share of the epochs in which the weights of the structure losses rise."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps, at least one, in which the learning rate rises."""
    learning_rate_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the learning rate that is left at the last optimizer step."""
    curriculum: bool = False
    """Learn angles first, then range, then both together; the covariance always."""
    curriculum_ends: tuple[Share, Share] = (0.2, 0.4)
    """Shares of the epochs at which the angles' stage and the range's stage end."""

    @model_validator(mode="after")
    def _stages_in_turn(self) -> ScheduleSpec:
        first, second = self.curriculum_ends
        if second < first:
            raise InputError(
                "schedule.curriculum_ends", "the end of the first stage first", f"{first:g}, {second:g}"
            )
        return self

    @classmethod
    def final(cls) -> ScheduleSpec:
        """For the final training."""
        return cls()

    @classmethod
    def search(cls) -> ScheduleSpec:
        """For the search of settings: less jitter, so that trials compare."""
        return cls(beta_jitter=0.02)


class NetworkSpec(Spec):
    """Sizes of the hybrid network."""

    section: ClassVar[str] = "network"

    plugins: Annotated[tuple[str, ...], AfterValidator(load_plugins)] = ()
    """Python modules to import first, which register further networks."""
    kind: Annotated[str, AfterValidator(NETWORKS.check)] = "sbl_unrolled"
    """The network: 'sbl_unrolled', or a registered name. Sizes that a network does not use are ignored."""
    sources_max: Annotated[int, Field(ge=1, le=8)] = 5
    """Most sources of a scene, K_max."""
    oversampling: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Points of the network's grid per beam width."""
    climbs: Count = 2
    """Steps of the sparse Bayesian fixed point before the first stage."""
    stages: Annotated[int, Field(ge=1, le=8)] = 3
    """Learned steps, between which the data are asked again."""
    depth: Count = 3
    """Blocks of a stage; the last one holds attention."""
    width: Annotated[int, Field(ge=8, le=1024)] = 96
    """Channels."""
    kernel: Literal[3, 5, 7, 9] = 5
    """Places along each side of a convolution."""
    heads: Count = 4
    """Heads of the attention."""
    dropout: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the channels of what each block adds that a step of the training does without."""

    @model_validator(mode="after")
    def _divisible(self) -> NetworkSpec:
        if self.width % self.heads:
            raise InputError("network.width", f"a multiple of heads = {self.heads}", str(self.width))
        return self

    @classmethod
    def tiny(cls) -> NetworkSpec:
        """Memorises a few hundred scenes in a minute on two cores."""
        return cls(stages=2, depth=2, width=48)

    @classmethod
    def base(cls) -> NetworkSpec:
        """What the shipped weights are made with."""
        return cls()

    @classmethod
    def large(cls) -> NetworkSpec:
        """About 19 million parameters, for a GPU."""
        return cls(stages=4, depth=6, width=400, heads=8, oversampling=2.51)


class TrainSpec(Spec):
    """A whole training: what learns, from which scenes, by what, and for how long."""

    network: NetworkSpec = NetworkSpec()
    system: SystemSpec = SystemSpec()
    """The scenes that are learned from."""
    loss: LossSpec = LossSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first weights and of the scenes; training, validation and test share none."""
    scenes_per_epoch: Count = 25_600
    """Scenes between two validations, a multiple of batch times accumulation."""
    fresh: bool = True
    """New scenes in each epoch; else the same ones, to see whether they can be learned by heart: then the
    validation looks at these too, and not at scenes of its own."""
    hidden_noise: Share = 0.5
    """Share of the batches whose noise variance is estimated as if it were not recorded."""
    batch: Count = 64
    """Scenes of one forward pass, of all processes together."""
    accumulation: Count = 1
    """Batches whose gradients make up one optimizer step."""
    backbone_learning_rate: NonNegative = 2e-4
    """Highest learning rate of what the outputs are computed from."""
    head_learning_rate: NonNegative = 8e-4
    """Highest learning rate of the layers that write the outputs."""
    weight_decay: NonNegative = 0.01
    """Of AdamW; biases and norms have none."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the moving average of the weights, which is what is validated and kept."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the stages; 'auto': bfloat16 (or float16) on a GPU, float32 else. All around them is float32."""
    skipped_max: Annotated[int, Field(ge=0)] = 20
    """Steps that may be skipped for a gradient that is not finite; one more and the training stops."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs without a better validation loss after which the training stops; 0: never."""
    validation_scenes: Annotated[int, Field(ge=2)] = 512
    """Scenes of the validation, the same in each epoch; the noise of every second one is hidden."""
    scored_scenes: Annotated[int, Field(ge=2)] = 64
    """Scenes of these that are located."""
    log_steps: Count = 20
    """Steps whose numbers are fetched from the device at once."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between two checkpoints within an epoch; 0: by time alone."""
    save_minutes: Positive = 10.0
    """Minutes between two checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        most, step = limits(self.system.sources)[1], self.batch * self.accumulation
        if most > self.network.sources_max:
            raise InputError(
                "network.sources_max", f"at least {most}, as in system.sources", str(self.network.sources_max)
            )
        if self.scenes_per_epoch % step:
            raise InputError(
                "scenes_per_epoch", f"a multiple of batch x accumulation = {step}", str(self.scenes_per_epoch)
            )
        if self.scored_scenes > self.validation_scenes:
            raise InputError(
                "scored_scenes",
                f"at most validation_scenes = {self.validation_scenes}",
                str(self.scored_scenes),
            )
        return self

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.scenes_per_epoch // (self.batch * self.accumulation)

    @classmethod
    def tiny(cls) -> TrainSpec:
        """Some minutes on two cores: shows that it learns, not how well it can."""
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
        """For the search of settings: short, and its losses weighted alike in all trials."""
        return cls(
            loss=LossSpec.search(), schedule=ScheduleSpec.search().replace(epochs=12), scenes_per_epoch=6400
        )

    @classmethod
    def final(cls) -> TrainSpec:
        """For weights that are to be used."""
        return cls(loss=LossSpec.final(), schedule=ScheduleSpec.final().replace(epochs=100), patience=25)


SHIPPED: tuple[Literal["ideal"], Literal["robust"]] = ("ideal", "robust")
"""Names of the weights that come with the package."""

KEY = "card"
"""Where the card stands among the metadata of a file of weights."""


class WeightsCard(Spec):
    """The card of a network's weights."""

    section: ClassVar[str] = "card"

    name: str = ""
    """What they are called."""
    system: SystemSpec = SystemSpec()
    """The systems that it was trained on: panel, link, SNR, searched volume, hardware errors."""
    sources_max: Count
    """Most sources of a scene that it knows."""
    beta: Annotated[float, Field(ge=0, le=1)]
    """Share of the sample covariance in the blend that it was trained with."""
    scenes: Annotated[int, Field(ge=0)] = 0
    """Scenes that it has seen in training."""
    hours: NonNegative = 0.0
    """Hours that the training took."""
    device: str = ""
    """What it was trained on."""
    figures: dict[str, Finite] = Field(default_factory=dict)
    """What it reaches, as measured."""
    limits: tuple[str, ...] = ()
    """What it is not for."""
    licence: str = "Apache-2.0"
    """Under which the weights may be used."""


def weights_path(weights: str | Path) -> Path:
    """The file that a name of shipped weights, or a path, stands for."""
    return WEIGHTS / f"{weights}.safetensors" if weights in SHIPPED else Path(weights)


def card_of(source: str, metadata: Mapping[str, str]) -> WeightsCard:
    """The card of a file of weights, or what its training's settings say where it has none.

    Args:
        source: the file, for what is said of it.
        metadata: of the file.

    Raises:
        InputError: neither, or something else in their place.
    """
    try:
        if KEY in metadata:
            return WeightsCard(**json.loads(metadata[KEY]))
        training = json.loads(metadata["training"])
        return WeightsCard(
            name=Path(source).stem,
            system=SystemSpec(**training["system"]),
            sources_max=training["network"]["sources_max"],
            beta=training["schedule"]["beta"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(source, "weights that say what they were trained on", str(error)) from None


def card_text(card: WeightsCard, *, checksum: str, size: int) -> str:
    """A card as Markdown, as ``weights/README.md`` has it.

    Args:
        card: of the weights.
        checksum: SHA-256 of the file.
        size: of the file, in bytes.
    """
    system, (low, high) = card.system, limits(card.system.snr_db)
    panel, scene, hardware = system.panel, system.scene, system.hardware
    errors = [f"{name} {value:g}" for name, value in hardware.model_dump().items() if value]
    rows = {
        "panel": f"{panel.rows} x {panel.columns} elements, {panel.spacing_wavelengths:g} wavelengths apart, "
        f"trained at a wavelength of {panel.wavelength_m:g} m (others by scaling)",
        "link": f"{system.channel.kind}, {system.channel.antennas} antennas, {system.codebook.snapshots} "
        f"snapshots, {system.codebook.kind} codes, a new link in each scene",
        "sources": f"{' to '.join(map(str, dict.fromkeys(limits(system.sources))))}",
        "SNR": f"{low:g} to {high:g} dB",
        "volume": f"azimuth within {scene.azimuth_max_deg:g} deg, elevation within "
        f"{scene.elevation_max_deg:g} deg, {scene.range_min_m:g} to {scene.range_max_m:g} m",
        "hardware errors": ", ".join(errors) or "none",
        "share of R_samp (beta)": f"{card.beta:g}",
        "scenes seen": f"{card.scenes:,}",
        "training": f"{card.hours:.1f} hours on {card.device or 'a machine that was not named'}",
        **{name: f"{value:.3g}" for name, value in card.figures.items()},
        **{"limit" + " " * place: text for place, text in enumerate(card.limits)},
        "file": f"{size / 2**20:.1f} MiB, SHA-256 `{checksum}`",
        "licence": card.licence,
    }
    lines = [f"## {card.name}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name.strip()} | {text} |" for name, text in rows.items())]) + "\n"
