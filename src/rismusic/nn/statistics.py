r"""Statistics of the snapshots at every grid point under given source powers, the input of the network.

Each grid point p is a Gaussian source of power :math:`\gamma_p`, so that snapshot l has the covariance

.. math:: R_l = G_l C G_l^H + \sigma^2 I, \qquad C = \sum_p \gamma_p\, a_p a_p^H.

The statistics are the two energies whose ratio updates the powers in sparse Bayesian learning
(:func:`rismusic.estimation.sbl.sbl_update`), matched and expected:

.. math:: m_p = \sum_l |a_p^H G_l^H R_l^{-1} y_l|^2, \qquad e_p = \sum_l a_p^H G_l^H R_l^{-1} G_l a_p.

They are computed on the panel, where all scenes share the steering vectors: C and :math:`e_p` are products
with a table of the outer products :math:`a_p a_p^H`, in a basis of the span of the steering vectors (for a
few scenes, products with the vectors themselves). A Hermitian matrix is stored as the real one
:math:`\langle H \rangle = \mathrm{Re}\, H + \mathrm{Im}\, H`, whose symmetric and antisymmetric parts are
those of H, and :math:`a^H H a = \sum_{ij} \langle H \rangle_{ij} \langle a a^H \rangle_{ij}`.

Mirror symmetries of the panel (:mod:`rismusic.estimation.symmetry`) make these products cheaper. With
:math:`f_c` the component of :math:`a_p` of class c,

.. math:: \sum_p \gamma_p f_a(p) f_b(p)^H = \sum_o f_a(o) f_b(o)^H \sum_s \chi_{ab}(s)\, \gamma_{s o},

with one point o of each orbit. A sum over P points of D x D numbers becomes :math:`G^2` sums over P / G
points of :math:`(D / G)^2` numbers: 1 / G of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.maximum_likelihood import compiled_fits
from rismusic.estimation.noise import noise_of
from rismusic.estimation.sbl import sbl_update
from rismusic.estimation.search import real_rows, scenes_first
from rismusic.estimation.symmetry import ConstantMatrices, Symmetry
from rismusic.io import Recording

# Relative energy of the steering vectors outside the basis.
_TRUNCATION = 2e-3
# Relative eigenvalue that counts as 0.
_ZERO = 1e-12
# Maximum size of the table of outer products, bytes.
_TABLE_BYTES = 2**30
# Scenes per block on a CPU, so that intermediate results stay in its cache.
_BLOCK = 16
# Up to this number of scenes, products with the steering vectors are faster than those with the table.
_FEW = 4
# Minimum noise variance relative to the power per output, for single precision.
_MIN_NOISE = 1e-5


@dataclass(frozen=True, eq=False)
class ScaledScenes:
    """S scenes, scaled to unit power per output, with their operators in the basis U.

    Args:
        fields: B_l = G_l U, [S, R, M, D]; R = L, or 1 if all snapshots have the same operator.
        data: y_l, [S, R, M, L / R].
        noise_variance: sigma^2, relative to the power per output, [S].
        gain: received energy of a unit source at each point, over all snapshots, [S, P].
    """

    fields: Complex[Tensor, "S R M D"]
    data: Complex[Tensor, "S R M _"]
    noise_variance: Float[Tensor, "S"]
    gain: Float[Tensor, "S P"]

    @property
    def repeats(self) -> int:
        """Number of snapshots with the same operator."""
        return self.data.shape[-1]

    @property
    def signal(self) -> Float[Tensor, "S"]:
        """Signal energy of each scene: its energy minus that of the noise, at least a tenth of it."""
        energy = torch.view_as_real(self.data).square().sum(dim=(1, 2, 3, 4))
        numbers = self.data[0].numel()
        return torch.maximum(energy - numbers * self.noise_variance, 0.1 * energy)


class GridStatistics:
    """Statistics of one panel and grid, with the table of outer products in D dimensions of G classes."""

    def __init__(self, grid: SearchGrid) -> None:
        self.grid, self.symmetry = grid, Symmetry.of(grid)
        parts = self.symmetry.parts(grid.steering().to(torch.complex128))  # [G, N, P]
        inside = parts[:, :, grid.inside]
        values, vectors = torch.linalg.eigh(inside @ inside.mH)
        rank = int((values.sum(0).cumsum(0) > _TRUNCATION * values.sum()).sum())
        G, orbits = self.symmetry.points.shape
        size = 4 * orbits * (G * rank) ** 2
        if size > _TABLE_BYTES:
            raise InputError(
                "grid",
                f"the table of outer products for {len(grid)} points and {grid.panel.size} elements needs "
                f"{size / 2**30:.1f} GiB, more than {_TABLE_BYTES / 2**30:g} GiB; lower network.oversampling",
            )
        # Classes of lower dimension are padded with zeros.
        nonzero = (values > _ZERO * values.max())[:, None, -rank:]
        basis = vectors[..., -rank:] * nonzero
        self.basis = basis.movedim(0, 1).flatten(1).to(torch.complex64)  # [N, D]
        self._dimensions = int(nonzero.sum())
        columns = (basis.mH @ parts[..., self.symmetry.points[0]]).to(torch.complex64)  # [G, D / G, O]
        a, b = columns.real, columns.imag
        self._columns = ConstantMatrices(torch.cat((a, b), dim=1))  # [G, 2 D / G, O]
        # <f f^H> is the product of these two, summed over the halves of the last axis.
        self._left, self._right = torch.cat((a + b, b - a), dim=-1), torch.cat((a, b), dim=-1)
        self._by_right = ConstantMatrices(self._right.mT)
        # For each class c, the blocks (a, b) with chi_a chi_b = chi_c.
        self._of_class = torch.arange(G, device=a.device).expand(G, G), self.symmetry.pairs
        table = [
            (self._left[:, :, None] * self._right[others, None])
            .unflatten(-1, (2, orbits))
            .sum(-2)
            .flatten(0, 2)
            for others in self.symmetry.pairs
        ]
        self._table = ConstantMatrices(torch.stack(table))  # [G, D^2 / G, O]
        self._transposed = ConstantMatrices(self._table.matrices.mT)

    def observe(self, recording: Recording) -> ScaledScenes:
        """Scale the scenes and project their operators onto the basis.

        The noise variance is estimated if the recording has none.
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
            # Normalise the gain of the link, which carries no information.
            energy = torch.view_as_real(B).square().sum(dim=(1, 2, 3, 4))
            scale = (energy / (B[0, ..., 0].numel() * self._dimensions)).sqrt()
            B = B / torch.where(scale > 0, scale, 1)[:, None, None, None]
            rows = B.flatten(1, 2)
            fields.append(B)
            inner.append(_packed(rows))
        B = torch.cat(fields).expand(S, -1, -1, -1)
        R = B.shape[1]
        data = (y / power.sqrt()[:, None, None]).unflatten(1, (R, L // R)).mT
        gain = (self._quadratic(torch.cat(inner)) * (L // R)).expand(S, -1)
        return ScaledScenes(B, data, (noise / power).float().clamp_min(_MIN_NOISE), gain.clamp_min(1e-6))

    def uniform_power(self, scenes: ScaledScenes) -> Float[Tensor, "S P"]:
        """Uniform powers inside the volume that explain the signal energy."""
        inside = self.grid.inside.float().expand_as(scenes.gain)
        return self.scale_power(scenes, inside)

    def scale_power(self, scenes: ScaledScenes, share: Float[Tensor, "S P"]) -> Float[Tensor, "S P"]:
        """Powers proportional to ``share`` that explain the signal energy."""
        level = scenes.signal / (share * scenes.gain).sum(-1).clamp_min(1e-12)
        return share * level[:, None]

    def __call__(
        self, scenes: ScaledScenes, power: Float[Tensor, "S P"]
    ) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
        """Matched and expected energy of every point under the given powers, [S, P] each."""
        packed = self._covariance(power)
        # Training keeps the operations of torch, which the doctor repeats.
        if packed.device.type == "cpu" and torch.is_inference_mode_enabled() and compiled_fits():
            rows, inner = self._compiled(scenes, packed)
            energy = self._energy_compiled
        else:
            rows, inner = self._whitened(scenes, packed)
            energy = self._energy
        matched = torch.cat([energy(rows[here]) for here in self._blocks(len(power))])
        return matched, (self._quadratic(inner) * scenes.repeats).clamp_min(1e-9)

    def _compiled(
        self, scenes: ScaledScenes, packed: Float[Tensor, "S D D"]
    ) -> tuple[Complex[Tensor, "S L D"], Float[Tensor, "S D D"]]:
        """The compiled form of :meth:`_whitened`."""
        kernel = import_module("rismusic.nn.statistics_kernel")
        fields = scenes.fields if scenes.fields.stride(0) else scenes.fields[:1]
        result: tuple[Tensor, Tensor] = kernel.whitened_statistics(
            fields, scenes.data, scenes.noise_variance, packed
        )
        return result

    def _whitened(
        self, scenes: ScaledScenes, packed: Float[Tensor, "S D D"]
    ) -> tuple[Complex[Tensor, "S L D"], Float[Tensor, "S D D"]]:
        """Rows y_l^H R_l^-1 B_l, and the sum of B_r^H R_r^-1 B_r as a real matrix."""
        C = torch.complex((packed + packed.mT) / 2, (packed - packed.mT) / 2)
        M = scenes.fields.shape[-2]
        identity = torch.eye(M, dtype=C.dtype, device=C.device)
        every, inner = [], []
        for here in self._blocks(len(packed)):
            B, noise = scenes.fields[here], scenes.noise_variance[here, None, None, None]
            BC = (B.flatten(1, 2) @ C[here]).view_as(B)
            factor = torch.linalg.cholesky_ex(BC @ B.mH + noise * identity).L
            half = torch.linalg.solve_triangular(factor, identity, upper=False)
            Z, w = half @ B, half @ scenes.data[here]
            every.append((w.mH @ Z).flatten(1, 2))
            inner.append(_packed(Z.flatten(1, 2)))
        return torch.cat(every), torch.cat(inner)

    def sbl_steps(
        self, scenes: ScaledScenes, power: Float[Tensor, "S P"], steps: int
    ) -> Float[Tensor, "S P"]:
        """Powers after some SBL iterations."""
        for _ in range(steps):
            matched, expected = self(scenes, power)
            power = sbl_update(power, matched, expected)
        return power

    def _blocks(self, n_scenes: int) -> list[slice]:
        step = _BLOCK if self.basis.device.type == "cpu" else n_scenes
        return [slice(start, start + step) for start in range(0, n_scenes, step)]

    def _energy(self, rows: Complex[Tensor, "S L D"]) -> Float[Tensor, "S P"]:
        """Sum over l of |x_l^H a_p|^2 for all points."""
        fields = torch.stack(self._fields(rows)).flatten(2, 3)  # [G, S, 2 L, O]
        return self.symmetry.to_points(self.symmetry.unfold(fields).square_().sum(2))

    def _energy_compiled(self, rows: Complex[Tensor, "S L D"]) -> Float[Tensor, "S P"]:
        """The compiled form of :meth:`_energy`."""
        kernel = import_module("rismusic.estimation.search_kernel")
        out = torch.zeros(len(rows), 1, *self.symmetry.points.shape)
        kernel.add_squares(self._fields(rows), rows.shape[1], 1.0, out)
        return out.flatten(1)[:, self.symmetry.back]

    def _fields(self, rows: Complex[Tensor, "S L D"]) -> list[Float[Tensor, "S L 2 O"]]:
        """Real and imaginary part of x_l^T a_p at one point of each orbit, by class."""
        both = real_rows(rows.unflatten(-1, (len(self.symmetry), -1)).movedim(-2, 0))
        return [part.unflatten(0, both.shape[1:4]) for part in self._columns(both.flatten(1, 3))]

    def _covariance(self, power: Float[Tensor, "S P"]) -> Float[Tensor, "S D D"]:
        """C in the basis, as a real matrix."""
        folded = self.symmetry.fold(power)
        G, S, _ = folded.shape
        if S <= _FEW:
            weight = torch.cat((folded, folded), dim=-1)[self.symmetry.pairs]  # [G, G, S, 2 O]
            left = self._left[:, None] * weight[..., None, :]  # [G, G, S, D / G, 2 O], class a second
            products = torch.stack(self._by_right(left.flatten(1, 3)))
            blocks = products.unflatten(1, left.shape[1:4]).transpose(0, 1)
        else:
            every = (
                torch.stack(self._transposed(folded))
                .unflatten(-1, (G, self._left.shape[1], -1))
                .transpose(1, 2)
            )
            blocks = every[self.symmetry.pairs, self._of_class[0].mT]
        return blocks.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)

    def _quadratic(self, packed: Float[Tensor, "S D D"]) -> Float[Tensor, "S P"]:
        """a_p^H Q a_p for all points, Q Hermitian and given as a real matrix."""
        G, S = len(self.symmetry), len(packed)
        packed = packed.unflatten(2, (G, -1)).unflatten(1, (G, -1))  # [S, a, i, b, j]
        if S <= _FEW:
            rows = packed.permute(1, 0, 3, 4, 2)
            moved = (rows.flatten(1, 3) @ self._left).unflatten(1, rows.shape[1:4]) * self._right
            blocks = moved.sum(3).unflatten(-1, (2, -1)).sum(-2)  # [a, S, b, O]
            folded = blocks.transpose(1, 2)[self._of_class].sum(1)
        else:
            blocks = packed.permute(1, 3, 0, 2, 4)[self._of_class]  # [G, a, S, i, j]
            folded = torch.stack(self._table(blocks.transpose(1, 2).flatten(2)))
        return self.symmetry.to_points(self.symmetry.unfold(folded))


def _packed(rows: Complex[Tensor, "S L D"]) -> Float[Tensor, "S D D"]:
    """The product Z^H Z of rows Z as a real matrix."""
    Q = rows.mH @ rows
    return Q.real + Q.imag
