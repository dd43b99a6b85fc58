"""Functions of the package in their own calls: is each result that of its definition for what it was given?

A training takes a step, and validates, while a profile function records the arguments and results of the
functions of :mod:`rismusic.doctor.function_definitions`. Of functions with a wrong result, the ones are shown
that called no other such function: what they were given is right, so the mistake is theirs.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from rismusic.covariance import Covariance
from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.causes import place_of
from rismusic.doctor.function_definitions import DEFINITIONS, HANDED_ON
from rismusic.doctor.hypotheses import difference, explanation, given
from rismusic.doctor.loss_checks import every_weight, trial_losses
from rismusic.doctor.report import listed, report_of
from rismusic.doctor.state import in_double, names
from rismusic.estimation.grid import SearchGrid
from rismusic.io import Recording
from rismusic.nn import network, validation
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.validation import validate

# Scenes of a batch, dropout in the step, largest relative distance, and that of what is only handed on.
_BATCH, _DROPOUT, _SAME, _EXACT = 4, 0.25, 5e-4, 1e-6
# Scored scenes, in which a made-up prediction has too few, too many and the right number of sources.
_SCORED = 6
# Points per beam width of a grid for trials; calls of the plan of hidden noise variances.
_FINER, _TURNS = 4.5, 32
# Modules whose definitions take arguments as they are; in double precision in the others.
_RAW = ("nn.learner", "nn.network", "nn.validation", "simulation", "metrics:score", "estimation.spectra")
# Functions of objects that change with the training: compared as soon as they return.
_AT_ONCE = ("nn.learner", "nn.checkpoint", "nn.validation", "nn.network:Network._reset")
# Functions whose definitions mark their inputs themselves.
_MARKED = names("nn.losses:total_loss estimation.grid:_chosen estimation.grid:highest_points")
# Added to the size of a result: the rest of a difference, such as a loss at its minimum, is known to some
# roundings of 1e-7 only.
_SMALL = 1e-3
# Calls in which a mistake is searched for, and numbers of a result above which none is.
_CASES, _SEARCHED = 3, 30_000


@dataclass(eq=False)
class _Call:
    """One call: function, arguments, result, and the functions that it called."""

    name: str
    given: dict[str, Any]
    result: Any = None
    inner: set[str] = field(default_factory=set)
    # Found and right values, of a function whose object changes with the training.
    pairs: dict[str, tuple[Tensor, Tensor]] | None = None


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class _Recorder:
    """Notes calls of functions by their code, while it is the profile function."""

    def __init__(self, functions: Mapping[CodeType, str]) -> None:
        self.functions, self.calls = functions, list[_Call]()
        self._open: list[tuple[FrameType, _Call]] = []
        self._kept: dict[str, int] = {}

    def again(self) -> None:
        """Record the next call of every function."""
        self._kept.clear()

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        """A call or a return."""
        name = self.functions.get(frame.f_code) if event in ("call", "return") else None
        if name is None:
            return
        if event == "call":
            for _, outer in self._open:
                outer.inner.add(name)
            kept = self._kept[name] = self._kept.get(name, 0) + 1
            if kept & (kept - 1) == 0:  # a power of two: early and late calls
                arguments = {key: _copied(one) for key, one in frame.f_locals.items()}
                self._open.append((frame, _Call(name, arguments)))
        elif self._open and self._open[-1][0] is frame:
            call = self._open.pop()[1]
            call.result = call.given.get("self") if value is None else value
            if call.result is not None:
                if call.name.startswith(_AT_ONCE):
                    sys.setprofile(None)
                    call.pairs = _pairs(call)
                    sys.setprofile(self)
                self.calls.append(call)


def _functions() -> dict[str, Any]:
    """The functions of the definitions by name, those of classes and properties as plain functions."""
    found: dict[str, Any] = {}
    for name in DEFINITIONS:
        module, _, place = name.partition(":")
        one: Any = importlib.import_module(f"rismusic.{module}")
        for part in place.split("."):
            one = inspect.getattr_static(one, part, None)
        one = getattr(one, "fget", None) or getattr(one, "__func__", one)
        if one is not None:
            found[name] = inspect.unwrap(one)
    return found


def _in_double(name: str, value: Any) -> Any:
    """An argument of a definition: tensors in double precision and marked as inputs; covariances dense."""
    if isinstance(value, Covariance):
        return given(f"`{name}`", ref.dense(value))
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value if value.dtype == torch.bool else given(f"`{name}`", in_double(value))
    if isinstance(value, tuple) and any(isinstance(one, Tensor) for one in value):
        return tuple(_in_double(f"{name}[{n}]", one) for n, one in enumerate(value))
    if is_dataclass(value) and not isinstance(value, (type, Recording, SearchGrid)):
        parts = {key: one for key, one in vars(value).items() if isinstance(one, Tensor)}
        return replace(value, **{key: _in_double(f"{name}.{key}", one) for key, one in parts.items()})
    return value


def _expected(call: _Call) -> Any:
    """The right result of a call."""
    define = DEFINITIONS[call.name]
    arguments = {**call.given, "result": call.result}
    own = call.given.get("self")
    if isinstance(own, Covariance):
        arguments["loading"] = own.loading
    wanted = inspect.signature(define).parameters
    raw = call.name.endswith("__") or call.name.startswith(_RAW)
    marked = call.name in _MARKED
    values = {
        key: value
        if (key == "result" and not isinstance(value, Tensor))
        or (raw and not isinstance(value, Tensor))
        or marked
        else _in_double(key, value)
        for key, value in arguments.items()
        if key in wanted
    }
    return define(**values)


def _pairs(call: _Call, only: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Found and right values of a call by name, or of one name."""
    if call.pairs is not None:
        return call.pairs
    right, found = _expected(call), call.result
    if right is None:
        return {}
    if isinstance(right, tuple):
        right = {f"result {n + 1}": (found[n], one) for n, one in enumerate(right)}
    elif not isinstance(right, dict):
        right = {"the result": (found, right)}
    pairs = {}
    for name, one in right.items():
        if only in (None, name):
            own = (
                one[0]
                if isinstance(one, tuple)
                else found[name]
                if isinstance(found, dict)
                else getattr(found, name)
            )
            two = one[1] if isinstance(one, tuple) else one
            pairs[name] = _tensor(own), _tensor(two() if callable(two) else two)
    return pairs


