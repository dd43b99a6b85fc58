"""Checks of data and physics: geometry, steering vectors, labels, signals, channels and splits."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.report import Findings, report_of
from rismusic.estimation.grid import to_cosines
from rismusic.io import Recording
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.sources import Sources
from rismusic.spec import SystemSpec, limits

# Number of positions at which all steering functions are compared.
_POSITIONS = 12
# A source closer to a grid point than this, in grid steps in each coordinate, counts as on the grid.
_ON_GRID = 0.02
# Number of scenes of each split that are compared.
_COMPARED = 512
# Standard errors that a correlation of independent numbers may reach.
_ERRORS = 6.0
# Fewest pairs of sources for statistics.
_FEWEST_PAIRS = 64
# Scenes for each number of sources, from which one that never occurs is missing.
_SCENES_OF_EACH = 24
# Standard deviation of a uniform distribution over half its width.
_UNIFORM = 1 / math.sqrt(3)


def check_panel(case: Case) -> Report:
    """[PANEL]: element positions and wavelength of scenes and network against the settings."""
    spec = case.spec.system.panel
    pitch, expected = spec.spacing_wavelengths * spec.wavelength_m, ref.element_positions(spec)
    findings = Findings()
    for where, panel in (("the scenes", case.recording.panel), ("the network", case.learner.grid.panel)):
        elements = panel.elements.double().cpu()
        shift, cause = 2.0 * math.sqrt(len(expected)), ""
        if elements.shape == expected.shape:
            shift = float((elements - expected).abs().max()) / pitch
            cause = _layout_mistake(elements, expected, spec.columns, spec.wavelength_m)
        meaning = f"elements are not at the positions given by the settings{cause}."
        advice = "Positions are centred, in metres, y slowest and x fastest. Apply the wavelength once."
        findings.at_most(
            f"largest displacement of an element of {where}, over the spacing", shift, 1e-3, meaning, advice
        )
        measured = abs(panel.wavelength / spec.wavelength_m - 1)
        meaning = f"the wavelength is {panel.wavelength:g} m, but the settings have {spec.wavelength_m:g} m."
        findings.at_most(f"relative error of the wavelength of {where}", measured, 1e-9, meaning)
    return report_of("PANEL", f"{len(expected)} elements", findings)


def _layout_mistake(elements: Tensor, expected: Tensor, columns: int, wavelength: float) -> str:
    """The mistake that explains the element positions, if one does."""
    order = torch.arange(len(expected)).view(-1, columns).T.ravel()
    centred = elements - elements.mean(0)
    scale = float(centred.norm() / (expected - expected.mean(0)).norm().clamp_min(1e-30))
    squared = ", the wavelength squared" if math.isclose(scale, wavelength, rel_tol=0.01) else ""
    candidates = {
        ref.EXPECTED: elements - expected,
        ": they are in another order (x slowest)": elements - expected[order],
        ": x and y are exchanged": elements - expected[:, [1, 0, 2]],
        ": they are mirrored": elements + expected,
        ": the grid is off centre": centred - expected,
        f": the spacing is {scale:.3g} times the correct one{squared}": centred / max(scale, 1e-30)
        - expected,
    }
    return ref.best_explanation({name: float(off.norm()) for name, off in candidates.items()})


def check_steering(case: Case) -> Report:
    """[WAVE]: every function called ``steering`` and the matrices made by one, against distances in space."""
    spec = case.spec.system
    elements, columns = ref.element_positions(spec.panel), spec.panel.columns
    wavelength = spec.panel.wavelength_m
    panel, uniform = Panel(elements, wavelength, spec.panel.wave), spec.panel.wave == "uniform"
    positions = _positions_in_volume(case)
    expected = ref.steering_vectors(elements, wavelength, *positions, uniform=uniform)
    functions: dict[int, tuple[str, Callable[..., Tensor]]] = {}
    for name, module in sorted(sys.modules.items()):
        found = getattr(module, "steering", None) if name.startswith("rismusic.") else None
        if callable(found):
            functions.setdefault(id(found), (name, found))
    findings = [
        _same_steering(f"steering of {name}", function(panel, *positions), expected, columns)
        for name, function in functions.values()
    ]
    grid = case.learner.grid
    some = torch.linspace(0, len(grid) - 1, _POSITIONS).long()
    at = [value.cpu()[some] for value in (grid.azimuth, grid.elevation, grid.range)]
    on_grid = grid.steering(torch.complex64).cpu()[:, some]
    reference = ref.steering_vectors(elements, wavelength, *at, uniform=uniform)
    findings.append(_same_steering("steering of the network's grid", on_grid, reference, columns))
    truth = case.recording.truth
    assert truth is not None
    A = Targets.of(case.recording, grid).steering.cpu()
    active = truth.active.cpu()
    reference = ref.true_steering(truth, elements, wavelength, uniform=uniform).mT[active].mT
    findings.append(_same_steering("steering of the true sources", A.mT[active].mT, reference, columns))
    return report_of("WAVE", f"{len(functions)} functions called steering, grid and true sources", findings)


def _positions_in_volume(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Positions spread over the volume: azimuth, elevation (rad), range (m)."""
    scene = case.spec.system.scene
    turn = torch.linspace(-1, 1, _POSITIONS, dtype=torch.float64)
    azimuth = math.radians(scene.azimuth_max_deg) * turn
    # Other orders, so that the three coordinates are not proportional.
    elevation = math.radians(scene.elevation_max_deg) * turn[torch.arange(_POSITIONS) * 5 % _POSITIONS]
    fraction = (1 + turn[torch.arange(_POSITIONS) * 7 % _POSITIONS]) / 2
    return azimuth, elevation, scene.range_min_m + (scene.range_max_m - scene.range_min_m) * fraction


