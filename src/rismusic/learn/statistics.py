r"""What the snapshots say of every point of the search grid, given a map of source powers.

Every point p is a Gaussian source of power :math:`\gamma_p`, so that snapshot l has the covariance

.. math:: R_l = G_l C G_l^H + \sigma^2 I, \qquad C = \sum_p \gamma_p\, a_p a_p^H,

and the likelihood rises with :math:`\gamma_p` as long as what the data show of p exceeds what they should:

.. math:: \mathrm{pull}_p = \sum_l |a_p^H G_l^H R_l^{-1} y_l|^2, \qquad
    \mathrm{own}_p = \sum_l a_p^H G_l^H R_l^{-1} G_l a_p.

The ratio of the two is what sparse Bayesian learning climbs by (see :mod:`rismusic.estimate.powers`); here
it is what the network looks at, the operator's phase kept.

All of it is computed on the panel, where the dictionary is that of the steering vectors alone, the same for
all scenes: C and :math:`\mathrm{own}` are products with the table of the outer products :math:`a_p a_p^H`, in
a basis of the space that the volume's steering vectors span (for a few scenes, products with the vectors
themselves). No dictionary of a scene's own is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.dictionary import products, scenes_first
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.noise import noise_of
from rismusic.recording import Recording

# Share of the steering vectors' energy that the basis may leave out.
_LEFT_OUT = 2e-3
# Bytes that the table of outer products may take.
_TABLE = 2**30
# Scenes at once on a processor, so that what is made of each stays in its cache.
_BLOCK = 16
# Up to so many scenes, products with the steering vectors themselves take less time than reading the table.
_FEW = 4
# The noise variance is at least this share of the power per output: single precision has no more.
_LOADING = 1e-5


@dataclass(frozen=True, eq=False)
class Observed:
    """S scenes as the statistics need them, scaled to unit power per output.

    Args:
        fields: B_l = G_l U, [S, R, M, D], R = L, or 1 where the link is the same in every snapshot.
        data: y_l, [S, R, M, L / R].
        noise_variance: sigma^2, relative to the power per output, [S].
        reach: energy of a unit source of each point at the receiver, over all snapshots, [S, P].
    """

    fields: Complex[Tensor, "S R M D"]
    data: Complex[Tensor, "S R M _"]
    noise_variance: Float[Tensor, "S"]
    reach: Float[Tensor, "S P"]

    @property
    def repeats(self) -> int:
        """Snapshots that share one operator."""
        return self.data.shape[-1]

    @property
    def signal(self) -> Float[Tensor, "S"]:
        """Energy of a scene that noise does not explain, a tenth of it at the least."""
        energy = torch.view_as_real(self.data).square().sum(dim=(1, 2, 3, 4))
        numbers = self.data[0].numel()
        return torch.maximum(energy - numbers * self.noise_variance, 0.1 * energy)


class GridStatistics:
    """The statistics of one panel and grid; holds the table of outer products.

    Args:
        grid: P points, on the device of the recordings to come.

    Raises:
        InputError: a grid whose table of outer products would not fit in memory.
    """

    def __init__(self, grid: SearchGrid) -> None:
        self.grid = grid
        A = grid.steering().to(torch.complex128)
        inside = A[:, grid.inside]
        values, vectors = torch.linalg.eigh(inside @ inside.mH)
        rank = int((values.cumsum(0) > _LEFT_OUT * values.sum()).sum())
        if 4 * rank**2 * len(grid) > _TABLE:
            raise InputError(
                "grid",
                f"a table of outer products of at most {_TABLE / 2**30:g} GiB",
                f"{4 * rank**2 * len(grid) / 2**30:.1f} GiB for {len(grid)} points of {A.shape[0]} elements",
            )
        self.basis = vectors[:, -rank:].to(torch.complex64)
        self.columns = (vectors[:, -rank:].mH @ A).to(torch.complex64)  # [D, P]
        self._real = torch.cat((self.columns.real, self.columns.imag))  # [2D, P]
        self._below = torch.tril_indices(rank, rank, -1, device=A.device)
        i, j = self._below
        # A Hermitian matrix as D^2 real numbers: its diagonal, then real and imaginary parts below it.
        off = self.columns[i] * self.columns[j].conj()
        self._table = torch.cat((self.columns.abs().square(), off.real, off.imag))

    def observe(self, recording: Recording) -> Observed:
        """Scale the scenes, and take their operators to the basis.

        The noise variance is the recording's, or estimated where it has none.
        """
        y = recording.snapshots.to(torch.complex64)
        S, L, _ = y.shape
        noise = noise_of(recording)
        power = torch.view_as_real(y).square().sum(-1).mean(dim=(1, 2))
        power = torch.where(power > 0, power, 1)
        link = recording.link.to(torch.complex64)
        fields, inner = [], []
        for here in self._blocks(S if link.per_scene else 1):
            B = scenes_first(link[here].matmul(self.basis), 3)
            # Gains of a link carry no information once they are the same for all elements.
            scale = torch.view_as_real(B).square().sum(-1).mean(dim=(1, 2, 3)).sqrt()
            B = B / torch.where(scale > 0, scale, 1)[:, None, None, None]
            rows = B.flatten(1, 2)
            fields.append(B)
            inner.append(rows.mH @ rows)
        B = torch.cat(fields).expand(S, -1, -1, -1)
        R = B.shape[1]
        data = (y / power.sqrt()[:, None, None]).unflatten(1, (R, L // R)).mT
        reach = (self._quadratic(torch.cat(inner)) * (L // R)).expand(S, -1)
        return Observed(B, data, (noise / power).float().clamp_min(_LOADING), reach.clamp_min(1e-6))

    def flat(self, observed: Observed) -> Float[Tensor, "S P"]:
        """Powers that are the same everywhere and explain what noise does not."""
        inside = self.grid.inside.float().expand_as(observed.reach)
        return self.spread(observed, inside)

    def spread(self, observed: Observed, share: Float[Tensor, "S P"]) -> Float[Tensor, "S P"]:
        """Powers in given proportions that explain what noise does not."""
        level = observed.signal / (share * observed.reach).sum(-1).clamp_min(1e-12)
        return share * level[:, None]

    def __call__(
        self, observed: Observed, power: Float[Tensor, "S P"]
    ) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
        """Pull and own of every point under the given powers, [S, P] each."""
        C = self._covariance(power)
        M = observed.fields.shape[-2]
        identity = torch.eye(M, dtype=C.dtype, device=C.device)
        pull, inner = [], []
        for here in self._blocks(len(power)):
            B, noise = observed.fields[here], observed.noise_variance[here, None, None, None]
            # Two plain products: with U^H C U between them they would be one of four axes.
            BC = (B.flatten(1, 2) @ C[here]).view_as(B)
            factor = torch.linalg.cholesky_ex(BC @ B.mH + noise * identity).L
            half = torch.linalg.solve_triangular(factor, identity, upper=False)
            Z, w = half @ B, half @ observed.data[here]
            x = (w.mH @ Z).flatten(1, 2)  # x_l^H, [S, L, D]
            pull.append(products(x, self._real).square_().sum(dim=(1, 2)))
            rows = Z.flatten(1, 2)
            inner.append(rows.mH @ rows)
        own = self._quadratic(torch.cat(inner)) * observed.repeats
        return torch.cat(pull), own.clamp_min(1e-9)

    def climb(self, observed: Observed, power: Float[Tensor, "S P"], steps: int) -> Float[Tensor, "S P"]:
        """Some steps of the fixed point, power times pull over own."""
        for _ in range(steps):
            pull, own = self(observed, power)
            power = power * pull / own
        return power

    def _blocks(self, scenes: int) -> list[slice]:
        step = _BLOCK if self.columns.device.type == "cpu" else scenes
        return [slice(start, start + step) for start in range(0, scenes, step)]

    def _covariance(self, power: Float[Tensor, "S P"]) -> Complex[Tensor, "S D D"]:
        """C, in the basis."""
        D = self.columns.shape[0]
        if len(power) <= _FEW:
            outer = (self._real * power[:, None]) @ self._real.mT
            on, off = outer[:, :D], outer[:, D:]
            return torch.complex(on[..., :D] + off[..., D:], off[..., :D] - on[..., D:])
        i, j = self._below
        on, real, imaginary = (power @ self._table.mT).split((D, len(i), len(i)), dim=-1)
        C = torch.diag_embed(on).to(torch.complex64)
        C[:, i, j] = torch.complex(real, imaginary)
        C[:, j, i] = torch.complex(real, -imaginary)
        return C

    def _quadratic(self, Q: Complex[Tensor, "S D D"]) -> Float[Tensor, "S P"]:
        """a_p^H Q a_p of all points, Q Hermitian."""
        if len(Q) <= _FEW:
            columns = self._real.unflatten(0, (2, -1)).transpose(0, 1)  # [D, 2, P]
            return (products(Q, self._real) * columns).sum(dim=(1, 2))
        i, j = self._below
        below = Q[:, i, j]
        # a^H Q a = sum_i Q_ii |a_i|^2 + 2 Re sum_{i > j} Q_ij a_i^* a_j
        packed = torch.cat((Q.diagonal(dim1=-2, dim2=-1).real, 2 * below.real, 2 * below.imag), dim=-1)
        return packed @ self._table
