r"""Model error as an unknown: evidence that panel or noise depart from their description.

Where the panel differs from its description, the fit of the true sources leaves a residual that is
proportional to their field. If only white noise stands beside the sources, additional sources absorb this
residual. They are coherent with the true sources, and the more power these have, the more certain they seem.
This module gives the residual another explanation, so that an additional source has to explain the data
better than hardware impairments of a few percent.

**Model.** Element n responds with :math:`1 + e_n`, and the configurations differ from snapshot to snapshot
from the recorded ones:

.. math:: y_l = C_l s_l + J_l e + H u_l + n_l, \qquad J_l = H\,\mathrm{diag}(c_l \circ A s_l), \qquad
    e \sim CN(0, \epsilon^2 I), \quad u_l \sim CN(0, \tau \sigma^2 I), \quad n_l \sim CN(0, \sigma^2 I).

The panel error e is the same in all snapshots; the diffuse noise u is not. H is normalised to
:math:`\mathrm{tr}(H H^H) = M`, so that :math:`\tau` is the power of the diffuse noise over that of the noise.

Constant symbols make one snapshot of L M outputs with the operator :math:`[G_1; \ldots; G_L]` in place of H.
The panel error is the same; diffuse noise is not estimated. Nor is it on several subcarriers, whose snapshots
add up; each has its own H and steering vectors, and all have the same panel error.

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
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering, steering_with_log_derivatives
from rismusic.batch import Batch
from rismusic.covariance import squared_modulus
from rismusic.devices import blocks
from rismusic.estimation.calibration import covariance_through_panel, whiten
from rismusic.estimation.goodness_of_fit import outside
from rismusic.estimation.likelihood import orthonormal
from rismusic.estimation.maximum_likelihood import compiled_fits, kernel_for, unpack
from rismusic.io import Recording
from rismusic.sources import Sources

# Ratios rho that are tried, times the mean of the eigenvalues of W: power of the panel's error over the
# noise.
_RATIOS = (0.03, 0.15, 0.7, 3.0, 15.0, 70.0, 300.0, 1500.0)
_DIFFUSE = (0.5, 1.5, 5.0, 15.0, 50.0)  # powers tau of the diffuse noise that are tried
# Log evidence (nats) of diffuse noise alone below which none is tried beside an error of the panel.
_NO_DIFFUSE_NATS = -3.0
# Standard deviations of a source's direction that are tried (rad), and directions.
_SPREADS_RAD = (0.003, 0.006, 0.012, 0.024, 0.048)
_DIRECTIONS = 8
# Log-likelihood ratio (nats) of a motion from which on the path is fitted, and Gauss-Newton steps.
_MOTION_USUAL, _STEPS = 4.0, 6
_FARTHEST = 0.5  # radian that one step may move an end of a path
_FURTHER = 20.0  # steps as good as the last one (of one nat more) by which a path may still gain
_MOST_ERROR = 0.5  # largest panel error. A larger one would explain any field.
# Log prior of each ratio, and of each power of the diffuse noise.
_LOG_RATIO, _LOG_DIFFUSE = -math.log(len(_RATIOS)), -math.log(len(_DIFFUSE))
_NOTHING = 1e-10  # smaller residuals, relative to the energy of the data, are rounding errors
# Share of the residual up to which single precision tells how much is explained, and the error of the log
# evidence that it makes at most (nats).
_CERTAIN, _SINGLE_NATS = 0.9999, 0.2
_LANCZOS = 8  # steps of the Lanczos recursion
MAX_ELEMENTS = 400  # largest number of elements, since W is dense
# Largest number of outputs of a snapshot, whose covariance is dense. Constant symbols make one of L M.
_MAX_OUTPUTS = 1024


@dataclass(frozen=True, eq=False)
class ModelError(Batch):
    """The model error of S scenes that is most probable beside some sources."""

    gain: Float[Tensor, "S"]  # log evidence (nats) of a model error against none
    panel_error: Float[Tensor, "S"]  # epsilon, RMS error of an element's response
    diffuse: Float[Tensor, "S"]  # tau, power of the diffuse noise over that of the noise


def can_err(recording: Recording) -> bool:
    """Whether a model error can be estimated: unknown symbols, no weights, not too many elements or outputs.

    On several subcarriers the symbols have to be independent.
    """
    narrowband = recording.frequencies is None
    return (
        recording.symbols in (("independent", "correlated", "constant") if narrowband else ("independent",))
        and recording.sample_weights is None
        and recording.panel.size <= MAX_ELEMENTS
        and recording.snapshots.shape[-1] <= _MAX_OUTPUTS
    )


def with_dense_operator(recording: Recording) -> Recording:
    r"""Constant symbols as one snapshot through the channel :math:`[G_1; \ldots; G_L]`."""
    link = recording.link
    if not link.coherent:
        return recording
    channel = link.dense()[..., 0, :, :]
    return replace(recording, channel=channel, codes=channel.new_ones(1, channel.shape[-1]))


def model_error(
    recording: Recording, sources: Sources, least: Float[Tensor, "S"] | None = None
) -> ModelError:
    """The most probable model error beside some sources, of scenes for which :func:`can_err` holds.

    Gains below ``least`` (nats) may be returned as minus infinity, which is faster.
    """
    recording = with_dense_operator(recording.stacked())
    positions, active = unpack(sources, recording)
    S, L, M = recording.snapshots.shape
    N, F = recording.panel.size, 1 if recording.frequencies is None else len(recording.frequencies)
    least = torch.full_like(positions[:, 0, 0], -math.inf) if least is None else least
    # Scenes with the same number of sources together, which come first in each.
    order = active.sum(-1).argsort()
    positions, active = (
        value[order].take_along_dim((~active[order]).to(torch.int8).argsort(dim=1, stable=True)[shape], dim=1)
        for value, shape in ((positions, (..., None)), (active, ...))
    )
    parts = []
    for block in blocks(
        S, 16 * (4 * N * N + 2 * M * N + 4 * L * N * (1 + active.shape[1])), positions.device
    ):
        most = max(1, int(active[block].sum(-1).max()))
        part, x, there = recording[order[block]], positions[block, :most], active[block, :most]
        floor = least[order[block]]
        bands = [part.subcarrier(f) for f in range(F)]
        fields = [fields_on_panel(band, x, there) for band in bands]
        white = [_Residual.of(*band, there, 0.0, subcarriers=F) for band in zip(bands, fields, strict=True)]
        gain, error = _panel_error(white, floor)
        tau = torch.zeros_like(gain)
        if part.channel is not None and L > 1 and F == 1:
            alone = diffuse_evidence(part, fields[0], there, _DIFFUSE)
            best, which = (alone + _LOG_DIFFUSE).max(1)
            level = alone.new_tensor(_DIFFUSE)[which]
            # The panel's error beside the most probable level of the diffuse noise, where there may be any.
            also, likely = torch.zeros_like(gain), (best > _NO_DIFFUSE_NATS).nonzero()[:, 0]
            if len(likely):
                coloured = _Residual.of(part[likely], fields[0][likely], there[likely], level[likely])
                more, size = _panel_error([coloured], (torch.maximum(gain, floor) - best)[likely])
                also[likely] = torch.where(more > 0, size, 0.0)
                best[likely] += more.clamp_min(0)
            take = best > gain
            gain, error, tau = (
                torch.where(take, one, other) for one, other in ((best, gain), (also, error), (level, tau))
            )
        # What rounding leaves is no evidence.
        total = _energy(part.snapshots.to(torch.complex128))
        nothing = sum(_energy(one.rest) for one in white) <= _NOTHING * total
        parts.append((torch.where(nothing, -math.inf, gain), error, tau))
    back = order.argsort()
    return ModelError(*(torch.cat(part)[back] for part in zip(*parts, strict=True)))


def diffuse_evidence(
    recording: Recording,
    fields: Complex[Tensor, "S _ K N"],
    active: Bool[Tensor, "S K"],
    levels: Sequence[float],
) -> Float[Tensor, "S levels"]:
    r"""Log evidence (nats) that some levels of diffuse noise add, without a panel error.

    ``fields`` are those of :func:`fields_on_panel`. In the basis of the eigenvectors of :math:`H H^H`,
    :math:`\Sigma` is diagonal for all levels.
    """
    assert recording.channel is not None
    y = recording.snapshots.to(torch.complex128)
    S, L, M = y.shape
    H = recording.channel.to(torch.complex128).expand(S, -1, -1)
    values, basis = torch.linalg.eigh(H @ H.mH)
    values = (values * (M / values.sum(-1, keepdim=True))).clamp_min(0)
    rotated = basis.mH @ H
    # Only the span of C_l matters. Of sources that nearly coincide, C_l^H C_l has no reliable determinant.
    C = orthonormal(_through(fields, rotated).mT).mT  # [S, L or 1, K, M]
    y = y @ basis.conj()
    repeats = L // C.shape[1]
    tau = values.new_tensor([0.0, *levels])
    weight = 1 / (1 + tau[:, None] * values[:, None])  # [S, levels, M]

    def summed(products: Tensor) -> Tensor:
        """Sums over the outputs M, the last axis, with the weights of each level: [S, levels, ...]."""
        flat = torch.view_as_real(products.movedim(-1, 1).contiguous()).flatten(2)
        sums = (weight @ flat).view(S, len(tau), *products.shape[1:-1], 2)
        return torch.view_as_complex(sums)

    gram = summed(C.conj()[..., :, None, :] * C[..., None, :, :])
    cross = summed(C.conj() * y[..., None, :])
    energy = (weight @ squared_modulus(y).sum(1)[..., None])[..., 0]
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    factor = torch.linalg.cholesky(gram + torch.diag_embed((diagonal == 0).to(gram.dtype)))
    white = torch.linalg.solve_triangular(factor.expand(-1, -1, L, -1, -1), cross[..., None], upper=False)
    left = energy - squared_modulus(white).sum((-3, -2, -1))
    left = torch.maximum(left, torch.finfo(left.dtype).eps * energy)
    log_det = factor.diagonal(dim1=-2, dim2=-1).real.log().sum((-2, -1)) * (2 * repeats)
    log_det = log_det + L * (1 + tau[:, None] * values[:, None]).log().sum(-1)
    value = -residual_dimensions(active, L, M)[:, None] * left.log() - log_det
    return value[:, 1:] - value[:, :1]


def spread_gain(
    recording: Recording, sources: Sources
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S K 2"]]:
    r"""Evidence that a source is not one point: it is extended or consists of several sources.

    Near its position the field of such a source leaves the direction of its steering vector along a
    derivative :math:`b_l = P^\perp_{C_l} B_l v`, with symbols of its own,

    .. math:: r_l \sim CN(0, \sigma^2 I + \eta\, b_l b_l^H).

    Returns:
        The largest log-likelihood ratio (nats) over v and eta, and the standard deviation of the direction
        that belongs to it times v, azimuth and elevation (rad); 0 and NaN without a source.
    """
    if (compiled := _dispersion(recording, sources)) is not None:
        return compiled[3:]
    parts = []
    for _, at in _beside_sources(recording, sources):
        z = torch.einsum("slmki,slm->slki", at.B.conj(), at.rest)
        angle = torch.linspace(0, math.pi, _DIRECTIONS + 1, dtype=torch.float64, device=z.device)[:-1]
        v = torch.stack((angle.cos(), angle.sin()))  # [2, directions]
        along = squared_modulus(torch.einsum("slki,id->slkd", z, v.to(z.dtype)))
        norm = squared_modulus(torch.einsum("slmki,id->slmkd", at.B, v.to(z.dtype))).sum(2)
        sigma2 = at.sigma2[:, None, None, None]
        there = at.power > 0
        gain, size = along.new_zeros(there.shape), along.new_full((*there.shape, 2), math.nan)
        for step in _SPREADS_RAD:
            eta = (step**2 * at.power)[:, None, :, None]
            total = sigma2 + eta * norm
            ratio = (sigma2 / total).log() + eta * along / (sigma2 * total)
            value, which = ratio.sum(1).max(-1)
            take = there & (value > gain)
            gain = torch.where(take, value, gain)
            size = torch.where(take[..., None], step * v.mT[which], size)
        parts.append((gain, size))
    gains, sizes = zip(*parts, strict=True)
    return torch.cat(gains), torch.cat(sizes)


@dataclass(frozen=True, eq=False)
class Motion:
    """A steady motion of each source from the first snapshot to the last, the other sources at rest."""

    gain: Float[Tensor, "S K"]  # log-likelihood ratio (nats) against a source at rest at its best position
    gain_in_all: Float[Tensor, "S K"]  # the same against a source at rest at the estimate
    offset: Float[Tensor, "S K 2"]  # u, the middle less the estimate: azimuth and elevation (rad)
    change: Float[Tensor, "S K 2"]  # v, the end less the start: azimuth and elevation (rad)


def motion(recording: Recording, sources: Sources, least: Float[Tensor, "S"] | None = None) -> Motion:
    r"""Fit a steady motion to each source.

    With :math:`t_l` from -1/2 to 1/2, source k has the direction :math:`\phi_k + u + t_l v` (azimuth and
    elevation) at the same range. Small u and v leave of the snapshots

    .. math:: r_l = s_l P^\perp_{C_l} B_l (u + t_l v) + n_l,

    so that they follow from linear regression. At the maximum of the likelihood u is nearly 0, and the
    log-likelihood ratio of a source that rests has an exponential distribution of mean 1. Where it is larger
    than usual, Gauss-Newton steps are made with the steering vectors along the path.
    """
    recording = recording.stacked()
    positions, active = unpack(sources, recording)
    if recording.snapshots.shape[1] == 1:  # one snapshot has no course of time
        nothing = torch.zeros_like(positions[..., 0])
        return Motion(nothing, nothing, *positions.new_zeros(2, *nothing.shape, 2))
    compiled = _dispersion(recording, sources)
    in_all, at_rest, path = _linear_motion(recording, sources) if compiled is None else compiled[:3]
    gain = in_all - at_rest
    scene, source = (gain > _MOTION_USUAL).nonzero().unbind(-1)
    _, L, M = recording.snapshots.shape
    for some in blocks(len(scene), 128 * L * (M * (active.shape[1] + 4) + recording.panel.size), gain.device):
        row, column = scene[some], source[some]
        if least is not None:  # as in _Path.fit, with what the first step promises
            likely = (1 + _FURTHER) * in_all[row, column] + _FURTHER > least[row]
            row, column = row[likely], column[likely]
        if len(row) == 0:
            continue
        exact = _Path(recording[row], positions[row], active[row], column)
        in_all[row, column], path[row, column] = exact.fit(least=None if least is None else least[row])
        gain[row, column] = 0.0
        if least is not None:
            matter = in_all[row, column] > least[row]
            row, column = row[matter], column[matter]
        if len(row):
            exact = _Path(recording[row], positions[row], active[row], column)
            gain[row, column] = in_all[row, column] - exact.fit(moves=False)[0]
    return Motion(gain, in_all, path[..., :2], path[..., 2:])


def _dispersion(
    recording: Recording, sources: Sources
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """Compiled motion to first order, and spread, where they cover the recording."""
    recording = recording.stacked()
    if (kernel := kernel_for(recording)) is None:
        return None
    positions, active = unpack(sources, recording)
    assert sources.power is not None
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = kernel.dispersion(
        recording, positions, active, sources.power, _SPREADS_RAD, _DIRECTIONS
    )
    return result


def _linear_motion(
    recording: Recording, sources: Sources
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S K"], Float[Tensor, "S K 4"]]:
    """Log-likelihood ratios of a motion and of another position at rest, u and v, to first order."""
    active = sources.active
    in_all = torch.zeros(active.shape, dtype=torch.float64, device=active.device)
    at_rest, path = torch.zeros_like(in_all), in_all.new_zeros(*active.shape, 4)
    for scenes, at in _beside_sources(recording, sources):
        X = (at.B * at.symbols[:, :, None, :, None]).movedim(3, 1)  # [S, K, L, M, 2]
        rest = at.rest[:, None].expand(-1, X.shape[1], -1, -1)
        there, sigma2 = active[scenes], at.sigma2[:, None]
        equations = _PathEquations.of(X, rest)
        found, explained = equations.solve(moves=True)
        in_all[scenes] = torch.where(there, explained / sigma2, 0)
        at_rest[scenes] = torch.where(there, equations.solve(moves=False)[1] / sigma2, 0)
        path[scenes] = torch.where(there[..., None], found, 0)
    return in_all, at_rest, path


@dataclass(frozen=True, eq=False)
class _PathEquations:
    """Normal equations of u and v, the path of a source."""

    G: Float[Tensor, "*S 4 4"]
    b: Float[Tensor, "*S 4 1"]

    @classmethod
    def of(cls, X: Complex[Tensor, "*S L M 2"], rest: Complex[Tensor, "*S L M"]) -> _PathEquations:
        """From the change of the field with azimuth and elevation, and the residual."""
        X = torch.cat((X, _times(X.shape[-3], X.device)[:, None] * X), dim=-1).flatten(-3, -2)
        G = (X.mH @ X).real
        level = G.diagonal(dim1=-2, dim2=-1).mean(-1)
        tiny = torch.where(level > 0, 1e-9 * level, 1.0)[..., None].expand(*level.shape, 4)
        return cls(G + torch.diag_embed(tiny), (X.mH @ rest.flatten(-2).unsqueeze(-1)).real)

    def solve(self, *, moves: bool) -> tuple[Float[Tensor, "*S 4"], Float[Tensor, "*S"]]:
        """Least-squares u and v, and the energy that they explain; v is 0 unless the source moves."""
        free = 4 if moves else 2
        b = self.b[..., :free, :]
        change = torch.linalg.solve(self.G[..., :free, :free], b)
        return torch.nn.functional.pad(change[..., 0], (0, 4 - free)), (b * change).sum((-2, -1))


def _times(snapshots: int, device: torch.device) -> Float[Tensor, "L 1"]:
    """t_l from -1/2 to 1/2."""
    return torch.linspace(-0.5, 0.5, snapshots, dtype=torch.float64, device=device)[:, None]


class _Path:
    """One source of each of B scenes, ``which``, moves, the others rest."""

    def __init__(self, recording: Recording, positions: Tensor, active: Tensor, which: Tensor) -> None:
        self.recording, self.active = recording, active
        self.rows = torch.arange(len(positions), device=which.device)
        self.which, self.start = which, positions[self.rows, which]
        A = steering(recording.panel, positions[..., 0], positions[..., 1], 1 / positions[..., 2])
        L = recording.snapshots.shape[1]
        resting = recording.link.to(torch.complex128).matmul(A * active[:, None]).expand(-1, L, -1, -1)
        self.resting, self.y = resting, recording.snapshots.to(torch.complex128)
        self.t = _times(L, which.device)

    def __getitem__(self, rows: Tensor) -> _Path:
        """The paths of some scenes."""
        part = copy(self)
        part.recording, part.active = self.recording[rows], self.active[rows]
        part.rows, part.which, part.start = self.rows[: len(rows)], self.which[rows], self.start[rows]
        part.resting, part.y = self.resting[rows], self.y[rows]
        return part

    def fit(
        self, *, moves: bool = True, least: Float[Tensor, "B"] | None = None
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 4"]]:
        """The log-likelihood ratio against the estimate (nats), and u and v (0 at rest).

        Paths that will not get to a ratio of ``least`` are not followed to their end.
        """
        _, L, M = self.y.shape
        ends = self.start.new_zeros(len(self.start), 4)
        first, change = self._step(ends, moves)
        freedom = L * (M - self.active.sum(-1))
        gains, rows, at, path = torch.zeros_like(first), self.rows, self, ends
        for _ in range(_STEPS):
            path = path + change
            energy, change = at._step(path, moves)
            gain = freedom[rows] * (first[rows] / energy).log()
            step = gain - gains[rows]
            better = step > 0
            gains[rows[better]], ends[rows[better]] = gain[better], path[better]
            if least is not None:
                within = gains[rows] + _FURTHER * (step.clamp_min(0) + 1) > least[rows]
                kept = within.nonzero()[:, 0]
                if len(kept) == 0:
                    break
                if len(kept) < len(rows):
                    at, rows, path, change = at[kept], rows[kept], path[kept], change[kept]
        return gains, ends

    def _step(
        self, path: Float[Tensor, "B 4"], moves: bool
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 4"]]:
        """Energy of the residual along a path, and the Gauss-Newton step from there."""
        azimuth, elevation = (
            self.start[:, None, :2] + path[:, None, :2] + self.t * path[:, None, 2:]
        ).unbind(-1)
        distance = (1 / self.start[:, 2:]).expand_as(azimuth)
        A, log_derivatives = steering_with_log_derivatives(self.recording.panel, azimuth, elevation, distance)
        link = self.recording.link.to(torch.complex128)
        C = self.resting.clone()
        C[self.rows, :, :, self.which] = link.apply(A.mT)
        D = torch.stack([link.apply((log_derivatives[..., axis] * A).mT) for axis in range(2)], dim=-1)
        Q = orthonormal(C)
        rest = outside(Q, self.y[..., None])[..., 0]
        s = _least_squares(C, self.y)[self.rows, :, self.which]
        equations = _PathEquations.of(outside(Q, D) * s[:, :, None, None], rest)
        change = equations.solve(moves=moves)[0]
        # Where the pattern hides the source, the equations would send it around the panel many times.
        reach = (change[:, :2].abs() + change[:, 2:].abs() / 2).amax(-1, keepdim=True)
        # Where it has no derivative, in the plane of an element, the path ends.
        change = torch.where(reach.isfinite(), change * (_FARTHEST / reach).clamp_max(1), 0)
        return squared_modulus(rest).sum((1, 2)), change


@dataclass(frozen=True, eq=False)
class _BesideSources:
    """The residual of a block of scenes, and the fields that small changes of direction leave in it."""

    rest: Complex[Tensor, "S L M"]  # r, the data without the fields of the sources
    B: Complex[Tensor, "S L M K 2"]  # derivatives of the sources' fields by the two angles, without fields
    symbols: Complex[Tensor, "S L K"]  # least-squares symbols
    sigma2: Float[Tensor, "S"]  # noise variance
    power: Float[Tensor, "S K"]  # of the sources, 0 where there is none


def _beside_sources(recording: Recording, sources: Sources) -> Iterator[tuple[slice, _BesideSources]]:
    recording = recording.stacked()
    positions, active = unpack(sources, recording)
    assert sources.power is not None
    S, L, M = recording.snapshots.shape
    for block in blocks(S, 64 * L * M * (8 * active.shape[1] + 1), positions.device):
        part, there = recording[block], active[block]
        azimuth, elevation, q = positions[block].unbind(-1)
        A, log_derivatives = steering_with_log_derivatives(part.panel, azimuth, elevation, 1 / q)
        A = A * there[:, None]
        # Only directions: a change of the range is harder to see.
        D = (log_derivatives[..., :2] * A[..., None]).flatten(-2)
        link, y = part.link.to(torch.complex128), part.snapshots.to(torch.complex128)
        C = link.matmul(A).expand(-1, L, -1, -1)
        Q = orthonormal(C)
        B = link.matmul(D).expand(-1, L, -1, -1)
        B = outside(Q, B).unflatten(-1, (-1, 2))
        rest = outside(Q, y[..., None])[..., 0]
        sigma2 = squared_modulus(rest).sum((1, 2)) / residual_dimensions(there, L, M)
        power = torch.where(there, sources.power[block].double(), 0)
        yield block, _BesideSources(rest, B, _least_squares(C, y), sigma2, power)


def whitened_by(recording: Recording, diffuse: Float[Tensor, "S"]) -> Recording:
    r"""Data and channel whitened by :math:`\Sigma = I + \tau H H^H`."""
    assert recording.channel is not None
    H, y = recording.channel.to(torch.complex128), recording.snapshots.to(torch.complex128)
    H, y = whiten(torch.linalg.cholesky(covariance_through_panel(H, diffuse)), H, y)
    dtype = recording.snapshots.dtype
    return replace(recording, channel=H.to(dtype), snapshots=y.to(dtype), noise_variance=None)


@dataclass(frozen=True, eq=False)
class _Residual(Batch):
    """The data without the sources' fields, for one level of the diffuse noise in each scene."""

    H: Complex[Tensor, "S M N"] | None  # whitened channel
    field: Complex[Tensor, "S L N"]  # c_l times A s_l
    basis: Complex[Tensor, "S L M K"]  # orthonormal, of the whitened C_l
    rest: Complex[Tensor, "S L M"]  # the residual r
    freedom: Float[Tensor, "S"]  # D

    @classmethod
    def of(
        cls,
        recording: Recording,
        on_panel: Tensor,
        active: Tensor,
        diffuse: float | Tensor,
        *,
        subcarriers: int = 1,
    ) -> _Residual:
        """Project the sources out of the data, whitened by the diffuse noise.

        ``on_panel`` are the fields of the sources (:func:`fields_on_panel`). Their unknown positions count
        for each of the subcarriers in part.
        """
        H, y = recording.channel, recording.snapshots.to(torch.complex128)
        S, L, M = y.shape
        if H is not None:
            H = H.to(torch.complex128).expand(S, -1, -1)
        tau = torch.as_tensor(diffuse, dtype=torch.float64, device=y.device).expand(S)
        if bool((tau > 0).any()):
            assert H is not None
            H, y = whiten(torch.linalg.cholesky(covariance_through_panel(H, tau)), H, y)
        fields = on_panel if H is None else _through(on_panel, H)  # C_l^T, [S, L, K, M]
        C = fields.expand(S, L, -1, M).mT  # [S, L, M, K]
        Q = orthonormal(C)
        rest = outside(Q, y[..., None])[..., 0]
        field = (on_panel * _least_squares(C, y)[..., None]).sum(-2)
        return cls(H, field, Q, rest, residual_dimensions(active, L, M, subcarriers))

    def normal_equations(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """W with a mean eigenvalue of 1, z for a residual of unit energy, and the mean eigenvalue."""
        H, f, Q, rest = self.H, self.field, self.basis, self.rest
        scale = [_unit(part) for part in (f, rest)]
        f, rest, Q = (f / scale[0]).to(dtype), (rest / scale[1]).to(dtype), Q.to(dtype)
        S, L, M, K = Q.shape
        if H is not None:
            scale.append(_unit(H))
            H = (H / scale[2]).to(dtype)
        overlap = Q.mH.reshape(S, L * K, M)  # Q_l^H H
        overlap = (overlap if H is None else overlap @ H).unflatten(1, (L, K))
        E = (overlap * f[..., None, :]).flatten(1, 2)  # Q_l^H J_l
        HH = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device) if H is None else H.mH @ H
        W = HH * (f.mH @ f) - E.mH @ E
        z = (f.conj() * (rest if H is None else rest @ H.conj())).sum(1)
        mean = W.diagonal(dim1=-2, dim2=-1).real.mean(-1).clamp_min(torch.finfo(dtype).tiny)
        units = scale[0] if H is None else scale[0] * scale[2]
        # Complex numbers are divided more slowly than their parts.
        torch.view_as_real(W).div_(mean[:, None, None, None])
        return W, z / mean.sqrt()[:, None], mean.double() * units[:, 0, 0] ** 2


