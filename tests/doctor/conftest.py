"""Loops are checked without repeating their training, which takes seconds, unless a test asks for it."""

from __future__ import annotations

import pytest

from rismusic.doctor import counterfactuals


@pytest.fixture
def repeated_trainings():
    """Repeat the training of this test."""


@pytest.fixture(autouse=True)
def _no_time_to_repeat_trainings(request, monkeypatch):
    if "repeated_trainings" not in request.fixturenames:
        monkeypatch.setattr(counterfactuals, "_SECONDS", 0.0)
