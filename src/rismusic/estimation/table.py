"""Estimated sources as rows in degrees and dB: for tables, CSV and JSON.

Scripts of users read the names of these columns; new ones are added behind the existing ones only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from rismusic.text import finite

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
    kind: Callable[..., Position] = Position
    angles = estimate.azimuth_deg, estimate.elevation_deg, estimate.range_m
    bars = estimate.azimuth_std_deg, estimate.elevation_std_deg, estimate.range_std_m
    columns = [*angles, *bars, estimate.snr_db, estimate.range_lower_m, estimate.existence_probability]
    room: list[Tensor] = []
    if estimate.pose is not None:
        kind = RoomPosition
        point = estimate.position_room.masked_fill(estimate.range_m.isinf()[..., None], math.nan)
        std = estimate.position_covariance_room.diagonal(dim1=-2, dim2=-1).sqrt()
        room = [*point.unbind(-1), *std.unbind(-1)]
    scenes, slots = estimate.sources.active.nonzero().unbind(-1)
    values = [column[scenes, slots].tolist() for column in (*columns, *room)]
    status, count = estimate.status, len(columns)
    return [
        kind(first_scene + scene, source, *row[:count], status[scene], *row[count:])
        for scene, source, *row in zip(scenes.tolist(), slots.tolist(), *values, strict=True)
    ]


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
        record = {name: finite(value) for name, value in asdict(row).items() if name != "scene"}
        if covariance is not None:
            record["covariance_room_m2"] = [
                [finite(value) for value in line]
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
