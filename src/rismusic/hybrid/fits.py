"""Fits that start from what the network sees: MUSIC on R_blend, Newton, NF-MLE, and searches beside them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.estimate.descent import Effort
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.evidence import log_evidence
from rismusic.estimate.exchange import Prior, cosines, exchange, log_prior
from rismusic.estimate.grid import SearchGrid, from_cosines, to_cosines
from rismusic.estimate.locators import nothing, peaks_in_turn
from rismusic.estimate.newton import Climb
from rismusic.estimate.nfmle import Fit, finish, nfmle, pack, unpack
from rismusic.estimate.noise import check_fit, most_sources
from rismusic.estimate.order import Chosen, choose_count, replaced
from rismusic.estimate.refine import ROUGH, Refined, refine
from rismusic.estimate.search import Search, Shortlist
from rismusic.estimate.spectrum import music
from rismusic.estimate.surplus import add_and_drop
from rismusic.hybrid.seen import Seen
from rismusic.scene import Sources
from rismusic.spec import LocateSpec, limits

# Distance of the places beside a source from it, in beam widths (widths of focus in 1/r).
_BESIDE = 0.8
# Of the first fits, from places that are nearly right.
_FIRST = replace(ROUGH, levels_first=False)
# Nats of evidence that a search of the whole grid may bring: a number of sources further behind gets none.
_HOPE = 6.0


def count_and_fit(seen: Seen, grid: SearchGrid, spec: LocateSpec) -> Chosen:
    """The most probable number of sources, at most ``spec.sources_max``, and the fit with it.

    To the evidence of each number (see :mod:`rismusic.estimate.evidence`) comes what the network thinks
    of it; numbers of which it thinks nothing are not tried.

    Args:
        seen: S scenes.
        grid: the points that are searched.
        spec: the settings.
    """
    _, L, M = seen.recording.snapshots.shape
    scenes = torch.arange(len(seen.recording), device=seen.log_count.device)
    check_fit(seen.recording, torch.zeros_like(scenes))
    most = min(spec.sources_max, most_sources(L, M), seen.log_count.shape[1] - 1)
    prior = seen.log_count[:, : most + 1].clone()
    # Of numbers that it never met the network has no opinion.
    unmet = torch.arange(most + 1, device=prior.device) < limits(seen.card.system.sources)[0]
    surest = prior.masked_fill(unmet, -math.inf).amax(-1, keepdim=True)
    prior = torch.where(unmet, surest, prior)
    # Evidence takes what errors of the panel leave for more sources; the network has learned better.
    erring = spec.hybrid.count == "both" and spec.allowed_error > 0
    if spec.hybrid.count == "network" or erring:
        prior = prior.masked_fill(unmet, -math.inf)
        return Chosen(fit_known(seen, prior.argmax(-1), grid, spec), prior)
    if spec.hybrid.count == "likelihood":
        prior = torch.zeros_like(prior)
    else:
        prior = prior.masked_fill(prior < surest + math.log(spec.hybrid.count_floor), -math.inf)
    best = torch.full_like(surest[:, 0], -math.inf)

    def one(scenes: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
        part = seen[scenes]
        fit = _near_network(part, torch.full_like(scenes, count), grid, spec)
        evidence = log_evidence(part.recording, fit, grid.volume)
        before, here = prior[scenes, count], best[scenes]
        # The grid is searched for what may still turn out to be the answer.
        hopeful = (evidence + before > here - _HOPE).nonzero()[:, 0]
        if len(hopeful) and count >= (spec.hybrid.search_from or math.inf):
            some = part[hopeful]
            searched = _searched(some, fit[hopeful], grid, spec)
            fit = replaced(fit, hopeful, searched)
            evidence[hopeful] = log_evidence(some.recording, searched, grid.volume)
        best[scenes] = torch.maximum(here, evidence + before)
        return fit, evidence

    chosen = choose_count(scenes, one, most, prior)
    # Many sources were searched before they were chosen, for the evidence; few are where the map doubts them.
    fewer = chosen.fit.sources.active.sum(-1) < spec.hybrid.search_from
    few = (fewer & _map_doubts(seen, chosen.fit, spec)).nonzero()[:, 0]
    if len(few) == 0:
        return chosen
    fit = replaced(chosen.fit, few, _searched(seen[few], chosen.fit[few], grid, spec))
    return Chosen(fit, chosen.log_evidence)


def fit_known(seen: Seen, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
    """MUSIC on R_blend, Newton, NF-MLE; beside it the network's own list, exchanges, and a search.

    Args:
        seen: S scenes.
        count: K of each, at most K_max.
        grid: the points that are searched.
        spec: the settings.
    """
    return _searched(seen, _near_network(seen, count, grid, spec), grid, spec)


def _refinable(seen: Seen, spec: LocateSpec) -> Bool[Tensor, "S"]:
    """Scenes whose peaks of MUSIC are only a start."""
    return seen.snr_db <= (spec.hybrid.polish_up_to_db if spec.polish else -math.inf)


def _near_network(seen: Seen, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
    """The fit without a search of the whole grid: what the network leads to."""
    recording = seen.recording
    if int(count.max()) == 0:
        return nothing(recording)
    polished = _refinable(seen, spec)
    everyone, climb = bool(polished.all()), _climb(spec)
    if not everyone:
        climb = Climb(length=climb.length)  # to the top, where they stay
    start, converged = peaks_in_turn(music(seen.blend, count.clamp_min(1)), grid, count, climb=climb)
    if everyone:
        return _polished(seen, start, grid, spec)
    rough = finish(recording, *unpack(start, recording), converged)
    scenes = polished.nonzero()[:, 0]
    if len(scenes) == 0:
        return rough
    fit = _polished(seen[scenes], start[scenes], grid, spec)
    return replaced(rough, scenes, fit)


def _searched(seen: Seen, fit: Fit, grid: SearchGrid, spec: LocateSpec) -> Fit:
    """A search of the whole grid for scenes with many sources, or where the map doubts what was found."""
    _, L, M = seen.recording.snapshots.shape
    count = fit.sources.active.sum(-1)
    wanted = (count >= (spec.hybrid.search_from or math.inf)) | _map_doubts(seen, fit, spec)
    many = (wanted & (count < most_sources(L, M)) & _refinable(seen, spec)).nonzero()[:, 0]
    if len(many) == 0:
        return fit
    part, start = seen[many], fit[many]
    positions, active = unpack(start.sources, part.recording)
    assert start.sources.power is not None
    levels, value = None, L * M * start.cost.log()
    if spec.criterion == "unconditional":
        levels = torch.where(active, start.sources.power, 0), start.noise_variance
        value = start.likelihood
    begin = Refined(positions, value, start.converged, levels)
    end = add_and_drop(
        Search(Dictionary.of(grid), part.recording),
        begin,
        active,
        criterion=spec.criterion,
        prior=_prior(part, spec),
    )
    changed = (end.positions != positions).flatten(1).any(-1).nonzero()[:, 0]
    if len(changed) == 0:
        return fit
    last = _finished(part[changed], end[changed], active[changed], grid, spec)
    return replaced(fit, many[changed], last)


def _map_doubts(seen: Seen, fit: Fit, spec: LocateSpec) -> Bool[Tensor, "S"]:
    """Where the network's map gives the places that were found little probability."""
    if not (spec.hybrid.search_from and spec.hybrid.search_below and spec.hybrid.own_list):
        return torch.zeros_like(fit.converged)
    positions, active = unpack(fit.sources, seen.recording)
    scenes = torch.arange(len(positions), device=active.device)
    return seen.belief(scenes, positions, active) < math.log(spec.hybrid.search_below)


