r"""Mirrors that a panel and a grid share, by which products with the steering vectors fall into small parts.

Where the panel looks the same in a mirror across the vertical or the horizontal axis, so does the box of
:class:`~rismusic.estimation.grid.SearchGrid`, and the steering vector of a mirrored point is the mirrored
steering vector, :math:`a_{s p} = J_s a_p`. Let G be the mirrors and their products (1, 2 or 4 of them), with
the characters :math:`\chi_c(s) = \pm 1`, and :math:`f_c` the part of :math:`a_p` that is even or odd in each
mirror as c says:

.. math:: f_c(s p) = \chi_c(s)\, f_c(p), \qquad
    \sum_p \gamma_p f_a(p) f_b(p)^H = \sum_o f_a(o) f_b(o)^H \sum_s \chi_{ab}(s)\, \gamma_{s o},

the right side with one point o of each set of mirror images. A sum over P points of D x D numbers becomes
:math:`G^2` sums of P / G points and :math:`(D / G)^2` numbers, of G mirrors: 1 / G of the work.

What the snapshots say of every point of the search grid, given a map of source powers.

Every point p is a Gaussian source of power :math:`\gamma_p`, so that snapshot l has the covariance

.. math:: R_l = G_l C G_l^H + \sigma^2 I, \qquad C = \sum_p \gamma_p\, a_p a_p^H,

and the likelihood rises with :math:`\gamma_p` as long as what the data show of p exceeds what they should:

.. math:: \mathrm{pull}_p = \sum_l |a_p^H G_l^H R_l^{-1} y_l|^2, \qquad
    \mathrm{own}_p = \sum_l a_p^H G_l^H R_l^{-1} G_l a_p.

The ratio of the two is what sparse Bayesian learning climbs by (see :mod:`rismusic.estimation.sbl`); here
it is what the network looks at, the operator's phase kept.

All of it is computed on the panel, where the dictionary is that of the steering vectors alone, the same for
all scenes: C and :math:`\mathrm{own}` are products with the table of the outer products :math:`a_p a_p^H`, in
a basis of the space that the volume's steering vectors span (for a few scenes, products with the vectors
themselves). No dictionary of a scene's own is formed. The basis keeps apart what is even and odd in the
mirrors of the panel (:mod:`rismusic.nn.statistics`). A Hermitian matrix is held as the real one
:math:`\langle H \rangle = \mathrm{Re}\, H + \mathrm{Im}\, H`, whose symmetric and antisymmetric part give it
back, and with which :math:`a^H H a = \sum_{ij} \langle H \rangle_{ij} \langle a a^H \rangle_{ij}`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.noise import noise_of
from rismusic.estimation.sbl import sbl_update
from rismusic.estimation.search import real_rows, scenes_first
from rismusic.io import Recording

# Distance at which an element counts as the mirror image of another, in wavelengths.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class Symmetry:
    """G = 2^m mirrors s, the identity first, and as many classes c of what is even or odd in them.

    Args:
        signs: chi_c(s), [G, G].
        pairs: number of the class of the product of two, chi_a chi_b, [G, G].
        elements: number of each element's mirror image, [G, N].
        points: number of the mirror images of one point of each set, [G, O].
        share: of a point among its images, less than 1 where it is an image of itself, [O].
        back: for each of the P points its place among ``points``, flattened, [P].
    """

    signs: Float[Tensor, "G G"]
    pairs: Int64[Tensor, "G G"]
    elements: Int64[Tensor, "G N"]
    points: Int64[Tensor, "G O"]
    share: Float[Tensor, "O"]
    back: Int64[Tensor, "P"]

    @classmethod
    def of(cls, grid: SearchGrid) -> Symmetry:
        """Those of a grid and its panel: across the vertical axis, the horizontal one, both, or none."""
        device = grid.inside.device
        X, Y, Z = grid.shape
        elements = torch.arange(grid.panel.size, device=device)[None]
        numbers = torch.arange(len(grid), device=device).view(1, X, Y, Z)
        signs = torch.ones(1, 1, device=device)
        for axis in (0, 1):
            image = _mirrored(grid.panel, axis)
            if image is not None:
                elements = torch.cat((elements, image[elements]))
                numbers = torch.cat((numbers, numbers.flip(axis + 1)))
                signs = torch.cat((torch.cat((signs, signs), 1), torch.cat((signs, -signs), 1)))
        numbers = numbers.flatten(1)
        points = numbers[:, numbers[0] == numbers.amin(0)]
        G = len(signs)
        back = torch.empty(len(grid), dtype=torch.int64, device=device)
        back[points.flatten()] = torch.arange(points.numel(), device=device)
        share = 1 / (points == points[0]).sum(0).float()
        number = torch.arange(G, device=device)
        return cls(signs, number[:, None] ^ number, elements, points, share, back)

    def __len__(self) -> int:
        return len(self.signs)

    def parts(self, vectors: Complex[Tensor, "N B"]) -> Complex[Tensor, "G N B"]:
        """What of vectors over the elements belongs to each class; they are the sum of their parts."""
        signs = self.signs.to(vectors.dtype)
        return (signs @ vectors[self.elements].flatten(1)).unflatten(1, vectors.shape) / len(self)

    def fold(self, values: Float[Tensor, "S P"]) -> Float[Tensor, "G S O"]:
        """Sums of a value of the points over mirror images, with the signs of each class."""
        images = (values[:, self.points] * self.share).movedim(1, 0)
        return (self.signs @ images.flatten(1)).unflatten(1, images.shape[1:])

    def unfold(self, parts: Float[Tensor, "G *batch O"]) -> Float[Tensor, "G *batch O"]:
        """Of the classes' parts at one point of each set, the sum at all its mirror images."""
        return (self.signs @ parts.flatten(1)).unflatten(1, parts.shape[1:])

    def spread(self, images: Float[Tensor, "G S O"]) -> Float[Tensor, "S P"]:
        """Values at mirror images as values of the points."""
        return images.movedim(0, 1).flatten(1)[:, self.back]


