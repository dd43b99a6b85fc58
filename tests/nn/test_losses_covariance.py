"""Losses of a covariance: dense forms, gradients, what they do and do not see."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from loss_scenes import TRUTH, check_gradient, covariance, panel, random_complex, random_prediction, targets

from rismusic.array import steering
from rismusic.covariance import Conditioning, Covariance, load_and_shrink, true_covariance
from rismusic.nn.losses import (
    covariance_error,
    cross_coherence,
    eigengap_hinge,
    eigenvalue_gap,
    factor_coherence,
    inner,
    mvdr_value,
    peak_contrast,
    steering_basis,
    subspace_leakage,
)

COUNT = torch.tensor([2, 1])


def of(factor: torch.Tensor, loading: float = 0.02) -> Covariance:
    return Covariance(factor, torch.full(factor.shape[:-2], loading, dtype=torch.float64))


def structure_losses(generator: torch.Generator, rows: int = 5, columns: int = 4, *, single: bool = False):
    """Every loss of R against R_true, as a function of R alone."""
    to = targets(generator, TRUTH[:3], rows, columns)
    true, basis, around = to.conditioned, steering_basis(to.steering), to.around()
    if single:
        true = Covariance(true.factor.to(torch.complex64), true.loading.float())
        basis, around = basis.to(torch.complex64), around.to(torch.complex64)
    active = to.truth.active

    losses = {
        "covariance": lambda R: covariance_error(R, true),
        "subspace": lambda R: subspace_leakage(R, basis),
        "eigengap": lambda R: eigengap_hinge(R, true, to.count, 1.0),
        "contrast": lambda R: torch.where(active, peak_contrast(R, true, around), 0).sum(-1),
    }
    return to, losses


def test_inner_product_is_the_dense_one(generator):
    R, T = covariance(generator, 3, 6, 2, loading=0.3), covariance(generator, 3, 6, 4, loading=0.1)
    torch.testing.assert_close(inner(R, T), torch.einsum("sij,sji->s", R.dense(), T.dense()).real)


def test_covariance_error_is_the_dense_one(generator):
    R, T = covariance(generator, 3, 6, 2, loading=0.3), covariance(generator, 3, 6, 4, loading=0.1)
    r, t = (M.dense() / M.dense().diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for M in (R, T))
    eye = torch.eye(6, dtype=torch.bool)
    parts = []
    for mask in (eye, ~eye):
        difference, reference = ((M * mask).abs().square().sum((-2, -1)) for M in (r - t, t))
        parts.append(difference / reference)
    torch.testing.assert_close(covariance_error(R, T), sum(parts) / 2)


def test_covariance_error_of_a_diagonal_target_is_finite(generator):
    R, white = covariance(generator, 2, 6, 3), of(torch.zeros(2, 6, 1, dtype=torch.complex128))
    r, t = R.normalised().dense(), white.normalised().dense()
    eye = torch.eye(6, dtype=torch.bool)
    on = ((r - t) * eye).abs().square().sum((-2, -1)) / (t.abs().square()).sum((-2, -1))
    off = (r * ~eye).abs().square().sum((-2, -1)) / (t.abs().square()).sum((-2, -1))
    torch.testing.assert_close(covariance_error(R, white), (on + off) / 2)


def test_leakage_is_the_dense_one(generator):
    A = TRUTH[:3].steering(panel())
    R = covariance(generator, 3, 20, 4, loading=0.05)
    gram = A.mH @ A + 1e-9 * torch.eye(3)
    out = torch.eye(20) - A @ torch.linalg.solve(gram, A.mH)
    dense = (out @ R.dense() @ out).abs().square().sum((-2, -1)) / R.dense().abs().square().sum((-2, -1))
    torch.testing.assert_close(subspace_leakage(R, steering_basis(A)), dense, rtol=1e-7, atol=0)


def test_gap_is_the_dense_one_and_descends(generator):
    for rank in (3, 6, 9):  # narrow, square, wide
        R = covariance(generator, 2, 6, rank, loading=0.4)
        values = torch.linalg.eigvalsh(R.normalised().dense()).flip(-1)
        wanted = torch.stack((values[0, 1] - values[0, 2], values[1, 0] - values[1, 1]))
        torch.testing.assert_close(eigenvalue_gap(R, COUNT), wanted)


def test_gap_beyond_the_rank_is_the_last_eigenvalue(generator):
    R = covariance(generator, 1, 6, 2)
    values = torch.linalg.eigvalsh(R.normalised().dense()).flip(-1)
    torch.testing.assert_close(eigenvalue_gap(R, torch.tensor([2])), values[:, 1])


def test_margin_is_never_above_the_true_gap(generator):
    to = targets(generator, TRUTH[:3])
    gap = eigenvalue_gap(to.conditioned, to.count)
    # A covariance whose gap is that of the truth lacks nothing, whatever the margin.
    for margin in (0.01, 0.1, 1.0):
        assert (eigengap_hinge(to.conditioned, to.conditioned, to.count, margin) == 0).all()
    # One without any gap lacks all of the margin, or all of the true gap where that is smaller.
    flat = of(torch.eye(20, dtype=torch.complex128).expand(3, -1, -1), 0.0)
    lacking = eigengap_hinge(flat, to.conditioned, to.count, 0.2)
    wanted = gap.clamp_max(0.2)
    torch.testing.assert_close(lacking, wanted / (wanted + 1e-6))


def test_a_step_down_the_gradient_opens_the_gap(generator):
    """Mistake 1: eigenvalues in the wrong order push the gap shut."""
    to, losses = structure_losses(generator)
    factor = random_complex(generator, 3, 20, 6).requires_grad_()
    loss = losses["eigengap"](of(factor)).sum()
    (gradient,) = torch.autograd.grad(loss, factor)
    before = eigenvalue_gap(of(factor.detach()), to.count)
    after = eigenvalue_gap(of(factor.detach() - 0.3 * gradient), to.count)
    assert (after > before).all()


def test_mvdr_is_the_dense_one(generator):
    R, a = covariance(generator, 2, 6, 3, loading=0.05), random_complex(generator, 2, 6, 5)
    dense = 1 / torch.einsum("snq,snm,smq->sq", a.conj(), torch.linalg.inv(R.dense()), a).real
    torch.testing.assert_close(mvdr_value(R, a), dense)


def test_contrast_is_the_divergence_of_the_cells(generator):
    to = targets(generator, TRUTH[:1])
    R = covariance(generator, 1, 20, 4, loading=0.1)
    around = to.around()
    shares = []
    for M in (R, to.conditioned):
        dense = M.normalised().dense() / 1.05 + 0.05 / 1.05 * torch.eye(20) / 20
        value = 1 / torch.einsum("snkc,snm,smkc->skc", around.conj(), torch.linalg.inv(dense), around).real
        shares.append(value / value.sum(-1, keepdim=True))
    s, t = shares
    torch.testing.assert_close(peak_contrast(R, to.conditioned, around), (t * (t / s).log()).sum(-1))


def test_cells_surround_the_source_at_its_range(generator):
    to = targets(generator, TRUTH[:1])
    around = to.around()
    assert around.shape[-1] == 25
    torch.testing.assert_close(around[..., 12], to.steering)
    # One cell up: a step in u_y at the same u_x and range.
    azimuth, elevation = to.truth.azimuth[0, 0], to.truth.elevation[0, 0]
    u_x, u_y = azimuth.sin() * elevation.cos(), elevation.sin() + to.grid.step[1]
    lifted = torch.asin(u_x / (1 - u_y**2).sqrt()), torch.asin(u_y)
    wanted = steering(to.grid.panel, *(v.reshape(1) for v in lifted), to.truth.range[0, :1])
    torch.testing.assert_close(around[0, :, 0, 13], wanted[:, 0])


def test_coherences_are_the_dense_ones(generator):
    A, B = random_complex(generator, 2, 6, 3), random_complex(generator, 2, 6, 3)
    trace = (A.abs().square() + 0.3 * B.abs().square()).sum((-2, -1))
    off = ~torch.eye(3, dtype=torch.bool)
    within = sum(
        (w**2 * (M.mH @ M).abs().square() * off).sum((-2, -1)) / trace**2 for w, M in ((1, A), (0.3, B))
    )
    torch.testing.assert_close(factor_coherence(A, B), within)
    torch.testing.assert_close(
        cross_coherence(A, B), 0.6 * (A.mH @ B).abs().square().sum((-2, -1)) / trace**2
    )


def test_coherences_vanish_for_orthogonal_columns_and_grow_as_they_meet(generator):
    basis = torch.linalg.qr(random_complex(generator, 2, 6, 6))[0]
    A, B = basis[..., :3], basis[..., 3:]
    assert factor_coherence(A, B).max() < 1e-28
    assert cross_coherence(A, B).max() < 1e-28
    tilted = [torch.cat((A[..., :2], A[..., 2:] + tilt * A[..., :1]), dim=-1) for tilt in (0.2, 0.5, 1.0)]
    assert rising([factor_coherence(T, B) for T in tilted])
    assert rising([cross_coherence(A, B + tilt * A) for tilt in (0.2, 0.5, 1.0)])


@pytest.mark.parametrize("name", ["covariance", "subspace", "eigengap", "contrast"])
def test_gradients_are_those_of_finite_differences(generator, name):
    _, losses = structure_losses(generator, 3, 2)
    factor = random_complex(generator, 3, 6, 3)
    assert (losses[name](of(factor)) > 0.01).any()
    check_gradient(lambda F: losses[name](of(F)), factor, generator=generator)


@pytest.mark.parametrize("loss", [factor_coherence, cross_coherence])
def test_gradients_of_coherences(generator, loss):
    factors = [random_complex(generator, 2, 4, 2) for _ in range(2)]
    check_gradient(loss, *factors, generator=generator)


@pytest.mark.parametrize("name", ["covariance", "subspace", "eigengap", "contrast"])
def test_invariances(generator, name):
    """Scale, the phase of each column, and any rotation of the columns do not matter."""
    _, losses = structure_losses(generator)
    factor = random_complex(generator, 3, 20, 4)
    reference = losses[name](of(factor, 0.02))
    torch.testing.assert_close(losses[name](of(3 * factor, 9 * 0.02)), reference)
    phase = torch.polar(torch.ones(4, dtype=torch.float64), torch.tensor([0.3, 2.0, -1.0, 3.0]).double())
    torch.testing.assert_close(losses[name](of(factor * phase)), reference)
    rotation = torch.linalg.qr(random_complex(generator, 4, 4))[0]
    torch.testing.assert_close(losses[name](of(factor @ rotation)), reference)


@pytest.mark.parametrize("name", ["covariance", "subspace", "eigengap", "contrast"])
def test_zero_at_the_truth_and_growing_away_from_it(generator, name):
    """Mistake 18: no floor. Mistakes 2, 3: sources moved by degrees are seen."""
    to, losses = structure_losses(generator)
    bare = load_and_shrink(to.true, Conditioning(torch.zeros(3).double(), torch.zeros(3).double()))
    # Only the subspace loss minds the loading, which lies outside any subspace.
    at_truth = losses[name](bare if name == "subspace" else to.conditioned)
    assert at_truth.abs().max() < 1e-14
    values = []
    for share in (0.1, 0.3, 0.6):
        # The truth, with some of it moved onto a source that is not there.
        stray = steering(panel(), *(torch.full((3, 1), v).double() for v in (-0.9, 0.3, 4.0)))
        both = torch.cat((bare.factor * (1 - share) ** 0.5, stray * share**0.5), dim=-1)
        values.append(losses[name](load_and_shrink(of(both, 0.0), to.conditioning)))
    assert rising(values[1:]) if name == "eigengap" else rising(values)


def test_structure_sees_sources_that_moved(generator):
    """Mistakes 2, 3: with degrees for radians, or an exception swallowed, these are all 0 or all alike."""
    to, losses = structure_losses(generator)
    degrees = TRUTH[:3].each(lambda value: value)
    for name in ("covariance", "subspace", "contrast"):
        values = []
        for moved_deg in (0.0, 2.0, 5.0, 10.0):
            turned = torch.deg2rad(torch.tensor(moved_deg).double())
            azimuth, elevation, distance = degrees.filled()
            A = steering(panel(), azimuth + turned, elevation, distance) * degrees.active[:, None, :]
            values.append(losses[name](load_and_shrink(true_covariance(A, degrees.power), to.conditioning)))
        assert rising(values), name
        assert (values[-1] > 0.005).all(), name


def test_leakage_is_measured_from_the_sources_where_they_are():
    """Mistake 2: steering vectors written out here in radians span what the basis spans, and no more."""
    where = panel()
    x, y = where.elements[:, 0], where.elements[:, 1]
    columns = []
    for azimuth, elevation, r in ((0.61, 0.11, 1.2), (-0.33, -0.3, 3.4), (0.07, 0.42, 0.8)):
        azimuth, elevation, r = (torch.tensor(v, dtype=torch.float64) for v in (azimuth, elevation, r))
        u = azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()
        distance = ((r * u[0] - x) ** 2 + (r * u[1] - y) ** 2 + (r * u[2]) ** 2).sqrt()
        wave = r / distance * torch.exp(2j * torch.pi / 0.3 * (r - distance))
        columns.append(wave / wave.norm())
    basis = steering_basis(TRUTH[:1].steering(where))
    written = of(torch.stack(columns, dim=-1)[None], 0.0)
    assert subspace_leakage(written, basis) < 1e-14
    assert 2.9 < basis.abs().square().sum() < 3.1
    assert subspace_leakage(of(written.factor.conj().resolve_conj(), 0.0), basis) > 0.3


@pytest.mark.parametrize("name", ["covariance", "subspace", "eigengap", "contrast"])
@pytest.mark.parametrize("kind", ["rank one", "equal eigenvalues", "zero columns"])
def test_gradients_stay_finite_where_eigenvectors_have_none(generator, name, kind):
    """Mistake 6: rank-deficient factors and eigenvalues that meet."""
    factor = random_complex(generator, 3, 20, 6)
    if kind == "rank one":
        factor = factor[..., :1].repeat(1, 1, 6)
    elif kind == "equal eigenvalues":
        factor = torch.linalg.qr(factor)[0]
    else:
        factor[..., 1:] = 0
    for single in (False, True):
        _, losses = structure_losses(generator, single=single)
        leaf = (factor.to(torch.complex64) if single else factor).clone().requires_grad_()
        loading = torch.full((3,), 0.02, dtype=leaf.dtype.to_real())
        (gradient,) = torch.autograd.grad(losses[name](Covariance(leaf, loading)).sum(), leaf)
        assert gradient.isfinite().all()
        # A column of zeros is a stationary point of F F^H for a loss of eigenvalues.
        assert (gradient != 0).any() or (kind, name) == ("zero columns", "eigengap")


def test_no_scene_is_without_a_gradient(generator):
    """Mistake 14: of random predictions, none is clamped into silence."""
    truth = TRUTH[torch.arange(64) % 3]
    to = targets(generator, truth)
    prediction = random_prediction(generator, to, grid=False)
    factor = prediction.covariance.factor.detach().requires_grad_()
    true, basis, around = to.conditioned, steering_basis(to.steering), to.around()
    for loss in (
        lambda R: covariance_error(R, true),
        lambda R: subspace_leakage(R, basis),
        lambda R: torch.where(truth.active, peak_contrast(R, true, around), 0).sum(-1),
    ):
        (gradient,) = torch.autograd.grad(loss(of(factor)).sum(), factor)
        norm = gradient.abs().square().sum((-2, -1)).sqrt()
        assert (norm > 1e-3 * norm.median()).all()


def rising(values: list[torch.Tensor]) -> bool:
    """Whether every scene's value grows from one entry to the next."""
    return all(bool((second > first).all()) for first, second in pairwise(values))
