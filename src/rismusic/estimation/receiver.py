r"""What a receiver that is not linear leaves in the snapshots: clipping, I/Q imbalance, compression.

**Clipping.** Clipped samples pile up at one value, which shows in the snapshots themselves.

**I/Q imbalance** adds the complex conjugate of the signal, **compression** takes off a part that grows with
the power. With the signal x at the receiver and its mean power P,

.. math:: y = x + \beta x^* + \gamma \frac{|x|^2}{P} x + n.

To a panel that is sampled directly, the conjugate looks like sources in mirrored directions, and products
of two sources look like further ones, but neither quite. With the fields of the sources, :math:`\hat x` and r
are what these explain and leave of the snapshots, b is the part of :math:`\hat x^*` or of
:math:`|\hat x|^2 \hat x / P` outside the fields, and

.. math:: z = b^H r, \qquad g = -D \log\left( 1 - \frac{|z|^2}{|b|^2 |r|^2} \right)

is the log-likelihood ratio (nats) of the coefficient :math:`z / |b|^2`. D is the number of complex
dimensions of r. Without such an error g has an exponential distribution of mean 1. What another error leaves
has a random phase in each snapshot, so that :math:`|\sum_l z_l|^2 / \sum_l |z_l|^2` has this distribution,
too. In a scene alone, both have to be large; all scenes of a recording have one coefficient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering
from rismusic.batch import Batch
from rismusic.covariance import squared_modulus
from rismusic.devices import blocks
from rismusic.estimation.goodness_of_fit import outside
from rismusic.estimation.likelihood import orthonormal
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.model_error import residual_dimensions
from rismusic.io import Recording
from rismusic.sources import Sources

# Values this near to each other are equal. Where a receiver clips, at least so many equal the largest one
# beyond the first of each group (more in data of a converter with few bits, in which a share of all values
# have equal ones), and more than so many times those that equal the next value.
_AT_LIMIT, _CLIPPED, _CLIPPED_QUANTISED, _QUANTISED, _PILED = 1e-6, 3, 8, 0.01, 4
_MOST_LIMITED = 0.5  # larger shares at one modulus are those of a source without noise
# Log-likelihood ratio (nats), which one in 8000 sound scenes has, and its robust form.
_NATS, _ROBUST_NATS = 9.0, 5.0
MOST_DISTORTION = 0.5
"""Larger coefficients are no small errors."""


def clipped_share(snapshots: Complex[Tensor, "S *outputs M"]) -> Float[Tensor, "S"]:
    """Share of the samples at the limit of a receiver that clips real and imaginary parts, or the modulus.

    They pile up at the largest value, of all antennas or, where their gains differ, of each one. The share
    is 0 where no more are there than in sound data, of a converter with few bits, too.
    """
    y = snapshots.resolve_conj().movedim(-1, 1).flatten(2)  # [S, M, samples]
    modulus, parts = (
        torch.maximum(_piled_share(values.flatten(1, 2)[:, None]), _piled_share(values))
        for values in (y.abs()[..., None], torch.view_as_real(y).abs())
    )
    return torch.maximum(parts, torch.where(modulus < _MOST_LIMITED, modulus, 0))


def _piled_share(values: Float[Tensor, "S groups samples parts"]) -> Float[Tensor, "S"]:
    """Share of the samples at the largest value of their group, 0 where too few are to stand out."""
    largest = values.flatten(2).topk(min(2, values.shape[-2] * values.shape[-1])).values
    # Sound data of a high resolution have no equal ones.
    if largest.shape[-1] < 2 or not bool((largest[..., 1] >= (1 - _AT_LIMIT) * largest[..., 0]).any()):
        return values.new_zeros(len(values), dtype=torch.float64)
    ordered = values.flatten(2).sort(-1).values
    equal = ordered[..., 1:] <= (1 + _AT_LIMIT) * ordered[..., :-1]
    at_limit = values >= (1 - _AT_LIMIT) * ordered[..., -1:, None]
    more = at_limit.sum((-2, -1)) - 1  # beyond the first one
    quantised = (equal.sum(-1) - more).sum(-1) > _QUANTISED * equal[0].numel()
    # A single antenna has too few quantised values to tell.
    least = torch.where(quantised, _CLIPPED_QUANTISED if values.shape[1] == 1 else math.inf, _CLIPPED)
    following = ordered.gather(-1, (ordered.shape[-1] - 2 - more).clamp_min(0)[..., None])
    beside = ((ordered >= (1 - _AT_LIMIT) * following).sum(-1) - more - 2).clamp_min(0)
    more, beside = more.sum(-1), beside.sum(-1)
    at_limit &= (at_limit.sum((-2, -1), keepdim=True) > 1) & (ordered[..., -1:, None] > 0)
    share = at_limit.any(-1).double().mean((1, 2))
    return torch.where((more >= least) & (more > _PILED * beside), share, 0)


@dataclass(frozen=True, eq=False)
class Distortion(Batch):
    """One coefficient, beta or gamma, in each scene.

    The log-likelihood ratio of a coefficient c in a scene is :math:`2 Re(c^* z) - |c|^2 n`.
    """

    shown: Bool[Tensor, "S"]  # by the scene alone
    z: Complex[Tensor, "S"]  # b^H r over the noise variance
    n: Float[Tensor, "S"]  # |b|^2 over the noise variance

    def common(self) -> tuple[complex, float]:
        """The coefficient that is likeliest for all scenes together, and its log-likelihood ratio (nats)."""
        z, n = complex(self.z.sum()), float(self.n.sum())
        return (z / n, abs(z) ** 2 / n) if n > 0 else (0j, 0.0)

    def gain(self, coefficient: complex) -> Float[Tensor, "S"]:
        """Log-likelihood ratio (nats) of a coefficient in each scene."""
        return 2 * (coefficient.conjugate() * self.z).real - abs(coefficient) ** 2 * self.n


def distortions(recording: Recording, sources: Sources) -> tuple[Distortion, Distortion]:
    """I/Q imbalance and compression of the receiver, in stacked scenes of one frequency."""
    positions, active = unpack(sources, recording)
    S, L, M = recording.snapshots.shape
    D = residual_dimensions(active, L, M).clamp_min(1)
    gain, robust, norm = (positions.new_zeros(2, S) for _ in range(3))
    z = torch.zeros(2, S, dtype=torch.complex128, device=positions.device)
    for block in blocks(S, 64 * L * M * (active.shape[1] + 8), positions.device):
        part, at = recording[block], positions[block]
        A = steering(part.panel, at[..., 0], at[..., 1], 1 / at[..., 2]) * active[block, None]
        Q = orthonormal(part.link.to(torch.complex128).matmul(A))  # one for all snapshots, or one for each
        y = part.snapshots.to(torch.complex128)
        y = y.mT[:, None] if Q.shape[1] == 1 else y[..., None]
        rest = outside(Q, y)
        x = y - rest
        left = squared_modulus(rest).sum((1, 2, 3))
        power = squared_modulus(x)
        cubic = x * (power / power.mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny))
        for number, form in enumerate((x.conj(), cubic)):
            b = outside(Q, form)
            each = (b.conj() * rest).sum(2).flatten(1)  # z_l
            whole, size = each.sum(1), squared_modulus(b).sum((1, 2, 3))
            tiny = torch.finfo(size.dtype).tiny
            share = (squared_modulus(whole) / (size * left).clamp_min(tiny)).clamp(0, 1 - 1e-12)
            gain[number, block] = -D[block] * torch.log1p(-share)
            robust[number, block] = squared_modulus(whole) / squared_modulus(each).sum(1).clamp_min(tiny)
            variance = left * (1 - share) / D[block]
            z[number, block] = whole / variance.clamp_min(tiny)
            norm[number, block] = size / variance.clamp_min(tiny)
    if L == 1:  # one long snapshot
        robust = gain
    shown = (gain > _NATS) & (robust > _ROBUST_NATS) & active.any(-1)
    return Distortion(shown[0], z[0], norm[0]), Distortion(shown[1], z[1], norm[1])


def without_image(recording: Recording, beta: Complex[Tensor, "S"]) -> Recording:
    r"""The snapshots before an I/Q imbalance, :math:`x = (y - \beta y^*) / (1 - |\beta|^2)`."""
    y = recording.snapshots
    b = beta.view(-1, *(1,) * (y.ndim - 1))
    x = (y - b * y.conj()) / (1 - squared_modulus(b))
    return replace(recording, snapshots=x.to(y.dtype))
