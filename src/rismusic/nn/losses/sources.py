"""Losses of the source heads, the heat map and the number of sources, and the targets of all losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor
from torch.nn.functional import huber_loss, softplus

from rismusic.array import steering
from rismusic.covariance import Conditioning, Covariance, load_and_shrink, sample_covariance, true_covariance
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, from_cosines, to_cosines
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording
from rismusic.nn.network import Prediction
from rismusic.sources import Sources

# Cells on either side of a true source along u_x and u_y, for the peak contrast.
_NEIGHBOURS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Targets:
    """True sources and sample covariance of S scenes, without gradient.

    Args:
        truth: true sources, [S, K].
        steering: A, [S, N, K], zero where there is no source.
        true: R_true of trace 1, not conditioned.
        sample: R_samp of trace 1, not conditioned, computed from the snapshots as in inference.
        conditioning: loading and shrinkage of R_samp, applied to R_blend and R_true.
        grid: the search grid.
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
        """Targets from a recording with true sources.

        Args:
            recording: S scenes with truth, positions and powers.
            grid: the search grid, on the recording's device.
            noise_variance: sigma^2 of each scene; by default that of the recording, or an estimate if it has
                none, as in inference.

        Raises:
            InputError: the recording has no truth, or no source powers.
        """
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
            place.flatten(-2) for place in from_cosines(x, y, q[..., None].expand_as(x))
        )
        return steering(self.grid.panel, azimuth, elevation, distance).unflatten(-1, x.shape[-2:])

    def __getitem__(self, scenes: slice | Tensor) -> Targets:
        """The targets of some scenes."""
        return replace(
            self,
            truth=self.truth[scenes],
            steering=self.steering[scenes],
            true=self.true[scenes],
            sample=self.sample[scenes],
            conditioning=self.conditioning[scenes],
        )


# Limits the table of 2^K entries per scene.
_MAX_SOURCES = 10


