"""Checks against independent forms: statistics of the draws, targets and losses, and the network's inside."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rismusic.doctor import references as ref
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.case import Case
from rismusic.doctor.layers import layer_record
from rismusic.doctor.loss_checks import total_of
from rismusic.doctor.report import listed, must_be_zero, report_of
from rismusic.io import Recording
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.nn.network import Prediction
from rismusic.sources import Sources
from rismusic.spec import limits

# Standard errors that a correlation of independent numbers may reach.
_ERRORS = 6.0
# Fewest pairs of sources for statistics.
_FEWEST_PAIRS = 64
# Scenes for each number of sources, from which one that never occurs is missing.
_SCENES_OF_EACH = 24
# Forms of the losses as documented: Huber scales, width of the heat map (grid steps), label smoothing.
_ANGLE_DEG, _LOG_RANGE, _WIDTH, _SMOOTHING = 5.0, 0.3, 0.6, 0.05


def check_draws(case: Case) -> Report:
    """[DRAWS]: numbers of sources, and independence of positions, symbols and noise."""
    spec = case.spec.system
    findings = [*_number_findings(case), *_position_findings(case.recordings)]
    findings += [*_pair_findings(case), *_level_findings(case), *_code_findings(case)]
    if spec.scene.symbols in ("gaussian", "qpsk"):
        findings += _symbol_findings(case)
    planned = [
        hidden
        for step in range(200)
        for hidden in case.trainer.scenes.noise_hidden(*divmod(step, case.spec.steps_per_epoch))
    ]
    share, expected = sum(planned) / len(planned), case.spec.hidden_noise
    findings.append(
        at_most(
            "share of batches with a hidden noise variance, distance from the settings",
            abs(share - expected),
            4 * math.sqrt(0.25 / len(planned)) if 0 < expected < 1 else 0.0,
            f"the noise variance is hidden in {share:.0%} of the batches, the settings have {expected:.0%}.",
            "Hide the noise variance in the share of batches of the settings (hidden_noise).",
        )
    )
    return report_of("DRAWS", f"{sum(map(len, case.recordings))} scenes", findings)


def _number_findings(case: Case) -> list[Finding]:
    truths = [recording.truth for recording in case.recordings]
    numbers = torch.cat([(~truth.azimuth.isnan()).sum(-1) for truth in truths if truth is not None]).cpu()
    low, high = limits(case.spec.system.sources)
    wanted = range(int(low), int(high) + 1)
    missing = [k for k in wanted if not bool(numbers.eq(k).any())]
    enough = len(numbers) >= _SCENES_OF_EACH * len(wanted)
    targets = Targets.of(case.recording, case.learner.grid)
    truth = case.recording.truth
    assert truth is not None
    off = int((targets.count.cpu() - (~truth.azimuth.isnan()).sum(-1).cpu()).abs().max())
    return [
        must_be_zero(
            "numbers of sources of the settings that never occur",
            len(missing) if enough else 0,
            f"no scene has K = {', '.join(map(str, missing))} sources, which the settings ask for.",
            "Draw every number of sources from the lowest to the highest, both included.",
        ),
        must_be_zero(
            "scenes with a number of sources outside the settings",
            int((numbers.lt(low) | numbers.gt(high)).sum()),
            "some scenes have another number of sources than the settings allow.",
            "Draw the number of sources within the limits of the settings.",
        ),
        must_be_zero(
            "largest distance of the targets' number of sources from the labels",
            off,
            f"the number of sources in the targets (count) is off by {off}.",
            "Count the sources that are present in a scene.",
        ),
    ]


def _position_findings(recordings: list[Recording]) -> list[Finding]:
    truths = [recording.truth for recording in recordings if recording.truth is not None]
    values = {
        name: torch.cat([getattr(t, name)[~t.azimuth.isnan()].double().cpu() for t in truths])
        for name in ("azimuth", "elevation", "range")
    }
    findings = []
    for one, other in itertools.combinations(values, 2):
        a, b = (values[name] - values[name].mean() for name in (one, other))
        size = float(a.norm() * b.norm())
        if size > 0 and len(a) >= 64:
            findings.append(
                at_most(
                    f"correlation of {one} and {other} over the sources",
                    abs(float((a * b).sum())) / size,
                    # The separation of sources correlates them slightly.
                    max(0.15, _ERRORS / math.sqrt(len(a))),
                    f"{one} and {other} of the sources are correlated: they are not drawn independently.",
                    "Draw each coordinate from random numbers of its own.",
                )
            )
    return findings


def _pair_findings(case: Case) -> list[Finding]:
    """Sources side by side, against positions that are drawn here by the rule of the settings."""
    scene = case.spec.system.scene
    limit = math.radians(scene.separation_deg)
    truths = [recording.truth for recording in case.recordings if recording.truth is not None]
    found = {"azimuth": 0, "elevation": 0}
    pairs, wrong = [], 0
    for truth in truths:
        places = torch.stack((truth.azimuth, truth.elevation), -1).double().cpu()
        for i, j in itertools.combinations(range(places.shape[1]), 2):
            gap = (places[:, i] - places[:, j]).abs()
            gap = torch.minimum(gap, 2 * math.pi - gap)
            pairs.append(gap[gap.isfinite().all(-1)])
    gaps = torch.cat(pairs) if pairs else torch.zeros(0, 2)
    if len(gaps) < _FEWEST_PAIRS or limit == 0:
        return []
    wrong = int((gaps.amax(-1) < limit * (1 - 1e-5)).sum())
    generator = torch.Generator().manual_seed(0)
    reach = torch.tensor([scene.azimuth_max_deg, scene.elevation_max_deg], dtype=torch.float64).deg2rad()
    drawn = (2 * torch.rand(2, 20000, 2, generator=generator, dtype=torch.float64) - 1) * reach
    other = (drawn[0] - drawn[1]).abs()
    other = torch.minimum(other, 2 * math.pi - other)
    other = other[other.amax(-1) >= limit]
    findings = [
        must_be_zero(
            "pairs of sources that are closer than the settings allow",
            wrong,
            "some sources are closer than separation_deg in both angles.",
            "Draw positions again until azimuth or elevation differ by separation_deg.",
        )
    ]
    for n, name in enumerate(found):
        share, expected = (float((one[:, n] < limit).double().mean()) for one in (gaps, other))
        error = math.sqrt(max(expected * (1 - expected), 1e-6) / len(gaps))
        findings.append(
            at_most(
                f"share of the pairs with nearly equal {name}, distance from a uniform draw, in errors",
                abs(share - expected) / error,
                _ERRORS - 1.5,
                f"{share:.1%} of the pairs of sources have nearly the same {name}, but {expected:.1%} of "
                "those that are drawn uniformly with this separation: the rule of the separation is another "
                "one (both angles in place of one?), or the draw is not uniform.",
                "A set of positions is kept if every pair is apart in azimuth or in elevation.",
            )
        )
    return findings


def _level_findings(case: Case) -> list[Finding]:
    """Mean and spread of the SNR; shape of noise and symbols."""
    spec = case.spec.system
    low, high = limits(spec.snr_db)
    ratios, noises, symbols = [], [], []
    for recording in case.recordings:
        clean, truth = ref.true_signal(spec, recording), recording.truth
        if clean is None or truth is None or truth.symbols is None:
            return []
        noise = recording.snapshots.to(torch.complex128) - clean
        power = noise.abs().square().mean((1, 2))
        ratios.append(10 * (clean.abs().square().mean((1, 2)) / power).log10())
        noises.append((noise / power.sqrt()[:, None, None]).flatten())
        s = truth.symbols[~truth.azimuth.isnan()].to(torch.complex128)
        if s.shape[-1] >= 4:
            p = truth.power[~truth.azimuth.isnan()].double() if truth.power is not None else None
            symbols.append(s.abs().square().mean(-1) / p if p is not None else s.new_ones(0).real)
    ratio, n = torch.cat(ratios), torch.cat(noises)
    error = (high - low) / math.sqrt(12 * len(ratio)) + 0.05
    L = spec.codebook.snapshots
    found = [
        at_most(
            "distance of the mean SNR from the middle of the settings, dB, in errors",
            abs(float(ratio.mean()) - (low + high) / 2) / error,
            _ERRORS,
            f"the mean SNR of the scenes is {float(ratio.mean()):.1f} dB, the settings have "
            f"{(low + high) / 2:.1f} dB ({low:g} to {high:g} dB): the decibels are of amplitudes (20 log10), "
            "or the draw is not uniform.",
            "SNR in dB is 10 log10 of the ratio of powers, drawn uniformly.",
        ),
        at_most(
            "fourth moment of the noise over that of a circular Gaussian, distance from 1",
            abs(float(n.abs().pow(4).mean()) / 2 - 1),
            _ERRORS * math.sqrt(5 / len(n)),
            "the noise is not Gaussian.",
            "Real and imaginary part are independent and normal, each with half of the variance.",
        ),
        at_most(
            "correlation of the real and imaginary part of the noise, and difference of their powers",
            float(n.square().mean().abs()),
            _ERRORS * math.sqrt(2 / len(n)),
            "the noise is not circular: its real and imaginary part differ in power, or are correlated.",
            "Draw real and imaginary part alike, from random numbers of their own.",
        ),
    ]
    power = torch.cat(symbols) if symbols else torch.zeros(0)
    if len(power) >= 64 and spec.scene.symbols in ("gaussian", "qpsk"):
        found.append(
            at_most(
                "mean power of the symbols over that of the labels, distance from 1",
                abs(float(power.mean()) - 1),
                _ERRORS / math.sqrt(len(power) * L) + 1e-3,
                "the symbols do not have the powers of the labels.",
                "Scale symbols of unit power by the root of the source's power.",
            )
        )
    return found


def _code_findings(case: Case) -> list[Finding]:
    """Phases of random RIS configurations."""
    spec = case.spec.system.codebook
    codes = [one.codes for one in case.simulated if one.codes is not None]
    if spec.kind != "random" or not codes or case.spec.system.hardware != type(case.spec.system.hardware)():
        return []
    c = torch.cat([one if one.ndim == 3 else one[None] for one in codes]).to(torch.complex128).cpu()
    # Scenes may share one codebook.
    c = torch.view_as_complex(torch.view_as_real(c).unique(dim=0)).flatten()
    found = [
        at_most(
            "mean of the random RIS configurations, in errors",
            float(c.mean().abs()) * math.sqrt(len(c)),
            _ERRORS,
            "the phases of random RIS configurations are not uniform over a whole turn (half a turn only?).",
            "Draw phases from 0 to 2 pi.",
        ),
        at_most(
            "largest distance of the modulus of a RIS configuration from 1",
            float((c.abs() - 1).abs().max()),
            1e-4,
            "RIS configurations do not have unit modulus.",
            "c = exp(j phase).",
        ),
    ]
    if isinstance(spec.bits, int) and spec.bits < 6:
        turns = c.angle() / (2 * math.pi) * 2**spec.bits
        found.append(
            at_most(
                "largest distance of a phase of the RIS configurations from its levels, in levels",
                float((turns - turns.round()).abs().max()),
                1e-3,
                f"the phases are not multiples of a turn over 2^{spec.bits}.",
                "Quantise phases to 2 pi / 2^bits.",
            )
        )
    return found


def _symbol_findings(case: Case) -> list[Finding]:
    """Symbols of different sources, and symbols and noise, are independent."""
    between, noisy, numbers, pairs = [], torch.zeros(2, dtype=torch.float64), 0, 0.0
    for recording in case.recordings:
        truth, clean = recording.truth, ref.true_signal(case.spec.system, recording)
        if truth is None or truth.symbols is None or clean is None or recording.noise_variance is None:
            continue
        s = truth.symbols.to(torch.complex128).cpu()
        unit = s / s.norm(dim=-1, keepdim=True)
        here = ~truth.azimuth.isnan().cpu()
        for i, j in itertools.combinations(range(s.shape[1]), 2):
            both = here[:, i] & here[:, j]
            between.append((unit[both, i] * unit[both, j].conj()).sum(-1).abs())
        n = (recording.snapshots.to(torch.complex128) - clean).flatten(1).cpu()
        n = n / recording.noise_variance.double().sqrt()[:, None].cpu()
        # The same numbers in both would stand in the same places.
        flat = unit.flatten(1)
        length = min(flat.shape[1], n.shape[1])
        known = flat[:, :length].isfinite()
        products = torch.where(known, n[:, :length] * flat[:, :length].conj(), 0)
        sizes = torch.where(known, flat[:, :length], 0).abs().square().sum()
        noisy += torch.stack((products.real.sum(), products.imag.sum()))
        numbers += int(known.sum())
        pairs += float(sizes)
    findings = []
    coherence = torch.cat(between) if between else torch.zeros(0)
    L = case.spec.system.codebook.snapshots
    if len(coherence) >= 16 and L >= 4:
        findings.append(
            at_most(
                "mean coherence of the symbols of two sources in a scene",
                float(coherence.mean()),
                0.5 + 1 / math.sqrt(L),
                "the symbols of the sources in a scene are coherent: they share their random numbers.",
                "Draw symbols for each source from random numbers of its own.",
            )
        )
    if numbers >= 256:
        findings.append(
            at_most(
                "correlation of noise and symbols",
                float(noisy.norm()) / math.sqrt(numbers * max(pairs, 1e-30)),
                _ERRORS / math.sqrt(numbers),
                "the noise is correlated with the symbols: both are made of the same random numbers.",
                "Draw noise and symbols from streams of their own.",
            )
        )
    return findings


def check_terms(case: Case) -> Report:
    """[TERMS]: covariances, and losses of positions and number of sources, against their definitions."""
    targets = Targets.of(case.recording, case.learner.grid)
    like = case.learner.predict(case.recording, averaged=False)
    prediction = ref.random_prediction(like)
    return report_of(
        "TERMS",
        "R_true, R_pred and losses of a random prediction, by their definitions",
        [*_covariance_findings(case, targets, prediction), *_term_findings(case, targets, prediction)],
    )


def _covariance_findings(case: Case, targets: Targets, prediction: Prediction) -> list[Finding]:
    spec, truth = case.spec.system, case.recording.truth
    assert truth is not None
    elements, uniform = ref.element_positions(spec.panel), spec.panel.wave == "uniform"
    findings = []
    if truth.power is not None:
        A = ref.true_steering(truth, elements, spec.panel.wavelength_m, uniform=uniform)
        p = torch.where(truth.azimuth.isnan(), 0, truth.power).double()
        R = ref.unit_trace(torch.einsum("snk,sk,smk->snm", A, p.to(A.dtype), A.conj()))
        off = ref.relative_distance(targets.true.dense().to(R.dtype).cpu(), R)
        findings.append(
            at_most(
                "relative distance of R_true from A diag(p) A^H of the labels",
                float(off.max()),
                1e-3,
                "R_true is not that of the true sources and their powers.",
                "Use the labels' positions and mean powers, and scale to trace 1.",
            )
        )
    a, b = (v.to(torch.complex128).cpu() for v in (prediction.angle_factor, prediction.range_factor))
    R = ref.unit_trace(a @ a.mH + 0.3 * b @ b.mH)
    off = ref.relative_distance(prediction.covariance.dense().to(R.dtype).cpu(), R)
    findings.append(
        at_most(
            "relative distance of R_pred from A_ang A_ang^H + 0.3 A_rng A_rng^H",
            float(off.max()),
            1e-3,
            "R_pred is not made of the two factors with the weights 1 and 0.3 (range factor).",
            "Build it with rismusic.covariance.predicted_covariance.",
        )
    )
    return findings


def _huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 1, x.square() / 2, x.abs() - 0.5)


def _term_findings(case: Case, targets: Targets, prediction: Prediction) -> list[Finding]:
    """Losses of the heads, by their definitions."""
    total = total_of(case, prediction, targets)
    found = {str(name): float(value) for name, value in total.terms.items()}
    weights = {str(name): value for name, value in total.weights.items()}
    truth = case.recording.truth
    assert truth is not None
    expected = _head_losses(truth, prediction, weights)
    logits = prediction.count_logits.double().cpu()
    K = (~truth.azimuth.isnan()).sum(-1).cpu()
    t = torch.full_like(logits, _SMOOTHING / logits.shape[1])
    t[torch.arange(len(K)), K] += 1 - _SMOOTHING
    expected["count"] = float((t * (t.log() - logits.log_softmax(-1))).sum(-1).mean())
    if prediction.grid_logits is not None:
        expected["heat_map"] = _heat_map_loss(case, truth, prediction)
    return [
        at_most(
            f"relative error of loss {name} of a random prediction against its definition",
            abs(found[name] - value) / max(abs(value), 1e-3),
            5e-3,
            f"loss {name} is {found[name]:.4g}, but {value:.4g} by its definition.",
            "Compare it with the formula in the documentation: sign, scale, units, target and mean.",
        )
        for name, value in expected.items()
        if name in found
    ]


def _head_losses(truth: Sources, prediction: Prediction, weights: dict[str, float]) -> dict[str, float]:
    """Losses of angle, log-range and existence, with an assignment for each scene."""
    totals = {"angle": 0.0, "log_range": 0.0, "existence": 0.0}
    S, Q = prediction.azimuth.shape
    for s in range(S):
        here = (~truth.azimuth[s].isnan()).nonzero()[:, 0]

        def of(value: Tensor, s: int = s) -> Tensor:
            return value[s].double().cpu()

        turn = [
            torch.remainder(of(one)[:, None] - of(two)[here] + math.pi, 2 * math.pi) - math.pi
            for one, two in ((prediction.azimuth, truth.azimuth), (prediction.elevation, truth.elevation))
        ]
        angle = sum((_huber(torch.rad2deg(one) / _ANGLE_DEG) for one in turn), torch.zeros(())) / 2
        distance = of(prediction.inverse_range)[:, None] * of(truth.range)[here]
        log_range = _huber(distance.log() / _LOG_RANGE)
        e = of(prediction.existence_logits)
        K = max(1, len(here))
        cost = (weights.get("angle", 0.0) * angle + weights.get("log_range", 0.0) * log_range) / K
        cost = cost - weights.get("existence", 0.0) / Q * e[:, None]
        rows, columns = linear_sum_assignment(cost.numpy())
        totals["angle"] += float(angle[rows, columns].sum()) / K
        totals["log_range"] += float(log_range[rows, columns].sum()) / K
        sign = torch.ones(Q, dtype=torch.float64)
        sign[rows] = -1
        totals["existence"] += float((1 + (sign * e).exp()).log().mean())
    return {name: value / S for name, value in totals.items()}


def _heat_map_loss(case: Case, truth: Sources, prediction: Prediction) -> float:
    """Divergence of the heat maps from sources that are spread over the grid points around them."""
    grid, maps = case.learner.grid, prediction.grid_logits
    assert maps is not None
    X, Y, Z = grid.shape
    inside = grid.inside.cpu().view(X, Y, Z)
    axes = [axis.double().cpu() for axis in (grid.u_x, grid.u_y, grid.q)]
    total = 0.0
    for s in range(len(maps)):
        target = torch.zeros(X, Y, Z, dtype=torch.float64)
        for k in (~truth.azimuth[s].isnan()).nonzero()[:, 0]:
            azimuth, elevation, distance = (
                float(v[s, k]) for v in (truth.azimuth, truth.elevation, truth.range)
            )
            place = (math.sin(azimuth) * math.cos(elevation), math.sin(elevation), 1 / distance)
            parts = []
            for axis, at, step in zip(axes, place, grid.step, strict=True):
                part = (-(((axis - at) / (_WIDTH * step)) ** 2) / 2).exp()
                parts.append(part / part.sum().clamp_min(1e-300))
            target += torch.einsum("x,y,z->xyz", *parts)
        target = (target * inside).flatten()
        if float(target.sum()) == 0:
            continue
        t = target[inside.flatten()] / target.sum()
        for logits in maps[s].double().cpu():
            log_share = logits[inside.flatten()].log_softmax(-1)
            total += float((torch.special.xlogy(t, t) - t * log_share).sum()) / maps.shape[1]
    return total / len(maps)


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
    findings = [
        must_be_zero(
            "change of the output when the labels are those of other scenes",
            off,
            "the network's output depends on the truth (a leak): labels reach it through the recording.",
            "Let the network use snapshots, channel, configurations and noise variance only.",
        ),
        *layers.unit_findings(),
    ]
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
        findings.append(
            must_be_zero(
                "parameters of the first stage without a gradient from the last heat map",
                len(lost),
                f"the features of the first stage are detached from the last one: {listed(lost)}.",
                "Pass the features on with their gradient.",
            )
        )
    sizes = {
        name: float(weight.detach().std()) * math.sqrt(weight[0].numel())
        for name, weight in learner.weights.items()
        if weight.ndim > 1
    }
    zero = [name for name, size in sizes.items() if size == 0]
    findings += [
        must_be_zero(
            "weight matrices that are zero at the start",
            len(zero),
            f"the initial weights of {listed(zero)} are zero, so that units stay alike.",
            "Draw initial weights at random.",
        ),
        at_most(
            "largest standard deviation of an initial weight times the square root of its inputs",
            max(sizes.values(), default=1.0),
            4.0,
            "the initial weights are too large: activations grow from layer to layer.",
            "Use a standard deviation of 1 / sqrt(inputs).",
        ),
        at_least(
            "median standard deviation of the initial weights times the square root of their inputs",
            sorted(sizes.values())[len(sizes) // 2] if sizes else 1.0,
            0.01,
            "the initial weights are too small: activations vanish from layer to layer.",
            "Use a standard deviation of 1 / sqrt(inputs).",
        ),
    ]
    return report_of("INSIDE", f"{len(layers.weighted)} layers with weights", findings)