def _mirrored(panel: Panel, axis: int) -> Int64[Tensor, "N"] | None:
    """The number of each element's image in the mirror across an axis, if all have one."""
    there = panel.elements.double()
    image = there.clone()
    image[:, axis] *= -1
    distance, nearest = torch.cdist(image, there, compute_mode="donot_use_mm_for_euclid_dist").min(dim=-1)
    return nearest if bool((distance < _SAME * panel.wavelength).all()) else None


# Share of the steering vectors' energy that the basis may leave out.
_LEFT_OUT = 2e-3
# Share of the largest eigenvalue that counts as no dimension at all.
_NOTHING = 1e-12
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
    """The statistics of one panel and grid; holds the table of outer products, D dimensions of G classes.

    Args:
        grid: P points, on the device of the recordings to come.

    Raises:
        InputError: a grid whose table of outer products would not fit in memory.
    """

    def __init__(self, grid: SearchGrid) -> None:
        self.grid, self.mirrors = grid, Symmetry.of(grid)
        parts = self.mirrors.parts(grid.steering().to(torch.complex128))  # [G, N, P]
        inside = parts[:, :, grid.inside]
        values, vectors = torch.linalg.eigh(inside @ inside.mH)
        rank = int((values.sum(0).cumsum(0) > _LEFT_OUT * values.sum()).sum())
        G, orbits = self.mirrors.points.shape
        size = 4 * orbits * (G * rank) ** 2
        if size > _TABLE:
            raise InputError(
                "grid",
                f"a table of outer products of at most {_TABLE / 2**30:g} GiB",
                f"{size / 2**30:.1f} GiB for {len(grid)} points of {grid.panel.size} elements",
            )
        # A class of fewer dimensions is filled up with zeros.
        there = (values > _NOTHING * values.max())[:, None, -rank:]
        basis = vectors[..., -rank:] * there
        self.basis = basis.movedim(0, 1).flatten(1).to(torch.complex64)  # [N, D]
        self._dimensions = int(there.sum())
        columns = (basis.mH @ parts[..., self.mirrors.points[0]]).to(torch.complex64)  # [G, D / G, O]
        a, b = columns.real, columns.imag
        self._real = torch.cat((a, b), dim=1)  # [G, 2 D / G, O]
        # <f f^H> is the product of these, summed over the two halves of their last axis.
        self._left, self._right = torch.cat((a + b, b - a), dim=-1), torch.cat((a, b), dim=-1)
        # The blocks (a, b) of a matrix with chi_a chi_b = chi_c, for each c.
        self._of_class = torch.arange(G, device=a.device).expand(G, G), self.mirrors.pairs
        table = [
            (self._left[:, :, None] * self._right[others, None])
            .unflatten(-1, (2, orbits))
            .sum(-2)
            .flatten(0, 2)
            for others in self.mirrors.pairs
        ]
        self._table = torch.stack(table)  # [G, D^2 / G, O]

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
            energy = torch.view_as_real(B).square().sum(dim=(1, 2, 3, 4))
            scale = (energy / (B[0, ..., 0].numel() * self._dimensions)).sqrt()
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
            pull.append(self._energy((w.mH @ Z).flatten(1, 2)))  # of x_l^H, [S, L, D]
            rows = Z.flatten(1, 2)
            inner.append(rows.mH @ rows)
        own = self._quadratic(torch.cat(inner)) * observed.repeats
        return torch.cat(pull), own.clamp_min(1e-9)

    def climb(self, observed: Observed, power: Float[Tensor, "S P"], steps: int) -> Float[Tensor, "S P"]:
        """Some steps of the fixed point, power times pull over own."""
        for _ in range(steps):
            pull, own = self(observed, power)
            power = sbl_update(power, pull, own)
        return power

    def _blocks(self, scenes: int) -> list[slice]:
        step = _BLOCK if self.basis.device.type == "cpu" else scenes
        return [slice(start, start + step) for start in range(0, scenes, step)]

    def _energy(self, rows: Complex[Tensor, "S L D"]) -> Float[Tensor, "S P"]:
        """Sum over l of |x_l^H a_p|^2 of all points."""
        both = real_rows(rows.unflatten(-1, (len(self.mirrors), -1)).movedim(-2, 0)).flatten(2, 3)
        fields = (both.flatten(1, 2) @ self._real).unflatten(1, both.shape[1:3])  # [G, S, 2 L, O]
        return self.mirrors.spread(self.mirrors.unfold(fields).square_().sum(2))

    def _covariance(self, power: Float[Tensor, "S P"]) -> Complex[Tensor, "S D D"]:
        """C, in the basis."""
        folded = self.mirrors.fold(power)
        G, S, _ = folded.shape
        if S <= _FEW:
            weight = torch.cat((folded, folded), dim=-1)[self.mirrors.pairs]  # [G, G, S, 2 O]
            left = self._left[:, None] * weight[..., None, :]  # [G, G, S, D / G, 2 O], class a second
            blocks = (left.flatten(1, 3) @ self._right.mT).unflatten(1, left.shape[1:4]).transpose(0, 1)
        else:
            every = (folded @ self._table.mT).unflatten(-1, (G, self._left.shape[1], -1)).transpose(1, 2)
            blocks = every[self.mirrors.pairs, self._of_class[0].mT]
        packed = blocks.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return torch.complex((packed + packed.mT) / 2, (packed - packed.mT) / 2)

    def _quadratic(self, Q: Complex[Tensor, "S D D"]) -> Float[Tensor, "S P"]:
        """a_p^H Q a_p of all points, Q Hermitian."""
        G, S = len(self.mirrors), len(Q)
        packed = (Q.real + Q.imag).unflatten(2, (G, -1)).unflatten(1, (G, -1))  # [S, a, i, b, j]
        if S <= _FEW:
            rows = packed.permute(1, 0, 3, 4, 2)
            moved = (rows.flatten(1, 3) @ self._left).unflatten(1, rows.shape[1:4]) * self._right
            blocks = moved.sum(3).unflatten(-1, (2, -1)).sum(-2)  # [a, S, b, O]
            folded = blocks.transpose(1, 2)[self._of_class].sum(1)
        else:
            blocks = packed.permute(1, 3, 0, 2, 4)[self._of_class]  # [G, a, S, i, j]
            folded = blocks.transpose(1, 2).flatten(2) @ self._table
        return self.mirrors.spread(self.mirrors.unfold(folded))
