"""Random sources of simulated scenes: number, positions, powers and symbols."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Complex
from torch import Tensor

from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.sources import Sources
from rismusic.spec import SceneSpec, SymbolKind, limits
from rismusic.units import from_db, to_db

# Candidate sets of positions drawn per scene in each round of rejection sampling.
_ATTEMPTS = (8, 64, 512, 4096)


def draw_sources(
    spec: SceneSpec,
    sources: int | tuple[int, int],
    snapshots: int,
    draws: Draws,
    dtype: torch.dtype = torch.float32,
) -> Sources:
    """Draw the sources of each scene: number, positions, powers and symbols.

    Positions are uniform over all sets with a separation of at least ``separation_deg`` (rejection sampling).

    Args:
        spec: volume, separation, powers, symbols.
        sources: K, or the limits of a uniform draw.
        snapshots: L.
        draws: random numbers of the scenes.
        dtype: float32 or float64.

    Returns:
        Sources [S, K_max], their symbols [S, K_max, L].

    Raises:
        InputError: the sources do not fit into the volume at that separation.
    """
    fewest, most = limits(sources)
    count = fewest + draws.integers(Stream.COUNT, most - fewest + 1)
    active = torch.arange(most, device=count.device) < count[:, None]
    positions = _positions(spec, active, draws, dtype)
    azimuth, elevation, distance = positions.unbind(-1)
    power = _powers(spec, distance, active, draws)
    symbols = draw_symbols(
        spec.symbols, most, snapshots, draws, dtype.to_complex(), correlation=spec.correlation
    )
    drawn = Sources(
        azimuth=azimuth,
        elevation=elevation,
        range=distance,
        power=power,
        symbols=symbols * power.sqrt()[..., None],
    )
    return drawn.blank(~active)


def complete_sources(spec: SceneSpec, sources: Sources, snapshots: int, draws: Draws) -> Sources:
    """Draw what user-given sources lack: powers (as ``spec`` says) and symbols.

    Args:
        spec: powers and symbols.
        sources: positions [S, K_max], with or without powers and symbols.
        snapshots: L.
        draws: random numbers of the scenes.

    Returns:
        Sources with powers [S, K_max] and symbols [S, K_max, L]. Given symbols without powers get their mean
        square as power.
    """
    active, dtype = sources.active, sources.azimuth.dtype
    power, symbols = sources.power, sources.symbols
    if power is None and symbols is not None:
        power = symbols.abs().square().mean(dim=-1)
    if power is None:
        power = _powers(spec, sources.range.masked_fill(~active, 1), active, draws)
    if symbols is None:
        unit = draw_symbols(
            spec.symbols,
            active.shape[-1],
            snapshots,
            draws,
            dtype.to_complex(),
            correlation=spec.correlation,
        )
        symbols = unit * power.sqrt()[..., None]
    completed = replace(sources, power=power, symbols=symbols)
    return completed.blank(~active)


def draw_symbols(
    kind: SymbolKind,
    sources: int,
    snapshots: int,
    draws: Draws,
    dtype: torch.dtype = torch.complex64,
    *,
    correlation: float = 0.0,
) -> Complex[Tensor, "S K L"]:
    """Symbols of unit mean power: ``gaussian``, ``qpsk``, or one random phase per source (``constant``).

    Those of ``pilots`` are :func:`draw_pilots` with one random phase per source. Gaussian symbols with
    correlation are the weighted sum of a common symbol and of one's own.
    """
    if kind == "gaussian":
        own = draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)
        if correlation == 0:
            return own
        common = draws.complex_normal(Stream.COMMON_SYMBOLS, 1, snapshots, dtype=dtype)
        return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    if kind == "qpsk":
        turns = (draws.integers(Stream.SYMBOLS, 4, sources, snapshots).to(dtype.to_real()) + 0.5) / 4
    else:
        turns = draws.uniform(Stream.SYMBOLS, sources, 1, dtype=dtype.to_real()).expand(-1, -1, snapshots)
    if kind == "pilots":
        turns = turns + _pilot_turns(sources, snapshots, draws, dtype.to_real())
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def draw_pilots(
    sources: int, snapshots: int, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S L K"]:
    """Pilots of each source, random QPSK symbols."""
    turns = _pilot_turns(sources, snapshots, draws, dtype.to_real())
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns).mT


def _pilot_turns(sources: int, snapshots: int, draws: Draws, dtype: torch.dtype) -> Tensor:
    return (draws.integers(Stream.PILOTS, 4, sources, snapshots).to(dtype) + 0.5) / 4


def _powers(spec: SceneSpec, distance: Tensor, active: Tensor, draws: Draws) -> Tensor:
    """Powers [S, K] with mean 1 over the active sources of each scene."""
    level = torch.zeros_like(distance)
    if spec.power == "path_loss":
        level = -2 * to_db(distance)
    if spec.power_spread_db > 0:
        spread = draws.uniform(Stream.POWERS, distance.shape[-1], dtype=distance.dtype) - 0.5
        level = level + spec.power_spread_db * spread
    power = from_db(level) * active
    return power * active.sum(dim=-1, keepdim=True) / power.sum(dim=-1, keepdim=True)


def _positions(spec: SceneSpec, active: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
    """[S, K, 3]: for each scene the first candidate set with the required separation."""
    scenes, most = active.shape
    low = torch.tensor([-spec.azimuth_max_deg, -spec.elevation_max_deg, spec.range_min_m], dtype=dtype)
    high = torch.tensor([spec.azimuth_max_deg, spec.elevation_max_deg, spec.range_max_m], dtype=dtype)
    to_radians = torch.tensor([math.pi / 180, math.pi / 180, 1.0], dtype=dtype)
    low, high = (low * to_radians).to(active.device), (high * to_radians).to(active.device)
    pair = torch.ones(most, most, dtype=torch.bool, device=active.device).triu(1)
    chosen = low.new_zeros(scenes, most, 3)
    left = torch.arange(scenes, device=active.device)
    passed = 0
    for attempts in _ATTEMPTS:
        fraction = draws[left].uniform(Stream.POSITIONS, attempts, most, 3, dtype=dtype, skip=passed)
        sets = low + (high - low) * fraction
        gap = (sets[..., :, None, :2] - sets[..., None, :, :2]).abs()
        gap = torch.minimum(gap, 2 * math.pi - gap).amax(-1)  # all round
        both = active[left][:, None, :, None] & active[left][:, None, None, :] & pair
        good = ~(both & (gap < math.radians(spec.separation_deg))).flatten(-2).any(-1)
        found, first = good.max(dim=1)
        chosen[left] = sets[torch.arange(len(left), device=left.device), first.long()]
        left = left[~found]
        passed += attempts * most * 3
        if len(left) == 0:
            return chosen
    raise InputError(
        "scene.separation_deg",
        f"{most} sources do not fit into the volume at a separation of {spec.separation_deg:g} deg "
        f"({sum(_ATTEMPTS)} attempts). Reduce the separation or the number of sources",
    )
