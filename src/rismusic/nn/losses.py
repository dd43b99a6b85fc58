"""Losses: of covariances, of positions and number of sources, their targets, and their weighted total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

from rismusic.array import steering, wrapped
from rismusic.batch import Batch
from rismusic.covariance import (
    Conditioning,
    Covariance,
    blend,
    load_and_shrink,
    predicted_covariance,
    sample_covariance,
    squared_modulus,
    true_covariance,
)
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, from_cosines, to_cosines
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording
from rismusic.nn.network import Prediction
from rismusic.nn.spec import LossSpec, TermName
from rismusic.sources import Sources

# Share of off-diagonal energy below which the target counts as diagonal.
_DIAGONAL = 1e-6


def inner(first: Covariance, second: Covariance) -> Float[Tensor, "*batch"]:
    r"""The Frobenius inner product tr(R T).

    With :math:`R = F F^H + \epsilon I` and :math:`T = G G^H + \eta I`,

    .. math:: \mathrm{tr}(R T) = |F^H G|_F^2 + \eta |F|_F^2 + \epsilon |G|_F^2 + N \epsilon \eta.
    """
    both = _overlap(first.factor, second.factor)
    mixed = second.loading * _total(first.factor) + first.loading * _total(second.factor)
    return both + mixed + first.size * first.loading * second.loading


def covariance_error(covariance: Covariance, target: Covariance) -> Float[Tensor, "*batch"]:
    r"""Squared relative error of R: mean of the errors of its diagonal and of its off-diagonal entries.

    .. math:: \frac12 \frac{|\mathrm{diag}(R - T)|^2}{|\mathrm{diag}(T)|^2}
        + \frac12 \frac{|\mathrm{off}(R - T)|_F^2}{|\mathrm{off}(T)|_F^2},
        \qquad \mathrm{tr} R = \mathrm{tr} T = 1.

    The diagonal entries of a steering covariance are nearly equal and easy to predict; the off-diagonal ones
    hold the positions, and a loading would dominate them in a common norm. Both covariances are scaled to
    trace 1. For a diagonal T, the off-diagonal error is relative to :math:`|T|_F^2`.
    With :math:`R = F F^H + \ldots`, :math:`T = G G^H + \ldots`,

    .. math:: |\mathrm{off}(R - T)|_F^2 = |F^H F|_F^2 - 2 |F^H G|_F^2 + |G^H G|_F^2
        - |\mathrm{diag}(F F^H - G G^H)|^2.

    T is conditioned like R. The error is 0 for R = T (up to rounding, about 1e-7 in float32) and at least 1/2
    for orthogonal ones.
    """
    R, T = covariance.normalised(), target.normalised()
    F, G = R.factor, T.factor
    ours, theirs = squared_modulus(F).sum(-1), squared_modulus(G).sum(-1)
    level = theirs + T.loading[..., None]
    on_diagonal = (ours + R.loading[..., None] - level).square().sum(-1) / level.square().sum(-1)
    overlap = _overlap(F, F) - 2 * _overlap(F, G) + _overlap(G, G)
    off = overlap - (ours - theirs).square().sum(-1)
    scale = _overlap(G, G) - theirs.square().sum(-1)
    whole = inner(T, T)
    return (on_diagonal + off / torch.where(scale > _DIAGONAL * whole, scale, whole)) / 2


def _overlap(F: Complex[Tensor, "*batch N R"], G: Complex[Tensor, "*batch N C"]) -> Float[Tensor, "*batch"]:
    """|F^H G|_F^2."""
    return _total(F.mH @ G)


def _total(values: Complex[Tensor, "*batch R C"]) -> Float[Tensor, "*batch"]:
    return squared_modulus(values).sum((-2, -1))


# Keeps the Gram matrix of coincident or absent sources invertible; columns of A have unit norm.
_RIDGE = 1e-9


@torch.no_grad()
def steering_basis(steering: Complex[Tensor, "*batch N K"]) -> Complex[Tensor, "*batch N K"]:
    r"""Q with :math:`Q Q^H = P = A (A^H A + \epsilon I)^{-1} A^H`, the projector onto the true sources.

    :math:`Q = A C^{-H}`, C the Cholesky factor of :math:`A^H A + \epsilon I`, :math:`\epsilon` = 1e-9, in
    double precision. No gradient flows through it. Columns of A have unit norm; those of A and Q are zero
    where there is no source.
    """
    A = steering.to(torch.complex128)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # ``cholesky_ex`` does not synchronise with the host.
    root, _ = torch.linalg.cholesky_ex(A.mH @ A + _RIDGE * identity)
    return torch.linalg.solve_triangular(root, A.mH, upper=False).mH.to(steering.dtype).resolve_conj()


def subspace_leakage(covariance: Covariance, basis: Complex[Tensor, "*batch N K"]) -> Float[Tensor, "*batch"]:
    r"""Share of the energy of R outside the subspace of the true sources.

    .. math:: \frac{|P_\perp R P_\perp|_F^2}{|R|_F^2}, \qquad P_\perp = I - Q Q^H,

    and with :math:`R = F F^H + \epsilon I`, :math:`F_\perp = P_\perp F`,

    .. math:: |P_\perp R P_\perp|_F^2 = |F_\perp^H F_\perp|_F^2 + 2 \epsilon |F_\perp|_F^2
        + \epsilon^2 (N - \mathrm{tr}\, Q Q^H).

    It projects onto true steering vectors, so no gradient passes through eigenvectors. The share is 0 if R
    lies in the subspace, which needs a loading of 0. Q is that of :func:`steering_basis`.
    """
    F, loading = covariance.factor, covariance.loading
    outside = F - basis @ (basis.mH @ F)
    dimensions = covariance.size - squared_modulus(basis).sum((-2, -1))
    leaked = squared_modulus(outside.mH @ outside).sum((-2, -1))
    leaked = leaked + 2 * loading * squared_modulus(outside).sum((-2, -1)) + loading.square() * dimensions
    return leaked / inner(covariance, covariance)


# Keeps the hinge finite if the true gap closes (coincident sources), relative to the trace.
_FLOOR = 1e-6


def eigenvalue_gap(covariance: Covariance, count: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""The gap :math:`\lambda_K - \lambda_{K+1}`, eigenvalues descending, of a covariance of trace 1.

    They are the eigenvalues of the small matrix :math:`F^H F`; the loading shifts all equally and cancels.
    Unlike that of eigenvectors, the gradient of eigenvalues, :math:`u^H\,dR\,u`, is finite for repeated ones.
    K = 0 counts as 1.
    """
    F = covariance.normalised().factor
    gram = F.mH @ F if F.shape[-1] <= F.shape[-2] else F @ F.mH
    ascending = torch.linalg.eigvalsh((gram + gram.mH) / 2)
    # Eigenvalues beyond the rank of F are zero.
    descending = torch.nn.functional.pad(ascending.flip(-1), (0, 1))
    last = (count.clamp(1, descending.shape[-1] - 1) - 1)[..., None]
    return (descending.gather(-1, last) - descending.gather(-1, last + 1))[..., 0]


