r"""What the network's map says of places: a prior for the likelihood to meet.

The map spreads the sources of a scene over the points of the grid, each with a share :math:`\pi_p` of them,
:math:`\sum_p \pi_p = 1`. Of K sources, :math:`K \pi` summed over the points next to a place is nearly the
probability that one is there, and

.. math:: \log b(x) = \sum_k \log \min\left(1, \max\left(\epsilon, K \sum_{p \sim x_k} \pi_p\right)\right)

stands beside the log-likelihood where one set of places is chosen over another. Where noise decides between
them, the likeliest set is often not the true one; the network has seen how sources are spread and spaced.
Where the data tell, tens of nats of them outweigh at most :math:`-\log\epsilon` for each source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from rismusic.estimate.grid import SearchGrid, to_cosines

# Probability of a source anywhere, whatever the map says: of the network's word no more than this is taken.
_LEAST = 1e-2
# Points next to a place along each axis, itself included.
_NEXT = 3


@dataclass(frozen=True, eq=False)
class Belief:
    """The map of S scenes, as the prior of :func:`~rismusic.estimate.exchange.exchange`.

    Args:
        near: share of the sources that the map has at each point and those next to it, [S, X, Y, Z].
        grid: of the map, in the network's own wavelength.
        scale: that wavelength over the recording's.
    """

    near: Float[Tensor, "S X Y Z"]
    grid: SearchGrid
    scale: float

    @classmethod
    def of(cls, logits: Float[Tensor, "S P"], grid: SearchGrid, scale: float) -> Belief:
        """From the logarithm of a map, up to a constant of each scene."""
        share = logits.double().softmax(-1).view(-1, *grid.shape)
        padded = pad(share[:, None], (_NEXT // 2,) * 6)
        pooled = avg_pool3d(padded, _NEXT, stride=1) * _NEXT**3
        return cls(pooled[:, 0], grid, scale)

    def __getitem__(self, scenes: slice | Tensor) -> Belief:
        """That of some scenes."""
        return replace(self, near=self.near[scenes])

    def __call__(
        self, scenes: Int64[Tensor, "B"], positions: Float[Tensor, "B K 3"], active: Bool[Tensor, "B K"]
    ) -> Float[Tensor, "B"]:
        """Log b of sources at azimuth, elevation, 1/range of the recording, in scenes of these numbers."""
        azimuth, elevation, q = positions.unbind(-1)
        place = to_cosines(azimuth, elevation, self.scale / q)
        axes = (self.grid.u_x, self.grid.u_y, self.grid.q)
        x, y, z = (
            ((value - axis[0]) / step).round().long().clamp(0, len(axis) - 1)
            for value, axis, step in zip(place, axes, self.grid.step, strict=True)
        )
        share = self.near[scenes[:, None], x, y, z] * active.sum(-1, keepdim=True)
        return torch.where(active, share.clamp(_LEAST, 1).log(), 0).sum(-1)
