r"""From more places than there are sources to the places that the snapshots cannot do without.

All places are sources at first, with the powers of greatest unconditional likelihood. Then the one that is
missed least is taken out and the powers are fitted again, until as many are left as there are sources. With
:math:`W_l = R_l^{-1}`, :math:`s_{kl} = c_{kl}^H W_l c_{kl}` and :math:`q_{kl} = c_{kl}^H W_l y_l`, the
likelihood falls, when the power p of source k becomes 0 and all else stays, by

.. math:: \sum_l \left[ \frac{p |q_{kl}|^2}{1 - p s_{kl}} + \log(1 - p s_{kl}) \right]

(Tipping and Faul, "Fast marginal likelihood maximisation for sparse Bayesian models", AISTATS 2003). A search
that adds source after source is misled where one place explains nearly as well what two sources have made;
taking away is not.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.likelihood import Moments, losses, moments
from rismusic.estimate.refine import Effort, fit_powers, scene_blocks
from rismusic.recording import Recording

# The order of the losses is what counts, not their last digits.
_POWERS = Effort(steps=8, tolerance=3e-2)


def prune(
    recording: Recording,
    positions: Float[Tensor, "S Q 3"],
    active: Bool[Tensor, "S Q"],
    count: Int64[Tensor, "S"],
) -> Float[Tensor, "S K 3"]:
    """The places that are left, K_max of them, those that are missed most first.

    Args:
        recording: S scenes.
        positions: azimuth, elevation, 1/range of Q places; finite throughout.
        active: which of them are meant; at least as many as there are sources, and no more than the data can
            carry.
        count: K of each scene.
    """
    parts = []
    for block in scene_blocks(recording, positions.shape[1]):
        parts.append(_left(recording[block], positions[block], active[block], count[block]))
    order = torch.cat(parts)[:, : max(1, int(count.max()))]
    return positions.gather(1, order[..., None].expand(-1, -1, 3))


def _left(recording: Recording, positions: Tensor, active: Tensor, count: Tensor) -> Int64[Tensor, "S Q"]:
    """The places in the order in which they are missed."""
    at = moments(recording, positions, active)
    scenes = torch.arange(len(active), device=active.device)
    # When each place was taken out; those that stay keep the largest.
    worth = positions.new_zeros(active.shape)
    rank = torch.where(active, torch.full_like(worth, torch.inf), -1)
    for turn in range(int(active.sum(-1).max()) + 1):
        present = rank == torch.inf
        some = scenes if turn == 0 else scenes[present.sum(-1) > count]
        if len(some) == 0:
            break
        here = _only(at[some], present[some])
        power, noise, _ = fit_powers(recording[some], here, _POWERS)
        lost = losses(here, power, noise).masked_fill(~present[some], torch.inf)
        worth[some] = lost
        over = present[some].sum(-1) > count[some]
        rank[some[over], lost[over].argmin(-1)] = float(turn)
    # Those that stay in the order of what they are worth, then the others, the last one taken out first.
    worth = torch.where(rank == torch.inf, worth, -torch.inf)
    order = worth.argsort(dim=-1, descending=True)
    return order.gather(1, rank.gather(1, order).argsort(dim=-1, descending=True, stable=True))


def _only(at: Moments, present: Bool[Tensor, "S Q"]) -> Moments:
    """The moments of some of the places; the columns of the others are zero."""
    there = present[:, None]
    gram = at.gram * (there[..., None] & there[..., None, :])
    return Moments(gram, at.cross * there, at.energy, present, at.outputs)
