"""What is recorded of a loss, samples with their own targets, and the data and steps of a loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rismusic
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.tape import Tape, TapeRecorder, faithful
from rismusic.doctor.tape_checks import exchange_findings

N = 32


def taped(model, loss, before=lambda: None):
    """The tape of one loss."""
    recorder = TapeRecorder(model)
    handles = recorder.hooks()
    with CallRecorder(tape=recorder):
        before()
        tape = recorder.cut(loss())
    for handle in handles:
        handle.remove()
    assert isinstance(tape, Tape), tape
    return tape


def wrong(findings):
    return " ".join(f"{one.name}: {one.meaning}" for one in findings if not one.fine)


@pytest.fixture
def regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    return model, torch.randn(N, 4), torch.randn(N)


def test_weights_that_are_copied_between_steps_are_no_part_of_a_loss(regression):
    model, x, y = regression
    target = copy.deepcopy(model)

    def loss():
        with torch.no_grad():
            wanted = y + 0.9 * target(x).squeeze(1)
        return (model(x).squeeze(1) - wanted).square().mean()

    tape = taped(model, loss, before=lambda: target.load_state_dict(model.state_dict()))
    assert faithful(tape)


def test_a_call_in_place_reads_what_it_returns(regression):
    model, x, y = regression

    def loss():
        out = model(x).squeeze(1)
        scale = torch.ones(N)
        scale.mul_(out.detach())  # Data that is changed by what depends on weights.
        return ((out - y) * scale).square().mean()

    assert faithful(taped(model, loss))


def test_what_a_network_decides_is_data(regression):
    model, x, _ = regression
    policy = nn.Linear(4, 3)

    def loss():
        with torch.no_grad():
            action = policy(x).argmax(1)
        return (model(x).squeeze(1) - 0.3 * (action - 1)).square().mean()

    tape = taped(nn.ModuleList([model, policy]), loss)
    assert faithful(tape)
    assert [root.kind for root in tape.roots.values() if root.value.dtype == torch.int64] == ["decision"]


LOSSES = {
    "right": (lambda out, y, w: (out.squeeze(1) - y).square().mean(), False),
    "weighted": (lambda out, y, w: (w * (out.squeeze(1) - y).square()).mean(), False),
    "broadcast": (lambda out, y, w: (out - y).square().mean(), True),
    "weights broadcast": (lambda out, y, w: (w[:, None] * (out.squeeze(1) - y).square()).mean(), True),
    "means": (lambda out, y, w: (out.squeeze(1) - y).mean().square(), True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_depends_on_which_sample_has_which_target(regression, name):
    model, x, y = regression
    loss, wrong_pairs = LOSSES[name]
    weights = 0.5 + torch.rand(N)
    said = wrong(exchange_findings(taped(model, lambda: loss(model(x), y, weights))))
    assert ("which sample has which target" in said) == wrong_pairs


class Data:
    """A healthy regression with held-out rows; the faults replace its parts."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3)
        self.x = torch.randn(256, 6)
        self.y = self.x[:, 0] * self.x[:, 1] + self.x[:, 2]

    def rows(self):
        return torch.randint(192, (N,))

    def batch(self):
        rows = self.rows()
        return self.x[rows], self.y[rows]

    def validated(self):
        return self.x[192:], self.y[192:]

    def step(self, x, y):
        loss = (self.model(x).squeeze(1) - y).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def said(self, steps=60):
        with rismusic.watch(self.model, self.optimizer, say=lambda _: None) as w:
            for number in range(steps):
                self.step(*self.batch())
                if number % 10 == 9:
                    with torch.no_grad():
                        x, y = self.validated()
                        float((self.model(x).squeeze(1) - y).square().mean())
        return wrong(w.diagnosis.wrong)


class TrainsOnAll(Data):
    def rows(self):
        return torch.randint(256, (N,))


class Emptied(Data):
    def step(self, x, y):
        self.optimizer.zero_grad()
        (self.model(x).squeeze(1) - y).square().mean().backward()
        self.optimizer.zero_grad()
        (self.model(x).squeeze(1) - y).abs().mean().backward()
        self.optimizer.step()


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (Data, ""),
        (TrainsOnAll, "rows that the network is trained on"),
        (Emptied, "between two calls of backward"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_data_and_steps_of_a_loop(case, text):
    said = case().said()
    assert (text in said) if text else not said
