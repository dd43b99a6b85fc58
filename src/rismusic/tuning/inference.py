"""The settings of inference, searched on a network that is trained already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optuna

from rismusic.io import Recording
from rismusic.spec import LocateSpec
from rismusic.tuning.scoring import judge
from rismusic.tuning.space import Knob, apply
from rismusic.tuning.storage import experimental


@dataclass(frozen=True)
class Inference:
    """The best settings of inference for one network.

    Args:
        values: of the knobs; empty where nothing was better than the settings they began with.
        spec: the settings.
        cost: on the scenes that chose them.
        before: the cost there of the settings that they began with.
    """

    values: dict[str, Any]
    spec: LocateSpec
    cost: float
    before: float


def suggest(trial: optuna.Trial, knobs: dict[str, Knob]) -> dict[str, Any]:
    """A value for each knob."""
    values: dict[str, Any] = {}
    for name, knob in knobs.items():
        if knob.choices:
            values[name] = trial.suggest_categorical(name, knob.choices)
            continue
        assert knob.low is not None
        assert knob.high is not None
        if knob.whole:
            step = int(knob.step or 1)
            values[name] = trial.suggest_int(name, int(knob.low), int(knob.high), log=knob.log, step=step)
        else:
            values[name] = trial.suggest_float(
                name, float(knob.low), float(knob.high), log=knob.log, step=knob.step
            )
    return values


def tune_inference(
    recording: Recording, start: LocateSpec, knobs: dict[str, Knob], *, trials: int, seed: int
) -> Inference:
    """Try settings of inference; nothing is trained.

    Args:
        recording: the scenes that choose.
        start: the settings to begin with, with the weights.
        knobs: what is tried.
        trials: how often.
        seed: of the proposals.
    """
    before = judge(recording, start).cost
    best = Inference({}, start, before, before)
    if not knobs or not trials:
        return best
    with experimental():
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=min(5, trials))
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        values = suggest(trial, knobs)
        spec = apply(start, knobs, values)
        cost = judge(recording, spec).cost
        study.tell(trial, cost)
        if math.isfinite(cost) and cost < best.cost:
            best = Inference(values, spec, cost, before)
    return best
