"""R_samp: what the snapshots themselves say of the field on the panel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance.build import Conditioning, finish
from rismusic.covariance.lowrank import Covariance, energy
from rismusic.errors import InputError
from rismusic.link import Link
from rismusic.recording import Recording

IDENTITY_MAX = 0.25
"""Largest share of the trace that loading and shrinkage together may give to the identity."""


@dataclass(frozen=True, eq=False)
class BackProjection:
    """The field on the panel that explains the snapshots, and how much of it is noise.

    Args:
        field: x_l, [..., L, N].
        noise_share: [...] share of its mean energy that receiver noise put there, 0 to 1.
        coverage: M / N, at most 1: the share of a wave's energy that one snapshot can bring back.
    """

    field: Complex[Tensor, "*batch L N"]
    noise_share: Float[Tensor, "*batch"]
    coverage: float

    def covariance(self) -> Covariance:
        """(1/L) sum_l x_l x_l^H. The mean is not taken out: the sources' waves have none to begin with."""
        L = self.field.shape[-2]
        factor = self.field.mT / L**0.5
        return Covariance(factor, torch.zeros_like(self.noise_share))


def back_project(
    link: Link,
    snapshots: Complex[Tensor, "*batch L M"],
    noise_variance: Float[Tensor, "*batch"],
) -> BackProjection:
    r"""The snapshots carried back through the link, regularised by the noise.

    .. math:: x_l = G_l^H (G_l G_l^H + \lambda I)^{-1} y_l, \qquad
        \lambda = \sigma^2 / \sigma_x^2, \quad
        \sigma_x^2 = \left( \overline{|y|^2} - \sigma^2 \right) / \overline{g}

    the linear minimum mean square error estimate of a field that is white with power :math:`\sigma_x^2` per
    element before anything is known of the sources (Kay, *Estimation Theory*, section 12.5);
    :math:`\overline g` is the mean of :math:`\mathrm{tr}(G_l G_l^H) / M`. Only M x M systems are solved; for
    direct sampling it is :math:`y_l / (1 + \lambda)`.

    Args:
        link: G_l, for all scenes or one for each.
        snapshots: y, [..., L, M].
        noise_variance: sigma^2 of each scene, [...].

    Raises:
        InputError: a noise variance that is negative; snapshots that do not fit the link.
    """
    _check(link, snapshots, noise_variance)
    L, M = snapshots.shape[-2:]
    noise = noise_variance.to(snapshots.real.dtype)
    received = energy(snapshots).mean((-2, -1))
    # The mean of L M noise samples is known no better than to this part of itself.
    excess = torch.maximum(received - noise, noise / (L * M) ** 0.5)
    rounding = 10 * M * torch.finfo(noise.dtype).eps
    to_signal = torch.where(excess > 0, noise / torch.where(excess > 0, excess, 1), 0).clamp_min(rounding)
    if link.channel is None:
        gain = torch.ones_like(noise)[..., None, None] if link.codes is None else energy(link.codes)
        ridge = (to_signal * gain.mean((-2, -1)))[..., None, None]
        weighted = snapshots / (gain + ridge)
        through = (gain / (gain + ridge).square()).mean(-2).sum(-1) * (M if link.codes is None else 1)
    else:
        gram = _gram(link)
        mean_gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((-2, -1))
        ridge = to_signal * mean_gain
        identity = torch.eye(M, dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(gram + ridge[..., None, None, None] * identity)
        # One system for all snapshots where the codes' moduli are the same in all of them.
        weighted = (
            (inverse @ snapshots[..., None])[..., 0]
            if inverse.shape[-3] > 1
            else (snapshots @ inverse[..., 0, :, :].mT)
        )
        diagonal = inverse.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        through = (diagonal - ridge[..., None] * energy(inverse).sum((-2, -1))).mean(-1)
    field = link.adjoint(weighted)
    total = energy(field).sum(-1).mean(-1)
    share = torch.where(total > 0, noise * through / torch.where(total > 0, total, 1), 1)
    return BackProjection(field, share.clamp(0, 1), min(1.0, M / field.shape[-1]))


def conditioning(projected: BackProjection, *, oracle: bool = False) -> Conditioning:
    r"""Loading and shrinkage that the noise in R_samp asks for.

    The loading is the noise that is there already, :math:`\epsilon = \nu`, the noise's share of the energy.
    The shrinkage towards I / N is the one of least mean square error (Ledoit and Wolf, J. Multivar. Anal. 88
    (2004); Chen et al., IEEE Trans. SP 58 (2010), for Gaussian snapshots),

    .. math:: \rho = \frac{e}{e + d}, \qquad
        d = \max\left( |R|_F^2 - \frac1L - \frac1N, \frac{(1 - \nu)^2 \kappa^2}{L} \right),

    d the energy of what stands out of the identity, in R_samp of trace 1 (:math:`\kappa` the coverage; the
    least value is that of L equal sources), and e that of the error: 1 / L in all, of which
    :math:`\nu (2 - \nu) / L` is the noise's.

    With M of N dimensions seen at a time, the least error is reached when nearly all of R_samp is given to
    the identity. That is right for a search by MVDR (``oracle``), and wrong for a matrix to be learned from
    or compared, where the identity would hide the rest. There only the noise's error counts, and loading
    and shrinkage together stop at a quarter of the trace (``IDENTITY_MAX``).

    Args:
        projected: the snapshots on the panel.
        oracle: whether to take the shrinkage of least error, without the limit; there is no loading then.
    """
    noise, L, N = projected.noise_share, *projected.field.shape[-2:]
    factor = projected.covariance().normalised().factor
    gram = factor.mH @ factor if L <= N else factor @ factor.mH
    least = ((1 - noise) * projected.coverage).square() / L
    stands_out = torch.maximum(energy(gram).sum((-2, -1)) - 1 / L - 1 / N, least)
    error = torch.full_like(noise, 1 / L) if oracle else noise * (2 - noise) / L
    shrinkage = error / (error + stands_out)
    if oracle:
        return Conditioning(torch.zeros_like(noise), shrinkage)
    loading = noise.clamp_max(IDENTITY_MAX / (1 - IDENTITY_MAX))
    return Conditioning(loading, torch.minimum(shrinkage, 1 - (1 - IDENTITY_MAX) * (1 + loading)))


def sample_covariance(
    link: Link,
    snapshots: Complex[Tensor, "*batch L M"],
    noise_variance: Float[Tensor, "*batch"],
    *,
    oracle: bool = False,
) -> tuple[Covariance, Conditioning]:
    """R_samp of trace 1 from the snapshots, and the conditioning that its noise asks for.

    Args:
        link: see :func:`back_project`.
        snapshots: see :func:`back_project`.
        noise_variance: see :func:`back_project`.
        oracle: see :func:`conditioning`.

    Returns:
        R_samp of rank L at most, not yet finished, and what to finish it with (alone, or blended).
    """
    return projected_covariance(back_project(link, snapshots, noise_variance), oracle=oracle)


def projected_covariance(
    projected: BackProjection, *, oracle: bool = False
) -> tuple[Covariance, Conditioning]:
    """:func:`sample_covariance` of snapshots that were carried back already."""
    return projected.covariance().normalised(), conditioning(projected, oracle=oracle)


def recording_covariance(
    recording: Recording,
    noise_variance: Float[Tensor, "S"] | None = None,
    *,
    oracle: bool = False,
) -> Covariance:
    """R_samp of each scene of a recording, finished: trace 1, loaded, shrunk.

    Args:
        recording: S scenes.
        noise_variance: sigma^2 of each scene; that of the recording where none is given.
        oracle: see :func:`conditioning`.

    Raises:
        InputError: neither gives the noise variance.
    """
    noise = recording.noise_variance if noise_variance is None else noise_variance
    if noise is None:
        raise InputError("noise_variance", "a noise variance (the recording has none)", "none")
    return finish(*sample_covariance(recording.link, recording.snapshots, noise, oracle=oracle))


def _gram(link: Link) -> Tensor:
    """G_l G_l^H, [..., L or 1, M, M]; one for all snapshots where the codes have the same moduli in each."""
    assert link.channel is not None
    channel = link.channel[..., None, :, :]
    if link.codes is None:
        return channel @ channel.mH
    weight = energy(link.codes)
    mean = weight.mean(-2, keepdim=True)
    if (weight - mean).abs().amax() <= 1e-5 * mean.amax():
        weight = mean
    return (channel * weight[..., None, :]) @ channel.mH


def _check(link: Link, snapshots: Tensor, noise_variance: Tensor) -> None:
    if not (torch.isfinite(noise_variance) & (noise_variance >= 0)).all():
        raise InputError("noise_variance", "finite values, not negative", f"{float(noise_variance.min()):g}")
    L, M = snapshots.shape[-2:]
    antennas = None if link.channel is None else link.channel.shape[-2]
    if antennas is None and link.codes is not None:
        antennas = link.codes.shape[-1]
    if antennas not in (None, M):
        raise InputError("snapshots", f"M = {antennas} as in the link", str(M))
    if link.codes is not None and link.codes.shape[-2] not in (1, L):
        raise InputError("snapshots", f"L = {link.codes.shape[-2]} as in the link", str(L))
