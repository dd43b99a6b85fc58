r"""How well so many sources explain a scene, whatever exactly their positions and powers: the evidence.

With :math:`\theta` the U unknowns of K sources (azimuth, elevation, 1/range and log power of each, the log
noise variance where it is not known), spread evenly beforehand over widths :math:`w_i`, Laplace's integral at
the best fit :math:`\hat\theta` gives

.. math:: \log p(Y | K) \approx \log p(Y | \hat\theta) + \log K!
    - \tfrac12 \log\det\left( \mathrm{diag}(w)\, \frac{J + \Lambda}{2\pi}\, \mathrm{diag}(w) \right),

J the Fisher information of the unconditional likelihood there. An unknown of which the data say nothing must
not cost anything: :math:`\Lambda = \mathrm{diag}(2\pi / w_i^2)` makes its factor 1. K! counts the orders in
which one set of sources can be written: of those whose power the data tell at all, since one that may be
anything is spread over all orders already.

Schwarz's criterion is the same with every information replaced by 2 L M; here a source that is hardly seen,
or a range that is hardly known, costs less than one that is known well.

Kass and Raftery, "Bayes factors", J. Am. Stat. Assoc. 90 (1995).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.estimate.grid import Volume
from rismusic.estimate.likelihood import unconditional
from rismusic.estimate.moments import moments, scene_blocks
from rismusic.estimate.nfmle import Fit, unpack
from rismusic.recording import Recording
from rismusic.wave import Wave

# Powers are spread over 30 dB beforehand, the noise variance likewise: natural logarithm.
_LEVELS = math.log(1e3)


def log_evidence(
    recording: Recording, fit: Fit, volume: Volume, *, wave: Wave = "spherical"
) -> Float[Tensor, "S"]:
    """Logarithm of the evidence of each scene's number of sources, nats, up to a constant of the scene.

    Args:
        recording: S scenes.
        fit: of the number of sources in question, at the best of the unconditional likelihood.
        volume: where sources were looked for; azimuth, elevation and 1/range are spread over it evenly.
        wave: the form of the wave.
    """
    positions, active = unpack(fit.sources, recording)
    assert fit.sources.power is not None
    power = torch.where(active, fit.sources.power, 0)
    S, K = active.shape
    extent = (high - low for low, high in zip(volume.lower, volume.upper, strict=True))
    width = torch.tensor([*extent] * K + [_LEVELS] * (K + 1), dtype=torch.float64, device=power.device)
    # What is not there, or is known, has no width.
    free = torch.cat((active.repeat_interleave(3, dim=1), active, active.new_ones(S, 1)), dim=1)
    if recording.noise_variance is not None:
        free[:, -1] = False
    width = torch.where(free, width, 0)
    volumes = []
    for block in scene_blocks(recording, 4 * K):
        at = moments(recording[block], positions[block], active[block], derivatives=True, wave=wave)
        _, _, J = unconditional(at, power[block], fit.noise_variance[block])
        w = width[block]
        scaled = w[:, :, None] * J * w[:, None, :] / (2 * math.pi)
        seen = (scaled.diagonal(dim1=-2, dim2=-1)[:, 3 * K : -1] > 1).sum(-1)
        scaled = scaled + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
        volumes.append(torch.lgamma(seen.double() + 1) - 0.5 * torch.linalg.slogdet(scaled).logabsdet)
    return torch.cat(volumes) - fit.likelihood
