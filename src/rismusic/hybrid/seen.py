"""What the network makes of scenes, and the fits that start from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance, back_project, sample_covariance
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.evidence import log_evidence
from rismusic.estimate.exchange import exchange
from rismusic.estimate.grid import SearchGrid, from_cosines, to_cosines
from rismusic.estimate.locators import nothing, peaks_in_turn
from rismusic.estimate.newton import Climb
from rismusic.estimate.nfmle import Fit, finish, nfmle, pack, unpack
from rismusic.estimate.noise import check_fit, most_sources, snr_db
from rismusic.estimate.order import Chosen, choose_count, replaced
from rismusic.estimate.peaks import highest_peaks
from rismusic.estimate.refine import ROUGH, Effort, refine
from rismusic.estimate.search import Search, Shortlist
from rismusic.estimate.spectrum import music
from rismusic.estimate.whitening import whitened
from rismusic.hybrid.trained import Trained
from rismusic.learn.card import WeightsCard
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.spec import LocateSpec, limits

# Distance of the places beside a source from it, in beam widths (widths of focus in 1/r).
_BESIDE = 0.8
# Sweeps over the whole grid, where there are many sources.
_SWEEPS = 3


@dataclass(frozen=True, eq=False)
class Seen:
    """S scenes and what the network says of them.

    Args:
        recording: the scenes as they are fitted: whitened where the panel may err.
        blend: R_blend, finished.
        own: the network's own list of sources [S, K_max], the surest first; NaN, and last, where the peak of
            its map is too low.
        places: [S, C, 3] azimuth, elevation, 1/range of the highest peaks of the network's map; the highest
            again in place of those that are too low.
        log_count: [S, K_max + 1] logarithm of the probability of each number of sources.
        snr_db: [S] of the scenes, with the recorded noise variance or a guess.
        card: of the network's weights.
    """

    recording: Recording
    blend: Covariance
    own: Sources
    places: Float[Tensor, "S C 3"]
    log_count: Float[Tensor, "S counts"]
    snr_db: Float[Tensor, "S"]
    card: WeightsCard

    @classmethod
    @torch.no_grad()
    def by(cls, trained: Trained, recording: Recording, spec: LocateSpec) -> Seen:
        """Let a network look at scenes of a panel that is its own but for the wavelength.

        Lengths go to the network in its own wavelength, and come back in the recording's: a panel and its
        waves are the same at every wavelength when all lengths are in units of it.
        """
        network = trained.network
        scale = network.grid.panel.wavelength / recording.wavelength
        known = whitened(recording, spec.allowed_error)
        assert known.noise_variance is not None
        fitted = replace(known, noise_variance=None) if spec.allowed_error else recording
        prediction = network(
            replace(known, wavelength=network.grid.panel.wavelength, elements=known.elements * scale)
        )
        beta = _share(known, trained.card, spec)
        sample = sample_covariance(known.link, known.snapshots, known.noise_variance)
        assert prediction.grid_logits is not None
        most, heads = min(spec.hybrid.candidates, len(network.grid)), prediction.azimuth.shape[1]
        # Head q of the network stands at the q-th highest peak.
        peaks = highest_peaks(prediction.grid_logits[:, -1], network.grid, max(most, heads))
        low = (peaks.height - peaks.height[:, :1]).exp() < spec.hybrid.peak_threshold
        places = torch.stack((peaks.azimuth, peaks.elevation, scale / peaks.range), dim=-1)
        places = torch.where(low[..., None], places[:, :1], places)[:, :most]
        existence = prediction.existence_logits.masked_fill(low[:, :heads], -math.inf)
        surest = existence.argsort(dim=-1, descending=True)
        own = (prediction.azimuth, prediction.elevation, 1 / (prediction.inverse_range * scale))
        azimuth, elevation, distance = (
            value.masked_fill(low[:, :heads], math.nan).gather(1, surest).double() for value in own
        )
        return cls(
            fitted,
            prediction.blended(*sample, beta),
            Sources(azimuth=azimuth, elevation=elevation, range=distance),
            places.double(),
            prediction.count_logits.log_softmax(-1).double(),
            snr_db(replace(recording, noise_variance=known.noise_variance)),
            trained.card,
        )

    def __getitem__(self, scenes: slice | Tensor) -> Seen:
        """What was seen of some scenes."""
        return replace(
            self,
            recording=self.recording[scenes],
            blend=self.blend[scenes],
            own=self.own[scenes],
            places=self.places[scenes],
            log_count=self.log_count[scenes],
            snr_db=self.snr_db[scenes],
        )

    def count_and_fit(self, grid: SearchGrid, spec: LocateSpec) -> Chosen:
        """The most probable number of sources, at most ``spec.sources_max``, and the fit with it.

        To the evidence of each number (see :mod:`rismusic.estimate.evidence`) comes what the network thinks
        of it; numbers of which it thinks nothing are not tried.

        Args:
            grid: the points that are searched.
            spec: the settings.
        """
        _, L, M = self.recording.snapshots.shape
        scenes = torch.arange(len(self.recording), device=self.log_count.device)
        check_fit(self.recording, torch.zeros_like(scenes))
        most = min(spec.sources_max, most_sources(L, M), self.log_count.shape[1] - 1)
        prior = self.log_count[:, : most + 1].clone()
        # Of numbers that it never met the network has no opinion.
        unmet = torch.arange(most + 1, device=prior.device) < limits(self.card.system.sources)[0]
        surest = prior.masked_fill(unmet, -math.inf).amax(-1, keepdim=True)
        prior = torch.where(unmet, surest, prior)
        # Evidence takes what errors of the panel leave for more sources; the network has learned better.
        erring = spec.hybrid.count == "both" and spec.allowed_error > 0
        if spec.hybrid.count == "network" or erring:
            prior = prior.masked_fill(unmet, -math.inf)
            return Chosen(self.fit(prior.argmax(-1), grid, spec), prior)
        if spec.hybrid.count == "likelihood":
            prior = torch.zeros_like(prior)
        else:
            prior = prior.masked_fill(prior < surest + math.log(spec.hybrid.count_floor), -math.inf)

        def one(scenes: Int64[Tensor, "_"], count: int) -> tuple[Fit, Float[Tensor, "_"]]:
            part = self[scenes]
            fit = part.fit(torch.full_like(scenes, count), grid, spec)
            return fit, log_evidence(part.recording, fit, grid.volume)

        return choose_count(scenes, one, most, prior)

    def fit(self, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
        """MUSIC on R_blend, Newton, NF-MLE; beside it NF-MLE from the network's own list, and exchanges.

        Args:
            count: K of each scene, at most K_max.
            grid: the points that are searched.
            spec: the settings.
        """
        recording = self.recording
        if int(count.max()) == 0:
            return nothing(recording)
        polished = self.snr_db <= (spec.hybrid.polish_up_to_db if spec.polish else -math.inf)
        everyone, climb = bool(polished.all()), _climb(spec)
        if not everyone:
            climb = Climb(length=climb.length)  # to the top, where they stay
        start, converged = peaks_in_turn(music(self.blend, count.clamp_min(1)), grid, count, climb=climb)
        if everyone:
            return self._polished(start, grid, spec)
        rough = finish(recording, *unpack(start, recording), converged)
        scenes = polished.nonzero()[:, 0]
        if len(scenes) == 0:
            return rough
        fit = self[scenes]._polished(start[scenes], grid, spec)
        return replaced(rough, scenes, fit, torch.ones_like(scenes, dtype=torch.bool))

    def _polished(self, start: Sources, grid: SearchGrid, spec: LocateSpec) -> Fit:
        """NF-MLE from the likelier of two starts, the peaks of MUSIC and the network's list, and exchanges.

        What is compared is refined roughly; the one that stays, to the end.
        """
        recording, volume = self.recording, grid.volume
        positions, active = unpack(start, recording)
        rough = partial(refine, volume=volume, criterion=spec.criterion, effort=ROUGH)
        positions, value, _ = rough(recording, positions, active)
        if spec.hybrid.own_list:
            own = self.own.each(lambda own: own[:, : active.shape[1]].masked_fill(~active, math.nan))
            as_many = (own.active == active).all(-1)
            scenes = (as_many & ~same_places(pack(positions, active), own, grid)).nonzero()[:, 0]
            if len(scenes):
                listed = unpack(own, recording)[0][scenes]
                listed, other, _ = rough(recording[scenes], listed, active[scenes])
                better = other < value[scenes]
                positions[scenes[better]], value[scenes[better]] = listed[better], other[better]
        if spec.hybrid.exchanges:
            places = self.places if spec.hybrid.own_list else self._places_of_blend(grid, spec)
            candidates = torch.cat((places, beside(positions, grid)), dim=1)
            positions = exchange(
                Shortlist(grid, recording, candidates),
                positions,
                active,
                criterion=spec.criterion,
                sweeps=spec.hybrid.exchanges,
                value=value,
            )
        many = (active.sum(-1) >= (spec.hybrid.search_from or math.inf)).nonzero()[:, 0]
        if len(many):
            everywhere = Search(Dictionary.of(grid), recording[many])
            found = positions[many], active[many]
            positions[many] = exchange(everywhere, *found, criterion=spec.criterion, sweeps=_SWEEPS)
        effort = Effort(spec.hybrid.steps, spec.hybrid.tolerance)
        return nfmle(recording, pack(positions, active), volume, criterion=spec.criterion, effort=effort)

    def _places_of_blend(self, grid: SearchGrid, spec: LocateSpec) -> Float[Tensor, "S C 3"]:
        """Candidates without the network's map: more peaks of MUSIC on R_blend than there are sources."""
        most = min(spec.hybrid.candidates, self.blend.rank, grid.panel.size - 1)
        count = torch.full((len(self.recording),), most, device=self.log_count.device)
        found, _ = peaks_in_turn(music(self.blend, count), grid, count, climb=_climb(spec))
        return unpack(found, self.recording)[0]


