"""Grid search compiled by Numba: sums of squared products with all grid points, and what each is worth.

Matrix products with one class of the steering vectors at a time (:mod:`rismusic.estimation.symmetry`) give
the parts of :math:`w^T a_p` that are even or odd in each reflection. Compiled functions add the parts, square
them and sum them over rows, scene by scene, while they are in the cache of the processor.
:class:`~rismusic.estimation.search.GridSearch` without Numba does the same with the products of all points.
"""

# The compiled functions have no types of their own: Numba derives them from those of the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.estimation import search
from rismusic.estimation.grid import SearchGrid
from rismusic.estimation.kernel_cache import call
from rismusic.estimation.search import Residual, Strongest
from rismusic.estimation.symmetry import ConstantMatrices, Symmetry
from rismusic.operator import Link

# Bytes of the products of a block of scenes, which the compiled functions find in the cache.
_PRODUCTS_BYTES = 2**22
# Points whose gains are computed together, and logarithms that one of a product replaces.
_CHUNK, _LOGARITHMS = 128, 4


class ClassProducts:
    """Products with the steering vectors of all points of a grid, by classes of its symmetry."""

    def __init__(self, grid: SearchGrid) -> None:
        self.symmetry = symmetry = Symmetry.of(grid)
        # Projections onto the classes.
        parts = symmetry.parts(torch.eye(grid.panel.size, dtype=torch.complex128)).real
        values, vectors = torch.linalg.eigh(parts)
        most = int((values > 0.5).sum(-1).max())
        basis = (vectors * (values > 0.5)[:, None])[..., -most:]  # [G, N, N / G], padded with zeros
        self._basis = ConstantMatrices(basis.movedim(0, 1).flatten(1).float()[None])  # [1, N, G N / G]
        columns = basis.mT.to(torch.complex128) @ grid.at(symmetry.points[0], torch.complex128)
        columns = torch.cat((columns.real, columns.imag), dim=1).float()
        self._columns = ConstantMatrices(columns)  # [G, 2 N / G, O]
        self.inside = symmetry.back[grid.inside]  # of each point inside the volume, one image

    def __call__(self, rows: Complex[Tensor, "S R N"]) -> list[Float[Tensor, "S R 2 O"]]:
        """Real and imaginary part of rows^* times the steering vectors of a point of each orbit, by class."""
        G = len(self.symmetry)
        both = torch.view_as_real(rows.to(torch.complex64)).movedim(-1, -2)
        parts = self._basis(both.flatten(0, -2)[None])[0].unflatten(0, both.shape[:-1])
        real, imaginary = parts.unflatten(-1, (G, -1)).movedim(-2, 0).unbind(-2)  # [G, S, R, N / G]
        both = torch.stack((torch.cat((real, imaginary), -1), torch.cat((-imaginary, real), -1)), dim=-2)
        return [part.unflatten(0, both.shape[1:4]) for part in self._columns(both.flatten(1, 3))]


@lru_cache(maxsize=4)
def class_products(grid: SearchGrid) -> ClassProducts:
    """The products of a grid, kept for the next call."""
    return ClassProducts(grid)


def energies(products: ClassProducts, strongest: Strongest) -> Float[Tensor, "S _ G O"]:
    """:meth:`rismusic.estimation.search.Dictionary.energies` of the images of all orbits."""
    G, orbits = products.symmetry.points.shape
    if strongest.rows is None:
        return strongest.level[..., None].expand(-1, -1, G, orbits).contiguous()
    S, L, J, _ = strongest.rows.shape
    out = strongest.level[..., None].expand(S, L, G, orbits).contiguous()
    for part in _blocks(S, G * orbits * L * J):
        _add(products, strongest.rows[part].conj(), 1.0, out[part])
    return out