def _same_steering(name: str, found: Tensor, expected: Tensor, columns: int) -> Finding:
    """Compare the columns of two matrices [N, K]; a phase common to a column is allowed."""
    a, b = found.to(torch.complex128), expected

    def distance(x: Tensor, y: Tensor) -> float:
        along = (x.conj() * y).sum(0).abs() / (x.norm(dim=0) * y.norm(dim=0)).clamp_min(1e-30)
        return float((1 - along.square()).clamp_min(0).sqrt().max())

    order = torch.arange(len(b)).view(-1, columns).T.ravel()
    candidates = {
        ref.EXPECTED: distance(a, b),
        ": it is conjugated": distance(a, b.conj()),
        ": its elements are in another order (x slowest)": distance(a, b[order]),
        ": its elements are in reverse order": distance(a, b.flip(0)),
        ": it is conjugated and in another order": distance(a, b[order].conj()),
        ": it is the same at every position (degrees for radians, or converted twice?)": distance(
            a, a[:, :1].expand_as(a)
        ),
    }
    norms = float((a.norm(dim=0) - 1).abs().max())
    cause = ref.best_explanation(candidates) or ("" if norms < 1e-3 else ": its columns lack unit norm")
    measured = max(candidates[ref.EXPECTED], norms)
    meaning = f"it is not exp(j k (r - d)) with amplitudes 1 / d, elements y slowest{cause}."
    advice = "Use rismusic.array.steering everywhere, in radians and metres, and no copy of it."
    return at_most(f"{name}: distance from the exact spherical wave", measured, 5e-3, meaning, advice)


def check_labels(case: Case) -> Report:
    """[TRUTH]: do the labels explain the snapshots? With the true A, only noise remains outside G_l A."""
    spec = case.spec.system
    recording = case.recording
    truth = recording.truth
    assert truth is not None
    if spec.hardware != type(spec.hardware)():
        return report_of("TRUTH", "skipped: with hardware impairments the nominal link does not fit")
    exact = ref.element_positions(spec.panel)
    G, wavelength = ref.operators(recording), spec.panel.wavelength_m

    def residual(
        labels: Sources, elements: Tensor = exact, length: float = wavelength, conjugate: bool = False
    ) -> float:
        A = ref.true_steering(labels, elements, length, uniform=spec.panel.wave == "uniform")
        return ref.residual_over_noise(recording, G, A.conj() if conjugate else A)

    def angles(change: Callable[[Tensor], Tensor]) -> Sources:
        return replace(truth, azimuth=change(truth.azimuth), elevation=change(truth.elevation))

    moves = range(1, min(4, len(recording)))
    rolled = [truth.each(partial(torch.roll, shifts=by, dims=0)) for by in (*moves, *(-m for m in moves))]
    value = residual(truth)
    candidates = {
        ref.EXPECTED: value,
        ": the steering vector is conjugated": residual(truth, conjugate=True),
        ": azimuth and elevation are exchanged": residual(
            replace(truth, azimuth=truth.elevation, elevation=truth.azimuth)
        ),
        ": angles are in degrees": residual(angles(torch.deg2rad)),
        ": angles were converted to radians twice": residual(angles(torch.rad2deg)),
        ": azimuth is mirrored": residual(replace(truth, azimuth=-truth.azimuth)),
        ": elevation is mirrored": residual(replace(truth, elevation=-truth.elevation)),
        ": elements are in another order": residual(truth, exact[:, [1, 0, 2]]),
        ": the wavelength is wrong by a factor of 2": min(
            residual(truth, length=2 * wavelength), residual(truth, length=wavelength / 2)
        ),
        ": the labels belong to other scenes (shuffled)": min(
            residual(one) for one in (*rolled, truth.each(lambda labels: labels.flip(0)))
        ),
    }
    cause = ref.best_explanation({name: abs(one - 1) for name, one in candidates.items()})
    cause = cause or ": they are noisy or shuffled, or belong to another wavelength or panel"
    findings = Findings()
    findings.at_most(
        "residual of the snapshots after fitting the true sources, over the noise",
        value,
        1.25,
        f"the labels do not explain the snapshots{cause}.",
        "Compare simulator and labels: steering, units, order of the scenes, wavelength.",
    )
    meaning = "the recorded noise variance is larger than the noise in the snapshots."
    findings.at_least("residual of the snapshots over the noise, lower limit", value, 0.75, meaning)
    return report_of("TRUTH", f"residual over noise {value:.3f}", findings)


