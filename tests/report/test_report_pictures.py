from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rismusic.array import Panel, direction, steering
from rismusic.covariance import Covariance
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.spectra import music
from rismusic.report.page import (
    _PIXELS,
    WIDTH,
    View,
    _axes,
    _resampled,
    colour_bar,
    picture_from_above,
    picture_in_space,
    slices,
)
from rismusic.scene_view import Scene, nice_step, to_cartesian
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources

PANEL = Panel.uniform_planar()
VOLUME = Volume(math.radians(60), math.radians(30), 0.5, 10.0)
ESTIMATES = Sources(
    azimuth=torch.tensor([0.5, -0.3, torch.nan]),
    elevation=torch.tensor([0.2, -0.1, torch.nan]),
    range=torch.tensor([3.0, 1.5, torch.nan]),
)
TRUE = Sources(azimuth=torch.tensor([0.49]), elevation=torch.tensor([0.2]), range=torch.tensor([3.1]))
SIGMA = torch.diag(torch.tensor([1e-4, 1e-4, 0.01]).double()).expand(3, 3, 3)


def scene(**changes) -> Scene:
    return Scene(
        **{
            "panel": PANEL,
            "volume": VOLUME,
            "estimates": ESTIMATES,
            "covariance": SIGMA,
            "truth": TRUE,
            **changes,
        }
    )


@pytest.mark.parametrize("yaw", [0.0, -0.5, 2.0])
@pytest.mark.parametrize("pitch", [0.0, 0.5, math.pi / 2, -1.0])
def test_a_view_turns_and_does_not_distort(yaw, pitch):
    view = View(yaw, pitch, (0.0, 0.0, 0.0), 1.0, 0.0)
    axes = view.screen(np.eye(3)) - view.screen(np.zeros((1, 3)))
    # The two rows of a projection along one direction are orthonormal.
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-12)


def test_known_views():
    """From behind and from above, x runs to the left; y, or z, upwards."""
    behind = View(0.0, 0.0, (0.0, 0.0, 0.0), 1.0, 0.0).screen(np.eye(3)) - (WIDTH / 2, 0)
    np.testing.assert_allclose(behind, [[-1, 0], [0, -1], [0, 0]], atol=1e-12)
    above = View(0.0, math.pi / 2, (0.0, 0.0, 0.0), 1.0, 0.0).screen(np.eye(3)) - (WIDTH / 2, 0)
    np.testing.assert_allclose(above, [[-1, 0], [0, 0], [0, -1]], atol=1e-12)


def test_everything_is_in_the_picture():
    for picture in (picture_in_space(scene()), picture_from_above(scene())):
        for shape in picture.shapes:
            places = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", shape.path), dtype=float)
            assert (places >= 0).all(), shape.kind
            assert (places[:, 0] <= WIDTH).all(), shape.kind
            assert (places[:, 1] <= picture.view.height).all(), shape.kind


def test_marks_stand_where_the_sources_are():
    picture = picture_from_above(scene())
    marks = [shape for shape in picture.shapes if shape.form == "mark"]
    assert [(mark.kind, mark.text) for mark in marks] == [("true", ""), ("estimate", "0"), ("estimate", "1")]
    for mark, azimuth, elevation, distance in zip(
        marks, (0.49, 0.5, -0.3), (0.2, 0.2, -0.1), (3.1, 3.0, 1.5), strict=True
    ):
        expected = distance * np.array(
            (
                math.sin(azimuth) * math.cos(elevation),
                math.sin(elevation),
                math.cos(azimuth) * math.cos(elevation),
            )
        )
        np.testing.assert_allclose(np.array(mark.xyz.split(), dtype=float), expected, rtol=1e-3)
        np.testing.assert_allclose(
            np.array(mark.at, dtype=float), picture.view.screen(expected[None])[0], atol=0.06
        )


