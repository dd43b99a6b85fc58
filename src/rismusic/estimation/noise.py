r"""Noise variance estimates, and how many sources the data can identify."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.array import to_db
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.io import Recording

_STEPS = 30  # iterations of the fixed point. Its result is an initial value, not the final estimate.
_NOTHING = 1e-30  # squared singular values below this share of the largest are rounding


OTHER_SYMBOLS = "If the symbols are constant or known, state it in the recording or with --symbols"
"""What to do where no source with new symbols in every snapshot can be identified."""


def most_sources(recording: Recording, volume: Volume | None) -> int:
    r"""Largest number of sources that L snapshots of M outputs identify: fewer unknowns than real numbers.

    Real numbers: 2 L M. Unknowns: 2 L K of the symbols, D K coordinates, the noise variance. The D
    :meth:`~rismusic.estimation.grid.Volume.coordinates` of a source are three, or two for a line, and none
    without a volume, for known positions.
    """
    _, L, M = recording.snapshots.shape
    return (2 * L * M - 2) // (2 * L + (0 if volume is None else volume.coordinates(recording.panel)))


def check_fit(recording: Recording, count: Int64[Tensor, "S"], volume: Volume | None) -> None:
    """Check that stacked scenes can be fitted with these numbers of sources.

    Raises:
        InputError: no scene, snapshots that are not finite, a noise variance that is not positive, numbers of
            sources that are negative, not whole, more than the data can carry, or not one for each scene.
    """
    _, L, M = recording.snapshots.shape
    if len(recording) == 0:
        raise InputError("snapshots", "there is no scene")
    if not torch.isfinite(torch.view_as_real(recording.snapshots)).all():
        raise InputError("snapshots", "values must be finite; there is a NaN or an infinity")
    noise = recording.noise_variance
    if noise is not None and not ((noise > 0) & noise.isfinite()).all():
        raise InputError(
            "noise_variance", "values must be positive and finite; leave the field out if unknown"
        )
    if len(count) != len(recording):
        raise InputError("sources", f"give one number per scene ({len(recording)}); got {len(count)}")
    if count.is_floating_point() or count.is_complex():
        raise InputError("sources", f"must be whole numbers; got a tensor of {count.dtype}")
    if int(count.min()) < 0:
        raise InputError("sources", f"must not be negative; got {int(count.min())}")
    most = most_sources(recording, volume)
    if int(count.max()) > most:
        hint = "" if most else f". {OTHER_SYMBOLS}"
        raise InputError(
            "sources",
            f"L = {L} snapshots of M = {M} antennas identify at most {most} sources; got "
            f"{int(count.max())}{hint}",
        )


def noise_from_fit(
    cost: Float[Tensor, "S"],
    count: Int64[Tensor, "S"],
    coordinates: Int64[Tensor, "S"],
    snapshots: int,
    outputs: int,
) -> Float[Tensor, "S"]:
    r"""Noise variance from the cost :math:`f = \sum_l |P^\perp_{C_l} y_l|^2` that a fit of K sources left.

    .. math:: \hat\sigma^2 = \frac{f}{L M - L K - C / 2}

    The K symbols of each snapshot take one complex degree of freedom each, a fitted coordinate half of one. C
    counts those of all sources (:meth:`~rismusic.estimation.grid.Volume.free_coordinates`).
    """
    return cost / (snapshots * (outputs - count) - coordinates / 2)


def guess_noise(recording: Recording) -> Float[Tensor, "S"]:
    r"""A first noise variance before anything is fitted, from how the receiver's outputs are coloured.

    A field that comes from everywhere, :math:`E[x x^H] = \rho I` on the panel, reaches the receiver with
    covariance :math:`\rho\, G_l G_l^H`, while noise is white. The two levels are fitted by maximum likelihood
    to :math:`y_l \sim CN(0, \rho\, G_l G_l^H + \sigma^2 I)`, with the multiplicative fixed point of
    Sun, Babu and Palomar, "Robust estimation of structured covariance matrix for heavy-tailed elliptical
    distributions", IEEE Trans. SP 64 (2016). Sources are few, not everywhere, and take the colour of the
    weak directions less evenly than a diffuse field; the guess errs by a few dB at high SNR.

    Where the link does not colour (direct sampling, or one output), the lower half of the snapshots' singular
    values that are not 0 is taken for noise; fewer than four of them leave half of the energy. The result is
    positive unless the snapshots are zero.
    """
    data = recording.snapshots.to(torch.complex128)
    link = recording.link
    if link.coherent:
        data, link = link.separate(data)
    _, L, M = data.shape
    power = torch.view_as_real(data).square().sum(-1).mean(dim=(1, 2))
    if link.channel is None or M == 1:
        values = torch.linalg.svdvals(data).square() / max(L, M)
        # Snapshots or outputs that are zero, or repeated, hold no noise of their own.
        rank = (values > _NOTHING * values[:, :1]).sum(1, keepdim=True)
        place = torch.arange(min(L, M), device=values.device)
        lower = (place >= rank // 2) & (place < rank)
        mean = torch.where(lower, values, 0).sum(1) / lower.sum(1).clamp_min(1)
        return torch.where(rank[:, 0] < 4, power / 2, mean)
    # |c_n| is the same for all n up to hardware; H diag(|c|^2) H^H is taken with its mean.
    H = link.channel.to(torch.complex128)
    if link.subcarriers > 1:
        H = H[..., link.subcarriers // 2, :, :]
    level, basis = torch.linalg.eigh(H @ H.mH / H.shape[-1])
    turned = torch.view_as_real(data @ basis.conj()).square().sum(-1).mean(dim=1)  # [S, M]
    level = (level.clamp_min(0) / level.mean(dim=-1, keepdim=True)).expand_as(turned)
    silent = power <= 0
    turned = torch.where(silent[:, None], 1, turned)[:, None]  # [S, 1, M]
    # Rows of noise and of the diffuse field, [S, 2, M], and their powers, [S, 1, 2].
    rows = torch.stack((torch.ones_like(level), level), dim=1)
    powers = torch.where(silent, 1, power / 2)[:, None, None].expand(-1, 1, 2)
    columns = rows.mT
    for _ in range(_STEPS):
        inverse = powers.bmm(rows).reciprocal_()
        # Sums of turned / R^2 and of 1 / R over the outputs, for both levels.
        sums = torch.cat((turned * inverse * inverse, inverse), dim=1).bmm(columns)
        powers = powers * (sums[:, :1] / sums[:, 1:]).sqrt_()
    return torch.where(silent, 0, powers[:, 0, 0])


def noise_of(recording: Recording) -> Float[Tensor, "S"]:
    """The recorded noise variance of each scene, or :func:`guess_noise` where there is none."""
    noise = recording.noise_variance
    return guess_noise(recording) if noise is None else noise


def snr_db(recording: Recording) -> Float[Tensor, "S"]:
    """SNR of each scene in dB, with the recorded noise variance or a guess."""
    noise = noise_of(recording).double()
    power = torch.view_as_real(recording.snapshots).square().sum(-1).mean((1, 2)).double()
    return to_db((power / noise - 1).clamp_min(torch.finfo(torch.float64).tiny))
