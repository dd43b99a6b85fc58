r"""Wrong conventions in recordings: how each one is undone, and when the evidence for one is strong enough.

Each :class:`Change` undoes one mistake, such as a conjugated channel or angles in degrees. :func:`applicable`
lists the changes that apply to a recording, and :func:`best_change` selects the one that fits best.

Subcarriers may have been stored as snapshots of one wavelength. Snapshot l then has the frequency
:math:`f_0 (1 + b\,t_l)`, :math:`t_l = l / (L - 1) - 1/2`, with the unknown relative bandwidth b (negative for
descending frequencies). For fixed positions the conditional cost is a function of b alone. It is computed for
bandwidths in geometric steps, and around the best of them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, WAVES, Panel
from rismusic.estimation.classical import fit_known
from rismusic.estimation.grid import Volume, searched_grid
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.maximum_likelihood import ROUGH, refine, unpack
from rismusic.io import Recording
from rismusic.simulation.scene import quantise
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, Wave
from rismusic.text import all_of

# Accepted and usual distances of neighbouring elements, in wavelengths.
POSSIBLE, USUAL = (0.01, 10.0), (0.2, 0.6)
# Relative changes of a length below this are ignored.
SAME = 0.02

SYMBOLS_CONSTANT = "symbols_constant"
"""Name of the change to constant symbols, whose evidence is computed in another way."""

MODELS = {"wave", "symbols", "subcarriers"}
"""Families of the changes to another signal model. Several of them can be needed at once."""

# Fewer snapshots than these cannot tell; scenes that estimate the bandwidth; its least and largest value.
_SNAPSHOTS, _SCENES, _LEAST, _MOST = 4, 4, 1e-3, 0.4
# Geometric steps of each sign, and rounds of five points around the best one.
_STEPS, _ROUNDS = 11, 6
SETTINGS = LocateSpec(
    method="omp", criterion="conditional", oversampling=1.6, sources=3, range_max_m=math.inf
)
"""Settings of a quick search."""

# The least range of a small panel: the default one (0.5 m at a wavelength of 0.3 m) in wavelengths, but not
# below this part of the aperture, since the points of a grid multiply with the inverse of the least range.
_LEAST_RANGE_WAVELENGTHS, _LEAST_RANGE_APERTURES = 0.5 / 0.3, 0.5


def scaled_to(settings: LocateSpec, panel: Panel) -> LocateSpec:
    """The settings with a least range that suits the panel.

    Near sources of a small panel at a short wavelength are nearer than the default least range. Their fits
    would end at the boundary of the search volume, where a wrong form of the wave can fit better.
    """
    least = max(_LEAST_RANGE_WAVELENGTHS * panel.wavelength, _LEAST_RANGE_APERTURES * panel.aperture)
    return settings.replace(range_min_m=min(settings.range_min_m, least))


def as_subcarriers(recording: Recording) -> Recording | None:
    """The recording with each snapshot as a subcarrier, at the most likely bandwidth.

    None if that does not apply: behind a RIS, where the channels of the subcarriers would be needed, with
    other than independent symbols, or with few snapshots.
    """
    L = recording.snapshots.shape[-2]
    stated = recording.has_coherent_symbols or recording.frequencies is not None
    if stated or recording.channel is not None or recording.codes is not None or L < _SNAPSHOTS:
        return None
    return with_bandwidth(recording, _bandwidth(recording[:_SCENES]))


def with_bandwidth(recording: Recording, bandwidth: float) -> Recording:
    """The recording with snapshots as subcarriers of this relative bandwidth around its wavelength."""
    L = recording.snapshots.shape[-2]
    middle = SPEED_OF_LIGHT / recording.wavelength
    relative = torch.linspace(-0.5, 0.5, L, dtype=torch.float64, device=recording.snapshots.device)
    return replace(
        recording, snapshots=recording.snapshots.unsqueeze(2), frequencies=middle * (1 + bandwidth * relative)
    )


def _bandwidth(recording: Recording) -> float:
    """The most likely bandwidth for the true sources, or for one that is searched without truth."""
    bare = replace(recording, noise_variance=None)
    settings = scaled_to(SETTINGS, bare.panel)
    if recording.truth is None:
        one = torch.ones(len(bare), dtype=torch.int64, device=bare.snapshots.device)
        sources = fit_known(bare.stacked(), one, searched_grid(bare, settings), settings).sources
    else:
        sources = recording.truth
    positions, active = unpack(sources, bare)
    steps = torch.logspace(0, 1, _STEPS, base=_MOST / _LEAST, dtype=torch.float64) * _LEAST
    tried = torch.cat((-steps, steps)).tolist()
    ratio = float(steps[1] / steps[0])
    best = 0.0
    for _ in range(_ROUNDS):
        best = min(tried, key=lambda bandwidth: _cost(bare, bandwidth, positions, active))
        if recording.truth is None:
            # The best positions for one wavelength are not those for this bandwidth.
            form = with_bandwidth(bare, best).stacked()
            positions = refine(form, positions, active, Volume.from_spec(settings), options=ROUGH).positions
        tried = [best * ratio**power for power in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        ratio = ratio**0.5
    return best


def _cost(
    recording: Recording, bandwidth: float, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> float:
    """Minus the conditional log-likelihood, up to a constant factor."""
    stacked = with_bandwidth(recording, bandwidth).stacked()
    return float(conditional_cost(sufficient_statistics(stacked, positions, active)).log().sum())


Apply = Callable[[Recording], Recording | None]


@dataclass(frozen=True)
class Change:
    """One convention changed, and the mistake that this undoes (with those of exactly the same effect).

    ``apply`` returns the changed recording, or none if the change does not apply or has no effect. Changes of
    one family can be indistinguishable, for instance with far sources. The best one is reported, with those
    that fit equally well. ``blind`` is the family without truth; none if the change cannot be detected then.
    """

    name: str
    meaning: str
    remedy: str
    apply: Apply
    family: str
    blind: str | None = None


def conjugated(recording: Recording, parts: Sequence[str]) -> Recording | None:
    """Some of snapshots, channel, codes and pilots conjugated; none where one of them is missing or real."""
    values = {name: getattr(recording, name) for name in parts}
    # What is real is its own conjugate, and the change without it is the same.
    if any(v is None or v.imag.abs().max() <= 1e-6 * v.abs().max() for v in values.values()):
        return None
    return replace(recording, **{name: value.conj().resolve_conj() for name, value in values.items()})


def transposed(recording: Recording, *, conjugate: bool) -> Recording | None:
    """The channel transposed, where it is square."""
    H = recording.channel
    if H is None or H.shape[-1] != H.shape[-2] or H.shape[-1] == 1:
        return None
    changed = (H.mH if conjugate else H.mT).resolve_conj().contiguous()
    return None if torch.equal(changed, H) else replace(recording, channel=changed)


def moved(recording: Recording, change: Callable[[Sources], Sources]) -> Recording | None:
    """The truth changed."""
    return None if recording.truth is None else replace(recording, truth=change(recording.truth))


def scaled_angles(recording: Recording, factor: float) -> Recording | None:
    """True angles times a factor, where they remain in front of the panel."""
    truth = recording.truth
    if truth is None:
        return None
    azimuth, elevation = truth.azimuth * factor, truth.elevation * factor
    beyond = (azimuth.abs() >= math.pi / 2) | (elevation.abs() >= math.pi / 2)  # NaN is not
    changed = replace(truth, azimuth=azimuth, elevation=elevation)
    return None if beyond.any() else replace(recording, truth=changed)


def other_ranges(recording: Recording, of: Callable[[Tensor, float], Tensor]) -> Recording | None:
    """True ranges as a function of themselves and of the wavelength."""
    truth = recording.truth
    if truth is None:
        return None
    distance = of(truth.range, recording.wavelength)
    same = ((distance / truth.range - 1).abs() < SAME) | truth.range.isnan()
    return None if same.all() else replace(recording, truth=replace(truth, range=distance))


def scaled_panel(
    recording: Recording,
    elements: Callable[[float], float] = lambda _: 1.0,
    wavelength: Callable[[float], float] = lambda recorded: recorded,
) -> Recording | None:
    """Elements times a factor, which may depend on the wavelength, and another wavelength.

    Without truth only a panel of unusual spacing is changed, and to a usual one: how large it is cannot be
    told from sources that are farther to the side.
    """
    recorded = recording.wavelength
    factor, other = elements(recorded), wavelength(recorded)
    if abs(factor - 1) < SAME and abs(other / recorded - 1) < SAME:
        return None
    before = recording.panel.spacing / recorded
    after = before * factor * recorded / other
    if math.isfinite(before) and not POSSIBLE[0] <= after <= POSSIBLE[1]:
        return None
    if recording.truth is None and (_usual(before) or not _usual(after)):
        return None
    return replace(recording, elements=recording.elements * factor, wavelength=other)


def shrunk_panel(recording: Recording, factor: float) -> Recording | None:
    """Elements and wavelength times a factor, which only true ranges tell."""
    if recording.truth is None:
        return None
    return scaled_panel(recording, lambda _: factor, lambda recorded: recorded * factor)


def renumbered(recording: Recording) -> Recording | None:
    """The elements numbered by columns (x slowest), or by rows where that is what they are."""
    elements, spacing = recording.elements, recording.panel.spacing
    if len(elements) < 2:
        return None
    # Rounded, so that the elements of a row have one y.
    x, y = ((elements[:, axis] / spacing * 100).round() for axis in (0, 1))
    by_x, by_y = torch.argsort(x, stable=True), torch.argsort(y, stable=True)
    by_rows = by_x[torch.argsort(y[by_x], stable=True)]
    by_columns = by_y[torch.argsort(x[by_y], stable=True)]
    in_rows = torch.equal(by_rows, torch.arange(len(elements), device=elements.device))
    changed = elements[by_columns if in_rows else by_rows]
    # A square panel becomes its own mirror image, as sources do whose x and y are swapped.
    mirror_image = torch.allclose(changed, elements[:, [1, 0, 2]], atol=1e-3 * spacing)
    if torch.equal(changed, elements) or (mirror_image and recording.truth is None):
        return None
    return replace(recording, elements=changed)


def _usual(spacing: float) -> bool:
    return USUAL[0] <= spacing <= USUAL[1]


def other_wave(recording: Recording, wave: Wave) -> Recording | None:
    """The recording with this form of the wave, unless it states it already."""
    return None if recording.wave == wave else replace(recording, wave=wave)


def constant_symbols(recording: Recording) -> Recording | None:
    """The recording with constant symbols, where it states independent ones in several snapshots."""
    if recording.has_coherent_symbols or recording.snapshots.shape[-2] == 1:
        return None
    return replace(recording, symbols="constant")


def in_another_order(recording: Recording, part: str, change: Callable[[Tensor], Tensor]) -> Recording | None:
    """Configurations or pilots in another order of the snapshots, where that makes a difference."""
    value: Tensor | None = getattr(recording, part)
    if value is None or value.shape[-2] < 2:
        return None
    changed = change(value).contiguous()
    other: dict[str, Any] = {part: changed}
    return None if torch.equal(changed, value) else replace(recording, **other)


def quantised_codes(recording: Recording, bits: int) -> Recording | None:
    """The phases of the configurations rounded to a number of bits, where they are finer."""
    if recording.codes is None:
        return None
    codes = quantise(recording.codes, bits)
    finer = (codes - recording.codes).abs().amax() > _ROUNDED * codes.abs().amax()
    return replace(recording, codes=codes) if bool(finer) else None


# Phases that differ by no more than this (rad) from rounded ones are rounded.
_ROUNDED = 0.05
_FRAME = (
    "x is horizontal, y vertical, z the normal; azimuth turns from z towards +x, elevation rises towards +y"
)
_WAVE = "a wave's phase falls with distance, exp(-j k0 d), and an element multiplies the field by c"
_ROWS = "store H with rows for antennas and columns for elements, [M, N]"
_METRES = "give all lengths in metres"


def applicable(recording: Recording, *, blind: bool = False) -> Iterator[tuple[Change, Recording]]:
    """Each change that applies (if ``blind``, without truth), with the recording that it makes."""
    for change in CHANGES:
        if not blind or change.blind is not None:
            changed = change.apply(recording)
            if changed is not None:
                yield change, changed


def _conjugations() -> Iterator[Change]:
    """Each set of snapshots, channel and codes: the same as the others, the wave and known pilots."""
    whole = ("snapshots", "channel", "codes")
    for size in (1, 2, 3):
        for parts in combinations(whole, size):
            rest = tuple(name for name in whole if name not in parts)
            name = f"{'_and_'.join(parts)}_conjugated" if rest else "all_conjugated"
            words = all_of(parts)
            others = all_of((*rest, "wave", "known pilots"))
            yield Change(
                name,
                f"{words} fit better if conjugated (equivalent to conjugating {others})",
                f"conjugate {words}; {_WAVE}",
                partial(conjugated, parts=parts),
                # The conjugate of a far source's wave is that of one in the opposite direction.
                "directions" if parts in (whole, ("snapshots",)) else name,
                "conjugates of " + ", ".join(min((len(some), some) for some in (parts, rest))[1]),
            )


def _panels() -> Iterator[Change]:
    """Units of elements and wavelength; those of one ratio differ only in how they curve the wave.

    Mistakes that leave the elements absurdly near or far in wavelengths are refused when a file is read.
    """
    c = SPEED_OF_LIGHT
    elements: dict[str, tuple[str, Callable[[float], float]]] = {
        "elements_in_centimetres": ("centimetres", lambda _: 1e-2),
        "elements_in_wavelengths": ("wavelengths", lambda wavelength: wavelength),
        "elements_in_half_wavelengths": ("half wavelengths", lambda wavelength: wavelength / 2),
        "elements_times_wavelength": ("metres times wavelength", lambda wavelength: 1 / wavelength),
    }
    for name, (unit, factor) in elements.items():
        words = f"the elements fit in {unit}"
        yield Change(name, words, _METRES, partial(scaled_panel, elements=factor), "panel", "panel")
    wavelength: dict[str, tuple[str, Callable[[float], float]]] = {
        "wavelength_doubled": ("twice the wavelength", lambda value: value / 2),
        "wavelength_halved": ("half the wavelength", lambda value: value * 2),
        "frequency_in_ghz": ("a frequency in GHz", lambda value: c / (value * 1e9)),
        "frequency_in_mhz": ("a frequency in MHz", lambda value: c / (value * 1e6)),
        "wavenumber": ("2 pi / wavelength", lambda value: 2 * math.pi / value),
    }
    for name, (unit, other) in wavelength.items():
        words = f"the wavelength fits as {unit}"
        yield Change(name, words, _METRES, partial(scaled_panel, wavelength=other), "panel", "panel")


def _models() -> Iterator[Change]:
    """Other signal models than the one that the recording states."""
    for wave in WAVES:
        yield Change(
            f"wave_{wave}",
            f"the wave fits as {wave}",
            f"state the attribute wave = {wave} in the recording, or run locate with --wave {wave}",
            partial(other_wave, wave=wave),
            "wave",
            "wave",
        )
    yield Change(
        SYMBOLS_CONSTANT,
        "the symbols are the same in all snapshots (a constant pilot)",
        "state the attribute symbols = constant in the recording, or run locate with --symbols constant",
        constant_symbols,
        "symbols",
        "symbols",
    )
    yield Change(
        "subcarriers_as_snapshots",
        "the snapshots fit as subcarriers, each with its own wavelength (the same as one source that moves)",
        "store snapshots [S, F, L, M] with frequencies [F] in hertz, one for each subcarrier",
        as_subcarriers,
        "subcarriers",
        "subcarriers",
    )


def _ranges() -> Iterator[Change]:
    """Units of ranges against those of the panel."""
    for unit, size in (("millimetres", 1e-3), ("centimetres", 1e-2)):
        words = f"elements and wavelength fit in {unit} (the same as ranges too small by {1 / size:g})"
        yield Change(f"panel_in_{unit}", words, _METRES, partial(shrunk_panel, factor=size), "range")
    ranges: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
        "range_in_millimetres": ("in millimetres", lambda r, _: r * 1e-3),
        "range_in_centimetres": ("in centimetres", lambda r, _: r * 1e-2),
        "range_in_wavelengths": ("in wavelengths", lambda r, wavelength: r * wavelength),
        "range_inverse": ("as 1 / range", lambda r, _: 1 / r),
    }
    for name, (words, of) in ranges.items():
        apply = partial(other_ranges, of=of)
        yield Change(name, f"the true ranges fit {words}", "give ranges in metres", apply, "range")


def _orders() -> Iterator[Change]:
    """Configurations or pilots in another order than the snapshots, and conjugated pilots."""
    orders: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "late": ("one snapshot later than recorded", lambda value: value.roll(1, dims=-2)),
        "early": ("one snapshot earlier than recorded", lambda value: value.roll(-1, dims=-2)),
        "reversed": ("in reverse order", lambda value: value.flip(-2)),
    }
    parts = {
        "codes": ("configurations", "store codes[l] as the configuration during snapshot l", "order"),
        "pilots": ("pilots", "store pilots[l] as the symbols of snapshot l", "pilots"),
    }
    for part, (noun, remedy, family) in parts.items():
        for name, (words, change) in orders.items():
            apply = partial(in_another_order, part=part, change=change)
            yield Change(f"{part}_{name}", f"the {noun} fit {words}", remedy, apply, family, family)
    yield Change(
        "pilots_conjugated",
        "the pilots fit better if conjugated",
        "store the symbols as they were sent",
        partial(conjugated, parts=["pilots"]),
        "pilots",
        "pilots",
    )


def _coarse() -> Iterator[Change]:
    """Phases of the RIS that are coarser than the recorded ones."""
    for bits in (1, 2):
        yield Change(
            f"codes_{bits}_bit",
            f"the configurations fit with phases rounded to {bits} bit{'s' if bits > 1 else ''}",
            "record the phases that the elements really take",
            partial(quantised_codes, bits=bits),
            "coarse",
            "coarse",
        )


CHANGES: tuple[Change, ...] = (
    *_conjugations(),
    Change(
        "channel_transposed",
        "the channel fits transposed",
        _ROWS,
        partial(transposed, conjugate=False),
        "channel_transposed",
        "channel_transposed",
    ),
    Change(
        "channel_hermitian",
        "the channel fits as its Hermitian transpose",
        f"{_ROWS}; not H^H",
        partial(transposed, conjugate=True),
        "channel_hermitian",
        "channel_hermitian",
    ),
    Change(
        "elements_renumbered",
        "the elements fit in another order, by rows or by columns (or x and y exchanged)",
        "list the elements in the order in which channel and codes number them",
        renumbered,
        "axes",
        "elements_renumbered",
    ),
    *_orders(),
    *_coarse(),
    Change(
        "angles_swapped",
        "the truth fits with azimuth and elevation swapped",
        _FRAME,
        partial(moved, change=lambda at: replace(at, azimuth=at.elevation, elevation=at.azimuth)),
        "axes",
    ),
    Change(
        "azimuth_mirrored",
        "the truth fits with azimuth reversed (the same as elements with x reversed)",
        _FRAME,
        partial(moved, change=lambda truth: replace(truth, azimuth=-truth.azimuth)),
        "azimuth_mirrored",
    ),
    Change(
        "elevation_mirrored",
        "the truth fits with elevation reversed (the same as elements with y reversed)",
        _FRAME,
        partial(moved, change=lambda truth: replace(truth, elevation=-truth.elevation)),
        "elevation_mirrored",
    ),
    Change(
        "directions_reversed",
        "the truth fits with azimuth and elevation reversed (the same as elements in reverse order)",
        _FRAME,
        partial(moved, change=lambda at: replace(at, azimuth=-at.azimuth, elevation=-at.elevation)),
        "directions",
    ),
    Change(
        "angles_in_degrees",
        "the true angles fit in degrees",
        "give angles in radians",
        partial(scaled_angles, factor=math.pi / 180),
        "angles_in_degrees",
    ),
    Change(
        "angles_converted_twice",
        "the true angles fit as if turned from degrees to radians twice",
        "give angles in radians",
        partial(scaled_angles, factor=180 / math.pi),
        "angles_converted_twice",
    ),
    *_panels(),
    *_ranges(),
    *_models(),
)


# Of changes of a family that differ by less (nats), the first one is named.
_TIE = 3.0

MOST_LEFT = 0.5
"""Share of the signal power above which a fit counts as failed."""


@dataclass(frozen=True)
class Evidence:
    """Evidence for a change against the recorded form.

    ``ratio`` is the log-likelihood ratio summed over the scenes in nats, ``improved`` the share of the scenes
    in which the likelihood increases, ``left`` the share of the signal power left unexplained (0 if unknown).
    """

    change: Change
    ratio: float
    improved: float
    left: float = 0.0


@dataclass(frozen=True)
class WrongConvention:
    """A wrong convention, with the change that undoes it.

    ``ratio`` is the log-likelihood ratio in its favour and ``threshold`` the one required, in nats; ``alike``
    names changes of the same family that fit equally well.
    """

    change: Change
    ratio: float
    threshold: float
    alike: tuple[str, ...]


def best_change(
    evidence: Sequence[Evidence], threshold: float, *, blind: bool = False
) -> WrongConvention | None:
    """The change that fits best, if the evidence is strong enough.

    It must beat the recorded form and every change of another family by the threshold, improve half of the
    scenes and explain most of the signal. Where the recorded form and all changes are wrong they fit badly in
    much the same way, and none stands out.
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
    close = [each for each in evidence if each in [best, *kin] and each.ratio >= best.ratio - _TIE]
    best = close[0]
    kin = [each for each in ranked if each in [*kin, ranked[0]] and each is not best]
    alike = tuple(each.change.name for each in kin if each.ratio >= ranked[0].ratio - threshold)
    return WrongConvention(best.change, best.ratio, threshold, alike)
