r"""Exchanges of sources (RELAX): each in turn is taken out, searched again and re-fitted with the others.

After Li and Stoica, "Efficient mixed-spectrum estimation with applications to target feature extraction",
IEEE Trans. SP 44 (1996); here with a joint NF-MLE in place of theirs one source at a time.

A source too many for a while: one is added where the data want it most, then the least one is dropped.

What keeps a fit of K sources in a wrong place is often that two of them stand for a third: taken out and
searched again (:mod:`rismusic.estimation.relax`), each comes back to where it was, since the other still
covers for it. With K + 1 sources all can move to where they belong before one has to go, and the one that
goes need not be the one that came. These are the births and deaths of reversible-jump samplers, used
greedily: Andrieu and Doucet, "Joint Bayesian model selection and estimation of noisy sinusoids via reversible
jump MCMC", IEEE Trans. SP 47 (1999).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimation.grid import to_cosines
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.estimation.maximum_likelihood import ROUGH, Criterion, FitState, refine, values_without_each
from rismusic.estimation.search import CandidateSearch, GridSearch, project_out

# A source found again within so many grid steps of where it was is left alone: it would come back to itself.
_SAME = 1.5
GAIN = 0.1
"""What a change must gain (nats) to count: more than the descent leaves undone."""

Prior = Callable[
    [Int64[Tensor, "B"], Float[Tensor, "B K 3"], Bool[Tensor, "B K"]],
    Float[Tensor, "B"],
]
"""Logarithm of how probable sources are beforehand where they are, in scenes of given numbers."""


def relax_sweeps(
    search: GridSearch | CandidateSearch,
    start: FitState,
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    sweeps: int = 4,
    prior: Prior | None = None,
) -> FitState:
    """Sources taken out, searched again, and kept where the re-fit is likelier.

    Args:
        search: over the grid, or over a few places of each scene, of S scenes.
        start: the fit to improve, refined under the same criterion: to the end, if what an exchange has to
            beat is not to be lower than it seems.
        active: which places hold a source; empty ones come last.
        criterion: the likelihood of search and re-fit.
        sweeps: most passes.
        prior: what an exchange must improve is the likelihood times this; if none, the likelihood alone.

    Returns:
        The fit, roughly refined where something was exchanged; without a prior the likelihood of no scene is
        worse than that of the start.
    """
    recording, grid, at = search.recording, search.grid, start
    everyone = torch.arange(len(recording), device=active.device)
    score = at.value - log_prior(prior, everyone, at.positions, active)
    # One source alone is where the search put it.
    live = (active.sum(-1) > 1).nonzero()[:, 0]
    sources = active.shape[1]
    for _ in range(sweeps):
        if isinstance(search, CandidateSearch):
            # Few places are looked at for all sources at once: most scenes are at rest.
            scenes = live.repeat_interleave(sources)
            which = torch.arange(sources, device=live.device).repeat(len(live))
            moved = _searched_again(search, at, active, scenes, which)[1] & active[scenes, which]
            live = live[moved.unflatten(0, (-1, sources)).any(-1)]
        changed = torch.zeros_like(active[:, 0])
        for k in range(sources):
            scenes = live[active[live, k]]
            if len(scenes) == 0:
                break
            found, moved = _searched_again(search, at, active, scenes, torch.full_like(scenes, k))
            scenes, found = scenes[moved], found[moved]
            if len(scenes) == 0:
                continue
            there, trial = active[scenes], at.positions[scenes]
            trial[:, k] = found
            fit = refine(recording[scenes], trial, there, grid.volume, criterion=criterion, options=ROUGH)
            new = fit.value - log_prior(prior, scenes, fit.positions, there)
            better = new < score[scenes] - GAIN
            scenes = scenes[better]
            if len(scenes) == 0:
                continue
            at = at.with_others(scenes, fit[better])
            score[scenes], changed[scenes] = new[better], True
        live = live[changed[live]]
        if len(live) == 0:
            break
    return at


def _searched_again(
    search: GridSearch | CandidateSearch, at: FitState, active: Tensor, scenes: Tensor, which: Tensor
) -> tuple[Float[Tensor, "B 3"], Bool[Tensor, "B"]]:
    """Where the search puts a source of some scenes that is taken out, and whether that is elsewhere."""
    here, rows = at[scenes], torch.arange(len(scenes), device=scenes.device)[:, None]
    others = torch.arange(active.shape[1] - 1, device=scenes.device).expand(len(scenes), -1)
    others = others + (others >= which[:, None])
    power_noise = (
        None if here.power_noise is None else (here.power_noise[0][rows, others], here.power_noise[1])
    )
    there = active[scenes][rows, others]
    rest = project_out(search.recording[scenes], here.positions[rows, others], there, power_noise)
    found = search.place(scenes, rest).to(here.positions)
    step = found.new_tensor(search.grid.step)
    apart = (direction_cosines(found) - direction_cosines(here.positions[rows[:, 0], which])).abs()
    return found, (apart > _SAME * step).any(-1)


def log_prior(
    prior: Prior | None,
    scenes: Int64[Tensor, "B"],
    positions: Float[Tensor, "B K 3"],
    active: Bool[Tensor, "B K"],
) -> Float[Tensor, "B"]:
    """What the prior says of sources in some scenes; 0 if there is none."""
    return torch.zeros_like(positions[:, 0, 0]) if prior is None else prior(scenes, positions, active)


def direction_cosines(positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Azimuth, elevation, 1/range as direction cosines and 1/range."""
    azimuth, elevation, q = positions.unbind(-1)
    return torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)


