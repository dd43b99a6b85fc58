"""What one scene costs, in numbers that do not depend on the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hybrid_case import SETTINGS, SYSTEM
from torch.utils._python_dispatch import TorchDispatchMode

from rismusic.estimation import diagnosis
from rismusic.hybrid import locate
from rismusic.nn.inference import NetworkOutput
from rismusic.simulation.simulator import simulate

pytest.importorskip("numba")


class Operations(TorchDispatchMode):
    """Count the tensor operations."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("n_sources", "most"), [("auto", 12_000), (2, 7_100)])
def test_one_scene_takes_few_tensor_operations(n_sources, most, weights):
    made = simulate(SYSTEM, scenes=3, sources=2, snr_db=15.0)
    made = replace(made, truth=None, noise_variance=None)
    settings = {"method": "hybrid", "weights": weights, "n_sources": n_sources, **SETTINGS}
    locate(made[:1], **settings)
    for scene in range(3):
        with Operations() as operations:
            locate(made[scene : scene + 1], **settings)
        assert operations.count <= most


def test_the_network_runs_once_for_a_scene_that_is_fitted_again(weights, monkeypatch):
    """At a low SNR fewer sources may do, so that they are fitted for the diagnosis."""
    made = replace(simulate(SYSTEM, scenes=8, sources=3, snr_db=-5.0), truth=None, noise_variance=None)
    scenes, counted = [], []
    compute, put = NetworkOutput.compute.__func__, diagnosis._Evidence.put

    def computed(cls, network, recording, *arguments):
        scenes.append(len(recording))
        return compute(cls, network, recording, *arguments)

    def weighed(self, some, count, *arguments):
        counted.append(len(some))
        put(self, some, count, *arguments)

    monkeypatch.setattr(NetworkOutput, "compute", classmethod(computed))
    monkeypatch.setattr(diagnosis._Evidence, "put", weighed)
    locate(made, method="hybrid", weights=weights, **SETTINGS)
    assert len(counted) == 3  # the second time for fewer sources, the third for new fits of fewer
    assert scenes == [8]


def test_fewer_sources_are_not_weighed_where_one_less_is_negligible(weights, monkeypatch):
    counted, put = [], diagnosis._Evidence.put

    def weighed(self, some, count, *arguments):
        counted.append(count.tolist())
        put(self, some, count, *arguments)

    monkeypatch.setattr(diagnosis._Evidence, "put", weighed)
    made = simulate(SYSTEM, scenes=1, sources=3, snr_db=30.0)
    found = locate(
        replace(made, truth=None, noise_variance=None), method="hybrid", weights=weights, **SETTINGS
    )
    assert found.n_sources.tolist() == [3]
    assert counted == [[2, 3]]
