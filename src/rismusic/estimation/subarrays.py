r"""Products of rows with the steering vectors of all grid points of a large panel, by subarrays.

The grid of N elements has about :math:`N^{3/2}` points P. For a large panel its N P numbers do not fit into
memory, and take longer to compute than a search may. Fast factorized back-projection (Ulander, Hellsten and
Stenström, "Synthetic-aperture radar processing using fast factorized back-projection", IEEE Trans. AES 39
(2003)) does without them:

* The panel is divided into 16 subarrays, and each of these into four while it has more than 64 elements. The
  beams of a subarray are wider than those of the panel, and its focus is deeper. So far fewer points, in
  direction cosines and inverse distance as seen from its centre, stand for all points of the grid.
* The product with the steering vector of a point is the coherent sum of those of the subarrays, each at the
  nearest of its own points p_c and turned by the phase between the two centres,

  .. math:: \sum_n w_n\, g_n(p)\, e^{j k_0 (d_0 - d_n)} \approx \sum_c \frac{d_0}{d_c}\,
      e^{j k_0 (d_0 - d_c)} \sum_{n \in c} w_n\, g_n(p_c)\, e^{j k_0 (d_c - d_n)},

  where d_0 and d_c are the distances of p from the centres of the panel and of subarray c.

The product with one point takes 16 multiplications in place of N. The sum keeps most of the energy of a wave:
0.95 of it in the mean over the points of a panel of 24 x 24 elements, 0.89 for 64 x 64 (0.6 at the least).
This tells which few points to look at with their exact steering vectors.
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

from rismusic.array import Panel, steering_with_log_derivatives
from rismusic.estimation.grid import SearchGrid, from_cosines
from rismusic.sources import to_cartesian

# Size of a dictionary, N P, from which on subarrays take its place: between 20 x 20 and 24 x 24 elements.
_LARGE = 2**23
_OVERSAMPLING = 5.0  # points of a subarray per width of its beam and focus
_LEAF = 64  # largest number of elements of a subarray that is not divided again
_PROBES = 100  # points over which the depth of focus of a subarray is averaged
_NEGLIGIBLE = 1e-20  # share of the largest number of a row below which one counts as zero
_BLOCK = 2**17  # size of a block of products, which stays in the cache of a processor


# Subarrays take 200 bytes for each point of the grid, hence of two grids only.
@lru_cache(maxsize=2)
def subarrays_of(grid: SearchGrid) -> Subarrays | None:
    """The subarrays of a grid's points inside its volume; none where its steering vectors serve.

    They serve a large planar panel with one carrier frequency and exact phases.
    """
    panel = grid.panel
    if panel.size * len(grid) <= _LARGE or panel.subcarriers > 1 or panel.wave in ("fresnel", "paraxial"):
        return None
    if grid.angular or not panel.is_planar:
        return None
    inside = torch.stack((grid.azimuth, grid.elevation, grid.range), dim=1)[grid.inside]
    everything = torch.arange(panel.size, device=panel.elements.device)
    return Subarrays.of(panel, everything, to_cartesian(inside), divisions=4)


@dataclass(frozen=True, eq=False)
class Subarrays:
    """A panel, or a part of one, and its subarrays."""

    children: tuple[Subarrays | Leaf, ...]
    cells: Int32[Tensor, "P children"]  # point of each child, counted through all, for each point
    real: Float[Tensor, "P children"]  # real part of the factor of that point
    imaginary: Float[Tensor, "P children"]  # its imaginary part
    norm: Float[Tensor, "P"]  # norm of the steering vectors, relative to the amplitude at the centre

    @classmethod
    def of(
        cls, panel: Panel, members: Int64[Tensor, "n"], points: Float[Tensor, "P 3"], divisions: int
    ) -> Subarrays:
        """Divide some elements by halving them several times, for points in the panel frame (m)."""
        distance = (points - panel.elements[members].mean(0)).norm(dim=1)
        children: list[Subarrays | Leaf] = []
        cells, factors, done = [], [], 0
        energy = torch.zeros_like(distance)
        for part in _divided(panel, members, divisions):
            centre = panel.elements[part].mean(0)
            centres, cell = _representatives(
                panel.replace(elements=panel.elements[part] - centre), points - centre
            )
            child = (
                Leaf.of(panel, part, centres + centre)
                if len(part) <= _LEAF
                else cls.of(panel, part, centres + centre, divisions=2)
            )
            own = (points - centre).norm(dim=1)
            gain = (distance / own) ** _exponent(panel)
            factors.append(torch.polar(gain, panel.wavenumber * (distance - own)).to(torch.complex64))
            energy += (gain * child.norm[cell]).square()
            children.append(child)
            cells.append((cell + done).int())
            done += len(centres)
        factor = torch.view_as_real(torch.stack(factors, dim=1))
        real, imaginary = (part.contiguous() for part in factor.unbind(-1))
        return cls(tuple(children), torch.stack(cells, dim=1), real, imaginary, energy.sqrt().float())

    @property
    def size(self) -> int:
        """Number of points of all children."""
        return sum(len(child.norm) for child in self.children)

    def sums(self, rows: Complex[Tensor, "R N"]) -> Iterator[tuple[slice, Float[Tensor, "B R2"]]]:
        """Blocks of points, and the products of rows with their waves: real, then imaginary parts."""
        products = self._of_children(rows)
        for block in self._blocks(len(rows)):
            yield block, self._sums(products, block)

    def squares(self, rows: Complex[Tensor, "R N"]) -> Iterator[tuple[slice, Float[Tensor, "R B"]]]:
        """Blocks of points, and the squared moduli of the products of rows with unit steering vectors."""
        for block, sums in self.sums(rows):
            real, imaginary = (sums / self.norm[block, None]).chunk(2, dim=1)
            yield block, (real.square() + imaginary.square()).T

    def products(self, rows: Complex[Tensor, "R N"]) -> Float[Tensor, "P R2"]:
        """Products of rows with the waves of all points: R real parts, then the imaginary parts."""
        return torch.cat([sums for _, sums in self.sums(rows)])

    def _of_children(self, rows: Tensor) -> Float[Tensor, "size R2"]:
        # Processors take a hundred times longer for numbers below the normal ones, such as those of an
        # element with a gain of 1e-38.
        size = rows.abs()
        rows = rows.masked_fill(size < _NEGLIGIBLE * size.amax(), 0.0)
        return torch.cat([child.products(rows) for child in self.children])

    def _blocks(self, rows: int) -> Iterator[slice]:
        step = max(1, _BLOCK // (2 * rows))
        for start in range(0, len(self.norm), step):
            yield slice(start, start + step)

    def _sums(self, products: Tensor, block: slice) -> Float[Tensor, "B R2"]:
        """Sums over the children for a block of points."""
        sums, turned = (
            embedding_bag(self.cells[block], products, per_sample_weights=factor[block], mode="sum")
            for factor in (self.real, self.imaginary)
        )
        R = products.shape[1] // 2
        sums[:, :R] -= turned[:, R:]
        sums[:, R:] += turned[:, :R]
        return sums


@dataclass(frozen=True, eq=False)
class Leaf:
    """A subarray that is not divided."""

    members: Int64[Tensor, "n"]  # numbers of its elements
    waves: Float[Tensor, "P n2"]  # real, then imaginary parts, relative to the centre
    norm: Float[Tensor, "P"]  # their norms

    @classmethod
    def of(cls, panel: Panel, members: Int64[Tensor, "n"], points: Float[Tensor, "P 3"]) -> Leaf:
        """The waves of some points on some elements; see :meth:`Subarrays.of`."""
        elements = panel.elements[members]
        own = (points - elements.mean(0)).norm(dim=1, keepdim=True)
        distance = (points[:, None] - elements).norm(dim=2)
        wave = torch.polar((own / distance) ** _exponent(panel), panel.wavenumber * (own - distance))
        return cls(members, torch.cat((wave.real, wave.imag), dim=1).float(), wave.abs().norm(dim=1).float())

    def products(self, rows: Complex[Tensor, "R N"]) -> Float[Tensor, "P R2"]:
        """See :meth:`Subarrays.products`."""
        mine = rows[:, self.members].mT
        both = torch.cat((mine.real, mine.imag), 1), torch.cat((-mine.imag, mine.real), 1)
        return self.waves @ torch.cat(both).float()


def _exponent(panel: Panel) -> float:
    """The amplitudes are inverse distances to this power, up to a factor common to elements of one plane."""
    return panel.pattern_exponent + (panel.wave == "spherical")


def _divided(panel: Panel, members: Int64[Tensor, "n"], divisions: int) -> list[Int64[Tensor, "_"]]:
    """Elements halved several times, each time across the longer side."""
    parts = [members]
    for _ in range(divisions):
        halves: list[Tensor] = []
        for part in parts:
            elements = panel.elements[part, :2]
            axis = int((elements.amax(0) - elements.amin(0)).argmax())
            halves += part[elements[:, axis].sort(stable=True).indices].chunk(2)
        parts = halves
    return parts


def _representatives(
    subarray: Panel, away: Float[Tensor, "P 3"]
) -> tuple[Float[Tensor, "C 3"], Int64[Tensor, "P"]]:
    """Points that stand for all in a subarray around the origin, and the number of that of each point.

    They are the middles of the occupied cells of a lattice in direction cosines and inverse distance.
    """
    if subarray.size == 1:  # from its own place, an element receives the same from all points
        return away[:1], torch.zeros(len(away), dtype=torch.long, device=away.device)
    distance = away.norm(dim=1, keepdim=True)
    axes = torch.cat((away[:, :2] / distance, 1 / distance), dim=1)
    probes = axes[torch.linspace(0, len(axes) - 1, _PROBES, device=axes.device).long()]
    slopes = steering_with_log_derivatives(subarray, *from_cosines(*probes.unbind(1)))[1].imag
    # As in SearchGrid.cover: variance over the elements of the phase's derivative by each coordinate.
    metric = subarray.wavenumber**2 * subarray.elements.var(0, unbiased=False)
    metric[2] = slopes[..., 2].var(dim=-2, unbiased=False).mean()
    low, extent = axes.amin(0), axes.amax(0) - axes.amin(0)
    count = (extent * _OVERSAMPLING * (12 * metric).sqrt() / (2 * math.pi)).ceil().clamp_min(1)
    step, (X, Y, Z) = extent / count, count.long().tolist()
    x, y, z = torch.where(step > 0, (axes - low) / step, 0).minimum(count - 1).long().unbind(1)
    number = (x * Y + y) * Z + z
    occupied = torch.zeros(X * Y * Z, dtype=torch.bool, device=axes.device)
    occupied[number] = True
    cells = occupied.nonzero()[:, 0]
    middle = torch.stack((cells // (Y * Z), cells // Z % Y, cells % Z), dim=1) + 0.5
    centres = to_cartesian(torch.stack(from_cosines(*(low + step * middle).unbind(1)), dim=1))
    return centres, (occupied.cumsum(0) - 1)[number]