def check_positions(case: Case) -> Report:
    """[POSITIONS]: do the labels fill the volume, in radians and metres, off the grid, without repetition?"""
    scene = case.spec.system.scene
    azimuth, elevation, distance = _labels(case.recordings)
    findings = Findings()
    middle = (scene.range_max_m + scene.range_min_m) / 2
    half_range = (scene.range_max_m - scene.range_min_m) / 2
    coordinates = (
        ("azimuth", azimuth, math.radians(scene.azimuth_max_deg)),
        ("elevation", elevation, math.radians(scene.elevation_max_deg)),
        ("range", distance - middle, half_range),
    )
    for name, value, half in coordinates:
        if half == 0:
            continue
        meaning = f"some labels have a {name} outside the volume: degrees taken for radians, or another unit?"
        findings.at_most(
            f"largest {name} of a label, over its limit", float(value.abs().max()) / half, 1 + 1e-5, meaning
        )
        findings.at_least(
            f"standard deviation of the {name} of the labels, over that of a uniform draw",
            float(value.std(unbiased=False)) / (half * _UNIFORM),
            # The standard deviation of n uniform draws varies by sqrt(0.2 / n) of itself.
            min(0.7, 1 - 4 * math.sqrt(0.2 / len(value))),
            f"the {name} hardly varies: converted to radians twice, or drawn from a part of the volume?",
        )
    grid = case.learner.grid
    axes = zip(to_cosines(azimuth, elevation, distance), (grid.u_x, grid.u_y, grid.q), grid.step, strict=True)
    off = [(value[:, None] - axis.double().cpu()).abs().amin(1) / step for value, axis, step in axes]
    beyond = {name: float(value.max()) for name, value in zip(("u_x", "u_y", "1/range"), off, strict=True)}
    worst = max(beyond, key=lambda name: beyond[name])
    findings.at_most(
        "largest distance of a true source from the nearest row of the search grid, in grid steps",
        beyond[worst],
        0.75,
        f"the search grid does not reach all sources in {worst}: its limits are not those of the scenes.",
    )
    measured = float((torch.stack(off) < _ON_GRID).all(0).double().mean())
    meaning = "true positions are drawn on the grid that is searched. Errors then look like 0."
    findings.at_most("share of the true sources on a point of the search grid", measured, 0.01, meaning)
    meaning = "positions repeat: scenes or sources are drawn again, or from a grid."
    findings.at_least("share of distinct labels", len(azimuth.unique()) / len(azimuth), 0.9, meaning)
    return report_of("POSITIONS", f"{len(azimuth)} sources", findings)