EIGENGAP_MARGIN = 0.1
"""Largest required eigengap, relative to the trace."""


def eigengap_hinge(
    covariance: Covariance,
    target: Covariance,
    count: Int64[Tensor, "*batch"],
    margin: float = EIGENGAP_MARGIN,
) -> Float[Tensor, "*batch"]:
    r"""Hinge loss of the eigengap of R, relative to its margin.

    .. math:: \frac{\max(0, \gamma - (\lambda_K(R) - \lambda_{K+1}(R)))}{\gamma + 10^{-6}}, \qquad
        \gamma = \min(m,\; \lambda_K(T) - \lambda_{K+1}(T)),

    so that the margin does not exceed the true gap, which is small for close or many sources. T is
    conditioned like R, and the margin m is relative to the trace. The loss is 0 if the gap reaches the
    margin.
    """
    with torch.no_grad():
        gap = eigenvalue_gap(target, count).clamp_max(margin)
    return (gap - eigenvalue_gap(covariance, count)).relu() / (gap + _FLOOR)


# Diagonal loading for the MVDR spectrum, relative to the trace.
_LOADING = 0.05


def mvdr_value(covariance: Covariance, steering: Complex[Tensor, "*batch N Q"]) -> Float[Tensor, "*batch Q"]:
    r"""The MVDR spectrum :math:`1 / (a^H R^{-1} a) = \epsilon / (|a|^2 - |V^H a|^2)`, in double precision.

    V is that of :func:`rismusic.estimation.spectra.mvdr`,
    :meth:`Covariance.inverse_root <rismusic.covariance.Covariance.inverse_root>`. Its positive loading is not
    checked here, so that a GPU is not synchronised.
    """
    projected = covariance.inverse_root().mH @ steering.to(torch.complex128)
    remainder = squared_modulus(steering).sum(-2).double() - squared_modulus(projected).sum(-2)
    return (covariance.loading.double()[..., None] / remainder).to(covariance.loading.dtype)


