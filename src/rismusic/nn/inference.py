r"""Inference with a network: loading, network outputs for recordings, the spatial prior, and applicability.

**Spatial prior.** The network's heat map gives each grid point p a share :math:`\pi_p` of the sources,
:math:`\sum_p \pi_p = 1`. For K sources, :math:`K \pi` summed over the points around a position approximates
the probability of a source there, and

.. math:: \log b(x) = \sum_k \log \min\left(1, \max\left(\epsilon, K \sum_{p \sim x_k} \pi_p\right)\right)

is added to the log-likelihood when sets of positions are compared. At low SNR the most likely set is often
not the true one, and the network knows how sources are distributed. At high SNR the log-likelihood dominates,
since the prior is at least :math:`\log\epsilon` per source.

**Applicability.** A network returns an output for any input. The card of its weights says what it was trained
on. Scenes outside of it (another panel, a larger volume, more sources, another kind of link, a higher SNR)
are located without the network, with a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from rismusic.batch import takes_all
from rismusic.covariance import BackProjection, Covariance, back_project, projected_covariance
from rismusic.errors import InputError
from rismusic.estimation.calibration import whitened
from rismusic.estimation.grid import SearchGrid, Volume, highest_peaks, to_cosines
from rismusic.estimation.noise import snr_db
from rismusic.estimation.search import received_fields
from rismusic.files import failure
from rismusic.io import Recording
from rismusic.nn.checkpoint import other_panel, read_network
from rismusic.nn.network import GridNetwork, build_network
from rismusic.nn.spec import SHIPPED, WeightsCard, card_of, weights_path
from rismusic.sources import Sources
from rismusic.spec import LocateSpec, Wave, limits
from rismusic.text import counted

# Number of networks in the cache.
_CACHED = 4


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network and the card of its weights."""

    network: GridNetwork
    card: WeightsCard

    @classmethod
    def load(
        cls, weights: str, device: torch.device, *, untrained: bool = False, wave: Wave = "spherical"
    ) -> LoadedNetwork:
        """Load a network, from a cache if possible; if ``untrained``, with random initial weights."""
        path = weights_path(weights)
        try:
            state = path.stat()
        except OSError as error:
            hint = "" if path.suffix else f"; weights are a file or one of {', '.join(SHIPPED)}"
            raise InputError(str(path), f"cannot be read: {failure(error).lower()}{hint}") from None
        version = state.st_mtime_ns, state.st_size
        return _load(path.absolute(), version, str(device), untrained, wave)


def missing(weights: str) -> bool:
    """Whether these are shipped weights that this installation does not have."""
    return weights in SHIPPED and not weights_path(weights).exists()


@lru_cache(maxsize=_CACHED)
def _load(path: Path, _version: tuple[int, int], device: str, untrained: bool, wave: Wave) -> LoadedNetwork:
    """Time and size of the file are part of the cache key, so that a replaced file is loaded again."""
    network, metadata = read_network(path, device=device, wave=wave)
    if untrained:
        network = build_network(network.spec, network.grid, torch.Generator().manual_seed(0)).to(device)
    return LoadedNetwork(network.requires_grad_(False), card_of(str(path), metadata))


# Minimum probability of a source at any position, epsilon.
_MIN_PROBABILITY = 1e-2
# Side length, in grid points, of the neighbourhood over which the map is summed.
_NEIGHBOURHOOD = 3