def _panel_error(
    residuals: Sequence[_Residual], least: Float[Tensor, "S"]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Log evidence that a panel error adds, and its size; minus infinity without sources.

    There is one residual for each subcarrier. Ratios are compared in single precision. Those that a bound of
    the evidence excludes, or that end below ``least``, are not tried. Where an error is probable, the best
    ratios are computed again in double precision.
    """
    energy, field, all_freedom = (
        torch.stack(values).sum(0)
        for values in zip(
            *((_energy(one.rest), _energy(one.field), one.freedom) for one in residuals), strict=True
        )
    )
    gain, error = torch.full_like(energy, -math.inf), torch.zeros_like(energy)
    values = gain[:, None].repeat(1, len(_RATIOS))

    def tried(scenes: Tensor, number: int, W: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Try a ratio, and return the log determinant and the share that is explained."""
        share, log_det = _explained(W, z, W.new_full((len(W),), _RATIOS[number]).real)
        left, freedom = (1 - share).clamp_min(1e-12), all_freedom[scenes]
        value = -freedom * left.log() - log_det + _LOG_RATIO
        size = (_RATIOS[number] / mean * left * energy[scenes] / freedom).sqrt()
        if W.dtype == torch.complex64:  # too little is left to tell how little
            value = torch.where(share < _CERTAIN, value, math.inf)
        values[scenes, number] = value
        take = (value > gain[scenes]) & (size <= _MOST_ERROR)
        gain[scenes], error[scenes] = (
            torch.where(take, one, other[scenes]) for one, other in ((value, gain), (size, error))
        )
        return log_det, share

    live = (field > 0).nonzero()[:, 0]
    if len(live) == 0:
        return gain, error
    W, z, mean = _summed_equations([one[live] for one in residuals], torch.complex64)
    ratios, last = torch.tensor(_RATIOS, dtype=torch.float64), len(_RATIOS) - 1
    log_det, share = tried(live, last, W, z, mean)
    most = _most_explained(W, z, share, all_freedom[live]) + _LOG_RATIO
    fewest = _least_log_det(W, log_det)
    before = torch.zeros_like(mean)
    for number in range(last):
        bound = (most - fewest)[:, number:last].amax(1)
        kept = (bound > torch.maximum(gain[live], least[live])).nonzero()[:, 0]
        if len(kept) == 0:
            break
        if len(kept) < len(live):
            W, z = W[kept], z[kept]
            live, mean, most, fewest, before = (one[kept] for one in (live, mean, most, fewest, before))
        log_det, _ = tried(live, number, W, z, mean)
        if number:
            # The log determinant is convex in the logarithm of the ratio.
            steps = (ratios[number:] / ratios[number]).log() / (ratios[number] / ratios[number - 1]).log()
            later = log_det[:, None] + (log_det - before)[:, None] * steps.to(log_det.device)
            fewest[:, number:] = torch.maximum(fewest[:, number:], later)
        before = log_det
    live = (gain > least.clamp_min(0)).nonzero()[:, 0]
    if len(live):
        near = values[live] > gain[live, None] - 2 * _SINGLE_NATS
        gain[live], error[live] = -math.inf, 0.0
        W, z, mean = _summed_equations([one[live] for one in residuals], torch.complex128)
        for number in range(len(_RATIOS)):
            some = near[:, number].nonzero()[:, 0]
            if len(some):
                tried(live[some], number, W[some], z[some], mean[some])
    return gain, error


def _summed_equations(residuals: Sequence[_Residual], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The normal equations of all subcarriers, scaled as those of one; see :class:`_Residual`."""
    if len(residuals) == 1:
        return residuals[0].normal_equations(dtype)
    parts = [one.normal_equations(dtype) for one in residuals]
    means = torch.stack([mean for *_, mean in parts])
    energies = torch.stack([_energy(one.rest) for one in residuals])
    real = parts[0][0].real.dtype
    of_W = (means / means.sum(0)).to(real)
    of_z = (means * energies / (means.sum(0) * energies.sum(0)).clamp_min(1e-300)).sqrt().to(real)
    W, z = torch.zeros_like(parts[0][0]), torch.zeros_like(parts[0][1])
    for (part, right, _), share, root in zip(parts, of_W, of_z, strict=True):
        W += part * share[:, None, None]
        z += right * root[:, None]
    return W, z, means.sum(0)


def _unit(value: Complex[Tensor, "S _ _"]) -> Float[Tensor, "S 1 1"]:
    """Norm of an array; 1 if it is zero."""
    norm = _energy(value).sqrt()[:, None, None]
    return torch.where(norm > 0, norm, 1)


def _energy(value: Complex[Tensor, "S _ _"]) -> Float[Tensor, "S"]:
    """Sum of squared moduli."""
    return torch.view_as_real(value).square().sum((1, 2, 3))


def _most_explained(
    W: Complex[Tensor, "B N N"],
    z: Complex[Tensor, "B N"],
    largest: Float[Tensor, "B"],
    freedom: Float[Tensor, "B"],
) -> Float[Tensor, "B ratios"]:
    r"""Upper bound of :math:`-D \log(1 - \rho\, z^H (I + \rho W)^{-1} z)`, infinite where z is explained.

    The quadratic form is bounded by Gauss-Radau quadrature with a node at 0, from the Lanczos recursion
    (Golub and Meurant, *Matrices, Moments and Quadrature with Applications*, 2010, chapters 6 and 7), and by
    its value at the largest ratio.
    """
    share = torch.minimum(_explained_at_most(W, z), largest[:, None])
    most = torch.where(share < _CERTAIN, -freedom[:, None] * (1 - share).log(), math.inf)
    return most + _SINGLE_NATS


def _explained_at_most(W: Complex[Tensor, "B N N"], z: Complex[Tensor, "B N"]) -> Float[Tensor, "B ratios"]:
    r"""Upper bound of :math:`\rho\, z^H (I + \rho W)^{-1} z`; see :func:`_most_explained`."""
    if z.dtype == torch.complex64 and z.device.type == "cpu" and compiled_fits() is not None:
        kernel = import_module("rismusic.estimation.model_error_kernel")
        compiled: Tensor = kernel.explained_at_most(W, z, _RATIOS, _LANCZOS)
        return compiled
    tiny = torch.finfo(torch.float32).tiny
    ratios = W.real.new_tensor(_RATIOS, dtype=torch.float64)
    energy = squared_modulus(z).double().sum(-1)
    # W v as one real product: [Re v, -Im v] and [Im v, Re v] meet real and imaginary parts of the rows of W.
    rows = torch.view_as_real(W).flatten(2).mT
    v, last = z / energy.sqrt().clamp_min(tiny).to(z.real.dtype)[:, None], torch.zeros_like(z)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = [torch.zeros_like(energy)]  # squared
    for _ in range(_LANCZOS):
        both = torch.view_as_real(torch.stack((v.conj().resolve_conj(), 1j * v.conj()), dim=1)).flatten(2)
        w = torch.complex(*(both @ rows).unbind(1)) - beside[-1].sqrt().to(z.real.dtype)[:, None] * last
        diagonal.append((v.conj() * w).sum(-1).real.double())
        w = w - diagonal[-1].to(z.real.dtype)[:, None] * v
        beside.append(squared_modulus(w).double().sum(-1))
        v, last = w / beside[-1].sqrt().clamp_min(tiny).to(z.real.dtype)[:, None], v
    pivot = diagonal[0]
    for number in range(1, _LANCZOS):
        pivot = diagonal[number] - beside[number] / pivot.clamp_min(tiny)
    fraction = 1 + ratios * (beside[-1] / pivot.clamp_min(tiny))[:, None]
    for number in reversed(range(_LANCZOS)):
        fraction = (
            1
            + ratios * diagonal[number][:, None]
            - (ratios.square() * beside[number + 1][:, None] / fraction)
        )
    return ratios * energy[:, None] / fraction


def _least_log_det(W: Complex[Tensor, "B N N"], largest: Float[Tensor, "B"]) -> Float[Tensor, "B ratios"]:
    r"""Lower bound of :math:`\log\det(I + \rho W)`: Gauss-Radau quadrature with a node at 0.

    From the value at the largest ratio, it falls by no more than N nats while the ratio falls by a factor e.
    """
    first = W.diagonal(dim1=-2, dim2=-1).real.double().sum(-1, keepdim=True)
    second = _energy(W).double()[:, None].clamp_min(torch.finfo(torch.float32).tiny)
    ratios = first.new_tensor(_RATIOS)
    spread = first.square() / second * (ratios * second / first.clamp_min(1e-30)).log1p()
    steep = largest[:, None] - W.shape[-1] * (ratios[-1] / ratios).log()
    return torch.maximum(spread, steep - _SINGLE_NATS)


def _explained(
    W: Complex[Tensor, "S N N"], z: Complex[Tensor, "S N"], rho: Float[Tensor, "S"]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S"]]:
    r""":math:`\rho\, z^H (I + \rho W)^{-1} z` and :math:`\log\det(I + \rho W)`, in double precision."""
    inner = rho[:, None, None] * W
    inner.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky_ex(inner).L
    white = torch.linalg.solve_triangular(factor, z[..., None], upper=False)[..., 0]
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).real.double().log().sum(-1)
    return rho.double() * squared_modulus(white).double().sum(-1), log_det


def fields_on_panel(recording: Recording, positions: Tensor, active: Tensor) -> Complex[Tensor, "S _ K N"]:
    """c_l times the steering vector of each source, [S, L or 1, K, N]."""
    azimuth, elevation, q = positions.unbind(-1)
    A = (steering(recording.panel, azimuth, elevation, 1 / q) * active[:, None]).mT[:, None]
    codes = recording.codes
    return A if codes is None else A * codes.to(torch.complex128)[..., None, :]


def _through(P: Complex[Tensor, "S _ K N"], H: Complex[Tensor, "S M N"]) -> Complex[Tensor, "S _ K M"]:
    """Fields on the panel at the receiver, in one matrix product for each scene."""
    return (P.flatten(1, 2) @ H.mT).unflatten(1, P.shape[1:3])


def residual_dimensions(
    active: Bool[Tensor, "S K"], snapshots: int, outputs: int, subcarriers: int = 1
) -> Float[Tensor, "S"]:
    """Complex dimensions D of the residual of one subcarrier."""
    count = active.sum(-1)
    return (snapshots * (outputs - count) - 1.5 / subcarriers * count).double()


def _least_squares(C: Complex[Tensor, "S L M K"], y: Complex[Tensor, "S L M"]) -> Complex[Tensor, "S L K"]:
    """Least-squares symbols; 0 without a source, and in snapshots in which the RIS is off."""
    gram = C.mH @ C
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    gram = gram + torch.diag_embed(torch.where(diagonal > 0, 1e-12 * diagonal, 1.0)).to(gram.dtype)
    return torch.linalg.solve(gram, C.mH @ y[..., None])[..., 0]
