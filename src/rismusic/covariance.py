r"""Covariances of the field on the panel: sample, predicted, blended and true.

Every covariance is of low rank plus a multiple of the identity, :math:`R = F F^H + \epsilon I`, and is kept
as the factor F and the loading :math:`\epsilon`; the N x N matrix is formed by :meth:`Covariance.dense` only.

* :func:`sample_covariance` gives R_samp from the snapshots, by regularised back-projection onto the panel
  (:func:`back_project`).
* :func:`predicted_covariance` gives R_pred from the factors of the network, :func:`true_covariance` gives
  R_true from the sources.
* :func:`blend` combines R_pred and R_samp. :func:`load_and_shrink` normalises, loads and shrinks a
  covariance; it treats the blend and the R_true that it is compared with alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.batch import Batch
from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.operator import Link

IDENTITY_MAX = 0.25
"""Largest share of the trace that loading and shrinkage together may give to the identity."""

RANGE_WEIGHT = 0.3
"""Weight of the range factor in the predicted covariance."""


@dataclass(frozen=True, eq=False)
class Covariance(Batch):
    r"""Low rank plus identity, :math:`R = F F^H + \epsilon I`.

    Args:
        factor: F, [..., N, R] complex.
        loading: :math:`\epsilon`, [...] real, not negative.

    Raises:
        InputError: a factor that is not complex or has fewer than two axes; a loading of another shape.
    """

    factor: Complex[Tensor, "*batch N R"]
    loading: Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        if self.factor.ndim < 2 or not self.factor.is_complex():
            raise InputError(
                "covariance.factor",
                f"must be complex [..., N, R]; got {self.factor.dtype} of shape {list(self.factor.shape)}",
            )
        if self.loading.shape != self.factor.shape[:-2]:
            raise InputError(
                "covariance.loading",
                f"needs one value per scene, shape {list(self.factor.shape[:-2])}; "
                f"got {list(self.loading.shape)}",
            )

    @property
    def size(self) -> int:
        """Number of elements, N."""
        return self.factor.shape[-2]

    @property
    def rank(self) -> int:
        """Largest possible rank of F F^H, min(N, R)."""
        return min(self.factor.shape[-2:])

    @property
    def trace(self) -> Float[Tensor, "*batch"]:
        """The trace of R."""
        return squared_modulus(self.factor).sum((-2, -1)) + self.size * self.loading

    def dense(self) -> Complex[Tensor, "*batch N N"]:
        """R itself, N x N, Hermitian."""
        product = self.factor @ self.factor.mH
        identity = torch.eye(self.size, dtype=product.dtype, device=product.device)
        return (product + product.mH) / 2 + self.loading[..., None, None] * identity

    def normalised(self) -> Covariance:
        """R / tr R; I / N where R is zero."""
        trace = self.trace
        empty = trace == 0
        safe = torch.where(empty, 1, trace)
        loading = torch.where(empty, 1 / self.size, self.loading / safe)
        return Covariance(self.factor * safe.rsqrt()[..., None, None], loading)

    def apply(self, matrix: Complex[Tensor, "*batch N Q"]) -> Complex[Tensor, "*batch N Q"]:
        """R X."""
        return self.factor @ (self.factor.mH @ matrix) + self.loading[..., None, None] * matrix

    def inverse_root(self) -> Complex[Tensor, "*batch N R"]:
        r"""V with :math:`I - V V^H = \epsilon R^{-1}` (Woodbury): :math:`V = F C^{-H}`.

        C is the Cholesky factor of :math:`\epsilon I + F^H F`, in double precision. The loading must be
        positive; this is not checked, so that a GPU is not synchronised.
        """
        wide = self.factor.to(torch.complex128)
        gram = wide.mH @ wide
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        root, _ = torch.linalg.cholesky_ex(gram + self.loading.double()[..., None, None] * identity)
        return torch.linalg.solve_triangular(root, wide.mH, upper=False).mH.resolve_conj()

    @torch.no_grad()
    def eigen(self, count: int) -> tuple[Float[Tensor, "*batch K"], Complex[Tensor, "*batch N K"]]:
        """Largest eigenvalues in descending order and their eigenvectors, from the smaller Gram matrix of F.

        No gradient flows through: eigenvectors are not differentiable where eigenvalues coincide.

        Args:
            count: K, at most the rank of the factor.

        Returns:
            Eigenvalues of R [..., K] (the loading included) and orthonormal eigenvectors [..., N, K]. If the
            factor has a rank below K, the eigenvectors beyond it are zero.

        Raises:
            InputError: K below 1 or above the rank.
        """
        if not 1 <= count <= self.rank:
            raise InputError("sources", f"must be 1 to {self.rank}, the rank of the covariance; got {count}")
        # The Gram matrix squares the condition number, hence double precision.
        wide = self.factor.to(torch.complex128)
        N, R = wide.shape[-2:]
        values, vectors = torch.linalg.eigh(wide.mH @ wide if R <= N else wide @ wide.mH)
        values = values[..., -count:].flip(-1).clamp_min(0)
        vectors = vectors[..., -count:].flip(-1)
        if R <= N:
            floor = 1e-14 * values[..., :1]
            scale = torch.where(values > floor, values, torch.inf).rsqrt()
            vectors = wide @ (vectors * scale[..., None, :])
        loaded = values + self.loading.double()[..., None]
        return loaded.to(self.loading.dtype), vectors.to(self.factor.dtype)


@dataclass(frozen=True, eq=False)
class Conditioning(Batch):
    """Loading and shrinkage of a covariance of trace 1."""

    loading: Float[Tensor, "*batch"]  # trace of the added multiple of the identity, over that of R
    shrinkage: Float[Tensor, "*batch"]  # share of the loaded matrix that the identity then replaces

    @property
    def identity(self) -> Float[Tensor, "*batch"]:
        """Share of the identity in the trace of the loaded and shrunk covariance, [...]."""
        return 1 - (1 - self.shrinkage) / (1 + self.loading)


@dataclass(frozen=True, eq=False)
class BackProjection:
    """Estimate of the field on the panel from the snapshots, and the share of noise in it."""

    field: Complex[Tensor, "*batch L N"]  # x_l
    noise_share: Float[Tensor, "*batch"]  # share of its mean energy that is due to receiver noise
    coverage: float  # M / N, at most 1: share of a wave's energy that one snapshot recovers

    def covariance(self) -> Covariance:
        """(1/L) sum_l x_l x_l^H. The mean is not subtracted: the symbols have zero mean."""
        L = self.field.shape[-2]
        factor = self.field.mT / L**0.5
        return Covariance(factor, torch.zeros_like(self.noise_share))


def back_project(
    link: Link, snapshots: Complex[Tensor, "*batch L M"], noise_variance: Float[Tensor, "*batch"]
) -> BackProjection:
    r"""Regularised back-projection of the snapshots onto the panel.

    .. math:: x_l = G_l^H (G_l G_l^H + \lambda I)^{-1} y_l, \qquad
        \lambda = \sigma^2 / \sigma_x^2, \quad
        \sigma_x^2 = \left( \overline{|y|^2} - \sigma^2 \right) / \overline{g}

    This is the linear minimum mean square error estimate of a field with a white prior of power
    :math:`\sigma_x^2` per element (Kay, *Estimation Theory*, section 12.5). :math:`\overline g` is the mean
    of :math:`\mathrm{tr}(G_l G_l^H) / M`. Only M x M systems are solved. For direct sampling the result is
    :math:`y_l / (1 + \lambda)`.

    Args:
        link: G_l, for all scenes or one for each.
        snapshots: y, [..., L, M].
        noise_variance: sigma^2 of each scene, [...].

    Raises:
        InputError: the noise variance is negative, or the snapshots do not fit the link.
    """
    _check(link, snapshots, noise_variance)
    L, M = snapshots.shape[-2:]
    noise = noise_variance.to(snapshots.real.dtype)
    received = squared_modulus(snapshots).mean((-2, -1))
    # The mean energy of L M noise samples has this relative standard deviation.
    excess = torch.maximum(received - noise, noise / (L * M) ** 0.5)
    rounding = 10 * M * torch.finfo(noise.dtype).eps
    to_signal = torch.where(excess > 0, noise / torch.where(excess > 0, excess, 1), 0).clamp_min(rounding)
    if link.channel is None:
        gain = torch.ones_like(noise)[..., None, None] if link.codes is None else squared_modulus(link.codes)
        gain = gain if link.weights is None else gain * link.weights.to(gain.dtype).square()
        ridge = (to_signal * gain.mean((-2, -1)))[..., None, None]
        weighted = snapshots / (gain + ridge)
        through = (gain / (gain + ridge).square()).mean(-2).sum(-1) * (M if gain.shape[-1] == 1 else 1)
    else:
        gram = _gram(link)
        mean_gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((-2, -1))
        ridge = to_signal * mean_gain
        identity = torch.eye(M, dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(gram + ridge[..., None, None, None] * identity)
        # One inverse serves all snapshots if the moduli of the RIS configurations are equal.
        weighted = (
            (inverse @ snapshots[..., None])[..., 0]
            if inverse.shape[-3] > 1
            else (snapshots @ inverse[..., 0, :, :].mT)
        )
        diagonal = inverse.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        through = (diagonal - ridge[..., None] * squared_modulus(inverse).sum((-2, -1))).mean(-1)
    field = link.adjoint(weighted)
    total = squared_modulus(field).sum(-1).mean(-1)
    share = torch.where(total > 0, noise * through / torch.where(total > 0, total, 1), 1)
    return BackProjection(field, share.clamp(0, 1), min(1.0, M / field.shape[-1]))


def conditioning(projected: BackProjection, *, full_shrinkage: bool = False) -> Conditioning:
    r"""Loading and shrinkage of R_samp, from the noise in it.

    The loading equals the share of the noise in the energy, :math:`\epsilon = \nu`. The shrinkage towards I /
    N has the least mean square error (Ledoit and Wolf, J. Multivar. Anal. 88 (2004); Chen et al., IEEE Trans.
    SP 58 (2010), for Gaussian snapshots),

    .. math:: \rho = \frac{e}{e + d}, \qquad
        d = \max\left( |R|_F^2 - \frac1L - \frac1N, \frac{(1 - \nu)^2 \kappa^2}{L} \right),

    where d is the energy of R_samp (of trace 1) in excess of the identity, at least that of L equal sources
    (:math:`\kappa` is the coverage), and e is the energy of the error: 1 / L in total, of which
    :math:`\nu (2 - \nu) / L` is due to noise.

    A snapshot observes M of N dimensions only, so that the least total error gives nearly all of R_samp to
    the identity (``full_shrinkage``). This suits MVDR but hides the structure that a network learns. By
    default, therefore, e includes the noise only, and loading and shrinkage together give at most
    ``IDENTITY_MAX`` of the trace to the identity.
    """
    noise, L, N = projected.noise_share, *projected.field.shape[-2:]
    factor = projected.covariance().normalised().factor
    gram = factor.mH @ factor if L <= N else factor @ factor.mH
    least = ((1 - noise) * projected.coverage).square() / L
    stands_out = torch.maximum(squared_modulus(gram).sum((-2, -1)) - 1 / L - 1 / N, least)
    error = torch.full_like(noise, 1 / L) if full_shrinkage else noise * (2 - noise) / L
    shrinkage = error / (error + stands_out)
    if full_shrinkage:
        return Conditioning(torch.zeros_like(noise), shrinkage)
    loading = noise.clamp_max(IDENTITY_MAX / (1 - IDENTITY_MAX))
    return Conditioning(loading, torch.minimum(shrinkage, 1 - (1 - IDENTITY_MAX) * (1 + loading)))


def sample_covariance(
    link: Link,
    snapshots: Complex[Tensor, "*batch L M"],
    noise_variance: Float[Tensor, "*batch"],
    *,
    full_shrinkage: bool = False,
) -> tuple[Covariance, Conditioning]:
    """Sample covariance R_samp of trace 1 and rank L at most, and its loading and shrinkage.

    The conditioning is to be applied to it, alone or blended, with :func:`load_and_shrink`. See
    :func:`back_project` and :func:`conditioning`.
    """
    return projected_covariance(back_project(link, snapshots, noise_variance), full_shrinkage=full_shrinkage)


def projected_covariance(
    projected: BackProjection, *, full_shrinkage: bool = False
) -> tuple[Covariance, Conditioning]:
    """:func:`sample_covariance` from snapshots that are back-projected already."""
    return projected.covariance().normalised(), conditioning(projected, full_shrinkage=full_shrinkage)


def recording_covariance(
    recording: Recording, noise_variance: Float[Tensor, "S"] | None = None, *, full_shrinkage: bool = False
) -> Covariance:
    """Finished R_samp of each scene of a recording: trace 1, loaded and shrunk.

    ``noise_variance`` takes the place of that of the recording; see :func:`conditioning` for
    ``full_shrinkage``.

    Raises:
        InputError: the noise variance is neither passed nor part of the recording.
    """
    noise = recording.noise_variance if noise_variance is None else noise_variance
    if noise is None:
        raise InputError("noise_variance", "missing: the recording has none, and none was passed")
    return load_and_shrink(
        *sample_covariance(recording.link, recording.snapshots, noise, full_shrinkage=full_shrinkage)
    )


def load_and_shrink(covariance: Covariance, conditioning: Conditioning) -> Covariance:
    r"""Normalise a covariance to trace 1, load it and shrink it towards the identity.

    .. math:: R \mapsto \frac{1 - \rho}{1 + \epsilon}
        \left( \frac{R}{\mathrm{tr} R} + \epsilon\, \frac{I}{N} \right) + \rho\, \frac{I}{N}

    with the loading :math:`\epsilon` and the shrinkage :math:`\rho` of ``conditioning``. A blend and the
    R_true that it is compared with get the same conditioning. The result is Hermitian with
    trace 1.
    """
    unit = covariance.normalised()
    keep = 1 - conditioning.identity
    factor = unit.factor * keep.sqrt()[..., None, None]
    return Covariance(factor, keep * unit.loading + conditioning.identity / covariance.size)


def true_covariance(steering: Complex[Tensor, "*batch N K"], power: Float[Tensor, "*batch K"]) -> Covariance:
    """R_true = A diag(p) A^H, not yet of trace 1.

    Args:
        steering: A, [..., N, K] with columns of unit norm; zero in unused slots.
        power: mean powers p [..., K] of the sources (not those of the realised symbols); NaN in unused slots.
    """
    present = torch.where(power.isnan(), 0, power)
    return Covariance(steering * present.sqrt()[..., None, :], power.new_zeros(power.shape[:-1]))


def predicted_covariance(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N J"]
) -> Covariance:
    """R_pred = A_ang A_ang^H + 0.3 A_rng A_rng^H from the two factors that the network outputs."""
    factor = torch.cat((angle_factor, RANGE_WEIGHT**0.5 * range_factor), dim=-1)
    return Covariance(factor, factor.real.new_zeros(factor.shape[:-2]))


def blend(predicted: Covariance, sample: Covariance, beta: Float[Tensor, "*batch"] | float) -> Covariance:
    r"""R_blend = (1 - beta) R_pred + beta stop_gradient(R_samp), each of trace 1.

    Args:
        predicted: R_pred; gradients flow into it only.
        sample: R_samp from the snapshots, in training as in inference.
        beta: weight of R_samp, 0 to 1.

    Raises:
        InputError: beta is outside 0 .. 1, or the covariances differ in shape.
    """
    if predicted.factor.shape[:-1] != sample.factor.shape[:-1]:
        raise InputError(
            "sample",
            f"must have the scenes and elements of predicted, {list(predicted.factor.shape[:-1])}; "
            f"got {list(sample.factor.shape[:-1])}",
        )
    # Checking a float, unlike a tensor, does not synchronise with the device.
    inside = bool(((beta >= 0) & (beta <= 1)).all()) if isinstance(beta, Tensor) else 0 <= beta <= 1
    if not inside:
        found = torch.as_tensor(beta)
        raise InputError(
            "beta", f"must be within 0 .. 1; got {float(found.min()):g} to {float(found.max()):g}"
        )
    given = beta.detach().to(predicted.loading) if isinstance(beta, Tensor) else beta
    share = torch.zeros_like(predicted.loading) + given
    first, second = predicted.normalised(), sample.detach().normalised()
    factor = torch.cat(
        (first.factor * (1 - share).sqrt()[..., None, None], second.factor * share.sqrt()[..., None, None]),
        dim=-1,
    )
    return Covariance(factor, (1 - share) * first.loading + share * second.loading)


def squared_modulus(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squared modulus without the square root of ``abs``, which has no derivative at 0."""
    # A sum over an axis of two elements takes many times longer.
    real, imaginary = torch.view_as_real(values.resolve_conj()).square().unbind(-1)
    return real + imaginary


