"""Loops are checked without repeating their training, which takes seconds, unless a test asks for it."""

from __future__ import annotations

import pytest
from faults.plant import healthy

from rismusic.doctor import counterfactuals, function_checks
from rismusic.doctor.case import open_case
from rismusic.doctor.replay_checks import check_replay
from validation_stub import nowhere


@pytest.fixture
def repeated_trainings():
    """Repeat the training of this test with other settings."""


@pytest.fixture(autouse=True)
def _no_time_to_repeat_trainings(request, monkeypatch):
    if "repeated_trainings" not in request.fixturenames:
        monkeypatch.setattr(counterfactuals, "_SECONDS", 0.0)


@pytest.fixture(scope="session")
def _type_checks_compiled():
    """Without the profile function of FUNCTIONS, under which it takes seconds more."""
    with open_case(healthy()) as case:
        check_replay(case)


@pytest.fixture
def functions_of(monkeypatch, _type_checks_compiled):
    """Makes FUNCTIONS check those of some modules only, without the search of a validation.

    A healthy training is checked with all.
    """

    def select(*modules):
        monkeypatch.setattr("rismusic.nn.validation.rap_music_sources", nowhere)
        chosen = {n: one for n, one in function_checks.DEFINITIONS.items() if n.startswith(modules)}
        monkeypatch.setattr(function_checks, "DEFINITIONS", chosen)

    return select
