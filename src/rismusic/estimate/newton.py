r"""Newton's method on a spectrum, in azimuth, elevation and 1 / range, for all peaks of all scenes at once.

Every spectrum is a quadratic form :math:`f(a) = |V^H a|^2` (see :mod:`rismusic.estimate.spectrum`), and
every element's wave a pure phase, :math:`a_n = e^{j\psi_n} / \sqrt N`. With :math:`g = V V^H a` and
:math:`c_n = a_n^* g_n`,

.. math:: \frac{\partial f}{\partial p} = 2 \sum_n \psi_{n,p}\, \mathrm{Im}\, c_n, \qquad
    \frac{\partial^2 f}{\partial p\, \partial q} = 2\, \mathrm{Re}\left( \partial_p a^H\, V V^H \partial_q a
    \right) - 2 \sum_n \psi_{n,p} \psi_{n,q}\, \mathrm{Re}\, c_n
    + 2 \sum_n \psi_{n,pq}\, \mathrm{Im}\, c_n.

The last term is left out: it vanishes where g is a multiple of a, as it is at a source that R explains. The
rest is exact, so that the steps there are Newton's. Where it is not positive definite (f bends upwards), the
curvature that a lone source would have, :math:`2 f\, \mathrm{Cov}_n[\psi_{,p}, \psi_{,q}]`, takes its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.estimate.descent import descend
from rismusic.estimate.grid import Volume
from rismusic.estimate.spectrum import Spectrum
from rismusic.panel import Panel
from rismusic.wave import by_inverse_range, steering_with_slopes

# f is of the order of 1; a gain of this size moves the phases by 1e-7 rad.
_TOLERANCE = 1e-14
# Complex numbers in the vectors of one block of scenes, repeated for each peak.
_BLOCK = 2**23


@dataclass(frozen=True)
class Climb:
    """How each climb goes.

    Args:
        steps: at most so many; few where a fit follows.
        length: of each step, in units of Newton's; see :func:`~rismusic.estimate.descent.descend`.
        each: whether of sources that are found in turn each is climbed on the spectrum itself before the next
            one is sought; all of them are in the end.
    """

    steps: int = 40
    length: float = 1.0
    each: bool = True


TO_THE_TOP = Climb()


@dataclass(frozen=True, eq=False)
class Refined:
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
    climb: Climb = TO_THE_TOP,
    reach: float = 1.0,
    free: tuple[bool, bool, bool] = (True, True, True),
) -> Refined:
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
    scenes = max(1, _BLOCK // (vectors[0].numel() * K))
    ends = []
    for start_at in torch.arange(0, len(place), scenes).tolist():
        block = slice(start_at, start_at + scenes)
        V = vectors[block].to(torch.complex128)
        begin = place[block].flatten(0, 1)
        V = V.repeat_interleave(K, dim=0)
        a, slope = _phases(panel, begin)
        width = torch.where(moving, reach * _width(slope), 0)
        lower, upper = torch.maximum(begin - width, box[0]), torch.minimum(begin + width, box[1])

        def evaluate(live: Tensor, x: Tensor, V: Tensor = V) -> tuple[Tensor, Tensor, Tensor]:
            # The batch only ever shrinks: as many points as at first are the same ones.
            return _model(V if len(live) == len(V) else V[live], *_phases(panel, x))

        end = descend(
            evaluate,
            begin,
            lower,
            upper,
            steps=climb.steps,
            tolerance=_TOLERANCE,
            length=climb.length,
            first=_model(V, a, slope),
        )
        ends.append((end.point, -end.value, end.converged))
    point, explained, converged = (torch.cat(parts) for parts in zip(*ends, strict=True))
    q = point[:, 2]
    found = (value.reshape(azimuth.shape) for value in (point[:, 0], point[:, 1], 1 / q))
    azimuth_end, elevation_end, range_end = (value.to(azimuth.dtype) for value in volume.clamp(*found))
    return Refined(
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
) -> Refined:
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