def _tensor(value: Any) -> Tensor:
    value = ref.dense(value) if isinstance(value, Covariance) else torch.as_tensor(value).detach().cpu()
    return value.to(torch.complex128 if value.is_complex() else torch.float64, copy=True)


def _distance(found: Tensor, right: Tensor) -> float:
    """Relative distance; missing values (NaN) must be in the same places."""
    if found.shape != right.shape:
        try:
            found, right = torch.broadcast_tensors(found, right)
        except RuntimeError:
            return math.inf
    gone = right.isnan()
    if not bool((found.isnan() == gone).all()):
        return math.inf
    found, right = found[~gone], right[~gone]
    return float((found - right).norm() / (right.norm() + _SMALL)) if len(right) else 0.0


def trial_peaks(grid: SearchGrid) -> None:
    """Peaks of random maps, on a grid on which the least distance of two of them is more than a step."""
    finer = SearchGrid.cover(grid.panel, grid.volume, _FINER)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(_SCORED, len(finer), generator=generator).to(finer.inside.device)
    vars(network)["highest_points"](maps, finer, _BATCH)


def trial_scores(recording: Recording) -> None:
    """Scores of made-up estimates: sources are missing, surplus, far away, exact, or none at all."""
    assert recording.truth is not None
    functions, truth = vars(validation), replace(recording.truth, power=None, symbols=None)
    found = truth.each(lambda value: torch.cat((value, value), -1).double())
    scene, slot = (torch.arange(n) for n in found.azimuth.shape)
    turn = torch.remainder(0.37 * (1 + 2 * slot + 5 * scene[:, None]), 1)
    near = replace(found, azimuth=found.azimuth + 0.06 * turn, range=found.range * (0.9 + turn / 5))
    for missing in (turn < 0.3, turn > 0.2, turn < 2):
        functions["score"](functions["match"](truth, near.blank(missing.to(found.azimuth.device))))


