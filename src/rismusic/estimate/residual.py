r"""What sources leave of the snapshots: the residual of maximum likelihood, and the dimensions it lives in.

With :math:`C_l = G_l A` [M, K] the sources' fields, b_il [M] the derivative of source k(i)'s field by one of
its coordinates and s_kl the symbols of least squares, what is left of the snapshots y is

.. math:: r = \Pi\, y, \qquad \Pi \perp C_l \text{ in each snapshot, and } \Pi \perp t_i
    = \left( b_{il}\, s_{k(i)l} \right)_{l = 1 \ldots L}.

One complex direction goes for each symbol and one real direction, of all snapshots together, for each
coordinate: to first order r is the residual at maximum likelihood, whichever fit found the sources. Noise
alone is white in the :math:`\nu = 2 L (M - K) - 3 K` real dimensions that remain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.estimate.likelihood import symbols
from rismusic.estimate.moments import moments
from rismusic.recording import Recording
from rismusic.wave import steering_with_derivatives

# Directions of columns of unit norm whose squared length is below this are rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class Projection:
    r"""The projection :math:`\Pi` of S scenes.

    Args:
        fields: orthonormal basis of C_l, [S, L, M, K] complex (L = 1 where it is always the same); columns
            that stand for nothing are zero.
        tangents: orthonormal basis of the t_i beside the C_l, real parts above imaginary parts,
            [S, 2LM, 3K] real; columns that stand for nothing are zero.
    """

    fields: Complex[Tensor, "S _ M K"]
    tangents: Float[Tensor, "S _ _"]

    @classmethod
    def off(
        cls,
        recording: Recording,
        positions: Float[Tensor, "S K 3"],
        active: Bool[Tensor, "S K"],
        free: Bool[Tensor, "S K 3"],
    ) -> Projection:
        """Off the fields of sources and off their changes with the coordinates that are free.

        Args:
            recording: S scenes.
            positions: azimuth (rad), elevation (rad), inverse range (1/m), float64; finite throughout.
            active: which places hold a source.
            free: which of its coordinates were fitted.
        """
        azimuth, elevation, q = positions.unbind(-1)
        A, D = steering_with_derivatives(recording.panel, azimuth, elevation, 1 / q)
        link = recording.link.to(torch.complex128)
        fields = _orthonormal(link.matmul(A * active[:, None]))
        changes = link.matmul((D * (active[..., None] & free)[:, None]).flatten(-2))
        s = symbols(moments(recording, positions, active)).repeat_interleave(3, dim=-1)
        t = (_less(fields, changes) * s[..., None, :]).flatten(1, 2)  # [S, LM, 3K]
        return cls(fields, _orthonormal(torch.cat((t.real, t.imag), dim=1)))

    def freedom(self, snapshots: int) -> Float[Tensor, "S"]:
        r"""Real dimensions that are left of L snapshots, :math:`\nu`."""
        taken = (self.fields != 0).any(-2).sum(-1).expand(-1, snapshots).sum(-1)
        tangents = (self.tangents != 0).any(-2).sum(-1)
        return (2 * (snapshots * self.fields.shape[-2] - taken) - tangents).to(self.tangents.dtype)

    def __getitem__(self, scenes: slice | Tensor) -> Projection:
        return Projection(self.fields[scenes], self.tangents[scenes])

    def single(self) -> Projection:
        """The same in single precision."""
        return Projection(self.fields.to(torch.complex64), self.tangents.float())

    def of(self, data: Complex[Tensor, "S Q L M"]) -> Complex[Tensor, "S Q L M"]:
        """What is left of each of Q sets of snapshots."""
        # One matrix product for all sets: rows are sets of one snapshot, y^T less (y^T Q^*) Q^T.
        rows = data.transpose(1, 2)
        rest = (rows - (rows @ self.fields.conj()) @ self.fields.mT).transpose(1, 2)
        flat = torch.cat((rest.real.flatten(2), rest.imag.flatten(2)), dim=-1)
        flat = flat - (flat @ self.tangents) @ self.tangents.mT
        real, imaginary = flat.chunk(2, dim=-1)
        return torch.complex(real, imaginary).reshape(data.shape)


def _less(basis: Tensor, columns: Tensor) -> Tensor:
    return columns - basis @ (basis.mH @ columns)


def _orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal basis of the columns, wherever the zero ones stand; surplus columns are zero."""
    norm = columns.norm(dim=-2, keepdim=True)
    unit = columns / torch.where(norm > 0, norm, 1)
    values, vectors = torch.linalg.eigh(unit.mH @ unit)
    scale = torch.where(values > _ROUNDING, values, torch.inf).rsqrt()
    return unit @ (vectors * scale[..., None, :])
