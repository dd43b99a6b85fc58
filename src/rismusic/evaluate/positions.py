"""Found sources as rows in degrees and dB: for tables, CSV and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from rismusic.estimation.locate import Located
from rismusic.metrics import match
from rismusic.sources import Sources


@dataclass(frozen=True)
class Position:
    """One found source. Scenes and sources are counted from 0; error bars are the bound at the estimate."""

    scene: int
    source: int
    azimuth_deg: float
    elevation_deg: float
    range_m: float
    azimuth_std_deg: float
    elevation_std_deg: float
    range_std_m: float
    power_db: float


@dataclass(frozen=True)
class Truth:
    """One true source, and the found source that hits it (none where it is missed)."""

    scene: int
    azimuth_deg: float
    elevation_deg: float
    range_m: float
    found: int | None


def position_rows(located: Located, *, first_scene: int = 0) -> list[Position]:
    """A row for each source found, scene by scene, the strongest first.

    Args:
        located: from :func:`rismusic.locate`.
        first_scene: number of its first scene.
    """
    sources = located.sources
    rows = []
    for scene, source in sources.active.nonzero().tolist():
        std = located.std[scene, source].tolist()
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
                power_db=float(located.snr_db[scene, source]),
            )
        )
    return rows


def truth_rows(truth: Sources, located: Located, *, first_scene: int = 0) -> list[Truth]:
    """A row for each true source, with the found one that hits it."""
    partner = match(truth, located.sources).partner
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


def scene_records(located: Located, *, first_scene: int = 0) -> list[dict[str, object]]:
    """The same as records for JSON: each scene with its sources, settings and warnings.

    What is infinite (an error bar that the data cannot give), or cannot be told, is null.
    """
    settings = located.spec.model_dump(mode="json")
    rows = position_rows(located, first_scene=first_scene)
    return [
        {
            "scene": first_scene + scene,
            "sources": [_finite(asdict(row)) for row in rows if row.scene == first_scene + scene],
            "noise_variance": float(located.noise_variance[scene]),
            "p_value": None if located.p_value[scene].isnan() else float(located.p_value[scene]),
            "settings": settings,
            "warnings": said,
        }
        for scene, said in enumerate(located.warnings)
    ]


def _finite(record: dict[str, int | float]) -> dict[str, int | float | None]:
    return {
        name: value if math.isfinite(value) else None for name, value in record.items() if name != "scene"
    }
