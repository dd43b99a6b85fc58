"""Peaks of anything on the search grid: K in each scene, apart from each other, between the points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.grid import SearchGrid, from_cosines


@dataclass(frozen=True, eq=False)
class Peaks:
    """K candidates of each scene, the highest first.

    Args:
        azimuth: [..., K] radians.
        elevation: [..., K] radians.
        range: [..., K] metres.
        height: [..., K] the value on the grid.
        index: [..., K] the flat place on the grid.
        genuine: [..., K] whether it is a peak; the others fill the places that peaks have left.
    """

    azimuth: Float[Tensor, "*batch K"]
    elevation: Float[Tensor, "*batch K"]
    range: Float[Tensor, "*batch K"]
    height: Float[Tensor, "*batch K"]
    index: Int64[Tensor, "*batch K"]
    genuine: Bool[Tensor, "*batch K"]


def find_peaks(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int, *, separation: float = 0.5
) -> Peaks:
    """The highest peaks of each scene, refined between the points of the grid.

    A point is a peak where no point of the box around it is higher; of neighbours of which this holds the
    first counts. Sources within a step or two of each other share one peak:
    :func:`~rismusic.estimate.sequential.find_in_turn` tells them apart, at K times the cost.

    Where a scene has fewer peaks than asked for, points away from all of its peaks and from each other fill
    the rest, the highest first, then any others; they are not ``genuine``.

    Args:
        values: [..., P] larger where there is a source; the spectrum's f refines better than its value.
        grid: where the values belong. Points that are not ``inside`` are never taken.
        count: K, at most the number of points inside.
        separation: least distance of two peaks in beam widths (widths of focus in 1/r), in at least one of
            the three coordinates. It cannot be less than one step.

    Returns:
        Positions in the precision of ``values``, inside the volume.

    Raises:
        InputError: values that do not fit the grid or are not finite, a K that no grid can give, a negative
            separation.
    """
    if values.shape[-1] != len(grid):
        raise InputError("values", f"P = {len(grid)} points as in the grid", str(values.shape[-1]))
    if not separation >= 0:
        raise InputError("separation", "0 or more beam widths", f"{separation:g}")
    available = int(grid.inside.sum())
    if not 1 <= count <= available:
        raise InputError("count", f"1 to {available} (points inside the volume)", str(count))
    if not values.isfinite().all():
        raise InputError("values", "finite numbers", "a NaN or an infinity")
    return highest_peaks(values, grid, count, separation=separation)


def highest_peaks(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int, *, separation: float = 0.5
) -> Peaks:
    """:func:`find_peaks` without a look at its input, for which the host would wait for the device.

    Of a scene whose values are not finite some points are returned.
    """
    box = _boxes(values, grid)
    place, genuine = _chosen(box, grid, count, separation)
    shape = (*values.shape[:-1], count)
    position = grid.volume.clamp(*_between(box, grid, place))
    azimuth, elevation, distance = (value.to(values.dtype).view(shape) for value in position)
    return Peaks(
        azimuth=azimuth,
        elevation=elevation,
        range=distance,
        height=box.flatten(1).gather(1, place).view(shape),
        index=place.view(shape),
        genuine=genuine.view(shape),
    )


def highest_points(
    values: Float[Tensor, "*batch P"], grid: SearchGrid, count: int, *, separation: float = 0.5
) -> Int64[Tensor, "*batch K"]:
    """The flat places on the grid of :func:`highest_peaks`, which are not refined."""
    index, _ = _chosen(_boxes(values, grid), grid, count, separation)
    return index.view(*values.shape[:-1], count)


def _chosen(box: Tensor, grid: SearchGrid, count: int, separation: float) -> tuple[Tensor, Tensor]:
    """Flat places [S, K] of the highest points, and which of them are peaks."""
    inside = grid.inside.view(grid.shape)
    reach = max(1, int(separation * grid.oversampling))
    peak = _highest(box, reach) & inside
    sparse = torch.zeros_like(inside)
    sparse[:: reach + 1, :: reach + 1, :: reach + 1] = True
    apart = sparse & inside & (_pooled(peak.to(box.dtype), reach) == 0)
    return _best(box.flatten(1), peak.flatten(1), apart.flatten(1), count)


def _boxes(values: Tensor, grid: SearchGrid) -> Float[Tensor, "S X Y Z"]:
    """The values as boxes of points; nothing outside the volume."""
    return values.reshape(-1, *grid.shape).masked_fill(~grid.inside.view(grid.shape), -torch.inf)


def _pooled(box: Tensor, reach: int) -> Tensor:
    """Largest value within ``reach`` points along each axis: one axis after the other, which is the same."""
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


def _highest(box: Tensor, reach: int) -> Tensor:
    """Where no point within reach is higher, and none that comes before it is as high."""
    candidate = box == _pooled(box, reach)
    place = -torch.arange(box[0].numel(), device=box.device, dtype=torch.int32).view(box.shape[1:])
    first = torch.where(candidate, place, -box[0].numel())
    return candidate & (first == _pooled(first, reach))


def _best(values: Tensor, peak: Tensor, apart: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places [S, K] of the best peaks, then of the best scattered points, then of any others inside."""
    rest = ~peak & ~apart & (values > -torch.inf)
    indices, usable = [], []
    for kind in (peak, apart, rest):
        place = values.masked_fill(~kind, -torch.inf).topk(count, dim=1).indices
        indices.append(place)
        usable.append(kind.gather(1, place))
    # A stable sort keeps the order of kinds and, within each, of values.
    first = (~torch.cat(usable, dim=1)).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    index = torch.cat(indices, dim=1).gather(1, first)
    return index, peak.gather(1, index)


def _between(box: Tensor, grid: SearchGrid, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top of the parabola through each place and its two neighbours, along each axis by itself."""
    flat = box.flatten(1)
    here = flat.gather(1, index)
    X, Y, Z = grid.shape
    moved = []
    for axis, step, size, stride in zip(
        (grid.u_x, grid.u_y, grid.q), grid.step, (X, Y, Z), (Y * Z, Z, 1), strict=True
    ):
        place = index // stride % size
        inner = (place > 0) & (place < size - 1)
        before = flat.gather(1, torch.where(inner, index - stride, index))
        after = flat.gather(1, torch.where(inner, index + stride, index))
        bend = before - 2 * here + after
        # At the border, beside a point outside, and where the values bend upwards, the place itself stays.
        usable = inner & before.isfinite() & after.isfinite() & (bend < 0)
        shift = torch.where(usable, 0.5 * (before - after) / torch.where(usable, bend, 1), 0)
        moved.append(axis[place] + step * shift.clamp(-0.5, 0.5).double())
    return from_cosines(moved[0], moved[1], moved[2])