def _finished(
    seen: Seen, fit: Refined, active: Bool[Tensor, "S K"], grid: SearchGrid, spec: LocateSpec
) -> Fit:
    """NF-MLE to the end."""
    return nfmle(
        seen.recording,
        pack(fit.positions, active),
        grid.volume,
        criterion=spec.criterion,
        effort=Effort(spec.hybrid.steps, spec.hybrid.tolerance),
        levels=fit.levels,
    )


def _polished(seen: Seen, start: Sources, grid: SearchGrid, spec: LocateSpec) -> Fit:
    """NF-MLE from the likelier of two starts, the peaks of MUSIC and the network's list, and exchanges.

    What is compared is refined roughly; the one that stays, to the end.
    """
    recording, volume = seen.recording, grid.volume
    positions, active = unpack(start, recording)
    prior = _prior(seen, spec)
    rough = partial(refine, volume=volume, criterion=spec.criterion, effort=_FIRST)
    fit = rough(recording, positions, active)
    if spec.hybrid.own_list:
        own = seen.own.each(lambda own: own[:, : active.shape[1]].masked_fill(~active, math.nan))
        as_many = (own.active == active).all(-1)
        scenes = (as_many & ~same_places(pack(fit.positions, active), own, grid)).nonzero()[:, 0]
        if len(scenes):
            first, there = fit[scenes], active[scenes]
            listed = rough(recording[scenes], unpack(own, recording)[0][scenes], there)
            gain = first.value - listed.value
            gain = gain + log_prior(prior, scenes, listed.positions, there)
            gain = gain - log_prior(prior, scenes, first.positions, there)
            fit = fit.with_others(scenes[gain > 0], listed[gain > 0])
    if spec.hybrid.exchanges:
        places = seen.places if spec.hybrid.own_list else _places_of_blend(seen, grid, spec)
        candidates = torch.cat((places, beside(fit.positions, grid)), dim=1)
        fit = exchange(
            Shortlist(grid, recording, candidates),
            fit,
            active,
            criterion=spec.criterion,
            sweeps=spec.hybrid.exchanges,
            prior=prior,
        )
    return _finished(seen, fit, active, grid, spec)


