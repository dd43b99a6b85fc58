"""How far the predicted number of sources is from the true one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def count_divergence(
    logits: Float[Tensor, "*batch C"], count: Int64[Tensor, "*batch"], smoothing: float
) -> Float[Tensor, "*batch"]:
    r"""Cross-entropy of the number of sources with smoothed labels, less the labels' entropy.

    .. math:: \sum_k t_k \log \frac{t_k}{\mathrm{softmax}(z)_k}, \qquad
        t_k = (1 - s)\, [k = K] + \frac{s}{K_{max} + 1}.

    Args:
        logits: z, of 0 .. K_max sources, C = K_max + 1.
        count: K.
        smoothing: s, 0 (hard labels) and below 1.

    Returns:
        [...], not negative, 0 where the softmax is t.
    """
    places = torch.arange(logits.shape[-1], device=logits.device)
    t = (1 - smoothing) * (places == count[..., None]).to(logits.dtype) + smoothing / len(places)
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1)
