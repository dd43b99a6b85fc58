"""A small panel, a network on it that has learned nothing, and scenes for both."""

from __future__ import annotations

from pathlib import Path

import torch

from rismusic.array import Panel
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn.checkpoint import save_network
from rismusic.nn.network import Network
from rismusic.nn.spec import NetworkSpec, TrainSpec
from rismusic.spec import SystemSpec

SYSTEM = SystemSpec(
    panel={"rows": 8, "columns": 8},
    channel={"antennas": 10},
    codebook={"snapshots": 10},
    scene={"range_max_m": 3.0, "separation_deg": 20.0},
    sources=(1, 3),
)
SETTINGS: dict[str, object] = {"range_max_m": 3.0, "sources_max": 3}


def save_weights(path: Path, system: SystemSpec = SYSTEM) -> Path:
    """Weights of a small network that has learned nothing: its maps are those of the statistics."""
    spec = TrainSpec(system=system, network=NetworkSpec(sources_max=3, width=8, depth=1, stages=2))
    grid = SearchGrid.cover(Panel.from_spec(system.panel), Volume.from_spec(system.scene), 2.0)
    network = Network(spec.network, grid, torch.Generator().manual_seed(1))
    save_network(path, network, training=spec)
    return path