def test_an_error_bar_that_is_infinite_is_not_drawn():
    sigma = SIGMA.clone()
    sigma[1] = torch.inf
    kinds = [shape.kind for shape in scene(covariance=sigma).in_space()]
    assert kinds.count("ellipsoid") == 3
    assert [shape.kind for shape in scene().in_space()].count("ellipsoid") == 6


def test_a_source_in_the_far_field_is_on_the_outermost_ring():
    """With its direction, and said to be far; the view then reaches the Fraunhofer distance."""
    sigma = SIGMA.clone()
    sigma[0, 2, 2] = torch.inf
    far = replace(ESTIMATES, range=torch.tensor([torch.inf, 1.5, torch.nan]))
    for volume in (VOLUME, replace(VOLUME, range_max=math.inf), None):
        one = scene(estimates=far, covariance=sigma, truth=None, volume=volume)
        for shapes in (one.in_space(), one.from_above()):
            marks = [shape for shape in shapes if shape.form == "mark"]
            assert [mark.text for mark in marks] == ["0, far field", "1"]
            place = one.reach[0] * np.stack(direction(torch.tensor(0.5), torch.tensor(0.2)))
            np.testing.assert_allclose(marks[0].points[0], place, rtol=1e-6)
            assert all(np.isfinite(shape.points).all() for shape in shapes)
        assert one.reach[0] >= PANEL.fraunhofer_distance
        picture_in_space(one)


def test_an_estimate_beyond_the_searched_volume_has_its_error_region_around_it():
    estimate = ESTIMATES.each(lambda value: value[:1])
    estimate = replace(estimate, azimuth=torch.tensor([1.2]), range=torch.tensor([40.0]))
    one = scene(estimates=estimate, covariance=SIGMA[:1], truth=None)
    region = next(shape for shape in one.from_above() if shape.kind == "ellipse").points
    centre = to_cartesian(torch.tensor([1.2, 0.2, 40.0])).numpy()
    np.testing.assert_allclose((region.min(0) + region.max(0)) / 2, centre, atol=0.05)
    assert not one.clipped


@pytest.mark.parametrize(
    ("volume", "ticks"),
    [
        (replace(VOLUME, range_max=math.inf), "5"),
        (Volume(VOLUME.azimuth_max, VOLUME.elevation_max, math.inf, math.inf), "∞"),
        (Volume(0.0, 0.0, 0.5, 10.0), "10"),
        (Volume(VOLUME.azimuth_max, 0.0, 3.0, 3.0), "3"),
    ],
)
def test_slices_of_volumes_without_limits_or_without_extent(volume, ticks):
    recording = simulate(scenes=1, sources=1, snr_db=20, panel={"rows": 4, "columns": 4}, seed=1)
    found = recording.truth.each(lambda value: value.clone())
    found.range[0, 0] = volume.range_max
    (one,) = slices(recording, found, volume)
    assert ticks in [text for _, text in one.above.y_ticks]
    assert len(one.front.marks) == 2


def test_a_clipped_ellipsoid_is_known_to_be_clipped():
    sound, vague = scene(), scene(covariance=1e4 * SIGMA)
    for one in (sound, vague):
        one.in_space()
    assert (sound.clipped, vague.clipped) == (False, True)


def test_a_scene_without_sources_and_a_large_panel_are_drawn():
    nothing = ESTIMATES.each(lambda value: torch.full_like(value, torch.nan))
    picture = picture_in_space(scene(estimates=nothing, truth=None, panel=Panel.uniform_planar(40, 40)))
    assert "0 estimated sources" in picture.alt
    dots = next(shape for shape in picture.shapes if shape.form == "dots")
    assert len(dots.xyz.split()) == 3 * 400


@pytest.mark.parametrize(
    ("length", "step"), [(0.9, 1), (1.0, 1), (1.2, 2), (2.5, 5), (6.0, 10), (0.03, 0.05)]
)
def test_steps_are_round(length, step):
    assert nice_step(length) == pytest.approx(step)


