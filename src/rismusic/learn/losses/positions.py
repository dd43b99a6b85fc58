"""How far the heads are from the true sources, as two sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

from rismusic.learn.losses.matching import assign
from rismusic.learn.prediction import Prediction
from rismusic.scene import Sources


@dataclass(frozen=True, eq=False)
class Matched:
    """Losses of each scene under the assignment of heads to sources that makes their weighted sum least.

    Args:
        partner: [S, K] the head that stands for each source, any of the rest where there is no source.
        angle: [S] see :func:`match_heads`.
        log_range: [S]
        existence: [S]
    """

    partner: Int64[Tensor, "S K"]
    angle: Float[Tensor, "S"]
    log_range: Float[Tensor, "S"]
    existence: Float[Tensor, "S"]


def match_heads(
    prediction: Prediction,
    truth: Sources,
    *,
    weights: tuple[float, float, float],
    angle_scale_deg: float,
    log_range_scale: float,
) -> Matched:
    r"""Errors of angles, log-range and existence between two sets.

    With the Huber function :math:`h(x) = x^2 / 2` up to 1, :math:`|x| - 1/2` beyond, head q for source k has

    .. math:: d^{angle}_{qk} = \frac12 \left[ h\!\left(\frac{\mathrm{wrap}(\hat\varphi_q - \varphi_k)}{s_a}
        \right) + h\!\left(\frac{\mathrm{wrap}(\hat\theta_q - \theta_k)}{s_a}\right) \right], \qquad
        d^{range}_{qk} = h\!\left(\frac{\log \hat q_q + \log r_k}{s_r}\right),

    whose gradient neither vanishes nor grows with a large error. Each is averaged over the K sources of a
    scene. Existence is the mean over the Q heads of :math:`\mathrm{softplus}(-e_q)` where head q stands for
    a source, :math:`\mathrm{softplus}(e_q)` where it does not. The assignment is the one for which

    .. math:: \sum_k \frac{w_a d^{angle}_{q_k k} + w_r d^{range}_{q_k k}}{K} - \frac{w_e\, e_{q_k}}{Q}

    is least. That is the weighted sum of the three losses up to what no assignment changes, because
    softplus(-e) - softplus(e) = -e: the heads are compared with the sources in the order that suits them
    best, and the loss is continuous where that order changes.

    Args:
        prediction: Q heads.
        truth: true sources, K_max at most Q.
        weights: w_a, w_r, w_e.
        angle_scale_deg: s_a, degrees.
        log_range_scale: s_r.
    """
    active = truth.active
    azimuth, elevation, distance = (value[:, None, :] for value in truth.filled())
    scale = math.radians(angle_scale_deg)
    angle = (
        _huber(_wrapped(prediction.azimuth[..., None] - azimuth) / scale)
        + _huber(_wrapped(prediction.elevation[..., None] - elevation) / scale)
    ) / 2
    log_range = _huber((prediction.inverse_range[..., None].log() + distance.log()) / log_range_scale)
    logits = prediction.existence_logits
    count = active.sum(-1).clamp_min(1)[:, None]
    by_angle, by_range, by_existence = weights
    cost = (by_angle * angle + by_range * log_range) / count[..., None]
    cost = cost - by_existence / logits.shape[-1] * logits[..., None]
    partner = assign(torch.where(active[:, None, :], cost.detach(), 0))
    exists = torch.zeros_like(logits, dtype=torch.bool).scatter(1, partner, active)
    return Matched(
        partner=partner,
        angle=_mean(angle, partner, active),
        log_range=_mean(log_range, partner, active),
        existence=softplus(torch.where(exists, -logits, logits)).mean(-1),
    )


def _mean(
    errors: Float[Tensor, "S Q K"], partner: Int64[Tensor, "S K"], active: Bool[Tensor, "S K"]
) -> Tensor:
    """Mean over a scene's sources of the errors of the heads that stand for them."""
    paired = errors.gather(1, partner[:, None, :])[:, 0]
    return torch.where(active, paired, 0).sum(-1) / active.sum(-1).clamp_min(1)


def _wrapped(angle: Tensor) -> Tensor:
    """The angle within -pi .. pi (radians)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _huber(x: Tensor) -> Tensor:
    return huber_loss(x, torch.zeros_like(x), reduction="none")
