"""Circular arrays, which tell azimuths all round: settings, simulator, grid, estimate and bound."""

from __future__ import annotations

import math

import pytest
import torch

from rismusic import (
    InputError,
    Link,
    Panel,
    SearchGrid,
    Sources,
    Volume,
    locate,
    match,
    read,
    simulate,
    steering,
    unconditional_crb,
    write,
)
from rismusic.array import wrapped
from rismusic.estimation.grid import find_peaks
from rismusic.estimation.maximum_likelihood import nfmle
from rismusic.nn.spec import TrainSpec
from rismusic.spec import PanelSpec

ROUND = {"azimuth_max_deg": 180.0, "elevation_max_deg": 20.0, "range_max_m": 4.0}
SYSTEM = {
    "panel": {"kind": "circular", "rows": 2, "columns": 16},
    "channel": {"kind": "direct"},
    "codebook": {"snapshots": 12},
}
VOLUME = Volume(math.pi, math.radians(20), 0.5, 4.0)


def test_elements_are_at_their_azimuths():
    circle = Panel.uniform_circular(8, radius_m=0.2, plane="xz")
    azimuth = torch.atan2(circle.elements[:, 0], circle.elements[:, 2])
    torch.testing.assert_close(
        torch.remainder(azimuth, 2 * math.pi), torch.arange(8.0).double() * math.pi / 4
    )
    assert not circle.is_planar
    assert Panel.uniform_circular(8).is_planar
    assert Panel.uniform_linear(8).is_planar
    stacked = Panel.from_spec(PanelSpec(kind="circular", rows=3, columns=8))
    assert stacked.size == 24
    with pytest.raises(InputError, match="plane: must be xy or xz; got 'yz'"):
        Panel.uniform_circular(8, plane="yz")
    assert stacked.elements[:8, 1].tolist() == [-0.15] * 8


def test_bound_turns_with_the_circle():
    """A turn by six elements of sixteen is a symmetry."""
    azimuth = torch.tensor([20.0, 155.0, -115.0])
    sources = Sources.from_degrees(azimuth[:, None], 8.0, 1.5, power_db=0.0, behind=True)
    panel = Panel.from_spec(PanelSpec(**SYSTEM["panel"]))
    noise = torch.full((3,), 0.1, dtype=torch.float64)
    std = unconditional_crb(panel, Link(), sources, noise, snapshots=12).std[:, 0]
    torch.testing.assert_close(std, std[:1].expand(3, 3), rtol=1e-6, atol=0)
    assert std.isfinite().all()


def test_sources_all_round_are_located():
    azimuth = torch.tensor([-179.97, -179.99, 179.99, -91, 60, 92, 170, 179.98])
    sources = Sources.from_degrees(azimuth[:, None], 5.0, 1.5, behind=True)
    made = simulate(scenes=8, sources=sources, snr_db=20.0, **SYSTEM)
    for method in ("omp", "music"):
        found = locate(made, n_sources=1, method=method, **ROUND)
        assert (found.sources.azimuth.abs() <= math.pi).all()
        matched = match(made.truth, found.sources)
        assert matched.hit.all()
        normalised = matched.error[:, 0, 0] / found.std[:, 0, 0]
        assert float(normalised.abs().max()) < 4
        assert found.warnings == [[]] * 8


def test_a_fit_crosses_the_seam():
    source = Sources.from_degrees([[178.0]], 5.0, 1.5, behind=True)
    made = simulate(scenes=1, sources=source, snr_db=20.0, dtype=torch.float64, **SYSTEM)
    start = Sources.from_degrees([[-178.0]], 5.0, 1.5, behind=True)
    fit = nfmle(made, start, VOLUME)
    assert fit.converged.all()
    assert math.degrees(float(fit.sources.azimuth)) == pytest.approx(178, abs=0.3)


def test_two_sources_front_and_back():
    sources = Sources.from_degrees([30.0, -150.0], [5.0, 10.0], [1.5, 1.0], behind=True)
    made = simulate(scenes=1, sources=sources, snr_db=15.0, **SYSTEM)
    found = locate(made, method="omp", sources_max=3, **ROUND)
    assert found.n_sources.tolist() == [2]
    assert match(made.truth, found.sources).hit.all()


