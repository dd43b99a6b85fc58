"""Sources: where they are, how strong, what they send; drawn at random or given by the user."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import Panel, Wave, steering
from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.spec import SceneSpec, SymbolKind, limits
from rismusic.units import from_db, to_db

# A scene tries so many sets of positions at once, then so many more, until one is far enough apart.
_ATTEMPTS = (8, 64, 512, 4096)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sources:
    """Up to K_max sources of each scene; a place without a source holds NaN in every field.

    Args:
        azimuth: [..., K_max] radians.
        elevation: [..., K_max] radians.
        range: [..., K_max] metres.
        power: [..., K_max] mean power p of the symbols, linear; optional.
        symbols: [..., K_max, L] the realised symbols s, complex; optional.
    """

    azimuth: Float[Tensor, "*batch K"]
    elevation: Float[Tensor, "*batch K"]
    range: Float[Tensor, "*batch K"]
    power: Float[Tensor, "*batch K"] | None = None
    symbols: Complex[Tensor, "*batch K L"] | None = None

    @property
    def active(self) -> Bool[Tensor, "*batch K"]:
        """Where there is a source."""
        return ~self.azimuth.isnan()

    def filled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Azimuth, elevation and range with a harmless point in the empty places, for batched formulas."""
        active = self.active
        return (
            torch.where(active, self.azimuth, 0),
            torch.where(active, self.elevation, 0),
            torch.where(active, self.range, 1),
        )

    def steering(self, panel: Panel, wave: Wave = "spherical") -> Complex[Tensor, "*batch N K"]:
        """Steering matrix A [..., N, K_max]; columns of empty places are zero."""
        return steering(panel, *self.filled(), wave) * self.active.unsqueeze(-2)

    def to(self, target: torch.device | str) -> Sources:
        """The same sources on another device."""
        return self.each(lambda value: value.to(target))

    def __getitem__(self, scenes: slice | Tensor | int) -> Sources:
        """The sources of some scenes."""
        return self.each(lambda value: value[scenes])

    def each(self, change: Callable[[Tensor], Tensor]) -> Sources:
        """The same change made to every field that is there."""
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in present.items() if value is not None}
        return replace(self, **changed)


def check_sources(sources: Sources, *, field: str = "truth") -> None:
    """Refuse sources that no scene can hold.

    Raises:
        InputError: shapes that differ, an angle that is no angle in radians, a source at or behind the
            panel, a range or power that is not positive, or fields that disagree on how many there are.
    """
    shape = sources.azimuth.shape
    for name in ("azimuth", "elevation", "range", "power"):
        value = getattr(sources, name)
        if value is None:
            continue
        if value.shape != shape:
            raise InputError(
                f"{field}/{name}", f"the shape of azimuth, {list(shape)}", f"{list(value.shape)}"
            )
        if not torch.equal(value.isnan(), sources.azimuth.isnan()):
            raise InputError(f"{field}/{name}", "NaN in the same places as azimuth", "NaN in other places")
        present = value[sources.active]
        if present.isinf().any():
            raise InputError(f"{field}/{name}", "finite values, NaN where there is no source", "an infinity")
        if name in ("range", "power") and (present <= 0).any():
            unit = "ranges in metres" if name == "range" else "powers"
            raise InputError(f"{field}/{name}", f"positive {unit}", f"{float(present.min()):g}")
        if name in ("azimuth", "elevation") and (present.abs() >= math.pi / 2).any():
            worst = float(present[present.abs().argmax()])
            hint = "; degrees?" if abs(worst) > math.pi else ""
            raise InputError(
                f"{field}/{name}", "radians within -pi/2 .. pi/2 (in front of the panel)", f"{worst:g}{hint}"
            )


def draw_sources(
    spec: SceneSpec,
    sources: int | tuple[int, int],
    snapshots: int,
    draws: Draws,
    dtype: torch.dtype = torch.float32,
) -> Sources:
    """Sources of each scene: number, positions at least ``separation_deg`` apart, powers and symbols.

    Positions are uniform among all sets that keep the separation (whole sets are drawn until one does).

    Args:
        spec: volume, separation, powers, symbols.
        sources: K, or the limits of a uniform draw.
        snapshots: L.
        draws: the scenes' random numbers.
        dtype: float32 or float64.

    Returns:
        Sources [S, K_max], their symbols [S, K_max, L].

    Raises:
        InputError: so many sources do not fit into the volume at that separation.
    """
    fewest, most = limits(sources)
    count = fewest + draws.integers(Stream.COUNT, most - fewest + 1)
    active = torch.arange(most, device=count.device) < count[:, None]
    positions = _positions(spec, active, draws, dtype)
    azimuth, elevation, distance = positions.unbind(-1)
    level = torch.zeros_like(azimuth)
    if spec.power == "path_loss":
        level = -2 * to_db(distance)
    if spec.power_spread_db > 0:
        spread = draws.uniform(Stream.POWERS, most, dtype=dtype) - 0.5
        level = level + spec.power_spread_db * spread
    power = from_db(level) * active
    power = power * count[:, None] / power.sum(dim=-1, keepdim=True)
    symbols = draw_symbols(spec.symbols, most, snapshots, draws, dtype.to_complex())
    drawn = Sources(
        azimuth=azimuth,
        elevation=elevation,
        range=distance,
        power=power,
        symbols=symbols * power.sqrt()[..., None],
    )
    return drawn.each(lambda value: value.masked_fill(_like(~active, value), math.nan))


def draw_symbols(
    kind: SymbolKind, sources: int, snapshots: int, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S K L"]:
    """Symbols of unit mean power: ``gaussian``, ``qpsk``, or ``static`` (a random phase held throughout)."""
    if kind == "gaussian":
        return draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)
    if kind == "qpsk":
        turns = (draws.integers(Stream.SYMBOLS, 4, sources, snapshots).to(dtype.to_real()) + 0.5) / 4
    else:
        turns = draws.uniform(Stream.SYMBOLS, sources, 1, dtype=dtype.to_real()).expand(-1, -1, snapshots)
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def _positions(spec: SceneSpec, active: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
    """[S, K, 3]: the first of each scene's sets of positions that keeps the separation."""
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
        gap = (sets[..., :, None, :2] - sets[..., None, :, :2]).abs().amax(-1)
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
        f"a separation at which {most} sources fit into the volume",
        f"{spec.separation_deg:g} deg (no fit in {sum(_ATTEMPTS)} attempts)",
    )


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
