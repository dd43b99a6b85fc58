"""What a file of weights is for: the systems it was trained on, what it took, and what it reaches.

The module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rismusic.errors import InputError
from rismusic.spec import Count, Finite, NonNegative, Spec, SystemSpec

SHIPPED: tuple[Literal["ideal"], Literal["robust"]] = ("ideal", "robust")
"""Names of the weights that come with the package."""

KEY = "card"
"""Where the card stands among the metadata of a file of weights."""

_FOLDER = Path(__file__).parent.parent / "weights"


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
    return _FOLDER / f"{weights}.safetensors" if weights in SHIPPED else Path(weights)


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
