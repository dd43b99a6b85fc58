"""Is the geometry what the settings say? Elements, waves, and whether the truth explains the snapshots."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.doctor.case import Case, told
from rismusic.doctor.physics import element_positions, likeliest, operators, true_waves, waves
from rismusic.io import Recording
from rismusic.nn.losses import Targets
from rismusic.nn.monitors import Finding, Report, at_least, at_most
from rismusic.sources import Sources

# Places at which every copy of the steering vector is compared.
_PROBED = 12


def panel(case: Case) -> Report:
    """Element positions and wavelength, as recorded and as the network has them, against the settings."""
    spec = case.spec.system.panel
    pitch, expected = spec.spacing_wavelengths * spec.wavelength_m, element_positions(spec)
    findings = []
    for where, seen in (("the scenes", case.few.panel), ("the network", case.learner.grid.panel)):
        places = seen.elements.double().cpu()
        off, guess = 2.0 * math.sqrt(len(expected)), ""
        if places.shape == expected.shape:
            off = float((places - expected).abs().max()) / pitch
            guess = _layout(places, expected, spec.columns, spec.wavelength_m)
        findings += [
            at_most(
                f"largest shift of an element of {where}, over the spacing",
                off,
                1e-3,
                f"elements are not where the settings put them{guess}.",
                "Positions are centred, in metres, y slowest and x fastest, the wavelength counted once.",
            ),
            at_most(
                f"error of the wavelength of {where}, relative",
                abs(seen.wavelength / spec.wavelength_m - 1),
                1e-9,
                f"the wavelength is {seen.wavelength:g} m where the settings say {spec.wavelength_m:g} m.",
                "Take the wavelength from the settings everywhere.",
            ),
        ]
    return told("PANEL", f"{len(expected)} elements", findings)


def _layout(places: Tensor, expected: Tensor, columns: int, wavelength: float) -> str:
    """What the elements look like, where they are not as expected."""
    N = len(expected)
    order = torch.arange(N).view(-1, columns).T.ravel()
    spread = (expected - expected.mean(0)).norm().clamp_min(1e-30)
    scale = float((places - places.mean(0)).norm() / spread)
    suspects = {
        "as it should be": places - expected,
        ": they are in another order (x slowest)": places - expected[order],
        ": x and y are exchanged": places - expected[:, [1, 0, 2]],
        ": they are mirrored": places + expected,
        ": the grid is off centre": places - places.mean(0) - expected,
        f": the spacing is {scale:.3g} times what it should be"
        + (", the wavelength squared" if math.isclose(scale, wavelength, rel_tol=0.01) else ""): (
            places - places.mean(0)
        )
        / max(scale, 1e-30)
        - expected,
    }
    return likeliest({name: float(off.norm()) for name, off in suspects.items()}) or ""


def steering_copies(case: Case) -> Report:
    """Every function called ``steering``, and every matrix made by one, against distances in space."""
    spec = case.spec.system
    expected_elements = element_positions(spec.panel)
    seen = Panel(expected_elements, spec.panel.wavelength_m)
    azimuth, elevation, distance = _places(case)
    expected = waves(expected_elements, spec.panel.wavelength_m, azimuth, elevation, distance)
    copies: dict[int, tuple[str, Callable[..., Tensor]]] = {}
    for name, module in sorted(sys.modules.items()):
        found = getattr(module, "steering", None) if name.startswith("rismusic.") else None
        if callable(found):
            copies.setdefault(id(found), (name, found))
    columns = spec.panel.columns
    findings = [
        _same_wave(f"steering of {name}", make(seen, azimuth, elevation, distance), expected, columns)
        for name, make in copies.values()
    ]
    grid = case.learner.grid
    some = torch.linspace(0, len(grid) - 1, _PROBED).long()
    at = [value.cpu()[some] for value in (grid.azimuth, grid.elevation, grid.range)]
    theirs = grid.steering(torch.complex64).cpu()[:, some]
    findings.append(
        _same_wave(
            "steering of the network's grid",
            theirs,
            waves(expected_elements, spec.panel.wavelength_m, *at),
            columns,
        )
    )
    truth = case.few.truth
    assert truth is not None
    A = Targets.of(case.few, grid).steering.cpu()
    there = truth.active.cpu()
    one = true_waves(truth, expected_elements, spec.panel.wavelength_m)
    findings.append(_same_wave("steering of the true sources", A.mT[there].mT, one.mT[there].mT, columns))
    return told("WAVE", f"{len(copies)} functions called steering, grid and truth", findings)


def _places(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Places all over the volume: azimuth, elevation (rad), range (m)."""
    scene = case.spec.system.scene
    turn = torch.linspace(-1, 1, _PROBED, dtype=torch.float64)
    azimuth = math.radians(scene.azimuth_max_deg) * turn
    # Another order, so that azimuth and elevation are not proportional.
    elevation = math.radians(scene.elevation_max_deg) * turn[torch.arange(_PROBED) * 5 % _PROBED]
    fraction = (1 + turn[torch.arange(_PROBED) * 7 % _PROBED]) / 2
    return azimuth, elevation, scene.range_min_m + (scene.range_max_m - scene.range_min_m) * fraction


