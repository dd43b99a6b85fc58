"""Checks of the network: does the gradient reach every parameter, and does the output depend on the input?"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch.func import functional_call

from rismusic.array import steering
from rismusic.doctor import references as ref
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.case import Case
from rismusic.doctor.causes import place_of
from rismusic.doctor.layers import layer_record
from rismusic.doctor.loss_checks import every_weight, total_of
from rismusic.doctor.report import Findings, listed, report_of
from rismusic.doctor.state import weights_of
from rismusic.io import Recording
from rismusic.nn import monitors as probes
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.network import Network, Prediction
from rismusic.nn.validation import variety

# Repetitions of the same input: a dropout of few numbers may drop the same ones twice.
_REPETITIONS = 8
# Scenes, random directions, step and limit of the finite differences in the weights, in double precision.
_DENSE, _DIRECTIONS, _STEP, _DIFFERENCE = 4, 3, 1e-5, 1e-3


def check_gradient_paths(case: Case) -> list[Report]:
    """[GRADPATH] and [GRAD]: the probes of the training loop, on the scenes of the case."""
    return probes.gradients(case.learner, case.recording, 0.3, case.spec.loss.weights)


def check_optimizer(case: Case) -> Report:
    """[OPTIMIZER]: does the optimizer hold every parameter of the network, once?"""
    learner = case.learner
    held = list(map(id, weights_of(learner.optimizer)))
    names = {id(p): name for name, p in learner.network.named_parameters()}
    missing = [name for key, name in names.items() if key not in held]
    frozen = [name for name, p in learner.network.named_parameters() if not p.requires_grad]
    findings = Findings()
    meaning = f"these parameters never change: {listed(missing)}."
    findings.must_be_zero("parameters missing from the optimizer", len(missing), meaning)
    meaning = f"these parameters never change: {listed(frozen)}."
    advice = "Set requires_grad, unless they are frozen on purpose."
    findings.must_be_zero("parameters that are frozen (requires_grad is False)", len(frozen), meaning, advice)
    findings.must_be_zero(
        "parameters of the optimizer that do not belong to the network",
        sum(key not in names for key in held),
        "the optimizer changes weights of another network (a stale copy?).",
    )
    meaning = "they move twice in each step."
    findings.must_be_zero("parameters that the optimizer holds twice", len(held) - len(set(held)), meaning)
    text = f"{len(names)} parameters, {len(learner.optimizer.param_groups)} groups"
    return report_of("OPTIMIZER", text, findings)


class _Held:
    """Statistics on the grid that repeat their first results, in double precision."""

    def __init__(self, statistics: Any) -> None:
        self._statistics, self._found = statistics, list[Any]()
        self.results: Iterator[Any] | None = None

    def _result(self, name: str, *args: Any) -> Any:
        if self.results is not None:
            return next(self.results)
        found = getattr(self._statistics, name)(*args)
        self._found.append(ref.doubled(found))
        return found

    def __call__(self, *args: Any) -> Any:
        return self._result("__call__", *args)

    def __getattr__(self, name: str) -> Any:
        return partial(self._result, name)

    def again(self) -> None:
        """Repeat the results from the first one on."""
        self.results = iter(self._found)


def check_backward(case: Case) -> Report:
    """[BACKWARD]: derivatives of every output and of the loss by the weights, against finite differences.

    No gradient passes through the statistics on the grid, and none from the range factor to the angles.
    """
    own, short = case.learner.network, case.recording[: min(_DENSE, len(case.recording))]
    if not isinstance(own, Network) or type(own).forward is not Network.forward:
        return report_of("BACKWARD", "skipped: a network of another kind")
    network, recording = copy.deepcopy(own), ref.recording_in_double(short)
    network.set_precision(None)
    held = _Held(network._statistics)
    vars(network)["_statistics"] = held
    with torch.no_grad():
        network(short)
    network.double()
    weights = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    targets = Targets.of(recording, case.learner.grid)
    generator = torch.Generator().manual_seed(0)
    random: dict[str, torch.Tensor] = {}

    def outputs(at: dict[str, torch.Tensor]) -> Prediction:
        held.again()
        return cast(Prediction, functional_call(network, at, (recording,)))

    def numbers(prediction: Prediction) -> dict[str, torch.Tensor]:
        """Each output, multiplied by random numbers and summed up; factors up to the phase of a column."""
        found = {}
        for field in fields(Prediction):
            value = getattr(prediction, field.name)
            if value is None:
                continue
            size = (value.shape[1], value.shape[1]) if value.is_complex() else value.shape
            if field.name not in random:
                random[field.name] = torch.randn(size, generator=generator, dtype=value.dtype)
            times = random[field.name]
            form = (value.conj() * (times @ value)).real if value.is_complex() else times * value
            found[field.name] = form.sum()
        return found

    base = outputs(weights)
    slopes = numbers(base)
    slopes["the loss"] = case.learner.prediction_losses(base, recording, 0.3, every_weight(case)).total
    at_angles = base.azimuth.detach(), base.elevation.detach()

    def values(at: dict[str, torch.Tensor]) -> dict[str, float]:
        one = outputs(at)
        B = steering(own.grid.panel, *at_angles, 1 / one.inverse_range) * one.range_factor.norm(
            dim=1, keepdim=True
        )
        one = replace(one, range_factor=B)
        total = total_of(case, one, targets).total
        return {name: float(value) for name, value in {**numbers(one), "the loss": total}.items()}

    gradients = {
        name: dict(zip(weights, _gradient(value, list(weights.values())), strict=True))
        for name, value in slopes.items()
    }
    groups: dict[str, list[str]] = {}
    for name in weights:
        parts = name.split(".")
        groups.setdefault(".".join(parts[:2]) if parts[0] == "stages" else parts[0], []).append(name)
    wrong: dict[str, list[str]] = {}
    worst = 0.0
    for group, names in groups.items():
        errors: dict[str, list[float]] = {name: [] for name in slopes}
        sizes: dict[str, list[float]] = {name: [] for name in slopes}
        for _ in range(_DIRECTIONS):
            way = {n: torch.randn(weights[n].shape, generator=generator, dtype=torch.float64) for n in names}
            length = math.sqrt(sum(float(w.square().sum()) for w in way.values()))
            with torch.no_grad():
                ends = [
                    values({**weights, **{n: weights[n] + step / length * w for n, w in way.items()}})
                    for step in (_STEP, -_STEP)
                ]
            for name, gradient in gradients.items():
                rise = (ends[0][name] - ends[1][name]) / (2 * _STEP)
                expected = sum(float((gradient[n] * w).sum()) for n, w in way.items()) / length
                errors[name].append(abs(rise - expected))
                sizes[name].append(max(abs(rise), abs(expected), 1e-6 * abs(float(slopes[name].detach()))))
        for name, found in errors.items():
            # A direction may cross an edge, such as another highest peak; most do not.
            off = sorted(found)[len(found) // 2] / max(*sizes[name], 1e-12)
            worst = max(worst, off)
            if off > _DIFFERENCE:
                wrong.setdefault(name, []).append(group)
    text = "; ".join(f"{name} by {listed(found)}" for name, found in wrong.items())
    heads = "grid_logits" not in wrong and set(wrong) - {"the loss"}
    finding = at_most(
        "largest relative error of a derivative of an output by a group of weights",
        worst,
        _DIFFERENCE,
        f"the gradient is not the derivative inside the network: of {text}: a detach() or no_grad on the way "
        "cuts it, or it is replaced or scaled.",
        "Let autograd differentiate all between these weights and outputs.",
        place_of(type(own)._sources if heads else type(own).predict) if set(wrong) != {"the loss"} else "",
    )
    return report_of("BACKWARD", f"{len(slopes)} numbers by {len(groups)} groups of weights", [finding])


def _gradient(value: torch.Tensor, by: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in by]
    return torch.autograd.grad(value, by, retain_graph=True, allow_unused=True, materialize_grads=True)


def check_invariance(case: Case) -> Report:
    """[INPUT]: the output is repeatable, and independent of batch and input level."""
    recording, learner = case.recording, case.learner

    def predict(scenes: Recording) -> Prediction:
        return learner.predict(scenes, averaged=False)

    base = predict(recording)
    findings = [
        _unchanged(
            "repeated inputs",
            base,
            [predict(recording) for _ in range(_REPETITIONS)],
            "the output is random in validation: dropout that is on, or noise?",
            "Call network.eval() for validation, or remove the dropout.",
        ),
        _unchanged(
            "a scene without the others of its batch",
            base[slice(0, 1)],
            [predict(recording[:1])],
            "the scenes of a batch affect each other (a norm over the batch?).",
            "Normalise over channels, not over the batch.",
        ),
        _unchanged(
            "inputs 1000 times larger",
            base,
            [predict(_scaled(recording, 1e3))],
            "the input is not normalised. The output depends on the receiver's gain.",
            "Scale each scene to unit power first.",
        ),
    ]
    return report_of("INPUT", "repeated, alone, scaled", findings)


def _scaled(recording: Recording, gain: float) -> Recording:
    noise = recording.noise_variance
    noise = None if noise is None else noise * gain**2
    return replace(recording, snapshots=recording.snapshots * gain, noise_variance=noise)


def _unchanged(
    inputs: str, base: Prediction, others: Sequence[Prediction], meaning: str, advice: str
) -> Finding:
    worst = 0.0
    for other, field in itertools.product(others, fields(Prediction)):
        one, two = getattr(base, field.name), getattr(other, field.name)
        if one is None or not one.numel():
            continue
        one, two = one.detach(), two.detach()
        # The median over scenes: where two peaks are equally high, rounding may choose the other one.
        off = (one - two).abs().flatten(1).amax(1) / one.abs().flatten(1).amax(1).clamp_min(1e-6)
        worst = max(worst, float(off.median())) if off.isfinite().all() else math.inf
    return at_most(f"relative change of the output for {inputs}", worst, 1e-2, meaning, advice)


def check_constant_output(case: Case) -> Report:
    """[CONSTANT]: does the output differ from scene to scene, and depend on the snapshots?"""
    recording, learner = case.recording, case.learner
    base = learner.predict(recording, averaged=False).detach()
    noise = recording.noise_variance
    other = replace(
        recording,
        snapshots=recording.snapshots.flip(0),
        noise_variance=None if noise is None else noise.flip(0),
    )
    swapped = learner.predict(other, averaged=False).detach()
    moved = (base.angle_factor - swapped.angle_factor).abs().flatten(1).amax(1)
    moved = moved / base.angle_factor.abs().flatten(1).amax(1).clamp_min(1e-9)
    findings = Findings()
    findings.at_least(
        "variety of R_pred over the scenes, 0 to 1",
        variety(base.covariance),
        0.1,
        "the network predicts the same for every scene, such as free factors or the mean.",
    )
    findings.at_least(
        "relative change of the factors with the snapshots of another scene",
        float(moved.median()),
        1e-2,
        "the output hardly depends on the snapshots.",
    )
    for field in fields(Prediction):
        value = getattr(base, field.name)
        if value is None:
            continue
        flat = value.detach().flatten(1)
        spread = (flat - flat.mean(0)).abs().square().mean() / flat.abs().square().mean().clamp_min(1e-30)
        meaning = f"{field.name} is the same for every scene: a constant, or an output without an input?"
        if field.name == "count_logits":
            meaning = (
                "the number of sources is the same for every scene, as from MDL on a rank-deficient matrix."
            )
        findings.at_least(
            f"spread of {field.name} over the scenes, over its size", float(spread.sqrt()), 1e-4, meaning
        )
    return report_of("CONSTANT", "variety of the outputs before training", findings)


def check_inside(case: Case) -> Report:
    """[INSIDE]: labels do not reach the output, layers live, and late stages reach the early ones."""
    recording, learner = case.recording, case.learner
    truth = recording.truth
    assert truth is not None
    base = learner.predict(recording, averaged=False)
    other = learner.predict(replace(recording, truth=truth.each(lambda value: value.flip(0))), averaged=False)
    off = max(
        float((one - two).abs().max())
        for name in ("angle_factor", "count_logits", "azimuth", "existence_logits")
        for one, two in [(getattr(base, name), getattr(other, name))]
    )
    with layer_record(learner.network) as layers, CallRecorder(layers.observe):
        prediction = learner.network(recording)
    findings = Findings()
    meaning = "the network's output depends on the truth (a leak): labels reach it through the recording."
    findings.must_be_zero("change of the output when the labels are those of other scenes", off, meaning)
    findings += layers.input_findings()
    findings += layers.unit_findings()
    maps = prediction.grid_logits
    if maps is not None and maps.shape[1] > 1 and maps.requires_grad:
        weights = {name: w for name, w in learner.weights.items() if w.requires_grad}
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(maps[:, 0].shape, generator=generator).to(maps.device)
        reach = []
        for stage in (0, -1):
            found = torch.autograd.grad(
                (maps[:, stage] * random).sum(), list(weights.values()), retain_graph=True, allow_unused=True
            )
            reach.append(
                {name for name, g in zip(weights, found, strict=True) if g is not None and bool(g.any())}
            )
        # Each stage has a last layer of its own; the rest must serve the later stages too.
        lost = sorted(name for name in reach[0] - reach[1] if ".write." not in name)
        findings.must_be_zero(
            "parameters of the first stage without a gradient from the last heat map",
            len(lost),
            f"the features of the first stage are detached from the last one: {listed(lost)}.",
        )
    sizes = {
        name: float(weight.detach().std()) * math.sqrt(weight[0].numel())
        for name, weight in learner.weights.items()
        if weight.ndim > 1
    }
    zero = [name for name, size in sizes.items() if size == 0]
    meaning = f"the initial weights of {listed(zero)} are zero, so that units stay alike."
    findings.must_be_zero("weight matrices that are zero at the start", len(zero), meaning)
    findings.at_most(
        "largest standard deviation of an initial weight times the square root of its inputs",
        max(sizes.values(), default=1.0),
        4.0,
        "the initial weights are too large: activations grow from layer to layer.",
        "Use a standard deviation of 1 / sqrt(inputs).",
    )
    findings.at_least(
        "median standard deviation of the initial weights times the square root of their inputs",
        sorted(sizes.values())[len(sizes) // 2] if sizes else 1.0,
        0.01,
        "the initial weights are too small: activations vanish from layer to layer.",
        "Use a standard deviation of 1 / sqrt(inputs).",
    )
    return report_of("INSIDE", f"{len(layers.weighted)} layers with weights", findings)
