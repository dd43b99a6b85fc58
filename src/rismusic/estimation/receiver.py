r"""What a receiver that is not linear leaves in the snapshots: clipping, I/Q imbalance, compression.

**Clipping.** Clipped samples pile up at one value, which shows in the snapshots themselves.

**I/Q imbalance** adds the complex conjugate of the signal, **compression** takes off a part that grows with
the power. With the signal x at the receiver and its mean power P,

.. math:: y = x + \beta x^* + \gamma \frac{|x|^2}{P} x + n.

To a panel that is sampled directly, the conjugate looks like sources in mirrored directions, and products
of two sources look like further ones. Both are therefore tested beside fewer sources than were found. With
the fields of the strongest k sources, :math:`\hat x` and r are what these explain and leave of the snapshots,
b is the part of :math:`\hat x^*` or of :math:`|\hat x|^2 \hat x / P` outside the fields, and

.. math:: z = b^H r, \qquad g_k = -D \log\left( 1 - \frac{|z|^2}{|b|^2 |r|^2} \right)

is the log-likelihood ratio (nats) of the coefficient :math:`z / |b|^2`. D is the number of complex
dimensions of r. Without such an error :math:`g_k` has an exponential distribution of mean 1. What another
error leaves has a random phase in each snapshot, so that :math:`|\sum_l z_l|^2 / \sum_l |z_l|^2` has this
distribution, too. Both have to be large, and the coefficient has to explain at least half of what all sources
beyond the k-th explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering
from rismusic.batch import Batch
from rismusic.devices import blocks
from rismusic.estimation.calibration import squared_modulus
from rismusic.estimation.goodness_of_fit import orthonormal, outside
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.io import Recording
from rismusic.sources import Sources

# Values this near to each other are equal. Where a receiver clips, at least so many equal the largest one
# beyond the first of each group (more in data of a converter with few bits, in which a share of all values
# have equal ones), and more than so many times those that equal the next value.
_AT_LIMIT, _CLIPPED, _CLIPPED_QUANTISED, _QUANTISED, _PILED = 1e-6, 3, 8, 0.01, 4
_MOST_LIMITED = 0.5  # larger shares at one modulus are those of a source without noise
_FEWER = 3  # weakest sources that may be products of a receiver that is not linear
# Log-likelihood ratio (nats), which one in 8000 sound scenes has, and its robust form.
_NATS, _ROBUST_NATS = 9.0, 5.0
_EXPLAINED = 0.5
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
    count = active.sum(-1)
    S, most = active.shape
    # The strongest k sources, which come in order of power: all of them, and up to some fewer.
    fewer = torch.arange(_FEWER + 1, device=count.device)
    kept = count[:, None] - fewer
    scene, column = (kept >= 1).nonzero().unbind(-1)
    shape = (2, S, _FEWER + 1)
    gain, robust, norm = (positions.new_zeros(shape) for _ in range(3))
    z = torch.zeros(shape, dtype=torch.complex128, device=positions.device)
    energy = positions.new_full((S, _FEWER + 1), math.inf)
    _, L, M = recording.snapshots.shape
    D = (L * (M - kept) - 1.5 * kept).clamp_min(1).double()
    for block in blocks(len(scene), 64 * L * M * (most + 8), positions.device):
        rows, which = scene[block], column[block]
        there = torch.arange(most, device=count.device) < kept[rows, which][:, None]
        part, at = recording[rows], positions[rows]
        A = steering(part.panel, at[..., 0], at[..., 1], 1 / at[..., 2]) * there[:, None]
        Q = orthonormal(part.link.to(torch.complex128).matmul(A))  # one for all snapshots, or one for each
        y = part.snapshots.to(torch.complex128)
        y = y.mT[:, None] if Q.shape[1] == 1 else y[..., None]
        rest = outside(Q, y)
        x = y - rest
        left = squared_modulus(rest).sum((1, 2, 3))
        energy[rows, which] = left
        power = squared_modulus(x)
        cubic = x * (power / power.mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny))
        for number, form in enumerate((x.conj(), cubic)):
            b = outside(Q, form)
            each = (b.conj() * rest).sum(2).flatten(1)  # z_l
            whole, size = each.sum(1), squared_modulus(b).sum((1, 2, 3))
            tiny = torch.finfo(size.dtype).tiny
            share = (squared_modulus(whole) / (size * left).clamp_min(tiny)).clamp(0, 1 - 1e-12)
            at_k = number, rows, which
            gain[at_k] = -D[rows, which] * torch.log1p(-share)
            robust[at_k] = squared_modulus(whole) / squared_modulus(each).sum(1).clamp_min(tiny)
            variance = left * (1 - share) / D[rows, which]
            z[at_k], norm[at_k] = whole / variance.clamp_min(tiny), size / variance.clamp_min(tiny)
    # What the sources beyond the k-th explain (nats).
    level = D * (energy / D).log()
    others = level - level[:, :1]
    if L == 1:  # one long snapshot
        robust = gain
    shown = (gain > _NATS) & (robust > _ROBUST_NATS) & (gain > _EXPLAINED * others)
    # The fewest sources beside which it shows.
    last = (shown * (fewer + 1)).argmax(-1, keepdim=True)
    found = []
    for number in range(2):
        pick = last[number]
        found.append(
            Distortion(
                shown[number].any(-1), z[number].gather(1, pick)[:, 0], norm[number].gather(1, pick)[:, 0]
            )
        )
    return found[0], found[1]


def without_image(recording: Recording, beta: Complex[Tensor, "S"]) -> Recording:
    r"""The snapshots before an I/Q imbalance, :math:`x = (y - \beta y^*) / (1 - |\beta|^2)`."""
    y = recording.snapshots
    b = beta.view(-1, *(1,) * (y.ndim - 1))
    x = (y - b * y.conj().resolve_conj()) / (1 - squared_modulus(b))
    return replace(recording, snapshots=x.to(y.dtype))
