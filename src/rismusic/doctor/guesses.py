"""Predictions that no network made: the right one, and one at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rismusic.nn.losses import Targets, heat_map_target
from rismusic.nn.network import Prediction
from rismusic.nn.spec import LossSpec

# A logit of certainty.
_SURE = 30.0


def right(targets: Targets, like: Prediction, spec: LossSpec) -> Prediction:
    """The prediction at which every loss is to be 0, in the shapes of another one.

    Its factors are the scaled eigenvectors of R_true, so that their columns are orthogonal.
    """
    dtype = like.azimuth.dtype
    F = targets.true.factor.to(torch.complex128)
    U, S, _ = torch.linalg.svd(F, full_matrices=False)
    columns = like.angle_factor.shape[-1]
    factor = torch.nn.functional.pad(U * S[:, None, :], (0, max(0, columns - S.shape[-1])))[..., :columns]
    azimuth, elevation, distance = (_padded(value, like.azimuth) for value in targets.truth.filled())
    exists = _padded(targets.truth.active.to(dtype), like.azimuth) > 0
    places = torch.arange(like.count_logits.shape[-1], device=targets.count.device)
    label = (places == targets.count[:, None]).to(dtype)
    smoothed = (1 - spec.count_smoothing) * label + spec.count_smoothing / len(places)
    maps = None
    if like.grid_logits is not None:
        target = heat_map_target(targets.truth, targets.grid, spec.heat_map_width)
        maps = target.clamp_min(1e-30).log()[:, None].expand_as(like.grid_logits).to(dtype)
    return Prediction(
        angle_factor=factor.to(like.angle_factor.dtype),
        range_factor=torch.zeros_like(like.range_factor),
        count_logits=smoothed.clamp_min(1e-30).log(),
        azimuth=azimuth,
        elevation=elevation,
        inverse_range=1 / distance.clamp_min(1e-6),
        existence_logits=torch.where(exists, _SURE, -_SURE).to(dtype),
        grid_logits=maps,
    )


def random(like: Prediction, seed: int = 0) -> Prediction:
    """A prediction at random, in the shapes of another one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    return Prediction(
        angle_factor=normal(like.angle_factor),
        range_factor=normal(like.range_factor),
        count_logits=normal(like.count_logits),
        azimuth=normal(like.azimuth) / 4,
        elevation=normal(like.elevation) / 4,
        inverse_range=(normal(like.inverse_range) / 2).exp(),
        existence_logits=normal(like.existence_logits),
        grid_logits=None if like.grid_logits is None else normal(like.grid_logits),
    )


def wide(prediction: Prediction) -> Prediction:
    """In double precision."""
    held = {name: getattr(prediction, name) for name in Prediction.__dataclass_fields__}
    return Prediction(
        **{
            name: value.to(torch.complex128 if value.is_complex() else torch.float64)
            for name, value in held.items()
            if value is not None
        }
    )


def _padded(value: Tensor, like: Tensor) -> Tensor:
    """As many heads as ``like`` has; those without a source hold a harmless 0 (or the range of pi / 4)."""
    fill = math.pi / 4
    missing = like.shape[-1] - value.shape[-1]
    if missing < 0:
        return value[..., : like.shape[-1]].to(like.dtype)
    extra = value.new_full((*value.shape[:-1], missing), 0.0 if value.dtype == torch.bool else fill)
    return torch.cat((value, extra), -1).to(like.dtype)
