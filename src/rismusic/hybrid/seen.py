"""What the network makes of scenes, and the fits that start from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.covariance import Covariance, sample_covariance
from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.locators import nothing, peaks_in_turn
from rismusic.estimate.nfmle import Fit, better, finish, nfmle, unpack
from rismusic.estimate.noise import guess_noise
from rismusic.estimate.refine import Effort
from rismusic.estimate.spectrum import music
from rismusic.hybrid.trained import Trained
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.spec import LocateSpec


@dataclass(frozen=True, eq=False)
class Seen:
    """S scenes and what the network says of them.

    Args:
        recording: the scenes.
        blend: R_blend, finished.
        own: the network's own list of sources [S, K_max], the surest first.
        log_count: [S, K_max + 1] logarithm of the probability of each number of sources.
    """

    recording: Recording
    blend: Covariance
    own: Sources
    log_count: Float[Tensor, "S counts"]

    @classmethod
    @torch.no_grad()
    def by(cls, trained: Trained, recording: Recording, spec: LocateSpec) -> Seen:
        """Let a network look at scenes of a panel that is its own but for the wavelength.

        Lengths go to the network in its own wavelength, and come back in the recording's: a panel and its
        waves are the same at every wavelength when all lengths are in units of it.
        """
        network = trained.network
        scale = network.grid.panel.wavelength / recording.wavelength
        noise = recording.noise_variance
        known = replace(recording, noise_variance=guess_noise(recording) if noise is None else noise)
        assert known.noise_variance is not None
        prediction = network(
            replace(known, wavelength=network.grid.panel.wavelength, elements=known.elements * scale)
        )
        beta = trained.card.beta if spec.hybrid.beta == "trained" else spec.hybrid.beta
        sample = sample_covariance(recording.link, recording.snapshots, known.noise_variance)
        surest = prediction.existence_logits.argsort(dim=-1, descending=True)
        own = (prediction.azimuth, prediction.elevation, 1 / (prediction.inverse_range * scale))
        azimuth, elevation, distance = (value.gather(1, surest).double() for value in own)
        return cls(
            recording,
            prediction.blended(*sample, beta),
            Sources(azimuth=azimuth, elevation=elevation, range=distance),
            prediction.count_logits.log_softmax(-1).double(),
        )

    def __getitem__(self, scenes: slice | Tensor) -> Seen:
        """What was seen of some scenes."""
        return Seen(self.recording[scenes], self.blend[scenes], self.own[scenes], self.log_count[scenes])

    def fit(self, count: Int64[Tensor, "S"], grid: SearchGrid, spec: LocateSpec) -> Fit:
        """MUSIC on R_blend, Newton, NF-MLE; beside it NF-MLE from the network's own list.

        Args:
            count: K of each scene, at most K_max.
            grid: the points that are searched.
            spec: the settings.
        """
        recording = self.recording
        if int(count.max()) == 0:
            return nothing(recording)
        start, converged = peaks_in_turn(music(self.blend, count.clamp_min(1)), grid, count)
        if not spec.polish:
            return finish(recording, *unpack(start, recording), converged)
        starts = [start]
        if spec.hybrid.own_list:
            most = start.azimuth.shape[1]
            absent = start.azimuth.isnan()
            starts.append(self.own.each(lambda value: value[:, :most].masked_fill(absent, math.nan)))
        effort = Effort(spec.hybrid.steps, spec.hybrid.tolerance)
        fits = [nfmle(recording, one, grid.volume, criterion=spec.criterion, effort=effort) for one in starts]
        return fits[0] if len(fits) == 1 else better(*fits)