def peak_contrast(
    covariance: Covariance, target: Covariance, around: Complex[Tensor, "*batch N K C"]
) -> Float[Tensor, "*batch K"]:
    r"""Divergence of the MVDR spectra of R and T around the true sources.

    The spectrum at the C = 25 cells around a source, itself included, divided by its sum over them, is a
    distribution: s for R and t for T. The loss is the Kullback-Leibler divergence

    .. math:: \sum_c t_c \log \frac{t_c}{s_c},

    so that no more contrast is required than the true covariance has. Both covariances get a further loading
    of 5 % of the trace, since R may be singular. T is conditioned like R. The loss is undefined where there
    is no source.
    """
    shape = around.shape[-2:]
    vectors = around.flatten(-2)

    def log_share(which: Covariance) -> Tensor:
        loading = torch.full_like(which.loading, _LOADING)
        loaded = load_and_shrink(which, Conditioning(loading, torch.zeros_like(loading)))
        return mvdr_value(loaded, vectors).unflatten(-1, shape).log().log_softmax(-1)

    with torch.no_grad():
        t = log_share(target)
    return (t.exp() * (t - log_share(covariance))).sum(-1)


def factor_coherence(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N K"]
) -> Float[Tensor, "*batch"]:
    r"""Energy of the inner products of different columns within each factor.

    .. math:: \frac{1}{(\mathrm{tr} R_{pred})^2} \sum_{i \ne j}
        \left( |a_i^H a_j|^2 + 0.3^2 |b_i^H b_j|^2 \right)

    with the columns a of A_ang and b of A_rng. Every covariance has a factor with orthogonal columns, its
    scaled eigenvectors, so this loss does not conflict with the covariance loss; it prevents the columns from
    collapsing onto each other.
    """
    gram = _unit_gram(angle_factor, range_factor)
    half = angle_factor.shape[-1]
    within = squared_modulus(gram[..., :half, :half]).sum((-2, -1))
    within = within + squared_modulus(gram[..., half:, half:]).sum((-2, -1))
    return within - squared_modulus(gram.diagonal(dim1=-2, dim2=-1)).sum(-1)


def cross_coherence(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N K"]
) -> Float[Tensor, "*batch"]:
    r"""Energy of the inner products between the columns of the two factors.

    .. math:: \frac{2 \cdot 0.3\, |A_{ang}^H A_{rng}|_F^2}{(\mathrm{tr} R_{pred})^2},

    0 if the range factor is orthogonal to the angle factor.
    """
    half = angle_factor.shape[-1]
    return 2 * squared_modulus(_unit_gram(angle_factor, range_factor)[..., :half, half:]).sum((-2, -1))


def _unit_gram(angle_factor: Tensor, range_factor: Tensor) -> Tensor:
    """F^H F of R_pred = F F^H of trace 1."""
    F: torch.Tensor = predicted_covariance(angle_factor, range_factor).normalised().factor
    return F.mH @ F


