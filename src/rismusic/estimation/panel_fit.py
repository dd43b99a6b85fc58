r"""Joint fit of one panel's responses and element positions to all scenes of a recording.

The model of :mod:`rismusic.estimation.calibration` with errors that all scenes share,

.. math:: y_{il} = H_i\, \mathrm{diag}(c_{il})\, \mathrm{diag}(1 + e)\, A(x_i, p + d)\, s_{il} + n_{il},

for scene i and snapshot l: the errors e [N] of the responses and the offsets d [N, 3] of the elements belong
to the panel, positions :math:`x_i` and symbols :math:`s_{il}` to the scene. The priors of e are those of the
single scene. The offsets along each axis have the prior :math:`N(0, v)`, whose variance is re-estimated.

Each Gauss-Newton step eliminates the symbols within each snapshot, then the 3K coordinates within each scene.
What is left for the panel's real unknowns :math:`\theta` = (Re e, Im e, d) adds up over the scenes, weighted
with the inverse of their noise variance; the sum [5N, 5N] is solved, and the steps of the coordinates follow
by back-substitution. The symbols are always those of highest posterior density for the present e, d and x
(variable projection).

The data do not determine all unknowns. The symbols absorb a common factor of the responses. If the positions
are unknown, a phase gradient over the panel turns all directions, a curvature of the phase changes all
ranges, and offsets that are a common motion of the panel move all sources. The priors, whose mean is the
nominal panel, choose the smallest errors among all that fit equally well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from rismusic.array import steering, steering_with_log_derivatives
from rismusic.covariance import squared_modulus
from rismusic.devices import blocks
from rismusic.errors import InputError
from rismusic.estimation.calibration import _SHAPES, field_covariance, whitened
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import fit_power_noise, pack, unpack
from rismusic.io import Recording
from rismusic.sources import Sources

HALF_SPACE = Volume(math.pi / 2 - 1e-6, math.pi / 2 - 1e-6, 1e-3, 1e9)
"""In front of a panel."""
MAX_ELEMENTS = 1024
"""Largest number of elements, since the equations of the panel are dense."""

# Ridge relative to a unit diagonal.
_RIDGE = 1e-12
_STEPS, _FIRST_DAMPING, _MOST_DAMPING = 15, 1e-3, 1e8
# The fit has converged when a step is below this share of the standard deviations (root mean square).
_TOLERANCE = 0.05
_DIFFERENCE = 1e-4  # step of the finite differences by the element positions, in wavelengths
_LEAST_OFFSET = 1e-4  # smallest standard deviation of the prior of the offsets, in wavelengths
# Largest share of the noise's degrees of freedom that the fit may take.
_LEAST_FREEDOM = 0.1
_LARGEST_ERROR = 0.5
_MOST_UNEXPLAINED = 0.95  # share of the power of all scenes beyond which the sources explain nothing
# Noise variances that are tried, relative to the fitted one, where none is recorded.
_NOISE_LEVELS = (0.3, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1)
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class PanelFit:
    """Result of :func:`fit_panel`."""

    response: Complex[Tensor, "N"]  # 1 + e
    response_std: Float[Tensor, "N"]
    offsets: Float[Tensor, "N 3"]  # d in metres
    sources: Sources
    noise: Float[Tensor, "S"]  # noise variance after the fit, with all that the model does not explain
    remaining_error: float  # RMS of the response errors that change between snapshots or scenes
    converged: bool


def fit_panel(
    recording: Recording,
    start: Sources,
    volume: Volume,
    *,
    panel_error: float,
    position_error: float,
    remaining_error: float,
    known_positions: bool,
    first: PanelFit | None = None,
) -> PanelFit:
    """Fit responses, offsets and, unless they are known, the source positions.

    Args:
        recording: S narrowband scenes with independent symbols and the nominal panel.
        start: positions, the true ones if ``known_positions``.
        volume: the box that bounds the positions.
        panel_error: root mean square of the relative error of the responses (prior), positive.
        position_error: standard deviation of the offsets along each axis (prior), metres; 0 for no offsets.
        remaining_error: root mean square of the errors that are treated as noise.
        known_positions: whether the positions are held.
        first: a previous fit to start from.
    """
    if not panel_error > 0:
        raise InputError("panel_error", f"must be positive; got {panel_error:g}")
    N = len(recording.elements)
    positions, active = unpack(start, recording)
    white = whitened(recording, remaining_error)
    power = torch.where(active, fit_power_noise(white, positions, active)[0].double(), 1).clamp_min(_TINY)
    unknowns = Unknowns(
        e=torch.zeros(N, dtype=torch.complex128) if first is None else first.response - 1,
        d=torch.zeros(N, 3, dtype=torch.float64) if first is None else first.offsets,
        x=positions,
    )
    problem = Problem(white, active, power, volume, known_positions=known_positions)
    end, variance, converged = _iterate(problem, unknowns, panel_error, position_error)
    return PanelFit(
        response=1 + end.e,
        response_std=_response_std(problem.system(end, variance), variance),
        offsets=end.d,
        sources=start if known_positions else pack(end.x, active),
        noise=problem.noise,
        remaining_error=_remaining_error(recording, problem, end),
        converged=converged,
    )


@dataclass(frozen=True, eq=False)
class Unknowns:
    """Errors e of the responses, offsets d, and azimuth, elevation and 1/range x of the sources."""

    e: Complex[Tensor, "N"]
    d: Float[Tensor, "N 3"]
    x: Float[Tensor, "S K 3"]

    def parts(self) -> Float[Tensor, "_"]:
        """The real unknowns of the panel: Re e, Im e, then the offsets along x, y and z."""
        return torch.cat((self.e.real, self.e.imag, self.d.mT.flatten()))

    def moved(self, panel: Float[Tensor, "_"], x: Float[Tensor, "S K 3"]) -> Unknowns:
        """After a step of the panel, with other coordinates."""
        real, imaginary, *offsets = panel.unflatten(0, (5, -1)).unbind(0)
        return Unknowns(self.e + torch.complex(real, imaginary), self.d + torch.stack(offsets, dim=-1), x)


class Problem:
    """Scenes with independent symbols; evaluates the objective and the equations of a step."""

    def __init__(
        self,
        recording: Recording,
        active: Bool[Tensor, "S K"],
        power: Float[Tensor, "S K"],
        volume: Volume,
        *,
        known_positions: bool,
    ) -> None:
        assert recording.noise_variance is not None
        self.panel, self.active, self.power = recording.panel, active, power
        self.link = recording.link.to(torch.complex128)
        self.y = recording.snapshots.to(torch.complex128)
        self.noise = recording.noise_variance.double().clamp_min(_TINY)
        self.known_positions = known_positions
        _, L, M = self.y.shape
        self.freedom = L * M - L * active.sum(-1).double()  # of the residual of each scene (complex)
        self.known = 0.0  # share of the panel's unknowns (complex) in each scene
        self.volume = volume
        self.low, self.high = (power.new_tensor(limit) for limit in (volume.lower, volume.upper))

    def __len__(self) -> int:
        return len(self.y)

    def clamp(self, x: Float[Tensor, "S K 3"]) -> Float[Tensor, "S K 3"]:
        """Positions moved into the volume."""
        return x if self.known_positions else torch.minimum(torch.maximum(x, self.low), self.high)

    def model(self, at: Unknowns) -> Iterator[_Scenes]:
        """Models of blocks of scenes at the present unknowns."""
        N, K = len(self.panel.elements), self.active.shape[1]
        L, M = self.y.shape[1:]
        each = 16 * (12 * N * K + 2 * L * N * K + 8 * L * M * K)
        for block in blocks(len(self), each, self.y.device):
            yield _Scenes(self, at, block)

    def residuals(self, at: Unknowns) -> tuple[Tensor, Tensor]:
        """Symbols [S, L, K] of highest posterior density, and residuals [S, L, M]."""
        parts = [(one.s, one.rest) for one in self.model(at)]
        symbols, rest = zip(*parts, strict=True)
        return torch.cat(symbols), torch.cat(rest)

    def value(self, at: Unknowns, prior: Float[Tensor, "_"]) -> Float[Tensor, ""]:
        """Negative log posterior density for fixed variances of noise and prior."""
        s, rest = self.residuals(at)
        fit = (squared_modulus(rest).sum((1, 2)) / self.noise).sum()
        return (
            fit + (squared_modulus(s) / self.power[:, None]).sum() + (at.parts().square() / (2 * prior)).sum()
        )

    def system(self, at: Unknowns, prior: Float[Tensor, "_"], damping: float = 0.0) -> System:
        """The equations of a Gauss-Newton step."""
        N = len(at.e)
        total = torch.zeros(4 * N, 4 * N, dtype=torch.complex128)
        right = torch.zeros(4 * N, 1, dtype=torch.complex128)
        back = []
        for scenes in self.model(at):
            for i in range(len(scenes)):
                coupling, F, pull = scenes.add_equations(i, total, right)
                if self.known_positions:
                    continue
                diagonal = F.diagonal()
                scale = torch.where(diagonal > _TINY, diagonal.clamp_min(_TINY).rsqrt(), 0)
                ridge = torch.where(scale > 0, _RIDGE + damping, 1.0)
                factor = torch.linalg.cholesky(F * scale[:, None] * scale + torch.diag(ridge))
                columns = torch.cat((_real_rows(coupling, N).mT, pull[:, None]), dim=1)
                white = torch.linalg.solve_triangular(factor, scale[:, None] * columns, upper=False)
                back.append((factor, scale, white[:, :-1], white[:, -1:]))
        matrix, aim = _real_square(total, N), _real_rows(right, N)[:, 0]
        if back:
            white = torch.cat([one[2] for one in back])
            matrix = matrix - white.mT @ white
            aim = aim - (white.mT @ torch.cat([one[3] for one in back]))[:, 0]
        stiff = 1 / (2 * prior)
        return System(matrix + torch.diag(stiff), aim - stiff * at.parts(), back, damping)


class _Scenes:
    """A block of scenes: model, symbols of highest posterior density, and normal equations."""

    def __init__(self, problem: Problem, at: Unknowns, block: slice) -> None:
        self.panel = problem.panel.replace(elements=problem.panel.elements + at.d)
        self.link, self.e, self.noise = problem.link[block], at.e, problem.noise[block]
        self.active, y = problem.active[block], problem.y[block]
        azimuth, elevation, q = at.x[block].unbind(-1)
        self.positions = azimuth, elevation, 1 / q
        A, log_derivatives = steering_with_log_derivatives(self.panel, *self.positions)
        self.A = A.to(torch.complex128) * self.active[:, None]  # [S, N, K]
        self.D = (log_derivatives * self.A[..., None]).flatten(2)  # [S, N, 3 K]
        self.C = self.link.matmul((1 + at.e)[:, None] * self.A).expand(-1, y.shape[1], -1, -1)
        power = torch.where(self.active, problem.power[block], 1)
        inner = self.C.mH @ self.C + torch.diag_embed(self.noise[:, None] / power).unsqueeze(1)
        self.factor = torch.linalg.cholesky(inner)
        self.s = torch.cholesky_solve(self.C.mH @ y[..., None], self.factor)[..., 0]
        self.rest = y - (self.C @ self.s[..., None])[..., 0]

    def __len__(self) -> int:
        return len(self.rest)

    @cached_property
    def by_offset(self) -> list[Complex[Tensor, "S N K"]]:
        """Derivatives of the steering vectors by the offsets, without that of their common norm.

        The symbols absorb the norm.
        """
        h = _DIFFERENCE * self.panel.wavelength
        derivatives = []
        for axis in range(3):
            shift = torch.zeros(3, dtype=torch.float64)
            shift[axis] = h
            ahead, behind = (
                steering(self.panel.replace(elements=self.panel.elements + sign * shift), *self.positions)
                for sign in (1, -1)
            )
            derivatives.append((ahead - behind).to(torch.complex128) * self.active[:, None] / (2 * h))
        return derivatives

    @cached_property
    def by_position(self) -> Complex[Tensor, "S L M _"]:
        """Derivatives of the received signal by the coordinates, [S, L, M, 3 K]."""
        B = self.link.matmul((1 + self.e)[:, None] * self.D).expand(-1, self.s.shape[1], -1, -1)
        return B * self.s.repeat_interleave(3, dim=-1)[:, :, None]

    def add_equations(
        self, i: int, total: Complex[Tensor, "n n"], right: Complex[Tensor, "n 1"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the normal equations of a scene for (e, d), without its symbols, to those of other scenes.

        The symbols are optimal, so that the residual needs no projection. Returned are the coupling [4N, 3K]
        of (e, d) to the coordinates, and matrix and right side of the coordinates.
        """
        N = len(self.e)
        s, C, factor, noise = self.s[i], self.C[i], self.factor[i], self.noise[i]
        H, codes = (
            None if value is None else (value[i] if value.ndim == 3 else value)
            for value in (self.link.channel, self.link.codes)
        )
        # Fields on the panel, changed by e and by the offsets: [L, 4, N].
        response = (1 + self.e)[:, None]
        W = torch.stack([s @ self.A[i].mT, *(s @ (response * D[i]).mT for D in self.by_offset)], dim=1)
        W = W if codes is None else W * codes[:, None]
        flat = W.flatten(1)
        Q = (flat.mH @ flat).view(4, N, 4, N)
        Q *= (torch.eye(N, dtype=Q.dtype) if H is None else H.mH @ H)[:, None, :] / noise
        total += Q.view_as(total)

        def back(columns: Tensor) -> Tensor:
            """Conjugate of J_l^H columns, [L, columns, 4 N]."""
            rows = columns.mH if H is None else columns.mH @ H
            return (rows[:, :, None] * W[:, None]).flatten(2)

        E = torch.linalg.solve_triangular(factor, back(C), upper=False).flatten(0, 1)  # [L K, 4 N]
        total.addmm_(E.mH, E, alpha=-1 / float(noise))
        right += back(self.rest[i][..., None]).conj().sum(0).mT / noise
        B = self.by_position[i]
        T = torch.linalg.solve_triangular(factor, C.mH @ B, upper=False).flatten(0, 1)
        coupling = back(B).conj().sum(0).mT - E.mH @ T
        F = (B.mH @ B).sum(0).real - (T.mH @ T).real
        pull = (B.mH @ self.rest[i][..., None]).sum(0)[:, 0].real
        return coupling / noise, F / noise, pull / noise


