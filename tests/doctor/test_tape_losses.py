"""Losses against what they should be satisfied with, and loops against their own data: planted faults."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import rismusic
from rismusic.doctor.calls import CallRecorder
from rismusic.doctor.tape import LeftOutError, Tape, TapeRecorder, faithful
from rismusic.doctor.tape_losses import (
    derivative_findings,
    exchange_findings,
    number_findings,
    satisfied_findings,
)

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
    "right": (lambda out, y, w: (out.squeeze(1) - y).square().mean(), "", ""),
    "weighted": (lambda out, y, w: (w * (out.squeeze(1) - y).square()).mean(), "", ""),
    "modulus": (lambda out, y, w: (out.squeeze(1).abs() - y.abs()).square().mean(), "modulus only", ""),
    "similarity": (lambda out, y, w: (out.squeeze(1) + y).square().mean(), "their opposite", ""),
    "broadcast": (lambda out, y, w: (out - y).square().mean(), "the same for all samples", "every target"),
    "weights broadcast": (
        lambda out, y, w: (w[:, None] * (out.squeeze(1) - y).square()).mean(),
        "",
        "every target",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_asks_for_its_targets_sample_by_sample(regression, name):
    model, x, y = regression
    loss, asks, exchanges = LOSSES[name]
    weights = 0.5 + torch.rand(N)
    tape = taped(model, lambda: loss(model(x), y, weights))
    for findings, text in ((satisfied_findings, asks), (exchange_findings, exchanges)):
        said = wrong(findings(tape))
        assert (text in said) if text else not said


@pytest.mark.parametrize(("temperature", "text"), [(0.2, ""), (5.0, "the logits cannot get large")])
def test_a_cross_entropy_can_fall_far(temperature, text):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 8), torch.randn(N, 4)
    views = torch.cat((x, x + 0.1 * torch.randn(N, 4)))

    def loss():
        z = functional.normalize(model(views), dim=-1)
        logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * N).bool(), -1e9)
        return functional.cross_entropy(logits, torch.arange(2 * N).roll(N))

    said = wrong(satisfied_findings(taped(model, loss)))
    assert (text in said) if text else not said


def test_positions_are_not_values(regression):
    model, x, y = regression
    target = nn.Linear(4, 5)

    def loss(part):
        with torch.no_grad():
            best = target(x).max(1)[part]
        return (model(x).squeeze(1) - (y + 0.9 * best)).square().mean()

    assert not wrong(number_findings(taped(model, lambda: loss(0))))
    assert "positions" in wrong(number_findings(taped(model, lambda: loss(1))))


@pytest.mark.parametrize(
    ("act", "graph", "text"),
    [(nn.Tanh, True, ""), (nn.Tanh, False, "create_graph is missing"), (nn.ReLU, True, "is 0 everywhere")],
)
def test_derivatives_in_a_loss(act, graph, text):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), act(), nn.Linear(8, 1))

    def loss():
        x = torch.rand(N, 1, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=graph)
        return (bend - x.detach()).square().mean() + model(torch.zeros(1, 1)).square().mean()

    said = wrong(derivative_findings(taped(model, loss)))
    assert (text in said) if text else not said


def test_a_loss_without_derivatives_has_no_such_findings(regression):
    model, x, y = regression
    with pytest.raises(LeftOutError):
        derivative_findings(taped(model, lambda: (model(x).squeeze(1) - y).square().mean()))


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


class AugmentsValidation(Data):
    def validated(self):
        x, y = super().validated()
        return torch.where(torch.rand(len(x), 1) < 0.5, -x, x), y


class SameRow(Data):
    def rows(self):
        return torch.randint(192, (N // 8,)).repeat(8)


class SameNoise(Data):
    def batch(self):
        x, y = super().batch()
        state = torch.get_rng_state()
        torch.manual_seed(0)
        noise = torch.randn(N, 6)
        torch.set_rng_state(state)
        return x + 0.1 * noise, y


class Unused(Data):
    def batch(self):
        rows = self.rows().tolist()
        self.mask = torch.stack([self.x[row, 0] > 0 for row in rows])
        return torch.stack([self.x[row] for row in rows]), self.y[rows]


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
        (AugmentsValidation, "random augmentation"),
        (SameRow, "samples of a batch repeat each other"),
        (SameNoise, "a seed is set in the loop"),
        (Unused, "collected but used neither"),
        (Emptied, "between two calls of backward"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_data_and_steps_of_a_loop(case, text):
    said = case().said()
    assert (text in said) if text else not said


class Images(nn.Module):
    """Marks bright pixels; both halves of a concatenation may be the same."""

    def __init__(self, twice=False):
        super().__init__()
        self.twice = twice
        self.read, self.write = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        h = torch.relu(self.read(x))
        return self.write(torch.cat((h, h if self.twice else h.flip(1) * 0.5), 1))


@pytest.mark.parametrize("twice", [False, True])
def test_repeated_features(twice):
    torch.manual_seed(0)
    model = Images(twice)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    images = torch.rand(128, 1, 8, 8)
    masks = (images > 0.7).float()
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for _ in range(60):
            rows = torch.randint(128, (16,))
            loss = functional.binary_cross_entropy_with_logits(model(images[rows]), masks[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    said = wrong(w.diagnosis.wrong)
    assert ("twice" in said) if twice else not said


@pytest.mark.parametrize("inverted", [False, True])
def test_class_weights(inverted):
    torch.manual_seed(0)
    model, labels = nn.Linear(4, 2), (torch.rand(200) < 0.1).long()
    share = labels.bincount(minlength=2) / len(labels)
    with CallRecorder() as calls:
        functional.cross_entropy(model(torch.randn(200, 4)), labels, share if inverted else 1 / share)
    assert ("inverted" in wrong(calls.findings)) == inverted


class Pretrained(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("loaded", "scale", "text"), [(True, 1, ""), (False, 1, "checkpoint"), (True, 0.1, "statistics")]
)
def test_a_frozen_part_is_pretrained_and_gets_the_data_it_knows(loaded, scale, text):
    torch.manual_seed(0)
    x, y = 3 + 2 * torch.randn(256, 6), torch.randn(256)
    source = Pretrained()
    optimizer = torch.optim.Adam(source.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (source(x).squeeze(1) - x[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = Pretrained()
    if loaded:
        model.load_state_dict(source.state_dict())
    model.body.requires_grad_(False)
    model.eval()
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
    with rismusic.watch(model, optimizer, say=lambda _: None) as w:
        for start in itertools.islice(itertools.cycle(range(0, 256, N)), 20):
            loss = (model(scale * x[start : start + N]).squeeze(1) - y[start : start + N]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = [one for report in w.diagnosis.reports if report.tag == "LAYERS" for one in report.wrong]
    assert (text in wrong(found)) if text else not wrong(found)
