"""Which head stands for which source: the best assignment, exactly, in batches, on the device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.errors import InputError

# The table has 2^K entries per scene.
_MOST = 10


@torch.no_grad()
def assign(cost: Float[Tensor, "S Q K"]) -> Int64[Tensor, "S K"]:
    r"""The assignment of K sources to different ones of Q heads that costs least.

    Heads are taken one after the other; the least cost at which a set B of sources is served by the first q
    of them is

    .. math:: c_q(B) = \min\left( c_{q-1}(B),\; \min_{k \in B} c_{q-1}(B \setminus k) + \mathrm{cost}_{qk}
        \right),

    and the choices that led to the full set are read backwards (dynamic programming over subsets; Held and
    Karp, J. SIAM 10 (1962)). Exact like the Hungarian algorithm, but without a wait for the host: Q steps on
    tables of 2^K numbers per scene.

    Args:
        cost: cost of head q for source k; the same for all heads where there is no source.

    Returns:
        [S, K] the head of each source.

    Raises:
        InputError: fewer heads than sources, or more than 10 sources.
    """
    scenes, heads, most = cost.shape
    if most > heads:
        raise InputError("prediction", f"a head for each of {most} sources", f"{heads} heads")
    if most > _MOST:
        raise InputError("truth", f"at most {_MOST} sources", str(most))
    bit = 1 << torch.arange(most, device=cost.device)
    subset = torch.arange(1 << most, device=cost.device)
    member = (subset[:, None] & bit) > 0
    without = subset[:, None] & ~bit
    best = torch.where(subset == 0, 0.0, torch.inf).to(cost.dtype).expand(scenes, -1)
    chosen = []
    for head in range(heads):
        served = torch.where(member, best[:, without] + cost[:, head, None, :], torch.inf)
        options = torch.cat((best[..., None], served), dim=-1)
        best, choice = options.min(-1)
        chosen.append(choice)
    left = torch.full((scenes,), (1 << most) - 1, device=cost.device)
    partner = torch.zeros(scenes, most, dtype=torch.int64, device=cost.device)
    place = torch.arange(1, most + 1, device=cost.device)
    for head in reversed(range(heads)):
        taken = chosen[head].gather(1, left[:, None]) == place
        partner = torch.where(taken, head, partner)
        left = left - (taken * bit).sum(-1)
    return partner
