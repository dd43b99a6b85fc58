"""Small inputs that went wrong under another signal model; right answers as in shared/cases/README.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rismusic import locate
from rismusic.checks.conventions import as_subcarriers
from rismusic.io import read

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("symbols", ["constant", "auto"])
def test_one_antenna_and_a_constant_pilot(symbols: str) -> None:
    """RIS, M = 1, 1-bit configurations, source at (-20, 5 deg, 3 m), 20 dB."""
    found = locate(read(DATA / "one_antenna_constant_pilot.npz"), method="omp", symbols=symbols)
    assert found.n_sources.tolist() == [1]
    assert float(found.azimuth_deg[0, 0]) == pytest.approx(-20, abs=0.5)
    assert float(found.elevation_deg[0, 0]) == pytest.approx(5, abs=0.5)
    assert float(found.range_m[0, 0]) == pytest.approx(3, abs=0.4)


def test_subcarriers_stored_as_snapshots() -> None:
    """One source at (45, 0 deg, 4 m), 0.8 % bandwidth; told the model that check names, one source."""
    recording = replace(read(DATA / "subcarriers_1_percent.npz"), wave="uniform")
    wideband = as_subcarriers(recording)
    assert wideband is not None
    bandwidth = float(wideband.frequencies[-1] / wideband.frequencies[0]) - 1
    assert bandwidth == pytest.approx(0.008 * 63 / 64, rel=0.05)
    found = locate(wideband, method="omp")
    assert found.n_sources.tolist() == [1]
    assert float(found.azimuth_deg[0, 0]) == pytest.approx(45, abs=0.02)
    assert float(found.elevation_deg[0, 0]) == pytest.approx(0, abs=0.02)
    assert float(found.range_m[0, 0]) == pytest.approx(4, abs=0.02)


def test_a_line_of_8_elements() -> None:
    """Far sources at -10 and 30 deg: finite bars of the azimuth, which the elevation does not spoil."""
    found = locate(read(DATA / "line_of_8.npz"), method="omp", n_sources=2, range_max_m=5000)
    azimuth, order = found.azimuth_deg[0].sort()
    assert azimuth.tolist() == pytest.approx([-10, 30], abs=0.15)
    bars = found.azimuth_std_deg[0][order]
    assert bars.tolist() == pytest.approx([0.023, 0.023], abs=0.005), bars
    assert float(found.elevation_std_deg.min()) == float("inf")
