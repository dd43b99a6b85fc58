"""Hits and errors of a block of scenes where the truth is known, and the bound at the truth."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool
from torch import Tensor

from rismusic.crb import Bound, conditional_crb, unconditional_crb
from rismusic.estimation.estimate import Estimate
from rismusic.estimation.maximum_likelihood import finish, unpack
from rismusic.estimation.noise import most_sources
from rismusic.evaluate.ellipsoid import inside_ellipsoid
from rismusic.evaluate.metrics import Match, match
from rismusic.io import Recording

SYMBOLS_KNOWN = "the conditional Cramér-Rao bound at the true positions, with the symbols that were sent"
POWERS_KNOWN = "the unconditional Cramér-Rao bound at the true positions, with the true powers"
POWERS_FITTED = (
    "the unconditional Cramér-Rao bound at the true positions, with powers (and the noise variance, where it "
    "is not recorded) fitted to the data"
)


@dataclass(frozen=True, eq=False)
class Judged:
    """Found sources of S scenes set against the truth.

    Args:
        match: hits and errors.
        bound: at the truth; none where the data cannot carry so many sources.
        kind: which bound, in words.
        inside: [S, K] of hits, whether the true place lies in the error ellipsoid of the found one.
    """

    match: Match
    bound: Bound | None
    kind: str
    inside: Bool[Tensor, "S K"]


def judge(recording: Recording, located: Estimate) -> Judged | None:
    """Hits, errors and the bound at the truth; none where the recording has no truth."""
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
    return Judged(matched, bound, kind, inside)


def joined(parts: list[Judged]) -> tuple[Match, Bound | None]:
    """The matches and bounds of all blocks; no bound where one of them has none."""
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
    fit = finish(recording, positions, active, active.any(-1))
    return unconditional_crb(panel, link, fit.sources, fit.noise_variance, snapshots=L), POWERS_FITTED