def check_link(case: Case) -> Report:
    """[LINK]: Rician factor of the channel, and the dimensions that the RIS configurations span."""
    spec = case.spec.system
    findings = Findings()
    channel = [one.channel for one in case.simulated if one.channel is not None]
    if channel and spec.channel.kind == "rician":
        H = torch.cat([one if one.ndim == 3 else one[None] for one in channel]).to(torch.complex128)
        low, high = limits(spec.channel.rician_factor_db)
        if spec.one_link:
            # The Rician factor of the only link may be any.
            H, high = H[:1], low
        factor = 10 ** (torch.linspace(low, high, 101).double() / 10)
        expected = float((factor / (1 + factor)).mean())
        values = torch.linalg.svdvals(H).square()
        strongest = float((values[:, 0] / values.sum(-1)).mean())
        findings.at_least(
            "energy share of the channel's strongest path, over that given by the Rician factor",
            strongest / expected,
            0.8,
            "scatter is stronger than the nominal Rician factor says: undone by a normalisation?",
            "Scale line of sight and scatter to unit power per entry before mixing them.",
        )
    codes = [one.codes for one in case.simulated if one.codes is not None]
    if codes:
        c = torch.cat([one if one.ndim == 3 else one[None] for one in codes]).to(torch.complex128)
        # Scenes may share one codebook; within a codebook and between different ones nothing is repeated.
        c = torch.view_as_complex(torch.view_as_real(c).unique(dim=0)).flatten(0, 1)
        values = torch.linalg.eigvalsh(c.mH @ c)
        rank = float((values > 1e-3 * values[-1]).sum())
        findings.at_least(
            "dimensions spanned by the RIS configurations of all scenes, over the possible number",
            rank / min(c.shape),
            0.9,
            "the codebook uses only part of its beams: a stride that shares a factor with their number?",
        )
    text = f"{len(channel)} batches with a channel, {len(codes)} with configurations"
    return report_of("LINK", text, findings)


def check_draws(case: Case) -> Report:
    """[DRAWS]: numbers of sources, and independence of positions, symbols and noise."""
    spec = case.spec.system
    findings = Findings([*_alone_findings(case), *_number_findings(case)])
    findings += [*_position_findings(case.recordings), *_level_findings(case)]
    if spec.scene.symbols in ("gaussian", "qpsk"):
        findings += _symbol_findings(case)
    planned = [
        hidden
        for step in range(200)
        for hidden in case.trainer.scenes.noise_hidden(*divmod(step, case.spec.steps_per_epoch))
    ]
    share, expected = sum(planned) / len(planned), case.spec.hidden_noise
    findings.at_most(
        "share of batches with a hidden noise variance, distance from the settings",
        abs(share - expected),
        4 * math.sqrt(0.25 / len(planned)) if 0 < expected < 1 else 0.0,
        f"the noise variance is hidden in {share:.0%} of the batches, the settings have {expected:.0%}.",
    )
    return report_of("DRAWS", f"{sum(map(len, case.recordings))} scenes", findings)


def _alone_findings(case: Case) -> list[Finding]:
    """A scene does not depend on its batch: drawn alone it is the same, and batches are not alike inside."""
    batch = case.recordings[0]
    number = len(batch) - 1
    spec = case.spec.replace(batch=1, accumulation=1, hidden_noise=0.0)
    alone = next(iter(type(case.trainer.scenes)(spec, case.trainer.group).step(0, number)))
    same = scene_keys(alone) == scene_keys(batch[number:])
    found = Findings()
    for what, one, two in (
        ("noise variance", alone.noise_variance, batch.noise_variance),
        ("snapshots", alone.snapshots, batch.snapshots),
    ):
        assert one is not None
        assert two is not None
        off = float((one[0] - two[number]).norm() / one[0].norm())
        equal = len(two) > 1 and bool((two == two[:1]).all())
        found.at_most(
            f"relative change of the {what} of a scene that is drawn without the others of its batch",
            off if same else 0.0,
            1e-3,
            f"the {what} of a scene change with the other scenes of its batch (scene {number + 1} of "
            f"{len(batch)}, drawn alone, differs by {off:.2g})"
            f"{', in which they are all equal' if equal else ''}.",
            "Draw and scale each scene of a batch by itself.",
        )
    snr = [snr_db(case.spec.system, [recording]) for recording in case.recordings]
    numbers = [numbers_of_sources([recording]) for recording in case.recordings]
    for what, values in (("SNR", snr), ("number of sources", numbers)):
        free = sum(map(len, values)) - len(values)
        if len(values) < 2 or free < _FEWEST_PAIRS or (total := float(torch.cat(values).var())) < 1e-6:
            continue
        within = sum(float((value - value.mean()).square().sum()) for value in values) / free
        found.insert(
            0,
            at_least(
                f"variance of the {what} within a batch, over that of all scenes",
                within / total,
                1 - _ERRORS * math.sqrt(2 / free),
                f"the scenes of a batch have nearly the same {what}: within a batch, its variance is "
                f"{within / total:.0%} of that over all batches.",
                "Draw and scale each scene of a batch by itself.",
            ),
        )
    return found


