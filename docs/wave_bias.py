"""How far off the approximate waves point: each is fitted to exact spherical waves, without noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rismusic.array import Panel, steering
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import draw_sources
from rismusic.spec import SystemSpec, Wave

# Range bins in metres.
BINS = ((0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 10.0))
POSITIONS = 400
# 1/range in 1/m: within the default volume, and all but free (from 0.25 m to 1 km).
VOLUME, FREE = (0.1, 2.0), (0.001, 4.0)
_STEPS, _CURVATURES = 40, 41


@dataclass(frozen=True)
class Fit:
    """True positions and fitted ones of one wave, [P, 3] each: azimuth, elevation (rad), range (m)."""

    truth: Tensor
    fitted: Tensor
    match: Tensor

    @property
    def azimuth_error_deg(self) -> Tensor:
        """Fitted azimuth less the true one, in degrees."""
        return (self.fitted[:, 0] - self.truth[:, 0]).rad2deg()

    @property
    def elevation_error_deg(self) -> Tensor:
        """Fitted elevation less the true one, in degrees."""
        return (self.fitted[:, 1] - self.truth[:, 1]).rad2deg()


def positions(bin_m: tuple[float, float], count: int = POSITIONS) -> Tensor:
    """Positions [P, 3] of single sources, uniform in azimuth, elevation and range of the default volume."""
    spec = SystemSpec().scene.replace(range_min_m=bin_m[0], range_max_m=bin_m[1])
    drawn = draw_sources(spec, 1, 1, Draws(0, "test", torch.arange(count)), torch.float64)
    return torch.stack((drawn.azimuth, drawn.elevation, drawn.range), dim=-1)[:, 0]


@cache
def fits(wave: Wave, curvature_limits: tuple[float, float] = VOLUME) -> list[Fit]:
    """The fits of each range bin; figure and table share them."""
    return [fit(positions(bin_m), wave, curvature_limits) for bin_m in BINS]


def fit(truth: Tensor, wave: Wave, curvature_limits: tuple[float, float]) -> Fit:
    """Maximise |a_wave(position)^H a_spherical(truth)|^2 over azimuth, elevation and 1/range.

    The best point of a grid, then damped Newton steps (exact Hessian), every position on its own.

    Args:
        truth: [P, 3] azimuth, elevation (rad) and range (m).
        wave: the wave that is fitted.
        curvature_limits: least and largest 1/range in 1/m.
    """
    # Phases are compared, so that all waves have equal amplitudes.
    panel = Panel.uniform_planar().replace(wave="uniform")
    low = torch.tensor([-1.55, -1.55, curvature_limits[0]], dtype=torch.float64)
    high = torch.tensor([1.55, 1.55, curvature_limits[1]], dtype=torch.float64)
    azimuth, elevation, distance = truth.unbind(-1)
    exact = steering(panel, azimuth, elevation, distance).mT

    def match(points: Tensor) -> Tensor:
        azimuth, elevation, curvature = points[:, None].unbind(-1)
        fitted = steering(panel.replace(wave=wave), azimuth, elevation, 1 / curvature)[..., 0]
        return (fitted.conj() * exact).sum(-1).abs().square()

    x = _grid_start(panel.replace(wave=wave), exact, low, high)
    best = match(x)
    damping = torch.full_like(best, 1e-2)
    identity = torch.eye(3, dtype=torch.float64)
    for _ in range(_STEPS):
        g, H = _slopes(match, x)
        # A coordinate that rests on its limit and would leave is held there.
        held = ((x <= low) & (g < 0)) | ((x >= high) & (g > 0))
        H = torch.where(held[:, :, None] | held[:, None, :], -identity, H)
        g = torch.where(held, 0, g)
        values, vectors = torch.linalg.eigh(H)
        uphill = values.abs() + damping[:, None]
        step = (vectors @ ((vectors.mT @ g[..., None]) / uphill[..., None]))[..., 0]
        trial = torch.minimum(torch.maximum(x + step, low), high)
        reached = match(trial)
        better = reached > best
        x = torch.where(better[:, None], trial, x)
        best = torch.where(better, reached, best)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-9, 1e6)
    return Fit(truth, torch.cat((x[:, :2], 1 / x[:, 2:]), dim=-1), best)


def rms(error: Tensor) -> float:
    """Root of the mean square."""
    return float(error.square().mean().sqrt())


def _slopes(match: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [P, 3] and Hessians [P, 3, 3] of a function of each point alone."""
    points = points.detach().requires_grad_()
    g = torch.autograd.grad(match(points).sum(), points, create_graph=True)[0]
    rows = [torch.autograd.grad(g[:, i].sum(), points, retain_graph=True)[0] for i in range(3)]
    return g.detach(), torch.stack(rows, dim=-2)


def _grid_start(panel: Panel, exact: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The best point for each exact wave on a grid over sines of the angles and 1/range."""
    sines = torch.linspace(-0.98, 0.98, 49, dtype=torch.float64).asin()
    tilts = torch.linspace(-0.75, 0.75, 37, dtype=torch.float64).asin()
    best, chosen = exact.new_zeros(len(exact), dtype=torch.float32), low.new_zeros(len(exact), 3)
    for curvature in torch.linspace(float(low[2]), float(high[2]), _CURVATURES, dtype=torch.float64):
        points = torch.cartesian_prod(sines, tilts, curvature[None])
        azimuth, elevation, inverse = points.float().unbind(-1)
        A = steering(panel, azimuth, elevation, 1 / inverse)
        reached, place = (exact.to(A.dtype).conj() @ A).abs().max(dim=-1)
        better = reached > best
        best, chosen = torch.where(better, reached, best), torch.where(better[:, None], points[place], chosen)
    return chosen