def _gram(link: Link) -> Tensor:
    """G_l G_l^H, [..., L or 1, M, M]; one for all snapshots if the moduli of the codes are equal."""
    assert link.channel is not None
    channel = link.channel[..., None, :, :]
    if link.codes is None:
        gram = channel @ channel.mH
    else:
        weight = squared_modulus(link.codes)
        mean = weight.mean(-2, keepdim=True)
        if (weight - mean).abs().amax() <= 1e-5 * mean.amax():
            weight = mean
        gram = (channel * weight[..., None, :]) @ channel.mH
    if link.weights is None:
        return gram
    w = link.weights.to(gram.real.dtype)
    return w[..., :, None] * gram * w[..., None, :]


def _check(link: Link, snapshots: Tensor, noise_variance: Tensor) -> None:
    if not (torch.isfinite(noise_variance) & (noise_variance >= 0)).all():
        raise InputError(
            "noise_variance", f"must be finite and at least 0; got {float(noise_variance.min()):g}"
        )
    L, M = snapshots.shape[-2:]
    antennas = None if link.channel is None else link.channel.shape[-2]
    if antennas is None and link.codes is not None:
        antennas = link.codes.shape[-1]
    if antennas not in (None, M):
        raise InputError("snapshots", f"must have M = {antennas} receiver outputs, as the link; got {M}")
    if link.codes is not None and link.codes.shape[-2] not in (1, L):
        raise InputError(
            "snapshots", f"must have L = {link.codes.shape[-2]} snapshots, as the codes; got {L}"
        )
