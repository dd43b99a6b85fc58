from __future__ import annotations

import pytest
import torch

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.evaluate.bound_table import bound_table
from rismusic.evaluate.plots import bound_curves, new_axes, positions, save, scene_3d, scene_top
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
    space, top = new_axes("3d", None)
    assert scene_3d(PANEL, SOURCES, truth=SOURCES, ax=space) is space
    assert scene_top(PANEL, truth=SOURCES, ax=top) is top
    for ax in (space, top, scene_3d(PANEL, SOURCES), scene_top(PANEL, SOURCES)):
        assert ax.get_xlabel().startswith(("x / m", "z / m"))
        assert ax.get_ylabel()
    save(top, tmp_path / "scene.png", overwrite=False)
    with pytest.raises(InputError, match="found an existing one"):
        save(top, tmp_path / "scene.png", overwrite=False)
    with pytest.raises(InputError, match=r"\.png or \.pdf or \.svg"):
        save(top, tmp_path / "scene.doc", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_the_drawn_frame_is_right_handed():
    """In space the axes are (z, x, y); from above, with z upwards, x runs to the left."""
    ax = scene_3d(PANEL, SOURCES)
    assert [ax.get_xlabel()[0], ax.get_ylabel()[0], ax.get_zlabel()[0]] == ["z", "x", "y"]
    left, right = scene_top(PANEL, SOURCES).get_xlim()
    assert left > right


def test_bound_curves():
    ax = bound_curves([0.0, 10.0], [[1.0, 0.3], [2.0, 0.6]], ["K = 1", "K = 2"], "azimuth / deg")
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["K = 1", "K = 2"]


def test_bound_table_falls_with_snr_and_rises_with_sources():
    spec = SystemSpec(panel={"rows": 4, "columns": 5})
    rows = bound_table(spec, sources=(1, 3), snr_db=(0.0, 20.0), scenes=20)
    stds = {(row.sources, row.snr_db): row.azimuth_std_deg for row in rows}
    assert stds[1, 0.0] == pytest.approx(10 * stds[1, 20.0], rel=1e-3)
    assert stds[3, 0.0] > stds[1, 0.0]
