"""Mistakes in the losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from faults.plant import Fault, Plant, function, method
from rismusic.covariance import Covariance, load_and_shrink
from rismusic.nn.losses import (
    Losses,
    assign,
    covariance_error,
    eigenvalue_gap,
    subspace_leakage,
    total_loss,
)
from rismusic.nn.network import Prediction


def _ascending(_: Any, covariance: Covariance, count: Tensor) -> Tensor:
    """Eigenvalues sorted in ascending order."""
    F = covariance.normalised().factor
    rising = pad(torch.linalg.eigvalsh(F.mH @ F), (0, 1))
    last = (count.clamp(1, rising.shape[-1] - 1) - 1)[..., None]
    return (rising.gather(-1, last) - rising.gather(-1, last + 1))[..., 0]


def _swallowed(_: Any, covariance: Covariance, *rest: Any) -> Tensor:
    return covariance.factor.real.sum((-2, -1)) * 0


def _through_eigenvectors(_: Any, covariance: Covariance, basis: Tensor) -> Tensor:
    """The subspace from an eigen-decomposition of a rank-deficient matrix, differentiated."""
    F = pad(covariance.normalised().factor, (0, 2))
    values, vectors = torch.linalg.eigh(F.mH @ F)
    K = basis.shape[-1]
    signal = F @ vectors[..., -K:] * values[..., None, -K:].clamp_min(1e-12).rsqrt()
    return 1 - (basis.mH @ signal).abs().square().sum((-2, -1)) / K


def _clamped(original: Callable[..., Tensor], *given: Any) -> Tensor:
    error = original(*given)
    return (
        error.clamp_max(float(error.detach().quantile(0.75))) if error.ndim == 1 and len(error) > 3 else error
    )


def _by_index(_: Any, cost: Tensor) -> Tensor:
    return torch.arange(cost.shape[-1], device=cost.device).expand(len(cost), -1)


def _losing(change: Callable[[Losses], Losses]) -> Plant:
    return function(total_loss, lambda original, *given, **named: change(original(*given, **named)))


def _summed(original: Callable[..., Losses], prediction: Prediction, *given: Any, **named: Any) -> Losses:
    found = original(prediction, *given, **named)
    S = len(prediction)
    terms = {name: value * S for name, value in found.terms.items()}
    return replace(found, total=found.total * S, terms=terms)


def _raw(_: Any, self: Prediction, *given: Any) -> Covariance:
    return load_and_shrink(self.covariance, given[1])


FAULTS = (
    Fault(
        1,
        "eigenvalues sorted wrong",
        "Eigenvalues are in ascending order where descending ones are expected.",
        ("eigenvalues in another order",),
        function(eigenvalue_gap, _ascending),
    ),
    Fault(
        3,
        "exception swallowed",
        "A structure loss returns 0 because an exception was swallowed.",
        ("it is 0 in every case",),
        function(subspace_leakage, _swallowed),
    ),
    Fault(
        6,
        "loss on raw factors",
        "The loss uses the factors alone while inference uses R_blend.",
        (("R_pred in place of R_samp", "with the first part alone in `(1 - b)"),),
        method(Prediction, "blended", _raw),
    ),
    Fault(
        6,
        "gradient through eigenvectors",
        "A loss is differentiated through the eigenvectors of a rank-deficient matrix.",
        ("eigenvectors",),
        function(subspace_leakage, _through_eigenvectors),
    ),
    Fault(
        14,
        "loss clamped",
        "The loss is clamped, so that a quarter of the scenes has no gradient.",
        ("clamped", "learns nothing from these scenes"),
        function(covariance_error, _clamped),
    ),
    Fault(
        15,
        "heads by index",
        "Source heads are compared by index.",
        ("by index",),
        function(assign, _by_index),
    ),
    Fault(
        18,
        "loss floor",
        "The covariance loss is 0.1 at a perfect prediction.",
        ("floor above zero",),
        function(covariance_error, lambda original, *given: original(*given) + 0.1),
    ),
    Fault(
        18,
        "similarity for error",
        "A similarity is used as an error.",
        ("1 minus that of the definition",),
        function(covariance_error, lambda original, *given: 1 - original(*given)),
    ),
    Fault(
        0,
        "loss detached",
        "The loss has no gradient.",
        ("gradient", "nothing to train"),
        _losing(lambda found: replace(found, total=found.total.detach())),
    ),
    Fault(
        0,
        "loss reversed",
        "The loss has the wrong sign.",
        ("sign",),
        _losing(lambda found: replace(found, total=-found.total)),
    ),
    Fault(
        0,
        "sum for mean",
        "Losses are sums over the scenes.",
        ("is a sum over the scenes",),
        function(total_loss, _summed),
    ),
)