def test_the_spectrum_peaks_where_the_source_is():
    """Of an exact covariance, between the points of the grid; azimuth falls from left to right."""
    place = (torch.tensor([0.35]).double(), torch.tensor([-0.22]).double(), torch.tensor([1.3]).double())
    covariance = Covariance(steering(PANEL, *place), torch.tensor(0.01, dtype=torch.float64))
    grid = SearchGrid.cover(PANEL, VOLUME, 5.0)
    box = _resampled(music(covariance, 1).on_grid(grid).log(), grid)
    assert box.shape == _PIXELS
    top = np.unravel_index(int(box.argmax()), box.shape)
    for axis, index, value, tolerance in zip(_axes(VOLUME), top, place, (0.03, 0.03, 0.15), strict=True):
        assert float(axis[index]) == pytest.approx(float(value), abs=tolerance)


@pytest.mark.parametrize("subcarriers", [1, 4])
@pytest.mark.parametrize("symbols", ["gaussian", "constant"])
def test_the_brightest_spot_of_both_slices_is_at_the_source(subcarriers, symbols):
    """Of a panel that is sampled directly, where one source is found beyond doubt."""
    from matplotlib.image import imread

    recording = simulate(
        scenes=4, sources=1, snr_db=30, channel={"kind": "direct"}, seed=2,
        wideband={"subcarriers": subcarriers}, scene={"symbols": symbols},
    )  # fmt: skip
    for one in slices(recording, recording.truth, VOLUME):
        assert one.name.endswith("middle subcarrier") == (subcarriers > 1)
        for picture, tolerance in ((one.front, (6, 6)), (one.above, (6, 40))):
            png = base64.b64decode(picture.image.removeprefix("data:image/png;base64,"))
            brightness = imread(io.BytesIO(png))[..., :3].sum(-1)
            row, column = np.unravel_index(brightness.argmax(), brightness.shape)
            left, top, width, height = picture.box
            _, x, y, _ = picture.marks[0]
            assert left + width * (column + 0.5) / brightness.shape[1] == pytest.approx(x, abs=tolerance[0])
            assert top + height * (row + 0.5) / brightness.shape[0] == pytest.approx(y, abs=tolerance[1])


def test_slices_show_the_spectrum_of_the_method():
    recording = simulate(scenes=4, sources=2, snr_db=20, seed=1)
    found = recording.truth.each(lambda value: value.clone())
    found.azimuth[3] = torch.nan
    named = slices(recording, found, VOLUME, ["mvdr", "omp", "soft_music", "mvdr"])
    assert [one.name for one in named] == ["MVDR", "MUSIC, K = 2", "soft MUSIC, K = 2", "Bartlett"]
    assert named[1].front.image == slices(recording, found, VOLUME)[1].front.image
    assert named[0].front.image != slices(recording, found, VOLUME)[0].front.image


def test_slices_are_pictures_with_marks(generator):
    from matplotlib.image import imread

    recording = simulate(scenes=2, sources=2, snr_db=20, seed=1)
    nothing = recording.truth.each(lambda value: value.clone())
    nothing.azimuth[1] = torch.nan
    one, none = slices(recording, nothing, VOLUME)
    assert (one.name, none.name) == ("MUSIC, K = 2", "Bartlett")
    for slice_ in (one.front, one.above, none.front):
        png = base64.b64decode(slice_.image.removeprefix("data:image/png;base64,"))
        assert imread(io.BytesIO(png)).shape[1] == _PIXELS[0]
        left, top, width, height = slice_.box
        for _, x, y, _ in slice_.marks:
            assert left <= x <= left + width
            assert top <= y <= top + height
    assert [kind for kind, *_ in one.front.marks] == ["estimate"] * 2 + ["true"] * 2
    assert [kind for kind, *_ in none.front.marks] == ["true"] * 2
    azimuth = recording.truth.azimuth[0, 0]
    left, _, width, _ = one.front.box
    assert one.front.marks[0][1] == pytest.approx(
        float(left + width * (0.5 - azimuth / (2 * VOLUME.azimuth_max)))
    )
    assert colour_bar().startswith("data:image/png")
