from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError


def test_elements_are_numbered_with_y_slowest_and_centred():
    panel = Panel.uniform_planar(rows=2, columns=3, wavelength=0.2)
    expected = [[x, y, 0] for y in (-0.05, 0.05) for x in (-0.1, 0.0, 0.1)]
    torch.testing.assert_close(panel.elements, torch.tensor(expected, dtype=torch.float64))


def test_elements_equal_those_of_the_samples(samples):
    import h5py

    with h5py.File(samples / "ideal_10dB.h5") as file:
        torch.testing.assert_close(Panel.uniform_planar().elements, torch.from_numpy(file["elements"][()]))
    assert torch.equal(Panel.uniform_planar(5).elements, Panel.uniform_planar(5, 5).elements)


def test_distances_of_the_default_panel():
    """12 x 12 at half a wavelength of 0.3 m: D = 11 * 0.15 * sqrt(2)."""
    panel = Panel.uniform_planar()
    D = 11 * 0.15 * math.sqrt(2)
    assert panel.size == 144
    assert panel.aperture == pytest.approx(D)
    assert panel.spacing == pytest.approx(0.15)
    assert panel.fraunhofer_distance == pytest.approx(2 * D**2 / 0.3)
    assert panel.fraunhofer_distance == pytest.approx(36.3)
    assert panel.fresnel_distance == pytest.approx(0.62 * math.sqrt(D**3 / 0.3))


def test_fraunhofer_distance_is_where_the_rim_lags_by_a_sixteenth_of_a_wavelength():
    panel = Panel.uniform_planar(40, 40)
    r = panel.fraunhofer_distance
    lag = math.hypot(r, panel.aperture / 2) - r
    assert lag == pytest.approx(panel.wavelength / 16, rel=1e-3)


def test_arbitrary_positions_and_single_element():
    elements = torch.tensor([[0.0, 0, 0], [0.3, 0.1, 0.02], [-0.4, 0, 0]], dtype=torch.float64)
    assert Panel(elements, 0.1).spacing == pytest.approx(math.sqrt(0.09 + 0.01 + 0.0004))
    assert Panel(elements[:1], 0.1).spacing == math.inf
    assert Panel(elements[:1], 0.1).aperture == 0


@pytest.mark.parametrize(
    ("elements", "wavelength", "sentence"),
    [
        (
            torch.zeros(4, 2),
            0.3,
            r"elements: must be positions \(x, y, z\) of shape \[N, 3\]; got shape \[4, 2\]",
        ),
        (torch.zeros(0, 3), 0.3, "elements: must be positions .* got shape"),
        (torch.full((2, 3), math.nan), 0.3, "elements: positions must be finite"),
        (
            torch.full((2, 3), 1e155, dtype=torch.float64),
            0.3,
            r"elements: positions must be within 1e\+15 m; got 1e\+155 m",
        ),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            0.3,
            "elements: must hold real floating-point numbers; got int64",
        ),
        (np.zeros((3, 8)), 0.3, r"elements: must have shape .* got \[3, 8\]. Pass the transpose, elements.T"),
        ([[0, 0, 0], [1, 0]], 0.3, "elements: must be an array or nested lists of equal length"),
        ([["a", "b", "c"]], 0.3, "elements: must hold real numbers"),
        (np.zeros((2, 3)) * 1j, 0.3, "elements: must hold real floating-point numbers; got complex128"),
        (torch.zeros(2, 3), 0.0, "wavelength: must be positive and finite, in metres; got 0"),
        (torch.zeros(2, 3), math.inf, "wavelength: must be positive and finite"),
        (torch.arange(6.0), 0.3, r"got shape \[6\]. Of a line along x, the columns are x, 0 and 0"),
    ],
)
def test_bad_panels(elements, wavelength, sentence, untyped):
    with pytest.raises(InputError, match=sentence):
        Panel(elements, wavelength)


@pytest.mark.parametrize(("rows", "field"), [(0, "panel.rows"), (-3, "panel.rows")])
def test_bad_uniform_panels(rows, field):
    with pytest.raises(InputError, match=field):
        Panel.uniform_planar(rows)


@pytest.mark.parametrize(
    "convert",
    [
        lambda p: p.tolist(),
        lambda p: p,
        lambda p: p.astype(np.float32),
        lambda p: p.astype(">f8"),
        lambda p: np.asfortranarray(p)[::-1][::-1],
        torch.from_numpy,
        lambda p: torch.from_numpy(p).half(),
    ],
)
def test_positions_of_any_kind_become_float64(convert):
    positions = np.array([[0.5, -0.25, 0.0], [1.0, 0.125, 2.0]])
    panel = Panel(convert(positions), 0.3)
    assert panel.elements.dtype == torch.float64
    assert panel.elements.tolist() == positions.tolist()
    assert Panel([[0, 0, 1], [0, 2, 0]], 0.3).elements.tolist() == [[0, 0, 1], [0, 2, 0]]


def test_linear_array_is_along_x_and_centred():
    panel = Panel.uniform_linear(4, spacing_wavelengths=1.0, wavelength=0.2)
    expected = torch.tensor([[x, 0.0, 0.0] for x in (-0.3, -0.1, 0.1, 0.3)], dtype=torch.float64)
    torch.testing.assert_close(panel.elements, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 32])
def test_circular_array(n):
    panel = Panel.uniform_circular(n, wavelength=0.2)
    assert panel.size == n
    torch.testing.assert_close(panel.elements.mean(0), torch.zeros(3, dtype=torch.float64))
    assert panel.spacing == (pytest.approx(0.1) if n > 1 else math.inf)
    wide = Panel.uniform_circular(n, radius_m=0.4)
    torch.testing.assert_close(wide.elements.norm(dim=-1), torch.full((n,), 0.4, dtype=torch.float64))
    torch.testing.assert_close(wide.elements[0], torch.tensor([0.4, 0, 0], dtype=torch.float64))
    if n > 2:
        assert wide.elements[1, 1] > 0, "counter-clockwise seen from +z"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n: the number of elements must be at least 1; got 0"),
        ({"n": 3, "radius_m": -1.0}, "radius_m: must be positive, in metres; got -1"),
        ({"n": 3, "spacing_wavelengths": 0.0}, "spacing_wavelengths: must be positive; got 0"),
    ],
)
def test_bad_circular_arrays(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Panel.uniform_circular(**arguments)


def test_repr_is_short():
    text = "Panel(144 elements, aperture 2.33 m, spacing 0.15 m, wavelength 0.3 m)"
    assert repr(Panel.uniform_planar()) == text
    assert repr(Panel([[0, 0, 0]], 0.3)) == "Panel(1 element, wavelength 0.3 m)"
    assert repr(Panel(torch.randn(5, 2, 3), 0.3)).startswith("Panel(2 elements in 5 geometries, aperture")
