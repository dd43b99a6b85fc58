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
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance
from rismusic.errors import InputError
from rismusic.estimate.grid import SearchGrid
from rismusic.panel import Panel
from rismusic.wave import steering

Kind = Literal["bartlett", "mvdr", "music", "soft_music"]

# Real numbers in the product of one block of scenes (16 MiB): bounds the memory; smaller ones were slower.
_BLOCK = 2**22
# Real numbers in the steering matrix of one block of points; a larger grid's matrix is not kept.
_STEERING = 2**27


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
            scenes = max(1, _BLOCK // (2 * max(C, 1) * A.shape[1]))
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


def bartlett(covariance: Covariance) -> Spectrum:
    """The conventional beamformer, a^H R a: the power received from a point. One source is found exactly."""
    return Spectrum(covariance.factor, covariance.loading, sharp=False)


def mvdr(covariance: Covariance) -> Spectrum:
    r"""The minimum variance beamformer, 1 / (a^H R^{-1} a).

    Capon, "High-resolution frequency-wavenumber spectrum analysis", Proc. IEEE 57 (1969).

    Raises:
        InputError: a covariance without loading, whose inverse does not exist.
    """
    return Spectrum(covariance.inverse_root(), covariance.loading, sharp=True)


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
    points = max(1, _STEERING // (2 * grid.panel.size))
    if len(grid) <= points:
        yield slice(0, len(grid)), grid.real_steering(dtype)
        return
    for block, A in grid.blocks(points, dtype.to_complex()):
        yield block, torch.cat((A.real, A.imag))