def snr_db(spec: SystemSpec, recordings: list[Recording]) -> Tensor:
    """SNR of each scene, measured from the snapshots with the reference form of the true signal."""
    found = [torch.zeros(0, dtype=torch.float64)]
    for recording in recordings:
        clean = ref.true_signal(spec, recording)
        if clean is None:
            return found[0]
        noise = (recording.snapshots - clean).abs().square().mean((1, 2))
        found.append(10 * (clean.abs().square().mean((1, 2)) / noise).log10())
    return torch.cat(found)


def numbers_of_sources(recordings: list[Recording]) -> Tensor:
    """The number of sources of each scene."""
    truths = [recording.truth for recording in recordings if recording.truth is not None]
    return torch.cat([(~truth.azimuth.isnan()).double().sum(-1).cpu() for truth in truths])


def _number_findings(case: Case) -> list[Finding]:
    numbers = numbers_of_sources(case.recordings)
    low, high = limits(case.spec.system.sources)
    wanted = range(int(low), int(high) + 1)
    missing = [k for k in wanted if not bool(numbers.eq(k).any())]
    enough = len(numbers) >= _SCENES_OF_EACH * len(wanted)
    found = Findings()
    found.must_be_zero(
        "numbers of sources of the settings that never occur",
        len(missing) if enough else 0,
        f"no scene has K = {', '.join(map(str, missing))} sources, which the settings ask for.",
    )
    found.must_be_zero(
        "scenes with a number of sources outside the settings",
        int((numbers.lt(low) | numbers.gt(high)).sum()),
        "some scenes have another number of sources than the settings allow.",
    )
    return found


def _position_findings(recordings: list[Recording]) -> list[Finding]:
    values = dict(zip(("azimuth", "elevation", "range"), _labels(recordings), strict=True))
    findings = Findings()
    for one, other in itertools.combinations(values, 2):
        a, b = (values[name] - values[name].mean() for name in (one, other))
        size = float(a.norm() * b.norm())
        if size > 0 and len(a) >= 64:
            findings.at_most(
                f"correlation of {one} and {other} over the sources",
                abs(float((a * b).sum())) / size,
                # The separation of sources correlates them slightly.
                max(0.15, _ERRORS / math.sqrt(len(a))),
                f"{one} and {other} of the sources are correlated: they are not drawn independently.",
            )
    return findings


