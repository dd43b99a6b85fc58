"""The weighted total of all losses, its oracle values, and a check before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.covariance import Covariance, blend, load_and_shrink
from rismusic.errors import InputError
from rismusic.nn.losses.covariance import (
    covariance_error,
    cross_coherence,
    eigengap_hinge,
    factor_coherence,
    peak_contrast,
    steering_basis,
    subspace_leakage,
)
from rismusic.nn.losses.sources import (
    COUNT_SMOOTHING,
    Targets,
    count_divergence,
    heat_map_divergence,
    heat_map_target,
    match_heads,
)
from rismusic.nn.network import Prediction
from rismusic.nn.spec import LossSpec, TermName

NO_GRADIENT = "the total loss has no gradient with respect to the network, so there is nothing to train"


def check_start(losses: Losses, prediction: Prediction) -> None:
    """Check that the total is finite and that every output of the network gets a gradient.

    Call it once, on the first batch, with the weights of the spec; it synchronises with the device.

    Args:
        losses: losses of ``prediction``; their graph is kept.
        prediction: from the network.

    Raises:
        InputError: an output without a valid gradient.
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
        total: weighted sum of the terms, a scalar with a gradient.
        terms: mean over the scenes of each loss, unweighted; losses of weight 0 are left out.
        weights: weights of the terms.
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
    the losses of count, existence, orthogonality and cross only.

    Args:
        prediction: of S scenes.
        targets: of the same scenes.
        spec: scales, margins and weights.
        beta: share of R_samp in R_blend.
        weights: replace weights of ``spec``; see :func:`~rismusic.nn.data.weights_at`.
        oracle: whether to compute the oracle values too.

    Raises:
        InputError: prediction and targets do not match, or a weight is invalid.
    """
    weights = {**spec.weights, **(weights or {})}
    _check(prediction, targets, weights)
    if prediction.grid_logits is None:
        weights["heat_map"] = 0.0
    used = {name: weight for name, weight in weights.items() if weight > 0}
    real = targets.true.loading.dtype
    occupied = (targets.count > 0).to(real)
    structure = _Structure(targets, spec, used)

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
    losses |= _positions(prediction, targets, spec, used)
    if "heat_map" in used:
        assert prediction.grid_logits is not None
        target = heat_map_target(targets.truth, targets.grid, spec.heat_map_width)
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

    def __init__(self, targets: Targets, spec: LossSpec, used: Mapping[TermName, float]) -> None:
        self._targets, self._spec, self._used = targets, spec, used
        self._true = targets.conditioned
        self._basis = steering_basis(targets.steering) if "subspace" in used else None
        self._around = targets.around() if "peak_contrast" in used else None

    def of(self, covariance: Covariance) -> dict[TermName, Tensor]:
        """The losses of a covariance, [S] each."""
        spec, targets = self._spec, self._targets
        losses: dict[TermName, Tensor] = {}
        if "covariance" in self._used:
            losses["covariance"] = covariance_error(covariance, self._true)
        if self._basis is not None:
            losses["subspace"] = subspace_leakage(covariance, self._basis)
        if "eigengap" in self._used:
            losses["eigengap"] = eigengap_hinge(covariance, self._true, targets.count, spec.eigengap_margin)
        if self._around is not None:
            lost = peak_contrast(covariance, self._true, self._around)
            present = torch.where(targets.truth.active, lost, 0).sum(-1)
            losses["peak_contrast"] = present / targets.count.clamp_min(1)
        return losses


def _positions(
    prediction: Prediction, targets: Targets, spec: LossSpec, used: Mapping[TermName, float]
) -> dict[TermName, Tensor]:
    """The losses of the position heads."""
    weights = used.get("angle", 0.0), used.get("log_range", 0.0), used.get("existence", 0.0)
    if not any(weights):
        return {}
    matched = match_heads(
        prediction,
        targets.truth,
        weights=weights,
        angle_scale_deg=spec.angle_scale_deg,
        log_range_scale=spec.log_range_scale,
    )
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
