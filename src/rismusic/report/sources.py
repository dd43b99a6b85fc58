"""Estimates compared with the truth, and the table of the sources of one scene."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool
from torch import Tensor

from rismusic.crb import Bound, conditional_crb, unconditional_crb
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.maximum_likelihood import complete_fit, unpack
from rismusic.estimation.noise import most_sources
from rismusic.io import Recording
from rismusic.metrics import Match, match
from rismusic.report.page import decimals, fixed, general
from rismusic.scene_view import inside_ellipsoid
from rismusic.sources import Sources

SYMBOLS_KNOWN = "the conditional Cramér-Rao bound at the true positions, with the transmitted symbols"
POWERS_KNOWN = "the unconditional Cramér-Rao bound at the true positions, with the true powers"
POWERS_FITTED = (
    "the unconditional Cramér-Rao bound at the true positions, with powers (and the noise variance, where it "
    "is not recorded) fitted to the data"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Estimates of S scenes compared with the truth.

    Args:
        match: hits and errors.
        bound: Cramer-Rao bound at the truth; none where so many sources cannot be identified.
        kind: description of the bound.
        inside: [S, K] whether the true position of a hit lies inside the error ellipsoid of its estimate.
    """

    match: Match
    bound: Bound | None
    kind: str
    inside: Bool[Tensor, "S K"]


def compare(recording: Recording, located: Estimate) -> Comparison | None:
    """Compare estimates with the truth; none where the recording has no truth."""
    truth = recording.truth
    if truth is None:
        return None
    matched = match(truth, located.sources)
    bound, kind = _bound(recording)
    partner = matched.partner.clamp_min(0)[..., None, None].expand(-1, -1, 3, 3)
    covariance = located.covariance.gather(1, partner) if located.covariance.shape[1] else None
    inside = torch.zeros_like(matched.hit)
    if covariance is not None:
        usable = matched.hit & covariance.isfinite().all(-1).all(-1)
        inside[usable] = inside_ellipsoid(matched.error[usable], covariance[usable])
    return Comparison(matched, bound, kind, inside)


def joined(parts: list[Comparison]) -> tuple[Match, Bound | None]:
    """The matches and bounds of all blocks together; no bound if a block has none."""
    whole = Match(
        **{f.name: torch.cat([getattr(part.match, f.name) for part in parts]) for f in fields(Match)}
    )
    bounds = [part.bound for part in parts if part.bound is not None]
    if len(bounds) < len(parts):
        return whole, None
    return whole, Bound(
        torch.cat([bound.covariance for bound in bounds]), torch.cat([bound.range for bound in bounds])
    )


def _bound(recording: Recording) -> tuple[Bound | None, str]:
    truth, noise, L = recording.truth, recording.noise_variance, recording.snapshots.shape[-2]
    assert truth is not None
    panel, link = recording.panel, recording.link
    if noise is not None and truth.symbols is not None:
        return conditional_crb(panel, link, truth, noise), SYMBOLS_KNOWN
    if noise is not None and truth.power is not None:
        return unconditional_crb(panel, link, truth, noise, snapshots=L), POWERS_KNOWN
    if truth.active.sum(-1).max() > most_sources(*recording.snapshots.shape[-2:]):
        return None, ""
    positions, active = unpack(truth, recording)
    fit = complete_fit(recording, positions, active, active.any(-1))
    return unconditional_crb(panel, link, fit.sources, fit.noise_variance, snapshots=L), POWERS_FITTED


# Factors from radians, radians and metres to the units of the columns.
_SCALE = (180 / math.pi, 180 / math.pi, 1.0)


@dataclass(frozen=True)
class Line:
    """One line of the table of a source.

    Args:
        name: ``estimate``, ``true``, ``error`` or ``bound``.
        cells: azimuth and elevation (degrees), range (m).
        bars: their standard deviations, or none.
        snr: dB, or empty.
    """

    name: str
    cells: list[str]
    bars: list[str] | None = None
    snr: str = ""


@dataclass(frozen=True)
class Entry:
    """One source of a scene.

    Args:
        title: number of the estimate; empty where the source was missed.
        verdict: ``hit``, ``missed``, ``false alarm``, or empty where the truth is not known.
        lines: lines of the table.
    """

    title: str
    verdict: str
    lines: list[Line]


def entries(
    located: Estimate, truth: Sources | None, comparison: Comparison | None, scene: int
) -> list[Entry]:
    """The sources of one scene, the strongest first.

    Args:
        located: estimates of a block of scenes.
        truth: true sources of these scenes, if known.
        comparison: the comparison of the two.
        scene: index in the block.
    """
    partner: dict[int, int] = {}
    if comparison is not None:
        for true, estimate in enumerate(comparison.match.partner[scene].tolist()):
            if estimate >= 0:
                partner[estimate] = true
    listed = []
    for source in located.sources.active[scene].nonzero()[:, 0].tolist():
        lines, places = _estimate(located, scene, source)
        verdict = ""
        if truth is not None and comparison is not None:
            verdict = "hit" if source in partner else "false alarm"
            if source in partner:
                lines += _true(truth, comparison, scene, partner[source], places)
        listed.append(Entry(str(source), verdict, lines))
    if truth is not None and comparison is not None:
        for true in truth.active[scene].nonzero()[:, 0].tolist():
            if true not in partner.values():
                listed.append(Entry("", "missed", _true(truth, comparison, scene, true, [2, 2, 2])))
    return listed


def _estimate(located: Estimate, scene: int, source: int) -> tuple[list[Line], list[int]]:
    """The line of an estimate, and the number of decimals that its error bars justify."""
    bars = [scale * value for scale, value in zip(_SCALE, located.std[scene, source].tolist(), strict=True)]
    places = [decimals(bar) for bar in bars]
    shown = _position(located.sources, scene, source)
    cells = [fixed(value, digits) for value, digits in zip(shown, places, strict=True)]
    shown_bars = [fixed(bar, digits) for bar, digits in zip(bars, places, strict=True)]
    return [Line("estimate", cells, shown_bars, fixed(float(located.snr_db[scene, source]), 1))], places


def _true(truth: Sources, comparison: Comparison, scene: int, source: int, places: list[int]) -> list[Line]:
    cells = [fixed(value, n) for value, n in zip(_position(truth, scene, source), places, strict=True)]
    lines = [Line("true", cells)]
    errors = [
        scale * value
        for scale, value in zip(_SCALE, comparison.match.error[scene, source].tolist(), strict=True)
    ]
    if comparison.match.hit[scene, source]:
        cells = [fixed(value, n) for value, n in zip(errors, places, strict=True)]
        lines.append(Line("error", cells))
    if comparison.bound is not None:
        bars = comparison.bound.std[scene, source].tolist()
        cells = [general(scale * value, 2) for scale, value in zip(_SCALE, bars, strict=True)]
        lines.append(Line("bound", cells))
    return lines


def _position(sources: Sources, scene: int, source: int) -> list[float]:
    values = (sources.azimuth, sources.elevation, sources.range)
    return [scale * float(value[scene, source].double()) for scale, value in zip(_SCALE, values, strict=True)]
