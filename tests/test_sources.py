from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import draw_sources
from rismusic.sources import Sources, check_sources
from rismusic.spec import SceneSpec


def draw(sources=(1, 5), scenes=50, snapshots=4, **settings):
    draws = Draws(0, "train", torch.arange(scenes))
    return draw_sources(SceneSpec(**settings), sources, snapshots, draws, torch.float64)


def test_steering_leaves_empty_places_zero():
    drawn = draw(sources=(1, 3), scenes=30)
    A = drawn.steering(Panel.uniform_planar(3, 3))
    torch.testing.assert_close(A.norm(dim=-2), drawn.active.double())


def sources(**change):
    fields = {"azimuth": [0.1, math.nan], "elevation": [0.2, math.nan], "range": [2.0, math.nan], **change}
    return Sources(**{name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"range": [0.0, math.nan]}, "truth/range: ranges must be positive, in metres; got 0"),
        ({"range": [-1.0, math.nan]}, "truth/range: ranges must be positive, in metres; got -1"),
        (
            {"azimuth": [2.0, math.nan]},
            r"truth/azimuth: must be within .*front of the panel\); got 2$",
        ),
        ({"azimuth": [-40.0, math.nan]}, r"truth/azimuth: .* got -40. Is it in degrees\?"),
        ({"elevation": [1.6, math.nan]}, "truth/elevation: must be within -pi/2 .. pi/2 radians"),
        ({"range": [2.0, 3.0]}, "truth/range: NaN .* in the same places as in azimuth"),
        ({"range": [math.inf, math.nan]}, "truth/range: must be finite"),
        ({"range": [2.0, 1.0, 1.0]}, "truth/range: must have the shape of azimuth"),
        ({"range": [1e300, math.nan]}, r"truth/range: ranges must be 1e-06 to 1e\+12 m; got 1e\+300"),
        ({"power": [0.0, math.nan]}, "truth/power: powers must be positive; got 0"),
    ],
)
def test_impossible_sources(change, sentence, untyped):
    check_sources(sources())
    with pytest.raises(InputError, match=sentence):
        check_sources(sources(**change))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_from_degrees(convert):
    given = Sources.from_degrees(convert([-20.0, 35.0]), 10, convert([2.0, 4.5]), power_db=[0, -10])
    torch.testing.assert_close(given.azimuth, torch.tensor([-20.0, 35.0], dtype=torch.float64).deg2rad())
    torch.testing.assert_close(given.elevation_deg, torch.tensor([10.0, 10.0], dtype=torch.float64))
    torch.testing.assert_close(given.azimuth_deg, torch.tensor([-20.0, 35.0], dtype=torch.float64))
    assert given.range_m.tolist() == [2.0, 4.5]
    torch.testing.assert_close(given.power, torch.tensor([1.0, 0.1], dtype=torch.float64))


def test_from_degrees_of_scalars_and_scenes():
    assert Sources.from_degrees(10, 0, 2).azimuth.shape == (1,)
    many = Sources.from_degrees([[10, 20], [30, math.nan]], 0, [2.0, 3.0])
    assert many.active.tolist() == [[True, True], [True, False]]
    for value in (many.azimuth, many.elevation, many.range):
        assert torch.equal(value.isnan(), ~many.active)


def test_position_is_in_the_panel_frame():
    given = Sources.from_degrees([0, 90 - 1e-9, 0, 30], [0, 0, 90 - 1e-9, 45], [2, 3, 4, 5])
    expected = torch.tensor(
        [
            [0, 0, 2],
            [3, 0, 0],
            [0, 4, 0],
            [5 * 0.5 * math.sqrt(0.5), 5 * math.sqrt(0.5), 5 * math.sqrt(0.75 * 0.5)],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(given.position, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((120, 0, 2), "azimuth_deg: must be within -90 .. 90 deg .* got 120"),
        ((0, -90, 2), "elevation_deg: must be within"),
        ((0, 0, -1), "range_m: must be positive and finite, in metres; got -1"),
        ((0, 0, math.inf), "range_m: must be positive and finite"),
        (([1, 2], [1, 2, 3], 1), r"sources: shapes must be \[K\] or \[S, K\] .* azimuth_deg \[2\]"),
        (([1, math.nan], [1, 2], [1, 2]), "elevation_deg: NaN marks an unused slot"),
    ],
)
def test_bad_degrees(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Sources.from_degrees(*arguments)


def test_repr_of_sources():
    one = "Sources(2 sources at azimuth [-20, 35] deg, elevation [0, 10] deg, range [2, 4.5] m)"
    assert repr(Sources.from_degrees([-20, 35], [0, 10], [2.0, 4.5])) == one
    assert repr(draw(scenes=50)) == "Sources(50 scenes, 1 to 5 sources each; with power and symbols)"


@pytest.mark.parametrize("name", ["azimuth", "elevation", "range"])
def test_numbers_need_the_constructor_in_degrees(name, monkeypatch):
    """A number may be meant in degrees; the tensors of the constructor are radians."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = dict.fromkeys(("azimuth", "elevation", "range"), torch.ones(1)) | {name: 20.0}
    with pytest.raises(InputError, match=rf"{name}: must be a tensor .*got float.* Sources\.from_degrees"):
        Sources(**given)
    with pytest.raises(InputError, match=rf"{name}: must be a tensor .*got float.* Sources\.from_degrees"):
        steering(Panel.uniform_planar(2, 2), **given)
