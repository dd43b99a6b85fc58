r"""Spectra: how much each point of space looks like a source, from a covariance R of the field on the panel.

All of them are one quadratic form of the steering vector, :math:`f(a) = |V^H a|^2`, with a narrow matrix V
[N, C] per scene:

=========== ======================================================= ======================================
spectrum    V                                                       value
=========== ======================================================= ======================================
Bartlett    F, of :math:`R = F F^H + \epsilon I`                    :math:`a^H R a = f + \epsilon`
MVDR        :math:`F (\epsilon I + F^H F)^{-1/2}`                   :math:`1/a^H R^{-1} a = \epsilon/(1-f)`
MUSIC       the K leading eigenvectors                              :math:`1 / (1 - f)`
soft MUSIC  eigenvectors of F, each weighted by its share of signal :math:`1 / (1 - f)`
=========== ======================================================= ======================================

The value grows with f, so that peaks, refinement and Newton work on f, which is smooth where the value is
not. On a grid, f of all scenes is one matrix product.

Newton's method on a spectrum, in azimuth, elevation and 1 / range, for all peaks of all scenes at once.

Every spectrum is a quadratic form :math:`f(a) = |V^H a|^2` (see :mod:`rismusic.estimation.spectra`), and
every element's wave a pure phase, :math:`a_n = e^{j\psi_n} / \sqrt N`. With :math:`g = V V^H a` and
:math:`c_n = a_n^* g_n`,

.. math:: \frac{\partial f}{\partial p} = 2 \sum_n \psi_{n,p}\, \mathrm{Im}\, c_n, \qquad
    \frac{\partial^2 f}{\partial p\, \partial q} = 2\, \mathrm{Re}\left( \partial_p a^H\, V V^H \partial_q a
    \right) - 2 \sum_n \psi_{n,p} \psi_{n,q}\, \mathrm{Re}\, c_n
    + 2 \sum_n \psi_{n,pq}\, \mathrm{Im}\, c_n.

The last term is left out: it vanishes where g is a multiple of a, as it is at a source that R explains. The
rest is exact, so that the steps there are Newton's. Where it is not positive definite (f bends upwards), the
curvature that a lone source would have, :math:`2 f\, \mathrm{Cov}_n[\psi_{,p}, \psi_{,q}]`, takes its place.

Sources found one after the other, each with those before it projected out.

Peaks of one spectrum are lost where two sources stand within a step or two of the grid, or where a strong
one's slope hides a weak one. With the steering vectors Q of the sources already found (made orthonormal)
taken out of both the spectrum's vectors and the steering vector, the next source is the highest point of

.. math:: f_k(a) = \frac{|V^H P^\perp a|^2}{|P^\perp a|^2}, \qquad P^\perp = I - Q Q^H,

the recursively projected form of Mosher and Leahy, "Source localization using recursively applied and
projected (RAP) MUSIC", IEEE Trans. SP 47 (1999), here for any V. A source found early, while another one
still pulled at it, is visited again with all the others taken out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import Panel, by_inverse_range, steering, steering_with_slopes
from rismusic.covariance import Covariance, energy
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.levenberg_marquardt import levenberg_marquardt
from rismusic.memory import block_size, blocks


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A spectrum of each scene; see the head of this module.

    Args:
        vectors: V, [..., N, C] complex.
        scale: [...] what the value is scaled with, or what is added to it.
        sharp: whether the value is scale / (1 - f) in place of f + scale.
    """

    vectors: Complex[Tensor, "*batch N C"]
    scale: Float[Tensor, "*batch"]
    sharp: bool

    @classmethod
    def from_subspace(cls, vectors: Complex[Tensor, "*batch N C"]) -> Spectrum:
        """The MUSIC-like spectrum 1 / (1 - |V^H a|^2), for |V^H a| at most 1 at unit vectors a.

        Args:
            vectors: V, orthonormal columns or shorter ones; columns of zeros are ignored.
        """
        scale = torch.ones(vectors.shape[:-2], dtype=vectors.real.dtype, device=vectors.device)
        return cls(vectors, scale, sharp=True)

    def on_grid(self, grid: SearchGrid) -> Float[Tensor, "*batch P"]:
        """Values at all points of a grid, larger where there is a source; those not ``inside`` count too."""
        return self.value(self.explained_on_grid(grid))

    def at(
        self,
        panel: Panel,
        azimuth: Float[Tensor, "*batch Q"],
        elevation: Float[Tensor, "*batch Q"],
        range: Float[Tensor, "*batch Q"],
    ) -> Float[Tensor, "*batch Q"]:
        """Values at points of each scene's own: azimuth, elevation (rad) and range (m)."""
        return self.value(self.explained_at(panel, azimuth, elevation, range))

    def value(self, explained: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q"]:
        """The value that belongs to f."""
        scale = self.scale[..., None].to(explained.dtype)
        if not self.sharp:
            return explained + scale
        # f may pass 1 by the rounding of a unit vector's norm.
        return scale / (1 - explained).clamp_min(4 * torch.finfo(explained.dtype).eps)

    def explained_on_grid(self, grid: SearchGrid) -> Float[Tensor, "*batch P"]:
        """The form f = |V^H a|^2 at all points of a grid, as one matrix product, by blocks of scenes."""
        self._check(grid.panel)
        *batch, N, C = self.vectors.shape
        dtype = self.vectors.real.dtype
        # Rows (re v, im v) and (-im v, re v) times columns (re a; im a) are the two parts of v^H a.
        rows = self.vectors.mT.reshape(math.prod(batch), C, N)
        rows = torch.cat((rows.real, rows.imag, -rows.imag, rows.real), dim=-1).view(len(rows), 2 * C, 2 * N)
        result = torch.empty(len(rows), len(grid), dtype=dtype, device=rows.device)
        for points, A in _columns(grid, dtype):
            scenes = block_size(8 * max(C, 1) * A.shape[1], rows.device)
            product = torch.empty(scenes * 2 * C, A.shape[1], dtype=dtype, device=rows.device)
            for start in range(0, len(rows), scenes):
                block = rows[start : start + scenes]
                into = product[: len(block) * 2 * C]
                torch.mm(block.flatten(0, 1), A, out=into)
                squares = into.square_().view(len(block), 2 * C, A.shape[1])
                result[start : start + scenes, points] = squares.sum(1)
        return result.view(*batch, len(grid))

    def explained_at(
        self,
        panel: Panel,
        azimuth: Float[Tensor, "*batch Q"],
        elevation: Float[Tensor, "*batch Q"],
        range: Float[Tensor, "*batch Q"],
    ) -> Float[Tensor, "*batch Q"]:
        """The form f at points of each scene's own."""
        self._check(panel)
        A = steering(panel, azimuth, elevation, range).to(self.vectors.dtype)
        projected = self.vectors.mH @ A
        return torch.view_as_real(projected).square().sum((-3, -1))

    def __getitem__(self, scenes: slice | Tensor | int) -> Spectrum:
        """The spectra of some scenes."""
        return Spectrum(self.vectors[scenes], self.scale[scenes], self.sharp)

    def _check(self, panel: Panel) -> None:
        if panel.size != self.vectors.shape[-2]:
            raise InputError("panel", f"N = {self.vectors.shape[-2]} elements as in R", str(panel.size))


SpectrumFunction = Callable[[Covariance, Int64[Tensor, "S"]], Spectrum]
"""The protocol of a spectrum: from a covariance and the number of sources of S scenes, both at least 1."""


@dataclass(frozen=True)
class SpectrumMethod:
    """A spectrum function and what it needs.

    Args:
        function: ``(covariance, n_sources) -> Spectrum``.
        subspace: whether the number of sources must not exceed the rank of the covariance. With the number of
            sources unknown, no more than L sources are then tried.
        shrink: whether the sample covariance is shrunk towards the identity, as an inverse of it needs.
    """

    function: SpectrumFunction
    subspace: bool = True
    shrink: bool = False

    @classmethod
    def of(cls, entry: SpectrumMethod | SpectrumFunction) -> SpectrumMethod:
        """An entry of the registry, which may be a bare function."""
        return entry if isinstance(entry, SpectrumMethod) else cls(entry)


def bartlett(covariance: Covariance) -> Spectrum:
    """The conventional beamformer, a^H R a: the power received from a point. One source is found exactly."""
    return Spectrum(covariance.factor, covariance.loading, sharp=False)


def mvdr(covariance: Covariance) -> Spectrum:
    r"""The minimum variance beamformer, 1 / (a^H R^{-1} a).

    Capon, "High-resolution frequency-wavenumber spectrum analysis", Proc. IEEE 57 (1969).

    Raises:
        InputError: a covariance without loading, whose inverse does not exist.
    """
    if not (covariance.loading > 0).all():
        raise InputError(
            "covariance.loading",
            "MVDR needs R^-1, so the loading must be positive; got 0. Add diagonal loading or shrinkage.",
        )
    vectors = covariance.inverse_root().to(covariance.factor.dtype)
    return Spectrum(vectors, covariance.loading, sharp=True)


def music(covariance: Covariance, sources: int | Int64[Tensor, "*batch"]) -> Spectrum:
    """1 / (1 - |U^H a|^2), U the eigenvectors of the K largest eigenvalues.

    Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34 (1986).

    Args:
        covariance: R.
        sources: K, one number or one per scene.

    Raises:
        InputError: K below 1 or above the rank of the covariance.
    """
    most = sources if isinstance(sources, int) else int(sources.max())
    values, vectors = covariance.eigen(most)
    if not isinstance(sources, int):
        if int(sources.min()) < 1:
            raise InputError("sources", f"1 to {covariance.rank} in every scene", str(int(sources.min())))
        place = torch.arange(most, device=sources.device)
        vectors = vectors * (place < sources[..., None])[..., None, :]
    return Spectrum(vectors, torch.ones_like(values[..., 0]), sharp=True)


def soft_music(covariance: Covariance, sources: int | Int64[Tensor, "*batch"]) -> Spectrum:
    r"""MUSIC whose projector fades out instead of being cut off after K eigenvectors.

    Each eigenvector counts by the share of signal in its eigenvalue,

    .. math:: V = \left[ \sqrt{w_i}\, u_i \right], \qquad w_i = \max(0, 1 - \nu / \lambda_i),

    :math:`\nu` being the noise level: the mean of the eigenvalues of F beyond the K-th, or the loading where
    there are none. At low SNR, where signal and noise eigenvalues mix, a source whose energy has leaked past
    the K-th eigenvector is not lost. For an exact covariance :math:`w_i = 1` and this is MUSIC. The weights
    are those of weighted subspace fitting to first order: Viberg and Ottersten, "Sensor array processing
    based on subspace fitting", IEEE Trans. SP 39 (1991).

    Args:
        covariance: R.
        sources: K, one number or one per scene.

    Raises:
        InputError: K below 1 or above the rank of the covariance.
    """
    most = sources if isinstance(sources, int) else int(sources.max())
    least = sources if isinstance(sources, int) else int(sources.min())
    if not 1 <= least <= most <= covariance.rank:
        found = least if least < 1 else most
        raise InputError("sources", f"1 to {covariance.rank} (the rank of the covariance)", str(found))
    values, vectors = covariance.eigen(covariance.rank)
    place = torch.arange(covariance.rank, device=values.device)
    count = torch.as_tensor(sources, device=values.device)
    tail = place >= count[..., None]
    noise = torch.where(tail, values, 0).sum(-1) / tail.sum(-1).clamp_min(1)
    noise = torch.where(tail.any(-1), noise, covariance.loading)
    weight = (1 - noise[..., None] / values).clamp_min(0)
    return Spectrum(vectors * weight.sqrt()[..., None, :], torch.ones_like(noise), sharp=True)


def _columns(grid: SearchGrid, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The real form of A, whole if it is small enough to be kept."""
    points = block_size(8 * grid.panel.size, grid.azimuth.device)
    if len(grid) <= points:
        yield slice(0, len(grid)), grid.real_steering(dtype)
        return
    for block, A in grid.blocks(points, dtype.to_complex()):
        yield block, torch.cat((A.real, A.imag))


# f is of the order of 1, so that this decrement moves the phases by about 1e-7 rad.
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class NewtonOptions:
    """How each climb goes.

    Args:
        steps: at most so many; few where a fit follows.
        each: whether of sources that are found in turn each is climbed on the spectrum itself before the next
            one is sought; all of them are in the end.
    """

    steps: int = 40
    each: bool = True


TO_CONVERGENCE = NewtonOptions()


@dataclass(frozen=True, eq=False)
class RefinedPeaks:
    """Refined positions of K peaks.

    Args:
        azimuth: [..., K] radians.
        elevation: [..., K] radians.
        range: [..., K] metres.
        explained: [..., K] the spectrum's f there, not below that of the start.
        converged: [..., K] whether no step would gain any more.
    """

    azimuth: Float[Tensor, "*batch K"]
    elevation: Float[Tensor, "*batch K"]
    range: Float[Tensor, "*batch K"]
    explained: Float[Tensor, "*batch K"]
    converged: Bool[Tensor, "*batch K"]


@torch.no_grad()
def newton(
    spectrum: Spectrum,
    panel: Panel,
    volume: Volume,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    *,
    climb: NewtonOptions = TO_CONVERGENCE,
    reach: float = 1.0,
    free: tuple[bool, bool, bool] = (True, True, True),
) -> RefinedPeaks:
    """Climb from each start to the top of its peak: damped, within the volume, never downhill.

    Starts outside the volume are moved to its border first. The work is done in double precision, since f is
    too flat at its top for single precision to find it.

    Args:
        spectrum: of each scene, [...].
        panel: N elements.
        volume: the box that bounds azimuth, elevation and 1 / range.
        azimuth: radians, [..., K].
        elevation: radians.
        range: metres.
        climb: how many steps, and how long.
        reach: how far from its start a peak may end, in widths of beam and focus along each coordinate, so
            that it does not run over to another one's.
        free: which of azimuth, elevation and range move.

    Returns:
        Positions in the precision of ``azimuth``.

    Raises:
        InputError: a reach that is not positive; a panel that does not fit the spectrum.
    """
    if not reach > 0:
        raise InputError("reach", "a positive number of beam widths", f"{reach:g}")
    if panel.size != spectrum.vectors.shape[-2]:
        raise InputError("panel", f"N = {spectrum.vectors.shape[-2]} elements as in R", str(panel.size))
    *batch, K = azimuth.shape
    start = volume.clamp(azimuth.double(), elevation.double(), range.double())
    place = torch.stack((start[0], start[1], 1 / start[2]), dim=-1).reshape(-1, K, 3)
    N, C = spectrum.vectors.shape[-2:]
    vectors = spectrum.vectors.expand(*batch, N, C).reshape(-1, N, C)
    box = torch.tensor((volume.lower, volume.upper), dtype=torch.float64, device=place.device)
    moving = torch.tensor(free, device=place.device)
    ends = []
    for block in blocks(len(place), 16 * vectors[0].numel() * K, place.device):
        V = vectors[block].to(torch.complex128)
        begin = place[block].flatten(0, 1)
        V = V.repeat_interleave(K, dim=0)
        a, slope = _phases(panel, begin)
        width = torch.where(moving, reach * _width(slope), 0)
        lower, upper = torch.maximum(begin - width, box[0]), torch.minimum(begin + width, box[1])

        def evaluate(live: Tensor, x: Tensor, V: Tensor = V) -> tuple[Tensor, Tensor, Tensor]:
            # The batch only ever shrinks: as many points as at first are the same ones.
            return _model(V if len(live) == len(V) else V[live], *_phases(panel, x))

        end = levenberg_marquardt(
            evaluate,
            begin,
            lower,
            upper,
            steps=climb.steps,
            tolerance=_TOLERANCE,
            first=_model(V, a, slope),
        )
        ends.append((end.point, -end.value, end.converged))
    point, explained, converged = (torch.cat(parts) for parts in zip(*ends, strict=True))
    q = point[:, 2]
    found = (value.reshape(azimuth.shape) for value in (point[:, 0], point[:, 1], 1 / q))
    azimuth_end, elevation_end, range_end = (value.to(azimuth.dtype) for value in volume.clamp(*found))
    return RefinedPeaks(
        azimuth=azimuth_end,
        elevation=elevation_end,
        range=range_end,
        explained=explained.reshape(azimuth.shape).to(azimuth.dtype),
        converged=converged.view(azimuth.shape),
    )


@torch.no_grad()
def search_range(
    spectrum: Spectrum,
    panel: Panel,
    volume: Volume,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    *,
    points: int = 32,
) -> RefinedPeaks:
    """The best range along each direction: a search over ``points`` even steps of 1 / range, then Newton.

    Args:
        spectrum: of each scene, [...].
        panel: N elements.
        volume: bounds of the range; directions outside it are moved to its border.
        azimuth: radians, [..., K]; held.
        elevation: radians, held.
        points: 1 / range is searched at so many points.

    Raises:
        InputError: no points.
    """
    if points < 1:
        raise InputError("points", "at least 1", str(points))
    (_, _, low), (_, _, high) = volume.lower, volume.upper
    middle = (torch.arange(points, dtype=azimuth.dtype, device=azimuth.device) + 0.5) / points
    q = (low + (high - low) * middle).expand(*azimuth.shape, points)
    places = (azimuth[..., None].expand_as(q), elevation[..., None].expand_as(q), 1 / q)
    explained = spectrum.explained_at(panel, *(value.flatten(-2) for value in places))
    best = explained.view(q.shape).argmax(-1, keepdim=True)
    distance = 1 / q.gather(-1, best)[..., 0]
    return newton(spectrum, panel, volume, azimuth, elevation, distance, free=(False, False, True))


def _phases(panel: Panel, x: Tensor) -> tuple[Tensor, Tensor]:
    """The waves a [B, N] at azimuth, elevation and 1 / range x [B, 3]; their phases' derivatives by x."""
    A, slope = steering_with_slopes(panel, x[:, :1], x[:, 1:2], 1 / x[:, 2:])
    return A[..., 0], slope[..., 0, :] * by_inverse_range(x[:, 2])[:, None]


def _width(slope: Tensor) -> Tensor:
    """Widths of beam and focus in the three coordinates, [B, 3]; see :meth:`SearchGrid.cover`."""
    spread = slope.var(dim=1, unbiased=False)
    return torch.where(spread > 0, 2 * math.pi / (12 * spread).sqrt(), torch.inf)


def _model(V: Tensor, a: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and curvature of -f for V [B, N, C], waves a [B, N] and their phases' slopes."""
    projected = V.mH @ torch.cat((a[..., None], 1j * slope * a[..., None]), dim=-1)  # [B, C, 1 + 3]
    f = torch.view_as_real(projected[..., 0]).square().sum((-2, -1))
    c = a.conj() * (V @ projected[..., :1])[..., 0]
    gradient = 2 * (slope * c.imag[..., None]).sum(1)
    inner = projected[..., 1:]
    B = 2 * ((slope * c.real[..., None]).mT @ slope - (inner.mH @ inner).real)
    centred = slope - slope.mean(1, keepdim=True)
    alone = 2 * f[:, None, None] * (centred.mT @ centred) / a.shape[-1]
    scale = alone.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(f.dtype).tiny).rsqrt()
    _, failed = torch.linalg.cholesky_ex(B * scale[:, :, None] * scale[:, None, :])
    return -f, -gradient, torch.where((failed == 0)[:, None, None], B, alone)


# Points of which less than this is left after the projection are too close to a source to tell.
_LEFT = 0.05
# How far Newton may go from a point of the grid, and from a place that was found under another's pull.
_FROM_GRID, _FROM_PLACE = 0.5, 1.0


@torch.no_grad()
def rap_music(
    spectrum: Spectrum,
    grid: SearchGrid,
    count: int,
    *,
    visits: int = 1,
    climb: NewtonOptions = TO_CONVERGENCE,
) -> RefinedPeaks:
    """K sources of each scene, one after the other: search, Newton, project out; then visited again.

    Costs K searches of the grid. What comes later depends on what was found before, so this is a loop over
    the sources; all scenes take each turn together.

    Args:
        spectrum: of each scene, [...].
        grid: the points that are searched.
        count: K, below N.
        visits: how often all sources are visited again. A scene keeps the outcome only if its sources
            together explain more of V than before. It pays where V is nearly exact and sources are close;
            not where noise decides.
        climb: how far each climb goes, but for the visits, which go to the top.

    Returns:
        Positions [..., K] in the order in which they were found.

    Raises:
        InputError: no sources, or as many as there are elements; a grid that does not fit the spectrum.
    """
    if not 1 <= count < grid.panel.size:
        raise InputError("sources", f"1 to {grid.panel.size - 1} (below N)", str(count))
    V, panel, volume = spectrum.vectors, grid.panel, grid.volume
    places = V.real.new_empty(*V.shape[:-2], 0, 3)
    rest = replace(spectrum, sharp=False)
    Q, left = V[..., :0], V.real.new_ones(len(grid))
    for turn in torch.arange(count):
        if turn > 0:
            q = _beside(panel, places[..., -1:, :], Q)
            rest = replace(rest, vectors=rest.vectors - q @ (q.mH @ rest.vectors))
            left = left - replace(rest, vectors=q).explained_on_grid(grid)
            Q = torch.cat((Q, q), dim=-1)
        ratio = rest.explained_on_grid(grid) / left.clamp_min(_LEFT)
        best = torch.where(grid.inside & (left > _LEFT), ratio, -1).argmax(-1, keepdim=True)
        start = [axis.to(left.dtype)[best] for axis in (grid.azimuth, grid.elevation, grid.range)]
        found = newton(rest, panel, volume, start[0], start[1], start[2], reach=_FROM_GRID, climb=climb)
        if climb.each:
            found = newton(spectrum, panel, volume, *_position(found), reach=_FROM_GRID, climb=climb)
        places = torch.cat((places, _stacked(found)), dim=-2)
    for _ in torch.arange(visits if count > 1 else 0):
        trial = _visit(spectrum, grid, places)
        better = _together(V, panel, trial) > _together(V, panel, places)
        places = torch.where(better[..., None, None], trial, places)
    azimuth, elevation, distance = places.unbind(-1)
    return newton(spectrum, panel, volume, azimuth, elevation, distance, reach=_FROM_GRID, climb=climb)


def _visit(spectrum: Spectrum, grid: SearchGrid, places: Float[Tensor, "... K 3"]) -> Tensor:
    """Each source moved to its peak with all others taken out, then to that of the spectrum itself."""
    V, K = spectrum.vectors, places.shape[-2]
    everyone = torch.arange(K, device=places.device)
    others = torch.stack([everyone[everyone != k] for k in everyone])
    Q = _basis(grid.panel, places[..., others, :], V.dtype)  # [..., K, N, K - 1]
    V = V[..., None, :, :]
    rest = Spectrum(V - Q @ (Q.mH @ V), spectrum.scale[..., None].expand(Q.shape[:-2]), sharp=False)
    start = places[..., None, :]
    moved = newton(
        rest, grid.panel, grid.volume, start[..., 0], start[..., 1], start[..., 2], reach=_FROM_PLACE
    )
    azimuth, elevation, distance = (value[..., 0] for value in _position(moved))
    return _stacked(newton(spectrum, grid.panel, grid.volume, azimuth, elevation, distance, reach=_FROM_GRID))


def _basis(panel: Panel, places: Tensor, dtype: torch.dtype) -> Complex[Tensor, "... N K"]:
    """Orthonormal basis of the steering vectors at [..., K, 3] places."""
    return torch.linalg.qr(steering(panel, places[..., 0], places[..., 1], places[..., 2]).to(dtype)).Q


def _beside(panel: Panel, place: Tensor, Q: Tensor) -> Complex[Tensor, "... N 1"]:
    """What the steering vector at one more place adds to an orthonormal basis Q [..., N, K], of unit norm."""
    a = steering(panel, place[..., 0], place[..., 1], place[..., 2]).to(Q.dtype)
    a = a - Q @ (Q.mH @ a)
    return a / a.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(a.real.dtype).tiny)


def _together(V: Tensor, panel: Panel, places: Tensor) -> Tensor:
    """How much of V the sources explain together, [...]."""
    return energy(_basis(panel, places, V.dtype).mH @ V).sum((-2, -1))


def _position(found: RefinedPeaks) -> tuple[Tensor, Tensor, Tensor]:
    return found.azimuth, found.elevation, found.range


def _stacked(found: RefinedPeaks) -> Tensor:
    return torch.stack(_position(found), dim=-1)
