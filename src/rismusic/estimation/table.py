"""Estimated sources as rows in degrees and dB: for tables, CSV and JSON.

Scripts of users read the names of these columns; new ones are added behind the existing ones only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rismusic.estimation.estimate import Estimate


@dataclass(frozen=True)
class Position:
    """One estimated source. Scenes and sources count from 0; error bars are the bound at the estimate.

    ``range_lower_m`` is the lower limit of the range, from two standard deviations of 1 / range.
    """

    scene: int
    source: int
    azimuth_deg: float
    elevation_deg: float
    range_m: float
    azimuth_std_deg: float
    elevation_std_deg: float
    range_std_m: float
    power_db: float
    range_lower_m: float


COLUMNS = tuple(field.name for field in fields(Position))
"""Columns of the CSV file, in order."""


def position_rows(estimate: Estimate, *, first_scene: int = 0) -> list[Position]:
    """A row for each source, scene by scene, the strongest first.

    Args:
        estimate: from :func:`rismusic.locate`.
        first_scene: number of its first scene.
    """
    sources = estimate.sources
    rows = []
    for scene, source in sources.active.nonzero().tolist():
        std = estimate.std[scene, source].tolist()
        rows.append(
            Position(
                scene=first_scene + scene,
                source=source,
                azimuth_deg=math.degrees(sources.azimuth[scene, source]),
                elevation_deg=math.degrees(sources.elevation[scene, source]),
                range_m=float(sources.range[scene, source]),
                azimuth_std_deg=math.degrees(std[0]),
                elevation_std_deg=math.degrees(std[1]),
                range_std_m=std[2],
                power_db=float(estimate.snr_db[scene, source]),
                range_lower_m=float(estimate.range_lower_m[scene, source]),
            )
        )
    return rows


def scene_records(estimate: Estimate, *, first_scene: int = 0) -> list[dict[str, object]]:
    """One record per scene for JSON: sources, noise variance, settings and warnings.

    Values that are infinite (an error bar that the data cannot give) or not available are null.
    """
    settings = estimate.spec.model_dump(mode="json")
    rows = position_rows(estimate, first_scene=first_scene)
    probability = estimate.n_sources_probability
    return [
        {
            "scene": first_scene + scene,
            "sources": [_finite(asdict(row)) for row in rows if row.scene == first_scene + scene],
            "noise_variance": float(estimate.noise_variance[scene]),
            "p_value": None if estimate.p_value[scene].isnan() else float(estimate.p_value[scene]),
            "settings": settings,
            "warnings": warnings,
            "n_sources": int(estimate.n_sources[scene]),
            "n_sources_probability": None if probability is None else probability[scene].tolist(),
            "method": estimate.method[scene],
            "impulses": None if estimate.impulses is None else int(estimate.impulses[scene]),
        }
        for scene, warnings in enumerate(estimate.warnings)
    ]


def _finite(record: dict[str, int | float]) -> dict[str, int | float | None]:
    return {
        name: value if math.isfinite(value) else None for name, value in record.items() if name != "scene"
    }