def beside(positions: Float[Tensor, "S K 3"], grid: SearchGrid) -> Float[Tensor, "S C 3"]:
    """Places a beam's width from sources to either side, C = 6 K: where two share a peak, one may be there.

    Args:
        positions: azimuth, elevation, 1/range of K sources.
        grid: whose beams and volume are meant.
    """
    azimuth, elevation, q = positions.unbind(-1)
    middle = torch.stack(to_cosines(azimuth, elevation, 1 / q), dim=-1)
    width = torch.diag(positions.new_tensor(grid.step) * grid.oversampling * _BESIDE)
    u_x, u_y, q = (middle[:, :, None] + torch.cat((width, -width))).flatten(1, 2).unbind(-1)
    q = q.clamp_min(grid.volume.lower[2])
    azimuth, elevation, distance = grid.volume.clamp(*from_cosines(u_x, u_y, q))
    return torch.stack((azimuth, elevation, 1 / distance), dim=-1)


def _share(recording: Recording, card: WeightsCard, spec: LocateSpec) -> Float[Tensor, "S"] | float:
    """Beta of each scene: the share of R_samp in the blend, less by what of R_samp is noise.

    Shrinkage towards I / N leaves eigenvectors, and so MUSIC, as they are. Towards R_pred it does not: the
    blend is itself a shrinkage of R_samp, of which the network's covariance is the target (Stoica et al., "On
    using a priori knowledge in space-time adaptive processing", IEEE Trans. SP 56 (2008)). Their weights want
    an error that is white on the panel, which that of noise carried back through the link is not; the
    noise's share of the energy stands in for them.
    """
    beta = card.beta if spec.hybrid.beta == "trained" else spec.hybrid.beta
    if not spec.hybrid.shrinkage:
        return beta
    assert recording.noise_variance is not None
    projected = back_project(recording.link, recording.snapshots, recording.noise_variance)
    return beta * (1 - spec.hybrid.shrinkage * projected.noise_share)


def _climb(spec: LocateSpec) -> Climb:
    return Climb(spec.hybrid.newton_steps, spec.hybrid.newton_step)


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
