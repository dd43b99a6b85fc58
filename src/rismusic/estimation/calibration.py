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

Positions and the panel's own errors at once, from the snapshots of one scene.

Element n responds with :math:`1 + e_n` in place of 1, so that snapshot l is

.. math:: y_l = H\, \mathrm{diag}(c_l)\, \mathrm{diag}(1 + e)\, A(x)\, s_l + n_l .

Sources' coordinates x, symbols s and errors e are those of the greatest posterior density: s_kl is
:math:`CN(0, p_k)`, x is flat, and real and imaginary part of :math:`e_n` are two errors of different kinds,
of the gain and of the phase. Each is :math:`N(0, v_n)` with a variance of its own,
:math:`1 / v_n \sim \Gamma(a, b)`, so that the few elements that are dead or badly off do not make all others
suspect (Tipping, "Sparse Bayesian learning and the relevance vector machine", JMLR 1 (2001), whose fixed
point sets :math:`v_n = (b + e_n^2 / 2 + \mathrm{var}(e_n) / 2) / (a + 1/2)`). A dead element is off in gain
and not in phase: gains have the longer tail, a smaller a.

Each step is one of Gauss and Newton in all unknowns. With the sources' fields
:math:`C_l = H\, \mathrm{diag}(c_l)\, \mathrm{diag}(1 + e) A` [M, K] the symbols are eliminated within their
snapshot, then e [N] in all of them together: what is left are 3K equations of x, whose inverse is the
covariance of x with s and e unknown: an error bar that knows of the panel's errors. Products with the
derivative by e, :math:`J_l = H\, \mathrm{diag}(f_l)`, :math:`f_l = c_l \circ A s_l`, need no more than
:math:`H^H H`: :math:`\sum_l J_l^H J_l = H^H H \circ \sum_l \bar f_l f_l^T`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import by_inverse_range, steering_with_derivatives
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import pack, unpack
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording
from rismusic.memory import blocks
from rismusic.sources import Sources


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


