r"""Sources found one after the other, each with those before it projected out.

Peaks of one spectrum are lost where two sources stand within a step or two of the grid, or where a strong
one's slope hides a weak one. With the steering vectors Q of the sources already found (made orthonormal)
taken out of both the spectrum's vectors and the steering vector, the next source is the highest point of

.. math:: f_k(a) = \frac{|V^H P^\perp a|^2}{|P^\perp a|^2}, \qquad P^\perp = I - Q Q^H,

the recursively projected form of Mosher and Leahy, "Source localization using recursively applied and
projected (RAP) MUSIC", IEEE Trans. SP 47 (1999), here for any V. A source found early, while another one
still pulled at it, is visited again with all the others taken out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance.lowrank import energy
from rismusic.errors import InputError
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.newton import TO_THE_TOP, Climb, Refined, newton
from rismusic.estimate.spectrum import Spectrum
from rismusic.panel import Panel
from rismusic.wave import steering

# Points of which less than this is left after the projection are too close to a source to tell.
_LEFT = 0.05
# How far Newton may go from a point of the grid, and from a place that was found under another's pull.
_FROM_GRID, _FROM_PLACE = 0.5, 1.0


@torch.no_grad()
def find_in_turn(
    spectrum: Spectrum, grid: SearchGrid, count: int, *, visits: int = 1, climb: Climb = TO_THE_TOP
) -> Refined:
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


def _position(found: Refined) -> tuple[Tensor, Tensor, Tensor]:
    return found.azimuth, found.elevation, found.range


def _stacked(found: Refined) -> Tensor:
    return torch.stack(_position(found), dim=-1)
