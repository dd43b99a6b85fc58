"""What the network makes of scenes, and the fits that start from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.covariance import BackProjection, Covariance, back_project, projected_covariance
from rismusic.estimate.noise import snr_db
from rismusic.estimate.peaks import highest_peaks
from rismusic.estimate.whitening import whitened
from rismusic.hybrid.belief import Belief
from rismusic.hybrid.trained import Trained
from rismusic.learn.card import WeightsCard
from rismusic.recording import Recording
from rismusic.scene import Sources
from rismusic.spec import LocateSpec


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
        belief: what its map says of any other place.
        log_count: [S, K_max + 1] logarithm of the probability of each number of sources.
        snr_db: [S] of the scenes, with the recorded noise variance or a guess.
        card: of the network's weights.
    """

    recording: Recording
    blend: Covariance
    own: Sources
    places: Float[Tensor, "S C 3"]
    belief: Belief
    log_count: Float[Tensor, "S counts"]
    snr_db: Float[Tensor, "S"]
    card: WeightsCard

    @classmethod
    @torch.no_grad()
    def by(
        cls, trained: Trained, recording: Recording, noise_variance: Float[Tensor, "S"], spec: LocateSpec
    ) -> Seen:
        """Let a network look at scenes of a panel that is its own but for the wavelength.

        Lengths go to the network in its own wavelength, and come back in the recording's: a panel and its
        waves are the same at every wavelength when all lengths are in units of it.

        Args:
            trained: the network.
            recording: S scenes.
            noise_variance: of each, as recorded or guessed.
            spec: the settings.
        """
        network = trained.network
        scale = network.grid.panel.wavelength / recording.wavelength
        guessed = replace(recording, noise_variance=noise_variance)
        known = whitened(guessed, spec.allowed_error)
        assert known.noise_variance is not None
        fitted = replace(known, noise_variance=None) if spec.allowed_error else recording
        prediction = network(
            replace(known, wavelength=network.grid.panel.wavelength, elements=known.elements * scale)
        )
        projected = back_project(known.link, known.snapshots, known.noise_variance)
        sample = projected_covariance(projected)
        beta = _share(projected, trained.card, spec)
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
            Belief.of(prediction.grid_logits[:, -1], network.grid, scale),
            prediction.count_logits.log_softmax(-1).double(),
            snr_db(guessed),
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
            belief=self.belief[scenes],
            log_count=self.log_count[scenes],
            snr_db=self.snr_db[scenes],
        )


def _share(projected: BackProjection, card: WeightsCard, spec: LocateSpec) -> Float[Tensor, "S"] | float:
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
    return beta * (1 - spec.hybrid.shrinkage * projected.noise_share)
