r"""Hardware impairments: whitening of their share of the noise, and joint calibration with the sources.

Element n responds with :math:`1 + e_n` instead of 1, so that snapshot l is

.. math:: y_l = H\, \mathrm{diag}(c_l)\, \mathrm{diag}(1 + e)\, A(x)\, s_l + n_l .

**Whitening** (:func:`whitened`). For independent errors of variance :math:`\epsilon^2` and sources of mean
powers p_k whose steering vectors have entries of modulus :math:`1 / \sqrt N`, errors and noise together have
the covariance

.. math:: \Sigma = \sigma^2 I + \epsilon^2 \frac{\sum_k p_k}{N} H D H^H, \qquad D = \mathrm{diag}_n
    \Big( \frac 1 L \sum_l |c_{ln}|^2 \Big).

It is coloured like the field: where the channel is strong, so are the errors. A fit that assumes white noise
gives most weight to the antennas with the largest errors. :math:`\sigma \Sigma^{-1/2}`, applied to H and y,
leaves white noise of variance :math:`\sigma^2`. (The errors are the same in all snapshots, but the symbols
are not, so that the errors' share is uncorrelated between snapshots.)

**Calibration** (:func:`calibrate`) maximises the posterior density of the coordinates x, the symbols s and
the errors e. The priors are :math:`s_{kl} \sim CN(0, p_k)`, flat for x, and :math:`N(0, v_n)` for the real
part (gain error) and the imaginary part (phase error) of each :math:`e_n`. Each has a variance of its own
with :math:`1 / v_n \sim \Gamma(a, b)`, so that a few dead elements do not cast doubt on all others. The
variances follow the fixed point :math:`v_n = (b + e_n^2 / 2 + \mathrm{var}(e_n) / 2) / (a + 1/2)` (Tipping,
"Sparse Bayesian learning and the relevance vector machine", JMLR 1 (2001)). A dead element has a gain error
and no phase error, so that gains get the longer tail, a smaller a. The level of the phase errors,
b / (a - 1), follows their mean over the elements; that of the gains is the given one.

Each Gauss-Newton step solves for all unknowns. With the sources' fields
:math:`C_l = H\, \mathrm{diag}(c_l)\, \mathrm{diag}(1 + e) A` [M, K], the symbols are eliminated within each
snapshot, then e [N] over all snapshots. The remaining 3K equations are for x; their inverse is the covariance
of x with s and e unknown, that is, error bars that include the hardware impairments. The derivative by e is
:math:`J_l = H\, \mathrm{diag}(f_l)`, :math:`f_l = c_l \circ A s_l`, and its products need only :math:`H^H H`:
:math:`\sum_l J_l^H J_l = H^H H \circ \sum_l \bar f_l f_l^T`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering_with_log_derivatives
from rismusic.covariance import squared_modulus
from rismusic.devices import blocks
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import pack, unpack
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording
from rismusic.sources import Sources

# Maximum number of steps, and the largest predicted movement at convergence in units of the error bars.
_STEPS, _TOLERANCE = 20, 0.02
_SHAPES = (1.5, 10.0)  # shape a of the prior of the variances, for gain and phase errors
# Share of the error variance that changes with configuration or source, and is treated as noise.
_NOISE_SHARE = 0.3
# Elements that the given error counts as, beside those of the panel, in the level of their phase errors.
_PRIOR_ELEMENTS = 8
# Ridge relative to a unit diagonal.
_RIDGE = 1e-13
_FIRST_DAMPING, _MOST_DAMPING = 1e-3, 1e6
# Power of rounding errors over that of the data: about the square of the precision of single precision.
_ROUNDING = 1e-14
_MAX_ELEMENTS = 1024  # largest number of elements, since the equations for e are dense


def whitened(recording: Recording, panel_error: float) -> Recording:
    r"""Whiten the joint covariance of hardware errors and noise.

    A directly sampled panel (H = I) has white errors and is returned unchanged. :math:`\epsilon` is the root
    mean square of the relative error of an element's response.

    Returns:
        A recording with one channel per scene, [S, M, N], and the noise variance used, recorded or estimated.
    """
    energy = torch.view_as_real(recording.snapshots.to(torch.complex128)).square().sum(-1)
    power = energy.mean(dim=(1, 2))
    # The rounding of the data is noise, too.
    noise = torch.maximum(noise_of(recording).double(), _ROUNDING * power)
    known = replace(recording, noise_variance=noise.to(recording.snapshots.real.dtype))
    if panel_error == 0 or recording.channel is None:
        return known
    link, y = recording.link.to(torch.complex128), recording.snapshots.to(torch.complex128)
    assert link.channel is not None
    H = link.channel
    # The part of the power that is not noise is field and errors, in the ratio 1 to epsilon^2.
    share = panel_error**2 / (1 + panel_error**2)
    level = share * (power / torch.where(noise > 0, noise, torch.inf) - 1).clamp_min(0)
    factor = torch.linalg.cholesky(covariance_through_panel(H, level, link.codes))
    H, y = whiten(factor, H, y)
    dtype = recording.snapshots.dtype
    return replace(known, channel=H.to(dtype), snapshots=y.to(dtype))


def covariance_through_panel(
    H: Complex[Tensor, "*S M N"], level: Float[Tensor, "S"], codes: Complex[Tensor, "*C L N"] | None = None
) -> Complex[Tensor, "S M M"]:
    r"""Covariance :math:`I + \tau H D H^H` of white noise and of noise of level tau through the panel."""
    white = torch.eye(H.shape[-2], dtype=H.dtype, device=H.device)
    return white + level[:, None, None] * field_covariance(H, codes)


def field_covariance(
    H: Complex[Tensor, "*S M N"], codes: Complex[Tensor, "*C L N"] | None
) -> Complex[Tensor, "*T M M"]:
    """H D H^H, scaled to the trace M, of a field from everywhere through configurations of mean power D."""
    reflected = 1.0 if codes is None else codes.abs().square().mean(dim=-2)[..., None, :]
    spread = (H * reflected) @ H.mH
    return spread * (H.shape[-2] / spread.diagonal(dim1=-2, dim2=-1).real.sum(-1))[..., None, None]


def whiten(
    factor: Complex[Tensor, "S M M"], H: Complex[Tensor, "*S M N"], y: Complex[Tensor, "S L M"]
) -> tuple[Complex[Tensor, "S M N"], Complex[Tensor, "S L M"]]:
    """Channel and snapshots in white noise, from the Cholesky factor of the covariance of the noise."""
    H = torch.linalg.solve_triangular(factor, H.expand(len(y), -1, -1), upper=False)
    return H, torch.linalg.solve_triangular(factor, y.mT, upper=False).mT.contiguous()


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Result of :func:`calibrate` for S scenes."""

    sources: Sources  # azimuth, elevation, range
    covariance: Float[Tensor, "S K 3 3"]  # of azimuth (rad), elevation (rad), range (m)
    inverse_range_std: Float[Tensor, "S K"]  # 1/m, also where the range is infinite
    response: Complex[Tensor, "S N"]  # 1 + e
    converged: Bool[Tensor, "S"]


