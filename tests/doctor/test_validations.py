"""What a watched loop gives to its validation, its schedule and its distributions."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import ReduceLROnPlateau

import rismusic

AXIS = torch.linspace(-1, 1, 12)
PICTURE = torch.sin(3 * AXIS)[:, None] + AXIS.square()


def watched(loop, model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        loop(optimizer)
    return " ".join(f"{one.meaning}" for one in w.diagnosis.wrong)


def field(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def fit(model, optimizer, steps=150, after=lambda _: None):
    for _ in range(steps):
        place = 2 * torch.rand(128, 2) - 1
        height = torch.sin(3 * place[:, 0]) + place[:, 1].square()
        loss = F.mse_loss(model(place).squeeze(-1), height)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(loss)


@pytest.mark.parametrize(("indexing", "words"), [("ij", ""), ("xy", "axes of a grid of 12 x 12 exchanged")])
def test_validation_in_another_order_is_named(indexing, words):
    model = field()

    def loop(optimizer):
        fit(model, optimizer)
        with torch.no_grad():
            grid = torch.stack(torch.meshgrid(AXIS, AXIS, indexing=indexing), -1).flatten(0, 1)
            (model(grid).squeeze(-1) - PICTURE.flatten()).square().mean()

    found = watched(loop, model)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize("wrong", [False, True])
def test_validation_that_computes_something_else_is_noticed(wrong):
    model = field()

    def loop(optimizer):
        fit(model, optimizer)
        with torch.no_grad():
            place = 2 * torch.rand(200, 2) - 1
            height = torch.sin(3 * place[:, 0]) + place[:, 1].square()
            (model(-place.flip(1) if wrong else place).squeeze(-1) - height).square().mean()

    assert ("but not in validation" in watched(loop, model)) == wrong


@pytest.mark.parametrize(("mode", "words"), [("min", ""), ("max", "mode='max'")])
def test_a_plateau_schedule_that_waits_for_the_wrong_direction_is_named(mode, words):
    model = field()

    def loop(optimizer):
        schedule, losses = ReduceLROnPlateau(optimizer, mode=mode, patience=5), []

        def after(loss):
            losses.append(float(loss.detach()))
            if len(losses) % 15 == 0:
                schedule.step(sum(losses[-15:]) / 15)

        fit(model, optimizer, after=after)

    found = watched(loop, model)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_probability_of_another_sample_is_named(wrong):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))

    def loop(optimizer):
        for _ in range(60):
            x = torch.randn(64, 4)
            chances = Categorical(logits=model(x))
            action = chances.sample()
            gain = (action == x.argmax(-1)).float() - 0.25
            asked = chances.sample() if wrong else action
            loss = -(gain * chances.log_prob(asked)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert ("log_prob is that of a later sample" in watched(loop, model)) == wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_an_argument_in_another_unit_is_named(wrong):
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = field()

        def forward(self, x, time):
            return self.net(torch.stack((x, time), -1)).squeeze(-1)

    torch.manual_seed(0)
    model = Timed()

    def loop(optimizer):
        for _ in range(60):
            x, time = torch.randn(64), torch.randint(40, (64,)) / 40
            loss = F.mse_loss(model(x, time), x * time)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for n in range(40):
                model(torch.randn(8), torch.full((8,), n if wrong else n / 40, dtype=torch.float32))

    assert ("argument 2 of the network" in watched(loop, model)) == wrong
