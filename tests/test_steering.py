from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.array import WAVES, Panel, direction, steering, steering_with_derivatives
from rismusic.errors import InputError

MODELS = [*((wave, 0.0) for wave in WAVES), ("spherical", 1.5), ("fresnel", 0.5)]


def points(generator, *shape, nearest=0.5, farthest=10.0, dtype=torch.float64):
    unit = torch.rand(3, *shape, generator=generator, dtype=dtype)
    azimuth, elevation = (2 * unit[0] - 1) * math.pi / 3, (2 * unit[1] - 1) * math.pi / 6
    return azimuth, elevation, torch.exp(math.log(nearest) + unit[2] * math.log(farthest / nearest))


def independent(panel, azimuth, elevation, r):
    """DESIGN.md, section 2, in numpy: distances as norms of coordinate differences."""
    p, k0 = panel.elements.numpy(), 2 * np.pi / panel.wavelength
    az, el, r = azimuth.numpy(), elevation.numpy(), r.numpy()
    u = np.stack((np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)))
    along = np.einsum("ni,i...->n...", p, u)
    squared = (p**2).sum(1).reshape(-1, *[1] * az.ndim)
    ray = np.stack([r * u[i] - p[:, i].reshape(-1, *[1] * az.ndim) for i in range(3)])
    exact = np.sqrt((ray**2).sum(0))
    d = exact
    if panel.wave == "fresnel":
        d = r - along + (squared - along**2) / (2 * r)
    elif panel.wave == "paraxial":
        d = r - along + squared / (2 * r)
    g = (r / exact if panel.wave == "spherical" else 1) * np.maximum(
        ray[2] / exact, 0
    ) ** panel.pattern_exponent
    a = g * np.exp(1j * k0 * (r - d))
    return a / np.sqrt((np.abs(a) ** 2).sum(0))


