"""The compiled statistics of a scene against the torch form."""

from __future__ import annotations

import pytest
import torch

from rismusic import simulate
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.estimation.maximum_likelihood import without_compiled_fits
from rismusic.nn.statistics import GridStatistics

pytest.importorskip("numba")

VOLUME = Volume(1.0, 0.5, 0.4, 4.0)
# Outputs and snapshots, also in numbers that do not fill a block, and a panel sampled directly.
LINKS = {
    "small": {"channel": {"antennas": 6}, "codebook": {"snapshots": 5}},
    "odd": {"channel": {"antennas": 7}, "codebook": {"snapshots": 3}},
    "direct": {"channel": {"kind": "direct"}, "codebook": {"snapshots": 4}},
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("scenes", [1, 9])
def test_the_compiled_statistics_are_those_of_the_torch_form(link, scenes):
    recording = simulate(
        scenes=scenes, panel={"rows": 4, "columns": 5}, sources=2, snr_db=10.0, **LINKS[link]
    )
    counted = GridStatistics(SearchGrid.cover(recording.panel, VOLUME, 1.1))
    seen = counted.observe(recording)
    share = torch.rand(scenes, len(counted.grid), generator=torch.Generator().manual_seed(2)) + 1e-3
    power = counted.scale_power(seen, share)
    expected = counted(seen, power)
    with torch.inference_mode():
        found = counted(seen, power)
        with without_compiled_fits():
            plain = counted(seen, power)
    for one, other, compiled in zip(expected, plain, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert not torch.equal(compiled, other)
        torch.testing.assert_close(compiled, other, rtol=2e-4, atol=1e-5 * float(other.max()))