def test_simulated_sources_are_all_round(tmp_path):
    made = simulate(scenes=40, sources=2, scene={"azimuth_max_deg": 180, "separation_deg": 20}, **SYSTEM)
    azimuth = made.truth.azimuth_deg
    assert (azimuth.abs() > 90).float().mean() > 0.3
    gap = (azimuth[:, 0] - azimuth[:, 1]).abs()
    elevation = (made.truth.elevation_deg[:, 0] - made.truth.elevation_deg[:, 1]).abs()
    assert (torch.maximum(torch.minimum(gap, 360 - gap), elevation) >= 19.99).all()
    write(tmp_path / "a.h5", made)
    torch.testing.assert_close(read(tmp_path / "a.h5").truth.azimuth, made.truth.azimuth.double())


def test_all_round_there_is_no_boundary_in_azimuth():
    at = VOLUME.at_boundary(torch.tensor([[[math.pi, math.radians(20), 0.25], [-math.pi, 0.0, 1.0]]]))
    assert at[0].tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize("kind", ["circle", "plate"])
def test_no_direction_is_missed(kind):
    panel = Panel.uniform_circular(16, plane="xz")
    if kind == "plate":  # in the y-z plane
        panel = Panel(Panel.uniform_planar(4, 8).elements[:, [2, 1, 0]], 0.3)
    grid = SearchGrid.cover(panel, VOLUME)
    unit = torch.rand(3, 2000, dtype=torch.float64, generator=torch.manual_seed(0))
    place = (math.pi * (2 * unit[0] - 1), math.radians(20) * (2 * unit[1] - 1), 1 / (0.25 + 1.75 * unit[2]))
    best = (grid.steering(torch.complex128).mH @ steering(panel, *place)).abs().square().amax(0)
    assert float(best.min()) > 0.6
    half = SearchGrid.cover(panel, VOLUME, 1.25)
    best = (half.steering(torch.complex128).mH @ steering(panel, *place)).abs().square().amax(0)
    assert float(best.min()) < 0.6


def test_a_peak_at_the_seam_is_one():
    grid = SearchGrid.cover(Panel.uniform_circular(16, plane="xz"), VOLUME)
    values = (10 * torch.cos(grid.azimuth - math.pi)).view(grid.shape).clone()
    values[values.shape[0] // 2] += 12  # a lower peak at azimuth 0
    peaks = find_peaks(values.flatten(), grid, 2)
    azimuth = peaks.azimuth.abs().sort().values
    assert float(azimuth[0]) < 0.3
    assert float(azimuth[1]) > 2.8


def test_differences_of_azimuths_go_the_short_way():
    truth = Sources.from_degrees([[179.0]], 0.0, 1.0, behind=True)
    found = Sources.from_degrees([[-179.0]], 0.0, 1.0, behind=True)
    matched = match(truth, found)
    assert matched.hit.all()
    assert math.degrees(float(matched.error[0, 0, 0])) == pytest.approx(2.0)
    assert wrapped(torch.tensor([3.2, -3.2, 1.0])).tolist() == pytest.approx(
        [3.2 - 2 * math.pi, 2 * math.pi - 3.2, 1]
    )


def test_planar_arrays_see_the_front_only():
    with pytest.raises(
        InputError, match=r"scene\.azimuth_max_deg: must be below 90 for a planar array; got 120"
    ):
        simulate(scenes=1, scene={"azimuth_max_deg": 120})
    planar = simulate(scenes=1, sources=1, panel={"rows": 4, "columns": 4})
    with pytest.raises(InputError, match=r"azimuth_max_deg: must be below 90 .* mirror image in front"):
        locate(planar, azimuth_max_deg=120)
    behind = Sources.from_degrees([120.0], 0.0, 1.0, behind=True)
    with pytest.raises(InputError, match=r"sources/azimuth: must be within -pi/2 .. pi/2"):
        simulate(scenes=1, sources=behind)
    with pytest.raises(InputError, match=r"azimuth_deg: must be within -180 .. 180 deg; got 200"):
        Sources.from_degrees([200.0], 0.0, 1.0, behind=True)
    with pytest.raises(InputError, match=r"system\.panel\.kind: must be planar"):
        TrainSpec(system={"panel": {"kind": "circular"}})
    with pytest.raises(InputError, match=r"volume\.azimuth_max: must be 0 to pi radians; got 4 \(degrees"):
        Volume(4.0, 0.5, 1.0, 2.0)
