"""Does validation see what learns, as it learns, and do the scores count what they should?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from rismusic.doctor.case import Case, told
from rismusic.doctor.stepping import trial
from rismusic.io import Recording
from rismusic.metrics import Score
from rismusic.nn import validation
from rismusic.nn.data import TrainingScenes
from rismusic.nn.monitors import Report, at_least, at_most
from rismusic.nn.schedules import weights_at
from rismusic.sources import Sources


class _These(TrainingScenes):
    """Given scenes in the place of the validation set."""

    def __init__(self, scenes: TrainingScenes, recording: Recording) -> None:
        self.spec, self.group, self._recording = scenes.spec, scenes.group, recording

    def validation(self) -> Iterator[Recording]:
        yield self._recording

    def scored(self) -> tuple[Recording, Recording]:
        return self._recording[:2], self._recording[:2]


def sensitivity(case: Case) -> Report:
    """The validation loss must move when the weights do, and be that of the training on the same scenes."""
    learner, recordings = trial(case)
    spec = learner.spec
    few = recordings[0]
    view = _These(case.scenes, few)
    beta = spec.schedule.beta
    weights = weights_at(spec.loss, spec.schedule, spec.schedule.epochs - 1, beta)
    own = validation.validate(learner, view, averaged=False)
    # With its gradient, as a training has it.
    trained = learner.losses(few, beta, weights)
    first = validation.validate(learner, view)
    off = {
        name: abs(own.terms.get(name, math.nan) - float(value.detach()))
        for name, value in trained.terms.items()
    }
    # Of the terms each by itself: in the total, errors of rounding may cancel.
    apart = sum(trained.weights[name] * value for name, value in off.items())
    worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name])
    for _ in range(3):
        learner.step(recordings, 0.1, spec.loss.weights)
    after = validation.validate(learner, view)
    total = float(trained.total.detach())
    with torch.no_grad():
        moved = abs(float(learner.losses(few, beta, weights).total) - total)
    findings = [
        at_most(
            "validation loss less training loss of the same scenes and weights, term by term, relative",
            max(apart, abs(own.loss - total)) / max(abs(total), 1e-9),
            # Where the training multiplies in less than float32, that much is meant.
            1e-5 if learner.precision is None else 5e-2,
            f"validation judges otherwise than training (most of all {worst}): another matrix, precision, "
            "or dropout.",
            "Let both use Learner.judged, in float32.",
        ),
        at_least(
            "change of the validation loss by three steps, over that of the training loss",
            abs(after.loss - first.loss) / max(moved, 1e-9),
            1e-2,
            "the validation loss does not move when the weights do: it is constant, on stale weights (the "
            "moving "
            "average never updated?) or on another matrix.",
            "Validate the averaged weights, and update them after each step.",
        ),
    ]
    text = f"validation {first.loss:.4f} -> {after.loss:.4f} while training moved by {moved:.4f}"
    return told("VALIDATION", text, findings)


def scores(case: Case) -> Report:
    """The metrics of the validation on answers whose scores are known."""
    recording = case.few
    truth = recording.truth
    assert truth is not None
    truth = replace(truth, power=None, symbols=None).each(torch.Tensor.double)
    total = int(truth.active.sum())
    nowhere = truth.each(lambda value: value[:, :1] * math.nan)
    shifted = replace(truth, azimuth=truth.azimuth + math.radians(2.0))
    first = truth.each(lambda value: value[:, :1])
    first = replace(first, azimuth=first.azimuth + math.radians(2.0))
    extra = Sources(
        azimuth=torch.cat((truth.azimuth, torch.full_like(truth.azimuth[:, :1], 1.5)), 1),
        elevation=torch.cat((truth.elevation, torch.full_like(truth.azimuth[:, :1], -1.0)), 1),
        range=torch.cat((truth.range, torch.full_like(truth.azimuth[:, :1], 1.0)), 1),
    )

    # By the names that the validation has for them, so that they are those that it uses.
    held = vars(validation)

    def of(found: Sources) -> Score:
        return held["score"](held["match"](truth, found))

    none, near, partly, more = (of(found) for found in (nowhere, shifted, first, extra))
    seen = int(first.active.sum()) / total
    S = len(truth.azimuth)
    findings = [
        at_most(
            "share of the sources that count as found when nothing was, distance from 0",
            abs(none.recall),
            1e-6,
            "misses cost nothing: the matching is cut to min(K, K_hat).",
            "Count every true source without a partner as a miss.",
        ),
        at_most(
            "share found when one of each scene was, distance from the truth",
            abs(partly.recall - seen),
            1e-6,
            "misses cost nothing: the matching is cut to min(K, K_hat).",
            "Count every true source without a partner as a miss.",
        ),
        at_most(
            "share of false alarms with one more source in each scene, distance from the truth",
            abs(more.false_alarms - S / (total + S)),
            1e-6,
            "false alarms cost nothing: the matching is cut to min(K, K_hat).",
            "Count every found source without a partner as a false alarm.",
        ),
        at_most(
            "azimuth error of answers 2 deg off, some sources missed: distance from 2 deg",
            max(abs(near.azimuth_error_deg - 2.0), abs(partly.azimuth_error_deg - 2.0)),
            1e-3,
            "errors are not those of the hits: a penalty value for misses is averaged in, or heads are "
            "compared by "
            "index.",
            "Give errors of hits alone, and misses as a share.",
        ),
    ]
    return told("SCORES", f"{total} sources, answers of known scores", findings)
