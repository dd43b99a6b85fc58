r"""The physics once more, written apart from the package: slow, dense, in double precision.

Nothing here uses the package's own wave, link or covariances, so that a mistake in them cannot hide: element
positions by a double loop, distances as they are in space, every :math:`G_l` as a matrix.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.io import Recording
from rismusic.sources import Sources
from rismusic.spec import PanelSpec


def element_positions(panel: PanelSpec) -> Float[Tensor, "N 3"]:
    """Positions in metres, y slowest and x fastest, centred."""
    pitch = panel.spacing_wavelengths * panel.wavelength_m
    places = [
        ((column - (panel.columns - 1) / 2) * pitch, (row - (panel.rows - 1) / 2) * pitch, 0.0)
        for row in range(panel.rows)
        for column in range(panel.columns)
    ]
    return torch.tensor(places, dtype=torch.float64)


def waves(
    elements: Float[Tensor, "N 3"], wavelength: float, azimuth: Tensor, elevation: Tensor, distance: Tensor
) -> Complex[Tensor, "... N K"]:
    """Unit waves exp(j 2 pi (r - d) / wavelength) / sqrt(N) of sources [..., K] (radians, metres)."""
    azimuth, elevation, distance = azimuth.double(), elevation.double(), distance.double()
    x = azimuth.sin() * elevation.cos()
    z = azimuth.cos() * elevation.cos()
    source = distance[..., None] * torch.stack((x, elevation.sin(), z), dim=-1)
    away = (source[..., None, :, :] - elements[:, None, :]).norm(dim=-1)
    phase = 2 * math.pi / wavelength * (distance[..., None, :] - away)
    return torch.polar(torch.ones_like(phase), phase) / math.sqrt(len(elements))


def true_waves(truth: Sources, elements: Float[Tensor, "N 3"], wavelength: float) -> Complex[Tensor, "S N K"]:
    """A of the true sources; zero where there is none."""
    there = ~truth.azimuth.isnan()
    pairs = ((truth.azimuth, 0.0), (truth.elevation, 0.0), (truth.range, 1.0))
    places = (torch.where(there, value, other) for value, other in pairs)
    return waves(elements, wavelength, *places) * there[:, None, :]


def operators(recording: Recording) -> Complex[Tensor, "S L M N"]:
    """G_l = H diag(c_l) of every scene and snapshot."""
    S, L, M = recording.snapshots.shape
    N = len(recording.elements)
    wide = torch.complex128
    H = torch.eye(N, dtype=wide) if recording.channel is None else recording.channel.to(wide)
    c = torch.ones(L, N, dtype=wide) if recording.codes is None else recording.codes.to(wide)
    H, c = H.expand(S, M, N), c.expand(S, L, N)
    return H[:, None, :, :] * c[:, :, None, :]


def field_on_panel(
    G: Complex[Tensor, "S L M N"], snapshots: Complex[Tensor, "S L M"], noise: Float[Tensor, "S"]
) -> Complex[Tensor, "S L N"]:
    """x_l = G_l^H (G_l G_l^H + lambda I)^-1 y_l; for lambda see :mod:`rismusic.covariance`."""
    y, noise = snapshots.to(torch.complex128), noise.double()
    _, L, M = y.shape
    excess = torch.maximum(y.abs().square().mean((1, 2)) - noise, noise / math.sqrt(L * M))
    least = 10 * M * torch.finfo(snapshots.real.dtype).eps
    gram = G @ G.mH
    gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((1, 2))
    ridge = (noise / excess).clamp_min(least) * gain
    loaded = gram + ridge[:, None, None, None] * torch.eye(M, dtype=y.dtype)
    return (G.mH @ torch.linalg.solve(loaded, y[..., None]))[..., 0]


def covariance_of(field: Complex[Tensor, "S L N"]) -> Complex[Tensor, "S N N"]:
    """Mean of x x^H over the snapshots, of trace 1."""
    return unit(torch.einsum("sln,slm->snm", field, field.conj()))


def unit(matrix: Complex[Tensor, "S N N"]) -> Complex[Tensor, "S N N"]:
    """Of trace 1."""
    return matrix / matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]


def apart(first: Tensor, second: Tensor) -> Float[Tensor, "S"]:
    """Frobenius distance of matrices [S, ...], relative to the second."""
    return (first - second).flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1).clamp_min(1e-30)


def likeliest(measured: dict[str, float]) -> str | None:
    """The suspect that fits best, where one fits at least three times better than what should."""
    expected = measured["as it should be"]
    name, value = min(measured.items(), key=lambda pair: pair[1])
    return name if name != "as it should be" and value < expected / 3 else None
