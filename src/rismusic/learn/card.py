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
from rismusic.spec import WEIGHTS, Count, Finite, NonNegative, Spec, SystemSpec, limits

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