def _same_wave(name: str, found: Tensor, expected: Tensor, columns: int) -> Finding:
    """Columns [N, K] of two matrices; a common phase of a column is no error."""
    a, b = found.to(torch.complex128), expected

    def distance(x: Tensor, y: Tensor) -> float:
        along = (x.conj() * y).sum(0).abs() / (x.norm(dim=0) * y.norm(dim=0)).clamp_min(1e-30)
        return float((1 - along.square()).clamp_min(0).sqrt().max())

    order = torch.arange(len(b)).view(-1, columns).T.ravel()
    suspects = {
        "as it should be": distance(a, b),
        ": it is conjugated": distance(a, b.conj()),
        ": its elements are in another order (x slowest)": distance(a, b[order]),
        ": its elements are in reverse order": distance(a, b.flip(0)),
        ": it is conjugated and in another order": distance(a, b[order].conj()),
        ": it is the same for every place (degrees for radians, or converted twice?)": distance(
            a, a[:, :1].expand_as(a)
        ),
    }
    norms = float((a.norm(dim=0) - 1).abs().max())
    guess = likeliest(suspects) or ("" if norms < 1e-3 else ": its columns have not unit norm")
    return at_most(
        f"{name}: distance from the exact spherical wave",
        max(suspects["as it should be"], norms),
        5e-3,
        f"it is not exp(j k (r - d)) / sqrt(N), elements y slowest{guess}.",
        "Use rismusic.array.steering everywhere, in radians and metres, and no copy of it.",
    )


def truth_explains(case: Case) -> Report:
    """Do the labels explain the snapshots? What G_l A leaves of y_l is noise, if A belongs to the scene."""
    spec = case.spec.system
    recording = case.few
    truth = recording.truth
    assert truth is not None
    if spec.hardware != type(spec.hardware)():
        return told("TRUTH", "not looked at: hardware errors keep the nominal link from explaining", [])
    exact = element_positions(spec.panel)
    G, wavelength = operators(recording), spec.panel.wavelength_m

    def left(
        labels: Sources, elements: Tensor = exact, length: float = wavelength, conjugate: bool = False
    ) -> float:
        A = true_waves(labels, elements, length)
        return residual(recording, G, A.conj() if conjugate else A)

    swapped = replace(truth, azimuth=truth.elevation, elevation=truth.azimuth)
    degrees = {name: getattr(truth, name) for name in ("azimuth", "elevation")}
    suspects = {
        "as it should be": left(truth) - 1,
        ": the wave is conjugated": left(truth, conjugate=True) - 1,
        ": azimuth and elevation are exchanged": left(swapped) - 1,
        ": angles are in degrees": left(replace(truth, **{k: v.deg2rad() for k, v in degrees.items()})) - 1,
        ": angles were converted to radians twice": left(
            replace(truth, **{k: v.rad2deg() for k, v in degrees.items()})
        )
        - 1,
        ": azimuth is mirrored": left(replace(truth, azimuth=-truth.azimuth)) - 1,
        ": elevation is mirrored": left(replace(truth, elevation=-truth.elevation)) - 1,
        ": elements are in another order": left(truth, exact[:, [1, 0, 2]]) - 1,
        ": the wavelength is twice or half the true one": min(
            left(truth, length=2 * wavelength), left(truth, length=wavelength / 2)
        )
        - 1,
        ": labels belong to other scenes (shuffled)": _shuffled(recording, G, exact, wavelength) - 1,
    }
    value = suspects["as it should be"] + 1
    guess = likeliest({name: abs(one) for name, one in suspects.items()})
    if guess is None:
        guess = ": labels are noisy or shuffled, or belong to another wavelength or panel"
    findings = [
        at_most(
            "what the true sources leave of the snapshots, over the noise",
            value,
            1.25,
            f"the labels do not explain the snapshots{guess}.",
            "Compare simulator and labels: wave, units, order of scenes, wavelength.",
        ),
        at_least(
            "the same, from below",
            value,
            0.75,
            "the recorded noise variance is larger than the noise in the snapshots.",
            "The noise is complex: sigma^2 = E|n|^2.",
        ),
    ]
    return told("TRUTH", f"residual over noise {value:.3f}", findings)


def _shuffled(recording: Recording, G: Tensor, elements: Tensor, wavelength: float) -> float:
    """The least residual that the labels of the neighbouring scenes leave."""
    truth = recording.truth
    assert truth is not None
    moves = range(1, min(4, len(recording)))
    rolled = [truth.each(partial(torch.roll, shifts=by, dims=0)) for by in (*moves, *(-m for m in moves))]
    flipped = truth.each(lambda value: value.flip(0))
    every = [residual(recording, G, true_waves(one, elements, wavelength)) for one in (*rolled, flipped)]
    return min(every, default=math.inf)


def residual(recording: Recording, G: Tensor, A: Tensor) -> float:
    """Energy of the snapshots outside the span of G_l A, over the noise's; symbols are free."""
    y = recording.snapshots.to(torch.complex128)
    assert recording.noise_variance is not None
    B = G @ A[:, None]
    rank = A.abs().sum(1).gt(0).sum(-1)
    inverse = torch.linalg.pinv(B, rtol=1e-9)
    outside = y - (B @ (inverse @ y[..., None]))[..., 0]
    free = y.shape[1] * (y.shape[2] - rank).clamp_min(1)
    each = outside.abs().square().sum((1, 2)) / (free * recording.noise_variance.double())
    return float(each.mean())