def calibrate(recording: Recording, found: Sources, volume: Volume, *, panel_error: float) -> Calibrated:
    """Refine sources jointly with the responses of the panel's elements.

    They have mean powers, from a fit to :func:`whitened` snapshots of the recording, which is given as
    recorded.

    Raises:
        InputError: a panel of more than 1024 elements, or an error that is not positive.
    """
    N = recording.elements.shape[0]
    if not panel_error > 0:
        raise InputError("panel_error", f"must be positive; got {panel_error:g}")
    if N > _MAX_ELEMENTS:
        raise InputError(
            "panel_error", f"must be 0 for more than {_MAX_ELEMENTS} elements; the panel has {N}"
        )
    positions, active = unpack(found, recording)
    assert found.power is not None
    power = torch.where(active, found.power.double(), 1).clamp_min(torch.finfo(torch.float64).tiny)
    _, L, M = recording.snapshots.shape
    each = 16 * N * (12 * N + 3 * L * active.shape[1] + L + M)
    parts = []
    for block in blocks(len(recording), each, positions.device):
        fit = _Fit(recording[block], positions[block], active[block], power[block], volume, panel_error)
        parts.append(fit.iterate())
    x, covariance, inverse_range_std, response, converged = (
        torch.cat(part) for part in zip(*parts, strict=True)
    )
    placed = pack(x, active)
    return Calibrated(
        replace(found, azimuth=placed.azimuth, elevation=placed.elevation, range=placed.range),
        covariance,
        inverse_range_std,
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
        share = 0.0 if recording.channel is None else _NOISE_SHARE
        lasting = panel_error**2 * (1 - share)
        recording = whitened(recording, panel_error * share**0.5)
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
        self.volume = volume
        self.low, self.high = (positions.new_tensor(limit) for limit in (volume.lower, volume.upper))
        self.x = torch.minimum(torch.maximum(positions, self.low), self.high)
        self.e = self.y.new_zeros(S, N)
        # Of real parts, then imaginary parts.
        self.variance = positions.new_full((S, 2 * N), lasting / 2)
        self.shape = positions.new_tensor(_SHAPES).repeat_interleave(N)
        self.expected = lasting / 2
        self.s = self.y.new_zeros(S, L, active.shape[1])
        self.size = L * M

    def iterate(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Iterate; return what :class:`Calibrated` holds, positions as azimuth, elevation, 1/range."""
        damping = torch.full_like(self.noise, _FIRST_DAMPING)
        # Symbols first: the rest is linearised around them.
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
            still = (change.x.abs() <= _TOLERANCE * change.std).flatten(1).all(-1)
            converged = converged | (better & still) | (damping >= _MOST_DAMPING)
            self._update_variances(change, ~converged)
            if bool(converged.all()):
                break
            value = self._value(self.x, self.s, self.e)
        last = _Step(self, torch.zeros_like(damping))
        return self.x, last.covariance, last.std[..., 2], 1 + self.e, converged

    def model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A [S, N, K] and its derivatives by azimuth, elevation, 1/range [S, N, K, 3]; 0 without a source."""
        azimuth, elevation, q = x.unbind(-1)
        A, slopes = steering_with_log_derivatives(self.panel, azimuth, elevation, 1 / q)
        there = self.active[:, None]
        return A * there, slopes * A[..., None] * there[..., None]

    def _symbols(self, x: Tensor, e: Tensor) -> Tensor:
        C = self.link.matmul((1 + e)[..., None] * self.model(x)[0])
        inner = C.mH @ C + torch.diag_embed(self.noise[:, None] / self.power).unsqueeze(-3)
        return torch.linalg.solve(inner, C.mH @ self.y[..., None])[..., 0]

    def _value(self, x: Tensor, s: Tensor, e: Tensor) -> Float[Tensor, "S"]:
        """Negative log posterior density for fixed variances."""
        return (
            self._residual_energy(x, s, e) / self.noise
            + (squared_modulus(s) / self.power[:, None]).sum((1, 2))
            + (_parts(e).square() / (2 * self.variance)).sum(-1)
        )

    def _residual_energy(self, x: Tensor, s: Tensor, e: Tensor) -> Float[Tensor, "S"]:
        """Energy of the residual."""
        f = ((1 + e)[..., None] * self.model(x)[0]) @ s.mT  # [S, N, L]
        return squared_modulus(self.y - self.link.apply(f.mT)).sum((1, 2))

    def _update_variances(self, step: _Step, live: Bool[Tensor, "S"]) -> None:
        """Update the variances of errors and noise from the posterior of the step."""
        spread = step.spread()
        energy = (_parts(self.e).square() + spread) / 2
        # The elements share the level of their phase errors. Gain errors do not: some elements are dead.
        N = energy.shape[-1] // 2
        common = (_PRIOR_ELEMENTS * self.expected + 2 * energy[:, N:].sum(-1)) / (_PRIOR_ELEMENTS + N)
        level = torch.full_like(energy, self.expected)
        level[:, N:] = common[:, None]
        fresh = (level * (self.shape - 1) + energy) / (self.shape + 0.5)
        known = (1 - spread / self.variance).clamp(0, 1).sum(-1) / 2
        L = self.y.shape[1]
        fitted = self.volume.free_coordinates(self.panel, self.x, self.active)
        freedom = (self.size - L * self.active.sum(-1) - fitted / 2 - known).clamp_min(0.1 * self.size)
        noise = self._residual_energy(self.x, self.s, self.e) / freedom
        self.variance = torch.where(live[:, None], fresh, self.variance)
        self.noise = torch.where(live & (noise > 0), noise, self.noise)


class _Step:
    """One Gauss-Newton step."""

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

        # In units of the noise. The symbols are eliminated first, within each snapshot.
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
        # From here on real and imaginary parts of e are separate unknowns.
        stiff = at.noise[:, None] / (2 * at.variance)
        Q = torch.cat((torch.cat((Q.real, -Q.imag), dim=-1), torch.cat((Q.imag, Q.real), dim=-1)), dim=-2)
        Jr = torch.cat((Jr.real, Jr.imag), dim=-2)
        Jr[..., -1] -= stiff * _parts(at.e)
        # Q is rounded, which weighs more than a very small noise variance.
        rounding = _RIDGE * Q.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        self._factor = torch.linalg.cholesky(Q + torch.diag_embed(stiff + rounding))
        self._noise = at.noise
        solved = torch.cholesky_solve(Jr, self._factor)
        whole = ((right.mH @ right).sum(1) - T.mH @ T).real - Jr.mT @ solved
        F, pull = whole[:, :-1, :-1], whole[:, :-1, -1]
        diagonal = F.diagonal(dim1=-2, dim2=-1)
        # False without a source, and for sources on which the data carry no information.
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
        q = at.x[..., 2]
        turn = torch.stack((torch.ones_like(q), torch.ones_like(q), -1 / q.square()), dim=-1)
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
