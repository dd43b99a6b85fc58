"""What the two bounds share: the problem in float64, block by block, and the inverse of the information."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.link import Link
from rismusic.panel import Panel
from rismusic.scene import Sources
from rismusic.wave import Wave, steering_with_derivatives

Unknown = Literal["azimuth", "elevation", "range"]
POSITION: tuple[Unknown, ...] = get_args(Unknown)

# Information about the positions, from a block of scenes, its link, A, its derivatives and who is active.
Information = Callable[[slice, Link, Tensor, Tensor, Tensor], Tensor]

ROUNDING = 1e-7
"""A pivot of a matrix of unit diagonal below this is a singular matrix that was lucky."""

# Scenes are worked on in blocks of about this many complex numbers at a time, to stay in cache.
_BLOCK = 2**21


@dataclass(frozen=True, eq=False)
class Bound:
    """A Cramer-Rao bound of K sources.

    Args:
        covariance: [..., K, 3, K, 3], the joint bound of azimuth (rad), elevation (rad) and range (m); NaN
            for places without a source and for coordinates that were taken as known, infinite where the
            sources cannot be told apart from the data at all.
        range: [..., K] the true ranges in metres.
    """

    covariance: Float[Tensor, "*batch K 3 K 3"]
    range: Float[Tensor, "*batch K"]

    @property
    def std(self) -> Float[Tensor, "*batch K 3"]:
        """Least standard deviations of azimuth (rad), elevation (rad) and range (m)."""
        K = self.range.shape[-1]
        square = self.covariance.reshape(*self.range.shape[:-1], 3 * K, 3 * K)
        return square.diagonal(dim1=-2, dim2=-1).sqrt().unflatten(-1, (K, 3))

    @property
    def per_source(self) -> Float[Tensor, "*batch K 3 3"]:
        """Joint bound of each source's own three coordinates, the other sources being estimated along."""
        return self.covariance.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)

    @property
    def inverse_range_std(self) -> Float[Tensor, "*batch K"]:
        """Least standard deviation of 1 / range (1/m); the one to compare with where range is vague."""
        return self.std[..., 2] / self.range.square()


class Problem:
    """Sources and link in float64, with all scene axes flattened into one, worked on block by block."""

    def __init__(
        self, panel: Panel, link: Link, sources: Sources, noise_variance: Tensor, wave: Wave
    ) -> None:
        if not (noise_variance > 0).all():
            raise InputError("noise_variance", "positive values", f"{float(noise_variance.min()):g}")
        if (sources.active.int().diff(dim=-1) > 0).any():
            raise InputError(
                "sources", "empty places (NaN) after all sources", "a source after an empty place"
            )
        self.batch = sources.azimuth.shape[:-1]
        self.panel, self.wave = panel, wave
        self.link = link.to(torch.complex128)
        if self.link.per_scene and len(self.batch) != 1:
            raise InputError(
                "sources", "one scene axis, as the link has", f"shape {list(sources.azimuth.shape)}"
            )
        self.active = self.flat(sources.active, 1)
        self.range = sources.range.double()
        self.positions = [self.flat(value.double(), 1) for value in sources.filled()]
        self.noise_variance = self.flat(noise_variance.double().expand(self.batch), 0)

    def flat(self, value: Tensor, keep: int) -> Tensor:
        """Scene axes flattened, the last ``keep`` axes kept."""
        return value.reshape(-1, *value.shape[value.ndim - keep :])

    def bound(self, information: Information, which: list[int]) -> Bound:
        """Invert the information of each block of scenes and put it into the places of its coordinates."""
        scenes, K = self.active.shape
        codes = self.link.codes
        L = 1 if codes is None else codes.shape[-2]
        step = max(1, _BLOCK // (self.panel.size * L * 4 * K))
        width = len(which)
        full = torch.full((scenes, K, 3, K, 3), torch.nan, dtype=torch.float64, device=self.active.device)
        places = torch.tensor(which, device=full.device)
        for start in range(0, scenes, step):
            block = slice(start, start + step)
            azimuth, elevation, distance = (value[block] for value in self.positions)
            A, D = steering_with_derivatives(self.panel, azimuth, elevation, distance, self.wave)
            active = self.active[block]
            A, D = A * active[:, None], D * active[:, None, :, None]
            J = information(block, self.link[block], A, D, active)
            covariance = _inverse(J, active.repeat_interleave(width, dim=1))
            covariance = covariance.reshape(-1, K, width, K, width)
            full[block, :, places[:, None], :, places[None, :]] = covariance.permute(2, 4, 0, 1, 3)
        return Bound(full.reshape(*self.batch, K, 3, K, 3), self.range)


def chosen(unknowns: Sequence[Unknown]) -> list[int]:
    """Places of the unknown coordinates among azimuth, elevation and range."""
    for name in unknowns:
        if name not in POSITION:
            raise InputError("unknowns", "some of azimuth, elevation and range", repr(name))
    return [i for i, name in enumerate(POSITION) if name in unknowns]


def _inverse(J: Tensor, active: Tensor) -> Tensor:
    """Inverse of each J over its active unknowns: NaN for the others, infinity where J is singular."""
    scale = J.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    usable = active & (scale > 0)
    scale = torch.where(usable, scale, 1)
    unit = torch.where(
        usable[:, :, None] & usable[:, None, :], J / (scale[:, :, None] * scale[:, None, :]), 0
    )
    unit = unit + torch.diag_embed((~usable).to(J.dtype))
    factor, failed = torch.linalg.cholesky_ex(unit)
    pivot = factor.diagonal(dim1=-2, dim2=-1).amin(-1)
    singular = (failed > 0) | (pivot < ROUNDING) | (usable != active).any(-1)
    safe = torch.where(
        singular[:, None, None], torch.eye(J.shape[-1], dtype=J.dtype, device=J.device), factor
    )
    inverse = torch.cholesky_inverse(safe) / (scale[:, :, None] * scale[:, None, :])
    inverse = torch.where(singular[:, None, None], torch.inf, inverse)
    return torch.where(active[:, :, None] & active[:, None, :], inverse, torch.nan)