def worth(
    products: ClassProducts, link: Link, rest: Residual, energy: Float[Tensor, "_ _ G O"]
) -> Float[Tensor, "S P"]:
    """What a source at each point inside the volume is worth to S scenes; see :func:`energies`."""
    S, K = len(rest.data), rest.basis.shape[-1]
    G, orbits = products.symmetry.points.shape
    energy = energy.expand(S, -1, -1, -1)
    noise = torch.zeros(S) if rest.noise_variance is None else rest.noise_variance.float()
    few, times = search.few_snapshots(link, rest.data)
    data = link.adjoint(few).unsqueeze(1 if times > 1 else 2)  # groups whose squares are summed
    basis = (
        torch.stack([link.adjoint(column) for column in rest.basis.unbind(-1)], dim=2)
        if K
        else data[:, :, :0]
    )
    out = torch.empty(S, G * orbits)
    for part in _blocks(S, G * orbits * (data.shape[1] * data.shape[2] + basis.shape[1] * K)):
        sent = energy[part].contiguous()
        left, pull = sent.clone(), torch.zeros(len(sent), data.shape[1], G, orbits)
        if K:
            _add(products, basis[part], -1.0, left)
        _add(products, data[part], 1 / times, pull)
        pull, left, sent = (value.flatten(2) for value in (pull, left, sent))
        _fill(pull, left, sent, noise[part], out[part])
    return times * out[:, products.inside]


def worth_beside(
    pull: Float[Tensor, "S L B"],
    left: Float[Tensor, "_ _ B"],
    energy: Float[Tensor, "_ _ B"],
    noise: Float[Tensor, "S"] | None,
) -> Float[Tensor, "S B"]:
    """:func:`rismusic.estimation.search._worth_beside` for a block of points."""
    S, _, B = pull.shape
    left, energy = (value.float().expand(S, -1, -1).contiguous() for value in (left, energy))
    out = torch.empty(S, B)
    _fill(pull.contiguous(), left, energy, torch.zeros(S) if noise is None else noise.float(), out)
    return out


