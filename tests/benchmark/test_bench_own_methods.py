"""Methods of a user in a benchmark, also in worker processes, which know nothing of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rismusic import bench
from rismusic.benchmark.spec import parse_method
from rismusic.errors import InputError
from rismusic.registry import ESTIMATORS, SPECTRA

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "panel": {"rows": 5, "columns": 5},
    "channel": {"antennas": 6},
    "codebook": {"snapshots": 6},
    "sources": (1,),
    "snr_db": (20.0,),
    "scenes": 4,
    "block": 2,
}
PLUGINS = {"plugins": ("own_spectrum", "own_estimator")}


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    ESTIMATORS.unregister("grid_peaks")
    SPECTRA.unregister("weighted_music")
    for name in PLUGINS["plugins"]:
        sys.modules.pop(name, None)


def test_own_methods_in_worker_processes(tmp_path, quick_workers):
    methods = ("grid_peaks", "weighted_music:raw", "omp")
    result = bench(methods=methods, locate=PLUGINS, workers=2, out=tmp_path / "two", **SMALL)
    rows = {row.method: row for row in result.rows}
    assert set(methods) <= set(rows)
    assert rows["omp"].misses.value == rows["weighted_music:raw"].misses.value == 0.0
    alone = bench(methods=methods, locate=PLUGINS, workers=1, device="cpu", **SMALL)
    assert {row.method: row.misses for row in alone.rows} == {row.method: row.misses for row in result.rows}


def test_a_method_that_is_not_registered(tmp_path):
    with pytest.raises(InputError, match=r"no method is named 'grid_peaks'.*--locate\.plugins"):
        bench(methods=("grid_peaks",), **SMALL)


def test_variants_of_own_methods():
    with pytest.raises(InputError, match="plugins: cannot import"):
        bench(methods=("omp",), locate={"plugins": ("no_such_module",)}, **SMALL)
    bench(methods=("omp",), locate=PLUGINS, workers=1, **{**SMALL, "scenes": 1})
    assert parse_method("weighted_music:raw").polish is False
    assert parse_method("weighted_music:conditional").criterion == "conditional"
    with pytest.raises(InputError, match="'grid_peaks:raw' is not a variant of grid_peaks; use grid_peaks"):
        parse_method("grid_peaks:raw")


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="device: 'warp' is not available"):
        bench(methods=("omp",), device="warp", **SMALL)