# Points of the grid among which births are chosen, and how many steps they are apart in some coordinate.
_POINTS, _APART = 200, 3.0
# A fit that has one source too many need not come to rest.
_CROWDED = FitOptions(steps=4, tolerance=0.4)
# Nats that the settling of the sources that stay may gain: what has lost more is not followed.
_HOPE = 5.0


def birth_death(
    search: GridSearch,
    start: FitState,
    active: Bool[Tensor, "S K"],
    *,
    criterion: Criterion = "conditional",
    births: int = 3,
    sweeps: int = 3,
    prior: Prior | None = None,
) -> FitState:
    """Sources added and dropped again where what is left is likelier than before.

    Args:
        search: over the grid, of S scenes.
        start: the fit to improve, refined under the same criterion.
        active: which places hold a source; at least one in each scene.
        criterion: the likelihood of search and re-fits.
        births: places where one more source is tried, each by itself; the best of the ends counts.
        sweeps: most passes; scenes that one has not changed get no other.
        prior: see :func:`~rismusic.estimation.relax.relax_sweeps`.

    Returns:
        The fit, roughly refined where something changed.
    """
    recording, volume, at = search.recording, search.grid.volume, start
    live = torch.arange(len(recording), device=active.device)
    score = at.value - log_prior(prior, live, at.positions, active)
    for _ in range(sweeps):
        here, there = at[live], active[live]
        points = search.best(
            live, project_out(recording[live], here.positions, there, here.power_noise), _POINTS
        )
        born = _apart(search.dictionary.positions(points).to(here.positions), search, births)
        # From here on each scene stands there once for each birth.
        scenes, there = (value.repeat_interleave(births, dim=0) for value in (live, there))
        part = recording[scenes]
        crowd = torch.cat(
            (here.positions.repeat_interleave(births, dim=0), born.flatten(0, 1)[:, None]), dim=1
        )
        crowded = torch.cat((there, torch.ones_like(there[:, :1])), dim=1)
        crowd = refine(part, crowd, crowded, volume, criterion=criterion, options=_CROWDED).positions
        without, last = values_without_each(part, crowd, crowded, criterion).min(dim=1)
        trial = _dropped(crowd, last)
        hopeful = without - log_prior(prior, scenes, trial, there) < score[scenes] + _HOPE
        which = hopeful.nonzero()[:, 0]
        if len(which) == 0:
            break
        fit = refine(part[which], trial[which], there[which], volume, criterion=criterion, options=ROUGH)
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


def _apart(places: Float[Tensor, "B P 3"], search: GridSearch, count: int) -> Float[Tensor, "B count 3"]:
    """The first of the places, then the first that is apart from it, and so on."""
    width = _APART * places.new_tensor(search.grid.step)
    middle = direction_cosines(places)
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