# Cells on either side of a true source along u_x and u_y, for the peak contrast.
_NEIGHBOURS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets(Batch):
    """True sources and sample covariance of S scenes, without gradient.

    Args:
        truth: true sources, [S, K].
        steering: A, [S, N, K], zero where there is no source.
        true: R_true of trace 1, not conditioned.
        sample: R_samp of trace 1, not conditioned, computed from the snapshots as in inference.
        conditioning: loading and shrinkage of R_samp, applied to R_blend and R_true.
    """

    truth: Sources
    steering: Complex[Tensor, "S N K"]
    true: Covariance
    sample: Covariance
    conditioning: Conditioning
    grid: SearchGrid

    @classmethod
    @torch.no_grad()
    def of(
        cls, recording: Recording, grid: SearchGrid, noise_variance: Float[Tensor, "S"] | None = None
    ) -> Targets:
        """Targets from true sources and a noise variance, by default that of :func:`noise_of`."""
        if recording.truth is None:
            raise InputError("truth", "the recording has no true sources, which the losses need")
        if recording.truth.power is None:
            raise InputError("truth/power", "the recording has no source powers, which R_true needs")
        noise = noise_of(recording) if noise_variance is None else noise_variance
        sample, conditioning = sample_covariance(recording.link, recording.snapshots, noise)
        dtype = recording.snapshots.real.dtype
        truth = replace(recording.truth, symbols=None).each(lambda value: value.to(dtype))
        assert truth.power is not None
        A = truth.steering(recording.panel)
        return cls(
            truth=truth,
            steering=A,
            true=true_covariance(A, truth.power).normalised(),
            sample=sample,
            conditioning=conditioning,
            grid=grid,
        )

    def __len__(self) -> int:
        return len(self.steering)

    @property
    def count(self) -> Int64[Tensor, "S"]:
        """Number of sources of each scene."""
        return self.truth.active.sum(-1)

    @property
    def conditioned(self) -> Covariance:
        """R_true, conditioned like R_blend."""
        return load_and_shrink(self.true, self.conditioning)

    def around(self) -> Complex[Tensor, "S N K C"]:
        """Steering vectors of the 5 x 5 cells around each true source, at its range.

        The cells are one grid step apart in u_x and u_y and centred on the source. For absent sources they
        are centred on an arbitrary valid point.
        """
        azimuth, elevation, distance = self.truth.filled()
        u_x, u_y, q = to_cosines(azimuth, elevation, distance)
        offset = torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, dtype=u_x.dtype, device=u_x.device)
        right, up = (axis.ravel() for axis in torch.meshgrid(offset, offset, indexing="ij"))
        x, y = u_x[..., None] + self.grid.step[0] * right, u_y[..., None] + self.grid.step[1] * up
        azimuth, elevation, distance = (
            cosine.flatten(-2) for cosine in from_cosines(x, y, q[..., None].expand_as(x))
        )
        return steering(self.grid.panel, azimuth, elevation, distance).unflatten(-1, x.shape[-2:])


# Limits the table of 2^K entries per scene.
_MAX_SOURCES = 10


@torch.no_grad()
def assign(cost: Float[Tensor, "S Q K"]) -> Int64[Tensor, "S K"]:
    r"""The assignment of K sources to different heads, out of Q, with the least total cost.

    The least cost of assigning a set B of sources to the first q heads is

    .. math:: c_q(B) = \min\left( c_{q-1}(B),\; \min_{k \in B} c_{q-1}(B \setminus k) + \mathrm{cost}_{qk}
        \right),

    and the choices are traced back from the full set (dynamic programming over subsets; Held and Karp, J.
    SIAM 10 (1962)). It is exact like the Hungarian algorithm, batched, and does not synchronise with the
    host: Q steps on tables of 2^K numbers per scene. The cost is equal for all heads where a source is
    absent.
    """
    scenes, heads, most = cost.shape
    if most > heads:
        raise InputError("prediction", f"{heads} heads cannot be assigned to {most} sources")
    if most > _MAX_SOURCES:
        raise InputError("truth", f"at most {_MAX_SOURCES} sources are supported; got {most}")
    bit = 1 << torch.arange(most, device=cost.device)
    subset = torch.arange(1 << most, device=cost.device)
    member = (subset[:, None] & bit) > 0
    without = subset[:, None] & ~bit
    best = torch.where(subset == 0, 0.0, torch.inf).to(cost.dtype).expand(scenes, -1)
    chosen = []
    for head in range(heads):
        served = torch.where(member, best[:, without] + cost[:, head, None, :], torch.inf)
        options = torch.cat((best[..., None], served), dim=-1)
        best, choice = options.min(-1)
        chosen.append(choice)
    left = torch.full((scenes,), (1 << most) - 1, device=cost.device)
    partner = torch.zeros(scenes, most, dtype=torch.int64, device=cost.device)
    slot = torch.arange(1, most + 1, device=cost.device)
    for head in reversed(range(heads)):
        taken = chosen[head].gather(1, left[:, None]) == slot
        partner = torch.where(taken, head, partner)
        left = left - (taken * bit).sum(-1)
    return partner


@dataclass(frozen=True, eq=False)
class Matched:
    """Losses of each scene under the best assignment of heads to sources.

    The partner of an absent source is an arbitrary unused head.
    """

    partner: Int64[Tensor, "S K"]
    angle: Float[Tensor, "S"]
    log_range: Float[Tensor, "S"]
    existence: Float[Tensor, "S"]


