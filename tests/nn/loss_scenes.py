"""Small scenes with known truth, and predictions of them: random, perfect, or worse by a known amount."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rismusic.array import Panel
from rismusic.covariance import Conditioning, Covariance, true_covariance
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn.losses import Targets, heat_map_target
from rismusic.nn.network import Prediction
from rismusic.sources import Sources

VOLUME = Volume(math.radians(60), math.radians(30), 0.5, 10.0)
NAN = math.nan
# Scenes of 3, 2, 1 and no source, empty places anywhere.
TRUTH = Sources(
    azimuth=torch.tensor(
        [[0.61, -0.33, 0.07], [-0.52, NAN, 0.44], [NAN, 0.2, NAN], [NAN] * 3], dtype=torch.float64
    ),
    elevation=torch.tensor(
        [[0.11, -0.3, 0.42], [0.05, NAN, -0.21], [NAN, 0.33, NAN], [NAN] * 3], dtype=torch.float64
    ),
    range=torch.tensor([[1.2, 3.4, 0.8], [2.5, NAN, 6.1], [NAN, 1.7, NAN], [NAN] * 3], dtype=torch.float64),
    power=torch.tensor([[1.2, 0.7, 1.1], [0.6, NAN, 1.4], [NAN, 1.0, NAN], [NAN] * 3], dtype=torch.float64),
)


def panel(rows: int = 5, columns: int = 4) -> Panel:
    return Panel.uniform_planar(rows, columns)


def random_complex(generator: torch.Generator, *shape: int, dtype=torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def covariance(generator: torch.Generator, *shape: int, loading: float = 0.0) -> Covariance:
    """Any covariance of factor ``shape``."""
    factor = random_complex(generator, *shape)
    return Covariance(factor, torch.full(shape[:-2], loading, dtype=torch.float64))


def targets(
    generator: torch.Generator, truth: Sources = TRUTH, rows: int = 5, columns: int = 4, loading: float = 0.1
) -> Targets:
    """Targets whose sample covariance is some matrix of rank 4."""
    where = panel(rows, columns)
    A = truth.steering(where)
    noise = torch.full((len(A),), loading, dtype=torch.float64)
    return Targets(
        truth=truth,
        steering=A,
        true=true_covariance(A, truth.power).normalised(),
        sample=covariance(generator, len(A), where.size, 4).normalised(),
        conditioning=Conditioning(noise, noise / 2),
        grid=SearchGrid.cover(where, VOLUME),
    )


def random_prediction(
    generator: torch.Generator, to: Targets, heads: int = 4, most: int = 3, grid: bool = True
) -> Prediction:
    scenes, size = len(to), to.true.size

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Prediction(
        angle_factor=random_complex(generator, scenes, size, most),
        range_factor=random_complex(generator, scenes, size, most),
        count_logits=real(scenes, most + 1),
        azimuth=0.5 * real(scenes, heads),
        elevation=0.3 * real(scenes, heads),
        inverse_range=real(scenes, heads).exp(),
        existence_logits=real(scenes, heads),
        grid_logits=real(scenes, 2, len(to.grid)) if grid else None,
    )


def perfect_prediction(to: Targets, *, smoothing: float = 0.05, width: float = 0.6) -> Prediction:
    """The truth itself, its heads in reverse order with one to spare, its factors with orthogonal columns."""
    values, vectors = torch.linalg.eigh(to.true.factor @ to.true.factor.mH)
    most = to.truth.azimuth.shape[-1]
    factor = (vectors * values.clamp_min(0).sqrt()[..., None, :]).flip(-1)[..., :most].to(to.steering.dtype)
    place = torch.arange(most + 1)
    labels = (1 - smoothing) * (place == to.count[:, None]) + smoothing / (most + 1)
    heads = [torch.nn.functional.pad(value.flip(-1), (0, 1), value=0.3) for value in to.truth.filled()]
    exists = torch.nn.functional.pad(to.truth.active.flip(-1), (0, 1))
    return Prediction(
        angle_factor=factor,
        range_factor=torch.zeros_like(factor),
        count_logits=labels.to(to.true.loading).log(),
        azimuth=heads[0],
        elevation=heads[1],
        inverse_range=1 / heads[2],
        existence_logits=torch.where(exists, 40.0, -40.0).to(heads[0]),
        grid_logits=heat_map_target(to.truth, to.grid, width).clamp_min(1e-30).log()[:, None],
    )


def each_field(prediction: Prediction) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(prediction).items() if value is not None}


def with_gradient(prediction: Prediction) -> Prediction:
    return Prediction(**{name: value.requires_grad_() for name, value in each_field(prediction).items()})


def check_gradient(
    loss: Callable[..., torch.Tensor], *inputs: torch.Tensor, generator: torch.Generator, step: float = 1e-6
) -> None:
    """The gradient of sum(loss), against central differences along random directions of all inputs."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    gradients = torch.autograd.grad(loss(*leaves).sum(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient != 0).any()
        for _ in range(3):
            along = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            ends = []
            for sign in (1, -1):
                moved = [v + sign * step * along if v is leaf else v for v in leaves]
                ends.append(loss(*(v.detach() for v in moved)).sum())
            slope = (gradient.conj() * along).real.sum()
            scale = float(gradient.abs().norm() * along.abs().norm())
            torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-5, atol=1e-7 * scale)
