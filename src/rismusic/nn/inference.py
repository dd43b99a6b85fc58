r"""A network with its weights and their card, loaded once for each file and device.

What the network's map says of places: a prior for the likelihood to meet.

The map spreads the sources of a scene over the points of the grid, each with a share :math:`\pi_p` of them,
:math:`\sum_p \pi_p = 1`. Of K sources, :math:`K \pi` summed over the points next to a place is nearly the
probability that one is there, and

.. math:: \log b(x) = \sum_k \log \min\left(1, \max\left(\epsilon, K \sum_{p \sim x_k} \pi_p\right)\right)

stands beside the log-likelihood where one set of places is chosen over another. Where noise decides between
them, the likeliest set is often not the true one; the network has seen how sources are spread and spaced.
Where the data tell, tens of nats of them outweigh at most :math:`-\log\epsilon` for each source.

What the network makes of scenes, and the fits that start from it.

Which scenes the network knows: what lies outside its training is located classically, and says so.

A network answers anything it is asked. What it was not trained for, its card tells: another panel, a larger
volume, more sources, another kind of link, stronger signals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from rismusic.covariance import BackProjection, Covariance, back_project, projected_covariance
from rismusic.errors import InputError
from rismusic.estimation.calibration import whitened
from rismusic.estimation.estimate import volume_of
from rismusic.estimation.grid import SearchGrid, Volume, highest_peaks, to_cosines
from rismusic.estimation.noise import snr_db
from rismusic.io import Recording
from rismusic.nn.network import GridNetwork, build_network
from rismusic.nn.spec import SHIPPED, WeightsCard, card_of, weights_path
from rismusic.nn.weights import other_panel, read_network
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, limits

# Networks that are kept: weights and the statistics of their grid.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network and what is known of it.

    Args:
        network: on a device.
        card: of its weights.
    """

    network: GridNetwork
    card: WeightsCard


def missing(weights: str) -> bool:
    """Whether these are weights that come with the package, but not with this one."""
    return weights in SHIPPED and not weights_path(weights).exists()


def trained(weights: str, device: torch.device, *, untrained: bool = False) -> LoadedNetwork:
    """The network of a name or a file of weights.

    Args:
        weights: ``ideal``, ``robust`` or a file.
        device: where it is to work.
        untrained: whether to give it weights that have learned nothing.

    Raises:
        InputError: no file, or none of weights.
    """
    path = weights_path(weights)
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(
            str(path), "a readable file of weights", (error.strerror or "none").lower()
        ) from None
    version = state.st_mtime_ns, state.st_size
    return _trained(path.absolute(), version, str(device), untrained)


@lru_cache(maxsize=_KEPT)
def _trained(path: Path, _version: tuple[int, int], device: str, untrained: bool) -> LoadedNetwork:
    """Also of the file's time and size, so that one that was replaced is read again."""
    network, said = read_network(path, device=device)
    if untrained:
        network = build_network(network.spec, network.grid, torch.Generator().manual_seed(0)).to(device)
    return LoadedNetwork(network.requires_grad_(False), card_of(str(path), said))


# Probability of a source anywhere, whatever the map says: of the network's word no more than this is taken.
_LEAST = 1e-2
# Points next to a place along each axis, itself included.
_NEXT = 3


