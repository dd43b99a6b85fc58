"""The example scripts run as users run them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from rismusic.registry import ESTIMATORS, NETWORKS, SPECTRA

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, untyped, capsys):
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        for registry, name in (
            (ESTIMATORS, "grid_peaks"),
            (SPECTRA, "weighted_music"),
            (NETWORKS, "heat_map"),
        ):
            registry.unregister(name)
    if path.stem != "own_network":
        assert "Estimate(2 scenes" in capsys.readouterr().out
