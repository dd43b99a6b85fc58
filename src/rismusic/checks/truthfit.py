r"""Detect wrong conventions in recordings with truth: the true sources fit better with the mistake undone.

With :math:`C_l = G_l A` the fields of the true sources, the log-likelihood ratio of a changed against the
recorded form is, symbols and noise variance being unknown, :math:`L (M - K) \log(U_0 / U_1)`, U the
:func:`unexplained_share`.

Chance: two forms that are both wrong explain of white noise the energies in two K-dimensional subspaces of
each snapshot. Their difference has variance :math:`2 L K \sigma^4` in a scene, the log-likelihood ratio
therefore :math:`2 L K`, and :math:`5.5 \sqrt{2 L \sum K}` nats are reached once in 10^7 changes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.checks.conventions import CHANGES, Evidence, WrongConvention, applicable, best_change
from rismusic.estimation.likelihood import conditional_cost, sufficient_statistics
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.io import Recording
from rismusic.sources import Sources

_DEVIATIONS = 5.5


def unexplained_share(recording: Recording, sources: Sources) -> Float[Tensor, "S"]:
    r"""Share of each scene's energy outside the span of the sources, [S]; 1 / (1 + SNR) for the true ones.

    :math:`\frac{M}{M - K} \sum_l |P^\perp_{G_l A} y_l|^2 / \sum_l |y_l|^2`; 0 where K >= M leaves nothing.

    Args:
        recording: snapshots and link.
        sources: sources of each scene, [S, K_max].
    """
    at = sufficient_statistics(recording, *unpack(sources, recording))
    M, K = recording.snapshots.shape[-1], sources.active.sum(-1)
    share = conditional_cost(at) / at.energy.sum(1) * M / (M - K).clamp_min(1)
    return torch.where(K < M, share, 0)


def log_likelihood_ratios(recording: Recording) -> dict[str, Float[Tensor, "S"]]:
    """Log-likelihood ratio of each changed convention against the recorded one, per scene, in nats.

    Large and negative for a correct recording. The changes are those of
    :data:`~rismusic.checks.conventions.CHANGES` that apply.

    Args:
        recording: with its truth.
    """
    truth = recording.truth
    assert truth is not None
    _, L, M = recording.snapshots.shape
    freedom = L * (M - truth.active.sum(-1)).clamp_min(0)
    recorded = unexplained_share(recording, truth)
    ratios = {}
    for change, changed in applicable(replace(recording, noise_variance=None)):
        assert changed.truth is not None
        other = unexplained_share(changed, changed.truth)
        # With K >= M sources any data are explained, which is no evidence.
        usable = (recorded > 0) & (other > 0)
        share = torch.where(usable, recorded / torch.where(usable, other, 1), 1)
        ratios[change.name] = freedom * share.log()
    return ratios


class TruthFit:
    """Evidence from the true sources, accumulated block by block."""

    def __init__(self) -> None:
        self.scenes = 0
        """Number of scenes so far."""
        self._ratio: dict[str, float] = {}
        self._improved: dict[str, int] = {}
        self._left: dict[str, float] = {}
        self._variance = 0.0
        self._signal = self._signal_variance = 0.0

    def add(self, recording: Recording) -> None:
        """Add scenes."""
        truth = recording.truth
        assert truth is not None
        _, L, M = recording.snapshots.shape
        count = truth.active.sum(-1)
        self.scenes += len(recording)
        self._variance += 2 * L * float(count.sum())
        share = unexplained_share(recording, truth)
        power = torch.view_as_real(recording.snapshots).double().square().sum(-1).mean((1, 2))
        # Without a noise variance all power counts as noise, and nothing can be left of a signal.
        noise = power if recording.noise_variance is None else recording.noise_variance.double()
        self._signal += float((power - noise).sum())
        self._signal_variance += float(noise.square().sum()) / (L * M)
        self._add("", share * power - noise, torch.zeros_like(share))
        for name, ratio in log_likelihood_ratios(recording).items():
            gain = torch.exp(-ratio / (L * (M - count)).clamp_min(1))
            self._add(name, share * gain * power - noise, ratio)

    def _add(self, name: str, left: Float[Tensor, "S"], ratio: Float[Tensor, "S"]) -> None:
        self._left[name] = self._left.get(name, 0.0) + float(left.sum())
        self._ratio[name] = self._ratio.get(name, 0.0) + float(ratio.sum())
        self._improved[name] = self._improved.get(name, 0) + int((ratio > 0).sum())

    @property
    def residual_energy(self) -> float:
        """Share of the signal power that the true sources leave unexplained in the recorded form."""
        return self._share("") if self.scenes else 0.0

    def wrong_convention(self) -> WrongConvention | None:
        """The wrong convention for which the evidence is strong enough, or none."""
        evidence = [
            Evidence(change, self._ratio[name], self._improved[name] / self.scenes, self._share(name))
            for change in CHANGES
            if (name := change.name) in self._ratio
        ]
        return best_change(evidence, _DEVIATIONS * math.sqrt(self._variance))

    def _share(self, name: str) -> float:
        """Share of the signal power left unexplained; 0 if the signal does not stand out from the noise."""
        significant = self._signal > _DEVIATIONS * math.sqrt(self._signal_variance)
        return self._left[name] / self._signal if significant else 0.0
