"""Checks of the network: its gradients, what its output depends on, each stage by dense forms."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from rismusic.array import steering
from rismusic.doctor import references as ref
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.case import Case
from rismusic.doctor.causes import place_of
from rismusic.doctor.hypotheses import explanation, given, step
from rismusic.doctor.layers import initial_findings, layer_record
from rismusic.doctor.loss_checks import every_weight, gradients_by, total_of
from rismusic.doctor.report import Findings, listed, report_of, same
from rismusic.doctor.state import weights_of
from rismusic.io import Recording
from rismusic.nn import monitors as probes
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.network import Attention, Block, Network, Prediction, Stage
from rismusic.nn.validation import variety

# Repetitions of the same input: a dropout of few numbers may drop the same ones twice.
_REPETITIONS = 8
# Scenes that are calculated densely; directions, step and limit of the finite differences in the weights.
_DENSE, _DIRECTIONS, _STEP, _DIFFERENCE = 4, 3, 1e-5, 1e-3
# Largest relative distance of results that pass several layers.
_LAYERS = 1e-2
# Limits of logarithms, and the value outside the volume.
_LOWEST, _HIGHEST, _OUTSIDE = -8.0, 8.0, -30.0

# First input and output of each layer, by name; inner layers come first.
Calls = dict[str, tuple[Tensor, Any]]


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
    random: dict[str, Tensor] = {}

    def outputs(at: dict[str, Tensor]) -> Prediction:
        held.again()
        return cast(Prediction, functional_call(network, at, (recording,)))

    def numbers(prediction: Prediction) -> dict[str, Tensor]:
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

    def values(at: dict[str, Tensor]) -> dict[str, float]:
        one = outputs(at)
        B = steering(own.grid.panel, *at_angles, 1 / one.inverse_range)
        one = replace(one, range_factor=B * one.range_factor.norm(dim=1, keepdim=True))
        total = total_of(case, one, targets).total
        return {name: float(value) for name, value in {**numbers(one), "the loss": total}.items()}

    gradients = {name: gradients_by(weights, value) for name, value in slopes.items()}
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
                moves = ({n: step / length * w for n, w in way.items()} for step in (_STEP, -_STEP))
                ends = [values({**weights, **{n: weights[n] + m for n, m in one.items()}}) for one in moves]
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
    noise = None if noise is None else noise.flip(0)
    other = replace(recording, snapshots=recording.snapshots.flip(0), noise_variance=noise)
    swapped = learner.predict(other, averaged=False).detach()
    moved = (base.angle_factor - swapped.angle_factor).abs().flatten(1).amax(1)
    moved = moved / base.angle_factor.abs().flatten(1).amax(1).clamp_min(1e-9)
    findings = Findings()
    meaning = "the network predicts the same for every scene, such as free factors or the mean."
    findings.at_least("variety of R_pred over the scenes, 0 to 1", variety(base.covariance), 0.1, meaning)
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
            found = gradients_by(weights, (maps[:, stage] * random).sum())
            reach.append({name for name, g in found.items() if bool(g.any())})
        # Each stage has a last layer of its own; the rest must serve the later stages too.
        lost = sorted(name for name in reach[0] - reach[1] if ".write." not in name)
        findings.must_be_zero(
            "parameters of the first stage without a gradient from the last heat map",
            len(lost),
            f"the features of the first stage are detached from the last one: {listed(lost)}.",
        )
    findings += initial_findings(learner.network)
    return report_of("INSIDE", f"{len(layers.weighted)} layers with weights", findings)


def check_stages(case: Case) -> Report:
    """[STAGES]: each output of the network against dense forms, written from the documentation.

    These are in double precision and with explicit matrices: no mistake of the code is on both sides. Where a
    stage works on results of another one, both get these.
    """
    network, recording = case.learner.network, case.recording[: min(_DENSE, len(case.recording))]
    findings: list[Finding] = []
    if isinstance(network, Network) and type(network).forward is Network.forward:
        with torch.no_grad():
            scenes, initial, start = network.initial_statistics(recording)
            calls: Calls = {}
            modules = network.named_modules()
            handles = [one.register_forward_hook(partial(_note, calls, name)) for name, one in modules]
            with case.learner.single_precision():
                prediction = network(recording)
            for handle in handles:
                handle.remove()
            findings = _stage_findings(network, scenes, initial, start, prediction, calls)
    return report_of("STAGES", f"{len(findings)} outputs of the network", findings)


def _note(calls: Calls, name: str, _: object, given: tuple[Any, ...], result: Any) -> None:
    if isinstance(given[0], Tensor):
        calls[name] = (given[0], result)


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-30).log().clamp(_LOWEST, _HIGHEST)


def _stage_findings(
    network: Network, scenes: object, initial: Tensor, power: Tensor, prediction: Prediction, calls: Calls
) -> list[Finding]:
    """The heat map of each stage, and the sources, from the weights of the network."""
    grid, statistics = network.grid, network._statistics
    w = {name: value.detach().double().cpu() for name, value in network.named_parameters()}
    X, Y, Z = grid.shape
    S, inside = len(power), grid.inside.cpu()
    assert prediction.grid_logits is not None
    found, features, now = [], None, torch.zeros(0)
    noise = scenes.noise_variance.double().cpu().log() / 4  # type: ignore[attr-defined]
    for stage in range(network.spec.stages):
        matched, expected = statistics(scenes, power)  # type: ignore[arg-type]
        gain = scenes.gain  # type: ignore[attr-defined]
        now = (
            torch.stack((_log(matched / expected), _log(expected * power), _log(power * gain)), 1)
            .double()
            .cpu()
        )
        every = torch.cat((initial.double().cpu(), now), 1).view(S, -1, X, Y, Z)
        maps = [every[:, c, :, :, z] for c in range(every.shape[1]) for z in range(Z)]
        maps += [one.expand(S, X, Y) for one in network.place.double().cpu()]
        maps.append(noise[:, None, None].expand(S, X, Y))
        x = torch.stack(maps, 1)
        x = x if features is None else torch.cat((x, features), 1)
        features, heat = _stage(w, f"stages.{stage}.", x, network)

        def whole(heat: Tensor = heat, now: Tensor = now) -> Tensor:
            parts = (given("the SBL step", now[:, 0, inside]), given("the powers", now[:, 2, inside]))
            return given("the output of the layers", heat[:, inside]) + parts[1] + parts[0]

        logits = torch.where(inside, heat + now[:, 2] + now[:, 0], _OUTSIDE)
        # Without the part that comes from the statistics, which is larger at first.
        found_maps = prediction.grid_logits[:, stage].double().cpu()
        own = found_maps - now[:, 2] - now[:, 0]
        found.append(
            same(
                *(f"the heat map of stage {stage + 1}", own[:, inside], heat[:, inside]),
                f"the heat map of stage {stage + 1} is not that of its layers (input maps, blocks with "
                "residual connections, attention, output) with these weights.",
                _LAYERS,
            )
        )
        if not found[-1].fine:
            text, function = _innermost(network, w, calls, found_maps[:, inside], whole)
            return [*found[:-1], replace(found[-1], meaning=text, where=place_of(function))]
        share = logits.exp() / logits.exp().sum(-1, keepdim=True) + 1e-7 * inside
        gain = gain.double().cpu()
        level = scenes.signal.double().cpu() / (share * gain).sum(-1)  # type: ignore[attr-defined]
        power = (share * level[:, None]).to(power.dtype)
    assert features is not None
    every_map = (logits, *prediction.grid_logits.double().cpu().unbind(1)[:-1])
    of = partial(_sources, network, w, features, every_map, now, noise)
    return [*found, *_source_findings(of, prediction)]


def _innermost(
    network: Network, w: Mapping[str, Tensor], calls: Calls, found: Tensor, define: Callable[[], Tensor]
) -> tuple[str, Any]:
    """The first layer whose output is not that of its definition for what it was given, and its function."""
    modules = dict(network.named_modules())
    unused = [n for n, m in modules.items() if list(m.parameters(recurse=False)) and n not in calls]
    never = f"; never called: {listed(unused)}" if unused else ""
    for name, (entered, result) in calls.items():
        module, x = modules[name], entered.double().cpu()
        layers: Callable[[], Tensor] | None = None
        if isinstance(module, Attention):
            layers = partial(_attention, w, f"{name}.", x, module.heads)
        elif isinstance(module, Block):
            layers = partial(_block_of_maps, w, f"{name}.", x, network)
        elif isinstance(module, Stage):
            layers, result = partial(_heat_map, w, f"{name}.", x, network), result[1]
        if layers is not None:
            text = f"the output of {name} is not that of its layers for what it is given"
            one = same(name, result, layers, text, _LAYERS)
            if not one.fine:
                return one.meaning.rstrip(".") + f"{never}.", type(module).forward
    return (
        "the heat map of a stage is not the output of its layers, which is right, plus the logarithms of the "
        "SBL step and of the powers that it starts from; or the input maps are others"
        + f"{explanation([found], [define])}.",
        type(network).predict,
    )


def _stage(w: Mapping[str, Tensor], name: str, x: Tensor, network: Network) -> tuple[Tensor, Tensor]:
    """Features and heat map of a stage, with explicit sums."""
    h = _linear(x.movedim(1, -1), w, name + "read.")
    for number in range(network.spec.depth):
        h = _block(w, f"{name}blocks.{number}.", h, network)
    return h.movedim(-1, 1), _linear(h, w, name + "write.").flatten(1)


def _heat_map(w: Mapping[str, Tensor], name: str, x: Tensor, network: Network) -> Tensor:
    return _stage(w, name, x, network)[1]


def _block_of_maps(w: Mapping[str, Tensor], name: str, x: Tensor, network: Network) -> Tensor:
    return _block(w, name, x.movedim(1, -1), network).movedim(-1, 1)


def _linear(value: Tensor, w: Mapping[str, Tensor], which: str) -> Tensor:
    weight = w[which + "weight"]
    return value @ weight.reshape(len(weight), -1).mT + w[which + "bias"]


@step("the norm")
def _norm(value: Tensor, w: Mapping[str, Tensor], which: str) -> Tensor:
    centred = value - value.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[which + "weight"] + w[which + "bias"]


@step("the GELU")
def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _block(w: Mapping[str, Tensor], block: str, h: Tensor, network: Network) -> Tensor:
    """A block of features [S, X, Y, C]."""
    S, X, Y, _ = h.shape
    kernel, pad = w[block + "near.weight"], network.spec.kernel // 2
    padded = functional.pad(h.movedim(-1, 1), (pad,) * 4)
    near = sum(
        padded[:, :, i : i + X, j : j + Y] * kernel[:, 0, i, j, None, None]
        for i in range(kernel.shape[2])
        for j in range(kernel.shape[3])
    )
    assert isinstance(near, Tensor)
    near = near.movedim(1, -1) + w[block + "near.bias"]
    wide = _linear(_norm(near, w, block + "norm."), w, block + "widen.")
    h = h + _linear(_gelu(wide), w, block + "narrow.")
    if block + "attention.ask.weight" in w:
        h = h + _attention(w, block + "attention.", h.reshape(S, X * Y, -1), network.spec.heads).view_as(h)
    return h


def _attention(w: Mapping[str, Tensor], name: str, tokens: Tensor, heads: int) -> Tensor:
    S, T, width = tokens.shape
    asked = _linear(_norm(tokens, w, name + "norm."), w, name + "ask.")
    q, k, v = (part.view(S, T, heads, -1).transpose(1, 2) for part in asked.split(width, -1))
    q, k, v = given("the queries", q), given("the keys", k), given("the values", v)
    score = q @ k.mT / math.sqrt(width // heads)
    mixed = (score.softmax(-1) @ v).transpose(1, 2).reshape(S, T, width)
    return _linear(mixed, w, name + "answer.")


def _source_findings(of: Callable[[], dict[str, Tensor]], prediction: Prediction) -> list[Finding]:
    """Existence, amplitudes and number of sources against their definition (:func:`_sources`)."""
    height = of()["height"]
    norms = [prediction.angle_factor.norm(dim=1).log(), prediction.range_factor.norm(dim=1).log()]
    outputs = {
        "the azimuths": prediction.azimuth,
        "the elevations": prediction.elevation,
        "the inverse ranges": prediction.inverse_range,
        "the existence logits": prediction.existence_logits,
        "the angle factor's amplitudes": norms[0],
        "the range factor's amplitudes": norms[1],
        "the logits of the number of sources": prediction.count_logits,
    }
    # Without the height of the peak, which is larger at first. A peak that is as high as another may be in
    # another place.
    share = {
        "the existence logits": 1.0,
        "the angle factor's amplitudes": 0.5,
        "the range factor's amplitudes": 0.5,
    }

    def less(what: str, values: Mapping[str, Tensor]) -> Tensor:
        return values[what] - share[what] * height if what in share else values[what]

    def right(what: str) -> Tensor:
        return less(what, of())

    found: list[Finding] = []
    for what in outputs:
        if not found or found[-1].fine:
            text = f"{what} are not those of the last layers at the peaks of the last heat map."
            found.append(same(what, less(what, outputs), partial(right, what), text, _LAYERS))
    return found


def _sources(
    network: Network,
    w: Mapping[str, Tensor],
    features: Tensor,
    maps: Sequence[Tensor],
    now: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """Outputs for the sources by name, and the heights of their peaks, from the heat maps, the last first."""
    grid = network.grid
    others = [given(f"the heat map of stage {n}", one) for n, one in enumerate(maps[1:], 1)]
    logits = given("that of the last stage", maps[0]) if others else maps[0]
    _, Y, Z = grid.shape
    S, K = len(features), network.spec.sources_max
    index = ref.peaks(grid, logits.float(), K)
    x, y, z = index // (Y * Z), index // Z % Y, index % Z
    height = logits.log_softmax(-1).gather(1, index)
    weight = w["details.weight"].reshape(6, Z, -1)
    bias = w["details.bias"].view(6, Z)
    rows = torch.arange(S)[:, None]
    at = features[rows, :, x, y]
    details = torch.einsum("skw,jskw->skj", at, weight[:, z]) + bias[:, z].movedim(0, -1)
    pooled = torch.cat((features.mean((2, 3)), features.amax((2, 3)), noise[:, None], height), 1)
    pooled = torch.cat((pooled, now.amax((1, 2))[:, None]), 1)
    hidden = pooled @ w["count.0.weight"].mT + w["count.0.bias"]
    count = _gelu(hidden) @ w["count.2.weight"].mT + w["count.2.bias"]
    azimuth, elevation, distance = ref.interpolated(grid, logits, index, details[..., :3].tanh())
    return {
        "height": height,
        "the azimuths": azimuth,
        "the elevations": elevation,
        "the inverse ranges": 1 / distance,
        "the existence logits": height + details[..., 5] + 4,
        "the angle factor's amplitudes": height / 2 + details[..., 3],
        "the range factor's amplitudes": height / 2 + details[..., 4],
        "the logits of the number of sources": count,
    }