@torch.no_grad()
def assign(cost: Float[Tensor, "S Q K"]) -> Int64[Tensor, "S K"]:
    r"""The assignment of K sources to different heads, out of Q, with the least total cost.

    The least cost of assigning a set B of sources to the first q heads is

    .. math:: c_q(B) = \min\left( c_{q-1}(B),\; \min_{k \in B} c_{q-1}(B \setminus k) + \mathrm{cost}_{qk}
        \right),

    and the choices are traced back from the full set (dynamic programming over subsets; Held and Karp,
    J. SIAM 10 (1962)). It is exact like the Hungarian algorithm, batched, and does not synchronise with the
    host: Q steps on tables of 2^K numbers per scene.

    Args:
        cost: cost of head q for source k; equal for all heads if source k is absent.

    Returns:
        [S, K] the head of each source.

    Raises:
        InputError: fewer heads than sources, or more than 10 sources.
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
    place = torch.arange(1, most + 1, device=cost.device)
    for head in reversed(range(heads)):
        taken = chosen[head].gather(1, left[:, None]) == place
        partner = torch.where(taken, head, partner)
        left = left - (taken * bit).sum(-1)
    return partner


@dataclass(frozen=True, eq=False)
class Matched:
    """Losses of each scene under the best assignment of heads to sources.

    Args:
        partner: [S, K] the head assigned to each source; an arbitrary unused one for absent sources.
        angle: [S] angle loss, see :func:`match_heads`.
        log_range: [S] loss of the log-range.
        existence: [S] existence loss.
    """

    partner: Int64[Tensor, "S K"]
    angle: Float[Tensor, "S"]
    log_range: Float[Tensor, "S"]
    existence: Float[Tensor, "S"]


def match_heads(
    prediction: Prediction,
    truth: Sources,
    *,
    weights: tuple[float, float, float],
    angle_scale_deg: float,
    log_range_scale: float,
) -> Matched:
    r"""Losses of angles, log-range and existence between the set of heads and the set of true sources.

    With the Huber function :math:`h(x) = x^2 / 2` up to 1, :math:`|x| - 1/2` beyond, head q for source k has

    .. math:: d^{angle}_{qk} = \frac12 \left[ h\!\left(\frac{\mathrm{wrap}(\hat\varphi_q - \varphi_k)}{s_a}
        \right) + h\!\left(\frac{\mathrm{wrap}(\hat\theta_q - \theta_k)}{s_a}\right) \right], \qquad
        d^{range}_{qk} = h\!\left(\frac{\log \hat q_q + \log r_k}{s_r}\right),

    whose gradient neither vanishes nor grows for large errors. Each is averaged over the K sources. The
    existence loss is the mean over the Q heads of :math:`\mathrm{softplus}(-e_q)` for assigned heads and
    :math:`\mathrm{softplus}(e_q)` for the others. The assignment minimises

    .. math:: \sum_k \frac{w_a d^{angle}_{q_k k} + w_r d^{range}_{q_k k}}{K} - \frac{w_e\, e_{q_k}}{Q}

    which is the weighted sum of the three losses up to a constant, because softplus(-e) - softplus(e) = -e.
    The loss is therefore continuous where the assignment changes.

    Args:
        prediction: Q heads.
        truth: true sources, K_max at most Q.
        weights: w_a, w_r, w_e.
        angle_scale_deg: s_a, degrees.
        log_range_scale: s_r.
    """
    active = truth.active
    azimuth, elevation, distance = (value[:, None, :] for value in truth.filled())
    scale = math.radians(angle_scale_deg)
    angle = (
        _huber(_wrapped(prediction.azimuth[..., None] - azimuth) / scale)
        + _huber(_wrapped(prediction.elevation[..., None] - elevation) / scale)
    ) / 2
    log_range = _huber((prediction.inverse_range[..., None].log() + distance.log()) / log_range_scale)
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


def _wrapped(angle: Tensor) -> Tensor:
    """The angle wrapped to [-pi, pi), radians."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _huber(x: Tensor) -> Tensor:
    return huber_loss(x, torch.zeros_like(x), reduction="none")


@torch.no_grad()
def heat_map_target(truth: Sources, grid: SearchGrid, width: float) -> Float[Tensor, "S P"]:
    r"""Target of the heat map: the share of the sources at each point of the grid.

    Each source is spread over the grid points around it,

    .. math:: t_p \propto \sum_k \prod_{c \in (u_x, u_y, q)}
        \frac{e^{-(c_p - c_k)^2 / 2 w^2 \Delta_c^2}}{\sum_{c'} e^{-(c' - c_k)^2 / 2 w^2 \Delta_c^2}},

    with the grid step :math:`\Delta_c` of coordinate c and the lower sum over all points of that axis. Points
    outside the volume get 0.

    Args:
        truth: true sources.
        grid: P points.
        width: w, in grid steps.

    Returns:
        [S, P], of sum 1; all 0 without a source in or near the volume.
    """
    azimuth, elevation, distance = truth.filled()
    spread = []
    for place, axis, step in zip(
        to_cosines(azimuth, elevation, distance), (grid.u_x, grid.u_y, grid.q), grid.step, strict=True
    ):
        away = (axis.to(place.dtype) - place[..., None]) / (width * step)
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

    Args:
        logits: z.
        target: t of :func:`heat_map_target`.
        grid: P points; those not ``inside`` are ignored.

    Returns:
        [S], not negative; 0 if the softmax equals t, or if t is 0.
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

    Args:
        logits: z, of 0 .. K_max sources, C = K_max + 1.
        count: K.
        smoothing: s, 0 (hard labels) or more, below 1.

    Returns:
        [...], not negative; 0 if the softmax equals t.
    """
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    t = (1 - smoothing) * (numbers == count[..., None]).to(logits.dtype) + smoothing / len(numbers)
    return (torch.special.xlogy(t, t) - t * logits.log_softmax(-1)).sum(-1)
