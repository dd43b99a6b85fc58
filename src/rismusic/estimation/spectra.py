r"""Spatial spectra of the covariance of the field, Newton's method for their peaks, and RAP-MUSIC.

**Spectra.** All of them are quadratic forms of the steering vector, :math:`f(a) = |V^H a|^2`, with a narrow
matrix V [N, C] per scene:

=========== ======================================================= ======================================
spectrum    V                                                       value
=========== ======================================================= ======================================
Bartlett    F, of :math:`R = F F^H + \epsilon I`                    :math:`a^H R a = f + \epsilon`
MVDR        :math:`F (\epsilon I + F^H F)^{-1/2}`                   :math:`1/a^H R^{-1} a = \epsilon/(1-f)`
MUSIC       the K leading eigenvectors                              :math:`1 / (1 - f)`
soft MUSIC  eigenvectors of F, weighted by their share of signal    :math:`1 / (1 - f)`
=========== ======================================================= ======================================

The value increases with f. Peaks are therefore searched and refined on f, which is smooth where the value is
not. On a grid, f of all scenes is one matrix product.

**Newton's method** maximises f over azimuth, elevation and 1/range for all peaks of all scenes at once. Let
:math:`\zeta_{n,p} = \partial \log a_n / \partial p`, :math:`g = V V^H a` and :math:`c_n = a_n^* g_n`. Then

.. math:: \frac{\partial f}{\partial p} = 2\, \mathrm{Re} \sum_n \zeta_{n,p}^* c_n, \qquad
    \frac{\partial^2 f}{\partial p\, \partial q} \approx 2\, \mathrm{Re}\left( \partial_p a^H\, V V^H
    \partial_q a \right) - 2 \sum_n \mathrm{Re}(\zeta_{n,p}^* \zeta_{n,q})\, \mathrm{Re}\, c_n.

The approximation is exact where g is a multiple of a, as at a source that R explains, since a has unit norm.
Where the Hessian is not negative definite, the curvature of a single source,
:math:`2 f\, \mathrm{Cov}_n[\zeta_{,p}, \zeta_{,q}]` with the weights :math:`|a_n|^2`, replaces it.

**RAP-MUSIC** finds the sources one after the other. Peaks of one spectrum are lost where two sources are
within a step or two of the grid, or where the slope of a strong one hides a weak one. With the steering
vectors Q of the sources found so far (orthonormalised), the next source is the maximum of

.. math:: f_k(a) = \frac{|V^H P^\perp a|^2}{|P^\perp a|^2}, \qquad P^\perp = I - Q Q^H.

Mosher and Leahy, "Source localization using recursively applied and projected (RAP) MUSIC", IEEE Trans. SP 47
(1999); here for any V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import Panel, steering, steering_with_log_derivatives
from rismusic.batch import Batch
from rismusic.covariance import Covariance
from rismusic.devices import block_size, blocks
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.levenberg_marquardt import FitOptions, levenberg_marquardt
from rismusic.estimation.maximum_likelihood import compiled_fits
from rismusic.estimation.search import compiled_search
from rismusic.sources import Sources
from rismusic.text import short_repr

# Newton decrement at convergence. f is of the order of 1, so the phases are off by about 1e-7 rad.
_TOLERANCE = 1e-7
# Grid points whose steering vector keeps less than this share of its energy after the projection coincide
# with a source that has been found.
_LEFT = 0.05
_REACH = 0.5  # how far Newton's method may move from a point of the grid, in beam widths


@dataclass(frozen=True, eq=False)
class Spectrum(Batch):
    """A spatial spectrum of each scene: a quadratic form of the steering vector.

    Args:
        vectors: V, [..., N, C] complex.
        scale: [...] see ``sharp``.
        sharp: whether the value is scale / (1 - f) rather than f + scale.
    """

    vectors: Complex[Tensor, "*batch N C"]
    scale: Float[Tensor, "*batch"]
    sharp: bool

    __repr__ = short_repr

    @classmethod
    def from_subspace(cls, vectors: Complex[Tensor, "*batch N C"]) -> Spectrum:
        r"""The MUSIC-like spectrum :math:`1 / (1 - |V^H a|^2)`, for :math:`|V^H a| \le 1` at unit vectors a.

        Args:
            vectors: V, orthonormal columns or shorter ones; columns of zeros are ignored.
        """
        scale = torch.ones(vectors.shape[:-2], dtype=vectors.real.dtype, device=vectors.device)
        return cls(vectors, scale, sharp=True)

    def on_grid(self, grid: SearchGrid) -> Float[Tensor, "*batch P"]:
        """Values at all points of a grid, those outside its volume included."""
        return self.value(self.explained_on_grid(grid))

    def at(
        self,
        panel: Panel,
        azimuth: Float[Tensor, "*batch Q"],
        elevation: Float[Tensor, "*batch Q"],
        range: Float[Tensor, "*batch Q"],
    ) -> Float[Tensor, "*batch Q"]:
        """Values at the given azimuths, elevations (rad) and ranges (m), which differ between scenes."""
        return self.value(self.explained_at(panel, azimuth, elevation, range))

    def value(self, explained: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q"]:
        """The value that belongs to f."""
        scale = self.scale[..., None].to(explained.dtype)
        if not self.sharp:
            return explained + scale
        # f may pass 1 by the rounding of a unit vector's norm.
        return scale / (1 - explained).clamp_min(4 * torch.finfo(explained.dtype).eps)

    def explained_on_grid(self, grid: SearchGrid) -> Float[Tensor, "*batch P"]:
        """The quadratic form f at all points of a grid, as one matrix product, by blocks of scenes."""
        return self.explained_by_parts(grid, self.vectors.shape[-1])[0]

    def explained_by_parts(
        self, grid: SearchGrid, first: int
    ) -> tuple[Float[Tensor, "*batch P"], Float[Tensor, "*batch P"]]:
        """The same by the first vectors and by the others."""
        self._check(grid.panel)
        *batch, N, C = self.vectors.shape
        dtype = self.vectors.real.dtype
        plain = dtype == torch.float32 and not self.vectors.requires_grad
        compiled = compiled_search(grid) if plain else None
        if compiled is not None:
            products, V = compiled.class_products(grid), self.vectors.flatten(0, -3)
            parts = [V[..., :first], V[..., first:]]
            explained, rest = (compiled.explained(products, part).view(*batch, -1) for part in parts)
            return explained, rest
        # Rows (re v, im v) and (-im v, re v) times columns (re a; im a) are the two parts of v^H a.
        rows = self.vectors.mT.reshape(math.prod(batch), C, N)
        rows = torch.cat((rows.real, rows.imag, -rows.imag, rows.real), dim=-1).view(len(rows), 2 * C, 2 * N)
        result = torch.empty(2, len(rows), len(grid), dtype=dtype, device=rows.device)
        for points, A in _columns(grid, dtype):
            scenes = block_size(8 * max(C, 1) * A.shape[1], rows.device)
            product = torch.empty(scenes * 2 * C, A.shape[1], dtype=dtype, device=rows.device)
            for start in range(0, len(rows), scenes):
                block = rows[start : start + scenes]
                into = product[: len(block) * 2 * C]
                torch.mm(block.flatten(0, 1), A, out=into)
                squares = into.square_().view(len(block), 2 * C, A.shape[1])
                for part, some in enumerate((squares[:, : 2 * first], squares[:, 2 * first :])):
                    result[part, start : start + scenes, points] = some.sum(1)
        explained, rest = result.view(2, *batch, len(grid))
        return explained, rest

    def explained_at(
        self,
        panel: Panel,
        azimuth: Float[Tensor, "*batch Q"],
        elevation: Float[Tensor, "*batch Q"],
        range: Float[Tensor, "*batch Q"],
    ) -> Float[Tensor, "*batch Q"]:
        """The quadratic form f at the given points, which differ between scenes."""
        self._check(panel)
        A = steering(panel, azimuth, elevation, range).to(self.vectors.dtype)
        projected = self.vectors.mH @ A
        return torch.view_as_real(projected).square().sum((-3, -1))

    def _check(self, panel: Panel) -> None:
        if panel.size != self.vectors.shape[-2]:
            raise InputError(
                "panel", f"has {panel.size} elements, but the covariance has {self.vectors.shape[-2]}"
            )


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
    """The conventional (Bartlett) beamformer, a^H R a. Its maximum is exact for one source."""
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
    r"""MUSIC, :math:`1 / (1 - |U^H a|^2)` with the eigenvectors U of the K largest eigenvalues.

    Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34 (1986).

    Args:
        covariance: R.
        sources: K, one number or one per scene.

    Raises:
        InputError: K below 1 or above the rank of the covariance.
    """
    most = _largest_number(covariance, sources)
    values, vectors = covariance.eigen(most)
    if not isinstance(sources, int):
        number = torch.arange(most, device=sources.device)
        vectors = vectors * (number < sources[..., None])[..., None, :]
    return Spectrum(vectors, torch.ones_like(values[..., 0]), sharp=True)


def soft_music(covariance: Covariance, sources: int | Int64[Tensor, "*batch"]) -> Spectrum:
    r"""MUSIC with a soft signal projector, which weights eigenvectors rather than selecting K of them.

    The weight of an eigenvector is the share of signal in its eigenvalue,

    .. math:: V = \left[ \sqrt{w_i}\, u_i \right], \qquad w_i = \max(0, 1 - \nu / \lambda_i),

    :math:`\nu` being the noise level: the mean of the eigenvalues of F beyond the K-th, or the loading where
    F has no more than K. At low SNR, where signal and noise eigenvalues mix, a source whose energy has leaked
    past the K-th eigenvector is not lost. For an exact covariance :math:`w_i = 1` and this is MUSIC. The
    weights are those of weighted subspace fitting to first order: Viberg and Ottersten, "Sensor array
    processing based on subspace fitting", IEEE Trans. SP 39 (1991).

    Args:
        covariance: R.
        sources: K, one number or one per scene.

    Raises:
        InputError: K below 1 or above the rank of the covariance.
    """
    _largest_number(covariance, sources)
    values, vectors = covariance.eigen(covariance.rank)
    number = torch.arange(covariance.rank, device=values.device)
    count = torch.as_tensor(sources, device=values.device)
    tail = number >= count[..., None]
    noise = torch.where(tail, values, 0).sum(-1) / tail.sum(-1).clamp_min(1)
    noise = torch.where(tail.any(-1), noise, covariance.loading)
    weight = (1 - noise[..., None] / values).clamp_min(0)
    return Spectrum(vectors * weight.sqrt()[..., None, :], torch.ones_like(noise), sharp=True)


def _largest_number(covariance: Covariance, sources: int | Tensor) -> int:
    """The largest number of sources of any scene, checked against the rank of the covariance."""
    least, most = (sources, sources) if isinstance(sources, int) else (int(sources.min()), int(sources.max()))
    if not 1 <= least <= most <= covariance.rank:
        found = least if least < 1 else most
        rank = covariance.rank
        raise InputError("sources", f"must be 1 to {rank}, the rank of the covariance; got {found}")
    return most


def _columns(grid: SearchGrid, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of A in real form; a single one, which the grid caches, if A fits the memory budget."""
    points = block_size(8 * grid.panel.size, grid.azimuth.device)
    if len(grid) <= points:
        yield slice(0, len(grid)), grid.real_steering(dtype)
        return
    for block, A in grid.blocks(dtype.to_complex()):
        yield block, grid.real_columns(A)


