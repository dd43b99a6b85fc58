"""A user's network, trained for a few steps and used by ``locate``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_case import NETWORK, SPEC, SYSTEM

import rismusic
from rismusic.errors import InputError
from rismusic.nn.checkpoint import read_tensors
from rismusic.nn.network import build_network
from rismusic.registry import NETWORKS

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    NETWORKS.unregister("heat_map")
    sys.modules.pop("own_network", None)


@pytest.fixture
def network(_registered):
    return NETWORK.replace(plugins=("own_network",), kind="heat_map")


def test_an_own_network_is_trained_and_used(network, tmp_path, untyped):
    trained = rismusic.train(SPEC.replace(network=network), out=tmp_path / "run", device="cpu")
    assert type(trained.network).__name__ == "HeatMap"
    weights = tmp_path / "run" / "best.safetensors"
    _, metadata = read_tensors(weights)
    assert json.loads(metadata["network"])["kind"] == "heat_map"
    recording = rismusic.simulate(SYSTEM, scenes=2, sources=1, snr_db=20.0)
    estimate = rismusic.locate(recording, n_sources=1, method="hybrid", weights=str(weights))
    assert not any("not by the network" in one for some in estimate.warnings for one in some)
    error = (estimate.sources.azimuth - recording.truth.azimuth[:, :1]).abs()
    assert float(error.max()) < 0.1
    # Without the module that registers the class, the error names what is missing.
    NETWORKS.unregister("heat_map")
    with pytest.raises(InputError, match=r"best\.safetensors: the weights are of a network 'heat_map'"):
        rismusic.load_network(weights)


def test_initial_weights_depend_on_the_seed_alone(network):
    spec = SPEC.replace(network=network)
    from rismusic.nn.learner import Learner

    first = Learner(spec).network
    torch.rand(3)
    again = Learner(spec).network
    other = Learner(spec.replace(seed=1)).network
    for name, weight in first.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name])
    assert not torch.equal(first.count.weight, other.count.weight)


def test_refusals(network, monkeypatch):
    with pytest.raises(InputError, match=r"no network is named 'heatmap'\. Did you mean 'heat_map'"):
        network.replace(kind="heatmap")
    monkeypatch.setitem(NETWORKS._registered, "heat_map", torch.nn.Linear)
    grid = rismusic.SearchGrid.cover(
        rismusic.Panel.from_spec(SYSTEM.panel), rismusic.estimation.grid.Volume.from_spec(SYSTEM.scene)
    )
    with pytest.raises(InputError, match=r"must be a subclass of rismusic\.GridNetwork"):
        build_network(network, grid)


def test_the_command_line_knows_plugins(tmp_path):
    """Help and settings of an own network, without torch for the built-in ones."""
    code = "import rismusic.nn.spec, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
