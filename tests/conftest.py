"""Shapes and types of every function are enforced while the tests run; one thread, so that runs agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import config, install_import_hook

install_import_hook("rismusic", "beartype.beartype")
torch.set_num_threads(1)

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="session")
def samples() -> Path:
    """Recordings that were not made by this code."""
    return SAMPLES


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20261121)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Shapes and types not enforced: for tests of what the package itself says to bad input."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