# Errors at which the Huber losses of the angles and of the log-range turn from quadratic to linear.
_ANGLE_SCALE_DEG, _LOG_RANGE_SCALE = 5.0, 0.3


def match_heads(prediction: Prediction, truth: Sources, *, weights: tuple[float, float, float]) -> Matched:
    r"""Losses of angles, log-range and existence between the set of heads and the set of true sources.

    With the Huber function :math:`h(x) = x^2 / 2` up to 1, :math:`|x| - 1/2` beyond, :math:`s_a` = 5 deg and
    :math:`s_r` = 0.3, head q for source k has

    .. math:: d^{angle}_{qk} = \frac12 \left[ h\!\left(\frac{\mathrm{wrap}(\hat\varphi_q - \varphi_k)}{s_a}
        \right) + h\!\left(\frac{\mathrm{wrap}(\hat\theta_q - \theta_k)}{s_a}\right) \right], \qquad
        d^{range}_{qk} = h\!\left(\frac{\log \hat q_q + \log r_k}{s_r}\right),

    whose gradient neither vanishes nor grows for large errors. Each is averaged over the K sources. The
    existence loss is the mean over the Q heads of :math:`\mathrm{softplus}(-e_q)` for assigned heads and
    :math:`\mathrm{softplus}(e_q)` for the others. The assignment minimises

    .. math:: \sum_k \frac{w_a d^{angle}_{q_k k} + w_r d^{range}_{q_k k}}{K} - \frac{w_e\, e_{q_k}}{Q}

    which is the weighted sum of the three losses up to a constant, because softplus(-e) - softplus(e) = -e.
    The loss is therefore continuous where the assignment changes. The weights are w_a, w_r and w_e.
    """
    active = truth.active
    azimuth, elevation, distance = (value[:, None, :] for value in truth.filled())
    scale = math.radians(_ANGLE_SCALE_DEG)
    angle = (
        _huber(wrapped(prediction.azimuth[..., None] - azimuth) / scale)
        + _huber(wrapped(prediction.elevation[..., None] - elevation) / scale)
    ) / 2
    log_range = _huber((prediction.inverse_range[..., None].log() + distance.log()) / _LOG_RANGE_SCALE)
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
    """Mean error of the assigned heads over the sources of a scene."""
    paired = errors.gather(1, partner[:, None, :])[:, 0]
    return torch.where(active, paired, 0).sum(-1) / active.sum(-1).clamp_min(1)


def _huber(x: Tensor) -> Tensor:
    return huber_loss(x, torch.zeros_like(x), reduction="none")


HEAT_MAP_WIDTH = 0.6
"""Standard deviation of a source in the target heat map, in grid steps."""


@torch.no_grad()
def heat_map_target(truth: Sources, grid: SearchGrid, width: float = HEAT_MAP_WIDTH) -> Float[Tensor, "S P"]:
    r"""Target of the heat map: the share of the sources at each point of the grid.

    Each source is spread over the grid points around it,

    .. math:: t_p \propto \sum_k \prod_{c \in (u_x, u_y, q)}
        \frac{e^{-(c_p - c_k)^2 / 2 w^2 \Delta_c^2}}{\sum_{c'} e^{-(c' - c_k)^2 / 2 w^2 \Delta_c^2}},

    with the grid step :math:`\Delta_c` of coordinate c and the lower sum over all points of that axis. Points
    outside the volume get 0. The target has sum 1, or is 0 without a source in or near the volume; w is the
    width in grid steps.
    """
    azimuth, elevation, distance = truth.filled()
    spread = []
    for cosine, axis, step in zip(
        to_cosines(azimuth, elevation, distance), (grid.u_x, grid.u_y, grid.q), grid.step, strict=True
    ):
        away = (axis.to(cosine.dtype) - cosine[..., None]) / (width * (step or 1.0))  # 0: one point
        spread.append((-away.square() / 2).softmax(-1))
    active = truth.active.to(spread[0].dtype)
    target = torch.einsum("sk,skx,sky,skz->sxyz", active, *spread).flatten(1) * grid.inside
    total = target.sum(-1, keepdim=True)
    return target / torch.where(total > 0, total, 1)