@dataclass(frozen=True)
class NewtonOptions:
    """Options of Newton's method on a spectrum.

    RAP-MUSIC refines each source before it searches the next one unless ``each`` is off, and all at the end.
    A few steps are enough where a maximum-likelihood fit follows.
    """

    steps: int = 40
    each: bool = True


TO_CONVERGENCE = NewtonOptions()


@dataclass(frozen=True, eq=False)
class RefinedPeaks:
    """Refined positions of K peaks."""

    azimuth: Float[Tensor, "*batch K"]  # radians
    elevation: Float[Tensor, "*batch K"]  # radians
    range: Float[Tensor, "*batch K"]  # metres
    explained: Float[Tensor, "*batch K"]  # f at the peak, not below that at the start
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
    options: NewtonOptions = TO_CONVERGENCE,
    reach: float = 1.0,
) -> RefinedPeaks:
    """Refine the start of each peak, in radians and metres, by a damped Newton's method within the volume.

    Starts outside the volume are moved to its boundary first. The method works in double precision, since f
    is too flat at its maximum for single precision; the results have the precision of ``azimuth``. ``reach``
    is the largest distance between start and peak in each coordinate, in beam widths (depths of focus in
    1/range), so that the method does not move to the peak of another source.

    Raises:
        InputError: a reach that is not positive; a panel that does not fit the spectrum.
    """
    if not reach > 0:
        raise InputError("reach", f"must be a positive number of beam widths; got {reach:g}")
    if panel.size != spectrum.vectors.shape[-2]:
        raise InputError(
            "panel", f"has {panel.size} elements, but the covariance has {spectrum.vectors.shape[-2]}"
        )
    *batch, K = azimuth.shape
    start = volume.clamp(azimuth.double(), elevation.double(), range.double())
    positions = torch.stack((start[0], start[1], 1 / start[2]), dim=-1).reshape(-1, K, 3)
    N, C = spectrum.vectors.shape[-2:]
    vectors = spectrum.vectors.expand(*batch, N, C).reshape(-1, N, C)
    kernel = compiled_fits() if positions.device.type == "cpu" and panel.subcarriers == 1 else None
    box = torch.tensor((volume.lower, volume.upper), dtype=torch.float64, device=positions.device)
    ends = []
    if kernel is not None:
        limits = FitOptions(options.steps, _TOLERANCE)
        end = kernel.climb(panel, vectors, positions, reach, (volume.lower, volume.upper), limits)
        ends.append(tuple(value.flatten(0, 1) for value in end))
    for block in (
        [] if kernel is not None else blocks(len(positions), 16 * vectors[0].numel() * K, positions.device)
    ):
        V = vectors[block].to(torch.complex128)
        begin = positions[block].flatten(0, 1)
        V = V.repeat_interleave(K, dim=0)
        a, slope = _steering(panel, begin)
        width = reach * _width(slope)
        lower, upper = torch.maximum(begin - width, box[0]), torch.minimum(begin + width, box[1])

        def evaluate(live: Tensor, x: Tensor, V: Tensor = V) -> tuple[Tensor, Tensor, Tensor]:
            # The batch only shrinks: while its size is the initial one, it holds the initial points.
            return _model(V if len(live) == len(V) else V[live], *_steering(panel, x))

        end = levenberg_marquardt(
            evaluate,
            begin,
            lower,
            upper,
            steps=options.steps,
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


def _steering(panel: Panel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Steering vectors a [B, N] at azimuth, elevation and 1/range x [B, 3], and their log derivatives."""
    A, slope = steering_with_log_derivatives(panel, x[:, :1], x[:, 1:2], 1 / x[:, 2:])
    return A[..., 0], slope[..., 0, :]


def _width(slope: Tensor) -> Tensor:
    """Beam widths and depth of focus in the three coordinates, [B, 3]; see :meth:`SearchGrid.cover`."""
    spread = slope.imag.var(dim=1, unbiased=False)
    return torch.where(spread > 0, 2 * math.pi / (12 * spread).sqrt(), torch.inf)


def _model(V: Tensor, a: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and curvature of -f for V [B, N, C], steering vectors [B, N], log derivatives."""
    by = slope * a[..., None]
    projected = V.mH @ torch.cat((a[..., None], by), dim=-1)  # [B, C, 1 + 3]
    f = torch.view_as_real(projected[..., 0]).square().sum((-2, -1))
    c = a.conj() * (V @ projected[..., :1])[..., 0]
    gradient = 2 * (slope.conj() * c[..., None]).real.sum(1)
    inner = projected[..., 1:]
    B = 2 * ((slope * c.real[..., None]).mH @ slope - inner.mH @ inner).real
    across = a.conj()[:, None] @ by  # [B, 1, 3]
    alone = 2 * f[:, None, None] * (by.mH @ by - across.mH @ across).real
    scale = alone.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(f.dtype).tiny).rsqrt()
    _, failed = torch.linalg.cholesky_ex(B * scale[:, :, None] * scale[:, None, :])
    return -f, -gradient, torch.where((failed == 0)[:, None, None], B, alone)


@torch.no_grad()
def rap_music(
    spectrum: Spectrum, grid: SearchGrid, count: int, *, options: NewtonOptions = TO_CONVERGENCE
) -> RefinedPeaks:
    """K sources of each scene, one after the other: search the grid, refine, project out.

    The cost is that of K searches of the grid. Each source depends on those before it, so this is a loop over
    the sources; all scenes take each turn together.

    Returns:
        Positions [..., K] in the order in which they were found.

    Raises:
        InputError: K is below 1 or not below N, or the grid is of another panel than the spectrum.
    """
    if not 1 <= count < grid.panel.size:
        raise InputError(
            "n_sources", f"a panel of N = {grid.panel.size} elements resolves 1 to N - 1 sources; got {count}"
        )
    V, panel, volume = spectrum.vectors, grid.panel, grid.volume
    positions = V.real.new_empty(*V.shape[:-2], 0, 3)
    residual = replace(spectrum, sharp=False)
    Q, left = V[..., :0], V.real.new_ones(len(grid))
    for turn in torch.arange(count):
        if turn > 0:
            q = _orthonormal_to(Q, panel, positions[..., -1:, :])
            rest = residual.vectors - q @ (q.mH @ residual.vectors)
            residual = replace(residual, vectors=torch.cat((rest, q), dim=-1))
            explained, taken = residual.explained_by_parts(grid, V.shape[-1])
            residual = replace(residual, vectors=rest)
            left = left - taken
            Q = torch.cat((Q, q), dim=-1)
        else:
            explained = residual.explained_on_grid(grid)
        ratio = explained / left.clamp_min(_LEFT)
        best = torch.where(grid.inside & (left > _LEFT), ratio, -1).argmax(-1, keepdim=True)
        start = [axis.to(left.dtype)[best] for axis in (grid.azimuth, grid.elevation, grid.range)]
        peak = newton(residual, panel, volume, start[0], start[1], start[2], reach=_REACH, options=options)
        if options.each:
            peak = newton(
                spectrum,
                panel,
                volume,
                peak.azimuth,
                peak.elevation,
                peak.range,
                reach=_REACH,
                options=options,
            )
        position = torch.stack((peak.azimuth, peak.elevation, peak.range), dim=-1)
        positions = torch.cat((positions, position), dim=-2)
    azimuth, elevation, distance = positions.unbind(-1)
    return newton(spectrum, panel, volume, azimuth, elevation, distance, reach=_REACH, options=options)


def rap_music_sources(
    spectrum: Spectrum,
    grid: SearchGrid,
    count: Int64[Tensor, "S"],
    *,
    options: NewtonOptions = TO_CONVERGENCE,
) -> tuple[Sources, Bool[Tensor, "S"]]:
    """RAP-MUSIC for as many sources as each scene has, and whether Newton's method converged."""
    most = max(1, int(count.max()))
    peaks = rap_music(spectrum, grid, most, options=options)
    absent = torch.arange(most, device=count.device) >= count[:, None]
    sources = Sources(azimuth=peaks.azimuth, elevation=peaks.elevation, range=peaks.range)
    sources = sources.each(lambda value: value.double().masked_fill(absent, math.nan))
    return sources, (peaks.converged | absent).all(-1)


def _orthonormal_to(Q: Tensor, panel: Panel, position: Tensor) -> Complex[Tensor, "... N 1"]:
    """The component of one more steering vector orthogonal to the basis Q [..., N, K], with unit norm."""
    a = steering(panel, position[..., 0], position[..., 1], position[..., 2]).to(Q.dtype)
    a = a - Q @ (Q.mH @ a)
    return a / a.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(a.real.dtype).tiny)
