r"""The search volume, its grid in direction cosines and inverse range, and peaks on that grid.

In :math:`(u_x, u_y, q)`, :math:`q = 1/r`, the beam width of a panel does not depend on the direction, nor its
depth of focus on the range. Even steps in these coordinates therefore cover the volume evenly, unlike steps
in angles and metres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import Panel, direction, steering, steering_with_log_derivatives, wrapped
from rismusic.devices import block_size, blocks
from rismusic.errors import InputError, refuse_old_names
from rismusic.io import Recording
from rismusic.spec import LocateSpec, SceneSpec, Wave
from rismusic.text import short_repr

OVERSAMPLING = 2.51
"""Points per beam width. The default panel and volume then have 26 x 16 x 8 points."""

_GRAZING = 1e-6  # least distance of |(u_x, u_y)| from 1, so that every direction is in front of the panel
_FINER = 1.6  # factor of the oversampling behind a channel of few outputs
_PROBES = 7  # points per axis over which the depth of focus is averaged
# A coordinate this close to a limit of the volume, relative to the width of the volume, is at its boundary.
_BOUNDARY_MARGIN = 1e-6


def to_cosines(
    azimuth: Float[Tensor, "*batch"], elevation: Float[Tensor, "*batch"], range: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """(u_x, u_y, q): direction cosines and inverse range (1/m) of azimuth, elevation (rad) and range (m)."""
    u_x, u_y, _ = direction(azimuth, elevation)
    return u_x, u_y, 1 / range


def from_cosines(
    u_x: Float[Tensor, "*batch"], u_y: Float[Tensor, "*batch"], q: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Azimuth, elevation (rad) and range (m) of direction cosines and inverse range (1/m, positive).

    Where u_x^2 + u_y^2 reaches 1, there is no direction in front of the panel; the cosines are scaled down to
    the nearest one that is.
    """
    across = torch.hypot(u_x, u_y)
    scale = torch.where(across > 1 - _GRAZING, (1 - _GRAZING) / across, 1)
    u_x, u_y = u_x * scale, u_y * scale
    u_z = (1 - u_x.square() - u_y.square()).sqrt()
    return torch.atan2(u_x, u_z), torch.asin(u_y), 1 / q


MOST_POINTS = 2**24
"""Largest number of points of a search grid."""
REMADE = 16
"""Blocks of steering vectors that are made again in each search are smaller by this factor.

The system would be asked for temporary arrays of tens of mebibytes again for each block.
"""