def heat_map_divergence(
    logits: Float[Tensor, "S P"], target: Float[Tensor, "S P"], grid: SearchGrid
) -> Float[Tensor, "S"]:
    r"""Kullback-Leibler divergence of the heat map from its target, over the points inside the volume.

    .. math:: \sum_p t_p \log \frac{t_p}{\mathrm{softmax}(z)_p}

    It is 0 if the softmax equals the target t of :func:`heat_map_target`, or if t is 0.
    """
    log_share = logits.masked_fill(~grid.inside, -torch.inf).log_softmax(-1)
    # 0 log 0 = 0, in the gradient too.
    log_share = torch.where(grid.inside, log_share, 0)
    return (torch.special.xlogy(target, target) - target * log_share).sum(-1)


COUNT_SMOOTHING = 0.05
"""Label smoothing of the number of sources."""


def count_divergence(
    logits: Float[Tensor, "*batch C"], count: Int64[Tensor, "*batch"], smoothing: float
) -> Float[Tensor, "*batch"]:
    r"""Kullback-Leibler divergence of the predicted number of sources from smoothed labels.

    .. math:: \sum_k t_k \log \frac{t_k}{\mathrm{softmax}(z)_k}, \qquad
        t_k = (1 - s)\, [k = K] + \frac{s}{K_{max} + 1}.

    The smoothing s is 0 (hard labels) or more, below 1.
    """
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    t = (1 - smoothing) * (numbers == count[..., None]).to(logits.dtype) + smoothing / len(numbers)
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1)


NO_GRADIENT = "the total loss has no gradient with respect to the network, so there is nothing to train"


