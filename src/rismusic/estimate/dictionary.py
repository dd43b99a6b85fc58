r"""The search grid seen through the link: :math:`D_l = G_l A` of all grid points, never all of it at once.

Complex products are written as real ones, :math:`\mathrm{Re}, \mathrm{Im}` of a row :math:`w` times a column
:math:`a` being :math:`[\mathrm{Re}\,w, -\mathrm{Im}\,w] \cdot [\mathrm{Re}\,a; \mathrm{Im}\,a]` and
:math:`[\mathrm{Im}\,w, \mathrm{Re}\,w] \cdot [\mathrm{Re}\,a; \mathrm{Im}\,a]`: one large real matrix product for
all rows of many scenes, whose squares are then summed many times faster than complex moduli. A search needs no
more than float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.link import Link
from rismusic.recording import Recording

# Bytes for the largest arrays: products of one block of scenes, and what is kept of a dictionary.
_BLOCK = 2**26
_KEPT = 2**28
# Bytes of steering vectors up to which they are kept; beyond it they are made block by block.
_STEERING = 2**28
# Share of a point's energy outside the sources already found below which it is not told from them.
_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The points of a grid that lie inside its volume, for products with many rows at once.

    Args:
        grid: the grid.
        points: [P] numbers of its points that are inside.
    """

    grid: SearchGrid
    points: Int64[Tensor, "P"]

    @classmethod
    def of(cls, grid: SearchGrid) -> Dictionary:
        """The dictionary of a grid's points inside the volume."""
        return cls(grid, grid.inside.nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.points)

    def positions(self, index: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
        """Azimuth (rad), elevation (rad) and inverse range (1/m) of points by their place among P, float64."""
        number = self.points[index]
        return torch.stack(
            (self.grid.azimuth[number], self.grid.elevation[number], 1 / self.grid.range[number]), dim=-1
        )

    def columns(self) -> Iterator[tuple[slice, Float[Tensor, "_ B"]]]:
        """Blocks of points and their steering vectors as real columns [Re a; Im a], [2N, B]."""
        N = self.grid.panel.size
        most = max(1, _STEERING // (8 * N))
        if len(self.grid) <= most:
            yield slice(0, len(self)), self.grid.real_steering(torch.float32)[:, self.points]
            return
        done = 0
        for block, A in self.grid.blocks(most):
            inside = self.grid.inside[block]
            count = int(inside.sum())
            if count:
                yield slice(done, done + count), torch.cat((A.real, A.imag))[:, inside]
            done += count

    def energies(self, link: Link, columns: Float[Tensor, "_ B"]) -> Float[Tensor, "_ _ B"]:
        r"""What a source of unit power at each point sends to the receiver, :math:`|G_l a_p|^2`.

        Returns:
            [S, L, B], with axes of length 1 where the link is the same for all.
        """
        B = columns.shape[1]
        if link.channel is None:
            # |a_n|^2 = 1 / N, whatever the point.
            if link.codes is None:
                return columns.new_ones(1, 1, B)
            each = torch.view_as_real(link.codes).square().sum(-1).mean(-1)
            return _scenes_first(each, 1).float()[..., None].expand(-1, -1, B)
        dense = _scenes_first(link.dense(), 3)
        S, L, M, _ = dense.shape
        step = max(1, _BLOCK // (8 * L * M * B))
        parts = [
            products(dense[i : i + step], columns).flatten(2, 3).square().sum(dim=2) for i in range(0, S, step)
        ]
        return torch.cat(parts)


def products(rows: Complex[Tensor, "*batch N"], columns: Float[Tensor, "_ B"]) -> Float[Tensor, "*batch 2 B"]:
    """Real and imaginary part of rows times real columns [2N, B] of :meth:`Dictionary.columns`; float32."""
    real, imaginary = rows.real.float(), rows.imag.float()
    both = torch.stack((torch.cat((real, -imaginary), dim=-1), torch.cat((imaginary, real), dim=-1)), dim=-2)
    return (both.flatten(0, -2) @ columns).unflatten(0, both.shape[:-1])


class Search:
    r"""Which point of a grid, as one more source, lowers the conditional cost of a scene the most.

    With the sources that are already there projected out, by :math:`P^\perp_l` in snapshot l, and the new
    symbol of each snapshot at its best, the cost falls by

    .. math:: \sum_l \frac{|g_{lp}^H P^\perp_l y_l|^2}{|P^\perp_l g_{lp}|^2}, \qquad g_{lp} = G_l a_p,

    which is orthogonal least squares (Chen, Billings and Luo, 1989), with a gain for each snapshot.
    :math:`g_{lp}^H x = a_p^H (G_l^H x)` takes no dictionary but that of A, shared by all scenes.

    Args:
        dictionary: the points.
        recording: S scenes.
    """

    def __init__(self, dictionary: Dictionary, recording: Recording) -> None:
        self.dictionary, self.recording = dictionary, recording
        link = recording.link
        scenes = len(recording) if link.per_scene else 1
        snapshots = 1 if link.codes is None else link.codes.shape[-2]
        self._energies: list[Tensor] | None = None
        if 4 * scenes * snapshots * len(dictionary) <= _KEPT:
            self._energies = [dictionary.energies(link, columns) for _, columns in dictionary.columns()]

    def best(
        self,
        scenes: Int64[Tensor, "B"],
        residual: Complex[Tensor, "B L M"],
        basis: Complex[Tensor, "B _ M K"],
    ) -> Int64[Tensor, "B"]:
        """The best point for each of some scenes.

        Args:
            scenes: their numbers.
            residual: :math:`P^\perp_l y_l`.
            basis: orthonormal columns of what is already there (or zero columns); L = 1 if always the same.
        """
        best = residual.real.new_full((len(scenes),), -torch.inf, dtype=torch.float32)
        index = torch.zeros_like(scenes)
        for points, part, score in self._scores(scenes, residual, basis):
            value, place = score.max(dim=1)
            better = value > best[part]
            best[part] = torch.where(better, value, best[part])
            index[part] = torch.where(better, place + points.start, index[part])
        return index

    def _scores(
        self, scenes: Tensor, residual: Tensor, basis: Tensor
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "_ _"]]]:
        """Places of a block of points and of scenes, and how much each point lowers each scene's cost."""
        rows = residual.shape[1] + basis.shape[1] * basis.shape[-1]
        for number, (points, columns) in enumerate(self.dictionary.columns()):
            step = max(1, _BLOCK // (8 * rows * columns.shape[1]))
            for start in range(0, len(scenes), step):
                part = slice(start, start + step)
                link = self.recording.link[scenes[part]]
                if self._energies is None:
                    energy = self.dictionary.energies(link, columns)
                else:
                    energy = self._energies[number]
                    energy = energy if len(energy) == 1 else energy[scenes[part]]
                rest = energy
                for column in basis[part].unbind(-1):
                    rest = rest - products(link.adjoint(column).conj(), columns).square().sum(-2)
                pull = products(link.adjoint(residual[part]).conj(), columns).square().sum(-2)
                yield points, part, (pull / torch.maximum(rest, _FLOOR * energy)).sum(dim=1)


def _scenes_first(value: Tensor, keep: int) -> Tensor:
    """One scene axis in front of the last ``keep``, of length 1 where there is none."""
    return value if value.ndim > keep else value[None]