@refuse_old_names
@dataclass(frozen=True)
class Volume:
    """The box in azimuth, elevation and range in which sources are searched.

    Args:
        azimuth_max: radians, to either side; 0 holds the azimuth at 0, pi is all round.
        elevation_max: radians, up or down; 0 holds the elevation at 0.
        range_min: metres.
        range_max: metres; infinite to include plane waves; equal to ``range_min`` to hold the range.

    Raises:
        InputError: an azimuth outside 0 .. pi, an elevation outside 0 .. pi/2, a range that is not positive,
            or none between them.
    """

    azimuth_max: float
    elevation_max: float
    range_min: float
    range_max: float

    def __post_init__(self) -> None:
        for name, value, valid, allowed in (
            ("azimuth_max", self.azimuth_max, self.azimuth_max <= math.pi, "0 to pi"),
            (
                "elevation_max",
                self.elevation_max,
                self.elevation_max < math.pi / 2,
                "0 or larger and below pi/2",
            ),
        ):
            if not (value >= 0 and valid):
                hint = " (degrees?)" if value > math.pi else ""
                raise InputError(f"volume.{name}", f"must be {allowed} radians; got {value:g}{hint}")
        if not (self.range_min > 0 and math.isfinite(1 / self.range_min)):
            raise InputError(
                "volume.range_min", f"must be positive, with a finite inverse; got {self.range_min:g} m"
            )
        if not self.range_max >= self.range_min:
            raise InputError(
                "volume.range_max",
                f"must be at least range_min = {self.range_min:g} m; got {self.range_max:g} m",
            )

    @classmethod
    def from_spec(cls, spec: SceneSpec | LocateSpec) -> Volume:
        """The volume that sources are drawn from (``SceneSpec``) or searched in (``LocateSpec``)."""
        unknowns = getattr(spec, "unknowns", ("azimuth", "elevation", "range"))
        return cls(
            math.radians(spec.azimuth_max_deg) if "azimuth" in unknowns else 0.0,
            math.radians(spec.elevation_max_deg) if "elevation" in unknowns else 0.0,
            spec.range_min_m if "range" in unknowns else spec.range_max_m,
            spec.range_max_m,
        )

    @property
    def all_round(self) -> bool:
        """Whether all azimuths are searched, so that they have no limits."""
        return self.azimuth_max >= math.pi

    @property
    def box(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Limits of a fit: :attr:`lower` and :attr:`upper`; all round, the azimuth may pass 180 degrees."""
        azimuth = 2 * self.azimuth_max if self.all_round else self.azimuth_max
        return (-azimuth, *self.lower[1:]), (azimuth, *self.upper[1:])

    @property
    def lower(self) -> tuple[float, float, float]:
        """Least azimuth (rad), elevation (rad) and inverse range (1/m)."""
        return -self.azimuth_max, -self.elevation_max, 1 / self.range_max

    @property
    def upper(self) -> tuple[float, float, float]:
        """Largest azimuth (rad), elevation (rad) and inverse range (1/m)."""
        return self.azimuth_max, self.elevation_max, 1 / self.range_min

    def clamp(
        self,
        azimuth: Float[Tensor, "*batch"],
        elevation: Float[Tensor, "*batch"],
        range: Float[Tensor, "*batch"],
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Clip each coordinate to the volume."""
        return (
            wrapped(azimuth) if self.all_round else azimuth.clamp(-self.azimuth_max, self.azimuth_max),
            elevation.clamp(-self.elevation_max, self.elevation_max),
            range.clamp(self.range_min, self.range_max),
        )

    def at_boundary(self, positions: Float[Tensor, "S K 3"]) -> Bool[Tensor, "S K 3"]:
        """Which coordinates (azimuth, elevation, 1/range) are at the boundary of the volume, or held."""
        low, high = (positions.new_tensor(limit) for limit in (self.lower, self.upper))
        margin = _BOUNDARY_MARGIN * (high - low)
        at = (positions <= low + margin) | (positions >= high - margin)
        if self.all_round:
            at[..., 0] = False
        return at

    def coordinates(self, panel: Panel) -> int:
        """Number of coordinates of a source that the data of a panel determine and the volume leaves free."""
        azimuth, elevation, q = (low < high for low, high in zip(self.lower, self.upper, strict=True))
        return min(azimuth + elevation, panel.angles) + q

    def free_coordinates(
        self, panel: Panel, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
    ) -> Int64[Tensor, "S"]:
        """Number of :meth:`coordinates` of all sources that a fit determined: those off the boundary."""
        free = ~self.at_boundary(positions) & active[..., None]
        angles = free[..., :2].sum(-1).clamp_max(panel.angles)
        return (angles + free[..., 2]).sum(-1)


@dataclass(frozen=True, eq=False)
class SearchGrid:
    """X x Y x Z points, evenly spaced in (u_x, u_y, q), flattened with q fastest: P = X Y Z.

    Where azimuths beyond 90 degrees are searched, the first coordinate is the azimuth in place of u_x.

    Built by :meth:`cover`. The points stand in the middle of equal cells that fill the box around the
    volume; ``inside`` says which of them count (the box is wider than the volume at high elevations).

    Args:
        panel: N elements.
        volume: what is covered.
        u_x: [X] direction cosines along x, or azimuths (rad) where these go beyond 90 degrees.
        u_y: [Y] direction cosines along y.
        q: [Z] inverse ranges, 1/m.
        step: distances of neighbouring points in u_x, u_y and q (1/m).
        oversampling: points per width of beam or focus.
    """

    panel: Panel
    volume: Volume
    u_x: Float[Tensor, "X"]
    u_y: Float[Tensor, "Y"]
    q: Float[Tensor, "Z"]
    step: tuple[float, float, float]
    oversampling: float = OVERSAMPLING
    azimuth: Float[Tensor, "P"] = field(init=False)
    """Radians, float64."""
    elevation: Float[Tensor, "P"] = field(init=False)
    """Radians, float64."""
    range: Float[Tensor, "P"] = field(init=False)
    """Metres, float64."""
    inside: Bool[Tensor, "P"] = field(init=False)
    """Points in front of the panel and inside the volume, up to half a step."""
    _steering: dict[torch.dtype, Tensor] = field(init=False, default_factory=dict, repr=False)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        u_x, u_y, q = (axis.ravel() for axis in torch.meshgrid(self.u_x, self.u_y, self.q, indexing="ij"))
        azimuth, elevation, distance = self.from_axes(u_x, u_y, q)
        # The volume reaches to |u_x| = sin(azimuth_max) cos(elevation), at the lowest elevation of the cell.
        lowest = (u_y.abs() - self.step[1] / 2).clamp_min(0)
        reach = math.sin(self.volume.azimuth_max) * (1 - lowest.square()).sqrt()
        inside = (u_x.abs() <= reach + self.step[0] / 2) & (u_x.square() + u_y.square() < 1)
        if self.angular:
            inside = torch.ones_like(inside)
        for name, value in (("azimuth", azimuth), ("elevation", elevation), ("range", distance)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "inside", inside)

    @classmethod
    def cover(cls, panel: Panel, volume: Volume, oversampling: float = OVERSAMPLING) -> SearchGrid:
        r"""The grid whose steps are beam width and depth of focus of the panel, divided by ``oversampling``.

        Two points a small step :math:`\Delta` apart in one coordinate p correlate as

        .. math:: |a^H a'|^2 \approx 1 - g_{pp} \Delta^2, \qquad
            g_{pp} = \mathrm{Var}_n\left[ k_0\, \partial\delta_n / \partial p \right],

        the variance being over the elements (the phase common to all is lost). For a direction cosine
        :math:`g = k_0^2\, \mathrm{Var}_n[x_n]`; a uniform aperture of width D has :math:`k_0^2 D^2 / 12` and
        the beam width :math:`\lambda / D`, so the width of any coordinate is taken to be

        .. math:: w_p = 2 \pi / \sqrt{12\, g_{pp}}.

        For :math:`q = 1/r` on the axis and far away :math:`\delta_n = \ldots - q |p_n|^2 / 2`, hence for a
        square aperture :math:`w_q = \sqrt{30}\, \lambda / D^2`: a few times the inverse depth of field. It
        is wider off the axis and very near, so :math:`g_{qq}` is the mean over the volume, from the
        exact derivatives.

        With the default of 2.51 points per width the best of the grid's points meets any point of the volume
        with :math:`|a^H a'|^2 \ge 0.65`, 0.88 in the mean (measured for the uniform wave on 12 x 12, 8 x 16
        and irregular panels; 0.63 on 20 x 20; the spherical wave on 8 x 16 has 0.648).

        Args:
            panel: N elements anywhere near the plane z = 0.
            volume: what is to be covered.
            oversampling: points per width, in each of the three coordinates.

        Raises:
            InputError: an oversampling that is not positive and finite; a panel that differs per scene; more
                than ``MOST_POINTS`` points.
        """
        if not (math.isfinite(oversampling) and oversampling > 0):
            raise InputError("oversampling", f"must be positive and finite; got {oversampling:g}")
        if panel.elements.ndim != 2:
            raise InputError(
                "panel", f"must be one panel, with elements [N, 3]; got shape {list(panel.elements.shape)}"
            )
        metric = [*(panel.wavenumber**2 * panel.elements[:, :2].double().var(0, unbiased=False)).tolist()]
        elevation, probed = _metric(panel, volume)
        metric.append(float(probed[:, 2].mean()))
        if volume.azimuth_max >= math.pi / 2:  # the largest values for azimuth and sin(elevation)
            metric[:2] = [float(probed[:, 0].max()), float((probed[:, 1] / elevation.cos().square()).max())]
        _, _, nearest = volume.upper
        _, _, farthest = volume.lower
        u_x, u_y = math.sin(volume.azimuth_max), math.sin(volume.elevation_max)
        if volume.azimuth_max >= math.pi / 2:
            u_x = volume.azimuth_max
        axes, steps, points = [], [], 1
        for (low, high), g in zip(((-u_x, u_x), (-u_y, u_y), (farthest, nearest)), metric, strict=True):
            width = 2 * math.pi / math.sqrt(12 * g) if g > 0 else math.inf
            count = max(1, math.ceil(min((high - low) * oversampling / width, MOST_POINTS + 1.0)))
            points *= count
            if points > MOST_POINTS:
                raise InputError(
                    "grid",
                    f"the search would need more than {MOST_POINTS:,} points. Search a smaller volume (a "
                    "larger least range), lower the oversampling, or check the unit of the elements",
                )
            step = (high - low) / count
            middle = torch.arange(count, dtype=torch.float64, device=panel.elements.device) + 0.5
            axes.append(low + step * middle)
            steps.append(step)
        return cls(panel, volume, axes[0], axes[1], axes[2], (steps[0], steps[1], steps[2]), oversampling)

    @property
    def angular(self) -> bool:
        """Whether the first axis is the azimuth, not u_x."""
        return self.volume.azimuth_max >= math.pi / 2

    def to_axes(
        self,
        azimuth: Float[Tensor, "*batch"],
        elevation: Float[Tensor, "*batch"],
        range: Float[Tensor, "*batch"],
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Positions in the coordinates of the grid's axes."""
        if self.angular:
            return azimuth, elevation.sin(), 1 / range
        return to_cosines(azimuth, elevation, range)

    def from_axes(
        self, first: Float[Tensor, "*batch"], u_y: Float[Tensor, "*batch"], q: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The inverse of :meth:`to_axes`."""
        if self.angular:
            return first, torch.asin(u_y.clamp(-1, 1)), 1 / q
        return from_cosines(first, u_y, q)

    @property
    def shape(self) -> tuple[int, int, int]:
        """X, Y, Z."""
        return len(self.u_x), len(self.u_y), len(self.q)

    def __len__(self) -> int:
        return len(self.azimuth)

    @property
    def bytes_per_point(self) -> int:
        """Size of the steering vector of a point, of all subcarriers, in single precision."""
        return 8 * self.panel.size * self.panel.subcarriers

    def steering(self, dtype: torch.dtype = torch.complex64) -> Complex[Tensor, "N P"]:
        """Steering matrix A of all points, [N, P]; cached (N P numbers of ``dtype``)."""
        if dtype not in self._steering:
            self._steering[dtype] = self.at(slice(None), dtype)
        return self._steering[dtype]

    def real_steering(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*F rows P"]:
        """Real part of A above its imaginary part, [2 N, P]; kept for the next call.

        Real matrix products are the faster ones, and leave squared moduli without a complex detour.
        """
        if dtype not in self._steering:
            self._steering[dtype] = self.real_columns(self.at(slice(None), dtype.to_complex()))
        return self._steering[dtype]

    @cached_property
    def inside_steering(self) -> Float[Tensor, "*F rows _"]:
        """:meth:`real_steering` of the points inside the volume, in float32."""
        some = self.inside.nonzero()[:, 0].split(block_size(self.bytes_per_point, self.inside.device))
        return torch.cat([self.real_columns(self.at(points, torch.complex64)) for points in some], dim=-1)

    def real_columns(self, A: Complex[Tensor, "N B"]) -> Float[Tensor, "*F rows B"]:
        """Real part of A above its imaginary part, [2 N, B]; one matrix per subcarrier, [F, 2 N, B]."""
        F = self.panel.subcarriers
        if F == 1:
            return torch.cat((A.real, A.imag))
        A = A.unflatten(0, (F, -1))
        return torch.cat((A.real, A.imag), dim=1)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Complex[Tensor, "N _"]]]:
        """Blocks of columns of A, with their slices; they are not kept."""
        for block in blocks(len(self), REMADE * self.bytes_per_point, self.inside.device):
            yield block, self.at(block, dtype)

    def to(self, device: torch.device | str) -> SearchGrid:
        """The same grid on another device."""
        axes = (self.u_x.to(device), self.u_y.to(device), self.q.to(device))
        return SearchGrid(self.panel.to(device), self.volume, *axes, self.step, self.oversampling)

    def at(self, points: slice | Int64[Tensor, "B"], dtype: torch.dtype) -> Complex[Tensor, "N B"]:
        """Columns of A for some points; they are not kept."""
        real = dtype.to_real()
        positions = (self.azimuth, self.elevation, self.range)
        return steering(self.panel, *(value[points].to(real) for value in positions)).contiguous()


def searched_grid(recording: Recording, spec: LocateSpec) -> SearchGrid:
    """The search grid of the settings for the recording's panel, on the recording's device.

    It is finer behind a channel of few outputs, where the likelihood of a source has many maxima.
    """
    oversampling = spec.oversampling * (_FINER if recording.has_few_outputs else 1)
    elements, panel = recording.elements, recording.panel
    key = elements.cpu().contiguous().numpy().tobytes(), elements.dtype, panel.wavelength
    model = panel.wave, panel.pattern_exponent, panel.frequencies
    return _cached_grid(*key, *model, Volume.from_spec(spec), oversampling, recording.snapshots.device)


@lru_cache(maxsize=4)
def _cached_grid(
    elements: bytes,
    dtype: torch.dtype,
    wavelength: float,
    wave: Wave,
    pattern_exponent: float,
    frequencies: tuple[float, ...],
    volume: Volume,
    oversampling: float,
    device: torch.device,
) -> SearchGrid:
    """Cached with its steering vectors, which for a single scene take as long as the search."""
    positions = torch.frombuffer(bytearray(elements), dtype=dtype).view(-1, 3)
    panel = Panel(positions, wavelength, wave, pattern_exponent, frequencies)
    return SearchGrid.cover(panel, volume, oversampling).to(device)


def _metric(panel: Panel, volume: Volume) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 3"]]:
    """Elevations of some points of the volume, and the metric for azimuth, elevation and 1/r there."""
    fraction = (torch.arange(_PROBES, dtype=torch.float64, device=panel.elements.device) + 0.5) / _PROBES
    axes = [low + (high - low) * fraction for low, high in zip(volume.lower, volume.upper, strict=True)]
    azimuth, elevation, q = (axis.ravel() for axis in torch.meshgrid(*axes, indexing="ij"))
    _, slopes = steering_with_log_derivatives(panel.replace(frequencies=()), azimuth, elevation, 1 / q)
    return elevation, slopes.imag.var(dim=-3, unbiased=False)


@dataclass(frozen=True, eq=False)
class Peaks:
    """K peaks of each scene, the highest first."""

    azimuth: Float[Tensor, "*batch K"]  # radians
    elevation: Float[Tensor, "*batch K"]  # radians
    range: Float[Tensor, "*batch K"]  # metres
    height: Float[Tensor, "*batch K"]  # the value on the grid
    index: Int64[Tensor, "*batch K"]  # the flat index on the grid


def find_peaks(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int, *, separation: float = 0.5
) -> Peaks:
    """The K highest peaks of each scene, refined between the points of the grid.

    A point is a peak where no point of the box around it is higher; of neighbours of which this holds the
    first counts. Sources within a step or two of each other share one peak:
    :func:`~rismusic.estimation.spectra.rap_music` tells them apart, at K times the cost. The spectrum's f
    refines better than its value.

    Where a scene has fewer peaks than asked for, points away from all of its peaks and from each other fill
    the rest, the highest first, then any others. Points outside the volume are never taken. Two peaks are at
    least ``separation`` beam widths (widths of focus in 1/r), and one step, apart in one of the three
    coordinates.

    Raises:
        InputError: values that do not fit the grid or are not finite, a K that no grid can give, a negative
            separation.
    """
    if values.shape[-1] != len(grid):
        raise InputError("values", f"must have the grid's P = {len(grid)} points; got {values.shape[-1]}")
    if not separation >= 0:
        raise InputError("separation", f"must be at least 0 beam widths; got {separation:g}")
    available = int(grid.inside.sum())
    if not 1 <= count <= available:
        raise InputError("count", f"must be 1 to {available}, the points inside the volume; got {count}")
    if not values.isfinite().all():
        raise InputError("values", "must be finite; got NaN or infinity")
    return highest_peaks(values, grid, count, separation=separation)


def highest_peaks(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int, *, separation: float = 0.5
) -> Peaks:
    """:func:`find_peaks` without the checks of its input, which would synchronise with the device.

    Of a scene whose values are not finite some points are returned.
    """
    box = _boxes(values, grid)
    index = _chosen(box, grid, count, separation)
    shape = (*values.shape[:-1], count)
    position = grid.volume.clamp(*_between(box, grid, index))
    azimuth, elevation, distance = (value.to(values.dtype).view(shape) for value in position)
    return Peaks(
        azimuth=azimuth,
        elevation=elevation,
        range=distance,
        height=box.flatten(1).gather(1, index).view(shape),
        index=index.view(shape),
    )


def highest_points(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int
) -> Int64[Tensor, "*batch K"]:
    """Flat indices of the grid points of :func:`highest_peaks`, not refined."""
    return _chosen(_boxes(values, grid), grid, count, separation=0.5).view(*values.shape[:-1], count)


def _chosen(box: Tensor, grid: SearchGrid, count: int, separation: float) -> Tensor:
    """Flat indices [S, K] of the highest points."""
    inside = grid.inside.view(grid.shape)
    reach = max(1, int(separation * grid.oversampling))
    turn = grid.volume.all_round
    peak = _highest(box, reach, turn) & inside
    sparse = torch.zeros_like(inside)
    sparse[:: reach + 1, :: reach + 1, :: reach + 1] = True
    apart = sparse & inside & (_pooled(peak.to(box.dtype), reach, turn) == 0)
    return _best(box.flatten(1), peak.flatten(1), apart.flatten(1), count)


def _boxes(values: Tensor, grid: SearchGrid) -> Float[Tensor, "S X Y Z"]:
    """The values on the X x Y x Z grid; minus infinity outside the volume."""
    return values.reshape(-1, *grid.shape).masked_fill(~grid.inside.view(grid.shape), -torch.inf)


def _pooled(box: Tensor, reach: int, turn: bool) -> Tensor:
    """Largest value within ``reach`` points along each axis, one axis after the other.

    With ``turn`` the first axis goes all round: its ends are neighbours.
    """
    if turn and box.shape[1] > 2 * reach:
        ends = torch.cat((box[:, -reach:], box, box[:, :reach]), dim=1)
        return _pooled(ends, reach, False)[:, reach:-reach]
    for axis in (1, 2, 3):
        size = box.shape[axis]
        pooled = box.clone()
        for shift in range(1, min(reach, size - 1) + 1):
            here, there = pooled.narrow(axis, 0, size - shift), box.narrow(axis, shift, size - shift)
            torch.maximum(here, there, out=here)
            here, there = pooled.narrow(axis, shift, size - shift), box.narrow(axis, 0, size - shift)
            torch.maximum(here, there, out=here)
        box = pooled
    return box


def _highest(box: Tensor, reach: int, turn: bool) -> Tensor:
    """Where no point within reach is higher, and none with a lower index is as high."""
    candidate = box == _pooled(box, reach, turn)
    order = -torch.arange(box[0].numel(), device=box.device, dtype=torch.int32).view(box.shape[1:])
    first = torch.where(candidate, order, -box[0].numel())
    return candidate & (first == _pooled(first, reach, turn))


def _best(values: Tensor, peak: Tensor, apart: Tensor, count: int) -> Tensor:
    """Indices [S, K] of the highest peaks, then of the highest scattered points, then of others inside."""
    rest = ~peak & ~apart & (values > -torch.inf)
    indices, usable = [], []
    for kind in (peak, apart, rest):
        highest = values.masked_fill(~kind, -torch.inf).topk(count, dim=1).indices
        indices.append(highest)
        usable.append(kind.gather(1, highest))
    # A stable sort keeps the order of kinds and, within each, of values.
    first = (~torch.cat(usable, dim=1)).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    return torch.cat(indices, dim=1).gather(1, first)


def _between(box: Tensor, grid: SearchGrid, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vertex of the parabola through each point and its two neighbours, for each axis separately."""
    flat = box.flatten(1)
    here = flat.gather(1, index)
    X, Y, Z = grid.shape
    moved = []
    for axis, step, size, stride in zip(
        (grid.u_x, grid.u_y, grid.q), grid.step, (X, Y, Z), (Y * Z, Z, 1), strict=True
    ):
        along = index // stride % size
        inner = (along > 0) & (along < size - 1)
        before = flat.gather(1, torch.where(inner, index - stride, index))
        after = flat.gather(1, torch.where(inner, index + stride, index))
        bend = before - 2 * here + after
        # At the boundary, beside a point outside, and where the values bend upwards, the point itself stays.
        usable = inner & before.isfinite() & after.isfinite() & (bend < 0)
        shift = torch.where(usable, 0.5 * (before - after) / torch.where(usable, bend, 1), 0)
        moved.append(axis[along] + step * shift.clamp(-0.5, 0.5).double())
    return grid.from_axes(moved[0], moved[1], moved[2])
