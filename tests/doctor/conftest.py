"""Loops are checked without repeating their training, which takes seconds, unless a test asks for it."""

from __future__ import annotations

import pytest

from rismusic.doctor import counterfactuals, function_checks


@pytest.fixture
def repeated_trainings():
    """Repeat the training of this test."""


@pytest.fixture(autouse=True)
def _no_time_to_repeat_trainings(request, monkeypatch):
    if "repeated_trainings" not in request.fixturenames:
        monkeypatch.setattr(counterfactuals, "_SECONDS", 0.0)


@pytest.fixture
def functions_of(monkeypatch):
    """Makes FUNCTIONS check those of some modules only; a healthy training is checked with all."""

    def select(*modules):
        chosen = {n: one for n, one in function_checks.DEFINITIONS.items() if n.startswith(modules)}
        monkeypatch.setattr(function_checks, "DEFINITIONS", chosen)

    return select
