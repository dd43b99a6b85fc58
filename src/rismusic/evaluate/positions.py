"""True sources as rows beside the estimated ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rismusic.estimation.estimate import Estimate
from rismusic.estimation.table import Position as Position
from rismusic.estimation.table import position_rows as position_rows
from rismusic.estimation.table import scene_records as scene_records
from rismusic.metrics import match
from rismusic.sources import Sources


@dataclass(frozen=True)
class Truth:
    """One true source, and the number of the estimated source that hits it (none where it is missed)."""

    scene: int
    azimuth_deg: float
    elevation_deg: float
    range_m: float
    found: int | None


def truth_rows(truth: Sources, estimate: Estimate, *, first_scene: int = 0) -> list[Truth]:
    """A row for each true source, with the estimated one that hits it."""
    partner = match(truth, estimate.sources).partner
    return [
        Truth(
            scene=first_scene + scene,
            azimuth_deg=math.degrees(truth.azimuth[scene, source]),
            elevation_deg=math.degrees(truth.elevation[scene, source]),
            range_m=float(truth.range[scene, source]),
            found=None if partner[scene, source] < 0 else int(partner[scene, source]),
        )
        for scene, source in truth.active.nonzero().tolist()
    ]
