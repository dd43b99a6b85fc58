"""How far the heat map over the search grid is from one of the true sources."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.estimate.grid import SearchGrid, to_cosines
from rismusic.scene import Sources


@torch.no_grad()
def heat_map_target(truth: Sources, grid: SearchGrid, width: float) -> Float[Tensor, "S P"]:
    r"""The share of the sources that belongs to each point of the grid.

    Each source, which lies between the points, is spread over its neighbours,

    .. math:: t_p \propto \sum_k \prod_{c \in (u_x, u_y, q)}
        \frac{e^{-(c_p - c_k)^2 / 2 w^2 \Delta_c^2}}{\sum_{c'} e^{-(c' - c_k)^2 / 2 w^2 \Delta_c^2}},

    :math:`\Delta_c` the step of the grid in coordinate c, the lower sum over all points of that axis. Points
    outside the volume have no share.

    Args:
        truth: true sources.
        grid: P points.
        width: w, in steps of the grid.

    Returns:
        [S, P], of sum 1; all 0 where there is no source, or none near the volume.
    """
    azimuth, elevation, distance = truth.filled()
    spread = []
    for place, axis, step in zip(
        to_cosines(azimuth, elevation, distance), (grid.u_x, grid.u_y, grid.q), grid.step, strict=True
    ):
        away = (axis.to(place.dtype) - place[..., None]) / (width * step)
        spread.append((-away.square() / 2).softmax(-1))
    active = truth.active.to(spread[0].dtype)
    target = torch.einsum("sk,skx,sky,skz->sxyz", active, *spread).flatten(1) * grid.inside
    total = target.sum(-1, keepdim=True)
    return target / torch.where(total > 0, total, 1)


def heat_map_divergence(
    logits: Float[Tensor, "S P"], target: Float[Tensor, "S P"], grid: SearchGrid
) -> Float[Tensor, "S"]:
    r"""Cross-entropy of the heat map over the points inside the volume, less the target's entropy.

    .. math:: \sum_p t_p \log \frac{t_p}{\mathrm{softmax}(z)_p}

    Args:
        logits: z.
        target: t of :func:`heat_map_target`.
        grid: P points; those not ``inside`` take no part.

    Returns:
        [S], not negative, 0 where the softmax is t, or where t is 0 throughout.
    """
    log_share = logits.masked_fill(~grid.inside, -torch.inf).log_softmax(-1)
    # 0 log 0 = 0, in the gradient too.
    log_share = torch.where(grid.inside, log_share, 0)
    return (torch.special.xlogy(target, target) - target * log_share).sum(-1)
