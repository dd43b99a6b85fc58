"""The damped descent on functions whose minimum in a box is known some other way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from rismusic.estimation.levenberg_marquardt import levenberg_marquardt


def quadratics(generator, scenes=30, unknowns=6):
    """|M x - b|^2 / 2 with columns of very different length, and a box that cuts many minima off."""
    scale = torch.logspace(-2, 2, unknowns, dtype=torch.float64)
    M = torch.randn(scenes, 12, unknowns, generator=generator, dtype=torch.float64) * scale
    b = 5 * torch.randn(scenes, 12, generator=generator, dtype=torch.float64)
    upper = torch.rand(scenes, unknowns, generator=generator, dtype=torch.float64) / scale

    def evaluate(live, x):
        residual = (M[live] @ x[..., None])[..., 0] - b[live]
        gradient = (M[live].mT @ residual[..., None])[..., 0]
        return residual.square().sum(-1) / 2, gradient, M[live].mT @ M[live]

    return evaluate, -upper, upper, M, b


def banana(live, x):
    """Rosenbrock's function in 2 unknowns with its Gauss-Newton curvature; a factor 10 ** live."""
    r = torch.stack((10 * (x[:, 1] - x[:, 0] ** 2), 1 - x[:, 0]), dim=1)
    zero, one = torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0])
    J = torch.stack((torch.stack((-20 * x[:, 0], 10 * one), -1), torch.stack((-one, zero), -1)), dim=1)
    weight = 10.0 ** live.double()
    gradient = 2 * weight[:, None] * (J.mT @ r[..., None])[..., 0]
    return weight * r.square().sum(-1), gradient, 2 * weight[:, None, None] * J.mT @ J


def everywhere(*shape):
    return torch.full(shape, -10.0).double(), torch.full(shape, 10.0).double()


def test_minimum_of_a_convex_quadratic_in_a_box(generator):
    """Against scipy's bounded least squares, and the conditions that hold at the minimum alone."""
    evaluate, lower, upper, M, b = quadratics(generator)
    start = 3 * upper * torch.randn(30, 6, generator=generator, dtype=torch.float64)
    end = levenberg_marquardt(evaluate, start, lower, upper, steps=100, tolerance=1e-6)
    assert end.converged.all()
    x = end.point
    assert ((x >= lower) & (x <= upper)).all()
    for i in range(30):
        box = (lower[i].numpy(), upper[i].numpy())
        expected = lsq_linear(M[i].numpy(), b[i].numpy(), box, method="bvls", tol=1e-14)
        np.testing.assert_allclose(x[i] / upper[i], expected.x / box[1], atol=1e-5)
        assert float(end.value[i]) == pytest.approx(expected.cost, rel=1e-9)
    _, gradient, curvature = evaluate(torch.arange(30), x)
    gradient = gradient / curvature.diagonal(dim1=-2, dim2=-1).sqrt()
    low, high = x <= lower, x >= upper
    assert low.any()
    assert high.any()
    assert (~low & ~high).any()
    assert (gradient[low] >= 0).all()
    assert (gradient[high] <= 0).all()
    assert gradient[~low & ~high].abs().max() < 1e-4


def test_values_only_fall_and_belong_to_the_points():
    start = torch.tensor([[-1.2, 1.0], [3.0, -4.0], [-2.0, -2.0], [0.0, 5.0]]).double()
    everyone = torch.arange(4)
    last = banana(everyone, start)[0]
    for steps in (0, 1, 2, 3, 5, 8, 13, 40, 100):
        end = levenberg_marquardt(banana, start, *everywhere(4, 2), steps=steps, tolerance=1e-9)
        assert (end.value <= last).all()
        torch.testing.assert_close(end.value, banana(everyone, end.point)[0])
        last = end.value
    assert torch.equal(levenberg_marquardt(banana, start, *everywhere(4, 2), steps=0).point, start)
    torch.testing.assert_close(end.point, torch.ones(4, 2).double())


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_curvature_that_is_far_off_costs_steps_not_the_descent(factor):
    """Too little of it overshoots: such steps are refused; too much creeps."""

    def wrong(live, x):
        value, gradient, curvature = banana(live, x)
        return value, gradient, factor * curvature

    start = torch.tensor([[-1.2, 1.0], [0.5, 2.0]]).double()
    last = banana(torch.arange(2), start)[0]
    for steps in (1, 3, 10, 30):
        end = levenberg_marquardt(wrong, start, *everywhere(2, 2), steps=steps, tolerance=1e-6)
        assert (end.value <= last).all()
        last = end.value
    assert (last < banana(torch.arange(2), start)[0]).all()


def test_steps_into_what_is_not_defined_are_refused():
    """x - log x from far right: the first full step would leave where the logarithm lives."""

    def evaluate(live, x):
        return (x - x.log())[:, 0], 1 - 1 / x, (1 / x.square())[..., None]

    start = torch.tensor([[8.0], [1e-3]]).double()
    end = levenberg_marquardt(evaluate, start, *everywhere(2, 1), steps=60, tolerance=1e-7)
    torch.testing.assert_close(end.point, torch.ones(2, 1).double(), rtol=0, atol=1e-6)
    assert end.converged.all()


def test_a_batch_is_a_loop(generator):
    """Problems that end after different numbers of steps leave the batch without disturbing the others."""
    evaluate, lower, upper, _, _ = quadratics(generator)
    start = upper * torch.randn(30, 6, generator=generator, dtype=torch.float64)
    calls = []

    def counted(live, x):
        calls.append(len(live))
        return evaluate(live, x)

    together = levenberg_marquardt(counted, start, lower, upper, tolerance=1e-6)
    assert calls[0] == 30 > calls[-1]
    for i in range(30):
        one = slice(i, i + 1)
        alone = levenberg_marquardt(
            lambda live, x, i=i: evaluate(live + i, x), start[one], lower[one], upper[one], tolerance=1e-6
        )
        torch.testing.assert_close(alone.point[0], together.point[i], rtol=1e-9, atol=1e-9)
        assert alone.converged[0] == together.converged[i]


