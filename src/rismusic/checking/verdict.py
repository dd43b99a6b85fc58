"""Which changed convention, if any, the evidence names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rismusic.checking.changes import Change

MOST_LEFT = 0.5
"""Share of the signal's power from which it counts as unexplained."""


@dataclass(frozen=True)
class Evidence:
    """What the scenes say of a change against the recorded form.

    Args:
        change: the change.
        ratio: logarithm of the likelihood ratio, all scenes together, nats.
        improved: share of the scenes that it makes likelier.
        left: share of the signal's power that it leaves unexplained; 0 where that is not known.
    """

    change: Change
    ratio: float
    improved: float
    left: float = 0.0


@dataclass(frozen=True)
class MixUp:
    """A mistake that the evidence names.

    Args:
        change: what undoes it.
        ratio: nats in its favour.
        threshold: nats that were asked for.
        alike: names of changes of its family that fit as well.
    """

    change: Change
    ratio: float
    threshold: float
    alike: tuple[str, ...]


def verdict(evidence: Sequence[Evidence], threshold: float, *, blind: bool = False) -> MixUp | None:
    """The change that fits best, if it is beyond doubt.

    It must beat the recorded form and every change of another family by the threshold, improve half of the
    scenes and explain most of the signal. Where the recorded form and all changes are wrong they fit badly in
    much the same way, and none stands out.

    Args:
        evidence: of all changes that apply.
        threshold: nats that chance does not reach.
        blind: without truth, where other changes look alike.
    """
    if not evidence:
        return None

    def family(change: Change) -> str | None:
        return change.blind if blind else change.family

    ranked = sorted(evidence, key=lambda each: -each.ratio)
    best = ranked[0]
    kin = [each for each in ranked[1:] if family(each.change) == family(best.change)]
    others = [each.ratio for each in ranked if each is not best and each not in kin]
    stands_out = best.ratio - max([0.0, *others]) >= threshold
    if not stands_out or best.improved < 0.5 or best.left > MOST_LEFT:
        return None
    alike = tuple(each.change.name for each in kin if best.ratio - each.ratio < threshold)
    return MixUp(best.change, best.ratio, threshold, alike)
