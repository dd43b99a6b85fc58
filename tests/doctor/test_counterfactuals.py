"""The recorded training, repeated with one setting changed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import rismusic
from rismusic.doctor.counterfactuals import Settings

pytestmark = pytest.mark.usefixtures("repeated_trainings")


def watched(make, steps=50, schedule=1.0, clip=math.inf):
    """Meanings of what is wrong with the settings of a regression of 2000 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    optimizer = make(model.parameters())
    x = torch.randn(2000, 6)
    y = (x[:, 0] + x[:, 1] * x[:, 2]).sin()
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for _ in range(steps):
            rows = torch.randint(len(x), (64,))
            loss = F.mse_loss(model(x[rows]).squeeze(1), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= schedule
    reports = [report for report in w.diagnosis.reports if report.tag == "RETRAIN"]
    assert any(report.findings for report in reports), [report.lines[0] for report in reports]
    return " ".join(one.meaning for report in reports for one in report.wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 3e-3}, ""),
        ({"lr": 1e-2, "weight_decay": 1e-4}, ""),
        ({"lr": 0.3}, "the learning rate is too high"),
        ({"lr": 2e-6}, "the learning rate is too low"),
        ({"lr": 3e-3, "weight_decay": 0.3}, "weight_decay at 0 in place of 0.3"),
        ({"lr": 3e-3, "eps": 1.0}, "eps at 1e-08 in place of 1.0"),
    ],
)
def test_a_setting_that_hinders_is_named(options, words):
    found = watched(lambda weights: torch.optim.Adam(weights, **options))
    assert words in found
    assert bool(found) == bool(words)


def test_a_learning_rate_that_falls_too_fast_is_named():
    assert "does not fall" in watched(lambda weights: torch.optim.Adam(weights, lr=3e-3), schedule=0.9)


def test_a_clipped_loop_is_repeated_with_clipping():
    # Without it, these steps diverge, and a lower learning rate would seem to be better.
    def make(weights):
        return torch.optim.SGD(weights, lr=1.0, momentum=0.9)

    assert "too high" not in watched(make, clip=0.1)


def test_settings_keep_the_highest_learning_rates():
    weight = nn.Parameter(torch.zeros(2))
    settings = Settings.of(torch.optim.SGD([weight], lr=0.0)).scheduled([[0.0, 0.2, 0.4]], 1.0)
    assert settings.groups[0][1]["lr"] == 0.4
    assert settings.schedule == (0.0, 0.5, 1.0)
    assert settings.clip == 1.0
