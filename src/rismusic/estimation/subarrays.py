r"""Products of many rows with the steering vectors of all grid points of a large panel, by subarrays.

The grid of a panel of N elements has about N^1.5 points P, so that its steering vectors, N P numbers, neither fit
into memory nor can be computed within a second. Fast factorized back-projection (Ulander, Hellsten and Stenström,
"Synthetic-aperture radar processing using fast factorized back-projection", IEEE Trans. AES 39 (2003)) needs neither:

* The panel is divided into subarrays, and these again. A subarray of a sixteenth of the elements has beams four times
  as wide, and a depth of focus that is as much longer, so that few points, in direction cosines and inverse distance
  as seen from its centre c, stand for all of the grid.
* The product :math:`w^T a` of a row with the steering vector of a point p is the coherent sum of those of the
  subarrays, each at the nearest of its points and turned by the phase between the two centres,

  .. math:: \sum_{n} w_n g_n(p)\, e^{j k_0 (d_0 - d_n)} \approx \sum_c \frac{d_0}{d_c}\,
      e^{j k_0 (d_0 - d_c)} \sum_{n \in c} w_n\, g_n(p_c)\, e^{j k_0 (d_c - d_n)},

  where d_0 and d_c are the distances of p from the centres of the panel and of the subarray.

A product with one point costs 16 multiplications instead of N. The approximation keeps 0.8 to 0.9 of a
wave's energy (mean over the points; 0.5 at the least), enough to tell which few points to look at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int32, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from rismusic.array import Panel, direction, steering_with_log_derivatives
from rismusic.estimation.grid import SearchGrid, from_cosines

# Numbers of a dictionary from which on the products are computed by subarrays (a panel of 21 x 21 elements).
_LARGE = 2**23
# Points of a subarray per width of its beam and focus.
_OVERSAMPLING = 5.0
# Largest number of elements of a subarray that is not divided again.
_LEAF = 64
# Points over which the depth of focus of a subarray is averaged.
_PROBES = 100
# Numbers of a block of products, which stays in the cache of a processor.
_BLOCK = 2**17


@lru_cache(maxsize=4)
def subarrays_of(grid: SearchGrid) -> Subarrays | None:
    """The subarrays of the points inside a grid's volume; none where the dictionary itself serves.

    They serve a large planar panel with one carrier frequency and exact phases.
    """
    panel = grid.panel
    large = panel.size * len(grid) > _LARGE and panel.subcarriers == 1
    if not (large and panel.is_planar and not grid.angular and panel.wave in ("spherical", "uniform")):
        return None
    u_x, u_y, q = grid.to_axes(*(value[grid.inside] for value in (grid.azimuth, grid.elevation, grid.range)))
    points = _positions(u_x, u_y, q)
    everything = torch.arange(panel.size, device=points.device)
    return Subarrays.of(panel, everything, points, divisions=4)


@dataclass(frozen=True, eq=False)
class Subarrays:
    """A panel, or a part of one, that is divided into subarrays.

    Args:
        children: the subarrays.
        cells: [P, children] the point of each that is nearest to each of the P points, counted through all.
        real: [P, children] real part of the factors.
        imaginary: [P, children] their imaginary part.
        norm: [P] norm of the steering vectors.
    """

    children: tuple[Subarrays | Leaf, ...]
    cells: Int32[Tensor, "P children"]
    real: Float[Tensor, "P children"]
    imaginary: Float[Tensor, "P children"]
    norm: Float[Tensor, "P"]

    @property
    def size(self) -> int:
        """Number of points of all subarrays."""
        return sum(len(child.norm) for child in self.children)

    @classmethod
    def of(
        cls, panel: Panel, members: Int64[Tensor, "n"], points: Float[Tensor, "P 3"], divisions: int
    ) -> Subarrays:
        """Divide some elements of a panel.

        Args:
            panel: the panel.
            members: numbers of the elements.
            points: positions in the frame of the panel, metres.
            divisions: how often the elements are halved.
        """
        exponent = panel.pattern_exponent + (panel.wave == "spherical")
        centre = panel.elements[members].mean(0)
        distance = (points - centre).norm(dim=1)
        children, cells, factors, done = [], [], [], 0
        energy = torch.zeros_like(distance)
        for part in _divided(panel, members, divisions):
            middle = panel.elements[part].mean(0)
            away = points - middle
            own = away.norm(dim=1)
            place, cell = _cells(panel.replace(elements=panel.elements[part] - middle), away, own)
            child = (
                Leaf.of(panel, part, place + middle)
                if len(part) <= _LEAF
                else Subarrays.of(panel, part, place + middle, divisions=2)
            )
            gain = (distance / own) ** exponent
            factors.append(torch.polar(gain, panel.wavenumber * (distance - own)).to(torch.complex64))
            energy += (gain * child.norm[cell]).square()
            children.append(child)
            cells.append((cell + done).int())
            done += len(place)
        factor = torch.stack(factors, dim=1)
        return cls(
            tuple(children),
            torch.stack(cells, dim=1),
            factor.real.contiguous(),
            factor.imag.contiguous(),
            energy.sqrt().float(),
        )

    def products(self, rows: Complex[Tensor, "R N"]) -> Float[Tensor, "P R2"]:
        """Products of rows with the steering vectors of all points, not normalised: real, then imaginary parts."""
        table = self.table(rows)
        return torch.cat([self._combined(table, block) for block in self._blocks(len(rows))])

    def squares(
        self, rows: Complex[Tensor, "R N"]
    ) -> Iterator[tuple[slice, Float[Tensor, "R B"]]]:
        """Blocks of points, and the squared moduli of the products of rows with their unit steering vectors."""
        table = self.table(rows)
        for block in self._blocks(len(rows)):
            real, imaginary = self._combined(table, block).chunk(2, dim=1)
            yield block, ((real.square() + imaginary.square()) / self.norm[block, None].square()).T

    def table(self, rows: Complex[Tensor, "R N"]) -> Float[Tensor, "cells R2"]:
        """Products of all subarrays."""
        return torch.cat([child.products(rows) for child in self.children])

    def _blocks(self, rows: int) -> Iterator[slice]:
        step = max(1, _BLOCK // (2 * rows))
        for start in range(0, len(self.norm), step):
            yield slice(start, start + step)

    def _combined(self, table: Tensor, block: slice) -> Float[Tensor, "B R2"]:
        cells = self.cells[block]
        product, turned = (
            embedding_bag(cells, table, per_sample_weights=factor[block], mode="sum")
            for factor in (self.real, self.imaginary)
        )
        R = table.shape[1] // 2
        product[:, :R] -= turned[:, R:]
        product[:, R:] += turned[:, :R]
        return product


@dataclass(frozen=True, eq=False)
class Leaf:
    """A subarray that is not divided.

    Args:
        members: [n] numbers of its elements.
        steering: [C, 2n] real and imaginary parts of the waves of C points.
        norm: [C] their norms.
    """

    members: Int64[Tensor, "n"]
    steering: Float[Tensor, "C n2"]
    norm: Float[Tensor, "C"]

    @classmethod
    def of(cls, panel: Panel, members: Int64[Tensor, "n"], points: Float[Tensor, "C 3"]) -> Leaf:
        """Waves of some points on some elements, relative to that at their centre."""
        elements = panel.elements[members]
        own = (points - elements.mean(0)).norm(dim=1, keepdim=True)
        distance = (points[:, None] - elements).norm(dim=2)
        exponent = panel.pattern_exponent + (panel.wave == "spherical")
        wave = torch.polar((own / distance) ** exponent, panel.wavenumber * (own - distance))
        return cls(members, torch.cat((wave.real, wave.imag), dim=1).float(), wave.abs().norm(dim=1).float())

    def products(self, rows: Complex[Tensor, "R N"]) -> Float[Tensor, "C R2"]:
        """As :meth:`Subarrays.products`."""
        real, imaginary = rows[:, self.members].mT.real, rows[:, self.members].mT.imag
        both = torch.cat((torch.cat((real, imaginary), 1), torch.cat((-imaginary, real), 1)))
        return self.steering @ both


def _positions(
    u_x: Float[Tensor, "P"], u_y: Float[Tensor, "P"], q: Float[Tensor, "P"]
) -> Float[Tensor, "P 3"]:
    """Positions in metres of direction cosines and inverse distance."""
    azimuth, elevation, distance = from_cosines(u_x, u_y, q)
    return torch.stack(direction(azimuth, elevation), dim=1) * distance[:, None]


def _divided(panel: Panel, members: Int64[Tensor, "n"], divisions: int) -> list[Int64[Tensor, "_"]]:
    """Elements halved several times, each time across the longer side."""
    parts = [members]
    for _ in range(divisions):
        halves = []
        for part in parts:
            elements = panel.elements[part, :2]
            axis = int((elements.amax(0) - elements.amin(0)).argmax())
            halves += part[elements[:, axis].sort(stable=True).indices].chunk(2)
        parts = halves
    return parts


def _cells(
    subarray: Panel, away: Float[Tensor, "P 3"], distance: Float[Tensor, "P"]
) -> tuple[Float[Tensor, "C 3"], Int64[Tensor, "P"]]:
    """Points around the centre of a subarray that stand for all, and for which of them each stands.

    They are the middles of the cells of a lattice in direction cosines and inverse distance in which points lie.
    """
    axes = torch.cat((away[:, :2] / distance[:, None], 1 / distance[:, None]), dim=1)
    probes = axes[torch.linspace(0, len(axes) - 1, _PROBES, device=axes.device).long()]
    slopes = steering_with_log_derivatives(subarray, *from_cosines(*probes.unbind(1)))[1].imag
    metric = (subarray.wavenumber**2 * subarray.elements.var(0, unbiased=False)).clamp_min(1e-30)
    metric[2] = slopes[..., 2].var(dim=-2, unbiased=False).mean()
    low, high = axes.amin(0), axes.amax(0)
    count = ((high - low) * _OVERSAMPLING * (12 * metric).sqrt() / (2 * math.pi)).ceil().clamp_min(1)
    step = (high - low) / count
    count = count.long()
    x, y, z = torch.where(step > 0, (axes - low) / step, 0).long().minimum(count - 1).unbind(1)
    number = (x * count[1] + y) * count[2] + z
    used = torch.zeros(int(count.prod()), dtype=torch.bool, device=axes.device)
    used[number] = True
    cells = used.nonzero()[:, 0]
    middle = torch.stack((cells // (count[1] * count[2]), cells // count[2] % count[1], cells % count[2]), dim=1)
    places = _positions(*(low + step * (middle + 0.5)).unbind(1))
    return places, (used.cumsum(0) - 1)[number]
