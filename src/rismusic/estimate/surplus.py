r"""A source too many for a while: one is added where the data want it most, then the least one is dropped.

What keeps a fit of K sources in a wrong place is often that two of them stand for a third: taken out and
searched again (:mod:`rismusic.estimate.exchange`), each comes back to where it was, since the other still
covers for it. With K + 1 sources all can move to where they belong before one has to go, and the one that
goes need not be the one that came. These are the births and deaths of reversible-jump samplers, used
greedily: Andrieu and Doucet, "Joint Bayesian model selection and estimation of noisy sinusoids via reversible
jump MCMC", IEEE Trans. SP 47 (1999).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.descent import Effort
from rismusic.estimate.exchange import GAIN, Prior, cosines, log_prior
from rismusic.estimate.levels import Criterion, values_without
from rismusic.estimate.refine import ROUGH, Refined, refine
from rismusic.estimate.search import Search, take_out

# Points of the grid among which births are chosen, and how many steps they are apart in some coordinate.
_POINTS, _APART = 200, 3.0
# A fit that has one source too many need not come to rest.
_CROWDED = Effort(steps=4, tolerance=0.1)
# Nats that the settling of the sources that stay may gain: what has lost more is not followed.
_HOPE = 5.0


def add_and_drop(
    search: Search,
    start: Refined,
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    births: int = 3,
    sweeps: int = 3,
    prior: Prior | None = None,
) -> Refined:
    """Sources added and dropped again where what is left is likelier than before.

    Args:
        search: over the grid, of S scenes.
        start: the fit to improve, refined under the same criterion.
        active: which places hold a source; at least one in each scene.
        criterion: the likelihood of search and re-fits.
        births: places where one more source is tried, each by itself; the best of the ends counts.
        sweeps: most passes; scenes that one has not changed get no other.
        prior: see :func:`~rismusic.estimate.exchange.exchange`.

    Returns:
        The fit, roughly refined where something changed.
    """
    recording, volume, at = search.recording, search.grid.volume, start
    live = torch.arange(len(recording), device=active.device)
    score = at.value - log_prior(prior, live, at.positions, active)
    for _ in range(sweeps):
        here, there = at[live], active[live]
        points = search.best(live, take_out(recording[live], here.positions, there, here.levels), _POINTS)
        born = _apart(search.dictionary.positions(points).to(here.positions), search, births)
        # From here on each scene stands there once for each birth.
        scenes, there = (value.repeat_interleave(births, dim=0) for value in (live, there))
        part = recording[scenes]
        crowd = torch.cat(
            (here.positions.repeat_interleave(births, dim=0), born.flatten(0, 1)[:, None]), dim=1
        )
        crowded = torch.cat((there, torch.ones_like(there[:, :1])), dim=1)
        crowd = refine(part, crowd, crowded, volume, criterion=criterion, effort=_CROWDED).positions
        without, last = values_without(part, crowd, crowded, criterion).min(dim=1)
        trial = _dropped(crowd, last)
        hopeful = without - log_prior(prior, scenes, trial, there) < score[scenes] + _HOPE
        which = hopeful.nonzero()[:, 0]
        if len(which) == 0:
            break
        fit = refine(part[which], trial[which], there[which], volume, criterion=criterion, effort=ROUGH)
        ends = torch.full_like(without, torch.inf)
        ends[which] = fit.value - log_prior(prior, scenes[which], fit.positions, there[which])
        least, best = ends.unflatten(0, (-1, births)).min(dim=1)
        better = least < score[live] - GAIN
        # Of the fits that were made, the one of each scene's best birth.
        number = hopeful.cumsum(0) - 1
        chosen = number.unflatten(0, (-1, births)).gather(1, best[:, None])[:, 0]
        live, least, chosen = live[better], least[better], chosen[better]
        if len(live) == 0:
            break
        at = at.with_others(live, fit[chosen])
        score[live] = least
    return at


def _apart(places: Float[Tensor, "B P 3"], search: Search, count: int) -> Float[Tensor, "B count 3"]:
    """The first of the places, then the first that is apart from it, and so on."""
    width = _APART * places.new_tensor(search.grid.step)
    middle = cosines(places)
    left = torch.ones_like(places[..., 0], dtype=torch.bool)
    chosen: list[Int64[Tensor, "B 1"]] = []
    for _ in range(count):
        first = left.to(torch.int8).argmax(dim=1, keepdim=True)
        chosen.append(first)
        far = (middle - middle.take_along_dim(first[..., None], dim=1)).abs() > width
        left = left & far.any(-1)
    return places.take_along_dim(torch.cat(chosen, dim=1)[..., None], dim=1)


def _dropped(crowd: Float[Tensor, "B K1 3"], last: Int64[Tensor, "B"]) -> Float[Tensor, "B K 3"]:
    """All but one source; the new one, at the end, takes the place of the one that goes."""
    K = crowd.shape[1] - 1
    goes = (torch.arange(K, device=last.device) == last[:, None])[..., None]
    return torch.where(goes, crowd[:, K:], crowd[:, :K])
