from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2

from rismusic.crb import conditional_crb
from rismusic.estimation.grid import Volume
from rismusic.hybrid import locate
from rismusic.scene_view import (
    CHI_SQUARED,
    CONFIDENCE,
    cartesian_covariance,
    ellipse_from_above,
    ellipsoid,
    inside_ellipsoid,
    jacobian,
    to_cartesian,
)
from rismusic.simulation.simulator import simulate

VOLUME = Volume(math.radians(60), math.radians(30), 0.5, 10.0)


@pytest.fixture
def positions(generator) -> torch.Tensor:
    unit = torch.rand(20, 3, generator=generator, dtype=torch.float64)
    low = torch.tensor([-1.0, -0.5, 0.5], dtype=torch.float64)
    return low + unit * torch.tensor([2.0, 1.0, 9.0], dtype=torch.float64)


@pytest.fixture
def covariance(generator) -> torch.Tensor:
    """Correlated errors of about 1e-7 in each coordinate: small enough for a linear map."""
    root = 1e-7 * torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    return root @ root.mT


def test_the_jacobian_is_that_of_the_positions(positions):
    step = 1e-6
    for coordinate in range(3):
        moved = step * torch.eye(3, dtype=torch.float64)[coordinate]
        slope = (to_cartesian(positions + moved) - to_cartesian(positions - moved)) / (2 * step)
        torch.testing.assert_close(jacobian(positions)[..., coordinate], slope, atol=1e-8, rtol=1e-8)


def test_the_covariance_is_that_of_moved_points(positions, covariance, generator):
    """Errors drawn in azimuth, elevation and range scatter in space as the covariance says."""
    position, sigma = positions[0], covariance[0]
    draws = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    errors = to_cartesian(position + draws @ torch.linalg.cholesky(sigma).mT) - to_cartesian(position)
    expected = cartesian_covariance(position, sigma)
    scale = expected.diagonal().sqrt()
    assert ((errors.T.cov() - expected) / (scale[:, None] * scale)).abs().max() < 0.01


def test_quantiles_are_those_of_chi_squared():
    for freedom, quantile in CHI_SQUARED.items():
        assert quantile == pytest.approx(chi2.ppf(CONFIDENCE, freedom), rel=1e-12)


def test_small_ellipsoids_are_surfaces_of_equal_probability(positions, covariance):
    for position, sigma in zip(positions, covariance, strict=True):
        wide = Volume(1.5, 1.5, 1e-3, 100.0)
        sections, cut = ellipsoid(position, sigma, wide)
        outline, cut_above = ellipse_from_above(position, sigma, wide)
        assert not cut
        assert not cut_above
        C = cartesian_covariance(position, sigma)
        offset = sections - to_cartesian(position)
        distance = (offset @ torch.linalg.inv(C) * offset).sum(-1)
        torch.testing.assert_close(distance, torch.full_like(distance, CHI_SQUARED[3]), rtol=1e-3, atol=0)
        flat = torch.linalg.inv(C[[0, 2]][:, [0, 2]])
        offset = (outline - to_cartesian(position))[:, [0, 2]]
        distance = (offset @ flat * offset).sum(-1)
        torch.testing.assert_close(distance, torch.full_like(distance, CHI_SQUARED[2]), rtol=1e-3, atol=0)


def test_the_longest_axis_of_a_vague_range_points_at_the_panel():
    position = torch.tensor([0.4, -0.2, 5.0], dtype=torch.float64)
    sections, _ = ellipsoid(position, torch.diag(torch.tensor([1e-6, 1e-6, 0.04]).double()), VOLUME)
    offset = (sections - to_cartesian(position)).flatten(0, 1)
    farthest = offset[offset.norm(dim=-1).argmax()]
    along = to_cartesian(position) / 5
    assert (farthest @ along).abs() / farthest.norm() > 1 - 1e-6
    assert farthest.norm() == pytest.approx(0.2 * math.sqrt(CHI_SQUARED[3]), rel=1e-6)


def test_huge_errors_stay_in_the_volume_of(positions):
    sigma = torch.diag(torch.tensor([3.0, 2.0, 1e12]).double())
    for position in positions:
        for points, cut in (ellipsoid(position, sigma, VOLUME), ellipse_from_above(position, sigma, VOLUME)):
            assert cut
            distance = points.norm(dim=-1)
            assert (distance >= 0.5 - 1e-9).all()
            assert (distance <= 10 + 1e-9).all()
            assert torch.atan2(points[..., 0], points[..., 2]).abs().max() <= VOLUME.azimuth_max + 1e-9
            assert torch.asin(points[..., 1] / distance).abs().max() <= VOLUME.elevation_max + 1e-9


def test_as_many_errors_lie_inside_as_should(covariance, generator):
    root = torch.linalg.cholesky(covariance[0])
    errors = torch.randn(20_000, 3, generator=generator, dtype=torch.float64) @ root.mT
    share = inside_ellipsoid(errors, covariance[0].expand(20_000, 3, 3)).double().mean()
    # Five standard deviations of a share of 20,000.
    assert float(share) == pytest.approx(CONFIDENCE, abs=5 * math.sqrt(0.95 * 0.05 / 20_000))


def test_located_sources_carry_the_whole_covariance():
    recording = simulate(scenes=2, sources=2, snr_db=20, panel={"rows": 6, "columns": 6}, seed=3)
    located = locate(recording, n_sources=2, method="omp")
    joint = conditional_crb(recording.panel, recording.link, recording.truth, recording.noise_variance)
    for scene in range(2):
        for source in range(2):
            assert joint.per_source[scene, source].equal(joint.covariance[scene, source, :, source, :])
    std = located.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(located.std, std, equal_nan=True)
    assert torch.linalg.eigvalsh(located.covariance).gt(0).all()
    assert (located.covariance[..., 0, 1].abs() > 0).all()