def _record(case: Case, functions: Mapping[str, Any]) -> list[_Call]:
    """The calls of a training that is made, takes a step with dropout, and validates."""
    spec, batch = case.spec, min(_BATCH, case.spec.batch)
    dropout = _DROPOUT if spec.network.kind == "sbl_unrolled" else 0.0
    spec = spec.replace(
        network=spec.network.replace(dropout=dropout),
        batch=batch,
        accumulation=2,
        scenes_per_epoch=8 * batch,
        validation_scenes=2 * batch + 1,
        scored_scenes=_SCORED,
    )
    codes = {one.__code__: name for name, one in functions.items() if hasattr(one, "__code__")}
    recorder, before = _Recorder(codes), sys.getprofile()
    sys.setprofile(recorder)
    try:
        trainer = case.start(spec)
        learner = trainer.learner
        trial_losses(case)
        learner.step(trainer.scenes.step(1, 1), 0.3, every_weight(case))
        learner.step(trainer.scenes.step(0, 2), 0.3, every_weight(case))
        learner.tensors()
        recorder.again()
        for turn in range(_TURNS):
            trainer.scenes.noise_hidden(*divmod(turn, spec.steps_per_epoch))
        trial_peaks(learner.grid)
        trial_scores(trainer.scenes.scored()[0])
        own = learner.predict
        for seed in range(2):
            vars(learner)["predict"] = lambda recording, seed=seed: ref.random_prediction(
                own(recording), seed
            )
            validate(learner, trainer.scenes)
            del vars(learner)["predict"]
        validate(learner, trainer.scenes)
    finally:
        sys.setprofile(before)
    return recorder.calls


def check_functions(case: Case) -> Report:
    """[FUNCTIONS]: results of single functions in a step and a validation, for what they are given."""
    functions = _functions()
    calls = _record(case, functions)
    wrong: dict[str, list[tuple[float, str, _Call]]] = {}
    inner: dict[str, set[str]] = {}
    for call in calls:
        inner.setdefault(call.name, set()).update(call.inner - {call.name})
        for part, (found, right) in _pairs(call).items():
            if (off := _distance(found, right)) > (_EXACT if call.name in HANDED_ON else _SAME):
                wrong.setdefault(call.name, []).append((off, part, call))
    findings = [
        _finding(name, some, calls, functions[name])
        for name, some in wrong.items()
        if not inner[name].intersection(wrong)
    ]
    used = {call.name for call in calls}
    text = f"{len(calls)} calls of {len(used)} functions, each by its definition"
    return report_of("FUNCTIONS", text, findings)


def _finding(name: str, wrong: list[tuple[float, str, _Call]], calls: list[_Call], function: Any) -> Finding:
    """A function with wrong results, and the change of its definition that gives them."""
    off, part, _ = max(wrong, key=lambda one: one[0] if math.isfinite(one[0]) else 0.0)
    pairs = [(one, _pairs(one)) for one in calls if one.name == name]
    cases = [(call, found[part]) for call, found in pairs if part in found]
    cases = sorted(cases, key=lambda one: -_distance(*one[1]))[:_CASES]
    cause, value, (found, right) = "", "", cases[0][1]
    if found.numel() > 1 or cases[0][0].pairs is None:

        def define(call: _Call, part: str) -> Tensor:
            return _pairs(call, part)[part][1].nan_to_num()

        shown = [one.nan_to_num() for _, (one, _) in cases]
        own = {id(call): values for call, values in pairs}
        others = [
            (one.nan_to_num(), partial(define, call, name))
            for call, _ in cases
            for name, (one, two) in own[id(call)].items()
            if name != part and one.shape == two.shape and one.numel() <= _SEARCHED
        ]
        if all(one.numel() <= _SEARCHED for one in shown):
            cause = explanation(shown, [partial(define, call, part) for call, _ in cases], others=others)
    earlier = [
        own[part] for call, own in pairs[: [one for one, _ in pairs].index(cases[0][0])] if part in own
    ]
    if not cause and any(max(_distance(found, one), _distance(one, two)) < _EXACT for one, two in earlier):
        cause = ": it is that of an earlier call (kept, and not computed again)"
    if found.numel() == right.numel() == 1 and float(found.real) and float(right.real):
        one, two = float(found.real), float(right.real)
        value = f" ({one:.4g} in place of {two:.4g}, {one / two:.4g} times)"
    elif not cause and found.numel() == right.numel() == 1:
        value = f" ({float(found.real):.4g} in place of {float(right.real):.4g})"
    elif not cause and not found.is_complex() and len(found.unique()) == 1:
        one, two = float(found.flatten()[0]), float(right.mean())
        value = f" ({one:.4g} everywhere, in place of {two:.4g} in the mean)"
    elif not cause:
        value = f" ({difference(found, right)})"
    parts = listed(list(dict.fromkeys(one for _, one, _ in wrong)))
    return at_most(
        f"relative distance of the result of {name.partition(':')[2]} from its definition ({part})",
        off,
        _EXACT if name in HANDED_ON else _SAME,
        f"{name.partition(':')[2]} does not give what its definition does for its arguments{cause}. "
        f"Wrong: {parts}{value}.",
        "Compare it with the formula in its documentation.",
        place_of(function),
    )
