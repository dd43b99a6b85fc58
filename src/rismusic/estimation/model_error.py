r"""Model error as an unknown: evidence that panel or noise depart from their description.

Where the panel differs from its description, the fit of the true sources leaves a residual that is
proportional to their field. If only white noise stands beside the sources, surplus sources absorb this
residual. They are coherent with the true sources, and the more power these have, the more certain they seem.
This module gives the residual another explanation, so that a surplus source has to explain the data better
than a panel that errs by a few percent.

**Model.** Element n responds with :math:`1 + e_n`, and the configurations differ from snapshot to snapshot
from the recorded ones:

.. math:: y_l = C_l s_l + J_l e + H u_l + n_l, \qquad J_l = H\,\mathrm{diag}(c_l \circ A s_l), \qquad
    e \sim CN(0, \epsilon^2 I), \quad u_l \sim CN(0, \tau \sigma^2 I), \quad n_l \sim CN(0, \sigma^2 I).

The panel error e is the same in all snapshots; the diffuse noise u is not. H is normalised to
:math:`\mathrm{tr}(H H^H) = M`, so that :math:`\tau` is the power of the diffuse noise over that of the noise.

**Evidence.** For one :math:`\tau`, data and channel are whitened by :math:`\Sigma = I + \tau H H^H`.
With symbols at their least-squares values, r the residual, :math:`E = \sum_l |r_l|^2`, D its complex
dimensions and :math:`\rho = \epsilon^2 / \sigma^2`,

.. math:: W = \sum_l J_l^H P^\perp_{C_l} J_l = U \Lambda U^H, \qquad b_i = |[U^H z]_i|^2, \quad
    z = \sum_l J_l^H r_l,

.. math:: \log p(\rho, \tau) = -D \log\Big( E - \sum_i \frac{\rho\, b_i}{1 + \rho \lambda_i} \Big)
    - \sum_i \log(1 + \rho \lambda_i) - L \log\det\Sigma - \sum_l \log\frac{\det C_l^H \Sigma^{-1} C_l}{\det
    C_l^H C_l} + \mathrm{const},

the likelihood of the residual with e and u integrated out and :math:`\sigma^2` at its maximum (restricted
maximum likelihood; Harville, "Maximum likelihood approaches to variance component estimation and to related
problems", J. Am. Stat. Assoc. 72 (1977)). It is maximised over :math:`\rho` and :math:`\tau`, with a prior
for each (type-II maximum likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering, steering_with_log_derivatives
from rismusic.devices import blocks
from rismusic.estimation.calibration import covariance_through_panel, squared_modulus, whiten
from rismusic.estimation.goodness_of_fit import orthonormal
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.io import Recording
from rismusic.sources import Sources

# Ratios rho that are tried, times the mean of the eigenvalues of W: power of the panel's error over the
# noise.
_RATIOS = (0.03, 0.15, 0.7, 3.0, 15.0, 70.0, 300.0, 1500.0)
# Powers tau of the diffuse noise that are tried.
_DIFFUSE = (0.5, 1.5, 5.0, 15.0, 50.0)
# Standard deviations of a source's place that are tried (rad), and directions.
_SPREADS_RAD = (0.003, 0.006, 0.012, 0.024, 0.048)
_DIRECTIONS = 8
# Log-likelihood ratio (nats) of a motion from which on the path is fitted, and Gauss-Newton steps.
_MOTION_USUAL, _STEPS = 4.0, 6
# Largest panel error. A larger one would explain any field.
_MOST_ERROR = 0.5
# Log prior of each ratio, and of each power of the diffuse noise.
_LOG_RATIO, _LOG_DIFFUSE = -math.log(len(_RATIOS)), -math.log(len(_DIFFUSE))
# Smaller residuals, relative to the energy of the data, are rounding errors.
_NOTHING = 1e-10
# Largest number of elements, since W is dense.
_MAX_ELEMENTS = 400


@dataclass(frozen=True, eq=False)
class ModelError:
    """The model error of S scenes that is most probable beside some sources.

    Args:
        gain: log evidence (nats) of a model error against none; negative where there is probably none.
        panel_error: root mean square of the error of an element's response, epsilon.
        diffuse: power of the diffuse noise over that of the noise, tau.
    """

    gain: Float[Tensor, "S"]
    panel_error: Float[Tensor, "S"]
    diffuse: Float[Tensor, "S"]

    def __getitem__(self, scenes: Tensor) -> ModelError:
        return ModelError(self.gain[scenes], self.panel_error[scenes], self.diffuse[scenes])


def can_err(recording: Recording) -> bool:
    """Whether a model error can be estimated: independent symbols, one carrier, at most 400 elements."""
    return (
        recording.symbols == "independent"
        and recording.frequencies is None
        and recording.panel.size <= _MAX_ELEMENTS
    )


def model_error(recording: Recording, sources: Sources) -> ModelError:
    """The most probable model error beside some sources.

    Args:
        recording: S scenes for which :func:`can_err` holds.
        sources: positions near maximum likelihood [S, K]; NaN where there is no source.
    """
    recording = recording.stacked()
    positions, active = unpack(sources, recording)
    S, L, M = recording.snapshots.shape
    N = recording.panel.size
    diffuse = (0.0,) if recording.channel is None else (0.0, *_DIFFUSE)
    parts = []
    for block in blocks(
        S, 16 * (4 * N * N + 2 * M * N + 4 * L * N * (1 + active.shape[1])), positions.device
    ):
        part, x, there = recording[block], positions[block], active[block]
        levels = [_Residual.of(part, x, there, tau) for tau in diffuse]
        gain, error = levels[0].panel_error()
        tau = torch.zeros_like(gain)
        if len(levels) > 1:
            alone = torch.stack([level.alone for level in levels[1:]], dim=1) - levels[0].alone[:, None]
            best, which = (alone + _LOG_DIFFUSE).max(1)
            level = alone.new_tensor(_DIFFUSE)[which]
            # The panel's error beside the most probable level of the diffuse noise; there may be none.
            more, also = _Residual.of(part, x, there, level).panel_error()
            also = torch.where(more > 0, also, 0.0)
            best = best + more.clamp_min(0)
            take = best > gain
            gain, error, tau = (
                torch.where(take, one, other) for one, other in ((best, gain), (also, error), (level, tau))
            )
        # What rounding leaves is no evidence.
        total = squared_modulus(part.snapshots.to(torch.complex128)).sum((1, 2))
        nothing = squared_modulus(levels[0].rest).sum((1, 2)) <= _NOTHING * total
        parts.append((torch.where(nothing, -math.inf, gain), error, tau))
    return ModelError(*(torch.cat(part) for part in zip(*parts, strict=True)))


def spread_gain(recording: Recording, sources: Sources) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S K"]]:
    r"""Evidence that a source is not one point: it is extended or consists of several sources.

    Near its place the field of such a source leaves the direction of its steering vector along a derivative
    :math:`b_l = P^\perp_{C_l} B_l v`, with symbols of its own,

    .. math:: r_l \sim CN(0, \sigma^2 I + \eta\, b_l b_l^H).

    Args:
        recording: S scenes, narrowband.
        sources: positions near maximum likelihood with powers [S, K].

    Returns:
        The largest log-likelihood ratio (nats) over v and eta, and the standard deviation of the place along
        v that belongs to it, in units of its angle (rad); 0 and NaN without a source.
    """
    parts = []
    for _, at in _beside_sources(recording, sources):
        z = torch.einsum("slmki,slm->slki", at.B.conj(), at.rest)
        angle = torch.linspace(0, math.pi, _DIRECTIONS + 1, dtype=torch.float64, device=z.device)[:-1]
        v = torch.stack((angle.cos(), angle.sin()))  # [2, directions]
        along = squared_modulus(torch.einsum("slki,id->slkd", z, v.to(z.dtype)))
        norm = squared_modulus(torch.einsum("slmki,id->slmkd", at.B, v.to(z.dtype))).sum(2)
        sigma2 = at.sigma2[:, None, None, None]
        there = at.power > 0
        gain, size = along.new_zeros(there.shape), along.new_full(there.shape, math.nan)
        for step in _SPREADS_RAD:
            eta = (step**2 * at.power)[:, None, :, None]
            total = sigma2 + eta * norm
            ratio = (sigma2 / total).log() + eta * along / (sigma2 * total)
            value = ratio.sum(1).amax(-1)
            take = there & (value > gain)
            gain, size = torch.where(take, value, gain), torch.where(take, step, size)
        parts.append((gain, size))
    gains, sizes = zip(*parts, strict=True)
    return torch.cat(gains), torch.cat(sizes)


@dataclass(frozen=True, eq=False)
class Motion:
    """A steady motion of each source from the first snapshot to the last, the other sources at rest.

    Args:
        gain: log-likelihood ratio (nats) of the motion against a source at rest; 0 without a source.
        offset: direction in the middle less that of the estimate, u: azimuth and elevation (rad).
        change: direction at the end less that at the start, v: azimuth and elevation (rad).
    """

    gain: Float[Tensor, "S K"]
    offset: Float[Tensor, "S K 2"]
    change: Float[Tensor, "S K 2"]


def motion(recording: Recording, sources: Sources) -> Motion:
    r"""Fit a steady motion to each source.

    With :math:`t_l` from -1/2 to 1/2, source k has the direction :math:`\phi_k + u + t_l v` (azimuth and
    elevation) at the same range. Small u and v leave of the snapshots

    .. math:: r_l = s_l P^\perp_{C_l} B_l (u + t_l v) + n_l,

    so that they follow from linear regression. At the maximum of the likelihood u is nearly 0, and the
    log-likelihood ratio of a source that rests has an exponential distribution of mean 1. Where it is larger
    than usual, Gauss-Newton steps are made with the steering vectors along the path.

    Args:
        recording: S scenes, narrowband.
        sources: positions near maximum likelihood with powers [S, K].
    """
    recording = recording.stacked()
    positions, active = unpack(sources, recording)
    gain = torch.zeros_like(positions[..., 0])
    path = positions.new_zeros(*gain.shape, 4)
    for scenes, at in _beside_sources(recording, sources):
        X = at.B * at.symbols[:, :, None, :, None]  # [S, L, M, K, 2]
        found, explained = _path_regression(X.movedim(3, 1), at.rest[:, None].expand(-1, X.shape[3], -1, -1))
        gain[scenes] = torch.where(active[scenes], explained / at.sigma2[:, None], 0)
        path[scenes] = torch.where(active[scenes][..., None], found, 0)
    scene, source = (gain > _MOTION_USUAL).nonzero().unbind(-1)
    _, L, M = recording.snapshots.shape
    for some in blocks(len(scene), 128 * L * (M * (active.shape[1] + 4) + recording.panel.size), gain.device):
        row, column = scene[some], source[some]
        exact = _Path(recording[row], positions[row], active[row], column)
        gain[row, column], path[row, column] = exact.fit()
    return Motion(gain, path[..., :2], path[..., 2:])


def _path_regression(
    X: Complex[Tensor, "*S L M 2"], rest: Complex[Tensor, "*S L M"]
) -> tuple[Float[Tensor, "*S 4"], Float[Tensor, "*S"]]:
    """Least-squares u and v of a source in motion, and the energy that they explain.

    Args:
        X: change of the field with azimuth and elevation.
        rest: the residual.
    """
    t = torch.linspace(-0.5, 0.5, X.shape[-3], dtype=torch.float64, device=X.device)[:, None, None]
    X = torch.cat((X, t * X), dim=-1).flatten(-3, -2)
    b = (X.mH @ rest.flatten(-2).unsqueeze(-1)).real
    G = (X.mH @ X).real
    level = G.diagonal(dim1=-2, dim2=-1).mean(-1)
    G = G + torch.diag_embed(torch.where(level > 0, 1e-9 * level, 1.0)[..., None].expand(*level.shape, 4))
    change = torch.linalg.solve(G, b)
    return change[..., 0], (b * change).sum((-2, -1))


class _Path:
    """One source of each of B scenes moves, the others rest.

    Args:
        recording: B scenes, stacked.
        positions: azimuth, elevation, 1/range [B, K, 3].
        active: where there are sources [B, K].
        which: the source that moves [B].
    """

    def __init__(self, recording: Recording, positions: Tensor, active: Tensor, which: Tensor) -> None:
        self.recording, self.active = recording, active
        self.rows = torch.arange(len(positions), device=which.device)
        self.which, self.start = which, positions[self.rows, which]
        A = steering(recording.panel, positions[..., 0], positions[..., 1], 1 / positions[..., 2])
        L = recording.snapshots.shape[1]
        resting = recording.link.to(torch.complex128).matmul(A * active[:, None]).expand(-1, L, -1, -1)
        self.resting, self.y = resting, recording.snapshots.to(torch.complex128)
        self.t = torch.linspace(-0.5, 0.5, L, dtype=torch.float64, device=which.device)[:, None]

    def fit(self) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 4"]]:
        """The log-likelihood ratio of the motion (nats), and u and v."""
        _, L, M = self.y.shape
        path = self.start.new_zeros(len(self.start), 4)
        first, change = self._step(path)
        best, at_best = first, path
        for _ in range(_STEPS):
            path = path + change
            energy, change = self._step(path)
            better = energy < best
            best = torch.where(better, energy, best)
            at_best = torch.where(better[:, None], path, at_best)
        return L * (M - self.active.sum(-1)) * (first / best).log(), at_best

    def _step(self, path: Float[Tensor, "B 4"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 4"]]:
        """Energy of the residual along a path, and the Gauss-Newton step from there."""
        azimuth, elevation = (
            self.start[:, None, :2] + path[:, None, :2] + self.t * path[:, None, 2:]
        ).unbind(-1)
        distance = (1 / self.start[:, 2:]).expand_as(azimuth)
        A, slopes = steering_with_log_derivatives(self.recording.panel, azimuth, elevation, distance)
        link = self.recording.link.to(torch.complex128)
        C = self.resting.clone()
        C[self.rows, :, :, self.which] = link.apply(A.mT)
        D = torch.stack([link.apply((slopes[..., axis] * A).mT) for axis in range(2)], dim=-1)
        Q = orthonormal(C)
        rest = self.y - (Q @ (Q.mH @ self.y[..., None]))[..., 0]
        s = _least_squares(C, self.y, self.active)[self.rows, :, self.which]
        X = (D - Q @ (Q.mH @ D)) * s[:, :, None, None]
        return squared_modulus(rest).sum((1, 2)), _path_regression(X, rest)[0]


@dataclass(frozen=True, eq=False)
class _BesideSources:
    """The residual of a block of scenes, and the fields that small changes of direction leave in it.

    Args:
        rest: r, the data without the fields of the sources, [S, L, M].
        B: derivatives of each source's field along azimuth and elevation, without the fields of the sources,
            [S, L, M, K, 2].
        symbols: least-squares symbols, [S, L, K].
        sigma2: noise variance, [S].
        power: of the sources, 0 where there is none, [S, K].
    """

    rest: Complex[Tensor, "S L M"]
    B: Complex[Tensor, "S L M K 2"]
    symbols: Complex[Tensor, "S L K"]
    sigma2: Float[Tensor, "S"]
    power: Float[Tensor, "S K"]


def _beside_sources(recording: Recording, sources: Sources) -> Iterator[tuple[slice, _BesideSources]]:
    recording = recording.stacked()
    positions, active = unpack(sources, recording)
    assert sources.power is not None
    S, L, M = recording.snapshots.shape
    for block in blocks(S, 64 * L * M * (8 * active.shape[1] + 1), positions.device):
        part, there = recording[block], active[block]
        azimuth, elevation, q = positions[block].unbind(-1)
        A, slopes = steering_with_log_derivatives(part.panel, azimuth, elevation, 1 / q)
        A = A * there[:, None]
        # Only directions: a change of the range is harder to see.
        D = (slopes[..., :2] * A[..., None]).flatten(-2)
        link, y = part.link.to(torch.complex128), part.snapshots.to(torch.complex128)
        C = link.matmul(A).expand(-1, L, -1, -1)
        Q = orthonormal(C)
        B = link.matmul(D).expand(-1, L, -1, -1)
        B = (B - Q @ (Q.mH @ B)).unflatten(-1, (-1, 2))
        rest = y - (Q @ (Q.mH @ y[..., None]))[..., 0]
        count = there.sum(-1)
        sigma2 = squared_modulus(rest).sum((1, 2)) / (L * (M - count) - 1.5 * count)
        power = torch.where(there, sources.power[block].double(), 0)
        yield block, _BesideSources(rest, B, _least_squares(C, y, there), sigma2, power)


def whitened_by(recording: Recording, diffuse: Float[Tensor, "S"]) -> Recording:
    r"""Data and channel whitened by :math:`\Sigma = I + \tau H H^H`.

    Args:
        recording: S scenes with a channel, stacked.
        diffuse: tau of each.
    """
    assert recording.channel is not None
    H, y = recording.channel.to(torch.complex128), recording.snapshots.to(torch.complex128)
    H, y = whiten(torch.linalg.cholesky(covariance_through_panel(H, diffuse)), H, y)
    dtype = recording.snapshots.dtype
    return replace(recording, channel=H.to(dtype), snapshots=y.to(dtype), noise_variance=None)


@dataclass(frozen=True, eq=False)
class _Residual:
    """The data without the sources' fields, for one level of the diffuse noise in each scene.

    Args:
        H: whitened channel, ``None`` without one.
        field: c_l times A s_l, [S, L, N].
        basis: orthonormal basis of the whitened C_l, [S, L, M, K].
        rest: the residual r, [S, L, M].
        freedom: D.
        alone: log evidence without a panel error, up to a constant of the scene.
    """

    H: Complex[Tensor, "S M N"] | None
    field: Complex[Tensor, "S L N"]
    basis: Complex[Tensor, "S L M K"]
    rest: Complex[Tensor, "S L M"]
    freedom: Float[Tensor, "S"]
    alone: Float[Tensor, "S"]

    @classmethod
    def of(
        cls, recording: Recording, positions: Tensor, active: Tensor, diffuse: float | Tensor
    ) -> _Residual:
        """Project the sources out of the data, whitened by the diffuse noise."""
        H, codes = recording.channel, recording.codes
        y = recording.snapshots.to(torch.complex128)
        S, L, M = y.shape
        azimuth, elevation, q = positions.unbind(-1)
        A = steering(recording.panel, azimuth, elevation, 1 / q) * active[:, None]
        P = A.mT[:, None] if codes is None else A.mT[:, None] * codes.to(torch.complex128)[..., None, :]
        log_det = y.real.new_zeros(S)
        if H is not None:
            H = H.to(torch.complex128).expand(S, -1, -1)
        fields = P if H is None else P @ H.mT.unsqueeze(-3)  # C_l^T, [S, L, K, M]
        tau = torch.as_tensor(diffuse, dtype=torch.float64, device=y.device).expand(S)
        if bool((tau > 0).any()):
            assert H is not None
            plain = _log_det_gram(fields, active)
            factor = torch.linalg.cholesky(covariance_through_panel(H, tau))
            H, y = whiten(factor, H, y)
            fields = P @ H.mT.unsqueeze(-3)
            log_det = 2 * L * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
            log_det = log_det + _log_det_gram(fields, active) - plain
        C = fields.expand(S, L, -1, M).mT  # [S, L, M, K]
        Q = orthonormal(C)
        rest = y - (Q @ (Q.mH @ y[..., None]))[..., 0]
        count = active.sum(-1)
        freedom = (L * (M - count) - 1.5 * count).double()
        field = (P * _least_squares(C, y, active)[..., None]).sum(-2)
        alone = -freedom * squared_modulus(rest).sum((1, 2)).log() - log_det
        return cls(H, field, Q, rest, freedom, alone)

    def panel_error(self) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
        """Log evidence that a panel error adds, and its size; minus infinity without sources."""
        H, f, Q = self.H, self.field, self.basis
        overlap = Q.mH if H is None else Q.mH @ H.unsqueeze(-3)
        E = (overlap * f[..., None, :]).flatten(1, 2)  # Q_l^H J_l
        HH = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device) if H is None else H.mH @ H
        W = HH * (f.mH @ f) - E.mH @ E
        z = (f.conj() * (self.rest if H is None else self.rest @ H.conj())).sum(1)
        energy = squared_modulus(self.rest).sum((1, 2))
        N = W.shape[-1]
        mean = W.diagonal(dim1=-2, dim2=-1).real.sum(-1) / N
        there = mean > 0  # there are sources
        gain, error = torch.full_like(energy, -math.inf), torch.zeros_like(energy)
        for ratio in _RATIOS:
            rho = torch.where(there, ratio / torch.where(there, mean, 1), 0)
            inner = rho[:, None, None] * W
            inner.diagonal(dim1=-2, dim2=-1).add_(1)
            factor = torch.linalg.cholesky(inner)
            white = torch.linalg.solve_triangular(factor, z[..., None], upper=False)[..., 0]
            left = torch.maximum(energy - rho * squared_modulus(white).sum(-1), 1e-12 * energy)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
            value = -self.freedom * (left / energy).log() - log_det + _LOG_RATIO
            size = (rho * left / self.freedom).sqrt()
            take = there & (value > gain) & (size <= _MOST_ERROR)
            gain, error = torch.where(take, value, gain), torch.where(take, size, error)
        return gain, error


def _log_det_gram(fields: Complex[Tensor, "S _ K M"], active: Bool[Tensor, "S K"]) -> Float[Tensor, "S"]:
    """Sum over the snapshots of log det C_l^H C_l."""
    gram = fields.conj() @ fields.mT
    gram = gram + torch.diag_embed((~active).to(gram.dtype))[:, None]
    return torch.linalg.slogdet(gram).logabsdet.sum(1)


def _least_squares(
    C: Complex[Tensor, "S L M K"], y: Complex[Tensor, "S L M"], active: Bool[Tensor, "S K"]
) -> Complex[Tensor, "S L K"]:
    """Least-squares symbols; 0 without a source."""
    gram = C.mH @ C
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    gram = gram + torch.diag_embed(torch.where(active[:, None], 1e-12 * diagonal, 1.0)).to(gram.dtype)
    return torch.linalg.solve(gram, C.mH @ y[..., None])[..., 0]
