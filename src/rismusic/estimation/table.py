"""Estimated sources as rows in degrees and dB: for tables, CSV and JSON.

Scripts of users read the names of these columns; new ones are added behind the existing ones only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rismusic.estimation.estimate import Estimate


@dataclass(frozen=True)
class Position:
    """One estimated source. Scenes and sources count from 0; error bars are the bound at the estimate.

    ``range_lower_m`` is the lower limit of the range, from two standard deviations of 1 / range.
    ``existence_probability`` is the probability that the source exists; ``status`` is that of the scene.
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
    existence_probability: float
    status: str


@dataclass(frozen=True)
class RoomPosition(Position):
    """One estimated source of a recording with a pose: its Cartesian position in the room frame, too.

    A source in the far field has no position; the coordinates are NaN.
    """

    x_room_m: float
    y_room_m: float
    z_room_m: float
    x_room_std_m: float
    y_room_std_m: float
    z_room_std_m: float


COLUMNS = tuple(field.name for field in fields(Position))
"""Columns of the CSV file, in order."""

ROOM_COLUMNS = tuple(field.name for field in fields(RoomPosition))
"""The same for a recording with a pose: those of the room frame come last."""


def columns_of(pose: Tensor | None) -> tuple[str, ...]:
    """Columns of the CSV file of a recording with this pose, or without one."""
    return COLUMNS if pose is None else ROOM_COLUMNS


def position_rows(estimate: Estimate, *, first_scene: int = 0) -> list[Position]:
    """A row for each source, scene by scene, the strongest first."""
    sources = estimate.sources
    rows = []
    exists, status = estimate.existence_probability, estimate.status
    point, bars = None, None
    if estimate.pose is not None:
        far = sources.range.isinf()[..., None]
        point = estimate.position_room.masked_fill(far, math.nan)
        bars = estimate.position_covariance_room.diagonal(dim1=-2, dim2=-1).sqrt()
    scenes, slots = sources.active.nonzero().unbind(-1)
    fields = (
        sources.azimuth,
        sources.elevation,
        sources.range,
        *estimate.std.unbind(-1),
        estimate.snr_db,
        estimate.range_lower_m,
        exists,
    )
    columns = [field[scenes, slots].tolist() for field in fields]
    for scene, source, *values in zip(scenes.tolist(), slots.tolist(), *columns, strict=True):
        azimuth, elevation, distance, azimuth_std, elevation_std, range_std, power, lower, exists_here = (
            values
        )
        row = Position(
            scene=first_scene + scene,
            source=source,
            azimuth_deg=math.degrees(azimuth),
            elevation_deg=math.degrees(elevation),
            range_m=distance,
            azimuth_std_deg=math.degrees(azimuth_std),
            elevation_std_deg=math.degrees(elevation_std),
            range_std_m=range_std,
            power_db=power,
            range_lower_m=lower,
            existence_probability=exists_here,
            status=status[scene],
        )
        if point is not None and bars is not None:
            row = RoomPosition(**asdict(row), **_room(point[scene, source], bars[scene, source]))
        rows.append(row)
    return rows


def _room(point: Tensor, bars: Tensor) -> dict[str, Any]:
    values = (*point.tolist(), *bars.tolist())
    return dict(zip(ROOM_COLUMNS[len(COLUMNS) :], values, strict=True))


def scene_records(estimate: Estimate, *, first_scene: int = 0) -> list[dict[str, object]]:
    """One record per scene for JSON: sources, noise variance, settings and warnings.

    Values that are infinite (an error bar that the data cannot give) or not available are null.
    """
    settings = estimate.spec.model_dump(mode="json")
    status, reasons = estimate.status, estimate.reasons
    rows: list[list[Position]] = [[] for _ in status]
    for row in position_rows(estimate, first_scene=first_scene):
        rows[row.scene - first_scene].append(row)
    probability = estimate.n_sources_probability
    covariance = None if estimate.pose is None else estimate.position_covariance_room

    def source(row: Position) -> dict[str, object]:
        record = _finite(asdict(row))
        if covariance is not None:
            record["covariance_room_m2"] = [
                [value if math.isfinite(value) else None for value in line]
                for line in covariance[row.scene - first_scene, row.source].tolist()
            ]
        return record

    return [
        {
            "scene": first_scene + scene,
            "sources": [source(row) for row in rows[scene]],
            "noise_variance": float(estimate.noise_variance[scene]),
            "p_value": None if estimate.p_value[scene].isnan() else float(estimate.p_value[scene]),
            "settings": settings,
            "warnings": warnings,
            "status": status[scene],
            "reasons": reasons[scene],
            "panel_error": None if estimate.panel_error is None else float(estimate.panel_error[scene]),
            "n_sources": int(estimate.n_sources[scene]),
            "n_sources_probability": None if probability is None else probability[scene].tolist(),
            "method": estimate.method[scene],
            "impulses": None if estimate.impulses is None else int(estimate.impulses[scene]),
        }
        for scene, warnings in enumerate(estimate.warnings)
    ]


def _finite(record: Mapping[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
        if name != "scene"
    }