def test_one_box_for_all_and_unknowns_that_are_held():
    start = torch.tensor([[-1.2, 1.0], [0.5, 0.2]]).double()
    low, high = torch.tensor([-5.0, 0.25]).double(), torch.tensor([5.0, 0.25]).double()
    end = levenberg_marquardt(banana, start, low, high, steps=100, tolerance=1e-7)
    assert (end.point[:, 1] == 0.25).all()
    torch.testing.assert_close(end.point[:, 0].abs(), torch.tensor([0.5, 0.5]).double(), rtol=0, atol=0.02)
    assert end.converged.all()


def test_unknowns_that_nothing_depends_on_stay_and_the_rest_converges():
    """As the power of a source that is not there: no gradient, no curvature."""

    def evaluate(live, x):
        none = torch.zeros_like(x[:, 0])
        gradient = torch.stack((2 * (x[:, 0] - 3), none), dim=-1)
        return (x[:, 0] - 3).square(), gradient, torch.diag_embed(torch.stack((none + 2, none), dim=-1))

    end = levenberg_marquardt(
        evaluate, torch.tensor([[7.0, 4.0]]).double(), *everywhere(1, 2), tolerance=1e-6
    )
    torch.testing.assert_close(end.point, torch.tensor([[3.0, 4.0]]).double(), rtol=0, atol=1e-5)
    assert end.converged.all()


def test_convergence_is_said_only_of_what_converged():
    start = torch.tensor([[-1.2, 1.0], [1.0, 1.0]]).double()
    end = levenberg_marquardt(banana, start, *everywhere(2, 2), steps=2, tolerance=1e-6)
    assert end.converged.tolist() == [False, True]
    assert levenberg_marquardt(banana, start, *everywhere(2, 2), steps=100, tolerance=1e-6).converged.all()


def test_flat_directions_converge_too(generator):
    """Curvatures over eight decades: the remaining error is small in error bars along each direction.

    A criterion on the gain in value stops long before the flat ones have moved.
    """
    sigma = torch.logspace(0, 4, 5, dtype=torch.float64)
    start = sigma * torch.randn(20, 5, generator=generator, dtype=torch.float64) * 3

    def bowl(live, x):
        z = x / sigma
        # Not quite a parabola, so that one step is not enough; F lacks a part of the Hessian.
        value = (z.square() / 2 + z.pow(4) / 100).sum(-1)
        return value, (z + z.pow(3) / 25) / sigma, torch.diag_embed((1 / sigma.square()).expand_as(x))

    wide = torch.full((20, 5), 1e9, dtype=torch.float64)
    for tolerance in (0.1, 0.005):
        end = levenberg_marquardt(bowl, start, -wide, wide, tolerance=tolerance)
        assert end.converged.all()
        assert (end.point / sigma).abs().max() < tolerance


def hidden_curvature(scale):
    """A quadratic whose F holds ``scale`` of the Hessian along one direction that is no axis."""
    Q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()).Q
    H = Q @ torch.diag(torch.linspace(1, 3, 6).double()) @ Q.mT
    F = H + (scale - 1) * 3 * torch.outer(Q[:, -1], Q[:, -1])

    def evaluate(live, x):
        gradient = (H @ x[..., None])[..., 0]
        return (x * gradient).sum(-1) / 2, gradient, F.expand(len(x), -1, -1)

    return evaluate, F


@pytest.mark.parametrize("scale", [0.6, 3.0, 10.0])
def test_what_the_curvature_lacks_is_learned_from_the_steps(scale, monkeypatch):
    """Fisher scoring alone converges linearly; with the updates a few evaluations are enough."""
    evaluate, F = hidden_curvature(scale)
    start = torch.ones(4, 6).double() * torch.tensor([1.0, -2.0, 5.0, 10.0]).double()[:, None]
    calls = []

    def counted(live, x):
        calls.append(len(live))
        return evaluate(live, x)

    end = levenberg_marquardt(counted, start, *everywhere(4, 6))
    error = (end.point * (F @ end.point[..., None])[..., 0]).sum(-1).sqrt()
    assert end.converged.all()
    assert error.max() < 5e-3
    with_updates = len(calls)
    calls.clear()
    monkeypatch.setattr("rismusic.estimation.levenberg_marquardt._LEAST_CURVATURE", math.inf)
    levenberg_marquardt(counted, start, *everywhere(4, 6))
    assert with_updates <= 8
    assert with_updates < len(calls)


def test_rounded_values_do_not_keep_a_fit_from_converging(generator):
    """Values with errors far above what the last steps gain, as those of single precision have."""
    evaluate, F = hidden_curvature(3.0)
    offset = 1e3

    def rounded(live, x):
        value, gradient, curvature = evaluate(live, x)
        noise = torch.rand(len(x), generator=generator, dtype=torch.float64)
        return offset + value + 2e-4 * noise, gradient, curvature

    start = torch.ones(50, 6).double() + torch.rand(50, 6, generator=generator, dtype=torch.float64)
    end = levenberg_marquardt(rounded, start, *everywhere(50, 6), steps=20)
    assert end.converged.all()
    error = (end.point * (F @ end.point[..., None])[..., 0]).sum(-1).sqrt()
    assert error.max() < 5e-3
