r"""Snapshots of a panel that errs, with the errors' share made white.

Where element n responds with :math:`1 + e_n` in place of 1, snapshot l is

.. math:: y_l = G_l A s_l + G_l\, \mathrm{diag}(e)\, A s_l + n_l .

For errors of variance :math:`\epsilon^2` that do not depend on each other, and sources of mean powers p_k
whose steering vectors have entries of modulus :math:`1 / \sqrt N`, the last two terms have the covariance

.. math:: \Sigma = \sigma^2 I + \epsilon^2 \frac{\sum_k p_k}{N} H D H^H, \qquad D = \mathrm{diag}_n
    \Big( \frac 1 L \sum_l |c_{ln}|^2 \Big),

coloured like the field itself: where the channel is strong, so are the errors, and a fit that takes the
noise for white believes most in the outputs that err most. :math:`\sigma \Sigma^{-1/2}` in front of H and y
leaves white noise of variance :math:`\sigma^2`. (The errors stay the same over the snapshots, but the symbols
do not, so that their share is uncorrelated from one snapshot to the next.)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rismusic.estimate.noise import noise_of
from rismusic.recording import Recording


def whitened(recording: Recording, panel_error: float) -> Recording:
    r"""The same scenes through a channel behind which errors of the panel and noise are white together.

    A panel that is sampled directly (H = I) colours nothing and stays as it is.

    Args:
        recording: S scenes.
        panel_error: :math:`\epsilon`, root mean square of the relative error of an element's response.

    Returns:
        A recording with a channel of its own for each scene, [S, M, N], and the noise variance that it was
        whitened by, recorded or guessed.
    """
    noise = noise_of(recording).double()
    known = replace(recording, noise_variance=noise.to(recording.snapshots.real.dtype))
    if panel_error == 0 or recording.channel is None:
        return known
    link, y = recording.link.to(torch.complex128), recording.snapshots.to(torch.complex128)
    assert link.channel is not None
    H = link.channel
    reflected = 1.0 if link.codes is None else link.codes.abs().square().mean(dim=-2)[..., None, :]
    spread = (H * reflected) @ H.mH
    M = H.shape[-2]
    spread = spread * (M / spread.diagonal(dim1=-2, dim2=-1).real.sum(-1))[..., None, None]
    power = torch.view_as_real(y).square().sum(-1).mean(dim=(1, 2))
    # What noise does not explain is field and errors, 1 to epsilon^2.
    share = panel_error**2 / (1 + panel_error**2)
    level = share * (power / torch.where(noise > 0, noise, torch.inf) - 1).clamp_min(0)
    total = torch.eye(M, dtype=H.dtype, device=H.device) + level[:, None, None] * spread
    factor = torch.linalg.cholesky(total)
    channel = torch.linalg.solve_triangular(factor, H.expand(len(y), -1, -1), upper=False)
    snapshots = torch.linalg.solve_triangular(factor, y.mT, upper=False).mT.contiguous()
    dtype = recording.snapshots.dtype
    return replace(known, channel=channel.to(dtype), snapshots=snapshots.to(dtype))