@dataclass(frozen=True, eq=False)
class SpatialPrior:
    """The map of S scenes, as the prior of :func:`~rismusic.estimation.relax.relax_sweeps`.

    Args:
        near: share of the sources that the map has at each point and those next to it, [S, X, Y, Z].
        grid: of the map, in the network's own wavelength.
        scale: that wavelength over the recording's.
    """

    near: Float[Tensor, "S X Y Z"]
    grid: SearchGrid
    scale: float

    @classmethod
    def of(cls, logits: Float[Tensor, "S P"], grid: SearchGrid, scale: float) -> SpatialPrior:
        """From the logarithm of a map, up to a constant of each scene."""
        share = logits.double().softmax(-1).view(-1, *grid.shape)
        padded = pad(share[:, None], (_NEXT // 2,) * 6)
        pooled = avg_pool3d(padded, _NEXT, stride=1) * _NEXT**3
        return cls(pooled[:, 0], grid, scale)

    def __getitem__(self, scenes: slice | Tensor) -> SpatialPrior:
        """That of some scenes."""
        return replace(self, near=self.near[scenes])

    def __call__(
        self, scenes: Int64[Tensor, "B"], positions: Float[Tensor, "B K 3"], active: Bool[Tensor, "B K"]
    ) -> Float[Tensor, "B"]:
        """Log b of sources at azimuth, elevation, 1/range of the recording, in scenes of these numbers."""
        azimuth, elevation, q = positions.unbind(-1)
        place = to_cosines(azimuth, elevation, self.scale / q)
        axes = (self.grid.u_x, self.grid.u_y, self.grid.q)
        x, y, z = (
            ((value - axis[0]) / step).round().long().clamp(0, len(axis) - 1)
            for value, axis, step in zip(place, axes, self.grid.step, strict=True)
        )
        share = self.near[scenes[:, None], x, y, z] * active.sum(-1, keepdim=True)
        return torch.where(active, share.clamp(_LEAST, 1).log(), 0).sum(-1)


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """S scenes and what the network says of them.

    Args:
        recording: the scenes as they are fitted: whitened where the panel may err.
        blend: R_blend, finished.
        own: the network's own list of sources [S, K_max], the most probable first.
        places: [S, C, 3] azimuth, elevation, 1/range of the highest peaks of the network's map.
        belief: what its map says of any other place.
        log_count: [S, K_max + 1] logarithm of the probability of each number of sources.
        snr_db: [S] of the scenes, with the recorded noise variance or a guess.
        card: of the network's weights.
    """

    recording: Recording
    blend: Covariance
    own: Sources
    places: Float[Tensor, "S C 3"]
    belief: SpatialPrior
    log_count: Float[Tensor, "S counts"]
    snr_db: Float[Tensor, "S"]
    card: WeightsCard

    @classmethod
    @torch.no_grad()
    def by(
        cls,
        trained: LoadedNetwork,
        recording: Recording,
        noise_variance: Float[Tensor, "S"],
        spec: LocateSpec,
    ) -> NetworkOutput:
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
        if prediction.grid_logits is None:
            raise InputError("network.kind", f"the network {network.spec.kind!r} returned no grid_logits")
        most = min(spec.hybrid.candidates, len(network.grid))
        peaks = highest_peaks(prediction.grid_logits[:, -1], network.grid, most)
        places = torch.stack((peaks.azimuth, peaks.elevation, scale / peaks.range), dim=-1)
        surest = prediction.existence_logits.argsort(dim=-1, descending=True)
        own = (prediction.azimuth, prediction.elevation, 1 / (prediction.inverse_range * scale))
        azimuth, elevation, distance = (value.gather(1, surest).double() for value in own)
        return cls(
            fitted,
            prediction.blended(*sample, beta),
            Sources(azimuth=azimuth, elevation=elevation, range=distance),
            places.double(),
            SpatialPrior.of(prediction.grid_logits[:, -1], network.grid, scale),
            prediction.count_logits.log_softmax(-1).double(),
            snr_db(guessed),
            trained.card,
        )

    def __getitem__(self, scenes: slice | Tensor) -> NetworkOutput:
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


# How far beyond the SNR of the training a scene may lie, in dB: the noise is guessed to within a few.
_MARGIN_DB = 10.0
# Limits of the searched volume that pass the trained ones by less than this share are the same.
_SAME = 1e-6


def system_mismatch(trained: LoadedNetwork, recording: Recording, spec: LocateSpec) -> str | None:
    """What of panel, link, searched volume or number of sources the network does not know; none if nothing.

    Args:
        trained: the network.
        recording: the scenes.
        spec: the settings.
    """
    own, system = trained.network.grid, trained.card.system
    if (panel := other_panel(own.panel, recording.panel)) is not None:
        return f"they are for another panel, {panel}"
    direct = recording.channel is None
    if direct != (system.channel.kind == "direct"):
        return f"they were trained {'through a channel' if direct else 'without a channel'}"
    searched, scale = volume_of(spec), own.panel.wavelength / recording.wavelength
    if not _within(
        replace(searched, **{name: getattr(searched, name) * scale for name in _RANGES}), own.volume
    ):
        return "the searched volume is larger than the one they were trained on"
    if spec.sources == "auto" and spec.sources_max > trained.card.sources_max:
        return f"they know at most {trained.card.sources_max} sources"
    return None


def scene_mismatches(
    trained: LoadedNetwork, snr_db: Float[Tensor, "S"], count: Int64[Tensor, "S"] | None
) -> dict[int, str]:
    """Scenes, by number, that the network does not know for what is in them, and why.

    Args:
        trained: the network.
        snr_db: of S scenes.
        count: K of each scene; none where it is to be found.
    """
    said = {}
    most, (_, highest) = trained.card.sources_max, limits(trained.card.system.snr_db)
    for scene in (snr_db > highest + _MARGIN_DB).nonzero()[:, 0].tolist():
        said[scene] = f"they were trained up to {highest:g} dB SNR"
    if count is not None:
        said |= dict.fromkeys((count > most).nonzero()[:, 0].tolist(), f"they know at most {most} sources")
    return said


_RANGES = ("range_min", "range_max")


def _within(inner: Volume, outer: Volume) -> bool:
    return all(
        low >= known_low - _SAME * abs(known_low) and high <= known_high + _SAME * abs(known_high)
        for low, high, known_low, known_high in zip(
            inner.lower, inner.upper, outer.lower, outer.upper, strict=True
        )
    )