@pytest.mark.parametrize(("wave", "exponent"), MODELS)
def test_against_the_definition(wave, exponent, generator):
    panel = Panel.uniform_planar(5, 7).replace(wave=wave, pattern_exponent=exponent)
    place = points(generator, 9)
    A = steering(panel, *place)
    np.testing.assert_allclose(A.numpy(), independent(panel, *place), atol=1e-12)
    torch.testing.assert_close(A.norm(dim=-2), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(("wave", "exponent"), MODELS)
def test_elements_out_of_the_plane(wave, exponent, generator):
    elements = torch.randn(11, 3, generator=generator, dtype=torch.float64) * 0.3
    panel, place = Panel(elements, 0.3, wave, exponent), points(generator, 6, nearest=2)
    np.testing.assert_allclose(steering(panel, *place).numpy(), independent(panel, *place), atol=1e-12)


def test_amplitudes_near_the_default_panel():
    """At 0.7 m they run from 0.62 to 1.41 of their mean (DESIGN.md, section 2)."""
    angle = torch.linspace(-1, 1, 41, dtype=torch.float64)
    azimuth, elevation = torch.meshgrid(angle * math.pi / 3, angle * math.pi / 6, indexing="ij")
    A = steering(
        Panel.uniform_planar(), azimuth.ravel(), elevation.ravel(), torch.full((1681,), 0.7).double()
    )
    on_axis = A[:, 840].abs() / A[:, 840].abs().mean()
    assert float(on_axis.min()) == pytest.approx(0.62, abs=0.15)
    assert float(on_axis.max()) == pytest.approx(1.41, abs=0.15)


def test_a_source_behind_directional_elements_is_silent():
    panel = Panel([[0.0, 0, 0], [0, 0, 5.0]], 0.3, pattern_exponent=2.0)
    zero = torch.zeros(1).double()
    A = steering(panel, zero, zero, torch.ones(1).double())
    torch.testing.assert_close(A.abs()[:, 0], torch.tensor([1.0, 0.0]).double())


@pytest.mark.parametrize(("wave", "exponent"), MODELS)
@pytest.mark.parametrize("nearest", [0.3, 50.0])
def test_derivatives_against_finite_differences(wave, exponent, nearest, generator):
    panel = Panel.uniform_planar(6, 8).replace(wave=wave, pattern_exponent=exponent)
    place = points(generator, 4, 5, nearest=nearest, farthest=3 * nearest)
    A, D = steering_with_derivatives(panel, *place)
    torch.testing.assert_close(A, steering(panel, *place), rtol=0, atol=0)
    step = 1e-5
    for i in range(3):
        shift = [p.clone() for p in place]
        numeric = torch.zeros_like(A)
        for times, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            shift[i] = place[i] + times * step
            numeric += weight * steering(panel, *shift) / (12 * step)
        scale = D[..., i].abs().max()
        assert (D[..., i] - numeric).abs().max() < 1e-7 * max(float(scale), 1e-3)


@pytest.mark.parametrize(
    ("field", "change"), [("wave", {"wave": "plane"}), ("pattern_exponent", {"pattern_exponent": -1.0})]
)
def test_models_that_do_not_exist_are_refused(field, change, untyped):
    with pytest.raises(InputError) as caught:
        Panel.uniform_planar().replace(**change)
    assert caught.value.field == field


def test_derivatives_far_away_do_not_cancel():
    """At 10 km the range derivative is 1e-9 of the wave number; it must still have its digits."""
    panel = Panel.uniform_planar().replace(wave="uniform")
    place = torch.tensor([0.4]).double(), torch.tensor([-0.2]).double(), torch.tensor([1e4]).double()
    _, D = steering_with_derivatives(panel, *place)
    along = panel.elements @ torch.stack(direction(place[0], place[1]))
    limit = panel.wavenumber * (panel.elements.square().sum(1) - along[:, 0] ** 2) / (2 * 1e8)
    measured = D[:, 0, 2].abs() * math.sqrt(panel.size)
    torch.testing.assert_close(measured, limit.abs(), rtol=3e-4, atol=0)


@pytest.mark.parametrize("wave", WAVES)
def test_far_field_limit(wave, generator):
    panel = Panel.uniform_planar().replace(wave=wave)
    azimuth, elevation, _ = points(generator, 10)
    r = torch.full_like(azimuth, 1e7)
    u = torch.stack(direction(azimuth, elevation))
    plane = torch.exp(1j * panel.wavenumber * (panel.elements @ u)) / 12
    assert (steering(panel, azimuth, elevation, r) - plane).abs().max() < 1e-6


def test_fresnel_form_is_second_order_and_paraxial_is_not(generator):
    """The error in path of the Fresnel form falls with 1 / r^2; the paraxial one only with 1 / r."""
    panel = Panel.uniform_planar()
    azimuth, elevation, _ = points(generator, 30)

    def error(wave, r):
        place = azimuth, elevation, torch.full_like(azimuth, r)
        turn = steering(panel, *place) * steering(panel.replace(wave=wave), *place).conj()
        return turn.angle().abs().max()

    assert error("fresnel", 200.0) / error("fresnel", 400.0) == pytest.approx(4, rel=0.05)
    assert error("paraxial", 200.0) / error("paraxial", 400.0) == pytest.approx(2, rel=0.05)


def test_float32_phase_on_a_large_panel(generator):
    """Within 1e-4 rad of float64 from 0.3 to 100 m on 64 x 64 elements."""
    panel = Panel.uniform_planar(64, 64)
    place = points(generator, 500, nearest=0.3, farthest=100.0, dtype=torch.float32)
    narrow = steering(panel, *place).to(torch.complex128)
    wide = steering(panel, *(p.double() for p in place))
    assert (narrow * wide.conj()).angle().abs().max() < 1e-4


def test_leading_axes_and_panels_per_scene(generator):
    place = points(generator, 2, 3, 4)
    panel = Panel.uniform_planar(3, 3)
    whole = steering(panel, *place)
    assert whole.shape == (2, 3, 9, 4)
    torch.testing.assert_close(whole[1, 2], steering(panel, *(p[1, 2] for p in place)))
    elements = panel.elements + 0.01 * torch.randn(3, 9, 3, generator=generator, dtype=torch.float64)
    each = steering(Panel(elements, 0.3), *place)
    torch.testing.assert_close(each[0, 1], steering(Panel(elements[1], 0.3), *(p[0, 1] for p in place)))


def test_gradients_agree_with_the_analytic_derivatives(generator):
    panel = Panel.uniform_planar(4, 4)
    place = [p.requires_grad_() for p in points(generator, 3)]
    weight = torch.randn(16, 3, dtype=torch.complex128, generator=generator)
    (weight * steering(panel, *place)).real.sum().backward()
    _, D = steering_with_derivatives(panel, *(p.detach() for p in place))
    for i, p in enumerate(place):
        torch.testing.assert_close(p.grad, (weight * D[..., i]).real.sum(0))
