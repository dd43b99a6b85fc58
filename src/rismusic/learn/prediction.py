"""What the network says of each scene: the factors of R_pred, the number of sources, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.covariance import Conditioning, Covariance, blend, finish, predicted_covariance
from rismusic.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    r"""The network's answer for S scenes.

    The heads are a set: nothing ties head q to source q of the truth, and they are matched before they are
    compared.

    Args:
        angle_factor: A_ang, [S, N, K_max] complex.
        range_factor: A_rng, [S, N, K_max] complex.
        count_logits: [S, K_max + 1], of 0 .. K_max sources.
        azimuth: [S, Q] radians.
        elevation: [S, Q] radians.
        inverse_range: [S, Q] 1/m, positive.
        existence_logits: [S, Q], positive where head q stands for a source.
        grid_logits: [S, T, P], heat maps of T stages, the last one the answer, over the points of a
            :class:`~rismusic.estimate.grid.SearchGrid`; softmax gives the share of sources at each point.

    Raises:
        InputError: count logits that do not fit the factors, or heads of different shapes.
    """

    angle_factor: Complex[Tensor, "S N K"]
    range_factor: Complex[Tensor, "S N K"]
    count_logits: Float[Tensor, "S _"]
    azimuth: Float[Tensor, "S Q"]
    elevation: Float[Tensor, "S Q"]
    inverse_range: Float[Tensor, "S Q"]
    existence_logits: Float[Tensor, "S Q"]
    grid_logits: Float[Tensor, "S T P"] | None = None

    def __post_init__(self) -> None:
        scenes, _, most = self.angle_factor.shape
        _shaped("range_factor", self.range_factor, list(self.angle_factor.shape))
        _shaped("count_logits", self.count_logits, [scenes, most + 1])
        for name in ("elevation", "inverse_range", "existence_logits"):
            _shaped(name, getattr(self, name), [scenes, self.azimuth.shape[-1]])

    def __len__(self) -> int:
        return len(self.angle_factor)

    @property
    def covariance(self) -> Covariance:
        """R_pred = A_ang A_ang^H + 0.3 A_rng A_rng^H, of trace 1 and rank 2 K_max at most."""
        return predicted_covariance(self.angle_factor, self.range_factor).normalised()

    def blended(
        self, sample: Covariance, conditioning: Conditioning, beta: Float[Tensor, "S"] | float
    ) -> Covariance:
        """R_blend, finished: what the losses compare with R_true and what inference searches.

        Args:
            sample: R_samp as :func:`~rismusic.covariance.sample_covariance` gives it.
            conditioning: loading and shrinkage, from the same call.
            beta: share of R_samp, 0 to 1.
        """
        return finish(blend(self.covariance, sample, beta), conditioning)

    def detach(self) -> Prediction:
        """The same without its history of gradients."""
        return self._each(torch.Tensor.detach)

    def to(self, target: torch.device | str) -> Prediction:
        """The same prediction on another device."""
        return self._each(lambda value: value.to(target))

    def __getitem__(self, scenes: slice | Tensor) -> Prediction:
        """The prediction of some scenes."""
        return self._each(lambda value: value[scenes])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in values.items() if value is not None}
        return replace(self, **changed)


def _shaped(name: str, value: Tensor, shape: list[int]) -> None:
    if list(value.shape) != shape:
        raise InputError(f"prediction.{name}", f"shape {shape}", f"{list(value.shape)}")
