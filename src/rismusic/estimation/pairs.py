r"""RELAX by pairs: two sources are searched at once, among all pairs of grid points.

One source after the other, as in OMP and RELAX, finds two coherent sources in neighbouring beams as one
between them, and does not leave it. Let :math:`g_p` be the fields of the grid points at the receiver,
orthogonal to those of the other sources (in each snapshot their own, or in all the same),
:math:`G_{ij} = g_i^H g_j`, :math:`c_{il} = g_i^H y_l` and :math:`R_{ij} = \sum_l c_{il} \bar c_{jl}`. A pair
explains the energy

.. math:: \mathrm{tr}\, \begin{pmatrix} G_{ii} & G_{ij} \\ G_{ji} & G_{jj} \end{pmatrix}^{-1}
    \begin{pmatrix} R_{ii} & R_{ij} \\ R_{ji} & R_{jj} \end{pmatrix}
    = \frac{G_{jj} R_{ii} + G_{ii} R_{jj} - 2 \,\mathrm{Re}\, G_{ij} R_{ji}}{G_{ii} G_{jj} - |G_{ij}|^2},

so that all pairs cost a few products of P x P numbers.
"""

from __future__ import annotations

from itertools import combinations

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.devices import blocks
from rismusic.estimation.maximum_likelihood import ROUGH, Criterion, FitState, refine
from rismusic.estimation.relax import MIN_GAIN_NATS
from rismusic.estimation.search import GridSearch, project_out, received_fields
from rismusic.io import Recording

# Pairs times snapshots up to which they are searched. The more snapshots, the more do sources differ in them.
_MOST_PAIRS = 2**18
_FITTED = 12  # pairs that are fitted: the best ones differ by a step of the grid
# Points whose energy outside the span of the other sources is below this share of it count as in it.
_FLOOR = 1e-3
_PARALLEL = 1e-6  # points whose fields are as parallel as this, 1 - |cos|^2, count as one


def can_search_pairs(search: GridSearch) -> bool:
    """Whether all snapshots have one link, so that sources may be coherent in them, and the grid is small."""
    P, L = len(search.dictionary), search.recording.snapshots.shape[1]
    return search.link.matrices == 1 and 0 < L * P * (P - 1) // 2 <= _MOST_PAIRS


def pair_sweeps(
    search: GridSearch,
    start: FitState,
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
) -> FitState:
    """Remove each pair of sources in turn, search it again, and keep the re-fit where it is likelier.

    The scenes have to be such that :func:`can_search_pairs`, and the start converged under the same
    criterion. The fit is roughly refined where a pair changed; no scene is less likely than at the start.
    """
    device, at = active.device, start
    count, K = active.sum(-1), active.shape[1]
    places = search.dictionary.positions(torch.arange(len(search.dictionary), device=device))
    part = search.recording if search.link.per_scene else search.recording[:1]
    fields = received_fields(part, places.expand(len(part), -1, -1), search.link).to(torch.complex128)
    live = (count > 1).nonzero()[:, 0]
    for _ in range(sweeps):
        changed = torch.zeros_like(active[:, 0])
        for pair in combinations(range(K), 2):
            others = [k for k in range(K) if k not in pair]
            for block in blocks(len(live), 64 * len(places) ** 2, device):
                scenes = live[block][active[live[block], pair[1]]]
                if len(scenes) == 0:
                    continue
                recording, positions, there = search.recording[scenes], at.positions[scenes], active[scenes]
                own = fields[scenes] if search.link.per_scene else fields
                found = places[pairs_beside(recording, own, positions[:, others], there[:, others], _FITTED)]
                tried = found.shape[1]
                trial = positions[:, None].repeat(1, tried, 1, 1)
                trial[:, :, pair] = found.to(trial)
                many = torch.arange(len(scenes), device=device).repeat_interleave(tried)
                fit = refine(
                    recording[many],
                    trial.flatten(0, 1),
                    there[many],
                    search.grid.volume,
                    criterion=criterion,
                    options=ROUGH,
                )
                least, best = fit.value.view(-1, tried).min(dim=1)
                better = (least < at.value[scenes] - MIN_GAIN_NATS).nonzero()[:, 0]
                at = at.replaced(scenes[better], fit[better * tried + best[better]])
                changed[scenes[better]] = True
        live = live[changed[live] & (count[live] > 2)]  # a single pair was compared with all others
        if len(live) == 0:
            break
    return at


def pairs_beside(
    recording: Recording,
    fields: Complex[Tensor, "_ T M P"],
    positions: Float[Tensor, "B C 3"],
    active: Bool[Tensor, "B C"],
    most: int,
) -> Int64[Tensor, "B _ 2"]:
    """The pairs of points that explain the most energy beside C other sources, see :func:`best_pairs`."""
    rest = project_out(recording, positions, active)
    if positions.shape[1]:
        energy, basis = fields.abs().square().sum(-2, keepdim=True), rest.basis.to(fields.dtype)
        fields = fields - basis @ (basis.mH @ fields)
        fields = fields * (fields.abs().square().sum(-2, keepdim=True) > _FLOOR * energy)
    return best_pairs(fields, rest.data.to(fields.dtype), most)


def best_pairs(
    fields: Complex[Tensor, "_ T M P"], data: Complex[Tensor, "B L M"], most: int
) -> Int64[Tensor, "B _ 2"]:
    """The pairs of points that explain the most energy, the best first; all if there are not ``most``.

    The fields of P points at the receiver are zero for those that are left out. Their first axis has length 1
    where all scenes have the same, the second where all snapshots have.
    """
    gram = fields.mH @ fields
    pull = fields.mH @ data.unflatten(1, (fields.shape[1], -1)).mT
    cross = pull @ pull.mH
    norm, own = (matrix.diagonal(dim1=-2, dim2=-1).real for matrix in (gram, cross))
    product = norm[..., :, None] * norm[..., None, :]
    left = product - gram.abs().square()
    both = own[..., :, None] * norm[..., None, :]
    both = both + both.mT - 2 * (gram.real * cross.real + gram.imag * cross.imag)
    energy = torch.where(left > _PARALLEL * product, both / left, 0).sum(1)
    P = energy.shape[-1]
    later = torch.ones(P, P, dtype=torch.bool, device=energy.device).triu(1)
    energy = energy.masked_fill(~later, -torch.inf).flatten(1)
    place = energy.topk(min(most, P * (P - 1) // 2), dim=1).indices
    return torch.stack((place // P, place % P), dim=-1)