# Most steps, and the share of an error bar that is worth no further one.
_STEPS, _SETTLED = 20, 0.02
# Shapes a of the distribution of an element's variance, of gain and phase: an element may be dead.
_SHAPES = (1.5, 10.0)
# Share of the errors' variance that differs from code to code or from source to source: it is noise.
_FLEETING = 0.3
# Coordinates whose effects differ by less than this (relative, squared) are one.
_RIDGE = 1e-13
_FIRST_DAMPING, _MOST_DAMPING = 1e-3, 1e6
# Elements that a panel may have: the equations of e are dense.
_ELEMENTS = 1024


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Sources and the responses of the elements, of S scenes.

    Args:
        sources: azimuth, elevation, range of up to K sources, NaN where there is none, [S, K].
        covariance: of the errors of azimuth (rad), elevation (rad) and range (m), responses and symbols
            unknown, [S, K, 3, 3]; NaN where there is no source.
        response: 1 + e, [S, N] complex.
        converged: [S].
    """

    sources: Sources
    covariance: Float[Tensor, "S K 3 3"]
    response: Complex[Tensor, "S N"]
    converged: Bool[Tensor, "S"]


def calibrate(recording: Recording, found: Sources, volume: Volume, *, panel_error: float) -> Calibrated:
    """Refine sources that were found, the panel's errors unknown.

    Args:
        recording: S scenes, as recorded; a noise variance that is not recorded is estimated.
        found: positions [S, K] with their mean powers, near those of a fit to snapshots that are
            :func:`~rismusic.estimation.calibration.whitened`; NaN where there is none.
        volume: the box that the sources stay in.
        panel_error: root mean square of the relative error of an element's response, positive.

    Raises:
        InputError: a panel of more than 1024 elements, or an error that is not positive.
    """
    N = recording.elements.shape[0]
    if not panel_error > 0:
        raise InputError("panel_error", "a positive number", f"{panel_error:g}")
    if N > _ELEMENTS:
        raise InputError("panel_error", f"0 for panels of more than {_ELEMENTS} elements", f"{N} elements")
    positions, active = unpack(found, recording)
    assert found.power is not None
    power = torch.where(active, found.power.double(), 1).clamp_min(torch.finfo(torch.float64).tiny)
    _, L, M = recording.snapshots.shape
    each = 16 * N * (12 * N + 3 * L * active.shape[1] + L + M)
    parts = []
    for block in blocks(len(recording), each, positions.device):
        fit = _Fit(recording[block], positions[block], active[block], power[block], volume, panel_error)
        parts.append(fit.settle())
    x, covariance, response, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    placed = pack(x, active)
    return Calibrated(
        replace(found, azimuth=placed.azimuth, elevation=placed.elevation, range=placed.range),
        covariance,
        response,
        converged,
    )


class _Fit:
    """The unknowns of a block of scenes, in units of the noise's standard deviation."""

    def __init__(
        self,
        recording: Recording,
        positions: Float[Tensor, "S K 3"],
        active: Bool[Tensor, "S K"],
        power: Float[Tensor, "S K"],
        volume: Volume,
        panel_error: float,
    ) -> None:
        lasting = panel_error**2 * (1 - _FLEETING)
        recording = whitened(recording, panel_error * _FLEETING**0.5)
        assert recording.noise_variance is not None
        self.panel, self.active, self.power = recording.panel, active, power
        self.link = recording.link.to(torch.complex128)
        self.H, self.codes = self.link.channel, self.link.codes
        self.y = recording.snapshots.to(torch.complex128)
        S, L, M = self.y.shape
        N = recording.elements.shape[0]
        eye = torch.eye(N, dtype=torch.complex128, device=self.y.device)
        self.HH = eye if self.H is None else self.H.mH @ self.H
        self.noise = recording.noise_variance.double().clamp_min(torch.finfo(torch.float64).tiny)
        self.low, self.high = (positions.new_tensor(limit) for limit in (volume.lower, volume.upper))
        self.x = torch.minimum(torch.maximum(positions, self.low), self.high)
        self.e = self.y.new_zeros(S, N)
        # Of real parts, then imaginary parts.
        self.variance = positions.new_full((S, 2 * N), lasting / 2)
        self.shape = positions.new_tensor(_SHAPES).repeat_interleave(N)
        self.rate = lasting / 2 * (self.shape - 1)
        self.s = self.y.new_zeros(S, L, active.shape[1])
        self.size = L * M

    def settle(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions, covariance of their errors, responses, and where the steps came to rest."""
        damping = torch.full_like(self.noise, _FIRST_DAMPING)
        # Symbols first: everything else is linear around them.
        self.s = self._symbols(self.x, self.e)
        value = self._value(self.x, self.s, self.e)
        converged = torch.zeros_like(damping, dtype=torch.bool)
        for _ in range(_STEPS):
            change = _Step(self, damping)
            x = torch.minimum(torch.maximum(self.x + change.x, self.low), self.high)
            s, e = self.s + change.s, self.e + change.e
            new = self._value(x, s, e)
            better = (new <= value) & ~converged
            damping = torch.where(better, damping / 5, damping * 10).clamp(1e-6, _MOST_DAMPING)
            self.x, self.s, self.e = (
                torch.where(better.reshape(-1, *[1] * (old.ndim - 1)), fresh, old)
                for fresh, old in ((x, self.x), (s, self.s), (e, self.e))
            )
            still = (change.x.abs() <= _SETTLED * change.std).flatten(1).all(-1)
            converged = converged | (better & still) | (damping >= _MOST_DAMPING)
            self._levels(change, ~converged)
            if bool(converged.all()):
                break
            value = self._value(self.x, self.s, self.e)
        last = _Step(self, torch.zeros_like(damping))
        return self.x, last.covariance, 1 + self.e, converged

    def model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A [S, N, K] and its derivatives by azimuth, elevation, 1/range [S, N, K, 3]; 0 in empty places."""
        azimuth, elevation, q = x.unbind(-1)
        A, D = steering_with_derivatives(self.panel, azimuth, elevation, 1 / q)
        there = self.active[:, None]
        return A * there, D * (by_inverse_range(q)[:, None] * there[..., None])

    def _symbols(self, x: Tensor, e: Tensor) -> Tensor:
        C = self.link.matmul((1 + e)[..., None] * self.model(x)[0])
        inner = C.mH @ C + torch.diag_embed(self.noise[:, None] / self.power).unsqueeze(-3)
        return torch.linalg.solve(inner, C.mH @ self.y[..., None])[..., 0]

    def _value(self, x: Tensor, s: Tensor, e: Tensor) -> Float[Tensor, "S"]:
        """Minus the logarithm of the density, variances held."""
        return (
            self._left(x, s, e) / self.noise
            + (_squared(s) / self.power[:, None]).sum((1, 2))
            + (_parts(e).square() / (2 * self.variance)).sum(-1)
        )

    def _left(self, x: Tensor, s: Tensor, e: Tensor) -> Float[Tensor, "S"]:
        """Energy of the snapshots that is not explained."""
        f = ((1 + e)[..., None] * self.model(x)[0]) @ s.mT  # [S, N, L]
        return _squared(self.y - self.link.apply(f.mT)).sum((1, 2))

    def _levels(self, step: _Step, live: Bool[Tensor, "S"]) -> None:
        """The errors' variances and the noise's, from what the step leaves unknown."""
        spread = step.spread()
        energy = (_parts(self.e).square() + spread) / 2
        fresh = (self.rate + energy) / (self.shape + 0.5)
        known = (1 - spread / self.variance).clamp(0, 1).sum(-1) / 2
        L = self.y.shape[1]
        count = self.active.sum(-1)
        freedom = (self.size - L * count - 1.5 * count - known).clamp_min(0.1 * self.size)
        noise = self._left(self.x, self.s, self.e) / freedom
        self.variance = torch.where(live[:, None], fresh, self.variance)
        self.noise = torch.where(live & (noise > 0), noise, self.noise)


class _Step:
    """One step of Gauss and Newton; see the head of this module."""

    def __init__(self, at: _Fit, damping: Float[Tensor, "S"]) -> None:
        A, D = at.model(at.x)
        N, K = A.shape[1:]
        L = at.y.shape[1]
        noise = at.noise[:, None, None]
        response = (1 + at.e)[..., None]
        f = (A @ at.s.mT).mT  # [S, L, N]
        P = f if at.codes is None else f * at.codes
        C = at.link.matmul(response * A).expand(-1, L, -1, -1)
        B = at.link.matmul(response * D.flatten(2)).unflatten(-1, (K, 3))
        B = (B * at.s[:, :, None, :, None]).flatten(-2)  # [S, L, M, 3K]
        rest = at.y - (C @ at.s[..., None])[..., 0]

        def by_error(columns: Tensor) -> Tensor:
            """J_l^H of columns at the receiver, as rows: [S, L, *, N]."""
            back = columns.mH if at.H is None else columns.mH @ at.H.unsqueeze(-3)
            return back * P.unsqueeze(-2)

        # In units of the noise; the symbols leave first, each snapshot for itself.
        inner = C.mH @ C + torch.diag_embed(at.noise[:, None] / at.power).unsqueeze(-3)
        factor = torch.linalg.cholesky(inner)
        right = torch.cat((B, rest[..., None]), dim=-1)
        Cr = C.mH @ right
        Cr[..., -1] -= at.noise[:, None, None] / at.power[:, None] * at.s
        across = by_error(C)  # C_l^H J_l, [S, L, K, N]
        white = torch.linalg.solve_triangular(factor, torch.cat((across, Cr), dim=-1), upper=False)
        E, T = white[..., :N].flatten(1, 2), white[..., N:].flatten(1, 2)
        Q = at.HH * (P.mH @ P) - E.mH @ E
        Jr = by_error(right).conj().sum(1).mT  # sum_l J_l^H right, [S, N, 3K + 1]
        Jr = Jr - E.mH @ T
        # Real and imaginary part of e are unknowns of their own from here on, as the coordinates are.
        stiff = at.noise[:, None] / (2 * at.variance)
        Q = torch.cat((torch.cat((Q.real, -Q.imag), dim=-1), torch.cat((Q.imag, Q.real), dim=-1)), dim=-2)
        Jr = torch.cat((Jr.real, Jr.imag), dim=-2)
        Jr[..., -1] -= stiff * _parts(at.e)
        self._factor = torch.linalg.cholesky(Q + torch.diag_embed(stiff))
        self._noise = at.noise
        solved = torch.cholesky_solve(Jr, self._factor)
        whole = ((right.mH @ right).sum(1) - T.mH @ T).real - Jr.mT @ solved
        F, pull = whole[:, :-1, :-1], whole[:, :-1, -1]
        diagonal = F.diagonal(dim1=-2, dim2=-1)
        # Empty places, and sources of which the data say nothing.
        seen = diagonal > torch.finfo(F.dtype).tiny
        scale = torch.where(seen, diagonal.clamp_min(torch.finfo(F.dtype).tiny).rsqrt(), 0)
        unit = F * scale[:, :, None] * scale[:, None, :]
        ridge = torch.where(seen, _RIDGE, 1.0)
        damped = torch.linalg.cholesky_ex(unit + torch.diag_embed(ridge + damping[:, None])).L
        dx = scale[..., None] * torch.cholesky_solve((scale * pull)[..., None], damped)
        self.x = dx[..., 0].unflatten(-1, (K, 3))
        one = torch.cat((-dx, torch.ones_like(dx[:, :1])), dim=1)
        self.e = torch.complex(*(solved @ one)[..., 0].chunk(2, dim=-1))
        remains = white[..., N:] @ one[:, None].to(E.dtype) - white[..., :N] @ self.e[:, None, :, None]
        self.s = torch.linalg.solve_triangular(factor.mH, remains, upper=True)[..., 0]
        eye = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
        free, failed = torch.linalg.cholesky_ex(unit + torch.diag_embed(ridge))
        seen = seen & (failed == 0)[:, None]
        bound = torch.cholesky_inverse(torch.where((failed == 0)[:, None, None], free, eye))
        bound = bound * scale[:, :, None] * scale[:, None, :] * (noise / 2)
        bound = bound + torch.diag_embed(torch.where(seen, 0.0, torch.inf))
        bound = bound.unflatten(-1, (K, 3)).unflatten(-3, (K, 3)).diagonal(dim1=-4, dim2=-2).movedim(-1, 1)
        turn = by_inverse_range(at.x[..., 2])
        self.std = torch.where(at.active[..., None], bound.diagonal(dim1=-2, dim2=-1).sqrt(), torch.inf)
        there = at.active[..., None, None]
        self.covariance = torch.where(there, bound * turn[..., None] * turn[..., None, :], torch.nan)

    def spread(self) -> Float[Tensor, "S _"]:
        """Variance that is left of real and imaginary part of e, the coordinates held, [S, 2N]."""
        inverse = torch.cholesky_inverse(self._factor)
        return inverse.diagonal(dim1=-2, dim2=-1) * self._noise[:, None] / 2


def _parts(value: Complex[Tensor, "S N"]) -> Float[Tensor, "S _"]:
    """Real parts, then imaginary parts, [S, 2N]."""
    return torch.cat((value.real, value.imag), dim=-1)


def _squared(value: Tensor) -> Tensor:
    return torch.view_as_real(value).square().sum(-1)
