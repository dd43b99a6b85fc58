"""Trainings whose data mean something else than the loop takes them for; the healthy ones have no finding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, one_hot

import rismusic
from rismusic.doctor.other_data import _is_one_hot

TASTES = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def table(count):
    """Three numbers and a code [count, 4], and two targets."""
    facts, code = torch.randn(count, 3), torch.randint(8, (count,))
    liking = (facts * TASTES[code]).sum(1)
    return torch.cat((facts, code[:, None]), 1), torch.stack((liking, facts[:, 0].sin() + facts[:, 1]), 1)


def with_codes(x):
    return torch.cat((x[:, :3], one_hot(x[:, 3].long(), 8)), 1)


def said_of(fault):
    """What is said of a loop with a fault."""
    torch.manual_seed(0)
    x, y = table(1600)
    held, right = table(300)
    x, held = (
        (torch.cat((one, torch.zeros(len(one), 7)), 1) if fault == "code" else with_codes(one))
        for one in (x, held)
    )
    units = 1 if fault == "unit" else 48
    if fault == "mark":
        x[torch.rand(len(x)) < 0.1, 1] = -999.0
        x[:, 1] = (x[:, 1] - x[:, 1].mean()) / x[:, 1].std()
    if fault == "scale":
        y = 300 * y + 900
    if fault == "line":
        y = y.roll(-1, 0)
    if fault == "halves":
        y = torch.cat((y[:800], y[800:].flip(1)))
    if fault == "sorted":
        x = x[x[:, 0].argsort()]
    if fault == "loud":
        x, held = (one * (2 * torch.randn(len(one), 1)).exp() for one in (x, held))
    if fault == "part":
        x, y = x[x[:, 0] > 0.6], y[x[:, 0] > 0.6]
    if fault == "noisy copies":
        held, right = x[:300] + 0.001 * torch.randn(300, x.shape[1]), y[:300]
    model = nn.Sequential(
        *(nn.Linear(x.shape[1], 48), nn.ReLU(), nn.Linear(48, units), nn.Tanh()),
        *(nn.Linear(units, 48), nn.ReLU(), nn.Linear(48, 2)),
    )
    if fault == "weights":
        nn.init.normal_(model[0].weight, std=20.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for number in range(100):
            rows = torch.randint(len(x), (48,))
            given = x[rows]
            loss = mse_loss(model(given), y[rows])
            if fault == "margin":
                loss = loss + (0.0 - (model(given) - y[rows]).abs()).relu().mean()
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
        ("code", "column 3 of the input is a code"),
        ("mark", "a mark for missing values"),
        ("scale", "the targets are not scaled (mean 9"),
        ("line", "with the targets of 1 row before in the data set"),
        ("halves", "It holds if the targets of one half have their last axis in reverse order"),
        ("sorted", "put in another order without the targets"),
        ("loud", "with each sample divided by its own size"),
        ("unit", "a layer has 1 unit only"),
    ],
)
def test_a_loop_whose_data_mean_something_else(repeated_on_other_data, fault, text):
    said = said_of(fault)
    assert (text in said) if text else not said


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("weights", "the initial weights of a layer"),
        ("margin", "a term of the loss (relu) is at its limit"),
        ("part", "it is a part of them only"),
        ("noisy copies", "nearly the same as samples of the training"),
    ],
)
def test_weights_a_margin_and_a_validation(fault, text):
    assert text in said_of(fault)


@pytest.mark.parametrize("fault", ["", "rate", "noise"])
def test_two_networks(fault):
    """A generator and a judge learn at rates of one size, and noise is drawn anew."""
    torch.manual_seed(0)
    generator, judge = (nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, n)) for n in (2, 1))
    first = torch.optim.Adam(generator.parameters(), lr=1e-3)
    second = torch.optim.Adam(judge.parameters(), lr=1e-6 if fault == "rate" else 1e-3)
    kept = torch.randn(64, 2)
    with rismusic.watch([generator, judge], [first, second], say=lambda _: None) as w:
        for _ in range(40):
            fake = generator(kept if fault == "noise" else torch.randn(64, 2))
            real = 2 + torch.randn(64, 2)
            second.zero_grad()
            (
                nn.functional.softplus(-judge(real)) + nn.functional.softplus(judge(fake.detach()))
            ).mean().backward()
            second.step()
            first.zero_grad()
            nn.functional.softplus(-judge(fake)).mean().backward()
            first.step()
    said = " ".join(finding.sentence for finding in w.diagnosis.wrong)
    texts = {"rate": "is far below that of another", "noise": "the same random numbers"}
    assert (texts[fault] in said) if fault else not said


def test_classes_have_no_order():
    kinds = torch.randint(3, (5, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = one_hot(kinds, 3).movedim(-1, 1)
    assert _is_one_hot(masks)
    assert not _is_one_hot(one_hot(kinds, 3))  # classes are the last axis
    assert not _is_one_hot(torch.zeros(5, 3))
    assert not _is_one_hot(torch.rand(5, 3))
