from __future__ import annotations

import pytest
from hybrid_case import SYSTEM, save_weights

from rismusic.io import Recording
from rismusic.simulation.simulator import simulate


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_weights(tmp_path_factory.mktemp("weights") / "small.safetensors"))


@pytest.fixture(scope="session")
def recording() -> Recording:
    return simulate(SYSTEM, scenes=6, sources=2, snr_db=20.0)