def _level_findings(case: Case) -> list[Finding]:
    """Limits and mean of the SNR; shape of the noise; symbols that are held."""
    spec = case.spec.system
    low, high = limits(spec.snr_db)
    ratios, recorded, noises, constant = [], [], [], []
    for recording in case.recordings:
        clean, truth = ref.true_signal(spec, recording), recording.truth
        if clean is None or truth is None or truth.symbols is None or recording.noise_variance is None:
            return []
        noise = recording.snapshots.to(torch.complex128) - clean
        power = noise.abs().square().mean((1, 2))
        level = clean.abs().square().mean((1, 2))
        ratios.append(10 * (level / power).log10())
        recorded.append(10 * (level / recording.noise_variance.double()).log10())
        noises.append((noise / power.sqrt()[:, None, None]).flatten())
        s = truth.symbols[~truth.azimuth.isnan()].to(torch.complex128)
        constant.append(s.mean(-1).abs().square().sum() / s.abs().square().mean(-1).sum())
    ratio, snr, n = torch.cat(ratios), torch.cat(recorded), torch.cat(noises)
    error = (high - low) / math.sqrt(12 * len(ratio)) + 0.05
    L = spec.codebook.snapshots
    ends = torch.tensor([low, high], dtype=torch.float64)
    scales = {ref.EXPECTED: 1.0, ": decibels of amplitudes (20 log10) for those of powers": 0.5}
    scales[": decibels of powers (10 log10) for those of amplitudes"] = 2.0
    measured = torch.stack((ratio.min(), ratio.max()))
    cause = ref.best_explanation({name: float((measured - k * ends).norm()) for name, k in scales.items()})
    # The power of Gaussian noise is known to this many dB in each scene.
    known = _ERRORS * 10 / math.log(10) / math.sqrt(case.recording.snapshots[0].numel())
    other = ": the recorded noise variance is not that of the scene's noise"
    stated = cause or (other if float((snr - ratio).abs().max()) > known else "")
    found = Findings()
    found.at_most(
        "share of the symbols' power in their mean over the snapshots",
        float(torch.stack(constant).mean()),
        max(0.5, 3 / L),
        "symbols are held constant over the snapshots. R_samp then contains little about the sources.",
    )
    found.at_most(
        "largest distance of a scene's SNR from the limits of the settings, dB",
        float(torch.maximum(low - snr, snr - high).max()),
        0.1,
        f"the SNR by the recorded noise variance is {float(snr.min()):.1f} to {float(snr.max()):.1f} dB, "
        f"that of the snapshots {float(ratio.min()):.1f} to {float(ratio.max()):.1f} dB, the settings "
        f"have {low:g} to {high:g} dB{stated}.",
    )
    found.at_most(
        "distance of the mean SNR from the middle of the settings, dB, in errors",
        abs(float(ratio.mean()) - (low + high) / 2) / error,
        _ERRORS,
        f"the mean SNR of the scenes is {float(ratio.mean()):.1f} dB, the settings have "
        f"{(low + high) / 2:.1f} dB ({low:g} to {high:g} dB){cause}.",
    )
    found.at_most(
        "fourth moment of the noise over that of a circular Gaussian, distance from 1",
        abs(float(n.abs().pow(4).mean()) / 2 - 1),
        _ERRORS * math.sqrt(5 / len(n)),
        "the noise is not Gaussian.",
    )
    found.at_most(
        "correlation of the real and imaginary part of the noise, and difference of their powers",
        float(n.square().mean().abs()),
        _ERRORS * math.sqrt(2 / len(n)),
        "the noise is not circular: its real and imaginary part differ in power, or are correlated.",
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
    findings = Findings()
    coherence = torch.cat(between) if between else torch.zeros(0)
    L = case.spec.system.codebook.snapshots
    if len(coherence) >= 16 and L >= 4:
        findings.at_most(
            "mean coherence of the symbols of two sources in a scene",
            float(coherence.mean()),
            0.5 + 1 / math.sqrt(L),
            "the symbols of the sources in a scene are coherent: they share their random numbers.",
        )
    if numbers >= 256:
        measured = float(noisy.norm()) / math.sqrt(numbers * max(pairs, 1e-30))
        meaning = "the noise is correlated with the symbols: both are made of the same random numbers."
        findings.at_most("correlation of noise and symbols", measured, _ERRORS / math.sqrt(numbers), meaning)
    return findings


def check_splits(case: Case) -> Report:
    """[LEAK]: do training, validation or epochs share scenes, and does a batch stay the same?"""
    scenes = case.scenes_with_noise
    steps = math.ceil(_COMPARED / (scenes.spec.batch * scenes.spec.accumulation))
    first = (scenes.step(0, step) for step in range(min(scenes.spec.steps_per_epoch, steps)))
    training = _scene_keys(chain.from_iterable(first))
    validation = _scene_keys(case.trainer.scenes.validation())
    findings = Findings()
    # With fresh = false, validation uses the training scenes on purpose.
    if case.spec.fresh:
        meaning = "the validation set contains training scenes (a leak): overlapping seeds or splits?"
        findings.must_be_zero("scenes shared by training and validation", len(training & validation), meaning)
    one, again = (next(iter(scenes.step(0, 0))) for _ in range(2))
    findings.must_be_zero(
        "change of a batch that is requested twice",
        float((one.snapshots - again.snapshots).abs().max()),
        "repeating a step gives other scenes. Such a training cannot be resumed.",
    )
    text = f"{len(training)} training scenes, {len(validation)} validation scenes"
    return report_of("LEAK", text, findings)


def _labels(recordings: list[Recording]) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of all true sources."""
    truths = [recording.truth for recording in recordings if recording.truth is not None]
    azimuth, elevation, distance = (
        torch.cat([getattr(truth, name)[~truth.azimuth.isnan()].double().cpu() for truth in truths])
        for name in ("azimuth", "elevation", "range")
    )
    return azimuth, elevation, distance


def scene_keys(recording: Recording) -> list[bytes]:
    """The labels of each scene as bytes, which identify the scene."""
    truth = recording.truth
    assert truth is not None
    rows = torch.stack((truth.azimuth, truth.elevation, truth.range), -1).flatten(1).cpu()
    return [row.numpy().tobytes() for row in rows]


def _scene_keys(recordings: Iterable[Recording]) -> set[bytes]:
    """The keys of the first scenes."""
    keys: set[bytes] = set()
    for recording in recordings:
        keys.update(scene_keys(recording))
        if len(keys) >= _COMPARED:
            break
    return keys
