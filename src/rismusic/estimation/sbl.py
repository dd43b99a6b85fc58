r"""Sparse Bayesian learning (SBL) on the search grid, through the link: a map of source powers and its peaks.

Every grid point p is a Gaussian source of unknown power :math:`\gamma_p`. Snapshot l has the covariance

.. math:: R_l = \sum_p \gamma_p\, g_{lp} g_{lp}^H + \sigma^2 I, \qquad g_{lp} = G_l a_p,

M x M whatever the size of the grid. The powers maximise the marginal likelihood by the fixed point

.. math:: \gamma_p \leftarrow \gamma_p\,
    \frac{\sum_l |g_{lp}^H R_l^{-1} y_l|^2}{\sum_l g_{lp}^H R_l^{-1} g_{lp}},

at which its gradient vanishes (MacKay's form: Tipping, "Sparse Bayesian learning and the relevance vector
machine", JMLR 1 (2001); for arrays: Gerstoft et al., "Multisnapshot sparse Bayesian learning for DOA", IEEE
SPL 23 (2016)). It is several times faster than expectation maximisation. Unlike for the square root of the
ratio (Sun, Babu and Palomar, 2016), there is no proof that each step increases the likelihood. The noise
variance is fixed: estimated together with thousands of powers, it falls to a third of its value (measured).

All matrices are real, with complex rows written as two real ones (see :mod:`rismusic.estimation.search`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.array import steering
from rismusic.devices import memory_budget
from rismusic.estimation.grid import find_peaks
from rismusic.estimation.search import GridSearch, project_out

_LOADING = 1e-5  # least noise variance relative to the power per antenna, for single precision
_NOTHING = 1e-12  # smaller powers, relative to the largest, are set to 0 before they become denormal numbers
# After _WARM iterations, only the 1 / _SHRINK of the points with the largest powers go on.
_WARM, _SHRINK = 5, 4


def sbl_powers(
    fields: Float[Tensor, "_ R M2 P"],
    snapshots: Complex[Tensor, "S L M"],
    noise_variance: Float[Tensor, "S"],
    *,
    shared: bool = False,
    iterations: int = 30,
) -> Float[Tensor, "S P"]:
    """Powers of all points of a dictionary after a number of iterations of the fixed point.

    Args:
        fields: G_l a_p of P points, rows Re and Im of each output in turn; one for each scene or one for all,
            one for each snapshot or (R = 1) one for all.
        snapshots: y.
        noise_variance: sigma^2.
        shared: use outer products made once for all scenes; see :func:`shares_outer`.
        iterations: of the fixed point.
    """
    y = snapshots.to(torch.complex64)
    _, L, M = y.shape
    energy = torch.view_as_real(y).square().sum(dim=(1, 2, 3))
    share = torch.where(energy > 0, energy, 1) / (L * M)
    noise = torch.maximum(noise_variance.float(), _LOADING * share)
    model = (_Shared if shared else _Own)(fields, y)
    # Evenly spread, with the energy that noise does not explain.
    spread = fields.square().sum(dim=(1, 2, 3)) * (L // fields.shape[1])
    level = torch.maximum(energy - L * M * noise, 0.1 * energy) / spread.clamp_min(1e-30)
    power = level[:, None].expand(-1, fields.shape[-1])
    identity = torch.eye(M, dtype=y.dtype, device=y.device)
    full, index = power, None
    for step in range(iterations):
        if step == _WARM and isinstance(model, _Own):
            index = power.topk(max(1, power.shape[1] // _SHRINK), dim=1).indices
            full, power = power, power.gather(1, index)
            model.keep(index)
        R = model.covariance(power) + noise[:, None, None, None] * identity
        half = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(R).L, identity, upper=False)
        power = sbl_update(power, *model.match(half))
        power = torch.where(power > _NOTHING * power.amax(dim=1, keepdim=True), power, 0)
    return power if index is None else torch.zeros_like(full).scatter(1, index, power)


def sbl_update(
    power: Float[Tensor, "S P"], matched: Float[Tensor, "S P"], expected: Float[Tensor, "S P"]
) -> Float[Tensor, "S P"]:
    r"""One step of the fixed point: each power times the ratio of matched to expected energy.

    They are :math:`\sum_l |g_{lp}^H R_l^{-1} y_l|^2` and :math:`\sum_l g_{lp}^H R_l^{-1} g_{lp}`. Points
    where nothing is expected get power 0.
    """
    return power * torch.where(expected > 0, matched / expected, 0)


def shares_outer(fields: Float[Tensor, "_ R M2 P"]) -> bool:
    """Whether a dictionary that all scenes share is small enough for its outer products to be kept."""
    _, R, rows, P = fields.shape
    return R * rows * rows * P <= memory_budget(fields.device)


class _Own:
    """Products with a dictionary of each scene's own, through R = sum_p gamma_p g_p g_p^H."""

    def __init__(self, fields: Tensor, y: Tensor) -> None:
        self.y = y.unflatten(1, (fields.shape[1], -1)).mT  # [S, R, M, L / R]
        self.fields = fields.expand(len(y), -1, -1, -1)
        _, R, M2, _ = fields.shape
        more = 2 * self.y.shape[-1]
        # Sums over rows and snapshots as a matrix product: the first kind of rows, then the second.
        self.sums = torch.zeros(2, R, M2 + more, device=y.device)
        self.sums[0, :, :M2] = self.y.shape[-1]
        self.sums[1, :, M2:] = 1
        self._make_room()

    def _make_room(self) -> None:
        # New memory for each product costs more than the product.
        S, R, M2, P = self.fields.shape
        self.weighted = self.fields.new_empty(S, R, M2, P)
        self.squares = self.fields.new_empty(S * R, self.sums.shape[-1], P)

    def keep(self, index: Tensor) -> None:
        """Drop all points but these, [S, kept]."""
        self.fields = torch.stack([part[..., i] for part, i in zip(self.fields, index, strict=True)])
        self._make_room()

    def covariance(self, power: Tensor) -> Tensor:
        """[S, R, M, M]."""
        torch.mul(self.fields, power[:, None, None], out=self.weighted)
        outer = self.weighted @ self.fields.mT
        outer = outer.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [S, R, M, 2, M, 2]
        return torch.complex(
            outer[..., 0, :, 0] + outer[..., 1, :, 1], outer[..., 1, :, 0] - outer[..., 0, :, 1]
        )

    def match(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """sum_l |g^H R^-1 y|^2 and sum_l g^H R^-1 g for all points, [S, P], from half = L^-1, R = L L^H."""
        z = half.mH @ (half @ self.y)
        rows = torch.cat((_rows(half), _rows(z.mH)), dim=-2)
        torch.bmm(rows.flatten(0, 1), self.fields.flatten(0, 1), out=self.squares)
        squares = self.squares.square_().unflatten(0, rows.shape[:2]).flatten(1, 2)
        own, pull = (self.sums.flatten(1) @ squares).unbind(1)
        return pull, own


class _Shared:
    """The same with one dictionary for all scenes: its outer products make R a plain matrix product.

    A Hermitian matrix is M^2 real numbers (real parts, then imaginary ones below the diagonal), and
    tr(W g g^H) the inner product of two such, those off the diagonal counted twice.
    """

    def __init__(self, fields: Tensor, y: Tensor) -> None:
        R, M = fields.shape[1], fields.shape[2] // 2
        self.fields = fields[0]
        self.y = y.unflatten(1, (R, -1)).mT
        self.lower = torch.tril_indices(M, M, -1, device=y.device)
        real, imaginary = self.fields.unflatten(1, (M, 2)).unbind(2)  # [R, M, P]
        i, j = self.lower
        on = real.square() + imaginary.square()
        off = real[:, i] * real[:, j] + imaginary[:, i] * imaginary[:, j]
        turn = imaginary[:, i] * real[:, j] - real[:, i] * imaginary[:, j]
        self.outer = torch.cat((on, off, turn), dim=1).flatten(0, 1)  # [R M^2, P]

    def covariance(self, power: Tensor) -> Tensor:
        M, (i, j) = self.y.shape[-2], self.lower
        packed = (power @ self.outer.mT).unflatten(1, (-1, M * M))
        on, off, turn = packed.split((M, len(i), len(i)), dim=-1)
        R = torch.diag_embed(on).to(self.y.dtype)
        R[..., i, j] = torch.complex(off, turn)
        R[..., j, i] = torch.complex(off, -turn)
        return R

    def match(self, half: Tensor) -> tuple[Tensor, Tensor]:
        W = half.mH @ half
        i, j = self.lower
        below = W[..., i, j]
        packed = torch.cat((W.diagonal(dim1=-2, dim2=-1).real, 2 * below.real, 2 * below.imag), dim=-1)
        own = packed.flatten(1) @ self.outer * self.y.shape[-1]
        rows = _rows((W @ self.y).mH).movedim(0, 1)  # [R, S, 2 L / R, 2M]
        pull = (rows.flatten(1, 2) @ self.fields).square_().unflatten(1, rows.shape[1:3])
        return pull.sum(dim=(0, 2)), own


def _rows(matrix: Tensor) -> Tensor:
    """Complex rows [.., n, M] as real ones for columns Re, Im in turn: [.., 2n, 2M]."""
    real = torch.stack((matrix.real, -matrix.imag), dim=-1).flatten(-2)
    imaginary = torch.stack((matrix.imag, matrix.real), dim=-1).flatten(-2)
    return torch.cat((real, imaginary), dim=-2)


# Points of the best by themselves whose powers are estimated: at least, and at most on a large panel.
_FEWEST, _MOST_LARGE = 512, 4096


def sbl_peaks(
    search: GridSearch, noise_variance: Float[Tensor, "S"], count: int, *, iterations: int = 15
) -> Float[Tensor, "S K 3"]:
    """Azimuth, elevation and 1/range of the highest peaks of each scene's power map."""
    recording, dictionary = search.recording, search.dictionary
    found = []
    for part, fields, index, shared in _dictionaries(search):
        data, noise = recording.snapshots[part], noise_variance[part]
        power = sbl_powers(fields, data, noise, shared=shared, iterations=iterations)
        values = power.new_zeros(len(power), len(dictionary.grid))
        values.scatter_(1, dictionary.points[index].expand_as(power), power)
        peaks = find_peaks(values, dictionary.grid, count)
        found.append(torch.stack((peaks.azimuth, peaks.elevation, 1 / peaks.range), dim=-1).double())
    return torch.cat(found)


def _dictionaries(search: GridSearch) -> Iterator[tuple[slice, Tensor, Int64[Tensor, "_ P"], bool]]:
    """Blocks of scenes, their dictionary [_, R, 2M, P], its points, whether its outer products are shared."""
    recording, dictionary = search.recording, search.dictionary
    link, scenes = recording.link, len(recording)
    R = link.matrices
    _, L, M = recording.snapshots.shape
    budget = memory_budget(recording.snapshots.device)
    most = min(budget // 8 // (8 * R * M), budget // (8 * recording.panel.size))
    if search.is_large:
        most = min(most, _MOST_LARGE)
    affordable = max(_FEWEST, most)
    if len(dictionary) > affordable:
        best = _best_points(search, affordable)
        for i in range(scenes):
            part, points = slice(i, i + 1), best[i : i + 1]
            azimuth, elevation, q = dictionary.positions(points[0]).float().unbind(-1)
            A = steering(dictionary.grid.panel, azimuth, elevation, 1 / q)
            yield part, dictionary.fields(link[part], dictionary.grid.real_columns(A)), points, False
        return
    index = torch.arange(len(dictionary), device=dictionary.points.device)[None]
    columns = torch.cat([part for _, part in dictionary.columns()], dim=-1)
    if link.per_scene:
        step = max(1, affordable // len(dictionary))
        for i in range(0, scenes, step):
            yield slice(i, i + step), dictionary.fields(link[i : i + step], columns), index, False
    else:
        fields = dictionary.fields(link, columns)
        shared = shares_outer(fields)
        # Rows of a scene's own beside the dictionary: its matches, or copies of the dictionary itself.
        rows = 2 * L + 8 if shared else 3 * R * 2 * M
        step = max(1, budget // 8 // (4 * rows * len(dictionary)))
        for i in range(0, scenes, step):
            yield slice(i, i + step), fields, index, shared


def _best_points(search: GridSearch, count: int) -> Int64[Tensor, "S count"]:
    """The points that explain each scene best, each by itself."""
    device = search.dictionary.points.device
    nothing = torch.zeros(len(search.recording), 0, 3, dtype=torch.float64, device=device)
    rest = project_out(search.recording, nothing, nothing[..., 0].bool())
    return search.best(torch.arange(len(search.recording), device=device), rest, count)[0]