def check_start(losses: Losses, prediction: Prediction) -> None:
    """Check that the total is finite and that every output of the network gets a gradient.

    Call it once, on the first batch, with the weights of the spec; it synchronises with the device.
    """
    if not torch.isfinite(losses.total):
        raise InputError("loss", f"the total must be finite; got {float(losses.total.detach()):g}")
    if not losses.total.requires_grad:
        raise InputError("loss", NO_GRADIENT)
    outputs = {
        field.name: value
        for field in fields(prediction)
        if (value := getattr(prediction, field.name)) is not None
    }
    for name, value in outputs.items():
        if not value.requires_grad:
            raise InputError(
                f"prediction.{name}", "the output is constant; it must depend on the network's parameters"
            )
    gradients = torch.autograd.grad(
        losses.total, list(outputs.values()), retain_graph=True, allow_unused=True
    )
    sizes = {
        name: 0.0 if gradient is None else float(gradient.abs().max())
        for name, gradient in zip(outputs, gradients, strict=True)
    }
    for name, size in sizes.items():
        if not math.isfinite(size):
            raise InputError(f"prediction.{name}", "its gradient is not finite")
        # A factor of zeros never changes: its gradient is a rounding error.
        factors = max(sizes["angle_factor"], sizes["range_factor"])
        if size <= (torch.finfo(losses.total.dtype).eps * factors if name.endswith("_factor") else 0):
            raise InputError(
                f"prediction.{name}", "no loss of positive weight has a gradient with respect to this output"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Losses:
    """The total loss and its terms, on the device.

    Args:
        terms: mean over the scenes of each loss, unweighted; losses of weight 0 are left out.
        oracle: values at R_pred = R_true of the terms that compare R_blend with R_true: the part that is due
            to R_samp and the loading. It is not a lower bound, since an R_pred that compensates errors of
            R_samp gets slightly below.
    """

    total: Float[Tensor, ""]
    terms: dict[TermName, Float[Tensor, ""]]
    weights: dict[TermName, float]
    oracle: dict[TermName, Float[Tensor, ""]]


def total_loss(
    prediction: Prediction,
    targets: Targets,
    spec: LossSpec,
    *,
    beta: float,
    weights: Mapping[TermName, float] | None = None,
    oracle: bool = True,
) -> Losses:
    r"""The loss of a batch, :math:`\sum_i w_i\, \overline{\ell_i}`, the mean being over the scenes.

    Covariance, subspace, eigengap and peak contrast compare R_blend with R_true, conditioned in the same way;
    ``covariance_predicted`` compares R_pred alone. A scene without sources has no R_true; it contributes to
    the losses of count, existence, orthogonality and cross only. ``weights`` replace those of ``spec``; see
    :func:`~rismusic.nn.data.weights_at`.
    """
    weights = {**spec.weights, **(weights or {})}
    _check(prediction, targets, weights)
    if prediction.grid_logits is None:
        weights["heat_map"] = 0.0
    used = {name: weight for name, weight in weights.items() if weight > 0}
    real = targets.true.loading.dtype
    occupied = (targets.count > 0).to(real)
    structure = _Structure(targets, used)

    losses = structure.of(prediction.blended(targets.sample, targets.conditioning, beta))
    if "covariance_predicted" in used:
        losses["covariance_predicted"] = covariance_error(prediction.covariance, targets.true)
    losses = {name: loss * occupied for name, loss in losses.items()}
    factors = prediction.angle_factor, prediction.range_factor
    if "orthogonality" in used:
        losses["orthogonality"] = factor_coherence(*factors)
    if "cross" in used:
        losses["cross"] = cross_coherence(*factors)
    if "count" in used:
        losses["count"] = count_divergence(prediction.count_logits, targets.count, COUNT_SMOOTHING)
    losses |= _positions(prediction, targets, used)
    if "heat_map" in used:
        assert prediction.grid_logits is not None
        target = heat_map_target(targets.truth, targets.grid)
        maps = prediction.grid_logits.unbind(1)
        stages = [heat_map_divergence(logits, target, targets.grid) for logits in maps]
        losses["heat_map"] = torch.stack(stages).mean(0)

    best: dict[TermName, Tensor] = {}
    if oracle:
        with torch.no_grad():
            perfect = load_and_shrink(blend(targets.true, targets.sample, beta), targets.conditioning)
            best = {name: (loss * occupied).mean() for name, loss in structure.of(perfect).items()}
    terms = {name: losses[name].mean() for name in used}
    total = torch.stack([weight * terms[name] for name, weight in used.items()]).sum()
    return Losses(total=total, terms=terms, weights=used, oracle=best)


class _Structure:
    """Losses of a covariance against R_true; quantities of the truth are computed once."""

    def __init__(self, targets: Targets, used: Mapping[TermName, float]) -> None:
        self._targets, self._used = targets, used
        self._true = targets.conditioned
        self._basis = steering_basis(targets.steering) if "subspace" in used else None
        self._around = targets.around() if "peak_contrast" in used else None

    def of(self, covariance: Covariance) -> dict[TermName, Tensor]:
        """The losses of a covariance, [S] each."""
        targets = self._targets
        losses: dict[TermName, Tensor] = {}
        if "covariance" in self._used:
            losses["covariance"] = covariance_error(covariance, self._true)
        if self._basis is not None:
            losses["subspace"] = subspace_leakage(covariance, self._basis)
        if "eigengap" in self._used:
            losses["eigengap"] = eigengap_hinge(covariance, self._true, targets.count)
        if self._around is not None:
            lost = peak_contrast(covariance, self._true, self._around)
            present = torch.where(targets.truth.active, lost, 0).sum(-1)
            losses["peak_contrast"] = present / targets.count.clamp_min(1)
        return losses


def _positions(
    prediction: Prediction, targets: Targets, used: Mapping[TermName, float]
) -> dict[TermName, Tensor]:
    weights = used.get("angle", 0.0), used.get("log_range", 0.0), used.get("existence", 0.0)
    if not any(weights):
        return {}
    matched = match_heads(prediction, targets.truth, weights=weights)
    return {"angle": matched.angle, "log_range": matched.log_range, "existence": matched.existence}


def _check(prediction: Prediction, targets: Targets, weights: Mapping[TermName, float]) -> None:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"loss.{name}", f"the weight must be finite and not negative; got {weight:g}")
    if weights["covariance"] == 0:
        raise InputError("loss.covariance", "the weight must be positive; got 0")
    if len(prediction) != len(targets):
        raise InputError(
            "prediction", f"must have {len(targets)} scenes like the targets; got {len(prediction)}"
        )
    size, most = prediction.angle_factor.shape[1:]
    if size != targets.true.size:
        raise InputError(
            "prediction", f"must have N = {targets.true.size} elements like the targets; got {size}"
        )
    if targets.truth.azimuth.shape[-1] > most:
        raise InputError(
            "truth", f"at most K_max = {most} sources are supported; got {targets.truth.azimuth.shape[-1]}"
        )
    points = None if prediction.grid_logits is None else prediction.grid_logits.shape[-1]
    if points not in (None, len(targets.grid)):
        raise InputError(
            "prediction.grid_logits", f"must have P = {len(targets.grid)} points like the grid; got {points}"
        )
