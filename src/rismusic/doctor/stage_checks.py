"""Each stage of the network, and its sources, against dense forms.

The forms are written from the documentation, in double precision and with explicit matrices: no mistake
of the code is on both sides. Where a stage works on results of another one, both get these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.causes import place_of
from rismusic.doctor.hypotheses import explanation, given, step
from rismusic.doctor.report import listed, report_of, same
from rismusic.estimation.grid import highest_points
from rismusic.io import Recording
from rismusic.nn.monitors import Finding, Report
from rismusic.nn.network import Attention, Block, Network, Prediction, Stage

# Scenes that are calculated densely.
_SCENES = 4
# Largest relative distance of results that pass several layers.
_LAYERS = 1e-2
# Limits of logarithms, and the value outside the volume.
_LOWEST, _HIGHEST, _OUTSIDE = -8.0, 8.0, -30.0

# First input and output of each layer, by name; inner layers come first.
Calls = dict[str, tuple[Tensor, Any]]


def check_stages(case: Case) -> Report:
    """[STAGES]: results of each stage against those of dense forms in double precision."""
    recording, network = case.recording[: min(_SCENES, len(case.recording))], case.learner.network
    findings: list[Finding] = []
    if isinstance(network, Network) and type(network).forward is Network.forward:
        findings = _network_findings(case, network, recording)
    return report_of("STAGES", f"{len(findings)} outputs of the network", findings)


def _network_findings(case: Case, network: Network, recording: Recording) -> list[Finding]:
    """Each output of the network, from its weights and the statistics on the grid."""
    with torch.no_grad():
        scenes, initial, start = network.initial_statistics(recording)
        calls: Calls = {}
        modules = network.named_modules()
        handles = [one.register_forward_hook(partial(_note, calls, name)) for name, one in modules]
        with case.learner.single_precision():
            prediction = network(recording)
        for handle in handles:
            handle.remove()
        return _stage_findings(network, scenes, initial, start, prediction, calls)


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
    return [*found, *_source_findings(network, w, features, every_map, now, noise, prediction)]


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


def _source_findings(
    network: Network,
    w: Mapping[str, Tensor],
    features: Tensor,
    maps: Sequence[Tensor],
    now: Tensor,
    noise: Tensor,
    prediction: Prediction,
) -> list[Finding]:
    """Existence, amplitudes and number of sources, from the last heat map, which comes first of all."""
    of = partial(_sources, network, w, features, maps, now, noise)
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

    def less(what: str) -> Tensor:
        return of()[what] - share.get(what, 0.0) * height if what in share else of()[what]

    found: list[Finding] = []
    for what, one in outputs.items():
        if not found or found[-1].fine:
            value = one - share[what] * height if what in share else one
            text = f"{what} are not those of the last layers at the peaks of the last heat map."
            found.append(same(what, value, partial(less, what), text, _LAYERS))
    return found


def _sources(
    network: Network,
    w: Mapping[str, Tensor],
    features: Tensor,
    maps: Sequence[Tensor],
    now: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """Outputs for the sources by name, and the heights of their peaks."""
    grid = network.grid
    others = [given(f"the heat map of stage {n}", one) for n, one in enumerate(maps[1:], 1)]
    logits = given("that of the last stage", maps[0]) if others else maps[0]
    _, Y, Z = grid.shape
    S, K = len(features), network.spec.sources_max
    index = highest_points(logits.float().to(grid.inside.device), grid, K).cpu()
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
