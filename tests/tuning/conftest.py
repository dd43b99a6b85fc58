"""Trials in tests take no time for what these tests do not look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_trials() -> Iterator[None]:
    """No plots of the trainings, and no garbage collection through all of torch after each trial."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rismusic.nn.train.save_curves", lambda *_, **__: None)
        gc.freeze()
        yield
