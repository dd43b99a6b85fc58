"""The reference computations agree with the package where both are right, and name a planted mistake."""

from __future__ import annotations

import pytest
import torch
from faults.plant import healthy

from rismusic.array import Panel, steering
from rismusic.doctor.case import open_case
from rismusic.doctor.references import (
    EXPECTED,
    best_explanation,
    cosine,
    element_positions,
    operators,
    recording_in_double,
    residual_over_noise,
    steering_vectors,
    total_norm,
    true_steering,
)
from rismusic.spec import PanelSpec


@pytest.fixture(scope="module")
def case():
    with open_case(healthy()) as made:
        yield made


def test_steering_vectors_are_those_of_the_package():
    spec = PanelSpec(rows=3, columns=5)
    position = tuple(
        torch.tensor(values, dtype=torch.float64) for values in ([0.3, -0.7], [0.1, 0.4], [0.8, 5])
    )
    panel = Panel.from_spec(spec)
    assert torch.allclose(element_positions(spec), panel.elements.double())
    found = steering_vectors(element_positions(spec), spec.wavelength_m, *position)
    # The package's amplitudes may differ from 1; phases do not.
    assert torch.allclose(found.angle(), steering(panel, *position).to(torch.complex128).angle(), atol=1e-4)


def test_only_noise_remains_outside_the_true_sources(case):
    recording = case.recording
    A = true_steering(recording.truth, element_positions(case.spec.system.panel), recording.wavelength)
    G = operators(recording)
    assert residual_over_noise(recording, G, A) == pytest.approx(1, abs=0.15)
    assert residual_over_noise(recording, G, A.conj()) > 2


def test_best_explanation_needs_a_clearly_better_candidate():
    assert best_explanation({EXPECTED: 1.0, "conjugated": 0.2}) == ""
    assert best_explanation({EXPECTED: 1.0, "conjugated": 0.09}) == "conjugated"
    assert best_explanation({EXPECTED: 0.0, "conjugated": 1.0}) == ""


def test_recording_in_double(case):
    wide = recording_in_double(case.recording)
    assert wide.snapshots.dtype == torch.complex128
    assert wide.truth.azimuth.dtype == wide.noise_variance.dtype == torch.float64


def test_norm_and_cosine_of_gradients():
    one, other = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"a": torch.tensor([1.0])}
    assert total_norm(one) == 5
    assert cosine(one, other) == pytest.approx(0.6)
    assert cosine(one, {"a": torch.tensor([torch.nan])}) == 0
