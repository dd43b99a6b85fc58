"""The one builder: R_true, R_pred, R_blend, and what is done to each of them before they meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance.lowrank import Covariance
from rismusic.errors import InputError

RANGE_WEIGHT = 0.3
"""Weight of the range factor in the predicted covariance."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What is done to a covariance of trace 1 before it is used, or compared with another.

    Args:
        loading: [...] trace of the identity that is added, in units of the trace.
        shrinkage: [...] share, 0 to 1, of the result that is then replaced by the identity.
    """

    loading: Float[Tensor, "*batch"]
    shrinkage: Float[Tensor, "*batch"]

    @property
    def identity(self) -> Float[Tensor, "*batch"]:
        """Share of the trace of the finished covariance that the identity put there."""
        return 1 - (1 - self.shrinkage) / (1 + self.loading)

    def detach(self) -> Conditioning:
        """The same without its history of gradients."""
        return Conditioning(self.loading.detach(), self.shrinkage.detach())

    def __getitem__(self, scenes: slice | Tensor | int) -> Conditioning:
        """The conditioning of some scenes."""
        return Conditioning(self.loading[scenes], self.shrinkage[scenes])


def finish(covariance: Covariance, conditioning: Conditioning) -> Covariance:
    r"""Trace 1, loaded, shrunk: what every covariance goes through before it is used or compared.

    .. math:: R \mapsto \frac{1 - \rho}{1 + \epsilon}
        \left( \frac{R}{\mathrm{tr} R} + \epsilon\, \frac{I}{N} \right) + \rho\, \frac{I}{N}

    with the loading :math:`\epsilon` and the shrinkage :math:`\rho` of ``conditioning``. A blend, and the
    R_true that it is compared with, are finished with the same ones. The result is Hermitian with trace 1.
    """
    unit = covariance.normalised()
    keep = 1 - conditioning.identity
    factor = unit.factor * keep.sqrt()[..., None, None]
    return Covariance(factor, keep * unit.loading + conditioning.identity / covariance.size)


def true_covariance(steering: Complex[Tensor, "*batch N K"], power: Float[Tensor, "*batch K"]) -> Covariance:
    """R_true = A diag(p) A^H, not yet of trace 1.

    Args:
        steering: A, columns of unit norm, zero where there is no source.
        power: p, the sources' mean powers (not those of the realised symbols); NaN where there is no source.
    """
    present = torch.where(power.isnan(), 0, power)
    return Covariance(steering * present.sqrt()[..., None, :], power.new_zeros(power.shape[:-1]))


def predicted_covariance(
    angle_factor: Complex[Tensor, "*batch N K"], range_factor: Complex[Tensor, "*batch N J"]
) -> Covariance:
    """R_pred = A_ang A_ang^H + 0.3 A_rng A_rng^H from the two factors that the network gives."""
    factor = torch.cat((angle_factor, RANGE_WEIGHT**0.5 * range_factor), dim=-1)
    return Covariance(factor, factor.real.new_zeros(factor.shape[:-2]))


def blend(predicted: Covariance, sample: Covariance, beta: Float[Tensor, "*batch"] | float) -> Covariance:
    r"""R_blend = (1 - beta) R_pred + beta stop_gradient(R_samp), each of trace 1.

    Args:
        predicted: R_pred; the gradient flows into it, and never into ``sample``.
        sample: R_samp as it comes from the snapshots, in training as in inference.
        beta: 0 to 1.

    Raises:
        InputError: beta outside 0 .. 1, or covariances of different shape.
    """
    if predicted.factor.shape[:-1] != sample.factor.shape[:-1]:
        raise InputError(
            "sample", f"scenes and N as predicted, {list(predicted.factor.shape[:-1])}",
            f"{list(sample.factor.shape[:-1])}",
        )  # fmt: skip
    # A number is checked without a wait for the device.
    inside = bool(((beta >= 0) & (beta <= 1)).all()) if isinstance(beta, Tensor) else 0 <= beta <= 1
    if not inside:
        found = torch.as_tensor(beta)
        raise InputError("beta", "0 to 1", f"{float(found.min()):g} to {float(found.max()):g}")
    given = beta.detach().to(predicted.loading) if isinstance(beta, Tensor) else beta
    share = torch.zeros_like(predicted.loading) + given
    first, second = predicted.normalised(), sample.detach().normalised()
    factor = torch.cat(
        (
            first.factor * (1 - share).sqrt()[..., None, None],
            second.factor * share.sqrt()[..., None, None],
        ),
        dim=-1,
    )
    return Covariance(factor, (1 - share) * first.loading + share * second.loading)
