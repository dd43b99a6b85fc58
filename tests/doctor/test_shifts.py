"""Validations whose inputs are not those of the training; the healthy one has no finding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import rismusic


def said_of(fault):
    """What is said of a loop with a fault."""
    torch.manual_seed(0)
    x, held = torch.randn(1600, 6), torch.randn(300, 6)
    if fault == "part":
        x = x[x[:, 0] > 0.6]
    if fault == "shifted":
        held = held + 1.5
    y, right = ((one[:, :1] * one[:, 1:2]).sin() + one[:, 2:4] for one in (x, held))
    model = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for number in range(50):
            rows = torch.randint(len(x), (48,))
            loss = mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if number % 25 == 24:
                with torch.no_grad():
                    (model(held) - right).abs().mean()
    return " ".join(finding.sentence for finding in w.diagnosis.wrong)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("", ""),
        ("part", "it is a part of them only"),
        ("shifted", "the inputs of training and validation have other distributions"),
    ],
)
def test_a_validation_of_other_inputs_is_named(fault, text):
    said = said_of(fault)
    assert (text in said) if text else not said