@dataclass(frozen=True, eq=False)
class SpatialPrior:
    """Spatial prior from the heat maps of S scenes, for :func:`~rismusic.estimation.relax.relax_sweeps`.

    ``near`` is the share of the sources around each grid point, ``scale`` the wavelength of the network, for
    which the grid is, over that of the recording.
    """

    near: Float[Tensor, "S X Y Z"]
    grid: SearchGrid
    scale: float

    @classmethod
    def of(cls, logits: Float[Tensor, "S P"], grid: SearchGrid, scale: float) -> SpatialPrior:
        """From the logits of the heat maps."""
        share = logits.double().softmax(-1).view(-1, *grid.shape)
        padded = pad(share[:, None], (_NEIGHBOURHOOD // 2,) * 6)
        pooled = avg_pool3d(padded, _NEIGHBOURHOOD, stride=1) * _NEIGHBOURHOOD**3
        return cls(pooled[:, 0], grid, scale)

    def __getitem__(self, scenes: slice | Tensor) -> SpatialPrior:
        """The prior of some scenes."""
        if takes_all(scenes, len(self.near)):
            return self
        return replace(self, near=self.near[scenes])

    def __call__(
        self, scenes: Int64[Tensor, "B"], positions: Float[Tensor, "B K 3"], active: Bool[Tensor, "B K"]
    ) -> Float[Tensor, "B"]:
        """Log b of sources at azimuth, elevation, 1/range, in the scenes of the given indices."""
        azimuth, elevation, q = positions.unbind(-1)
        cosines = to_cosines(azimuth, elevation, self.scale / q)
        axes = (self.grid.u_x, self.grid.u_y, self.grid.q)
        x, y, z = (
            ((value - axis[0]) / (step or 1.0)).round().long().clamp(0, len(axis) - 1)
            for value, axis, step in zip(cosines, axes, self.grid.step, strict=True)
        )
        share = self.near[scenes[:, None], x, y, z] * active.sum(-1, keepdim=True)
        return torch.where(active, share.clamp(_MIN_PROBABILITY, 1).log(), 0).sum(-1)


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """Network outputs for S scenes.

    Args:
        recording: the scenes as they are fitted, whitened if hardware impairments are allowed for.
        blend: R_blend with its loading.
        network_sources: the sources of the network's heads [S, K_max], the most probable first.
        candidates: [S, C, 3] azimuth, elevation, 1/range of the highest peaks of the heat map.
        candidate_fields: their fields at the receiver.
        spatial_prior: log probability of source positions, from the heat map.
        log_count: [S, K_max + 1] logarithm of the probability of each number of sources.
        snr_db: [S] SNR of the scenes, with the recorded or estimated noise variance.
    """

    recording: Recording
    blend: Covariance
    network_sources: Sources
    candidates: Float[Tensor, "S C 3"]
    candidate_fields: Complex[Tensor, "S _ M C"]
    spatial_prior: SpatialPrior
    log_count: Float[Tensor, "S counts"]
    snr_db: Float[Tensor, "S"]
    card: WeightsCard

    @classmethod
    @torch.no_grad()
    def compute(
        cls, loaded: LoadedNetwork, recording: Recording, noise_variance: Float[Tensor, "S"], spec: LocateSpec
    ) -> NetworkOutput:
        """Run the network on scenes of its panel, possibly at another wavelength.

        Lengths are scaled to the wavelength of the network and back, since the problem only depends on
        lengths in wavelengths.
        """
        network = loaded.network
        scale = network.grid.panel.wavelength / recording.wavelength
        with_noise = replace(recording, noise_variance=noise_variance)
        known = whitened(with_noise, spec.allowed_error)
        assert known.noise_variance is not None
        fitted = replace(known, noise_variance=None) if spec.allowed_error else recording
        prediction = network(
            replace(known, wavelength=network.grid.panel.wavelength, elements=known.elements * scale)
        )
        projected = back_project(known.link, known.snapshots, known.noise_variance)
        sample = projected_covariance(projected)
        beta = _share(projected, loaded.card, spec)
        if prediction.grid_logits is None:
            raise InputError("network.kind", f"the network {network.spec.kind!r} returned no grid_logits")
        most = min(spec.hybrid.candidates, int(network.grid.inside.sum()))
        peaks = highest_peaks(prediction.grid_logits[:, -1], network.grid, most)
        positions = torch.stack((peaks.azimuth, peaks.elevation, scale / peaks.range), dim=-1).double()
        order = prediction.existence_logits.argsort(dim=-1, descending=True)
        heads = (prediction.azimuth, prediction.elevation, 1 / (prediction.inverse_range * scale))
        azimuth, elevation, distance = (value.gather(1, order).double() for value in heads)
        return cls(
            fitted,
            prediction.blended(*sample, beta),
            Sources(azimuth=azimuth, elevation=elevation, range=distance),
            positions,
            received_fields(fitted, positions),
            SpatialPrior.of(prediction.grid_logits[:, -1], network.grid, scale),
            prediction.count_logits.log_softmax(-1).double(),
            snr_db(with_noise),
            loaded.card,
        )

    def __getitem__(self, scenes: slice | Tensor) -> NetworkOutput:
        """The outputs of some scenes."""
        recording = self.recording[scenes]
        if recording is self.recording:
            return self
        others = {field.name for field in fields(self)} - {"recording", "card"}
        return replace(self, recording=recording, **{name: getattr(self, name)[scenes] for name in others})


def _share(projected: BackProjection, card: WeightsCard, spec: LocateSpec) -> Float[Tensor, "S"] | float:
    """Beta of each scene, the share of R_samp in R_blend, reduced by the share of noise in R_samp.

    The blend is a shrinkage of R_samp towards R_pred (Stoica et al., "On using a priori knowledge in
    space-time adaptive processing", IEEE Trans. SP 56 (2008)). Their weights need errors that are white on
    the panel, which back-projected noise is not; the share of noise in the energy replaces them.
    """
    beta = card.beta if spec.hybrid.beta == "trained" else spec.hybrid.beta
    if not spec.hybrid.shrinkage:
        return beta
    return beta * (1 - spec.hybrid.shrinkage * projected.noise_share)


# Tolerance above the maximum SNR of the training, dB, since the noise variance may be an estimate.
_MARGIN_DB = 10.0
# Relative tolerance of the limits of the search volume.
_SAME = 1e-6


def system_mismatch(loaded: LoadedNetwork, recording: Recording, spec: LocateSpec) -> str | None:
    """Why the network does not apply to panel, link, search volume or number of sources; none if it does."""
    own, system = loaded.network.grid, loaded.card.system
    if (panel := other_panel(own.panel, recording.panel)) is not None:
        return f"they are for another panel, {panel}"
    if not own.panel.same_model(recording.panel):
        return f"they do not support the {recording.wave} wave or the element pattern of the recording"
    if len(spec.unknowns) < 3:
        return "they estimate all three coordinates"
    if recording.symbols != "independent":
        return f"the symbols are {recording.symbols}, and they were trained with independent ones"
    if recording.frequencies is not None:
        return "the recording is wideband, and they were trained with narrowband signals"
    if recording.noise_covariance is not None:
        return "the noise is coloured, and they were trained with white noise"
    direct = recording.channel is None
    if direct != (system.channel.kind == "direct"):
        return f"they were trained {'through a channel' if direct else 'without a channel'}"
    searched, scale = Volume.from_spec(spec), own.panel.wavelength / recording.wavelength
    nearest, farthest = searched.range_min * scale, searched.range_max * scale
    if not _within(replace(searched, range_min=nearest, range_max=farthest), own.volume):
        known = own.volume
        return (
            f"the search volume is larger than theirs (azimuth up to {math.degrees(known.azimuth_max):.4g} "
            f"deg, elevation up to {math.degrees(known.elevation_max):.4g} deg, range "
            f"{known.range_min / scale:.4g} to {known.range_max / scale:.4g} m)"
        )
    if spec.sources == "auto" and spec.sources_max > loaded.card.sources_max:
        known_sources = counted(loaded.card.sources_max, "source")
        return f"they know at most {known_sources}, but up to {spec.sources_max} are tried (--sources-max)"
    return None


def scene_mismatches(
    loaded: LoadedNetwork, snr_db: Float[Tensor, "S"], count: Int64[Tensor, "S"] | None
) -> dict[int, str]:
    """Scenes, by index, to which the network does not apply because of their content, and why."""
    reasons = {}
    most, (_, highest) = loaded.card.sources_max, limits(loaded.card.system.snr_db)
    for scene in (snr_db > highest + _MARGIN_DB).nonzero()[:, 0].tolist():
        reasons[scene] = f"they were trained up to {highest:g} dB SNR"
    if count is not None:
        reasons |= dict.fromkeys((count > most).nonzero()[:, 0].tolist(), f"they know at most {most} sources")
    return reasons


def _within(inner: Volume, outer: Volume) -> bool:
    return all(
        low >= known_low - _SAME * abs(known_low) and high <= known_high + _SAME * abs(known_high)
        for low, high, known_low, known_high in zip(
            inner.lower, inner.upper, outer.lower, outer.upper, strict=True
        )
    )