def add_worth_at(
    worth: Float[Tensor, "S P B"],
    sums: Float[Tensor, "B R2"],
    norm: Float[Tensor, "B"],
    weights: tuple[Float[Tensor, "_ L 1"], Float[Tensor, "_ L 1"], Float[Tensor, "_ L J"]],
    powers: Float[Tensor, "S P 1 1"] | None,
    noise: Float[Tensor, "S 1 1"] | None,
) -> None:
    """Add :func:`rismusic.estimation.search._worth_at` of a block of points to ``worth``.

    ``sums`` are products with the rows of the data and of the strongest directions
    (:meth:`rismusic.estimation.subarrays.Subarrays.sums`), ``norm`` the norms of the waves, and ``weights``
    level, other and share of :meth:`rismusic.estimation.search.GridSearch`.
    """
    S = len(worth)
    level, other, share = (value.float().expand(S, -1, -1).contiguous().numpy() for value in weights)
    nothing = torch.empty(S, 0)
    arguments = (
        *(worth.numpy(), sums.numpy(), norm.numpy(), level[..., 0], other[..., 0], share),
        (nothing if powers is None else powers.float().reshape(S, -1)).contiguous().numpy(),
        (torch.ones(S) if noise is None else noise.reshape(S)).contiguous().numpy(),
        search._ROUGH_FLOOR,
    )
    call(_add_worth_at, -(-len(sums) // _CHUNK), arguments)


def squared(products: Float[Tensor, "S R 2 B"]) -> Float[Tensor, "S R B"]:
    """Squared moduli of products of which real and imaginary part are given."""
    S, R, _, B = products.shape
    out = torch.zeros(S, R, 1, B)
    add_squares([products], 1, 1.0, out)
    return out[:, :, 0]


def _fill(pull: Tensor, left: Tensor, energy: Tensor, noise: Tensor, out: Tensor) -> None:
    """What a source at each point is worth to each scene, written to ``out``, [S, P]."""
    arrays = tuple(value.numpy() for value in (pull, left, energy, noise, out))
    call(_worth, len(out), (*arrays, (search._ROUGH_FLOOR, search._STEPS)))


def _add(
    products: ClassProducts, rows: Complex[Tensor, "S L J N"], sign: float, out: Float[Tensor, "S L G O"]
) -> None:
    """Add sign times the energy of J rows along all points."""
    add_squares(products(rows.resolve_conj().flatten(1, 2)), rows.shape[2], sign, out)


def add_squares(
    products: list[Float[Tensor, "S R 2 O"]], each: int, sign: float, out: Float[Tensor, "S L G O"]
) -> None:
    """Add sign times the squared moduli of products, summed over ``each`` rows at a time, at all images."""
    call(_add_squares, len(out), (tuple(part.numpy() for part in products), each, sign, out.numpy()))


def explained(products: ClassProducts, vectors: Complex[Tensor, "S N C"]) -> Float[Tensor, "S P"]:
    """Energy of vectors V along all points of the grid, :math:`|V^H a_p|^2`."""
    S, _, C = vectors.shape
    G, orbits = products.symmetry.points.shape
    out = torch.zeros(S, 1, G, orbits)
    for part in _blocks(S, G * orbits * C) if C else []:
        _add(products, vectors[part].mT[:, None], 1.0, out[part])
    return out.flatten(1)[:, products.symmetry.back]


def _blocks(scenes: int, numbers: int) -> list[slice]:
    """Blocks of scenes whose products fit in the cache."""
    step = max(1, _PRODUCTS_BYTES // max(1, 8 * numbers))
    return [slice(start, min(start + step, scenes)) for start in range(0, scenes, step)]


def _add_squares(first, last, products, each, sign, out):
    """See :func:`add_squares`."""
    G, (_, R, _, orbits) = len(products), products[0].shape
    re, im = np.empty((4, orbits), np.float32), np.empty((4, orbits), np.float32)
    weight = np.float32(sign)
    for s in range(first, last):
        for r in range(R):
            for i in range(G):
                for o in range(orbits):
                    re[i, o], im[i, o] = products[i][s, r, 0, o], products[i][s, r, 1, o]
            row = out[s, r // each]
            if G == 1:
                for o in range(orbits):
                    row[0, o] += weight * (re[0, o] ** 2 + im[0, o] ** 2)
            elif G == 2:
                for o in range(orbits):
                    a, b, c, d = re[0, o], im[0, o], re[1, o], im[1, o]
                    row[0, o] += weight * ((a + c) ** 2 + (b + d) ** 2)
                    row[1, o] += weight * ((a - c) ** 2 + (b - d) ** 2)
            else:
                for o in range(orbits):
                    a, b = re[0, o] + re[1, o], im[0, o] + im[1, o]
                    c, d = re[2, o] + re[3, o], im[2, o] + im[3, o]
                    row[0, o] += weight * ((a + c) ** 2 + (b + d) ** 2)
                    row[2, o] += weight * ((a - c) ** 2 + (b - d) ** 2)
                    a, b = re[0, o] - re[1, o], im[0, o] - im[1, o]
                    c, d = re[2, o] - re[3, o], im[2, o] - im[3, o]
                    row[1, o] += weight * ((a + c) ** 2 + (b + d) ** 2)
                    row[3, o] += weight * ((a - c) ** 2 + (b - d) ** 2)


def _add_worth_at(first, last, worth, sums, norms, levels, others, shares, powers, noises, floor):
    """See :func:`add_worth_at`, for chunks of points."""
    S, L, J = shares.shape
    B, R, P = len(sums), sums.shape[1] // 2, powers.shape[1]
    zero, one, least = np.float32(0.0), np.float32(1.0), np.float32(floor)
    squares = np.empty((R, _CHUNK), np.float32)
    left, energy = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    total, product = np.empty((max(P, 1), _CHUNK), np.float32), np.empty((max(P, 1), _CHUNK))
    for chunk in range(first, last):
        start = chunk * _CHUNK
        count = min(_CHUNK, B - start)
        for c in range(count):
            scale = one / (norms[start + c] * norms[start + c])
            for r in range(R):
                re, im = sums[start + c, r], sums[start + c, R + r]
                squares[r, c] = (re * re + im * im) * scale
        for s in range(S):
            scale, of = one / noises[s], s if R == S * L * (1 + J) else 0  # or all share directions
            for p in range(max(P, 1)):
                for c in range(count):
                    total[p, c], product[p, c] = zero, 1.0
            for t in range(L):
                row = s * L + t
                for c in range(count):
                    energy[c], left[c] = levels[s, t], levels[s, t] * others[s, t]
                for j in range(J):
                    share, along = shares[s, t, j], squares[S * L + (of * L + t) * J + j]
                    for c in range(count):
                        energy[c] += along[c]
                        left[c] += share * along[c]
                for c in range(count):
                    left[c] = max(left[c], least * energy[c])
                if P == 0:
                    for c in range(count):
                        total[0, c] += squares[row, c] / left[c]
                for p in range(P):
                    power = powers[s, p]
                    for c in range(count):
                        gain = one + power * left[c]
                        total[p, c] += power * scale * squares[row, c] / gain
                        product[p, c] *= gain
                    if t % _LOGARITHMS == _LOGARITHMS - 1 or t == L - 1:
                        for c in range(count):
                            total[p, c] -= np.float32(math.log(product[p, c]))
                            product[p, c] = 1.0
            for p in range(max(P, 1)):
                for c in range(count):
                    worth[s, p, start + c] += total[p, c]


def _worth(first, last, pulls, lefts, energies, noises, out, rules):
    """See :func:`rismusic.estimation.search._worth`."""
    floor, steps = np.float32(rules[0]), rules[1]
    L, P = pulls.shape[1], pulls.shape[2]
    matrices, sent = lefts.shape[1], energies.shape[1]
    zero, one = np.float32(0.0), np.float32(1.0)
    a, b = np.empty((L, _CHUNK), np.float32), np.empty((L, _CHUNK), np.float32)
    power, product = np.empty(_CHUNK, np.float32), np.empty(_CHUNK)
    top, bottom = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)
    for s in range(first, last):
        known = noises[s] > 0
        scale = one / noises[s] if known else one
        for start in range(0, P, _CHUNK):
            count = min(_CHUNK, P - start)
            for t in range(L):
                left, energy = lefts[s, min(t, matrices - 1)], energies[s, min(t, sent - 1)]
                for c in range(count):
                    p = start + c
                    a[t, c] = max(left[p], floor * energy[p])
                    b[t, c] = pulls[s, t, p] * scale
            if not known:
                for c in range(count):
                    top[c] = zero
                for t in range(L):
                    for c in range(count):
                        top[c] += b[t, c] / a[t, c]
                for c in range(count):
                    out[s, start + c] = top[c]
                continue
            for c in range(count):
                power[c] = zero
            for _ in range(steps + 1):
                # Step 0 starts from no power: the slope over the information there.
                for c in range(count):
                    top[c], bottom[c] = zero, zero
                for t in range(L):
                    for c in range(count):
                        damped = one / (one + power[c] * a[t, c])
                        top[c] += (b[t, c] * damped - a[t, c]) * damped
                        bottom[c] += (a[t, c] * damped) ** 2
                for c in range(count):
                    power[c] = max(power[c] + top[c] / bottom[c], zero)
            for c in range(count):
                top[c], product[c] = zero, 1.0
            for t in range(L):
                for c in range(count):
                    gain = one + power[c] * a[t, c]
                    top[c] += power[c] * b[t, c] / gain
                    product[c] *= gain
                if t % _LOGARITHMS == _LOGARITHMS - 1 or t == L - 1:
                    for c in range(count):
                        top[c] -= np.float32(math.log(product[c]))
                        product[c] = 1.0
            for c in range(count):
                out[s, start + c] = top[c]
