"""The table of one scene: each source found beside the true one, then those that were missed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rismusic.estimation.estimate import Estimate
from rismusic.evaluate.report.scores import Judged
from rismusic.evaluate.report.wording import decimals, fixed, general
from rismusic.sources import Sources

# Units of the three columns: from radians, radians and metres to what is shown.
_SCALE = (180 / math.pi, 180 / math.pi, 1.0)


@dataclass(frozen=True)
class Line:
    """One line of a source.

    Args:
        name: what it says: ``found``, ``true``, ``error`` or ``bound``.
        cells: azimuth and elevation (degrees), range (m).
        bars: their standard deviations, or nothing.
        snr: dB, or nothing.
    """

    name: str
    cells: list[str]
    bars: list[str] | None = None
    snr: str = ""


@dataclass(frozen=True)
class Entry:
    """One source of a scene.

    Args:
        title: its number, or nothing where it was missed.
        verdict: ``hit``, ``missed``, ``false alarm``, or nothing where the truth is not known.
        lines: what is known of it.
    """

    title: str
    verdict: str
    lines: list[Line]


def entries(located: Estimate, truth: Sources | None, judged: Judged | None, scene: int) -> list[Entry]:
    """The sources of one scene, the strongest first.

    Args:
        located: what was found in a block of scenes.
        truth: what is true of them, if known.
        judged: the comparison of the two.
        scene: place in the block.
    """
    partner: dict[int, int] = {}
    if judged is not None:
        for true, found in enumerate(judged.match.partner[scene].tolist()):
            if found >= 0:
                partner[found] = true
    listed = []
    for source in located.sources.active[scene].nonzero()[:, 0].tolist():
        lines, places = _found(located, scene, source)
        verdict = ""
        if truth is not None and judged is not None:
            verdict = "hit" if source in partner else "false alarm"
            if source in partner:
                lines += _true(truth, judged, scene, partner[source], places)
        listed.append(Entry(str(source), verdict, lines))
    if truth is not None and judged is not None:
        for true in truth.active[scene].nonzero()[:, 0].tolist():
            if true not in partner.values():
                listed.append(Entry("", "missed", _true(truth, judged, scene, true, [2, 2, 2])))
    return listed


def _found(located: Estimate, scene: int, source: int) -> tuple[list[Line], list[int]]:
    """The line of a source found, and the decimals that its error bars allow."""
    bars = [scale * value for scale, value in zip(_SCALE, located.std[scene, source].tolist(), strict=True)]
    places = [decimals(bar) for bar in bars]
    shown = _position(located.sources, scene, source)
    cells = [fixed(value, digits) for value, digits in zip(shown, places, strict=True)]
    shown_bars = [fixed(bar, digits) for bar, digits in zip(bars, places, strict=True)]
    return [Line("found", cells, shown_bars, fixed(float(located.snr_db[scene, source]), 1))], places


def _true(truth: Sources, judged: Judged, scene: int, source: int, places: list[int]) -> list[Line]:
    cells = [fixed(value, n) for value, n in zip(_position(truth, scene, source), places, strict=True)]
    lines = [Line("true", cells)]
    errors = [
        scale * value for scale, value in zip(_SCALE, judged.match.error[scene, source].tolist(), strict=True)
    ]
    if judged.match.hit[scene, source]:
        cells = [fixed(value, n) for value, n in zip(errors, places, strict=True)]
        lines.append(Line("error", cells))
    if judged.bound is not None:
        bars = judged.bound.std[scene, source].tolist()
        cells = [general(scale * value, 2) for scale, value in zip(_SCALE, bars, strict=True)]
        lines.append(Line("bound", cells))
    return lines


def _position(sources: Sources, scene: int, source: int) -> list[float]:
    values = (sources.azimuth, sources.elevation, sources.range)
    return [scale * float(value[scene, source].double()) for scale, value in zip(_SCALE, values, strict=True)]
