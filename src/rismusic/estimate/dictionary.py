r"""The search grid seen through the link: :math:`D_l = G_l A` of all grid points, never all of it at once.

Complex products are written as real ones, the real and the imaginary part of a row w times a column a being
:math:`[\mathrm{Re}\,w, -\mathrm{Im}\,w] \cdot [\mathrm{Re}\,a; \mathrm{Im}\,a]` and
:math:`[\mathrm{Im}\,w, \mathrm{Re}\,w] \cdot [\mathrm{Re}\,a; \mathrm{Im}\,a]`: one large real matrix product
for all rows of many scenes, whose squares are then summed many times faster than complex moduli. A search
needs no more than float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.link import Link

# Bytes for the products of one block of scenes.
BLOCK = 2**26
# Directions of the channel that are told apart where all that is wanted is how much arrives.
_STRONG = 4
# Bytes of steering vectors up to which they are kept; beyond it they are made again, so many at a time.
STEERING = 2**28
_AT_ONCE = 2**26


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
        """Azimuth (rad), elevation (rad) and inverse range (1/m) of points by their place among P."""
        number = self.points[index]
        return torch.stack(
            (self.grid.azimuth[number], self.grid.elevation[number], 1 / self.grid.range[number]), dim=-1
        )

    def columns(self) -> Iterator[tuple[slice, Float[Tensor, "_ B"]]]:
        """Blocks of points and their steering vectors as real columns [Re a; Im a], [2N, B]."""
        N = self.grid.panel.size
        if 8 * N * len(self.grid) <= STEERING:
            yield slice(0, len(self)), self.grid.real_steering(torch.float32)[:, self.points]
            return
        done = 0
        for block, A in self.grid.blocks(max(1, _AT_ONCE // (8 * N))):
            inside = self.grid.inside[block]
            count = int(inside.sum())
            if count:
                yield slice(done, done + count), torch.cat((A.real, A.imag))[:, inside]
            done += count

    def fields(self, link: Link, columns: Float[Tensor, "_ B"]) -> Float[Tensor, "_ _ M2 B"]:
        r"""The dictionary :math:`G_l a_p` itself, rows Re and Im of each output in turn, [S, L, 2M, B].

        Axes S and L have length 1 where the link is the same for all scenes or snapshots.
        """
        if link.channel is not None:
            return products(scenes_first(link.dense(), 3), columns).flatten(2, 3)
        real, imaginary = columns.chunk(2)
        fields = scenes_first(link.matmul(torch.complex(real, imaginary)), 3)
        return torch.view_as_real(fields).movedim(-1, -2).flatten(2, 3)

    def energies(self, link: Link, columns: Float[Tensor, "_ B"]) -> Float[Tensor, "_ _ B"]:
        r"""Nearly what a source of unit power at each point sends to the receiver, :math:`|G_l a_p|^2`.

        With :math:`H H^H = \sum_j \lambda_j u_j u_j^H` and :math:`v_j = H^H u_j / \sqrt{\lambda_j}`, the
        strongest J directions of the channel (its line of sight among them) are exact, and the others meet a
        coded wave as if it came from everywhere:

        .. math:: |G_l a_p|^2 \approx \sum_{j \le J} \lambda_j |v_j^H (c_l \odot a_p)|^2 + \bar\lambda \Big(
            |c_l \odot a_p|^2 - \sum_{j \le J} |v_j^H (c_l \odot a_p)|^2 \Big), \qquad
            \bar\lambda = \sum_{j > J} \frac{\lambda_j}{N - J}.

        It costs J / M of the exact form, and a search only needs to know which few points to look at.

        Returns:
            [S, L, B], with axes of length 1 where the link is the same for all.
        """
        # |a_n|^2 = 1 / N, whatever the point.
        N = self.grid.panel.size
        level = link.codes.abs().square().mean(-1) if link.codes is not None else columns.new_ones(1, 1)
        level = scenes_first(level, 1).float()[..., None]
        if link.channel is None:
            return level.expand(-1, -1, columns.shape[1])
        H = link.channel
        values, basis = torch.linalg.eigh(H @ H.mH)
        strong = min(_STRONG, values.shape[-1])
        values = values.clamp_min(0)
        rest = values[..., :-strong].sum(-1, keepdim=True) / max(1, N - strong)
        kept = values[..., -strong:]
        # A direction as weak as rounding takes no part.
        weight = torch.where(kept > 0, 1 - rest / kept.clamp_min(torch.finfo(kept.dtype).tiny), 0).clamp_min(
            0
        )
        rows = Link(weight.sqrt()[..., None] * (basis[..., -strong:].mH @ H), link.codes)
        ones = torch.ones(1, N, dtype=H.dtype, device=H.device)
        dense = scenes_first(Link(rows.channel, ones if link.codes is None else link.codes).dense(), 3)
        S, L = dense.shape[:2]
        step = max(1, BLOCK // (8 * L * strong * columns.shape[1]))
        parts = [
            products(dense[i : i + step], columns).flatten(2, 3).square().sum(dim=2)
            for i in range(0, S, step)
        ]
        return torch.cat(parts) + level * scenes_first(rest, 1)[..., None]


def products(rows: Complex[Tensor, "*batch N"], columns: Float[Tensor, "_ B"]) -> Float[Tensor, "*batch 2 B"]:
    """Real and imaginary part of rows times real columns [2N, B] of :meth:`Dictionary.columns`; float32."""
    both = real_rows(rows)
    return (both.flatten(0, -2) @ columns).unflatten(0, both.shape[:-1])


def real_rows(rows: Complex[Tensor, "*batch N"]) -> Float[Tensor, "*batch 2 _"]:
    """Rows whose products with real columns [2N, B] are real and imaginary part of the rows' own; float32."""
    real, imaginary = rows.real.float(), rows.imag.float()
    return torch.stack((torch.cat((real, -imaginary), dim=-1), torch.cat((imaginary, real), dim=-1)), dim=-2)


def scenes_first(value: Tensor, keep: int) -> Tensor:
    """One scene axis in front of the last ``keep``, of length 1 where there is none."""
    return value if value.ndim > keep else value[None]
