r"""Which K points of a grid together explain the data best, by comparing all subsets.

Let :math:`g_p` be the field of point p at the receiver (in each snapshot its own, or in all the same),
:math:`G_{ij} = g_i^H g_j`, :math:`c_{il} = g_i^H y_l` and :math:`R_{ij} = \sum_l c_{il} \bar c_{jl}`.
With its rows and columns of both, a subset explains the energy :math:`\mathrm{tr}(G^{-1} R)`. For a pair,

.. math:: \frac{G_{jj} R_{ii} + G_{ii} R_{jj} - 2 \,\mathrm{Re}\, G_{ij} R_{ji}}{G_{ii} G_{jj} - |G_{ij}|^2}.

A larger subset is point k and a subset of later points in what k leaves (Schur complement):
:math:`G' = G - G_{:k} G_{k:} / G_{kk}`, :math:`c' = c - G_{:k} c_k / G_{kk}`.

One source after the other, as in OMP, finds two coherent sources in neighbouring beams as one between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Int64
from torch import Tensor

# Points whose fields are as parallel as this, 1 - |cos|^2, count as one.
_PARALLEL = 1e-6


def best_subsets(
    fields: Complex[Tensor, "_ T M P"], data: Complex[Tensor, "B L M"], size: int, count: int
) -> Int64[Tensor, "B _ {size}"]:
    """The subsets that explain the most energy, the best first.

    Args:
        fields: of P points at the receiver; the first axis has length 1 where all scenes have the same, the
            second where all snapshots have.
        data: snapshots of B scenes.
        size: K, at least 2.
        count: number of subsets, or all if there are fewer.
    """
    gram = fields.mH @ fields
    pull = fields.mH @ data.unflatten(1, (fields.shape[1], -1)).mT
    return _best(gram, pull @ pull.mH, size, count)[1]


def _best(gram: Tensor, cross: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Energies [B, count] and subsets [B, count, K] from G and R [B, T, P, P]."""
    norm, own = (matrix.diagonal(dim1=-2, dim2=-1).real for matrix in (gram, cross))
    P = gram.shape[-1]
    if size == 2:
        product = norm[..., :, None] * norm[..., None, :]
        left = product - gram.abs().square()
        both = own[..., :, None] * norm[..., None, :]
        both = both + both.mT - 2 * (gram.real * cross.real + gram.imag * cross.imag)
        energy = torch.where(left > _PARALLEL * product, both / left, 0).sum(1)
        later = torch.ones(P, P, dtype=torch.bool, device=gram.device).triu(1)
        value, place = (
            energy.masked_fill(~later, -torch.inf).flatten(1).topk(min(count, P * (P - 1) // 2), dim=1)
        )
        return value, torch.stack((place // P, place % P), dim=-1)
    values, subsets = [], []
    for k in range(P - size + 1):
        after = slice(k + 1, None)
        share = gram[..., after, k] / norm[..., k, None]
        along = share[..., None] * cross[..., None, k, after]
        value, subset = _best(
            gram[..., after, after] - share[..., None] * gram[..., None, k, after],
            cross[..., after, after]
            - along
            - along.mH
            + own[..., k, None, None] * share[..., None] * share[..., None, :].conj(),
            size - 1,
            count,
        )
        values.append(value + (own[..., k] / norm[..., k]).sum(1, keepdim=True))
        subsets.append(torch.nn.functional.pad(subset + k + 1, (1, 0), value=k))
    energy = torch.cat(values, dim=1)
    value, place = energy.topk(min(count, energy.shape[1]), dim=1)
    return value, torch.cat(subsets, dim=1).take_along_dim(place[..., None], dim=1)