@dataclass(frozen=True, eq=False)
class System:
    """Equations of a Gauss-Newton step for the panel, and what the coordinates need to follow."""

    matrix: Float[Tensor, "n n"]
    right: Float[Tensor, "n"]
    back: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    damping: float

    def solve(self) -> tuple[Float[Tensor, "n"], list[Tensor]]:
        """Steps of the panel and of the coordinates of each scene."""
        damped = self.matrix + self.damping * torch.diag(self.matrix.diagonal())
        step = torch.cholesky_solve(self.right[:, None], _factor(damped))
        follow = []
        for factor, scale, white, aim in self.back:
            follow.append(
                scale * torch.linalg.solve_triangular(factor.mT, aim - white @ step, upper=True)[:, 0]
            )
        return step[:, 0], follow

    @cached_property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Posterior covariance of the panel's unknowns."""
        return torch.cholesky_inverse(_factor(self.matrix)) / 2


def _factor(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise InputError(
            "snapshots",
            "responses and offsets of the elements cannot be told apart in double precision: the powers of "
            "elements or scenes differ by too many orders of magnitude (rismusic check names loud antennas)",
        )
    return factor


def _iterate(
    problem: Problem, at: Unknowns, panel_error: float, position_error: float
) -> tuple[Unknowns, Float[Tensor, "_"], bool]:
    """Levenberg-Marquardt steps, with the variances of noise and prior updated between them."""
    N = len(at.e)
    shape = torch.tensor(_SHAPES, dtype=torch.float64).repeat_interleave(N)
    first = panel_error**2 / 2
    rate = first * (shape - 1)
    # An offset that is not estimated has a prior so narrow that it stays 0.
    fixed = position_error == 0
    offset = (1e-12 if fixed else position_error) ** 2
    prior = torch.cat((shape.new_full((2 * N,), first), shape.new_full((3 * N,), offset)))
    least = (_LEAST_OFFSET * problem.panel.wavelength) ** 2
    x = problem.clamp(at.x)
    at = Unknowns(at.e, at.d, x)
    damping, converged = _FIRST_DAMPING, False
    for _ in range(_STEPS):
        value = problem.value(at, prior)
        system = problem.system(at, prior, damping)
        step, follow = system.solve()
        moved = problem.clamp(at.x + torch.stack(follow).view_as(at.x)) if follow else at.x
        new = at.moved(step, moved)
        gain = value - problem.value(new, prior)
        if not gain >= 0:
            damping *= 10
            if damping > _MOST_DAMPING:
                break
            continue
        at, damping = new, max(damping / 5, 1e-9)
        spread = system.covariance.diagonal()
        energy = (at.parts().square() + spread) / 2
        errors = (rate + energy[: 2 * N]) / (shape + 0.5)
        known = float((1 - spread / prior).clamp(0, 1).sum())
        offsets = prior[2 * N :]
        if not fixed:
            by_axis = 2 * energy[2 * N :].unflatten(0, (3, N)).mean(-1)
            offsets = by_axis.clamp_min(least).repeat_interleave(N)
        prior = torch.cat((errors, offsets))
        at = _normalised(problem, at, prior)
        _update_noise(problem, at, known)
        if float((step.square() / spread).mean()) < _TOLERANCE**2:
            converged = True
            break
    return at, prior, converged


def _normalised(problem: Problem, at: Unknowns, prior: Float[Tensor, "_"]) -> Unknowns:
    """Fix the common factor of the responses: the mean response is 1, elements of small prior variance first.

    Symbols and their powers take the factor, so that the likelihood stays.
    """
    N = len(at.e)
    weight = 1 / (prior[:N] + prior[N : 2 * N])
    factor = (weight * (1 + at.e)).sum() / weight.sum()
    problem.power = problem.power * factor.abs().square()
    return Unknowns((1 + at.e) / factor - 1, at.d, at.x)


def _response_std(system: System, prior: Float[Tensor, "_"]) -> Float[Tensor, "N"]:
    """Standard deviations of the responses whose common factor is fixed as in :func:`_normalised`."""
    N = len(prior) // 5
    weight = 1 / (prior[:N] + prior[N : 2 * N])
    fixed = torch.eye(N, dtype=prior.dtype) - weight / weight.sum()
    parts = (system.covariance[:N, :N], system.covariance[N : 2 * N, N : 2 * N])
    return torch.stack([(fixed @ part @ fixed.mT).diagonal() for part in parts]).sum(0).sqrt()


def _update_noise(problem: Problem, at: Unknowns, known: float) -> None:
    """Noise variance of each scene from its residual; ``known`` unknowns of the panel are shared by all."""
    _, rest = problem.residuals(at)
    _, L, M = problem.y.shape
    fitted = problem.volume.free_coordinates(problem.panel, at.x, problem.active)
    problem.known = known / 2 / len(problem)
    problem.freedom = L * M - L * problem.active.sum(-1) - problem.known
    if not problem.known_positions:
        problem.freedom = problem.freedom - fitted / 2
    problem.freedom = problem.freedom.clamp_min(_LEAST_FREEDOM * L * M)
    noise = squared_modulus(rest).sum((1, 2)) / problem.freedom
    problem.noise = torch.where(noise > 0, noise, problem.noise)


def _remaining_error(recording: Recording, problem: Problem, at: Unknowns) -> float:
    """Root mean square of the response errors that the noise of the fit contains, and of those of the fit.

    In new scenes the errors of the fit add as much to the residual as the fit has removed of it in these.
    """
    _, L, M = problem.y.shape
    share = min(problem.known / (L * M), 1 - _LEAST_FREEDOM)
    power = squared_modulus(problem.y).mean((1, 2))
    if float(problem.noise.sum() / power.sum()) > _MOST_UNEXPLAINED:
        raise InputError(
            "known_positions" if problem.known_positions else "recording",
            "whatever the responses of the elements, sources at these positions do not explain the "
            "snapshots; are they those of these scenes, in their order, in degrees and metres?",
        )
    level = problem.noise / (power - problem.noise).clamp_min(_TINY)
    plain = Problem(whitened(recording, 0.0), problem.active, problem.power, HALF_SPACE, known_positions=True)
    known = recording.noise_variance is not None
    inside = _error_in_noise(plain, at, problem.noise, known_noise=known, share=share)
    return math.hypot(inside, math.sqrt(share * float(level.median())))


def error_in_new_scenes(recording: Recording, sources: Sources, fit: PanelFit) -> float:
    """RMS of the response errors of a fitted panel in scenes, with its sources, that the fit has not seen."""
    positions, active = unpack(sources, recording)
    plain = whitened(recording, 0.0)
    codes = fit.response if plain.codes is None else plain.codes * fit.response
    if plain.codes is None:
        codes = codes.expand(plain.snapshots.shape[1], -1)
    panel = replace(
        plain, codes=codes.to(plain.snapshots.dtype), elements=plain.elements + fit.offsets.to(plain.elements)
    )
    power, noise = fit_power_noise(replace(panel, noise_variance=None), positions, active)
    power = torch.where(active, power.double(), 1).clamp_min(_TINY)
    problem = Problem(panel, active, power, HALF_SPACE, known_positions=True)
    N = len(fit.response)
    nothing = torch.zeros(N, dtype=torch.complex128), torch.zeros(N, 3, dtype=torch.float64)
    known = recording.noise_variance is not None
    return _error_in_noise(
        problem, Unknowns(*nothing, positions), noise.double(), known_noise=known, share=0.0
    )


def _error_in_noise(
    problem: Problem, at: Unknowns, noise: Float[Tensor, "S"], *, known_noise: bool, share: float
) -> float:
    """Root mean square of the response errors that are part of the noise, by maximum likelihood.

    Such errors have the covariance of the whitening, coloured like the field, and noise is white. With
    Gaussian symbols the snapshots have the covariance of symbols, errors and noise together. In a directly
    sampled array the errors are as white as noise; they are taken to be 0 if the noise variance is not known.
    With ``known_noise`` the noise variance of the problem is that of the noise alone; otherwise ``noise`` is
    that of noise and errors together. ``share`` is the share of the residual that the fit has removed.
    """
    link, y = problem.link, problem.y
    M = y.shape[-1]
    eye = torch.eye(M, dtype=y.dtype)
    if link.channel is None and not known_noise:
        return 0.0
    spread = eye if link.channel is None else field_covariance(link.channel, link.codes)
    C = torch.cat([one.C for one in problem.model(at)])  # [S, L, M, K]
    sent = (C * torch.where(problem.active, problem.power, 0)[:, None, None]) @ C.mH
    signal = sent.diagonal(dim1=-2, dim2=-1).real.mean((1, 2))
    scale, levels = (problem.noise, (1.0,)) if known_noise else (noise, _NOISE_LEVELS)

    def cost(error: float) -> float:
        """Least negative log-likelihood over the levels of noise."""
        extra = sent + (error**2 * signal[:, None, None] * spread)[:, None]
        values = []
        for level in levels:
            factor = torch.linalg.cholesky(extra + (level * scale)[:, None, None, None] * eye)
            white = torch.linalg.solve_triangular(factor, y[..., None], upper=False)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum((1, 2))
            values.append(log_det + squared_modulus(white).sum((1, 2, 3)) / (1 - share))
        return float(torch.stack(values).amin(0).sum())

    best = minimize_scalar(cost, bounds=(0.0, _LARGEST_ERROR), method="bounded", options={"xatol": 1e-3})
    return float(best.x)


def _real_square(matrix: Complex[Tensor, "n n"], N: int) -> Float[Tensor, "m m"]:
    """Equations of (e, d), complex, as those of the real unknowns (Re e, Im e, d)."""
    turned = torch.cat((matrix[:, :N], 1j * matrix[:, :N], matrix[:, N:]), dim=1)
    return torch.cat((turned[:N].real, turned[:N].imag, turned[N:].real))


def _real_rows(rows: Complex[Tensor, "n c"], N: int) -> Float[Tensor, "m c"]:
    """Right sides J^H r of (e, d) as those of the real unknowns."""
    return torch.cat((rows[:N].real, rows[:N].imag, rows[N:].real))