def _prior(seen: Seen, spec: LocateSpec) -> Prior | None:
    """What the network's map says, where its own list is wanted at all."""
    weight = spec.hybrid.belief if spec.hybrid.own_list else 0.0
    if not weight:
        return None
    return lambda scenes, positions, active: weight * seen.belief(scenes, positions, active)


def _places_of_blend(seen: Seen, grid: SearchGrid, spec: LocateSpec) -> Float[Tensor, "S C 3"]:
    """Candidates without the network's map: more peaks of MUSIC on R_blend than there are sources."""
    most = min(spec.hybrid.candidates, seen.blend.rank, grid.panel.size - 1)
    count = torch.full((len(seen.recording),), most, device=seen.log_count.device)
    found, _ = peaks_in_turn(music(seen.blend, count), grid, count, climb=_climb(spec))
    return unpack(found, seen.recording)[0]


def beside(positions: Float[Tensor, "S K 3"], grid: SearchGrid) -> Float[Tensor, "S C 3"]:
    """Places a beam's width from sources to either side, C = 6 K: where two share a peak, one may be there.

    Args:
        positions: azimuth, elevation, 1/range of K sources.
        grid: whose beams and volume are meant.
    """
    middle = cosines(positions)
    width = torch.diag(positions.new_tensor(grid.step) * grid.oversampling * _BESIDE)
    u_x, u_y, q = (middle[:, :, None] + torch.cat((width, -width))).flatten(1, 2).unbind(-1)
    q = q.clamp_min(grid.volume.lower[2])
    azimuth, elevation, distance = grid.volume.clamp(*from_cosines(u_x, u_y, q))
    return torch.stack((azimuth, elevation, 1 / distance), dim=-1)


def _climb(spec: LocateSpec) -> Climb:
    return Climb(spec.hybrid.newton_steps, spec.hybrid.newton_step, each=False)


def same_places(one: Sources, other: Sources, grid: SearchGrid) -> Bool[Tensor, "S"]:
    """Where two lists of as many sources are the same to a step of the grid, in whatever order.

    Args:
        one: [S, K], NaN where there is no source.
        other: [S, K], NaN in the same places.
        grid: whose steps are meant.
    """
    places = [
        torch.stack(to_cosines(*(value.double() for value in sources.filled())), dim=-1)
        for sources in (one, other)
    ]
    step = places[0].new_tensor(grid.step)
    near = ((places[0][:, :, None] - places[1][:, None]).abs() < step).all(-1)
    there = one.active
    near = near & there[:, :, None] & there[:, None, :]
    return ((near.any(2) & near.any(1)) | ~there).all(-1)
