from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch

from print_figure import check_print
from rismusic.array import Panel
from rismusic.benchmark.planning import BoundRow, bound_figure, bound_table
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.hybrid import locate
from rismusic.plots import bound_curves, new_axes, plot_scene, save, scene_3d, scene_figure, scene_top
from rismusic.scene_view import ABOVE, Projection, Scene, positions
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

PANEL = Panel.uniform_planar()
SOURCES = Sources(
    azimuth=torch.tensor([torch.pi / 2 - 1e-9, 0.0, torch.nan]),
    elevation=torch.tensor([0.0, torch.pi / 6, torch.nan]),
    range=torch.tensor([2.0, 4.0, torch.nan]),
)


def test_positions():
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 4 * 3**0.5 / 2]]).double()
    torch.testing.assert_close(torch.from_numpy(positions(SOURCES)), expected, atol=1e-6, rtol=1e-6)


def test_plots_take_axes_and_return_them(tmp_path):
    space, top = new_axes(None, None)
    assert scene_3d(Scene(PANEL, SOURCES, truth=SOURCES), ax=space) is space
    assert scene_top(Scene(PANEL, truth=SOURCES), ax=top) is top
    assert scene_top(Scene(PANEL, SOURCES)).get_xlabel().startswith("x / m")
    save(top, tmp_path / "scene.png", overwrite=False)
    with pytest.raises(InputError, match="the file exists already"):
        save(top, tmp_path / "scene.png", overwrite=False)
    with pytest.raises(InputError, match=r"\.png, \.pdf or \.svg"):
        save(top, tmp_path / "scene.doc", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_the_drawn_frame_is_right_handed():
    """From above and from behind, x points to the left; z, or y, points upwards."""
    for projection, up in ((ABOVE, 2), (Projection(0.0, 0.0), 1)):
        screen = projection.project(np.eye(3))
        np.testing.assert_allclose(screen[0], (-1, 0), atol=1e-12)
        np.testing.assert_allclose(screen[up], (0, 1), atol=1e-12)
    ax = scene_top(Scene(PANEL, SOURCES))
    marks = next(line for line in ax.get_lines() if line.get_label() == "estimate")
    np.testing.assert_allclose(marks.get_xydata(), [(2.0, 0.0)], atol=1e-6)
    left, right = ax.get_xlim()
    assert left > right


def test_each_kind_has_one_entry_in_the_legend():
    """Two estimates with three sections of an ellipsoid each, and their ellipses."""
    covariance = torch.diag(torch.tensor([1e-4, 1e-4, 0.01])).expand(3, 3, 3)
    close = SOURCES.each(lambda value: 0.5 * value)
    for draw in (scene_3d, scene_top):
        own = draw(Scene(PANEL, close, covariance, close)).get_legend()
        names = [text.get_text() for text in own.get_texts()]
        assert len(set(names)) == len(names) > 3
    figure = scene_figure(Scene(PANEL, close, covariance, close))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert sorted(set(labels)) == sorted(labels)
    assert {"panel", "estimate", "true source", "95 % error region"} <= set(labels)
    assert all(ax.get_legend() is None for ax in figure.axes)


def test_error_regions_are_those_of_the_covariance():
    """The ellipse from above holds 95 % of a Gaussian error in two coordinates: 2.45 standard deviations."""
    ahead = SOURCES.each(lambda value: value[:1] * 0 + 0.0)
    ahead = replace(ahead, range=torch.tensor([4.0]))
    covariance = torch.diag(torch.tensor([0.01, 0.02, 0.3]).square())[None]
    ax = scene_top(Scene(PANEL, ahead, covariance))
    patch = next(patch for patch in ax.patches if patch.get_label() == "95 % error region")
    low, high = patch.get_xy().min(0), patch.get_xy().max(0)
    np.testing.assert_allclose(high - low, 2 * 2.4477 * np.array((4 * 0.01, 0.3)), rtol=0.02)


def test_no_mark_covers_the_distance_of_a_ring():
    scene = Scene(PANEL, truth=SOURCES.each(lambda value: value[1:]))
    ticks = {shape.text: shape.points[0] for shape in scene.in_space() if shape.kind == "tick"}
    text, (x, _, z) = list(ticks.items())[1]
    hidden = Sources.from_degrees(np.rad2deg(np.arctan2(x, z)), 0.0, np.hypot(x, z))
    for sources, covered in ((scene.truth, False), (hidden, True)):
        shown = {label.get_text() for label in scene_3d(replace(scene, truth=sources)).texts}
        assert (text not in shown) == covered


@pytest.mark.parametrize("width_mm", [88.9, 120.0, 181.0])
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_scene_fits_a_printed_width(width_mm, ending, tmp_path):
    recording = simulate(scenes=1, sources=3, snr_db=10, seed=4)
    covariance = torch.diag(torch.tensor([1e-4, 1e-4, 0.1])).expand(3, 3, 3)
    truth = recording.truth[0]
    figure = scene_figure(Scene(recording.panel, truth, covariance, truth), width_mm=width_mm)
    check_print(figure, width_mm)
    save(figure, tmp_path / f"scene.{ending}", overwrite=False)
    if ending == "pdf":
        assert b"/Type3" not in (tmp_path / "scene.pdf").read_bytes()


def test_plot_scene_draws_the_scene_that_is_asked_for():
    recording = simulate(scenes=3, sources=2, snr_db=20, panel={"rows": 6, "columns": 6}, seed=1)
    estimate = locate(recording, n_sources=2, method="omp")

    def marks(figure):
        top = figure.axes[1]
        return [line.get_xydata() for line in top.lines if line.get_marker() == "x"]

    for scene in range(3):
        truth, volume = recording.truth[scene], Volume.from_spec(estimate.spec)
        expected = Scene(recording.panel, estimate.sources[scene], estimate.covariance[scene], truth, volume)
        drawn = marks(plot_scene(recording, estimate, scene=scene))
        np.testing.assert_array_equal(drawn, marks(scene_figure(expected)))
        assert len(drawn) > 0
    for some, number in ((estimate, 3), (estimate, -1), (estimate[:2], 0)):
        with pytest.raises(InputError, match=f"scene: got {number}; the recording has 3 scenes"):
            plot_scene(recording, some, scene=number)


def test_a_width_that_cannot_be_printed_is_refused():
    with pytest.raises(InputError, match=r"figure_width: .* must be 40 to 1000 mm .* got 3.5"):
        scene_figure(Scene(PANEL, SOURCES), width_mm=3.5)


def test_the_style_of_print_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    scene_figure(Scene(PANEL, SOURCES), width_mm=88.9)
    assert dict(matplotlib.rcParams) == before


def test_bound_curves_have_plain_numbers():
    ax = bound_curves([0.0, 10.0], [[1.0, 0.3], [2.0, 0.6]], ["K = 1", "K = 2"], "azimuth / deg")
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["K = 1", "K = 2"]
    ax.get_figure().canvas.draw()
    low, high = ax.get_ylim()
    labels = [
        text.get_text() for text in ax.get_yticklabels(which="both") if low <= text.get_position()[1] <= high
    ]
    assert [label for label in labels if label] == ["0.5", "1", "2"]


def test_the_figure_of_bounds_fits_a_column():
    rows = [BoundRow(K, snr, *(5 * [K * 10 ** (-snr / 20)])) for K in (1, 2, 5) for snr in (0.0, 10.0, 20.0)]
    figure = bound_figure(rows, width_mm=88.9)
    check_print(figure, 88.9)
    assert [len(ax.get_lines()) for ax in figure.axes] == [3, 3, 3]


def test_bound_table_falls_with_snr_and_rises_with_sources():
    spec = SystemSpec(panel={"rows": 4, "columns": 5})
    rows = bound_table(spec, sources=(1, 3), snr_db=(0.0, 20.0), scenes=20)
    stds = {(row.sources, row.snr_db): row.azimuth_std_deg for row in rows}
    assert stds[1, 0.0] == pytest.approx(10 * stds[1, 20.0], rel=1e-3)
    assert stds[3, 0.0] > stds[1, 0.0]


def test_a_matplotlib_with_wrong_settings_is_one_sentence(tmp_path):
    """``MPLBACKEND`` is read when matplotlib is imported; the command line needs none."""
    program = "from rismusic.plots import check_matplotlib; check_matplotlib()"
    environment = {**os.environ, "MPLBACKEND": "nope"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "InputError: plot: matplotlib cannot be imported: Key backend: 'nope'" in done.stderr
    plain = [sys.executable, "-m", "rismusic", "bound", "--sources", "1", "--snr-db", "10", "--scenes", "2"]
    done = subprocess.run([*plain, "--plot", tmp_path / "a.png"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()
