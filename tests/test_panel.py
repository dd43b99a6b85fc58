from __future__ import annotations

import math

import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError


def test_elements_are_numbered_with_y_slowest_and_centred():
    panel = Panel.uniform(rows=2, columns=3, wavelength=0.2)
    expected = [[x, y, 0] for y in (-0.05, 0.05) for x in (-0.1, 0.0, 0.1)]
    torch.testing.assert_close(panel.elements, torch.tensor(expected, dtype=torch.float64))


def test_elements_equal_those_of_the_samples(samples):
    import h5py

    with h5py.File(samples / "ideal_10dB.h5") as file:
        torch.testing.assert_close(Panel.uniform().elements, torch.from_numpy(file["elements"][()]))


def test_distances_of_the_default_panel():
    """12 x 12 at half a wavelength of 0.3 m: D = 11 * 0.15 * sqrt(2)."""
    panel = Panel.uniform()
    D = 11 * 0.15 * math.sqrt(2)
    assert panel.size == 144
    assert panel.aperture == pytest.approx(D)
    assert panel.spacing == pytest.approx(0.15)
    assert panel.fraunhofer_distance == pytest.approx(2 * D**2 / 0.3)
    assert panel.fraunhofer_distance == pytest.approx(36.3)
    assert panel.fresnel_distance == pytest.approx(0.62 * math.sqrt(D**3 / 0.3))


def test_fraunhofer_distance_is_where_the_rim_lags_by_a_sixteenth_of_a_wavelength():
    panel = Panel.uniform(40, 40)
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
        (torch.zeros(4, 2), 0.3, r"elements: expected positions of shape \[N, 3\], found shape \(4, 2\)"),
        (torch.zeros(0, 3), 0.3, "elements: expected positions of shape"),
        (torch.full((2, 3), math.nan), 0.3, "elements: expected finite positions"),
        (torch.zeros(2, 3, dtype=torch.int64), 0.3, "elements: expected real floating-point positions"),
        (torch.zeros(2, 3), 0.0, "wavelength: expected a positive, finite length in metres, found 0"),
        (torch.zeros(2, 3), math.inf, "wavelength: expected a positive"),
    ],
)
def test_bad_panels(elements, wavelength, sentence, untyped):
    with pytest.raises(InputError, match=sentence):
        Panel(elements, wavelength)


@pytest.mark.parametrize(("rows", "field"), [(0, "panel.rows"), (-3, "panel.rows")])
def test_bad_uniform_panels(rows, field):
    with pytest.raises(InputError, match=field):
        Panel.uniform(rows)
